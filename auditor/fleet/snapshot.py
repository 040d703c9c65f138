"""Fleet files as ``fleet.parquet``: the configured fleet, validated, without duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import duckdb
import msgspec

from auditor.client.operations import MAX_NAME_LENGTH
from auditor.config.settings import FleetSource, Settings
from auditor.errors import FleetError
from auditor.fleet.readers import (
    COLUMNS,
    FleetFile,
    find_lines,
    find_mixed_line_ending,
    find_rejected_lines,
    open_fleet_file,
    records_sql,
)
from auditor.fleet.table import (
    DISCOVERY_NULL_COLUMNS,
    concatenated_rows,
    find_duplicate_keys,
    sha256_of,
    slices_for,
    write_numbered,
)
from auditor.storage.database import PARQUET_OPTIONS, error_reason, parquet, scalar, scratch_database, sql_literal

MAX_ROWS_SHOWN = 10
"""Invalid rows that an error lists; all are counted."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Properties of ``fleet.parquet``: its source, number of devices, number of dropped duplicates, and digest."""

    source: str
    devices: int
    duplicates: int
    sha256: str


def write_snapshot(fleets: Sequence[tuple[str, str]], out: Path, *, limit: int | None = None) -> Snapshot:
    """Read the fleet files of all accounts into one validated Parquet file, with up to ``limit`` devices.

    ``fleets`` has the account and source (a path, or ``-``) of each. A folder beside ``out`` holds intermediate files.

    Raises:
        FleetError: a file cannot be read, has invalid rows (counted, the first ones listed), or has no device.
        RunNotWritableError: ``out`` cannot be written.
    """
    if not fleets:
        raise FleetError("no account has a fleet; a fleet has at least one device")
    work = out.with_suffix(".reading")
    with scratch_database(work, failure=f"{out} cannot be written") as database:
        paths, duplicates = [], 0
        for number, (account, source) in enumerate(fleets):
            stage = _stage(database, open_fleet_file(source, work / f"{number}.input"), work / f"{number}.parquet")
            paths.append(work / f"{number}.unique.parquet")
            duplicates += _deduplicate(database, stage, account, paths[-1])
        devices = write_numbered(database, concatenated_rows(paths), work / "all.parquet", limit)
        (work / "all.parquet").replace(out)
        return Snapshot(", ".join(dict.fromkeys(source for _, source in fleets)), devices, duplicates, sha256_of(out))


class _Stage(NamedTuple):
    """The valid records of a fleet file, and the SQL of their rows: trimmed, each with its ``record`` number."""

    file: FleetFile
    rows: str


def _stage(database: duckdb.DuckDBPyConnection, file: FleetFile, path: Path) -> _Stage:
    malformed = "malformed" if file.kind in {"jsonl", "list"} else "false"
    trimmed = ", ".join(f"nullif(trim({name}), '') AS {name}" for name in COLUMNS)
    try:
        query = records_sql(file, database)
        database.execute(
            f"COPY (SELECT *, {_FAULT} AS fault FROM (SELECT record, {malformed} AS malformed, {trimmed} "
            f"FROM ({query}))) TO {sql_literal(path)} {PARQUET_OPTIONS}"
        )
    except duckdb.Error as error:
        not_writable = isinstance(error, duckdb.IOException) and str(path) in str(error)
        if isinstance(error, duckdb.OutOfMemoryException) or not_writable:
            raise
        if (line := find_mixed_line_ending(file)) is not None:
            raise FleetError(
                f"{file.label}: line {line} has another line ending than line 1; save it with one kind"
            ) from error
        raise FleetError(f"{file.label}: cannot be read as {file.kind}: {error_reason(error)}") from error
    stage = _Stage(file, parquet(path))
    _check_rows(database, stage)
    return stage


_FAULT = f"""CASE
  WHEN malformed THEN 'is malformed'
  WHEN iot_id IS NULL AND product_key IS NULL AND device_name IS NULL THEN 'has no device'
  WHEN iot_id IS NULL AND product_key IS NULL THEN 'has a device_name but no product_key'
  WHEN iot_id IS NULL AND device_name IS NULL THEN 'has a product_key but no device_name'
  WHEN greatest(len(product_key), len(device_name), len(iot_id)) > {MAX_NAME_LENGTH}
    THEN 'has a name of more than {MAX_NAME_LENGTH} characters'
  WHEN regexp_matches(concat(product_key, device_name, iot_id), '\\p{{Cc}}') THEN 'has a control character'
END"""


def _check_rows(database: duckdb.DuckDBPyConnection, stage: _Stage) -> None:
    bad = f"SELECT record, fault FROM {stage.rows} WHERE fault IS NOT NULL"
    rejected: dict[int, str] = {}
    if database.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'reject_errors'").fetchall():
        errors = database.execute("SELECT line, any_value(error_type) FROM reject_errors GROUP BY 1").fetchall()
        rejected = {
            int(record): "is not UTF-8" if kind == "INVALID ENCODING" else f"is malformed ({str(kind).lower()})"
            for record, kind in errors
        }
        database.execute("DROP TABLE reject_errors; DROP TABLE reject_scans")
    _refuse_bad_rows(database, stage.file, bad, rejected)


def _deduplicate(database: duckdb.DuckDBPyConnection, stage: _Stage, account: str, out: Path) -> int:
    """Write the devices of a stage without duplicates; return the number of duplicates."""
    count = scalar(database, f"SELECT count(*) FROM {stage.rows}")
    if count == 0:
        raise FleetError(f"{stage.file.label}: has no device; a fleet has at least one")
    _find_duplicates(database, stage, slices_for(count))
    database.execute(
        f"COPY (SELECT $1 AS account, {', '.join(COLUMNS)}, {DISCOVERY_NULL_COLUMNS} FROM {stage.rows} "
        f"WHERE record NOT IN (SELECT record FROM duplicates)) TO {sql_literal(out)} "
        f"{PARQUET_OPTIONS}",
        [account],
    )
    return scalar(database, "SELECT count(*) FROM duplicates")


_BOTH = "product_key IS NOT NULL AND device_name IS NOT NULL"


def _find_duplicates(database: duckdb.DuckDBPyConnection, stage: _Stage, slices: int) -> None:
    """Create the table ``duplicates``: records of a device, by either of its names, after its first record.

    Only rows whose hash occurs twice are compared by name: that needs a few bytes a device, not its names. A row with
    both names links the rows that have only one of them.
    """
    conditions = []
    for table, key, condition in (
        ("duplicate_iot_ids", "hash(iot_id)", "iot_id IS NOT NULL"),
        ("duplicate_names", "hash(product_key, device_name)", _BOTH),
    ):
        find_duplicate_keys(database, table, f"{key} FROM {stage.rows} WHERE {condition}", slices)
        conditions.append(f"({condition} AND {key} IN (SELECT key FROM {table}))")
    database.execute(
        f"CREATE OR REPLACE TABLE suspects AS SELECT record, product_key, device_name, iot_id FROM {stage.rows} "
        f"WHERE {' OR '.join(conditions)}"
    )
    _refuse_bad_rows(database, stage.file, _CONTRADICTIONS, {})
    database.execute(
        f"""CREATE OR REPLACE TABLE duplicates AS SELECT record FROM (
          SELECT record, coalesce(suspects.iot_id, linked.iot_id) AS id, product_key, device_name FROM suspects
          LEFT JOIN (
            SELECT DISTINCT product_key, device_name, iot_id FROM suspects WHERE {_BOTH} AND iot_id IS NOT NULL
          ) AS linked USING (product_key, device_name)
        ) QUALIFY row_number() OVER (
          PARTITION BY id, CASE WHEN id IS NULL THEN product_key END, CASE WHEN id IS NULL THEN device_name END
          ORDER BY record) > 1"""
    )


_CONTRADICTIONS = f"""
  SELECT record, min(fault) AS fault FROM (
    SELECT record, 'gives iot_id ' || iot_id || ' a different name than an earlier row' AS fault,
      (product_key, device_name) <> first_value((product_key, device_name)) OVER (PARTITION BY iot_id ORDER BY record)
      AS bad FROM suspects WHERE {_BOTH} AND iot_id IS NOT NULL
    UNION ALL
    SELECT record, 'gives ' || product_key || '/' || device_name || ' a different iot_id than an earlier row',
      iot_id <> first_value(iot_id) OVER (PARTITION BY product_key, device_name ORDER BY record)
      FROM suspects WHERE {_BOTH} AND iot_id IS NOT NULL
  ) WHERE bad GROUP BY record"""


def _refuse_bad_rows(database: duckdb.DuckDBPyConnection, file: FleetFile, bad: str, rejected: dict[int, str]) -> None:
    """Raise FleetError if the query ``bad`` (record, fault) has rows or DuckDB rejected records."""
    count = scalar(database, f"SELECT count(*) FROM ({bad})") + len(rejected)
    if not count:
        return
    rows = database.execute(f"SELECT record, fault FROM ({bad}) ORDER BY record LIMIT {MAX_ROWS_SHOWN}").fetchall()
    lines = find_lines(file, [int(record) for record, _ in rows], frozenset(rejected))
    faults = [(lines.get(int(record), int(record)), str(fault)) for record, fault in rows]
    at = find_rejected_lines(file, sorted(rejected)[:MAX_ROWS_SHOWN])
    faults += [(line, rejected[record]) for record, line in at.items()]
    word = "row" if file.kind == "parquet" else "line"
    shown = "; ".join(f"{word} {line} {fault}" for line, fault in sorted(faults)[:MAX_ROWS_SHOWN])
    more = f"; and {count - MAX_ROWS_SHOWN} more" if count > MAX_ROWS_SHOWN else ""
    total = "1 bad row" if count == 1 else f"{count} bad rows"
    raise FleetError(f"{file.label}: {total}, so no request was sent: {shown}{more}")


def write_empty_snapshot(out: Path) -> Snapshot:
    """Write a fleet without devices, for accounts whose devices are discovered later."""
    with scratch_database(failure=f"{out} cannot be written") as database:
        return Snapshot("", write_numbered(database, concatenated_rows(()), out), 0, sha256_of(out))


def apply_fleet_option(settings: Settings, fleet: str | None) -> Settings:
    """Return the settings with the file of ``--fleet``, if it was given; check that all accounts have a fleet.

    Raises:
        FleetError: an account has no fleet, or one file was given for several accounts.
    """
    accounts = settings.account
    if fleet is not None:
        if len(accounts) > 1:
            raise FleetError(f"{fleet}: there are {len(accounts)} accounts; give each its fleet in the settings")
        accounts = (msgspec.structs.replace(accounts[0], fleet=FleetSource(file=fleet)),)
    for account in accounts:
        if account.fleet is None:
            raise FleetError(
                f'account "{account.name}": has no fleet; set fleet = {{ file = "…" }} or {{ products = "all" }}, '
                "or give --fleet"
            )
    return msgspec.structs.replace(settings, account=accounts)


def fleet_files(settings: Settings) -> list[tuple[str, str]]:
    """Return account and fleet file of each account that has one; the fleets of the others are discovered."""
    fleets = [(account.name, account.fleet) for account in settings.account if account.fleet is not None]
    return [(name, fleet.file) for name, fleet in fleets if fleet.file is not None]
