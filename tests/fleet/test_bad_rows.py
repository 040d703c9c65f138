"""A bad row anywhere refuses the whole fleet, and the lines are the ones an editor shows."""

import re
from pathlib import Path

import duckdb
import pytest

from auditor.errors import FleetError
from auditor.fleet.snapshot import write_snapshot
from tests.fleet.snapshots import HEADER, Names, refused, snapshot

ALL = b"product_key,device_name,iot_id\n"


def bad_lines(told: str) -> list[tuple[int, str]]:
    """(line, what is wrong) of each row that a refusal shows; the count it tells must fit."""
    count, shown = re.fullmatch(r"(\d+) bad rows?, so no request was sent: (.*)", told, re.DOTALL).groups()  # type: ignore[union-attr]
    rows = [re.fullmatch(r"(?:line|row) (\d+) (.*)", each) for each in shown.split("; ")]
    found = [(int(row[1]), row[2]) for row in rows if row is not None]
    more = re.search(r"; and (\d+) more$", shown)
    assert int(count) == len(found) + (int(more[1]) if more else 0)
    return found


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (b"k,a,1,x", "is malformed (too many columns)"),
        (b"k,a", "is malformed (missing columns)"),
        (b"   ", "is malformed (missing columns)"),
        (b'"k"x,a,1', "is malformed (unquoted value)"),
        (b"k,\xff,1", "is not UTF-8"),
        (b"k,a\x01,1", "has a control character"),
        (b'k,"a\nb",1', "has a control character"),
        (b"k,a\xc2\x85,1", "has a control character"),
        (b"k," + b"x" * 257 + b",1", "has a name of more than 256 characters"),
        (b"k," + b"x" * 200_000 + b",1", "has a name of more than 256 characters"),
        (b"k,a," + b"x" * 1_100_000, "is malformed (line size over maximum)"),
        (b"k,,", "has a product_key but no device_name"),
        (b",a,", "has a device_name but no product_key"),
        (b' ,"", ', "has no device"),
    ],
)
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_bad_row_of_csv_is_named_by_its_line(tmp_path: Path, row: bytes, says: str, ending: bytes) -> None:
    before = [b"note," + ALL.strip(), b'"2\n3",k,x,', b"", b",k,y,"]
    content = b"\n".join([*before, b"p," + row if row.strip() else row, b",k,z,", b""]).replace(b"\n", ending)
    assert bad_lines(refused(tmp_path, "a.csv", content)) == [(6, says)]


def test_every_bad_row_is_counted_and_each_has_its_own_line(tmp_path: Path) -> None:
    content = HEADER + b'k,a\n\nk,b\nk,c,d\n\nk\nk,\xff\nk,\x01z\n"k","quoted\nname"\nk,ok\n,x\n'
    assert bad_lines(refused(tmp_path, "a.csv", content)) == [
        (5, "is malformed (too many columns)"),
        (7, "is malformed (missing columns)"),
        (8, "is not UTF-8"),
        (9, "has a control character"),
        (10, "has a control character"),
        (13, "has a device_name but no product_key"),
    ]


@pytest.mark.parametrize("count", [10, 11, 25, 5000])
def test_of_many_bad_rows_ten_are_shown_and_all_are_counted(tmp_path: Path, count: int) -> None:
    kinds = [b"k,\n", b"k\n", b"k,\xff\n"]
    content = HEADER + b"k,fine\n" + b"".join(kinds[number % 3] for number in range(count))
    told = refused(tmp_path, "a.csv", content)
    assert [line for line, _ in bad_lines(told)] == list(range(3, 13))
    assert told.startswith(f"{count} bad rows")


def test_bad_lines_of_a_list_are_named_as_they_stand(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfk/a\n\n#c\n\xff\nk/b/c\nk/\n\xff\n/b\nz\x01\n"
    assert bad_lines(refused(tmp_path, "a.txt", content)) == [
        (4, "is not UTF-8"),
        (5, "is malformed"),
        (6, "has a product_key but no device_name"),
        (7, "is not UTF-8"),
        (8, "has a device_name but no product_key"),
        (9, "has a control character"),
    ]


def test_bad_lines_of_a_single_column_are_named_as_they_stand(tmp_path: Path) -> None:
    content = b'iot_id\nx\n\n\ny\n\xff\n\nz\x01\n""\n'
    assert bad_lines(refused(tmp_path, "a.csv", content)) == [
        (6, "is not UTF-8"),
        (8, "has a control character"),
        (9, "has no device"),
    ]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'["k","a"]', "is malformed"),
        (b'"k/a"', "is malformed"),
        (b"null", "is malformed"),
        (b'{"iot_id":"a"', "is malformed"),
        (b"iot_id", "is malformed"),
        (b'{"iot_id":{"id":"a"}}', "is malformed"),
        (b'{"iot_id":["a"]}', "is malformed"),
        (b'{"iot_id":true}', "is malformed"),
        (b'{"iot_id":1.5}', "is malformed"),
        (b'{"iot_id":"\\ud800"}', "is malformed"),
        (b'{"iot_id":"a\\u0000b"}', "has a control character"),
        (b'{"iot_id":"a\\nb"}', "has a control character"),
        (b'{"iot_id":"\xff"}', "is not UTF-8"),
        (b'{"iot_id":null,"name":"a"}', "has no device"),
        (b'{"iot_id":" "}', "has no device"),
        (b"{}", "has no device"),
        (b'{"productKey":"k"}', "has a product_key but no device_name"),
        (b'{"DeviceName":"a"}', "has a device_name but no product_key"),
        (b'{"iot_id":"' + b"x" * 257 + b'"}', "has a name of more than 256 characters"),
    ],
)
def test_a_bad_line_of_json_is_named_by_its_line(tmp_path: Path, line: bytes, says: str) -> None:
    good = b'{"iot_id":"%d"}\n'
    content = b"\n" + good % 1 + b"\xff\n" + good % 2 + line + b"\n" + good % 3
    assert bad_lines(refused(tmp_path, "a.jsonl", content)) == [(3, "is not UTF-8"), (5, says)]


def test_a_bad_row_of_parquet_is_named_by_its_number(tmp_path: Path) -> None:
    query = "SELECT 'k' AS product_key, unnest(['a', NULL, 'c', 'd' || chr(7)]) AS device_name"
    with duckdb.connect() as database:
        database.execute(f"COPY ({query}) TO '{tmp_path}/made.parquet' (FORMAT parquet)")
    told = refused(tmp_path, "a.parquet", (tmp_path / "made.parquet").read_bytes())
    assert bad_lines(told) == [(2, "has a product_key but no device_name"), (4, "has a control character")]
    assert "row 2 " in told


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl"])
def test_mixed_line_endings_are_refused_by_the_first_odd_line(tmp_path: Path, name: str) -> None:
    line = b'{"iot_id":"%d"}' if name == "a.jsonl" else b"%d"
    lines = [b"iot_id" if name == "a.csv" else line % 9, *(line % number for number in range(3))]
    assert refused(tmp_path, name, b"\n".join(lines) + b"\r\n" + line % 7 + b"\n").startswith(
        "line 4 has another line ending than line 1"
    )


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b" \n\r\n", "is empty"),
        ("unknown", b"\xef\xbb\xbf\n", "is empty"),
        ("a.parquet", b"", "is empty"),
        ("a.csv", HEADER, "has no device"),
        ("a.csv", HEADER + b"\n\n", "has no device"),
        ("a.txt", b"# nothing\n", "has no device"),
        ("a.csv", "product_key,device_name\nk,a\n".encode("utf-16"), "is not UTF-8 text"),
        ("a.csv", "product_key,device_name\nk,a\n".encode("utf-16-be"), "is not UTF-8 text"),
        ("a.csv", HEADER + b"k,\x00\n", "is not UTF-8 text"),
        ("a.xlsx", b"PK\x03\x04\x14\x00\x06\x00", "is not UTF-8 text"),
        ("a.parquet", b"PAR1PAR1", "is not a Parquet file"),
        ("a.parquet", HEADER + b"k,a\n", "is not a Parquet file"),
        ("a.csv", b"name,device_name\nx,a\n", "line 1: needs the columns product_key and device_name, or iot_id; it has 'na"),
        ("a.csv", b"\n" + HEADER + b"k,a\n", "line 1: needs the columns product_key and device_name, or iot_id; it has none"),
        ("a.csv", b"iot_id,iotId\nx,y\n", "line 1: the column iot_id occurs twice"),
        ("a.tsv", HEADER + b"k,a\n", "line 1: needs the columns"),
        ("a.json", b'[\n{"iot_id":"a"}\n]\n', "line 1: is a JSON array"),
        ("unknown", b'[{"iot_id":"a"}]', "line 1: "),
    ],
)  # fmt: skip
def test_a_file_that_is_no_fleet_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    assert refused(tmp_path, name, content).startswith(says)


@pytest.mark.parametrize(("name", "says"), [("absent.csv", "No such file"), ("", "directory"), ("a\0b", "null")])
def test_a_path_that_cannot_be_read_is_refused(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(FleetError, match=f"cannot be read: .*{says}"):
        write_snapshot([("eu", f"{tmp_path}/{name}")], tmp_path / "fleet.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "kept", "duplicates"),
    [
        (b"k,a,1\nk,a,1\n", [("k", "a", "1")], 1),
        (b"k,a,\nk,b,\nk,a,\nk,a,\n", [("k", "a", None), ("k", "b", None)], 2),
        (b",,1\n,,2\n,,1\n", [(None, None, "1"), (None, None, "2")], 1),
        (b"k,a,1\nk,a,\n,,1\n", [("k", "a", "1")], 2),
        (b",,1\nk,a,1\nk,a,\n", [(None, None, "1")], 2),
        (b"k,a,\n,,1\nk,a,1\n", [("k", "a", None)], 2),
        (b"k,a,\nj,a,\nk,A,\n", [("k", "a", None), ("j", "a", None), ("k", "A", None)], 0),
        (b"ka,b,\nk,ab,\n", [("ka", "b", None), ("k", "ab", None)], 0),
        (b" k ,a,\nk, a,\n", [("k", "a", None)], 1),
        (b",a,1\n,a,2\n", [(None, "a", "1"), (None, "a", "2")], 0),
    ],
)
def test_repeats_are_dropped_and_counted_and_the_first_stays(
    tmp_path: Path, rows: bytes, kept: list[Names], duplicates: int
) -> None:
    taken, read = snapshot(tmp_path, "a.csv", ALL + rows)
    assert (read, taken.duplicates) == (kept, duplicates)


def test_contradictions_are_refused_on_the_rows_that_contradict(tmp_path: Path) -> None:
    content = ALL + b"k,a,1\nk,a,2\nk,a,1\nk,b,1\n,,1\nk,c,3\n"
    assert bad_lines(refused(tmp_path, "a.csv", content)) == [
        (3, "gives k/a a different iot_id than an earlier row"),
        (5, "gives iot_id 1 a different name than an earlier row"),
    ]
