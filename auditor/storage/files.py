"""A file that lines are appended to, each with the operating system before it counts: no buffer of ours holds it.

Files that others read while they are replaced: written beside, and put in their place whole.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
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


READABLE = 0o644
"""For metrics: who collects them is another user."""


@contextmanager
def replacing(path: Path, *, mode: int | None = None) -> Iterator[Path]:
    """A file in the folder of ``path`` to write to; it takes the place of ``path`` if nothing goes wrong.

    Its name ends in ``.new``, which no collector of metrics reads. Should this process be killed, it stays: in a run
    folder until the next ``resume``, elsewhere until somebody removes it. A link is followed, and stays.

    Args:
        path: the file that is replaced.
        mode: who may read and write it; None: as the file before it, or as the umask wants a new one.

    Raises:
        RunNotWritableError: ``path`` is something else than a file, or it cannot be written.
    """
    target = Path(os.path.realpath(path))
    new = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.new")
    try:
        if target.exists() and not target.is_file():
            raise RunNotWritableError(f"{path}: cannot be replaced: it is not a file")
        mode = _create(new, target, mode)
        yield new
        new.chmod(mode)
        put_in_place(new, target)
    except OSError as error:
        raise RunNotWritableError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def _create(new: Path, target: Path, mode: int | None) -> int:
    """Makes the file that is written to, which nobody reads sooner who may not read it later; gives its mode."""
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        if mode is None:
            mode = stat.S_IMODE((target.stat() if target.exists() else os.fstat(descriptor)).st_mode) & 0o777
        os.fchmod(descriptor, mode | stat.S_IRUSR | stat.S_IWUSR)
    finally:
        os.close(descriptor)
    return mode


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file anew beside itself and puts it in place once it is on disk.

    Raises:
        RunNotWritableError: the folder cannot be written.
    """
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            file.write(content)
        put_in_place(new, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise RunNotWritableError(f"{path} cannot be written: {error.strerror}") from error


def put_in_place(new: Path, path: Path) -> None:
    """Makes a finished file the one at ``path``, durably: its bytes first, then its name.

    Raises:
        OSError: what the operating system says.
    """
    to_disk(new)
    new.replace(path)
    to_disk(path.parent)


def to_disk(path: Path) -> None:
    """Waits until a file's bytes, or a folder's names, are on disk.

    Raises:
        OSError: what the operating system says.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
