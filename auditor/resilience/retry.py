"""Sending a request until it succeeds or its attempts are used up. Each attempt passes the account's rate limiter."""

import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio

from auditor.concurrency import RunningClock
from auditor.errors import (
    NO_CONNECTION_CODES,
    ClockSkewError,
    InvalidRequestError,
    KeyExpiredError,
    NeverActivatedError,
    NotFoundError,
    PlatformError,
    ThrottledError,
    TransientError,
)
from auditor.models import CallResult
from auditor.resilience.circuit_breaker import CircuitBreaker, FailingProducts
from auditor.resilience.rate_limiter import RateLimiter

T = TypeVar("T")

MAX_ACCOUNT_ERRORS = 20
"""Throttling responses and refused timestamps after which a request fails if others succeed: it is not the account."""

_OF_ACCOUNT = (ThrottledError, ClockSkewError, KeyExpiredError)
"""Errors that concern the account and not the device."""

_RETRIED = (TransientError, ThrottledError)
"""Errors after which a request may be sent again."""

MAX_UNPROVEN_ATTEMPTS = 20
"""Attempts of a request after which failures count even if this process stood still: the answers may be the cause."""

IMMEDIATE_CLOCK_RETRIES, MAX_CLOCK_DELAY = 7, 2.0
"""Refused timestamps of a request after which it pauses before each retry, and seconds of such a pause at most."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Attempts and delays: full jitter below ``initial_delay * 2**n`` seconds, ``max_delay`` at most."""

    max_attempts: int = 8
    initial_delay: float = 0.5
    max_delay: float = 30.0

    def delay(self, failures: int, random_fraction: float) -> float:
        """Return the seconds to wait after failure number ``failures`` (from 1); ``random_fraction`` is in [0, 1)."""
        return min(self.max_delay, self.initial_delay * 2.0 ** min(failures - 1, 30)) * random_fraction


PROBE_AFTER_FAILURES = 3
"""Failures of a request after which an account that has not succeeded yet is probed."""

MIN_KNOWN_REQUESTS = 2
"""Fewest requests about known devices that prove an outage: one of them may be about the device that fails."""

PROBE_BACKOFF = Backoff(initial_delay=1.0, max_delay=15.0)
"""Intervals of the probes while the circuit is open."""

MAX_RETRY_AFTER = 60.0
"""Seconds that an account pauses for one throttling response at most, whatever delay the platform requests."""

MIN_SAVED_RETRIES, SAVED_RETRIES_SECONDS = 20, 10.0
"""Retries that an account can save up: so many, or those of so many seconds if that is more."""


@dataclass(slots=True)
class RequestStats:
    """Requests of one account so far: ``sent`` in all, including ``retried`` retries; ``throttled`` responses.

    ``answered`` requests had a usable response, which took ``seconds`` in all, without those during which the process
    stood still.
    """

    sent: int = 0
    retried: int = 0
    throttled: int = 0
    in_flight: int = 0
    answered: int = 0
    seconds: float = 0.0


class RetryBudget:
    """The fraction of a quota that retries may use. It accrues with time, and only so much can be saved.

    Retries over budget wait, and first attempts go before them. So a device that fails now and then costs little, and
    a platform that fails for every fifth request gets fewer requests. Without a quota there is no budget.

    Attributes:
        exhausted: whether a retry waits for the budget now.
    """

    def __init__(self, fraction: float, limiter: RateLimiter, clock: Callable[[], float] = time.monotonic) -> None:
        self.exhausted = False
        self._fraction, self._limiter, self._clock = fraction, limiter, clock
        self._saved: float = MIN_SAVED_RETRIES
        self._refilled_at = clock()
        self._turn = anyio.Lock(fast_acquire=True)

    async def acquire(self, breaker: CircuitBreaker, is_pointless: Callable[[], bool] = lambda: False) -> bool:
        """Wait until one retry may be sent; return False if the circuit opens first, or the retry becomes pointless."""
        async with self._turn:
            try:
                while (rate := self._limiter.rate) is not None:
                    if breaker.is_open or is_pointless():
                        return False
                    # Every participant uses the fraction of its own share.
                    retries_per_second = self._fraction * rate / (1 + self._limiter.other_participants)
                    maximum = max(MIN_SAVED_RETRIES, SAVED_RETRIES_SECONDS * retries_per_second)
                    since, self._refilled_at = self._refilled_at, self._clock()
                    self._saved = min(self._saved + (self._refilled_at - since) * retries_per_second, maximum)
                    if self._saved >= 1:
                        self._saved -= 1
                        return True
                    self.exhausted = True
                    breaker.on_retry_budget_exhausted()
                    await anyio.sleep(min((1 - self._saved) / retries_per_second, 1.0))
                return not breaker.is_open
            finally:
                self.exhausted = self._turn.statistics().tasks_waiting > 0


class PausedTasks:
    """Counts tasks that wait, mostly before a retry. They hold no worker: ``on_pause`` may start another one meanwhile.

    Otherwise a product that fails for every device would soon hold all workers, and delay the devices of the others.
    """

    def __init__(self) -> None:
        self.count = 0
        self.on_pause: Callable[[], None] | None = None

    def __enter__(self) -> None:
        self.count += 1
        if self.on_pause is not None:
            self.on_pause()

    def __exit__(self, *_: object) -> None:
        self.count -= 1


class RenewableKey(Protocol):
    """The access key of an account, if it is a temporary one."""

    @property
    def is_usable(self) -> bool:
        """Whether requests may be signed with the key."""

    @property
    def is_due(self) -> bool:
        """Whether the next request must renew the key first, or wait until another one has renewed it."""

    async def renew(self) -> None:
        """Renew the key; raise AccountStoppedError if it cannot be renewed and is not usable."""


class RetryingCaller:
    """Sends the requests of one operation: within its quota, with retries, and with probes while the circuit is open.

    A failure uses up an attempt of its request only while other requests succeed. If all requests fail for some time,
    the circuit opens: all requests wait, and one that succeeded before is sent as a probe until it succeeds again.
    Before the first success, requests without a connection use up none either: the breaker stops the account. If
    requests about several known devices fail then, too, the circuit also opens.
    While only those for one product fail, each of them has one attempt. A failure while this process stood still says
    nothing about the platform: the request is sent again, and nothing is recorded.

    Args:
        limiter: gives a permit for every request.
        breaker: records every response.
        backoff: number of attempts and delays.
        retry_budget: fraction of the quota that retries may use.
        probe: a request that succeeded in an earlier audit session of the run; later successes replace it.
        known_requests: requests about several devices that the account answered about before.
        prober: the caller of the same account that has them; None: this one.
        paused: counts the requests that wait before a retry.
        key: what must be usable when a request is sent; None: a key that never expires.
        clock: seconds in which this process ran.
        count_sent: called before each request is sent.
        jitter: random number in [0, 1).

    Attributes:
        known_requests: those given, by which other callers of the account probe it, too.
        may_retry: returns whether a failed request may be sent again; a call budget replaces it.
        failing_products: the products for which every request fails.
    """

    def __init__(
        self,
        limiter: RateLimiter,
        breaker: CircuitBreaker,
        backoff: Backoff,
        *,
        retry_budget: float = 0.1,
        probe: Callable[[], Awaitable[object]] | None = None,
        known_requests: Sequence[Callable[[], Awaitable[object]]] = (),
        prober: "RetryingCaller | None" = None,
        paused: PausedTasks | None = None,
        key: RenewableKey | None = None,
        clock: RunningClock | None = None,
        count_sent: Callable[[], None] = lambda: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.stats = RequestStats()
        self.may_retry: Callable[[], bool] = lambda: True
        self.failing_products = FailingProducts(breaker)
        self._clock, self._count_sent = clock or RunningClock(), count_sent
        self._paused = paused or PausedTasks()
        self.retry_budget = RetryBudget(retry_budget, limiter)
        self._limiter, self._breaker, self._backoff, self._jitter = limiter, breaker, backoff, jitter
        self._acquire = limiter.acquire if key is None else partial(self._acquire_with, key)
        self._one_at_a_time, self._probing = anyio.Lock(), anyio.Lock()
        self._last_successful, self.known_requests, self._prober = probe, known_requests, prober or self
        self._sent_at: dict[int, float] = {}

    def send(
        self, request: Callable[[], Awaitable[T]], product: str | None = None
    ) -> Coroutine[Any, Any, CallResult[T]]:
        """Call ``request`` until it succeeds or fails with an error that no retry would change. Await it immediately.

        ``product`` is the one that the request is about, if that is known.

        Raises:
            AccountStoppedError: the account is denied, was never reached, or has failed for too long.
        """
        return self._send(request, product) if self._breaker.has_succeeded else self._send_first(request, product)

    async def _acquire_with(self, key: RenewableKey) -> float:
        """Do the same as the limiter's ``acquire``, with a key that is usable afterwards.

        The key is renewed before the request gets its permit. Requests that waited together would otherwise be sent
        together. One request renews a key that is still usable, and the others continue.
        """
        while True:
            if key.is_due:
                if key.is_usable:
                    with self._paused:
                        await key.renew()
                else:
                    await key.renew()
            sent_at = await self._limiter.acquire()
            if key.is_usable:
                return sent_at

    async def _send_first(self, request: Callable[[], Awaitable[T]], product: str | None) -> CallResult[T]:
        """Send one request at a time until the account has succeeded."""
        async with self._one_at_a_time:
            if not self._breaker.has_succeeded:
                return await self._send(request, product)
        return await self._send(request, product)

    async def _send(self, request: Callable[[], Awaitable[T]], product: str | None) -> CallResult[T]:
        attempts = failures = used_attempts = account_errors = 0
        answered_before = self.stats.answered
        while True:
            if self._breaker.is_open:
                await self._wait_until_closed(request)
            sent_at = await self._acquire()
            self._breaker.check()
            if self._breaker.is_open:
                continue
            attempts += 1
            standstills = self._clock.standstills
            result = await self._attempt(request, sent_at, is_retry=attempts > 1)
            if not isinstance(result, _RETRIED):
                self.failing_products.record_success(product)
                return CallResult(result, attempts)
            if attempts <= MAX_UNPROVEN_ATTEMPTS and self._proves_nothing(result, standstills):
                continue
            if isinstance(result, _OF_ACCOUNT):
                # No attempt is used up. The limiter does the waiting. The client learns the time from a few refusals,
                # or denies the account, unless they are of one device.
                account_errors += 1
                if account_errors % MAX_ACCOUNT_ERRORS == 0 and await self._others_succeed(answered_before):
                    return CallResult(result, attempts)
                await self._wait_for_clock(result, account_errors)
            elif not await self._is_outage(failures := failures + 1):
                used_attempts += self._uses_attempt(result, product)
                is_last = used_attempts >= self._backoff.max_attempts
                if is_last or not await self._wait_to_retry(request, failures, product):
                    return CallResult(result, attempts)

    async def _wait_for_clock(self, result: object, account_errors: int) -> None:
        """Wait before the retry of a request whose timestamp was refused again and again."""
        if isinstance(result, ClockSkewError) and account_errors > IMMEDIATE_CLOCK_RETRIES:
            with self._paused:
                await anyio.sleep(min(self._backoff.delay(account_errors, self._jitter()), MAX_CLOCK_DELAY))

    def _uses_attempt(self, error: TransientError, product: str | None) -> bool:
        """Record a failure of a product; return whether it uses up an attempt.

        Before the first success of the account, a failed connection says nothing about a request or its product.
        """
        if error.code in NO_CONNECTION_CODES and not self._breaker.has_succeeded:
            return False
        self.failing_products.record_failure(product)
        return True

    def _proves_nothing(self, result: object, standstills: int) -> bool:
        """Return whether a request failed while this process stood still, in which time no answer is read."""
        return isinstance(result, TransientError) and self._clock.has_stopped(standstills)

    async def _others_succeed(self, answered_before: int) -> bool:
        """Return whether another request has succeeded since then; if none has, probe the account."""
        if self.stats.answered == answered_before:
            await self.probe_account()
        return self.stats.answered > answered_before

    async def _wait_to_retry(
        self, request: Callable[[], Awaitable[object]], failures: int, product: str | None
    ) -> bool:
        """Wait before a retry, within the retry budget; return whether to send it."""

        def is_pointless() -> bool:
            return self.failing_products.is_failing(product)

        if is_pointless() or not self.may_retry():
            return False
        if failures == PROBE_AFTER_FAILURES and not self._breaker.has_succeeded:
            await self.probe_account()
        with self._paused:
            await anyio.sleep(self._backoff.delay(failures, self._jitter()))
            while not is_pointless():
                # Retries that waited while the circuit was open wait for the budget again: the probe that closed it may
                # have been about another product.
                if self._breaker.is_open:
                    await self._wait_until_closed(request)
                if await self.retry_budget.acquire(self._breaker, is_pointless):
                    return self.may_retry()  # a probe may have used the last call of a call budget meanwhile
        return False

    @property
    def longest_wait(self) -> float:
        """Seconds for which the oldest request in flight has no answer; 0 if there is none."""
        oldest = next(iter(self._sent_at.values()), None)  # in the order in which they were sent
        return 0.0 if oldest is None else time.monotonic() - oldest

    async def _attempt(
        self, request: Callable[[], Awaitable[T]], sent_at: float, *, is_retry: bool
    ) -> T | PlatformError:
        """Send one request and record its outcome."""
        stats = self.stats
        began, standstills = time.monotonic(), self._clock.standstills
        self._count_sent()
        stats.sent += 1
        stats.retried += is_retry
        stats.in_flight += 1
        number = stats.sent
        self._sent_at[number] = began
        try:
            result: T | PlatformError = await request()
        except (NotFoundError, NeverActivatedError, InvalidRequestError) as error:
            result = error
        except PlatformError as error:
            if isinstance(error, ThrottledError):
                self._slow_down(error, sent_at)
            if not self._proves_nothing(error, standstills):
                self._breaker.record_failure(error)
            return error
        finally:
            stats.in_flight -= 1
            del self._sent_at[number]
        self._limiter.on_success(sent_at)
        self._breaker.record_success()  # reads the clock, so a standstill is noticed
        stats.answered += 1
        if self._clock.standstills == standstills:
            stats.seconds += time.monotonic() - began
        self._last_successful = request
        return result

    def _slow_down(self, error: ThrottledError, sent_at: float) -> None:
        self.stats.throttled += 1
        # A delay of 0, or a date in the past, says nothing: to obey it would mean a retry without end.
        # Jitter separates clients that got the same delay.
        seconds = error.retry_after
        delay = min(seconds * (1 + 0.1 * self._jitter()), MAX_RETRY_AFTER) if seconds else None
        self._limiter.on_throttled(sent_at, delay)

    async def probe_account(self) -> None:
        """Send the last successful request once, if there is one, to distinguish a failing account from its devices."""
        if self._last_successful is not None:
            await self.send_probe(self._last_successful)

    async def _is_outage(self, failures: int) -> bool:
        """Return whether the circuit is open; open it before the first success, if all known devices fail, too."""
        is_due = failures == min(PROBE_AFTER_FAILURES, self._backoff.max_attempts)
        if (
            self._breaker.is_open
            or self._breaker.has_succeeded
            or not is_due
            or len(self._prober.known_requests) < MIN_KNOWN_REQUESTS
        ):
            return self._breaker.is_open
        for request in self._prober.known_requests:
            if not isinstance(await self._prober.send_probe(request), TransientError):
                return False  # the platform answers, whatever it says of the device
        self._breaker.open()
        return True

    async def send_probe(
        self, request: Callable[[], Awaitable[T]], *, while_open: bool = False
    ) -> T | PlatformError | None:
        """Send a request once, and return its outcome; None: ``while_open``, and the circuit has been closed since."""
        sent_at = await self._acquire()
        self._breaker.check()
        if while_open and not self._breaker.is_open:
            return None
        return await self._attempt(request, sent_at, is_retry=True)

    async def _wait_until_closed(self, request: Callable[[], Awaitable[object]]) -> None:
        """Return when the circuit is closed. The first caller probes (half-open), and the others wait for it.

        The first probe is sent immediately: if it succeeds, the failures were those of a few devices or of a product.
        """
        async with self._probing:
            probes = 0
            while self._breaker.is_open:
                if probes:
                    await anyio.sleep(PROBE_BACKOFF.delay(probes, 0.5 + 0.5 * self._jitter()))
                # Without a success one request alone may fail for reasons of its own, so they take turns.
                turns = [(self, request), *((self._prober, each) for each in self._prober.known_requests)]
                turn = turns[probes % len(turns)]
                caller, probe = turn if self._last_successful is None else (self, self._last_successful)
                probes += 1
                await caller.send_probe(probe, while_open=True)
