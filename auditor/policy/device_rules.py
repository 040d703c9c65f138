"""What each rule finds in a run's rows (see ``judging``): verdicts on devices and on products' modules, as tables.

| table | a row |
|---|---|
| ``picked`` | a rule and a combo with its rank; of ``newest`` those that are behind where too few are not |
| ``found`` | a rule and a device (``line``) that breaks it as a whole, and when it answered, if that is why |
| ``groups`` | a rule and a product's module with its rank, the reason, and whether it is listed itself |
| ``tally`` | a rule, a rank, and how many devices or groups have it |
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb

from auditor.policy.group_rules import judge_groups
from auditor.policy.model import Deny, Exact, MaxAge, Minimum, Required, Rule
from auditor.policy.scope import (
    ANSWERED,
    COMPLIANT,
    EXCEPTED,
    NOT_SEEN,
    RANKS_BY_ANSWERS,
    RANKS_BY_VERSIONS,
    SEEN,
    UNANSWERED,
    UNPARSEABLE,
    UNSAMPLED,
    VIOLATED,
)
from auditor.query.version_order import define_standings
from auditor.text.globs import is_plain, regex_of


def define_verdicts(
    database: duckdb.DuckDBPyConnection, rules: Sequence[Rule], now: datetime, work: Path, *, sampled: bool = False
) -> None:
    """Defines the tables above.

    Args:
        database: with what ``judging`` defines, and of a sample what ``sampled_policy`` does.
        rules: the rules.
        now: the time by which ages are judged.
        work: a folder for files that are written meanwhile.
        sampled: whether there are devices that were not drawn.
    """
    database.execute("CREATE TABLE picked (rule INTEGER, combo INTEGER, rank TINYINT)")
    database.execute("CREATE TABLE found (rule INTEGER, line BIGINT, rank TINYINT, moment TIMESTAMP)")
    database.execute("CREATE TABLE tally (rule INTEGER, rank TINYINT, number BIGINT)")
    _define_bounds(database, rules, work)
    for number, rule in enumerate(rules):
        match rule.condition:
            case Minimum() | Exact() | Deny():
                _judge_versions(database, number, rule)
            case Required():
                _judge_reports(database, number)
            case MaxAge(seconds):
                _judge_answers(database, number, now - timedelta(seconds=seconds))
            case _:
                continue
        _tally_unseen(database, number)
    judge_groups(database, rules, work, sampled=sampled)
    database.execute(
        f"INSERT INTO tally SELECT rule, {SEEN}, count(*) FROM scope JOIN asked USING (product) WHERE {ANSWERED} "
        "GROUP BY rule"
    )


def _define_bounds(database: duckdb.DuckDBPyConnection, rules: Sequence[Rule], work: Path) -> None:
    """Compares each version with those that the rules about it name: the tables ``bounds`` and ``standings``."""
    database.execute("CREATE TABLE bounds (bound INTEGER, rule INTEGER, text VARCHAR)")
    named: list[tuple[int, str]] = []
    for number, rule in enumerate(rules):
        match rule.condition:
            case Minimum(version):
                named.append((number, version))
            case Deny(patterns):
                named.extend((number, pattern) for pattern in patterns if is_plain(pattern))
            case _:
                pass
    if named:
        database.executemany("INSERT INTO bounds VALUES (?, ?, ?)", [(at, *each) for at, each in enumerate(named)])
    pairs = (
        "SELECT DISTINCT v.version AS one, bound AS other, v.module_version AS version, text AS against "
        "FROM chosen JOIN bounds USING (rule) JOIN combos USING (combo) JOIN versions v USING (module_version)"
    )
    define_standings(database, pairs, work / "standings")


def _judge_versions(database: duckdb.DuckDBPyConnection, number: int, rule: Rule) -> None:
    stands = "SELECT one FROM standings JOIN bounds ON other = bound WHERE rule = $1 AND standing"
    match rule.condition:
        case Deny(patterns):
            rank = f"regexp_full_match(module_version, $2) OR version IN ({stands} = 'same')"
            given: object = regex_of(patterns)
        case Exact(versions):
            rank, given = "NOT list_contains($2::VARCHAR[], module_version)", list(versions)
        case _:
            rank, given = f"version IN ({stands} = $2)", "older"
    unordered = f"WHEN version IN ({stands} = 'unordered') THEN {UNPARSEABLE}" if _has_order(rule) else ""
    database.execute(
        f"INSERT INTO picked SELECT rule, combo, CASE WHEN p.combo IS NOT NULL THEN {EXCEPTED} "
        f"WHEN {rank} THEN {VIOLATED} {unordered} ELSE {COMPLIANT} END "
        "FROM chosen JOIN combos USING (combo) JOIN versions USING (module_version) "
        "LEFT JOIN pardoned p USING (rule, combo) WHERE rule = $1",
        [number, given],
    )
    _tally_devices(database, number, RANKS_BY_VERSIONS)


def _has_order(rule: Rule) -> bool:
    return isinstance(rule.condition, Minimum)


def _judge_reports(database: duckdb.DuckDBPyConnection, number: int) -> None:
    database.execute(
        f"INSERT INTO found SELECT $1, line, {VIOLATED}, NULL FROM asked "
        "SEMI JOIN (FROM scope WHERE rule = $1) USING (product) ANTI JOIN (FROM spared WHERE rule = $1) USING (line) "
        "ANTI JOIN (FROM reported SEMI JOIN (FROM chosen WHERE rule = $1) USING (combo)) USING (line) "
        f"WHERE {ANSWERED}",
        [number],
    )
    _tally_devices(database, number, RANKS_BY_ANSWERS)


def _judge_answers(database: duckdb.DuckDBPyConnection, number: int, oldest: datetime) -> None:
    moment = "try_cast(audited_at AS TIMESTAMP)"
    database.execute(
        f"INSERT INTO found SELECT $1, line, CASE WHEN moment IS NULL THEN {UNPARSEABLE} ELSE {VIOLATED} END, moment "
        f"FROM (SELECT line, {moment} AS moment FROM asked "
        "SEMI JOIN (FROM scope WHERE rule = $1) USING (product) ANTI JOIN (FROM spared WHERE rule = $1) USING (line) "
        f"JOIN (SELECT line, audited_at FROM device_rows) USING (line) WHERE {ANSWERED}) "
        "WHERE moment IS NULL OR moment < $2::TIMESTAMP",
        [number, oldest.astimezone(UTC).replace(tzinfo=None)],
    )
    _tally_devices(database, number, RANKS_BY_ANSWERS)


def _tally_devices(database: duckdb.DuckDBPyConnection, number: int, ranks: str) -> None:
    database.execute(f"INSERT INTO tally SELECT $1, rank, count(*) FROM ({ranks}) GROUP BY rank", [number])


def _tally_unseen(database: duckdb.DuckDBPyConnection, number: int) -> None:
    rank = f"CASE WHEN s.line IS NOT NULL THEN {EXCEPTED} WHEN undrawn THEN {UNSAMPLED} ELSE {NOT_SEEN} END"
    database.execute(
        f"INSERT INTO tally SELECT $1, rank, count(*) FROM (SELECT {rank} AS rank FROM asked "
        "SEMI JOIN (FROM scope WHERE rule = $1) USING (product) LEFT JOIN (FROM spared WHERE rule = $1) s USING (line) "
        f"WHERE {UNANSWERED}) GROUP BY rank",
        [number],
    )
