"""Results of a discovery: as a fleet file, as a table of products, and compared with an existing fleet file."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from auditor.errors import RunFolderError
from auditor.fleet.discovery import DiscoveredAccount, DiscoveryResult
from auditor.fleet.snapshot import write_snapshot
from auditor.fleet.table import FLEET_COLUMNS
from auditor.models import DeviceStatus
from auditor.runs.attributes import ATTRIBUTES, LISTED_ATTRIBUTES, attribute_cells
from auditor.storage.database import (
    PARQUET_OPTIONS,
    READING_MEMORY,
    READING_THREADS,
    borrow_database,
    parquet,
    scratch_database,
    sql_literals,
    write_rows,
)
from auditor.storage.files import private_folder
from auditor.storage.tables import ResultTable, translate_read_errors
from auditor.text.formats import FleetFormat

_TIMES = [name for name, kind in FLEET_COLUMNS.items() if kind == "TIMESTAMP"]

_OPTIONS: dict[FleetFormat, str] = {"csv": "FORMAT csv, HEADER", "jsonl": "FORMAT json", "parquet": PARQUET_OPTIONS}


def write_fleet(fleet: Sequence[Path], out: Path, form: FleetFormat) -> None:
    """Write discovered fleets, files like ``fleet.parquet``, as one that ``--fleet`` reads; names are not escaped.

    Attributes that the platform lists are columns.

    Raises:
        RunNotWritableError: it cannot be written.
    """
    columns = ", ".join(name for name in FLEET_COLUMNS if name != ATTRIBUTES)
    texts = ", ".join(f"strftime({name}, '%Y-%m-%dT%H:%M:%S.%gZ') AS {name}" for name in _TIMES)
    times = "" if form == "parquet" else f"REPLACE ({texts})"
    with scratch_database(failure=f"{out}: cannot be written") as database:
        source = f"(SELECT * {times} FROM {parquet(*fleet)})"
        rows = f"SELECT {columns}{attribute_cells(LISTED_ATTRIBUTES, FLEET_COLUMNS)} FROM {source}"
        write_rows(database, rows, out, _OPTIONS[form])


def comparison_sql(
    given: Path,
    matching: Path,
    discovered: Path,
    incomplete_products: Collection[str],
    *,
    requested_products: Collection[str] | None,
) -> str:
    """Return the SQL of the differences between a fleet file and the platform: a row for each device not in both.

    A device of the file matches by what it is queried with: its iot_id, or else both names. ``unknown``: the platform
    does not list it. ``missing``: discovered and matching the settings, but not in the file. ``not_seen``: not
    discovered, but its product was not listed completely or not requested, so its state is undetermined.

    ``given`` is the file as ``write_snapshot`` wrote it. ``requested_products`` is None if all were requested.
    """
    file, all_devices, by_id, by_name = parquet(given), parquet(discovered), "(iot_id)", "(product_key, device_name)"
    with_id, without = f"(FROM {file} WHERE iot_id IS NOT NULL)", f"(FROM {file} WHERE iot_id IS NULL)"
    not_discovered = (
        f"FROM {with_id} ANTI JOIN {all_devices} USING {by_id} UNION ALL BY NAME "
        f"FROM {without} ANTI JOIN {all_devices} USING {by_name}"
    )
    missing = f"FROM {parquet(matching)} ANTI JOIN {with_id} USING {by_id} ANTI JOIN {without} USING {by_name}"
    undetermined = (
        [f"product_key IN ({sql_literals(incomplete_products)}) OR product_key IS NULL"] if incomplete_products else []
    )
    if requested_products is not None:
        among = f"product_key NOT IN ({sql_literals(requested_products)})" if requested_products else "true"
        undetermined.append(f"product_key IS NULL OR {among}")
    condition = " OR ".join(undetermined)
    difference = f"CASE WHEN {condition} THEN 'not_seen' ELSE 'unknown' END" if undetermined else "'unknown'"
    columns = "account, product_key, device_name, iot_id"
    return (
        f"SELECT {difference} AS difference, {columns}, NULL::VARCHAR AS device_status FROM ({not_discovered}) "
        f"UNION ALL SELECT 'missing', {columns}, device_status FROM ({missing}) ORDER BY ALL"
    )


def product_counts_sql(fleet: Sequence[Path]) -> str:
    """Return the SQL of the number of devices of each product, in total and by status."""
    by_status = ", ".join(
        f"count(*) FILTER (device_status = '{each}') AS {each.lower()}" for each in get_args(DeviceStatus)
    )
    return f"SELECT account, product_key, count(*) AS devices, {by_status} FROM {parquet(*fleet)} GROUP BY ALL"


DIFFERENCES = ("unknown", "missing", "not_seen")
"""Kinds of differences between a fleet file and the platform; see ``comparison_sql``."""


@contextmanager
def summarize_products(result: DiscoveryResult, work: Path) -> Iterator[ResultTable]:
    """Open a table with a row for each product: its name, devices in the fleet by status, and its own count."""
    reading = partial(translate_read_errors, work)
    with borrow_database(work / "spill", READING_MEMORY, READING_THREADS) as database:
        with reading():
            database.execute(
                "CREATE TABLE products (account VARCHAR, product_key VARCHAR, "
                "product_name VARCHAR, device_count BIGINT)"
            )
            rows = [
                (each.account, each.product_key, each.product_name, each.device_count)
                for account in result.accounts
                for each in account.products
            ]
            if rows:
                database.executemany("INSERT INTO products VALUES (?, ?, ?, ?)", rows)
        counted = product_counts_sql([each.matching for each in result.accounts if each.matching is not None])
        names = ("devices", *(each.lower() for each in get_args(DeviceStatus)))
        counts = ", ".join(f"coalesce({name}, 0) AS {name}" for name in names)
        query = (
            f"SELECT account, product_key, product_name, {counts}, device_count "
            f"FROM products LEFT JOIN ({counted}) USING (account, product_key) "
            "ORDER BY account, devices DESC, product_key"
        )
        yield ResultTable(database, query, reading=reading, name="products", head=_head(result))


def _head(result: DiscoveryResult) -> dict[str, object]:
    devices = sum(each.info.devices for each in result.accounts)
    warnings = [
        {"kind": warning.kind, "message": warning.detail}
        for each in result.accounts
        for warning in each.info.warnings()
    ]
    return {"devices": devices, "warnings": warnings}


@dataclass(frozen=True, slots=True)
class FleetComparison:
    """Differences between a fleet file and the platform: a row for each device not in both, and numbers of devices."""

    table: ResultTable
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class GivenFleet:
    """A fleet file after reading: a file like ``fleet.parquet``, and its number of devices."""

    path: Path
    devices: int


@contextmanager
def read_given_fleet(account: str, file: str) -> Iterator[GivenFleet]:
    """Read a fleet file of an account into a temporary file; ``-`` is standard input. Raise FleetError if it is bad."""
    with private_folder("fleet") as temporary:
        path = temporary / "given.parquet"
        yield GivenFleet(path, write_snapshot([(account, file)], path).devices)


@contextmanager
def compare_fleet(account: DiscoveredAccount, given: GivenFleet, work: Path) -> Iterator[FleetComparison]:
    """Compare a fleet file with the discovered devices of one account; what does not fit into memory is in ``work``.

    Raises:
        RunFolderError: the account's discovery is incomplete.
    """
    if account.matching is None or account.discovered is None:
        raise RunFolderError(f"{work}: the discovery is incomplete, so the fleet file cannot be compared with it")
    requested = None if account.all_products else [product.product_key for product in account.products]
    query = comparison_sql(
        given.path, account.matching, account.discovered, account.incomplete_products, requested_products=requested
    )
    reading = partial(translate_read_errors, work)
    with borrow_database(work / "spill", READING_MEMORY, READING_THREADS) as database:
        with reading():
            rows = dict(database.execute(f"SELECT difference, count(*) FROM ({query}) GROUP BY ALL").fetchall())
        counts = {each: int(rows.get(each, 0)) for each in DIFFERENCES}
        head = counts | _head(DiscoveryResult((account,)))
        yield FleetComparison(ResultTable(database, query, reading=reading, name="differences", head=head), counts)
