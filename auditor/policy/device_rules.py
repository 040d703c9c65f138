"""Verdicts of rules on devices and versions, as tables.

| table | a row |
|---|---|
| ``version_verdicts`` | a rule, a module_version_id and its rank; of ``newest`` the older ones of violating modules |
| ``device_verdicts`` | a rule and a device (``line``) that violates it as a whole, and when it answered (max_age) |
| ``group_verdicts`` | a rule and a product's module with its rank, the reason, and whether it has a row of its own |
| ``verdict_counts`` | a rule, a rank, and its number of devices or groups |
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from auditor.policy.group_rules import count_group_verdicts, evaluate_group_rules
from auditor.policy.model import Deny, Exact, MaxAge, Minimum, Required, Rule
from auditor.policy.scope import (
    ANSWERED,
    COMPLIANT,
    EXEMPT,
    NOT_SEEN,
    RANKS_BY_ANSWERS,
    RANKS_BY_VERSIONS,
    SEEN,
    UNANSWERED,
    UNPARSEABLE,
    UNSAMPLED,
    VIOLATED,
)
from auditor.query.version_order import define_version_order
from auditor.storage.database import Database
from auditor.text.globs import glob_regex, is_literal

_DEVICES_IN_SCOPE = """policy_devices SEMI JOIN (FROM product_scope WHERE rule = $1) USING (product)
  ANTI JOIN (FROM exempt_devices WHERE rule = $1) USING (line)"""


def evaluate_rules(
    database: Database, rules: Sequence[Rule], now: datetime, work: Path, *, sampled: bool = False
) -> None:
    """Define the tables above, from those of ``scope``, and those of ``define_strata`` if the run is a sample.

    ``now`` is the time that ages refer to. ``work`` is a folder for intermediate files.
    """
    database.execute("CREATE TABLE device_verdicts (rule INTEGER, line BIGINT, rank TINYINT, answered_at TIMESTAMP)")
    database.execute("CREATE TABLE verdict_counts (rule INTEGER, rank TINYINT, number BIGINT)")
    evaluate_version_rules(database, rules, work, sampled=sampled)
    for number, rule in enumerate(rules):
        match rule.condition:
            case Minimum() | Exact() | Deny():
                _count_devices(database, number, RANKS_BY_VERSIONS)
            case Required():
                _evaluate_required(database, number)
            case MaxAge(seconds):
                _evaluate_ages(database, number, now - timedelta(seconds=seconds))
            case _:
                count_group_verdicts(database, number)
                continue
        _count_not_seen(database, number)
    database.execute(
        f"INSERT INTO verdict_counts SELECT rule, {SEEN}, count(*) FROM product_scope "
        f"JOIN policy_devices USING (product) WHERE {ANSWERED} GROUP BY rule"
    )


def evaluate_version_rules(database: Database, rules: Sequence[Rule], work: Path, *, sampled: bool = False) -> None:
    """Define ``version_verdicts`` and ``group_verdicts``. They need no devices. See ``evaluate_rules``."""
    database.execute("CREATE TABLE version_verdicts (rule INTEGER, module_version_id INTEGER, rank TINYINT)")
    _define_bounds(database, rules, work)
    for number, rule in enumerate(rules):
        if isinstance(rule.condition, Minimum | Exact | Deny):
            _evaluate_versions(database, number, rule.condition)
    evaluate_group_rules(database, rules, work, sampled=sampled)


def _define_bounds(database: Database, rules: Sequence[Rule], work: Path) -> None:
    """Define ``bounds``, the versions that rules name, and ``version_order`` of the versions in scope to them."""
    database.execute("CREATE TABLE bounds (bound INTEGER, rule INTEGER, text VARCHAR)")
    named: list[tuple[int, str]] = []
    for number, rule in enumerate(rules):
        if isinstance(rule.condition, Minimum):
            named.append((number, rule.condition.version))
        elif isinstance(rule.condition, Deny):
            named.extend((number, pattern) for pattern in rule.condition.patterns if is_literal(pattern))
    if named:
        database.executemany("INSERT INTO bounds VALUES (?, ?, ?)", [(at, *each) for at, each in enumerate(named)])
    pairs = (
        "SELECT DISTINCT v.version AS one, bound AS other, v.module_version AS version, text AS against "
        "FROM in_scope JOIN bounds USING (rule) JOIN module_versions USING (module_version_id) "
        "JOIN versions v USING (module_version)"
    )
    define_version_order(database, pairs, work / "version_order")


def _evaluate_versions(database: Database, number: int, condition: Minimum | Exact | Deny) -> None:
    compared = "SELECT one FROM version_order JOIN bounds ON other = bound WHERE rule = $1 AND ordering"
    unordered = ""
    match condition:
        case Deny(patterns):
            violated = f"regexp_full_match(module_version, $2) OR version IN ({compared} = 'same')"
            parameter: object = glob_regex(patterns)
        case Exact(versions):
            violated, parameter = "NOT list_contains($2::VARCHAR[], module_version)", list(versions)
        case Minimum():
            violated, parameter = f"version IN ({compared} = $2)", "older"
            unordered = f"WHEN version IN ({compared} = 'unordered') THEN {UNPARSEABLE}"
    database.execute(
        f"INSERT INTO version_verdicts SELECT rule, module_version_id, CASE WHEN e.rule IS NOT NULL THEN {EXEMPT} "
        f"WHEN {violated} THEN {VIOLATED} {unordered} ELSE {COMPLIANT} END "
        "FROM in_scope JOIN module_versions USING (module_version_id) JOIN versions USING (module_version) "
        "LEFT JOIN exempt_versions e USING (rule, module_version_id) WHERE rule = $1",
        [number, parameter],
    )


def _evaluate_required(database: Database, number: int) -> None:
    database.execute(
        f"INSERT INTO device_verdicts SELECT $1, line, {VIOLATED}, NULL FROM {_DEVICES_IN_SCOPE} "
        "ANTI JOIN (FROM reported SEMI JOIN (FROM in_scope WHERE rule = $1) USING (module_version_id)) USING (line) "
        f"WHERE {ANSWERED}",
        [number],
    )
    _count_devices(database, number, RANKS_BY_ANSWERS)


def _evaluate_ages(database: Database, number: int, oldest: datetime) -> None:
    database.execute(
        "INSERT INTO device_verdicts "
        f"SELECT $1, line, CASE WHEN answered_at IS NULL THEN {UNPARSEABLE} ELSE {VIOLATED} END, answered_at "
        f"FROM (SELECT line, try_cast(audited_at AS TIMESTAMP) AS answered_at FROM {_DEVICES_IN_SCOPE} "
        f"JOIN (SELECT line, audited_at FROM device_rows) USING (line) WHERE {ANSWERED}) "
        "WHERE answered_at IS NULL OR answered_at < $2::TIMESTAMP",
        [number, oldest.astimezone(UTC).replace(tzinfo=None)],
    )
    _count_devices(database, number, RANKS_BY_ANSWERS)


def _count_devices(database: Database, number: int, ranks: str) -> None:
    database.execute(f"INSERT INTO verdict_counts SELECT $1, rank, count(*) FROM ({ranks}) GROUP BY rank", [number])


def _count_not_seen(database: Database, number: int) -> None:
    rank = f"CASE WHEN e.line IS NOT NULL THEN {EXEMPT} WHEN unsampled THEN {UNSAMPLED} ELSE {NOT_SEEN} END"
    database.execute(
        f"INSERT INTO verdict_counts SELECT $1, rank, count(*) FROM (SELECT {rank} AS rank FROM policy_devices "
        "SEMI JOIN (FROM product_scope WHERE rule = $1) USING (product) "
        "LEFT JOIN (FROM exempt_devices WHERE rule = $1) e USING (line) "
        f"WHERE {UNANSWERED}) GROUP BY rank",
        [number],
    )
