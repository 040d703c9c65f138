"""The two live files of a run: one JSON line for each outcome, appended through one buffer each."""

import errno
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import orjson

from auditor.errors import RunNotWritableError
from auditor.model import Answered, Failed, Outcome

BUFFER = 64 * 1024
"""Bytes that wait in memory at most; the run flushes several times a second besides."""


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
    """Appends lines to one file through a buffer; never a part of a line on purpose."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[bytes] = []
        self._bytes = 0
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise _not_writable(path, error) from error

    def append(self, line: bytes) -> None:
        self._waiting.append(line)
        self._bytes += len(line)
        if self._bytes >= BUFFER:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        rest = memoryview(b"".join(self._waiting))
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            raise _not_writable(self._path, error) from error
        finally:
            # What a full disk did not take waits on: a later flush goes on inside the line where this one ended.
            self._waiting = [bytes(rest)] if rest else []
            self._bytes = len(rest)

    def close(self) -> None:
        try:
            self.flush()
            os.fsync(self._descriptor)
        except OSError as error:
            raise _not_writable(self._path, error) from error
        finally:
            os.close(self._descriptor)


class Journal:
    """Writes outcomes: conclusive answers to one file, failures to another. Use as a context manager.

    Attributes:
        counts: outcomes written, by status: ``ok``, ``empty``, ``not_found``, ``failed``.
    """

    def __init__(self, answered: Path, failed: Path) -> None:
        self.counts = {"ok": 0, "empty": 0, "not_found": 0, "failed": 0}
        self._answered = _Appender(answered)
        self._failed = _Appender(failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._answered.close()
        finally:
            self._failed.close()

    async def write(self, outcome: Outcome) -> None:
        """Appends one outcome.

        Raises:
            RunNotWritableError: the file cannot be written.
        """
        line = line_of(outcome)
        if isinstance(outcome, Answered):
            self._answered.append(line)
            self.counts[outcome.status] += 1
        else:
            self._failed.append(line)
            self.counts["failed"] += 1

    def flush(self) -> None:
        """Hands everything that waits to the operating system, where a kill cannot reach it.

        Raises:
            RunNotWritableError: the file cannot be written.
        """
        self._answered.flush()
        self._failed.flush()


def _not_writable(path: Path, error: OSError) -> RunNotWritableError:
    advice = "; free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
    return RunNotWritableError(f"{path} cannot be written: {error.strerror}{advice}")
