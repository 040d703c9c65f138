"""Seal a run from its shards: their lines become one run folder, which the code of one machine seals and verifies.

Any process can do it, and two can at the same time: each puts its files under a name of its own, which follows from
their content, and ``run.json`` last. Everything is copied in parts, so memory does not grow with the run.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec

from auditor import __about__
from auditor.audit.finalize import seal_and_verify
from auditor.cluster.attempt_log import DoneMarker, read_done
from auditor.cluster.attempts import ATTEMPTS, read_listing
from auditor.cluster.plan import FLEET_OBJECT, Shard, ShardPlan
from auditor.cluster.records import (
    SHARD_RECORD_DECODER,
    SNAPSHOT_FILES,
    decode_record,
    get_fleet,
    part_lines,
    split_failed,
)
from auditor.cluster.storage import find_object
from auditor.concurrency import run_in_thread
from auditor.errors import AuditorError
from auditor.fleet.table import FLEET_COLUMNS, sha256_of, write_numbered
from auditor.log import log
from auditor.runs.folder import CARRIED, CONNECTIONS, FAILURES, FLEET, PRODUCTS, RESULTS, SELECTED
from auditor.runs.locking import PreparedRun, create_run_folder
from auditor.runs.manifest import MANIFEST, DeviceCounts, Manifest, write_manifest
from auditor.runs.products import ProductInfo, read_products
from auditor.runs.selection_info import AccountSelection, MismatchedAccount, Rate, RequestCounts, SelectionInfo
from auditor.storage.append_only import AppendOnlyFile
from auditor.storage.database import parquet, scratch_database, sql_literal, write_rows
from auditor.storage.files import private_folder, replace_file
from auditor.storage.object_store import ObjectStore
from auditor.text.formatting import parse_manifest_time

DONE_SHARDS, SEALED_FOLDER = "done", "sealed"
"""Folder with an object for each shard that is done, and folder of the sealed files."""

READERS = 16
"""Small objects that are read concurrently: on an object store, each takes some 10 ms."""

_DIGITS = 16


def record_done(storage: ObjectStore, shard: Shard) -> None:
    """Record that a shard is done, so that one short listing shows whether all are."""
    storage.put(f"{DONE_SHARDS}/{shard.name}", shard.name.encode())


def find_done_names(storage: ObjectStore) -> set[str]:
    """Return the names of the shards that are recorded as done."""
    return {each.key.removeprefix(f"{DONE_SHARDS}/") for each in storage.list(DONE_SHARDS)}


async def seal_if_done(storage: ObjectStore, plan: ShardPlan, errors: Sequence[AuditorError] = ()) -> Manifest | None:
    """Seal a run whose shards are all done; return its manifest, or None if some are not, or it is sealed already.

    ``errors`` stopped some of its accounts.
    """
    if not await run_in_thread(_needs_seal, storage, plan):
        return None
    markers = await run_in_thread(read_markers, storage, plan)
    if len(markers) < len(plan.shards):
        return None
    with private_folder("seal") as work:
        prepared = await run_in_thread(_assemble, storage, plan, markers, work)
        with prepared.lock:
            incomplete = any(decode_run(marker).devices.pending for marker in markers.values())
            reason = "stopped before every device was queried" if incomplete else None
            manifest = await seal_and_verify(prepared.folder, prepared.manifest, errors, reason, interrupted=False)
            await run_in_thread(_upload, storage, prepared.folder)
    log.info("run_sealed", run=storage.address, state=manifest.state)
    return manifest


def _needs_seal(storage: ObjectStore, plan: ShardPlan) -> bool:
    if find_object(storage, MANIFEST) is not None:
        return False
    done = find_done_names(storage)
    return all(shard.name in done for shard in plan.shards)


def read_markers(storage: ObjectStore, plan: ShardPlan) -> dict[str, DoneMarker]:
    """Return what counts of each shard that is done, by its name."""
    keys: dict[str, list[str]] = {}
    for each in storage.list("shards"):
        _, name, *rest = each.key.split("/", 2)
        keys.setdefault(name, []).extend(rest)
    with ThreadPoolExecutor(READERS) as readers:
        found = readers.map(lambda shard: _read_marker(storage, shard, keys.get(shard.name, [])), plan.shards)
        return {shard.name: marker for shard, marker in zip(plan.shards, found, strict=True) if marker is not None}


def decode_run(marker: DoneMarker) -> Manifest:
    """Return the manifest of a shard at its end."""
    return decode_record(bytes(marker.run), SHARD_RECORD_DECODER, marker.attempt).manifest


def _read_marker(storage: ObjectStore, shard: Shard, keys: Iterable[str]) -> DoneMarker | None:
    folder = f"{ATTEMPTS}/"
    attempts = read_listing(key.removeprefix(folder) for key in keys if key.startswith(folder))
    return read_done(storage, shard.folder, attempts)


def _assemble(storage: ObjectStore, plan: ShardPlan, markers: Mapping[str, DoneMarker], work: Path) -> PreparedRun:
    """Create the run folder of all shards, as one machine has it before it is sealed."""
    manifests: list[Manifest] = []

    def fill(folder: Path) -> None:
        files = _fetch_snapshots(storage, plan, markers, work)
        if any(shard.devices is None for shard in plan.shards):
            _write_fleet(storage, plan, files, work, folder / FLEET)
        else:
            get_fleet(storage, FLEET_OBJECT, folder / FLEET, plan.fleet.sha256)
        _write_lines(storage, plan, markers, folder)
        _write_products(plan, files, folder)
        _write_selection(files, folder)
        manifests.append(_combine(plan, [decode_run(markers[shard.name]) for shard in plan.shards], folder))
        write_manifest(folder, manifests[0])

    started = parse_manifest_time(plan.started_at)
    now = time.time() if started is None else started.timestamp()
    folder, lock = create_run_folder(work / "runs", plan.name, fill, now=now)
    return PreparedRun(folder, lock, manifests[0], folder / FLEET)


def _fetch_snapshots(
    storage: ObjectStore, plan: ShardPlan, markers: Mapping[str, DoneMarker], work: Path
) -> dict[str, Path]:
    """Fetch the snapshots of shards; return a folder for each that has one, by its name."""
    found = {}
    for shard in plan.shards:
        if (snapshot := markers[shard.name].base.snapshot) is not None:
            found[shard.name] = work / shard.name
            found[shard.name].mkdir()
            place = f"{shard.folder}/{ATTEMPTS}/{snapshot}"
            for each in storage.list(place):
                if (name := each.key.removeprefix(f"{place}/")) in SNAPSHOT_FILES:
                    storage.get_file(each.key, found[shard.name] / name)
    return found


def _write_fleet(storage: ObjectStore, plan: ShardPlan, files: Mapping[str, Path], work: Path, out: Path) -> None:
    """Write the fleet of all accounts in their order: from fleet files, and as shards discovered it."""
    get_fleet(storage, FLEET_OBJECT, work / "filed.parquet", plan.fleet.sha256)
    listed = [shard for shard in plan.shards if shard.devices is None and shard.name in files]
    discovered = {shard.account: files[shard.name] / FLEET for shard in listed}
    columns = ", ".join(FLEET_COLUMNS)
    with scratch_database(work / "fleet", failure=f"{out}: cannot be written") as database:
        parts = []
        for number, account in enumerate(plan.accounts):
            parts.append(work / "fleet" / f"{number}.parquet")
            source = parquet(discovered.get(account.name, work / "filed.parquet"))
            rows = f"SELECT {columns} FROM {source} WHERE account = {sql_literal(account.name)}"
            write_rows(database, rows, parts[-1])
        write_numbered(database, f"FROM {parquet(*parts)}", work / "all.parquet")
    (work / "all.parquet").replace(out)


def _write_lines(storage: ObjectStore, plan: ShardPlan, markers: Mapping[str, DoneMarker], folder: Path) -> None:
    """Write the answers of all shards, and the failures of the last attempts that have parts.

    A done marker may be that of ``auditor stop``, which has no part. Each attempt queries again what failed before it.
    """
    results, failures = AppendOnlyFile(folder / RESULTS), AppendOnlyFile(folder / FAILURES)
    try:
        for shard in plan.shards:
            base = markers[shard.name].base
            for attempt, lines in part_lines(storage, shard.folder, base):
                answered, failed = split_failed(lines)
                results.append(answered)
                if attempt == base.parts[-1].attempt:
                    failures.append(failed)
    finally:
        try:
            results.close()
        finally:
            failures.close()


def _write_products(plan: ShardPlan, files: Mapping[str, Path], folder: Path) -> None:
    """Write the products of all shards; lanes of an account share their products."""
    rows: dict[tuple[str, str], ProductInfo] = {}
    for shard in plan.shards:
        for row in read_products(files[shard.name] / PRODUCTS) if shard.name in files else ():
            before = rows.get(key := (row.account, row.product_key))
            devices = row.devices + (0 if before is None else before.devices)
            rows[key] = replace(row, devices=devices)
    if rows:
        replace_file(folder / PRODUCTS, b"".join(msgspec.json.encode(row) + b"\n" for row in rows.values()))


def _write_selection(files: Mapping[str, Path], folder: Path) -> None:
    """Write the selected devices, the carried results and the connection states of all shards."""
    for name in (SELECTED, CARRIED, CONNECTIONS):
        if parts := [each / name for each in files.values() if (each / name).is_file()]:
            with scratch_database(failure=f"{folder / name}: cannot be written") as database:
                write_rows(database, f"FROM {parquet(*parts)}", folder / name)


def _combine_selections(selections: Sequence[SelectionInfo]) -> SelectionInfo | None:
    """Return the selection of a run whose shards have these; lanes of an account are added."""
    accounts: dict[str, AccountSelection] = {}
    for each in (account for selection in selections for account in selection.accounts):
        before = accounts.get(each.account)
        accounts[each.account] = each if before is None else _add_selections(before, each)
    if not selections:
        return None
    return replace(
        selections[0],
        accounts=tuple(accounts.values()),
        budget_exhausted=any(each.budget_exhausted for each in selections),
        not_reached=sum(each.not_reached for each in selections),
    )


def _add_selections(one: AccountSelection, other: AccountSelection) -> AccountSelection:
    unchanged = None if one.unchanged is None or other.unchanged is None else one.unchanged + other.unchanged
    return replace(
        one,
        selected=dict(Counter(one.selected) + Counter(other.selected)),
        over_budget=one.over_budget + other.over_budget,
        carried=one.carried + other.carried,
        states_requested=one.states_requested + other.states_requested,
        states_unknown=one.states_unknown + other.states_unknown,
        requests=add_requests([one.requests, other.requests]),
        selected_at=min(filter(None, (one.selected_at, other.selected_at)), default=None),
        unchanged=unchanged,
    )


def add_requests(counts: Iterable[RequestCounts]) -> RequestCounts:
    """Return the sum of requests."""
    listed, names = list(counts), ("sent", "retried", "throttled")
    return RequestCounts(**{name: sum(getattr(each, name) for each in listed) for name in names})


def _combine(plan: ShardPlan, manifests: list[Manifest], folder: Path) -> Manifest:
    """Return the manifest of a run whose shards have these, before it is sealed."""
    discovery = tuple(each for manifest in manifests for each in manifest.discovery)
    filed = plan.fleet.devices
    devices = filed + sum(each.devices for each in discovery)
    duplicates = plan.fleet.duplicates + sum(each.duplicates for each in discovery)
    fleet = replace(plan.fleet, devices=devices, duplicates=duplicates, sha256=sha256_of(folder / FLEET))
    requests = [manifest.requests for manifest in manifests]
    mismatches: dict[str, int] = {}
    for each in (each for manifest in manifests for each in manifest.mismatched):
        mismatches[each.account] = mismatches.get(each.account, 0) + each.answers
    return Manifest(
        auditor_version=__about__.VERSION,
        name=plan.name,
        state="running",
        started_at=plan.started_at,
        accounts=plan.accounts,
        fleet=fleet,
        finished_at=max(manifest.finished_at or plan.started_at for manifest in manifests),
        devices=DeviceCounts(pending=devices),
        requests=add_requests(requests),
        rate=_combine_rates([manifest.rate for manifest in manifests], requests),
        discovery=discovery,
        max_failed=plan.max_failed,
        mismatched=tuple(MismatchedAccount(*each) for each in mismatches.items()),
        modules=plan.modules,
        selection=_combine_selections([each.selection for each in manifests if each.selection is not None]),
    )


def _combine_rates(rates: list[Rate], requests: list[RequestCounts]) -> Rate:
    """Return the rate of shards that run concurrently: all requests, in the time of the slowest."""
    targets = [rate.target for rate in rates]
    target = None if None in targets else sum(each for each in targets if each is not None)
    seconds = [count.sent / rate.achieved for rate, count in zip(rates, requests, strict=True) if rate.achieved]
    sent = sum(count.sent for count in requests)
    return Rate(target=target, achieved=round(sent / max(seconds), 3) if seconds else 0.0)


def _upload(storage: ObjectStore, folder: Path) -> None:
    """Store the files of a sealed run, and its manifest last."""
    content = (folder / MANIFEST).read_bytes()
    place = sealed_folder(content)
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(".") and path.stat().st_size:
            storage.put_file(f"{place}/{path.name}", path)
    storage.put(MANIFEST, content)


def sealed_folder(manifest: bytes) -> str:
    """Return the folder of the sealed files that belong to a ``run.json``."""
    return f"{SEALED_FOLDER}/{hashlib.sha256(manifest).hexdigest()[:_DIGITS]}"
