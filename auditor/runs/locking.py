"""Creation and locking of run folders: a run folder is complete from its first moment, and has one writer."""

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
from typing import Self

from auditor.errors import RunFolderError, RunNotWritableError
from auditor.models import Device
from auditor.runs.folder import FAILURES, FLEET, RESULTS
from auditor.runs.manifest import Manifest, RequestCounts, read_manifest
from auditor.storage.files import sync_to_disk, translate_os_errors

STARTING_PREFIX = ".new-"
"""Prefix of a folder that is being filled."""

DELETING_PREFIX = ".pruned-"
"""Prefix of a folder that is being deleted."""

_OWN_FOLDER = re.compile(r"\.(new-\d{8}T\d{6}Z-.+|pruned-.+)-[0-9a-f]{8}")
"""The complete name of such a folder: no other hidden folder is ever removed."""

_ATTEMPTS, _RETRY_SECONDS = 3, 0.02
"""``is_locked`` takes the lock for a moment itself, so a lock that is taken is tried again."""


class RunLock:
    """An exclusive lock on a run folder. It ends with its process and leaves no file behind.

    Use as a context manager, or call ``release``.

    Raises:
        RunFolderError: another process holds it, or the folder does not exist.
        RunNotWritableError: the file system does not support locks.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = _open_folder(folder)
        try:
            self._lock(folder)
        except BaseException:
            self.release()
            raise

    def _lock(self, folder: Path) -> None:
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                return fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not attempts_left:
                    raise RunFolderError(f"{folder}: another process is writing this run") from None
            except OSError as error:
                raise RunNotWritableError(f"{folder}: cannot be locked: {error.strerror}") from error
            time.sleep(_RETRY_SECONDS)
        return None

    def release(self) -> None:
        """Release the lock."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        # The caller may have been cancelled while a thread created the folder for it.
        if hasattr(self, "_descriptor"):
            self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _open_folder(folder: Path) -> int:
    with translate_os_errors(f"{folder}: cannot be opened", RunFolderError):
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY)


def is_locked(folder: Path) -> bool:
    """Return whether a process is writing this folder now."""
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


@contextlib.contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Give one process at a time the right to check, add or remove run folders. Raises the errors of ``RunLock``."""
    descriptor = _open_folder(directory)
    try:
        with translate_os_errors(f"{directory}: cannot be locked"):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def create_run_folder(directory: Path, name: str, fill: Callable[[Path], None], *, now: float) -> tuple[Path, RunLock]:
    """Create ``<directory>/<UTC time>-<name>`` with the files that ``fill`` writes, locked; on failure nothing remains.

    The directory is created if it does not exist. ``now`` is in seconds since 1970.

    Raises:
        RunFolderError: a run of this name is being written in this directory.
        RunNotWritableError: the directory cannot be written.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    fresh = directory / f"{STARTING_PREFIX}{stamp}-{name}-{secrets.token_hex(4)}"
    lock: RunLock | None = None
    try:
        str(directory).encode()
    except UnicodeEncodeError:
        raise RunNotWritableError(f"{str(directory)!r}: its name is not UTF-8, so it cannot contain runs") from None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with directory_lock(directory):
            refuse_overlap(directory, name)
            remove_stale_folders(directory)
            fresh.mkdir()
            lock = RunLock(fresh)
        for live in (RESULTS, FAILURES):
            (fresh / live).touch()
        fill(fresh)
        for path in (*fresh.iterdir(), fresh):
            sync_to_disk(path)
        with directory_lock(directory):  # otherwise another process could miss the folder under both names
            folder = _rename(fresh, directory / f"{stamp}-{name}")
        sync_to_disk(directory)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if lock is not None:
            lock.release()
        if isinstance(error, OSError):
            raise RunNotWritableError(f"{directory}: cannot be written: {error.strerror}") from error
        raise
    return folder, lock


def refuse_overlap(directory: Path, name: str, *, except_folder: Path | None = None) -> None:
    """Raise RunFolderError if another run of this name is being written; call it inside ``directory_lock``."""
    for folder in directory.iterdir():
        being_filled = _OWN_FOLDER.fullmatch(folder.name) is not None
        other = folder.name.startswith(DELETING_PREFIX) or (folder.name.startswith(".") and not being_filled)
        if folder != except_folder and f"-{name}" in folder.name and not other and is_locked(folder):
            own = folder.name.split("-", 2)[2].rpartition("-")[0] if being_filled else read_manifest(folder).name
            if own == name:
                where = "reading its fleet" if being_filled else f"in {folder}"
                raise RunFolderError(
                    f'{directory}: an audit named "{name}" is running, {where}; wait for it to end, '
                    "or give this one another name or another directory"
                )


def remove_stale_folders(directory: Path) -> None:
    """Remove folders that killed processes were creating or deleting; call it inside ``directory_lock``."""
    for folder in directory.iterdir():
        if _OWN_FOLDER.fullmatch(folder.name) and not folder.is_symlink() and not is_locked(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _rename(fresh: Path, requested: Path) -> Path:
    """Give the folder its name, or the name with a number when two runs start in one second."""
    for number in range(1, 1000):
        target = requested if number == 1 else requested.with_name(f"{requested.name}-{number}")
        if not target.exists():
            try:
                return fresh.rename(target)
            except OSError as error:  # another process was faster
                if error.errno not in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}:
                    raise
    raise RunNotWritableError(f"{requested}: cannot be created: 1,000 runs with this name exist")


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """A run folder that is ready for an audit.

    Attributes:
        lock: keeps other processes from writing the folder; to be released.
        devices: the devices to query: a Parquet file like the fleet's.
        successful_devices: a device that an earlier session queried with success, by account.
    """

    folder: Path
    lock: RunLock
    manifest: Manifest
    devices: Path
    successful_devices: Mapping[str, Device] = field(default_factory=dict)
    resumed: bool = False

    def discovery_requests(self, account: str) -> RequestCounts:
        """Return the requests that earlier discovery of an account's fleet took."""
        counts = (info.requests for info in self.manifest.discovery if info.account == account)
        return next(counts, RequestCounts())

    def remove_remaining(self) -> None:
        """Remove the file of devices to query, unless it is the fleet itself."""
        if self.devices.name != FLEET:
            with contextlib.suppress(OSError):  # the next resume removes it
                self.devices.unlink(missing_ok=True)
