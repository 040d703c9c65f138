"""An account's quota as a gate: every request passes it, first tries and repeats alike."""

import time
from collections.abc import Callable

import anyio
from aiolimiter import AsyncLimiter

MARGIN = 0.02
"""The part of the quota that is left unused, so that jitter does not carry a request into a window that is full."""

BURST = 0.01
"""Seconds' worth of quota that may go out at once (never less than one request)."""

LATENESS = 0.003
"""Seconds that a timer may be late; the bucket is larger by that much, or each late timer would lose its part."""


class Quota:
    """Lets ``per_second`` requests through in every second, evenly, and none while the account is paused.

    A leaky bucket of size b that leaks l a second lets at most b + l requests through in any second. aiolimiter's
    ``AsyncLimiter(10, 1)`` has b = l = 10: nearly 20 in its first second. Here b is about 1% of the quota and
    b + l stays below the quota plus one, so no window of a second ever holds more than the quota.

    Args:
        per_second: requests a second that are ours; None lets everything through.
    """

    def __init__(self, per_second: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_second = per_second
        self._clock = clock
        self._open_at = 0.0
        self._limiter: AsyncLimiter | None = None
        if per_second is not None:
            leak = per_second * (1 - MARGIN)
            bucket = max(1.0, per_second * BURST) + leak * LATENESS
            self._limiter = AsyncLimiter(bucket, bucket / leak)

    async def slot(self) -> None:
        """Waits until one request may be sent."""
        while True:
            if (closed_for := self._open_at - self._clock()) > 0:
                await anyio.sleep(closed_for)
            if self._limiter is not None:
                await self._limiter.acquire()
            if self._open_at <= self._clock():
                return

    def pause(self, seconds: float) -> None:
        """Lets nothing through for ``seconds`` from now; a longer pause that is under way stays."""
        self._open_at = max(self._open_at, self._clock() + seconds)

    @property
    def paused(self) -> bool:
        """Whether nothing is let through now."""
        return self._open_at > self._clock()
