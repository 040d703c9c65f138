"""Policy results of a sample: intervals for the share of devices that violate a rule, or run the newest version.

A violation in the sample is certain. No violation in the sample proves nothing about the other devices. So a sample
cannot show compliance, except with ``newest`` and ``released``: there the whole 95% interval of the share decides.
Sampled devices that failed are assumed to be like those that answered.

| table | a row |
|---|---|
| ``strata`` | a stratum of the sample: an account's product as the fleet names it, and its numbers of devices |
| ``stratum_devices`` | a device (``line``) with a conclusive answer, and its stratum |
| ``stratum_products`` | a stratum and a product of its devices |
| ``rollout_intervals`` | a rule about a share, a product's module with unsampled devices, and its share and interval |
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from operator import itemgetter
from pathlib import Path

from auditor.models import RunWarning
from auditor.policy.model import MaxAge, Newest, Released, Required, Rule
from auditor.policy.scope import COMPLIANT, NOT_SEEN, RANKS_BY_ANSWERS, RANKS_BY_VERSIONS, UNPARSEABLE, VIOLATED
from auditor.stats.intervals import Interval, Stratum
from auditor.stats.ratio_estimator import combined_share_interval
from auditor.storage.database import Database, load_rows, parquet, result_rows, scalar
from auditor.text.formatting import format_precise_share

_RANKS = f"{COMPLIANT}, {VIOLATED}, {UNPARSEABLE}"


@dataclass(frozen=True, slots=True)
class SampleResult:
    """Result of a rule that has unsampled devices in its scope: an interval, and ``text`` that says the same.

    The interval is for the share of the devices in scope that violate the rule. For ``newest`` it is for the share of
    devices with the newest version, in the product's module that decides the verdict. None: unknown.
    """

    interval: Interval | None = None
    text: str | None = None


def has_unsampled(database: Database) -> bool:
    """Return whether the run has unsampled devices."""
    return scalar(database, "SELECT count(*) FROM policy_devices WHERE unsampled") > 0


def define_strata(database: Database, fleet: Path) -> None:
    """Define ``strata``, ``stratum_devices`` and ``stratum_products``; ``fleet`` is the run's ``fleet.parquet``."""
    answered = "status IN ('ok', 'empty', 'not_found')"
    # The answer of a never activated device is certain without a query, so it represents no other device.
    certain = "coalesce(reason = 'never_activated' AND attempts = 0, false)"
    database.execute(
        f"CREATE TEMP TABLE sample_rows AS SELECT line, d.account, f.product_key AS key, {certain} AS certain, "
        f"{answered} AS answered, source IS NOT DISTINCT FROM 'unsampled' AS unsampled "
        f"FROM device_rows d JOIN (SELECT ordinal, product_key FROM {parquet(fleet)}) f USING (ordinal)"
    )
    database.execute(
        "CREATE TABLE strata AS SELECT (row_number() OVER ())::INTEGER AS stratum, * FROM ("
        "SELECT account, key, certain, count(*) AS devices, count(*) FILTER (answered) AS sampled, "
        "count(*) FILTER (unsampled) AS unsampled FROM sample_rows GROUP BY ALL ORDER BY ALL)"
    )
    lines = (
        "SELECT line, stratum, answered FROM sample_rows d JOIN strata s ON d.account = s.account "
        "AND d.key IS NOT DISTINCT FROM s.key AND d.certain = s.certain"
    )
    database.execute(f"CREATE TABLE stratum_devices AS SELECT line, stratum FROM ({lines}) WHERE answered")
    database.execute(
        f"CREATE TABLE stratum_products AS SELECT DISTINCT stratum, product FROM ({lines}) "
        "JOIN policy_devices USING (line)"
    )
    database.execute("DROP TABLE sample_rows")


def sample_warnings(database: Database) -> tuple[RunWarning, ...]:
    """Return the warning that verdicts are based on a sample."""
    ((devices, sampled),) = database.execute("SELECT sum(devices), sum(devices - unsampled) FROM strata").fetchall()
    meaning = "violations are certain, compliance is not proven, and shares have 95% confidence"
    detail = f"verdicts are based on a sample of {sampled:,} of {devices:,} devices: {meaning}"
    return (RunWarning("policy_sample", "", detail),)


def define_rollout_intervals(database: Database, work: Path, *, sampled: bool) -> None:
    """Define ``rollout_intervals`` for rules about shares; it is empty if the run is no sample."""
    columns = "{'rule': 'INTEGER', 'product': 'INTEGER', 'module': 'INTEGER', 'share': 'DOUBLE', 'low': 'DOUBLE', "
    columns += "'high': 'DOUBLE', 'low_text': 'VARCHAR', 'high_text': 'VARCHAR'}"
    lines = _rollout_intervals(database) if sampled else ()
    load_rows(database, "rollout_intervals", columns, work / "rollout_intervals", lines)


def _rollout_intervals(database: Database) -> Iterator[str]:
    # A device that spells a module in two ways counts once, so that a stratum has no more of them than sampled devices.
    result = database.cursor().execute(
        """SELECT rule, product, module, any_value(s.devices), any_value(s.sampled), count(DISTINCT line),
          count(DISTINCT line) FILTER (is_on)
        FROM (
          SELECT rule, line, module_version_id FROM reported JOIN in_scope USING (module_version_id)
          ANTI JOIN exempt_versions USING (rule, module_version_id) ANTI JOIN exempt_rows USING (rule, line, row)
          ANTI JOIN outside_devices USING (rule, line)
        ) JOIN module_versions USING (module_version_id) JOIN versions USING (module_version)
        JOIN (SELECT rule, product, module, version, is_on FROM share_versions) USING (rule, product, module, version)
        JOIN stratum_devices USING (line) JOIN strata s USING (stratum)
        GROUP BY rule, product, module, stratum
        QUALIFY max(any_value(s.unsampled)) OVER (PARTITION BY rule, product, module) > 0
        ORDER BY rule, product, module, stratum"""
    )
    for group, strata in groupby(result_rows(result), key=itemgetter(0, 1, 2)):
        interval = combined_share_interval([Stratum(*counts) for _, _, _, *counts in strata])
        texts = f"{format_precise_share(interval.low)} {format_precise_share(interval.high)}"
        yield f"{' '.join(map(str, group))} {interval.share!r} {interval.low!r} {interval.high!r} {texts}\n"


def read_sample_result(database: Database, at: int, rule: Rule) -> SampleResult | None:
    """Read the result of a rule, of number ``at``, over a sample; None if no device in its scope is unsampled."""
    in_scope = "SELECT stratum FROM stratum_products SEMI JOIN (FROM product_scope WHERE rule = $1) USING (product)"
    query = f"SELECT count(*) FROM strata SEMI JOIN ({in_scope}) USING (stratum) WHERE unsampled > 0"
    if not scalar(database, query, [at]):
        return None
    if rule.unit == "modules":
        return _read_rollout(database, at, rule)
    ranks = RANKS_BY_ANSWERS if isinstance(rule.condition, Required | MaxAge) else RANKS_BY_VERSIONS
    query = (
        f"SELECT devices, sampled, coalesce(evaluated, 0), coalesce(violated, 0) FROM strata "
        f"SEMI JOIN ({in_scope}) USING (stratum) LEFT JOIN ("
        f"SELECT stratum, count(*) FILTER (rank IN ({_RANKS})) AS evaluated, "
        f"count(*) FILTER (rank = {VIOLATED}) AS violated FROM ({ranks}) JOIN stratum_devices USING (line) "
        "GROUP BY stratum) USING (stratum) ORDER BY stratum"
    )
    strata = [Stratum(*counts) for counts in database.execute(query, [at]).fetchall()]
    evaluated, violated = sum(each.with_module for each in strata), sum(each.on_version for each in strata)
    if not evaluated:
        return SampleResult()
    interval = combined_share_interval(strata)
    if not violated:
        limit = format_precise_share(ceil(1_000 * interval.high) / 1_000)  # a limit must not be rounded down
        text = f"none of {evaluated:,} sampled devices violates it: at most {limit} of the devices in scope may (95%)"
        return SampleResult(interval, text)
    share, low, high = map(format_precise_share, (interval.share, interval.low, interval.high))
    of_scope = f"{share} of the devices in scope ({low} to {high})"
    return SampleResult(interval, f"{violated:,} of {evaluated:,} sampled devices violate it: {of_scope}")


def _read_rollout(database: Database, at: int, rule: Rule) -> SampleResult:
    if not isinstance(rule.condition, Newest | Released):
        return SampleResult()
    # The deciding module has the worst verdict, and the lowest share among those.
    row = database.execute(
        "SELECT share, low, high, count(*) OVER () FROM group_verdicts "
        "JOIN rollout_intervals USING (rule, product, module) "
        f"WHERE rule = $1 AND rank <> {UNPARSEABLE} "
        f"ORDER BY rank = {VIOLATED} DESC, rank = {NOT_SEEN} DESC, low LIMIT 1",
        [at],
    ).fetchone()
    if row is None:
        return SampleResult()
    *limits, modules = row
    interval = Interval(*limits)
    low, high = format_precise_share(interval.low), format_precise_share(interval.high)
    where = " in the module with the fewest" if modules > 1 else ""
    what = "newest" if isinstance(rule.condition, Newest) else "released version"
    text = f"{low} to {high} run the {what} by the sample{where}, required: {rule.condition.text}"
    return SampleResult(interval, text)
