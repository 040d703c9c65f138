"""SQL queries about a run. They reach the run's views only: no other file and no network.

| view | a row |
|---|---|
| ``fleet`` | a device as it was configured: ordinal, account, product_key, device_name, iot_id |
| ``devices`` | a device and its result: the columns above, status, modules, pages, attempts, code, message and more |
| ``modules`` | a module that a device reports: account, product_key, device_name, iot_id, module_name, module_version |
| ``inventory`` | account, product_key, module_name, module_version, devices, share; of a sample also low and high |
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb

from auditor.errors import UsageError
from auditor.query.snapshot import RunSnapshot, open_snapshot
from auditor.runs.estimates import define_estimates
from auditor.runs.folder import find_run
from auditor.runs.views import define_products, define_sealed_views
from auditor.storage.database import Database, error_reason, parquet, sql_read_path, sql_write_path, temporary_database
from auditor.storage.tables import ResultTable, translate_read_errors

QUERY_SCOPE = (
    "it reads the views fleet, devices, modules, inventory, products and missing_modules, "
    "and no file, network or setting"
)


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The rows of a query, and their run."""

    run: RunSnapshot
    table: ResultTable


MAX_TEMPORARY = "4GB"
"""What a query may write to the system's temporary folder."""


@contextmanager
def query_run(path: str | Path, sql: str, *, prepare: Callable[[], None] = lambda: None) -> Iterator[QueryResult]:
    """Run one SELECT over a run's views ``fleet``, ``devices``, ``modules`` and ``inventory``.

    The query can write nothing, and can read the run's rows only. DuckDB holds rows of at most 512 MB, and spills at
    most ``MAX_TEMPORARY``. It does not bound the size of a single value, nor the time: limit the process in
    ``prepare``, which is called before the query, or call this in a process of its own. ``path`` is a run folder, or a
    directory of runs (its newest run). ``sql`` is one SELECT (or WITH, FROM, VALUES, DESCRIBE, SUMMARIZE) in DuckDB's
    dialect.

    Raises:
        UsageError: the query is not one SELECT, fails, or reads anything but the views.
        RunFolderError: the path is no run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    statement = _parse_select(sql)
    folder = find_run(Path(path))
    with temporary_database("sql") as (database, work):
        run = open_snapshot(folder, work)
        out = work / "out"
        out.mkdir()
        with translate_read_errors(folder):
            define_sealed_views(database, run.devices.parent)
            define_products(database, run.files or run.folder)
            define_estimates(database, run.files or run.folder)
            database.execute(f"CREATE VIEW fleet AS FROM {parquet(run.fleet)}")
        _restrict_access(database, run, out)
        prepare()
        with _translate_query_errors():
            database.execute(f"CREATE VIEW result AS {statement}")
        table = ResultTable(database, "FROM result", reading=_translate_query_errors, staging=out, head=run.coverage)
        yield QueryResult(run, table)


def _restrict_access(database: Database, run: RunSnapshot, out: Path) -> None:
    """Allow a database the run's own files only, and lock its configuration."""
    # Paths both as they are and as the views write them, where the folder's name would be a pattern.
    allowed = ", ".join(
        spell(path) for path in (run.fleet, run.devices, run.modules) for spell in (sql_write_path, sql_read_path)
    )
    for setting in (
        f"allowed_paths = [{allowed}]",
        f"allowed_directories = [{sql_write_path(out)}]",
        f"max_temp_directory_size = '{MAX_TEMPORARY}'",
        "python_enable_replacements = false",  # a table is never a Python variable
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        database.execute(f"SET {setting}")


def _parse_select(sql: str) -> str:
    with _translate_query_errors():
        statements = duckdb.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise UsageError(f"the query must be one SELECT: {QUERY_SCOPE}")
    return str(statements[0].query)


@contextmanager
def _translate_query_errors(except_: type[duckdb.Error] | tuple[()] = ()) -> Iterator[None]:
    """Raise UsageError for an error of a query; errors of the class ``except_`` concern another file and pass."""
    try:
        yield
    except duckdb.PermissionException as error:
        raise UsageError(f"the query reads more than the run: {QUERY_SCOPE}") from error
    except except_:
        raise
    except (duckdb.Error, UnicodeDecodeError) as error:
        raise UsageError(f"the query fails: {error_reason(error)}") from error
