"""Sends a request until it is answered or its attempts are used up; each attempt passes the account's quota."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio

from auditor.errors import (
    ForbiddenDeviceError,
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


@dataclass(slots=True)
class Tally:
    """Requests of one account so far: ``sent`` in all, of which ``retried`` were repeats; ``throttled`` answers."""

    sent: int = 0
    retried: int = 0
    throttled: int = 0
    in_flight: int = 0


class Pacer:
    """Everything between a device's question and the wire: quota, feedback, repeats."""

    def __init__(
        self,
        quota: Quota,
        feedback: Feedback,
        backoff: Backoff,
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.tally = Tally()
        self._quota, self._feedback, self._backoff, self._draw = quota, feedback, backoff, draw
        self._proving = anyio.Lock()

    async def send(self, request: Callable[[], Awaitable[T]]) -> Sent[T]:
        """Calls ``request`` until it brings an answer or an error that no repeat would change.

        Raises:
            AccountStoppedError: the account is refused, or was never reached.
        """
        if not self._feedback.proven:
            async with self._proving:
                if not self._feedback.proven:
                    return await self._repeat(request)
        return await self._repeat(request)

    async def _repeat(self, request: Callable[[], Awaitable[T]]) -> Sent[T]:
        attempts = failures = refusals = 0
        while True:
            await self._quota.slot()
            self._feedback.check()
            attempts += 1
            self.tally.sent += 1
            self.tally.retried += attempts > 1
            self.tally.in_flight += 1
            try:
                result = await request()
            except (NotFoundError, NeverActivatedError, RefusedRequestError) as error:
                self._feedback.succeeded()
                return Sent(error, attempts)
            except ForbiddenDeviceError as error:
                self._feedback.failed(error)
                return Sent(error, attempts)
            except ThrottledError as error:
                # The account's trouble, not the device's: no attempt is used up, and the closed quota does the waiting.
                self.tally.throttled += 1
                self._feedback.failed(error)
                refusals += 1
                if refusals >= REFUSALS:
                    return Sent(error, attempts)
                continue
            except PlatformError as error:
                self._feedback.failed(error)
                if not isinstance(error, TransientError):
                    return Sent(error, attempts)
                failures += 1
                if failures >= self._backoff.attempts:
                    return Sent(error, attempts)
            else:
                self._feedback.succeeded()
                return Sent(result, attempts)
            finally:
                self.tally.in_flight -= 1
            await anyio.sleep(self._backoff.delay(failures, self._draw()))
