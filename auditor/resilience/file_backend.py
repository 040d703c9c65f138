"""A quota in a file that the processes of a machine share, and the directory of these files."""

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import anyio

from auditor.errors import SettingsError
from auditor.resilience.adaptive_rate import MAX_LOGGED_SENDS
from auditor.resilience.quota_backends import LAYOUT, TIMEOUT, QuotaLostError, SharedBackend
from auditor.resilience.shared_quota import STATE_LIFETIME, Command, SharedQuota, size_for

T = TypeVar("T")

LOCK_INTERVAL = 0.001
"""Seconds between two attempts to lock. A lock is held for some microseconds."""

FILE_CHECK_INTERVAL = 0.5
"""Seconds between two checks whether the file is still the one that others open."""

RECREATED_SECONDS = 0.5
"""Seconds that a file which was created again must stay a quota before it is used."""

FILE_SUFFIX = f".{LAYOUT}"
"""Suffix of shared files."""

MACHINE_DIRECTORY = "/tmp/auditor-{user}"  # noqa: S108  its owner is checked
"""Directory of shared files by default. TMPDIR, XDG_RUNTIME_DIR and the home differ between cron and a shell."""

MAX_FILE_AGE = 3_600.0
"""Seconds since its last use after which a file is removed."""

_STAMP_SIZE = 8
"""Bytes of a random stamp before and after the quota. They differ if a process was killed while it wrote."""

_QUOTA_SIZE = size_for(MAX_LOGGED_SENDS)
_FILE_SIZE = _QUOTA_SIZE + 2 * _STAMP_SIZE


class FileBackend(SharedBackend):
    """A quota in a file. Each process locks it for the time of a transaction, in which it reads and writes all of it.

    Nothing needs cleaning up: the lock ends with its process, and what was learned is discarded after a minute. A
    process that holds the lock for longer, or damages the file, stops no other: see ``SharedBackend``.

    Args:
        path: the file; created if missing.
        configured_rate: requests a second; infinite searches for the quota.

    Raises:
        OSError: it is no regular file with one name, or cannot be opened.
    """

    def __init__(self, path: Path, configured_rate: float) -> None:
        super().__init__(str(path), configured_rate, _boot_id(), bytearray(_QUOTA_SIZE))
        self._path = path
        self._check_at = 0.0
        self._buffer = bytearray(_QUOTA_SIZE)
        self._descriptor = _open_shared(path)

    def clock(self) -> float:
        """See ``QuotaBackend``."""
        return time.monotonic()

    async def _transact(self, command: Command[T]) -> T:
        deadline = self.clock() + TIMEOUT
        while not self._try_lock():
            if self.clock() > deadline:
                raise QuotaLostError(f"another process has held its lock for {TIMEOUT:g} s")
            await anyio.sleep(LOCK_INTERVAL)
        return self._apply(command)

    def _apply(self, command: Command[T]) -> T:
        """Apply the events and a command, and unlock the file."""
        with self._unlocking():
            _read_quota(self._descriptor, self._buffer)
            if self._buffer != self._synced or self._active_until < self.clock() - STATE_LIFETIME:
                self._memory[:] = self._buffer
                self._load()
            self._apply_events()
            result = command.apply(self.quota, self.clock())
            self.quota.store(self._era)
            _write_quota(self._descriptor, self._memory)
            self._on_synced()
            return result

    def record(self, event: Command[None], *, immediately: bool = False) -> None:
        """See ``QuotaBackend``."""
        self._events.append(event)
        if immediately and not self._is_lost:
            with contextlib.suppress(QuotaLostError):  # the next transaction finds it lost, too
                if self._try_lock():
                    self._apply(Command(SharedQuota.refresh))

    @contextlib.contextmanager
    def _unlocking(self) -> Iterator[None]:
        """Unlock the file afterwards, and turn errors of the system into QuotaLostError."""
        descriptor = self._descriptor
        try:
            yield
        except OSError as error:
            raise QuotaLostError(error.strerror or str(error)) from error
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)

    def _try_lock(self) -> bool:
        """Lock the file that others open now, if no other process has locked it; raise QuotaLostError if it is gone."""
        try:
            now = self.clock()
            if now >= self._check_at:
                self._check_file()
                self._check_at = now + FILE_CHECK_INTERVAL
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise QuotaLostError(error.strerror or str(error)) from error
        return True

    def _check_file(self) -> None:
        """Raise OSError unless the file is open and is the one that has its name."""
        if self._descriptor < 0:
            self._descriptor = _open_shared(self._path)
        opened, named = os.fstat(self._descriptor), self._path.lstat()
        if (opened.st_dev, opened.st_ino) != (named.st_dev, named.st_ino):
            raise OSError(errno.ESTALE, "the file was replaced")

    async def _check(self) -> None:
        """See ``SharedBackend``."""
        self._close_file()
        self._check_at = 0.0
        if not self._store_if_corrupt():
            await anyio.sleep(RECREATED_SECONDS)
            if not self._store_if_corrupt():
                raise QuotaLostError("another process damages it")

    def _store_if_corrupt(self) -> bool:
        """Write the stored quota again, or an empty one if it is corrupt; return whether it was a quota."""
        if not self._try_lock():
            raise QuotaLostError("another process holds its lock")
        with self._unlocking():
            memory, now = bytearray(_QUOTA_SIZE), self.clock()
            quota = SharedQuota(self._configured_rate, memoryview(memory))
            _read_quota(self._descriptor, memory)
            is_read = quota.load(self._configured_rate, self._era, now)
            if not is_read:
                quota.pause(now, now)  # a quota without any activity would not be read
                quota.store(self._era)
                os.ftruncate(self._descriptor, _FILE_SIZE)
            _write_quota(self._descriptor, memory)
            return is_read

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def close(self) -> None:
        """See ``QuotaBackend``."""
        await super().close()
        self._close_file()


def _read_quota(descriptor: int, memory: bytearray) -> None:
    """Read a quota; a file that is too small or half written leaves zeros, which are no quota."""
    first, last = bytearray(_STAMP_SIZE), bytearray(_STAMP_SIZE)
    if os.preadv(descriptor, [first, memory, last], 0) < _FILE_SIZE or first != last:
        memory[:] = bytes(_QUOTA_SIZE)


def _write_quota(descriptor: int, memory: "bytearray | memoryview[int]") -> None:
    stamp = secrets.token_bytes(_STAMP_SIZE)
    if os.pwritev(descriptor, [stamp, memory, stamp], 0) < _FILE_SIZE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _open_shared(path: Path) -> int:
    """Open the file, or create it; it can be read and written by those who can write its directory.

    Raises:
        OSError: it cannot be opened, or is no regular file, or has a second name, which may be that of another file.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)  # without O_CREAT, which Linux refuses for other users' files in /tmp
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT, 0o600)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise OSError(errno.EINVAL, "not a regular file with one name")  # noqa: TRY301  the descriptor is closed
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


def _boot_id() -> float:
    """Return a number that identifies the current boot of the machine, or 0 if it is not available."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return float(int(text.replace("-", "")[:12], 16))


def machine_directories(runs: Path) -> list[Path]:
    """Return where this user's processes on this machine can share quotas, the best first; ``runs`` is the last.

    XDG_RUNTIME_DIR and XDG_STATE_HOME are those of
    https://specifications.freedesktop.org/basedir-spec/latest/, with their usual values if they are not set.
    """
    user = os.geteuid()
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{user}")
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    found = [runtime / "auditor", state / "auditor", runs / ".auditor"]
    return [Path(MACHINE_DIRECTORY.format(user=user)), *(path for path in found if path.parent.is_dir())]


def prepare_directory(path: Path) -> None:
    """Create a directory that only this user can use, and remove the files of quotas that are not used.

    Raises:
        SettingsError: others can write it, so they could slow us down.
        OSError: it cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise SettingsError(f"{path}: not a directory that only this user can write; remove it")
    with contextlib.suppress(OSError):
        for file in path.glob("*.quota*"):
            if time.time() - file.lstat().st_mtime > MAX_FILE_AGE:
                file.unlink(missing_ok=True)  # a process that still uses it creates it again
