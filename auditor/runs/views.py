"""A run's files as DuckDB views, so that every number is a query over the same files.

| view | from | a row |
|---|---|---|
| ``fleet`` | ``fleet.parquet`` | a device as the fleet names it |
| ``selected_devices`` | ``plan.parquet`` | a device that was selected for a query, where not all are |
| ``lines`` | ``devices.jsonl`` (or ``.gz``), ``carried.parquet`` | a conclusive answer with its modules |
| ``answered`` | ``lines`` | a conclusive answer and its number of modules |
| ``failures`` | ``failures.jsonl`` | a device without a conclusive answer |
| ``connections`` | ``connections.parquet`` | a device whose connection state was read, as the fleet names it |
| ``devices`` | all of the above | a device of the fleet, its status, its connection and its attributes |
| ``modules`` | ``lines`` | a device's module and its version |
| ``inventory`` | ``modules`` | a version of a product's module, how many devices run it, and their share |
| ``products`` | ``products.jsonl`` | a product of the fleet, as far as the platform was queried for it |
| ``missing_modules`` | ``products``, ``devices``, ``modules`` | a module of a product that devices never reported |
| ``firmware`` | ``firmware.parquet`` | an upgrade package of a product |
| ``jobs`` | ``firmware`` | a job that installs firmware on devices |
| ``tasks`` | ``tasks.parquet`` | the update of a device by a job |
| ``device_releases`` | ``modules``, ``firmware``, ``tasks`` | a module of a device, and what was released for it |

The view ``devices`` joins the fleet with answers and failures. One join would hold a fleet, or its answers, in memory.
So it is computed in partitions of the fleet in its own order. The devices of a partition are held in memory, and all
answers are streamed past them.
"""

from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import duckdb
import orjson

from auditor.errors import RunFolderError
from auditor.runs.folder import (
    CARRIED,
    COMPRESSED_RESULTS,
    CONNECTIONS,
    DEVICES,
    FAILURES,
    FIRMWARE,
    FLEET,
    MODULES,
    PRODUCTS,
    SELECTED,
    TASKS,
    results_name,
)
from auditor.storage.compressed import check_compressed
from auditor.storage.database import (
    Database,
    describe_repeated_rows,
    device_key_sql,
    error_reason,
    parquet,
    scalar,
    sql_literal,
    sql_read_path,
    text_lines,
    write_parquet,
)
from auditor.storage.files import translate_os_errors

QUERIED = "'queried', 'details'"
"""SQL of the sources of results that the run itself requested of the devices."""

_IDENTITY = dict.fromkeys(("account", "product_key", "device_name", "iot_id", "status"), "VARCHAR")

_NAMES = ("product_key", "device_name", "iot_id")

_ANSWERED = {
    **_IDENTITY,
    "modules": [{"module_name": "VARCHAR", "module_version": "VARCHAR"}],
    "total": "BIGINT",
    "pages": "BIGINT",
    "attempts": "BIGINT",
    "request_id": "VARCHAR",
    "audited_at": "TIMESTAMP",
    "reason": "VARCHAR",
    "source": "VARCHAR",
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

_SELECTED = {
    **dict.fromkeys(("account", "product_key", "device_name", "iot_id", "selection_reason"), "VARCHAR"),
    "rank": "BIGINT",
}

_CONNECTION = {
    **dict.fromkeys(("account", "product_key", "device_name", "iot_id", "device_status"), "VARCHAR"),
    "last_online_at": "TIMESTAMP",
}

JOB_COLUMNS = {
    **dict.fromkeys(("job_id", "job_status", "job_type", "selection_type", "target_selection"), "VARCHAR"),
    **dict.fromkeys(("created_at", "scheduled_at", "ended_at"), "TIMESTAMP"),
}

FIRMWARE_COLUMNS = {
    **dict.fromkeys(("account", "product_key", "module_name", "version", "source_version"), "VARCHAR"),
    **dict.fromkeys(("firmware_id", "firmware_name", "verification", "package_type"), "VARCHAR"),
    "package_bytes": "BIGINT",
    **dict.fromkeys(("created_at", "modified_at"), "TIMESTAMP"),
    "jobs": f"STRUCT({', '.join(f'{name} {kind}' for name, kind in JOB_COLUMNS.items())})[]",
}
"""Columns of ``firmware.parquet``; ``jobs`` is NULL where they are unknown."""

TASK_COLUMNS = {
    **dict.fromkeys(("account", "product_key", "device_name", "iot_id", "module_name", "version"), "VARCHAR"),
    **dict.fromkeys(("source_version", "task_status", "task_message"), "VARCHAR"),
    "progress": "BIGINT",
    **dict.fromkeys(("created_at", "modified_at"), "TIMESTAMP"),
    **dict.fromkeys(("firmware_id", "job_id", "task_id"), "VARCHAR"),
}
"""Columns of ``tasks.parquet``."""


def inventory_query(modules: str = "modules", divided: Sequence[str] = ()) -> str:
    """Return the SQL of the inventory of the rows of ``modules``, ``divided`` by further columns of it.

    ``share`` is the fraction of the product's devices with that module that run the version. Module names are unique in
    a product regardless of case (Alibaba's page on OTA modules). Names that differ only in case are one module, under
    the name that sorts last, which is lower case. The view ``modules`` has the reported names.
    """
    further = "".join(f"{column}, " for column in divided)
    return f"""
  SELECT account, product_key, module_name, module_version, {further}devices,
    round(devices / sum(devices) OVER (PARTITION BY {further}account, product_key, module_name), 6) AS share
  FROM (
    SELECT account, product_key, module_name, module_version, {further}sum(devices)::BIGINT AS devices
    FROM (
      SELECT account, product_key, module_version, {further}devices,
        max(module_name) OVER (PARTITION BY account, product_key, lower(module_name)) AS module_name
      FROM (
        SELECT account, product_key, module_name, module_version, {further}count(*) AS devices FROM {modules}
        GROUP BY ALL
      )
    ) GROUP BY ALL
  ) ORDER BY account, product_key, module_name, {further}devices DESC, module_version"""


INVENTORY = inventory_query()
"""The inventory of the view ``modules``."""

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
    SELECT account, product_key, lower(module_name) AS module_key, count(*) AS reporting FROM modules GROUP BY ALL
  ) r ON p.account = r.account AND p.product_key = r.product_key AND lower(p.module_name) = r.module_key
  WHERE answered > coalesce(reporting, 0) ORDER BY ALL"""
"""``devices``: those of the ``answered`` ones without the module; ``never_activated``: those that cannot have it."""

MISSING_DEVICE_MODULES = """
  SELECT d.account, d.product_key, d.device_name, d.iot_id, d.status, p.module_name, NULL::VARCHAR AS module_version,
    d.source, d.audited_at
  FROM devices d JOIN (SELECT account, product_key, unnest(modules) AS module_name FROM products) p
    ON d.account = p.account AND d.product_key = p.product_key
  ANTI JOIN modules m ON d.account = m.account AND d.product_key = m.product_key
    AND d.device_name IS NOT DISTINCT FROM m.device_name AND d.iot_id IS NOT DISTINCT FROM m.iot_id
    AND lower(p.module_name) = lower(m.module_name)
  WHERE d.status IN ('ok', 'empty')"""
"""A row for each device and each module of its product that it never reported."""


DEVICES_PER_PARTITION = 50_000
"""Devices of a partition: as many, with their results, fit into the memory for sealing."""


def define_live_views(database: Database, folder: Path, work: Path | None = None) -> None:
    """Define all views except products over the files that a run appends to; a torn last line is skipped.

    In the folder ``work``, ``lines``, ``failures`` and ``devices`` become Parquet files, so that reading lines and
    joining do not need memory at the same time. Without it, every query reads the lines.
    """
    define_base_views(database, folder, work)
    query = _devices_query(database) if work is None else f"FROM {parquet(*_write_devices(database, work))}"
    database.execute(f"CREATE VIEW devices AS {query}")
    database.execute(f"CREATE VIEW inventory AS {INVENTORY}")


def define_base_views(database: Database, folder: Path, work: Path | None = None) -> None:
    """Define the views that need no join; see ``define_live_views``."""
    database.execute(f"CREATE VIEW fleet AS FROM {parquet_of_run(database, folder / FLEET)}")
    path = folder / SELECTED
    selected = f"FROM {parquet_of_run(database, path)}" if path.is_file() else no_rows(_SELECTED)
    database.execute(f"CREATE VIEW selected_devices AS {selected}")
    path = folder / CONNECTIONS
    connections = f"FROM {parquet_of_run(database, path)}" if path.is_file() else no_rows(_CONNECTION)
    database.execute(f"CREATE VIEW connections AS {connections}")
    results = folder / results_name(folder)
    if results.name == COMPRESSED_RESULTS:
        with translate_os_errors(f"{results}: cannot be read", RunFolderError):
            check_compressed(results)
    answered = f"({read_records(results, _ANSWERED)}) WHERE status IN ('ok', 'empty', 'not_found')"
    lines = f"SELECT * REPLACE (if(source = 'details', source, 'queried') AS source) FROM {answered}"
    if (folder / CARRIED).is_file():
        # Results of no run are of the platform's search index. No device is in both files: carried and queried
        # devices are disjoint parts of one fleet.
        rows = parquet_of_run(database, folder / CARRIED)
        names = {name for name, *_ in database.execute(f"DESCRIBE FROM {rows}").fetchall()}
        source = "if(run IS NULL, 'index', 'carried')" if "run" in names else "'carried'"
        carried = f"SELECT *, 0::BIGINT AS attempts, {source} AS source FROM {rows}"
        lines += f" UNION ALL BY NAME {carried}"
    _define(database, "lines", f"SELECT *, len(modules) AS module_count FROM ({lines})", work)
    database.execute(
        "CREATE VIEW modules AS SELECT account, product_key, device_name, iot_id, module.module_name, "
        "module.module_version FROM (SELECT *, unnest(modules) AS module FROM lines)"
    )
    database.execute(
        "CREATE VIEW answered AS SELECT * EXCLUDE (modules, module_count), module_count AS modules FROM lines"
    )
    _define(database, "failures", f"{read_records(folder / FAILURES, _FAILED)} AND status = 'failed'", work)


def define_sealed_views(database: Database, folder: Path) -> None:
    """Define ``devices``, ``modules`` and ``inventory`` over the sealed files."""
    database.execute(f"CREATE VIEW devices AS FROM {parquet_of_run(database, folder / DEVICES)}")
    database.execute(f"CREATE VIEW modules AS FROM {parquet_of_run(database, folder / MODULES)}")
    database.execute(f"CREATE VIEW inventory AS {INVENTORY}")


def define_products(database: Database, folder: Path) -> None:
    """Define ``products`` and ``missing_modules``, beside the other views, from the run folder itself."""
    database.execute(f"CREATE TABLE products AS {products_query(folder)}")
    database.execute(f"CREATE VIEW missing_modules AS {_MISSING}")


def define_releases(database: Database, folder: Path) -> None:
    """Define ``firmware``, ``jobs`` and ``tasks``, without rows where the run did not read them."""
    for view, name, columns in (("firmware", FIRMWARE, FIRMWARE_COLUMNS), ("tasks", TASKS, TASK_COLUMNS)):
        path = folder / name
        query = releases_query(database, path, columns) if path.is_file() else no_rows(columns)
        database.execute(f"CREATE VIEW {view} AS {query}")
    database.execute(f"CREATE VIEW jobs AS {jobs_query('firmware')}")


def releases_query(database: Database, path: Path, columns: Mapping[str, object]) -> str:
    """Return the SQL of the rows of ``firmware.parquet`` or ``tasks.parquet``.

    If the file is damaged, only a query that reads it fails: the other views do not need it.
    """
    empty = no_rows(columns)
    try:
        if (problem := describe_repeated_rows(database, path)) is None:
            stored, expected = (
                {(name, kind) for name, kind, *_ in database.execute(f"DESCRIBE {query}").fetchall()}
                for query in (f"FROM {parquet(path)}", empty)
            )
            if expected <= stored:
                return f"SELECT {', '.join(columns)} FROM {parquet(path)}"
            problem = "does not have the columns of a run"
    except duckdb.OutOfMemoryException:
        raise
    except (duckdb.Error, OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read: {error_reason(error)}"
    failure = f"error({sql_literal(f'{path.name}: {problem}')})"
    # In every column, too: of columns that are NULL DuckDB would conclude that no row is left, without an error.
    cells = ", ".join(f"{failure}::{kind} AS {name}" for name, kind in columns.items())
    return f"SELECT {cells} WHERE {failure} IS NULL"


class ReleaseCounts(NamedTuple):
    """Numbers of firmware, jobs and tasks of an account."""

    firmware: int = 0
    jobs: int = 0
    tasks: int = 0


def count_releases(database: Database) -> dict[str, ReleaseCounts]:
    """Return the rows of ``firmware``, ``jobs`` and ``tasks`` by account."""
    kinds = " UNION ALL ".join(f"SELECT account, '{view}' AS kind FROM {view}" for view in ReleaseCounts._fields)
    columns = ", ".join(f"count(*) FILTER (kind = '{view}')" for view in ReleaseCounts._fields)
    rows = database.execute(f"SELECT account, {columns} FROM ({kinds}) GROUP BY ALL").fetchall()
    return {str(account): ReleaseCounts(*counts) for account, *counts in rows}


def jobs_query(firmware: str, leading: str = "") -> str:
    """Return the SQL of the jobs in rows of firmware, after its ``leading`` columns, each with a comma behind."""
    named = f"{leading}account, product_key, module_name, version, firmware_id"
    return f"SELECT {named}, unnest(job) FROM (SELECT {named}, unnest(jobs) AS job FROM {firmware})"


def products_query(folder: Path) -> str:
    """Return the SQL of the products that a run folder lists."""
    path = folder / PRODUCTS
    return read_records(path, _PRODUCT) if path.is_file() else no_rows({**_PRODUCT, "modules": "VARCHAR[]"})


def parquet_of_run(database: Database, path: Path, options: str = "") -> str:
    """Return the SQL that reads a Parquet file of a run, as ``parquet``.

    Raise RunFolderError if reading it could take hours.
    """
    if (reason := describe_repeated_rows(database, path)) is not None:
        raise RunFolderError(f"{path}: {reason}")
    return parquet(path, options=options)


def no_rows(columns: Mapping[str, object]) -> str:
    """Return the SQL of an empty table."""
    return f"SELECT {', '.join(f'NULL::{kind} AS {name}' for name, kind in columns.items())} WHERE false"


def _define(database: Database, name: str, query: str, work: Path | None) -> None:
    if work is not None:
        write_parquet(database, query, work / f"{name}.parquet")
        query = f"FROM {parquet(work / f'{name}.parquet')}"
    database.execute(f"CREATE VIEW {name} AS {query}")


def read_records(path: Path, columns: Mapping[str, object]) -> str:
    """Return the SQL of the records of a JSON Lines file; unreadable lines, such as a torn last one, are skipped.

    A record goes through a list of one: otherwise DuckDB would parse the line once for each column.
    """
    structure = orjson.dumps(columns).decode()
    lines = text_lines(sql_read_path(path), "store_rejects=true, rejects_limit=1")
    record = f"CASE WHEN json_valid(line) THEN json_transform(line, '{structure}') END"
    read = f"SELECT unnest(record) FROM (SELECT unnest([{record}]) AS record FROM ({lines}))"
    return f"SELECT * FROM ({read}) WHERE account IS NOT NULL"


def _write_devices(database: Database, work: Path) -> list[Path]:
    """Write the rows of ``_devices_query`` to files in ``work``, a partition each; return them in the fleet's order."""
    devices = scalar(database, "SELECT count(*) FROM fleet")
    if devices <= DEVICES_PER_PARTITION:
        write_parquet(database, _devices_query(database), work / "joined.parquet")
        return [work / "joined.parquet"]
    written: list[Path] = []
    for first in range(0, devices, DEVICES_PER_PARTITION):
        written.append(work / f"joined-{first}.parquet")
        end = first + DEVICES_PER_PARTITION
        # The last partition has no end: in a fleet whose ordinals have gaps no device may be omitted.
        until = "" if end >= devices else f" AND ordinal < {end}"
        partition = f"(FROM fleet WHERE ordinal >= {first}{until})"
        write_parquet(database, f"{_devices_query(database, partition)} ORDER BY ordinal", written[-1])
    return written


def _devices_query(database: Database, fleet: str = "fleet") -> str:
    """Return the SQL of every device of a fleet, or of a partition of it, with its status.

    A line has all names that the fleet has of its device, and the platform may have added the others. So a device is
    found by all names that the fleet has of it: one of them alone may be wrong. Only in a fleet that names its devices
    in several ways can two lines match one row, when two rows are aliases of one device; then the later answer counts.
    """
    of_fleet = _naming_ways(database)
    is_mixed = len(of_fleet) > 1
    ways = (of_fleet if fleet == "fleet" else _naming_ways(database, fleet)) or [_NAMES]
    columns = """SELECT f.ordinal, f.account, f.account AS fleet_account,
      f.product_key AS fleet_product_key, f.device_name AS fleet_device_name, f.iot_id AS fleet_iot_id,
      coalesce(f.product_key, a.product_key) AS product_key, coalesce(f.device_name, a.device_name) AS device_name,
      coalesce(f.iot_id, a.iot_id) AS iot_id, a.status, a.modules, a.pages, a.attempts, a.request_id, a.audited_at,
      a.reason, a.source, f.device_status AS listed_status, f.utc_create AS created_at, f.attributes"""
    connected = scalar(database, "SELECT count(*) FROM connections")
    columns += ", n.device_status, n.last_online_at" if connected else ", NULL AS device_status, NULL AS last_online_at"
    joined = " UNION ALL ".join(
        f"{columns} FROM (FROM {fleet} WHERE {_named_by(way)}) f LEFT JOIN answered a USING ({key})"
        f"{f' LEFT JOIN connections n USING ({key})' if connected else ''}"
        for way in ways
        for key in [", ".join(("account", *way))]
    )
    latest = "QUALIFY row_number() OVER (PARTITION BY ordinal ORDER BY audited_at DESC, attempts, request_id) = 1"
    rows = f"SELECT * FROM ({joined}) {latest if is_mixed else ''}"
    unsampled = _unsampled_case(database)
    return f"""
      SELECT k.ordinal, k.account, k.product_key, k.device_name, k.iot_id,
        coalesce(k.status, f.status, 'pending') AS status,
        coalesce(k.modules, 0) AS modules, coalesce(k.pages, 0) AS pages,
        coalesce(k.attempts, f.attempts, 0) AS attempts, coalesce(k.request_id, f.request_id) AS request_id,
        k.audited_at, f.code, f.message, f.http_status, f.failed_at, k.reason,
        CASE WHEN k.status IS NOT NULL THEN k.source WHEN f.status IS NOT NULL THEN 'queried' {unsampled} END AS source,
        coalesce(k.device_status, k.listed_status) AS device_status, k.created_at,
        k.last_online_at::TIMESTAMP AS last_online_at, k.attributes
      FROM ({rows}) k LEFT JOIN failures f ON k.account = f.account
        AND k.fleet_product_key IS NOT DISTINCT FROM f.product_key
        AND k.fleet_device_name IS NOT DISTINCT FROM f.device_name
        AND k.fleet_iot_id IS NOT DISTINCT FROM f.iot_id"""


def _naming_ways(database: Database, fleet: str = "fleet") -> list[tuple[str, ...]]:
    """Return in which ways a fleet names its devices: the names that some of them have; see ``_named_by``."""
    query = f"""
      SELECT DISTINCT iot_id IS NULL OR product_key IS NOT NULL, iot_id IS NULL OR device_name IS NOT NULL,
        iot_id IS NOT NULL FROM {fleet} ORDER BY ALL"""
    return [tuple(compress(_NAMES, has)) for has in database.execute(query).fetchall()]


def _named_by(way: tuple[str, ...]) -> str:
    """Return the SQL condition of the devices that a fleet names in one way."""
    if "iot_id" not in way:
        return "iot_id IS NULL"  # a row without both names, which no audit writes, matches no line
    return " AND ".join(f"{name} IS {'NOT NULL' if name in way else 'NULL'}" for name in _NAMES)


def _unsampled_case(database: Database) -> str:
    """Return the SQL case of a device that is not in the sample of its account; empty in an unsampled run."""
    accounts = "SELECT DISTINCT account FROM selected_devices WHERE selection_reason = 'sample'"
    if not scalar(database, f"SELECT count(*) FROM ({accounts})"):
        return ""
    device, sampled = device_key_sql("k.fleet_"), device_key_sql()
    return (
        f"WHEN k.account IN ({accounts}) AND {device} NOT IN (SELECT {sampled} FROM selected_devices) THEN 'unsampled'"
    )
