"""Where a quota is stored: in this process, or in a file that the processes of a machine share."""

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import anyio
import structlog

from auditor.errors import SettingsError
from auditor.resilience.adaptive_rate import MAX_LOGGED_SENDS
from auditor.resilience.shared_quota import Command, SharedQuota, size_for

log = structlog.get_logger()

T = TypeVar("T")

LOCK_INTERVAL = 0.001
"""Seconds between two attempts to lock. A lock is held for some microseconds."""

MAX_LOCK_WAIT = 5.0
"""Seconds after which the holder of the lock counts as stopped, and a new file is created."""

FILE_CHECK_INTERVAL, REOPEN_INTERVAL = 0.5, 5.0
"""Seconds between two checks whether the file is still the one that others open, and between attempts to reopen it."""

FILE_SUFFIX = ".quota"
"""Suffix of shared files."""

MACHINE_DIRECTORY = "/tmp/auditor-{user}"  # noqa: S108  its owner is checked
"""Directory of shared files by default. TMPDIR, XDG_RUNTIME_DIR and the home differ between cron and a shell."""

MAX_FILE_AGE = 3_600.0
"""Seconds since its last use after which a file is removed."""


class QuotaBackend(Protocol):
    """Storage of one shared quota. All moments are those of its ``clock``."""

    @property
    def quota(self) -> SharedQuota:
        """The quota after the latest transaction."""

    def clock(self) -> float:
        """Return seconds that never decrease."""

    async def transaction(self, command: Command[T]) -> T:
        """Apply a command to the current quota and return its result.

        The command is applied again if another process changed the quota in the meantime.
        """

    def record(self, event: Command[None], *, immediately: bool = False) -> None:
        """Apply an event: ``immediately`` if that takes no waiting, else before the next transaction."""

    async def close(self) -> None:
        """Release what is open."""


class LocalBackend:
    """A quota of this process alone; an infinite ``configured_rate`` searches for it."""

    def __init__(self, configured_rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.quota = SharedQuota(configured_rate)
        self.clock = clock

    async def transaction(self, command: Command[T]) -> T:
        """See ``QuotaBackend``."""
        return command.apply(self.quota, self.clock())

    def record(self, event: Command[None], *, immediately: bool = False) -> None:  # noqa: ARG002  it always is
        """See ``QuotaBackend``."""
        event.apply(self.quota, self.clock())

    async def close(self) -> None:
        """See ``QuotaBackend``."""


class FileBackend:
    """A quota in a file that processes map into their memory. Each locks it for the time of a transaction.

    Nothing needs cleaning up: the lock ends with its process, and what was learned is discarded after a minute.

    Args:
        path: the file; created if missing.
        configured_rate: requests a second; infinite searches for the quota.
    """

    def __init__(self, path: Path, configured_rate: float) -> None:
        self._path, self._configured_rate = path, configured_rate
        self._era = _boot_id()
        self._events: list[Command[None]] = []
        self._descriptor = -1
        self._check_at = 0.0
        self._warned = False
        self.clock = time.monotonic
        self._open()

    def _open(self) -> None:
        size = size_for(MAX_LOGGED_SENDS)
        self._descriptor = _open_shared(self._path)
        try:
            _allocate(self._descriptor, size)
            mapped = mmap.mmap(self._descriptor, size)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.quota = SharedQuota(self._configured_rate, memoryview(mapped))

    async def transaction(self, command: Command[T]) -> T:
        """See ``QuotaBackend``."""
        since = self.clock()
        while not self._try_lock():
            if self.clock() - since > MAX_LOCK_WAIT:
                log.warning("another process holds the shared quota and is stopped", file=str(self._path))
                self._replace_file()
                since = self.clock()
            await anyio.sleep(LOCK_INTERVAL)
        try:
            self._refresh()
            result = command.apply(self.quota, self.clock())
            self.quota.store(self._era)
            return result
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def record(self, event: Command[None], *, immediately: bool = False) -> None:
        """See ``QuotaBackend``."""
        self._events.append(event)
        if immediately and self._try_lock():
            try:
                self._refresh()
                self.quota.store(self._era)
            finally:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _refresh(self) -> None:
        """Read what others wrote, and apply the events."""
        now = self.clock()
        self.quota.load(self._configured_rate, self._era, now)
        for event in self._events:
            event.apply(self.quota, now)
        self._events.clear()

    def _try_lock(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        now = self.clock()
        if now < self._check_at:
            return True
        if os.fstat(self._descriptor).st_nlink > 0:
            os.utime(self._descriptor)  # mapped memory leaves no trace of use, and unused files are removed
            self._check_at = now + FILE_CHECK_INTERVAL
            return True
        if self._reopen():  # the file was removed or replaced
            return False
        self._check_at = now + REOPEN_INTERVAL  # until then it shares with those who hold the old file too
        return True

    def _replace_file(self) -> None:
        """Start a new file, and leave the current one to the stopped process that holds it."""
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == os.fstat(self._descriptor).st_ino:
                self._path.unlink()
        self._reopen()

    def _reopen(self) -> bool:
        self._check_at = 0.0
        before = self._descriptor
        try:
            self._open()
        except OSError as error:
            self._descriptor = before
            if not self._warned:
                self._warned = True
                log.warning("cannot reopen the shared quota", file=str(self._path), reason=error.strerror)
            return False
        os.close(before)
        self._warned = False
        return True

    async def close(self) -> None:
        """See ``QuotaBackend``."""
        if self._descriptor >= 0:
            os.close(self._descriptor)  # the memory is released with its last reader
            self._descriptor = -1


def _open_shared(path: Path) -> int:
    """Open the file, or create it; it can be read and written by those who can write its directory."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags)  # without O_CREAT, which Linux refuses for other users' files in /tmp
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT, 0o600)
    try:
        found = os.fstat(descriptor)
        if found.st_uid == os.geteuid() and found.st_size == 0:
            parent = path.parent.stat()
            writable = parent.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if found.st_gid != parent.st_gid:
                with contextlib.suppress(PermissionError):  # not a member of the group; others may still write it
                    os.fchown(descriptor, -1, parent.st_gid)
            os.fchmod(descriptor, 0o600 | writable | writable << 1)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _allocate(descriptor: int, size: int) -> None:
    """Extend a file to a size with real bytes, because a full disk kills a process that writes to mapped memory."""
    present = os.fstat(descriptor).st_size
    if present < size and os.pwrite(descriptor, bytes(size - present), present) < size - present:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _boot_id() -> float:
    """Return a number that identifies the current boot of the machine, or 0 if it is not available."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return float(int(text.replace("-", "")[:12], 16))


def machine_directory() -> Path:
    """Return the directory where this user's processes on this machine share quotas, without the files of unused ones.

    Raises:
        SettingsError: others can write it, so they could slow us down.
        OSError: it cannot be created.
    """
    path = Path(MACHINE_DIRECTORY.format(user=os.geteuid()))
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        advice = "remove it, or name another one in the settings"
        raise SettingsError(f"{path}: not a directory that only this user can write; {advice}")
    with contextlib.suppress(OSError):
        for file in path.glob(f"*{FILE_SUFFIX}"):
            if time.time() - file.stat().st_mtime > MAX_FILE_AGE:
                file.unlink(missing_ok=True)  # a process that still uses it creates it again
    return path
