"""Sends a request until it is answered or its attempts are used up; each attempt passes the account's quota."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio

from auditor.errors import (
    NeverActivatedError,
    NotFoundError,
    PlatformError,
    RefusedRequestError,
    ThrottledError,
    TransientError,
)
from auditor.model import Sent
from auditor.pace.feedback import Feedback
from auditor.pace.quota import Quota

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


@dataclass(slots=True)
class Tally:
    """Requests of one account so far: ``sent`` in all, of which ``retried`` were repeats; ``throttled`` answers."""

    sent: int = 0
    retried: int = 0
    throttled: int = 0
    in_flight: int = 0


class Pacer:
    """Everything between a device's question and the wire: quota, feedback, repeats, and the wait for a sick platform.

    A failure uses up an attempt of its request only while others succeed. When nothing does for a stretch, it is the
    platform that is sick: all requests wait, and one that is known to work is asked now and then until it does again.

    Args:
        quota: what every request passes.
        feedback: what hears of every answer.
        backoff: how often and how soon is repeated.
        known: a request that was answered in an earlier stretch of the audit; later ones take its place.
    """

    def __init__(
        self,
        quota: Quota,
        feedback: Feedback,
        backoff: Backoff,
        *,
        known: Callable[[], Awaitable[object]] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.tally = Tally()
        self._quota, self._feedback, self._backoff, self._draw = quota, feedback, backoff, draw
        self._one_at_a_time = anyio.Lock()
        self._known_to_work = known

    async def send(self, request: Callable[[], Awaitable[T]]) -> Sent[T]:
        """Calls ``request`` until it brings an answer or an error that no repeat would change.

        Raises:
            AccountStoppedError: the account is refused, was never reached, or has been sick for too long.
        """
        if not self._feedback.proven:
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
                if failures == DOUBT and not self._feedback.proven:
                    await self.ask_known()
                await anyio.sleep(self._backoff.delay(failures, self._draw()))

    async def _once(self, request: Callable[[], Awaitable[T]], sent_at: float, *, repeated: bool) -> T | PlatformError:
        """One request, counted; what it teaches is told to the feedback."""
        self.tally.sent += 1
        self.tally.retried += repeated
        self.tally.in_flight += 1
        try:
            result: T | PlatformError = await request()
        except (NotFoundError, NeverActivatedError, RefusedRequestError) as error:
            result = error
        except PlatformError as error:
            self.tally.throttled += isinstance(error, ThrottledError)
            self._feedback.failed(error, sent_at)
            return error
        finally:
            self.tally.in_flight -= 1
        self._feedback.succeeded(sent_at)
        self._known_to_work = request
        return result

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
        async with self._one_at_a_time:
            probes = 0
            while self._feedback.sick:
                probes += 1
                await anyio.sleep(PROBING.delay(probes, 0.5 + 0.5 * self._draw()))
                sent_at = await self._quota.slot()
                self._feedback.check()
                if self._feedback.sick:
                    await self._once(self._known_to_work or request, sent_at, repeated=True)
