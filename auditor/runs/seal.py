"""Sealing: the live files into Parquet and the inventory, by DuckDB in bounded memory, each file put in place whole."""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import duckdb

from auditor.errors import RunNotWritableError
from auditor.runs.estimates import count_rechecked, count_unreached, define_estimates, sample_of
from auditor.runs.folder import (
    ANSWERED,
    CARRIED,
    FAILED,
    FLEET,
    INVENTORY_CSV,
    INVENTORY_JSON,
    MODULES,
    PLAN,
    PRODUCTS,
    SEALED,
)
from auditor.runs.manifest import SCHEMA_VERSION, Choice, DeviceCounts, FailureFacts, FileFacts, Recheck, file_facts
from auditor.runs.views import define_live_views, define_products, define_sealed_views, number
from auditor.stats.stratified import Tallies
from auditor.storage.database import open_database, reason_of, with_enough_memory, write_parquet
from auditor.storage.files import put_in_place
from auditor.storage.tables import json_parts, rows, write_csv

FAILURES_SHOWN = 100
"""Codes of failures that the manifest names."""


class Sources(NamedTuple):
    """Devices whose answers are carried, those that were not drawn, and when the oldest carried answer was given."""

    carried: int = 0
    unsampled: int = 0
    oldest: str | None = None


@dataclass(frozen=True, slots=True)
class Sealed:
    """What sealing found in the files: devices by state, failures by code, and the files with their digests.

    ``never_activated`` are those of the empty ones of which it is known that they never were; ``carried``,
    ``unsampled`` and ``oldest`` are what the manifest tells under these names; ``recheck`` is how often it was wrong to
    carry, and ``unreached`` how many are carried that were to be asked.
    """

    devices: DeviceCounts
    never_activated: int
    failures: tuple[FailureFacts, ...]
    files: tuple[FileFacts, ...]
    carried: int = 0
    unsampled: int = 0
    oldest: str | None = None
    recheck: Recheck | None = None
    unreached: int = 0


def seal(folder: Path, choice: Choice | None = None) -> Sealed:
    """Writes the sealed files of a run folder from its live ones. Sealing again gives the same.

    Args:
        folder: the run folder.
        choice: whom the run chose to ask; None: the whole fleet.

    Raises:
        RunNotWritableError: they cannot be written.
    """
    work = folder / ".sealing"
    try:
        found = with_enough_memory(lambda memory: _write_sealed(folder, work, memory, choice))
        for name in SEALED:
            put_in_place(work / name, folder / name)
    except (OSError, duckdb.Error, UnicodeDecodeError) as error:
        raise RunNotWritableError(f"{folder}: cannot be sealed: {reason_of(error)}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    files = tuple(file_facts(folder / name) for name in files_of(folder))
    return replace(found, files=files)


def files_of(folder: Path) -> tuple[str, ...]:
    """The files that a sealed run has: one whose products nobody asked about has no list of them, and so on."""
    some = tuple(name for name in (PRODUCTS, PLAN, CARRIED) if (folder / name).exists())
    return (FLEET, ANSWERED, FAILED, *some, *SEALED)


def _write_sealed(folder: Path, work: Path, memory: str, choice: Choice | None) -> Sealed:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    live = open_database(work, memory)
    try:
        define_live_views(live, folder, work)
        write_parquet(live, "FROM modules", work / MODULES)
        recheck, unreached = count_rechecked(live, carried_of(choice)), count_unreached(live)
    finally:
        live.close()
    sealed = open_database(work, memory)
    try:
        define_sealed_views(sealed, work)
        define_products(sealed, folder)
        devices, sources = count_devices(sealed), count_sources(sealed)
        write_inventories(sealed, folder, work)
        return Sealed(devices, count_never_activated(sealed), count_failures(sealed), (), *sources, recheck, unreached)
    finally:
        sealed.close()


def count_devices(database: duckdb.DuckDBPyConnection) -> DeviceCounts:
    """Devices by state, from the view ``devices``."""
    states = [state.name for state in fields(DeviceCounts)]
    counts = ", ".join(f"count(*) FILTER (status = '{state}')" for state in states)
    row = database.execute(f"SELECT {counts} FROM devices").fetchone() or (0,) * len(states)
    return DeviceCounts(**dict(zip(states, row, strict=True)))


def count_never_activated(database: duckdb.DuckDBPyConnection) -> int:
    """Devices that are known to have never been activated, from the view ``devices``."""
    return number(database, "SELECT count(*) FROM devices WHERE reason = 'never_activated'")


def write_inventories(database: duckdb.DuckDBPyConnection, folder: Path, work: Path) -> None:
    """Writes ``inventory.csv`` and ``inventory.json``.

    Args:
        database: with the sealed views of a run, its products among them.
        folder: the run folder.
        work: where to write them.
    """
    tallies = define_estimates(database, folder)
    write_csv(database, "FROM inventory", work / INVENTORY_CSV)
    with (work / INVENTORY_JSON).open("wb") as file:
        file.writelines(inventory_json(database, tallies))


def count_sources(database: duckdb.DuckDBPyConnection) -> Sources:
    """Where what a run has of its devices comes from, by the view ``devices``."""
    carried, unsampled, oldest = database.execute(
        "SELECT count(*) FILTER (source = 'carried'), count(*) FILTER (source = 'unsampled'), "
        # Somebody else's file may hold anything under that name.
        "min(try_cast(audited_at AS TIMESTAMP)) FILTER (source = 'carried') FROM devices"
    ).fetchone() or (0, 0, None)
    told = f"{oldest.isoformat(timespec='milliseconds')}Z" if isinstance(oldest, datetime) else None
    return Sources(int(carried), int(unsampled), told)


def carried_of(choice: Choice | None) -> int:
    """Devices whose answers a run chose to carry, by what it knew when it chose."""
    return 0 if choice is None else sum(account.carried for account in choice.accounts)


def count_failures(database: duckdb.DuckDBPyConnection) -> tuple[FailureFacts, ...]:
    """Failed devices by code, the most frequent first, from the view ``devices``."""
    rows = database.execute(
        "SELECT code, count(*), min(coalesce(product_key || '/' || device_name, iot_id)) FROM devices "
        f"WHERE status = 'failed' GROUP BY code ORDER BY count(*) DESC, code LIMIT {FAILURES_SHOWN}"
    ).fetchall()
    return tuple(FailureFacts(str(code), int(devices), str(example)) for code, devices, example in rows)


def inventory_json(database: duckdb.DuckDBPyConnection, tallies: Tallies | None) -> Iterator[bytes]:
    """``inventory.json`` in parts: its head, then a row for each version."""
    return json_parts(inventory_head(database, tallies), "inventory", rows(database, "FROM inventory"))


def inventory_head(database: duckdb.DuckDBPyConnection, tallies: Tallies | None) -> dict[str, object]:
    """How whole the run is, what a sample tells of the fleet, and which modules are missing.

    Args:
        database: with the views of a run.
        tallies: what ``define_estimates`` gave.
    """
    sample = {} if tallies is None else {"sample": sample_of(database, tallies).told}
    return coverage_of(count_devices(database), count_sources(database)) | sample | modules_missing(database)


def modules_missing(database: duckdb.DuckDBPyConnection) -> dict[str, object]:
    """Modules that products define and devices never reported, from the view ``missing``, as the key of that name.

    Where no product's modules are known there is no such key.
    """
    if not number(database, "SELECT count(*) FROM products WHERE modules IS NOT NULL"):
        return {}
    return {"modules_missing": list(rows(database, "FROM missing"))}


def coverage_of(devices: DeviceCounts, sources: Sources) -> dict[str, object]:
    """What stands before rows in JSON: how whole the run is that they are of, and how much of it is carried or drawn.

    Of a run that asked its whole fleet there is nothing of the latter.
    """
    whole = {"schema_version": SCHEMA_VERSION, "complete": devices.unanswered == 0, "devices": asdict(devices)}
    carried = {"carried": sources.carried, "oldest": sources.oldest} if sources.carried else {}
    return whole | carried | ({"unsampled": sources.unsampled} if sources.unsampled else {})
