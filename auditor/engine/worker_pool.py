"""The fan-out: a fixed crowd of workers that pull one lazy source, ask, and write. It knows no network and no files."""

from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import anyio

from auditor.errors import StoppedError

S = TypeVar("S")


R = TypeVar("R")


class Stop:
    """A wish to end early: nothing new is pulled, what is in flight may finish within ``drain_seconds``.

    Attributes:
        reason: why, once it is wished.
        interrupted: whether somebody interrupted the audit, rather than its own plan.
    """

    def __init__(self, drain_seconds: float = 5.0) -> None:
        self.drain_seconds = drain_seconds
        self.reason: str | None = None
        self.interrupted = False
        self._wished = anyio.Event()

    def wish(self, reason: str, *, interrupted: bool = True, drain_seconds: float | None = None) -> None:
        """Ends the fan-outs that listen; the first reason counts."""
        if self.reason is None:
            self.reason, self.interrupted = reason, interrupted
            self.drain_seconds = self.drain_seconds if drain_seconds is None else drain_seconds
            self._wished.set()

    async def wished(self) -> None:
        """Returns once the end is wished."""
        await self._wished.wait()


async def fan_out(
    devices: Iterator[S],
    fetch: Callable[[S], Awaitable[R]],
    write: Callable[[R], Awaitable[None]],
    *,
    at_once: int,
    stop: Stop,
) -> None:
    """Asks about every device, ``at_once`` at a time, and writes each outcome as it comes.

    Products and anything else that there are many of are asked about in the same way.

    Workers share one iterator, so memory does not depend on the number of devices. Failure is data: a device that
    cannot be answered is an outcome. A device whose outcome was not written is pending.

    Raises:
        StoppedError: what ``fetch`` or ``write`` raised to say that going on is pointless; the others are cancelled.
    """
    failure: StoppedError | None = None

    async def work() -> None:
        nonlocal failure
        try:
            while stop.reason is None and (device := next(devices, None)) is not None:
                await write(await fetch(device))
        except StoppedError as error:
            failure = failure or error
            crowd.cancel_scope.cancel()

    async def drain() -> None:
        await stop.wished()
        await anyio.sleep(stop.drain_seconds)
        crowd.cancel_scope.cancel()

    async with anyio.create_task_group() as watch:
        watch.start_soon(drain)
        async with anyio.create_task_group() as crowd:
            for _ in range(at_once):
                crowd.start_soon(work)
        watch.cancel_scope.cancel()
    if failure is not None:
        raise failure
