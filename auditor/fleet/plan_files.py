"""What was chosen, in files: whom to ask, with what is known of them, and what is carried; of an open ``Choosing``.

What is known is wide, with all modules of a device, so it is read once, in its own order, and never sorted. Names of
devices are most of what a join of a whole fleet would hold: they are joined where they are not known besides.
"""

from pathlib import Path

import duckdb

from auditor.database import write_parquet
from auditor.fleet.files import COLUMNS

ANSWER = ("status", "modules", "total", "pages", "request_id", "audited_at", "reason", "run", "changes")
"""Columns of an answer that is known, beside the names of its device."""

_DEVICE = ("account", *COLUMNS, "device_status")


def join_twins(database: duckdb.DuckDBPyConnection) -> None:
    """A device that the fleet names in both ways is asked by both names or by none: it has one answer.

    Args:
        database: with the tables ``asking`` and ``ranked``.
    """
    (twins,) = database.execute("SELECT count(row) - count(DISTINCT row) FROM asking").fetchone() or (0,)
    if twins:
        database.execute(
            "INSERT INTO ranked SELECT a.place, row, any_value(a.renamed), any_value(r.why), max(rank) FROM asking a "
            "JOIN ranked r USING (row) WHERE a.place NOT IN (SELECT place FROM ranked) GROUP BY a.place, row"
        )


def write_plan(database: duckdb.DuckDBPyConnection, ask: Path, plan: Path, *, also: str | None = None) -> None:
    """Writes who is asked, in order, and the plan, in no order; see ``Choosing.write``.

    Args:
        database: with the views ``wanted`` and ``known`` and the table ``ranked``.
        ask: who is asked.
        plan: the plan.
        also: the SQL of devices that are in the plan besides: their columns as in ``wanted``, and row, why and rank.
    """
    columns = ", ".join(_DEVICE)
    ordered = f"SELECT {columns} FROM wanted JOIN (SELECT place, rank FROM ranked) USING (place) ORDER BY rank"
    write_parquet(database, ordered, ask)
    # Of one that failed nothing else is known; a CASE around all of it would copy every list of modules.
    answer = ", ".join(f"nullif(k.{name}, 'failed') AS {name}" if name == "status" else f"k.{name}" for name in ANSWER)
    known = ", ".join(f"k.{name} AS known_{name}" for name in COLUMNS)
    named = _named_as_known(database)
    asked = f"SELECT d.*, row, why, rank FROM wanted d JOIN (FROM ranked WHERE {'true' if named is None else _APART}) "
    asked += f"USING (place){'' if also is None else f' UNION ALL {also}'}"
    query = (
        f"SELECT {', '.join(f'd.{name}' for name in _DEVICE)}, why, rank, {answer}, {known} "
        f"FROM ({asked}) d LEFT JOIN known k ON d.row = k.file_row_number"
    )
    if named is not None:
        same = f"SELECT k.account, {named}, NULL::VARCHAR AS device_status, why, rank, {answer}, {known}"
        alike = f"FROM known k JOIN (FROM ranked WHERE NOT ({_APART})) r ON r.row = k.file_row_number"
        query = f"{same} {alike} UNION ALL {query}"
    write_parquet(database, query, plan)


_APART = "row IS NULL OR renamed"


def _named_as_known(database: duckdb.DuckDBPyConnection) -> str | None:
    """The SQL of a device's names as the fleet has them, from what is known.

    None where the fleet names devices in several ways, or the platform's list tells of their statuses.
    """
    counts = ", ".join(f"count({name})" for name in (*COLUMNS, "device_status"))
    every, *named, told = database.execute(f"SELECT count(*), {counts} FROM wanted").fetchone() or (0, 0, 0, 0, 0)
    if told or any(number not in {0, every} for number in named):
        return None
    columns = zip(COLUMNS, named, strict=True)
    return ", ".join(f"k.{name}" if number else f"NULL::VARCHAR AS {name}" for name, number in columns)


def write_carried(database: duckdb.DuckDBPyConnection, carried: Path) -> None:
    """Writes what is known of devices that are not asked.

    Args:
        database: with the views ``wanted`` and ``known`` and the tables ``asking`` and ``ranked``.
        carried: the file.
    """
    answer = ", ".join(f"k.{name}" for name in ANSWER)
    told = ", ".join(f"coalesce(d.{name}, k.{name}) AS {name}" for name in COLUMNS)
    same = ", ".join(f"k.{name}" for name in COLUMNS)
    database.execute(
        "CREATE TABLE kept AS SELECT place, row, renamed FROM asking ANTI JOIN ranked USING (place) "
        "WHERE status <> 'failed'"
    )
    write_parquet(
        database,
        f"SELECT account, {same}, {answer} FROM known k JOIN (FROM kept WHERE NOT renamed) a "
        f"ON a.row = k.file_row_number UNION ALL SELECT k.account, {told}, {answer} FROM known k "
        "JOIN (FROM kept WHERE renamed) a ON a.row = k.file_row_number JOIN wanted d USING (place)",
        carried,
    )
