"""A quota that processes on several machines share: stored in Redis, under one key."""

import asyncio
import math
import secrets
import struct
import time
from collections.abc import Coroutine
from typing import NamedTuple, TypeVar

import anyio
import structlog

from auditor.errors import SettingsError
from auditor.models import Secret
from auditor.resilience.adaptive_rate import MAX_LOGGED_SENDS
from auditor.resilience.shared_quota import PRESENCE_TIMEOUT, Command, SharedQuota, copy_quota, size_for
from auditor.text.formatting import safe

log = structlog.get_logger()

T = TypeVar("T")

TIMEOUT = 1.0
"""Seconds that Redis may take to respond, including the connection. After that it counts as lost."""

RECONNECT_INTERVAL = 1.0
"""Seconds between two attempts to reach a lost Redis."""

REJOIN_DELAY = RECONNECT_INTERVAL + TIMEOUT + 1.25
"""Seconds without a request after Redis is back, or has lost the quota.

In this time the others are back too, or have noticed, and the second after that is over. Without it, some would send
their reduced share in addition to the full quota.
"""

KEY_LIFETIME = 300_000
"""Milliseconds after which Redis deletes a quota that is not used."""

MIN_LOGGED_SENDS, LOGGED_SECONDS, LOGGED_SENDS_OF_SEARCH = 64, 3, 1_024
"""Size of the log: at least so many sends, those of so many seconds, and so many while the quota is searched for."""

MAX_CLOCK_STEP = 1.0
"""Seconds that the server's clock may be set back and is waited for. More is added, see ``_adjust_clock``."""

CLOCK_SAMPLES = 5
"""Readings of the server's clock at the start; the quickest response counts."""

ERA = 1.0
"""Moments are those of the server's clock, so they mean the same after any restart."""

REPLACE = """
local stored, clock = redis.call('GET', KEYS[1]) or '', redis.call('TIME')
if string.sub(stored, 1, 8) ~= ARGV[1] then return {clock[1], clock[2], stored} end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return clock
"""
"""Write if the stored value still has the expected stamp, else read. WATCH, GET and EXEC would take three round trips.

https://redis.io/docs/latest/develop/programmability/eval-intro/ says that a script runs atomically.
"""

_ENVELOPE = struct.Struct("<8sd")
"""What precedes the quota in the value: the stamp of the last write, and seconds added to the server's clock.

The stamp is random and not a count, because a count starts again after Redis has lost the value.
"""


class _RedisLostError(Exception):
    """Redis does not respond, or denies access; the text says why."""


class _RedisReply(NamedTuple):
    """Response of Redis.

    The server's clock is between ``low`` and ``high`` seconds ahead of ours. ``stored`` is the value, empty if there is
    none, or None if ours was written.
    """

    low: float
    high: float
    stored: bytes | None


class RedisConnection:
    """Connection to a Redis server.

    Args:
        address: ``redis://HOST:6379/0``, or ``rediss://`` for TLS.
        password: of its default user; None without one.

    Raises:
        SettingsError: the library for it is not installed.
    """

    def __init__(self, address: str, password: Secret | None = None) -> None:
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import ConnectionError as RedisConnectionError
            from redis.exceptions import RedisError
        except ImportError as error:
            message = "quota_sharing: redis: the library for it is not installed: pip install 'auditor[redis]'"
            raise SettingsError(message) from error
        self._address = address
        self._errors = (RedisError, OSError)
        # One retry, because an idle connection may have been closed without notice.
        retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
        secret = None if password is None else password.reveal()
        # With the older protocol a server that requires a password says so, and nothing here needs the newer one.
        self._client = Redis.from_url(address, password=secret, protocol=2, retry=retry)
        self.offset = 0.0

    async def open(self) -> None:
        """Connect, and measure ``offset``: the seconds by which the server's clock is ahead of ours.

        Raises:
            SettingsError: it does not respond, or denies access.
        """
        try:
            replies = [await self.read_clock() for _ in range(CLOCK_SAMPLES)]
        except _RedisLostError as error:
            await self.close()
            advice = "correct the address or the password, or start the server"
            raise SettingsError(f"quota_sharing: redis: cannot use {self._address}: {error}; {advice}") from None
        quickest = min(replies, key=lambda reply: reply.high - reply.low)
        self.offset = (quickest.low + quickest.high) / 2

    async def read_clock(self) -> _RedisReply:
        """Read the server's clock and nothing else."""
        return await self.replace("auditor:", b"nothing ", b"")

    async def replace(self, key: str, stamp: bytes, value: bytes) -> _RedisReply:
        """Write a value that begins with a new stamp, if the stored one begins with ``stamp``; see ``REPLACE``."""
        began = time.monotonic()
        try:
            with anyio.fail_after(TIMEOUT):
                response = await self._client.eval(REPLACE, 1, key, stamp, value, str(KEY_LIFETIME))
        except TimeoutError:
            raise _RedisLostError(f"no response in {TIMEOUT:g} s") from None
        except self._errors as error:
            raise _RedisLostError(safe(str(error)).rstrip(".") or type(error).__name__) from None
        seconds, microseconds, *stored = response
        now = int(seconds) + int(microseconds) / 1e6
        return _RedisReply(now - time.monotonic(), now - began, stored[0] if stored else None)

    async def close(self) -> None:
        """Close the connections."""
        with anyio.move_on_after(TIMEOUT, shield=True):
            await self._client.aclose()


class RedisBackend:
    """A quota in Redis. A transaction replaces the value if no other process has in between, else it is applied again.

    When Redis is lost, each process continues with an equal share of the rate among those that were present, or with
    half of it if that is unknown. Together they stay within the quota, unless Redis is lost to one process alone: the
    others then use its share too, until throttling responses slow all of them down.

    Args:
        connection: an open one.
        name: of the quota; the same for all participants.
        configured_rate: requests a second; infinite searches for the quota.
    """

    def __init__(self, connection: RedisConnection, name: str, configured_rate: float) -> None:
        self._connection, self._key, self._configured_rate = connection, f"auditor:{name}", configured_rate
        sends = LOGGED_SENDS_OF_SEARCH
        if configured_rate != math.inf:
            sends = min(max(MIN_LOGGED_SENDS, math.ceil(LOGGED_SECONDS * configured_rate)), MAX_LOGGED_SENDS)
        self._allocate(bytes(size_for(sends)))
        self._stamp, self._added = b"", 0.0
        self._offset, self._now, self._synced_at = connection.offset, 0.0, -math.inf
        self._events: list[Command[None]] = []
        self._turn = anyio.Lock()
        self._is_lost = False
        self._tasks: set[asyncio.Task[None]] = set()

    def _allocate(self, stored: bytes, other_participants: int = 0) -> None:
        """Use memory of the size of a stored quota."""
        self._stored, self._memory = stored, bytearray(stored)
        self.quota = SharedQuota(self._configured_rate, memoryview(self._memory))
        self.quota.other_participants = other_participants

    def clock(self) -> float:
        """See ``QuotaBackend``; it is the server's clock."""
        self._now = max(self._now, time.monotonic() + self._offset)
        return self._now

    async def transaction(self, command: Command[T]) -> T:
        """See ``QuotaBackend``."""
        async with self._turn:
            if not self._is_lost:
                try:
                    return await self._transact(command)
                except _RedisLostError as error:
                    self._continue_alone(str(error))
            self._apply_events()
            self._events.clear()
            return command.apply(self.quota, self.clock())

    def record(self, event: Command[None], *, immediately: bool = False) -> None:
        """See ``QuotaBackend``."""
        self._events.append(event)
        if immediately:
            self._start(self._send_events())

    async def _send_events(self) -> None:
        if self._events:
            await self.transaction(Command(SharedQuota.refresh))

    async def _transact(self, command: Command[T]) -> T:
        while True:
            self._restore()
            events = len(self._events)
            self._apply_events()
            result = command.apply(self.quota, self.clock())
            self.quota.store(ERA)
            stamp, memory = secrets.token_bytes(8), bytes(self._memory)
            value = _ENVELOPE.pack(stamp, self._added) + memory
            reply = await self._connection.replace(self._key, self._stamp, value)
            if reply.stored is None:
                self._stamp, self._stored = stamp, memory
                del self._events[:events]
                self._adjust_clock(reply)
                self._synced_at = self.clock()
                return result
            is_lost = not reply.stored and self._stamp
            self._adopt(reply.stored)
            self._adjust_clock(reply)
            if is_lost:
                log.info("Redis has lost the shared quota; starting it again", seconds=REJOIN_DELAY)
                await anyio.sleep(REJOIN_DELAY)

    def _restore(self) -> None:
        """Return to the stored quota; nothing of a failed transaction remains."""
        self._memory[:] = self._stored
        self.quota.load(self._configured_rate, ERA, self.clock())

    def _apply_events(self) -> None:
        now = self.clock()
        for event in self._events:
            event.apply(self.quota, now)

    def _adopt(self, value: bytes) -> None:
        """Take over what another process has written, in the larger memory, so all have room for their rate."""
        self._stamp = value[:8]
        size = len(value) - _ENVELOPE.size
        if size % 8 or not size_for(1) <= size <= size_for(MAX_LOGGED_SENDS):
            self._stored = bytes(len(self._stored))  # empty, or not a quota
            return
        _, added = _ENVELOPE.unpack_from(value)
        self._added = added if 0 <= added < math.inf else 0.0
        stored = value[_ENVELOPE.size :]
        if len(stored) < len(self._stored):
            larger = bytearray(len(self._stored))
            copy_quota(memoryview(stored), memoryview(larger))
            stored = bytes(larger)
        if len(stored) > len(self._stored):
            self._allocate(stored, self.quota.other_participants)
        self._stored = stored

    def _adjust_clock(self, reply: _RedisReply) -> None:
        """Correct the clock, by no more than what is certainly wrong.

        If the server's clock is set back, ours would stand still for that time, and all that waits with it. So all
        participants add the difference to the server's time.
        """
        behind = self._offset - self._added - reply.high
        if behind > MAX_CLOCK_STEP:
            self._added += behind
        self._offset = min(max(self._offset, reply.low + self._added), reply.high + self._added)

    def _continue_alone(self, reason: str) -> None:
        self._restore()
        others = self.quota.other_participants
        if self.clock() - self._synced_at > PRESENCE_TIMEOUT:
            others = max(others, 1)
        rate = self.quota.rate
        self.quota.rate_limit = rate.current_rate * (1 + rate.margin) / (1 + others)
        self._is_lost = True
        log.warning(
            "Redis is lost: using a reduced rate until it responds again",
            per_second=round(self.quota.rate_limit, 3),
            others=others,
            reason=reason,
        )
        self._start(self._rejoin())

    async def _rejoin(self) -> None:
        while True:
            await anyio.sleep(RECONNECT_INTERVAL)
            try:
                await self._connection.read_clock()
            except _RedisLostError:
                continue
            break
        async with self._turn:
            await anyio.sleep(REJOIN_DELAY)
            self._stamp, self._stored = b"", bytes(len(self._stored))  # what the others wrote counts
            self.quota.rate_limit = math.inf
            self._is_lost = False
        log.warning("Redis responds again: the quota is shared")

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """See ``QuotaBackend``. The connection is closed by its owner."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
