"""Sends a request until it is answered or its attempts are used up; each attempt passes the account's quota."""

import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio

from auditor.errors import (
    NeverActivatedError,
    NotFoundError,
    PlatformError,
    RefusedRequestError,
    ThrottledError,
    TransientError,
)
from auditor.models import Sent
from auditor.resilience.circuit_breaker import Feedback
from auditor.resilience.rate_limiter import Gate

T = TypeVar("T")


REFUSALS = 20
"""Refusals for the quota that one request outlives: more, and it is about this request, not the account."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often and how soon: full jitter below ``first * 2**n`` seconds, at most ``longest`` seconds."""

    attempts: int = 8
    first: float = 0.5
    longest: float = 30.0

    def delay(self, failures: int, draw: float) -> float:
        """Seconds to wait after the ``failures``-th failure; ``draw`` is random in [0, 1)."""
        return min(self.longest, self.first * 2.0 ** min(failures - 1, 30)) * draw


DOUBT = 3
"""Failures of a request after which an account that did not answer yet is asked what is known to work."""


PROBING = Backoff(first=1.0, longest=15.0)
"""How soon a sick platform is asked again."""


LONGEST_PAUSE = 60.0
"""Seconds an account holds back for one refusal at most, whatever delay the platform names."""


REPEATS, REPEATS_SECONDS = 20, 10.0
"""Repeats that an account may save up at most; or those of so many seconds, where that is more."""


@dataclass(slots=True)
class Tally:
    """Requests of one account so far: ``sent`` in all, of which ``retried`` were repeats; ``throttled`` answers.

    ``answered`` had a usable answer, which took ``seconds`` in all.
    """

    sent: int = 0
    retried: int = 0
    throttled: int = 0
    in_flight: int = 0
    answered: int = 0
    seconds: float = 0.0


class RetryBudget:
    """The part of a quota that repeats may take: it comes with time, and waits to be used only so long.

    Repeats beyond it wait, and the account's other devices go first: so a device that fails now and then costs little,
    and a platform that fails for every fifth request is asked less. Without a quota there is no budget to keep.

    Args:
        part: of the quota.
        gate: tells the quota.
        clock: seconds.

    Attributes:
        short: whether a repeat waits for its part now.
    """

    def __init__(self, part: float, gate: Gate, clock: Callable[[], float] = time.monotonic) -> None:
        self.short = False
        self._part, self._gate, self._clock = part, gate, clock
        self._saved: float = REPEATS
        self._at = clock()
        self._turn = anyio.Lock(fast_acquire=True)

    def _refill(self, rate: float) -> None:
        now, per_second = self._clock(), self._part * rate
        self._saved = min(self._saved + (now - self._at) * per_second, max(REPEATS, REPEATS_SECONDS * per_second))
        self._at = now

    async def take(self, feedback: Feedback) -> None:
        """Waits until one repeat may be sent, or the account is found to be sick; then it is not the devices' doing."""
        async with self._turn:
            try:
                while (rate := self._gate.rate) is not None and not feedback.sick:
                    rate /= 1 + self._gate.others  # each takes the part of its own requests
                    self._refill(rate)
                    if self._saved >= 1:
                        self._saved -= 1
                        return
                    self.short = True
                    feedback.spent()
                    await anyio.sleep(min((1 - self._saved) / (self._part * rate), 1.0))
            finally:
                self.short = self._turn.statistics().tasks_waiting > 0


class Pacer:
    """Everything between a device's question and the wire: quota, feedback, repeats, and the wait for a sick platform.

    A failure uses up an attempt of its request only while others succeed. When nothing does for a stretch, it is the
    platform that is sick: all requests wait, and one that is known to work is asked now and then until it does again.

    Args:
        quota: what every request passes.
        feedback: what hears of every answer.
        backoff: how often and how soon is repeated.
        retry_budget: the part of the quota that repeats may take.
        known: a request that was answered in an earlier stretch of the audit; later ones take its place.
    """

    def __init__(
        self,
        quota: Gate,
        feedback: Feedback,
        backoff: Backoff,
        *,
        retry_budget: float = 0.1,
        known: Callable[[], Awaitable[object]] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.tally = Tally()
        self.repeats = RetryBudget(retry_budget, quota)
        self._quota, self._feedback, self._backoff, self._draw = quota, feedback, backoff, draw
        self._one_at_a_time, self._probing = anyio.Lock(), anyio.Lock()
        self._known_to_work = known

    def send(self, request: Callable[[], Awaitable[T]]) -> Coroutine[Any, Any, Sent[T]]:
        """Calls ``request`` until it brings an answer or an error that no repeat would change; to be awaited at once.

        Raises:
            AccountStoppedError: the account is refused, was never reached, or has been sick for too long.
        """
        return self._repeat(request) if self._feedback.proven else self._one_after_the_other(request)

    async def _one_after_the_other(self, request: Callable[[], Awaitable[T]]) -> Sent[T]:
        async with self._one_at_a_time:
            if not self._feedback.proven:
                return await self._repeat(request)
        return await self._repeat(request)

    async def _repeat(self, request: Callable[[], Awaitable[T]]) -> Sent[T]:
        attempts = failures = refusals = 0
        while True:
            if self._feedback.sick:
                await self._recovery(request)
            sent_at = await self._quota.slot()
            self._feedback.check()
            if self._feedback.sick:
                continue
            attempts += 1
            result = await self._once(request, sent_at, repeated=attempts > 1)
            if isinstance(result, ThrottledError):
                # The account's trouble, not the device's: no attempt is used up, and the closed quota does the waiting.
                refusals += 1
                if refusals >= REFUSALS:
                    return Sent(result, attempts)
            elif not isinstance(result, TransientError):
                return Sent(result, attempts)
            elif not self._feedback.sick:
                failures += 1
                if failures >= self._backoff.attempts:
                    return Sent(result, attempts)
                await self._wait_to_repeat(failures)

    async def _wait_to_repeat(self, failures: int) -> None:
        """Waits until a request that failed so often may be repeated."""
        if failures == DOUBT and not self._feedback.proven:
            await self.ask_known()
        await anyio.sleep(self._backoff.delay(failures, self._draw()))
        if not self._feedback.sick:
            await self.repeats.take(self._feedback)

    async def _once(self, request: Callable[[], Awaitable[T]], sent_at: float, *, repeated: bool) -> T | PlatformError:
        """One request, counted; what it teaches is told to the feedback."""
        self.tally.sent += 1
        self.tally.retried += repeated
        self.tally.in_flight += 1
        began = time.monotonic()
        try:
            result: T | PlatformError = await request()
        except (NotFoundError, NeverActivatedError, RefusedRequestError) as error:
            result = error
        except PlatformError as error:
            if isinstance(error, ThrottledError):
                self._hold_back(error, sent_at)
            self._feedback.failed(error)
            return error
        finally:
            self.tally.in_flight -= 1
        self.tally.answered += 1
        self.tally.seconds += time.monotonic() - began
        self._quota.admitted(sent_at)
        self._feedback.succeeded()
        self._known_to_work = request
        return result

    def _hold_back(self, error: ThrottledError, sent_at: float) -> None:
        self.tally.throttled += 1
        # A wish for no delay at all (0, or a date gone by) tells nothing: obeyed, it would be asked again without end.
        # Chance parts those who were told the same.
        wish = error.retry_after
        self._quota.refused(sent_at, min(wish * (1 + 0.1 * self._draw()), LONGEST_PAUSE) if wish else None)

    async def ask_known(self) -> None:
        """Asks once what is known to work, if anything is: it tells a sick account from sick devices.

        Raises:
            AccountStoppedError: the account is refused.
        """
        if self._known_to_work is not None:
            sent_at = await self._quota.slot()
            self._feedback.check()
            await self._once(self._known_to_work, sent_at, repeated=True)

    async def _recovery(self, request: Callable[[], Awaitable[object]]) -> None:
        """Returns when the platform answers again; whoever comes first probes, the others wait behind."""
        async with self._probing:
            probes = 0
            while self._feedback.sick:
                probes += 1
                await anyio.sleep(PROBING.delay(probes, 0.5 + 0.5 * self._draw()))
                sent_at = await self._quota.slot()
                self._feedback.check()
                if self._feedback.sick:
                    await self._once(self._known_to_work or request, sent_at, repeated=True)
