"""The released versions that rules ``released`` require; see ``query.run_views.released_versions_query``.

| table | a row |
|---|---|
| ``released_versions`` | firmware of a product's module: when it was created, and whether it is released |
| ``release_accounts`` | an account whose firmware was read completely |
| ``release_bars`` | a rule ``released``, a product's module, and the version that it requires |
| ``rule_versions`` | a rule ``released``, a product's module, and a version of it in use, or the required one |
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from auditor.config.settings import parse_percentage
from auditor.config.validation import stored_rollouts
from auditor.policy.model import Released, Rule
from auditor.query.run_views import released_versions_query
from auditor.query.version_tables import define_target_marks
from auditor.runs.manifest import Manifest
from auditor.runs.views import define_releases, no_rows
from auditor.storage.database import Database

_COLUMNS = {
    **dict.fromkeys(("account", "product_key", "module_key", "version"), "VARCHAR"),
    "created_at": "TIMESTAMP",
    "released": "BOOLEAN",
}


def define_released_versions(database: Database, rules: Iterable[Rule], folder: Path, manifest: Manifest) -> None:
    """Define ``released_versions`` and ``release_accounts``, without rows if no rule is about releases.

    Args:
        database: with the tables of ``define_module_versions``.
        rules: the rules.
        folder: folder with the run's files.
        manifest: that of the run.
    """
    query, accounts = no_rows(_COLUMNS), []
    if any(isinstance(rule.condition, Released) for rule in rules):
        define_releases(database, folder)
        counts = (
            "SELECT account, product_key, module_name, module_version, devices "
            "FROM module_versions JOIN products USING (product) WHERE product_key IS NOT NULL"
        )
        query = released_versions_query(counts, parse_percentage(stored_rollouts(manifest.settings).selected))
        accounts = [info.account for info in manifest.releases if not info.problems]
    database.execute(f"CREATE TABLE released_versions AS {query}")
    database.execute("CREATE TABLE release_accounts AS SELECT DISTINCT unnest($1::VARCHAR[]) AS account", [accounts])


def define_required_releases(database: Database, rules: Sequence[Rule], now: datetime, work: Path) -> None:
    """Define ``release_bars`` and ``rule_versions``, with their ``target_marks``, from ``versions_in_use``.

    The required version is the one that was released last, at least ``released_within`` before the time ``now``.
    """
    database.execute(
        "CREATE TABLE release_bars (rule INTEGER, product INTEGER, module INTEGER, bar VARCHAR, created_at TIMESTAMP)"
    )
    for number, rule in enumerate(rules):
        if isinstance(rule.condition, Released):
            within = rule.condition.seconds
            latest = None if within is None else (now - timedelta(seconds=within)).astimezone(UTC).replace(tzinfo=None)
            database.execute(_BARS, [number, latest])
    database.execute("""
      CREATE TABLE rule_versions AS
      WITH bars AS (FROM release_bars), used AS (
        SELECT rule, product, module, module_version, devices
        FROM versions_in_use JOIN versions USING (version) SEMI JOIN bars USING (rule, product, module)
      ), all_versions AS (
        FROM used UNION ALL SELECT rule, product, module, bar, 0 FROM bars
        ANTI JOIN used u ON u.rule = bars.rule AND u.product = bars.product AND u.module = bars.module
          AND u.module_version = bar
      )
      SELECT row_number() OVER () AS number, dense_rank() OVER (ORDER BY a.rule, a.product, a.module) AS group_id, a.*,
        bar, a.module_version = bar AS is_released, r.created_at
      FROM all_versions a JOIN bars USING (rule, product, module)
      JOIN products p USING (product)
      JOIN (SELECT DISTINCT module, lower(module_name) AS module_key FROM module_versions) m USING (module)
      LEFT JOIN released_versions r ON r.account = p.account AND r.product_key = p.product_key
        AND r.module_key = m.module_key AND r.version = a.module_version""")
    define_target_marks(
        database,
        "SELECT group_id, number AS version, module_version, false AS in_use, is_released, created_at "
        "FROM rule_versions",
        work / "target_marks",
    )


_BARS = """INSERT INTO release_bars
  SELECT $1, product, module, version, created_at FROM (
    SELECT p.product, m.module, r.version, r.created_at
    FROM released_versions r JOIN products p ON p.account = r.account AND p.product_key = r.product_key
    JOIN (SELECT DISTINCT product, module, lower(module_name) AS module_key FROM module_versions) m
      ON m.product = p.product AND m.module_key = r.module_key
    WHERE r.released AND ($2::TIMESTAMP IS NULL OR r.created_at <= $2::TIMESTAMP)
    QUALIFY row_number() OVER (PARTITION BY p.product, m.module ORDER BY r.created_at DESC NULLS LAST, r.version) = 1
  ) SEMI JOIN (FROM versions_in_use WHERE rule = $1) USING (product, module)"""
