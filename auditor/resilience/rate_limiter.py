"""The rate limiter of an operation: every request of an account acquires a permit, first attempts and retries.

There are two limits. The adaptive rate (``adaptive_rate``) decides when a request is sent: evenly, below the configured
rate, lower after throttling responses, and in turn with other processes. aiolimiter is the hard limit above it, a
bucket of the configured rate, so that no error in what was learned or shared can exceed the quota. The bucket cannot
replace the adaptive rate: its rate is fixed, and as it makes up for late timers, 5% to 14% of a strict quota would stay
unused.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import anyio
from aiolimiter import AsyncLimiter

from auditor.resilience.adaptive_rate import CATCH_UP
from auditor.resilience.quota_backends import LocalBackend, QuotaBackend
from auditor.resilience.shared_quota import Command, NotDue, Participant, Permit, SharedQuota

MIN_SLEEP = 0.004
"""Seconds of the shortest sleep. Above 250/s several permits share a timer, which is most of a permit's cost."""

MAX_BATCH, BATCH_SECONDS, MAX_PERMIT_AGE = 8, 0.002, 0.02
"""Size of a batch of permits that are due, and seconds in which they must be used.

A batch serves the waiting requests, up to ``MAX_BATCH``. At a high rate it holds the permits of ``BATCH_SECONDS`` even
if fewer requests wait, so the quota costs one transaction for many of them. Permits that are not used in time are lost:
they are only those of requests that were cancelled, or of a rate that is not reached.
"""

MAX_SLEEP = 0.5
"""Seconds after which a waiting request checks again, because the rate may have risen in the meantime."""

MIN_PAUSE, MAX_PAUSE = 1.0, 60.0
"""Seconds that an account without a quota pauses after a throttling response without a delay, doubled in a series."""


PROBE_INTERVAL, PERMITS_PER_SUCCESS, RECOVERED_AFTER = 0.5, 2, 128
"""Recovery of an account without a quota that was throttled: seconds between probes, permits that each success
releases, and the number of successes after which every request has a permit again."""


class RateLimiter(Protocol):
    """Gives permits to the requests of an operation. Moments are in seconds of the limiter's own clock.

    Attributes:
        rate: current requests a second; None without a quota.
        configured_rate: requests a second that are never exceeded, the lowest of all participants; None without a
            quota; infinite while the quota is searched for.
        other_participants: how many other processes share the quota now.
        paused: whether no permit is given now.
    """

    @property
    def rate(self) -> float | None: ...  # noqa: D102  above

    @property
    def configured_rate(self) -> float | None: ...  # noqa: D102

    @property
    def other_participants(self) -> int: ...  # noqa: D102

    @property
    def paused(self) -> bool: ...  # noqa: D102

    async def acquire(self) -> float:
        """Wait until one request may be sent; return the moment, for ``on_success`` or ``on_throttled``."""

    def on_success(self, sent_at: float) -> None:
        """Record that the request of a permit was not throttled."""

    def on_throttled(self, sent_at: float, retry_after: float | None = None) -> None:
        """Record a throttling response: lower the rate, and pause for ``retry_after`` seconds, or as long as needed."""

    def pause(self, seconds: float) -> None:
        """Give no permit for ``seconds`` from now. A longer pause stays."""

    async def close(self) -> None:
        """Leave the quota to the others."""


@dataclass(slots=True)
class PermitBatch:
    """Permits that may be used now: ``remaining`` ones, for the moment ``sent_at``, until ``expires_at``."""

    sent_at: float = 0.0
    remaining: int = 0
    expires_at: float = 0.0


class AdaptiveRateLimiter:
    """Gives as many permits a second as the account accepts, evenly, and none during a pause.

    The rate is the configured one less a margin for jitter, or a lower one learned from throttling responses, see
    ``CubicRateController``. Permits are evenly spaced, so nothing bursts after an idle period or a pause. Participants
    that share the quota take permits of the same schedule, see ``SharedQuota``.

    Args:
        configured_rate: requests a second at most; infinite searches for the quota.
        backend: where the quota is stored; by default in this process alone.
        priority: whether it goes before other participants.
    """

    def __init__(self, configured_rate: float, *, backend: QuotaBackend | None = None, priority: bool = False) -> None:
        self._backend = LocalBackend(configured_rate) if backend is None else backend
        self._clock = self._backend.clock
        self._participant = Participant(configured_rate, priority)
        self._paused_until = self._next_at = 0.0
        self._turn = anyio.Lock(fast_acquire=True)
        self._waiting = 0
        self._batch = PermitBatch()
        self._successes: list[float] = []
        self._hard_limit: AsyncLimiter | None = None
        if configured_rate != math.inf:
            # The bucket holds the permits that can be late together, and at least one request.
            bucket = 1 + 2 * CATCH_UP * configured_rate
            self._hard_limit = AsyncLimiter(bucket, bucket / configured_rate)

    @property
    def rate(self) -> float:
        """See ``RateLimiter``."""
        return self._backend.quota.rate.current_rate

    @property
    def configured_rate(self) -> float:
        """See ``RateLimiter``."""
        return self._backend.quota.rate.configured_rate

    @property
    def other_participants(self) -> int:
        """See ``RateLimiter``."""
        return self._backend.quota.other_participants

    @property
    def paused(self) -> bool:
        """See ``RateLimiter``."""
        return max(self._paused_until, self._backend.quota.paused_until) > self._clock()

    async def acquire(self) -> float:
        """See ``RateLimiter``."""
        if not self._waiting and (sent_at := self._take()) is not None:
            return sent_at
        self._waiting += 1
        try:
            async with self._turn:
                return await self._wait_for_permit()
        finally:
            self._waiting -= 1

    def _take(self) -> float | None:
        """Return the moment of a permit of the batch, or None if there is no valid one."""
        batch, now = self._batch, self._clock()
        if not batch.remaining or now > batch.expires_at or self._backend.quota.paused_until > now:
            return None
        batch.remaining -= 1
        return batch.sent_at

    async def _wait_for_permit(self) -> float:
        while (sent_at := self._take()) is None:
            wait = max(self._paused_until, self._backend.quota.paused_until, self._next_at) - self._clock()
            if wait > 0:
                await _sleep(wait)
                self._next_at = 0.0
                continue
            permit = await self._next_permit()
            if isinstance(permit, NotDue):
                await _sleep(permit.until - self._clock())
            elif self._paused_until <= (now := self._clock()):
                self._batch = PermitBatch(permit.at, permit.requests, now + MAX_PERMIT_AGE)
        return sent_at

    async def _next_permit(self) -> Permit | NotDue:
        """Return a permit that is due and within the hard limit, for all waiting requests, or when to try again."""
        self._flush_successes()
        limit = max(min(self._waiting, MAX_BATCH), int(self.rate * BATCH_SECONDS))
        permit = await self._backend.transaction(Command(SharedQuota.reserve, (self._participant, limit)))
        if isinstance(permit, NotDue):
            return permit
        if not self.other_participants:
            self._next_at = self._backend.quota.rate.next_permit_at()  # no other process can take it before
        if self._clock() < permit.at:
            while (early := permit.at - self._clock()) > 0:
                await _sleep(early)
            sent_at = None
            if self._paused_until <= self._clock():
                # Another participant may have been throttled in the meantime.
                sent_at = await self._backend.transaction(Command(SharedQuota.confirm, (permit,)))
            if sent_at is None:
                return NotDue(max(self._paused_until, self._backend.quota.paused_until))
            permit = permit._replace(at=sent_at)
        if self._hard_limit is not None:
            await self._hard_limit.acquire(min(permit.requests, self._hard_limit.max_rate))
        return permit

    def on_success(self, sent_at: float) -> None:
        """See ``RateLimiter``. It takes effect with the next batch of permits."""
        self._successes.append(sent_at)

    def _flush_successes(self) -> None:
        """Record the successes since the last batch. Those of one batch have one moment, so they are few commands."""
        if self._successes:
            for sent_at, same in groupby(self._successes):
                self._backend.record(Command(SharedQuota.on_success, (sent_at, len(list(same)))))
            self._successes.clear()

    def on_throttled(self, sent_at: float, retry_after: float | None = None) -> None:
        """See ``RateLimiter``."""
        self._flush_successes()
        if retry_after is not None:
            self.pause(retry_after)
        self._backend.record(Command(SharedQuota.on_throttled, (sent_at, self._clock())), immediately=True)

    def pause(self, seconds: float) -> None:
        """See ``RateLimiter``."""
        until = self._clock() + seconds
        self._paused_until = max(self._paused_until, until)
        self._batch.remaining = 0
        self._backend.record(Command(SharedQuota.pause, (until,)), immediately=True)

    async def close(self) -> None:
        """See ``RateLimiter``."""
        await self._backend.close()


async def _sleep(seconds: float) -> None:
    await anyio.sleep(min(max(seconds, MIN_SLEEP), MAX_SLEEP))


class UnlimitedRateLimiter:
    """Gives every permit immediately, except after a throttling response: for a platform that counts no calls.

    After the pause single requests probe the account. Each success then releases two more, as in the slow start of TCP
    (RFC 5681), so the requests that wait are not all throttled together again.
    """

    rate: float | None = None
    configured_rate: float | None = None
    other_participants = 0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paused_until = self._throttled_at = self._probe_at = 0.0
        self._throttled_in_a_row = self._successes = 0
        self._permits = math.inf
        self._changed = anyio.Event()

    @property
    def paused(self) -> bool:
        """See ``RateLimiter``."""
        return self._paused_until > self._clock()

    async def acquire(self) -> float:
        """See ``RateLimiter``."""
        while True:
            now = self._clock()
            until = self._paused_until
            if until <= now:
                if self._permits >= 1:
                    self._permits -= 1
                    return now
                if self._probe_at <= now:
                    self._probe_at = now + PROBE_INTERVAL
                    return now
                until = self._probe_at
            with anyio.move_on_after(until - now):
                await self._changed.wait()

    def on_success(self, sent_at: float) -> None:
        """See ``RateLimiter``."""
        if self._permits == math.inf or sent_at < self._throttled_at:
            return
        self._throttled_in_a_row = 0
        self._successes += 1
        self._permits = math.inf if self._successes >= RECOVERED_AFTER else self._permits + PERMITS_PER_SUCCESS
        self._changed.set()
        self._changed = anyio.Event()

    def on_throttled(self, sent_at: float, retry_after: float | None = None) -> None:  # noqa: ARG002
        """See ``RateLimiter``."""
        self._permits, self._successes, self._throttled_at = 0.0, 0, self._clock()
        if retry_after is not None:
            self.pause(retry_after)
        elif not self.paused:
            # Requests that were in flight together are throttled together: that is one event.
            self.pause(min(MIN_PAUSE * 2.0**self._throttled_in_a_row, MAX_PAUSE))
            self._throttled_in_a_row = min(self._throttled_in_a_row + 1, 60)

    def pause(self, seconds: float) -> None:
        """See ``RateLimiter``."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    async def close(self) -> None:
        """See ``RateLimiter``."""
