"""The run reader: a line with a run, what to do and a file of it (``sealed = run.json``), then the file's new content."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import get_args

import duckdb

from auditor.analysis.drift import diff_runs
from auditor.errors import RunFolderError
from auditor.models import Outcome
from auditor.query.devices import Selection, select_devices
from auditor.query.run import Run
from auditor.runs.folder import ANSWERED, DEVICES, FAILED, FLEET, INVENTORY_CSV, INVENTORY_JSON, MODULES, find_run
from auditor.runs.manifest import MANIFEST, read_manifest
from auditor.runs.verify import verify
from auditor.storage.database import quoted
from auditor.storage.tables import TableFormat
from tests.runs.run_folders import both, build, by_id, every_status, failed, named, ok, running

FILES = (MANIFEST, FLEET, ANSWERED, FAILED, DEVICES, MODULES, INVENTORY_CSV, INVENTORY_JSON)
KINDS = ("sealed", "mixed", "running")

MESSAGE = 1_000
"""Characters of a problem or a refusal at most."""

PIECES = [
    b"sealed = ", b"mixed = ", b"running = ", b"sealed - ", b"sealed + ", *(name.encode() for name in FILES), b"\n", b"\x00", b"\xff",
    b"{", b"}", b"[", b"]", b"null", b"-1", b"1e400", b"9" * 30, b'"\\u0000"', b'"\\u001b[31m"', b"\\ud800", b'"status":"ok"',
    b'"state":"complete"', b'"state":"running"', b'"modules":[', b'"total":', b'"audited_at":', b'"9999999-01-01T00:00:00Z"',
    b'"account":', b'"iot_id":', b"PAR1", b"[" * 300, b'"finished_at":null', b'"files":[]', b"\xe2\x80\xae",
]  # fmt: skip


def seeds() -> list[bytes]:
    """Every file of every run as it is, gone, as a folder, as another of its files, and with columns of other types."""
    made = []
    for kind in KINDS:
        for name in FILES:
            made += [f"{kind} - {name}\n".encode(), f"{kind} + {name}\n".encode()]
            path = _honest() / kind / name
            if path.is_file():
                made.append(_edit(kind, name, path.read_bytes()))
                other = _honest() / kind / FILES[(FILES.index(name) + 1) % 5]
                made.append(_edit(kind, name, other.read_bytes() if other.is_file() else b""))
    return made + _odd_columns()


def read(data: bytes) -> str:
    """What came of a folder: ``run``, or the documented error's name."""
    first, _, content = data.partition(b"\n")
    words = first.decode("utf-8", "replace").split(" ")
    kind = next((each for each in KINDS if each in words), KINDS[0])
    name = next((each for each in FILES if each in words), FILES[0])
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "runs" / "run"
        shutil.copytree(_honest() / kind, folder)
        _put(folder / name, content, "-" if "-" in words else "+" if "+" in words else "=")
        before = _state(folder)
        changed = kind != "running" and name != MANIFEST and before != _state(_honest() / kind)
        try:
            _found(folder)
            _verified(folder, changed=changed)
            _opened(folder, Path(made))
        except RunFolderError as error:
            _checked(str(error).removeprefix(str(folder)))
            return type(error).__name__
        finally:
            assert _state(folder) == before
    return "run"


def _put(path: Path, content: bytes, what: str) -> None:
    path.unlink(missing_ok=True)
    if what == "+":
        path.mkdir()
    elif what == "=":
        path.write_bytes(content)


def _found(folder: Path) -> None:
    assert find_run(folder) == find_run(folder.parent) == folder
    read_manifest(folder)


def _verified(folder: Path, *, changed: bool) -> None:
    problems = verify(folder)
    assert problems or not changed
    for problem in problems:
        _checked(problem)


def _opened(folder: Path, work: Path) -> None:
    """Every way to read a run, as far as it goes; the file to write to is never what is wrong."""
    with Run(folder.parent) as run:
        counts = run.devices
        assert counts.unanswered >= 0
        versions = list(run.inventory())
        assert all(version.devices > 0 and 0 < version.share <= 1 for version in versions)
        for form in get_args(TableFormat):
            run.write_inventory(work / f"written.{form}", form)
        assert len((work / "written.jsonl").read_bytes().splitlines()) == len(versions)
    with select_devices(folder, Selection(module_name="ble", below="1.1")) as selected:
        assert len(list(selected.table)) == selected.rows
    with diff_runs(folder, folder) as drift:
        assert drift.counts.joined == drift.counts.left == drift.counts.upgraded == drift.counts.vanished == 0
        assert len(list(drift.devices)) == drift.counts.not_seen


def _checked(text: str) -> None:
    assert "\n" not in text  # what a terminal would act on is escaped where it is printed
    assert len(text) <= MESSAGE, text


def _state(folder: Path) -> dict[str, bytes | None]:
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


@cache
def _honest() -> Path:
    """Runs to spoil, one of each kind, made once."""
    made = Path(tempfile.mkdtemp(prefix="auditor-honest-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    every_status(made / "sealed")
    fleet = [named(0), by_id(1), both(2)]
    outcomes: list[Outcome] = [ok(both(0), ("ble", "1")), ok(both(2), ("ble", "2")), failed(by_id(1))]
    build(made / "mixed", fleet, outcomes)
    running(made / "running", fleet, outcomes)
    assert verify(made / "sealed") == verify(made / "mixed") == []
    return made


def _edit(kind: str, name: str, content: bytes) -> bytes:
    return f"{kind} = {name}\n".encode() + content


def _odd_columns() -> list[bytes]:
    """Sealed files whose text is of another type, unpacked, so that a changed byte is a changed value."""
    made = []
    types = ("BLOB", "INTEGER[]", "DATE", "UUID", "DECIMAL(9, 2)", "DOUBLE", "INTERVAL", "TIMESTAMP", "VARCHAR")
    odd = _honest() / "odd.parquet"
    spoilt = ((MODULES, "module_version"), (MODULES, "account"), (DEVICES, "status"), (FLEET, "account"))
    with duckdb.connect() as database:
        for name, column in spoilt:
            source = _honest() / "sealed" / name
            for kind in types:
                value = f"try_cast({column} AS {kind})"
                value = {"DOUBLE": "'nan'::DOUBLE", "DATE": "'infinity'::DATE", "UUID": "uuid()"}.get(kind, value)
                value = {"INTERVAL": "to_days(1)", "TIMESTAMP": "'infinity'::TIMESTAMP"}.get(kind, value)
                query = f"SELECT * REPLACE ({value} AS {column}) FROM read_parquet({quoted(source)})"
                database.execute(f"COPY ({query}) TO {quoted(odd)} (FORMAT parquet, COMPRESSION uncompressed)")
                made.append(_edit("sealed", name, odd.read_bytes()))
    odd.unlink()
    return made
