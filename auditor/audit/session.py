"""One stretch of an audit: from a run folder that is ready to the same folder sealed. A resume is another stretch.

How a stretch of an audit ended, for its manifest and for whoever waits for its exit code.
"""

import contextlib
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, replace
from itertools import starmap
from pathlib import Path

import anyio
import structlog

from auditor.audit.device_source import Fleets
from auditor.config.settings import Account, Settings
from auditor.engine.account_session import AskedAccount, Keys, open_account, open_side_by_side
from auditor.engine.allocation import workers_of
from auditor.engine.device_reader import never_activated
from auditor.engine.monitor import Notices
from auditor.engine.progress import INTERRUPTED, Result, Watch
from auditor.engine.run_state import Standing
from auditor.engine.worker_pool import Stop, fan_out
from auditor.errors import AuditorError, FleetError, RunNotWritableError, StoppedError
from auditor.fleet.table import read_never_activated, read_snapshot
from auditor.planning.capacity import plan_for
from auditor.runs.folder import ANSWERED, FAILED, FLEET
from auditor.runs.journal import Journal, SyncedJournal, free_reserve, reserve
from auditor.runs.locking import Begun
from auditor.runs.manifest import FleetFacts, ListingFacts, Manifest, State, write_manifest
from auditor.runs.seal import Sealed, seal
from auditor.runs.verify import verify
from auditor.selection.coordinator import Chosen
from auditor.text.formatting import printable, utc

log = structlog.get_logger()


LOOK_SECONDS = 0.1
"""How often it is looked at what is due: the deadline, a sync, the manifest, the watcher."""


WATCH_SECONDS = 0.5
"""How often a watcher is told."""


MANIFEST_SECONDS = 1.0
"""How often ``run.json`` is written anew."""


SEALING, SEALING_EACH = 0.5, 60e-6
"""Seconds that sealing and proving take, about, and how many more for each device: kept free before a deadline."""


LAST_PART = 0.3
"""The part of the time until a deadline that may be kept free at most."""


AT_A_TIME = 100
"""Devices that need no question and are written before others get their turn."""


class Stretch:
    """Asks the devices of a run folder that is ready, and seals it.

    Args:
        settings: how to ask.
        keys: of each account, in the settings' order.
        begun: the run folder; it is released at the end.
        until: when to be done, in seconds since 1970.
        watch: told every half second where the audit stands.
        stop: a wish to end early.
        priority: whether to go before other audits that share an account's quota.
    """

    def __init__(
        self,
        settings: Settings,
        keys: list[Keys],
        begun: Begun,
        *,
        until: float | None,
        watch: Watch | None,
        stop: Stop,
        priority: bool = False,
    ) -> None:
        self._settings, self._keys, self._watch, self._stop = settings, keys, watch, stop
        self._priority, self._until = priority, until
        self._begun, self._folder = begun, begun.folder
        self._journal = Journal(self._folder / ANSWERED, self._folder / FAILED, asdict(begun.manifest.devices))
        self._synced = SyncedJournal(self._journal, settings.fsync_every)
        self._accounts: list[AskedAccount] = []
        self._standing = Standing(begun.folder, begun.manifest, self._journal, self._accounts)
        self._stop_at, self._drain_seconds = self._plan_the_end()
        self._chosen = Chosen(settings, begun, self._standing, self._journal, self._write_manifest, until=until)
        self._stopped: list[AuditorError] = []

    async def run(self) -> Result:
        """Asks, seals and proves; gives the folder back whatever happens.

        A run that cannot be written any more is a result as well: what was written is valid.
        """
        with self._begun.hold:
            try:
                self._fleets = Fleets(self._settings, self._begun, self._grown)
                await self._ask()
                return await self._finish()
            except RunNotWritableError as error:
                free_reserve(self._folder)
                return Result(self._folder, self._ended(self._standing.now(), self._why(error)), error.exit_code)
            except BaseException as error:
                # Cancelled or broken: what was answered is kept, and the manifest says that it is not all.
                free_reserve(self._folder)
                cancelled = isinstance(error, anyio.get_cancelled_exc_class())
                why = str(error) if isinstance(error, AuditorError) else f"{type(error).__name__}: {error}"
                state: State = "partial" if cancelled else "aborted"
                self._ended(self._standing.now(), "stopped at once" if cancelled else why, state)
                raise

    def _why(self, *more: AuditorError) -> str:
        """Why the run was stopped. Of what could not be written the first counts: the rest follows from it."""
        errors = dict.fromkeys((*self._stopped, *more))
        follow = [error for error in errors if isinstance(error, RunNotWritableError)][1:]
        return printable("; ".join(dict.fromkeys(str(error) for error in errors if error not in follow)))

    def _ended(self, manifest: Manifest, why: str, state: State = "aborted") -> Manifest:
        """The manifest of a run that ended unsealed, written if that can be."""
        manifest = replace(manifest, state=state, error=printable(why))
        with contextlib.suppress(RunNotWritableError):
            write_manifest(self._folder, manifest)
        return manifest

    async def _ask(self) -> None:
        """Asks all accounts side by side, each with its part of ``at_once``; one that stops leaves the others alone."""
        try:
            with self._journal:
                reserve(self._folder)
                async with AsyncExitStack() as stack:
                    parts = zip(self._settings.account, self._keys, workers_of(self._settings), strict=True)
                    self._accounts += await open_side_by_side(stack, starmap(self._open, parts))
                    await self._ask_accounts()
            await self._fleets.finish()
        except RunNotWritableError as error:
            self._stopped.append(error)

    def _open(self, account: Account, keys: Keys, workers: int) -> AbstractAsyncContextManager[AskedAccount]:
        known = self._begun.known.get(account.name)
        return open_account(self._settings, account, keys, workers, known, priority=self._priority)

    async def _ask_accounts(self) -> None:
        self._look_at_the_clock()
        self._tell_watcher()
        async with anyio.create_task_group() as all_of_it:
            all_of_it.start_soon(self._keep_up)
            for asked in self._accounts:
                all_of_it.start_soon(asked.keep_warm)
            async with anyio.create_task_group() as asking:
                for asked in self._accounts:
                    asking.start_soon(self._ask_account, asked)
            all_of_it.cancel_scope.cancel()

    async def _ask_account(self, asked: AskedAccount) -> None:
        try:
            devices = await self._fleets.devices_of(asked, stop=self._stop)
            every = self._fleets.asks_all(asked.name)
            chosen = devices and await self._chosen.of(asked, devices, every=every, stop=self._stop)
            if devices is not None and chosen is not None:
                await self._ask_devices(asked, devices, chosen)
            if (refused := self._fleets.refused.get(asked.name)) is not None:
                raise refused
            if not self._stop.interrupted and (never := await asked.never_reached_at_all()) is not None:
                raise never
        except StoppedError as error:
            self._stopped.append(error)
            asked.stopped = str(error)
            if len(self._accounts) > 1:
                # Said now, for the others may go on for hours. For people: a trace would add nothing.
                log.error("stopped", account=asked.name, reason=str(error))  # noqa: TRY400
            if isinstance(error, RunNotWritableError):
                self._stop.wish(str(error))
        asked.ended = True

    async def _ask_devices(self, asked: AskedAccount, devices: Path, chosen: Path) -> None:
        """Asks about those of an account's devices that were chosen, and beside them which modules products define."""
        self._standing.begin_asking()
        failure: StoppedError | None = None
        every = self._fleets.asks_all(asked.name)
        async with anyio.create_task_group() as beside:
            beside.start_soon(self._fleets.ask_modules, asked, self._stop)
            try:
                if not every:
                    await self._answer_never_activated(asked, devices)
                source, fetch = await self._chosen.asking(asked, read_snapshot(chosen, asked.name, ask_all=every))
                await fan_out(source, fetch, self._synced.write, at_once=asked.workers, stop=self._stop)
            except StoppedError as error:  # raised below, outside the group that would wrap it
                failure = error
                beside.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _answer_never_activated(self, asked: AskedAccount, devices: Path) -> None:
        """Writes what is known without a question: a device that was never activated has reported nothing."""
        for number, device in enumerate(read_never_activated(devices, asked.name)):
            if self._stop.reason is not None:
                return
            await self._synced.write(never_activated(device, time.time()))
            asked.unasked += 1
            if number % AT_A_TIME == 0:
                await anyio.lowlevel.checkpoint()

    async def _grown(self, fleet: FleetFacts, listings: tuple[ListingFacts, ...]) -> None:
        """The fleet has grown by what the platform listed: from now on the manifest says so."""
        self._standing.grow(fleet, listings)
        plan = await anyio.to_thread.run_sync(plan_for, self._settings, self._folder / FLEET, self._folder.parent)
        self._standing.manifest = replace(self._standing.manifest, planned=plan.planned)
        self._stop_at, self._drain_seconds = self._plan_the_end()
        await self._write_manifest()

    async def _write_manifest(self) -> None:
        # Taken down in the thread: one that waited for the disk might be older than the one before it.
        await self._synced.aside(lambda: write_manifest(self._folder, self._standing.now()))

    async def _keep_up(self) -> None:
        """Syncs answers to disk, writes the manifest, tells the watcher, each in its rhythm; and minds the deadline."""
        told = written = synced = time.monotonic()
        notices = Notices(self._accounts)
        while True:
            await anyio.sleep(LOOK_SECONDS)
            self._look_at_the_clock()
            notices.look()
            now = time.monotonic()
            try:
                if now - synced >= self._settings.fsync_every:
                    synced = now
                    await self._synced.sync()
                if now - written >= MANIFEST_SECONDS:
                    written = now
                    await self._write_manifest()
            except RunNotWritableError as error:
                self._stopped.append(error)
                self._stop.wish(str(error))
                return
            if self._watch is not None and now - told >= WATCH_SECONDS:
                told = now
                self._tell_watcher()

    def _look_at_the_clock(self) -> None:
        # The wall clock: a machine that slept has missed its deadline all the same.
        if self._stop_at is not None and time.time() >= self._stop_at:
            self._stop.wish("its time was up", interrupted=False, drain_seconds=self._drain_seconds)

    def _plan_the_end(self) -> tuple[float | None, float]:
        """When nothing new is asked any more, and for how long what is in flight may finish; the rest is to seal."""
        if self._until is None:
            return None, self._stop.drain_seconds
        sealing = SEALING + SEALING_EACH * self._standing.manifest.fleet.devices
        free = max(0.0, min(LAST_PART * (self._until - time.time()), self._stop.drain_seconds + sealing))
        return self._until - free, max(0.0, free - sealing)

    async def _finish(self) -> Result:
        """Seals the folder, proves it, and says how it ended."""
        self._tell_watcher(sealing=True)
        free_reserve(self._folder)
        self._begun.left_behind()
        if not any(isinstance(error, RunNotWritableError) for error in self._stopped):
            await self._chosen.settle(self._stop)
        asked = replace(self._standing.now(), finished_at=utc(time.time()))
        known = all(listing.state == "complete" for listing in asked.listings)
        if known and not asked.fleet.devices and not self._stopped and self._stop.reason is None:
            self._stopped.append(FleetError("no device is listed that is wanted; see fleet in the settings"))
        # Abandoned when a second signal cancels: the process ends then, and the files are only ever replaced whole.
        sealed = await anyio.to_thread.run_sync(seal, self._folder, asked.choice, abandon_on_cancel=True)
        manifest = sealed_manifest(asked, sealed, stopped=bool(self._stopped))
        why = self._why() if self._stopped else self._stop.reason or self._chosen.why
        manifest = replace(manifest, error=why or printable("; ".join(unlisted(manifest))) or None)
        write_manifest(self._folder, manifest)
        problems = await anyio.to_thread.run_sync(verify, self._folder, self._folder, abandon_on_cancel=True)
        if problems:
            manifest = replace(manifest, state="aborted", error=self._why(RunNotWritableError("; ".join(problems))))
        elif not self._stopped:
            manifest = proven(manifest)
        write_manifest(self._folder, manifest)
        if not manifest.to_ask:
            self._chosen.finish()
        code = (
            self._stopped[0].exit_code
            if self._stopped
            else exit_code(manifest, self._settings, whole=not problems, interrupted=self._stop.interrupted)
        )
        return Result(self._folder, manifest, code)

    def _tell_watcher(self, *, sealing: bool = False) -> None:
        if self._watch is None:
            return
        try:
            self._watch(replace(self._standing.progress(self._fleets.progress), sealing=sealing))
        except Exception as error:  # noqa: BLE001  whatever it is, an audit of hours does not end for it
            log.warning("the watcher failed and is not told again", error=repr(error))
            self._watch = None


def sealed_manifest(asked: Manifest, sealed: Sealed, *, stopped: bool) -> Manifest:
    """The manifest of a run that was sealed and is not proven yet.

    Args:
        asked: as the audit ended.
        sealed: what is in the files.
        stopped: whether it was stopped by an error.
    """
    choice = asked.choice
    if choice is not None:
        choice = replace(choice, recheck=sealed.recheck, unreached=sealed.unreached)
    return replace(
        asked,
        state="aborted" if stopped else "partial",
        devices=sealed.devices,
        never_activated=sealed.never_activated,
        failures=sealed.failures,
        files=sealed.files,
        choice=choice,
        carried=sealed.carried,
        unsampled=sealed.unsampled,
        oldest=sealed.oldest,
    )


def unlisted(manifest: Manifest) -> list[str]:
    """Why the fleet may not be whole, a sentence each."""
    return [doubt for listing in manifest.listings if listing.state != "complete" for doubt in listing.doubts()]


def proven(manifest: Manifest) -> Manifest:
    """The manifest of a run whose numbers follow from its files: complete, if every device has an answer.

    Of a sample all that was to be asked may have been; it is not the fleet, and never complete.
    """
    if unlisted(manifest) or manifest.to_ask:
        return manifest
    return replace(manifest, state="partial" if manifest.unsampled else "complete", error=None)


def exit_code(manifest: Manifest, settings: Settings, *, whole: bool, interrupted: bool) -> int:
    """0 done; 1 more failed or are pending than is allowed, the run is not whole, or not precise; 130 interrupted."""
    pending = any(listing.state == "pending" for listing in manifest.listings)
    if whole and interrupted and (manifest.devices.pending > manifest.unsampled or pending):
        return INTERRUPTED
    # A device that is known of and was not listed is one that did not answer; how many are not known is no number.
    missing = sum(listing.missing for listing in manifest.listings)
    countable = not pending and not any(listing.unlisted for listing in manifest.listings)
    if (choice := manifest.choice) is not None and choice.precision is not None:
        countable = countable and choice.reached is not None and choice.reached <= choice.precision
    allowed = settings.failures_allowed(manifest.fleet.devices - manifest.unsampled + missing)
    return 0 if whole and countable and manifest.to_ask + missing <= allowed else 1
