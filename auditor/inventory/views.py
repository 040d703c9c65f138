"""A run's files as DuckDB views, so that every number anywhere is a query over the same files.

| view | from | a row |
|---|---|---|
| ``fleet`` | ``fleet.parquet`` | a device as it was asked for |
| ``planned`` | ``plan.parquet`` | a device that was chosen to be asked, in order, where not all are |
| ``lines`` | ``devices.jsonl``, ``carried.parquet`` | a conclusive answer with its modules, of this run or carried |
| ``answered`` | ``lines`` | a conclusive answer and how many modules it has |
| ``failures`` | ``failures.jsonl`` | a device that could not be answered |
| ``devices`` | ``fleet``, ``answered``, ``failures`` | a device of the fleet and its state |
| ``modules`` | ``lines`` | a device's module and its version |
| ``inventory`` | ``modules`` | a version of a product's module, how many devices run it, and their share |
| ``products`` | ``products.jsonl`` | a product of the fleet, as far as the platform was asked about it |
| ``missing`` | ``products``, ``devices``, ``modules`` | a module of a product that devices never reported |
"""

from collections.abc import Mapping
from pathlib import Path

import duckdb
import orjson

from auditor.database import parquet, quoted_to_read, text_lines, write_parquet
from auditor.inventory.folder import ANSWERED, CARRIED, DEVICES, FAILED, FLEET, MODULES, PLAN, PRODUCTS
from auditor.inventory.states import devices_query, write_devices

_IDENTITY = dict.fromkeys(("account", "product_key", "device_name", "iot_id", "status"), "VARCHAR")
_ANSWERED = {
    **_IDENTITY,
    "modules": [{"module_name": "VARCHAR", "module_version": "VARCHAR"}],
    "total": "BIGINT",
    "pages": "BIGINT",
    "attempts": "BIGINT",
    "request_id": "VARCHAR",
    "audited_at": "TIMESTAMP",
    "reason": "VARCHAR",
}
_PRODUCT = {
    **dict.fromkeys(("account", "product_key", "product_name"), "VARCHAR"),
    **dict.fromkeys(("device_count", "devices"), "BIGINT"),
    "modules": ["VARCHAR"],
}
_FAILED = {
    **_IDENTITY,
    "code": "VARCHAR",
    "message": "VARCHAR",
    "http_status": "BIGINT",
    "attempts": "BIGINT",
    "request_id": "VARCHAR",
    "failed_at": "TIMESTAMP",
}

_NO_PLAN = (
    "NULL::VARCHAR AS account, NULL::VARCHAR AS product_key, NULL::VARCHAR AS device_name, "
    "NULL::VARCHAR AS iot_id, NULL::VARCHAR AS why, NULL::BIGINT AS rank"
)

INVENTORY = """
  SELECT account, product_key, module_name, module_version, devices,
    round(devices / sum(devices) OVER (PARTITION BY account, product_key, module_name), 6) AS share
  FROM (
    SELECT account, product_key, module_name, module_version, sum(devices)::BIGINT AS devices
    FROM (
      SELECT account, product_key, module_version, devices,
        max(module_name) OVER (PARTITION BY account, product_key, lower(module_name)) AS module_name
      FROM (SELECT account, product_key, module_name, module_version, count(*) AS devices FROM modules GROUP BY ALL)
    ) GROUP BY ALL
  ) ORDER BY account, product_key, module_name, devices DESC, module_version"""
"""``share`` is a version's part of the product's devices that report that module.

Module names are unique in a product regardless of case (Alibaba's page on OTA modules): names that differ in nothing
else are one module, under the one that sorts last, which is lower case. ``modules`` has them as devices report them.
"""


_MISSING = """
  SELECT p.account, p.product_key, p.module_name, answered - coalesce(reporting, 0) AS devices, answered,
    never_activated
  FROM (SELECT account, product_key, unnest(modules) AS module_name FROM products) p
  JOIN (
    SELECT account, product_key, count(*) AS answered,
      count(*) FILTER (reason = 'never_activated') AS never_activated
    FROM devices WHERE status IN ('ok', 'empty') GROUP BY ALL
  ) a ON p.account = a.account AND p.product_key = a.product_key
  LEFT JOIN (
    SELECT account, product_key, lower(module_name) AS known_as, count(*) AS reporting FROM modules GROUP BY ALL
  ) r ON p.account = r.account AND p.product_key = r.product_key AND lower(p.module_name) = r.known_as
  WHERE answered > coalesce(reporting, 0) ORDER BY ALL"""
"""``devices`` of the ``answered`` ones never reported the module; ``never_activated`` of those cannot have."""

LACKING = """
  SELECT d.account, d.product_key, d.device_name, d.iot_id, d.status, p.module_name, NULL::VARCHAR AS module_version,
    d.source, d.audited_at
  FROM devices d JOIN (SELECT account, product_key, unnest(modules) AS module_name FROM products) p
    ON d.account = p.account AND d.product_key = p.product_key
  ANTI JOIN modules m ON d.account = m.account AND d.product_key = m.product_key
    AND d.device_name IS NOT DISTINCT FROM m.device_name AND d.iot_id IS NOT DISTINCT FROM m.iot_id
    AND lower(p.module_name) = lower(m.module_name)
  WHERE d.status IN ('ok', 'empty')"""
"""A row for each device and module that its product defines and it never reported."""


def define_live_views(database: duckdb.DuckDBPyConnection, folder: Path, work: Path | None = None) -> None:
    """All views, from the files that a run appends to; a torn last line is passed over.

    Args:
        database: an empty one.
        folder: the run folder.
        work: a folder to put ``lines``, ``failures`` and ``devices`` into as Parquet, once, so that the memory for
            reading lines and for joining is not needed at the same time; None reads the lines for every query.
    """
    define_lines(database, folder, work)
    if work is None:
        database.execute(f"CREATE VIEW devices AS {devices_query(database)}")
    else:
        devices = write_devices(database, work)
        database.execute(f"CREATE VIEW devices AS FROM {parquet(devices)}")
    database.execute(f"CREATE VIEW inventory AS {INVENTORY}")


def define_lines(database: duckdb.DuckDBPyConnection, folder: Path, work: Path | None = None) -> None:
    """Of the views those that tell what was asked for and what came: all but ``devices`` and ``inventory``.

    Args:
        database: an empty one.
        folder: the run folder.
        work: as above.
    """
    states = ", ".join(f"'{state}'" for state in ("ok", "empty", "not_found"))
    database.execute(f"CREATE VIEW fleet AS FROM {parquet(folder / FLEET)}")
    planned = parquet(folder / PLAN) if (folder / PLAN).is_file() else f"(SELECT {_NO_PLAN} WHERE false)"
    database.execute(f"CREATE VIEW planned AS FROM {planned}")
    lines = f"SELECT *, 'asked' AS source FROM ({_lines(folder / ANSWERED, _ANSWERED)}) WHERE status IN ({states})"
    if (folder / CARRIED).is_file():
        # Never about a device that was asked: what is carried, and what is asked, are parts of one fleet.
        lines += (
            f" UNION ALL BY NAME SELECT *, 0::BIGINT AS attempts, 'carried' AS source FROM {parquet(folder / CARRIED)}"
        )
    _define(database, "lines", f"SELECT *, len(modules) AS module_count FROM ({lines})", work)
    database.execute(
        "CREATE VIEW modules AS SELECT account, product_key, device_name, iot_id, module.module_name, "
        "module.module_version FROM (SELECT *, unnest(modules) AS module FROM lines)"
    )
    database.execute(
        "CREATE VIEW answered AS SELECT * EXCLUDE (modules, module_count), module_count AS modules FROM lines"
    )
    _define(database, "failures", f"{_lines(folder / FAILED, _FAILED)} AND status = 'failed'", work)


def define_sealed_views(database: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """``devices``, ``modules`` and ``inventory``, from the sealed files."""
    # A run that was sealed before reasons and sources were told has none; all of it was asked.
    added = "SELECT NULL::VARCHAR AS reason, NULL::VARCHAR AS source WHERE false"
    # Not by coalesce: where all are pending, DuckDB fails on a condition on that.
    source = "CASE WHEN source IS NULL AND status::VARCHAR <> 'pending' THEN 'asked' ELSE source END AS source"
    database.execute(
        f"CREATE VIEW devices AS SELECT * REPLACE ({source}) FROM "
        f"(FROM {parquet(folder / DEVICES)} UNION ALL BY NAME {added})"
    )
    database.execute(f"CREATE VIEW modules AS FROM {parquet(folder / MODULES)}")
    database.execute(f"CREATE VIEW inventory AS {INVENTORY}")


def define_products(database: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """``products`` and ``missing``, beside the other views, from the run folder itself."""
    path = folder / PRODUCTS
    nothing = ", ".join(f"NULL::{kind} AS {name}" for name, kind in {**_PRODUCT, "modules": "VARCHAR[]"}.items())
    lines = _lines(path, _PRODUCT) if path.is_file() else f"SELECT {nothing} WHERE false"
    database.execute(f"CREATE TABLE products AS {lines}")
    database.execute(f"CREATE VIEW missing AS {_MISSING}")


def _define(database: duckdb.DuckDBPyConnection, name: str, query: str, work: Path | None) -> None:
    if work is not None:
        write_parquet(database, query, work / f"{name}.parquet")
        query = f"FROM {parquet(work / f'{name}.parquet')}"
    database.execute(f"CREATE VIEW {name} AS {query}")


def number(database: duckdb.DuckDBPyConnection, query: str) -> int:
    """The one whole number that a query gives."""
    (found,) = database.execute(query).fetchone() or (0,)
    return int(found)


def _lines(path: Path, columns: Mapping[str, object]) -> str:
    """The records of a file of JSON Lines; what cannot be read as one, such as a torn last line, is left out.

    A record goes through a list of one: straight from the line, DuckDB would parse it anew for each of its columns.
    """
    structure = orjson.dumps(columns).decode()
    lines = text_lines(quoted_to_read(path), "store_rejects=true, rejects_limit=1")
    record = f"CASE WHEN json_valid(line) THEN json_transform(line, '{structure}') END"
    read = f"SELECT unnest(record) FROM (SELECT unnest([{record}]) AS record FROM ({lines}))"
    return f"SELECT * FROM ({read}) WHERE account IS NOT NULL"
