"""What a power cut may take, and what a full disk leaves room for.

Answers are synced to disk at an interval, or each before it counts. A reserve keeps a little room, so that a run that
fills its disk can still say so.
"""

import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio

from auditor.audit.journal import Journal
from auditor.errors import RunNotWritableError
from auditor.model import Outcome

RESERVE = ".reserve"
"""A file that is deleted when its room is needed for the last manifest."""

RESERVED = 64 * 1024
"""Bytes of it; a manifest has a few thousand."""


def reserve(folder: Path) -> None:
    """Takes the room.

    Raises:
        RunNotWritableError: there is none.
    """
    try:
        (folder / RESERVE).write_bytes(os.urandom(RESERVED))  # zeros might take no room
    except OSError as error:
        raise RunNotWritableError(f"{folder} cannot be written: {error.strerror}") from error


def free_reserve(folder: Path) -> None:
    """Gives the room back; where that cannot be done, there are greater troubles to tell of."""
    with contextlib.suppress(OSError):
        (folder / RESERVE).unlink(missing_ok=True)


class SyncedJournal:
    """A journal whose lines are also put on disk, in a thread, so that requests that are due do not wait for it.

    Whoever has an outcome to write waits as long: a file system that commits holds up every write to it, and a write on
    the event loop would hold up the requests with it, whose slots then come too late or two at a time.

    Args:
        journal: what is written to.
        every: seconds between syncs; 0: an outcome counts only once it is on disk, and those that wait share a sync.
    """

    def __init__(self, journal: Journal, every: float) -> None:
        self._journal = journal
        self._written = self._synced = 0
        self._syncing, self._disk = anyio.Lock(), anyio.Lock()
        self._busy: anyio.Event | None = None
        self.write: Callable[[Outcome], Awaitable[None]] = self._write_through if every == 0 else self._write

    async def _write(self, outcome: Outcome) -> None:
        while self._busy is not None:
            await self._busy.wait()
        self._journal.write(outcome)
        self._written += 1

    async def _write_through(self, outcome: Outcome) -> None:
        await self._write(outcome)
        await self.sync()

    async def sync(self) -> None:
        """Returns once everything that was written before this call is on disk.

        Raises:
            RunNotWritableError: the disk says that it is not. It is not asked again: a second sync would say yes.
        """
        mine = self._written
        async with self._syncing:
            if self._synced >= mine:
                return
            covered = self._written
            await self.aside(self._journal.sync)
            self._synced = covered

    async def aside(self, work: Callable[[], None]) -> None:
        """Runs in a thread what waits for the disk; raises what ``work`` raises."""
        async with self._disk:
            busy = self._busy = anyio.Event()
            try:
                await anyio.to_thread.run_sync(work)
            finally:
                self._busy = None
                busy.set()
