"""Versions in use, for the report: each module's versions, the newest of them, and the inventory's largest rows."""

from pathlib import Path

import duckdb

from auditor.query.version_order import define_newest_versions
from auditor.query.versions import MAX_LENGTH
from auditor.report.model import COMPLETE_ROLLOUT, ModuleShares, VersionSection, VersionShare
from auditor.storage.database import scalar

MAX_MODULES, MAX_VERSIONS, MAX_ROWS = 12, 8, 3_000
"""Modules with a chart, versions in a chart, and rows of the table."""

_MAX_LENGTH = MAX_LENGTH
"""Characters of a text that are read; no rule orders longer versions."""


def read_versions(database: duckdb.DuckDBPyConnection, work: Path) -> VersionSection:
    """Define the tables ``versions`` and ``largest``, and read the report's part of them.

    ``versions`` is the inventory with ``line`` (the row's number), ``module`` (the number of its account, product and
    module name), and ``version_order`` (newest, older or unordered). ``largest`` has ``module`` and ``rank`` of the
    modules with a chart.

    Args:
        database: with the view ``inventory``.
        work: a folder for intermediate files.

    Raises:
        OSError: the folder cannot be written.
    """
    database.execute(
        "CREATE TABLE numbered AS SELECT row_number() OVER (ORDER BY account, product_key, module_name, devices DESC, "
        "module_version) AS line, dense_rank() OVER (ORDER BY account, product_key, module_name) AS module, * "
        "FROM (FROM inventory UNION ALL BY NAME SELECT NULL::DOUBLE AS low, NULL::DOUBLE AS high WHERE false)"
    )
    _define_versions(database, work)
    database.execute(
        "CREATE TABLE modules_in_use AS SELECT module, sum(devices)::BIGINT AS devices, count(*) AS versions, "
        "sum(devices) FILTER (version_order = 'newest') / sum(devices) AS on_newest, min(line) AS first_line "
        "FROM versions GROUP BY module"
    )
    database.execute(
        "CREATE TABLE largest AS SELECT module, row_number() OVER (ORDER BY devices DESC, versions DESC, module) AS "
        f"rank FROM modules_in_use ORDER BY rank LIMIT {MAX_MODULES}"
    )
    rows = database.execute(f"SELECT {_ROW} FROM versions ORDER BY devices DESC, line LIMIT {MAX_ROWS}").fetchall()
    return VersionSection(
        modules=_read_modules(database),
        module_count=scalar(database, "SELECT count(*) FROM modules_in_use"),
        complete_rollouts=scalar(
            database, f"SELECT count(*) FROM modules_in_use WHERE on_newest >= {COMPLETE_ROLLOUT}"
        ),
        unordered_modules=scalar(database, "SELECT count(*) FROM modules_in_use WHERE on_newest IS NULL"),
        rows=tuple(VersionShare(*row) for row in rows),
        row_count=scalar(database, "SELECT count(*) FROM versions"),
    )


def _define_versions(database: duckdb.DuckDBPyConnection, work: Path) -> None:
    """Define ``versions``: the rows of ``numbered``, and how each compares to its module's newest version."""
    # No rule orders longer versions; the line keeps them apart.
    text = (
        f"CASE WHEN length(module_version) <= {_MAX_LENGTH} THEN module_version "
        f"ELSE left(module_version, {_MAX_LENGTH}) || '…' || line END"
    )
    define_newest_versions(
        database, f"SELECT module AS group_id, line AS version, {text} AS module_version FROM numbered", work
    )
    database.execute("""
      CREATE TABLE versions AS
      WITH compared AS (
        SELECT n.*, o.ordering FROM numbered n JOIN version_order o ON o.one = n.line
      )
      SELECT * EXCLUDE (ordering), CASE
        WHEN NOT bool_and(ordering IN ('same', 'older')) OVER (PARTITION BY module) THEN 'unordered'
        WHEN ordering = 'same' THEN 'newest' ELSE 'older' END AS version_order
      FROM compared""")
    database.execute("DROP TABLE numbered")


def _read_modules(database: duckdb.DuckDBPyConnection) -> tuple[ModuleShares, ...]:
    modules = database.execute(
        f"SELECT module, {_texts('account', 'product_key', 'module_name')}, m.devices, m.versions, m.on_newest "
        "FROM largest JOIN modules_in_use m USING (module) JOIN versions v USING (module) "
        "WHERE v.line = m.first_line ORDER BY rank"
    ).fetchall()
    versions: dict[int, list[VersionShare]] = {}
    for module, *row in database.execute(
        f"SELECT module, {_ROW} FROM versions SEMI JOIN largest USING (module) QUALIFY row_number() OVER "
        f"(PARTITION BY module ORDER BY version_order = 'newest' DESC, line) <= {MAX_VERSIONS} ORDER BY line"
    ).fetchall():
        versions.setdefault(module, []).append(VersionShare(*row))
    newest: dict[int, str] = dict(
        database.execute(
            f"SELECT v.module, {_texts('v.module_version')} FROM versions v SEMI JOIN largest USING (module) "
            "WHERE version_order = 'newest' "
            "QUALIFY row_number() OVER (PARTITION BY v.module ORDER BY v.line) = 1"
        ).fetchall()
    )
    return tuple(
        ModuleShares(account, product, name, devices, count, tuple(versions[module]), newest.get(module), on_newest)
        for module, account, product, name, devices, count, on_newest in modules
    )


def _texts(*columns: str) -> str:
    return ", ".join(f"left({column}, {_MAX_LENGTH + 1})" for column in columns)


_ROW = f"{_texts('account', 'product_key', 'module_name', 'module_version')}, devices, share, low, high, version_order"
"""Columns of a ``VersionShare``."""
