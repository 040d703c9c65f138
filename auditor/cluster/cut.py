"""Cut a run into shards: the fleet files are read once, and each shard gets its devices."""

import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace as replace_fields
from pathlib import Path

import msgspec
from msgspec.structs import replace

from auditor import __about__
from auditor.audit.setup import account_infos
from auditor.cluster.plan import (
    BASELINE_OBJECT,
    FLEET_OBJECT,
    Shard,
    ShardPlan,
    cut_into_shards,
    digest_settings,
    refuse_strategies,
)
from auditor.cluster.progress import fetch_run
from auditor.cluster.prune import find_successes
from auditor.cluster.storage import check_storage, find_object, join_address, open_run
from auditor.config.settings import ClusterSettings, Settings
from auditor.errors import InvalidObjectError, SettingsError, UsageError
from auditor.fleet.snapshot import Snapshot, apply_fleet_option, describe_fleet, fleet_files, write_snapshot
from auditor.fleet.table import FLEET_COLUMNS, count_devices_to_query, sha256_of, write_numbered
from auditor.log import log
from auditor.runs.folder import CUT_PLAN
from auditor.runs.manifest import read_manifest
from auditor.runs.selection_info import SelectionInfo
from auditor.selection.baseline import write_baseline
from auditor.storage.database import parquet, scratch_database, sql_literal, write_rows
from auditor.storage.files import private_folder
from auditor.storage.object_store import ObjectStore
from auditor.text.formatting import format_utc

_PLAN_DECODER = msgspec.json.Decoder(ShardPlan)

MAX_PLAN_BYTES = 64 << 20
"""Size up to which a plan is read: one of 10,000 shards has about 3 MB."""


def read_fleet(settings: Settings, work: Path) -> Snapshot:
    """Read the fleet files of a run into ``fleet.parquet`` of an own folder.

    Raises:
        SettingsError: a setting cannot be followed by shards.
        FleetError: a fleet file cannot be used.
    """
    refuse_strategies(settings)
    return write_snapshot(fleet_files(apply_fleet_option(settings, None)), work / FLEET_OBJECT)


def cut_run(
    settings: Settings, open_storage: Callable[[str], ObjectStore], excluded_accounts: tuple[str, ...] = ()
) -> tuple[str, ShardPlan]:
    """Cut a new run into shards; return its name in the storage of the settings, and its plan.

    Args:
        settings: those of the run; they have ``cluster``.
        open_storage: opens the storage of a run, by its name.
        excluded_accounts: names of configured accounts that the run does not cover.

    Raises:
        AuditorError: see ``read_fleet`` and ``cut_fleet``.
    """
    with private_folder("cut") as work:
        return cut_fleet(settings, open_storage, excluded_accounts, read_fleet(settings, work), work)


def cut_fleet(
    settings: Settings,
    open_storage: Callable[[str], ObjectStore],
    excluded_accounts: tuple[str, ...],
    snapshot: Snapshot,
    work: Path,
) -> tuple[str, ShardPlan]:
    """Cut a new run whose fleet ``read_fleet`` has written to a folder; see ``cut_run``.

    Raises:
        SettingsError: previous results do not fit the settings.
        ObjectStoreError: the storage cannot be used.
        UsageError: a run of this name was cut in this second.
    """
    cluster = settings.cluster or ClusterSettings(storage="")
    started = time.time()
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(started))}-{settings.name}"
    fleet = work / FLEET_OBJECT
    selection, baseline = _select_since(settings, cluster.storage, work)
    accounts = [account.name for account in settings.account]
    shards = cut_into_shards(settings, count_devices_to_query(fleet, accounts))
    plan = ShardPlan(
        auditor_version=__about__.VERSION,
        name=settings.name,
        started_at=format_utc(started),
        accounts=account_infos(settings),
        fleet=describe_fleet(settings, snapshot, excluded_accounts=excluded_accounts),
        max_failed=settings.max_failed,
        checkpoint=cluster.checkpoint,
        shards=shards,
        digests=digest_settings(settings),
        modules=settings.modules,
        selection=selection,
    )
    storage = open_storage(name)
    check_storage(storage)
    if find_object(storage, CUT_PLAN) is not None:
        raise UsageError(f"{storage.address}: was cut in this second; cut again")
    digests: dict[str, tuple[int, str]] = {}
    for shard, path in write_shard_fleets(fleet, shards, work):
        storage.put_file(f"{shard.folder}/{FLEET_OBJECT}", path)
        digests[shard.name] = path.stat().st_size, sha256_of(path)
        path.unlink()
    shards = tuple(_with_digest(shard, digests.get(shard.name)) for shard in shards)
    if baseline is not None:
        shards = tuple(_put_baseline(storage, shard, baseline, work) for shard in shards)
    plan = replace(plan, shards=shards)
    storage.put_file(FLEET_OBJECT, fleet)
    storage.put(CUT_PLAN, msgspec.json.format(msgspec.json.encode(plan)) + b"\n")
    return name, plan


def _with_digest(shard: Shard, digest: tuple[int, str] | None) -> Shard:
    """Return a shard with the size and the SHA-256 of its fleet file; one that is listed has none."""
    return shard if digest is None else replace(shard, bytes=digest[0], sha256=digest[1])


def _select_since(settings: Settings, address: str, work: Path) -> tuple[SelectionInfo | None, Path | None]:
    """Return how the devices of a run with ``since`` are selected, and the previous results of all its accounts.

    They are those of the newest successful run of this name in the storage that can be read; without one, all devices
    are queried.
    """
    if settings.since != "last":
        return None, None
    seed = secrets.randbits(32) if settings.seed is None else settings.seed
    selection = SelectionInfo("incremental", change_detection=settings.change_detection, seed=seed)
    for name in find_successes(address, settings.name):
        try:
            folder = fetch_run(open_run(join_address(address, name)), work / name)
        except InvalidObjectError as error:
            log.warning("run_skipped", reason=str(error))
            continue
        if read_manifest(folder).modules != settings.modules:
            raise SettingsError(f"modules: differs from that of {name}, whose results since carries; give another name")
        write_baseline(folder, work / BASELINE_OBJECT)
        shutil.rmtree(folder)
        return replace_fields(selection, baseline_run=name), work / BASELINE_OBJECT
    return selection, None


def _put_baseline(storage: ObjectStore, shard: Shard, baseline: Path, work: Path) -> Shard:
    """Store the previous results of a shard's account, in their order; return the shard with their digest."""
    path = work / f"{shard.name}-{BASELINE_OBJECT}"
    with scratch_database(failure=f"{work}: cannot be written") as database:
        rows = f"FROM {parquet(baseline)} WHERE account = {sql_literal(shard.account)}"
        write_rows(database, rows, path)
    storage.put_file(f"{shard.folder}/{BASELINE_OBJECT}", path)
    digest = sha256_of(path)
    path.unlink()
    return replace(shard, baseline_sha256=digest)


def write_shard_fleets(fleet: Path, shards: Sequence[Shard], work: Path) -> Iterator[tuple[Shard, Path]]:
    """Yield each shard with a fleet file, and a new file of its devices: every so many device, so lanes are alike."""
    columns = ", ".join(FLEET_COLUMNS)
    with scratch_database(failure=f"{work}: cannot be written") as database:
        counted = f"SELECT account, min(ordinal), max(ordinal) FROM {parquet(fleet)} GROUP BY account"
        ordinals = {account: (first, last) for account, first, last in database.execute(counted).fetchall()}
        for shard in shards:
            if shard.devices is None:
                continue
            first, last = ordinals.get(shard.account, (0, -1))  # an account's rows follow each other
            own = f"ordinal BETWEEN {first} AND {last} AND (ordinal - {first}) % {shard.lanes} = {shard.lane}"
            path = work / f"{shard.name}.parquet"
            write_numbered(database, f"SELECT {columns} FROM {parquet(fleet)} WHERE {own}", path)
            yield shard, path


def read_plan(storage: ObjectStore) -> ShardPlan:
    """Return the plan of a run.

    Raises:
        UsageError: the storage has none, or one of another version.
        ObjectStoreError: it cannot be read now.
    """
    content = find_object(storage, CUT_PLAN, max_bytes=MAX_PLAN_BYTES)
    if content is None:
        raise UsageError(
            f"{storage.address}: has no {CUT_PLAN}, so it is no run that was cut; give what auditor cut printed"
        )
    try:
        return _PLAN_DECODER.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{storage.address}/{CUT_PLAN}: is not a plan of this version of auditor: {error}") from error
