"""Any question about a run, in SQL: over its views alone, which reach no other file and no network.

| view | a row |
|---|---|
| ``fleet`` | a device as it was asked for: ordinal, account, product_key, device_name, iot_id |
| ``devices`` | a device and what became of it: those, status, modules, pages, attempts, code, message and more |
| ``modules`` | a module that a device reports: account, product_key, device_name, iot_id, module_name, module_version |
| ``inventory`` | account, product_key, module_name, module_version, devices, share; of a sample also low and high |
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from auditor.errors import UsageError
from auditor.query.snapshot import Frozen, freeze
from auditor.runs.estimates import define_estimates
from auditor.runs.folder import find_run
from auditor.runs.views import define_products, define_sealed_views
from auditor.storage.database import (
    READING_MEMORY,
    READING_THREADS,
    open_database,
    parquet,
    quoted,
    quoted_to_read,
    reason_of,
)
from auditor.storage.tables import Table, reading

VIEWS_ALONE = (
    "it reads the views fleet, devices, modules, inventory, products and missing, and no file, network or setting"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query gave: its rows, and the run that they are of."""

    run: Frozen
    table: Table


@contextmanager
def query_run(path: str | Path, sql: str) -> Iterator[Answer]:
    """What one SELECT gives over a run's views ``fleet``, ``devices``, ``modules`` and ``inventory``.

    Memory is bounded, what does not fit goes to the system's temporary folder. Nothing can be written, and nothing
    read but the run's rows.

    Args:
        path: a run folder, or a folder of runs, whose newest is meant.
        sql: one SELECT (or WITH, FROM, VALUES, DESCRIBE, SUMMARIZE) in DuckDB's dialect.

    Raises:
        UsageError: it is not one SELECT, is wrong, or reaches beyond the views.
        RunFolderError: it is no run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    statement = _one_select(sql)
    folder = find_run(Path(path))
    with TemporaryDirectory(prefix="auditor-sql-") as temporary:
        run = freeze(folder, Path(temporary))
        out = Path(temporary, "out")
        out.mkdir()
        database = open_database(Path(temporary, "spill"), READING_MEMORY, READING_THREADS)
        try:
            with reading(folder):
                define_sealed_views(database, run.devices.parent)
                define_products(database, run.folder)
                define_estimates(database, run.folder)
                database.execute(f"CREATE VIEW fleet AS FROM {parquet(run.fleet)}")
            _lock(database, run, out)
            with _asking():
                database.execute(f"CREATE VIEW answer AS {statement}")
            yield Answer(run, Table(database, "FROM answer", reading=_asking, staging=out, head=run.coverage))
        finally:
            database.close()


def _lock(database: duckdb.DuckDBPyConnection, run: Frozen, out: Path) -> None:
    """Leaves a database nothing but the run's own files, which is for good: the configuration is locked."""
    # Both as it is and as the views spell it, where the folder's name would be a pattern.
    allowed = ", ".join(
        spell(path) for path in (run.fleet, run.devices, run.modules) for spell in (quoted, quoted_to_read)
    )
    for setting in (
        f"allowed_paths = [{allowed}]",
        f"allowed_directories = [{quoted(out)}]",
        "python_enable_replacements = false",  # a table is never a variable of ours
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        database.execute(f"SET {setting}")


def _one_select(sql: str) -> str:
    with _asking():
        statements = duckdb.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise UsageError(f"the query must be one SELECT: {VIEWS_ALONE}")
    return str(statements[0].query)


@contextmanager
def _asking(but: type[duckdb.Error] | tuple[()] = ()) -> Iterator[None]:
    """Tells what is wrong with a query; errors of the kind ``but`` are about another file."""
    try:
        yield
    except duckdb.PermissionException as error:
        raise UsageError(f"the query reaches beyond the run: {VIEWS_ALONE}") from error
    except but:
        raise
    except (duckdb.Error, UnicodeDecodeError) as error:
        raise UsageError(f"the query fails: {reason_of(error)}") from error
