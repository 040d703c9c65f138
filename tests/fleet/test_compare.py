"""A fleet written to a file is the fleet that is read back from it; and where a file and the platform differ."""

import csv
import tempfile
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, get_args

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from auditor.errors import RunNotWritableError
from auditor.fleet.compare import comparison_sql, product_counts_sql, write_fleet
from auditor.fleet.snapshot import write_snapshot
from auditor.fleet.table import FLEET_COLUMNS, read_snapshot
from auditor.runs.attributes import ATTRIBUTES, LISTED_ATTRIBUTES
from auditor.text.formats import FleetFormat
from tests.database import connect

FORMS: tuple[FleetFormat, ...] = get_args(FleetFormat)
COLUMNS = [*(name for name in FLEET_COLUMNS if name != ATTRIBUTES), *LISTED_ATTRIBUTES]


class Row(NamedTuple):
    """A device of a fleet."""

    product_key: str | None
    device_name: str | None
    iot_id: str | None = None
    device_status: str | None = None
    utc_create: datetime | None = None
    utc_modified: datetime | None = None
    attributes: dict[str, str] | None = None


def fleet_of(path: Path, rows: Sequence[Row], *, account: str = "eu") -> Path:
    with connect() as database:
        columns = ", ".join(f"{name} {kind}" for name, kind in FLEET_COLUMNS.items())
        database.execute(f"CREATE TEMP TABLE fleet (ordinal BIGINT, {columns})")
        for ordinal, row in enumerate(rows):
            database.execute("INSERT INTO fleet VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", [ordinal, account, *row])
        database.execute(f"COPY fleet TO '{path}' (FORMAT parquet)")
    return path


ODD_NAMES = ["-dev", "@x", 'q"uote', '"', "it's", "a,b;c d", "灯-1", "İ", "007", "1e5", "true", "2026-01-02", "#x", "a b",
             "{}", "[1]", "\\", "caf\u0065\u0301", "🔧", "T℃", "10.0", "NA", "none", " a ", "a\u00a0b", "１２３", "❤️", "iot_id", "=1+1",
             "device_name", "8.5e3", "\\N", "2024-03-01 00:00:00", "'x", "\u200bx", "#N/A"]  # fmt: skip
"""What a device may be called where the platform takes more than its own pages allow."""

ODD = [Row(f"p{at % 3}", name, None if at % 2 else f"iot{name}", "ONLINE") for at, name in enumerate(ODD_NAMES)]


@pytest.mark.parametrize("form", FORMS)
def test_a_fleet_that_was_written_is_read_back_as_it_was_whatever_its_names(tmp_path: Path, form: FleetFormat) -> None:
    written, again = tmp_path / f"it's a [fleet].{form}", tmp_path / "again.parquet"
    fleet = fleet_of(tmp_path / "fleet.parquet", ODD)
    write_fleet([fleet], written, form)
    assert write_snapshot([("eu", str(written))], again).devices == len(ODD)
    assert list(read_snapshot(again, "eu")) == list(read_snapshot(fleet, "eu"))
    assert [(each.product_key, each.device_name, each.iot_id) for each in read_snapshot(again, "eu")] == [
        row[:3] for row in ODD
    ]


printable = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Cf", "Co", "Cn", "Zs", "Zl", "Zp"]), min_size=1, max_size=6
)
pieces = printable | st.sampled_from([*ODD_NAMES, "a b", 'x"y', "x,y", "'"])
device_names = st.lists(pieces, min_size=1, max_size=2).map("".join).filter(lambda name: name.count("\ufffd") == 0)


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    names=st.lists(st.tuples(device_names, device_names), min_size=1, max_size=6, unique=True),
    ids=st.lists(st.none() | device_names, min_size=6, max_size=6, unique_by=lambda each: each or object()),
)
def test_whatever_the_names_a_fleet_that_was_written_is_read_back(
    names: list[tuple[str, str]], ids: list[str | None]
) -> None:
    rows = [Row(key, name, iot_id) for (key, name), iot_id in zip(names, ids, strict=False)]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        fleet = fleet_of(folder / "fleet.parquet", rows)
        for form in FORMS:
            write_fleet([fleet], folder / f"out.{form}", form)
            write_snapshot([("eu", str(folder / f"out.{form}"))], folder / "again.parquet")
            assert list(read_snapshot(folder / "again.parquet", "eu")) == list(read_snapshot(fleet, "eu"))


TIMED = [
    Row(
        "p1",
        "a",
        "iot-a",
        "ONLINE",
        datetime(2026, 1, 2, 3, 4, 5, 678_000),  # noqa: DTZ001  UTC
        datetime(2026, 2, 3),  # noqa: DTZ001  UTC
        {"nickname": " The =first, ", "node_type": "device"},
    ),
    Row("p1", "-b", None, "UNACTIVE"),
    Row(None, None, "iot-c"),
]


def test_all_that_was_listed_stands_in_a_file_for_programs(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path / "fleet.parquet", TIMED)
    for form in FORMS:
        write_fleet([fleet], tmp_path / f"out.{form}", form)
    times = ["2026-01-02T03:04:05.678Z", "2026-02-03T00:00:00.000Z"]
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            COLUMNS,
            ["eu", "p1", "a", "iot-a", "ONLINE", *times, " The =first, ", "", "device"],
            ["eu", "p1", "-b", "", "UNACTIVE", "", "", "", "", ""],  # and not '-b: it is asked for by this name
            ["eu", "", "", "iot-c", "", "", "", "", "", ""],
        ]
    lines = [orjson.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [[line.get(name) for name in COLUMNS] for line in lines] == [
        ["eu", "p1", "a", "iot-a", "ONLINE", *times, " The =first, ", None, "device"],
        ["eu", "p1", "-b", None, "UNACTIVE", None, None, None, None, None],
        ["eu", None, None, "iot-c", None, None, None, None, None, None],
    ]
    assert {datetime.fromisoformat(time).tzinfo for time in times} == {UTC}
    columns = ", ".join(FLEET_COLUMNS)
    for form in FORMS:
        write_snapshot([("eu", str(tmp_path / f"out.{form}"))], tmp_path / "again.parquet")
        with connect() as database:
            again, before = (
                database.read_parquet(str(path)).project(columns) for path in (tmp_path / "again.parquet", fleet)
            )
            assert again.fetchall() == before.fetchall()
    with connect() as database:
        read = database.read_parquet(str(tmp_path / "out.parquet"))
        types = FLEET_COLUMNS | dict.fromkeys(LISTED_ATTRIBUTES, "VARCHAR")
        assert dict(zip(read.columns, map(str, read.types), strict=True)) == {name: types[name] for name in COLUMNS}
        assert read.fetchall() == [
            ("eu", *row[:-1], *((row.attributes or {}).get(name) for name in LISTED_ATTRIBUTES)) for row in TIMED
        ]


def test_fleets_of_several_accounts_follow_one_another(tmp_path: Path) -> None:
    fleets = [
        fleet_of(tmp_path / f"{account}.parquet", [Row("p1", name) for name in names], account=account)
        for account, names in (("us", ["b", "a"]), ("eu", ["c"]))
    ]
    write_fleet(fleets, tmp_path / "out.csv", "csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert [row[:3] for row in csv.reader(file)][1:] == [["us", "p1", "b"], ["us", "p1", "a"], ["eu", "p1", "c"]]


def test_a_file_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path / "fleet.parquet", TIMED)
    for source, out in ((fleet, tmp_path / "gone" / "out.csv"), (tmp_path / "none.parquet", tmp_path / "out.csv")):
        with pytest.raises(RunNotWritableError, match="cannot be written") as caught:
            write_fleet([source], out, "csv")
        assert "\n" not in str(caught.value)


def test_devices_are_counted_by_product_and_status(tmp_path: Path) -> None:
    statuses = ["ONLINE", "ONLINE", "OFFLINE", "UNACTIVE", "DISABLE", None, "ODD"]
    rows = [Row("p1", f"d{at}", None, status) for at, status in enumerate(statuses)]
    fleets = [
        fleet_of(tmp_path / "eu.parquet", [*rows, Row("p2", "d")]),
        fleet_of(tmp_path / "us.parquet", [Row("p1", "d", None, "ONLINE")], account="us"),
    ]
    with connect() as database:
        found = database.sql(product_counts_sql(fleets))
        assert found.columns == ["account", "product_key", "devices", "online", "offline", "unactive", "disable"]
        assert sorted(found.fetchall()) == [
            ("eu", "p1", 7, 2, 1, 1, 1),
            ("eu", "p2", 1, 0, 0, 0, 0),
            ("us", "p1", 1, 1, 0, 0, 0),
        ]


# Where a fleet file and the platform differ.

Difference = tuple[str, str | None, str | None, str | None, str | None]


def found_by_reading_the_definition(
    given: Sequence[Row],
    listed: Sequence[Row],
    wanted: Sequence[Row],
    unsure: Sequence[str],
    *,
    asked: Collection[str] | None,
) -> list[Difference]:
    """Difference, product_key, device_name, iot_id, device_status of each device that is not in both."""
    found: list[Difference] = []
    for row in given:
        if row.iot_id is not None:
            known = any(row.iot_id == each.iot_id for each in listed)
        else:
            known = any(row[:2] == each[:2] for each in listed)
        if not known:
            doubtful = row.product_key in unsure or (asked is not None and row.product_key not in asked)
            whose = row.product_key is None and bool(unsure or asked is not None)
            found.append(("not_seen" if doubtful or whose else "unknown", *row[:3], None))
    for row in wanted:
        by_id = any(row.iot_id == each.iot_id for each in given if each.iot_id is not None)
        by_name = any(row[:2] == each[:2] for each in given if each.iot_id is None)
        if not by_id and not by_name:
            found.append(("missing", *row[:4]))
    return found


def differing(
    folder: Path,
    given: Sequence[Row],
    listed: Sequence[Row],
    wanted: Sequence[Row],
    unsure: list[str],
    *,
    asked: Collection[str] | None,
) -> list[Difference]:
    query = comparison_sql(
        fleet_of(folder / "given.parquet", given),
        fleet_of(folder / "wanted.parquet", wanted),
        fleet_of(folder / "listed.parquet", listed),
        unsure,
        requested_products=asked,
    )
    with connect() as database:
        rows = database.sql(query).project("difference, product_key, device_name, iot_id, device_status").fetchall()
        accounts = {account for (account,) in database.sql(query).project("account").fetchall()}
    assert accounts <= {"eu"}
    return rows


keys = st.sampled_from(["p1", "p2", "it's"])
identities = st.lists(st.tuples(keys, st.sampled_from(["a", "b", "c"])), max_size=6, unique=True)


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[list[Row], list[Row], list[Row], list[str]]:
    """A file, what is listed, what of it is wanted, and products with gaps. A device's iot_id never changes."""

    def iot_id(identity: tuple[str, str]) -> str:
        return "-".join(identity)

    given = []
    for identity in draw(identities):
        match draw(st.sampled_from(["names", "iot_id", "both", "both, and another iot_id"])):
            case "names":
                given.append(Row(*identity))
            case "iot_id":
                given.append(Row(None, None, iot_id(identity)))
            case "both":
                given.append(Row(*identity, iot_id(identity)))
            case _:
                given.append(Row(*identity, f"old {iot_id(identity)}"))
    listed = [
        Row(*identity, draw(st.sampled_from([None, iot_id(identity)])), draw(st.sampled_from([None, "ONLINE"])))
        for identity in draw(identities)
    ]
    wanted = [row for row in listed if draw(st.booleans())]
    return given, listed, wanted, draw(st.lists(keys, max_size=2, unique=True))


A, B = Row("p1", "a", "p1-a"), Row("p2", "b", "p2-b")


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(compared=comparisons(), asked=st.none() | st.lists(keys, unique=True))
@example(([], [], [], []), None)
@example(([A, B], [], [], []), None)
@example(([A, B], [], [], []), ["p1"])
@example(([A, B, Row(None, None, "x")], [], [], ["p2"]), None)
@example(([], [A, B], [A], ["it's"]), [])
def test_a_file_and_the_platform_differ_where_plain_python_says_so(
    compared: tuple[list[Row], list[Row], list[Row], list[str]], asked: list[str] | None
) -> None:
    given, listed, wanted, unsure = compared
    with tempfile.TemporaryDirectory() as folder:
        found = differing(Path(folder), given, listed, wanted, unsure, asked=asked)
    expected = found_by_reading_the_definition(given, listed, wanted, unsure, asked=asked)
    assert sorted(map(repr, found)) == sorted(map(repr, expected))


def test_a_file_like_the_platform_has_no_difference(tmp_path: Path) -> None:
    listed = [Row("p1", "a", "iot-a"), Row("p1", "b", "iot-b"), Row("p2", "a", "iot-c"), Row("p2", "d")]
    given = [Row("p1", "a"), Row(None, None, "iot-b"), Row("p2", "a", "iot-c"), Row("p2", "d")]
    assert differing(tmp_path, given, listed, listed, [], asked=None) == []


def test_a_listed_device_that_is_not_wanted_is_neither_missing_nor_unknown(tmp_path: Path) -> None:
    assert differing(tmp_path, [A], [A, B], [], [], asked=None) == []


def test_differences_come_in_an_order_that_does_not_change(tmp_path: Path) -> None:
    given = [Row("p2", "z"), Row("p1", "y"), Row("p1", "x")]
    found = differing(tmp_path, given, [B, A], [B, A], ["p2"], asked=None)
    assert [(row[0], row[2]) for row in found] == [
        ("missing", "a"),
        ("missing", "b"),
        ("not_seen", "z"),
        ("unknown", "x"),
        ("unknown", "y"),
    ]
