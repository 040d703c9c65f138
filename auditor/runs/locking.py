"""Creation and locking of run folders: a run folder is complete from its first moment, and has one writer."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from auditor.errors import AuditorError, RunFolderError, RunLockedError, RunNotWritableError
from auditor.log import log
from auditor.models import Device
from auditor.runs.folder import FAILURES, FLEET, FOLDER_NAME, RESULTS
from auditor.runs.manifest import Manifest, read_manifest
from auditor.runs.selection_info import RequestCounts
from auditor.storage.descriptors import refuse_foreign_folder
from auditor.storage.files import (
    PRIVATE_FILE,
    PRIVATE_FOLDER,
    check_regular,
    create_file,
    sync_to_disk,
    translate_os_errors,
)
from auditor.storage.foreign_access import describe_foreign_access, find_foreign_access
from auditor.text.formatting import safe

STARTING_PREFIX = ".new-"
"""Prefix of a folder that is being filled."""

DELETING_PREFIX = ".pruned-"
"""Prefix of a folder that is being deleted."""

_OWN_FOLDER = re.compile(r"\.(new-\d{8}T\d{6}Z-.+|pruned-.+)-[0-9a-f]{8}")
"""The complete name of such a folder: no other hidden folder is ever removed."""

_NO_LINK = os.O_NOFOLLOW | os.O_NONBLOCK

LOCK = ".lock"
"""File whose lock protects a run folder, or a directory of runs. Only its owner can open it, so only they can lock it.

The folder itself could be locked by anyone who may read it. The file is removed when the lock is released; one that a
killed process left is used again.
"""

RUN_LOCK_WAIT, MAX_LOCK_WAIT = 0.1, 10.0
"""Seconds until another process counts as the writer of a run, and until the wait for a directory of runs ends.

A directory is locked while folders are created, renamed or checked, which takes milliseconds.
"""

_REPORT_AFTER, _RETRY_SECONDS = 1.0, 0.02
"""Seconds until a wait is logged, and between two attempts."""


class RunLock:
    """An exclusive lock on a run folder. It ends with its process, and removes its file when it is released.

    Use as a context manager, or call ``release``.

    Raises:
        RunFolderError: another process holds it, or the folder does not exist.
        RunNotWritableError: the file system does not support locks, or the folder cannot be written.
    """

    _holder_text = "another process is writing this run"

    def __init__(self, folder: Path, *, max_wait: float = RUN_LOCK_WAIT) -> None:
        self._descriptor = -1
        with translate_os_errors(f"{folder}: cannot be opened", RunFolderError):
            self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with translate_os_errors(f"{folder}: cannot be locked"):
                self._acquire(folder, max_wait)
        except BaseException:
            self.release()
            raise

    def _acquire(self, folder: Path, max_wait: float) -> None:
        started, reported = time.monotonic(), False
        while not self._try_lock():
            waited = time.monotonic() - started
            if waited >= max_wait:
                raise RunLockedError(f"{folder}: {self._holder_text}{describe_lock_holder(folder / LOCK)}")
            if waited >= _REPORT_AFTER and not reported:
                reported = True
                holder = describe_lock_holder(folder / LOCK).strip(" ()")
                log.warning("waiting_for_process", file=str(folder / LOCK), holder=holder, seconds=max_wait)
            time.sleep(_RETRY_SECONDS)

    def _try_lock(self) -> bool:
        """Return whether the lock was free and is ours now; raise OSError if there can be no lock."""
        try:
            descriptor = os.open(LOCK, os.O_RDWR | os.O_CREAT | _NO_LINK, PRIVATE_FILE, dir_fd=self._folder)
        except PermissionError as error:
            try:
                os.stat(LOCK, dir_fd=self._folder, follow_symlinks=False)
            except FileNotFoundError:
                raise error from None
            return False  # another user's: it is removed with the lock
        try:
            check_regular(os.fstat(descriptor))
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink > 0:  # otherwise its holder removed it just now
                self._descriptor = descriptor
                return True
        except BlockingIOError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return False

    def release(self) -> None:
        """Release the lock."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.unlink(LOCK, dir_fd=self._folder)  # the folder may have been renamed
            os.close(self._descriptor)
        if self._folder >= 0:
            os.close(self._folder)
        self._descriptor = self._folder = -1

    def refuse_replaced(self, folder: Path) -> None:
        """Raise RunNotWritableError unless a path still leads to the locked folder.

        Another user may have renamed the folder, or one above it, and put another one in its place.
        """
        with translate_os_errors(f"{folder}: cannot be checked"):
            self._refuse_other(folder, folder.stat())

    def refuse_foreign(self, folder: Path) -> None:
        """Raise OSError or RunNotWritableError unless the locked folder is the new one of a path, and the caller's."""
        self._refuse_other(folder, folder.lstat())
        refuse_foreign_folder(self._folder)

    def _refuse_other(self, folder: Path, named: os.stat_result) -> None:
        locked = os.fstat(self._folder)
        if (locked.st_dev, locked.st_ino) != (named.st_dev, named.st_ino):
            raise RunNotWritableError(
                f"{folder}: was replaced by another folder while this run was written; see who can write "
                f"{folder.parent} and the folders above it"
            )

    def finish_folder(self, mode: int) -> None:
        """Give the locked folder its mode, and its files the same without execution, whatever the umask is; sync all.

        Raises:
            OSError: a file was replaced by a link, or cannot be synced.
        """
        for name in os.listdir(self._folder):  # noqa: PTH208  a path has no descriptor
            descriptor = os.open(name, os.O_RDONLY | _NO_LINK, dir_fd=self._folder)
            try:
                if name != LOCK and stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.fchmod(descriptor, mode & 0o666)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        os.fchmod(self._folder, mode)
        os.fsync(self._folder)

    def __del__(self) -> None:
        # The caller may have been cancelled while a thread created the folder for it.
        if hasattr(self, "_folder"):
            self.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class _DirectoryLock(RunLock):
    """The lock of a directory of runs."""

    _holder_text = "another process is adding or removing runs here and does not end; wait for it, or end it"


def describe_lock_holder(path: Path) -> str:
    """Return, in parentheses, which process holds the lock of a file, as far as the system reports it."""
    try:
        found = path.lstat()
        if found.st_uid != os.geteuid():
            return f" ({path} belongs to uid {found.st_uid}; remove it if no audit runs)"
        fields = _find_holder(path)
        name = Path(f"/proc/{int(fields[4])}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except (OSError, ValueError, IndexError):
        return ""
    return f" (process {fields[4]}, {safe(name)})"


def _find_holder(path: Path) -> list[str]:
    """Return the fields of the line that the system has about the lock of a file; nothing without a lock."""
    try:
        found = path.lstat()
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return []
    return next((line.split() for line in lines if " FLOCK " in line and f":{found.st_ino} " in line), [])


def is_locked(folder: Path) -> bool:
    """Return whether a process is writing this folder now."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | _NO_LINK)
    except FileNotFoundError:
        return False
    except OSError:  # of another user, or on a file system that is only read
        return bool(_find_holder(folder / LOCK))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def was_killed(folder: Path, manifest: Manifest) -> bool:
    """Return whether a run was killed: its manifest says running, also now, and no process writes its folder."""
    if manifest.state != "running" or is_locked(folder):
        return False
    with contextlib.suppress(AuditorError):
        return read_manifest(folder).state == "running"
    return False


def current_state(folder: Path, manifest: Manifest) -> str:
    """Return a run's state: that of its manifest, or ``killed``."""
    return "killed" if was_killed(folder, manifest) else manifest.state


def directory_lock(directory: Path, max_wait: float = MAX_LOCK_WAIT) -> RunLock:
    """Give one process at a time the right to check, add or remove run folders. Raises the errors of ``RunLock``."""
    return _DirectoryLock(directory, max_wait=max_wait)


def create_run_folder(
    directory: Path,
    name: str,
    fill: Callable[[Path], None],
    *,
    now: float,
    group_readable: bool = False,
    max_wait: float = MAX_LOCK_WAIT,
) -> tuple[Path, RunLock]:
    """Create ``<directory>/<UTC time>-<name>`` with the files that ``fill`` writes, locked; on failure nothing remains.

    The directory is created if it does not exist. Only this user can read it, and with ``group_readable`` its group.
    ``now`` is in seconds since 1970; ``max_wait`` is how many seconds to wait for other processes.

    Raises:
        RunFolderError: a run of this name is being written in this directory, or the directory stays locked.
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
        mode = 0o750 if group_readable else 0o700
        directory.mkdir(mode, parents=True, exist_ok=True)
        warn_if_replaceable(directory)
        with directory_lock(directory, max_wait):
            refuse_overlap(directory, name)
            remove_stale_folders(directory)
            fresh.mkdir(PRIVATE_FOLDER)
            lock = RunLock(fresh)
            lock.refuse_foreign(fresh)
        for live in (RESULTS, FAILURES):
            create_file(fresh / live)
        fill(fresh)
        lock.finish_folder(mode)
        with directory_lock(directory, max_wait):  # otherwise another process could miss the folder under both names
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


def rename_corrected(folder: Path, manifest: Manifest) -> Path:
    """Give a run folder the name of the time at which its run really started, if a clock was wrong; return its path.

    The caller holds the lock of the run. A folder that cannot be renamed keeps its name.
    """
    named = FOLDER_NAME.fullmatch(folder.name)
    stamp = manifest.started_at[:19].replace("-", "").replace(":", "") + "Z"
    if manifest.clock_offset is None or named is None or named[1] == stamp:
        return folder
    path = folder.resolve()
    try:
        with directory_lock(path.parent):
            renamed = _rename(path, path.with_name(f"{stamp}-{manifest.name}"))
        sync_to_disk(path.parent)
    except (OSError, AuditorError) as error:
        log.warning("folder_not_renamed", folder=str(folder), reason=str(error))
        return folder
    return folder.with_name(renamed.name)


def warn_if_replaceable(directory: Path) -> None:
    """Log a warning if other users could replace runs of a directory while they are written."""
    try:
        access = find_foreign_access(directory)
    except OSError as error:
        access = f"cannot be checked: {error.strerror}"
    if access is not None:
        log.warning(
            "run_replaceable", directory=str(directory), reason=access,
            advice="keep runs in a directory that only you can write, as are the folders above it",
        )  # fmt: skip


def refuse_overlap(directory: Path, name: str, *, except_folder: Path | None = None) -> None:
    """Raise RunFolderError if another run of this name is being written; call it inside ``directory_lock``.

    Links and folders of other users are ignored: any user could pretend to run an audit. Modes do not matter, since
    file systems without modes show every folder as writable by others.
    """
    own_users = {os.geteuid(), 0}
    for folder in directory.iterdir():
        being_filled = _OWN_FOLDER.fullmatch(folder.name) is not None
        other = folder.name.startswith(DELETING_PREFIX) or (folder.name.startswith(".") and not being_filled)
        if folder == except_folder or f"-{name}" not in folder.name or other or not is_locked(folder):
            continue
        if not folder.is_symlink() and folder.stat().st_uid in own_users:
            own = folder.name.split("-", 2)[2].rpartition("-")[0] if being_filled else read_manifest(folder).name
            if own == name:
                where = "reading its fleet" if being_filled else f"in {folder}"
                raise RunFolderError(
                    f'{directory}: an audit named "{name}" is running, {where}; wait for it to end, '
                    "or give this one another name or another directory"
                )


def remove_stale_folders(directory: Path) -> None:
    """Remove folders that killed processes of the caller were creating or deleting, inside ``directory_lock``.

    Nothing is removed from a directory where another user can rename a folder of the caller.
    """
    with contextlib.suppress(OSError):
        if describe_foreign_access(directory) is not None:
            return
    for folder in directory.iterdir():
        if _OWN_FOLDER.fullmatch(folder.name) and not folder.is_symlink() and not is_locked(folder):
            with contextlib.suppress(OSError):
                if folder.lstat().st_uid == os.geteuid():  # of others, it may have any content
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
        successful_devices: a device that an earlier audit session queried with success, by account.
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
