"""Verdicts of rules about groups (``max_versions``, ``newest``, ``released``) on the modules of products."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from auditor.policy.model import MaxVersions, Newest, Released, Rule
from auditor.policy.released import define_required_releases
from auditor.policy.sampled import define_rollout_intervals
from auditor.policy.scope import ANSWERED, COMPLIANT, EXEMPT, NOT_SEEN, UNANSWERED, UNPARSEABLE, UNSAMPLED, VIOLATED
from auditor.query.version_tables import define_newest_versions
from auditor.storage.database import Database

_UNANSWERED_BY_PRODUCT = f"""SELECT product, not_seen + coalesce(unassigned, 0) AS not_seen FROM (
    SELECT product, count(*) FILTER ({UNANSWERED}) AS not_seen FROM policy_devices
    ANTI JOIN (FROM exempt_devices WHERE rule = $1) USING (line)
    ANTI JOIN (FROM outside_devices WHERE rule = $1) USING (line) GROUP BY product
  ) JOIN products USING (product) LEFT JOIN (
    SELECT account, count(*) AS unassigned FROM policy_devices JOIN products USING (product)
    WHERE unsampled AND product_key IS NULL GROUP BY account
  ) USING (account)"""
"""Devices of a product without an answer, which might change the verdict. An unsampled device that is named by its
iot_id only may belong to any product."""


def evaluate_group_rules(
    database: Database, rules: Sequence[Rule], now: datetime, work: Path, *, sampled: bool
) -> None:
    """Define ``group_verdicts``, and add to ``version_verdicts``. Arguments as in ``evaluate_rules``."""
    database.execute(
        "CREATE TABLE group_verdicts (rule INTEGER, product INTEGER, module INTEGER, rank TINYINT, has_row BOOLEAN, "
        "reason VARCHAR)"
    )
    _define_versions_in_use(database, rules)
    _define_newest(database, rules, work)
    define_required_releases(database, rules, now, work)
    _define_share_versions(database)
    define_rollout_intervals(database, work, sampled=sampled)
    for number, rule in enumerate(rules):
        if isinstance(rule.condition, MaxVersions):
            _evaluate_max_versions(database, number, rule.condition.versions)
        elif isinstance(rule.condition, Newest | Released):
            _evaluate_share(database, number, rule.condition)


def _define_versions_in_use(database: Database, rules: Sequence[Rule]) -> None:
    """Define ``versions_in_use``: the versions in scope that are not exempt, and their devices, by rule."""
    database.execute(
        "CREATE TABLE versions_in_use AS "
        "SELECT rule, product, module, version, sum(devices - coalesce(exempt, 0))::BIGINT AS devices "
        "FROM in_scope ANTI JOIN exempt_versions USING (rule, module_version_id) "
        "JOIN module_versions USING (module_version_id) JOIN versions USING (module_version) LEFT JOIN "
        "(SELECT rule, module_version_id, count(DISTINCT row) AS exempt FROM ("
        "SELECT rule, module_version_id, row FROM exempt_rows UNION ALL "
        "SELECT rule, module_version_id, row FROM reported JOIN outside_devices USING (line)) GROUP BY ALL) "
        "USING (rule, module_version_id) "
        "WHERE list_contains($1::INTEGER[], rule) GROUP BY rule, product, module, version "
        "HAVING sum(devices - coalesce(exempt, 0)) > 0",
        [[number for number, rule in enumerate(rules) if rule.unit == "modules"]],
    )


def _define_newest(database: Database, rules: Sequence[Rule], work: Path) -> None:
    """Define ``newest_groups``, the modules in the scope of rules ``newest``, and the newest version of each."""
    database.execute(
        "CREATE TABLE newest_groups AS SELECT row_number() OVER () AS group_id, rule, product, module "
        "FROM versions_in_use WHERE list_contains($1::INTEGER[], rule) GROUP BY rule, product, module",
        [[number for number, rule in enumerate(rules) if isinstance(rule.condition, Newest)]],
    )
    versions = (
        "SELECT group_id, version, module_version FROM versions_in_use "
        "JOIN newest_groups USING (rule, product, module) JOIN versions USING (version)"
    )
    context = "SELECT DISTINCT group_id, module_version FROM newest_groups JOIN module_versions USING (product, module)"
    define_newest_versions(database, versions, work, context)


def _evaluate_max_versions(database: Database, number: int, limit: int) -> None:
    reason = f"format('{{:,}} versions are in use, at most {limit:,} are allowed', in_use)"
    rank = (
        f"CASE WHEN in_use > $2 THEN {VIOLATED} "
        f"WHEN coalesce(not_seen, 0) > 0 AND in_use + not_seen > $2 THEN {NOT_SEEN} ELSE {COMPLIANT} END"
    )
    database.execute(
        f"INSERT INTO group_verdicts SELECT $1, product, module, {rank}, true, {reason} "
        "FROM (SELECT product, module, count(DISTINCT key) AS in_use FROM versions_in_use "
        "JOIN equivalence_keys USING (version) WHERE rule = $1 GROUP BY product, module) "
        f"LEFT JOIN ({_UNANSWERED_BY_PRODUCT}) USING (product)",
        [number, limit],
    )


def _define_share_versions(database: Database) -> None:
    """Define ``share_versions``: the versions in use of the modules whose share counts, by rule.

    ``target`` is the newest version, or the required release; ``is_on`` is whether a version counts as it, and
    ``is_ordered`` whether it can be compared with it.
    """
    database.execute("""
      CREATE TABLE share_versions AS
      SELECT rule, product, module, version, devices, n.module_version AS target, ordering = 'same' AS is_on,
        ordering IN ('older', 'same') AS is_ordered
      FROM versions_in_use JOIN newest_groups USING (rule, product, module)
      JOIN (SELECT group_id, one AS version, other, ordering FROM version_order) USING (group_id, version)
      JOIN (SELECT version AS other, module_version FROM versions) n USING (other)
      UNION ALL
      SELECT u.rule, u.product, u.module, u.version, u.devices, r.bar, m.on_target, true
      FROM versions_in_use u JOIN versions v USING (version) JOIN rule_versions r ON r.rule = u.rule
        AND r.product = u.product AND r.module = u.module AND r.module_version = v.module_version
      JOIN target_marks m ON m.version = r.number""")


def _evaluate_share(database: Database, number: int, condition: Newest | Released) -> None:
    what = "newest" if isinstance(condition, Newest) else "released version"
    few = f"{{:,}} of {{:,}} devices run the {what}, {{}}{{}}; required: "
    none = "none of {:,} versions is newer than, or the same as, all others"
    # Of a sample by the interval of the share; else by the most that devices without an answer can change.
    sampled = f"WHEN low IS NOT NULL THEN CASE WHEN high < $5 THEN {VIOLATED} WHEN low < $5 THEN {NOT_SEEN} "
    database.execute(
        f"INSERT INTO group_verdicts SELECT $1, product, module, rank, rank <> {VIOLATED}, "
        f"CASE WHEN rank = {UNPARSEABLE} THEN format('{none}', versions) "
        f"ELSE format('{few}', on_target, devices, target, "
        "coalesce(': ' || low_text || ' to ' || high_text || ' of all by the sample', '')) || $4 END "
        f"FROM (SELECT *, CASE WHEN NOT ordered THEN {UNPARSEABLE} {sampled} ELSE {COMPLIANT} END "
        f"WHEN on_target::HUGEINT * $3::BIGINT < devices::HUGEINT * $2::BIGINT THEN {VIOLATED} "
        "WHEN on_target::HUGEINT * $3::BIGINT < (devices + coalesce(not_seen, 0))::HUGEINT * $2::BIGINT "
        f"THEN {NOT_SEEN} ELSE {COMPLIANT} END AS rank "
        "FROM (SELECT product, module, target, bool_and(is_ordered) AS ordered, "
        "count(*) AS versions, sum(devices)::BIGINT AS devices, "
        "coalesce(sum(devices) FILTER (is_on), 0)::BIGINT AS on_target "
        "FROM share_versions WHERE rule = $1 GROUP BY product, module, target) "
        f"LEFT JOIN ({_UNANSWERED_BY_PRODUCT}) USING (product) "
        "LEFT JOIN (FROM rollout_intervals WHERE rule = $1) USING (product, module))",
        [number, condition.share.numerator, condition.share.denominator, condition.text, float(condition.share)],
    )
    database.execute(
        f"INSERT INTO version_verdicts SELECT $1, module_version_id, {VIOLATED} "
        "FROM (SELECT product, module, version FROM share_versions "
        "JOIN group_verdicts USING (rule, product, module) "
        f"WHERE rule = $1 AND rank = {VIOLATED} AND NOT is_on) "
        "JOIN versions USING (version) JOIN module_versions USING (product, module, module_version) "
        "ANTI JOIN (FROM exempt_versions WHERE rule = $1) USING (module_version_id)",
        [number],
    )
    if isinstance(condition, Released):
        database.execute(
            f"INSERT INTO group_verdicts SELECT DISTINCT $1::INTEGER, product, module, {NOT_SEEN}, false, "
            "'its released firmware was not read' FROM versions_in_use JOIN products USING (product) "
            "ANTI JOIN release_accounts USING (account) ANTI JOIN (FROM group_verdicts WHERE rule = $1) "
            "USING (product, module) WHERE rule = $1",
            [number],
        )


def count_group_verdicts(database: Database, number: int) -> None:
    """Add a rule's verdicts on groups to ``verdict_counts``."""
    database.execute(
        "INSERT INTO verdict_counts SELECT rule, rank, count(*) FROM group_verdicts WHERE rule = $1 GROUP BY ALL",
        [number],
    )
    database.execute(
        f"INSERT INTO verdict_counts SELECT $1, {EXEMPT}, count(*) FROM (SELECT DISTINCT product, module FROM in_scope "
        "JOIN module_versions USING (module_version_id) WHERE rule = $1) "
        "ANTI JOIN (FROM group_verdicts WHERE rule = $1) USING (product, module)",
        [number],
    )
    database.execute(
        f"INSERT INTO verdict_counts SELECT $1, CASE WHEN unsampled THEN {UNSAMPLED} ELSE {NOT_SEEN} END, count(*) "
        f"FROM (SELECT product, bool_and(unsampled) FILTER ({UNANSWERED}) AS unsampled FROM policy_devices "
        "SEMI JOIN (FROM product_scope WHERE rule = $1) USING (product) "
        "ANTI JOIN (FROM exempt_devices WHERE rule = $1) USING (line) "
        "ANTI JOIN (FROM outside_devices WHERE rule = $1) USING (line) "
        f"GROUP BY product HAVING bool_or({UNANSWERED}) AND NOT bool_or({ANSWERED})) GROUP BY ALL",
        [number],
    )
