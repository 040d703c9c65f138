"""The two journals of a run: one JSON line per outcome, handed to the operating system before it counts.

No buffer of this process holds a line, so a written line survives the death of the process. A buffer would save one of
the about 50 microseconds that a device costs, and lose its content. Lines are synced to disk at an interval, or each
before it counts; a power cut takes what was not synced. A reserve keeps room on the disk for the last manifest, so that
a run that fills its disk can still report it.
"""

import contextlib
import math
import os
import secrets
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Self

import anyio
import orjson

from auditor.errors import RunFolderError
from auditor.log import log
from auditor.models import DeviceFailure, DeviceResult, Outcome
from auditor.runs.folder import COMPRESSED_RESULTS, RESULTS
from auditor.storage.append_only import AppendOnlyFile
from auditor.storage.compressed import compress_file, expanded_blocks
from auditor.storage.files import (
    atomic_replace,
    create_file,
    open_contained,
    put_in_place,
    sync_to_disk,
    translate_os_errors,
)
from auditor.text.formatting import format_utc

RESERVE = ".reserve"
"""A file that is deleted when its room is needed for the last manifest."""

RESERVE_BYTES = 64 * 1024
"""Its size; a manifest has a few thousand bytes."""

MIN_COMPRESSED_BYTES = 1 << 20
"""Size from which a sealed run's results are compressed; smaller files save little, and stay readable as they are."""

_BLOCK_BYTES = 1 << 20
"""Bytes of results that are read at a time."""

_NO_COUNTS: Mapping[str, int] = MappingProxyType({})


def encode_outcome(outcome: Outcome) -> bytes:
    """Encode an outcome as its JSON line, with the keys in the order of the contract."""
    device = outcome.device
    if isinstance(outcome, DeviceFailure):
        record: dict[str, object] = {
            "account": device.account,
            "product_key": device.product_key,
            "device_name": device.device_name,
            "iot_id": device.iot_id,
            "status": "failed",
            "code": outcome.code,
            "message": outcome.message,
            "http_status": outcome.http_status,
            "attempts": outcome.attempts,
            "request_id": outcome.request_id,
            "failed_at": format_utc(outcome.failed_at),
        }
    else:
        record = {
            "account": device.account,
            "product_key": device.product_key,
            "device_name": device.device_name,
            "iot_id": device.iot_id,
            "status": outcome.status,
            # Plain dicts: orjson does not encode structs.
            "modules": [
                {"module_name": module.module_name, "module_version": module.module_version}
                for module in outcome.modules
            ],
            "total": outcome.total,
            "pages": outcome.pages,
            "attempts": outcome.attempts,
            "request_id": outcome.request_id,
            "audited_at": format_utc(outcome.audited_at),
        }
        if outcome.reason is not None:
            record["reason"] = outcome.reason
        if outcome.source != "queried":
            record["source"] = outcome.source
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


class Journal:
    """Appends outcomes: conclusive answers to one file, failures to the other. Use as a context manager.

    Entering it raises RunNotWritableError if a file cannot be opened; leaving it, if the disk refuses what was written.
    A file system that commits delays every write to the file. Therefore syncs run in a thread, and outcomes wait for
    them outside the event loop: requests that are due stay on schedule.

    Args:
        results, failures: the files to append to.
        previous_counts: lines that the results file already holds, by status.
        fsync_interval: seconds between syncs; 0: each outcome waits for a sync, which waiting outcomes share.

    Attributes:
        counts: outcomes written, including earlier ones, by status: ``ok``, ``empty``, ``not_found``, ``failed``.
        append: writes one outcome; once it returns, killing the process cannot lose it. Raises RunNotWritableError.
    """

    def __init__(
        self, results: Path, failures: Path, previous_counts: Mapping[str, int] = _NO_COUNTS, *, fsync_interval: float
    ) -> None:
        self.counts = {status: previous_counts.get(status, 0) for status in ("ok", "empty", "not_found", "failed")}
        self.append: Callable[[Outcome], Awaitable[None]] = self._append if fsync_interval else self._append_durably
        self._paths = results, failures
        self._results: AppendOnlyFile
        self._failures: AppendOnlyFile
        self._written = self._synced = 0
        self._sync_lock, self._disk_lock = anyio.Lock(), anyio.Lock()
        self._disk_free: anyio.Event | None = None  # set while the disk is busy

    def __enter__(self) -> Self:
        results, failures = self._paths
        self._results = AppendOnlyFile(results)
        try:
            self._failures = AppendOnlyFile(failures)
        except BaseException:
            self._results.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._results.close()
        finally:
            self._failures.close()

    async def _append(self, outcome: Outcome) -> None:
        while self._disk_free is not None:
            await self._disk_free.wait()
        line = encode_outcome(outcome)
        if isinstance(outcome, DeviceResult):
            self._results.append(line)
            self.counts[outcome.status] += 1
        else:
            self._failures.append(line)
            self.counts["failed"] += 1
        self._written += 1

    async def _append_durably(self, outcome: Outcome) -> None:
        await self._append(outcome)
        await self.sync()

    async def sync(self) -> None:
        """Return once everything that was written before this call is on disk.

        RunNotWritableError, if the disk reports that it is not, is final: a second sync would succeed.
        """
        required = self._written
        async with self._sync_lock:
            if self._synced >= required:
                return
            covered = self._written
            await self.run_disk_work(self._sync_files)
            self._synced = covered

    def _sync_files(self) -> None:
        self._results.sync()
        self._failures.sync()

    async def run_disk_work(self, work: Callable[[], None]) -> None:
        """Run in a thread what waits for the disk, while no outcome is written; raise what ``work`` raises."""
        async with self._disk_lock:
            free = self._disk_free = anyio.Event()
            try:
                await anyio.to_thread.run_sync(work)
            finally:
                self._disk_free = None
                free.set()


class DiskReserve:
    """Room on the disk for the last manifest of a run."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RESERVE

    def allocate(self) -> None:
        """Take the room; raise RunNotWritableError if there is none."""
        with translate_os_errors(f"{self._path.parent}: cannot be written"):
            self._path.unlink(missing_ok=True)
            create_file(self._path, os.urandom(RESERVE_BYTES))  # zeros might take no room

    def release(self) -> None:
        """Free the room. An error is ignored: the run reports a more important one then."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def compress_results(folder: Path) -> Path | None:
    """Compress a sealed run's results into a new file beside them, and return it; ``replace_results`` makes it theirs.

    It has the same content, and is on disk. Small results are not compressed, and neither are those of a disk that is
    full or cannot be read: that is logged, and the run is sealed nevertheless.
    """
    results = folder / RESULTS
    new = folder / f".{COMPRESSED_RESULTS}.{secrets.token_hex(4)}.new"  # another thread may have been abandoned here
    try:
        if not results.is_file() or results.stat().st_size < MIN_COMPRESSED_BYTES:
            return None
        if compress_file(results, new):
            sync_to_disk(new)
            return new
    except OSError as error:
        log.warning("results_not_compressed", file=str(results), reason=error.strerror)
    with contextlib.suppress(OSError):
        new.unlink(missing_ok=True)
    return None


def replace_results(folder: Path, compressed: Path) -> None:
    """Replace a run's results by those that ``compress_results`` returned; at each moment one of the files exists.

    The caller holds the run's lock and waits: in an abandoned thread, this could undo what a resume has written.

    Raises:
        RunNotWritableError: they cannot be renamed; the uncompressed ones are still there.
    """
    with translate_os_errors(f"{folder / COMPRESSED_RESULTS}: cannot be written"):
        put_in_place(compressed, folder / COMPRESSED_RESULTS)
    with contextlib.suppress(OSError):  # then there are both files, which have the same content
        (folder / RESULTS).unlink(missing_ok=True)


def expand_results(folder: Path) -> None:
    """Write a run's results uncompressed if only the compressed file exists, which stays.

    Raises:
        RunFolderError: the compressed file is damaged, or would expand to far more than any audit compresses.
        RunNotWritableError: the results cannot be written.
    """
    results, compressed = folder / RESULTS, folder / COMPRESSED_RESULTS
    if os.path.lexists(results) or not os.path.lexists(compressed):
        return
    mode = stat.S_IMODE(compressed.stat().st_mode)
    with atomic_replace(results, mode=mode) as new, new.open("wb") as file:
        file.writelines(result_blocks(compressed))


def count_lines(path: Path, enough: float = math.inf) -> int:
    """Return the number of lines of a file of results; counting may end at ``enough`` lines.

    A torn last line, without a line break, does not count. Raise RunFolderError if the file is unreadable.
    """
    found = 0
    for block in result_blocks(path):
        found += block.count(b"\n")
        if found >= enough:
            break
    return found


def result_blocks(path: Path) -> Iterator[bytes]:
    """Yield the content of a file of results, compressed or not; raise RunFolderError if it is unreadable."""
    unreadable = translate_os_errors(f"{path}: cannot be read", RunFolderError)
    with unreadable, open_contained(path.parent, path.name) as file:
        compressed = path.name == COMPRESSED_RESULTS
        yield from expanded_blocks(file) if compressed else iter(lambda: file.read(_BLOCK_BYTES), b"")
