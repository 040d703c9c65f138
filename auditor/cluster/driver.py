"""Drives all shards of a run by an engine that starts processes: cut or continue the run, start again, seal, and fetch.

The engine starts a shard and reports with which exit code it ended. What a shard has is read from the storage alone.
"""

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import anyio

from auditor import __about__
from auditor.cluster.cut import cut_fleet, read_fleet, read_plan
from auditor.cluster.merge import find_done_names, seal_if_done
from auditor.cluster.plan import Shard, ShardPlan, describe_differences
from auditor.cluster.progress import combine_progress, fetch_run, read_progress
from auditor.cluster.shard import ShardWorker
from auditor.cluster.stop import stop_shards
from auditor.cluster.storage import find_object, find_run_address, join_address, open_run, record_newest
from auditor.concurrency import StopToken, background_tasks, repeat, run_in_thread, unwrapping_task_group
from auditor.config.settings import ClusterSettings, Settings
from auditor.engine.progress import AuditResult, Progress, ProgressCallback
from auditor.errors import (
    AccountStoppedError,
    AuditInterruptedError,
    AuditorError,
    AuditStoppedError,
    ExitReasonCode,
    ObjectStoreError,
    SettingsError,
    SupersededError,
    UsageError,
)
from auditor.log import log
from auditor.runs.folder import CUT_PLAN
from auditor.runs.manifest import MANIFEST, read_manifest
from auditor.storage.files import private_folder
from auditor.storage.object_store import ObjectStore
from auditor.text.formatting import format_duration, parse_manifest_time

MAX_CONTINUED_SECONDS = 86_400.0
"""Age up to which a run that is not sealed is continued: the answers of an older one are those of another day."""

MAX_STARTS = 3
"""Starts of a shard by a driver. An engine that loses a process starts the shard elsewhere by itself, before that."""

FINAL_ERRORS: Mapping[int | None, tuple[type[AuditorError], str]] = {
    SupersededError.exit_code: (SupersededError, "another process has taken it over, and queries it now"),
    UsageError.exit_code: (SettingsError, "a worker refused the run or its settings; its log says why"),
}
"""Exit codes of a shard that is never started again, with what the driver raises for it."""

ACCOUNT_REASONS: frozenset[ExitReasonCode] = frozenset({"refused_account", "unreachable_account"})
"""Why a session ended, if that is due to its account. Other reasons, such as a full disk, are those of a worker."""

PROGRESS_SECONDS, MAX_PAUSE_SECONDS = 2.0, 10.0

_LOCAL = re.compile(r"dask(?::([1-9]\d{0,3}))?")


def parse_engine(text: str, cores: int) -> int | str:
    """Return the number of processes to start on this machine, or the address of a scheduler, of a text of ``--on``.

    Raises:
        UsageError: it is neither, or the address is one where others could run programs as this user.
    """
    if (match := _LOCAL.fullmatch(text)) is not None:
        return int(match[1] or cores)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or port is None or parts.scheme not in {"tls", "tcp"}:
        raise UsageError(f"--on {text[:80]!r}: give dask, dask:PROCESSES, tls://HOST:PORT, or tcp://127.0.0.1:PORT")
    if parts.scheme == "tcp" and not _is_loopback(host):
        raise UsageError(
            f"--on {text}: who reaches this port can run programs there; give tls://, or an address of this machine"
        )
    return text


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class EndedShard:
    """How a start of a shard ended.

    Attributes:
        name: the shard.
        code: its exit code; None: it has none.
        error: class of the exception that ended it without an exit code; None: its processes were killed too often.
        reason: why its session ended before the shard was done, as a code; None: it did not get so far.
    """

    name: str
    code: int | None
    error: str | None = None
    reason: ExitReasonCode | None = None

    @property
    def clause(self) -> str:
        """How it ended, for people."""
        if self.code is not None:
            return f"it ended with exit code {self.code}"
        return "its processes were killed" if self.error is None else f"it raised {self.error}"


class Engine(Protocol):
    """Starts processes for shards, and starts one again elsewhere if it is lost."""

    def start(self, run: str, shard: str, fingerprint: str) -> None:
        """Start a shard of the run at an address; ``fingerprint`` is that of its plan."""

    async def next_ended(self) -> EndedShard:
        """Wait for a shard that was started, or will be, and return how it ended."""


def plan_fingerprint(storage: ObjectStore) -> str:
    """Return the digest of a run's plan: a worker compares it, for one address can mean two places."""
    return hashlib.sha256(find_object(storage, CUT_PLAN) or b"").hexdigest()


def continue_or_cut(settings: Settings, excluded_accounts: tuple[str, ...]) -> tuple[str, ShardPlan, bool]:
    """Return the address and the plan of the newest run of this audit that is not sealed, or of a new one.

    A run is continued if it is young, and has the fleet and the settings of a new one.

    Returns:
        The address, the plan, and whether the run was there before.

    Raises:
        SettingsError: shards cannot follow the settings.
        FleetError: a fleet file cannot be used.
        ObjectStoreError: the storage cannot be used now.
    """
    storage = (settings.cluster or ClusterSettings(storage="")).storage
    open_run(storage)
    with private_folder("cut") as work:
        snapshot = read_fleet(settings, work)
        if (found := _find_unsealed(storage, settings)) is not None:
            address, plan = found
            differences = _find_differences(plan, settings, excluded_accounts, snapshot.sha256)
            if not differences:
                return address, plan, True
            log.warning("unsealed_run_left", run=address, because=differences[0])
        open_new = lambda name: open_run(join_address(storage, name), create=True)  # noqa: E731
        name, plan = cut_fleet(settings, open_new, excluded_accounts, snapshot, work)
    record_newest(open_run(storage), plan.name, name)
    return join_address(storage, name), plan, False


def _find_unsealed(storage: str, settings: Settings) -> tuple[str, ShardPlan] | None:
    try:
        address = find_run_address(storage, settings.name)
        run = open_run(address)
        return None if find_object(run, MANIFEST) is not None else (address, read_plan(run))
    except UsageError:  # there is none, or one of another version
        return None


def _find_differences(
    plan: ShardPlan, settings: Settings, excluded_accounts: tuple[str, ...], fleet_sha256: str
) -> list[str]:
    """Return how a run differs from one that these settings would cut now."""
    started = parse_manifest_time(plan.started_at)
    if started is None or time.time() - started.timestamp() > MAX_CONTINUED_SECONDS:
        return [f"it was cut more than {format_duration(MAX_CONTINUED_SECONDS)} ago"]
    if [each.name for each in plan.accounts] != [each.name for each in settings.account]:
        return ["it has other accounts"]
    if plan.fleet.excluded_accounts != excluded_accounts:
        return ["it excludes other accounts"]
    if plan.fleet.sha256 != fleet_sha256:
        return ["its fleet differs"]
    return [each for shard in plan.shards for each in describe_differences(plan, shard, settings, __about__.VERSION)]


OpenEngine = Callable[[int], AbstractAsyncContextManager[Engine]]
"""Opens an engine for a number of shards."""


class RunDriver:
    """Lets an engine query the shards of a run until all are done, or cannot be.

    Args:
        address: of the run.
        plan: the plan of the run.
        stop: a request to end early.
        on_progress: called with the progress, if there is a callback.
        continued: whether the run was cut before.
    """

    def __init__(
        self,
        address: str,
        plan: ShardPlan,
        *,
        stop: StopToken,
        on_progress: ProgressCallback | None = None,
        continued: bool = False,
    ) -> None:
        self.storage = open_run(address)
        self._address, self._plan, self._stop = address, plan, stop
        self._on_progress, self._continued = on_progress, continued
        self._labels = {shard.name: shard.label for shard in plan.shards}
        self._starts = Counter[str]()
        self._failed: dict[str, EndedShard] = {}
        self._started = time.monotonic()
        self._first: Progress | None = None

    async def drive(self, open_engine: OpenEngine) -> None:
        """Start the shards that are not done, and return when the run is sealed.

        A shard whose account was refused or unreachable is stopped, so that the run is sealed as that of one machine
        is. One that another process has taken over, and ended meanwhile, is done.

        Raises:
            AuditInterruptedError: the end was requested.
            SupersededError: another process has taken over a shard.
            SettingsError: a worker refuses the run or its settings.
            AuditStoppedError: a shard ended too often for another reason, or the storage cannot be used.
        """
        done = await run_in_thread(find_done_names, self.storage)
        if waiting := [shard.name for shard in self._plan.shards if shard.name not in done]:
            await self._run_shards(open_engine, waiting)
            if self._failed and self._stop.reason is None:
                await self._drop_done()
        self._raise_final()
        errors = [self._account_error(shard) for shard in self._plan.shards if shard.name in self._failed]
        if errors:
            await run_in_thread(stop_shards, self.storage, self._plan)
        await seal_if_done(self.storage, self._plan, errors)

    async def _drop_done(self) -> None:
        """Keep of the failed shards those that are not done: all of them, if the storage cannot be read."""
        with suppress(ObjectStoreError):
            done = await run_in_thread(find_done_names, self.storage)
            self._failed = {name: each for name, each in self._failed.items() if name not in done}

    async def _run_shards(self, open_engine: OpenEngine, names: list[str]) -> None:
        fingerprint = await run_in_thread(plan_fingerprint, self.storage)
        await self._show_progress()
        show = partial(repeat, PROGRESS_SECONDS, self._show_progress)
        async with open_engine(len(names)) as engine:  # an end that is requested does not cut short how it is closed
            with anyio.CancelScope() as scope:

                async def cancel() -> None:
                    await self._stop.wait()
                    scope.cancel()

                async with background_tasks(cancel, show):
                    await self._wait_for_shards(engine, fingerprint, names)

    async def _wait_for_shards(self, engine: Engine, fingerprint: str, names: list[str]) -> None:
        start = partial(engine.start, self._address, fingerprint=fingerprint)
        for name in names:
            self._start(start, name)
        running = len(names)
        async with unwrapping_task_group() as restarts:
            while running:
                ended = await engine.next_ended()
                if self._is_to_restart(ended):
                    restarts.start_soon(self._restart, start, ended.name)
                else:
                    running -= 1

    async def _restart(self, start: Callable[[str], None], name: str) -> None:
        await anyio.sleep(min(self._plan.checkpoint, MAX_PAUSE_SECONDS))
        self._start(start, name)

    def _start(self, start: Callable[[str], None], name: str) -> None:
        self._starts[name] += 1
        start(name)

    def _is_to_restart(self, ended: EndedShard) -> bool:
        """Return whether a shard is started again, after a pause; note how it failed if not."""
        if ended.code == 0:
            return False
        label = self._labels[ended.name]
        if ended.code in FINAL_ERRORS or self._starts[ended.name] >= MAX_STARTS:
            log.error("shard_failed", shard=label, reason=ended.clause, exit_code=ended.code)
            self._failed[ended.name] = ended
            return False
        log.warning("shard_restarted", shard=label, reason=ended.clause, exit_code=ended.code)
        return True

    def _raise_final(self) -> None:
        """Raise the error that ends a run without a seal, if there is one."""
        if self._stop.reason is not None:
            raise AuditInterruptedError(f"{self._stop.reason}; the same command continues {self._address}")
        for name, ended in self._failed.items():
            if ended.code != AuditStoppedError.exit_code:
                raise self._final_error(name)

    def _final_error(self, name: str) -> AuditorError:
        """Return the error of a run that the end of a shard ends without a seal."""
        ended = self._failed[name]
        again = f"{ended.clause} at the last of {self._starts[name]} starts; the log of its workers says why"
        error, sentence = FINAL_ERRORS.get(
            ended.code, (AuditStoppedError, f"{again}; the same command continues the run")
        )
        return error(f"{self._address}: shard {self._labels[name]}: {sentence}")

    def _account_error(self, shard: Shard) -> AccountStoppedError:
        """Return the error of an account that ended a shard; raise AuditStoppedError if it was not the account.

        An account whose other lanes were done is reachable: the worker of this one has no way to it.
        """
        reason = self._failed[shard.name].reason
        lanes = [each.name for each in self._plan.shards if each.account == shard.account]
        is_reachable = any(name not in self._failed for name in lanes)
        if reason not in ACCOUNT_REASONS or (reason == "unreachable_account" and is_reachable):
            raise self._final_error(shard.name)
        sentence = f"its shard was stopped {self._starts[shard.name]} times ({reason}); the log of its workers says why"
        return AccountStoppedError(shard.account, sentence, reason_code=reason)

    async def _show_progress(self) -> None:
        """Report what the storage has of all shards; one that is away shows nothing."""
        if self._on_progress is None:
            return
        try:
            shards = await run_in_thread(read_progress, self.storage, self._plan)
        except ObjectStoreError as error:
            log.warning("progress_unreadable", reason=str(error))
            return
        progress = combine_progress(self._plan, shards, self._first, Path(self._address))
        progress = replace(
            progress, elapsed=time.monotonic() - self._started, resumed=self._continued and progress.before != (0, 0)
        )
        self._first = self._first or progress
        self._on_progress(progress)


async def run_on_engine(
    settings: Settings,
    open_engine: OpenEngine,
    directory: Path,
    *,
    excluded_accounts: tuple[str, ...] = (),
    stop: StopToken,
    on_progress: ProgressCallback | None = None,
) -> AuditResult:
    """Cut a run, or continue the newest one; let an engine query its shards; and fetch the sealed folder.

    Raises:
        AuditorError: see ``continue_or_cut``, ``RunDriver.drive`` and ``fetch_run``.
    """
    address, plan, continued = await run_in_thread(continue_or_cut, settings, excluded_accounts)
    driver = RunDriver(address, plan, stop=stop, on_progress=on_progress, continued=continued)
    await driver.drive(open_engine)
    folder = directory / address.rstrip("/").rpartition("/")[2]
    await run_in_thread(fetch_run, driver.storage, folder)
    manifest = read_manifest(folder)
    return AuditResult(folder, manifest, manifest.exit_code or 0)


async def query_open_shards(
    storage: ObjectStore,
    plan: ShardPlan,
    settings: Settings,
    *,
    stop: StopToken,
    on_progress: ProgressCallback | None = None,
) -> dict[str, int]:
    """Query the shards that are not done in this process, one after the other; return their exit codes by name.

    A shard whose process stores checkpoints is left to it, until it is done or silent.

    Raises:
        SettingsError: the settings differ from those of the run.
        ObjectStoreError: the storage was away for an hour.
    """
    shards = {shard.name: shard for shard in plan.shards}
    done = await run_in_thread(find_done_names, storage)
    workers = {
        name: ShardWorker(storage, plan, shard, settings, stop=stop, on_progress=on_progress)
        for name, shard in shards.items()
        if name not in done
    }
    codes: dict[str, int] = {}
    while workers and stop.reason is None:
        states = {each.shard.name: each.state for each in await run_in_thread(read_progress, storage, plan)}
        name = next((name for name in workers if states[name] != "running"), None)
        if name is None:
            log.warning("shards_queried_elsewhere", shards=len(workers))
            with anyio.move_on_after(plan.checkpoint):
                await stop.wait()
            continue
        worker = workers.pop(name)
        try:
            codes[name] = await worker.run()
        except SupersededError as error:
            log.warning("shard_left", reason=str(error))
            workers[name] = ShardWorker(storage, plan, shards[name], settings, stop=stop, on_progress=on_progress)
    await seal_if_done(storage, plan)
    return codes
