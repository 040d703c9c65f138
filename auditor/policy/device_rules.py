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
    MODULE_GROUP,
    NOT_SEEN,
    RANKS_BY_ANSWERS,
    RANKS_BY_VERSIONS,
    SEEN,
    UNANSWERED,
    UNPARSEABLE,
    UNSAMPLED,
    VIOLATED,
)
from auditor.query.version_tables import define_equivalence_keys, define_version_order, short_key
from auditor.storage.database import Database
from auditor.text.globs import glob_regex, is_literal

_DEVICES_IN_SCOPE = """policy_devices SEMI JOIN (FROM product_scope WHERE rule = $1) USING (product)
  ANTI JOIN (FROM exempt_devices WHERE rule = $1) USING (line)
  ANTI JOIN (FROM outside_devices WHERE rule = $1) USING (line)"""


def evaluate_rules(
    database: Database, rules: Sequence[Rule], now: datetime, work: Path, *, sampled: bool = False
) -> None:
    """Define the tables above, from those of ``scope``, and those of ``define_strata`` if the run is a sample.

    ``now`` is the time that ages refer to. ``work`` is a folder for intermediate files.
    """
    database.execute("CREATE TABLE device_verdicts (rule INTEGER, line BIGINT, rank TINYINT, answered_at TIMESTAMP)")
    database.execute("CREATE TABLE verdict_counts (rule INTEGER, rank TINYINT, number BIGINT)")
    evaluate_version_rules(database, rules, now, work, sampled=sampled)
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
        "JOIN policy_devices USING (product) ANTI JOIN outside_devices USING (rule, line) "
        f"WHERE {ANSWERED} GROUP BY rule"
    )


def evaluate_version_rules(
    database: Database, rules: Sequence[Rule], now: datetime, work: Path, *, sampled: bool = False
) -> None:
    """Define ``version_verdicts`` and ``group_verdicts``. They need no devices. See ``evaluate_rules``."""
    database.execute("CREATE TABLE version_verdicts (rule INTEGER, module_version_id INTEGER, rank TINYINT)")
    _define_version_order(database, rules, work)
    for number, rule in enumerate(rules):
        if isinstance(rule.condition, Minimum | Exact | Deny):
            _evaluate_versions(database, number, rule.condition)
    evaluate_group_rules(database, rules, now, work, sampled=sampled)


def _define_version_order(database: Database, rules: Sequence[Rule], work: Path) -> None:
    """Define ``version_order`` of the versions in scope to minimum versions, and ``equivalence_keys`` of versions."""
    database.execute("CREATE TABLE bounds (rule INTEGER, text VARCHAR)")
    bounds = [(at, rule.condition.version) for at, rule in enumerate(rules) if isinstance(rule.condition, Minimum)]
    if bounds:
        database.executemany("INSERT INTO bounds VALUES (?, ?)", bounds)
    compared = "in_scope JOIN bounds USING (rule) JOIN module_versions USING (module_version_id)"
    groups = f"SELECT DISTINCT product, module FROM {compared}"
    define_version_order(
        database,
        f"SELECT DISTINCT {MODULE_GROUP} AS group_id, module_version FROM module_versions "
        f"SEMI JOIN ({groups}) USING (product, module)",
        f"SELECT DISTINCT {MODULE_GROUP} AS group_id, v.version AS one, rule AS other, v.module_version AS version, "
        f"text AS against FROM {compared} JOIN versions v USING (module_version)",
        work / "version_order",
    )
    define_equivalence_keys(database, "FROM versions", work / "equivalence_keys")


def _evaluate_versions(database: Database, number: int, condition: Minimum | Exact | Deny) -> None:
    match condition:
        case Deny(patterns):
            same = "version IN (SELECT version FROM equivalence_keys WHERE list_contains($3::VARCHAR[], key))"
            rank = f"WHEN regexp_full_match(module_version, $2) OR {same} THEN {VIOLATED}"
            keys = [short_key(pattern) for pattern in patterns if is_literal(pattern)]
            parameters: list[object] = [glob_regex(patterns), keys]
        case Exact(versions):
            rank, parameters = (
                f"WHEN NOT list_contains($2::VARCHAR[], module_version) THEN {VIOLATED}",
                [list(versions)],
            )
        case Minimum():
            rank = f"WHEN ordering = 'older' THEN {VIOLATED} WHEN ordering = 'unordered' THEN {UNPARSEABLE}"
            parameters = []
    database.execute(
        f"INSERT INTO version_verdicts SELECT rule, module_version_id, CASE WHEN e.rule IS NOT NULL THEN {EXEMPT} "
        f"{rank} ELSE {COMPLIANT} END "
        "FROM in_scope JOIN module_versions USING (module_version_id) JOIN versions USING (module_version) "
        f"LEFT JOIN version_order o ON o.group_id = {MODULE_GROUP} AND o.one = version AND o.other = rule "
        "LEFT JOIN exempt_versions e USING (rule, module_version_id) WHERE rule = $1",
        [number, *parameters],
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
        "ANTI JOIN (FROM outside_devices WHERE rule = $1) o USING (line) "
        f"WHERE {UNANSWERED}) GROUP BY rank",
        [number],
    )
