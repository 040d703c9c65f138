"""One device over all runs: which version of each module it ran since when, as far back as changes are recorded.

The newest run has what the device runs now. The changes that runs recorded say what it ran before
(``query.change_log``).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from auditor.analysis.device_matching import find_list_gaps
from auditor.errors import RunFolderError, UsageError
from auditor.query.change_log import define_change_log
from auditor.runs.folder import DEVICES, MODULES, RunCatalog, StoredRun
from auditor.runs.manifest import SCHEMA_VERSION
from auditor.runs.views import parquet_of_run
from auditor.storage.database import Database, parquet, sql_literal, temporary_database
from auditor.storage.tables import ResultTable, translate_read_errors
from auditor.text.formatting import format_count, safe

MAX_NOTES = 20
"""Rollbacks that are named."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The versions of a device over time. A name may be that of several devices, of other products or accounts.

    Attributes:
        run: the newest run, which the current versions are read from.
        recorded: number of runs whose changes are known; it is not known what happened before the first of them.
        table: a row for each version of a module that a device ran, the newest first: account, product_key,
            device_name, iot_id, module_name, module_version, since, until, days, change, run. ``since`` is the time of
            the first answer with it, NULL if that is older than what is recorded: then ``days`` is the least possible.
            ``until`` is NULL for a current version.
        devices: a sentence for each device: its last answer.
        notes: rollbacks, flapping, and runs without an answer, a sentence each.
    """

    run: StoredRun
    recorded: int
    table: ResultTable
    devices: tuple[str, ...]
    notes: tuple[str, ...]


@contextmanager
def read_timeline(
    directory: str | Path, name: str, *, account: str | None = None, product_key: str | None = None
) -> Iterator[Timeline]:
    """Read the timeline of the devices with a ``device_name`` or ``iot_id``.

    Raises:
        UsageError: no device has this name; the message has similar names.
        RunFolderError: the directory has no sealed run of the fleet, or a run cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    catalog = RunCatalog(Path(directory))
    catalog.log_unreadable()
    run = catalog.refer("last")
    if not run.sealed:
        raise RunFolderError(f"{run.folder}: is not sealed; resume it first")
    log = catalog.change_log(run)
    reading = partial(translate_read_errors, directory)
    with temporary_database("device") as (database, _), reading():
        _define_rows(database, run, log, _condition(name, account, product_key))
        if not database.execute("FROM device LIMIT 1").fetchall():
            raise UsageError(_describe_unknown(database, run, name, account=account, product_key=product_key))
        first = _start_of(catalog, log[-1] if log else run)
        database.execute(_POINTS)
        database.execute(_INTERVALS.format(first=sql_literal(first), last=sql_literal(_last_time(run))))
        head = {"schema_version": SCHEMA_VERSION, "run": run.folder.name, "recorded_since": f"{first}Z"}
        table = ResultTable(database, _TABLE, reading=reading, name="versions", head=head)
        notes = (*_describe_returns(database), *_describe_unseen(database, len(log)), *_describe_older(database, first))
        yield Timeline(run, len(log), table, tuple(_describe_devices(database, run)), notes)


def _describe_older(database: Database, first: str) -> Iterator[str]:
    """Yield a sentence if a version is older than the recorded changes, so that the table does not say since when."""
    if database.execute("FROM intervals WHERE version IS NOT NULL AND since IS NULL LIMIT 1").fetchall():
        begin = first[:16].replace("T", " ")
        yield f"where no start of a version is shown, it is older than the recorded changes, which begin at {begin} UTC"


def _condition(name: str, account: str | None, product_key: str | None) -> str:
    condition = f"(device_name = {sql_literal(name)} OR iot_id = {sql_literal(name)})"
    for column, value in (("account", account), ("product_key", product_key)):
        condition += "" if value is None else f" AND {column} = {sql_literal(value)}"
    return condition


def _define_rows(database: Database, run: StoredRun, log: list[StoredRun], condition: str) -> None:
    """Define ``now`` and ``now_modules``, the device in the newest run, ``log``, its changes, and ``device``."""
    names = "account, product_key, device_name, iot_id"
    devices, modules = (parquet_of_run(database, run.folder / name) for name in (DEVICES, MODULES))
    database.execute(f"CREATE TABLE now AS SELECT {names}, status, source, audited_at FROM {devices} WHERE {condition}")
    database.execute(
        f"CREATE TABLE now_modules AS SELECT {names}, module_name, module_version FROM {modules} WHERE {condition}"
    )
    define_change_log(database, log)
    database.execute(f"CREATE TABLE log AS FROM change_log WHERE {condition}")
    # A device is known by its iot_id in some runs, and by its names in others.
    database.execute(
        f"CREATE TABLE device AS SELECT row_number() OVER (ORDER BY account, product_key, device_name) AS device, * "
        f"FROM (SELECT account, product_key, device_name, max(iot_id) AS iot_id FROM (SELECT {names} FROM now "
        f"UNION ALL SELECT {names} FROM log) GROUP BY ALL)"
    )


def _start_of(catalog: RunCatalog, first: StoredRun) -> str:
    """Return the start of the run before the first recorded changes, or else of that run."""
    previous = None if first.manifest.changes is None else first.manifest.changes.previous
    runs = (*catalog.runs, *catalog.archived())
    earliest = next((run for run in runs if run.folder.name == previous), first)
    return earliest.manifest.started_at.removesuffix("Z")


def _last_time(run: StoredRun) -> str:
    return (run.manifest.finished_at or run.manifest.started_at).removesuffix("Z")


def _describe_unknown(
    database: Database, run: StoredRun, name: str, *, account: str | None, product_key: str | None
) -> str:
    scope = _condition(name, account, product_key).partition(" AND ")[2] or "true"
    similar = f"jaro_winkler_similarity(device_name, {sql_literal(name)})"
    rows = database.execute(
        f"SELECT DISTINCT device_name FROM {parquet(run.folder / DEVICES)} WHERE {scope} AND {similar} > 0.85 "
        f"ORDER BY {similar} DESC, device_name LIMIT 3"
    ).fetchall()
    hint = f"; did you mean {' or '.join(safe(each) for (each,) in rows)}?" if rows else ""
    return f"no device is named {safe(name)!r} in {run.folder.name}, nor in the changes before it{hint}"


def _describe_devices(database: Database, run: StoredRun) -> Iterator[str]:
    query = (
        "SELECT d.device_name, d.iot_id, d.product_key, d.account, status, source, strftime(audited_at, '%Y-%m-%d "
        "%H:%M') FROM device d LEFT JOIN now n ON d.account = n.account "
        "AND d.product_key IS NOT DISTINCT FROM n.product_key AND d.device_name IS NOT DISTINCT FROM n.device_name "
        "ORDER BY device"
    )
    list_gaps = find_list_gaps(run.manifest)
    for device_name, iot_id, product_key, account, status, source, at in database.execute(query).fetchall():
        name = f"{safe(account)} {safe(product_key or '?')}/{safe(device_name or iot_id)}"
        if status is None and {None, product_key}.isdisjoint(list_gaps.get(account, [None])):
            yield f"{name}: is not in the fleet any more"
        elif status is None:
            yield f"{name}: {run.folder.name} does not list it, and its list is incomplete"
        elif at is None:
            yield f"{name}: {status}"
        else:
            yield f"{name}: {status.replace('_', ' ')}, {'carried from' if source == 'carried' else 'read'} {at} UTC"


def _describe_returns(database: Database) -> Iterator[str]:
    """Yield a sentence for each module that flaps, or else for each rollback."""
    for name, module, returns, versions in database.execute(_FLAPPING).fetchall():
        yield f"{safe(name)} {safe(module)}: flaps between {versions}: it went back {returns} times"
    for name, module, old, new, at in database.execute(_ROLLBACKS).fetchall():
        yield f"{safe(name)} {safe(module)}: rolled back from {safe(old)} to {safe(new)}, seen {at} UTC"


def _describe_unseen(database: Database, recorded: int) -> Iterator[str]:
    query = (
        "SELECT coalesce(device_name, iot_id), count(DISTINCT run), max(run) FROM log WHERE change = 'not_seen' "
        "GROUP BY ALL ORDER BY ALL"
    )
    compared = f"the {format_count(recorded, 'run')} whose changes are recorded"
    for name, runs, last in database.execute(query).fetchall():
        yield f"{safe(name)}: no answer in {runs:,} of {compared}, the last one {safe(last)}"


_SAME_DEVICE = """l.account = d.account AND l.product_key IS NOT DISTINCT FROM d.product_key
  AND l.device_name IS NOT DISTINCT FROM d.device_name"""

_POINTS = f"""CREATE TABLE points AS
  WITH logged AS (
    SELECT device, lower(module_name) AS module_key, l.module_name, l.started_at, answered_at, run, change,
      old_version, new_version
    FROM log l JOIN device d ON {_SAME_DEVICE} WHERE module_name IS NOT NULL
  ),
  every_point AS (
    SELECT device, module_key, module_name, started_at, answered_at AS since, run, change, new_version AS version
    FROM logged WHERE change <> 'not_seen'
    UNION ALL
    -- What it ran before the first recorded change, and what never changed.
    SELECT device, module_key, module_name, NULL, NULL, NULL, NULL, old_version
    FROM logged QUALIFY row_number() OVER (PARTITION BY device, module_key ORDER BY started_at) = 1
    UNION ALL
    SELECT device, lower(module_name), module_name, NULL, NULL, NULL, NULL, module_version
    FROM now_modules l JOIN device d ON {_SAME_DEVICE}
    ANTI JOIN logged g ON g.device = d.device AND g.module_key = lower(l.module_name)
  )
  SELECT *, row_number() OVER (PARTITION BY device, module_key ORDER BY started_at NULLS FIRST) AS point
  FROM (
    SELECT *, lag(version) OVER (PARTITION BY device, module_key ORDER BY started_at NULLS FIRST) AS before,
      row_number() OVER (PARTITION BY device, module_key ORDER BY started_at NULLS FIRST) AS place
    FROM every_point
  ) WHERE (place = 1 AND version IS NOT NULL) OR version IS DISTINCT FROM before"""
"""A row for each time at which a module of a device has another version than before."""

_INTERVALS = """CREATE TABLE intervals AS
  SELECT *, lead(since) OVER (PARTITION BY device, module_key ORDER BY point) AS until,
    round(epoch(coalesce(until, {last}::TIMESTAMP) - coalesce(since, {first}::TIMESTAMP)) / 86400, 1) AS days
  FROM points"""

_TABLE = """SELECT d.account, d.product_key, d.device_name, d.iot_id, max(module_name) OVER (
      PARTITION BY device, module_key) AS module_name, version AS module_version, since, until, days, change, run
  FROM intervals JOIN device d USING (device) WHERE version IS NOT NULL
  ORDER BY device, module_key, point DESC"""

_FLAPPING = """SELECT coalesce(device_name, iot_id), max(module_name), count(*) AS returns,
    string_agg(DISTINCT version, ' and ' ORDER BY version)
  FROM (FROM points QUALIFY version = lag(version, 2) OVER (PARTITION BY device, module_key ORDER BY point))
  JOIN device USING (device) GROUP BY device, device_name, iot_id, module_key HAVING count(*) > 1 ORDER BY ALL"""
"""Modules that went back to the version before the last one twice or more."""

_ROLLBACKS = f"""SELECT coalesce(device_name, iot_id), module_name, before, version,
    strftime(since, '%Y-%m-%d %H:%M')
  FROM points JOIN device USING (device) WHERE change = 'downgraded' ORDER BY since DESC LIMIT {MAX_NOTES}"""
