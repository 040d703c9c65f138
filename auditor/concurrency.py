"""Threads, cancellation, time limits and task groups: pieces of concurrency that several packages need."""

import asyncio
import math
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from types import FrameType
from typing import Any, ParamSpec, Self, TypeVar

import anyio
from anyio.abc import TaskGroup

from auditor.errors import AuditInterruptedError, AuditorError

P = ParamSpec("P")
T = TypeVar("T")

_ELAPSED_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Clock that cannot be set, and that counts a suspended machine: Linux has one of its own for that."""

elapsed_clock: Callable[[], float] = partial(time.clock_gettime, _ELAPSED_CLOCK)
"""Return the seconds since an arbitrary moment, those of a suspended machine included."""


class TimeLimit:
    """When an audit must end: after a length of time, at a time of day, or at the earlier of both.

    Setting the machine's clock does not change a length of time. A time of day is reached when the clock shows it; but
    a clock that is set back does not prolong the audit.
    """

    def __init__(
        self,
        seconds: float | None = None,
        *,
        until: float | None = None,
        wall_clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = elapsed_clock,
    ) -> None:
        """Start to count.

        Args:
            seconds: length of time; None: no limit.
            until: moment, in seconds since 1970; None: no limit.
            wall_clock: returns seconds since 1970.
            elapsed: see ``elapsed_clock``.
        """
        self._wall_clock, self._elapsed = wall_clock, elapsed
        self._until = math.inf if until is None else until
        seconds = math.inf if seconds is None else seconds
        self._ends_at = elapsed() + min(seconds, self._until - wall_clock())

    @property
    def is_set(self) -> bool:
        """Whether there is a limit."""
        return self._ends_at < math.inf

    def remaining(self) -> float:
        """Return the seconds that are left, negative after the end; infinity without a limit."""
        return min(self._ends_at - self._elapsed(), self._until - self._wall_clock())


MIN_STANDSTILL = 1.0
"""Seconds without a tick of a ``RunningClock`` after which the process is regarded as having stood still."""


class RunningClock:
    """Seconds in which this process ran: while it is stopped, or its machine suspended or paused, the clock stops.

    This needs something that calls ``tick`` at intervals far below ``MIN_STANDSTILL``. Without it, the clock counts all
    seconds.

    Attributes:
        standstills: how many times the process stood still, as far as a reading of the clock has noticed.
    """

    def __init__(self, elapsed: Callable[[], float] = elapsed_clock) -> None:
        self._elapsed = elapsed
        self._ticked_at: float | None = None
        self._read_at = elapsed()
        self._stood_still = self._unreported = 0.0
        self.standstills = 0

    def __call__(self) -> float:
        """Return the seconds since an arbitrary moment in which the process ran."""
        now = self._elapsed()
        if self._ticked_at is not None and now - self._ticked_at >= MIN_STANDSTILL:
            # The first reading notices it: after a standstill all timers are due, in any order.
            stopped_at = max(self._ticked_at, self._read_at)
            self.standstills += 1
            self._stood_still += now - stopped_at
            self._unreported += now - stopped_at
            self._ticked_at = now
        self._read_at = now
        return now - self._stood_still

    def tick(self) -> float:
        """Note that the process runs; return the seconds for which it stood still since the last tick, mostly 0."""
        self()
        self._ticked_at = self._elapsed()
        seconds, self._unreported = self._unreported, 0.0
        return seconds

    def has_stopped(self, standstills: int) -> bool:
        """Return whether the process has stood still since ``standstills`` had that value."""
        self()
        return self.standstills > standstills


class StopToken:
    """A request to end early: no new work is started, and requests in flight may finish within ``drain_seconds``.

    Attributes:
        reason: why, once the end is requested.
        interrupted: whether a person or program interrupted the audit, rather than a limit of the audit itself.
        drain_seconds: seconds that requests in flight have to finish.
    """

    def __init__(self, drain_seconds: float = 5.0) -> None:
        self.drain_seconds = drain_seconds
        self.reason: str | None = None
        self.interrupted = False
        self._requested = anyio.Event()

    def request(self, reason: str, *, interrupted: bool = True, drain_seconds: float | None = None) -> None:
        """Request the end; the first reason counts."""
        if self.reason is None:
            self.reason, self.interrupted = reason, interrupted
            self.drain_seconds = self.drain_seconds if drain_seconds is None else drain_seconds
            self._requested.set()

    async def wait(self) -> None:
        """Return once the end is requested."""
        await self._requested.wait()


async def run_in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function in a thread; a cancelled caller waits until it returns."""
    return await anyio.to_thread.run_sync(partial(function, *args, **kwargs))


async def run_in_abandonable_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a blocking function in a thread; a cancelled caller leaves the thread to itself and does not wait."""
    return await anyio.to_thread.run_sync(partial(function, *args, **kwargs), abandon_on_cancel=True)


def run_to_end(function: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run an asynchronous function in an event loop of its own; one that runs in this thread waits meanwhile.

    See ``run_event_loop`` for signals.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run_event_loop(function)
    with ThreadPoolExecutor(1) as thread:  # such as in a notebook
        return thread.submit(anyio.run, function).result()


def run_event_loop(function: Callable[[], Awaitable[T]], *, use_uvloop: bool = False) -> T:
    """Run an asynchronous function in a new event loop. A signal cancels it; the signal's handler is called afterwards.

    A handler that raises inside the loop's own code can leave a task that never ends, and the loop with it. A second
    signal calls the handler immediately.
    """

    async def main() -> list[T]:
        with anyio.CancelScope() as scope:
            signals.cancel_first(scope)
            return [await function()]
        return []

    with _SignalsOfLoop() as signals:
        results = anyio.run(main, backend_options={"use_uvloop": use_uvloop})
    if not results:
        raise KeyboardInterrupt
    return results[0]


class _SignalsOfLoop:
    """Takes the place of the handlers that signals have in Python, until the block ends, and calls them then."""

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._received: int | None = None
        self._cancel: Callable[[], object] | None = None

    def cancel_first(self, scope: anyio.CancelScope) -> None:
        """Cancel a scope of the running loop with the first signal, which may have come already."""
        loop = asyncio.get_running_loop()
        self._cancel = lambda: loop.call_soon_threadsafe(scope.cancel)
        if self._received is not None:
            scope.cancel()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                handler = signal.getsignal(number)
                if callable(handler) and handler is not signal.default_int_handler:  # asyncio does the same with that
                    self._handlers[number] = handler
                    signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._received is not None:
            self._handlers[self._received](self._received, None)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            self._handlers[number](number, frame)
            return
        self._received = number
        if self._cancel is not None:
            self._cancel()


async def run_cancellable(function: Callable[[], T], stop: StopToken) -> T:
    """Call a blocking function in a thread; if the end is requested first, leave it and raise AuditInterruptedError."""

    async def cancel_on_request() -> None:
        await stop.wait()
        group.cancel_scope.cancel()

    async with unwrapping_task_group() as group:
        group.start_soon(cancel_on_request)
        result = await run_in_abandonable_thread(function)
        group.cancel_scope.cancel()
        return result
    raise AuditInterruptedError(f"stopped before any device was queried: {stop.reason}")


@asynccontextmanager
async def unwrapping_task_group() -> AsyncIterator[TaskGroup]:
    """Open a task group that raises its error itself, not inside an exception group.

    Several errors are raised as a group, unless all of them are ``AuditorError``: then the first counts, since the
    tasks that failed after it were being cancelled.
    """
    try:
        async with anyio.create_task_group() as group:
            yield group
    except BaseExceptionGroup as errors:
        failures = list(_leaves(errors))
        if len(failures) > 1 and not all(isinstance(failure, AuditorError) for failure in failures):
            raise
    else:
        return
    raise failures[0]  # outside of the handler, so that the group does not become its context


@asynccontextmanager
async def background_tasks(*functions: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run functions concurrently with the block, and cancel them at its end."""
    async with unwrapping_task_group() as group:
        for function in functions:
            group.start_soon(function)
        yield
        group.cancel_scope.cancel()


async def repeat(seconds: float, action: Callable[[], Awaitable[None] | None]) -> None:
    """Call ``action`` at an interval, for the first time after the interval; never return."""
    while True:
        await anyio.sleep(seconds)
        if (waiting := action()) is not None:
            await waiting


def _leaves(errors: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
