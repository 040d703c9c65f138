"""``.requests``: how many requests a run has sent, recorded before they are sent, so that a killed process loses none.

The file has a line of fixed width for each account and operation, which is overwritten in place. It is not synced: a
power cut takes the requests since ``run.json`` was last written, as it takes results.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import orjson

from auditor.client.operations import (
    BATCH_GET_DEVICE_STATE,
    DEVICE_OPERATIONS,
    DISCOVERY_OPERATIONS,
    RELEASE_OPERATIONS,
    Operation,
)
from auditor.errors import RunFolderError, RunNotWritableError
from auditor.runs.manifest import Manifest
from auditor.storage.files import not_writable, open_own_file, read_contained, replace_file, translate_os_errors

SENT_REQUESTS = ".requests"
"""Name of the file, which is removed once no device of the run remains."""

_MAX_BYTES = 16 << 20
_DIGITS = 19
_MAX_COUNT = 10**12
"""More than a run sends. A larger number in the file could not be written as JSON when others are added to it."""


class RequestKey(NamedTuple):
    """What a line counts: requests of one account for one operation; account ``""``: those of earlier processes."""

    operation: str
    account: str


@dataclass(slots=True)
class _Count:
    """Requests that were sent, and how many the file has."""

    sent: int
    recorded: int


class SentRequests:
    """The requests that a run has sent, of all its processes. Use as a context manager.

    Attributes:
        before: those of earlier processes; the file in the run folder is replaced by them on entering.
    """

    def __init__(self, folder: Path, before: Mapping[RequestKey, int]) -> None:
        self._path, self.before = folder / SENT_REQUESTS, before
        self._descriptor, self._end = -1, 0
        self._positions: dict[RequestKey, int] = {}
        self._counts: dict[RequestKey, _Count] = {}

    def __enter__(self) -> Self:
        """Open the file; raise RunNotWritableError if it cannot be written."""
        lines = []
        for key, count in self.before.items():
            lines.append(_encode_line(key, count))
            self._positions[key], self._end = self._end, self._end + len(lines[-1])
        replace_file(self._path, b"".join(lines))
        try:
            self._descriptor = open_own_file(self._path, os.O_WRONLY)
        except OSError as error:
            raise not_writable(self._path, error) from error
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RunNotWritableError):  # what was reserved and not sent is counted then
            for key, count in self._counts.items():
                self._record(key, count.sent)
        os.close(self._descriptor)

    def counter(self, operation: str, account: str, reserved: int) -> Callable[[], None]:
        """Return a function to call before each request of an account.

        It records ``reserved`` requests at a time, so after a kill the count may be too high by one less than that. It
        raises RunNotWritableError if the file cannot be written.
        """
        key = RequestKey(operation, account)
        before = self.before.get(key, 0)
        count = self._counts.setdefault(key, _Count(before, before))

        def count_one() -> None:
            count.sent += 1
            if count.sent > count.recorded:
                count.recorded += reserved
                self._record(key, count.recorded)

        return count_one

    def _record(self, key: RequestKey, count: int) -> None:
        try:
            if key in self._positions:
                os.pwrite(self._descriptor, b"%0*d" % (_DIGITS, count), self._positions[key])
            else:
                line = _encode_line(key, count)
                os.pwrite(self._descriptor, line, self._end)
                self._positions[key], self._end = self._end, self._end + len(line)
        except OSError as error:
            raise not_writable(self._path, error) from error


def _encode_line(key: RequestKey, count: int) -> bytes:
    return b"%0*d %s\n" % (_DIGITS, count, orjson.dumps([key.operation, key.account]))


def read_sent_requests(folder: Path) -> dict[RequestKey, int]:
    """Return what a killed process recorded; lines that cannot be read are left out.

    Raises RunFolderError for a link, or a file that is too large.
    """
    path = folder / SENT_REQUESTS
    if not os.path.lexists(path):
        return {}
    with translate_os_errors(f"{path}: cannot be read", RunFolderError):
        lines = read_contained(folder, SENT_REQUESTS, max_bytes=_MAX_BYTES).splitlines()
    counts = {}
    for line in lines:
        digits, _, key = line.partition(b" ")
        with contextlib.suppress(orjson.JSONDecodeError):
            match orjson.loads(key):
                case [str() as operation, str() as account] if len(digits) == _DIGITS and digits.isdigit():
                    counts[RequestKey(operation, account)] = min(int(digits), _MAX_COUNT)
    return counts


def count_sent(counts: Mapping[RequestKey, int], operations: Iterable[Operation], account: str | None = None) -> int:
    """Return the requests for some operations, or for all if there are none, of one account or of all."""
    names = {operation.quota_name for operation in operations} or {key.operation for key in counts}
    return sum(sent for key, sent in counts.items() if key.operation in names and account in {None, key.account})


def count_device_calls(counts: Mapping[RequestKey, int]) -> int:
    """Return the requests that count against a budget of calls: all but those for released firmware."""
    names = {operation.quota_name for operation in RELEASE_OPERATIONS}
    return sum(sent for key, sent in counts.items() if key.operation not in names)


def requests_before(folder: Path, manifest: Manifest) -> dict[RequestKey, int]:
    """Return what the processes of a run have sent, by its file, and by its manifest where that has more."""
    counts = read_sent_requests(folder)
    recorded: list[tuple[tuple[Operation, ...], str | None, int]] = [(DEVICE_OPERATIONS, None, manifest.requests.sent)]
    recorded += [(DISCOVERY_OPERATIONS, each.account, each.requests.sent) for each in manifest.discovery]
    if manifest.selection is not None:
        states = (BATCH_GET_DEVICE_STATE,)
        recorded += [(states, each.account, each.requests.sent) for each in manifest.selection.accounts]
    for operations, account, sent in recorded:
        if (more := sent - count_sent(counts, operations, account)) > 0:
            key = RequestKey(operations[0].quota_name, account or "")
            counts[key] = counts.get(key, 0) + more
    return counts
