"""Making run folders and holding them: whole from their first moment, each written by one process at a time."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from auditor.errors import RunFolderError, RunNotWritableError
from auditor.models import Device
from auditor.runs.folder import ANSWERED, FAILED, FLEET
from auditor.runs.manifest import Manifest, RequestCounts, read_manifest
from auditor.storage.files import to_disk

BEGINNING = ".new-"
"""How the name of a folder begins that is being filled."""


LEAVING = ".pruned-"
"""How the name of a folder begins that is being deleted."""


_OURS = re.compile(r"\.(new-\d{8}T\d{6}Z-.+|pruned-.+)-[0-9a-f]{8}")
"""The whole of such a name: nobody else's folder is swept away."""


_TRIES, _BETWEEN = 3, 0.02
"""A look whether a folder is held holds it for a moment itself: so a lock is tried again, so many seconds later."""


class Hold:
    """A run folder held for writing, until released. The lock dies with its holder and leaves no file behind."""

    def __init__(self, folder: Path) -> None:
        """Takes the folder.

        Raises:
            RunFolderError: another process holds it, or it is not there.
            RunNotWritableError: the file system knows no locks.
        """
        try:
            self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise RunFolderError(f"{folder}: cannot be opened: {error.strerror}") from error
        try:
            self._lock(folder)
        except BaseException:
            self.release()
            raise

    def _lock(self, folder: Path) -> None:
        for tries_left in reversed(range(_TRIES)):
            try:
                return fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not tries_left:
                    raise RunFolderError(f"{folder}: another process is writing this run") from None
            except OSError as error:
                raise RunNotWritableError(f"{folder}: cannot be locked: {error.strerror}") from error
            time.sleep(_BETWEEN)
        return None

    def release(self) -> None:
        """Lets others have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        # Of a caller that was cancelled while the folder was made for it in a thread.
        if hasattr(self, "_descriptor"):
            self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_held(folder: Path) -> bool:
    """Whether a process is writing this folder now."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def new_run_folder(directory: Path, name: str, fill: Callable[[Path], None], *, now: float) -> tuple[Path, Hold]:
    """Makes ``<directory>/<UTC time>-<name>`` with what ``fill`` puts into it, held; nothing stays if that fails.

    Raises:
        RunFolderError: a run of this name is being written in this directory.
        RunNotWritableError: the directory cannot be written.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    fresh = directory / f"{BEGINNING}{stamp}-{name}-{secrets.token_hex(4)}"
    hold: Hold | None = None
    try:
        str(directory).encode()
    except UnicodeEncodeError:
        raise RunNotWritableError(f"{str(directory)!r}: its name is not UTF-8, so no run can lie in it") from None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with door(directory):
            refuse_overlap(directory, name)
            sweep(directory)
            fresh.mkdir()
            hold = Hold(fresh)
        for live in (ANSWERED, FAILED):
            (fresh / live).touch()
        fill(fresh)
        for path in (*fresh.iterdir(), fresh):
            to_disk(path)
        with door(directory):  # or one who looks who is in could miss it under both names
            folder = _named(fresh, directory / f"{stamp}-{name}")
        to_disk(directory)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if hold is not None:
            hold.release()
        if isinstance(error, OSError):
            raise RunNotWritableError(f"{directory} cannot be written: {error.strerror}") from error
        raise
    return folder, hold


@contextlib.contextmanager
def door(directory: Path) -> Iterator[None]:
    """Lets one process at a time look who is in a directory of runs, and enter or leave.

    Raises:
        RunFolderError: the directory is not there.
        RunNotWritableError: the file system knows no locks.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RunFolderError(f"{directory}: cannot be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise RunNotWritableError(f"{directory}: cannot be locked: {error.strerror}") from error
        yield
    finally:
        os.close(descriptor)


def refuse_overlap(directory: Path, name: str, *, but: Path | None = None) -> None:
    """Refuses to work beside another audit of the same name; to be called at the door.

    Raises:
        RunFolderError: a run of this name, other than ``but``, is being written in this directory.
    """
    for folder in directory.iterdir():
        being_filled = _OURS.fullmatch(folder.name) is not None
        other = folder.name.startswith(LEAVING) or (folder.name.startswith(".") and not being_filled)
        if folder != but and f"-{name}" in folder.name and not other and is_held(folder):
            own = folder.name.split("-", 2)[2].rpartition("-")[0] if being_filled else read_manifest(folder).name
            if own == name:
                where = "its fleet is being read" if being_filled else f"in {folder}"
                raise RunFolderError(
                    f'{directory}: an audit named "{name}" is under way, {where}; wait for it to end, '
                    "or give this one another name or another directory"
                )


def sweep(directory: Path) -> None:
    """Removes what killed processes left of run folders that they made or deleted; to be called at the door."""
    for folder in directory.iterdir():
        if _OURS.fullmatch(folder.name) and not folder.is_symlink() and not is_held(folder):
            shutil.rmtree(folder, ignore_errors=True)


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


@dataclass(frozen=True, slots=True)
class Begun:
    """A run folder ready for an audit.

    Attributes:
        folder: the run folder.
        hold: what keeps other processes from writing it; to be released.
        manifest: as it stands in ``run.json``.
        devices: whom to ask: a Parquet file like the fleet's.
        known: a device that was answered in an earlier stretch, for each account that has one.
        resumed: whether there was an earlier stretch.
    """

    folder: Path
    hold: Hold
    manifest: Manifest
    devices: Path
    known: Mapping[str, Device] = field(default_factory=dict)
    resumed: bool = False

    def requests_of(self, account: str) -> RequestCounts:
        """Requests that listing an account's fleet took before."""
        found = (each.requests for each in self.manifest.listings if each.account == account)
        return next(found, RequestCounts())

    def left_behind(self) -> None:
        """Removes the file of devices to ask, unless it is the fleet itself: they were asked."""
        if self.devices.name != FLEET:
            with contextlib.suppress(OSError):  # the next resume removes it
                self.devices.unlink(missing_ok=True)
