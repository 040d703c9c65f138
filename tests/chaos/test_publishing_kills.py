"""Publishing killed at random moments, to a directory and to S3, while readers poll.

``AUDITOR_KILLS`` is the number of kills, as for other kills; at most 50.
"""

import hashlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from auditor.config.settings import OptionSetting, PublishSettings, SecretSource
from auditor.errors import ObjectMissingError
from auditor.publish.dataset import read_dataset_run, read_dataset_runs, run_key
from auditor.publish.tables import run_digest
from auditor.runs.manifest import read_manifest
from auditor.storage.object_store import ObjectStore, open_store
from tests.runs.run_folders import build, named, ok
from tests.storage.s3 import S3, needs_s3, simulated_s3

pytestmark = pytest.mark.slow

KILLS = min(50, int(os.environ.get("AUDITOR_KILLS", "4")))
PROCESS = Path(__file__).with_name("publishing_process.py")
NAMES = [f"202611{day}T020000Z-nightly" for day in (20, 21)]
FAILURES = 0.05


class Reader(threading.Thread):
    """Reads all runs of a dataset again and again, as the contract says; what it sees must be one of the versions."""

    def __init__(self, store: ObjectStore, versions: Mapping[tuple[str, str], int]) -> None:
        super().__init__()
        self._store, self._versions = store, versions
        self.stop = threading.Event()
        self.seen, self.replaced = 0, 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                for name in NAMES:
                    self._read(name)
        except BaseException as error:  # noqa: BLE001  the test raises it
            self.error = error

    def _read(self, name: str) -> None:
        document = read_dataset_run(self._store, run_key(name))
        if document is None:
            return
        devices = 0
        for file in document.files:
            try:
                content = self._store.get(file.key)
            except ObjectMissingError:  # published again meanwhile: the contract says to start again
                self.replaced += 1
                return
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256), file.key
            devices += file.rows if file.table == "devices" else 0
        assert self._versions[name, document.digest] == devices
        self.seen += 1


@pytest.fixture(params=["directory", pytest.param("s3", marks=needs_s3)])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[PublishSettings, ObjectStore, S3 | None]]:
    """Yield settings of a destination, and the store as its readers open it."""
    if request.param == "directory":
        options: dict[str, OptionSetting] = {"to": str(tmp_path / "lake")}
        yield PublishSettings(name="lake", type="files", options=options), open_store(str(tmp_path / "lake")), None
        return
    with simulated_s3(tmp_path) as s3, simulated_s3(tmp_path / "readers") as readers:
        address = f"s3://lake/{tmp_path.name}"
        keys: dict[str, OptionSetting] = {"access_key_id": "id", "secret_access_key": SecretSource(env="LAKE_SECRET")}
        settings = PublishSettings(name="lake", type="files", options={"to": address, **s3.options, **keys})
        yield settings, open_store(address, {**readers.options, "access_key_id": "id", "secret_access_key": "x"}), s3


def versions_of(folder: Path) -> list[tuple[Path, int]]:
    """Build two versions of each run: as it was first, and as it was resumed, with a device more."""
    made = []
    for name in NAMES:
        for count in (4, 5):
            fleet = [named(n, account=account) for account in ("eu", "us") for n in range(count)]
            build(folder / str(count) / name, fleet, [ok(d, ("ble", "1.0")) for d in fleet])
            made.append((folder / str(count) / name, 2 * count))
    return made


def test_after_each_kill_the_next_run_completes_it_and_no_reader_saw_a_part(
    lake: tuple[PublishSettings, ObjectStore, S3 | None], tmp_path: Path
) -> None:
    settings, store, s3 = lake
    made = versions_of(tmp_path / "versions")
    devices = {(path.name, run_digest(read_manifest(path))): count for path, count in made}
    audits, tables = tmp_path / "audits", tmp_path / "tables.json"
    tables.write_bytes(msgspec.json.encode((settings,)))
    reader, rng = Reader(store, devices), random.Random(7)
    reader.start()
    longest, hit = 1.0, 0
    try:
        for kill in range(KILLS):
            for name in NAMES:
                shutil.rmtree(audits / name, ignore_errors=True)
                shutil.copytree(tmp_path / "versions" / str(4 + kill % 2) / name, audits / name)
            if s3 is not None:
                s3.failures = FAILURES
            hit += publish(audits, tables, kill_after=rng.uniform(0, longest))
            started = time.monotonic()
            assert not publish(audits, tables)
            longest = time.monotonic() - started
            if s3 is not None:
                s3.failures = 0.0
            assert_exactly_once(store, audits)
    finally:
        reader.stop.set()
        reader.join()
    if reader.error is not None:
        raise reader.error
    print(f"{KILLS} kills, {hit} amid publishing; {reader.seen} reads of whole runs, {reader.replaced} repeated")  # noqa: T201
    assert reader.seen


def publish(audits: Path, tables: Path, kill_after: float | None = None) -> bool:
    """Publish in a process; return whether it was killed before its end."""
    command = [sys.executable, *map(str, (PROCESS, audits, tables))]
    environment = os.environ | {"PYTHONPATH": str(PROCESS.parents[2]), "LAKE_SECRET": "secret"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        if kill_after is None:
            assert process.wait(120) == 0
            return False
        try:
            process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
        return False


def assert_exactly_once(store: ObjectStore, audits: Path) -> None:
    documents = [document for document, _ in read_dataset_runs(store)]
    assert [each.run for each in documents] == NAMES
    for document in documents:
        assert document.cleaned
        assert document.digest == run_digest(read_manifest(audits / document.run))
    named_files = [file.key for document in documents for file in document.files]
    assert len(set(named_files)) == len(named_files)
    assert {each.key for each in store.list() if each.key.endswith(".parquet")} == set(named_files)
