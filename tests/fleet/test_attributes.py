"""Attributes: further columns of every kind of fleet file arrive in ``fleet.parquet`` as they were written."""

import csv
import gzip
import io
import itertools
from functools import partial
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from auditor.errors import FleetError
from auditor.fleet.columns import MAX_ATTRIBUTE_BYTES, column_of, is_column_name
from auditor.fleet.names import strip_invisible
from auditor.fleet.snapshot import write_snapshot
from auditor.runs.attributes import MAX_ATTRIBUTES
from auditor.storage.database import DEFAULT_MEMORY, scratch_database
from tests.database import connect
from tests.fleet.snapshots import parquet, refused, snapshot

Attributes = dict[str, str] | None

FOLDERS = itertools.count()


def attributes(folder: Path) -> list[Attributes]:
    """The attributes of each device of the fleet that ``snapshot`` wrote."""
    with connect() as database:
        query = f"SELECT attributes FROM '{folder}/out/fleet.parquet' ORDER BY ordinal"
        return [row[0] for row in database.execute(query).fetchall()]


def read(folder: Path, name: str, content: bytes) -> list[Attributes]:
    snapshot(folder, name, content)
    return attributes(folder)


def test_further_columns_are_attributes_and_empty_cells_are_none(tmp_path: Path) -> None:
    content = b"product_key,site,device_name, Ring ,\np1,a1,device-1,canary,\np1,,device-2,stable,x\np1,,device-3,,\n"
    expected = [{"site": "a1", "Ring": "canary"}, {"Ring": "stable"}, None]
    assert read(tmp_path, "fleet.csv", content) == expected
    assert read(tmp_path, "fleet.csv.gz", gzip.compress(content)) == expected


def test_a_list_of_names_has_none(tmp_path: Path) -> None:
    assert read(tmp_path, "fleet.txt", b"p1/device-1\niot-1\n") == [None, None]


def test_members_of_json_are_attributes_as_they_are_written(tmp_path: Path) -> None:
    line = (
        b'{"iot_id":"iot-1","hw rev":2,"load":1.50e3,"spare":true,"none":null,"tags":{"floor":"3","deep":{"er":1}},'
        b'"groups":["a","b"],"half":"\\ud800","account":"x"}\n'
    )
    expected = {"hw rev": "2", "load": "1.50e3", "spare": "true", "tags.floor": "3", "tags.deep.er": "1"}
    expected |= {"groups": "a,b", "half": "\\ud800", "account": "x"}
    assert read(tmp_path, "fleet.jsonl", line) == [expected]


def test_parquet_columns_of_any_type_are_attributes(tmp_path: Path) -> None:
    query = (
        "SELECT 'iot-1' AS iot_id, 7::TINYINT AS floor, 1.5::DOUBLE AS load, DATE '2026-01-02' AS bought, "
        "TIMESTAMP '2026-01-02 03:04:05' AS seen, NULL::INTEGER AS none, 'x\\xC3\\xA9'::BLOB AS bytes, [1, 2] AS many"
    )
    assert read(tmp_path, "fleet.parquet", parquet(tmp_path, query)) == [
        {
            "floor": "7",
            "load": "1.5",
            "bought": "2026-01-02",
            "seen": "2026-01-02T03:04:05.000000",
            "bytes": "xé",
            "many": "[1, 2]",
        }
    ]


def test_a_device_that_is_listed_twice_has_the_attributes_of_its_first_row(tmp_path: Path) -> None:
    content = b"product_key,device_name,site\np1,device-1,a1\np1,device-1,b2\n"
    assert read(tmp_path, "fleet.csv", content) == [{"site": "a1"}]


def test_a_header_further_down_names_the_attributes_of_the_rows_below(tmp_path: Path) -> None:
    content = b"product_key,device_name,site\np1,device-1,a1\nproduct_key,site,device_name\np1,b2,device-2\n"
    assert read(tmp_path, "fleet.csv", content) == [{"site": "a1"}, {"site": "b2"}]


def test_a_fleet_of_plain_columns_goes_through_a_run_and_back(tmp_path: Path) -> None:
    names = "account,product_key,device_name,iot_id,device_status,utc_create,utc_modified,nickname"
    content = f"{names}\neu,p1,device-1,,ONLINE,,, a nickname \n".encode()
    assert read(tmp_path, "fleet.csv", content) == [{"nickname": " a nickname "}]


@pytest.mark.parametrize("name", ["fleet.csv", "fleet.jsonl"])
def test_too_many_attributes_are_refused(tmp_path: Path, name: str) -> None:
    columns = [f"c{number}" for number in range(MAX_ATTRIBUTES + 1)]
    if name == "fleet.csv":
        content = ",".join(["iot_id", *columns]).encode() + b"\niot-1\n"
    else:
        content = orjson.dumps({"iot_id": "iot-1"} | dict.fromkeys(columns, "x"))
    assert refused(tmp_path, name, content) == (
        "line 1: has 33 columns besides those that name devices, and at most 32 are kept; leave some of them out"
    )


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    problem = refused(tmp_path, "fleet.csv", b"iot_id,site,site\niot-1,a,b\n")
    assert problem == 'line 1: the column "site" occurs twice; leave one of them out, or rename it'


def test_attributes_that_are_too_long_are_a_bad_row(tmp_path: Path) -> None:
    content = b"iot_id,site\niot-1," + b"x" * MAX_ATTRIBUTE_BYTES + b"\n"
    problem = refused(tmp_path, "fleet.csv", content)
    assert problem.startswith("line 2 has further columns of more than 65,536 bytes")
    assert '"site"' in problem


def test_parquet_whose_rows_share_long_attributes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditor.storage.database.MIN_TEXT_BYTES", 50_000_000)
    rows = "SELECT 'k' AS product_key, 'd' || i AS device_name, repeat('x', {}) AS note FROM range({}) t(i)"
    content = parquet(tmp_path, rows.format(10_240, 3_000))
    assert read(tmp_path, "fleet.parquet", content)[-1] == {"note": "x" * 10_240}
    (tmp_path / "out" / "fleet.parquet").unlink()
    for length, devices in ((10_240, 30_000), (60_000, 1_000)):
        content = parquet(tmp_path, rows.format(length, devices))
        assert len(content) < 200_000
        problem = refused(tmp_path, "fleet.parquet", content)
        assert problem.startswith("has more than ")
        assert problem.endswith(" bytes; no audit writes such a file")


ODD_TEXTS = [
    'quo"te', "apo'strophe", "a,b;c\td", "two\nlines", "back\\slash", "=1+1", "@x", "-1", "+1", "select", "ORDER BY",
    "機器 名稱", "😀🔥", "\u202eright to left", "NULL", "{curly}", "%s{0}$1", "a=b", "a!=b", "x" * 10_240, "\x1b[31m", "'",
    "</script><script>alert(1)</script>", "<!-- & &lt;", "{{ 7 * 7 }}", "機" * 3_400, '=HYPERLINK("x")', "__name__", "other",
]  # fmt: skip

TEXT = st.one_of(
    st.sampled_from(ODD_TEXTS),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\r\0"), min_size=1, max_size=20),
).filter(lambda text: not is_column_name(text))  # a row with one may be a header, and is refused

NAME = TEXT.filter(lambda text: bool(strip_invisible(text)) and strip_invisible(text) == text and not column_of(text))


def as_csv(rows: list[dict[str, str]]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, rows[0], quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def as_jsonl(rows: list[dict[str, str]]) -> bytes:
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAME, min_size=1, max_size=4, unique=True), st.data())
@example([text for text in ODD_TEXTS if strip_invisible(text) == text], None)
@pytest.mark.slow
def test_odd_names_and_texts_arrive_unchanged(tmp_path: Path, names: list[str], data: st.DataObject | None) -> None:
    texts = ODD_TEXTS if data is None else data.draw(st.lists(TEXT, min_size=1, max_size=4))
    folder = tmp_path / str(next(FOLDERS))
    folder.mkdir()
    rows = [
        {"iot_id": f"iot-{number}"} | {name: texts[(number + at) % len(texts)] for at, name in enumerate(names)}
        for number in range(3)
    ]
    if data is None:  # all long texts in one row are too many
        rows = [{key: text[:2_000] for key, text in row.items()} for row in rows]
    expected = [{name: text for name, text in row.items() if name != "iot_id"} for row in rows]
    (folder / "fleet.csv").write_bytes(as_csv(rows))
    (folder / "fleet.jsonl").write_bytes(as_jsonl(rows))
    (folder / "out").mkdir()
    fleets = [("eu", str(folder / "fleet.csv")), ("us", str(folder / "fleet.jsonl"))]
    assert write_snapshot(fleets, folder / "out" / "fleet.parquet").devices == 2 * len(rows)
    assert attributes(folder) == expected * 2


def write_long_attributes(path: Path) -> None:
    """Fill a file with 50 MB of long attributes, some thousand rows of which are held at a time."""
    with path.open("w") as file:
        file.write("product_key,device_name,site,note,more\n")
        file.writelines(f"p1,device-{number},a{number % 9},{number:020000},\n" for number in range(2_500))


@pytest.mark.slow
def test_long_attributes_of_many_rows_take_more_memory_and_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auditor.fleet.snapshot.scratch_database", partial(scratch_database, memory="32MB"))
    write_long_attributes(tmp_path / "fleet.csv")
    write_snapshot([("eu", str(tmp_path / "fleet.csv"))], tmp_path / "fleet.parquet")
    with connect() as database:
        query = f"SELECT attributes['site'], attributes['note'] FROM '{tmp_path}/fleet.parquet' ORDER BY ordinal"
        for number, row in enumerate(database.execute(query).fetchall()):
            assert row == (f"a{number % 9}", f"{number:020000}")


def test_attributes_that_fit_into_no_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditor.fleet.snapshot.scratch_database", partial(scratch_database, memory="32MB"))
    monkeypatch.setattr("auditor.storage.database.SEALING_MEMORY", (DEFAULT_MEMORY,))
    path = tmp_path / "fleet.csv"
    write_long_attributes(path)
    with pytest.raises(FleetError, match=f"^{path}: some thousand of its rows do not fit .* shorten the values"):
        write_snapshot([("eu", str(path))], tmp_path / "fleet.parquet")
    assert not (tmp_path / "fleet.parquet").exists()
