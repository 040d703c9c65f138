"""A worker pool: a fixed number of workers that pull items from one lazy source, fetch them, and write the outcomes.

It uses neither the network nor files.
"""

from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import anyio

from auditor.concurrency import StopToken, unwrapping_task_group
from auditor.errors import AuditStoppedError
from auditor.resilience.retry import PausedTasks

S = TypeVar("S")
R = TypeVar("R")

MAX_PAUSED_PER_WORKER = 10
"""Paused tasks for each worker up to which another worker replaces a task that pauses; each has some kB of memory."""


async def discard(_: None) -> None:
    """Do nothing, as the ``write`` of a ``fetch`` that records its outcome itself."""


async def run_workers(
    items: Iterator[S],
    fetch: Callable[[S], Awaitable[R]],
    write: Callable[[R], Awaitable[None]],
    *,
    concurrency: int,
    stop: StopToken,
    paused: PausedTasks | None = None,
) -> None:
    """Fetch every item, ``concurrency`` at a time, and write each outcome as soon as it arrives.

    Workers share one iterator, so memory does not depend on the number of items. Failure is data: a device that
    cannot be read is an outcome. A device whose outcome was not written stays pending.

    ``paused`` counts fetches that wait, mostly for a retry: other workers are started in their place, so that
    ``concurrency`` fetches work. When ``stop`` is requested, no new item is pulled, and running fetches have
    ``stop.drain_seconds`` to finish.

    Raises:
        AuditStoppedError: raised by ``fetch`` or ``write`` when to continue is pointless; other workers are cancelled.
    """
    paused = paused or PausedTasks()
    running, exhausted = 0, False

    def start_worker() -> None:
        nonlocal running
        running += 1
        workers.start_soon(work)

    def replace_worker() -> None:
        free = running - paused.count < concurrency and paused.count <= MAX_PAUSED_PER_WORKER * concurrency
        if free and not exhausted and stop.reason is None:
            start_worker()

    async def work() -> None:
        nonlocal running, exhausted
        try:
            # A worker too many ends: a paused fetch, in whose place it was started, works again.
            while stop.reason is None and running - paused.count <= concurrency:
                if (item := next(items, None)) is None:
                    exhausted = True
                    break
                await write(await fetch(item))
        except AuditStoppedError:
            workers.cancel_scope.cancel()  # immediately: the group itself would let others pull one more item
            raise
        finally:
            running -= 1

    async def drain() -> None:
        await stop.wait()
        await anyio.sleep(stop.drain_seconds)
        workers.cancel_scope.cancel()

    paused.on_pause = replace_worker
    try:
        async with unwrapping_task_group() as watch:
            watch.start_soon(drain)
            async with anyio.create_task_group() as workers:
                for _ in range(concurrency):
                    start_worker()
            watch.cancel_scope.cancel()
    finally:
        paused.on_pause = None
