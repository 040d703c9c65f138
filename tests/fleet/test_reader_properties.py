"""Fleet files against plain Python: whatever the names, and whatever the bytes."""

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import FleetError
from auditor.fleet.snapshot import write_snapshot
from tests.database import connect
from tests.fleet.snapshots import HEADER, Names, devices, is_name

COLUMNS = ("product_key", "device_name", "iot_id")

_letters = st.characters(categories=["L", "N", "P", "So"]) | st.sampled_from("\"',; /|中🎛é")


_names = st.text(_letters, min_size=1, max_size=6).filter(is_name)
_few = st.sampled_from(["a", "b", "中", 'q"', "x,y"])


@st.composite
def fleets(draw: st.DrawFn) -> list[Names]:
    """Devices by name, by id, by both, with repeats, without contradictions: each id belongs to one name."""
    names = draw(st.lists(st.tuples(_names | _few, _names | _few), min_size=1, max_size=8, unique=True))
    ids = draw(st.lists(_names, min_size=len(names), max_size=len(names), unique=True))
    known = list(zip(names, ids, strict=True))
    rows: list[Names] = []
    for (product_key, device_name), iot_id in draw(st.lists(st.sampled_from(known), min_size=1, max_size=20)):
        given_by = draw(st.sampled_from(["name", "id", "both"]))
        if given_by == "id":
            rows.append((None, None, iot_id))
        else:
            rows.append((product_key, device_name, iot_id if given_by == "both" else None))
    return rows


def distinct(rows: list[Names]) -> list[Names]:
    """The oracle: rows that are one device, by a chain of names, are one; the first of them stays."""
    ids: dict[tuple[str | None, str | None], str] = {
        (product_key, name): iot_id for product_key, name, iot_id in rows if name is not None and iot_id is not None
    }
    seen: set[object] = set()
    kept = []
    for row in rows:
        device = row[2] or ids.get((row[0], row[1])) or (row[0], row[1])
        if device not in seen:
            kept.append(row)
        seen.add(device)
    return kept


def _as_csv(rows: list[Names], delimiter: str, ending: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ending)
    writer.writerow((*COLUMNS, "note"))
    writer.writerows((*row, 'x\n"y", z') for row in rows)
    return text.getvalue().replace("x\n", "x" + ending).encode()


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(fleets(), st.sampled_from([",", ";", "\t"]), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_a_written_fleet_is_read_back_as_its_distinct_devices(
    rows: list[Names], delimiter: str, ending: str, ascii_only: bool  # noqa: FBT001
) -> None:  # fmt: skip
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "a.csv").write_bytes(_as_csv(rows, delimiter, ending))
        lines = [json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=ascii_only) for row in rows]
        (folder / "a.jsonl").write_bytes(ending.join(lines).encode())
        with connect() as database:
            database.execute("CREATE TEMP TABLE t (product_key VARCHAR, device_name VARCHAR, iot_id VARCHAR)")
            database.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
            database.execute(f"COPY t TO '{folder}/a.parquet' (FORMAT parquet)")
        expected = distinct(rows)
        for name in ("a.csv", "a.jsonl", "a.parquet"):
            out = folder / "fleet.parquet"
            taken = write_snapshot([("eu", str(folder / name))], out)
            assert devices(out) == expected
            assert taken.duplicates == len(rows) - len(expected)


_pieces = st.sampled_from(
    [
        b"\n", b"\r\n", b"\r", b",", b";", b"\t", b'"', b'""', b"\xff", b"\xef\xbb\xbf", b"\x00", b"\x1f", b"k", b"a", b" ", b"/",
        b"#", b"{", b"}", b'{"iot_id":"a"}', b'{"iot_id":', b"[", b"]", b"\\u0000", b"\\", HEADER, b"iot_id\n", b"PAR1",
        b"\x1f\x8b", "中".encode(), b"\xe4\xb8",
    ]
)  # fmt: skip
_bytes = st.lists(_pieces | st.binary(max_size=6), max_size=20).map(b"".join)
_SUFFIXES = [".csv", ".tsv", ".jsonl", ".parquet", ".txt", "", ".csv.gz"]


def _either(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / name).write_bytes(content)
        try:
            write_snapshot([("eu", str(folder / name))], folder / "fleet.parquet")
        except FleetError as error:
            assert "\n" not in str(error)  # noqa: PT017  either outcome is right
            left = {name}
        else:
            assert devices(folder / "fleet.parquet")
            left = {name, "fleet.parquet"}
        assert {each.name for each in folder.iterdir()} == left


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(_SUFFIXES), st.sampled_from([b"", HEADER, b"iot_id\n", b"iot_id,n\r\n"]), _bytes, st.booleans())
def test_whatever_the_bytes_it_is_a_fleet_or_a_fleet_error(
    suffix: str, header: bytes, content: bytes, pack: bool  # noqa: FBT001
) -> None:  # fmt: skip
    _either("fleet" + suffix, gzip.compress(header + content) if pack else header + content)


def _packed(kind: str) -> bytes:
    text = HEADER + b"".join(b"k,%d\n" % number for number in range(50))
    if kind == "gz":
        return gzip.compress(text)
    with tempfile.TemporaryDirectory() as made, connect() as database:
        path = Path(made) / "a.parquet"
        database.execute(f"COPY (SELECT 'k' AS product_key, n::VARCHAR AS device_name FROM range(50) t(n)) TO '{path}'")
        return path.read_bytes()


_PACKED = {"a.csv.gz": _packed("gz"), "a.parquet": _packed("parquet")}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(_PACKED)), st.floats(0, 0.999), st.binary(min_size=1, max_size=4))
def test_a_damaged_file_is_a_fleet_or_a_fleet_error(name: str, where: float, damage: bytes) -> None:
    content = _PACKED[name]
    at = int(len(content) * where)
    _either(name, content[:at] + damage + content[at + len(damage) :])
