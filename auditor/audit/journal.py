"""The two live files of a run: one JSON line for each outcome, with the operating system before it counts.

A line that was written survives the death of this process, whatever kills it: no buffer of ours holds it. A buffer
would save one of the about 50 microseconds that a device costs, and lose what it holds. What a power cut leaves is what
was synced to disk; see ``auditor.audit.disk``.
"""

import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import orjson

from auditor.appending import Appender
from auditor.model import Answered, Failed, Outcome

_NOTHING: Mapping[str, int] = MappingProxyType({})


def utc(seconds: float) -> str:
    """Seconds since 1970 as ``2026-11-22T02:00:03.123Z``."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{_to_the_second(whole)}.{milliseconds:03d}Z"


@lru_cache(maxsize=4)  # of now, nearly always
def _to_the_second(whole: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))


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
