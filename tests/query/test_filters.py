"""Filters: attributes, connection, accounts and products; groups; and what is said of a value that no device has."""

import csv
import itertools
from pathlib import Path
from typing import get_args

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.errors import UsageError
from auditor.models import Outcome
from auditor.query.devices import select_devices, select_inventory
from auditor.query.filters import DeviceFilter
from auditor.query.sql import query_run
from auditor.runs.products import ProductInfo, ProductsFile
from auditor.text.formats import TableFormat
from tests.database import connect
from tests.fleet.test_attributes import NAME, TEXT
from tests.runs.run_folders import build, every_status, failed, finish, named, ok, running

NUMBERS = itertools.count()

START = "2026-11-22 02:00:00"


def details(status: str | None = None, last_online: str | None = None, **attributes: str) -> dict[str, object]:
    """Further columns of a device in ``fleet.parquet``; ``last_online`` is not one of them, see ``connect``."""
    return {"device_status": status, "attributes": attributes or None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six devices of two products at two sites; the last one failed, and one was never online."""
    fleet = [*(named(n) for n in range(4)), named(4, product="p2"), named(5, product="p2", account="other")]
    outcomes: list[Outcome] = [
        ok(fleet[0], ("wifi", "1.0"), ("default", "1")),
        ok(fleet[1], ("wifi", "2.0")),
        ok(fleet[2], ("wifi", "2.1")),
        ok(fleet[3], ("wifi", "1.9")),
        ok(fleet[4], ("wifi", "1.0")),
        failed(fleet[5]),
    ]
    more = [
        details("ONLINE", site="a1", ring="canary"),
        details("OFFLINE", site="a1"),
        details("OFFLINE", site="b2", ring="stable"),
        details(None, site="b2", ring="stable"),
        details("ONLINE"),
        details("UNACTIVE", site="a1"),
    ]
    folder = tmp_path_factory.mktemp("runs") / "run"
    running(folder, fleet, outcomes, details=more)
    products = ProductsFile(folder)
    products.replace_products("demo", [ProductInfo("demo", key, f"Lamp {key}", 5, 5, None) for key in ("p1", "p2")])
    products.write()
    times = {1: "2026-11-21 20:00:00", 2: "2026-08-01 00:00:00"}
    values = ", ".join(f"('demo', 'p1', 'device000{n}', NULL, 'OFFLINE', TIMESTAMP '{at}')" for n, at in times.items())
    with connect() as database:
        database.execute(
            f"COPY (SELECT account, product_key, device_name, iot_id::VARCHAR AS iot_id, device_status, last_online_at "
            f"FROM (VALUES {values}) t(account, product_key, device_name, iot_id, device_status, last_online_at)) "
            f"TO '{folder}/connections.parquet' (FORMAT parquet)"
        )
    finish(folder)
    return folder


def found(folder: Path, **conditions: object) -> list[int]:
    """The numbers of the devices that match."""
    with select_devices(folder, DeviceFilter(**conditions)) as selected:  # type: ignore[arg-type]
        return sorted({int(str(row[2])[-1]) for row in selected.table})


def test_attributes_are_conditions(folder: Path) -> None:
    assert found(folder, where=("site=a1",)) == [0, 1, 5]
    assert found(folder, where=("site!=a1",)) == [2, 3, 4]
    assert found(folder, where=("site=b2", "ring=stable")) == [2, 3]
    assert found(folder, where=("ring=",)) == [1, 4, 5]
    assert found(folder, where=("ring!=",)) == [0, 2, 3]
    assert found(folder, where=("site=a1",), module="wifi", below="2.0") == [0]


def test_connections_are_conditions(folder: Path) -> None:
    assert found(folder, online=True) == [0, 4]
    assert found(folder, online=False) == [1, 2, 5]  # the state of 3 is unknown
    assert found(folder, where=("device_status=OFFLINE",)) == [1, 2]
    assert found(folder, seen_within=86_400) == [0, 1, 4]
    assert found(folder, not_seen_for=90 * 86_400) == [2]


def test_accounts_and_products_are_conditions_by_key_and_by_name(folder: Path) -> None:
    assert found(folder, account=("other",)) == [5]
    assert found(folder, account=("other", "demo")) == [0, 1, 2, 3, 4, 5]
    assert found(folder, product="p2") == [4, 5]
    assert found(folder, product="Lamp p1") == [0, 1, 2, 3]


def test_rows_have_names_of_products_connections_and_attributes(folder: Path) -> None:
    with select_devices(folder, DeviceFilter(name="device0001")) as selected:
        row = dict(zip(selected.table.columns, next(iter(selected.table)), strict=True))
    assert row["product_name"] == "Lamp p1"
    assert (row["device_status"], row["last_online_at"]) == ("OFFLINE", "2026-11-21 20:00:00")
    assert (row["site"], row["ring"]) == ("a1", None)


def test_a_table_for_people_has_the_attributes_that_a_condition_names(folder: Path) -> None:
    with select_devices(folder, DeviceFilter(where=("site=a1",))) as selected:
        assert "site" in selected.short_table.columns
        assert "ring" not in selected.short_table.columns
        assert len(list(selected.short_table)) == len(list(selected.table))


def test_devices_are_counted_by_columns_and_attributes(folder: Path) -> None:
    with select_devices(folder, DeviceFilter(module="wifi"), group_by=["site", "module_version"]) as selected:
        assert list(selected.table.columns) == ["site", "module_version", "devices"]
        assert sorted(selected.table, key=str) == sorted(
            [("a1", "1.0", 1), ("a1", "2.0", 1), ("b2", "1.9", 1), ("b2", "2.1", 1), (None, "1.0", 1)], key=str
        )
    with select_devices(folder, group_by=["site"]) as selected:  # device 0 has two modules and counts once
        assert list(selected.table) == [("a1", 3), ("b2", 2), (None, 1)]


def test_the_inventory_is_divided_by_attributes(folder: Path) -> None:
    with select_inventory(folder, DeviceFilter(product="p1"), group_by=["site"]) as selected:
        assert list(selected.table.columns) == [
            "account", "product_key", "module_name", "module_version", "site", "devices", "share",
        ]  # fmt: skip
        assert list(selected.table) == [
            ("demo", "p1", "default", "1", "a1", 1, 1.0),
            ("demo", "p1", "wifi", "1.0", "a1", 1, 0.5),
            ("demo", "p1", "wifi", "2.0", "a1", 1, 0.5),
            ("demo", "p1", "wifi", "1.9", "b2", 1, 0.5),
            ("demo", "p1", "wifi", "2.1", "b2", 1, 0.5),
        ]


def test_rows_are_sorted_by_any_column(folder: Path) -> None:
    with select_devices(folder, DeviceFilter(module="wifi", sort="-module_version", limit=2)) as selected:
        assert [row[6] for row in selected.table] == ["2.1", "2.0"]
    with select_devices(folder, DeviceFilter(module="wifi", sort="site")) as selected:
        assert [row[2] for row in selected.table][-1] == "device0004"


@pytest.mark.parametrize(
    ("conditions", "sentence"),
    [
        ({"module": "wifii"}, "no device reports the module wifii; did you mean wifi?"),
        ({"module": "zigbee"}, "no device reports the module zigbee; there is wifi, default"),
        ({"product": "Lmap p1"}, "no device is of the product Lmap p1; did you mean Lamp p1?"),
        ({"account": ("demoo",)}, "no device is of the account demoo; did you mean demo?"),
        ({"where": ("stie=a1",)}, "where: no device has stie; did you mean site?"),
        ({"where": ("qqq=a1",)}, "where: no device has qqq; there is ring, site, device_status"),
        ({"where": ("site=a11",)}, "no device has site=a11; did you mean a1?"),
        ({"sort": "module_versoin"}, "sort: no device has module_versoin; did you mean module_version?"),
    ],
)
def test_a_value_that_no_device_has_is_an_error_with_the_closest_one(
    folder: Path, conditions: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        found(folder, **conditions)
    assert str(caught.value) == sentence


def test_a_version_that_no_device_runs_is_an_answer(folder: Path) -> None:
    assert found(folder, module="wifi", version="3.0") == []


def test_a_run_without_connection_states_says_where_they_come_from(tmp_path: Path) -> None:
    plain = every_status(tmp_path / "run").folder
    for conditions in ({"online": True}, {"seen_within": 60.0}, {"not_seen_for": 60.0}):
        with pytest.raises(UsageError, match=r"incremental runs \(--since\) have it"):
            found(plain, **conditions)


def test_sql_has_a_column_for_each_attribute(folder: Path) -> None:
    statement = "SELECT site, ring, attributes['site'], count(*) FROM {} WHERE site = 'a1' GROUP BY ALL ORDER BY ALL"
    with query_run(folder, statement.format("devices")) as result:
        assert list(result.table) == [("a1", "canary", "a1", 1), ("a1", None, "a1", 2)]
    with query_run(folder, statement.format("device_modules")) as result:
        assert list(result.table) == [("a1", "canary", "a1", 2), ("a1", None, "a1", 1)]


def test_an_attribute_with_the_name_of_a_column_of_ours_has_a_column_of_its_own(tmp_path: Path) -> None:
    device = named(0)
    more = [{"attributes": {"Status": "new", "status": "old", "attributes.Status": "x"}}]
    folder = build(tmp_path / "run", [device], [ok(device, ("ble", "1"))], details=more).folder
    with select_devices(folder) as selected:
        row = dict(zip(selected.table.columns, next(iter(selected.table)), strict=True))
    assert row["status"] == "ok"
    assert sorted(text for name, text in row.items() if name.startswith("attributes.")) == ["new", "old", "x"]
    assert found(folder, where=("status=old",)) == [0]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAME, TEXT, min_size=2, max_size=8))
@pytest.mark.slow
def test_odd_attributes_go_through_a_sealed_run_and_every_format(tmp_path: Path, attributes: dict[str, str]) -> None:
    given = [name for name, text in attributes.items() if f"{name}={text}".partition("=")[0] == name]
    given = [name for name in given if not name.endswith("!")]
    # All attributes, none, and each of them missing or alone: if one condition selected too much, a device would show it.
    others = [
        {},
        *(
            {name: attributes[name] for name in given if (name == one) is alone}
            for one in given
            for alone in (True, False)
        ),
    ]
    fleet = [named(number) for number in range(1 + len(others))]
    folder = tmp_path / str(next(NUMBERS))
    more = [{"attributes": each or None} for each in (attributes, *others)]
    build(folder, fleet, [ok(fleet[0], ("ble", "1")), *map(ok, fleet[1:])], details=more)
    if given:
        for sign, selects in (("=", all), ("!=", lambda same: not any(same))):
            where = tuple(f"{name}{sign}{attributes[name]}" for name in given)
            expected = [n for n, each in enumerate((attributes, *others)) if selects(name in each for name in given)]
            assert found(folder, where=where) == expected
    with select_devices(folder, DeviceFilter(name="device0000")) as selected:
        row = dict(zip(selected.table.columns, next(iter(selected.table)), strict=True))
        for form in get_args(TableFormat):
            selected.table.write(folder / f"out.{form}", form)
    assert {name: text for name, text in row.items() if name in attributes} == {
        name: text for name, text in attributes.items() if name in row
    }
    assert orjson.loads((folder / "out.jsonl").read_bytes()) == row
    assert orjson.loads((folder / "out.json").read_bytes())["rows"] == [row]
    with (folder / "out.csv").open(newline="") as file:
        cells = next(itertools.islice(csv.reader(file), 1, None))
    for text in attributes.values():
        assert text in cells or any(cell.startswith("'") or "'" in cell for cell in cells)
    with connect() as database:
        written = database.execute(f"SELECT * FROM '{folder}/out.parquet'")
        names = [column[0] for column in written.description or ()]
        assert dict(zip(names, written.fetchone() or (), strict=True)) == row
