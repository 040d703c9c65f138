"""The published tables: numbers of the inventory, texts unchanged, and the columns of their version."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest
from msgspec import structs

from auditor.analysis.rollouts import read_rollouts
from auditor.errors import RunFolderError
from auditor.publish.tables import SQL_TYPES, TABLES, PublishedTable, open_published, run_name
from auditor.query.run import Run
from auditor.query.sql import query_runs
from auditor.runs.folder import DEVICES, MODULES
from auditor.storage.database import sql_literal
from tests.analysis.recorded_runs import write_days
from tests.analysis.simulated_nights import Fleet, write_night
from tests.runs.run_folders import HOSTILE, build, edit_manifest, every_status, listed, named, ok, running, sampled


def rows(folder: Path, table: PublishedTable) -> list[dict[str, Any]]:
    with open_published(folder) as run:
        names = [column.name for column in TABLES[table].columns]
        found = run.database.execute(run.query(table)).fetchall()
    return [dict(zip(names, row, strict=True)) for row in found]


@pytest.fixture(params=[every_status, listed])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    request.param(tmp_path / "run")
    return tmp_path / "run"


def test_the_inventory_has_the_numbers_and_the_order_of_the_run(folder: Path) -> None:
    names = ("account", "product_key", "module_name", "module_version", "devices", "share", "low", "high")
    with Run(folder) as run:
        expected = [tuple(getattr(each, name) for name in names) for each in run.inventory()]
    found = rows(folder, "inventory")
    assert [tuple(row[name] for name in names) for row in found] == expected
    assert [row["ordinal"] for row in found] == list(range(len(expected)))
    assert {(row["audit"], str(row["night"]), row["run"]) for row in found} == {("nightly", "2026-11-22", "run")}


def test_the_shares_of_a_sample_have_their_limits(tmp_path: Path) -> None:
    fleet = [named(number) for number in range(40)]
    sampled(tmp_path / "run", fleet, fleet[:20], [ok(device, ("ble", "1.0")) for device in fleet[:20]])
    with Run(tmp_path / "run") as run:
        (expected,) = run.inventory()
    (row,) = rows(tmp_path / "run", "inventory")
    assert (row["low"], row["high"]) == (expected.low, expected.high)
    assert row["low"] is not None


def test_the_run_has_its_counts(folder: Path) -> None:
    with Run(folder) as run:
        counts = run.devices
    (row,) = rows(folder, "runs")
    states = ("ok", "empty", "not_found", "failed", "pending")
    assert [row[state] for state in states] == [getattr(counts, state) for state in states]
    devices = rows(folder, "devices")
    assert row["devices"] == len(devices) == sum(row[state] for state in states)
    assert [sum(each["status"] == state for each in devices) for state in states] == [row[state] for state in states]
    assert len(rows(folder, "modules")) == sum(each["modules"] for each in devices)


@pytest.mark.parametrize("table", TABLES)
def test_columns_have_the_types_of_the_contract_and_required_ones_a_value(folder: Path, table: PublishedTable) -> None:
    columns = TABLES[table].columns
    with open_published(folder) as run:
        described = run.database.execute(f"DESCRIBE {run.query(table)}").fetchall()
    assert [(name, kind) for name, kind, *_ in described] == [(each.name, SQL_TYPES[each.type]) for each in columns]
    found = rows(folder, table)
    for column in columns:
        if column.required:
            assert all(row[column.name] is not None for row in found)
    keys = [tuple(row[name] for name in TABLES[table].key) for row in found]
    assert len(set(keys)) == len(keys)


def test_hostile_names_versions_and_attributes_are_unchanged(tmp_path: Path) -> None:
    fleet = [structs.replace(named(0), device_name=f"d{text}") for text in HOSTILE]
    details = [{"attributes": {f"k{text}": f"v{text}"}} for text in HOSTILE]
    outcomes = [ok(device, (f"m{text}", text)) for device, text in zip(fleet, HOSTILE, strict=True)]
    build(tmp_path / "it's [a] run=1", fleet, outcomes, details=details)
    modules, devices = (rows(tmp_path / "it's [a] run=1", table) for table in ("modules", "devices"))
    expected = {(f"d{text}", f"m{text}", text) for text in HOSTILE}
    assert {(row["device_name"], row["module_name"], row["module_version"]) for row in modules} == expected
    assert [row["attributes"] for row in devices] == [{f"k{text}": f"v{text}"} for text in HOSTILE]
    assert {row["run"] for row in devices} == {"it's [a] run=1"}


def test_changes_are_those_that_the_run_recorded(tmp_path: Path) -> None:
    directory = write_days(tmp_path / "audits")
    names = ["run", "account", "product_key", "device_name", "iot_id", "module_name", "change", "old_version"]
    names += ["new_version"]
    with query_runs(directory, f"SELECT {', '.join(names)}, answered_at::VARCHAR FROM changes ORDER BY ALL") as result:
        expected = [tuple(row) for row in result.table]
    found = [
        (*(row[name] for name in names), f"{row['answered_at']}".rstrip("0"))
        for day in sorted(directory.iterdir())
        for row in rows(day, "changes")
    ]
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert len(found) > 3
    (newest,) = rows(max(directory.iterdir()), "runs")
    assert newest["previous_run"] == sorted(directory.iterdir())[-2].name


@pytest.mark.slow
def test_rollouts_are_those_of_the_run_and_a_part_of_a_fleet_has_none(tmp_path: Path) -> None:
    fleet = Fleet(7)
    folders = [write_night(tmp_path, fleet, night) for night in range(6)]
    expected = read_rollouts(folders[4]).by_urgency  # not those of the newest run
    names = [column.name for column in TABLES["rollouts"].columns if column.name in type(expected[0]).__slots__]
    found = rows(folders[4], "rollouts")
    assert len(names) == 23
    assert [tuple(row[name] for name in names) for row in found] == [
        tuple(
            value.replace(tzinfo=None) if name == "released_at" and value is not None else value
            for name in names
            for value in [getattr(each, name)]
        )
        for each in expected
    ]
    edit_manifest(folders[4], lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=10)))
    assert rows(folders[4], "rollouts") == []


def test_a_run_that_is_not_sealed_is_refused(tmp_path: Path) -> None:
    fleet = [named(0)]
    running(tmp_path / "run", fleet, [ok(fleet[0], ("ble", "1"))])
    with (
        pytest.raises(RunFolderError, match="is not sealed, so it cannot be published"),
        open_published(tmp_path / "run"),
    ):
        pass


def test_a_damaged_file_is_an_error_of_the_run(folder: Path) -> None:
    duckdb.execute(f"COPY (SELECT 1 AS other) TO {sql_literal(folder / MODULES)} (FORMAT parquet)")
    with pytest.raises(RunFolderError, match="run: cannot be read: "), open_published(folder):
        pass


@pytest.mark.parametrize("column", ["42 AS product_key", "DATE '2026-11-22' AS device_name", "1 AS status"])
def test_a_column_of_another_type_is_an_error_of_the_run(folder: Path, column: str) -> None:
    source = f"SELECT * REPLACE ({column}) FROM read_parquet({sql_literal(folder / DEVICES)})"
    duckdb.execute(f"COPY ({source}) TO {sql_literal(folder / 'new')} (FORMAT parquet)")
    (folder / "new").replace(folder / DEVICES)
    refusal = "devices.parquet does not have the columns of a run"
    with pytest.raises(RunFolderError, match=refusal), open_published(folder):
        pass


def test_a_relative_path_has_the_name_of_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert run_name(Path()) == run_name(folder) == "run"
