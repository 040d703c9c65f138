"""A fleet as a file that ``--fleet`` reads, and where a fleet file and the platform differ.

Tables of what was listed: products with their devices by status, and where a fleet file differs.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import duckdb

from auditor.errors import RunFolderError, RunNotWritableError
from auditor.fleet.discovery import EnumeratedAccount, Enumeration
from auditor.fleet.snapshot import write_snapshot
from auditor.fleet.table import FLEET_COLUMNS
from auditor.models import DeviceStatus
from auditor.storage.database import (
    READING_MEMORY,
    READING_THREADS,
    ROW_GROUP,
    open_database,
    parquet,
    quoted,
    reason_of,
)
from auditor.storage.tables import Table, reading

FleetFormat = Literal["csv", "jsonl", "parquet"]


_TIMES = [name for name, kind in FLEET_COLUMNS.items() if kind == "TIMESTAMP"]


_OPTIONS: dict[FleetFormat, str] = {
    "csv": "FORMAT csv, HEADER",
    "jsonl": "FORMAT json",
    "parquet": f"FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP}",
}


def write_fleet(fleet: Sequence[Path], out: Path, form: FleetFormat) -> None:
    """Writes a fleet with all that was listed of it; names stand there as they are, so that they can be asked for.

    Args:
        fleet: files like ``fleet.parquet``, one after another.
        out: the file to write.
        form: how.

    Raises:
        RunNotWritableError: it cannot be written.
    """
    texts = ", ".join(f"strftime({name}, '%Y-%m-%dT%H:%M:%S.%gZ') AS {name}" for name in _TIMES)
    times = "" if form == "parquet" else f"REPLACE ({texts})"
    database = open_database()
    try:
        database.execute(
            f"COPY (SELECT {', '.join(FLEET_COLUMNS)} FROM (SELECT * {times} FROM {parquet(*fleet)})) "
            f"TO {quoted(out)} ({_OPTIONS[form]})"
        )
    except duckdb.Error as error:
        raise RunNotWritableError(f"{out} cannot be written: {reason_of(error)}") from error
    finally:
        database.close()


def differences(
    given: Path, wanted: Path, listed: Path, unsure: Collection[str], *, asked: Collection[str] | None
) -> str:
    """The SQL for where a fleet file and the platform differ: a row for each device that is not in both.

    A device of the file is known if what it would be asked by is: its iot_id, or else both names. ``unknown``: the
    platform does not list it. ``missing``: listed and wanted, and not in the file. ``not_seen``: not listed, and of a
    product that was not listed whole, or was not asked for, so nothing is known.

    Args:
        given: the file, as ``write_snapshot`` wrote it.
        wanted: what is listed and wanted.
        listed: what is listed.
        unsure: products of which devices are missing in the list.
        asked: products that were asked for; None: all.
    """
    file, all_listed, by_id, by_name = parquet(given), parquet(listed), "(iot_id)", "(product_key, device_name)"
    with_id, without = f"(FROM {file} WHERE iot_id IS NOT NULL)", f"(FROM {file} WHERE iot_id IS NULL)"
    not_listed = (
        f"FROM {with_id} ANTI JOIN {all_listed} USING {by_id} UNION ALL BY NAME "
        f"FROM {without} ANTI JOIN {all_listed} USING {by_name}"
    )
    missing = f"FROM {parquet(wanted)} ANTI JOIN {with_id} USING {by_id} ANTI JOIN {without} USING {by_name}"
    doubtful = [f"product_key IN ({_literals(unsure)}) OR product_key IS NULL"] if unsure else []
    if asked is not None:
        among = f"product_key NOT IN ({_literals(asked)})" if asked else "true"
        doubtful.append(f"product_key IS NULL OR {among}")
    verdict = f"CASE WHEN {' OR '.join(doubtful)} THEN 'not_seen' ELSE 'unknown' END" if doubtful else "'unknown'"
    columns = "account, product_key, device_name, iot_id"
    return (
        f"SELECT {verdict} AS difference, {columns}, NULL::VARCHAR AS device_status FROM ({not_listed}) UNION ALL "
        f"SELECT 'missing', {columns}, device_status FROM ({missing}) ORDER BY ALL"
    )


def _literals(names: Collection[str]) -> str:
    return ", ".join("'" + each.replace("'", "''") + "'" for each in names)


def counts_by_product(fleet: Sequence[Path]) -> str:
    """The SQL for how many devices each product has, by status."""
    by_status = ", ".join(
        f"count(*) FILTER (device_status = '{each}') AS {each.lower()}" for each in get_args(DeviceStatus)
    )
    return f"SELECT account, product_key, count(*) AS devices, {by_status} FROM {parquet(*fleet)} GROUP BY ALL"


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
