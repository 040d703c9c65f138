"""How often it was wrong to carry an answer, by some that were asked all the same; and what is carried unasked."""

from dataclasses import replace

import duckdb

from auditor.inventory.choices import Recheck
from auditor.inventory.intervals import error_rate
from auditor.inventory.states import device_key

VERSIONS = (
    "list_sort(list_transform({0}, lambda module: lower(module.module_name) || chr(0) || module.module_version))"
)  # fmt: skip
"""Modules of an answer as a list that is the same if they are; names are the same regardless of case."""


def count_rechecked(database: duckdb.DuckDBPyConnection, carried: int) -> Recheck | None:
    """How often carrying was wrong, from the views ``planned`` and ``lines``; None where nothing was to be checked.

    Args:
        database: with the live views of a run.
        carried: devices whose answers were chosen to be carried, without those that were asked all the same.
    """
    asked = database.execute("SELECT count(*) FROM planned WHERE why = 'recheck'").fetchall()[0][0]
    if not asked:
        return None
    other = f"p.status <> l.status OR {VERSIONS.format('p.modules')} <> {VERSIONS.format('l.modules')}"
    # A device that the fleet names in both ways has a line of either name, and is one in the plan by each.
    met = _met(
        "JOIN",
        f"{device_key('p.account', 'p.product_key', 'p.device_name', 'p.iot_id')} AS key, {other} AS wrong",
        "why = 'recheck'",
        "asked",
    )
    parts = f"SELECT key, bool_or(wrong) AS wrong FROM ({met}) GROUP BY key"
    answered, wrong = database.execute(f"SELECT count(*), count(*) FILTER (wrong) FROM ({parts})").fetchone() or (0, 0)
    found = Recheck(carried + asked, asked, answered, wrong)
    if not answered:
        return found
    rate = error_rate(carried + asked, answered, wrong)
    return replace(found, rate=round(rate.share, 8), low=round(rate.low, 8), high=round(rate.high, 8))


def count_unreached(database: duckdb.DuckDBPyConnection) -> int:
    """Devices that were to be asked and were not, and whose known answers are carried all the same.

    From the views ``planned`` and ``lines``.
    """
    met = _met("SEMI JOIN", "p.account", "true", "carried")
    found: int = database.execute(f"SELECT count(*) FROM ({met})").fetchall()[0][0]
    return found


def _met(join: str, columns: str, condition: str, source: str) -> str:
    """The SQL of the devices of a plan (``p``) that have an answer (``l``) of a source."""
    return " UNION ALL ".join(
        f"SELECT {columns} FROM (FROM planned WHERE {condition} AND iot_id IS {word}NULL) p "
        f"{join} (FROM lines WHERE source = '{source}') l ON p.account = l.account AND {on}"
        for word, on in (
            ("NOT ", "p.iot_id = l.iot_id"),
            ("", "p.product_key = l.product_key AND p.device_name = l.device_name"),
        )
    )
