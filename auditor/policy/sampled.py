"""What a sample lets a policy say of all devices: how many violate a rule, or run the newest version, by intervals.

A violation that was seen is one, whoever was not drawn. That none was seen proves nothing of the rest, so no rule is
complied with by a sample, but a rollout: its share is, or is not, where it has to be by its whole interval of 95%.
Devices that were drawn and failed are taken for like those that answered.

| table | a row |
|---|---|
| ``strata`` | what a sample was drawn of: an account's product as the fleet names it, and how many devices |
| ``placed`` | a device (``line``) that has a conclusive answer, and its stratum |
| ``reach`` | a stratum and a product that devices of it are of |
| ``intervals`` | of a rule ``newest`` a product's module of which not all devices were drawn, and its share |
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from operator import itemgetter
from pathlib import Path

import duckdb

from auditor.policy.model import MaxAge, Newest, Required, Rule
from auditor.policy.scope import COMPLIANT, NOT_SEEN, RANKS_BY_ANSWERS, RANKS_BY_VERSIONS, UNPARSEABLE, VIOLATED
from auditor.runs.views import number
from auditor.stats.intervals import Interval, Stratum
from auditor.stats.ratio_estimator import share_over
from auditor.storage.database import define_read, parquet
from auditor.text.formatting import fine_part

_RANKS = f"{COMPLIANT}, {VIOLATED}, {UNPARSEABLE}"


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a rule comes to where not all that it is about was drawn.

    Attributes:
        interval: of a rule about devices the part that violates it, of those that it is about; of ``newest`` the part
            that runs the newest version, of the product's module that decides the verdict. None where nothing tells.
        text: the same in words; None likewise.
    """

    interval: Interval | None = None
    text: str | None = None


def is_sampled(database: duckdb.DuckDBPyConnection) -> bool:
    """Whether the run has devices that were not drawn."""
    return number(database, "SELECT count(*) FROM asked WHERE undrawn") > 0


def define_sample(database: duckdb.DuckDBPyConnection, fleet: Path) -> None:
    """Defines ``strata``, ``placed`` and ``reach``.

    Args:
        database: with what ``judging`` defines.
        fleet: the run's ``fleet.parquet``.
    """
    answered = "status IN ('ok', 'empty', 'not_found')"
    # A device that was never activated is known without a question, so it is none of those that stand for others.
    certain = "coalesce(reason = 'never_activated' AND attempts = 0, false)"
    database.execute(
        f"CREATE TEMP TABLE drawn AS SELECT line, d.account, f.product_key AS key, {certain} AS certain, "
        f"{answered} AS answered, source IS NOT DISTINCT FROM 'unsampled' AS undrawn "
        f"FROM device_rows d JOIN (SELECT ordinal, product_key FROM {parquet(fleet)}) f USING (ordinal)"
    )
    database.execute(
        "CREATE TABLE strata AS SELECT (row_number() OVER ())::INTEGER AS stratum, * FROM ("
        "SELECT account, key, certain, count(*) AS devices, count(*) FILTER (answered) AS sampled, "
        "count(*) FILTER (undrawn) AS undrawn FROM drawn GROUP BY ALL ORDER BY ALL)"
    )
    lines = (
        "SELECT line, stratum, answered FROM drawn d JOIN strata s ON d.account = s.account "
        "AND d.key IS NOT DISTINCT FROM s.key AND d.certain = s.certain"
    )
    database.execute(f"CREATE TABLE placed AS SELECT line, stratum FROM ({lines}) WHERE answered")
    database.execute(f"CREATE TABLE reach AS SELECT DISTINCT stratum, product FROM ({lines}) JOIN asked USING (line)")
    database.execute("DROP TABLE drawn")


def sample_doubt(database: duckdb.DuckDBPyConnection) -> tuple[str, ...]:
    """That verdicts are by a sample, in a sentence."""
    ((devices, drawn),) = database.execute("SELECT sum(devices), sum(devices - undrawn) FROM strata").fetchall()
    told = "what violates is a fact, that nothing does is not proven, and shares are with 95% confidence"
    return (f"verdicts are by a sample of {drawn:,} of {devices:,} devices: {told}",)


def define_intervals(database: duckdb.DuckDBPyConnection, work: Path, *, sampled: bool) -> None:
    """Defines ``intervals``, which has no row where the run is no sample.

    Args:
        database: with what ``group_verdicts`` has defined of rules ``newest``, and ``standings`` to the best versions.
        work: a folder for a file that is written meanwhile.
        sampled: whether ``define_sample`` was called.
    """
    columns = "{'rule': 'INTEGER', 'product': 'INTEGER', 'module': 'INTEGER', 'share': 'DOUBLE', 'low': 'DOUBLE', "
    columns += "'high': 'DOUBLE', 'told_low': 'VARCHAR', 'told_high': 'VARCHAR'}"
    define_read(database, "intervals", columns, work / "intervals", _intervals(database) if sampled else ())


def _intervals(database: duckdb.DuckDBPyConnection) -> Iterator[str]:
    # A device that spells a module in two ways reports it once: a stratum has no more of them than were drawn.
    result = database.cursor().execute(
        """SELECT rule, product, module, any_value(s.devices), any_value(s.sampled), count(DISTINCT line),
          count(DISTINCT line) FILTER (standing = 'same')
        FROM (
          SELECT rule, line, combo FROM reported JOIN chosen USING (combo) ANTI JOIN pardoned USING (rule, combo)
          ANTI JOIN excused USING (rule, line, row)
        ) JOIN combos USING (combo) JOIN versions USING (module_version) JOIN best USING (rule, product, module)
        JOIN standings ON one = version AND other = best JOIN placed USING (line) JOIN strata s USING (stratum)
        GROUP BY rule, product, module, stratum
        QUALIFY max(any_value(s.undrawn)) OVER (PARTITION BY rule, product, module) > 0
        ORDER BY rule, product, module, stratum"""
    )

    def rows() -> Iterator[tuple[int, ...]]:
        while batch := result.fetchmany(1_000):
            yield from batch

    for group, found in groupby(rows(), key=itemgetter(0, 1, 2)):
        each = share_over([Stratum(*counts) for _, _, _, *counts in found])
        told = f"{each.share!r} {each.low!r} {each.high!r} {fine_part(each.low)} {fine_part(each.high)}"
        yield f"{' '.join(map(str, group))} {told}\n"


def sampled_rule(database: duckdb.DuckDBPyConnection, at: int, rule: Rule) -> Sampled | None:
    """What a sample says of a rule; None if all that it is about were drawn.

    Args:
        database: with verdicts.
        at: the rule's number.
        rule: the rule.
    """
    reached = "SELECT DISTINCT stratum FROM reach SEMI JOIN (FROM scope WHERE rule = $1) USING (product)"
    query = f"SELECT count(*) FROM strata SEMI JOIN ({reached}) USING (stratum) WHERE undrawn > 0"
    ((undrawn,),) = database.execute(query, [at]).fetchall()
    if not undrawn:
        return None
    if rule.unit == "modules":
        return _of_groups(database, at, rule)
    ranks = RANKS_BY_ANSWERS if isinstance(rule.condition, Required | MaxAge) else RANKS_BY_VERSIONS
    strata = [
        Stratum(*counts)
        for counts in database.execute(
            f"SELECT devices, sampled, coalesce(judged, 0), coalesce(violated, 0) FROM strata "
            f"SEMI JOIN ({reached}) USING (stratum) LEFT JOIN ("
            f"SELECT stratum, count(*) FILTER (rank IN ({_RANKS})) AS judged, "
            f"count(*) FILTER (rank = {VIOLATED}) AS violated FROM ({ranks}) JOIN placed USING (line) "
            "GROUP BY stratum) USING (stratum) ORDER BY stratum",
            [at],
        ).fetchall()
    ]
    judged, violated = sum(each.reporting for each in strata), sum(each.running for each in strata)
    if not judged:
        return Sampled()
    interval = share_over(strata)
    if not violated:
        at_most = ceil(1_000 * interval.high) / 1_000  # rounded down, it would not be the most
        most = f"at most {fine_part(at_most)} of those that it is about may (95%)"
        return Sampled(interval, f"none of {judged:,} sampled devices violates it: {most}")
    text = (
        f"{violated:,} of {judged:,} sampled devices violate it: {fine_part(interval.share)} of those that it is about"
    )
    return Sampled(interval, f"{text} ({fine_part(interval.low)} to {fine_part(interval.high)})")


def _of_groups(database: duckdb.DuckDBPyConnection, at: int, rule: Rule) -> Sampled:
    if not isinstance(rule.condition, Newest):
        return Sampled()
    # The one that decides: of the worst verdict that there is, the one that has the furthest to go.
    found = database.execute(
        "SELECT share, low, high, count(*) OVER () FROM groups JOIN intervals USING (rule, product, module) "
        f"WHERE rule = $1 AND rank <> {UNPARSEABLE} "
        f"ORDER BY rank = {VIOLATED} DESC, rank = {NOT_SEEN} DESC, low LIMIT 1",
        [at],
    ).fetchone()
    if found is None:
        return Sampled()
    *limits, several = found
    interval = Interval(*limits)
    most = f"{fine_part(interval.low)} to {fine_part(interval.high)} run the newest by the sample"
    return Sampled(interval, f"{most}{' where that is least' if several > 1 else ''}, asked for: {rule.condition.text}")
