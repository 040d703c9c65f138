"""A worker pool: a fixed number of workers that pull items from one lazy source, fetch them, and write the outcomes.

It uses neither the network nor files.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import anyio

from auditor.concurrency import StopToken, unwrapping_task_group
from auditor.errors import AuditStoppedError

S = TypeVar("S")
R = TypeVar("R")


async def discard(_: None) -> None:
    """Do nothing, as the ``write`` of a ``fetch`` that records its outcome itself."""


async def run_workers(
    items: Iterator[S],
    fetch: Callable[[S], Awaitable[R]],
    write: Callable[[R], Awaitable[None]],
    *,
    concurrency: int,
    stop: StopToken,
) -> None:
    """Fetch every item, ``concurrency`` at a time, and write each outcome as soon as it arrives.

    Workers share one iterator, so memory does not depend on the number of items. Failure is data: a device that
    cannot be read is an outcome. A device whose outcome was not written stays pending.

    When ``stop`` is requested, no new item is pulled, and running fetches have ``stop.drain_seconds`` to finish.

    Raises:
        AuditStoppedError: raised by ``fetch`` or ``write`` when to continue is pointless; other workers are cancelled.
    """

    async def work() -> None:
        try:
            while stop.reason is None and (item := next(items, None)) is not None:
                await write(await fetch(item))
        except AuditStoppedError:
            workers.cancel_scope.cancel()  # immediately: the group itself would let others pull one more item
            raise

    async def drain() -> None:
        await stop.wait()
        await anyio.sleep(stop.drain_seconds)
        workers.cancel_scope.cancel()

    async with unwrapping_task_group() as watch:
        watch.start_soon(drain)
        async with anyio.create_task_group() as workers:
            for _ in range(concurrency):
                workers.start_soon(work)
        watch.cancel_scope.cancel()
