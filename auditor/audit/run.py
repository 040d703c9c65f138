"""An audit from settings to a sealed run folder: joins the fleet, the accounts, the journal and the seal."""

import contextlib
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import structlog

from auditor.audit.account import AskedAccount, Keys, open_account, read_keys, workers_each
from auditor.audit.beginning import new_run, printable, with_fleet
from auditor.audit.folder import held
from auditor.audit.journal import Journal, utc
from auditor.audit.scheduler import Stop, fan_out
from auditor.config import Settings
from auditor.errors import RunNotWritableError, StoppedError, UsageError
from auditor.fleet.snapshot import read_snapshot
from auditor.inventory.folder import (
    ANSWERED,
    FAILED,
    FLEET,
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

FLUSH_SECONDS = 0.1
"""How long an answer may wait in memory."""

WATCH_SECONDS = 0.5
"""How often a watcher is told."""

INTERRUPTED = 130
"""Exit code of an audit that was asked to end before it was done."""

MANIFEST_SECONDS = 5.0
"""How often ``run.json`` is written anew."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an audit stands.

    ``per_second`` is what the quotas allow in all, None without one; ``trouble`` names an account that gave no usable
    answer yet, and says why.
    """

    folder: Path
    fleet: int
    devices: DeviceCounts
    requests: RequestCounts
    in_flight: int
    per_second: float | None
    elapsed: float
    trouble: str | None = None
    sealing: bool = False


Watch = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Result:
    """What an audit came to. The folder is valid whatever happened.

    Attributes:
        folder: the run folder.
        manifest: as it stands in ``run.json``.
        exit_code: 0 done; 1 more devices failed or pending than ``max_failed`` allows; 3 an account was stopped;
            130 interrupted.
    """

    folder: Path
    manifest: Manifest
    exit_code: int


async def run_audit(
    settings: Settings,
    *,
    fleet: str | None = None,
    directory: str | Path | None = None,
    limit: int | None = None,
    watch: Watch | None = None,
    stop: Stop | None = None,
) -> Result:
    """Asks about every device of the fleet and leaves a sealed run folder.

    Args:
        settings: see ``load_settings``.
        fleet: a fleet file instead of the one in the settings (one account only); ``-`` is standard input.
        directory: where to make the run folder, instead of the settings' ``directory``.
        limit: only the first so many devices.
        watch: told every half second where the audit stands.
        stop: a wish to end early; what is not asked by then stays pending.

    Raises:
        UsageError: ``limit`` is below 1.
        SettingsError: a key is not there.
        FleetError: the fleet cannot be used; no run folder is left.
        RunNotWritableError: the run folder cannot be written; what was written stays valid.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: give a number of devices from 1 up")
    settings = with_fleet(settings, fleet)
    keys = [read_keys(account) for account in settings.account]
    started = time.time()
    manifest, folder = await anyio.to_thread.run_sync(
        new_run, settings, Path(directory or settings.directory), limit, started, abandon_on_cancel=True
    )
    with held(folder):
        return await _Audit(settings, keys, folder, manifest=manifest, watch=watch, stop=stop or Stop()).run()


class _Audit:
    """One audit under way."""

    def __init__(
        self,
        settings: Settings,
        keys: list[Keys],
        folder: Path,
        *,
        manifest: Manifest,
        watch: Watch | None,
        stop: Stop,
    ) -> None:
        self._settings, self._keys, self._folder, self._watch, self._stop = settings, keys, folder, watch, stop
        self._manifest = manifest
        self._began = time.monotonic()
        self._accounts: list[AskedAccount] = []
        self._stopped: list[StoppedError] = []
        self._journal: Journal

    async def run(self) -> Result:
        try:
            try:
                with Journal(self._folder / ANSWERED, self._folder / FAILED) as self._journal:
                    await self._ask()
            except RunNotWritableError as error:
                self._stopped.append(error)
            return await self._finish()
        except BaseException as error:
            # Cancelled or broken: what was answered is kept, and the manifest says that it is not all.
            cancelled = isinstance(error, anyio.get_cancelled_exc_class())
            state: State = "partial" if cancelled else "aborted"
            with contextlib.suppress(RunNotWritableError):
                why = "stopped at once" if cancelled else f"{type(error).__name__}: {error}"
                write_manifest(self._folder, replace(self._now(), state=state, error=printable(why)))
            raise

    async def _ask(self) -> None:
        """Asks all accounts side by side, each with its part of ``at_once``; one that stops leaves the others alone."""
        workers = workers_each(self._settings)
        async with AsyncExitStack() as stack:
            for account, keys in zip(self._settings.account, self._keys, strict=True):
                opened = open_account(self._settings, account, keys, workers)
                self._accounts.append(await stack.enter_async_context(opened))
            async with anyio.create_task_group() as all_of_it:
                all_of_it.start_soon(self._keep_up)
                async with anyio.create_task_group() as asking:
                    for asked in self._accounts:
                        asking.start_soon(self._ask_account, asked, workers)
                all_of_it.cancel_scope.cancel()

    async def _ask_account(self, asked: AskedAccount, workers: int) -> None:
        devices = read_snapshot(self._folder / FLEET, asked.name)
        try:
            await fan_out(devices, asked.fetch, self._journal.write, at_once=workers, stop=self._stop)
            if self._stop.reason is None and asked.never_reached is not None:
                raise asked.never_reached
        except StoppedError as error:
            self._stopped.append(error)
            if len(self._accounts) > 1:
                # Said now, for the others may go on for hours. For people: a trace would add nothing.
                log.error("stopped", account=asked.name, reason=str(error))  # noqa: TRY400
            if isinstance(error, RunNotWritableError):
                self._stop.wish(str(error))

    async def _keep_up(self) -> None:
        """Hands answers to the operating system, tells the watcher, and writes the manifest, each in its rhythm."""
        told = written = time.monotonic()
        while True:
            await anyio.sleep(FLUSH_SECONDS)
            now = time.monotonic()
            try:
                self._journal.flush()
                if now - written >= MANIFEST_SECONDS:
                    written = now
                    # In a thread: it waits for the disk, and requests that are due must not.
                    await anyio.to_thread.run_sync(write_manifest, self._folder, self._now())
            except RunNotWritableError as error:
                self._stopped.append(error)
                self._stop.wish(str(error))
                return
            if self._watch is not None and now - told >= WATCH_SECONDS:
                told = now
                self._tell_watcher()

    async def _finish(self) -> Result:
        """Seals the folder, proves it, and says how it ended."""
        self._tell_watcher(sealing=True)
        asked = replace(self._now(), finished_at=utc(time.time()))
        # Abandoned when a second signal cancels: the process ends then, and the files are only ever replaced whole.
        sealed = await anyio.to_thread.run_sync(seal, self._folder, abandon_on_cancel=True)
        reasons = list(dict.fromkeys(str(error) for error in self._stopped))
        manifest = replace(
            asked,
            state="aborted" if self._stopped else "partial",
            devices=sealed.devices,
            failures=sealed.failures,
            files=sealed.files,
            error=printable("; ".join(reasons)) if reasons else self._stop.reason,
        )
        write_manifest(self._folder, manifest)
        problems = await anyio.to_thread.run_sync(verify, self._folder, self._folder, abandon_on_cancel=True)
        if problems:
            manifest = replace(manifest, state="aborted", error=printable("; ".join(problems)))
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
        if whole and self._stop.reason is not None and manifest.devices.pending:
            return INTERRUPTED
        allowed = self._settings.failures_allowed(manifest.fleet.devices)
        return 0 if whole and manifest.devices.unanswered <= allowed else 1

    def _now(self) -> Manifest:
        """The manifest as the audit stands now."""
        counts = self._counts()
        requests = self._requests()
        elapsed = max(time.monotonic() - self._began, 0.001)
        rate = Rate(self._manifest.rate.target, round(requests.sent / elapsed, 3))
        return replace(self._manifest, devices=counts, requests=requests, rate=rate)

    def _counts(self) -> DeviceCounts:
        written = self._journal.counts
        return DeviceCounts(**written, pending=self._manifest.fleet.devices - sum(written.values()))

    def _requests(self) -> RequestCounts:
        tallies = [asked.tally for asked in self._accounts]
        return RequestCounts(
            sent=sum(tally.sent for tally in tallies),
            retried=sum(tally.retried for tally in tallies),
            throttled=sum(tally.throttled for tally in tallies),
        )

    def _progress(self) -> Progress:
        return Progress(
            folder=self._folder,
            fleet=self._manifest.fleet.devices,
            devices=self._counts(),
            requests=self._requests(),
            in_flight=sum(asked.tally.in_flight for asked in self._accounts),
            per_second=self._manifest.rate.target,
            elapsed=time.monotonic() - self._began,
            trouble=next((str(each) for asked in self._accounts if (each := asked.never_reached) is not None), None),
        )
