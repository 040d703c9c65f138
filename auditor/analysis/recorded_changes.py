"""Record what changed since the previous run, when a run is sealed: its ``changes.parquet``.

Later questions about many runs read these small files instead of all devices of all runs. ``query.change_log``
says what a row means. The comparison is that of ``drift``, with one difference: a device without an answer in the
previous run is compared with the last version that is known of it, which the previous run's own changes contain.
"""

from dataclasses import replace
from pathlib import Path

import duckdb

from auditor.analysis.device_matching import (
    ALL_NAMES,
    define_listed,
    define_reported_versions,
    define_shared_ids,
    is_unlisted,
    match_devices,
)
from auditor.analysis.drift import CHANGE, ORDERED, define_changes
from auditor.errors import AuditorError, RunFolderError
from auditor.log import log
from auditor.query.change_log import CHANGE_COLUMNS
from auditor.query.snapshot import RunSnapshot
from auditor.runs.folder import CHANGES, DEVICES, FLEET, MODULES, RunCatalog, StoredRun
from auditor.runs.manifest import Manifest, file_info
from auditor.runs.selection_info import ChangesInfo
from auditor.runs.views import parquet_of_run
from auditor.storage.database import (
    SEALING_MEMORY,
    Database,
    error_reason,
    parquet,
    scalar,
    scratch_database,
    sql_literals,
    with_enough_memory,
    write_parquet,
)
from auditor.storage.files import put_in_place

_WORK = ".sealing"
"""Scratch folder in the run folder, which a resume removes."""

MANY_DEVICES = 250_000
"""Number of devices above which a comparison does not fit into the smallest memory limits, as measured."""

_DEVICE_COLUMNS = "ordinal, account, product_key, device_name, iot_id, status, source, audited_at"

_MODULE_COLUMNS = "account, product_key, device_name, iot_id, module_name, module_version"

_PRESENT = "('ok', 'empty')"


def record_changes(folder: Path, manifest: Manifest) -> Manifest:
    """Write the changes of a sealed run since the previous one; return its manifest with them.

    Write none, and return the manifest as it is, if the run or each earlier one covers a part of its fleet only. A
    failure is logged: it leaves the run as valid as it was.
    """
    (folder / CHANGES).unlink(missing_ok=True)
    manifest = replace(manifest, changes=None, files=tuple(info for info in manifest.files if info.name != CHANGES))
    if not manifest.covers_fleet:
        return manifest
    try:
        previous = _previous_run(folder, manifest)
        if previous is None:
            return manifest
        first = SEALING_MEMORY[2 if manifest.fleet.devices > MANY_DEVICES else 0]
        counts = with_enough_memory(lambda memory: _write(folder, manifest, previous, memory), first=first)
    except (AuditorError, duckdb.Error, UnicodeDecodeError, OSError) as error:
        reason = str(error) if isinstance(error, AuditorError) else error_reason(error)
        log.warning("changes_not_recorded", folder=str(folder), reason=reason)
        return manifest
    files = (*manifest.files, file_info(folder / CHANGES))
    return replace(manifest, files=files, changes=ChangesInfo(previous.folder.name, counts))


def _previous_run(folder: Path, manifest: Manifest) -> StoredRun | None:
    """Return the newest earlier run whose rows are those that were sealed."""
    catalog = RunCatalog(folder.parent, missing_ok=True)
    return next((run for run in catalog.earlier(manifest, folder) if run.sealed and _is_intact(run)), None)


def _is_intact(run: StoredRun) -> bool:
    try:
        return all(file_info(run.folder / name) in run.manifest.files for name in (DEVICES, MODULES))
    except (OSError, RunFolderError):
        return False


def _write(folder: Path, manifest: Manifest, previous: StoredRun, memory: str) -> dict[str, int]:
    """Write the file; return the number of its rows by change."""
    work = folder / _WORK
    with scratch_database(work, memory=memory) as database:
        for name in (FLEET, DEVICES, MODULES):
            parquet_of_run(database, previous.folder / name)  # refused if reading it could take hours
        old, new = _snapshot(previous), _snapshot(StoredRun(manifest, folder))
        further: tuple[Path, ...] = ()
        if _define_gaps(database, previous):
            old, further = _fill_gaps(database, old, work)
        match_devices(database, old, new)
        define_reported_versions(database, old, new, further=further)
        define_changes(database, work)
        write_parquet(database, f"{_ROWS} ORDER BY ALL", work / CHANGES)
        by_change = f"SELECT change, count(*) FROM {parquet(work / CHANGES)} GROUP BY change ORDER BY change"
        counts = database.execute(by_change).fetchall()
        put_in_place(work / CHANGES, folder / CHANGES)
    return {str(change): int(rows) for change, rows in counts}


def _snapshot(run: StoredRun) -> RunSnapshot:
    files = (run.folder / FLEET, run.folder / DEVICES, run.folder / MODULES)
    return RunSnapshot(run.folder, run.manifest, run.manifest.devices, *files, warnings=(), tampered=False)


def _define_gaps(database: Database, previous: StoredRun) -> int:
    """Define ``gaps``: a device that the previous run did not see, its last known versions and their time.

    ``gap_lines`` has the line of such a device in the previous run, or one after its last for a device that its
    incomplete list does not have. Return the number of these devices.
    """
    path = previous.folder / CHANGES
    recorded = path.is_file() and file_info(path) in previous.manifest.files
    rows = parquet_of_run(database, path) if recorded else f"({_NO_CHANGE} WHERE false)"
    database.execute(
        "CREATE TABLE gaps AS SELECT dense_rank() OVER (ORDER BY account, product_key, device_name, iot_id) AS gap, "
        f"account, product_key, device_name, iot_id, module_name, old_version, answered_at FROM {rows} "
        "WHERE change = 'not_seen'"
    )
    rows = parquet(previous.folder / DEVICES, options="file_row_number=true")
    devices = "(SELECT DISTINCT gap, account, product_key, device_name, iot_id FROM gaps)"
    define_shared_ids(database, [f"(FROM {rows} SEMI JOIN gaps USING (account, iot_id))", devices])
    database.execute(
        f"CREATE TABLE gap_matches AS SELECT file_row_number AS line, gap FROM {rows} r "
        f"JOIN {devices} g USING (account, iot_id) ANTI JOIN shared_ids USING (account, iot_id) "
        f"UNION ALL SELECT file_row_number AS line, gap FROM {rows} r "
        f"JOIN {devices} g USING (account, product_key, device_name) "
        # The same name with another iot_id is another device.
        "WHERE coalesce(r.iot_id = g.iot_id, true) OR (account, r.iot_id) IN (FROM shared_ids) "
        "OR (account, g.iot_id) IN (FROM shared_ids)"
    )
    database.execute("CREATE TABLE gap_lines AS SELECT line, min(gap) AS gap FROM gap_matches GROUP BY line")
    define_listed(database, "old", previous.manifest)
    accounts = sql_literals([account.name for account in previous.manifest.accounts]) or "NULL"
    database.execute(
        "INSERT INTO gap_lines "
        f"SELECT (SELECT count(*) FROM {rows}) + row_number() OVER (ORDER BY gap) - 1 AS line, gap FROM ("
        "SELECT gap, any_value(account) AS account, any_value(product_key) AS product_key FROM gaps GROUP BY gap"
        f") g ANTI JOIN gap_matches USING (gap) WHERE account IN ({accounts}) AND {is_unlisted('g', 'old')}"
    )
    return scalar(database, "SELECT count(*) FROM gap_lines")


def _fill_gaps(database: Database, run: RunSnapshot, work: Path) -> tuple[RunSnapshot, tuple[Path, ...]]:
    """Return a run in which devices without an answer have their last known versions, and the file of these versions.

    Both are written to ``work``.
    """
    rows = parquet(run.devices, options="file_row_number=true")
    versions = (
        "SELECT line, any_value(answered_at) AS answered_at, "
        "CASE WHEN count(module_name) > 0 THEN 'ok' ELSE 'empty' END AS status "
        "FROM gap_lines JOIN gaps USING (gap) GROUP BY line, gap"
    )
    devices, modules, further = work / f"old-{DEVICES}", run.modules, work / f"gaps-{MODULES}"
    write_parquet(
        database,
        f"SELECT {_DEVICE_COLUMNS} FROM (SELECT r.* EXCLUDE (file_row_number) REPLACE ("
        "coalesce(k.status, r.status) AS status, CASE WHEN k.line IS NULL THEN r.source ELSE 'carried' END AS source, "
        "coalesce(k.answered_at, r.audited_at) AS audited_at), file_row_number AS line "
        f"FROM {rows} r LEFT JOIN ({versions}) k ON r.file_row_number = k.line "
        "UNION ALL BY NAME SELECT DISTINCT line AS ordinal, account, product_key, device_name, iot_id, status, "
        "'carried' AS source, k.answered_at AS audited_at, line "
        f"FROM ({versions}) k JOIN gap_lines USING (line) JOIN gaps USING (gap) "
        f"WHERE line >= (SELECT count(*) FROM {rows})) ORDER BY line",
        devices,
    )
    filled = parquet(devices, options="file_row_number=true")
    of_gaps = f"SELECT r.*, gap FROM {filled} r JOIN gap_lines ON file_row_number = line"
    write_parquet(
        database,
        "SELECT d.account, d.product_key, d.device_name, d.iot_id, g.module_name, g.old_version AS module_version "
        f"FROM gaps g JOIN ({of_gaps}) d USING (gap) WHERE g.module_name IS NOT NULL",
        further,
    )
    outdated = f"SELECT {ALL_NAMES} AS key FROM {rows} JOIN gap_lines ON file_row_number = line WHERE status = 'ok'"
    if scalar(database, f"SELECT count(*) FROM ({outdated})"):  # results that were carried from before the last known
        modules = work / f"old-{MODULES}"
        others = f"SELECT {_MODULE_COLUMNS}, {ALL_NAMES} AS key FROM {parquet(run.modules)}"
        write_parquet(database, f"SELECT {_MODULE_COLUMNS} FROM ({others}) ANTI JOIN ({outdated}) USING (key)", modules)
    return replace(run, devices=devices, modules=modules), (further,)


_NO_CHANGE = "SELECT " + ", ".join(f"NULL::{kind} AS {column}" for column, kind in CHANGE_COLUMNS.items())

_ROWS = f"""SELECT coalesce(n.account, o.account) AS account,
    coalesce(n.product_key, o.product_key) AS product_key, coalesce(n.device_name, o.device_name) AS device_name,
    coalesce(n.iot_id, o.iot_id) AS iot_id, module_name, change,
    ov.module_version AS old_version, nv.module_version AS new_version,
    CASE WHEN change = 'not_seen' THEN o.audited_at ELSE coalesce(n.audited_at, o.audited_at) END AS answered_at
  FROM (
    -- Versions that differ.
    SELECT old_line, new_line, product, module, c.old_version, c.new_version, {CHANGE} AS change
    FROM (FROM changes JOIN matched USING (device) WHERE presence = 'compared'
      AND old_version IS DISTINCT FROM new_version) c
    LEFT JOIN version_order v ON {ORDERED}
    UNION ALL
    -- Devices that were not seen before, and have the versions that are known of them.
    SELECT old_line, new_line, product, module, old_version, new_version, 'seen'
    FROM matched JOIN gap_lines ON old_line = line LEFT JOIN changes USING (device)
    WHERE presence = 'compared' AND old_version IS NOT DISTINCT FROM new_version
    UNION ALL
    -- Devices that one run does not have, or did not see: with the versions of the other.
    SELECT old_line, new_line, product, module, CASE WHEN change IN ('left', 'not_seen') THEN old_version END,
      CASE WHEN change IN ('joined', 'seen') THEN new_version END, change
    FROM (
      SELECT m.*, CASE WHEN presence <> 'not_seen' THEN presence::VARCHAR WHEN o.status IN {_PRESENT} THEN 'not_seen'
        WHEN n.status IN {_PRESENT} THEN 'seen' END AS change
      FROM (FROM matched WHERE presence IN ('joined', 'left', 'not_seen')) m
      LEFT JOIN old_rows o ON m.old_line = o.line LEFT JOIN new_rows n ON m.new_line = n.line
    ) LEFT JOIN changes USING (device)
    WHERE change IS NOT NULL AND (module IS NULL
      OR CASE WHEN change IN ('left', 'not_seen') THEN old_version ELSE new_version END IS NOT NULL)
  ) d
  LEFT JOIN module_titles USING (product, module)
  LEFT JOIN old_rows o ON d.old_line = o.line LEFT JOIN new_rows n ON d.new_line = n.line
  LEFT JOIN versions ov ON d.old_version = ov.version LEFT JOIN versions nv ON d.new_version = nv.version"""
