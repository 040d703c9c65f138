"""A quota that processes on several machines share: stored in Redis, under one key."""

import math
import secrets
import struct
import time
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import anyio

from auditor.errors import SettingsError
from auditor.models import Secret
from auditor.resilience.adaptive_rate import MAX_LOGGED_SENDS
from auditor.resilience.quota_backends import LAYOUT, TIMEOUT, ClockAheadError, QuotaLostError, SharedBackend
from auditor.resilience.shared_quota import AHEAD, Command, copy_quota, size_for
from auditor.text.extras import describe_extra
from auditor.text.formatting import safe

T = TypeVar("T")

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

MAX_CONFLICT_SECONDS = 5.0
"""Seconds in which a transaction must succeed that others' transactions precede."""

MAX_TIME = 1e11
"""Seconds since 1970 that a server's clock can show."""

MAX_LAG, MAX_LEAD, MAX_DRIFT = 5.0, AHEAD, 0.01
"""Seconds that the server's clock may fall behind ours in total, more for each second that has passed, and be ahead.

A clock that does not advance would give no permit. If one is ahead by more than permits are taken ahead, participants
that read it later would take all of them.
"""

MAX_JUMP = 0.02
"""Seconds that our clock catches up immediately with one that is ahead. Then it gains ``MAX_DRIFT`` a second, because
permits are as many as our clock has seconds.
"""

MAX_ADDED = 366 * 86_400.0
"""Seconds that can be added to the server's clock. With far more of them a float could not count milliseconds."""

REPLACE = """
local stored, clock = redis.call('GETRANGE', KEYS[1], 0, ARGV[4]), redis.call('TIME')
if string.sub(stored, 1, 8) ~= ARGV[1] then return {clock[1], clock[2], stored} end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return clock
"""
"""Write if the stored value still has the expected stamp, else read. WATCH, GET and EXEC would take three round trips.

https://redis.io/docs/latest/develop/programmability/eval-intro/ says that a script runs atomically.
"""

CHECK = """
redis.call('SET', KEYS[2], '', 'PX', 1000)
redis.call('GETRANGE', KEYS[1], 0, 7)
return redis.call('TIME')
"""
"""Write to a key of its own, and read the quota. A Redis whose memory is full, or that is a replica, reads only."""

_ENVELOPE = struct.Struct("<8sd")
"""What precedes the quota in the value: the stamp of the last write, and seconds added to the server's clock.

The stamp is random and not a count, because a count starts again after Redis has lost the value.
"""

MAX_VALUE_SIZE = _ENVELOPE.size + size_for(MAX_LOGGED_SENDS)
"""Bytes that are read of a value. A longer one is not a quota."""


def key_of(name: str) -> str:
    """Return the key of a quota. The braces keep all keys of one quota on one node of a cluster."""
    return f"auditor:{LAYOUT}:{{{name}}}"


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
        address: ``rediss://HOST:6379/0``, or ``redis://`` without TLS.
        password: of the user; None without one.
        username: the default user if None.
        ca_file: certificates that the server's must be signed by; None for those of the machine.

    Raises:
        SettingsError: the library for it is not installed.
    """

    def __init__(
        self, address: str, password: Secret | None = None, *, username: str | None = None, ca_file: str | None = None
    ) -> None:
        try:
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
            from redis.exceptions import ConnectionError as RedisConnectionError
            from redis.exceptions import RedisError
        except ImportError as error:
            message = "quota_sharing: redis: the library for it is not installed"
            raise SettingsError(f"{message}: {describe_extra('redis')}") from error
        self.address = address
        self._errors = (RedisError, OSError)
        # One retry, because an idle connection may have been closed without notice.
        retry = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
        secret = None if password is None else password.reveal()
        tls: dict[str, Any] = {} if ca_file is None else {"ssl_ca_certs": ca_file}
        # With the older protocol a server that requires a password says so, and nothing here needs the newer one.
        self._client = Redis.from_url(address, username=username, password=secret, protocol=2, retry=retry, **tls)
        self.offset = 0.0

    async def open(self, name: str = "") -> None:
        """Connect, check that the quota of this name can be used, and measure ``offset``.

        ``offset`` is the seconds by which the server's clock is ahead of ours.

        Raises:
            SettingsError: it does not respond, denies access, or refuses to write.
        """
        try:
            replies = [await self.check(key_of(name)) for _ in range(CLOCK_SAMPLES)]
        except QuotaLostError as error:
            await self.close()
            advice = "correct the address, the user, the password or ca_file, or repair the server"
            raise SettingsError(f"quota_sharing: redis: cannot use {self.address}: {error}; {advice}") from None
        quickest = min(replies, key=lambda reply: reply.high - reply.low)
        self.offset = (quickest.low + quickest.high) / 2

    async def check(self, key: str) -> _RedisReply:
        """Read the server's clock; raise QuotaLostError unless the quota under a key can be read and written."""
        return await self._run(CHECK, key, f"{key}:check")

    async def replace(self, key: str, stamp: bytes, value: bytes) -> _RedisReply:
        """Write a value that begins with a new stamp, if the stored one begins with ``stamp``; see ``REPLACE``."""
        return await self._run(REPLACE, key, arguments=(stamp, value, str(KEY_LIFETIME), str(MAX_VALUE_SIZE)))

    async def _run(self, script: str, *keys: str, arguments: tuple[bytes | str, ...] = ()) -> _RedisReply:
        began = time.monotonic()
        try:
            with anyio.fail_after(TIMEOUT):
                response = await self._client.eval(script, len(keys), *keys, *arguments)
            members: list[Any] = response if isinstance(response, list) else []
            seconds, microseconds, *stored = members
            now = int(seconds) + int(microseconds) / 1e6
            value = bytes(stored[0]) if stored else None
        except TimeoutError:
            raise QuotaLostError(f"no response in {TIMEOUT:g} s") from None
        except self._errors as error:
            text = safe(str(error)).partition(" script: ")[0]  # not the digest of the script
            raise QuotaLostError(text.rstrip(". ") or type(error).__name__) from None
        except (TypeError, ValueError, OverflowError, RecursionError, MemoryError) as error:
            raise QuotaLostError("an unexpected response") from error
        if not 0 <= now <= MAX_TIME:
            raise QuotaLostError("its clock shows an impossible time")
        return _RedisReply(now - time.monotonic(), now - began, value)

    async def close(self) -> None:
        """Close the connections."""
        with anyio.move_on_after(TIMEOUT, shield=True), suppress(*self._errors):
            await self._client.aclose()


class RedisBackend(SharedBackend):
    """A quota in Redis. A transaction replaces the value if no other process has in between, else it is applied again.

    Args:
        connection: an open one.
        name: of the quota; the same for all participants.
        configured_rate: requests a second; infinite searches for the quota.
    """

    def __init__(self, connection: RedisConnection, name: str, configured_rate: float) -> None:
        self._connection, self._key = connection, key_of(name)
        sends = LOGGED_SENDS_OF_SEARCH
        if configured_rate != math.inf:
            sends = min(max(MIN_LOGGED_SENDS, math.ceil(LOGGED_SECONDS * configured_rate)), MAX_LOGGED_SENDS)
        super().__init__(connection.address, configured_rate, ERA, bytearray(size_for(sends)))
        self._added = 0.0
        self._offset, self._now = connection.offset, 0.0
        self._lag, self._compared_since = 0.0, time.monotonic()
        self._jump = MAX_JUMP
        self._reading: tuple[float, _RedisReply] | None = None

    def clock(self) -> float:
        """See ``QuotaBackend``; it is the server's clock."""
        self._now = max(self._now, time.monotonic() + self._offset)
        return self._now

    def _use_memory(self, memory: bytearray) -> None:
        self._stamp, self._stored = b"", bytes(memory)
        self._lag, self._compared_since = 0.0, time.monotonic()
        super()._use_memory(memory)

    async def _transact(self, command: Command[T]) -> T:
        deadline = time.monotonic() + MAX_CONFLICT_SECONDS
        while time.monotonic() < deadline:
            self._memory[:] = self._stored
            self._load()
            events = list(self._events)
            for event in events:
                event.apply(self.quota, self.clock())
            result = command.apply(self.quota, self.clock())
            self.quota.store(ERA)
            stamp, memory = secrets.token_bytes(8), bytes(self._memory)
            value = _ENVELOPE.pack(stamp, self._added) + memory
            reply = await self._connection.replace(self._key, self._stamp, value)
            if reply.stored is None:
                self._stamp, self._stored = stamp, memory
                del self._events[: len(events)]
                self._adjust_clock(reply)
                self._on_synced()
                return result
            self._adopt(reply.stored)
            self._adjust_clock(reply)
        raise QuotaLostError(f"others have changed it all the time for {MAX_CONFLICT_SECONDS:g} s")

    def _adopt(self, value: bytes) -> None:
        """Take over what another process has written, in the larger memory, so all have room for their rate."""
        self._stamp = value[:8]
        size = len(value) - _ENVELOPE.size
        added = _ENVELOPE.unpack_from(value)[1] if size >= 0 else 0.0
        if size % 8 or not size_for(1) <= size <= size_for(MAX_LOGGED_SENDS) or not 0 <= added <= MAX_ADDED:
            self._stored = bytes(len(self._stored))  # empty, or not a quota
            return
        self._added = added
        stored = value[_ENVELOPE.size :]
        if len(stored) < len(self._stored):
            larger = bytearray(len(self._stored))
            copy_quota(memoryview(stored), memoryview(larger))
            stored = bytes(larger)
        if len(stored) > len(self._stored):
            others = self.quota.other_participants
            super()._use_memory(bytearray(stored))
            self.quota.other_participants = others
        self._stored = stored

    def _adjust_clock(self, reply: _RedisReply) -> None:
        """Correct the clock, by no more than what is certainly wrong.

        If the server's clock is set back, ours would stand still for that time, and all that waits with it. So all
        participants add the difference to the server's time.
        """
        passed = self._seconds_since_reading(reply)
        behind = self._offset - self._added - reply.high
        if behind > MAX_CLOCK_STEP:
            self._added += behind
        low, high = reply.low + self._added, reply.high + self._added
        if not self._synced:  # the first transaction, or the first one after a pause
            self._offset = min(max(self._offset, low), high)
            return
        self._jump = min(MAX_JUMP, self._jump + MAX_DRIFT * passed)
        gained = min(max(low - self._offset, 0.0), self._jump)
        self._offset, self._jump = self._offset + gained, self._jump - gained
        if low - self._offset > MAX_LEAD:
            raise ClockAheadError("its time has jumped ahead")
        self._lag += max(self._offset - high, 0.0)
        self._offset = min(self._offset, high)
        if self._lag > MAX_LAG + MAX_DRIFT * (time.monotonic() - self._compared_since):
            raise QuotaLostError("its time does not advance, or too slowly")

    def _seconds_since_reading(self, reply: _RedisReply) -> float:
        """Return how long ago the server's clock was read before, and keep this reading."""
        now = time.monotonic()
        before = now if self._reading is None else self._reading[0]
        self._reading = now, reply
        return now - before

    async def _check(self) -> None:
        """See ``SharedBackend``; a clock that has gained time since it was read last would do so again."""
        before, reply = self._reading, await self._connection.check(self._key)
        allowed = MAX_JUMP + MAX_DRIFT * self._seconds_since_reading(reply)
        if before is not None and reply.low - before[1].high > allowed:
            raise QuotaLostError("its time runs too fast")
