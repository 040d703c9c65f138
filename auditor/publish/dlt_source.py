"""A source of dlt over run folders: the way to the warehouses that have no destination here.

Each published table is a resource. A pipeline's state has the runs that each resource has loaded, so the next load has
only new runs. A run that was resumed is loaded again, and takes its own place.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
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
        raise UsageError("dlt_source needs dlt: install the extra dlt, or pip install dlt") from error
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

    columns = {
        column.name: {"name": column.name, "data_type": _TYPES[column.type], "nullable": not column.required,
                      "description": column.description}
        for column in table.columns
    }  # fmt: skip

    def rows() -> Iterator[list[dict[str, Any]]]:
        loaded: dict[str, str] = dlt.current.resource_state().setdefault("runs", {})
        for run in found():
            name, digest = run_name(run.folder), run_digest(run.manifest)
            if loaded.get(name) == digest:
                continue
            try:
                check_publishable(run.folder, run.manifest)
            except RunFolderError as error:
                log.warning("run not loaded", reason=str(error))
                continue
            yield from _read_rows(run.folder, table.name)
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


def _read_rows(folder: Path, table: PublishedTable) -> Iterator[list[dict[str, Any]]]:
    names = [column.name for column in TABLES[table].columns]
    with open_published(folder, [table]) as run, translate_read_errors(folder):
        rows = run.database.execute(run.query(table))
        while batch := rows.fetchmany(ROWS):
            yield [{name: _in_utc(value) for name, value in zip(names, row, strict=True)} for row in batch]


def _in_utc(value: object) -> object:
    """Return a value; a time has its zone, which a warehouse would take to be its own."""
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) else value
