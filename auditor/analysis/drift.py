"""What changed between two runs of a fleet: by module, by device, and never what was only not seen.

Of a device that answered in both runs, each module is the ``same``, ``upgraded``, ``downgraded``, ``changed`` (the
versions differ and cannot be ordered, or mean the same), ``appeared`` or ``vanished``. A device that is present in one
run alone has ``joined`` or ``left``: it is not in the other run's fleet, or the platform knows no such device. One that
failed or is pending in either run was ``not_seen``, and one that a sample passed over ``unsampled``, which are none of
these. What samples tell of fleets stands in ``auditor.inventory.sampled_drift``. Which devices are the same is told in
``auditor.inventory.matching``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from auditor.analysis.device_matching import count_carried, define_matched, define_reported, is_sampled
from auditor.analysis.sample_drift import ShareDrift, read_shares, sample_doubt
from auditor.errors import RunFolderError
from auditor.query.snapshot import Frozen, freeze
from auditor.query.version_order import define_standings
from auditor.runs.folder import find_run, runs_in
from auditor.runs.manifest import SCHEMA_VERSION
from auditor.storage.database import READING_MEMORY, READING_THREADS, open_database
from auditor.storage.tables import Table, reading

MODULE_CHANGES = ("upgraded", "downgraded", "changed", "appeared", "vanished")


FATES = ("joined", "left", "not_seen", "unsampled")


CHANGES = (*MODULE_CHANGES, "added", "removed", "joined", "left", "not_seen")
"""Everything that may be found in devices, as ``DriftCounts`` names it."""


@dataclass(frozen=True, slots=True)
class DriftCounts:
    """How much changed.

    Attributes:
        compared: devices that are present in both runs.
        joined: devices present in the new run alone.
        left: devices present in the old run alone.
        not_seen: devices that failed or are pending in either run.
        same: modules of compared devices with one version in both runs.
        upgraded: modules of compared devices with a newer version.
        downgraded: modules of compared devices with an older version.
        changed: modules of compared devices with another version that is neither.
        appeared: modules that compared devices report in the new run alone.
        vanished: modules that compared devices report in the old run alone.
        added: modules of a product that no device reported in the old run.
        removed: modules of a product that no device reports in the new run, none having been not seen.
        unsampled: devices that a sample passed over, in either run; no module of their products is added or removed.
        carried: devices of ``compared`` that were not read again: the new run carries an answer that is no later than
            that of the old run, so that nothing can have changed.
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
    """What changed between two runs.

    Attributes:
        old: the earlier run.
        new: the later run.
        counts: how much changed.
        modules: a row for each product and module: account, product_key, module_name, presence (``added``,
            ``removed`` or ``kept``), then numbers of devices: old_devices and new_devices report it, and of these it is
            same, upgraded, downgraded, changed, appeared, vanished, or the device has joined, left, or was not_seen or
            unsampled.
        devices: a row for each change: account, product_key, device_name, iot_id, module_name, change, old_version,
            new_version; a device that joined, left or was not seen has one row, without a module. Devices that a sample
            passed over have none.
        doubts: why numbers are not of whole fleets or not to be relied on, a sentence each.
        shares: what became of the versions' shares, if a run is a sample; None: both are of whole fleets.
    """

    old: Frozen
    new: Frozen
    counts: DriftCounts
    modules: Table
    devices: Table
    doubts: tuple[str, ...]
    shares: ShareDrift | None = None


@contextmanager
def diff_runs(old: str | Path, new: str | Path) -> Iterator[Drift]:
    """What changed from one run to another; runs that are not sealed are read as they are now.

    Memory is bounded; what does not fit goes to the system's temporary folder.

    Args:
        old: the earlier run folder, or a folder of runs, whose newest is meant.
        new: the later one.

    Raises:
        RunFolderError: one is no run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    folders = find_run(Path(old)), find_run(Path(new))
    with TemporaryDirectory(prefix="auditor-diff-") as temporary:
        work = Path(temporary)
        before, after = (freeze(folder, work / side) for side, folder in zip(("old", "new"), folders, strict=True))
        database = open_database(work / "spill", READING_MEMORY, READING_THREADS)
        source = partial(reading, f"{before.folder}, {after.folder}")
        try:
            with source():
                define_matched(database, before, after)
                define_reported(database, before, after)
                _define_changes(database, work)
                counts = _counts(database)
                sampled = is_sampled(database)
            head = {"schema_version": SCHEMA_VERSION, "old": before.coverage, "new": after.coverage}
            modules = Table(database, "FROM drift ORDER BY ALL", reading=source, name="modules", head=head)
            devices = Table(database, f"{_DEVICES} ORDER BY ALL", reading=source, name="changes", head=head)
            doubts = (*before.doubts, *after.doubts, *_order(before, after))
            shares = read_shares(database, before, after, work, reading=source, head=head) if sampled else None
            told = () if shares is None else (sample_doubt(counts.compared),)
            yield Drift(before, after, counts, modules, devices, (*doubts, *told), shares)
        finally:
            database.close()


def last_two(directory: str | Path) -> tuple[Path, Path]:
    """The newest run in a directory that is not under way, and the one of the same name before it, the older first.

    Raises:
        RunFolderError: there are no two such runs.
    """
    runs, _ = runs_in(Path(directory))
    ended = [(manifest.name, folder) for manifest, folder in runs if manifest.state != "running"]
    named = [folder for name, folder in ended if name == ended[0][0]]
    if len(named) < 2:  # noqa: PLR2004  old and new
        raise RunFolderError(f"{directory}: has no two runs of one name to compare that have ended")
    return named[1], named[0]


def _define_changes(database: duckdb.DuckDBPyConnection, work: Path) -> None:
    """Defines ``verdicts``, what became of each version of each product's module, and ``drift``, their sums."""
    # A module that a device reports twice, spelled in two ways or by two lines, counts once, with the greater text.
    database.execute(
        "CREATE TABLE changes AS SELECT device, module, max(version) FILTER (NOT later) AS old_version, "
        "max(version) FILTER (later) AS new_version FROM reported GROUP BY device, module"
    )
    database.execute("DROP TABLE reported")
    database.execute(
        "CREATE TABLE counted AS SELECT product, module, fate, old_version, new_version, count(*) AS devices "
        "FROM changes JOIN matched USING (device) GROUP BY ALL"
    )
    define_standings(
        database,
        "SELECT p.old_version AS one, p.new_version AS other, o.module_version AS version, n.module_version AS against "
        "FROM (SELECT DISTINCT old_version, new_version FROM counted WHERE fate = 'compared') p "
        "JOIN versions o ON p.old_version = o.version JOIN versions n ON p.new_version = n.version "
        "WHERE p.old_version <> p.new_version",
        work / "standings",
    )
    database.execute(
        f"CREATE VIEW verdicts AS SELECT c.*, {_CHANGE} AS change FROM counted c "
        "LEFT JOIN standings s ON c.old_version = s.one AND c.new_version = s.other"
    )
    database.execute(
        "CREATE TABLE titles AS SELECT product, module, coalesce(max(s.module_name), max(n.module_name)) "
        "AS module_name FROM (SELECT DISTINCT product, module FROM counted) JOIN products p USING (product) "
        "JOIN names n USING (module) LEFT JOIN (SELECT DISTINCT account, product_key, module_name FROM spelled) s "
        "ON s.account = p.account AND s.product_key IS NOT DISTINCT FROM p.product_key "
        "AND s.module_name = n.module_name GROUP BY product, module"
    )
    conditions = {"old_devices": "old_version IS NOT NULL", "new_devices": "new_version IS NOT NULL"}
    conditions |= {change: f"change = '{change}'" for change in ("same", *MODULE_CHANGES, *FATES)}
    conditions |= {
        "unseen_before": "change = 'not_seen' AND old_version IS NULL",
        "unseen_after": "change = 'not_seen' AND new_version IS NULL",
    }
    sums = ", ".join(
        f"coalesce(sum(devices) FILTER ({condition}), 0)::BIGINT AS {name}" for name, condition in conditions.items()
    )
    # Of a product that a sample did not draw whole, nobody knows what those report that were not drawn.
    database.execute(f"""
      CREATE TABLE drift AS SELECT account, product_key, module_name,
        CASE WHEN old_devices = 0 AND unseen_before = 0 AND before IS NOT TRUE THEN 'added'
          WHEN new_devices = 0 AND unseen_after = 0 AND after IS NOT TRUE THEN 'removed' ELSE 'kept' END AS presence,
        * EXCLUDE (product, module, account, product_key, module_name, unseen_before, unseen_after, before, after)
      FROM (SELECT product, module, {sums} FROM verdicts GROUP BY product, module)
      JOIN products USING (product) JOIN titles USING (product, module) LEFT JOIN passed_over USING (product)""")


def _counts(database: duckdb.DuckDBPyConnection) -> DriftCounts:
    devices = dict(database.execute("SELECT fate::VARCHAR, count(*) FROM matched GROUP BY fate").fetchall())
    changes = dict(database.execute("SELECT change, sum(devices)::BIGINT FROM verdicts GROUP BY change").fetchall())
    modules = dict(database.execute("SELECT presence, count(*) FROM drift GROUP BY presence").fetchall())
    # Of joined, left, not_seen and unsampled the devices, not their modules.
    found = changes | devices | modules | {"carried": count_carried(database)}
    return DriftCounts(**{field.name: int(found.get(field.name, 0)) for field in fields(DriftCounts)})


def _order(old: Frozen, new: Frozen) -> tuple[str, ...]:
    if old.manifest.started_at <= new.manifest.started_at:
        return ()
    return (f"{old.folder} began after {new.folder}: the old run is the newer one",)


_CHANGE = """CASE WHEN c.fate <> 'compared' THEN c.fate::VARCHAR
  WHEN c.old_version IS NULL THEN 'appeared' WHEN c.new_version IS NULL THEN 'vanished'
  WHEN c.old_version = c.new_version THEN 'same'
  WHEN s.standing = 'older' THEN 'upgraded' WHEN s.standing = 'newer' THEN 'downgraded' ELSE 'changed' END"""


_DEVICES = f"""SELECT coalesce(n.account, o.account) AS account,
    coalesce(n.product_key, o.product_key) AS product_key, coalesce(n.device_name, o.device_name) AS device_name,
    coalesce(n.iot_id, o.iot_id) AS iot_id, module_name, change,
    ov.module_version AS old_version, nv.module_version AS new_version
  FROM (
    SELECT old_line, new_line, product, module, c.old_version, c.new_version, {_CHANGE} AS change
    FROM (FROM changes JOIN matched USING (device) WHERE fate = 'compared'
      AND old_version IS DISTINCT FROM new_version) c
    LEFT JOIN standings s ON c.old_version = s.one AND c.new_version = s.other
    UNION ALL
    SELECT old_line, new_line, product, NULL, NULL, NULL, fate::VARCHAR FROM matched
    WHERE fate IN ('joined', 'left', 'not_seen')
  ) d
  LEFT JOIN titles USING (product, module)
  LEFT JOIN old_devices o ON d.old_line = o.line LEFT JOIN new_devices n ON d.new_line = n.line
  LEFT JOIN versions ov ON d.old_version = ov.version LEFT JOIN versions nv ON d.new_version = nv.version"""
"""Every change of every device, with the names of the devices, which are read from the runs' files only now."""
