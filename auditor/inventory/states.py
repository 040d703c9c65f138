"""Every device of a fleet with what became of it: the fleet joined with answers and failures, a part of it at a time.

A join of all at once would hold a fleet, or the answers about it, in memory. A part is a stretch of the fleet's own
order: its devices are held, and all answers go by, or those that can be about them where names come in order.
"""

from pathlib import Path

import duckdb

from auditor.database import parquet, write_parquet

PART = 50_000
"""Devices of a part: so many, and what is known of them, fit into the memory that sealing takes."""


def write_devices(database: duckdb.DuckDBPyConnection, work: Path) -> Path:
    """Writes the rows of ``devices_query``, in the fleet's order if there are several parts; gives the file.

    Args:
        database: has the views ``fleet``, ``answered`` and ``failures``.
        work: a folder for it.
    """
    path = work / "devices.parquet"
    (devices,) = database.execute("SELECT count(*) FROM fleet").fetchone() or (0,)
    if devices <= PART:
        write_parquet(database, devices_query(database), path)
        return path
    written = []
    for first in range(0, devices, PART):
        written.append(work / f"devices-{first}.parquet")
        # The last part has no end: in a fleet whose ordinals have gaps no device may be left out.
        end = "" if first + PART >= devices else f" AND ordinal < {first + PART}"
        part = f"(FROM fleet WHERE ordinal >= {first}{end})"
        write_parquet(database, f"{devices_query(database, part)} ORDER BY ordinal", written[-1])
    write_parquet(database, f"FROM {parquet(*written)}", path)
    for each in written:
        each.unlink()
    return path


def devices_query(database: duckdb.DuckDBPyConnection, fleet: str = "fleet") -> str:
    """The SQL of every device of a fleet, or of a part of it, with what became of it.

    A line carries what was asked and, besides, what the platform told of the device's other name. So a device that
    was asked by its iot_id is found by that, one that was asked by its names by those; only in a fleet that uses
    both ways can two lines fit one row, when two rows are the same device, and then the later answer counts.
    """
    by_id, by_names = database.execute(
        f"SELECT count(*) FILTER (iot_id IS NOT NULL), count(*) FILTER (iot_id IS NULL) FROM {fleet}"
    ).fetchone() or (0, 0)
    columns = """SELECT f.ordinal, f.account,
      f.product_key AS asked_key, f.device_name AS asked_name, f.iot_id AS asked_id,
      coalesce(f.product_key, a.product_key) AS product_key, coalesce(f.device_name, a.device_name) AS device_name,
      coalesce(f.iot_id, a.iot_id) AS iot_id, a.status, a.modules, a.pages, a.attempts, a.request_id, a.audited_at,
      a.reason, a.source"""
    joins = []
    if by_id:
        joins.append(f"FROM (FROM {fleet} WHERE iot_id IS NOT NULL) f LEFT JOIN answered a USING (account, iot_id)")
    if by_names or not by_id:
        joins.append(
            f"FROM (FROM {fleet} WHERE iot_id IS NULL) f LEFT JOIN answered a USING (account, product_key, device_name)"
        )
    undrawn = _undrawn(database)
    once = (
        "QUALIFY row_number() OVER (PARTITION BY ordinal ORDER BY audited_at DESC, attempts, request_id) = 1"
        if by_id and by_names
        else ""
    )
    known = " UNION ALL ".join(f"{columns} {join}" for join in joins)
    return f"""
      SELECT k.ordinal, k.account, k.product_key, k.device_name, k.iot_id,
        coalesce(k.status, f.status, 'pending') AS status,
        coalesce(k.modules, 0) AS modules, coalesce(k.pages, 0) AS pages,
        coalesce(k.attempts, f.attempts, 0) AS attempts, coalesce(k.request_id, f.request_id) AS request_id,
        k.audited_at, f.code, f.message, f.http_status, f.failed_at, k.reason,
        CASE WHEN k.status IS NOT NULL THEN k.source WHEN f.status IS NOT NULL THEN 'asked' {undrawn} END AS source
      FROM (SELECT * FROM ({known}) {once}) k LEFT JOIN failures f ON k.account = f.account
        AND k.asked_key IS NOT DISTINCT FROM f.product_key AND k.asked_name IS NOT DISTINCT FROM f.device_name
        AND k.asked_id IS NOT DISTINCT FROM f.iot_id"""


def _undrawn(database: duckdb.DuckDBPyConnection) -> str:
    """The case of a device that was not drawn into the sample of its account, if samples were drawn."""
    accounts = "SELECT DISTINCT account FROM planned WHERE why = 'sample'"
    if not database.execute(f"SELECT count(*) FROM ({accounts})").fetchall()[0][0]:
        return ""
    device, drawn = device_key("k.account", "k.asked_key", "k.asked_name", "k.asked_id"), device_key()
    return f"WHEN k.account IN ({accounts}) AND {device} NOT IN (SELECT {drawn} FROM planned) THEN 'unsampled'"


def device_key(
    account: str = "account", product_key: str = "product_key", device_name: str = "device_name", iot_id: str = "iot_id"
) -> str:
    """One text for a device as a fleet names it; lengths keep apart what separators would not."""
    names = f"'n' || length({product_key}) || '/' || {product_key} || '/' || {device_name}"
    return f"length({account}) || '/' || {account} || coalesce('i' || {iot_id}, {names})"
