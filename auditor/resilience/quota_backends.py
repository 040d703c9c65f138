"""Where a budget lies: in this process alone, or in a file that all processes of a machine share."""

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
from auditor.resilience.adaptive_rate import MOST_MOMENTS
from auditor.resilience.shared_quota import Budget, cells_for

log = structlog.get_logger()


T = TypeVar("T")


News = Callable[[Budget], None]
"""What became of a request, told to the budget."""


BETWEEN = 0.001
"""Seconds between two tries to lock; a lock is held for some microseconds."""


STUCK = 5.0
"""Seconds after which who holds the lock counts as stopped in the middle of it, and another file is begun."""


LOOKED_AFTER, AGAIN_AFTER = 0.5, 5.0
"""Seconds after which it is seen whether the file is still the one that others open; and if it could not be opened."""


SUFFIX = ".budget"
"""How the names of shared files end."""


ON_THIS_MACHINE = "/tmp/auditor-{user}"  # noqa: S108  it is looked whose it is
"""Where they lie by default: not in TMPDIR, XDG_RUNTIME_DIR or a home, of which cron and a shell have others."""


KEPT = 3_600.0
"""Seconds that a file lies there which nobody opened."""


class Ledger(Protocol):
    """Keeps one budget. Times are those of its ``clock``."""

    @property
    def budget(self) -> Budget:
        """As it was when it was last looked at."""

    def clock(self) -> float:
        """Seconds, never falling."""

    async def look(self, work: Callable[[Budget], T]) -> T:
        """What ``work`` gives, with the budget to itself; it may be called again where others came in between."""

    def tell(self, news: News, *, at_once: bool = False) -> None:
        """Tells the budget, ``at_once`` if that can be done without a wait, else before the next look."""

    async def close(self) -> None:
        """Gives back what is open."""


class Alone:
    """A budget that nobody shares.

    Args:
        told: requests a second; infinite looks for them.
        clock: seconds.
    """

    def __init__(self, told: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = Budget(told)
        self.clock = clock

    async def look(self, work: Callable[[Budget], T]) -> T:
        """See ``Ledger``."""
        return work(self.budget)

    def tell(self, news: News, *, at_once: bool = False) -> None:  # noqa: ARG002  here it always is
        """See ``Ledger``."""
        news(self.budget)

    async def close(self) -> None:
        """See ``Ledger``."""


class SharedFile:
    """A budget in a file that processes map into their memory, each locking it for the moment of a look.

    Nothing has to be cleaned up: the lock dies with its process, and what was learned is forgotten after a minute.

    Args:
        path: the file; made if it is not there.
        told: requests a second; infinite looks for them.
    """

    def __init__(self, path: Path, told: float) -> None:
        self._path, self._told = path, told
        self._era = _boot()
        self._news: list[News] = []
        self._descriptor = -1
        self._there_until = 0.0
        self._warned = False
        self.clock = time.monotonic
        self._open()

    def _open(self) -> None:
        size = 8 * cells_for(MOST_MOMENTS)
        self._descriptor = _opened(self._path)
        try:
            _fill(self._descriptor, size)
            mapped = mmap.mmap(self._descriptor, size)
        except BaseException:
            os.close(self._descriptor)
            raise
        self.budget = Budget(self._told, memoryview(mapped).cast("d"))

    async def look(self, work: Callable[[Budget], T]) -> T:
        """See ``Ledger``."""
        since = self.clock()
        while not self._locked():
            if self.clock() - since > STUCK:
                log.warning("another process holds the shared budget and does not go on", file=str(self._path))
                self._leave()
                since = self.clock()
            await anyio.sleep(BETWEEN)
        return self._work(work)

    def tell(self, news: News, *, at_once: bool = False) -> None:
        """See ``Ledger``."""
        self._news.append(news)
        if at_once and self._locked():
            self._work(lambda _: None)

    def _work(self, work: Callable[[Budget], T]) -> T:
        try:
            self.budget.load(self._told, self._era, self.clock())
            for news in self._news:
                news(self.budget)
            self._news.clear()
            result = work(self.budget)
            self.budget.store(self._era)
            return result
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _locked(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        now = self.clock()
        if now < self._there_until:
            return True
        if os.fstat(self._descriptor).st_nlink > 0:
            os.utime(self._descriptor)  # mapped memory leaves no trace of being used, and old files are tidied up
            self._there_until = now + LOOKED_AFTER
            return True
        if self._reopened():  # somebody tidied up, or began another one
            return False
        self._there_until = now + AGAIN_AFTER  # until then it goes on with those who hold the old one too
        return True

    def _leave(self) -> None:
        """Begins another file, and leaves this one to who stands still with it."""
        with contextlib.suppress(OSError):
            if self._path.stat().st_ino == os.fstat(self._descriptor).st_ino:
                self._path.unlink()
        self._reopened()

    def _reopened(self) -> bool:
        self._there_until = 0.0
        before = self._descriptor
        try:
            self._open()
        except OSError as error:
            self._descriptor = before
            if not self._warned:
                self._warned = True
                log.warning("the shared budget cannot be opened anew", file=str(self._path), reason=error.strerror)
            return False
        os.close(before)
        self._warned = False
        return True

    async def close(self) -> None:
        """See ``Ledger``."""
        if self._descriptor >= 0:
            os.close(self._descriptor)  # the memory goes with its last reader
            self._descriptor = -1


def _opened(path: Path) -> int:
    """The file, made if need be; readable and writable to whom its directory is writable."""
    how = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, how)  # without O_CREAT, which Linux refuses for another user's file in such as /tmp
    except FileNotFoundError:
        descriptor = os.open(path, how | os.O_CREAT, 0o600)
    try:
        found = os.fstat(descriptor)
        if found.st_uid == os.geteuid() and found.st_size == 0:
            parent = path.parent.stat()
            writable = parent.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if found.st_gid != parent.st_gid:
                with contextlib.suppress(PermissionError):  # he is not of that group, and may write as another
                    os.fchown(descriptor, -1, parent.st_gid)
            os.fchmod(descriptor, 0o600 | writable | writable << 1)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _fill(descriptor: int, size: int) -> None:
    """Makes a file as large as that, of bytes that are there: else a full disk kills who writes to mapped memory.

    Raises:
        OSError: there is no room.
    """
    there = os.fstat(descriptor).st_size
    if there < size and os.pwrite(descriptor, bytes(size - there), there) < size - there:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _boot() -> float:
    """A number for the time since the machine was started; 0 where it tells none."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return float(int(text.replace("-", "")[:12], 16))


def place_on_this_machine() -> Path:
    """The directory where the processes of this user on this machine share budgets: the same for cron and a shell.

    Raises:
        SettingsError: it is not ours, so others could slow us down.
        OSError: it cannot be made.
    """
    path = Path(ON_THIS_MACHINE.format(user=os.geteuid()))
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise SettingsError(f"{path}: is not a directory of ours alone; remove it, or name another in the settings")
    _tidy_up(path)
    return path


def _tidy_up(directory: Path) -> None:
    """Removes budgets of long ago; one that is in use all the same is begun anew by who uses it."""
    with contextlib.suppress(OSError):
        for path in directory.glob(f"*{SUFFIX}"):
            if time.time() - path.stat().st_mtime > KEPT:
                path.unlink(missing_ok=True)
