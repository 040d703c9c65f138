"""The rows of a run and the scope of each rule, as DuckDB tables, out of core.

| table | a row |
|---|---|
| ``products`` | an account's product |
| ``policy_devices`` | a device of the fleet (``line``): its product and status, and whether it is unsampled |
| ``module_versions`` | a product's module and version, and its devices; ``module`` is one number regardless of case |
| ``versions`` | a version |
| ``reported`` | a device (``line``) and a module_version_id that it reports; ``row`` is that of ``modules.parquet`` |
| ``product_scope`` | a rule and a product in its scope |
| ``in_scope`` | a rule and a module_version_id in its scope |
| ``outside_devices`` | a rule and a device of a product in its scope whose attributes do not match its ``where`` |
| ``exempt_versions`` | a rule and a module_version_id that an exception exempts on all devices |
| ``exempt_rows`` | a rule and a row of ``reported`` that an exception exempts |
| ``exempt_devices`` | a rule and a device that an exception exempts, whatever it reports |

An unknown product (of a device without an answer that was queried by its iot_id) has an empty name: the pattern ``*``
matches it, and hardly another.
"""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from auditor.errors import SettingsError
from auditor.models import ReadModules
from auditor.policy.model import Policy, Rule, RuleException, join_texts
from auditor.query.snapshot import RunSnapshot
from auditor.runs.attributes import attribute_sql
from auditor.storage.database import Database, parquet, scalar, sql_literal
from auditor.text.globs import MATCH_ALL, glob_regex, matches_any

_HASH = "hash(account, product_key, device_name, iot_id)"

_KEY = """length(account) || ':' || account || '/' || coalesce(length(product_key) || ':' || product_key, '') || '/' ||
  coalesce(length(device_name) || ':' || device_name, '') || '/' || coalesce(iot_id, '')"""
"""One text per device and its names; lengths keep apart what a separator alone would not."""

_SAME_PRODUCT = "p.account = t.account AND p.product_key IS NOT DISTINCT FROM t.product_key"


def check_modules(policy: Policy, modules: ReadModules | None) -> None:
    """Raise SettingsError if a rule is about none of the modules that a run reads; None: it reads all.

    Every device of the run would lack the modules of such a rule.
    """
    for rule in policy.rules if modules is not None else ():
        patterns = [pattern.casefold() for pattern in rule.modules]
        if not any(matches_any(module, patterns) for module in modules or ()):
            raise SettingsError(
                f'{policy.source}: rule "{rule.name}": is about module {join_texts(rule.modules)}, and the run reads '
                f"only the module {', '.join(modules or ())}; use rules without it, or a run of all modules"
            )


def define_run_tables(database: Database, run: RunSnapshot) -> None:
    """Define the tables of a run's rows, from ``products`` to ``reported``."""
    define_module_versions(database, run.devices, run.modules)
    database.execute(
        "INSERT INTO policy_devices SELECT line, product, status, source IS NOT DISTINCT FROM 'unsampled' "
        f"FROM device_rows t JOIN products p ON {_SAME_PRODUCT}"
    )
    # Hashes that all differ prove that no two devices share one; joining texts takes three times as long.
    collisions = f"SELECT count(*) - count(DISTINCT {_HASH}) FROM device_rows WHERE status = 'ok'"
    key = _KEY if scalar(database, collisions) else _HASH
    database.execute(
        "INSERT INTO reported SELECT d.line, m.line, module_version_id "
        f"FROM (SELECT *, {key} AS key FROM module_rows) m "
        "JOIN (FROM module_versions JOIN products USING (product)) v ON v.account = m.account "
        "AND v.product_key IS NOT DISTINCT FROM m.product_key AND v.module_name = m.module_name "
        "AND v.module_version = m.module_version "
        f"JOIN (SELECT line, {key} AS key FROM device_rows WHERE status = 'ok') d USING (key)"
    )


def define_module_versions(database: Database, devices: Path, modules: Path) -> None:
    """Define ``products``, ``module_versions`` and ``versions``, which need no join; the devices' tables are empty."""
    database.execute("CREATE TABLE policy_devices (line BIGINT, product INTEGER, status VARCHAR, unsampled BOOLEAN)")
    database.execute("CREATE TABLE reported (line BIGINT, row BIGINT, module_version_id INTEGER)")
    for view, path in (("device_rows", devices), ("module_rows", modules)):
        rows = parquet(path, options="file_row_number=true")
        database.execute(f"CREATE VIEW {view} AS SELECT file_row_number AS line, * FROM {rows}")
    database.execute(
        "CREATE TABLE reported_versions AS "
        "SELECT account, product_key, module_name, module_version, count(*) AS devices FROM module_rows GROUP BY ALL"
    )
    database.execute(
        "CREATE TABLE products AS SELECT (row_number() OVER (ORDER BY account, product_key))::INTEGER AS product, * "
        "FROM (SELECT account, product_key FROM device_rows UNION SELECT account, product_key FROM reported_versions)"
    )
    database.execute(
        "CREATE TABLE module_versions AS SELECT (row_number() OVER ())::INTEGER AS module_version_id, product, "
        "(dense_rank() OVER (ORDER BY lower(module_name)))::INTEGER AS module, module_name, module_version, devices "
        f"FROM reported_versions t JOIN products p ON {_SAME_PRODUCT}"
    )
    database.execute(
        "CREATE TABLE versions AS SELECT (row_number() OVER (ORDER BY module_version))::INTEGER AS version, "
        "module_version FROM (SELECT DISTINCT module_version FROM module_versions)"
    )


def define_scopes(database: Database, rules: Iterable[Rule], now: datetime) -> None:
    """Define the scope of each rule, by its number, and what its exceptions exempt."""
    database.execute("CREATE TABLE product_scope (rule INTEGER, product INTEGER)")
    for table in ("in_scope", "exempt_versions"):
        database.execute(f"CREATE TABLE {table} (rule INTEGER, module_version_id INTEGER)")
    database.execute("CREATE TABLE exempt_rows (rule INTEGER, line BIGINT, row BIGINT, module_version_id INTEGER)")
    for table in ("exempt_devices", "outside_devices"):
        database.execute(f"CREATE TABLE {table} (rule INTEGER, line BIGINT)")
    for at, rule in enumerate(rules):
        database.execute(
            "INSERT INTO product_scope SELECT $1::INTEGER, product FROM products "
            "WHERE regexp_full_match(account, $2) AND regexp_full_match(coalesce(product_key, ''), $3)",
            [at, glob_regex(rule.accounts), glob_regex(rule.products)],
        )
        modules = glob_regex(_lower(database, rule.modules))
        database.execute(
            "INSERT INTO in_scope SELECT rule, module_version_id FROM product_scope "
            "JOIN module_versions USING (product) WHERE rule = $1 AND regexp_full_match(lower(module_name), $2)",
            [at, modules],
        )
        for exception in rule.exceptions:
            if not exception.expired(now):
                _exempt(database, at, exception)
    for table in ("exempt_versions", "exempt_rows", "exempt_devices"):  # two exceptions may exempt the same
        database.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT DISTINCT * FROM {table}")


def restrict_scopes(database: Database, rules: Iterable[Rule]) -> None:
    """Restrict the scope of each rule to the devices that its ``where`` matches, after ``define_scopes``.

    A product or a version is in the scope if such a device is of it, or runs it.
    """
    for at, rule in enumerate(rules):
        if not rule.where:
            continue
        matches = " AND ".join(
            f"regexp_full_match(coalesce({attribute_sql(name)}, ''), {sql_literal(glob_regex(patterns))})"
            for name, patterns in rule.where
        )
        database.execute(
            f"INSERT INTO outside_devices SELECT {at}, line FROM device_rows JOIN policy_devices USING (line) "
            f"SEMI JOIN (FROM product_scope WHERE rule = {at}) USING (product) WHERE NOT ({matches})"
        )
        inside = f"ANTI JOIN (FROM outside_devices WHERE rule = {at}) USING (line)"
        for table, key, found in (
            ("product_scope", "product", "policy_devices"),
            ("in_scope", "module_version_id", "reported"),
        ):
            database.execute(
                f"DELETE FROM {table} WHERE rule = {at} AND {key} NOT IN (SELECT {key} FROM {found} {inside})"
            )


def _exempt(database: Database, at: int, exception: RuleException) -> None:
    product = glob_regex([exception.product or MATCH_ALL])
    module = glob_regex(_lower(database, [exception.module or MATCH_ALL]))
    version = glob_regex([exception.version or MATCH_ALL])
    database.execute(
        "CREATE OR REPLACE TEMP TABLE excepted_versions AS SELECT rule, module_version_id "
        "FROM in_scope JOIN module_versions USING (module_version_id) JOIN products USING (product) "
        "WHERE rule = $1 AND regexp_full_match(coalesce(product_key, ''), $2) "
        "AND regexp_full_match(lower(module_name), $3) AND regexp_full_match(module_version, $4)",
        [at, product, module, version],
    )
    device = glob_regex([exception.device or MATCH_ALL])
    database.execute(
        "CREATE OR REPLACE TEMP TABLE excepted_devices AS SELECT rule, line FROM device_rows d "
        "JOIN products p ON p.account = d.account AND p.product_key IS NOT DISTINCT FROM d.product_key "
        "JOIN product_scope USING (product) WHERE rule = $1 AND regexp_full_match(coalesce(p.product_key, ''), $2) "
        "AND (regexp_full_match(device_name, $3) OR regexp_full_match(iot_id, $3))",
        [at, product, device],
    )
    if exception.device is None:
        database.execute("INSERT INTO exempt_versions FROM excepted_versions")
    else:
        database.execute(
            "INSERT INTO exempt_rows SELECT rule, line, row, module_version_id FROM reported "
            "JOIN excepted_versions USING (module_version_id) JOIN excepted_devices USING (rule, line)"
        )
    if exception.whole_devices:
        database.execute("INSERT INTO exempt_devices FROM excepted_devices")


def _lower(database: Database, patterns: Iterable[str]) -> list[str]:
    """Return patterns in the database's lower case, in which names are compared."""
    query = "SELECT lower(unnest($1::VARCHAR[]))"
    return [str(text) for (text,) in database.execute(query, [list(patterns)]).fetchall()]


COMPLIANT, EXEMPT, UNPARSEABLE, VIOLATED, NOT_SEEN, SEEN, UNSAMPLED = range(7)
"""Ranks of verdicts. The highest of the first four over a device's modules is the device's. ``NOT_SEEN``: it failed or
is pending; ``UNSAMPLED``: it is outside the sample. ``SEEN`` is no verdict: devices in scope that answered."""

MODULE_GROUP = "(product::BIGINT << 32) + module"
"""The number of a product's module, by which versions are compared."""

ANSWERED = "status IN ('ok', 'empty')"

UNANSWERED = "status IN ('failed', 'pending')"
"""Devices that have a verdict, and those that are not seen."""

RANKS_BY_VERSIONS = f"""SELECT r.line, max(CASE WHEN x.line IS NULL THEN rank ELSE {EXEMPT} END) AS rank
  FROM reported r JOIN (FROM version_verdicts WHERE rule = $1) v USING (module_version_id)
  LEFT JOIN (FROM exempt_rows WHERE rule = $1) x ON x.line = r.line AND x.row = r.row
  ANTI JOIN (FROM outside_devices WHERE rule = $1) o ON o.line = r.line GROUP BY r.line"""

RANKS_BY_ANSWERS = f"""SELECT line, coalesce(v.rank, CASE WHEN e.line IS NULL THEN {COMPLIANT} ELSE {EXEMPT} END)
  AS rank FROM policy_devices SEMI JOIN (FROM product_scope WHERE rule = $1) USING (product)
  LEFT JOIN (FROM device_verdicts WHERE rule = $1) v USING (line)
  LEFT JOIN (FROM exempt_devices WHERE rule = $1) e USING (line)
  ANTI JOIN (FROM outside_devices WHERE rule = $1) o USING (line) WHERE {ANSWERED}"""
"""Rank of each device with a verdict: by a rule about versions, and by a rule about devices."""
