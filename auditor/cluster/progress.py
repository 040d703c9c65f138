"""What a storage shows of a run: its shards by the age of their last checkpoint, and its sealed files."""

import errno
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from auditor.cluster.attempts import ATTEMPTS, DONE, MARKERS, STATE, is_attempt_name
from auditor.cluster.merge import READERS, add_requests, sealed_folder
from auditor.cluster.plan import Shard, ShardPlan
from auditor.cluster.records import MAX_RECORD_BYTES, SHARD_RECORD_DECODER, decode_record
from auditor.cluster.storage import find_object
from auditor.engine.progress import AccountProgress, Progress
from auditor.errors import ExitReasonCode, InvalidObjectError, ObjectMissingError, RunFolderError
from auditor.runs.folder import FLEET, SEALED, sealed_file_names
from auditor.runs.manifest import MANIFEST, MAX_MANIFEST_BYTES, DeviceCounts, Manifest, file_info
from auditor.runs.selection_info import RequestCounts
from auditor.storage.files import create_file, private_folder, read_contained, translate_os_errors
from auditor.storage.object_store import ObjectStore
from auditor.text.formatting import parse_manifest_time
from auditor.text.shell import format_command

_MANIFEST_DECODER = msgspec.json.Decoder(Manifest)

SILENT_CHECKPOINTS = 3
"""Checkpoints that a shard may miss until it is shown as silent."""

ShardState = Literal["silent", "waiting", "running", "done"]
"""State of a shard, in the order in which shards are shown."""

STATE_ORDER: tuple[ShardState, ...] = ("silent", "waiting", "running", "done")


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """Progress of a shard.

    Attributes:
        shard: the shard.
        state: silent: it has missed checkpoints. waiting: no process has started it.
        age: seconds since its last checkpoint; None: it has none.
        attempts: number of processes that have started it.
        devices: its devices by state, at its last checkpoint; None: unknown.
        requests: requests until its last checkpoint.
        readable: whether its progress can be read; False: what was stored of it is damaged.
        reason: why its last session ended without a result, as a code; None: it did not.
    """

    shard: Shard
    state: ShardState
    age: float | None
    attempts: int
    devices: DeviceCounts | None
    requests: RequestCounts = field(default_factory=RequestCounts)
    readable: bool = True
    reason: ExitReasonCode | None = None


def read_progress(storage: ObjectStore, plan: ShardPlan, *, now: float | None = None) -> list[ShardProgress]:
    """Return the progress of all shards, silent ones first, and then by the age of their last checkpoint."""
    now = time.time() if now is None else now
    found: dict[str, dict[str, set[str]]] = {}
    for each in storage.list("shards"):
        _, name, *rest = each.key.split("/", 4)
        if len(rest) > 1 and rest[0] in {MARKERS, ATTEMPTS} and is_attempt_name(rest[1]):
            found.setdefault(name, {}).setdefault(rest[1], set()).update(rest[2:3])
    with ThreadPoolExecutor(READERS) as readers:
        read = partial(_shard_progress, storage, plan.checkpoint, now)
        progress = list(readers.map(lambda shard: read(shard, found.get(shard.name, {})), plan.shards))
    return sorted(progress, key=lambda each: (STATE_ORDER.index(each.state), -(each.age or 0.0)))


def _shard_progress(
    storage: ObjectStore, checkpoint: float, now: float, shard: Shard, attempts: dict[str, set[str]]
) -> ShardProgress:
    if not attempts:
        return ShardProgress(shard, "waiting", None, 0, None)
    done = [name for name, objects in attempts.items() if DONE in objects]
    name = min(done) if done else max(attempts)
    devices, requests, reason = None, RequestCounts(), None
    try:
        if STATE in attempts[name]:
            place = f"{shard.folder}/{ATTEMPTS}/{name}/{STATE}"
            record = decode_record(storage.get(place, max_bytes=MAX_RECORD_BYTES), SHARD_RECORD_DECODER, place)
            devices, requests = record.manifest.devices, record.manifest.requests
            reported_at, reason = record.reported_at, record.reason
        else:  # its first checkpoint is still to come
            reported_at = storage.get(f"{shard.folder}/{MARKERS}/{name}", max_bytes=100).decode("ascii", "replace")
    except InvalidObjectError:
        return ShardProgress(shard, "done" if done else "silent", None, len(attempts), None, readable=False)
    reported = parse_manifest_time(reported_at)
    age = None if reported is None else max(0.0, now - reported.timestamp())
    silent = age is None or age > SILENT_CHECKPOINTS * checkpoint
    state: ShardState = "done" if done else "silent" if silent else "running"
    return ShardProgress(shard, state, age, len(attempts), devices, requests, reason=None if done else reason)


def combine_progress(plan: ShardPlan, shards: Sequence[ShardProgress], first: Progress | None, run: Path) -> Progress:
    """Return the progress of a run from that of its shards; ``first`` is what was shown first, if there was any."""
    by_account: dict[str, list[ShardProgress]] = {account.name: [] for account in plan.accounts}
    for each in shards:
        by_account[each.shard.account].append(each)
    rates = [account.quota for account in plan.accounts]
    devices, requests = _add_devices(shards), add_requests(each.requests for each in shards)
    return Progress(
        folder=run,
        fleet=devices.fleet,
        devices=devices,
        requests=requests,
        in_flight=0,
        target_rate=None if None in rates else sum(rate for rate in rates if rate is not None),
        elapsed=0.0,
        before=(requests.sent, devices.fleet - devices.pending) if first is None else first.before,
        accounts=tuple(
            _account_progress(account.name, by_account[account.name], account.quota) for account in plan.accounts
        ),
    )


def _account_progress(name: str, shards: Sequence[ShardProgress], quota: float | None) -> AccountProgress:
    devices, requests = _add_devices(shards), add_requests(each.requests for each in shards)
    silent = [
        f"{each.shard.label} has stored nothing for {each.age or 0:.0f} s" for each in shards if each.state == "silent"
    ]
    return AccountProgress(
        name=name,
        sent=requests.sent,
        done=devices.fleet - devices.pending,
        failed=devices.failed,
        in_flight=0,
        rate=None,
        finished=all(each.state == "done" for each in shards),
        stopped=None,
        problem=silent[0] if silent else None,
        configured_rate=quota,
        throttled=requests.throttled,
    )


def _add_devices(shards: Iterable[ShardProgress]) -> DeviceCounts:
    """Return the devices of shards by state; those of a shard without a checkpoint are pending."""
    counts = [each.devices or DeviceCounts(pending=each.shard.devices or 0) for each in shards]
    names = ("ok", "empty", "not_found", "failed", "pending")
    return DeviceCounts(**{name: sum(getattr(each, name) for each in counts) for name in names})


def read_sealed(storage: ObjectStore) -> tuple[Manifest, bytes] | None:
    """Return the manifest of a sealed run, and its bytes; None: it is not sealed."""
    content = find_object(storage, MANIFEST, max_bytes=MAX_MANIFEST_BYTES)
    if content is None:
        return None
    try:
        return _MANIFEST_DECODER.decode(content), content
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidObjectError(f"{storage.address}/{MANIFEST}: is not a manifest: {error}") from error


def fetch_run(storage: ObjectStore, folder: Path) -> Path:
    """Write the sealed files of a run to a new folder, and return it; if it is there and equal, change nothing.

    The files are written to a folder beside it, which is renamed when all are there and have the digests of the
    manifest.

    Raises:
        RunFolderError: the run is not sealed, or the folder exists and is not this run.
        InvalidObjectError: a sealed file is missing, or is not the one of the manifest.
        ObjectStoreError: the storage cannot be used.
    """
    if (sealed := read_sealed(storage)) is None:
        status = format_command("auditor status", storage.address)
        raise RunFolderError(f"{storage.address}: is not sealed; see {status}")
    manifest, content = sealed
    if os.path.lexists(folder):
        _require_equal(folder, manifest, content)
        return folder
    with translate_os_errors(f"{folder}: cannot be created", RunFolderError):
        folder.parent.mkdir(0o700, parents=True, exist_ok=True)
        with private_folder("fetch", folder.parent) as work:
            _fetch_files(storage, manifest, content, work / "run")
            try:
                (work / "run").rename(folder)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                _require_equal(folder, manifest, content)  # another process has fetched it meanwhile
    return folder


def _fetch_files(storage: ObjectStore, manifest: Manifest, content: bytes, folder: Path) -> None:
    """Write the sealed files to a new folder; raise InvalidObjectError for all that are not those of the manifest."""
    folder.mkdir(0o700)
    place, problems = sealed_folder(content), []
    listed = {info.name for info in manifest.files}
    allowed = sealed_file_names(folder, listed)
    problems += [f"{name}: is not in its manifest" for name in (FLEET, *SEALED) if name not in listed]
    for info in manifest.files:
        if info.name not in allowed:
            problems.append(f"{info.name}: is no file of a run")
        elif not info.bytes:
            create_file(folder / info.name)  # an object store may refuse empty objects
        else:
            try:
                storage.get_file(f"{place}/{info.name}", folder / info.name, max_bytes=info.bytes)
            except ObjectMissingError:
                problems.append(f"{info.name}: is missing")
                continue
            except InvalidObjectError:
                problems.append(f"{info.name}: has more than {info.bytes:,} bytes")
                continue
            if file_info(folder / info.name) != info:
                problems.append(f"{info.name}: is not the file that was sealed (its digest differs)")
    if problems:
        raise InvalidObjectError(f"{storage.address}/{place}: is damaged: {'; '.join(problems)}")
    create_file(folder / MANIFEST, content)


def _require_equal(folder: Path, manifest: Manifest, content: bytes) -> None:
    """Raise RunFolderError unless a folder has the manifest and the sealed files of a run."""
    with translate_os_errors(f"{folder}: exists, and is not this run", RunFolderError):
        equal = read_contained(folder, MANIFEST, max_bytes=MAX_MANIFEST_BYTES) == content
        equal = equal and all(file_info(folder / Path(info.name).name) == info for info in manifest.files)
    if not equal:
        raise RunFolderError(f"{folder}: exists, and is not this run; rename it, or fetch into another directory")
