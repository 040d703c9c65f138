"""An account's quota as a gate: every request passes it, first tries and repeats alike."""

import time
from collections.abc import Callable
from typing import Literal

import anyio
from aiolimiter import AsyncLimiter

from auditor.pace.rate import CATCH_UP, Rate

TIMER = 0.004
"""Seconds, the shortest sleep: above 250/s a few slots share a timer, which is most of what a slot costs."""

LONGEST_NAP = 0.5
"""Seconds after which a waiter looks again, for what is learned meanwhile may open the gate earlier."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds an account without a quota holds back after a refusal that named no delay: doubled while refusals go on."""


class Quota:
    """Lets as many requests through in every second as the account bears, evenly, and none while it is paused.

    The rate is the told one less a margin for jitter, or less than that when refusals teach so, see ``Rate``; spent in
    slots of even distance, so that nothing bursts after an idle spell or a pause.

    aiolimiter guards the told quota below that, whatever was learned. It cannot be the pace itself. In a strict second
    a leaky bucket of size b leaves b - 1 requests unused: one of 1 request loses a slot by every late timer (measured
    86% to 89% of 200/s, 68% to 75% of 1,000/s), one that makes good for 50 ms wastes 5%. Its rate is fixed. And its
    timers spin on uvloop, whose clock counts milliseconds: 1,000/s took 26% to 57% of a core, here 9%.

    Args:
        per_second: requests a second that are ours; ``"auto"`` looks for it; None lets everything through.
    """

    def __init__(
        self, per_second: float | Literal["auto"] | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.per_second = per_second
        self._clock = clock
        self._open_at = 0.0
        self._refusals_in_a_row = 0
        self._turn = anyio.Lock(fast_acquire=True)
        self._rate: Rate | None = None
        self._guard: AsyncLimiter | None = None
        if per_second == "auto":
            self._rate = Rate(None)
        elif per_second is not None:
            self._rate = Rate(per_second)
            # The bucket holds what slots that are late together come to, and never less than one request.
            bucket = 1 + 2 * CATCH_UP * per_second
            self._guard = AsyncLimiter(bucket, bucket / per_second)

    @property
    def rate(self) -> float | None:
        """Requests a second that are let through now; None without a quota."""
        return None if self._rate is None else self._rate.now

    async def slot(self) -> float:
        """Waits until one request may be sent; gives the moment, for ``admitted`` or ``refused``."""
        if self._rate is None:
            while (closed_for := self._open_at - self._clock()) > 0:  # noqa: ASYNC110  time is all that is waited for
                await anyio.sleep(closed_for)
            return self._clock()
        async with self._turn:
            while (early := self._early(self._rate)) > 0:  # noqa: ASYNC110  as above
                await anyio.sleep(min(max(early, TIMER), LONGEST_NAP))
            if self._guard is not None:
                await self._guard.acquire()  # without a wait, so that no pause begins in it
            now = self._clock()
            self._rate.sent(now)
            return now

    def _early(self, rate: Rate) -> float:
        """Seconds until a slot may be given."""
        if self._guard is not None and not self._guard.has_capacity():
            return TIMER
        return max(rate.next_at(), self._open_at) - self._clock()

    def admitted(self, sent_at: float) -> None:
        """The request of the slot ``sent_at`` was not refused for the quota."""
        self._refusals_in_a_row = 0
        if self._rate is not None:
            self._rate.admitted(sent_at)

    def refused(self, sent_at: float, wish: float | None = None) -> None:
        """The request of the slot ``sent_at`` was refused for the quota, and ``wish`` seconds of delay were asked for.

        It slows the account down and holds it back as long as was asked for, or as is needed.
        """
        if wish is not None:
            self.pause(wish)
        if self._rate is not None:
            self._open_at = max(self._open_at, self._rate.refused(sent_at, self._clock()))
        elif not self.paused:
            # Requests that were in flight together are refused together: that is one refusal, not many.
            self.pause(min(FIRST_PAUSE * 2.0**self._refusals_in_a_row, LONGEST_PAUSE))
            self._refusals_in_a_row = min(self._refusals_in_a_row + 1, 60)

    def pause(self, seconds: float) -> None:
        """Lets nothing through for ``seconds`` from now; a longer pause that is under way stays."""
        self._open_at = max(self._open_at, self._clock() + seconds)

    @property
    def paused(self) -> bool:
        """Whether nothing is let through now."""
        return self._open_at > self._clock()
