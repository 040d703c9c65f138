"""Fuzz target of the run readers. Input: a line with run, action and file (``sealed = run.json``), then the content."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import get_args

from auditor.analysis.drift import diff_runs
from auditor.errors import RunFolderError
from auditor.models import Outcome
from auditor.query.devices import select_devices
from auditor.query.filters import DeviceFilter
from auditor.query.run import Run
from auditor.runs.folder import DEVICES, FAILURES, FLEET, INVENTORY_CSV, INVENTORY_JSON, MODULES, RESULTS, find_run
from auditor.runs.manifest import MANIFEST, read_manifest
from auditor.runs.verify import verify_run
from auditor.storage.database import sql_literal
from auditor.text.formats import TableFormat
from tests.database import connect
from tests.runs.run_folders import both, build, by_id, every_status, failed, named, ok, running

FILES = (MANIFEST, FLEET, RESULTS, FAILURES, DEVICES, MODULES, INVENTORY_CSV, INVENTORY_JSON)
KINDS = ("sealed", "mixed", "running")

MAX_MESSAGE = 1_000
"""Characters of a problem or an error message."""

FRAGMENTS = [
    b"sealed = ", b"mixed = ", b"running = ", b"sealed - ", b"sealed + ", *(name.encode() for name in FILES), b"\n", b"\x00", b"\xff",
    b"{", b"}", b"[", b"]", b"null", b"-1", b"1e400", b"9" * 30, b'"\\u0000"', b'"\\u001b[31m"', b"\\ud800", b'"status":"ok"',
    b'"state":"complete"', b'"state":"running"', b'"modules":[', b'"total":', b'"audited_at":', b'"9999999-01-01T00:00:00Z"',
    b'"account":', b'"iot_id":', b"PAR1", b"[" * 300, b'"finished_at":null', b'"files":[]', b"\xe2\x80\xae",
]  # fmt: skip


def seeds() -> list[bytes]:
    """Return every file of every run: unchanged, removed, as a folder, as another file, and with columns of other types."""
    made = []
    for kind in KINDS:
        for name in FILES:
            made += [f"{kind} - {name}\n".encode(), f"{kind} + {name}\n".encode()]
            path = _valid_runs() / kind / name
            if path.is_file():
                made.append(_edit(kind, name, path.read_bytes()))
                other = _valid_runs() / kind / FILES[(FILES.index(name) + 1) % 5]
                made.append(_edit(kind, name, other.read_bytes() if other.is_file() else b""))
    return made + _odd_columns()


def read(data: bytes) -> str:
    """Return ``run``, or the name of the documented error."""
    first, _, content = data.partition(b"\n")
    words = first.decode("utf-8", "replace").split(" ")
    kind = next((each for each in KINDS if each in words), KINDS[0])
    name = next((each for each in FILES if each in words), FILES[0])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "runs" / "run"
        shutil.copytree(_valid_runs() / kind, folder)
        _write(folder / name, content, "-" if "-" in words else "+" if "+" in words else "=")
        before = _state(folder)
        changed = kind != "running" and name != MANIFEST and before != _state(_valid_runs() / kind)
        try:
            _check_run_list(folder)
            _check_verify(folder, changed=changed)
            _check_snapshot(folder, Path(temporary))
        except RunFolderError as error:
            _check_message(str(error).removeprefix(str(folder)))
            return type(error).__name__
        finally:
            assert _state(folder) == before
    return "run"


def _write(path: Path, content: bytes, action: str) -> None:
    path.unlink(missing_ok=True)
    if action == "+":
        path.mkdir()
    elif action == "=":
        path.write_bytes(content)


def _check_run_list(folder: Path) -> None:
    assert find_run(folder) == find_run(folder.parent) == folder
    read_manifest(folder)


def _check_verify(folder: Path, *, changed: bool) -> None:
    problems = verify_run(folder)
    assert problems or not changed
    for problem in problems:
        _check_message(problem)


def _check_snapshot(folder: Path, work: Path) -> None:
    """Read a run in all ways."""
    with Run(folder.parent) as run:
        counts = run.devices
        assert counts.unanswered >= 0
        versions = list(run.inventory())
        assert all(version.devices > 0 and 0 < version.share <= 1 for version in versions)
        for form in get_args(TableFormat):
            run.write_inventory(work / f"written.{form}", form)
        assert len((work / "written.jsonl").read_bytes().splitlines()) == len(versions)
    with select_devices(folder, DeviceFilter(module="ble", below="1.1")) as selected:
        assert len(list(selected.table)) == selected.rows
    with diff_runs(folder, folder) as drift:
        assert drift.counts.joined == drift.counts.left == drift.counts.upgraded == drift.counts.vanished == 0
        assert len(list(drift.devices)) == drift.counts.not_seen


def _check_message(text: str) -> None:
    assert "\n" not in text  # control sequences are escaped where they are printed
    assert len(text) <= MAX_MESSAGE, text


def _state(folder: Path) -> dict[str, bytes | None]:
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


@cache
def _valid_runs() -> Path:
    """Create one valid run of each kind, once."""
    made = Path(tempfile.mkdtemp(prefix="auditor-valid-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    every_status(made / "sealed")
    fleet = [named(0), by_id(1), both(2)]
    outcomes: list[Outcome] = [ok(both(0), ("ble", "1")), ok(both(2), ("ble", "2")), failed(by_id(1))]
    build(made / "mixed", fleet, outcomes)
    running(made / "running", fleet, outcomes)
    assert verify_run(made / "sealed") == verify_run(made / "mixed") == []
    return made


def _edit(kind: str, name: str, content: bytes) -> bytes:
    return f"{kind} = {name}\n".encode() + content


def _odd_columns() -> list[bytes]:
    """Return sealed files with text columns of other types, uncompressed, so that a changed byte changes a value."""
    made = []
    types = ("BLOB", "INTEGER[]", "DATE", "UUID", "DECIMAL(9, 2)", "DOUBLE", "INTERVAL", "TIMESTAMP", "VARCHAR")
    odd = _valid_runs() / "odd.parquet"
    columns = ((MODULES, "module_version"), (MODULES, "account"), (DEVICES, "status"), (FLEET, "account"))
    with connect() as database:
        for name, column in columns:
            source = _valid_runs() / "sealed" / name
            for kind in types:
                value = f"try_cast({column} AS {kind})"
                value = {"DOUBLE": "'nan'::DOUBLE", "DATE": "'infinity'::DATE", "UUID": "uuid()"}.get(kind, value)
                value = {"INTERVAL": "to_days(1)", "TIMESTAMP": "'infinity'::TIMESTAMP"}.get(kind, value)
                query = f"SELECT * REPLACE ({value} AS {column}) FROM read_parquet({sql_literal(source)})"
                database.execute(f"COPY ({query}) TO {sql_literal(odd)} (FORMAT parquet, COMPRESSION uncompressed)")
                made.append(_edit("sealed", name, odd.read_bytes()))
    odd.unlink()
    return made
