"""``fleet.parquet``: its columns, how it is written and extended, and how it is read lazily.

Functions raise RunNotWritableError if they cannot read or write it, so that the run cannot continue.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from auditor.errors import RunNotWritableError
from auditor.fleet.columns import COLUMNS
from auditor.models import Device
from auditor.runs.attributes import ATTRIBUTES, ATTRIBUTES_TYPE
from auditor.storage.database import Database, parquet, scalar, scratch_database, write_rows

BATCH_ROWS = 1_000
"""Rows that are read at a time."""

FLEET_COLUMNS = {
    **dict.fromkeys(("account", *COLUMNS, "device_status"), "VARCHAR"),
    **dict.fromkeys(("utc_create", "utc_modified"), "TIMESTAMP"),
    ATTRIBUTES: ATTRIBUTES_TYPE,
}
"""Columns besides ``ordinal``, and their types.

The status and the times come from a discovery, or a file that it wrote; attributes from a discovery or any fleet file.
"""


_ALL_NULL_COLUMNS = ", ".join(f"NULL::{kind} AS {name}" for name, kind in FLEET_COLUMNS.items())

_ACTIVATED, _NEVER_ACTIVATED = "device_status IS DISTINCT FROM 'UNACTIVE'", "device_status = 'UNACTIVE'"


def require_folder(path: Path) -> None:
    """Raise RunNotWritableError if the folder of a file to write does not exist: a scratch folder would create it."""
    if not path.parent.is_dir():
        raise RunNotWritableError(f"{path}: cannot be written: its folder does not exist")


def concatenated_rows(paths: Sequence[Path]) -> str:
    """Return the SQL that reads the rows of files in their order; without files, no rows."""
    return f"FROM {parquet(*paths)}" if paths else f"FROM (SELECT {_ALL_NULL_COLUMNS}) WHERE false"


def write_numbered(database: Database, rows: str, out: Path, limit: int | None = None) -> int:
    """Write devices, numbered from 0 and up to ``limit``; return their number. ``rows`` is the SQL that reads them."""
    limited = "" if limit is None else f"LIMIT {limit}"
    columns = f"row_number() OVER () - 1 AS ordinal, {', '.join(FLEET_COLUMNS)}"
    write_rows(database, f"SELECT {columns} FROM ({rows}) {limited}", out)
    return scalar(database, f"SELECT count(*) FROM {parquet(out)}")


def write_extended_fleet(
    fleet: Path, devices: Path, account: str, order: Sequence[str], out: Path, *, max_devices: int | None = None
) -> int:
    """Write a fleet with the devices of one account added, and return its number of devices.

    Rows of the fleet are kept, even if their devices are not listed any more: results of the run refer to them. New
    devices follow those of their account, which has up to ``max_devices`` then. The ``iot_id`` of a new device is left
    out if another device of the account already has it. ``order`` has the names of all accounts in the settings' order.
    A folder beside ``out`` holds what does not fit into memory meanwhile.
    """
    require_folder(out)
    work, columns = out.with_suffix(".growing"), ", ".join(FLEET_COLUMNS)
    with scratch_database(work, failure=f"{out}: cannot be written") as database:
        parts = [work / f"{number}.parquet" for number in range(len(order))]
        for name, part in zip(order, parts, strict=True):
            existing = f"SELECT {columns} FROM {parquet(fleet)} WHERE account = $1"
            write_rows(database, existing, part, parameters=[name])
        own, new = parts[list(order).index(account)], work / "new.parquet"
        existing = f"(SELECT product_key, device_name FROM {parquet(own)})"
        used = f"(SELECT iot_id FROM {parquet(own)} WHERE iot_id IS NOT NULL)"
        unused = f"* REPLACE (CASE WHEN iot_id NOT IN {used} THEN iot_id END AS iot_id)"
        added = f"SELECT {columns} FROM (SELECT {unused} FROM {parquet(devices)}) "
        added += f"ANTI JOIN {existing} USING (product_key, device_name)"
        if max_devices is not None:
            added += f" LIMIT {max(0, max_devices - scalar(database, f'SELECT count(*) FROM {parquet(own)}'))}"
        write_rows(database, added, new)
        parts.insert(parts.index(own) + 1, new)
        return write_numbered(database, concatenated_rows(parts), out)


def read_snapshot(path: Path, account: str, *, include_never_activated: bool = True) -> Iterator[Device]:
    """Yield the devices of one account, in the fleet's order, with one batch of rows in memory at a time.

    ``read_never_activated`` yields those that are not included without ``include_never_activated``.
    """
    yield from _devices(path, account, "true" if include_never_activated else _ACTIVATED)


def read_never_activated(path: Path, account: str) -> Iterator[Device]:
    """Yield the devices of one account that the platform lists as never activated, see ``read_snapshot``."""
    yield from _devices(path, account, _NEVER_ACTIVATED)


def _devices(path: Path, account: str, condition: str) -> Iterator[Device]:
    with scratch_database(failure=f"{path}: cannot be read") as database:
        query = f"SELECT {', '.join(COLUMNS)} FROM {parquet(path)} WHERE account = ? AND {condition}"
        rows = database.execute(query, [account])
        while batch := rows.fetchmany(BATCH_ROWS):
            for product_key, device_name, iot_id in batch:
                yield Device(account, product_key, device_name, iot_id)


def count_devices_to_query(path: Path, include_never_activated: Collection[str]) -> dict[str, int]:
    """Return how many devices of each account are queried, in accounts with devices.

    ``include_never_activated`` names accounts in which devices that were never activated are queried, too.
    """
    counted = f"SELECT account, count(*), count(*) FILTER ({_ACTIVATED}) FROM {parquet(path)} GROUP BY account"
    return {
        account: devices if account in include_never_activated else activated
        for account, devices, activated in _read_rows(path, counted)
    }


def product_sizes(path: Path, include_never_activated: Collection[str]) -> dict[str, dict[int, int]]:
    """Return how many products of each account have how many devices to query; see ``count_devices_to_query``."""
    sizes = (
        f"SELECT account, count(*) FILTER (list_contains(?::VARCHAR[], account) OR {_ACTIVATED}) AS size "
        f"FROM {parquet(path)} GROUP BY account, product_key"
    )
    counted = f"SELECT account, size, count(*) FROM ({sizes}) WHERE size > 0 GROUP BY ALL ORDER BY ALL"
    found: dict[str, dict[int, int]] = {}
    for account, size, products in _read_rows(path, counted, list(include_never_activated)):
        found.setdefault(account, {})[size] = products
    return found


def devices_by_status(path: Path, account: str) -> dict[str, int]:
    """Return how many devices of an account have each status, ``""`` without one."""
    status = "coalesce(device_status, '')"
    counted = f"SELECT {status}, count(*) FROM {parquet(path)} WHERE account = ? GROUP BY ALL ORDER BY ALL"
    return dict(_read_rows(path, counted, account))


def devices_by_product(path: Path, account: str) -> dict[str, int]:
    """Return how many devices each product of an account has in the fleet, of devices with a product key."""
    counted = (
        f"SELECT product_key, count(*) FROM {parquet(path)} WHERE account = ? AND product_key IS NOT NULL "
        "GROUP BY ALL ORDER BY ALL"
    )
    return dict(_read_rows(path, counted, account))


def devices_by_stratum(path: Path, skipping: Collection[str]) -> dict[tuple[str, str | None], tuple[int, int]]:
    """Return how many devices of each account and product are queried, and how many have a result without a query.

    ``skipping`` names accounts in which devices that were never activated are not queried.
    """
    without_query = f"list_contains(?::VARCHAR[], account) AND {_NEVER_ACTIVATED}"
    columns = f"account, product_key, count(*), count(*) FILTER (({without_query}) IS TRUE)"
    counted = f"SELECT {columns} FROM {parquet(path)} GROUP BY ALL"
    rows = _read_rows(path, counted, list(skipping))
    return {(account, key): (devices - certain, certain) for account, key, devices, certain in rows}


def _read_rows(path: Path, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    with scratch_database(failure=f"{path}: cannot be read") as database:
        return database.execute(query, list(parameters)).fetchall()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
