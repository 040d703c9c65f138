"""Fuzz target of the fleet readers. Input: a line with the suffix (``+gz`` compresses the file), then the file."""

import gzip
import shutil
import tempfile
import unicodedata
from pathlib import Path

from auditor.client.operations import MAX_NAME_LENGTH
from auditor.errors import FleetError
from auditor.fleet.snapshot import write_snapshot
from auditor.fleet.table import sha256_of
from tests.database import connect
from tests.fleet.snapshots import Names, devices

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".txt", "")

MAX_MESSAGE = 10_000
"""Characters of an error message: ten rows, each with names of limited length."""

TABLES = [
    b"product_key,device_name,iot_id\nk1,device001,id1\nk1,device002,\n,,id3\nk1,device001,id1\n",
    b'iotId;note\n"id;1";x\n"id""2";"two\nlines"\n',
    b"ProductKey\tDeviceName\nk1\td1\nk1\t\xe4\xb8\xad\n",
]
LINES = b'{"product_key":"k1","device_name":"d1"}\n{"iotId":17,"note":[1]}\n{"IotId":"a\\u00e9","product_key":null}\n'
LIST = b"# devices\nid1\nk1/d1\nk1, d2\n\nid1\n"

FRAGMENTS = [
    b"\n", b"\r\n", b"\r", b",", b";", b"\t", b'"', b'""', b'",\n"', b"\xff", b"\xef\xbb\xbf", b"\x00", b"\x1f", b"\x85", b"\x1b[31m",
    b" ", b"/", b"#", b"{", b"}", b"[", b"]", b"null", b"true", b"1e400", b"-0", b"\\ud800", b"\\u0000", b"\\u0085", b"PAR1",
    b"\xff\xfe", b"sep=;\n", b"NULL", b"8.6E+14", b"\xe2\x80\x8b", b"\xef\xbc\x91", b"#N/A", b"=",
    b"\x1f\x8b", b"\xe4\xb8\xad", b"\xe4\xb8", b"\xe2\x80\xa8", b"\xe2\x80\xae", b"\xc2\xa0", b"k" * 257, b"9" * 300,
    b"product_key", b"device_name", b"iot_id", b'"iotId":', b'"deviceName":', b".jsonl\n", b".txt+gz\n",
]  # fmt: skip


def seeds() -> list[bytes]:
    """Return a valid file of every format."""
    text = [(".csv", TABLES[0]), (".csv", TABLES[1]), (".tsv", TABLES[2]), (".jsonl", LINES), (".txt", LIST)]
    plain = [f"{suffix}\n".encode() + content for suffix, content in text]
    without_suffix = [b"\n" + content for _, content in text]
    compressed = [f"{suffix}+gz\n".encode() + content for suffix, content in text]
    return [*plain, *without_suffix, *compressed, b".csv\n" + gzip.compress(TABLES[0], mtime=0), *_parquet()]


def read(data: bytes) -> str:
    """Return ``devices``, or the name of the documented error."""
    first, _, content = data.partition(b"\n")
    suffix = next((each for each in SUFFIXES if first.removesuffix(b"+gz") == each.encode()), "")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source, out = folder / f"fleet{suffix}", folder / "fleet.out.parquet"
        source.write_bytes(gzip.compress(content, 1) if first.endswith(b"+gz") else content)
        try:
            snapshot = write_snapshot([("eu", str(source))], out)
        except FleetError as error:
            _check_message(str(error).removeprefix(f"{source}: "))
            assert [each.name for each in folder.iterdir()] == [source.name]
            return type(error).__name__
        assert snapshot.sha256 == sha256_of(out)
        assert sorted(each.name for each in folder.iterdir()) == sorted({source.name, out.name})
        found = devices(out)
        assert snapshot.devices == len(found) > 0
        _check_devices(found)
        _check_repeatable(folder, out, found)
    return "devices"


def _check_message(text: str) -> None:
    assert "\n" not in text  # control sequences are escaped where they are printed
    assert len(text) <= MAX_MESSAGE


def _check_devices(found: list[Names]) -> None:
    """Check that names are complete, of limited length and clean, and that no device is duplicated."""
    ids = {(key, name): iot_id for key, name, iot_id in found if None not in {key, name, iot_id}}
    seen = set()
    for key, name, iot_id in found:
        assert iot_id is not None or None not in {key, name}
        seen.add(iot_id or ids.get((key, name)) or (key, name))
        for text in (key, name, iot_id):
            assert text is None or (0 < len(text) <= MAX_NAME_LENGTH and text == text.strip(" "))
            assert not any(unicodedata.category(letter) == "Cc" for letter in text or "")
    assert len(seen) == len(found)


def _check_repeatable(folder: Path, out: Path, found: list[Names]) -> None:
    """Check that a snapshot is a valid fleet file with the same devices; a limit keeps the first ones."""
    again, limit = folder / "again.parquet", len(found) // 2 + 1
    snapshot = write_snapshot([("eu", str(out))], again, limit=limit)
    assert (snapshot.devices, snapshot.duplicates, devices(again)) == (limit, 0, found[:limit])


def _parquet() -> list[bytes]:
    """Return Parquet files, compressed and not, and with columns of other types."""
    queries = [
        ("SELECT 'k1' AS product_key, 'd' || n AS device_name FROM range(9) t(n)", "snappy"),
        ("SELECT 'k1' AS product_key, 'd' || n AS device_name, NULL::VARCHAR AS iot_id FROM range(9) t(n)", "uncompressed"),
        ("SELECT n AS iotId, {'a': [n]} AS \"other\"\"s\" FROM range(9) t(n)", "zstd"),
        ("SELECT '\\x00\\xFF'::BLOB AS iot_id", "uncompressed"),
        ("SELECT [1, 2] AS iot_id, now() AS device_name", "gzip"),
    ]  # fmt: skip
    folder = Path(tempfile.mkdtemp())
    try:
        with connect() as database:
            for number, (query, compression) in enumerate(queries):
                target = f"'{folder}/{number}' (FORMAT parquet, COMPRESSION {compression})"
                database.execute(f"COPY ({query}) TO {target}")
        return [b".parquet\n" + (folder / str(number)).read_bytes() for number in range(len(queries))]
    finally:
        shutil.rmtree(folder)
