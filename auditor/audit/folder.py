"""Making a run folder and holding it: whole from its first moment, written by one process at a time."""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from auditor.errors import RunFolderError, RunNotWritableError
from auditor.inventory.folder import ANSWERED, FAILED


def new_run_folder(directory: Path, name: str, fill: Callable[[Path], None], *, now: float) -> Path:
    """Makes ``<directory>/<UTC time>-<name>`` with what ``fill`` puts into it; nothing stays if that fails.

    Args:
        directory: where runs lie; made when missing.
        name: the run's name.
        fill: given the folder under a name that no reader looks at.
        now: seconds since 1970.

    Raises:
        RunNotWritableError: the directory cannot be written.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    fresh = directory / f".new-{stamp}-{name}-{secrets.token_hex(4)}"
    try:
        fresh.mkdir(parents=True)
        for live in (ANSWERED, FAILED):
            (fresh / live).touch()
        fill(fresh)
        return _named(fresh, directory / f"{stamp}-{name}")
    except OSError as error:
        raise RunNotWritableError(f"{directory} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _named(fresh: Path, wanted: Path) -> Path:
    """Gives the folder its name, or the name with a number when two runs start in one second."""
    for number in range(1, 1000):
        target = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        if not target.exists():
            try:
                return fresh.rename(target)
            except OSError as error:  # another process was faster
                if error.errno not in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
                    raise
    raise RunNotWritableError(f"{wanted} exists already")


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a run folder for writing; the lock dies with its holder and leaves no file behind.

    Raises:
        RunFolderError: another process holds it, or it is not there.
        RunNotWritableError: the file system knows no locks.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RunFolderError(f"{folder}: cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunFolderError(f"{folder}: another process is writing this run") from None
    except OSError as error:
        os.close(descriptor)
        raise RunNotWritableError(f"{folder}: cannot be locked: {error.strerror}") from error
    try:
        yield
    finally:
        os.close(descriptor)
