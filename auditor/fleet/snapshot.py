"""Fleet files into ``fleet.parquet``: the fleet as it was asked for, validated, without duplicates."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import msgspec

from auditor.config.settings import FleetSource, Settings
from auditor.errors import FleetError, RunNotWritableError
from auditor.fleet.readers import COLUMNS, FleetFile, line_of_rejected, lines_of, look_at, odd_ending, relation
from auditor.fleet.table import UNTOLD, define_twice, rows_of, sha256_of, slices_for, write_numbered
from auditor.storage.database import AS_PARQUET, open_database, parquet, quoted, reason_of

NAME_LENGTH = 256
"""Characters of a name at most. Alibaba allows 32 for a device, Tuya documents no limit; this only stops nonsense."""


SHOWN = 10
"""Bad rows that an error names; it counts them all."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What ``fleet.parquet`` holds: where it came from, how many devices, how many repeats were dropped, its digest."""

    source: str
    devices: int
    duplicates: int
    sha256: str


def write_snapshot(fleets: Sequence[tuple[str, str]], out: Path, *, limit: int | None = None) -> Snapshot:
    """Reads every account's fleet file into one validated Parquet file.

    Args:
        fleets: account and source (a path, or ``-``) of each.
        out: the file to write; a folder beside it holds what does not fit into memory meanwhile.
        limit: keeps only the first so many devices.

    Raises:
        FleetError: a file cannot be read, has bad rows (all of them are counted, the first named), or no device.
        RunNotWritableError: ``out`` cannot be written.
    """
    if not fleets:
        raise FleetError("no account has a fleet; a fleet has at least one device")
    work = out.with_suffix(".reading")
    try:
        shutil.rmtree(work, ignore_errors=True)  # of a process that was killed
        work.mkdir()
        database = open_database(work)
        try:
            kept, duplicates = [], 0
            for number, (account, source) in enumerate(fleets):
                stage = _stage(database, look_at(source, work / f"{number}.input"), work / f"{number}.parquet")
                kept.append(work / f"{number}.kept.parquet")
                duplicates += _keep(database, stage, account, kept[-1])
            devices = write_numbered(database, rows_of(kept), work / "whole.parquet", limit)
        finally:
            database.close()
        (work / "whole.parquet").replace(out)
        return Snapshot(", ".join(dict.fromkeys(source for _, source in fleets)), devices, duplicates, sha256_of(out))
    except (OSError, duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise RunNotWritableError(f"{out} cannot be written: {reason_of(error)}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Stage:
    """A fleet file's records as Parquet: trimmed, each with its ``record`` number, none of them bad."""

    file: FleetFile
    path: Path

    @property
    def rows(self) -> str:
        return parquet(self.path)


def _stage(database: duckdb.DuckDBPyConnection, file: FleetFile, path: Path) -> _Stage:
    malformed = "malformed" if file.kind in {"jsonl", "list"} else "false"
    trimmed = ", ".join(f"nullif(trim({name}), '') AS {name}" for name in COLUMNS)
    try:
        query = relation(file, database)
        database.execute(
            f"COPY (SELECT *, {_FAULT} AS fault FROM (SELECT record, {malformed} AS malformed, {trimmed} "
            f"FROM ({query}))) TO {quoted(path)} {AS_PARQUET}"
        )
    except duckdb.Error as error:
        ours = isinstance(error, duckdb.IOException) and str(path) in str(error)
        if isinstance(error, duckdb.OutOfMemoryException) or ours:
            raise
        if (line := odd_ending(file)) is not None:
            raise FleetError(
                f"{file.shown}: line {line} ends unlike line 1; save it with one kind of line end"
            ) from error
        raise FleetError(f"{file.shown}: cannot be read as {file.kind}: {reason_of(error)}") from error
    stage = _Stage(file, path)
    _refuse_bad_rows(database, stage)
    return stage


_FAULT = f"""CASE
  WHEN malformed THEN 'is malformed'
  WHEN iot_id IS NULL AND product_key IS NULL AND device_name IS NULL THEN 'names no device'
  WHEN iot_id IS NULL AND product_key IS NULL THEN 'has a device_name but no product_key'
  WHEN iot_id IS NULL AND device_name IS NULL THEN 'has a product_key but no device_name'
  WHEN greatest(len(product_key), len(device_name), len(iot_id)) > {NAME_LENGTH}
    THEN 'has a name of more than {NAME_LENGTH} characters'
  WHEN regexp_matches(concat(product_key, device_name, iot_id), '\\p{{Cc}}') THEN 'has a control character'
END"""


def _refuse_bad_rows(database: duckdb.DuckDBPyConnection, stage: _Stage) -> None:
    bad = f"SELECT record, fault FROM {stage.rows} WHERE fault IS NOT NULL"
    rejected: dict[int, str] = {}
    if database.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'reject_errors'").fetchall():
        rejected = {
            int(record): "is not UTF-8" if kind == "INVALID ENCODING" else f"is malformed ({str(kind).lower()})"
            for record, kind in database.execute(
                "SELECT line, any_value(error_type) FROM reject_errors GROUP BY 1"
            ).fetchall()
        }
        database.execute("DROP TABLE reject_errors; DROP TABLE reject_scans")
    _refuse(database, stage.file, bad, rejected)


def _keep(database: duckdb.DuckDBPyConnection, stage: _Stage, account: str, out: Path) -> int:
    """Writes the devices of a stage without repeats; how many were left out.

    Raises:
        FleetError: there is no device.
    """
    (count,) = database.execute(f"SELECT count(*) FROM {stage.rows}").fetchone() or (0,)
    if count == 0:
        raise FleetError(f"{stage.file.shown}: has no device; a fleet has at least one")
    _find_repeats(database, stage, slices_for(count))
    database.execute(
        f"COPY (SELECT $1 AS account, {', '.join(COLUMNS)}, {UNTOLD} FROM {stage.rows} "
        f"WHERE record NOT IN (SELECT record FROM repeats)) TO {quoted(out)} "
        f"{AS_PARQUET}",
        [account],
    )
    (duplicates,) = database.execute("SELECT count(*) FROM repeats").fetchone() or (0,)
    return int(duplicates)


_BOTH = "product_key IS NOT NULL AND device_name IS NOT NULL"


def _find_repeats(database: duckdb.DuckDBPyConnection, stage: _Stage, slices: int) -> None:
    """Makes the table ``repeats``: the records that name a device again, by either of its names; the first stays.

    Only rows whose hash comes twice are compared by name: that needs a few bytes a device, not its names. A row with
    both names tells which row with one of them is the same device as which row with the other.

    Raises:
        FleetError: one iot_id with two device names, or one device name with two iot_ids.
    """
    suspect = []
    for table, key, given in (
        ("twice_by_iot_id", "hash(iot_id)", "iot_id IS NOT NULL"),
        ("twice_by_name", "hash(product_key, device_name)", _BOTH),
    ):
        define_twice(database, table, f"{key} FROM {stage.rows} WHERE {given}", slices)
        suspect.append(f"({given} AND {key} IN (SELECT key FROM {table}))")
    database.execute(
        f"CREATE OR REPLACE TABLE suspects AS SELECT record, product_key, device_name, iot_id FROM {stage.rows} "
        f"WHERE {' OR '.join(suspect)}"
    )
    _refuse(database, stage.file, _CONTRADICTIONS, {})
    database.execute(
        f"""CREATE OR REPLACE TABLE repeats AS SELECT record FROM (
          SELECT record, coalesce(suspects.iot_id, known.iot_id) AS id, product_key, device_name FROM suspects
          LEFT JOIN (
            SELECT DISTINCT product_key, device_name, iot_id FROM suspects WHERE {_BOTH} AND iot_id IS NOT NULL
          ) AS known USING (product_key, device_name)
        ) QUALIFY row_number() OVER (
          PARTITION BY id, CASE WHEN id IS NULL THEN product_key END, CASE WHEN id IS NULL THEN device_name END
          ORDER BY record) > 1"""
    )


_CONTRADICTIONS = f"""
  SELECT record, min(fault) AS fault FROM (
    SELECT record, 'gives iot_id ' || iot_id || ' another name than before' AS fault,
      (product_key, device_name) <> first_value((product_key, device_name)) OVER (PARTITION BY iot_id ORDER BY record)
      AS bad FROM suspects WHERE {_BOTH} AND iot_id IS NOT NULL
    UNION ALL
    SELECT record, 'gives ' || product_key || '/' || device_name || ' another iot_id than before',
      iot_id <> first_value(iot_id) OVER (PARTITION BY product_key, device_name ORDER BY record)
      FROM suspects WHERE {_BOTH} AND iot_id IS NOT NULL
  ) WHERE bad GROUP BY record"""


def _refuse(database: duckdb.DuckDBPyConnection, file: FleetFile, bad: str, rejected: dict[int, str]) -> None:
    """Raises FleetError when the query ``bad`` (record, fault) has rows or DuckDB has put records aside."""
    (count,) = database.execute(f"SELECT count(*) FROM ({bad})").fetchone() or (0,)
    count += len(rejected)
    if not count:
        return
    rows = database.execute(f"SELECT record, fault FROM ({bad}) ORDER BY record LIMIT {SHOWN}").fetchall()
    lines = lines_of(file, [int(record) for record, _ in rows], frozenset(rejected))
    faults = [(lines.get(int(record), int(record)), str(fault)) for record, fault in rows]
    at = line_of_rejected(file, sorted(rejected)[:SHOWN])
    faults += [(line, rejected[record]) for record, line in at.items()]
    word = "row" if file.kind == "parquet" else "line"
    shown = "; ".join(f"{word} {line} {fault}" for line, fault in sorted(faults)[:SHOWN])
    more = f"; and {count - SHOWN} more" if count > SHOWN else ""
    total = "1 bad row" if count == 1 else f"{count} bad rows"
    raise FleetError(f"{file.shown}: {total}, so nothing was asked: {shown}{more}")


def no_snapshot(out: Path) -> Snapshot:
    """A fleet without a device yet, for accounts whose devices the platform will list.

    Raises:
        RunNotWritableError: ``out`` cannot be written.
    """
    database = open_database()
    try:
        return Snapshot("", write_numbered(database, rows_of(()), out), 0, sha256_of(out))
    except (OSError, duckdb.IOException) as error:
        raise RunNotWritableError(f"{out} cannot be written: {reason_of(error)}") from error
    finally:
        database.close()


def with_fleet(settings: Settings, fleet: str | None) -> Settings:
    """The settings with every account's fleet known.

    Raises:
        FleetError: an account has no fleet, or one fleet was given for several accounts.
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
    """Account and fleet file of each account that has one; the others' fleets are what the platform lists."""
    fleets = [(account.name, account.fleet) for account in settings.account if account.fleet is not None]
    return [(name, fleet.file) for name, fleet in fleets if fleet.file is not None]
