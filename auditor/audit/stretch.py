"""One stretch of an audit: from a run folder that is ready to the same folder sealed. A resume is another stretch."""

import contextlib
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import asdict, replace
from functools import partial
from itertools import starmap

import anyio
import structlog

from auditor.audit.account import AskedAccount, Keys, open_account, open_side_by_side
from auditor.audit.beginning import Begun, printable
from auditor.audit.disk import SyncedJournal, free_reserve, reserve
from auditor.audit.journal import Journal, utc
from auditor.audit.notices import Notices
from auditor.audit.progress import INTERRUPTED, Progress, Result, Watch
from auditor.audit.scheduler import Stop, fan_out
from auditor.audit.workers import workers_of
from auditor.config import Account, Settings
from auditor.errors import AuditorError, RunNotWritableError, StoppedError
from auditor.fleet.snapshot import read_snapshot
from auditor.inventory.folder import (
    ANSWERED,
    FAILED,
    DeviceCounts,
    Manifest,
    Rate,
    RequestCounts,
    State,
    write_manifest,
)
from auditor.inventory.seal import seal
from auditor.inventory.verify import verify

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
        self._priority = priority
        self._begun, self._folder, self._manifest = begun, begun.folder, begun.manifest
        self._began = time.monotonic()
        self._stop_at, self._drain_seconds = self._plan_the_end(until)
        self._journal = Journal(self._folder / ANSWERED, self._folder / FAILED, asdict(begun.manifest.devices))
        self._synced = SyncedJournal(self._journal, settings.fsync_every)
        self._accounts: list[AskedAccount] = []
        self._stopped: list[StoppedError] = []

    async def run(self) -> Result:
        """Asks, seals and proves; gives the folder back whatever happens.

        A run that cannot be written any more is a result as well: what was written is valid.
        """
        with self._begun.hold:
            try:
                await self._ask()
                return await self._finish()
            except RunNotWritableError as error:
                free_reserve(self._folder)
                return Result(self._folder, self._ended(self._now(), self._why(error)), error.exit_code)
            except BaseException as error:
                # Cancelled or broken: what was answered is kept, and the manifest says that it is not all.
                free_reserve(self._folder)
                cancelled = isinstance(error, anyio.get_cancelled_exc_class())
                why = str(error) if isinstance(error, AuditorError) else f"{type(error).__name__}: {error}"
                self._ended(self._now(), "stopped at once" if cancelled else why, "partial" if cancelled else "aborted")
                raise

    def _why(self, *more: StoppedError) -> str:
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
        devices = read_snapshot(self._begun.devices, asked.name)
        try:
            await fan_out(devices, asked.fetch, self._synced.write, at_once=asked.workers, stop=self._stop)
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
                    await self._synced.aside(partial(write_manifest, self._folder, self._now()))
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

    def _plan_the_end(self, until: float | None) -> tuple[float | None, float]:
        """When nothing new is asked any more, and for how long what is in flight may finish; the rest is to seal."""
        if until is None:
            return None, self._stop.drain_seconds
        sealing = SEALING + SEALING_EACH * self._manifest.fleet.devices
        free = max(0.0, min(LAST_PART * (until - time.time()), self._stop.drain_seconds + sealing))
        return until - free, max(0.0, free - sealing)

    async def _finish(self) -> Result:
        """Seals the folder, proves it, and says how it ended."""
        self._tell_watcher(sealing=True)
        asked = replace(self._now(), finished_at=utc(time.time()))
        free_reserve(self._folder)
        self._begun.left_behind()
        # Abandoned when a second signal cancels: the process ends then, and the files are only ever replaced whole.
        sealed = await anyio.to_thread.run_sync(seal, self._folder, abandon_on_cancel=True)
        manifest = replace(
            asked,
            state="aborted" if self._stopped else "partial",
            devices=sealed.devices,
            failures=sealed.failures,
            files=sealed.files,
            error=self._why() if self._stopped else self._stop.reason,
        )
        write_manifest(self._folder, manifest)
        problems = await anyio.to_thread.run_sync(verify, self._folder, self._folder, abandon_on_cancel=True)
        if problems:
            manifest = replace(manifest, state="aborted", error=self._why(RunNotWritableError("; ".join(problems))))
        elif not self._stopped and sealed.devices.unanswered == 0:
            manifest = replace(manifest, state="complete", error=None)
        write_manifest(self._folder, manifest)
        return Result(self._folder, manifest, self._exit_code(manifest, whole=not problems))

    def _tell_watcher(self, *, sealing: bool = False) -> None:
        if self._watch is None:
            return
        try:
            self._watch(replace(self._progress(), sealing=sealing))
        except Exception as error:  # noqa: BLE001  whatever it is, an audit of hours does not end for it
            log.warning("the watcher failed and is not told again", error=repr(error))
            self._watch = None

    def _exit_code(self, manifest: Manifest, *, whole: bool) -> int:
        if self._stopped:
            return StoppedError.exit_code
        if whole and self._stop.interrupted and manifest.devices.pending:
            return INTERRUPTED
        allowed = self._settings.failures_allowed(manifest.fleet.devices)
        return 0 if whole and manifest.devices.unanswered <= allowed else 1

    def _now(self) -> Manifest:
        """The manifest as the audit stands now."""
        requests, before = self._requests(), self._manifest
        elapsed = time.monotonic() - self._began
        if before.rate.achieved:
            elapsed += before.requests.sent / before.rate.achieved  # what earlier stretches took
        achieved = round(requests.sent / max(elapsed, 0.001), 3)
        return replace(before, devices=self._counts(), requests=requests, rate=self._rate(achieved))

    def _rate(self, achieved: float) -> Rate:
        before, tallies = self._manifest.rate, [asked.tally for asked in self._accounts]
        answered, seconds = sum(tally.answered for tally in tallies), sum(tally.seconds for tally in tallies)
        return Rate(
            target=before.target,
            achieved=achieved,
            allowed=self._allowed(),
            latency=round(seconds / answered, 6) if answered else before.latency,
            in_flight=round(seconds / max(time.monotonic() - self._began, 0.001), 3),
        )

    def _allowed(self) -> float | None:
        """Requests a second that all quotas bear together, as far as was learned; None where one account has none."""
        rates = [asked.pace.rate for asked in self._accounts]
        return None if None in rates or not rates else round(sum(rate for rate in rates if rate is not None), 3)

    def _counts(self) -> DeviceCounts:
        written = self._journal.counts
        return DeviceCounts(**written, pending=self._manifest.fleet.devices - sum(written.values()))

    def _requests(self) -> RequestCounts:
        tallies, before = [asked.tally for asked in self._accounts], self._manifest.requests
        return RequestCounts(
            sent=before.sent + sum(tally.sent for tally in tallies),
            retried=before.retried + sum(tally.retried for tally in tallies),
            throttled=before.throttled + sum(tally.throttled for tally in tallies),
        )

    def _progress(self) -> Progress:
        before = self._manifest
        return Progress(
            folder=self._folder,
            fleet=before.fleet.devices,
            devices=self._counts(),
            requests=self._requests(),
            in_flight=sum(asked.tally.in_flight for asked in self._accounts),
            per_second=before.rate.target,
            allowed=self._allowed(),
            others=max((asked.pace.others for asked in self._accounts), default=0),
            elapsed=time.monotonic() - self._began,
            trouble=next((said for asked in self._accounts if (said := asked.trouble) is not None), None),
            before=(before.requests.sent, before.fleet.devices - before.devices.pending),
            resumed=bool(before.resumed_at),
            accounts=tuple(asked.progress for asked in self._accounts),
        )
