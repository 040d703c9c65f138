"""Every kind of fleet file gives its devices, in order."""

import gzip
import io
import json
import os
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from auditor.errors import FleetError, RunNotWritableError
from auditor.fleet import snapshot as snapshot_module
from auditor.fleet.snapshot import write_snapshot
from auditor.fleet.table import read_snapshot, sha256_of
from auditor.storage.compressed import MAX_EXPANSION, MIN_EXPANDED_BYTES
from tests.database import connect
from tests.fleet.snapshots import HEADER, Names, devices, parquet, refused, snapshot

TWO: list[Names] = [("k", "a", None), ("k", "b", None)]


KINDS = {
    "a.csv": HEADER + b"k,a\nk,b\n",
    "semicolon.csv": b'"x,y,z";product_key;device_name\n"1,2";k;a\n;k;b\n',
    "tabs.csv": b"product_key\tdevice_name\nk\ta\nk\tb\n",
    "crlf.csv": HEADER.replace(b"\n", b"\r\n") + b"k,a\r\nk,b\r\n",
    "old-mac.csv": HEADER.replace(b"\n", b"\r") + b"k,a\rk,b",
    "no-last-newline.csv": HEADER + b"k,a\nk,b",
    "bom.csv": b"\xef\xbb\xbf" + HEADER + b"k,a\nk,b\n",
    "bom-quoted.csv": b'\xef\xbb\xbf"product_key","device_name"\n"k","a"\n"k","b"\n',
    "blank-lines.csv": HEADER + b"\nk,a\n\n\nk,b\n\n",
    "padded.csv": b" product_key , device_name \n k , a \nk,b \n",
    "quoted-header.csv": b'product_key,"note,\nof two",device_name\nk,"x, ""y""\n\nz",a\nk,,b\n',
    "latin-1-ignored.csv": b"product_key,caf\xe9,device_name\nk,\xe9,a\nk,x,b\n",
    "camel.csv": b"productKey,deviceName\nk,a\nk,b\n",
    "pascal.csv": b"DeviceName,ProductKey\na,k\nb,k\n",
    "spaced.csv": b"Product Key,DEVICE_NAME\nk,a\nk,b\n",
    "UPPER.CSV": HEADER + b"k,a\nk,b\n",
    "a.tsv": b"product_key\tnote, or not\tdevice_name\nk\t1;2\ta\nk\t\tb\n",
    "a.tab": b"device_name\tproduct_key\na\tk\nb\tk\n",
    "a.jsonl": b'{"product_key":"k","device_name":"a","more":{"x":[1]}}\n\n{"deviceName":"b","ProductKey":"k"}\n',
    "a.ndjson": b'\xef\xbb\xbf {"product_key":"k","device_name":"a"}\r\n{"product_key":"k","device_name":"b"}\r\n',
    "a.json": b'{"product_key":"k","device_name":"a"}\n{"product_key":"k","device_name":"b","iot_id":null}',
    "a.txt": b"# the hall\nk/a\n\n  k b  \n",
    "a.list": b"\xef\xbb\xbfk,a\r\nk;b\r\n",
    "tabs.txt": b"\tk\ta\n\tk\tb\n",
    "unknown-csv.fleet": HEADER + b"k,a\nk,b\n",
    "unknown-semicolon": b"device_name;product_key\na;k\nb;k\n",
    "unknown-tsv": b"\xef\xbb\xbfproductKey\tdeviceName\nk\ta\nk\tb\n",
    "unknown-jsonl": b'\n{"product_key":"k","device_name":"a"}\n{"product_key":"k","device_name":"b"}\n',
    "unknown-list": b"k/a\nk/b\n",
    "quoted-list.txt": b'"k","a"\n"k"/"b"\n',
    "spaces-around-quotes.csv": b'product_key, "device_name"\nk, "a"\n"k" ,"b" \n',
    "rows-of-commas.csv": b"product_key,device_name,note\r\nk,a,x\r\n,,\r\nk,b\r\n ,\xe2\x80\x8b,\r\n",
    "comma-behind-header.csv": b"product_key,device_name,\r\nk,a\r\nk,b,,\r\n",
    "sep.csv": b"sep=;\r\nproduct_key;device_name\r\nk;a\r\nk;b\r\n",
    "sep-pipe.csv": b"\xef\xbb\xbfsep=|\r\n\r\nnote|product_key|device_name\r\n|k|a\r\n,|k|b\r\n",
    "empty-lines-in-front.csv": b"\r\n,,\n" + HEADER + b"k,a\nk,b\n",
    "zero-width-space.csv": "\u200bproduct_key,device\u00a0name\nk,\u200ba\n\ufeffk,b\u00a0\n".encode(),
    "mixed-line-ends.csv": HEADER.replace(b"\n", b"\r\n") + b"k,a\nk,b\r",
    "quotes-inside.csv": b'product_key;device_name;note\r\nk;a;"7" panel"\r\n"k";"b";"8" panel"\r\n',
    "joined.csv": HEADER + b"k,a\n" + HEADER + b"k,b\n",
    "joined-with-marks.csv": b"\xef\xbb\xbf" + HEADER + b"k,a\n\xef\xbb\xbfProductKey,DeviceName\nk,b\n",
    "joined-in-another-order.csv": HEADER + b"k,a\nDeviceName,note,ProductKey\nb,IoT ID,k\n",
    "joined-by-a-note.csv": b"product_key,device_name,note\nk,a,x\nnote,device_name,product_key\nx,b,k\n",
    "excel-text.txt": b"product_key\tdevice_name\r\nk\ta\r\nk\tb\r\n",
    "excel-unicode-text.txt": "device_name\tproduct_key\r\na\tk\r\nb\tk\r\n".encode("utf-16"),
    "utf-16-be.csv": b"\xfe\xff" + "product_key,device_name\nk,a\nk,b\n".encode("utf-16-be"),
    "headers-in-a-list.txt": b"# all\nproduct_key/device_name\nk/a\n,,\nProductKey DeviceName\nk,b,,\n",
    "nulls.tsv": b"product_key\tdevice_name\tiot_id\nk\ta\tNULL\nk\tb\t\\N\n",
    "quoted-empty.csv": b'product_key,device_name,iot_id\n"k","a",""\n"k","b","(null)"\n',
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[str, bytes]:
    return request.param, KINDS[request.param]


def test_every_kind_of_file_gives_the_same_two_devices(tmp_path: Path, kind: tuple[str, bytes]) -> None:
    taken, read = snapshot(tmp_path, *kind)
    assert read == TWO
    assert (taken.source, taken.duplicates) == (str(tmp_path / kind[0]), 0)
    assert taken.sha256 == sha256_of(tmp_path / "out" / "fleet.parquet")


@pytest.mark.parametrize("name", ["a.csv", "bom-quoted.csv", "UPPER.CSV", "a.tsv", "a.jsonl", "a.txt", "unknown-list"])
def test_text_of_every_kind_may_be_compressed(tmp_path: Path, name: str) -> None:
    assert snapshot(tmp_path, name + ".gz", gzip.compress(KINDS[name]))[1] == TWO


@pytest.mark.parametrize(
    "content",
    [
        "iot_id,note\niot1,x\nnote,iot_id\nremark1,iot2\n",
        "iot_id,note\niot1,x\nNote,IoT ID\nremark1,iot2\n",
        "note,iot_id,model\nnote,iot1,m\niot_id,model,note\niot2,m,y\n",
        f"iot_id,{'a' * 30}\niot1,x\n{'a' * 30},iot_id\nremark1,iot2\n",
        "note;product_key;iot_id\nx;;iot1\niot_id;note;product_key\niot2;;\n",
    ],
)
def test_a_further_header_with_the_columns_in_another_order_is_valid_from_there_on(
    tmp_path: Path, content: str
) -> None:
    assert [each[2] for each in snapshot(tmp_path, "a.csv", content.encode())[1]] == ["iot1", "iot2"]


def test_text_of_parquet_may_be_bytes_or_a_uuid(tmp_path: Path) -> None:
    rows = parquet(
        tmp_path,
        "SELECT unnest(['k'::BLOB, NULL]) AS product_key, unnest([encode('灯 1'), NULL]) AS device_name, "
        "unnest([NULL, '4ac8c7b1-3bd8-4b1c-8a1c-0c7d9a5b1a11'::UUID]) AS iot_id, '\\xFF'::BLOB AS device_status",
    )
    assert snapshot(tmp_path, "a.parquet", rows)[1] == [
        ("k", "灯 1", None),
        (None, None, "4ac8c7b1-3bd8-4b1c-8a1c-0c7d9a5b1a11"),
    ]


def test_compression_is_seen_in_the_bytes_not_in_the_name(tmp_path: Path) -> None:
    assert snapshot(tmp_path, "a.csv", gzip.compress(KINDS["a.csv"]))[1] == TWO
    assert snapshot(tmp_path, "b.csv.gz", KINDS["a.csv"])[1] == TWO


class Stdin:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


NAMED_LISTS = {"headers-in-a-list.txt"}

SNIFFED = [
    name
    for name in KINDS
    if Path(name).suffix not in {".tsv", ".tab", ".txt", ".list"} or name in {"tabs.txt", "excel-text.txt"}
]


@pytest.mark.parametrize("name", [each for each in SNIFFED if not each.startswith("quoted-header")])
def test_standard_input_may_be_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content = gzip.compress(KINDS[name]) if name.startswith("unknown") else KINDS[name]
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    taken = write_snapshot([("eu", "-")], tmp_path / "fleet.parquet")
    assert taken.source == "-"
    assert devices(tmp_path / "fleet.parquet") == TWO
    assert [each.name for each in tmp_path.iterdir()] == ["fleet.parquet"]


def test_standard_input_may_be_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = parquet(tmp_path, "SELECT 'k' AS product_key, unnest(['a', 'b']) AS device_name")
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    write_snapshot([("eu", "-")], tmp_path / "fleet.parquet")
    assert devices(tmp_path / "fleet.parquet") == TWO


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf", HEADER])
def test_standard_input_without_devices_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(content))
    with pytest.raises(FleetError, match=r"^standard input: .*a fleet has at least one"):
        write_snapshot([("eu", "-")], tmp_path / "fleet.parquet")
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_refused_immediately_with_what_to_do(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(FleetError, match=r"pipe\.csv: cannot be read: is a pipe"):
        write_snapshot([("eu", str(tmp_path / "pipe.csv"))], tmp_path / "fleet.parquet")


def test_standard_input_that_is_endless_is_refused_by_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/zero").open("rb") as zeros:
        monkeypatch.setattr(sys, "stdin", Stdin(b""))
        monkeypatch.setattr(sys.stdin, "buffer", zeros)
        with pytest.raises(FleetError, match="standard input: is not UTF-8 text"):
            write_snapshot([("eu", "-")], tmp_path / "fleet.parquet")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 'k' AS product_key, unnest(['a', 'b']) AS device_name",
        "SELECT unnest(['a', 'b']) AS \"Device Name\", {'x': 1} AS more, 'k' AS \"productKey\"",
        "SELECT 'k' AS ProductKey, unnest(['a', 'b'])::ENUM('a', 'b') AS DeviceName, 'NaN'::DOUBLE AS iotId, 1.5 AS x",
    ],
)
@pytest.mark.parametrize("name", ["f.parquet", "unknown", "f.PARQUET"])
def test_parquet_gives_its_devices_whatever_its_types(tmp_path: Path, query: str, name: str) -> None:
    assert snapshot(tmp_path, name, parquet(tmp_path, query))[1] == TWO


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("18446744073709551615::UBIGINT", "18446744073709551615"),
        ("9007199254740993", "9007199254740993"),
        ("99999999999999999999999999999999999999::DECIMAL(38, 0)", "9" * 38),
        ("(-7)::TINYINT", "-7"),
    ],
)
def test_whole_numbers_of_parquet_stay_exact(tmp_path: Path, value: str, text: str) -> None:
    content = parquet(tmp_path, f"SELECT {value} AS iot_id")
    assert snapshot(tmp_path, "f.parquet", content)[1] == [(None, None, text)]


def test_whole_numbers_of_json_stay_exact(tmp_path: Path) -> None:
    numbers = [str(2**53 + 1), str(2**64 - 1), "8" * 200]
    content = "".join(f'{{"iot_id":{number},"note":[1.5,{{"iot_id":2}}]}}\n' for number in numbers).encode()
    content += b'{"iot_id":"x","device_name":7}\n{"iot_id":null,"iotId":"y"}\n'
    expected: list[Names] = [*((None, None, number) for number in numbers), (None, "7", "x"), (None, None, "y")]
    assert snapshot(tmp_path, "f.jsonl", content)[1] == expected


WRITTEN = """product_key,device_name,iot_id,device_status,utc_create,utc_modified
k,a,1,ONLINE,2024-01-02T03:04:05.678Z,2024-02-03T04:05:06.789Z
k,b,2,unactive,2024-01-02 11:04:05.678+08:00,
k,c,3,,not a time,NULL
k,d,4,broken,,
"""


def test_what_a_discovery_wrote_about_devices_is_kept(tmp_path: Path) -> None:
    names = WRITTEN.splitlines()[0].split(",")
    rows = [dict(zip(names, line.split(","), strict=True)) for line in WRITTEN.splitlines()[1:]]
    created = datetime.fromisoformat("2024-01-02T03:04:05.678")
    expected = [
        ("ONLINE", created, datetime.fromisoformat("2024-02-03T04:05:06.789")),
        ("UNACTIVE", created, None),
        (None, None, None),
        ("OTHER", None, None),
    ]
    times = (
        "TIMESTAMPTZ '2024-01-02 05:04:05.678+02:00' AS utc_create, TIMESTAMP '2024-02-03 04:05:06.789' AS utc_modified"
    )
    for name, content in (
        ("a.csv", WRITTEN.encode()),
        ("a.jsonl", "\n".join(map(json.dumps, rows)).encode()),
        (
            "a.parquet",
            parquet(tmp_path, f"SELECT 'k' AS product_key, 'a' AS device_name, 'ONLINE' AS DeviceStatus, {times}"),
        ),
    ):
        snapshot(tmp_path, name, content)
        with connect() as database:
            read = database.read_parquet(str(tmp_path / "out" / "fleet.parquet"))
            found = read.project("device_status, utc_create, utc_modified").fetchall()
        assert found == (expected if name != "a.parquet" else expected[:1])


@pytest.mark.parametrize("name", ["~a.csv", "~root/a.csv", "file:a.csv", "s3://bucket/a.csv", "a~.csv"])
def test_a_path_is_one_file_for_python_and_for_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    path = Path("./" + name) if name.startswith("~root") else Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(KINDS["a.csv"])
    (tmp_path / "homea.csv").write_bytes(HEADER + b"wrong,wrong\n")
    out = path.with_suffix(".parquet")
    assert write_snapshot([("eu", str(path))], out).devices == 2
    assert devices(out) == TWO
    assert sorted(each.name for each in tmp_path.iterdir() if "~" not in each.name) == sorted(
        {
            "homea.csv",
            *([Path(name).parts[0]] if "~" not in name else []),
            *(["file:a.parquet"] if "file" in name else []),
        }
    )


def test_devices_may_be_named_by_iot_id_alone_or_by_both(tmp_path: Path) -> None:
    both: list[Names] = [("k", "a", "1"), (None, None, "2"), ("k", "c", None), (None, "d", "4")]
    text = b"iot_id,product_key,device_name\n1,k,a\n2,,\n,k,c\n4,,d\n"
    assert snapshot(tmp_path, "a.csv", text)[1] == both
    rows = [dict(zip(("product_key", "DeviceName", "iotId"), each, strict=True)) for each in both]
    assert snapshot(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)).encode())[1] == both
    for name, content in (("b.csv", b"iotId\nx\n\ny\n"), ("b.txt", b"x\n#\n y\n"), ("c.csv", b"n,IotId\n,x\n,y\n")):
        assert snapshot(tmp_path, name, content)[1] == [(None, None, "x"), (None, None, "y")]


@pytest.mark.parametrize(
    "name", ["it's.csv", "a b.csv", "[ab].csv", "*.csv", "a?.csv", 'say "a".csv', "中文🎛.csv", "{a}.csv"]
)
def test_a_path_is_taken_as_it_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.csv").write_bytes(HEADER + b"wrong,wrong\n")
    folder = tmp_path / f"in {name.removesuffix('.csv')}"
    folder.mkdir()
    assert snapshot(folder, name, KINDS["a.csv"])[1] == TWO


def test_several_accounts_share_a_snapshot_and_are_read_apart_in_order(tmp_path: Path) -> None:
    for name, count in (("eu", 2500), ("us", 3)):
        (tmp_path / f"{name}.csv").write_bytes(HEADER + b"".join(b"k,%d\n" % n for n in range(count)) + b"k,0\n")
    out = tmp_path / "fleet.parquet"
    us, eu = str(tmp_path / "us.csv"), str(tmp_path / "eu.csv")
    taken = write_snapshot([("us", us), ("eu", eu), ('it\'s "x"', us)], out)
    assert (taken.devices, taken.duplicates, taken.source) == (2506, 3, f"{us}, {eu}")
    assert devices(out, "eu") == [("k", str(n), None) for n in range(2500)]
    assert devices(out, "us") == devices(out, 'it\'s "x"') == [("k", str(n), None) for n in range(3)]
    assert devices(out, "absent") == []
    assert [each.account for each in read_snapshot(out, "us")] == ["us"] * 3


@pytest.mark.parametrize(("limit", "kept"), [(1, 1), (2, 2), (3, 3), (99, 3)])
def test_a_limit_keeps_the_first_devices(tmp_path: Path, limit: int, kept: int) -> None:
    (tmp_path / "a.csv").write_bytes(HEADER + b"k,a\nk,a\nk,b\nk,c\n")
    out = tmp_path / "fleet.parquet"
    taken = write_snapshot([("eu", str(tmp_path / "a.csv"))], out, limit=limit)
    assert taken.devices == kept
    assert [name for _, name, _ in devices(out)] == ["a", "b", "c"][:kept]


def test_one_empty_fleet_among_several_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(KINDS["a.csv"])
    (tmp_path / "empty.csv").write_bytes(HEADER)
    with pytest.raises(FleetError, match=r"empty\.csv: has no device"):
        write_snapshot([("eu", str(tmp_path / "a.csv")), ("us", str(tmp_path / "empty.csv"))], tmp_path / "f.parquet")
    assert {each.name for each in tmp_path.iterdir()} == {"a.csv", "empty.csv"}


def test_without_a_fleet_file_there_are_no_devices_until_they_are_discovered(tmp_path: Path) -> None:
    assert write_snapshot([], tmp_path / "f.parquet").devices == 0
    assert list(read_snapshot(tmp_path / "f.parquet", "eu")) == []


def test_reading_is_lazy_and_may_stop_early(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(HEADER + b"".join(b"k,%d\n" % number for number in range(50_000)))
    out = tmp_path / "fleet.parquet"
    write_snapshot([("eu", str(tmp_path / "a.csv"))], out)
    source = read_snapshot(out, "eu")
    assert isinstance(source, Iterator)
    assert [str(next(source)) for _ in range(3)] == ["k/0", "k/1", "k/2"]
    del source
    assert sum(1 for _ in read_snapshot(out, "eu")) == 50_000


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "out" / "fleet.reading").mkdir(parents=True)
    (tmp_path / "out" / "fleet.reading" / "0.parquet").write_bytes(b"half")
    assert snapshot(tmp_path, "a.csv", KINDS["a.csv"])[1] == TWO


def test_a_refused_fleet_leaves_the_snapshot_before_as_it_was(tmp_path: Path) -> None:
    snapshot(tmp_path, "a.csv", KINDS["a.csv"])
    with pytest.raises(FleetError):
        write_snapshot([("eu", str(tmp_path / "absent"))], tmp_path / "out" / "fleet.parquet")
    assert devices(tmp_path / "out" / "fleet.parquet") == TWO


def test_a_folder_that_cannot_be_written_is_not_the_fleets_fault(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(KINDS["a.csv"])
    with pytest.raises(RunNotWritableError, match="cannot be written"):
        write_snapshot([("eu", str(tmp_path / "a.csv"))], tmp_path / "a.csv" / "fleet.parquet")


def test_a_full_disk_is_not_the_fleets_fault(tmp_path: Path) -> None:
    import resource

    (tmp_path / "a.csv").write_bytes(HEADER + b"".join(b"k,%d\n" % number for number in range(100_000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(RunNotWritableError, match="cannot be written"):
            write_snapshot([("eu", str(tmp_path / "a.csv"))], tmp_path / "fleet.parquet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [each.name for each in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize("cut", [60, 5000, -4])
def test_a_compressed_file_that_is_cut_is_refused(tmp_path: Path, cut: int) -> None:
    whole = gzip.compress(b"".join(b"%d\n" % (number * number) for number in range(20_000)))
    assert "cannot be read" in refused(tmp_path, "a.txt.gz", whole[:cut])


BOMBS = {
    "blank lines": b"\n",
    "rows of commas": b",,\r\n",
    "a device again and again": b"k,a\n",
    "a long attribute": b"k,a," + b"x" * 500 + b"\n",
}


@pytest.mark.parametrize("repeated", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("name", ["a.csv.gz", "unknown"])
def test_a_compressed_file_that_expands_without_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, repeated: bytes
) -> None:
    monkeypatch.setattr("auditor.storage.compressed.MIN_EXPANDED_BYTES", 1 << 18)
    content = gzip.compress(b"product_key,device_name,note\n" + repeated * (MIN_EXPANDED_BYTES // len(repeated)))
    assert f"expands to more than 64 times its {len(content):,} bytes" in refused(tmp_path, name, content)


def test_a_small_compressed_file_may_have_the_same_text_in_each_row(tmp_path: Path) -> None:
    content = b"product_key,device_name,note\n" + b"".join(b"k,%d,%s\n" % (row, b"x" * 1_000) for row in range(500))
    compressed = gzip.compress(content)
    assert len(content) > MAX_EXPANSION * len(compressed)
    assert len(snapshot(tmp_path, "a.csv.gz", compressed)[1]) == 500


def test_a_compressed_file_may_have_several_members(tmp_path: Path) -> None:
    parts = (HEADER, b"k,a\n", b"k,b\n")
    assert snapshot(tmp_path, "a.csv.gz", b"".join(map(gzip.compress, parts)))[1] == TWO


def test_a_compressed_file_whose_checksum_does_not_fit_is_refused(tmp_path: Path) -> None:
    stored = gzip.compress(HEADER + b"k,aaaa\nk,bbbb\n", compresslevel=0)
    assert "CRC check failed" in refused(tmp_path, "a.csv.gz", stored.replace(b"bbbb", b"cccc"))


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"\x28\xb5\x2f\xfd\x04abc", "compressed with zstd"),
        (b"BZh91AY&SY\x01", "compressed with bzip2"),
        (b"\xfd7zXZ\x00\x00", "compressed with xz"),
        (b"ORC\x08\x03\x10", "an ORC file"),
        (b"Obj\x01\x04\x14avro.codec", "an Avro file"),
        (b"ARROW1\0\0", "an Arrow file"),
        (b"SQLite format 3\0" + b"\0" * 99, "an SQLite database"),
        (b"%PDF-1.7", "a PDF document"),
        (b"<html><table><tr><td>product_key</td></tr></table></html>", "an HTML page"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html>", "an HTML page"),
        (b'<?xml version="1.0"?><?mso-application progid="Excel.Sheet"?><Workbook/>', "an Excel workbook in XML"),
        (b'<?xml version="1.0"?><devices/>', "an XML document"),
    ],
)
@pytest.mark.parametrize("name", ["fleet.csv", "fleet", "fleet.txt"])
def test_a_file_of_another_format_is_refused_by_its_name(tmp_path: Path, name: str, start: bytes, says: str) -> None:
    with pytest.raises(FleetError, match=f"is {says}; "):
        snapshot(tmp_path, name, start)


@pytest.mark.parametrize(
    ("content", "is_fast"),
    [
        ("product_key,device_name\n" + "".join(f"k1h9drZble,device-{n:05}\n" for n in range(5)), True),
        ("iot_id\n" + "".join(f"Xy{n:020}\n" for n in range(5)), True),
        (
            "product_key,device_name,iot_id\n" + "".join(f"a1BwAGV1234,device-{n:05},Xy{n:020}\n" for n in range(5)),
            True,
        ),
        ("product_key,device_name\nk1h9drZble,device-00001\n1-Jan-24x, device-00002\nk1h9drZble,dev3\n", False),
        ("product_key,device_name,iot_id\nk1h9drZble,device-00001,\n,,Xy00000000000000000002\n", False),
        (" product_key ,device_name\n k1h9drZble ,device-00001\n", False),
    ],
)
def test_rows_that_are_checked_together_are_those_that_are_checked_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, *, is_fast: bool
) -> None:
    checked: list[bool] = []
    are_clean = snapshot_module._are_clean

    def check(*columns: Any) -> bool:
        checked.append(are_clean(*columns))
        return checked[-1]

    monkeypatch.setattr(snapshot_module, "_are_clean", check)
    _, together = snapshot(tmp_path, "fleet.csv", content.encode())
    assert checked == [is_fast]
    monkeypatch.setattr(snapshot_module, "_are_clean", lambda *_: False)
    _, each = snapshot(tmp_path, "fleet.csv", content.encode())
    assert together == each
    assert len(together) == content.count("\n") - 1


@pytest.mark.parametrize("key", ["1-Jan-24", "null", "TRUE", "1.5E+10", "k1h9\tdrZble", " k1h9drZble", ""])
def test_a_product_key_that_is_damaged_or_none_is_never_taken_for_a_clean_one(key: str) -> None:
    assert not snapshot_module._are_clean([key, "k1h9drZble"], ["device-00001", "device-00002"], ["", ""])
