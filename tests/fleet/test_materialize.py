"""What a listing came to, as a fleet: each device once, with the last that was said of it; and how a fleet grows."""

import string
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from auditor.config.settings import FleetSource, Patterns
from auditor.errors import RunNotWritableError
from auditor.fleet.discovery_journal import DiscoveryJournal
from auditor.fleet.materialize import MaterializedFleet, ProductCount, materialize
from auditor.fleet.snapshot import write_empty_snapshot
from auditor.fleet.table import (
    FLEET_COLUMNS,
    count_devices_to_query,
    devices_by_product,
    read_never_activated,
    read_snapshot,
    sha256_of,
    write_extended_fleet,
)
from auditor.models import Device, DeviceStatus, ListedDevice, ListPage, Product
from tests.database import connect
from tests.fleet.snapshots import fits

ALL = FleetSource(products="all")
STATUSES: tuple[DeviceStatus, ...] = get_args(DeviceStatus)

Row = tuple[object, ...]


def device(
    name: str, status: str | None = "ONLINE", iot_id: str | None = None, created: str | None = None
) -> ListedDevice:
    return ListedDevice(name, iot_id, status, created, None)


def devices_line(key: str, devices: Iterable[ListedDevice], *, again: bool = False, reading: int = 0) -> bytes:
    """A line as the listing writes it (a test compares them)."""
    numbers = {"total": None, "next_token": None, "reading": reading, "reread": again}
    record = {"kind": "devices", "product_key": key, **numbers, "devices": [asdict(each) for each in devices]}
    return orjson.dumps(record) + b"\n"


def read_rows(path: Path, columns: str = "*") -> list[Row]:
    with connect() as database:
        return database.read_parquet(str(path)).project(columns).fetchall()


def materialized(
    folder: Path, lines: Sequence[bytes], fleet: FleetSource = ALL, **options: Any
) -> tuple[MaterializedFleet, list[Row]]:
    """What a journal of these lines is, and its rows: product_key, device_name, iot_id, device_status."""
    journal, out = folder / "eu.jsonl", folder / "part.parquet"
    journal.write_bytes(b"".join(lines))
    found = materialize(journal, out, "eu", fleet, **options)
    assert sorted(each.name for each in folder.iterdir()) == ["eu.jsonl", "part.parquet"]
    rows = read_rows(out, "account, product_key, device_name, iot_id, device_status")
    assert {account for account, *_ in rows} <= {"eu"}
    return found, [row[1:] for row in rows]


def matching(folder: Path, names: Iterable[str | ListedDevice], fleet: FleetSource, **options: Any) -> list[str]:
    """Names of the matching devices of a product."""
    listed = [each if isinstance(each, ListedDevice) else device(each) for each in names]
    return [str(row[1]) for row in materialized(folder, [devices_line("k", listed)], fleet, **options)[1]]


def test_lines_of_these_tests_are_those_of_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "eu.jsonl"
    with DiscoveryJournal(path, ALL) as listing:
        listing.record_products(ListPage((Product("k", None, None),), None, 1, None))
        for _ in range(2):
            listing.record_devices("k", ListPage((device("a"),), None, None, None))
    line = devices_line("k", [device("a")])
    assert path.read_bytes().splitlines(keepends=True)[1] == line
    assert materialized(tmp_path, [path.read_bytes()]) == materialized(tmp_path, [line, line])


def test_duplicate_device_is_one_and_its_last_row_counts(tmp_path: Path) -> None:
    lines = [
        devices_line("k", [device("a", "UNACTIVE"), device("b", "ONLINE", "iot-b")]),
        devices_line("k2", [device("a", "DISABLE")]),
        devices_line("k", [device("c", None), device("a", "ONLINE", "iot-a")]),
    ]
    found, rows = materialized(tmp_path, lines)
    assert rows == [
        ("k", "b", "iot-b", "ONLINE"),
        ("k2", "a", None, "DISABLE"),
        ("k", "c", None, None),
        ("k", "a", "iot-a", "ONLINE"),
    ]
    assert found == MaterializedFleet(
        devices=4,
        duplicates=1,
        excluded=0,
        statuses={"": 1, "DISABLE": 1, "ONLINE": 2},
        products={"k": ProductCount(3, 3), "k2": ProductCount(1, 1)},
    )


def test_an_iot_id_of_several_devices_names_none_of_them(tmp_path: Path) -> None:
    lines = [
        devices_line("k", [device("a", iot_id="1"), device("b", iot_id="2"), device("c", iot_id="1"), device("d")]),
        devices_line("k2", [device("a", iot_id="1"), device("e", iot_id="3"), device("f", iot_id="")]),
        devices_line("k", [device("b", iot_id="2")]),
    ]
    found, rows = materialized(tmp_path, lines)
    names: dict[Row, object] = {tuple(row[:2]): row[2] for row in rows}
    without = dict.fromkeys([("k", "a"), ("k", "c"), ("k", "d"), ("k2", "a")])
    assert names == {**without, ("k", "b"): "2", ("k2", "e"): "3", ("k2", "f"): ""}
    assert (found.devices, found.duplicates, found.shared_iot_ids) == (7, 1, 3)


def test_an_iot_id_that_an_excluded_device_has_too_names_no_device(tmp_path: Path) -> None:
    lines = [devices_line("k", [device("a", iot_id="1"), device("b", "OFFLINE", iot_id="1"), device("c", iot_id="2")])]
    online = FleetSource(products="all", include=Patterns(status=("ONLINE",)))
    found, rows = materialized(tmp_path, lines, online)
    assert [row[1:3] for row in rows] == [("a", None), ("c", "2")]
    assert (found.devices, found.excluded, found.shared_iot_ids) == (2, 1, 2)


def test_rows_of_pages_that_were_read_again_are_no_duplicates(tmp_path: Path) -> None:
    first, again = (
        devices_line("k", [device("a"), device("b")]),
        devices_line("k", [device("a"), device("n")], again=True),
    )
    assert materialized(tmp_path, [first, again])[0].duplicates == 0
    assert materialized(tmp_path, [first, first, again])[0].duplicates == 2
    found, rows = materialized(tmp_path, [first, again, again])
    assert (found.duplicates, [row[1] for row in rows]) == (0, ["b", "a", "n"])


def test_last_reading_of_a_restarted_product_counts(tmp_path: Path) -> None:
    first = [devices_line("k", [device("a"), device("b")]), devices_line("j", [device("a")])]
    anew = b'{"kind":"restart","product_key":"k"}\n'
    found, rows = materialized(tmp_path, [*first, anew, devices_line("k", [device("b"), device("c")], reading=1)])
    assert (found.duplicates, [row[:2] for row in rows]) == (0, [("j", "a"), ("k", "b"), ("k", "c")])
    found, rows = materialized(tmp_path, [*first, anew])  # and nothing has come yet
    assert [row[:2] for row in rows] == [("k", "a"), ("k", "b"), ("j", "a")]
    found, rows = materialized(tmp_path, [*first, anew, devices_line("k", [], reading=1)])
    assert (found.products, [row[:2] for row in rows]) == ({"j": ProductCount(1, 1)}, [("j", "a")])


@pytest.mark.parametrize(
    "lines", [[], [devices_line("k", [])], [b'{"kind":"products_denied","code":"x","message":"y"}\n']]
)
def test_discovery_without_devices_is_an_empty_fleet(tmp_path: Path, lines: list[bytes]) -> None:
    found, rows = materialized(tmp_path, lines)
    assert (found, rows) == (MaterializedFleet(0, 0, 0, {}, {}), [])


def test_valid_times_are_kept(tmp_path: Path) -> None:
    pages = ["2026-01-02T03:04:05.678Z", "2026-01-02 03:04:05", "soon", "", None, "1767323045000"]
    listed = [device(f"d{at}", created=time) for at, time in enumerate(pages)]
    materialized(tmp_path, [devices_line("k", listed)])
    found = [None if time is None else str(time) for (time,) in read_rows(tmp_path / "part.parquet", "utc_create")]
    assert found == ["2026-01-02 03:04:05.678000", "2026-01-02 03:04:05", None, None, None, None]
    assert {str(time) for (time,) in read_rows(tmp_path / "part.parquet", "utc_modified")} == {"None"}


def test_materialized_fleet_has_the_columns_of_a_fleet(tmp_path: Path) -> None:
    materialized(tmp_path, [devices_line("k", [device("a")])])
    with connect() as database:
        found = database.read_parquet(str(tmp_path / "part.parquet"))
        assert dict(zip(found.columns, map(str, found.types), strict=True)) == FLEET_COLUMNS


names = st.sampled_from(["a", "b", "lamp-1", "lamp-2", 'q"', "it's"])
listed_devices = st.builds(
    ListedDevice,
    names,
    st.sampled_from([None, "iot1"]),
    st.sampled_from([None, *STATUSES]),
    st.none(),
    st.none(),
)
pages = st.tuples(st.sampled_from(["k", "k2"]), st.lists(listed_devices, max_size=4), st.booleans())
patterns = st.builds(
    Patterns,
    device_name=st.lists(st.sampled_from(["lamp*", "*1", "?", "it's", "灯*", "[!a]"]), max_size=2).map(tuple),
    status=st.lists(st.sampled_from(STATUSES), max_size=2).map(tuple),
)


def change_sequences(device: ListedDevice, patterns: Patterns) -> list[bool]:
    """For each list of patterns that asks for something, whether a device fits it."""
    found = []
    if patterns.device_name:
        found.append(any(fits(device.device_name, each) for each in patterns.device_name))
    if patterns.status:
        found.append(device.device_status in patterns.status)
    return found


ONE = [("k", [device("a", None)], False)]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    pages=st.lists(pages, max_size=6),
    include=patterns,
    exclude=patterns,
    limit=st.none() | st.integers(1, 4),
    filtered=st.booleans(),
)
@example(pages=ONE, include=Patterns(), exclude=Patterns(status=("UNACTIVE",)), limit=None, filtered=True)
@example(pages=ONE, include=Patterns(status=("ONLINE",)), exclude=Patterns(), limit=None, filtered=True)
def test_fleet_equals_the_pages_evaluated_in_plain_python(
    pages: list[tuple[str, list[ListedDevice], bool]],
    include: Patterns,
    exclude: Patterns,
    limit: int | None,
    *,
    filtered: bool,
) -> None:
    last: dict[tuple[str, str], ListedDevice] = {}
    expected_rows: dict[tuple[str, str], int] = {}
    for key, devices, again in pages:
        for each in devices:
            name = key, each.device_name
            last.pop(name, None)  # its place is that of its last
            last[name] = each
            expected_rows[name] = expected_rows.get(name, 0) + (not again)
    fitting = {
        name: each
        for name, each in last.items()
        if not filtered or (all(change_sequences(each, include)) and not any(change_sequences(each, exclude)))
    }
    ids = Counter(each.iot_id for each in last.values())
    own = {name: each.iot_id if ids[each.iot_id] == 1 else None for name, each in fitting.items()}
    rows = [(*name, own[name], each.device_status) for name, each in fitting.items()][:limit]
    statuses = [str(row[3] or "") for row in rows]

    fleet = FleetSource(products="all", include=include, exclude=exclude)
    with tempfile.TemporaryDirectory() as folder:
        lines = [devices_line(key, devices, again=again) for key, devices, again in pages]
        found, read = materialized(Path(folder), lines, fleet, limit=limit, filtered=filtered)
    assert read == rows
    assert (found.devices, found.excluded) == (len(rows), len(last) - len(fitting))
    assert found.duplicates == sum(max(0, count - 1) for count in expected_rows.values())
    assert found.shared_iot_ids == sum(count for iot_id, count in ids.items() if iot_id is not None and count > 1)
    assert found.statuses == {status: statuses.count(status) for status in statuses}
    assert {key: count.listed for key, count in found.products.items()} == {
        key: sum(name[0] == key for name in last) for key in {name[0] for name in last}
    }


LETTERS = string.ascii_letters + string.digits + "-_@.:"
"""Of a device's name (Alibaba's page)."""

device_names = st.text(st.sampled_from("ab1-_@.:Z") | st.sampled_from(LETTERS), min_size=1, max_size=6)
globs = st.text(st.sampled_from("ab1-*?[]!Z.:") | st.sampled_from(LETTERS + "^"), min_size=1, max_size=7)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    pages=st.lists(device_names, min_size=1, max_size=30, unique=True),
    wished=st.lists(globs, min_size=1, max_size=4),
    within=st.booleans(),
)
@example(pages=["a", "b", "-", "1"], wished=["[!a]"], within=True)
@example(pages=["a", "b", "-", "1"], wished=["[^a]"], within=True)
@example(pages=["a", "b", "-", "1"], wished=["[b-a]", "[a-]", "[-a]", "[]a]", "[", "[a"], within=True)
@example(pages=["a", "ab", "b"], wished=["a**", "*"], within=False)
def test_patterns_support_stars_and_question_marks_only(pages: list[str], wished: list[str], *, within: bool) -> None:
    asked = Patterns(device_name=tuple(wished))
    fleet = FleetSource(products="all", include=asked) if within else FleetSource(products="all", exclude=asked)
    with tempfile.TemporaryDirectory() as folder:
        found = matching(Path(folder), pages, fleet)
    assert found == [name for name in pages if any(fits(name, each) for each in wished) == within]


@pytest.mark.parametrize(
    "name", ["it's", "'", "''", "a' OR 'b' = 'b", "'); DROP TABLE twice; --", 'q"', "%s", "$1", "a.c", "\\d", "(a|b)"]
)
def test_pattern_is_never_sql_nor_a_regular_expression(tmp_path: Path, name: str) -> None:
    include, exclude = Patterns(device_name=(name,)), Patterns(device_name=(name,))
    assert matching(tmp_path, [name, "b", "abc"], FleetSource(products="all", include=include)) == [name]
    assert matching(tmp_path, [name, "b", "abc"], FleetSource(products="all", exclude=exclude)) == ["b", "abc"]


def test_names_with_non_ascii_letters_are_kept_and_match_patterns(tmp_path: Path) -> None:
    fleet = FleetSource(products="all", include=Patterns(device_name=("灯*", "*é")))
    assert matching(tmp_path, ["灯-1", "a灯", "café", "İ"], fleet) == ["灯-1", "café"]


EACH = [*(device(status.lower(), status) for status in STATUSES), device("untold", None)]


def test_status_filter_excludes_devices_without_a_status(tmp_path: Path) -> None:
    online = Patterns(status=("ONLINE", "DISABLE"))
    assert matching(tmp_path, EACH, FleetSource(products="all", include=online)) == ["online", "disable"]
    assert matching(tmp_path, EACH, FleetSource(products="all", exclude=online)) == ["offline", "unactive", "untold"]
    both = FleetSource(products="all", include=online, exclude=Patterns(device_name=("*line",)))
    assert matching(tmp_path, EACH, both) == ["disable"]


def test_include_needs_every_list_and_exclude_needs_one(tmp_path: Path) -> None:
    lists = Patterns(device_name=("*line",), status=("OFFLINE", "UNACTIVE"))
    assert matching(tmp_path, EACH, FleetSource(products="all", include=lists)) == ["offline"]
    assert matching(tmp_path, EACH, FleetSource(products="all", exclude=lists)) == ["disable", "untold"]


def test_unfiltered_fleet_has_excluded_devices(tmp_path: Path) -> None:
    fleet = FleetSource(products="all", exclude=Patterns(status=("UNACTIVE",)))
    line = devices_line("k", EACH)
    some, _ = materialized(tmp_path, [line], fleet)
    everything, rows = materialized(tmp_path, [line], fleet, filtered=False)
    assert (some.devices, some.excluded, some.products) == (4, 1, {"k": ProductCount(5, 4)})
    assert (everything.devices, everything.excluded, len(rows)) == (5, 0, 5)


def test_limit_keeps_the_first_matching_devices(tmp_path: Path) -> None:
    fleet = FleetSource(products="all", exclude=Patterns(device_name=("d0", "d2")))
    listed = [f"d{at}" for at in range(6)]
    assert matching(tmp_path, listed, fleet, limit=2) == ["d1", "d3"]
    found, _ = materialized(tmp_path, [devices_line("k", map(device, listed))], fleet, limit=2)
    assert (found.devices, found.excluded, found.statuses) == (2, 2, {"ONLINE": 2})


def test_repeated_materialization_gives_the_same_file(tmp_path: Path) -> None:
    lines = [devices_line("k", EACH), devices_line("k2", EACH), devices_line("k", EACH[:2])]
    digests = set()
    for _ in range(2):
        materialized(tmp_path, lines)
        digests.add(sha256_of(tmp_path / "part.parquet"))
    assert len(digests) == 1


@pytest.mark.parametrize("content", [None, b"rubbish\n", b'{"kind":"devices"\n', b"\xff\xfe\n"])
def test_unreadable_journal_is_an_error_and_leaves_no_file(tmp_path: Path, content: bytes | None) -> None:
    journal, out = tmp_path / "eu.jsonl", tmp_path / "out" / "part.parquet"
    out.parent.mkdir()
    if content is not None:
        journal.write_bytes(content)
    with pytest.raises(RunNotWritableError, match="cannot be written") as caught:
        materialize(journal, out, "eu", ALL)
    assert "\n" not in str(caught.value)
    assert list(out.parent.iterdir()) == []


def test_fleet_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    journal = tmp_path / "eu.jsonl"
    journal.write_bytes(devices_line("k", EACH))
    (tmp_path / "folder.parquet").mkdir()
    for out in (tmp_path / "gone" / "part.parquet", tmp_path / "folder.parquet"):
        with pytest.raises(RunNotWritableError, match="cannot be written"):
            materialize(journal, out, "eu", ALL)


# A fleet of several accounts, and how it grows.


def part(folder: Path, account: str, *devices: ListedDevice, key: str = "k") -> Path:
    """The file that an account's listing comes to."""
    journal, out = folder / f"{account}.jsonl", folder / f"{account}.parquet"
    journal.write_bytes(devices_line(key, devices))
    materialize(journal, out, account, ALL)
    return out


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """A fleet without a device yet, as a run begins with."""
    write_empty_snapshot(tmp_path / "fleet.parquet")
    return tmp_path / "fleet.parquet"


def grow(fleet: Path, account: str, *devices: ListedDevice, order: Sequence[str] = ("us", "eu", "cn")) -> int:
    out = fleet.with_name("grown.parquet")
    count = write_extended_fleet(fleet, part(fleet.parent, account, *devices), account, order, out)
    assert not list(fleet.parent.glob("*.growing"))
    out.replace(fleet)
    return count


def names_in(fleet: Path) -> list[Row]:
    return read_rows(fleet, "ordinal, account, device_name")


def test_accounts_are_in_the_order_of_the_settings(fleet: Path) -> None:
    assert grow(fleet, "cn", device("c1"), device("c2")) == 2
    assert grow(fleet, "us", device("u1")) == 3
    assert grow(fleet, "eu", device("e1")) == 4
    assert names_in(fleet) == [(0, "us", "u1"), (1, "eu", "e1"), (2, "cn", "c1"), (3, "cn", "c2")]


def test_existing_devices_stay_and_new_ones_follow(fleet: Path) -> None:
    grow(fleet, "us", device("u1", "OFFLINE", "iot-u1", "2026-01-02T03:04:05.678Z"), device("u2", None))
    grow(fleet, "eu", device("e1"), device("e2", iot_id="iot-e2"))
    pages = "account, product_key, device_name, iot_id, device_status, utc_create"
    before = read_rows(fleet, pages)
    assert grow(fleet, "us", device("u3"), device("u1", "ONLINE", "iot-u1-anew")) == 5
    assert names_in(fleet) == [(0, "us", "u1"), (1, "us", "u2"), (2, "us", "u3"), (3, "eu", "e1"), (4, "eu", "e2")]
    assert [row for row in read_rows(fleet, pages) if row[2] != "u3"] == before
    assert before[0][4:] != (None, None)


def test_a_new_device_with_the_iot_id_of_an_existing_one_has_none(fleet: Path) -> None:
    grow(fleet, "us", device("u1", iot_id="1"), device("u2"))
    grow(fleet, "eu", device("e1", iot_id="1"))
    grow(fleet, "us", device("u3", iot_id="1"), device("u4", iot_id="2"), device("u5"))
    found = read_rows(fleet, "device_name, iot_id")
    assert found == [("u1", "1"), ("u2", None), ("u3", None), ("u4", "2"), ("u5", None), ("e1", "1")]


def test_repeated_extension_gives_the_same_file(fleet: Path) -> None:
    grow(fleet, "eu", device("e1"), device("e2"))
    grow(fleet, "us", device("u1"))
    digest = sha256_of(fleet)
    grow(fleet, "us", device("u1"))
    assert sha256_of(fleet) == digest
    grow(fleet, "us")
    assert sha256_of(fleet) == digest
    grow(fleet, "us", device("u2"))
    assert sha256_of(fleet) != digest


def test_account_name_is_never_sql(fleet: Path) -> None:
    odd = "it's"
    grow(fleet, odd, device("a"), order=[odd, "eu"])
    grow(fleet, "eu", device("b"), order=[odd, "eu"])
    assert names_in(fleet) == [(0, odd, "a"), (1, "eu", "b")]
    assert list(read_snapshot(fleet, odd)) == [Device(odd, "k", "a", None)]


def test_fleet_that_cannot_be_extended_is_left_unchanged(fleet: Path, tmp_path: Path) -> None:
    grow(fleet, "eu", device("a"))
    digest, listed = sha256_of(fleet), part(tmp_path, "eu", device("b"))
    for source, out in ((fleet, tmp_path / "gone" / "x.parquet"), (tmp_path / "none.parquet", tmp_path / "x.parquet")):
        with pytest.raises(RunNotWritableError, match="cannot be written"):
            write_extended_fleet(source, listed, "us", ["eu", "us"], out)
    assert sha256_of(fleet) == digest
    assert not list(tmp_path.glob("*.growing"))


def write_mixed(fleet: Path) -> None:
    grow(fleet, "eu", device("on"), device("never", "UNACTIVE", "iot-n"), device("untold", None))
    grow(fleet, "us", device("u-never", "UNACTIVE"))


def test_never_activated_devices_are_read_separately(fleet: Path) -> None:
    write_mixed(fleet)
    on, unpages = Device("eu", "k", "on", None), Device("eu", "k", "untold", None)
    never = Device("eu", "k", "never", "iot-n")
    assert list(read_snapshot(fleet, "eu")) == [on, never, unpages]
    assert list(read_snapshot(fleet, "eu", include_never_activated=False)) == [on, unpages]
    assert list(read_never_activated(fleet, "eu")) == [never]
    assert list(read_snapshot(fleet, "cn")) == []


def test_devices_to_query_are_counted_by_account(fleet: Path) -> None:
    write_mixed(fleet)
    assert count_devices_to_query(fleet, []) == {"eu": 2, "us": 0}
    assert count_devices_to_query(fleet, ["eu"]) == {"eu": 3, "us": 0}
    assert count_devices_to_query(fleet, {"eu", "us", "cn"}) == {"eu": 3, "us": 1}


def test_devices_are_counted_by_product(fleet: Path, tmp_path: Path) -> None:
    parts = [part(tmp_path, "eu", device("a"), device("b"), key="z"), part(tmp_path, "us", device("a"), key="a")]
    for account, listed in zip(("eu", "us"), parts, strict=True):
        write_extended_fleet(fleet, listed, account, ["eu", "us"], tmp_path / "grown.parquet")
        (tmp_path / "grown.parquet").replace(fleet)
    assert devices_by_product(fleet, "eu") == {"z": 2}
    assert devices_by_product(fleet, "us") == {"a": 1}
    assert devices_by_product(fleet, "cn") == {}


@pytest.mark.parametrize("content", [None, b"", b"rubbish", b"PAR1rubbishPAR1"])
def test_missing_or_broken_fleet_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "fleet.parquet"
    if content is not None:
        path.write_bytes(content)
    reading: list[Callable[[], object]] = [
        lambda: list(read_snapshot(path, "eu")),
        lambda: list(read_never_activated(path, "eu")),
        lambda: count_devices_to_query(path, []),
        lambda: devices_by_product(path, "eu"),
    ]
    for read in reading:
        with pytest.raises(RunNotWritableError, match="cannot be read") as caught:
            read()
        assert "\n" not in str(caught.value)
