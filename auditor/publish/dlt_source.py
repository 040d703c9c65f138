"""A source of dlt over run folders: the way to the warehouses that have no destination here.

Each published table is a resource. A pipeline's state has the runs that each resource has loaded, so the next load has
only new runs. A run that was resumed is loaded again, and takes its own place. Each table has one more column,
``deleted``: where a resumed run has no row in a table that had some, a row with this mark deletes them in the load, and
is not stored. It is the hint ``hard_delete`` of dlt.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditor.errors import RunFolderError, UsageError
from auditor.log import log
from auditor.publish.publisher import check_publishable, is_candidate
from auditor.publish.tables import (
    TABLES,
    ColumnType,
    PublishedTable,
    TableContract,
    open_published,
    run_digest,
    run_name,
)
from auditor.runs.folder import RunCatalog, StoredRun
from auditor.storage.tables import translate_read_errors
from auditor.text.extras import describe_extra

if TYPE_CHECKING:
    from dlt.extract import DltResource, DltSource

ROWS = 10_000
"""Rows that a resource yields together."""

_TYPES: dict[ColumnType, str] = {
    "text": "text",
    "integer": "bigint",
    "number": "double",
    "boolean": "bool",
    "date": "date",
    "timestamp": "timestamp",
    "attributes": "json",
}
"""Types of dlt."""

_DELETED = "deleted"
"""Column that marks a row which deletes the rows of its run, and is not stored itself. It is NULL in stored rows."""

_FILLERS: dict[ColumnType, object] = {
    "text": "",
    "integer": 0,
    "number": 0.0,
    "boolean": False,
    "date": date(1970, 1, 1),
    "timestamp": datetime(1970, 1, 1, tzinfo=UTC),
    "attributes": {},
}
"""Values of required columns in such a row."""


def dlt_source(directory: str | Path, *, name: str | None = None) -> "DltSource":
    """Return a source of dlt with the published tables of the runs of a directory.

    Columns and their types are those of the tables' contract, and are frozen: a pipeline that meets others fails. Only
    runs that verified are loaded, the oldest first; ``runs`` is the last resource.

    Args:
        directory: directory of runs.
        name: name of the audit; None: that of the newest run.

    Raises:
        RunFolderError: the directory has no run.
        UsageError: dlt is not installed.
    """
    try:
        import dlt
    except ImportError as error:
        raise UsageError(f"dlt_source needs dlt: {describe_extra('dlt')}") from error
    catalog = RunCatalog(Path(directory))
    newest = catalog.latest()
    if newest is None:
        raise RunFolderError(f"{directory}: contains no run")
    audit = newest.manifest.name if name is None else name
    found = partial(_find_runs, catalog, audit)

    @dlt.source(name="auditor", max_table_nesting=0, section="auditor")  # a map of attributes is no table
    def auditor() -> "Iterator[DltResource]":
        for table in sorted(TABLES.values(), key=lambda table: table.name == "runs"):
            yield _make_resource(table, found)

    return auditor()


def _find_runs(catalog: RunCatalog, audit: str) -> list[StoredRun]:
    return [run for run in reversed(catalog.named(audit)) if is_candidate(run)]


def _make_resource(table: TableContract, found: Callable[[], list[StoredRun]]) -> "DltResource":
    import dlt

    columns: dict[str, Any] = {
        column.name: {"name": column.name, "data_type": _TYPES[column.type], "nullable": not column.required,
                      "description": column.description}
        for column in table.columns
    }  # fmt: skip
    columns[_DELETED] = {
        "name": _DELETED,
        "data_type": "bool",
        "nullable": True,
        "hard_delete": True,
        "description": "always NULL: a row that has it is not stored, and deletes the rows of its run",
    }

    def rows() -> Iterator[list[dict[str, Any]]]:
        loaded: dict[str, str] = dlt.current.resource_state().setdefault("runs", {})
        for run in found():
            name, digest = run_name(run.folder), run_digest(run.manifest)
            if loaded.get(name) == digest:
                continue
            try:
                check_publishable(run.folder, run.manifest)
            except RunFolderError as error:
                log.warning("run_not_loaded", reason=str(error))
                continue
            is_empty = True
            for batch in _read_rows(run.folder, table.name):
                is_empty = False
                yield batch
            if is_empty and name in loaded:
                yield [_deleting_row(table, name)]
            loaded[name] = digest

    resource: DltResource = dlt.resource(
        rows,
        name=table.name,
        columns=columns,
        primary_key=table.key,
        merge_key="run",
        write_disposition={"disposition": "merge", "strategy": "delete-insert"},
        schema_contract={"tables": "evolve", "columns": "freeze", "data_type": "freeze"},
    )
    return resource


def _deleting_row(table: TableContract, run: str) -> dict[str, Any]:
    """Return a row that deletes what a table has of a run."""
    row = {column.name: _FILLERS[column.type] for column in table.columns if column.required}
    return {**row, "run": run, _DELETED: True}


def _read_rows(folder: Path, table: PublishedTable) -> Iterator[list[dict[str, Any]]]:
    names = [column.name for column in TABLES[table].columns]
    with open_published(folder) as run, translate_read_errors(folder):
        rows = run.database.execute(run.query(table))
        while batch := rows.fetchmany(ROWS):
            yield [{name: _in_utc(value) for name, value in zip(names, row, strict=True)} for row in batch]


def _in_utc(value: object) -> object:
    """Return a value; a time has its zone, which a warehouse would take to be its own."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
