"""Where a quota is stored: in this process, or in a place that several processes share and that can be lost."""

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Protocol, TypeVar

import anyio

from auditor.log import log
from auditor.resilience.shared_quota import (
    PRESENCE_TIMEOUT,
    STATE_LIFETIME,
    VERSION,
    Command,
    NotDue,
    Permit,
    SharedQuota,
)

T = TypeVar("T")

TIMEOUT = 1.0
"""Seconds that a transaction may take. After that the shared quota counts as lost."""

MAX_WAIT, MAX_WAIT_IN_PERMITS = 180.0, 20
"""Seconds that a process waits for a permit at most, and the time of so many permits. The longest pause is shorter."""

MAX_REFUSAL_GAP = 75.0
"""Seconds between two attempts to get a permit up to which a process waits all the time, pauses included."""

RECONNECT_INTERVAL, MAX_RECONNECT_INTERVAL = 1.0, 60.0
"""Seconds between two checks of a lost quota, doubled up to the maximum while it is lost again and again."""

LOST_AGAIN = 60.0
"""Seconds in which a quota that was shared again counts as lost again."""

REJOIN_DELAY = RECONNECT_INTERVAL + TIMEOUT + 1.25
"""Seconds without a request before a lost quota is shared again.

In this time the others are back too, or have noticed, and the second after that is over. Without it, some would send
their reduced share in addition to the full quota.
"""

LAYOUT = f"quota{VERSION}"
"""Part of the name of each shared file and key."""


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


class QuotaLostError(Exception):
    """The place of a shared quota cannot be used; the text says why."""


class ClockAheadError(QuotaLostError):
    """The clock of the place is too far ahead.

    The others notice it later, so nothing is sent for a moment. Some of them were perhaps lost before they were seen
    here, so there are one more than were counted, and two at least.
    """


class SharedBackend(ABC):
    """A quota that other processes change, too.

    While its place is lost, each process continues with an equal share of the rate among those that were present, or
    with half of it if that is unknown. Together they stay within the quota, unless it is lost to one process alone: the
    others then use its share too, until throttling responses slow all of them down.

    Args:
        place: where it is stored, for warnings.
        configured_rate: requests a second; infinite searches for the quota.
        era: a number that differs where moments mean something else.
        memory: this process's copy of the stored quota.
    """

    def __init__(self, place: str, configured_rate: float, era: float, memory: bytearray) -> None:
        self._place, self._configured_rate, self._era = place, configured_rate, era
        self._use_memory(memory)
        self._events: list[Command[None]] = []
        self._turn = anyio.Lock(fast_acquire=True)
        self._is_lost = False
        self._shared_at, self._reconnect_interval = -math.inf, RECONNECT_INTERVAL
        self._synced_at = self._active_until = -math.inf
        self._synced, self._sends = b"", 0
        self._others = 0
        self._waiting_since: float | None = None
        self._refused_at = -math.inf
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def _use_memory(self, memory: bytearray) -> None:
        self._memory = memoryview(memory)
        self.quota = SharedQuota(self._configured_rate, self._memory)

    @abstractmethod
    def clock(self) -> float:
        """See ``QuotaBackend``."""

    @abstractmethod
    async def _transact(self, command: Command[T]) -> T:
        """Apply the events and a command to the stored quota; raise QuotaLostError if that is not possible."""

    @abstractmethod
    async def _check(self) -> None:
        """Raise QuotaLostError unless the quota can be read and written; create it again if it is corrupt."""

    async def transaction(self, command: Command[T]) -> T:
        """See ``QuotaBackend``."""
        async with self._turn:
            if not self._is_lost:
                try:
                    return self._check_wait(await self._transact(command))
                except QuotaLostError as error:
                    self._continue_alone(error)
            self._apply_events()
            return command.apply(self.quota, self.clock())

    def _check_wait(self, result: T) -> T:
        """Return the result of a command.

        Raises:
            QuotaLostError: there was no permit for so long that what is stored cannot be right.
        """
        now = time.monotonic()
        if isinstance(result, Permit):
            self._waiting_since = None
        elif isinstance(result, NotDue):
            if self._waiting_since is None or now - self._refused_at > MAX_REFUSAL_GAP:
                self._waiting_since = now
            since, self._refused_at = self._waiting_since, now
            participants = 1 + self.quota.other_participants
            if now - since > MAX_WAIT + MAX_WAIT_IN_PERMITS * participants / self.quota.rate.current_rate:
                self._waiting_since, self._synced = None, bytes(len(self._memory))  # nothing of it is used
                raise QuotaLostError(f"it has given no permit for {now - since:.0f} s")
        return result

    def record(self, event: Command[None], *, immediately: bool = False) -> None:
        """See ``QuotaBackend``."""
        self._events.append(event)
        if immediately:
            self._start(self._send_events())

    async def _send_events(self) -> None:
        if self._events:
            await self.transaction(Command(SharedQuota.refresh))

    def _load(self) -> None:
        """Read the stored quota; raise QuotaLostError if what this process has stored within a minute is gone."""
        now = self.clock()
        is_read = self.quota.load(self._configured_rate, self._era, now)
        is_recent = now - STATE_LIFETIME <= self._active_until
        if is_recent and (not is_read or self.quota.rate.send_log.count < self._sends):
            raise QuotaLostError("what was stored there is gone or damaged")

    def _on_synced(self) -> None:
        """Record that the quota of this process is the stored one."""
        self._synced_at, self._synced = self.clock(), bytes(self._memory)
        self._active_until, self._sends = self.quota.active_until, self.quota.rate.send_log.count

    def _apply_events(self) -> None:
        now = self.clock()
        for event in self._events:
            event.apply(self.quota, now)
        self._events.clear()

    def _continue_alone(self, reason: QuotaLostError) -> None:
        now, others = self.clock(), self.quota.other_participants
        if len(self._synced) == len(self._memory):
            self._memory[:] = self._synced  # what was learned last; the quota may be damaged or half changed
            self.quota.load(self._configured_rate, self._era, now)
        if now - self._synced_at > PRESENCE_TIMEOUT:
            others = max(others, 1)
        if isinstance(reason, ClockAheadError):
            others = max(others + 1, 2)
            self.quota.pause(now + PRESENCE_TIMEOUT, now)
        if again := now - self._shared_at < LOST_AGAIN:
            others = max(others, self._others)  # those present before may be alone, too
        self._others = others
        rate = self.quota.rate
        self.quota.rate_limit = rate.current_rate * (1 + rate.margin) / (1 + others)
        self._is_lost = True
        self._reconnect_interval = (
            min(2 * self._reconnect_interval, MAX_RECONNECT_INTERVAL) if again else RECONNECT_INTERVAL
        )
        log.warning(
            "quota_storage_lost",
            place=self._place,
            per_second=round(self.quota.rate_limit, 3),
            others=others,
            reason=str(reason),
        )
        self._start(self._rejoin())

    async def _rejoin(self) -> None:
        while True:
            await anyio.sleep(self._reconnect_interval)
            try:
                await self._check()
            except QuotaLostError:
                if self._is_closed:  # a client that was cancelled may report that as an error of the connection
                    return
                continue
            break
        async with self._turn:
            await anyio.sleep(REJOIN_DELAY)
            self._use_memory(bytearray(len(self._memory)))  # what the others stored counts
            self._active_until, self._synced, self._sends = -math.inf, b"", 0
            self._is_lost, self._shared_at = False, self.clock()
        log.warning("quota_shared_again", place=self._place)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """See ``QuotaBackend``."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
