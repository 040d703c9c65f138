"""``inventory.json`` and the head of every JSON document: which part of a fleet its numbers cover."""

from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from auditor.runs.estimates import summarize_sample
from auditor.runs.manifest import MAX_FAILURE_CODES, SCHEMA_VERSION, DeviceCounts, FailureInfo
from auditor.stats.stratified import StratifiedCounts
from auditor.storage.database import Database, scalar
from auditor.storage.json_types import PositiveCount, Timestamp
from auditor.storage.tables import dict_rows, json_parts


class SourceCounts(NamedTuple):
    """Origin of a run's results; the numbers have the names and meanings that they have in the manifest."""

    carried: int = 0
    unsampled: int = 0
    oldest_answer_at: str | None = None


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """Coverage of a run: how many devices its numbers are based on.

    Attributes:
        schema_version: version of this contract.
        complete: whether every device of the fleet has a conclusive answer.
        devices: devices by state.
        carried: devices whose result is carried forward from earlier runs; absent: none.
        oldest_answer_at: time of the oldest carried result; absent: none is carried.
        unsampled: pending devices that are not in the sample; absent: the run is not sampled.
    """

    schema_version: int = SCHEMA_VERSION
    complete: bool
    devices: DeviceCounts
    carried: PositiveCount | UnsetType = UNSET
    oldest_answer_at: Timestamp | UnsetType | None = UNSET
    unsampled: PositiveCount | UnsetType = UNSET


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


def inventory_json(database: Database, counts: StratifiedCounts | None) -> Iterator[bytes]:
    """Yield ``inventory.json`` in pieces: its head, then each row."""
    return json_parts(inventory_head(database, counts), "inventory", dict_rows(database, "FROM inventory"))


def inventory_head(database: Database, counts: StratifiedCounts | None) -> dict[str, Any]:
    """Return the coverage of a run, the summary of its sample (see ``define_estimates``), and its missing modules."""
    head = coverage_head(count_devices(database), count_sources(database))
    if counts is not None:
        head["sample"] = msgspec.to_builtins(summarize_sample(database, counts))
    if scalar(database, "SELECT count(*) FROM products WHERE modules IS NOT NULL"):
        head["modules_missing"] = list(dict_rows(database, "FROM missing_modules"))
    return head


def coverage_head(devices: DeviceCounts, sources: SourceCounts) -> dict[str, Any]:
    """Return the ``Coverage`` of a run for JSON."""
    coverage = Coverage(
        complete=devices.unanswered == 0,
        devices=devices,
        carried=sources.carried or UNSET,
        oldest_answer_at=sources.oldest_answer_at if sources.carried else UNSET,
        unsampled=sources.unsampled or UNSET,
    )
    head: dict[str, Any] = msgspec.to_builtins(coverage)
    return head
