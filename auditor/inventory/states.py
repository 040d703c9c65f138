"""Every device of a fleet with what became of it: the fleet joined with answers and failures, a part of it at a time.

A join of all at once would hold the answers of all in memory. Parts are told by a hash of what devices are asked by, so
an answer is in the part of its device.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb

from auditor.database import parquet

PART = 150_000
"""Devices of a part at most, about: what is known of so many fits into the memory that sealing takes."""

Write = Callable[[duckdb.DuckDBPyConnection, str, Path], None]
"""Writes the rows of a query to a Parquet file."""

_BY_ID, _BY_NAMES = ("account", "iot_id"), ("account", "product_key", "device_name")


@dataclass(frozen=True, slots=True)
class Parts:
    """How a fleet is joined: by which columns its devices are found, and in how many parts."""

    by: tuple[tuple[str, ...], ...]
    many: int

    @property
    def number(self) -> str:
        """The SQL that tells the part of a row of the fleet, of answers or of failures."""
        return "0" if self.many == 1 else f"hash({', '.join(self.by[0])}) % {self.many}"


def parts_of(database: duckdb.DuckDBPyConnection) -> Parts:
    """How the view ``fleet`` is joined; one that names devices both ways is joined at once."""
    by_id, by_names = database.execute(
        "SELECT count(*) FILTER (iot_id IS NOT NULL), count(*) FILTER (iot_id IS NULL) FROM fleet"
    ).fetchone() or (0, 0)
    if by_id and by_names:
        return Parts((_BY_ID, _BY_NAMES), 1)
    return Parts((_BY_ID if by_id else _BY_NAMES,), max(1, math.ceil((by_id + by_names) / PART)))


def write_devices(database: duckdb.DuckDBPyConnection, parts: Parts, work: Path, write: Write) -> Path:
    """Writes every device once into ``work``; gives the file.

    Args:
        database: has the views ``fleet``, ``failures``, and ``answered`` with the column ``part``.
        parts: how they are joined.
        work: where to.
        write: writes it.
    """
    path = work / "devices.parquet"
    if parts.many == 1:
        write(database, devices_query(parts), path)
        return path
    written = [work / f"devices-{part}.parquet" for part in range(parts.many)]
    for part, each in enumerate(written):
        write(database, devices_query(parts, part), each)
    write(database, f"FROM {parquet(*written)}", path)
    for each in written:
        each.unlink()
    return path


def devices_query(parts: Parts, part: int | None = None) -> str:
    """The SQL of every device, or of those of one part, with what became of it.

    A line carries what was asked and, besides, what the platform told of the device's other name. So a device that
    was asked by its iot_id is found by that, one that was asked by its names by those; only in a fleet that uses
    both ways can two lines fit one row, when two rows are the same device, and then the later answer counts.
    """
    fleet, failures = (
        f"(FROM {view} WHERE {parts.number} = {part})" if part is not None else view for view in ("fleet", "failures")
    )
    answered = "answered" if part is None else f"(FROM answered WHERE part = {part})"
    columns = """SELECT f.ordinal, f.account,
      f.product_key AS asked_key, f.device_name AS asked_name, f.iot_id AS asked_id,
      coalesce(f.product_key, a.product_key) AS product_key, coalesce(f.device_name, a.device_name) AS device_name,
      coalesce(f.iot_id, a.iot_id) AS iot_id, a.status, a.modules, a.pages, a.attempts, a.request_id, a.audited_at,
      a.reason"""
    asked_so = {_BY_ID: "iot_id IS NOT NULL", _BY_NAMES: "iot_id IS NULL"}
    known = " UNION ALL ".join(
        f"{columns} FROM (FROM {fleet} WHERE {asked_so[by]}) f LEFT JOIN {answered} a USING ({', '.join(by)})"
        for by in parts.by
    )
    once = (
        "QUALIFY row_number() OVER (PARTITION BY ordinal ORDER BY audited_at DESC, attempts, request_id) = 1"
        if len(parts.by) > 1
        else ""
    )
    return f"""
      SELECT k.ordinal, k.account, k.product_key, k.device_name, k.iot_id,
        coalesce(k.status, f.status, 'pending') AS status,
        coalesce(k.modules, 0) AS modules, coalesce(k.pages, 0) AS pages,
        coalesce(k.attempts, f.attempts, 0) AS attempts, coalesce(k.request_id, f.request_id) AS request_id,
        k.audited_at, f.code, f.message, f.http_status, f.failed_at, k.reason
      FROM (SELECT * FROM ({known}) {once}) k LEFT JOIN {failures} f ON k.account = f.account
        AND k.asked_key IS NOT DISTINCT FROM f.product_key AND k.asked_name IS NOT DISTINCT FROM f.device_name
        AND k.asked_id IS NOT DISTINCT FROM f.iot_id"""
