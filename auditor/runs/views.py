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

Every device of a fleet with what became of it: the fleet joined with answers and failures, a part of it at a time.

A join of all at once would hold a fleet, or the answers about it, in memory. A part is a stretch of the fleet's own
order: its devices are held, and all answers go by, or those that can be about them where names come in order.
"""

from collections.abc import Mapping
from pathlib import Path

import duckdb
import orjson

from auditor.runs.folder import ANSWERED, CARRIED, DEVICES, FAILED, FLEET, MODULES, PLAN, PRODUCTS
from auditor.storage.database import parquet, quoted_to_read, text_lines, write_parquet

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
