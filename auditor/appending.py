"""A file that lines are appended to, each with the operating system before it counts: no buffer of ours holds it."""

import contextlib
import os
from pathlib import Path

from auditor.errors import RunNotWritableError

BLOCK = 1 << 20
"""Bytes read at a time in search of the last whole line."""


class Appender:
    """Appends whole lines to one file; a line that the disk did not take is taken back.

    Args:
        path: the file; made if it is not there.

    Raises:
        RunNotWritableError: it cannot be opened.
    """

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
        """Writes a line; once this returns, killing the process cannot lose it.

        Raises:
            RunNotWritableError: the file cannot be written; it ends with the line before.
        """
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
        """Waits until all lines are on disk.

        Raises:
            RunNotWritableError: the disk says that they are not.
        """
        if self._unsynced is not None:  # asked again, it would say yes: what it could not write it has forgotten
            raise self._unsynced
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._unsynced = _not_writable(self._path, error)
            raise self._unsynced from error

    def close(self) -> None:
        """Syncs and closes the file; raises as ``sync`` does."""
        try:
            self.sync()
        finally:
            os.close(self._descriptor)


def cut_torn_line(path: Path) -> None:
    """Cuts what follows the last line break: a line that was being written when the process or the power went.

    Raises:
        OSError: what the operating system says.
    """
    with path.open("r+b") as file:
        size = at = file.seek(0, os.SEEK_END)
        found = -1
        while at > 0 and found < 0:
            start = max(0, at - BLOCK)
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            at = start
        keep = at + found + 1
        if keep < size:
            file.truncate(keep)
            os.fsync(file.fileno())


def _not_writable(path: Path, error: OSError) -> RunNotWritableError:
    return RunNotWritableError(f"{path} cannot be written: {error.strerror}")
