"""SQL queries about a run, or about all runs of a directory. They reach the views only: no other file and no network.

| view | a row |
|---|---|
| ``fleet`` | a device as it was configured: ordinal, account, product_key, device_name, iot_id |
| ``devices`` | a device and its result: the columns above, status, modules, pages, attempts, code, message and more |
| ``modules`` | a module that a device reports: account, product_key, device_name, iot_id, module_name, module_version |
| ``device_modules`` | the same with all columns of their devices, which have one for each attribute |
| ``inventory`` | account, product_key, module_name, module_version, devices, share; of a sample also low and high |
| ``firmware`` | an upgrade package: account, product_key, module_name, version, source_version, created_at and more |
| ``jobs`` | a job that installs firmware: account, product_key, module_name, version, job_id, job_status and more |
| ``device_releases`` | a module of a device, released_version, behind_by, and task_status of its last update |
| ``tasks`` | the update of a device by a job: the device, module_name, version, task_status, task_message and more |

``query.run_views`` has the views of all runs, and ``query.sql_functions`` the functions that compare versions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from auditor.config.settings import parse_percentage
from auditor.config.validation import stored_rollouts
from auditor.errors import RunFolderError, UsageError
from auditor.models import RunWarning
from auditor.query.run_views import define_device_releases, define_run_views, size_warnings
from auditor.query.snapshot import RunSnapshot, snapshot_database
from auditor.query.sql_functions import define_version_functions
from auditor.query.warnings import release_warnings
from auditor.runs.attributes import define_attribute_views
from auditor.runs.estimates import define_estimates
from auditor.runs.folder import FIRMWARE, TASKS, RunCatalog, find_run
from auditor.runs.manifest import SCHEMA_VERSION, Manifest
from auditor.runs.views import define_products, define_releases, define_sealed_views
from auditor.storage.database import Database, error_reason, parquet, sql_read_path, sql_write_path, temporary_database
from auditor.storage.tables import ErrorTranslation, ResultTable, translate_read_errors

QUERY_SCOPE = (
    "it reads the views fleet, devices, modules, device_modules, inventory, products, missing_modules, firmware, jobs, "
    "tasks and device_releases, or with --runs also runs and changes, and no file, network or setting"
)


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The rows of a query, and their run."""

    run: RunSnapshot
    table: ResultTable


@dataclass(frozen=True, slots=True)
class RunsQueryResult:
    """The rows of a query over several runs, and why they may be wrong."""

    table: ResultTable
    warnings: tuple[RunWarning, ...]


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
    statement = parse_select(sql)
    folder = find_run(Path(path))
    with snapshot_database("sql", folder) as (snapshot, database, work):
        run = replace(snapshot, warnings=(*snapshot.warnings, *release_warnings(folder, snapshot.manifest)))
        out = work / "out"
        out.mkdir()
        with translate_read_errors(folder):
            define_sealed_views(database, run.devices.parent)
            define_products(database, run.files or run.folder)
            define_releases(database, run.files or run.folder)
            define_device_releases(database, statement, work, selected=_selected(run.manifest))
            define_estimates(database, run.files or run.folder)
            define_attribute_views(database, run.devices)
            database.execute(f"CREATE VIEW fleet AS FROM {parquet(run.fleet)}")
            define_version_functions(database, "FROM inventory", statement, work)
        releases = [(run.files or run.folder) / name for name in (FIRMWARE, TASKS)]
        files = (run.fleet, run.devices, run.modules, *releases)
        table = open_result(database, statement, files=files, out=out, prepare=prepare, head=run.coverage)
        yield QueryResult(run, table)


@contextmanager
def query_runs(
    directory: str | Path, sql: str, *, name: str | None = None, prepare: Callable[[], None] = lambda: None
) -> Iterator[RunsQueryResult]:
    """Run one SELECT over the views of all ended runs of one name; see ``query_run`` and ``query.run_views``.

    Deleted runs whose changes are kept are in ``runs`` and ``changes``. ``name`` defaults to that of the newest run.
    Sizes of the files are checked, and not their digests.
    """
    statement = parse_select(sql)
    catalog = RunCatalog(Path(directory))
    newest = catalog.latest()
    name = newest.manifest.name if name is None and newest is not None else name
    runs = [run for run in (*catalog.runs, *catalog.archived()) if run.manifest.name == name and run.ended]
    if not any(run.sealed for run in runs):
        raise RunFolderError(f"{directory}: contains no sealed run{'' if name is None else f' named {name!r}'}")
    with temporary_database("sql") as (database, work):
        out = work / "out"
        out.mkdir()
        with translate_read_errors(directory):
            files = define_run_views(database, runs, work)
            selected = _selected(runs[0].manifest)
            define_device_releases(database, statement, work, selected=selected, leading="run, ")
            define_version_functions(database, _ALL_VERSIONS, statement, work)
        head = {"schema_version": SCHEMA_VERSION, "runs": [run.folder.name for run in runs]}
        warnings = [RunWarning("unreadable", "", f"run skipped: {error}") for error in catalog.unreadable]
        warnings += [warning for run in runs if run.sealed for warning in size_warnings(run)]
        table = open_result(database, statement, files=files, out=out, prepare=prepare, head=head)
        yield RunsQueryResult(table, tuple(warnings))


def _selected(manifest: Manifest) -> float:
    """Return the share of the devices up to which a version for selected devices is a beta."""
    return parse_percentage(stored_rollouts(manifest.settings).selected)


_ALL_VERSIONS = """SELECT account, product_key, module_name, module_version FROM inventory UNION
  SELECT account, product_key, module_name, unnest([old_version, new_version]) FROM changes
  WHERE module_name IS NOT NULL"""


def open_result(
    database: Database,
    statement: str,
    *,
    files: Sequence[Path],
    out: Path,
    prepare: Callable[[], None],
    head: Mapping[str, object],
    reading: ErrorTranslation | None = None,
) -> ResultTable:
    """Return the rows of a query that can read only these files. ``reading`` translates errors of the query."""
    reading = reading or translate_query_errors
    _restrict_access(database, files, out)
    prepare()
    with reading(()):
        database.execute(f"CREATE VIEW result AS {statement}")
    return ResultTable(database, "FROM result", reading=reading, staging=out, head=head)


def _restrict_access(database: Database, files: Sequence[Path], out: Path) -> None:
    """Allow a database these files only, and lock its configuration."""
    # Paths both as they are and as the views write them, where the folder's name would be a pattern.
    allowed = ", ".join(spell(path) for path in files for spell in (sql_write_path, sql_read_path))
    for setting in (
        f"allowed_paths = [{allowed}]",
        f"allowed_directories = [{sql_write_path(out)}]",
        f"max_temp_directory_size = '{MAX_TEMPORARY}'",
        "python_enable_replacements = false",  # a table is never a Python variable
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        database.execute(f"SET {setting}")


def parse_select(sql: str) -> str:
    """Return the statement of a query; raise UsageError unless it is one SELECT."""
    with translate_query_errors():
        statements = duckdb.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise UsageError(f"the query must be one SELECT: {QUERY_SCOPE}")
    return str(statements[0].query)


@contextmanager
def translate_query_errors(except_: type[duckdb.Error] | tuple[()] = ()) -> Iterator[None]:
    """Raise UsageError for an error of a query; errors of the class ``except_`` concern another file and pass."""
    try:
        yield
    except duckdb.PermissionException as error:
        raise UsageError(f"the query reads more than the run: {QUERY_SCOPE}") from error
    except except_:
        raise
    except (duckdb.Error, UnicodeDecodeError) as error:
        raise UsageError(f"the query fails: {error_reason(error)}") from error
