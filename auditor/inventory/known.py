"""What a run knows of its devices, for the next one: their answers, how often these changed, and what failed."""

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import structlog

from auditor.database import READING_MEMORY, READING_THREADS, open_database, quoted, reason_of
from auditor.errors import RunFolderError, RunNotWritableError
from auditor.inventory.folder import ANSWERED, CARRIED, FAILED, Manifest, find_run, read_manifest, runs_in
from auditor.inventory.frozen import is_sealed
from auditor.inventory.rechecked import VERSIONS
from auditor.inventory.rules import Rules
from auditor.inventory.seal import file_facts
from auditor.inventory.views import define_lines, number
from auditor.inventory.violating import violating_versions

log = structlog.get_logger()


def run_to_carry_from(directory: Path, name: str, since: str) -> Path | None:
    """The run whose answers are carried; None: there is none yet.

    Of the runs of a name the newest that ended is meant in which no device is left to ask; where there is none, the
    newest that ended at all. A sample knows too little, so does a run of a part of a fleet (``--limit``,
    ``--account``), and a run in which nothing was answered knows nothing.

    Args:
        directory: where runs lie.
        name: whose.
        since: ``last``, or a run folder.

    Raises:
        RunFolderError: the one that is named is no run, is not sealed, or was changed since.
    """
    if since != "last":
        folder = find_run(Path(since))
        if not is_sealed(folder, read_manifest(folder)):
            raise RunFolderError(f"{folder}: is not sealed, so its answers cannot be carried; resume it first")
        return _unchanged(folder)
    if not directory.exists():
        return None
    runs, broken = runs_in(directory)
    for error in broken:
        log.warning("a run is passed over", reason=str(error))
    found = newest_to_carry_from(runs, name)
    return None if found is None else _unchanged(found)


def newest_to_carry_from(runs: Sequence[tuple[Manifest, Path]], name: str) -> Path | None:
    """The run folder that ``last`` means among runs, the newest first; its files are not looked into."""
    ended = [
        (manifest, folder)
        for manifest, folder in runs
        if manifest.name == name and manifest.finished_at is not None and is_sealed(folder, manifest)
        if not _sampled(manifest)
        and not manifest.fleet.cut
        and manifest.devices.ok + manifest.devices.empty + manifest.devices.not_found
    ]
    whole = [folder for manifest, folder in ended if not manifest.devices.pending]
    return next(iter((*whole, *(folder for _, folder in ended))), None)


def _sampled(manifest: Manifest) -> bool:
    return manifest.choice is not None and manifest.choice.strategy == "sample"


def _unchanged(folder: Path) -> Path:
    """The run folder, if its answers are those that were sealed: what was changed must not go on from run to run."""
    facts = {each.name: each for each in read_manifest(folder).files}
    for name in (ANSWERED, FAILED, *((CARRIED,) if CARRIED in facts else ())):
        try:
            same = file_facts(folder / name) == facts.get(name)
        except OSError as error:
            raise RunFolderError(f"{folder / name}: cannot be read: {error.strerror}") from error
        if not same:
            raise RunFolderError(f"{folder / name}: is not the file that was sealed, so nothing of it is carried")
    return folder


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
