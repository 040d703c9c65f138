"""A bad row anywhere refuses the whole fleet, and the lines are the ones an editor shows."""

import re
from pathlib import Path

import pytest

from auditor.errors import FleetError
from auditor.fleet.snapshot import write_snapshot
from tests.fleet.snapshots import HEADER, Names, parquet, refused, snapshot

ALL = b"product_key,device_name,iot_id\n"


IDENTITY = "Give the product_key and the device_name, or the iot_id."
RETYPE = "Type the name again in plain characters."


def bad_lines(refusal: str) -> list[tuple[int, str]]:
    """Line and problem of each row that a refusal shows; its count must fit, and it must say what to do."""
    form = r"(?:(\d+) bad rows: )?(.*?)(; and \d+ more)?; no request was sent\. ([A-Z].*\.)"
    count, shown, more, _advice = re.fullmatch(form, refusal, re.DOTALL).groups()  # type: ignore[union-attr]
    found = [(int(row[1]), row[2]) for row in re.finditer(r"(?:line|row) (\d+) (.*?)(?=; (?:line|row) \d+ |$)", shown)]
    assert int(count or 1) == len(found) + (int(re.sub(r"\D", "", more)) if more else 0)
    return found


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (b"k,a,1,x", "has 5 columns, but the header has 4"),
        (b'"k"x,a,1', "has a quote in the wrong place"),
        (b'k,"a,1', "opens a quote that is not closed"),
        (b"k,\xff,1", 'has the device_name "\ufffd", which is not UTF-8'),
        (b"k,a\x01b,1", 'has the device_name "a\\u0001b", which has the control character U+0001'),
        (b'k,"a\nb",1', 'has the device_name "a\\u000ab", which has the control character U+000A'),
        (b"k," + b"x" * 257 + b",1", f'has the device_name "{"x" * 40}…", which has more than 256 characters'),
        (b"k," + b"x" * 200_000 + b",1", f'has the device_name "{"x" * 40}…", which has more than 256 characters'),
        (b"k,8.65743E+14,1", 'has the device_name "8.65743E+14", which is a number that a spreadsheet rounded'),
        (b"#REF!,a,1", 'has the product_key "#REF!", which is an error value of a spreadsheet'),
        (b"k,,", "has a product_key but no device_name"),
        (b"k,NULL,\\N", 'has a product_key but no device_name ("NULL", "\\N" means that there is no value)'),
        (b",a,", "has a device_name but no product_key"),
        (b' ,"", ', "has no device"),
        (b"product_key,a,", "has the name of a column as a value"),
    ],
)
def test_a_bad_row_of_csv_is_named_by_its_line(tmp_path: Path, row: bytes, says: str) -> None:
    before = [b"note," + ALL.strip(), b'"2\n3",k,x,', b"", b",k,y,"]
    content = b"\n".join([*before, b"p," + row, b",k,z,", b""])
    assert bad_lines(refused(tmp_path, "a.csv", content)) == [(6, says)]


def test_every_bad_row_is_counted_and_each_has_its_own_line(tmp_path: Path) -> None:
    content = HEADER + b'k,a\n\nk,b\nk,c,d\n\nk\nk,\xff\nk,\x01z\n"k","quoted\nname"\nk,ok\n,x\n'
    for ending in (b"\n", b"\r\n", b"\r"):
        found = bad_lines(refused(tmp_path, "a.csv", content.replace(b"\n", ending)))
        assert [line for line, _ in found] == [5, 7, 8, 9, 10, 13]


def test_advice_is_given_once_for_each_kind_of_problem(tmp_path: Path) -> None:
    refusal = refused(tmp_path, "a.csv", HEADER + b"k,\nk,\n,a\nk,\x01z\n")
    assert refusal.endswith(
        f"no product_key; line 5 {bad_lines(refusal)[3][1]}; no request was sent. {IDENTITY} {RETYPE}"
    )


def test_a_quote_that_is_never_closed_is_reported_where_it_opens(tmp_path: Path) -> None:
    content = HEADER + b'k,a\nk,"b\n' + b"k,c\n" * 3
    assert bad_lines(refused(tmp_path, "a.csv", content)) == [(3, "opens a quote that is not closed")]


@pytest.mark.parametrize("count", [10, 11, 25, 5000])
def test_of_many_bad_rows_ten_are_shown_and_all_are_counted(tmp_path: Path, count: int) -> None:
    kinds = [b"k,\n", b"k\n", b"k,\xff\n"]
    content = HEADER + b"k,fine\n" + b"".join(kinds[number % 3] for number in range(count))
    told = refused(tmp_path, "a.csv", content)
    assert [line for line, _ in bad_lines(told)] == list(range(3, 13))
    assert told.startswith(f"{count} bad rows")


def test_bad_lines_of_a_list_are_named_as_they_are(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfk/a\n\n#c\n\xff\nk/b/c\nk/\n#N/A\n/b\nz\x01z\nNULL\ndevice_name product_key\n"
    assert bad_lines(refused(tmp_path, "a.txt", content)) == [
        (4, 'has the iot_id "\ufffd", which is not UTF-8'),
        (5, "has 3 names"),
        (6, "has a product_key but no device_name"),
        (7, 'has "#N/A", an error value of a spreadsheet'),
        (8, "has a device_name but no product_key"),
        (9, 'has the iot_id "z\\u0001z", which has the control character U+0001'),
        (10, 'has no device ("NULL" means that there is no value)'),
        (11, "is a header of other columns"),
    ]


JSON_LINES = [
    (b'["k","a"]', "is not a JSON object"),
    (b'"k/a"', "is not a JSON object"),
    (b"null", "is not a JSON object"),
    (b'{"iot_id":"a"', "is not a JSON object"),
    (b"iot_id", "is not a JSON object"),
    (b"[" * 100_000, "is not a JSON object"),
    (b'{"iot_id":{"id":"a"}}', "has as iot_id an object"),
    (b'{"iot_id":["a"]}', "has as iot_id a list"),
    (b'{"iot_id":true}', "has as iot_id a truth value"),
    (b'{"iot_id":1.5}', "has as iot_id the number 1.5, not a whole one"),
    (b'{"iot_id":865743041234567.0}', "has as iot_id the number 865743041234567.0, not a whole one"),
    (b'{"iot_id":8E15}', "has as iot_id the number 8E15, not a whole one"),
    (b'{"iot_id":-Infinity}', "has as iot_id the number -Infinity, not a whole one"),
    (b'{"iot_id":"a","iotId":"b"}', "has two values for iot_id"),
    (b'{"iot_id":"a","iot_id":"b"}', "has two values for iot_id"),
    (b'{"iot_id":"\\ud800"}', 'has the iot_id "\\ud800", which has half of a character'),
    (b'{"iot_id":"a\\u0000b"}', 'has the iot_id "a\\u0000b", which has the control character U+0000'),
    (b'{"iot_id":"\xff"}', 'has the iot_id "\ufffd", which is not UTF-8'),
    (b'{"iot_id":null,"name":"a"}', "has no device"),
    (b'{"iot_id":NaN}', "has no device"),
    (b"{}", "has no device"),
    (b'{"productKey":"k"}', "has a product_key but no device_name"),
    (b'{"DeviceName":"a"}', "has a device_name but no product_key"),
]


def test_bad_lines_of_json_are_named_by_their_lines(tmp_path: Path) -> None:
    for first in range(0, len(JSON_LINES), 10):
        lines = JSON_LINES[first : first + 10]
        content = b"\n" + b'{"iot_id":"good"}\n' + b"\n".join(line for line, _ in lines)
        expected = [(number, says) for number, (_, says) in enumerate(lines, 3)]
        assert bad_lines(refused(tmp_path, "a.jsonl", content)) == expected


def test_a_bad_row_of_parquet_is_named_by_its_number(tmp_path: Path) -> None:
    query = "SELECT 'k' AS product_key, unnest(['a', NULL, 'c', 'd' || chr(7) || 'e']) AS device_name"
    refusal = refused(tmp_path, "a.parquet", parquet(tmp_path, query))
    control = 'has the device_name "d\\u0007e", which has the control character U+0007'
    assert bad_lines(refusal) == [(2, "has a product_key but no device_name"), (4, control)]
    assert "row 2 " in refusal


@pytest.mark.parametrize(
    ("value", "shown", "kind"),
    [
        ("865743041234567::DOUBLE", "865743041234567.0", "DOUBLE"),
        ("1.5::FLOAT", "1.5", "FLOAT"),
        ("true", "true", "BOOLEAN"),
        ("TIMESTAMP '2024-01-02 03:04:05'", "2024-01-02 03:04:05", "TIMESTAMP"),
        ("DATE '2024-01-02'", "2024-01-02", "DATE"),
        ("12.50::DECIMAL(10, 2)", "12.50", "DECIMAL(10,2)"),
        ("['a']", "[a]", "VARCHAR[]"),
        ("{'id': 'a'}", "{'id': a}", "STRUCT(id VARCHAR)"),
        ("TIME '03:04:05'", "03:04:05", "TIME"),
    ],
)
def test_a_parquet_column_of_another_type_is_refused(tmp_path: Path, value: str, shown: str, kind: str) -> None:
    query = f'SELECT unnest([NULL, {value}]) AS "Iot Id"' if value[0] != "[" else f'SELECT {value} AS "Iot Id"'
    refusal = refused(tmp_path, "a.parquet", parquet(tmp_path, query))
    row = 1 if value[0] == "[" else 2
    assert refusal.startswith(
        f'row {row} has in the column "Iot Id" the value "{shown}" of the type {kind}, but only text'
    )
    assert "export the column as text" in refusal


def test_columns_of_equal_names_in_parquet_are_refused(tmp_path: Path) -> None:
    content = parquet(tmp_path, "SELECT 'a' AS iot_id, 'b' AS iotXid").replace(b"iotXid", b"iot_id")
    assert refused(tmp_path, "a.parquet", content).startswith("its columns: the column iot_id occurs twice")
    nested = parquet(tmp_path, "SELECT {'iot_id': 'a'} AS device")
    assert "needs the columns" in refused(tmp_path, "a.parquet", nested)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b" \n\r\n", "is empty"),
        ("unknown", b"\xef\xbb\xbf\n", "is empty"),
        ("a.parquet", b"", "is not a Parquet file"),
        ("a.csv", HEADER, "has no device"),
        ("a.csv", HEADER + b"\n\n", "has no device"),
        ("a.txt", b"# nothing\n", "has no device"),
        ("a.csv", "product_key,device_name\nk,a\n".encode("utf-16-be"), "is not UTF-8 text"),
        ("a.csv", HEADER + b"k,\x00\n", "is not UTF-8 text"),
        ("a.xlsx", b"PK\x03\x04\x14\x00\x06\x00", "is an Excel workbook"),
        ("a.parquet", b"PAR1PAR1", "is not a Parquet file"),
        ("a.parquet", HEADER + b"k,a\n", "is not a Parquet file"),
        ("a.csv", b"name,device_name\nx,a\n", 'line 1: needs the columns product_key and device_name, or iot_id; it has "na'),
        ("a.csv", HEADER + b"k,a," + b"x" * 1_100_000, "line 2: has 1,000,000 characters or more"),
        ("a.txt", b"iot_id,iot_id\nx,y\n", "line 1: the column iot_id occurs twice"),
        ("a.csv", b"iot_id,iotId\nx,y\n", "line 1: the column iot_id occurs twice"),
        ("a.tsv", HEADER + b"k,a\n", "line 1: needs the columns"),
        ("a.json", b'[\n{"iot_id":"a"}\n]\n', "line 1: is a JSON array"),
        ("unknown", b'[{"iot_id":"a"}]', "line 1: "),
    ],
)  # fmt: skip
def test_a_file_that_is_no_fleet_is_refused(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    assert refused(tmp_path, name, content).startswith(says)


def test_bytes_of_parquet_that_are_no_text_are_refused_with_their_rows(tmp_path: Path) -> None:
    query = "SELECT 'k' AS product_key, unnest(['a'::BLOB, '\\xFF'::BLOB, 'b'::BLOB, '\\xE4x'::BLOB]) AS device_name"
    assert refused(tmp_path, "a.parquet", parquet(tmp_path, query)) == (
        "2 bad rows: row 2 has as device_name bytes that are not UTF-8 text; row 4 has as "
        "device_name bytes that are not UTF-8 text; no request was sent. Export the column as text."
    )


@pytest.mark.parametrize(
    "content",
    [
        "iot_id,note\niot1,x\nserial,iot_id\nremark1,iot2\n",
        "product_key,device_name,note\nk,a,x\nserial,model,iot_id\nz,y,iot2\n",
        "product_key,device_name,note,more\nk,a,x,\nserial,model,product key,DeviceName\nz,y,k,b\n",
    ],
)
def test_a_row_that_may_be_a_header_of_other_columns_is_refused(tmp_path: Path, content: str) -> None:
    text = refused(tmp_path, "a.csv", content.encode())
    assert "line 3 may be a device, or a header of other columns" in text
    assert "into separate files" in text


@pytest.mark.parametrize(("name", "says"), [("absent.csv", "No such file"), ("", "Is a directory"), ("a\0b", "null")])
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
