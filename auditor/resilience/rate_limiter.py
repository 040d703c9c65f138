"""An account's quota as a gate: every request passes it, first tries and repeats alike."""

import math
import time
from collections.abc import Callable
from typing import Protocol

import anyio
from aiolimiter import AsyncLimiter

from auditor.resilience.adaptive_rate import CATCH_UP
from auditor.resilience.quota_backends import Alone, Ledger
from auditor.resilience.shared_quota import Participant

TIMER = 0.004
"""Seconds, the shortest sleep: above 250/s a few slots share a timer, which is most of what a slot costs."""


TOGETHER, USED_WITHIN = 8, 0.02
"""So many slots that are due are taken in one look, and have to be used within so many seconds: those of waiters that
are gone meanwhile are lost, and a busy process sends no more than that in the time."""


LONGEST_NAP = 0.5
"""Seconds after which a waiter looks again, for what is learned meanwhile may open the gate earlier."""


FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds an account without a quota holds back after a refusal that named no delay: doubled while refusals go on."""


class Gate(Protocol):
    """What every request of an account passes. Moments are in seconds of the gate's own clock, as ``slot`` gives them.

    Attributes:
        rate: requests a second that are let through now; None without a quota.
        told: requests a second that are not exceeded, by the lowest that any of those who share it was told; None
            without a quota; infinite where it is looked for.
        others: how many other processes take part in the quota now.
        paused: whether nothing is let through now.
    """

    @property
    def rate(self) -> float | None: ...  # noqa: D102  above

    @property
    def told(self) -> float | None: ...  # noqa: D102

    @property
    def others(self) -> int: ...  # noqa: D102

    @property
    def paused(self) -> bool: ...  # noqa: D102

    async def slot(self) -> float:
        """Waits until one request may be sent; gives the moment, for ``admitted`` or ``refused``."""

    def admitted(self, sent_at: float) -> None:
        """The request of the slot ``sent_at`` was not refused for the quota."""

    def refused(self, sent_at: float, wish: float | None = None) -> None:
        """The request of the slot ``sent_at`` was refused for the quota, and ``wish`` seconds of delay were asked for.

        It slows the account down and holds it back as long as was asked for, or as is needed.
        """

    def pause(self, seconds: float) -> None:
        """Lets nothing through for ``seconds`` from now; a longer pause that is under way stays."""

    async def close(self) -> None:
        """Leaves the quota to the others."""


class Quota:
    """Lets as many requests through in every second as the account bears, evenly, and none while it is paused.

    The rate is the told one less a margin for jitter, or less than that when refusals teach so, see ``Rate``; spent in
    slots of even distance, so that nothing bursts after an idle spell or a pause. Who shares the account's budget takes
    slots of the same chain, see ``Budget``.

    aiolimiter guards the told quota below that, whatever was learned. It cannot be the pace itself. In a strict second
    a leaky bucket of size b leaves b - 1 requests unused: one of 1 request loses a slot by every late timer (measured
    86% to 89% of 200/s, 68% to 75% of 1,000/s), one that makes good for 50 ms wastes 5%. Its rate is fixed. And its
    timers spin on uvloop, whose clock counts milliseconds: 1,000/s took 26% to 57% of a core, here 9%.

    Args:
        per_second: requests a second at most; infinite looks for the quota.
        ledger: where the budget lies; None: nobody shares it.
        priority: whether it goes before others that share it.
    """

    def __init__(self, per_second: float, *, ledger: Ledger | None = None, priority: bool = False) -> None:
        self._ledger = Alone(per_second) if ledger is None else ledger
        self._self = Participant(per_second, priority)
        self._open_at = 0.0
        self._turn = anyio.Lock(fast_acquire=True)
        self._waiting = 0
        self._taken: list[float] = []
        self._taken_at = self._next_at = 0.0
        self._guard: AsyncLimiter | None = None
        if per_second != math.inf:
            # The bucket holds what slots that are late together come to, and never less than one request.
            bucket = 1 + 2 * CATCH_UP * per_second
            self._guard = AsyncLimiter(bucket, bucket / per_second)

    @property
    def rate(self) -> float:
        """See ``Gate``."""
        return self._ledger.budget.rate.now

    @property
    def told(self) -> float:
        """See ``Gate``."""
        return self._ledger.budget.rate.told

    @property
    def others(self) -> int:
        """See ``Gate``."""
        return self._ledger.budget.others

    @property
    def paused(self) -> bool:
        """See ``Gate``."""
        return max(self._open_at, self._ledger.budget.open_at) > self._ledger.clock()

    async def slot(self) -> float:
        """See ``Gate``."""
        self._waiting += 1
        try:
            async with self._turn:
                while True:
                    now = self._ledger.clock()
                    paused_until = max(self._open_at, self._ledger.budget.open_at)
                    if self._taken and now - self._taken_at <= USED_WITHIN and paused_until <= now:
                        return self._taken.pop()
                    self._taken.clear()
                    if (closed_for := max(paused_until, self._next_at) - now) > 0:
                        await _nap(closed_for)
                        self._next_at = 0.0
                    else:
                        await self._take()
        finally:
            self._waiting -= 1

    async def _take(self) -> None:
        """Takes the slots that are due, as many as wait for one; or waits for a moment."""
        clock = self._ledger.clock
        slot = await self._ledger.look(lambda budget: budget.reserve(self._self, clock(), min(self._waiting, TOGETHER)))
        if slot.number is None:
            await _nap(slot.at - clock())
            return
        moment = slot.at
        if not self.others:
            self._next_at = self._ledger.budget.rate.next_at()  # nobody else takes it: a look would tell as much
        if clock() < moment:
            while (early := moment - clock()) > 0:
                await _nap(early)
            # Another one may have been refused meanwhile, which is no moment to send in.
            if self._open_at > clock():
                return
            held = await self._ledger.look(lambda budget: budget.confirm(slot, clock()))
            if held is None:
                return
            moment = held
        if self._guard is not None:
            await self._guard.acquire(min(slot.many, self._guard.max_rate))
            if self._open_at > clock():  # it did have to wait
                return
        self._taken, self._taken_at = [moment] * slot.many, clock()

    def admitted(self, sent_at: float) -> None:
        """See ``Gate``."""
        self._ledger.tell(lambda budget: budget.rate.admitted(sent_at))

    def refused(self, sent_at: float, wish: float | None = None) -> None:
        """See ``Gate``."""
        if wish is not None:
            self.pause(wish)
        now = self._ledger.clock()
        self._ledger.tell(lambda budget: budget.refused(sent_at, now), at_once=True)

    def pause(self, seconds: float) -> None:
        """See ``Gate``."""
        until = self._ledger.clock() + seconds
        self._open_at = max(self._open_at, until)
        self._ledger.tell(lambda budget: budget.pause(until), at_once=True)

    async def close(self) -> None:
        """See ``Gate``."""
        await self._ledger.close()


async def _nap(seconds: float) -> None:
    await anyio.sleep(min(max(seconds, TIMER), LONGEST_NAP))


class NoQuota:
    """Lets everything through, but while it is paused: the gate of a platform that counts no calls.

    Args:
        clock: seconds.
    """

    rate: float | None = None
    told: float | None = None
    others = 0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open_at = 0.0
        self._refusals_in_a_row = 0

    @property
    def paused(self) -> bool:
        """See ``Gate``."""
        return self._open_at > self._clock()

    async def slot(self) -> float:
        """See ``Gate``."""
        while (closed_for := self._open_at - self._clock()) > 0:  # noqa: ASYNC110  time is all that is waited for
            await anyio.sleep(closed_for)
        return self._clock()

    def admitted(self, sent_at: float) -> None:  # noqa: ARG002  there is no rate to learn
        """See ``Gate``."""
        self._refusals_in_a_row = 0

    def refused(self, sent_at: float, wish: float | None = None) -> None:  # noqa: ARG002
        """See ``Gate``."""
        if wish is not None:
            self.pause(wish)
        elif not self.paused:
            # Requests that were in flight together are refused together: that is one refusal, not many.
            self.pause(min(FIRST_PAUSE * 2.0**self._refusals_in_a_row, LONGEST_PAUSE))
            self._refusals_in_a_row = min(self._refusals_in_a_row + 1, 60)

    def pause(self, seconds: float) -> None:
        """See ``Gate``."""
        self._open_at = max(self._open_at, self._clock() + seconds)

    async def close(self) -> None:
        """See ``Gate``."""
