"""Who runs what, for the report: each module's versions, which is the newest, and the inventory's first rows."""

from pathlib import Path

import duckdb

from auditor.query.version_order import define_standings
from auditor.query.versions import compare_versions
from auditor.report.model import ENOUGH, Module, Row, Shares, Version
from auditor.runs.views import number
from auditor.storage.database import BLOCKS, quoted_to_read

MODULES, VERSIONS, ROWS = 12, 8, 3_000
"""Modules that get a picture, versions in one, and rows of the table."""


_LENGTH = 200
"""Characters of a text that are read; a version that is longer is ordered against none, for no rule reads such."""


def read_shares(database: duckdb.DuckDBPyConnection, work: Path) -> Shares:
    """Defines the tables ``versions`` and ``largest``, and gives what the page shows of them.

    ``versions`` is the inventory with numbers: ``line`` of the row, ``module`` of its module (account, product and
    name), and ``standing``: newest, older or unordered. ``largest`` has the ``module`` of those with a picture.

    Args:
        database: with the view ``inventory``.
        work: a folder to write to meanwhile.

    Raises:
        OSError: it cannot be written.
    """
    database.execute(
        "CREATE TABLE counted AS SELECT row_number() OVER (ORDER BY account, product_key, module_name, devices DESC, "
        "module_version) AS line, dense_rank() OVER (ORDER BY account, product_key, module_name) AS module, * "
        "FROM (FROM inventory UNION ALL BY NAME SELECT NULL::DOUBLE AS low, NULL::DOUBLE AS high WHERE false)"
    )
    _define_standings(database, work)
    database.execute(
        "CREATE TABLE sums AS SELECT module, sum(devices)::BIGINT AS devices, count(*) AS versions, "
        "sum(devices) FILTER (standing = 'newest') / sum(devices) AS on_newest, min(line) AS first FROM versions "
        "GROUP BY module"
    )
    database.execute(
        "CREATE TABLE largest AS SELECT module, row_number() OVER (ORDER BY devices DESC, versions DESC, module) AS "
        f"place FROM sums ORDER BY place LIMIT {MODULES}"
    )
    rows = database.execute(
        f"SELECT {_texts('account', 'product_key', 'module_name', 'module_version')}, devices, share, standing, "
        f"low, high FROM versions ORDER BY devices DESC, line LIMIT {ROWS}"
    ).fetchall()
    return Shares(
        modules=_modules(database),
        all_modules=number(database, "SELECT count(*) FROM sums"),
        done=number(database, f"SELECT count(*) FROM sums WHERE on_newest >= {ENOUGH}"),
        unknown=number(database, "SELECT count(*) FROM sums WHERE on_newest IS NULL"),
        rows=tuple(Row(*row) for row in rows),
        all_rows=number(database, "SELECT count(*) FROM versions"),
    )


def _define_standings(database: duckdb.DuckDBPyConnection, work: Path) -> None:
    """Defines ``versions``: the one that may be the newest of its module is found, then held against the others."""
    result = database.cursor().execute(
        f"SELECT module, line, left(module_version, {_LENGTH}) FROM counted "
        f"WHERE length(module_version) <= {_LENGTH} ORDER BY module, line"
    )
    found = work / "candidates"
    with found.open("w", encoding="ascii") as file:
        at = best = None
        version = ""
        while batch := result.fetchmany(1_000):
            for module, line, text in batch:
                if module != at and best is not None:
                    file.write(f"{best}\n")
                if module != at or compare_versions(text, version) == "newer":
                    at, best, version = module, line, text
        if best is not None:
            file.write(f"{best}\n")
    database.execute(
        "CREATE TABLE candidates AS SELECT module, line, module_version AS version FROM counted SEMI JOIN ("
        f"FROM read_csv({quoted_to_read(found)}, header=false, auto_detect=false, columns={{'line': 'BIGINT'}}, "
        f"{BLOCKS})) USING (line)"
    )
    define_standings(
        database,
        "SELECT o.line AS one, c.line AS other, "
        f"CASE WHEN length(o.module_version) <= {_LENGTH} THEN o.module_version "
        f"ELSE left(o.module_version, {_LENGTH}) || '…' END AS version, c.version AS against "
        "FROM counted o JOIN candidates c USING (module) WHERE o.line <> c.line",
        work / "standings",
    )
    # One version alone is the newest, whatever it is called.
    database.execute("""
      CREATE TABLE versions AS SELECT * EXCLUDE (place), CASE
          WHEN NOT coalesce(bool_and(place IN ('same', 'older')) OVER (PARTITION BY module), false) THEN 'unordered'
          WHEN place = 'same' THEN 'newest' ELSE 'older' END AS standing
      FROM (SELECT v.*, CASE WHEN v.line = c.line OR count(*) OVER (PARTITION BY v.module) = 1 THEN 'same'
          ELSE coalesce(s.standing, 'unordered') END AS place
        FROM counted v LEFT JOIN candidates c USING (module) LEFT JOIN standings s ON s.one = v.line)""")
    database.execute("DROP TABLE counted")


def _modules(database: duckdb.DuckDBPyConnection) -> tuple[Module, ...]:
    heads = database.execute(
        f"SELECT module, {_texts('account', 'product_key', 'module_name')}, s.devices, s.versions, s.on_newest "
        "FROM largest JOIN sums s USING (module) JOIN versions v USING (module) WHERE v.line = s.first ORDER BY place"
    ).fetchall()
    found: dict[int, list[Version]] = {}
    for module, *row in database.execute(
        f"SELECT module, {_texts('module_version')}, devices, share, standing, low, high FROM versions "
        "SEMI JOIN largest USING (module) QUALIFY row_number() OVER "
        f"(PARTITION BY module ORDER BY standing = 'newest' DESC, line) <= {VERSIONS} ORDER BY line"
    ).fetchall():
        found.setdefault(module, []).append(Version(*row))
    newest: dict[int, str] = dict(
        database.execute(
            f"SELECT v.module, {_texts('v.module_version')} FROM versions v SEMI JOIN largest USING (module) "
            "WHERE standing = 'newest' QUALIFY row_number() OVER (PARTITION BY v.module ORDER BY v.line) = 1"
        ).fetchall()
    )
    return tuple(
        Module(account, product, name, devices, versions, tuple(found[module]), newest.get(module), on_newest)
        for module, account, product, name, devices, versions, on_newest in heads
    )


def _texts(*columns: str) -> str:
    return ", ".join(f"left({column}, {_LENGTH + 1})" for column in columns)
