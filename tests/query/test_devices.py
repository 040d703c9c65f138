"""Device filters: every condition, the order of versions, and versions that cannot be compared."""

import csv
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.errors import RunFolderError, RunNotWritableError, UsageError
from auditor.query.devices import select_devices
from auditor.query.filters import DeviceFilter
from auditor.query.versions import compare_versions
from auditor.runs.folder import DEVICES, MODULES
from auditor.text.formats import TableFormat
from tests.runs.run_folders import HOSTILE, build, by_id, edit_manifest, every_status, named, ok, running

COLUMNS = [
    "account",
    "product_key",
    "device_name",
    "iot_id",
    "status",
    "module_name",
    "module_version",
    "source",
    "audited_at",
    "product_name",
    "device_status",
    "last_online_at",
]
TIME = "2026-11-22 02:00:03.123"


def names(folder: Path, **conditions: object) -> list[str]:
    with select_devices(folder, DeviceFilter(**conditions)) as selected:  # type: ignore[arg-type]
        return [str(row[2])[-1] + (f"{row[5]} {row[6]}" if row[5] else f"({row[4]})") for row in selected.table]


@pytest.mark.parametrize("sealed", [True, False])
def test_every_condition_selects_its_devices(tmp_path: Path, *, sealed: bool) -> None:
    folder = every_status(tmp_path / "run").folder
    if not sealed:
        edit_manifest(folder, lambda manifest: replace(manifest, state="running"))
    assert names(folder, status="failed") == ["5(failed)", "6(failed)"]
    assert names(folder, status="pending") == ["7(pending)", "1(pending)"]
    assert names(folder, status="empty") == ["3(empty)"]
    assert names(folder, module="BLE") == ["0ble 1.0", "1ble 1.0", "2ble 1.1", "0ble 9"]
    assert names(folder, module="ble", product="p2") == ["0ble 9"]
    assert names(folder, version="1.0") == ["0ble 1.0", "1ble 1.0"]
    assert names(folder, name="device0000") == ["0ble 1.0", "0default 2.0", "0ble 9"]
    assert names(folder, module="ble", below="1.1") == ["0ble 1.0", "1ble 1.0"]
    assert names(folder, module="ble", above="1.0", below="2") == ["2ble 1.1"]
    assert names(folder, module="ble", status="failed") == []
    assert len(names(folder)) == 12
    assert names(folder, limit=1) == ["0ble 1.0"]


def test_a_device_is_found_by_its_iot_id_too(tmp_path: Path) -> None:
    folder = build(tmp_path / "run", [by_id(0), by_id(1)], [ok(by_id(0), ("ble", "1"))]).folder
    with select_devices(folder, DeviceFilter(name="iot0000")) as selected:
        assert list(selected.table) == [("demo", None, None, "iot0000", "ok", "ble", "1", "queried", TIME, *[None] * 3)]


def test_devices_that_cannot_be_compared_are_counted_and_left_out(tmp_path: Path) -> None:
    versions = ["1.0", "1.1", "2.0", "正式版", "20240115", "1.1-hotfix2"]
    fleet = [named(at) for at in range(len(versions))]
    folder = build(tmp_path / "run", fleet, [ok(d, ("ble", v)) for d, v in zip(fleet, versions, strict=True)]).folder
    with select_devices(folder, DeviceFilter(module="ble", below="1.1")) as selected:
        assert [row[6] for row in selected.table] == ["1.0"]
        assert (selected.rows, selected.uncompared) == (1, 3)
    with select_devices(folder, DeviceFilter(module="ble", below="1.1", above="1.2")) as selected:
        # A hotfix of 1.1 is not above 1.2, whatever it is to 1.1.
        assert (selected.rows, selected.uncompared) == (0, 2)


VERSION = st.sampled_from(["1.0", "1.1", "v1.1", "1.1.0", "2.03", "2.1", "2.10", "20240115", "x", *HOSTILE])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(VERSION, min_size=1, max_size=12), VERSION, VERSION)
@pytest.mark.slow
def test_bounds_follow_the_order_of_versions(
    tmp_path_factory: pytest.TempPathFactory, versions: list[str], below: str, above: str
) -> None:
    fleet = [named(at) for at in range(len(versions))]
    outcomes = [ok(device, ("ble", version)) for device, version in zip(fleet, versions, strict=True)]
    folder = running(tmp_path_factory.mktemp("runs") / "run", fleet, outcomes).folder
    with select_devices(folder, DeviceFilter(module="ble", below=below, above=above)) as selected:
        found = sorted(row[6] for row in selected.table)
        uncompared = selected.uncompared
    standings = {v: (compare_versions(v, below), compare_versions(v, above)) for v in versions}
    assert found == sorted(v for v in versions if standings[v] == ("older", "newer"))
    possible = [
        v for v in versions if standings[v][0] in ("older", "unordered") and standings[v][1] in ("newer", "unordered")
    ]
    assert uncompared == len(possible) - len(found)


def test_the_versions_of_a_product_decide_how_its_dates_are_compared_with_a_bound(tmp_path: Path) -> None:
    versions = {"day": ["01.02.2020", "27.09.2020"], "month": ["01.02.2020", "09.27.2020"], "open": ["01.02.2020"]}
    outcomes = [
        ok(named(number, product=product), ("ble", version))
        for product, each in versions.items()
        for number, version in enumerate(each)
    ]
    folder = running(tmp_path / "run", [outcome.device for outcome in outcomes], outcomes).folder
    with select_devices(folder, DeviceFilter(module="BLE", below="02.01.2020")) as selected:
        assert [(row[1], row[6]) for row in selected.table] == [("month", "01.02.2020")]
        assert selected.uncompared == 1


def test_every_format_holds_the_same_rows_and_csv_is_safe_in_a_spreadsheet(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    forms: list[TableFormat] = ["csv", "json", "jsonl", "parquet"]
    with select_devices(folder, DeviceFilter(module="=cmd")) as selected:
        for form in forms:
            selected.table.write(tmp_path / f"it's.{form}", form)
        assert list(selected.table) == [
            ("demo", "p1", "device0002", None, "ok", "=cmd", "@evil", "queried", TIME, *[None] * 3)
        ]
    with (tmp_path / "it's.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            COLUMNS,
            ["demo", "p1", "device0002", "", "ok", "'=cmd", "'@evil", "queried", TIME, "", "", ""],
        ]
    document = orjson.loads((tmp_path / "it's.json").read_bytes())
    row = orjson.loads((tmp_path / "it's.jsonl").read_bytes())
    assert document["rows"] == [row]
    assert document["complete"] is False
    assert document["devices"]["failed"] == 2
    assert list(row) == COLUMNS
    assert (tmp_path / "it's.parquet").read_bytes().startswith(b"PAR1")


@pytest.mark.parametrize("conditions", [{"below": "1"}, {"above": "1"}, {"status": "odd"}, {"limit": 0}])
def test_conditions_without_a_meaning_are_refused(conditions: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        DeviceFilter(**conditions)  # type: ignore[arg-type]


def test_read_and_write_errors_are_one_sentence(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    with select_devices(folder) as selected, pytest.raises(RunNotWritableError, match="cannot be written"):
        selected.table.write(tmp_path / "gone" / "file", "csv")
    (folder / MODULES).write_bytes((folder / DEVICES).read_bytes())
    with pytest.raises(RunFolderError, match="cannot be read"), select_devices(folder):
        pytest.fail("opened")
