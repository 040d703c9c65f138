"""``fleet.parquet``: its columns, how it is written and grows, and how it is read back as a lazy source."""

import hashlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb

from auditor.errors import RunNotWritableError
from auditor.fleet.readers import COLUMNS
from auditor.models import Device
from auditor.storage.database import AS_PARQUET, open_database, parquet, quoted, reason_of

BATCH = 1_000
"""Devices read from the file at a time."""


SLICE, SLICES = 50_000, 16
"""Devices looked through for repeats at a time, and times at most: what is held at once is a slice, not the fleet."""


FLEET_COLUMNS = {
    **dict.fromkeys(("account", *COLUMNS, "device_status"), "VARCHAR"),
    **dict.fromkeys(("utc_create", "utc_modified"), "TIMESTAMP"),
}
"""Columns beside ``ordinal``, and their types; the last three only the platform's listing tells."""


def _untold(name: str) -> str:
    return f"NULL::{FLEET_COLUMNS[name]} AS {name}"


_ALL_UNTOLD = ", ".join(map(_untold, FLEET_COLUMNS))


UNTOLD = ", ".join(_untold(name) for name in FLEET_COLUMNS if name not in {"account", *COLUMNS})
"""The columns that no fleet file tells, in SQL."""


_TO_ASK, _NOT_TO_ASK = "device_status IS DISTINCT FROM 'UNACTIVE'", "device_status = 'UNACTIVE'"


def rows_of(paths: Sequence[Path]) -> str:
    """The SQL that gives the rows of files one after another; of none, no row."""
    return f"FROM {parquet(*paths)}" if paths else f"FROM (SELECT {_ALL_UNTOLD}) WHERE false"


def write_numbered(database: duckdb.DuckDBPyConnection, rows: str, out: Path, limit: int | None = None) -> int:
    """Writes devices, numbered from 0; how many there are.

    Args:
        database: reads and writes.
        rows: the SQL that gives them, in order.
        out: the file to write.
        limit: only the first so many.
    """
    database.execute(
        f"COPY (SELECT row_number() OVER () - 1 AS ordinal, {', '.join(FLEET_COLUMNS)} "
        f"FROM ({rows}) {'' if limit is None else f'LIMIT {limit}'}) "
        f"TO {quoted(out)} {AS_PARQUET}"
    )
    (devices,) = database.execute(f"SELECT count(*) FROM {parquet(out)}").fetchone() or (0,)
    return int(devices)


def define_twice(database: duckdb.DuckDBPyConnection, table: str, keyed: str, slices: int) -> None:
    """Makes a table of the keys that come more than once: hashes, a slice of them at a time, so that memory is bounded.

    Args:
        database: makes it.
        table: its name; its column is ``key``.
        keyed: the key and its rows, such as ``hash(name) FROM devices WHERE true``.
        slices: how many.
    """
    key = keyed.partition(" FROM ")[0]
    database.execute(f"CREATE OR REPLACE TABLE {table} (key UBIGINT)")
    for number in range(slices):
        sliced = f"SELECT {keyed} AND {key} % {slices} = {number} GROUP BY 1 HAVING count(*) > 1"
        database.execute(f"INSERT INTO {table} {sliced}")


def slices_for(rows: int) -> int:
    """In how many slices so many rows are looked through."""
    return min(SLICES, rows // SLICE + 1)


def write_grown(
    fleet: Path, part: Path, account: str, order: Sequence[str], out: Path, *, most: int | None = None
) -> int:
    """Writes a fleet to which devices of one account have come; how many there are in all.

    What is in it stays as it was asked for, though it may have been listed again since, or not any more: lines of the
    run are about it. Devices that are listed under other names come behind.

    Args:
        fleet: as it is.
        part: the account's devices as they are listed, a file like the fleet's.
        account: which.
        order: all accounts, in the order of the settings.
        out: the file to write; a folder beside it holds what does not fit into memory meanwhile.
        most: so many devices of the account are enough, those that are in it among them.

    Raises:
        RunNotWritableError: it cannot be written.
    """
    work = out.with_suffix(".growing")
    columns = ", ".join(FLEET_COLUMNS)
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        database = open_database(work)
        try:
            parts = [work / f"{number}.parquet" for number in range(len(order))]
            for name, kept in zip(order, parts, strict=True):
                there = f"SELECT {columns} FROM {fleet_rows(fleet)} WHERE account = $1"
                database.execute(f"COPY ({there}) TO {quoted(kept)} {AS_PARQUET}", [name])
            own, new = parts[list(order).index(account)], work / "new.parquet"
            known = f"(SELECT product_key, device_name FROM {parquet(own)})"
            listed = f"SELECT {columns} FROM {parquet(part)} ANTI JOIN {known} USING (product_key, device_name)"
            if most is not None:
                (there_are,) = database.execute(f"SELECT count(*) FROM {parquet(own)}").fetchone() or (0,)
                listed += f" LIMIT {max(0, most - there_are)}"
            database.execute(f"COPY ({listed}) TO {quoted(new)} {AS_PARQUET}")
            parts.insert(parts.index(own) + 1, new)
            return write_numbered(database, rows_of(parts), out)
        finally:
            database.close()
    except (OSError, duckdb.Error) as error:
        raise RunNotWritableError(f"{out} cannot be written: {reason_of(error)}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def read_snapshot(path: Path, account: str, *, ask_all: bool = True) -> Iterator[Device]:
    """The devices of one account, in the fleet's order, a batch of rows in memory at a time.

    Args:
        path: ``fleet.parquet``, or a file like it.
        account: whose devices.
        ask_all: False leaves out those that were never activated, see ``read_never_activated``.

    Raises:
        RunNotWritableError: the file has gone or is broken, so no run can go on.
    """
    yield from _devices(path, account, "true" if ask_all else _TO_ASK)


def read_never_activated(path: Path, account: str) -> Iterator[Device]:
    """The devices of one account that were never activated, as the platform lists them; otherwise as ``read_snapshot``.

    Raises:
        RunNotWritableError: as there.
    """
    yield from _devices(path, account, _NOT_TO_ASK)


def _devices(path: Path, account: str, condition: str) -> Iterator[Device]:
    with _reading(path) as database:
        rows = database.execute(
            f"SELECT {', '.join(COLUMNS)} FROM {fleet_rows(path)} WHERE account = ? AND {condition}", [account]
        )
        while batch := rows.fetchmany(BATCH):
            for product_key, device_name, iot_id in batch:
                yield Device(account, product_key, device_name, iot_id)


def devices_to_ask(path: Path, ask_all: Collection[str]) -> dict[str, int]:
    """How many devices each account has to be asked about; accounts without one are left out.

    Args:
        path: ``fleet.parquet``.
        ask_all: accounts in which those that were never activated are asked about too.

    Raises:
        RunNotWritableError: the file has gone or is broken, so no run can go on.
    """
    counted = f"SELECT account, count(*), count(*) FILTER ({_TO_ASK}) FROM {fleet_rows(path)} GROUP BY account"
    with _reading(path) as database:
        rows = database.execute(counted).fetchall()
    return {account: devices if account in ask_all else activated for account, devices, activated in rows}


def product_sizes(path: Path, ask_all: Collection[str]) -> dict[str, dict[int, int]]:
    """How many products of each account have how many devices to be asked about; products without one are left out.

    Args:
        path: ``fleet.parquet``.
        ask_all: as for ``devices_to_ask``.

    Raises:
        RunNotWritableError: the file has gone or is broken, so no run can go on.
    """
    sizes = (
        f"SELECT account, count(*) FILTER (list_contains(?::VARCHAR[], account) OR {_TO_ASK}) AS size "
        f"FROM {fleet_rows(path)} GROUP BY account, product_key"
    )
    found: dict[str, dict[int, int]] = {}
    with _reading(path) as database:
        counted = f"SELECT account, size, count(*) FROM ({sizes}) WHERE size > 0 GROUP BY ALL ORDER BY ALL"
        for account, size, products in database.execute(counted, [list(ask_all)]).fetchall():
            found.setdefault(account, {})[size] = products
    return found


def devices_by_status(path: Path, account: str) -> dict[str, int]:
    """How many devices of an account have each status, ``""`` where none was told.

    Raises:
        RunNotWritableError: the file has gone or is broken, so no run can go on.
    """
    status = "coalesce(device_status, '')"
    counted = f"SELECT {status}, count(*) FROM {fleet_rows(path)} WHERE account = ? GROUP BY ALL ORDER BY ALL"
    with _reading(path) as database:
        return dict(database.execute(counted, [account]).fetchall())


def devices_by_product(path: Path, account: str) -> dict[str, int]:
    """How many devices each product has in an account's fleet, as far as it names products.

    Raises:
        RunNotWritableError: the file has gone or is broken, so no run can go on.
    """
    counted = (
        f"SELECT product_key, count(*) FROM {fleet_rows(path)} WHERE account = ? AND product_key IS NOT NULL "
        "GROUP BY ALL ORDER BY ALL"
    )
    with _reading(path) as database:
        return dict(database.execute(counted, [account]).fetchall())


def devices_by_stratum(path: Path, skip: Collection[str]) -> dict[tuple[str, str | None], tuple[int, int]]:
    """How many devices each account and product has that can be asked, and of how many nothing has to be asked.

    Args:
        path: ``fleet.parquet``.
        skip: accounts in which those that were never activated are not asked.

    Raises:
        RunNotWritableError: the file has gone or is broken, so no run can go on.
    """
    spared = f"list_contains(?::VARCHAR[], account) AND {_NOT_TO_ASK}"
    columns = f"account, product_key, count(*), count(*) FILTER (({spared}) IS TRUE)"
    counted = f"SELECT {columns} FROM {fleet_rows(path)} GROUP BY ALL"
    with _reading(path) as database:
        rows = database.execute(counted, [list(skip)]).fetchall()
    return {(account, key): (devices - certain, certain) for account, key, devices, certain in rows}


@contextmanager
def _reading(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    database = open_database()
    try:
        yield database
    except duckdb.Error as error:
        raise RunNotWritableError(f"{path} cannot be read: {reason_of(error)}") from error
    finally:
        database.close()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fleet_rows(path: Path, *, numbered: bool = False) -> str:
    """A fleet's rows with all columns: one that was written before they were known has nothing in the last ones.

    Args:
        path: ``fleet.parquet``, or a file like it.
        numbered: whether each row's place in the file is among them, as ``file_row_number``.
    """
    source = parquet(path, options="file_row_number=true" if numbered else "")
    return f"(SELECT {_ALL_UNTOLD} WHERE false UNION ALL BY NAME FROM {source})"
