"""What a listing came to: its journal into a Parquet file like a fleet's, each device once, and what there is to tell.

A device that came twice, because others were registered meanwhile, is one; what was said of it last counts.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import duckdb
import orjson

from auditor.config.settings import FleetSource, Patterns
from auditor.errors import RunNotWritableError
from auditor.fleet.table import FLEET_COLUMNS, define_twice, slices_for
from auditor.storage.database import AS_PARQUET, open_database, parquet, quoted, quoted_to_read, reason_of, text_lines
from auditor.text.globs import regex_of

_TEXT = dict.fromkeys(("device_name", "iot_id", "device_status", "utc_create", "utc_modified"), "VARCHAR")


_RECORD = {"what": "VARCHAR", "product_key": "VARCHAR", "reading": "BIGINT", "again": "BOOLEAN", "devices": [_TEXT]}


_PAGE = orjson.dumps(_RECORD).decode()


@dataclass(frozen=True, slots=True)
class ProductCount:
    """Devices of a product that were listed, each once, and those of them that are wanted."""

    listed: int
    devices: int


@dataclass(frozen=True, slots=True)
class ListedFleet:
    """What a listing came to.

    Attributes:
        devices: that are wanted.
        repeats: rows that named a device again, because others were registered or removed meanwhile.
        excluded: devices that the settings leave out.
        statuses: wanted devices by their status, ``""`` where none was told.
        products: by product key; those without a device are not among them.
    """

    devices: int
    repeats: int
    excluded: int
    statuses: Mapping[str, int]
    products: Mapping[str, ProductCount]


def write_listed(
    journal: Path, out: Path, account: str, fleet: FleetSource, *, limit: int | None = None, wanted: bool = True
) -> ListedFleet:
    """Writes the devices that a listing's journal holds.

    Args:
        journal: of the account's listing.
        out: the file to write; a folder beside it holds what does not fit into memory meanwhile.
        account: its name.
        fleet: which devices are wanted.
        limit: keeps only the first so many.
        wanted: False keeps those too that ``include`` and ``exclude`` leave out.

    Raises:
        RunNotWritableError: ``out`` cannot be written, or the journal cannot be read.
    """
    work = out.with_suffix(".reading")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        database = open_database(work)
        try:
            rows = _stage(database, journal, work / "rows.parquet")
            return _write(database, rows, out, account, _Picked(_condition(fleet) if wanted else "true", limit))
        finally:
            database.close()
    except (OSError, duckdb.Error, UnicodeDecodeError) as error:
        raise RunNotWritableError(f"{out} cannot be written: {reason_of(error)}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Picked(NamedTuple):
    """Which rows are written: those that fit, and of these the first so many."""

    fits: str
    limit: int | None

    @property
    def cut(self) -> str:
        return "" if self.limit is None else f"LIMIT {self.limit}"


def _stage(database: duckdb.DuckDBPyConnection, journal: Path, stage: Path) -> str:
    """Writes every row of a journal, with its number; gives the SQL that reads those of each product's last reading."""
    pages = f"SELECT unnest(json_transform(line, '{_PAGE}')) FROM ({text_lines(quoted_to_read(journal))})"
    times = ", ".join(f"try_cast(device.{name} AS TIMESTAMP) AS {name}" for name in ("utc_create", "utc_modified"))
    database.execute(
        "COPY (SELECT row_number() OVER () AS record, reading, again, product_key, device.device_name, device.iot_id, "
        f"device.device_status, {times} FROM (SELECT product_key, coalesce(reading, 0) AS reading, again, "
        f"unnest(if(len(devices) = 0, [NULL], devices)) AS device FROM ({pages}) WHERE what = 'devices')) "
        f"TO {quoted(stage)} {AS_PARQUET}"
    )
    database.execute(
        f"CREATE TABLE last AS SELECT product_key, max(reading) AS reading FROM {parquet(stage)} GROUP BY ALL"
    )
    return f"(FROM {parquet(stage)} SEMI JOIN last USING (product_key, reading) WHERE device_name IS NOT NULL)"


def _write(database: duckdb.DuckDBPyConnection, rows: str, out: Path, account: str, picked: "_Picked") -> ListedFleet:
    """Writes those of the rows that are picked, each device once."""
    repeats = _find_repeats(database, rows)
    once = f"FROM {rows} WHERE record NOT IN (SELECT record FROM repeats)"
    columns = ", ".join(name for name in FLEET_COLUMNS if name != "account")
    database.execute(
        f"COPY (SELECT $1 AS account, {columns} {once} AND ({picked.fits}) {picked.cut}) TO {quoted(out)} {AS_PARQUET}",
        [account],
    )
    listed, kept = (
        dict(database.execute(f"SELECT product_key, count(*) {some} GROUP BY ALL").fetchall())
        for some in (once, f"FROM {parquet(out)}")
    )
    statuses = f"SELECT coalesce(device_status, ''), count(*) FROM {parquet(out)} GROUP BY ALL ORDER BY ALL"
    by_status = {str(status): int(count) for status, count in database.execute(statuses).fetchall()}
    products = {key: ProductCount(count, kept.get(key, 0)) for key, count in listed.items()}
    excluded = sum(listed.values()) - _count(database, f"{once} AND ({picked.fits})")
    return ListedFleet(sum(by_status.values()), repeats, excluded, by_status, products)


def _find_repeats(database: duckdb.DuckDBPyConnection, rows: str) -> int:
    """Makes the table ``repeats``: records of devices that come again later; how many of them came unasked.

    As in a fleet file, only rows whose hash comes twice are compared by name. Pages that were asked for again at the
    end, to see what is new, tell again what was known.
    """
    key = "hash(product_key, device_name)"
    define_twice(database, "twice", f"{key} FROM {rows} WHERE true", slices_for(_count(database, f"FROM {rows}")))
    suspects = f"FROM {rows} WHERE {key} IN (SELECT key FROM twice)"
    database.execute(
        f"CREATE TABLE repeats AS SELECT record {suspects} "
        "QUALIFY row_number() OVER (PARTITION BY product_key, device_name ORDER BY record DESC) > 1"
    )
    came = f"SELECT count(*) FILTER (NOT again) AS came {suspects} GROUP BY product_key, device_name"
    (repeats,) = database.execute(f"SELECT sum(greatest(came - 1, 0)) FROM ({came})").fetchone() or (0,)
    return int(repeats or 0)


def _count(database: duckdb.DuckDBPyConnection, some: str) -> int:
    (count,) = database.execute(f"SELECT count(*) {some}").fetchone() or (0,)
    return int(count)


def _condition(fleet: FleetSource) -> str:
    """Which devices are wanted, in SQL; of which products was decided before they were listed."""
    wanted = [f"({each})" for each in _each_list(fleet.include)]
    unwanted = [f"NOT coalesce({each}, false)" for each in _each_list(fleet.exclude)]
    return " AND ".join((*wanted, *unwanted)) or "true"


def _each_list(patterns: Patterns) -> Sequence[str]:
    found = []
    if patterns.device_name:
        found.append(f"regexp_full_match(device_name, {_literal(regex_of(patterns.device_name))})")
    if patterns.status:
        found.append(f"coalesce(device_status IN ({', '.join(map(_literal, patterns.status))}), false)")
    return found


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
