"""What a run knows of its devices, for the next one: their answers, how often these changed, and what failed.

Which versions of a run break a policy, for a plan that asks their devices first; ``policy`` gives the verdict.
"""

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import structlog

from auditor.errors import RunFolderError, RunNotWritableError
from auditor.policy.device_rules import define_verdicts
from auditor.policy.model import Rules
from auditor.policy.scope import VIOLATED, define_combos, define_scopes
from auditor.runs.estimates import VERSIONS
from auditor.runs.folder import DEVICES, MODULES
from auditor.runs.views import define_lines, number
from auditor.storage.database import READING_MEMORY, READING_THREADS, open_database, quoted, reason_of
from auditor.storage.tables import reading

log = structlog.get_logger()


def write_known(folder: Path, out: Path, rules: Rules | None = None) -> None:
    """Writes what a sealed run knows of its devices.

    Columns: account, product_key, device_name, iot_id, status (``failed``, too), modules, total, pages, request_id,
    audited_at, reason, run (the folder's name of the run that asked), changes (how often an answer was another one than
    the one before), failed_at, and violating: whether a version breaks a rule.

    Args:
        folder: the run folder.
        out: the file to write; a folder beside it holds what does not fit into memory meanwhile.
        rules: of the policy; None: nothing is violated.

    Raises:
        RunFolderError: the run cannot be read.
        RunNotWritableError: the file cannot be written.
    """
    work = out.with_suffix(".reading")
    versions = () if rules is None else violating_versions(folder, rules, datetime.now(UTC))
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        database = open_database(work, READING_MEMORY, READING_THREADS)
        try:
            define_lines(database, folder)
            _write_known(database, folder, out, versions)
        finally:
            database.close()
    except (OSError, duckdb.Error, UnicodeDecodeError) as error:
        if str(out.parent) in str(error) or isinstance(error, OSError):
            raise RunNotWritableError(f"{out}: cannot be written: {reason_of(error)}") from error
        raise RunFolderError(f"{folder}: cannot be read: {reason_of(error)}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_known(
    database: duckdb.DuckDBPyConnection, folder: Path, out: Path, versions: Sequence[tuple[str, str | None, str, str]]
) -> None:
    columns = set(_columns(database, "lines"))
    run, changes = ("run" if "run" in columns else "NULL"), ("changes" if "changes" in columns else "NULL")
    since, joined = "0", ""
    if number(database, "SELECT count(*) FROM planned") and "changes" in _columns(database, "planned"):
        other = f"status <> {{0}}.status OR {VERSIONS.format('modules')} <> {VERSIONS.format('{0}.modules')}"
        for alias, condition, on in (
            ("p", "iot_id IS NOT NULL", "account, iot_id"),
            ("q", "iot_id IS NULL", "account, product_key, device_name"),
        ):
            joined += (
                f" LEFT JOIN (SELECT {on}, status AS {alias}_status, modules AS {alias}_modules, "
                f"changes AS {alias}_changes FROM planned WHERE {condition} AND status IS NOT NULL) USING ({on})"
            )
        before_status, before = "coalesce(p_status, q_status)", "coalesce(p_modules, q_modules)"
        other = f"status <> {before_status} OR {VERSIONS.format('modules')} <> {VERSIONS.format(before)}"
        since = f"CASE WHEN {before_status} IS NULL THEN 0 WHEN {other} THEN 1 ELSE 0 END "
        since += "+ coalesce(p_changes, q_changes, 0)"
    database.execute("CREATE TABLE violating (account VARCHAR, product_key VARCHAR, name VARCHAR, version VARCHAR)")
    if versions:
        database.executemany("INSERT INTO violating VALUES (?, ?, lower(?), ?)", list(versions))
    breaks = "false"
    if versions:
        breaks = (
            "list_has_any(list_transform(modules, lambda module: lower(module.module_name) || chr(0) || "
            "module.module_version), v.broken)"
        )
        joined += (
            " LEFT JOIN (SELECT account AS v_account, product_key AS v_key, list(name || chr(0) || version) AS broken "
            "FROM violating GROUP BY ALL) v ON account = v_account AND product_key IS NOT DISTINCT FROM v_key"
        )
    own = f"'{folder.name.replace(chr(39), chr(39) * 2)}'"
    known = (
        f"SELECT account, product_key, device_name, iot_id, status, modules, total, pages, request_id, audited_at, "
        f"reason, coalesce({run}, {own}) AS run, (coalesce({changes}, {since}))::BIGINT AS changes, "
        f"NULL::TIMESTAMP AS failed_at, coalesce({breaks}, false) AS violating FROM lines{joined}"
    )
    failed = (
        "SELECT account, product_key, device_name, iot_id, status, NULL AS modules, NULL AS total, NULL AS pages, "
        "request_id, NULL::TIMESTAMP AS audited_at, NULL AS reason, NULL AS run, 0::BIGINT AS changes, failed_at, "
        "false AS violating FROM failures"
    )
    database.execute(
        f"COPY ({known} UNION ALL {failed}) TO {quoted(out)} "
        "(FORMAT parquet, ROW_GROUP_SIZE 20480, COMPRESSION lz4_raw)"  # read once, and soon
    )


def _columns(database: duckdb.DuckDBPyConnection, view: str) -> list[str]:
    return [str(name) for name, *_ in database.execute(f"DESCRIBE {view}").fetchall()]


def violating_versions(folder: Path, rules: Rules, now: datetime) -> list[tuple[str, str | None, str, str]]:
    """The versions in a sealed run that break a rule: account, product_key, module_name and module_version.

    Rules that are about no version, and exceptions for single devices, are passed over: this tells where to look first,
    and is no verdict.

    Raises:
        RunFolderError: the run cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    with TemporaryDirectory(prefix="auditor-policy-") as temporary:
        work = Path(temporary)
        database = open_database(work / "spill", READING_MEMORY, READING_THREADS)
        try:
            with reading(folder):
                define_combos(database, folder / DEVICES, folder / MODULES)
                # Of no device of a product it is known here that it was not seen.
                asked = "SELECT -1::BIGINT AS line, product, 'ok' AS status, false AS undrawn FROM products"
                database.execute(f"CREATE TABLE asked AS {asked}")
                database.execute("CREATE TABLE reported (line BIGINT, row BIGINT, combo INTEGER)")
                define_scopes(database, rules.rules, now)
                define_verdicts(database, rules.rules, now, work)
                return database.execute(
                    "SELECT DISTINCT account, product_key, module_name, module_version FROM picked "
                    f"JOIN combos USING (combo) JOIN products USING (product) WHERE rank = {VIOLATED} ORDER BY ALL"
                ).fetchall()
        finally:
            database.close()
