"""Materializes a discovery: the journal becomes a Parquet file like a fleet's, with each device once.

A device may be listed twice because others were registered in the meantime; its last row counts. An ``iot_id`` that is
listed for several devices names none of them: they keep their product key and device name only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import orjson

from auditor.config.settings import FleetSource, Patterns
from auditor.fleet.table import FLEET_COLUMNS, require_folder
from auditor.runs.attributes import ATTRIBUTES, ATTRIBUTES_TYPE, LISTED_ATTRIBUTES, attributes_from_columns
from auditor.storage.database import (
    DEFAULT_MEMORY,
    READING_MEMORY,
    find_duplicate_keys,
    parquet,
    scalar,
    scratch_database,
    slices_for,
    sql_literal,
    sql_literals,
    sql_read_path,
    text_lines,
    write_rows,
)
from auditor.text.globs import glob_regex

_TEXT = dict.fromkeys(("device_name", "iot_id", "device_status", "utc_create", "utc_modified", "nickname"), "VARCHAR")

_RECORD = {"kind": "VARCHAR", "product_key": "VARCHAR", "reading": "BIGINT", "reread": "BOOLEAN"}

_PRODUCTS = dict.fromkeys(("product_key", "product_name", "node_type"), "VARCHAR")

_PRODUCTS_PAGE = orjson.dumps({"kind": "VARCHAR", "products": [_PRODUCTS]}).decode()


@dataclass(frozen=True, slots=True)
class ProductCount:
    """Distinct devices of a product: all that were listed, and those that match the settings."""

    listed: int
    devices: int


@dataclass(frozen=True, slots=True)
class MaterializedFleet:
    """Numbers of a materialized discovery: matching devices, also by status (``""`` without one), and by product.

    ``duplicates`` are rows of a device that was listed before, because others were registered or removed meanwhile.
    ``excluded`` devices do not match the settings. ``products`` has the products with a device. ``shared_iot_ids`` is
    the number of devices that were listed with the ``iot_id`` of another one.
    """

    devices: int
    duplicates: int
    excluded: int
    statuses: Mapping[str, int]
    products: Mapping[str, ProductCount]
    shared_iot_ids: int = 0


def materialize(
    journal: Path,
    out: Path,
    account: str,
    fleet: FleetSource,
    *,
    limit: int | None = None,
    filtered: bool = True,
    has_attributes: bool = False,
) -> MaterializedFleet:
    """Write the devices in a journal to a file: those that match ``fleet`` (all if not ``filtered``), up to ``limit``.

    With ``has_attributes``, the devices in the journal have further attributes, and their versions.

    A folder beside ``out`` holds what does not fit into memory meanwhile.

    Raises:
        RunNotWritableError: ``out`` cannot be written, or the journal cannot be read.
    """
    require_folder(out)
    work = out.with_suffix(".reading")
    memory = READING_MEMORY if has_attributes else DEFAULT_MEMORY  # lines with versions are longer
    with scratch_database(work, memory=memory, failure=f"{out}: cannot be written") as database:
        rows = _stage(database, journal, work / "rows.parquet", has_attributes=has_attributes)
        condition = _filter_condition(fleet) if filtered else "true"
        attributes = attributes_from_columns(LISTED_ATTRIBUTES)
        if has_attributes:
            attributes = f"nullif(map_concat(further_attributes, {attributes}), MAP {{}}::{ATTRIBUTES_TYPE})"
        return _write(database, rows, out, account, condition=condition, limit=limit, attributes=attributes)


def _stage(database: duckdb.DuckDBPyConnection, journal: Path, stage: Path, *, has_attributes: bool) -> str:
    """Write all rows of a journal with their number; return the SQL that reads those of each product's last reading."""
    device = _TEXT | ({ATTRIBUTES: ATTRIBUTES_TYPE} if has_attributes else {})
    page = orjson.dumps(_RECORD | {"devices": [device]}).decode()
    pages = f"SELECT unnest(json_transform(line, '{page}')) FROM ({text_lines(sql_read_path(journal))})"
    attributes = f", device.{ATTRIBUTES} AS further_attributes" if has_attributes else ""
    times = ", ".join(f"try_cast(device.{name} AS TIMESTAMP) AS {name}" for name in ("utc_create", "utc_modified"))
    write_rows(
        database,
        "SELECT row_number() OVER () AS record, reading, reread, product_key, device.device_name, device.iot_id, "
        f"device.device_status, {times}, device.nickname{attributes} "
        "FROM (SELECT product_key, coalesce(reading, 0) AS reading, "
        f"reread, unnest(if(len(devices) = 0, [NULL], devices)) AS device FROM ({pages}) WHERE kind = 'devices')",
        stage,
    )
    pages = f"SELECT unnest(json_transform(line, '{_PRODUCTS_PAGE}')) FROM ({text_lines(sql_read_path(journal))})"
    database.execute(
        f"CREATE TABLE products AS SELECT product.product_key, last(product.product_name) AS product_name, "
        f"last(product.node_type) AS node_type FROM (SELECT unnest(products) AS product FROM ({pages}) "
        "WHERE kind = 'products') GROUP BY ALL"
    )
    rows = parquet(stage)
    database.execute(f"CREATE TABLE last AS SELECT product_key, max(reading) AS reading FROM {rows} GROUP BY ALL")
    return f"(FROM {rows} SEMI JOIN last USING (product_key, reading) WHERE device_name IS NOT NULL)"


def _write(
    database: duckdb.DuckDBPyConnection,
    rows: str,
    out: Path,
    account: str,
    *,
    condition: str,
    limit: int | None,
    attributes: str,
) -> MaterializedFleet:
    """Write the rows that meet the condition, each device once, up to the limit."""
    duplicates = _find_duplicates(database, rows)
    once = f"FROM {rows} WHERE record NOT IN (SELECT record FROM duplicates)"
    _find_shared_iot_ids(database, once)
    columns = ", ".join(_SHARED.get(name, name) for name in FLEET_COLUMNS if name not in {"account", ATTRIBUTES})
    # Products, not devices, are held in memory, so that devices keep their order.
    database.execute("SET disabled_optimizers = 'build_side_probe_side'")
    matching = f"{once} AND ({condition}) {'' if limit is None else f'LIMIT {limit}'}"
    joined = f"FROM ({matching}) LEFT JOIN products USING (product_key)"
    selected = f"SELECT $1 AS account, {columns}, {attributes} AS {ATTRIBUTES} {joined}"
    write_rows(database, selected, out, parameters=[account])
    listed, kept = (
        dict(database.execute(f"SELECT product_key, count(*) {source} GROUP BY ALL").fetchall())
        for source in (once, f"FROM {parquet(out)}")
    )
    statuses = f"SELECT coalesce(device_status, ''), count(*) FROM {parquet(out)} GROUP BY ALL ORDER BY ALL"
    by_status = {str(status): int(count) for status, count in database.execute(statuses).fetchall()}
    products = {key: ProductCount(count, kept.get(key, 0)) for key, count in listed.items()}
    excluded = sum(listed.values()) - scalar(database, f"SELECT count(*) {once} AND ({condition})")
    devices, shared = sum(by_status.values()), scalar(database, "SELECT coalesce(sum(devices), 0) FROM shared_iot_ids")
    return MaterializedFleet(devices, duplicates, excluded, by_status, products, shared)


def _find_duplicates(database: duckdb.DuckDBPyConnection, rows: str) -> int:
    """Create the table ``duplicates`` with the records of devices that are listed again later; return their number.

    As in a fleet file, only rows with duplicate hashes are compared by name. Rows of pages that were read again at the
    end, to find new devices, do not count as duplicates.
    """
    key = "hash(product_key, device_name)"
    slices = slices_for(scalar(database, f"SELECT count(*) FROM {rows}"))
    find_duplicate_keys(database, "duplicate_keys", f"{key} FROM {rows} WHERE true", slices)
    suspects = f"FROM {rows} WHERE {key} IN (SELECT key FROM duplicate_keys)"
    database.execute(
        f"CREATE TABLE duplicates AS SELECT record {suspects} "
        "QUALIFY row_number() OVER (PARTITION BY product_key, device_name ORDER BY record DESC) > 1"
    )
    rows_per_device = f"SELECT count(*) FILTER (NOT reread) AS row_count {suspects} GROUP BY product_key, device_name"
    return scalar(database, f"SELECT coalesce(sum(greatest(row_count - 1, 0)), 0) FROM ({rows_per_device})")


_SHARED = {"iot_id": "CASE WHEN iot_id IN (SELECT iot_id FROM shared_iot_ids) THEN NULL ELSE iot_id END AS iot_id"}


def _find_shared_iot_ids(database: duckdb.DuckDBPyConnection, once: str) -> None:
    """Create the table ``shared_iot_ids`` with each that several devices have, and their number.

    All listed devices count, whether they match the settings or not.
    """
    slices = slices_for(scalar(database, f"SELECT count(*) {once}"))
    find_duplicate_keys(database, "shared_keys", f"hash(iot_id) {once} AND iot_id IS NOT NULL", slices)
    suspects = f"SELECT iot_id, count(*) AS devices {once} AND hash(iot_id) IN (SELECT key FROM shared_keys)"
    database.execute(f"CREATE TABLE shared_iot_ids AS {suspects} GROUP BY iot_id HAVING count(*) > 1")


def _filter_condition(fleet: FleetSource) -> str:
    """Return the SQL condition of matching devices; products were filtered before they were listed."""
    included = [f"({each})" for each in _pattern_conditions(fleet.include)]
    excluded = [f"NOT coalesce({each}, false)" for each in _pattern_conditions(fleet.exclude)]
    return " AND ".join((*included, *excluded)) or "true"


def _pattern_conditions(patterns: Patterns) -> Sequence[str]:
    found = []
    if patterns.device_name:
        found.append(f"regexp_full_match(device_name, {sql_literal(glob_regex(patterns.device_name))})")
    if patterns.status:
        found.append(f"coalesce(device_status IN ({sql_literals(patterns.status)}), false)")
    return found
