"""The source of dlt: published tables in a warehouse, loaded once for each run, under a frozen contract."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pytest

from auditor.errors import RunFolderError
from auditor.publish.dlt_source import dlt_source
from auditor.publish.tables import TABLES, PublishedTable, open_published
from auditor.runs.manifest import read_manifest
from tests.runs.run_folders import HOSTILE, build, edit_manifest, every_status, named, ok, running

dlt = pytest.importorskip("dlt", reason="the extra dlt is not installed")
failures = pytest.importorskip("dlt.pipeline.exceptions")

pytestmark = pytest.mark.slow


class Warehouse:
    """A pipeline of dlt into a DuckDB file."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "warehouse.duckdb"
        self.pipeline = dlt.pipeline(
            "test", destination=dlt.destinations.duckdb(str(self.file)), dataset_name="fleet",
            pipelines_dir=str(folder / "pipelines"),
        )  # fmt: skip

    def load(self, directory: Path) -> None:
        self.pipeline.run(dlt_source(directory))

    def rows(self, table: PublishedTable) -> list[tuple[Any, ...]]:
        times = [column.name for column in TABLES[table].columns if column.type == "timestamp"]
        replaced = ", ".join(f"{name} AT TIME ZONE 'UTC' AS {name}" for name in times)
        columns = ", ".join(column.name for column in TABLES[table].columns)
        with duckdb.connect(str(self.file)) as database:
            database.execute("SET TimeZone = 'UTC'")
            rows = f"SELECT * REPLACE ({replaced}) FROM fleet.{table}" if times else f"FROM fleet.{table}"
            return database.execute(f"SELECT {columns} FROM ({rows}) ORDER BY ALL").fetchall()


@pytest.fixture
def warehouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Warehouse:
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")
    monkeypatch.setenv("DLT_PROJECT_DIR", str(tmp_path))
    return Warehouse(tmp_path)


def published(folder: Path, table: PublishedTable) -> list[tuple[Any, ...]]:
    with open_published(folder) as run:
        return run.database.execute(f"FROM ({run.query(table)}) ORDER BY ALL").fetchall()


def test_each_run_is_loaded_once_and_again_if_it_was_resumed(warehouse: Warehouse, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    fleet = [named(number) for number in range(3)]
    hostile = [(str(name), "1.0") for name in HOSTILE if "\0" not in name][:40]
    first = build(runs / "20261122T020000Z-nightly", fleet, [ok(device, *hostile) for device in fleet]).folder
    running(runs / "20261123T020000Z-nightly", fleet, [])
    warehouse.load(runs)
    for table in TABLES:
        if table != "changes":
            assert without_attributes(warehouse.rows(table), table) == without_attributes(
                published(first, table), table
            )
    every_status(runs / "20261124T020000Z-nightly")
    warehouse.load(runs)
    assert [row[2] for row in warehouse.rows("runs")] == [first.name, "20261124T020000Z-nightly"]
    devices = warehouse.rows("devices")
    warehouse.load(runs)
    assert warehouse.rows("devices") == devices, "nothing is new"

    changed = [ok(device, ("ble", "2.0")) for device in fleet]
    build(tmp_path / "again", fleet, changed)
    for file in (tmp_path / "again").iterdir():
        file.replace(first / file.name)
    warehouse.load(runs)
    assert {row[-4] for row in warehouse.rows("inventory") if row[2] == first.name} == {3}
    assert [row for row in warehouse.rows("modules") if row[2] == first.name] == published(first, "modules")
    assert len(warehouse.rows("runs")) == 2


def test_a_table_that_is_empty_after_a_resume_loses_its_rows(warehouse: Warehouse, tmp_path: Path) -> None:
    fleet = [named(number) for number in range(3)]
    folders = [tmp_path / "runs" / f"202611{day}T020000Z-nightly" for day in ("22", "23")]
    for folder in folders:
        build(folder, fleet, [ok(device, ("ble", "1.0")) for device in fleet])
    warehouse.load(tmp_path / "runs")
    assert len(warehouse.rows("modules")) == 6
    build(tmp_path / "again", fleet, [ok(device) for device in fleet])
    for file in (tmp_path / "again").iterdir():
        file.replace(folders[0] / file.name)
    warehouse.load(tmp_path / "runs")
    assert {row[2] for row in warehouse.rows("modules")} == {folders[1].name}
    assert {row[2] for row in warehouse.rows("inventory")} == {folders[1].name}
    assert len(warehouse.rows("devices")) == 6
    assert len(warehouse.rows("runs")) == 2


def without_attributes(rows: list[tuple[Any, ...]], table: PublishedTable) -> list[tuple[Any, ...]]:
    places = [place for place, column in enumerate(TABLES[table].columns) if column.type != "attributes"]
    return sorted((tuple(row[place] for place in places) for row in rows), key=repr)


def test_another_column_is_refused(warehouse: Warehouse, tmp_path: Path) -> None:
    every_status(tmp_path / "runs" / "20261122T020000Z-nightly")
    warehouse.load(tmp_path / "runs")
    every_status(tmp_path / "runs" / "20261123T020000Z-nightly")
    source = dlt_source(tmp_path / "runs")
    source.resources["devices"].add_map(lambda row: {**row, "added": 1})
    with pytest.raises(failures.PipelineStepFailed, match="added"):
        warehouse.pipeline.run(source)


def test_a_changed_file_is_not_loaded_and_a_directory_needs_runs(warehouse: Warehouse, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    with pytest.raises(RunFolderError, match="contains no run"):
        dlt_source(runs)
    good = every_status(runs / "20261122T020000Z-nightly").folder
    changed = build(runs / "20261123T020000Z-nightly", [named(0)], [ok(named(0), ("ble", "1.0"))]).folder
    edit_manifest(changed, lambda manifest: replace(manifest, files=read_manifest(good).files))
    warehouse.load(runs)
    assert [row[2] for row in warehouse.rows("runs")] == [good.name]
