"""Starts shards with Dask: on processes of this machine, or on the workers of a scheduler that exists.

A task has three strings: the address of the run, the name of the shard, and the fingerprint of the plan. Its worker
takes keys, endpoints, commands and proxies from its own settings file, which the environment variable AUDITOR_SETTINGS
names. A task returns nothing: what it did is in the storage. One that did not finish its shard raises an exception with
its exit code, which needs no worker to be read: a result of a worker that is lost would be computed again, and a
process that was superseded must not be started again.
"""

import asyncio
import logging
import os
import secrets
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
import dask
import distributed
from distributed.security import Security

from auditor import __about__
from auditor.cluster.cut import read_plan
from auditor.cluster.driver import EndedShard, Engine, plan_fingerprint
from auditor.cluster.shard import ShardWorker
from auditor.cluster.storage import open_run
from auditor.concurrency import StopToken
from auditor.config.loader import load_settings
from auditor.errors import AuditorError, AuditStoppedError, ExitReasonCode, SettingsError, UsageError
from auditor.log import log
from auditor.storage.files import private_folder
from auditor.text.extras import describe_extra

SETTINGS_VARIABLE = "AUDITOR_SETTINGS"
"""Variable of a worker's environment with the path of its settings file."""

DRAIN_SECONDS = 8.0
"""Seconds that a worker which ends gives its shard to store its last answers."""

CONNECT_SECONDS = 30

CONNECTED = "running"
"""Status of a client of Dask that is connected to its scheduler."""

_CONFIGURATION = {
    "distributed.scheduler.http.routes": [],  # nothing but the ports with certificates
    "distributed.worker.http.routes": [],
    "distributed.admin.log-format": "%(levelname)s %(name)s: %(message)s",
}
"""Dask's configuration of processes on this machine."""


class ShardEndedError(Exception):
    """A shard is not done. It has codes, and no text: a scheduler shows exceptions to all who reach it."""

    def __init__(self, code: int, reason: ExitReasonCode | None = None) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


class _RunningShards:
    """The shards that the threads of this worker query, by the key of their task."""

    def __init__(self) -> None:
        self._stops: dict[str, tuple[asyncio.AbstractEventLoop, StopToken]] = {}
        self._lock = threading.Lock()

    async def run(self, key: str, run: str, shard: str, fingerprint: str) -> tuple[int, ExitReasonCode | None]:
        """Query a shard with the settings of this worker; return its exit code, and why its session ended early."""
        stop = StopToken()
        with self._lock:
            self._stops[key] = asyncio.get_running_loop(), stop
        try:
            return await _query_shard(run, shard, fingerprint, stop)
        except AuditorError as error:
            log.error("shard_failed", shard=shard, reason=str(error))
            return error.exit_code, None
        finally:
            with self._lock:
                del self._stops[key]

    @property
    def is_any(self) -> bool:
        """Whether a shard is running."""
        return bool(self._stops)

    def stop(self, key: str | None = None) -> None:
        """Request the end of a task, or of all."""
        with self._lock:
            for name, (loop, stop) in self._stops.items():
                if key in {None, name}:
                    loop.call_soon_threadsafe(stop.request, "its worker ends")


_RUNNING = _RunningShards()


class ShardStops(distributed.WorkerPlugin):  # type: ignore[misc]  # the class has no types
    """Ends the shards of a worker with the driver: when their tasks are cancelled, or the worker is closed.

    Args:
        prepare: called in the worker first; it configures the log.
        is_local: whether the driver has started the worker. Then signals to the group of processes are left to the
            driver.
    """

    name = f"auditor {__about__.VERSION}"
    idempotent = True  # a plugin in the place of another one would remove it, and that ends all shards of its worker

    def __init__(self, prepare: Callable[[], None], *, is_local: bool) -> None:
        self.prepare, self._is_local = prepare, is_local

    def setup(self, worker: object) -> None:  # noqa: ARG002  the interface has it
        """Configure the log, and ignore the signals that the driver handles."""
        self.prepare()
        if self._is_local:
            _quiet_dask()
        if self._is_local and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)

    def transition(self, key: str, start: str, finish: str, **_: object) -> None:
        """End the shard of a task that was cancelled while it is executed."""
        if start == "executing" and finish in {"cancelled", "released"}:
            _RUNNING.stop(key)

    async def teardown(self, worker: object) -> None:  # noqa: ARG002  likewise
        """End all shards, and wait until they have stored their last answers."""
        _RUNNING.stop()
        await drain()


async def drain() -> None:
    """Wait in a worker until its shards that were stopped have stored their last answers."""
    ends_at = time.monotonic() + DRAIN_SECONDS
    while _RUNNING.is_any and time.monotonic() < ends_at:  # noqa: ASYNC110  tasks run in threads
        await asyncio.sleep(0.05)


def run_shard(run: str, shard: str, fingerprint: str) -> None:
    """Query a shard: this is the task.

    Raises:
        ShardEndedError: it is not done.
    """
    key = str(distributed.get_worker().get_current_task())
    work = partial(_RUNNING.run, key, run, shard, fingerprint)
    code, reason = anyio.run(work, backend_options={"use_uvloop": True})
    if code:
        raise ShardEndedError(code, reason)


async def _query_shard(run: str, shard: str, fingerprint: str, stop: StopToken) -> tuple[int, ExitReasonCode | None]:
    if not (path := os.environ.get(SETTINGS_VARIABLE)):
        raise SettingsError(f"{SETTINGS_VARIABLE}: is not set; name the settings file in the worker's environment")
    settings = load_settings(Path(path))
    storage = open_run(run)
    if plan_fingerprint(storage) != fingerprint:
        raise UsageError(f"{run}: is another run here than at the driver; mount the same directory at both")
    plan = read_plan(storage)
    found = [each for each in plan.shards if each.name == shard]
    if not found:
        raise UsageError(f"{run}: has no shard {shard!r}")
    worker = ShardWorker(storage, plan, found[0], settings, stop=stop)
    code = await worker.run()
    return code, worker.reason


class DaskEngine(Engine):
    """Submits a task for each shard, and waits for it. Results are not gathered: there are none."""

    def __init__(self, client: distributed.Client, scheduler: str) -> None:
        self._client, self._scheduler = client, scheduler
        self._names: dict[str, str] = {}
        self._futures: set[distributed.Future] = set()
        self._ended = distributed.as_completed(loop=client.loop)
        self._has_started = asyncio.Event()

    def start(self, run: str, shard: str, fingerprint: str) -> None:
        """See ``Engine``."""
        self._require_scheduler()
        key = f"auditor-{shard}-{secrets.token_hex(8)}"
        self._names[key] = shard
        future = self._client.submit(run_shard, run, shard, fingerprint, key=key, pure=False, retries=0)
        self._futures.add(future)
        self._ended.add(future)
        self._has_started.set()

    async def cancel(self) -> None:
        """Cancel the tasks that have not ended, and wait until their workers have stored the last answers."""
        if self._futures and self._client.status == CONNECTED:
            with suppress(OSError):  # the scheduler ends at this moment, and its workers with it
                await self._client.cancel(list(self._futures))
                await self._client.run(drain, on_error="ignore")

    async def next_ended(self) -> EndedShard:
        """See ``Engine``."""
        while not self._futures:  # shards that are started again wait for their pause
            self._has_started.clear()
            await self._has_started.wait()
        future = await anext(self._ended)
        self._futures.discard(future)
        name = self._names.pop(future.key)
        if future.status == "finished":
            return EndedShard(name, 0)
        self._require_scheduler()
        error = await future.exception() if future.status == "error" else None
        if isinstance(error, ShardEndedError):
            return EndedShard(name, error.code, reason=error.reason)
        is_killed = error is None or isinstance(error, distributed.KilledWorker)
        return EndedShard(name, None, None if is_killed else type(error).__name__)

    def _require_scheduler(self) -> None:
        """Raise AuditStoppedError if the scheduler is gone: one in its place has neither tasks nor plugin."""
        if self._client.status != CONNECTED:
            raise _lost_scheduler(self._scheduler)


@asynccontextmanager
async def open_dask(target: int | str, settings_file: Path, prepare: Callable[[], None]) -> AsyncIterator[DaskEngine]:
    """Open an engine; at the end, its tasks are cancelled, and workers that it started are ended.

    Args:
        target: number of processes to start on this machine, or the address of a scheduler.
        settings_file: settings of processes on this machine.
        prepare: called in each worker first.

    Raises:
        AuditStoppedError: the scheduler cannot be reached.
    """
    _quiet_dask()
    scheduler = "dask" if isinstance(target, int) else target
    async with AsyncExitStack() as stack:
        if isinstance(target, int):
            stack.enter_context(dask.config.set(_CONFIGURATION))
            scratch = stack.enter_context(private_folder("dask"))
            cluster = await stack.enter_async_context(_local_cluster(target, settings_file, scratch))
            client = await stack.enter_async_context(
                distributed.Client(cluster, asynchronous=True, set_as_default=False)
            )
        else:
            client = await stack.enter_async_context(_connect(target))
        await _prepare_workers(client, scheduler, ShardStops(prepare, is_local=isinstance(target, int)))
        engine = DaskEngine(client, scheduler)
        yield engine
        await engine.cancel()


async def _prepare_workers(client: distributed.Client, scheduler: str, plugin: ShardStops) -> None:
    """Prepare all workers, and register the plugin, which prepares those that come later.

    Each driver does it: a scheduler registers a plugin once, and reports to later drivers nothing of its workers.

    Raises:
        UsageError: a worker has no auditor that can be imported, or cannot be prepared.
        AuditStoppedError: the scheduler is gone.
    """

    def import_there() -> None:  # a function inside another one needs no auditor to be read
        import auditor.cluster.shard  # noqa: F401

    advice = f"install this version there: {describe_extra('dask')}"
    if not await _call_workers(client, scheduler, import_there, "cannot import auditor", advice):
        log.warning("scheduler_without_workers", scheduler=scheduler)
    await _call_workers(client, scheduler, plugin.prepare, "cannot be prepared", "its log says why")
    try:
        await client.register_plugin(plugin)
    except Exception as error:  # noqa: BLE001  a worker can raise any class
        if client.status != CONNECTED:
            raise _lost_scheduler(scheduler) from None
        if not isinstance(error, distributed.comm.CommClosedError):  # see below
            reason = f"{type(error).__name__}; its log says why"
            raise UsageError(f"--on {scheduler}: a worker cannot be prepared: {reason}") from None


async def _call_workers(
    client: distributed.Client, scheduler: str, function: Callable[[], None], fault: str, advice: str
) -> int:
    """Call a function in each worker, and return how many there are.

    A connection that is closed is that of a worker which ends at this moment, and no fault.

    Raises:
        UsageError: the function raised an exception in a worker; ``fault`` and ``advice`` describe it.
        AuditStoppedError: the scheduler is gone.
    """
    try:
        answers = await client.run(function, on_error="return")
    except OSError:
        raise _lost_scheduler(scheduler) from None
    for worker, error in answers.items():
        if isinstance(error, Exception) and not isinstance(error, distributed.comm.CommClosedError):
            raise UsageError(f"--on {scheduler}: the worker {worker} {fault} ({type(error).__name__}); {advice}")
    return len(answers)


def _lost_scheduler(scheduler: str) -> AuditStoppedError:
    return AuditStoppedError(f"--on {scheduler}: the scheduler is gone; the same command continues the run")


def _quiet_dask() -> None:
    """Let Dask log its errors in the format of this process, and no exceptions: shards and driver say why they end."""
    logger = logging.getLogger("distributed")
    logger.setLevel(logging.ERROR)
    logger.handlers.clear()
    logger.propagate = True
    for name in ("distributed.client", "distributed.worker"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _local_cluster(processes: int, settings_file: Path, scratch: Path) -> distributed.LocalCluster:
    """Return processes that trust only each other: other users of this machine cannot run programs by their ports."""
    return distributed.LocalCluster(
        n_workers=processes,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        protocol="tls://",
        security=Security.temporary(),
        dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard": False},
        asynchronous=True,
        silence_logs=logging.CRITICAL,
        local_directory=str(scratch),
        env={SETTINGS_VARIABLE: str(settings_file.absolute())},
        memory_limit=0,
    )


@asynccontextmanager
async def _connect(address: str) -> AsyncIterator[distributed.Client]:
    """Connect to a scheduler; certificates come from Dask's own configuration."""
    is_encrypted = address.startswith("tls:")
    security = Security(require_encryption=True) if is_encrypted else Security()
    if is_encrypted and security.get_connection_args("client")["ssl_context"] is None:
        variables = ("CA_FILE", "CLIENT__CERT", "CLIENT__KEY")
        names = ", ".join(f"DASK_DISTRIBUTED__COMM__TLS__{each}" for each in variables)
        raise SettingsError(
            f"--on {address}: needs certificates; name their files in Dask's configuration, or in {names}"
        )
    try:
        client = await distributed.Client(
            address, security=security, asynchronous=True, set_as_default=False, timeout=CONNECT_SECONDS
        )
    except OSError as error:
        raise AuditStoppedError(f"--on {address}: the scheduler cannot be reached: {error}") from error
    async with client:
        yield client
