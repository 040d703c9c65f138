"""``inventory.json`` and the head of every JSON document: which part of a fleet its numbers cover."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from auditor.models import ReadModules
from auditor.runs.estimates import summarize_sample
from auditor.runs.folder import DEVICES, FLEET
from auditor.runs.manifest import MAX_FAILURE_CODES, SCHEMA_VERSION, DeviceCounts, FailureInfo
from auditor.stats.stratified import StratifiedCounts
from auditor.storage.database import Database, borrow_database, find_duplicate_keys, parquet, scalar, slices_for
from auditor.storage.json_types import PositiveCount, Timestamp
from auditor.storage.tables import dict_rows, json_parts, translate_read_errors


class SourceCounts(NamedTuple):
    """Origin of a run's results; the numbers have the names and meanings that they have in the manifest."""

    carried: int = 0
    unsampled: int = 0
    oldest_answer_at: str | None = None


@dataclass(frozen=True, slots=True)
class AliasCounts:
    """Devices of a run with the names of another one.

    Attributes:
        aliases: devices that are in the fleet twice.
        possible_aliases: devices that may be in the fleet twice, which no answer decides.
        shared_identities: devices whose answer has the names, or the ``iot_id``, of another one's, and are no aliases.
    """

    aliases: int = 0
    possible_aliases: int = 0
    shared_identities: int = 0


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """Coverage of a run: how many devices its numbers are based on.

    Attributes:
        schema_version: version of this contract.
        complete: whether every device of the fleet has a conclusive answer.
        devices: devices by state.
        carried: devices whose result is carried forward from earlier runs; absent: none.
        oldest_answer_at: time of the oldest carried result; absent: none is carried.
        unsampled: pending devices that are not in the sample; absent: the run is not sampled.
        modules: the only modules that were read, which ``complete`` is about; absent: all.
    """

    schema_version: int = SCHEMA_VERSION
    complete: bool
    devices: DeviceCounts
    carried: PositiveCount | UnsetType = UNSET
    oldest_answer_at: Timestamp | UnsetType | None = UNSET
    unsampled: PositiveCount | UnsetType = UNSET
    modules: ReadModules | UnsetType = UNSET


def count_devices(database: Database) -> DeviceCounts:
    """Count the devices by state, from the view ``devices``."""
    states = [state.name for state in fields(DeviceCounts)]
    counts = ", ".join(f"count(*) FILTER (status = '{state}')" for state in states)
    row = database.execute(f"SELECT {counts} FROM devices").fetchone() or (0,) * len(states)
    return DeviceCounts(**dict(zip(states, row, strict=True)))


def count_never_activated(database: Database) -> int:
    """Count the devices that were never activated, from the view ``devices``."""
    return scalar(database, "SELECT count(*) FROM devices WHERE reason = 'never_activated'")


def count_sources(database: Database) -> SourceCounts:
    """Count the devices by the origin of their results, from the view ``devices``."""
    carried, unsampled, oldest = database.execute(
        "SELECT count(*) FILTER (source = 'carried'), count(*) FILTER (source = 'unsampled'), "
        # A foreign file may hold anything under that name.
        "min(try_cast(audited_at AS TIMESTAMP)) FILTER (source = 'carried') FROM devices"
    ).fetchone() or (0, 0, None)
    oldest_text = f"{oldest.isoformat(timespec='milliseconds')}Z" if isinstance(oldest, datetime) else None
    return SourceCounts(int(carried), int(unsampled), oldest_text)


def count_failures(database: Database) -> tuple[FailureInfo, ...]:
    """Count the failed devices by code, the most frequent first, from the view ``devices``."""
    rows = database.execute(
        "SELECT code, count(*), min(coalesce(product_key || '/' || device_name, iot_id)) FROM devices "
        f"WHERE status = 'failed' GROUP BY code ORDER BY count(*) DESC, code LIMIT {MAX_FAILURE_CODES}"
    ).fetchall()
    return tuple(FailureInfo(str(code), int(devices), str(example)) for code, devices, example in rows)


def read_aliases(folder: Path) -> AliasCounts:
    """Return ``count_aliases`` of a sealed run; raise RunFolderError if its files cannot be read."""
    with borrow_database() as database, translate_read_errors(folder):
        for view, name in (("fleet", FLEET), ("devices", DEVICES)):
            database.execute(f"CREATE VIEW {view} AS FROM {parquet(folder / name)}")
        return count_aliases(database)


def count_aliases(database: Database) -> AliasCounts:
    """Count the devices that have the names of another one, from the views ``fleet`` and ``devices``.

    A fleet file alone does not show that a device is in it by ``iot_id`` in one row, and by product key and device name
    in another. The answers do, for every module in them has all three names. These are aliases.

    Otherwise no two devices have answers with the same names, or the same ``iot_id``. If they do, a gateway may have
    answered for another device. An answer names the device with all names of the request, so only names that the fleet
    does not have can be the same.
    """
    shared = _count_shared_identities(database)
    mixed = database.execute(_MIXED).fetchone()
    if mixed is None or not mixed[0]:
        return AliasCounts(shared_identities=shared)
    rows = database.execute(_ALIASES).fetchall()
    # If neither answer names its device, two rows may be one device.
    aliases, possible = sum(found for _, found, _, _ in rows), sum(min(ids, names) for _, _, ids, names in rows)
    return AliasCounts(aliases, possible, shared)


def _count_shared_identities(database: Database) -> int:
    """Return how many devices have answers with names that another answer has, by either kind of names."""
    slices, tables = slices_for(scalar(database, "SELECT count(*) FROM fleet")), []
    for table, names in (("iot_ids", "iot_id"), ("names", "product_key, device_name")):
        added = " OR ".join(f"{name} IS NULL" for name in names.split(", "))
        if scalar(database, f"SELECT count(*) FROM fleet WHERE {added}"):  # else the names are the fleet's own
            key, named = f"hash(account, {names})", added.replace(" OR ", " AND ").replace("IS NULL", "IS NOT NULL")
            find_duplicate_keys(database, f"keys_{table}", f"{key} FROM devices WHERE {named}", slices)
            columns = ", ".join(f"d.{name}" for name in names.split(", "))
            database.execute(_SHARED.format(table=table, names=columns, key=key))
            tables.append(f"SELECT ordinal FROM shared_{table}")
    return scalar(database, f"SELECT count(*) FROM ({' UNION '.join(tables)})") if tables else 0


def inventory_json(database: Database, counts: StratifiedCounts | None, modules: ReadModules | None) -> Iterator[bytes]:
    """Yield ``inventory.json`` in pieces: its head, then each row. ``modules`` is that of the manifest."""
    return json_parts(inventory_head(database, counts, modules), "inventory", dict_rows(database, "FROM inventory"))


def inventory_head(database: Database, counts: StratifiedCounts | None, modules: ReadModules | None) -> dict[str, Any]:
    """Return the coverage of a run, the summary of its sample (see ``define_estimates``), and its missing modules."""
    head = coverage_head(count_devices(database), count_sources(database), modules)
    if counts is not None:
        head["sample"] = msgspec.to_builtins(summarize_sample(database, counts))
    if scalar(database, "SELECT count(*) FROM products WHERE modules IS NOT NULL"):
        head["modules_missing"] = list(dict_rows(database, "FROM missing_modules"))
    return head


def coverage_head(devices: DeviceCounts, sources: SourceCounts, modules: ReadModules | None) -> dict[str, Any]:
    """Return the ``Coverage`` of a run for JSON; ``modules`` is that of its manifest."""
    coverage = Coverage(
        complete=devices.unanswered == 0,
        devices=devices,
        carried=sources.carried or UNSET,
        oldest_answer_at=sources.oldest_answer_at if sources.carried else UNSET,
        unsampled=sources.unsampled or UNSET,
        modules=UNSET if modules is None else modules,
    )
    head: dict[str, Any] = msgspec.to_builtins(coverage)
    return head


_MIXED = """
  SELECT bool_or(device_name IS NULL OR product_key IS NULL) AND bool_or(iot_id IS NULL) FROM fleet"""

_ALIASES = """
  WITH rows AS (
    SELECT f.account, f.iot_id IS NULL AS by_names, d.iot_id, d.product_key, d.device_name
    FROM fleet f JOIN devices d USING (ordinal)
    WHERE f.iot_id IS NULL OR f.product_key IS NULL OR f.device_name IS NULL
  ), by_names AS (FROM rows WHERE by_names), by_iot_id AS (FROM rows WHERE NOT by_names)
  SELECT account,
    (SELECT count(*) FROM by_iot_id SEMI JOIN by_names USING (account, iot_id) WHERE account = accounts.account),
    (SELECT count(*) FROM by_iot_id WHERE account = accounts.account AND device_name IS NULL),
    (SELECT count(*) FROM by_names WHERE account = accounts.account AND iot_id IS NULL)
  FROM (SELECT DISTINCT account FROM rows) AS accounts"""

_SHARED = """
  CREATE TEMP TABLE shared_{table} AS SELECT unnest(ordinals) AS ordinal FROM (
    SELECT list(ordinal) AS ordinals, count(*) AS devices, count(DISTINCT d.iot_id) AS ids,
      count(*) FILTER (f.iot_id IS NULL) AS by_names,
      count(*) FILTER (f.iot_id IS NOT NULL AND (f.product_key IS NULL OR f.device_name IS NULL)) AS by_iot_id
    FROM fleet f JOIN (FROM devices WHERE {key} IN (SELECT key FROM keys_{table})) d USING (ordinal)
    GROUP BY d.account, {names}
  ) WHERE devices > 1 AND NOT (by_names = 1 AND by_iot_id = 1 AND devices = 2 AND ids <= 1)"""
"""Rows whose answers have the same names, and are not two aliases."""
