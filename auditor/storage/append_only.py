"""Append-only files without a buffer: a line is handed to the operating system before it counts."""

import contextlib
import os
from pathlib import Path

from auditor.errors import RunNotWritableError
from auditor.storage.files import not_writable, open_own_file

_BLOCK_BYTES = 1 << 20
"""Bytes read at a time in search of the last complete line."""


class AppendOnlyFile:
    """Appends complete lines to one file; a line that does not fit on the disk is removed again.

    The file is created if it does not exist. Raises RunNotWritableError if it cannot be opened, or is no regular file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._write_error: RunNotWritableError | None = None
        self._sync_error: RunNotWritableError | None = None
        try:
            self._descriptor = open_own_file(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            self._end = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise not_writable(path, error) from error

    def append(self, line: bytes) -> None:
        """Write a line; once this returns, killing the process cannot lose it. An error leaves no part of it."""
        if self._write_error is not None:  # otherwise a line could follow a torn one
            raise self._write_error
        try:
            written = os.write(self._descriptor, line)
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            with contextlib.suppress(OSError):  # a torn line stays then: readers skip it, and a resume cuts it
                os.ftruncate(self._descriptor, self._end)
            self._write_error = not_writable(self._path, error)
            raise self._write_error from error
        self._end += written

    def sync(self) -> None:
        """Wait until all lines are on disk; raise RunNotWritableError if the disk reports that they are not."""
        if self._sync_error is not None:  # a second fsync would succeed: the kernel has dropped what it could not write
            raise self._sync_error
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._sync_error = not_writable(self._path, error)
            raise self._sync_error from error

    def close(self) -> None:
        """Sync and close the file; raise as ``sync`` does."""
        try:
            self.sync()
        finally:
            os.close(self._descriptor)


def cut_torn_line(path: Path) -> None:
    """Cut what follows the last line break: a line that was being written when the process or the power failed."""
    with os.fdopen(open_own_file(path, os.O_RDWR), "r+b") as file:
        size = position = file.seek(0, os.SEEK_END)
        found = -1
        while position > 0 and found < 0:
            start = max(0, position - _BLOCK_BYTES)
            file.seek(start)
            found = file.read(position - start).rfind(b"\n")
            position = start
        end = position + found + 1
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
