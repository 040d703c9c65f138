"""Query one shard: an audit session in local scratch, mirrored to the storage of its run."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from auditor import __about__
from auditor.audit.resume import reopen
from auditor.audit.runner import read_checked_credentials
from auditor.audit.session import AuditSession
from auditor.audit.setup import account_infos, target_rate
from auditor.cluster.attempt_log import COMPLETE, AttemptLog, DoneMarker, list_attempts, read_done
from auditor.cluster.attempts import ATTEMPTS, STATE, Base
from auditor.cluster.merge import decode_run, record_done, seal_if_done
from auditor.cluster.mirror import Mirror, persist
from auditor.cluster.plan import BASELINE_OBJECT, FLEET_OBJECT, Shard, ShardPlan, describe_differences, worker_settings
from auditor.cluster.records import (
    MAX_RECORD_BYTES,
    SHARD_RECORD_DECODER,
    SNAPSHOT_FILES,
    ShardRecord,
    decode_record,
    get_fleet,
    part_lines,
    split_failed,
)
from auditor.concurrency import StopToken, TimeLimit, background_tasks, run_in_thread
from auditor.config.settings import Settings
from auditor.engine.credentials import Credentials
from auditor.engine.progress import AuditResult, ProgressCallback
from auditor.errors import AuditorError, ExitReasonCode, ObjectStoreError, SettingsError
from auditor.fleet.snapshot import write_empty_snapshot
from auditor.fleet.table import count_devices_to_query, sha256_of
from auditor.log import log
from auditor.runs.folder import FLEET, RESULTS
from auditor.runs.locking import PreparedRun, create_run_folder
from auditor.runs.manifest import DeviceCounts, DiscoveryInfo, FleetInfo, Manifest, write_manifest
from auditor.runs.selection_info import Rate, RequestCounts
from auditor.selection.coordinator import WORK as SELECTION_WORK
from auditor.storage.append_only import AppendOnlyFile
from auditor.storage.files import private_folder
from auditor.storage.object_store import ObjectStore

T = TypeVar("T")


class ShardWorker:
    """Queries the devices of a shard that have no answer, and seals the run if it is the last shard.

    Args:
        storage: that of the run.
        plan: the run's plan.
        shard: the shard.
        settings: the worker's own settings: keys, endpoints, commands and proxies come from nowhere else.
        stop: a request to end early.
        on_progress: called with the progress.

    Attributes:
        was_done: whether the shard was done before this process queried a device: all were queried, or it was stopped.
        pending: devices of the shard that were not queried, once it is done.
        reason: why the last session ended before the shard was done, as a code; None: it did not, or an error says why.

    Raises:
        SettingsError: the settings, or this version, differ from those of the run.
    """

    def __init__(
        self,
        storage: ObjectStore,
        plan: ShardPlan,
        shard: Shard,
        settings: Settings,
        *,
        stop: StopToken,
        on_progress: ProgressCallback | None = None,
    ) -> None:
        if differences := describe_differences(plan, shard, settings, __about__.VERSION):
            raise SettingsError(
                f"shard {shard.label}: these settings are not those of the run: {'; '.join(differences)}"
            )
        self._storage, self._plan, self._shard = storage, plan, shard
        self._settings = worker_settings(settings, shard)
        self._stop, self._on_progress = stop, on_progress
        self.was_done, self.pending = False, 0
        self.reason: ExitReasonCode | None = None

    async def run(self) -> int:
        """Do the work, and return an exit code.

        0: the shard is done, and the run is sealed if all shards are; a sealed run that did not succeed is a warning.
        3: the account is refused or was stopped. 130: interrupted; start the shard again.

        Raises:
            SupersededError: another process has taken over the shard.
            InvalidObjectError: an object of the run is damaged; its name is in the text.
            ObjectStoreError: the storage was away for an hour.
        """
        credentials: list[Credentials] = []
        attempted = False
        while (marker := await self._persist(self._read_done)) is None:
            attempted = True
            credentials = credentials or await read_checked_credentials(self._settings, self._stop)
            with private_folder("shard") as scratch:
                code = await self._attempt(credentials, scratch)
            if code:
                return code
        self.was_done, self.pending = not attempted, decode_run(marker).devices.pending
        await self._persist(partial(record_done, self._storage, self._shard))
        sealed = await persist(partial(seal_if_done, self._storage, self._plan), self._stop, self._plan.checkpoint)
        if sealed is not None and sealed.exit_code:
            log.warning("run_unsuccessful", run=self._storage.address, result=sealed.describe_exit())
        return 0

    def _read_done(self) -> DoneMarker | None:
        folder = self._shard.folder
        return read_done(self._storage, folder, list_attempts(self._storage, folder))

    async def _persist(self, action: Callable[[], T]) -> T:
        return await persist(partial(run_in_thread, action), self._stop, self._plan.checkpoint)

    async def _attempt(self, credentials: list[Credentials], scratch: Path) -> int:
        """Make one attempt; return 0 if the shard may be done now, or the storage was away and is there again."""
        attempts = AttemptLog(self._storage, self._shard.folder)
        await self._persist(attempts.begin)
        prepared = await self._persist(partial(self._prepare, attempts.base, scratch / attempts.name))
        (scratch / "mirror").mkdir()
        mirror = Mirror(prepared.folder, attempts, scratch / "mirror", grows=self._shard.devices is None)
        inner = StopToken(self._stop.drain_seconds)
        session = AuditSession(
            self._settings,
            credentials,
            prepared,
            time_limit=TimeLimit(),
            on_progress=self._on_progress,
            stop=inner,
            seals=False,
        )
        result = await self._run_mirrored(session, mirror, inner)
        if mirror.superseded is not None:
            raise mirror.superseded
        if result.exit_code == 0:
            await self._persist(partial(mirror.finish, result.manifest))
            return 0
        await self._ship_rest(mirror)
        if mirror.paused and self._stop.reason is None:
            return 0
        self.reason = None if result.manifest.exit_reason is None else result.manifest.exit_reason.code
        log.warning("shard_not_done", shard=self._shard.label, reason=result.manifest.error)
        return result.exit_code

    async def _run_mirrored(self, session: AuditSession, mirror: Mirror, inner: StopToken) -> AuditResult:
        """Run a session while its folder is mirrored. ``inner`` is its own request to end, which passes on ours."""

        async def pass_on() -> None:
            await self._stop.wait()
            inner.request(self._stop.reason or "", interrupted=self._stop.interrupted)

        async with background_tasks(pass_on, partial(mirror.keep_shipping, self._plan.checkpoint, inner)):
            return await session.run()
        raise AuditorError("the session did not end")  # only a cancelled scope leaves the block without a result

    async def _ship_rest(self, mirror: Mirror) -> None:
        """Ship what a session wrote that did not query every device; after a signal, only if the storage is there."""
        try:
            await self._persist(mirror.checkpoint)
        except ObjectStoreError as error:
            if not self._stop.interrupted:
                raise
            log.warning("checkpoint_lost", reason=str(error))

    def _prepare(self, base: Base, directory: Path) -> PreparedRun:
        """Create the run folder of the shard in a directory of local scratch, with the answers that it has already."""
        manifests: list[Manifest] = []

        def fill(folder: Path) -> None:
            record = self._restore_snapshot(base, folder)
            if record is None:
                manifest = self._first_manifest(folder)
            else:
                manifest = replace(record.manifest, state="running", finished_at=None, exit_code=None, exit_reason=None)
            self._restore_lines(base, folder)
            pending = DeviceCounts(pending=manifest.fleet.devices)
            manifests.append(replace(manifest, devices=pending, requests=self._earlier_requests(base)))
            write_manifest(folder, manifests[0])

        now = time.time()
        folder, lock = create_run_folder(directory, self._plan.name, fill, now=now)
        if not base.parts and base.snapshot is None:
            return PreparedRun(folder, lock, manifests[0], folder / FLEET)
        lock.release()
        prepared = reopen(folder, self._settings, now)
        if prepared is None:
            raise ObjectStoreError(f"{folder}: was completed by another process")
        return prepared

    def _restore_snapshot(self, base: Base, folder: Path) -> ShardRecord | None:
        """Write the fleet and the products of the shard; return what the storage has about its run."""
        record, shard = None, self._shard
        if shard.baseline_sha256 is not None:
            (folder / SELECTION_WORK).mkdir(0o700)
            place = f"{shard.folder}/{BASELINE_OBJECT}"
            get_fleet(self._storage, place, folder / SELECTION_WORK / BASELINE_OBJECT, shard.baseline_sha256)
        if base.snapshot is not None:
            place = f"{self._shard.folder}/{ATTEMPTS}/{base.snapshot}"
            content = self._storage.get(f"{place}/{COMPLETE}", max_bytes=MAX_RECORD_BYTES)
            record = decode_record(content, SHARD_RECORD_DECODER, place)
            for name in set(SNAPSHOT_FILES).intersection(record.files):
                self._storage.get_file(f"{place}/{name}", folder / name)
        if not (folder / FLEET).exists():
            if shard.devices is None:
                write_empty_snapshot(folder / FLEET)
            else:
                place = f"{shard.folder}/{FLEET_OBJECT}"
                get_fleet(self._storage, place, folder / FLEET, shard.sha256, shard.bytes)
        return record

    def _first_manifest(self, folder: Path) -> Manifest:
        plan, listed = self._plan, self._shard.devices is None
        devices = count_devices_to_query(folder / FLEET, [self._shard.account]).get(self._shard.account, 0)
        return Manifest(
            auditor_version=__about__.VERSION,
            name=plan.name,
            state="running",
            started_at=plan.started_at,
            accounts=account_infos(self._settings),
            fleet=FleetInfo("platform" if listed else plan.fleet.source, devices, 0, sha256_of(folder / FLEET)),
            rate=Rate(target=target_rate(self._settings)),
            discovery=(DiscoveryInfo(self._shard.account),) if listed else (),
            modules=plan.modules,
            selection=plan.selection,
        )

    def _restore_lines(self, base: Base, folder: Path) -> None:
        """Append the answers of the parts that count; failed devices are queried again."""
        results = AppendOnlyFile(folder / RESULTS)
        try:
            for _, lines in part_lines(self._storage, self._shard.folder, base):
                results.append(split_failed(lines)[0])
        finally:
            results.close()

    def _earlier_requests(self, base: Base) -> RequestCounts:
        """Return the requests of earlier attempts, as far as they reported them."""
        if not base.parts:
            return RequestCounts()
        place = f"{self._shard.folder}/{ATTEMPTS}/{base.parts[-1].attempt}/{STATE}"
        try:
            record = decode_record(self._storage.get(place, max_bytes=MAX_RECORD_BYTES), SHARD_RECORD_DECODER, place)
        except ObjectStoreError:
            return RequestCounts()
        return record.manifest.requests
