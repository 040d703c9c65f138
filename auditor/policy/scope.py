"""A run's rows as a policy sees them: numbered, and which rule is about which of them; DuckDB tables, out of core.

| table | a row |
|---|---|
| ``products`` | an account's product |
| ``asked`` | a device of the fleet (``line``): its product and status, and whether a sample passed it over |
| ``combos`` | a product's module, version, and its devices; ``module`` is one number regardless of case |
| ``versions`` | a version |
| ``reported`` | a device (``line``) that reports a combo, in one row (``row``) of ``modules.parquet`` |
| ``scope`` | a rule and a product that it is about |
| ``chosen`` | a rule and a combo that it is about |
| ``pardoned`` | a rule and a combo that an exception takes out whole |
| ``excused`` | a rule and a row of ``reported`` that an exception takes out |
| ``spared`` | a rule and a device that an exception takes out, whatever it reports |

A product that is not known (of a device that was asked by its iot_id and told nothing) is one whose name is empty:
the pattern ``*`` matches it, and hardly another.

What a rule finds, as numbers by how bad it is; its tables hold these.
"""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import duckdb

from auditor.policy.model import Rule, RuleException
from auditor.query.snapshot import Frozen
from auditor.runs.views import number
from auditor.storage.database import parquet
from auditor.text.globs import EVERYTHING, regex_of

_HASH = "hash(account, product_key, device_name, iot_id)"


_KEY = """length(account) || ':' || account || '/' || coalesce(length(product_key) || ':' || product_key, '') || '/' ||
  coalesce(length(device_name) || ':' || device_name, '') || '/' || coalesce(iot_id, '')"""
"""One text for a device; lengths keep apart what separators would not."""


_SAME_PRODUCT = "p.account = t.account AND p.product_key IS NOT DISTINCT FROM t.product_key"


def define_rows(database: duckdb.DuckDBPyConnection, run: Frozen) -> None:
    """Defines what the run has: ``products``, ``asked``, ``combos``, ``versions`` and ``reported``."""
    define_combos(database, run.devices, run.modules)
    database.execute(
        "CREATE TABLE asked AS SELECT line, product, status, source IS NOT DISTINCT FROM 'unsampled' AS undrawn "
        f"FROM device_rows t JOIN products p ON {_SAME_PRODUCT}"
    )
    # Hashes that all differ prove that none stands for two devices; joining texts takes three times as long.
    collisions = f"SELECT count(*) - count(DISTINCT {_HASH}) FROM device_rows WHERE status = 'ok'"
    key = _KEY if number(database, collisions) else _HASH
    database.execute(
        "CREATE TABLE reported AS SELECT d.line, m.line AS row, combo "
        f"FROM (SELECT *, {key} AS key FROM module_rows) m "
        "JOIN (FROM combos JOIN products USING (product)) c ON c.account = m.account "
        "AND c.product_key IS NOT DISTINCT FROM m.product_key AND c.module_name = m.module_name "
        "AND c.module_version = m.module_version "
        f"JOIN (SELECT line, {key} AS key FROM device_rows WHERE status = 'ok') d USING (key)"
    )


def define_combos(database: duckdb.DuckDBPyConnection, devices: Path, modules: Path) -> None:
    """Defines of that what takes no join of devices: ``products``, ``combos`` and ``versions``."""
    # A run that was sealed before sources were told has none.
    added = {"device_rows": "UNION ALL BY NAME SELECT NULL::VARCHAR AS source WHERE false", "module_rows": ""}
    for view, path in (("device_rows", devices), ("module_rows", modules)):
        database.execute(
            f"CREATE VIEW {view} AS SELECT file_row_number AS line, * "
            f"FROM {parquet(path, options='file_row_number=true')} {added[view]}"
        )
    database.execute(
        "CREATE TABLE told AS SELECT account, product_key, module_name, module_version, count(*) AS devices "
        "FROM module_rows GROUP BY ALL"
    )
    database.execute(
        "CREATE TABLE products AS SELECT (row_number() OVER (ORDER BY account, product_key))::INTEGER AS product, * "
        "FROM (SELECT account, product_key FROM device_rows UNION SELECT account, product_key FROM told)"
    )
    database.execute(
        "CREATE TABLE combos AS SELECT (row_number() OVER ())::INTEGER AS combo, product, "
        "(dense_rank() OVER (ORDER BY lower(module_name)))::INTEGER AS module, module_name, module_version, devices "
        f"FROM told t JOIN products p ON {_SAME_PRODUCT}"
    )
    database.execute(
        "CREATE TABLE versions AS SELECT (row_number() OVER (ORDER BY module_version))::INTEGER AS version, "
        "module_version FROM (SELECT DISTINCT module_version FROM combos)"
    )


def define_scopes(database: duckdb.DuckDBPyConnection, rules: Iterable[Rule], now: datetime) -> None:
    """Defines which rule, by its number, is about what, and what its exceptions take out."""
    database.execute("CREATE TABLE scope (rule INTEGER, product INTEGER)")
    for table in ("chosen", "pardoned"):
        database.execute(f"CREATE TABLE {table} (rule INTEGER, combo INTEGER)")
    database.execute("CREATE TABLE excused (rule INTEGER, line BIGINT, row BIGINT, combo INTEGER)")
    database.execute("CREATE TABLE spared (rule INTEGER, line BIGINT)")
    for at, rule in enumerate(rules):
        database.execute(
            "INSERT INTO scope SELECT $1::INTEGER, product FROM products "
            "WHERE regexp_full_match(account, $2) AND regexp_full_match(coalesce(product_key, ''), $3)",
            [at, regex_of(rule.accounts), regex_of(rule.products)],
        )
        modules = regex_of(_lowered(database, rule.modules))
        database.execute(
            "INSERT INTO chosen SELECT rule, combo FROM scope JOIN combos USING (product) "
            "WHERE rule = $1 AND regexp_full_match(lower(module_name), $2)",
            [at, modules],
        )
        for exception in rule.exceptions:
            if not exception.expired(now):
                _take_out(database, at, exception)
    for table in ("pardoned", "excused", "spared"):  # two exceptions may take out the same
        database.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT DISTINCT * FROM {table}")


def _take_out(database: duckdb.DuckDBPyConnection, at: int, exception: RuleException) -> None:
    product = regex_of([exception.product or EVERYTHING])
    module = regex_of(_lowered(database, [exception.module or EVERYTHING]))
    version = regex_of([exception.version or EVERYTHING])
    database.execute(
        "CREATE OR REPLACE TEMP TABLE meant AS SELECT rule, combo "
        "FROM chosen JOIN combos USING (combo) JOIN products USING (product) "
        "WHERE rule = $1 AND regexp_full_match(coalesce(product_key, ''), $2) "
        "AND regexp_full_match(lower(module_name), $3) AND regexp_full_match(module_version, $4)",
        [at, product, module, version],
    )
    device = regex_of([exception.device or EVERYTHING])
    database.execute(
        "CREATE OR REPLACE TEMP TABLE lines AS SELECT rule, line FROM device_rows d "
        "JOIN products p ON p.account = d.account AND p.product_key IS NOT DISTINCT FROM d.product_key "
        "JOIN scope USING (product) WHERE rule = $1 AND regexp_full_match(coalesce(p.product_key, ''), $2) "
        "AND (regexp_full_match(device_name, $3) OR regexp_full_match(iot_id, $3))",
        [at, product, device],
    )
    if exception.device is None:
        database.execute("INSERT INTO pardoned FROM meant")
    else:
        database.execute(
            "INSERT INTO excused SELECT rule, line, row, combo FROM reported JOIN meant USING (combo) "
            "JOIN lines USING (rule, line)"
        )
    if exception.whole_devices:
        database.execute("INSERT INTO spared FROM lines")


def _lowered(database: duckdb.DuckDBPyConnection, patterns: Iterable[str]) -> list[str]:
    """Patterns in lower case, as the database has it: names are compared in it."""
    return [
        str(text) for (text,) in database.execute("SELECT lower(unnest($1::VARCHAR[]))", [list(patterns)]).fetchall()
    ]


COMPLIANT, EXCEPTED, UNPARSEABLE, VIOLATED, NOT_SEEN, SEEN, UNSAMPLED = range(7)
"""Ranks of a verdict: of a device's modules the highest of the first four is the device's. ``NOT_SEEN`` failed or is
pending, ``UNSAMPLED`` was not drawn into a sample. ``SEEN`` is none, but how many devices a rule is about that
answered."""


ANSWERED = "status IN ('ok', 'empty')"


UNANSWERED = "status IN ('failed', 'pending')"
"""Devices that rules judge, and those that they would."""


RANKS_BY_VERSIONS = f"""SELECT r.line, max(CASE WHEN x.line IS NULL THEN rank ELSE {EXCEPTED} END) AS rank
  FROM reported r JOIN (FROM picked WHERE rule = $1) p USING (combo)
  LEFT JOIN (FROM excused WHERE rule = $1) x ON x.line = r.line AND x.row = r.row GROUP BY r.line"""


RANKS_BY_ANSWERS = f"""SELECT line, coalesce(f.rank, CASE WHEN s.line IS NULL THEN {COMPLIANT} ELSE {EXCEPTED} END)
  AS rank FROM asked a SEMI JOIN (FROM scope WHERE rule = $1) USING (product)
  LEFT JOIN (FROM found WHERE rule = $1) f USING (line) LEFT JOIN (FROM spared WHERE rule = $1) s USING (line)
  WHERE {ANSWERED}"""
"""The rank of each device that a rule judges: of one about versions, and of one about whole devices."""
