"""Previous results of devices, for the next run: how often they changed, what failed, and what violates the policy."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import anyio
import duckdb

from auditor.concurrency import run_in_thread
from auditor.errors import RunFolderError, RunNotWritableError, SettingsError
from auditor.log import log
from auditor.policy.device_rules import evaluate_version_rules
from auditor.policy.loader import load_policy
from auditor.policy.model import Policy
from auditor.policy.released import define_released_versions
from auditor.policy.scope import VIOLATED, define_module_versions, define_scopes
from auditor.runs.estimates import MODULE_VERSIONS
from auditor.runs.folder import CARRIED, DEVICES, FAILURES, MODULES, RunCatalog, find_run, is_sealed, results_name
from auditor.runs.manifest import file_info, read_manifest
from auditor.runs.views import define_base_views
from auditor.storage.database import (
    PARQUET_OPTIONS,
    READING_MEMORY,
    READING_THREADS,
    error_reason,
    scalar,
    scratch_database,
    sql_literal,
    sql_literals,
    temporary_database,
    write_rows,
)
from auditor.storage.files import translate_os_errors
from auditor.storage.tables import translate_read_errors

_ALL_COLUMNS = """
  SELECT NULL::VARCHAR AS run, NULL::BIGINT AS change_count, NULL::VARCHAR AS status,
    NULL::STRUCT(module_name VARCHAR, module_version VARCHAR)[] AS modules WHERE false"""
"""Columns that only a run with carried results, or with selected devices, has."""

_JOIN_PREVIOUS = """
  LEFT JOIN (
    SELECT account, iot_id, status AS id_status, modules AS id_modules, change_count AS id_change_count
    FROM previous_results WHERE iot_id IS NOT NULL AND status IS NOT NULL
  ) USING (account, iot_id)
  LEFT JOIN (
    SELECT account, product_key, device_name, status AS name_status, modules AS name_modules,
      change_count AS name_change_count
    FROM previous_results WHERE iot_id IS NULL AND status IS NOT NULL
  ) USING (account, product_key, device_name)"""
"""Joins results with those of the run before, which the file of selected devices has."""

_PREVIOUS_STATUS = "coalesce(id_status, name_status)"

_VERSIONS, _PREVIOUS_VERSIONS = map(MODULE_VERSIONS.format, ("modules", "coalesce(id_modules, name_modules)"))

_COUNT_CHANGES = f"""CASE
    WHEN {_PREVIOUS_STATUS} IS NULL THEN 0
    WHEN status <> {_PREVIOUS_STATUS} OR {_VERSIONS} <> {_PREVIOUS_VERSIONS} THEN 1
    ELSE 0
  END + coalesce(id_change_count, name_change_count, 0)"""

_JOIN_VIOLATING = """
  LEFT JOIN (
    SELECT account AS violating_account, product_key AS violating_product,
      list(name || chr(0) || version) AS violating_versions
    FROM violating GROUP BY ALL
  ) ON account = violating_account AND product_key IS NOT DISTINCT FROM violating_product"""

_IS_VIOLATING = """list_has_any(
    list_transform(modules, lambda module: lower(module.module_name) || chr(0) || module.module_version),
    violating_versions
  )"""


def write_baseline(folder: Path, out: Path, policy: Policy | None = None) -> None:
    """Write the previous results and failures of a sealed run, with intermediate files in a folder beside ``out``.

    Results of silent accounts are left out.

    Columns: account, product_key, device_name, iot_id, status (with ``failed``), modules, total, pages, request_id,
    audited_at, reason, run (folder name of the run that queried the device), change_count (how often a result differed
    from the one before), failed_at, and violating: whether a version breaks a rule of the policy.

    Raises:
        RunFolderError: the run cannot be read.
        RunNotWritableError: the file cannot be written.
    """
    versions = () if policy is None else violating_versions(folder, policy, datetime.now(UTC))
    work = out.with_suffix(".reading")
    try:
        with scratch_database(work, memory=READING_MEMORY, threads=READING_THREADS) as database:
            define_base_views(database, folder)
            _write_results(database, folder, out, versions)
    except (OSError, duckdb.Error, UnicodeDecodeError) as error:
        if str(out.parent) in str(error) or isinstance(error, OSError):
            raise RunNotWritableError(f"{out}: cannot be written: {error_reason(error)}") from error
        raise RunFolderError(f"{folder}: cannot be read: {error_reason(error)}") from error


def _write_results(
    database: duckdb.DuckDBPyConnection, folder: Path, out: Path, versions: Sequence[tuple[str, str | None, str, str]]
) -> None:
    silent = sql_literals(("", *read_manifest(folder).silent_accounts))
    # What the index had is no previous result: how far it was behind is not documented.
    believed = f"FROM lines WHERE account NOT IN ({silent}) AND source <> 'index'"
    database.execute(f"CREATE VIEW results AS {believed} UNION ALL BY NAME {_ALL_COLUMNS}")
    database.execute(f"CREATE VIEW previous_results AS FROM selected_devices UNION ALL BY NAME {_ALL_COLUMNS}")
    joins, change_count, violating = "", "0", "false"
    if scalar(database, "SELECT count(*) FROM selected_devices"):
        joins, change_count = _JOIN_PREVIOUS, _COUNT_CHANGES
    if versions:
        database.execute("CREATE TABLE violating (account VARCHAR, product_key VARCHAR, name VARCHAR, version VARCHAR)")
        database.executemany("INSERT INTO violating VALUES (?, ?, lower(?), ?)", list(versions))
        joins, violating = joins + _JOIN_VIOLATING, _IS_VIOLATING
    results = f"""
      SELECT account, product_key, device_name, iot_id, status, modules, total, pages, request_id, audited_at, reason,
        coalesce(run, {sql_literal(folder.name)}) AS run,
        coalesce(change_count, {change_count})::BIGINT AS change_count, NULL::TIMESTAMP AS failed_at,
        coalesce({violating}, false) AS violating
      FROM results {joins}"""
    failures = """
      SELECT account, product_key, device_name, iot_id, status, NULL AS modules, NULL AS total, NULL AS pages,
        request_id, NULL::TIMESTAMP AS audited_at, NULL AS reason, NULL AS run, 0::BIGINT AS change_count, failed_at,
        false AS violating
      FROM failures"""
    # A fast compression: the file is read once, and soon.
    write_rows(database, f"{results} UNION ALL {failures}", out, f"{PARQUET_OPTIONS}, COMPRESSION lz4_raw")


def violating_versions(folder: Path, policy: Policy, now: datetime) -> list[tuple[str, str | None, str, str]]:
    """Return the versions in a sealed run that break a rule: account, product_key, module_name and module_version.

    Rules that are not about versions, and exceptions for single devices, are ignored: the result only sets priorities.

    Raises:
        RunFolderError: the run cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    with temporary_database("policy") as (database, work), translate_read_errors(folder):
        define_module_versions(database, folder / DEVICES, folder / MODULES)
        define_scopes(database, policy.rules, now)
        define_released_versions(database, policy.rules, folder, read_manifest(folder))
        evaluate_version_rules(database, policy.rules, now, work)
        return database.execute(
            "SELECT DISTINCT account, product_key, module_name, module_version "
            "FROM version_verdicts JOIN module_versions USING (module_version_id) JOIN products USING (product) "
            f"WHERE rank = {VIOLATED} ORDER BY ALL"
        ).fetchall()


class Baseline:
    """Previous results of a run as a file, written once for all accounts. Without ``run`` there are none.

    ``policy_file`` has rules for versions; None: nothing violates them.
    """

    def __init__(self, run: Path | None, path: Path, policy_file: str | None) -> None:
        self._run, self._path, self._policy_file = run, path, policy_file
        self._writing = anyio.Lock()

    async def read(self) -> Path | None:
        """Return the file; None if there is no baseline run. Raise RunNotWritableError if it cannot be written."""
        if self._run is None:
            return None
        async with self._writing:
            if not self._path.exists():
                if not self._run.is_dir():
                    log.warning("baseline_not_found", run=self._run.name)
                    return None
                new = self._path.with_suffix(".new")
                try:
                    await run_in_thread(write_baseline, self._run, new, self._policy())
                except RunFolderError as error:
                    raise RunNotWritableError(str(error)) from error
                new.replace(self._path)
        return self._path

    def _policy(self) -> Policy | None:
        """Return the policy; None if it cannot be read. It only sets priorities here, and may have moved since."""
        if self._policy_file is None:
            return None
        try:
            return load_policy(self._policy_file)
        except SettingsError as error:
            log.warning("policy_unreadable", reason=str(error))
            return None


def find_baseline(directory: Path, name: str, since: str) -> Path | None:
    """Return the run folder whose answers are carried forward; None: there is no such run yet.

    ``since`` is a run folder, or ``last``: see ``RunCatalog.baseline``.

    Raises:
        RunFolderError: the run is none, is not sealed, or was changed since it was sealed.
    """
    if since != "last":
        folder = find_run(Path(since))
        if not is_sealed(folder, read_manifest(folder)):
            raise RunFolderError(f"{folder}: is not sealed, so its answers cannot be carried forward; resume it first")
        return _verified(folder)
    catalog = RunCatalog(directory, missing_ok=True)
    catalog.log_unreadable()
    run = catalog.baseline(name)
    return None if run is None else _verified(run.folder)


def _verified(folder: Path) -> Path:
    """Return the folder if its answers are as sealed: a changed answer must not be carried from run to run."""
    infos = {info.name: info for info in read_manifest(folder).files}
    for name in (results_name(folder, infos), FAILURES, *((CARRIED,) if CARRIED in infos else ())):
        with translate_os_errors(f"{folder / name}: cannot be read", RunFolderError):
            if file_info(folder / name) == infos.get(name):
                continue
        raise RunFolderError(f"{folder / name}: is not the file that was sealed, so no result is carried forward")
    return folder
