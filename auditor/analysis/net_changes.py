"""What changed between two runs of one directory, from the changes that each run between them recorded.

Several changes of one module count as one, from its first version to its last; what changed back did not change. Where
a run between them recorded no changes, the two runs themselves are compared (``drift``), which reads all their devices.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from auditor.analysis.device_matching import define_shared_ids, distinct_key_sql
from auditor.analysis.device_selection import (
    NET_CHANGES,
    GroupColumn,
    RunFiles,
    count_changes,
    define_devices_of_runs,
    is_narrow,
    write_selected,
)
from auditor.analysis.drift import diff_runs
from auditor.errors import RunFolderError, UsageError
from auditor.models import RunWarning
from auditor.query.change_log import define_change_log
from auditor.query.filters import DeviceFilter
from auditor.query.run_views import define_inventories
from auditor.query.snapshot import open_snapshot
from auditor.query.version_tables import define_version_order
from auditor.query.warnings import completeness_warnings
from auditor.runs.attributes import attribute_sql
from auditor.runs.folder import DEVICES, MODULES, RunCatalog, StoredRun
from auditor.runs.manifest import SCHEMA_VERSION
from auditor.storage.database import (
    Database,
    parquet,
    sql_literal,
    sql_literals,
    temporary_database,
    write_parquet,
)
from auditor.storage.tables import ResultTable, translate_read_errors


@dataclass(frozen=True, slots=True)
class NetChanges:
    """The changes from one run to another.

    Attributes:
        recorded: number of the runs whose recorded changes were read; 0: the two runs were compared.
        counts: devices and modules by change; ``joined``, ``left`` and ``not_seen`` count devices.
        versions: a row for each change of a product's module from one version to another, that of the most devices
            first: account, product_key, product_name, module_name, change, old_version, new_version, devices.
        devices: a row for each change of a device, as ``Drift.devices`` has them, with the product_name.
        groups: as in ``Drift``.
        warnings: why the numbers do not cover whole fleets.
    """

    old: StoredRun
    new: StoredRun
    recorded: int
    counts: dict[str, int]
    versions: ResultTable
    devices: ResultTable
    warnings: tuple[RunWarning, ...]
    groups: ResultTable | None = None


@contextmanager
def read_changes_since(
    directory: str | Path,
    since: str,
    until: str = "last",
    criteria: DeviceFilter | None = None,
    *,
    changes: Sequence[str] = (),
    group_by: Sequence[str] = (),
) -> Iterator[NetChanges]:
    """Read what changed in a directory of runs since one of them, up to another.

    ``since`` and ``until`` are references, as ``RunCatalog.refer`` reads them, or names of run folders. The run since
    which changes are read may have been deleted by ``auditor prune``. The other arguments are as in ``diff_runs``;
    a device that is only in a deleted run has no attributes.

    Raises:
        UsageError: both are the same run, or the first is the newer one; or as in ``diff_runs``.
        RunFolderError: a run does not exist, or cannot be read; or it is deleted, and changes since it are missing.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    catalog = RunCatalog(Path(directory))
    catalog.log_unreadable()
    old, new = _find(catalog, since, archived=True), _find(catalog, until)
    if old.folder == new.folder:
        raise UsageError(f"{since} is {old.folder.name}, which is also the run to compare it with: nothing is newer")
    if old.manifest.started_at > new.manifest.started_at:
        raise UsageError(f"{old.folder.name} is newer than {new.folder.name}: give the older run first")
    criteria = criteria or DeviceFilter()
    narrow = is_narrow(criteria, group_by)
    reading = partial(translate_read_errors, directory)
    with temporary_database("changes") as (database, work):
        recorded = _recorded_between(catalog, old, new)
        with reading():
            compared = [run for run in (old, new) if run.sealed or run is new]
            files = [_files_of(run, number, work) for number, run in enumerate(compared, 1)]
            if recorded:
                _define_net_changes(database, recorded, new, files, work)
            elif not old.sealed:
                raise RunFolderError(
                    f"{old.folder}: is deleted, and not every run since then recorded its changes; give a newer run"
                )
            else:
                _define_compared(database, old, new, work)
            groups = _narrow(database, files, criteria, group_by, work) if narrow else []
            define_devices_of_runs(database, files)
            _define_named_changes(database, changes)
            counted = database.execute("SELECT change, count(*) FROM net_changes GROUP BY change").fetchall()
        counts = dict.fromkeys(NET_CHANGES, 0) | {str(change): int(count) for change, count in counted}
        head: dict[str, object] = {"schema_version": SCHEMA_VERSION, "old": _head(old), "new": _head(new)}
        head["counts"] = counts
        warnings = tuple(
            warning
            for run in (old, new)
            for warning in completeness_warnings(run.folder, run.manifest, run.manifest.devices)
        )
        versions = ResultTable(database, _VERSIONS, reading=reading, name="versions", head=head)
        devices = ResultTable(database, _DEVICES, reading=reading, name="changes", head=head)
        grouped = None
        if groups:
            query = count_changes("FROM named_changes", groups)
            grouped = ResultTable(database, query, reading=reading, name="groups", head=head)
        yield NetChanges(old, new, len(recorded), counts, versions, devices, warnings, grouped)


def _find(catalog: RunCatalog, reference: str, *, archived: bool = False) -> StoredRun:
    name = Path(reference).name
    runs = [*catalog.runs, *(catalog.archived() if archived else ())]
    return next((run for run in runs if run.folder.name == name), None) or catalog.refer(reference, archived=archived)


def _head(run: StoredRun) -> dict[str, object]:
    manifest = run.manifest
    return {"run": run.folder.name, "state": manifest.state, "started_at": manifest.started_at}


def _narrow(
    database: Database,
    files: Sequence[RunFiles],
    criteria: DeviceFilter,
    group_by: Sequence[str],
    work: Path,
) -> list[GroupColumn]:
    """Keep the changes of ``net_changes`` that match, with the values of their devices to count by.

    A device has the values of the newest of both runs that lists it; without one, it has its names only.
    """
    changed, path = work / "changed.parquet", work / "selected.parquet"
    write_parquet(database, "SELECT DISTINCT account, product_key, device_name, iot_id FROM net_changes", changed)
    runs = [RunFiles(0, changed), *files]
    groups = write_selected(path, runs, criteria, group_by)
    _define_shared_ids(database, "net_changes", files)
    key = f"{distinct_key_sql()} AS device_key"
    listed = " UNION ALL ".join(f"SELECT {run.number} AS run, {key} FROM {parquet(run.devices)}" for run in runs)
    database.execute(
        f"CREATE TABLE newest AS SELECT device_key, max(run) AS run FROM ({listed}) "
        f"SEMI JOIN (SELECT {key} FROM net_changes) USING (device_key) GROUP BY device_key"
    )
    cells = "".join(f", any_value({each.source}) AS {each.source}" for each in groups if each.cell is not None)
    selected = f"SELECT *, {key} FROM {parquet(path)}"
    database.execute(
        f"CREATE TABLE narrow AS SELECT device_key{cells} FROM ({selected}) "
        "JOIN newest USING (device_key, run) GROUP BY device_key"
    )
    database.execute(
        "CREATE OR REPLACE TABLE net_changes AS SELECT n.*, s.* EXCLUDE (device_key) FROM net_changes n "
        f"JOIN narrow s ON s.device_key = {distinct_key_sql('n.')}"
    )
    if criteria.module is not None:
        database.execute(
            "DELETE FROM net_changes WHERE lower(module_name) IS DISTINCT FROM lower($1)", [criteria.module]
        )
    return groups


def _files_of(run: StoredRun, number: int, work: Path) -> RunFiles:
    """Return the files of a run; those of a run that is not sealed are copied."""
    started_at = run.manifest.started_at
    if run.sealed:
        return RunFiles(number, run.folder / DEVICES, run.folder / MODULES, run.folder, started_at)
    snapshot = open_snapshot(run.folder, work / str(number))
    return RunFiles(number, snapshot.devices, snapshot.modules, run.folder, started_at)


def _define_named_changes(database: Database, changes: Sequence[str]) -> None:
    """Define ``named_changes``: the changes of these names, with the names of their products."""
    condition = f"change IN ({sql_literals(changes)})" if changes else "true"
    # Of the devices, only the first and the last one of a product: a name is one of many attributes of each device.
    lines = "SELECT unnest([min(line), max(line)]) FROM devices GROUP BY run, product_key"
    names = (
        f"SELECT product_key, {attribute_sql('product_name')} AS product_name FROM devices WHERE line IN ({lines}) "
        "UNION ALL SELECT product_key, product_name FROM products"
    )
    database.execute(
        "CREATE TABLE named_changes AS SELECT n.*, p.product_name FROM net_changes n LEFT JOIN ("
        f"SELECT product_key, max(product_name) AS product_name FROM ({names}) "
        f"WHERE product_key IS NOT NULL GROUP BY product_key) p USING (product_key) WHERE {condition}"
    )


def _recorded_between(catalog: RunCatalog, old: StoredRun, new: StoredRun) -> list[StoredRun]:
    """Return the runs after one run up to another, if all of them recorded their changes; otherwise none."""
    runs = []
    for run in catalog.change_log(new):
        runs.append(run)
        if run.manifest.changes is not None and run.manifest.changes.previous == old.folder.name:
            return runs
    return []


def _define_compared(database: Database, old: StoredRun, new: StoredRun, work: Path) -> None:
    """Define ``net_changes`` by a comparison of two runs."""
    path = work / "compared.parquet"
    with diff_runs(old.folder, new.folder) as drift:
        drift.devices.write(path, "parquet")
    database.execute(f"CREATE TABLE net_changes AS FROM read_parquet({sql_literal(path)})")


def _define_shared_ids(
    database: Database, changes: str, files: Sequence[RunFiles], runs: Sequence[StoredRun] = ()
) -> None:
    """Define ``shared_ids`` for the devices of a table of changes, as it shows them by run, or the files of runs do."""
    own = f"SEMI JOIN {changes} USING (account, iot_id)"
    by_run = [f"(FROM {changes} WHERE run = {sql_literal(run.folder.name)})" for run in runs]
    define_shared_ids(database, [*by_run, *(f"(FROM {parquet(run.devices)} {own})" for run in files)])


def _define_net_changes(
    database: Database, runs: list[StoredRun], new: StoredRun, files: Sequence[RunFiles], work: Path
) -> None:
    """Define ``net_changes`` from the changes that runs recorded; ``files`` are of the first and the last run."""
    define_change_log(database, runs)
    _define_shared_ids(database, "change_log", files, runs)
    define_inventories(database, [new] if new.sealed else [])
    database.execute(_NET)
    database.execute(
        "CREATE TABLE net_groups AS SELECT row_number() OVER () AS group_id, * FROM (SELECT DISTINCT account, "
        "product_key, module_key FROM net WHERE module_key IS NOT NULL)"
    )
    database.execute(
        "CREATE TABLE net_versions AS SELECT row_number() OVER () AS version, * FROM (SELECT DISTINCT "
        "unnest([old_version, new_version]) AS module_version FROM net) WHERE module_version IS NOT NULL"
    )
    grouped = "JOIN net_groups g ON n.account = g.account AND n.product_key IS NOT DISTINCT FROM g.product_key"
    define_version_order(
        database,
        "SELECT DISTINCT group_id, module_version FROM ("
        f"SELECT group_id, unnest([old_version, new_version]) AS module_version FROM net n {grouped} "
        "AND n.module_key = g.module_key UNION ALL "
        f"SELECT group_id, module_version FROM inventory n {grouped} AND lower(n.module_name) = g.module_key"
        ") WHERE module_version IS NOT NULL",
        "SELECT DISTINCT group_id, o.version AS one, v.version AS other, o.module_version AS version, "
        f"v.module_version AS against FROM net n {grouped} AND n.module_key = g.module_key "
        "JOIN net_versions o ON o.module_version = old_version JOIN net_versions v ON v.module_version = new_version "
        "WHERE old_version <> new_version",
        work / "version_order",
    )
    database.execute(
        "CREATE TABLE net_order AS SELECT account, product_key, module_key, o.module_version AS old_version, "
        "v.module_version AS new_version, ordering FROM version_order JOIN net_groups USING (group_id) "
        "JOIN net_versions o ON o.version = one JOIN net_versions v ON v.version = other"
    )
    database.execute(_NET_CHANGES)


_NET = f"""CREATE TABLE net AS
  SELECT last_row.account AS account, last_row.product_key AS product_key, last_row.device_name AS device_name,
    last_row.iot_id AS iot_id, last_row.module_name AS module_name, module_key, device_key, first_at, last_at,
    first_row.change AS first_change, last_row.change AS last_change, first_row.old_version AS old_version,
    CASE last_row.change WHEN 'left' THEN NULL WHEN 'not_seen' THEN last_row.old_version
      ELSE last_row.new_version END AS new_version
  FROM (
    SELECT device_key, module_key, arg_min(l, started_at) AS first_row, arg_max(l, started_at) AS last_row,
      min(started_at) AS first_at, max(started_at) AS last_at
    FROM (
      SELECT {distinct_key_sql()} AS device_key, lower(module_name) AS module_key, started_at,
        {{account: account, product_key: product_key, device_name: device_name, iot_id: iot_id,
          module_name: module_name, change: change, old_version: old_version, new_version: new_version}} AS l
      FROM change_log
    ) GROUP BY device_key, module_key
  )"""
"""A row for each module of a device with a change: its first and last one."""

_NET_CHANGES = """CREATE TABLE net_changes AS
  WITH of_devices AS (
    -- Whether a device is there is known from its first and last rows, of whatever module.
    SELECT *, arg_min(first_change, first_at) OVER (PARTITION BY device_key) AS device_first,
      arg_max(last_change, last_at) OVER (PARTITION BY device_key) AS device_last
    FROM net
  ),
  named AS (
    SELECT n.*, CASE
      WHEN device_first = 'joined' AND device_last = 'left' THEN NULL
      WHEN device_last = 'left' THEN 'left'
      WHEN device_first = 'joined' THEN 'joined'
      -- Nothing is known of the device in the first run.
      WHEN device_first = 'seen' AND first_change = 'seen' AND n.old_version IS NULL THEN 'not_seen'
      WHEN n.old_version IS NOT DISTINCT FROM n.new_version
        THEN CASE WHEN device_last = 'not_seen' THEN 'not_seen' END
      WHEN n.old_version IS NULL THEN 'appeared'
      WHEN n.new_version IS NULL THEN 'vanished'
      WHEN ordering = 'older' THEN 'upgraded' WHEN ordering = 'newer' THEN 'downgraded' ELSE 'changed' END AS change
    FROM of_devices n LEFT JOIN net_order o ON n.account = o.account
      AND n.product_key IS NOT DISTINCT FROM o.product_key AND n.module_key = o.module_key
      AND n.old_version = o.old_version AND n.new_version = o.new_version
  )
  SELECT account, product_key, device_name, iot_id, module_name, change, old_version, new_version
  FROM named WHERE change IN ('upgraded', 'downgraded', 'changed', 'appeared', 'vanished')
  UNION ALL
  -- These are about devices: one row each, without a module.
  SELECT DISTINCT account, product_key, device_name, iot_id, NULL, change, NULL, NULL
  FROM named WHERE change IN ('joined', 'left', 'not_seen')"""

_VERSIONS = """SELECT account, product_key, product_name, max(module_name) AS module_name, change, old_version,
    new_version, count(*) AS devices
  FROM named_changes GROUP BY account, product_key, product_name, lower(module_name), change, old_version, new_version
  ORDER BY devices DESC, account, product_key, module_name, change, old_version, new_version"""

_DEVICES = """SELECT account, product_key, product_name, device_name, iot_id, module_name, change, old_version,
    new_version
  FROM named_changes ORDER BY ALL"""
