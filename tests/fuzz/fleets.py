"""The fleet readers: a line with the file's suffix (``+gz`` packs what follows), then the file, whatever is in it."""

import gzip
import shutil
import tempfile
import unicodedata
from pathlib import Path

import duckdb

from auditor.errors import FleetError
from auditor.fleet.snapshot import NAME_LENGTH, write_snapshot
from auditor.fleet.table import sha256_of
from tests.fleet.snapshots import Names, devices

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".txt", "")

MESSAGE = 10_000
"""Characters of a refusal at most: ten rows, each with names of bounded length."""

TABLES = [
    b"product_key,device_name,iot_id\nk1,device001,id1\nk1,device002,\n,,id3\nk1,device001,id1\n",
    b'iotId;note\n"id;1";x\n"id""2";"two\nlines"\n',
    b"ProductKey\tDeviceName\nk1\td1\nk1\t\xe4\xb8\xad\n",
]
LINES = b'{"product_key":"k1","device_name":"d1"}\n{"iotId":17,"note":[1]}\n{"IotId":"a\\u00e9","product_key":null}\n'
LIST = b"# devices\nid1\nk1/d1\nk1, d2\n\nid1\n"

PIECES = [
    b"\n", b"\r\n", b"\r", b",", b";", b"\t", b'"', b'""', b'",\n"', b"\xff", b"\xef\xbb\xbf", b"\x00", b"\x1f", b"\x85", b"\x1b[31m",
    b" ", b"/", b"#", b"{", b"}", b"[", b"]", b"null", b"true", b"1e400", b"-0", b"\\ud800", b"\\u0000", b"\\u0085", b"PAR1",
    b"\x1f\x8b", b"\xe4\xb8\xad", b"\xe4\xb8", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\xc2\xa0", b"k" * 257, b"9" * 300,
    b"product_key", b"device_name", b"iot_id", b'"iotId":', b'"deviceName":', b".jsonl\n", b".txt+gz\n",
]  # fmt: skip


def seeds() -> list[bytes]:
    """A good file of every kind."""
    text = [(".csv", TABLES[0]), (".csv", TABLES[1]), (".tsv", TABLES[2]), (".jsonl", LINES), (".txt", LIST)]
    plain = [f"{suffix}\n".encode() + content for suffix, content in text]
    sniffed = [b"\n" + content for _, content in text]
    packed = [f"{suffix}+gz\n".encode() + content for suffix, content in text]
    return [*plain, *sniffed, *packed, b".csv\n" + gzip.compress(TABLES[0], mtime=0), *_parquet()]


def read(data: bytes) -> str:
    """What came of a file: ``devices``, or the documented error's name."""
    first, _, content = data.partition(b"\n")
    suffix = next((each for each in SUFFIXES if first.removesuffix(b"+gz") == each.encode()), "")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        source, out = folder / f"fleet{suffix}", folder / "fleet.out.parquet"
        source.write_bytes(gzip.compress(content, 1) if first.endswith(b"+gz") else content)
        try:
            taken = write_snapshot([("eu", str(source))], out)
        except FleetError as error:
            _checked_refusal(str(error).removeprefix(f"{source}: "))
            assert [each.name for each in folder.iterdir()] == [source.name]
            return type(error).__name__
        assert taken.sha256 == sha256_of(out)
        assert sorted(each.name for each in folder.iterdir()) == sorted({source.name, out.name})
        kept = devices(out)
        assert taken.devices == len(kept) > 0
        _checked_devices(kept)
        _checked_again(folder, out, kept)
    return "devices"


def _checked_refusal(text: str) -> None:
    assert "\n" not in text  # what a terminal would act on is escaped where it is printed
    assert len(text) <= MESSAGE


def _checked_devices(kept: list[Names]) -> None:
    """Names are whole, bounded and clean, and no device stands there twice."""
    ids = {(key, name): iot_id for key, name, iot_id in kept if None not in {key, name, iot_id}}
    seen = set()
    for key, name, iot_id in kept:
        assert iot_id is not None or None not in {key, name}
        seen.add(iot_id or ids.get((key, name)) or (key, name))
        for text in (key, name, iot_id):
            assert text is None or (0 < len(text) <= NAME_LENGTH and text == text.strip(" "))
            assert not any(unicodedata.category(letter) == "Cc" for letter in text or "")
    assert len(seen) == len(kept)


def _checked_again(folder: Path, out: Path, kept: list[Names]) -> None:
    """A snapshot is a fleet itself: the same devices, none of them twice; a limit keeps the first."""
    again, limit = folder / "again.parquet", len(kept) // 2 + 1
    taken = write_snapshot([("eu", str(out))], again, limit=limit)
    assert (taken.devices, taken.duplicates, devices(again)) == (limit, 0, kept[:limit])


def _parquet() -> list[bytes]:
    """Parquet files, packed and not, and with columns of other types."""
    queries = [
        ("SELECT 'k1' AS product_key, 'd' || n AS device_name FROM range(9) t(n)", "snappy"),
        ("SELECT 'k1' AS product_key, 'd' || n AS device_name, NULL::VARCHAR AS iot_id FROM range(9) t(n)", "uncompressed"),
        ("SELECT n AS iotId, {'a': [n]} AS \"other\"\"s\" FROM range(9) t(n)", "zstd"),
        ("SELECT '\\x00\\xFF'::BLOB AS iot_id", "uncompressed"),
        ("SELECT [1, 2] AS iot_id, now() AS device_name", "gzip"),
    ]  # fmt: skip
    folder = Path(tempfile.mkdtemp())
    try:
        with duckdb.connect() as database:
            for number, (query, packing) in enumerate(queries):
                target = f"'{folder}/{number}' (FORMAT parquet, COMPRESSION {packing})"
                database.execute(f"COPY ({query}) TO {target}")
        return [b".parquet\n" + (folder / str(number)).read_bytes() for number in range(len(queries))]
    finally:
        shutil.rmtree(folder)
