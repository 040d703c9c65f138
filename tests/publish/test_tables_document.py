"""The documented columns are those of the code and of real runs, and each version keeps its columns."""

import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import pytest

from auditor.publish.tables import TABLES
from auditor.runs.folder import CHANGES, DEVICES, FLEET, MODULES
from auditor.storage.database import parquet
from tests.analysis.recorded_runs import write_days
from tests.database import connect

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program docs/tables.py."""
    monkeypatch.syspath_prepend(str(DOCS))
    spec = spec_from_file_location("tables_document", DOCS / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_documents_are_as_generated(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    script.main()


def without_a_column(table: Any) -> Any:
    return replace(table, columns=table.columns[:-1])


def with_a_column(table: Any) -> Any:
    return replace(table, columns=(*table.columns, replace(table.columns[0], name="added")))


def of_another_type(table: Any) -> Any:
    return replace(table, columns=(*table.columns[:-1], replace(table.columns[-1], type="date")))


def that_may_be_null(table: Any) -> Any:
    return replace(table, columns=(replace(table.columns[0], required=False), *table.columns[1:]))


def with_another_key(table: Any) -> Any:
    return replace(table, key=("run",))


@pytest.mark.parametrize(
    "change", [without_a_column, with_a_column, of_another_type, that_may_be_null, with_another_key]
)
def test_a_change_of_columns_needs_a_new_version(change: Any, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = orjson.loads(script.VERSIONS.read_bytes())
    assert script.add_versions(orjson.loads(orjson.dumps(stored))) == stored
    monkeypatch.setitem(TABLES, "inventory", change(TABLES["inventory"]))
    with pytest.raises(SystemExit, match="increase TABLES_VERSION"):
        script.add_versions(stored)
    monkeypatch.setattr(script, "TABLES_VERSION", script.TABLES_VERSION + 1)
    found = script.add_versions(stored)
    assert list(found["tables"]) == [str(version) for version in range(1, script.TABLES_VERSION + 1)]


def test_a_change_of_a_file_needs_a_new_version(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = orjson.loads(script.VERSIONS.read_bytes())
    first, *others = script.PARQUET_FILES
    monkeypatch.setattr(script, "PARQUET_FILES", [replace(first, columns=first.columns[1:]), *others])
    with pytest.raises(SystemExit, match="increase SCHEMA_VERSION"):
        script.add_versions(stored)


def test_the_files_of_a_run_have_the_documented_columns(script: Any, tmp_path: Path) -> None:
    run = max(write_days(tmp_path / "audits").iterdir())
    described = {each.name: [(column.name, column.type) for column in each.columns] for each in script.PARQUET_FILES}
    with connect() as database:
        for name in (FLEET, DEVICES, MODULES, CHANGES):
            found = database.execute(f"DESCRIBE FROM {parquet(run / name)}").fetchall()
            assert [(column, kind) for column, kind, *_ in found] == described[name]
