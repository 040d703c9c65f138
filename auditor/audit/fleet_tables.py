"""Tables of what was listed: products with their devices by status, and where a fleet file differs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

from auditor.audit.enumeration import EnumeratedAccount, Enumeration
from auditor.database import READING_MEMORY, READING_THREADS, open_database
from auditor.errors import RunFolderError
from auditor.fleet.export import counts_by_product, differences
from auditor.fleet.snapshot import write_snapshot
from auditor.inventory.tables import Table, reading
from auditor.model import DeviceStatus

DIFFERENCES = ("unknown", "missing", "not_seen")
"""Where a fleet file and the platform may differ; see ``auditor.fleet.export.differences``."""


@contextmanager
def summarize(enumeration: Enumeration, work: Path) -> Iterator[Table]:
    """A row for each product: its name, its own number of devices, those in the fleet, and these by status.

    Args:
        enumeration: every account listed.
        work: a folder for what does not fit into memory.
    """
    database = open_database(work / "spill", READING_MEMORY, READING_THREADS)
    try:
        with reading(work):
            database.execute(
                "CREATE TABLE products (account VARCHAR, product_key VARCHAR, "
                "product_name VARCHAR, device_count BIGINT)"
            )
            rows = [
                (each.account, each.product_key, each.product_name, each.device_count)
                for account in enumeration.accounts
                for each in account.products
            ]
            if rows:
                database.executemany("INSERT INTO products VALUES (?, ?, ?, ?)", rows)
        counted = counts_by_product([each.wanted for each in enumeration.accounts if each.wanted is not None])
        names = ("devices", *(each.lower() for each in get_args(DeviceStatus)))
        counts = ", ".join(f"coalesce({name}, 0) AS {name}" for name in names)
        query = (
            f"SELECT account, product_key, product_name, {counts}, device_count "
            f"FROM products LEFT JOIN ({counted}) USING (account, product_key) "
            "ORDER BY account, devices DESC, product_key"
        )
        yield Table(database, query, reading=partial(reading, work), name="products", head=_head(enumeration))
    finally:
        database.close()


def _head(enumeration: Enumeration) -> dict[str, object]:
    devices = sum(each.facts.devices for each in enumeration.accounts)
    doubts = [doubt for each in enumeration.accounts for doubt in each.facts.doubts()]
    return {"devices": devices, "doubts": doubts}


@dataclass(frozen=True, slots=True)
class Differences:
    """Where a fleet file differs from the platform.

    Attributes:
        table: a row for each device that is not in both. Columns: difference, account, product_key, device_name,
            iot_id, device_status.
        counts: by difference, each of ``DIFFERENCES``.
    """

    table: Table
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class GivenFleet:
    """A fleet file, read: a file like ``fleet.parquet``, and its devices, each once."""

    path: Path
    devices: int


@contextmanager
def given_fleet(account: str, file: str) -> Iterator[GivenFleet]:
    """Reads a fleet file of an account, for a while; ``-`` is standard input.

    Raises:
        FleetError: the file cannot be used.
    """
    with TemporaryDirectory(prefix="auditor-") as temporary:
        path = Path(temporary, "given.parquet")
        yield GivenFleet(path, write_snapshot([(account, file)], path).devices)


@contextmanager
def compare(account: EnumeratedAccount, given: GivenFleet, work: Path) -> Iterator[Differences]:
    """Where a fleet file differs from what the platform lists of one account.

    Args:
        account: listed to its end.
        given: the fleet file.
        work: a folder for what does not fit into memory.

    Raises:
        RunFolderError: the account is not listed to its end.
    """
    if account.wanted is None or account.listed is None:
        raise RunFolderError(f"{work}: the fleet was not listed to its end, so nothing can be compared with it")
    asked = None if account.everything else [product.product_key for product in account.products]
    query = differences(given.path, account.wanted, account.listed, account.unsure, asked=asked)
    database = open_database(work / "spill", READING_MEMORY, READING_THREADS)
    try:
        with reading(work):
            counted = dict(database.execute(f"SELECT difference, count(*) FROM ({query}) GROUP BY ALL").fetchall())
        counts = {each: int(counted.get(each, 0)) for each in DIFFERENCES}
        head = _head(Enumeration((account,)))
        table = Table(database, query, reading=partial(reading, work), name="differences", head=counts | head)
        yield Differences(table, counts)
    finally:
        database.close()
