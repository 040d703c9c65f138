"""The two live files of a run: one JSON line for each outcome, with the operating system before it counts.

A line that was written survives the death of this process, whatever kills it: no buffer of ours holds it. A buffer
would save 2 of the about 200 microseconds that a device costs, and lose what it holds. What a power cut leaves is what
was synced to disk; see ``auditor.audit.disk``.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import orjson

from auditor.errors import RunNotWritableError
from auditor.model import Answered, Failed, Outcome

_NOTHING: Mapping[str, int] = MappingProxyType({})


def utc(seconds: float) -> str:
    """Seconds since 1970 as ``2026-11-22T02:00:03.123Z``."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"


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
            record["status"] = outcome.status
            # Plain dicts: orjson is ten times slower on slotted dataclasses.
            record["modules"] = [
                {"module_name": module.module_name, "module_version": module.module_version}
                for module in outcome.modules
            ]
            record["total"] = outcome.total
            record["pages"] = outcome.pages
            record["attempts"] = outcome.attempts
            record["request_id"] = outcome.request_id
            record["audited_at"] = utc(outcome.audited_at)
        case Failed():
            record["status"] = "failed"
            record["code"] = outcome.code
            record["message"] = outcome.message
            record["http_status"] = outcome.http_status
            record["attempts"] = outcome.attempts
            record["request_id"] = outcome.request_id
            record["failed_at"] = utc(outcome.failed_at)
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


class _Appender:
    """Appends whole lines to one file; a line that the disk did not take is taken back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._broken: RunNotWritableError | None = None
        self._unsynced: RunNotWritableError | None = None
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self._end = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise _not_writable(path, error) from error

    def append(self, line: bytes) -> None:
        if self._broken is not None:  # or a line could follow upon a part of one
            raise self._broken
        try:
            written = os.write(self._descriptor, line)
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            with contextlib.suppress(OSError):  # then the torn line stays, for readers to pass over and resume to cut
                os.ftruncate(self._descriptor, self._end)
            self._broken = _not_writable(self._path, error)
            raise self._broken from error
        self._end += written

    def sync(self) -> None:
        if self._unsynced is not None:  # asked again, it would say yes: what it could not write it has forgotten
            raise self._unsynced
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._unsynced = _not_writable(self._path, error)
            raise self._unsynced from error

    def close(self) -> None:
        try:
            self.sync()
        finally:
            os.close(self._descriptor)


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
        self._answered: _Appender
        self._failed: _Appender

    def __enter__(self) -> Self:
        answered, failed = self._paths
        self._answered = _Appender(answered)
        try:
            self._failed = _Appender(failed)
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

    async def write(self, outcome: Outcome) -> None:
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


def _not_writable(path: Path, error: OSError) -> RunNotWritableError:
    return RunNotWritableError(f"{path} cannot be written: {error.strerror}")
