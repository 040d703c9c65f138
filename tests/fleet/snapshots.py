"""What the tests of this room share: a fleet file in, its devices or its refusal out."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from auditor.errors import FleetError
from auditor.fleet.columns import is_column_name
from auditor.fleet.names import BadRowError, clean_name
from auditor.fleet.snapshot import Snapshot, write_snapshot
from auditor.fleet.table import read_snapshot
from tests.database import connect

Names = tuple[str | None, str | None, str | None]

HEADER = b"product_key,device_name\n"


def devices(out: Path, account: str = "eu") -> list[Names]:
    return [(each.product_key, each.device_name, each.iot_id) for each in read_snapshot(out, account)]


def snapshot(folder: Path, name: str, content: bytes) -> tuple[Snapshot, list[Names]]:
    """A file of ``content``, snapshot and read back; nothing but ``fleet.parquet`` may be left beside it."""
    (folder / name).write_bytes(content)
    out = folder / "out" / "fleet.parquet"
    out.parent.mkdir(exist_ok=True)
    taken = write_snapshot([("eu", str(folder / name))], out)
    assert [each.name for each in out.parent.iterdir()] == ["fleet.parquet"]
    read = devices(out)
    assert taken.devices == len(read)
    with connect() as database:
        ordinals = database.read_parquet(str(out)).project("ordinal").fetchall()
    assert [ordinal for (ordinal,) in ordinals] == list(range(len(read)))
    return taken, read


def refused(folder: Path, name: str, content: bytes) -> str:
    """Why a file of ``content`` is refused, without its own name; nothing may be left behind."""
    path = folder / name
    path.write_bytes(content)
    out = folder / "out" / "fleet.parquet"
    out.parent.mkdir(exist_ok=True)
    with pytest.raises(FleetError) as caught:
        write_snapshot([("eu", str(path))], out)
    assert list(out.parent.iterdir()) == []
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


def parquet(folder: Path, query: str) -> bytes:
    """The bytes of a Parquet file with the rows of a query."""
    path = folder / "made.parquet"
    with connect() as database:
        database.execute(f"COPY ({query}) TO '{path}' (FORMAT parquet)")
    return path.read_bytes()


def is_name(text: str) -> bool:
    """Whether a file may name a device so: the text has no damage, and is no column's name."""
    try:
        return clean_name(text) == text and not is_column_name(text)
    except BadRowError:
        return False


def fits(name: str, pattern: str) -> bool:
    """Whether a name fits a pattern of * and ?, as the standard library has it when [ is a letter like others."""
    return fnmatchcase(name, pattern.replace("[", "[[]"))
