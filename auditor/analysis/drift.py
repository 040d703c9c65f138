"""Drift between two runs of a fleet, by module and by device. Devices without an answer are not counted as changed.

Each module of a device that answered in both runs is the ``same``, ``upgraded``, ``downgraded``, ``changed`` (the
versions differ and cannot be ordered, or mean the same), ``appeared`` or ``vanished``. A device that is present in one
run only has ``joined`` or ``left``: it is not in the other run's fleet, or the platform does not know it. A device
without an answer in either run is ``not_seen``, and one outside a sample is ``unsampled``; neither counts as changed.

``device_matching`` says which devices are the same; ``sample_drift`` compares samples.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

from auditor.analysis.device_matching import SIDES, count_carried, define_reported_versions, match_devices
from auditor.analysis.device_selection import GroupColumn, RunFiles, count_changes, is_narrow, write_selected
from auditor.analysis.sample_drift import ShareDrift, read_share_drift, sample_comparison_warning
from auditor.errors import RunFolderError, UsageError
from auditor.models import RunWarning
from auditor.query.filters import DeviceFilter
from auditor.query.snapshot import RunSnapshot, open_snapshot
from auditor.query.version_tables import define_version_order
from auditor.runs.folder import RunCatalog, find_run
from auditor.runs.manifest import SCHEMA_VERSION
from auditor.storage.database import Database, sql_literal, sql_literals, temporary_database
from auditor.storage.tables import ResultTable, translate_read_errors

MODULE_CHANGES = ("upgraded", "downgraded", "changed", "appeared", "vanished")

PRESENCES = ("joined", "left", "not_seen", "unsampled")

CHANGES = (*MODULE_CHANGES, "added", "removed", "joined", "left", "not_seen")
"""Changes of devices and modules, as ``DriftCounts`` names them."""


@dataclass(frozen=True, slots=True)
class DriftCounts:
    """Numbers of changes.

    Attributes:
        compared: devices that are present in both runs.
        joined: devices present in the new run only.
        left: devices present in the old run only.
        not_seen: devices that failed or are pending in either run.
        same: modules of compared devices with one version in both runs.
        upgraded: modules of compared devices with a newer version.
        downgraded: modules of compared devices with an older version.
        changed: modules of compared devices with another version that is neither.
        appeared: modules that compared devices report in the new run only.
        vanished: modules that compared devices report in the old run only.
        added: modules of a product that no device reported in the old run.
        removed: modules of a product that no device reports in the new run, in which all its devices answered.
        unsampled: devices outside the sample of either run; no module of their products is added or removed.
        carried: compared devices that were not queried again: the new run carries the old run's answer forward.
    """

    compared: int
    joined: int
    left: int
    not_seen: int
    same: int
    upgraded: int
    downgraded: int
    changed: int
    appeared: int
    vanished: int
    added: int
    removed: int
    unsampled: int = 0
    carried: int = 0


@dataclass(frozen=True, slots=True)
class Drift:
    """The changes between two runs.

    Attributes:
        modules: a row for each product and module: account, product_key, module_name, presence (``added``,
            ``removed`` or ``kept``), then numbers of devices: those that report the module (old_devices, new_devices),
            and by change (same, upgraded, downgraded, changed, appeared, vanished, joined, left, not_seen, unsampled).
        changed_modules: those of ``modules`` that changed on a device, or are added or removed, the most changes first.
        devices: a row for each change: account, product_key, device_name, iot_id, module_name, change, old_version,
            new_version. A device that joined, left or was not seen has one row, without a module. Unsampled devices
            have none.
        groups: numbers of changes by the columns of ``group_by``, then a column for each change of a device or module;
            None: nothing is grouped.
        warnings: why the numbers do not cover whole fleets, or are not reliable.
        shares: changes of the versions' shares, if a run is a sample; None: both runs cover whole fleets.
    """

    old: RunSnapshot
    new: RunSnapshot
    counts: DriftCounts
    modules: ResultTable
    changed_modules: ResultTable
    devices: ResultTable
    warnings: tuple[RunWarning, ...]
    shares: ShareDrift | None = None
    groups: ResultTable | None = None


@contextmanager
def diff_runs(
    old: str | Path,
    new: str | Path,
    *,
    criteria: DeviceFilter | None = None,
    changes: Sequence[str] = (),
    group_by: Sequence[str] = (),
) -> Iterator[Drift]:
    """Compare two runs, each a run folder or a directory of runs (its newest run). Unsealed ones are read as they are.

    Memory is bounded; what does not fit goes to the system's temporary folder.

    Args:
        old: the earlier run.
        new: the later run.
        criteria: which devices are compared, by what the new run says of them, or the old one if only that has them.
            With a module, only changes of that module count. ``arrange`` applies its order and limit to a table.
        changes: names of ``CHANGES``: the tables have only these; empty: all. ``counts`` has all.
        group_by: columns of changes (account, product_key, module_name, change, old_version, new_version) or of devices
            (product_name, device_status, or an attribute).

    Raises:
        UsageError: no device of either run has a value of the filter, or a run is a sample and has a filter; or only
            one of them read a module that is compared.
        RunFolderError: a path is no run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    criteria = criteria or DeviceFilter()
    narrow = is_narrow(criteria, group_by)
    folders = find_run(Path(old)), find_run(Path(new))
    with temporary_database("diff") as (database, work):
        before, after = (open_snapshot(folder, work / side) for side, folder in zip(SIDES, folders, strict=True))
        _refuse_other_modules(before, after, criteria.module)
        reading = partial(translate_read_errors, f"{before.folder}, {after.folder}")
        with reading():
            match_devices(database, before, after)
            groups = _narrow(database, (before, after), criteria, group_by, work) if narrow else []
            define_reported_versions(database, before, after)
            if criteria.module is not None:
                others = "SELECT module FROM module_names WHERE lower(module_name) <> lower($1)"
                database.execute(f"DELETE FROM reported WHERE module IN ({others})", [criteria.module])
            define_changes(database, work)
            counts = _read_counts(database, criteria)
        head = {"schema_version": SCHEMA_VERSION, "old": before.coverage, "new": after.coverage}
        drift = f"SELECT * FROM module_drift{_with_any(changes)}"
        modules = ResultTable(database, f"{drift} ORDER BY ALL", reading=reading, name="modules", head=head)
        changed_query = f"FROM ({drift}) {_CHANGED_MODULES}"
        changed = ResultTable(database, changed_query, reading=reading, name="modules", head=head)
        devices_query = _devices_query(criteria, changes)
        devices = ResultTable(database, f"{devices_query} ORDER BY ALL", reading=reading, name="changes", head=head)
        grouped = None
        if groups:
            query = count_changes(_devices_query(criteria, changes, groups), groups)
            grouped = ResultTable(database, query, reading=reading, name="groups", head=head)
        warnings = [*before.warnings, *after.warnings, *_order_warnings(before, after)]
        shares = None
        if counts.unsampled and not narrow:
            shares = read_share_drift(database, before, after, work, reading=reading, head=head)
            warnings.append(sample_comparison_warning(counts.compared))
        yield Drift(before, after, counts, modules, changed, devices, tuple(warnings), shares, grouped)


def _refuse_other_modules(before: RunSnapshot, after: RunSnapshot, module: str | None) -> None:
    """Raise UsageError if one of the runs did not read a module that is compared."""
    for run, other in ((before, after), (after, before)):
        read = run.manifest.modules
        if read != other.manifest.modules and read is not None and (module is None or module.casefold() not in read):
            raise UsageError(
                f"{run.folder} has only the module {', '.join(read)}, which is all that it read; compare it with a "
                f"run that read the same, or with --module {read[0]}"
            )


def _narrow(
    database: Database,
    runs: tuple[RunSnapshot, RunSnapshot],
    criteria: DeviceFilter,
    group_by: Sequence[str],
    work: Path,
) -> list[GroupColumn]:
    """Keep the devices of ``matched`` that match; define ``selected``, what they are grouped by, by run and line."""
    if any(run.sources.unsampled for run in runs):
        raise UsageError(
            "samples have few devices in common, and their shares are of whole fleets: leave out filters and --group-by"
        )
    files = [
        RunFiles(number, run.devices, run.modules, run.files or run.folder, run.manifest.started_at)
        for number, run in enumerate(runs)
    ]
    path = work / "selected.parquet"
    groups = write_selected(path, files, criteria, group_by)
    database.execute(f"CREATE TABLE selected AS FROM read_parquet({sql_literal(path)})")
    database.execute(
        "DELETE FROM matched WHERE CASE WHEN new_line IS NULL "
        "THEN old_line NOT IN (SELECT line FROM selected WHERE run = 0) "
        "ELSE new_line NOT IN (SELECT line FROM selected WHERE run = 1) END"
    )
    return groups


def latest_pair(directory: str | Path) -> tuple[Path, Path]:
    """Return the newest ended run of a directory and the previous one of its name, the older first.

    Raises:
        RunFolderError: there are no two such runs.
    """
    catalog = RunCatalog(Path(directory))
    new = catalog.latest(ended=True)
    old = None if new is None else catalog.previous(new.manifest, new.folder)
    if new is None or old is None:
        raise RunFolderError(f"{directory}: no two ended runs of one name to compare")
    return old.folder, new.folder


def define_changes(database: Database, work: Path) -> None:
    """Define ``version_changes``, the changes of a product's module by version, and ``module_drift``, their sums."""
    # A module that a device reports twice, spelled in two ways or by two lines, counts once, with the greater text.
    database.execute(
        "CREATE TABLE changes AS SELECT device, module, max(version) FILTER (NOT in_new) AS old_version, "
        "max(version) FILTER (in_new) AS new_version FROM reported GROUP BY device, module"
    )
    database.execute("DROP TABLE reported")
    database.execute(
        "CREATE TABLE change_counts AS SELECT product, module, presence, old_version, new_version, "
        "count(*) AS devices FROM changes JOIN matched USING (device) GROUP BY ALL"
    )
    define_version_order(
        database,
        f"SELECT DISTINCT {_GROUP} AS group_id, module_version FROM (SELECT product, module, "
        "unnest([old_version, new_version]) AS version FROM change_counts) JOIN versions USING (version)",
        f"SELECT {_GROUP} AS group_id, p.old_version AS one, p.new_version AS other, o.module_version AS version, "
        "n.module_version AS against FROM (SELECT DISTINCT product, module, old_version, new_version "
        "FROM change_counts WHERE presence = 'compared') p "
        "JOIN versions o ON p.old_version = o.version JOIN versions n ON p.new_version = n.version "
        "WHERE p.old_version <> p.new_version",
        work / "version_order",
    )
    database.execute(
        f"CREATE VIEW version_changes AS SELECT c.*, {CHANGE} AS change FROM change_counts c "
        f"LEFT JOIN version_order v ON {ORDERED}"
    )
    database.execute(
        "CREATE TABLE module_titles AS SELECT product, module, coalesce(max(s.module_name), max(n.module_name)) "
        "AS module_name FROM (SELECT DISTINCT product, module FROM change_counts) JOIN products p USING (product) "
        "JOIN module_names n USING (module) "
        "LEFT JOIN (SELECT DISTINCT account, product_key, module_name FROM spellings) s "
        "ON s.account = p.account AND s.product_key IS NOT DISTINCT FROM p.product_key "
        "AND s.module_name = n.module_name GROUP BY product, module"
    )
    conditions = {"old_devices": "old_version IS NOT NULL", "new_devices": "new_version IS NOT NULL"}
    conditions |= {change: f"change = '{change}'" for change in ("same", *MODULE_CHANGES, *PRESENCES)}
    conditions |= {
        "old_not_seen": "change = 'not_seen' AND old_version IS NULL",
        "new_not_seen": "change = 'not_seen' AND new_version IS NULL",
    }
    sums = ", ".join(
        f"coalesce(sum(devices) FILTER ({condition}), 0)::BIGINT AS {name}" for name, condition in conditions.items()
    )
    # The modules of a product's unsampled devices are unknown.
    database.execute(f"""
      CREATE TABLE module_drift AS SELECT account, product_key, module_name,
        CASE WHEN old_devices = 0 AND old_not_seen = 0 AND in_old IS NOT TRUE THEN 'added'
          WHEN new_devices = 0 AND new_not_seen = 0 AND in_new IS NOT TRUE THEN 'removed' ELSE 'kept' END AS presence,
        * EXCLUDE (product, module, account, product_key, module_name, old_not_seen, new_not_seen, in_old, in_new)
      FROM (SELECT product, module, {sums} FROM version_changes GROUP BY product, module)
      JOIN products USING (product) JOIN module_titles USING (product, module)
      LEFT JOIN unsampled_products USING (product)""")


def _read_counts(database: Database, criteria: DeviceFilter) -> DriftCounts:
    devices = dict(database.execute("SELECT presence::VARCHAR, count(*) FROM matched GROUP BY presence").fetchall())
    by_change = "SELECT change, sum(devices)::BIGINT FROM version_changes GROUP BY change"
    changes = dict(database.execute(by_change).fetchall())
    modules = dict(database.execute("SELECT presence, count(*) FROM module_drift GROUP BY presence").fetchall())
    if criteria.module is not None:  # only changes of this module count
        devices = {"compared": devices.get("compared", 0)}
        changes = {change: count for change, count in changes.items() if change not in PRESENCES}
    # joined, left, not_seen and unsampled count devices, not their modules.
    counts = changes | devices | modules | {"carried": count_carried(database)}
    return DriftCounts(**{field.name: int(counts.get(field.name, 0)) for field in fields(DriftCounts)})


def _order_warnings(old: RunSnapshot, new: RunSnapshot) -> tuple[RunWarning, ...]:
    if old.manifest.started_at <= new.manifest.started_at:
        return ()
    return (RunWarning("order", str(old.folder), f"started after {new.folder.name}: the old run is the newer one"),)


_CHANGED_MODULES = f"""WHERE presence <> 'kept' OR {" + ".join(MODULE_CHANGES)} + joined + "left" > 0
  ORDER BY presence = 'kept', {" + ".join(MODULE_CHANGES)} DESC, joined + "left" DESC,
  account, product_key, module_name"""

_GROUP = "(product::BIGINT << 32) + module"
"""The number of a product's module, by which versions are compared."""

ORDERED = f"{_GROUP} = v.group_id AND c.old_version = v.one AND c.new_version = v.other"
"""Condition that joins rows ``c`` of ``changes`` and of their matched devices with the order ``v`` of versions."""

CHANGE = """CASE WHEN c.presence <> 'compared' THEN c.presence::VARCHAR
  WHEN c.old_version IS NULL THEN 'appeared' WHEN c.new_version IS NULL THEN 'vanished'
  WHEN c.old_version = c.new_version THEN 'same'
  WHEN v.ordering = 'older' THEN 'upgraded' WHEN v.ordering = 'newer' THEN 'downgraded' ELSE 'changed' END"""
"""The change of a row ``c`` of ``changes``, with its matched device and the order ``v`` of its versions."""


def _with_any(changes: Sequence[str]) -> str:
    """Return the SQL condition of modules that have one of these changes."""
    columns = [f'"{change}" > 0' for change in changes if change in (*MODULE_CHANGES, *PRESENCES)]
    columns += [f"presence = '{change}'" for change in changes if change in ("added", "removed")]
    return f" WHERE {' OR '.join(columns)}" if changes else ""


def _devices_query(criteria: DeviceFilter, changes: Sequence[str], groups: Sequence[GroupColumn] = ()) -> str:
    """Return the SQL of changes of devices, with the values that the devices are grouped by."""
    conditions = [] if criteria.module is None else ["module_name IS NOT NULL"]
    if changes:
        conditions.append(f"change IN ({sql_literals(changes)})")
    cells = "".join(f", s.{column.source}" for column in groups if column.cell is not None)
    selected = _OF_SELECTED if cells else ""
    return f"{_DEVICES.format(cells=cells)}{selected} WHERE {' AND '.join(conditions) or 'true'}"


_OF_SELECTED = """
  JOIN selected s ON s.run = CASE WHEN new_line IS NULL THEN 0 ELSE 1 END AND s.line = coalesce(new_line, old_line)"""

_DEVICES = f"""SELECT coalesce(n.account, o.account) AS account,
    coalesce(n.product_key, o.product_key) AS product_key, coalesce(n.device_name, o.device_name) AS device_name,
    coalesce(n.iot_id, o.iot_id) AS iot_id, module_name, change,
    ov.module_version AS old_version, nv.module_version AS new_version{{cells}}
  FROM (
    SELECT old_line, new_line, product, module, c.old_version, c.new_version, {CHANGE} AS change
    FROM (FROM changes JOIN matched USING (device) WHERE presence = 'compared'
      AND old_version IS DISTINCT FROM new_version) c
    LEFT JOIN version_order v ON {ORDERED}
    UNION ALL
    SELECT old_line, new_line, product, NULL, NULL, NULL, presence::VARCHAR FROM matched
    WHERE presence IN ('joined', 'left', 'not_seen')
  ) d
  LEFT JOIN module_titles USING (product, module)
  LEFT JOIN old_devices o ON d.old_line = o.line LEFT JOIN new_devices n ON d.new_line = n.line
  LEFT JOIN versions ov ON d.old_version = ov.version LEFT JOIN versions nv ON d.new_version = nv.version"""
"""All changes of devices. The names of the devices are read from the runs' files only here."""
