"""The two live files of a run: one JSON line for each outcome, with the operating system before it counts.

A line that was written survives the death of this process, whatever kills it: no buffer of ours holds it. A buffer
would save one of the about 50 microseconds that a device costs, and lose what it holds. What a power cut leaves is what
was synced to disk; see ``auditor.audit.disk``.

What a power cut may take, and what a full disk leaves room for.

Answers are synced to disk at an interval, or each before it counts. A reserve keeps a little room, so that a run that
fills its disk can still say so.
"""

import contextlib
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import anyio
import orjson

from auditor.errors import RunNotWritableError
from auditor.models import Answered, Failed, Outcome
from auditor.storage.files import Appender
from auditor.text.formatting import utc

_NOTHING: Mapping[str, int] = MappingProxyType({})


def line_of(outcome: Outcome) -> bytes:
    """An outcome as its line, in the run folder's key order."""
    device = outcome.device
    record: dict[str, object] = {
        "account": device.account,
        "product_key": device.product_key,
        "device_name": device.device_name,
        "iot_id": device.iot_id,
    }
    match outcome:
        case Answered():
            record |= {
                "status": outcome.status,
                # Plain dicts: orjson is ten times slower on slotted dataclasses.
                "modules": [
                    {"module_name": module.module_name, "module_version": module.module_version}
                    for module in outcome.modules
                ],
                "total": outcome.total,
                "pages": outcome.pages,
                "attempts": outcome.attempts,
                "request_id": outcome.request_id,
                "audited_at": utc(outcome.audited_at),
            }
            if outcome.reason is not None:
                record["reason"] = outcome.reason
        case Failed():
            record |= {
                "status": "failed",
                "code": outcome.code,
                "message": outcome.message,
                "http_status": outcome.http_status,
                "attempts": outcome.attempts,
                "request_id": outcome.request_id,
                "failed_at": utc(outcome.failed_at),
            }
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


class Journal:
    """Writes outcomes: conclusive answers to one file, failures to another. Use as a context manager.

    Entering it raises RunNotWritableError if a file cannot be opened, leaving it if the disk refuses what was written.

    Args:
        answered, failed: the files, appended to.
        before: what the file of answers holds already, by status.

    Attributes:
        counts: outcomes written, those before included, by status: ``ok``, ``empty``, ``not_found``, ``failed``.
    """

    def __init__(self, answered: Path, failed: Path, before: Mapping[str, int] = _NOTHING) -> None:
        self.counts = {status: before.get(status, 0) for status in ("ok", "empty", "not_found", "failed")}
        self._paths = answered, failed
        self._answered: Appender
        self._failed: Appender

    def __enter__(self) -> Self:
        answered, failed = self._paths
        self._answered = Appender(answered)
        try:
            self._failed = Appender(failed)
        except BaseException:
            self._answered.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._answered.close()
        finally:
            self._failed.close()

    def write(self, outcome: Outcome) -> None:
        """Appends one outcome; once this returns, killing the process cannot lose it.

        Raises:
            RunNotWritableError: the file cannot be written; it ends with the outcome before.
        """
        line = line_of(outcome)
        if isinstance(outcome, Answered):
            self._answered.append(line)
            self.counts[outcome.status] += 1
        else:
            self._failed.append(line)
            self.counts["failed"] += 1

    def sync(self) -> None:
        """Waits until everything written is on disk, where no power cut can reach it.

        Raises:
            RunNotWritableError: the disk says that it is not.
        """
        self._answered.sync()
        self._failed.sync()


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
