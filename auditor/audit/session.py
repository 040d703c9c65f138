"""One session of an audit: from a prepared run folder to the sealed one. A resumed run has several sessions."""

import contextlib
import math
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from auditor.audit.deadline import Deadline
from auditor.audit.device_source import DeviceSource
from auditor.audit.finalize import conclude_unsealed, correct_times, describe_errors, seal_and_verify
from auditor.audit.silence import find_known_devices
from auditor.bulk.detail_reader import DETAILS_FOLDER, DetailReader
from auditor.concurrency import (
    RunningClock,
    StopToken,
    TimeLimit,
    background_tasks,
    repeat,
    run_in_abandonable_thread,
    run_in_thread,
    unwrapping_task_group,
)
from auditor.config.settings import Settings
from auditor.engine.account_session import AccountSession, open_accounts
from auditor.engine.allocation import CallBudget, concurrency_per_account
from auditor.engine.credentials import Credentials
from auditor.engine.device_reader import never_activated_result
from auditor.engine.monitor import HealthMonitor, watch_clock
from auditor.engine.progress import AuditResult, Progress, ProgressCallback, ProgressReporter
from auditor.engine.run_state import RunState
from auditor.engine.sent_requests import SENT_REQUESTS, SentRequests, count_device_calls, requests_before
from auditor.engine.worker_pool import discard, run_workers
from auditor.errors import AuditInterruptedError, AuditorError, AuditStoppedError, FleetError, RunNotWritableError
from auditor.fleet.table import read_never_activated, read_snapshot
from auditor.log import log
from auditor.models import Device, Outcome
from auditor.releases.collector import ReleaseCollector
from auditor.resilience.circuit_breaker import MAX_FAILING_SECONDS
from auditor.runs.folder import FAILURES, RESULTS
from auditor.runs.journal import DiskReserve, Journal
from auditor.runs.locking import PreparedRun, rename_corrected
from auditor.runs.manifest import Manifest, State, write_manifest
from auditor.runs.selection_info import ExitReason
from auditor.selection.coordinator import SelectionCoordinator
from auditor.selection.rejection import RejectedResults
from auditor.selection.strategies import SelectionResult
from auditor.text.formatting import escape_undecodable
from auditor.tracing import Attributes, span

CHECK_SECONDS = 0.1
"""Seconds between two checks of the deadline and of the accounts' health."""

PROGRESS_SECONDS = 0.5
"""Seconds between two progress reports."""

MANIFEST_SECONDS = 1.0
"""Seconds between two writes of ``run.json``."""

RESULTS_PER_TURN = 100
"""Number of results without a request that are written before other tasks get their turn."""


class AuditSession:
    """Queries the devices of a prepared run folder, and seals it; then the folder's lock is released.

    ``credentials`` are in the settings' order.
    ``priority`` takes precedence over other processes that share an account's quota.
    ``seals`` is False for a shard: its results are sealed later, together with those of the other shards.
    """

    def __init__(
        self,
        settings: Settings,
        credentials: list[Credentials],
        prepared: PreparedRun,
        *,
        time_limit: TimeLimit,
        on_progress: ProgressCallback | None,
        stop: StopToken,
        priority: bool = False,
        seals: bool = True,
    ) -> None:
        self._settings, self._credentials, self._priority = settings, credentials, priority
        self._seals = seals
        self._prepared, self._folder, self._stop = prepared, prepared.folder, stop
        counts = asdict(prepared.manifest.devices)
        self._journal = Journal(
            self._folder / RESULTS, self._folder / FAILURES, counts, fsync_interval=settings.fsync_interval
        )
        self._reserve = DiskReserve(self._folder)
        self._accounts: list[AccountSession] = []
        self._state = RunState(self._folder, prepared.manifest, self._journal, self._accounts)
        self._source = DeviceSource(settings, prepared, self._state)
        self._is_timed = time_limit.is_set
        self._deadline = Deadline(time_limit, stop, prepared.manifest.fleet.devices)
        self._reporter = ProgressReporter(on_progress)
        self._clock = RunningClock()
        self._sent_requests = SentRequests(self._folder, requests_before(self._folder, prepared.manifest))
        limited = prepared.manifest.fleet.limit is not None
        self._releases = ReleaseCollector(settings, self._folder, self._state, limited=limited)
        calls_before = count_device_calls(self._sent_requests.before)
        self._selection: SelectionCoordinator | None = None  # all devices are queried
        if (selection := prepared.manifest.selection) is not None:
            self._selection = SelectionCoordinator(
                settings,
                prepared,
                selection,
                self._accounts,
                calls_before=calls_before,
                time_limit=time_limit,
            )
        self._budget: CallBudget | None = None  # a selection has its own
        if self._selection is None and settings.max_calls is not None:
            self._budget = CallBudget(settings, self._accounts, calls_before)
        self._errors: list[AuditorError] = []

    async def run(self) -> AuditResult:
        """Query the devices, then seal and verify the run; release the run folder in every case.

        A run folder that cannot be written any more is a result too, since all outcomes written so far are valid.
        """
        names = {"auditor.run.name": self._prepared.manifest.name, "auditor.run.id": self._folder.name}
        with span("run", {**names, "auditor.run.resumed": self._prepared.resumed}) as running:
            result = await self._run()
            running.set(_describe_result(result.manifest))
            if result.exit_code and result.manifest.exit_reason is not None:
                running.fail(result.manifest.exit_reason.code)
            return result

    async def _run(self) -> AuditResult:
        with self._prepared.lock:
            try:
                await self._query_accounts()
                return await self._finalize()
            except RunNotWritableError as error:
                errors = describe_errors([*self._errors, error])
                return AuditResult(self._folder, self._abort(errors, error), error.exit_code)
            except anyio.get_cancelled_exc_class():
                self._abort("interrupted immediately", AuditInterruptedError(), state="partial")
                raise
            except BaseException as error:
                expected = isinstance(error, AuditorError)
                reason = str(error) if expected else f"{type(error).__name__}: {error}"
                self._abort(reason, error if isinstance(error, AuditorError) else AuditorError())
                raise

    def _abort(self, reason: str, error: AuditorError, state: State = "aborted") -> Manifest:
        """Return the manifest of a run that ends unsealed because of an error, after writing it if possible."""
        self._reserve.release()
        reason = escape_undecodable(reason)
        manifest = replace(
            self._state.manifest(),
            state=state,
            error=reason,
            exit_code=error.exit_code,
            exit_reason=ExitReason(error.reason_code, reason),
        )
        with contextlib.suppress(RunNotWritableError):
            write_manifest(self._folder, manifest)
        return manifest

    async def _query_accounts(self) -> None:
        """Query all accounts concurrently, each with its fraction of ``concurrency``."""
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(self._journal)
                stack.enter_context(self._sent_requests)
                self._reserve.allocate()
                known_devices = await self._find_known_devices()
                self._accounts += await open_accounts(
                    stack,
                    self._settings,
                    self._credentials,
                    concurrency_per_account(self._settings),
                    known_devices,
                    worked_before=self._prepared.successful_devices,
                    max_failing_seconds=math.inf if self._is_timed else MAX_FAILING_SECONDS,
                    priority=self._priority,
                    clock=self._clock,
                    sent_requests=self._sent_requests,
                )
                self._check_deadline()
                self._report_progress()
                await stack.enter_async_context(background_tasks(*self._tickers()))
                async with unwrapping_task_group() as group:
                    for session in self._accounts:
                        group.start_soon(self._query_account, session)
                if not any(isinstance(error, RunNotWritableError) for error in self._errors):
                    await self._releases.collect(self._accounts, self._stop)
            await self._source.finish()
        except RunNotWritableError as error:
            self._errors.append(error)

    async def _find_known_devices(self) -> dict[str, tuple[Device, ...]]:
        """Return devices that each account answered about before: one of this run, and if it is timed of another."""
        found: dict[str, tuple[Device, ...]] = {
            name: (device,) for name, device in self._prepared.successful_devices.items()
        }
        if self._is_timed:
            earlier = await run_in_abandonable_thread(find_known_devices, self._folder, self._prepared.manifest)
            found |= {name: (*found.get(name, ()), *devices) for name, devices in earlier.items()}
        return found

    def _tickers(self) -> Iterator[Callable[[], Coroutine[Any, Any, None]]]:
        """Yield what runs in the background while devices are queried."""
        yield partial(watch_clock, self._clock)
        yield partial(repeat, CHECK_SECONDS, self._check_deadline)
        yield partial(repeat, CHECK_SECONDS, HealthMonitor(self._accounts).check)
        yield partial(self._repeat_write, max(CHECK_SECONDS, self._settings.fsync_interval), self._journal.sync)
        yield partial(self._repeat_write, MANIFEST_SECONDS, self._state.persist)
        yield partial(repeat, PROGRESS_SECONDS, self._report_progress)
        for session in self._accounts:
            yield session.keep_warm

    async def _repeat_write(self, seconds: float, write: Callable[[], Awaitable[None]]) -> None:
        """Write at an interval; the audit ends if that fails."""
        try:
            await repeat(seconds, write)
        except RunNotWritableError as error:
            self._errors.append(error)
            self._stop.request(str(error))

    def _check_deadline(self) -> None:
        self._deadline.check(self._state.fleet_devices)

    def _report_progress(self, *, sealing: bool = False) -> None:
        def progress() -> Progress:
            pages = None if sealing else self._releases.pages
            found = self._state.progress(self._source.progress)
            return replace(found, sealing=sealing, release_pages=pages)

        self._reporter.report(progress)

    async def _query_account(self, session: AccountSession) -> None:
        """Query one account; if it is stopped, the other accounts continue."""
        with span("account", {"auditor.account.name": session.name}) as querying:
            error = await self._query_until_stopped(session)
            querying.set(_describe_account(session))
            if error is not None:
                querying.fail(error.reason_code)

    async def _query_until_stopped(self, session: AccountSession) -> AuditStoppedError | None:
        """Query one account; return the error that stopped it, if there was one."""
        try:
            devices = await self._source.open_account(session, stop=self._stop)
            if devices is not None:
                await self._query_devices(session, devices.path)
                if devices.retry_error is not None:
                    raise devices.retry_error
            if self._stop.reason is None:
                await session.require_reached()
            elif not self._stop.interrupted:
                session.require_working()
        except AuditStoppedError as error:
            self._errors.append(error)
            session.finish(error)
            if len(self._accounts) > 1:
                # Logged now, since the others may continue for hours. For people: a traceback would add nothing.
                log.error("account_stopped", account=session.name, reason=str(error))
            if isinstance(error, RunNotWritableError):
                self._stop.request(str(error))
            return error
        session.finish()
        return None

    async def _query_devices(self, session: AccountSession, devices: Path) -> None:
        """Query the devices of one account, and concurrently the modules that its products define."""
        include_never_activated = self._source.includes_never_activated(session.name)
        selected = devices
        if self._selection is not None:
            with span("selection", {"auditor.account.name": session.name}):
                result = await self._selection.select(
                    session, devices, include_never_activated=include_never_activated, stop=self._stop
                )
            if result is None:  # interrupted first
                return
            await self._record_selection(self._selection, result)
            selected = result.queue
        self._state.start_querying()
        async with unwrapping_task_group() as group:
            group.start_soon(self._source.fetch_modules, session, self._stop)
            if not include_never_activated:
                await self._write_never_activated(session, devices)
            queue = read_snapshot(selected, session.name, include_never_activated=include_never_activated)
            fetch: Callable[[Device], Awaitable[Outcome]] = session.fetch
            if self._budget is not None:
                queue = self._budget.limit(queue)
                session.limit_retries(self._budget.may_retry)
            elif self._selection is not None:
                queue, fetch = await self._selection.limit_queries(session, queue)
            fetch = session.slow_devices.watch(fetch)
            query = partial(
                run_workers,
                write=self._journal.append,
                concurrency=session.workers,
                stop=self._stop,
                paused=session.paused,
            )
            if self._settings.modules is None:
                await query(queue, fetch)
            else:
                await self._read_details(session, queue, fetch)
            if self._selection is not None and (rejected := await self._reject_results(session, self._selection)):
                await query(read_snapshot(rejected.devices, session.name), fetch)

    async def _read_details(
        self, session: AccountSession, queue: Iterator[Device], fetch: Callable[[Device], Awaitable[Outcome]]
    ) -> None:
        """Read devices in batches; ``fetch`` queries those that a batch does not answer."""
        reader = DetailReader(session, self._folder, fetch, self._journal.append, self._stop)
        await run_workers(
            reader.divide(queue),
            reader.read,
            discard,
            concurrency=session.workers,
            stop=self._stop,
            paused=session.paused,
        )

    async def _reject_results(
        self, session: AccountSession, coordinator: SelectionCoordinator
    ) -> RejectedResults | None:
        """Return the devices whose results of the platform's search index are rejected, if there are any."""
        selection = self._state.selection
        if selection is None or self._stop.reason is not None or not coordinator.may_reject(session, selection):
            return None
        await self._journal.sync()  # the recheck is evaluated from the file
        async with self._source.fleet_lock:  # it reads the fleet
            rejected = await coordinator.reject_results(session, selection)
        if rejected is not None:
            self._state.record_rejected(session.name, rejected.removed)
            await self._state.persist()
        return rejected

    async def _record_selection(self, coordinator: SelectionCoordinator, result: SelectionResult) -> None:
        """Record the selected devices of one account in the manifest, before they are queried."""
        if result.account is not None:
            selection = self._state.record_selection(result.account, result.carried, unsampled=result.unsampled)
            self._state.record_plan(coordinator.estimate_cost(selection))
            await self._state.persist()

    async def _write_never_activated(self, session: AccountSession, devices: Path) -> None:
        """Write the results of devices that were never activated, which need no request."""
        for number, device in enumerate(read_never_activated(devices, session.name)):
            if self._stop.reason is not None:
                return
            await self._journal.append(never_activated_result(device, session.platform_time()))
            session.count_unqueried()
            if number % RESULTS_PER_TURN == 0:
                await anyio.lowlevel.checkpoint()

    async def _finalize_selection(self) -> None:
        """Finalize the selection, if there is one and the run folder can be written."""
        selection = self._state.selection
        not_writable = any(isinstance(error, RunNotWritableError) for error in self._errors)
        if self._selection is None or selection is None or not_writable:
            return
        final = await self._selection.finalize(selection, self._stop)
        if final is not None:
            self._state.finalize_selection(*final)

    async def _finalize(self) -> AuditResult:
        """Finalize the selection, seal the folder, verify it, and conclude the exit code."""
        self._report_progress(sealing=True)
        self._reserve.release()
        self._prepared.remove_remaining()
        await self._finalize_selection()
        manifest = correct_times(
            self._state.manifest(),
            [session.client.clock.offset for session in self._accounts],
            now=time.time(),
            resumed=self._prepared.resumed,
        )
        discovered = all(discovery.state == "complete" for discovery in manifest.discovery)
        if discovered and not manifest.fleet.devices and not self._errors and self._stop.reason is None:
            self._errors.append(FleetError("no device matches the fleet settings"))
        limited = self._selection or self._budget
        reason = self._stop.reason or (None if limited is None else limited.reason)
        manifest = replace(manifest, max_failed=self._settings.max_failed)
        self._prepared.lock.refuse_replaced(self._folder)
        if not self._seals:
            manifest = conclude_unsealed(manifest, self._errors, reason, interrupted=self._stop.interrupted)
            write_manifest(self._folder, manifest)
            return AuditResult(self._folder, manifest, manifest.exit_code or 0)
        manifest = await seal_and_verify(
            self._folder, manifest, self._errors, reason, interrupted=self._stop.interrupted
        )
        self._prepared.lock.refuse_replaced(self._folder)
        if not manifest.remaining_devices:
            (self._folder / SENT_REQUESTS).unlink(missing_ok=True)
            shutil.rmtree(self._folder / DETAILS_FOLDER, ignore_errors=True)
            self._releases.cleanup()
            if self._selection is not None:
                self._selection.cleanup()
        folder = await run_in_thread(rename_corrected, self._folder, manifest)
        return AuditResult(folder, manifest, manifest.exit_code or 0)


def _describe_result(manifest: Manifest) -> Attributes:
    """Return the attributes of the span of a run that has ended."""
    counts = {f"auditor.devices.{state}": number for state, number in asdict(manifest.devices).items()}
    requests = {f"auditor.requests.{kind}": number for kind, number in asdict(manifest.requests).items()}
    reason = None if manifest.exit_reason is None else manifest.exit_reason.code
    return {
        "auditor.run.state": manifest.state,
        "auditor.run.exit_code": manifest.exit_code,
        "auditor.run.exit_reason": reason,
        "auditor.devices.fleet": manifest.fleet.devices,
        **counts,
        **requests,
    }


def _describe_account(session: AccountSession) -> Attributes:
    """Return the attributes of the span of an account that has been queried."""
    progress = session.progress
    return {
        "server.address": session.client.host,
        "auditor.devices.done": progress.done,
        "auditor.devices.failed": progress.failed,
        "auditor.devices.slow": session.slow_devices.count,
        "auditor.requests.sent": session.total_sent,
        "auditor.requests.throttled": progress.throttled,
    }
