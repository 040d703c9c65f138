"""Durable files: append-only files without a buffer, and atomic replacement of a complete file.

An appended line is handed to the operating system before it counts. A file that others read is written beside itself
and renamed once it is on disk.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from auditor.errors import AuditorError, RunNotWritableError

READABLE_BY_ALL = 0o644
"""Mode of metrics files: the collector is another user."""

_BLOCK_BYTES = 1 << 20
"""Bytes read at a time in search of the last complete line."""


class AppendOnlyFile:
    """Appends complete lines to one file; a line that does not fit on the disk is removed again.

    The file is created if it does not exist. Raises RunNotWritableError if it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._write_error: RunNotWritableError | None = None
        self._sync_error: RunNotWritableError | None = None
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            self._end = os.fstat(self._descriptor).st_size
        except OSError as error:
            raise _not_writable(path, error) from error

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
            self._write_error = _not_writable(self._path, error)
            raise self._write_error from error
        self._end += written

    def sync(self) -> None:
        """Wait until all lines are on disk; raise RunNotWritableError if the disk reports that they are not."""
        if self._sync_error is not None:  # a second fsync would succeed: the kernel has dropped what it could not write
            raise self._sync_error
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            self._sync_error = _not_writable(self._path, error)
            raise self._sync_error from error

    def close(self) -> None:
        """Sync and close the file; raise as ``sync`` does."""
        try:
            self.sync()
        finally:
            os.close(self._descriptor)


def cut_torn_line(path: Path) -> None:
    """Cut what follows the last line break: a line that was being written when the process or the power failed."""
    with path.open("r+b") as file:
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


@contextmanager
def atomic_replace(path: Path, *, mode: int | None = None) -> Iterator[Path]:
    """Yield a new file in the folder of ``path`` to write to, and rename it to ``path`` if the block succeeds.

    Its name ends in ``.new``, which no metrics collector reads. If the process is killed, the new file remains: a
    ``resume`` removes it from a run folder. If ``path`` is a link, its target is replaced. Without a ``mode`` it has
    the permissions of the replaced file, or those that the umask gives a new one.

    Raises:
        RunNotWritableError: ``path`` is not a file, or it cannot be written.
    """
    target = Path(os.path.realpath(path))
    new = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.new")
    try:
        if target.exists() and not target.is_file():
            raise RunNotWritableError(f"{path}: cannot be replaced: it is not a file")
        mode = _create(new, target, mode)
        yield new
        if stat.S_IMODE(new.stat().st_mode) != mode:  # not every file system has modes
            new.chmod(mode)
        put_in_place(new, target)
    except OSError as error:
        raise _not_writable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def _create(new: Path, target: Path, mode: int | None) -> int:
    """Create the new file, readable to no one who may not read it later; return its final mode."""
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        if mode is None:
            mode = stat.S_IMODE((target.stat() if target.exists() else os.fstat(descriptor)).st_mode) & 0o777
        if stat.S_IMODE(os.fstat(descriptor).st_mode) != (writable := mode | stat.S_IRUSR | stat.S_IWUSR):
            os.fchmod(descriptor, writable)
    finally:
        os.close(descriptor)
    return mode


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file atomically and durably; raise RunNotWritableError if that fails."""
    with atomic_replace(path) as new:
        new.write_bytes(content)


def put_in_place(new: Path, path: Path) -> None:
    """Rename a finished file to ``path``, durably: first its bytes, then its name."""
    sync_to_disk(new)
    new.replace(path)
    sync_to_disk(path.parent)


def sync_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def translate_os_errors(failure: object, error: type[AuditorError] = RunNotWritableError) -> Iterator[None]:
    """Raise an error of class ``error`` for an OSError inside the block: ``failure`` and its reason."""
    try:
        yield
    except OSError as problem:
        raise error(f"{failure}: {problem.strerror or problem}") from problem


def _not_writable(path: Path, error: OSError) -> RunNotWritableError:
    return RunNotWritableError(f"{path}: cannot be written: {error.strerror or error}")
