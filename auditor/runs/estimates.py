"""What a sampled run shows of its complete fleet, and how often carried results are outdated.

The intervals of the view ``inventory``, the summary of a sample, the recheck of carried results, and the devices
whose result is carried although they were selected for a query.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from auditor.runs.folder import FLEET, SELECTED
from auditor.runs.selection_info import OutdatedResults, Recheck, SelectionInfo
from auditor.runs.views import INVENTORY, QUERIED
from auditor.stats.intervals import Interval, Stratum, error_rate
from auditor.stats.ratio_estimator import combined_share_interval
from auditor.stats.stratified import StratifiedCounts
from auditor.storage.database import Database, device_key_sql, parquet, scalar
from auditor.storage.json_types import Count, NonEmptyText, PositiveCount, Share

CONFIDENCE = 0.95
"""Probability that an interval contains the true value; ``auditor.stats.intervals`` is made for it."""

MAX_SHARES, MAX_SHARES_TIMES_STRATA = 1_000, 200_000
"""Versions in a sample's summary; fewer in a fleet of many products, since each is computed for each stratum."""

MIN_SHARES = 20
"""Versions in a sample's summary whatever the number of strata."""

MAX_NAME_CHARACTERS = 250_000
"""Total length of the names in a sample's summary: a reader loads the head of a file as a whole."""

_DIGITS = 6

_WITH_RECHECK = ("incremental", "index")
"""Strategies that query a random part of the devices whose results are carried."""

_CARRIED = "'carried', 'index'"
"""SQL of the sources of results that were not queried in the run."""


@dataclass(frozen=True, slots=True)
class FleetShare:
    """A version of a module over all products and accounts, estimated from a sample.

    Attributes:
        module_name: the module.
        module_version: the version; may be empty.
        devices: devices of the sample that run it.
        of_fleet: its share of all devices of the fleet.
        of_module: its share of the devices with the module.
    """

    module_name: NonEmptyText
    module_version: str
    devices: PositiveCount
    of_fleet: Interval
    of_module: Interval


@dataclass(frozen=True, slots=True)
class SampleSummary:
    """What a random sample shows of the complete fleet.

    Attributes:
        devices: devices of the fleet.
        sampled: devices in the sample.
        answered: sampled devices with a conclusive answer.
        never_activated: devices that were never activated, as the platform lists them; they need no query.
        confidence: confidence of the intervals.
        unseen: upper limit of the share of a version that the sample does not contain; null: no answer.
        fleet: the most frequent versions over all accounts and products, the most frequent first.
        omitted: how many more versions the sample contains.
    """

    devices: PositiveCount
    sampled: Count
    answered: Count
    never_activated: Count
    confidence: float
    unseen: Share | None
    fleet: tuple[FleetShare, ...]
    omitted: Count


def may_be_sampled(folder: Path, *, sealed: bool) -> bool:
    """Return whether a run can be a sample: a live one has selected devices then. Otherwise its lines are not read."""
    return sealed or (folder / SELECTED).is_file()


def define_estimates(database: Database, folder: Path) -> StratifiedCounts | None:
    """Add the columns ``low`` and ``high`` to the view ``inventory`` of a sampled run; other runs keep theirs.

    Return the counts of the sample; None: the run is not sampled. The columns are the limits of the 95% confidence
    interval of ``share``, both equal to it where it is certain. The database has the views of the run.
    """
    if not database.execute("SELECT 1 FROM devices WHERE source = 'unsampled' LIMIT 1").fetchall():
        return None
    counts = read_stratified_counts(database, parquet(folder / FLEET))
    estimates = [
        (*share.version[:2], share.module_key, share.version.module_version, share.interval.low, share.interval.high)
        for share in counts.shares("product")
    ]
    kinds = dict.fromkeys(("account", "product_key", "module_key", "module_version"), "VARCHAR")
    kinds |= {"low": "DOUBLE", "high": "DOUBLE"}
    columns = ", ".join(f"unnest(${at}::{kind}[]) AS {name}" for at, (name, kind) in enumerate(kinds.items(), 1))
    values = [list(column) for column in zip(*estimates, strict=True)] or [[]] * len(kinds)
    database.execute(f"CREATE TABLE estimates AS SELECT {columns}", values)
    # A foreign file may have modules of devices that are not in the fleet: they have no estimate. And where a product's
    # devices are named in both ways, its share is no estimate of one stratum: the interval contains both.
    limits = (
        f"round(least(i.share, coalesce(e.low, 0)), {_DIGITS}) AS low, "
        f"round(greatest(i.share, coalesce(e.high, 1)), {_DIGITS}) AS high"
    )
    database.execute(
        f"CREATE OR REPLACE VIEW inventory AS SELECT i.*, {limits} FROM ({INVENTORY}) i LEFT JOIN estimates e "
        "ON i.account = e.account AND i.product_key IS NOT DISTINCT FROM e.product_key "
        "AND lower(i.module_name) = e.module_key AND i.module_version = e.module_version "
        "ORDER BY i.account, i.product_key, i.module_name, i.devices DESC, i.module_version"
    )
    return counts


def summarize_sample(database: Database, counts: StratifiedCounts) -> SampleSummary:
    """Return what a sample shows of the complete fleet; ``counts`` is the result of ``define_estimates``."""
    devices, sampled, answered = database.execute(
        "SELECT count(*), count(*) FILTER (source IS DISTINCT FROM 'unsampled'), "
        "count(*) FILTER (status IN ('ok', 'empty', 'not_found')) FROM devices"
    ).fetchone() or (0, 0, 0)
    limit = max(MIN_SHARES, min(MAX_SHARES, MAX_SHARES_TIMES_STRATA // max(1, len(counts.devices))))
    of_module = {share.version: share.interval for share in counts.shares("module", limit, frequent=True)}
    shares, characters_left = [], MAX_NAME_CHARACTERS
    for share in counts.shares("fleet", limit, frequent=True):
        names = share.version[2:]
        if share.version in of_module and (characters_left := characters_left - sum(map(len, names))) >= 0:
            intervals = (_rounded(share.interval), _rounded(of_module[share.version]))
            shares.append(FleetShare(*names, share.on_version, *intervals))
    unseen = counts.unseen_fleet_share()
    return SampleSummary(
        devices=devices,
        sampled=sampled - counts.certain,
        answered=answered - counts.certain,
        never_activated=counts.certain,
        confidence=CONFIDENCE,
        unseen=None if unseen is None else round(unseen, _DIGITS),
        fleet=tuple(shares),
        omitted=counts.version_count - len(shares),
    )


def _rounded(interval: Interval) -> Interval:
    return Interval(*(round(number, _DIGITS) for number in (interval.share, interval.low, interval.high)))


def read_stratified_counts(database: Database, fleet: str | None = None) -> StratifiedCounts:
    """Return the sample counts of a run, from its views ``devices`` and ``modules``.

    ``fleet`` is the SQL that reads ``fleet.parquet``, which is needed if devices are named only by iot_id.
    """
    counts = StratifiedCounts()
    stratum = "product_key"
    if fleet is not None and database.execute(f"SELECT 1 FROM {fleet} WHERE product_key IS NULL LIMIT 1").fetchall():
        stratum = "stratum"
        database.execute(
            f"CREATE OR REPLACE TEMP VIEW strata AS SELECT d.*, f.product_key AS stratum FROM devices d "
            f"JOIN (SELECT ordinal, product_key FROM {fleet}) f USING (ordinal)"
        )
    else:
        database.execute("CREATE OR REPLACE TEMP VIEW strata AS FROM devices")
    certain = "reason IS NOT DISTINCT FROM 'never_activated' AND attempts = 0"
    answered = "status IN ('ok', 'empty', 'not_found')"
    rows = database.execute(
        f"SELECT account, {stratum}, count(*) FILTER (NOT ({certain})), "
        f"count(*) FILTER ({answered} AND NOT ({certain})), count(*) FILTER ({certain}) FROM strata GROUP BY ALL "
        "ORDER BY ALL"  # the last digit of a sum of fractions depends on the order
    ).fetchall()
    for account, key, devices, sampled, never_activated in rows:
        counts.certain += never_activated
        if devices:
            counts.devices[account, key] = devices
            counts.sampled[account, key] = sampled
    same = " AND ".join(f"d.{name} IS NOT DISTINCT FROM m.{name}" for name in ("product_key", "device_name", "iot_id"))
    column, join = "m.product_key", ""
    if stratum == "stratum":
        column, join = "d.stratum", f"JOIN (FROM strata WHERE status = 'ok') d ON d.account = m.account AND {same} "
    by_version = (
        f"SELECT m.account, {column}, m.product_key, max(m.module_name), lower(m.module_name) AS module_key, "
        f"m.module_version, count(*) FROM modules m {join}GROUP BY ALL ORDER BY ALL"
    )
    for account, key, product_key, name, module_key, version, devices in database.execute(by_version).fetchall():
        if counts.sampled[account, key]:  # otherwise the product is not in the fleet
            counts.add((account, key), (account, product_key), name, version, devices, module_key=module_key)
    database.execute("DROP VIEW strata")
    return counts


MODULE_VERSIONS = (
    "list_sort(list_transform({0}, lambda module: lower(module.module_name) || chr(0) || module.module_version))"
)  # fmt: skip
"""SQL of an answer's modules as a list that is equal if the modules are; names are equal regardless of case."""


def read_recheck(database: Database, selection: SelectionInfo | None) -> Recheck | None:
    """Return the result of the recheck; None: no device was checked.

    An account that was selected by a version without ``unchanged`` has the results to carry, and the checked ones.
    """
    query = (
        "FROM selected_devices SELECT account, count(*) WHERE selection_reason = 'recheck' GROUP BY ALL ORDER BY ALL"
    )
    checked = dict(database.execute(query).fetchall())
    if not checked or selection is None:
        return None
    changed = f"p.status <> l.status OR {MODULE_VERSIONS.format('p.modules')} <> {MODULE_VERSIONS.format('l.modules')}"
    # Aliases of one device have a line under either name, and one row in the file of selected devices for each.
    columns = f"p.account, {device_key_sql('p.')} AS key, {changed} AS changed"
    answers = _planned_answers("JOIN", columns, "selection_reason = 'recheck'", QUERIED)
    devices = f"SELECT account, key, bool_or(changed) AS changed FROM ({answers}) GROUP BY ALL"
    query = f"SELECT account, count(*), count(*) FILTER (changed) FROM ({devices}) GROUP BY ALL"
    found = {account: counts for account, *counts in database.execute(query).fetchall()}
    strata = []
    for each in selection.accounts:
        unchanged = each.carried + checked.get(each.account, 0) if each.unchanged is None else each.unchanged
        answered, different = found.get(each.account, (0, 0))
        if max(unchanged, answered):
            strata.append(Stratum(max(unchanged, answered), answered, answered, different))
    counts = (sum(each.devices for each in strata), sum(checked.values()))
    recheck = Recheck(*counts, sum(each.answered for each in strata), sum(each.on_version for each in strata))
    if not recheck.answered:
        return recheck
    if len(strata) == 1:
        rate = error_rate(recheck.carried, recheck.answered, recheck.changed)
    else:  # accounts may have different budgets, and so different fractions of their devices are checked
        rate = combined_share_interval(strata)
    return replace(recheck, rate=round(rate.share, 8), low=round(rate.low, 8), high=round(rate.high, 8))


def estimate_outdated(
    database: Database, selection: SelectionInfo | None, recheck: Recheck | None
) -> OutdatedResults | None:
    """Return how many of the carried results, or those of the index, are outdated; None if that is not estimated.

    The results that were checked are not carried, whether they were outdated or not.
    """
    accounts = () if selection is None or selection.strategy not in _WITH_RECHECK else selection.accounts
    carried = scalar(database, f"SELECT count(*) FROM lines WHERE source IN ({_CARRIED})") if accounts else 0
    if not carried or not accounts or any(each.unchanged is None for each in accounts):
        return None
    left = _planned_answers("SEMI JOIN", "p.account", "selection_reason = 'recheck'", _CARRIED)
    checked = 0 if recheck is None else recheck.checked - scalar(database, f"SELECT count(*) FROM ({left})")
    unchanged = sum(each.unchanged or 0 for each in accounts)
    unchecked = min(carried, max(0, unchanged - checked))
    may_have_changed = carried - unchecked
    if recheck is None or recheck.low is None or recheck.high is None:
        return OutdatedResults(carried, may_have_changed)
    low, high = (min(unchecked, max(0.0, limit * unchanged - recheck.changed)) for limit in (recheck.low, recheck.high))
    return OutdatedResults(
        carried, may_have_changed, round(low / carried, 8), round((high + may_have_changed) / carried, 8)
    )


def count_not_reached(database: Database) -> int:
    """Count the devices that were selected and not queried, and whose previous results are carried instead.

    Devices that were selected only for the recheck do not count: nothing shows that they changed.
    """
    left = _planned_answers("SEMI JOIN", "p.account", "selection_reason <> 'recheck'", _CARRIED)
    return scalar(database, f"SELECT count(*) FROM ({left})")


def _planned_answers(join: str, columns: str, condition: str, sources: str) -> str:
    """Return the SQL of the selected devices (``p``) that have an answer (``l``) of one of the sources."""
    return " UNION ALL ".join(
        f"SELECT {columns} FROM (FROM selected_devices WHERE {condition} AND iot_id IS {negation}NULL) p "
        f"{join} (FROM lines WHERE source IN ({sources})) l ON p.account = l.account AND {on}"
        for negation, on in (
            ("NOT ", "p.iot_id = l.iot_id"),
            ("", "p.product_key = l.product_key AND p.device_name = l.device_name"),
        )
    )
