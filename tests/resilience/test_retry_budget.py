"""The retry budget: it accrues with time, retries over budget wait, and an exhausted one opens the circuit sooner."""

import anyio
import anyio.lowlevel
import pytest

from auditor.errors import TransientError
from auditor.resilience.circuit_breaker import EXHAUSTED_SECONDS, OPEN_AFTER_FAILURES, CircuitBreaker
from auditor.resilience.rate_limiter import AdaptiveRateLimiter, UnlimitedRateLimiter
from auditor.resilience.retry import MIN_SAVED_RETRIES, Backoff, RetryBudget, RetryingCaller

pytestmark = pytest.mark.anyio


class Bench:
    """A budget of a tenth of a quota, with a clock that only the test advances."""

    def __init__(self, per_second: float = 10.0) -> None:
        self.now = 100.0
        limiter = AdaptiveRateLimiter(per_second)
        self.breaker = CircuitBreaker("eu", give_up_after=60, clock=lambda: self.now)
        self.budget = RetryBudget(0.1, limiter, lambda: self.now)
        self.retries_per_second = 0.1 * limiter.rate

    async def acquire_available(self) -> int:
        """Acquire the retries that may be sent immediately; return how many."""
        count = 0
        with anyio.move_on_after(0.03):
            while True:
                await self.budget.acquire(self.breaker)
                count += 1
        return count


async def test_some_retries_are_saved_and_the_others_accrue_with_time() -> None:
    bench = Bench()
    assert await bench.acquire_available() == MIN_SAVED_RETRIES
    bench.now += 5.5 / bench.retries_per_second
    assert await bench.acquire_available() == 5
    bench.now += 1000
    assert await bench.acquire_available() == MIN_SAVED_RETRIES


async def test_a_large_quota_saves_the_retries_of_ten_seconds() -> None:
    bench = Bench(1000.0)
    bench.now += 1000
    assert await bench.acquire_available() == int(10 * bench.retries_per_second)


async def test_without_a_quota_there_is_no_budget() -> None:
    budget = RetryBudget(0.1, UnlimitedRateLimiter())
    with anyio.fail_after(5):
        for _ in range(1000):
            await budget.acquire(CircuitBreaker("eu", give_up_after=60))
    assert not budget.exhausted


async def test_an_exhausted_budget_opens_the_circuit_sooner_when_nothing_succeeds() -> None:
    bench = Bench()
    bench.breaker.record_success()
    await bench.acquire_available()
    for _ in range(OPEN_AFTER_FAILURES - 1):
        bench.breaker.record_failure(TransientError("ServiceUnavailable"))
    await bench.acquire_available()
    assert not bench.breaker.is_open
    bench.breaker.record_failure(TransientError("ServiceUnavailable"))
    await bench.acquire_available()
    assert not bench.breaker.is_open  # responses in flight may still be successes
    bench.now += EXHAUSTED_SECONDS
    with anyio.fail_after(5):
        await bench.budget.acquire(bench.breaker)
    assert bench.breaker.is_open  # a second and a half sooner than without that


async def test_no_retry_waits_for_the_budget_while_the_circuit_is_open() -> None:
    bench = Bench()
    bench.breaker.record_success()
    await bench.acquire_available()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(bench.budget.acquire, bench.breaker)
        await anyio.sleep(0.01)
        assert bench.budget.exhausted
        bench.breaker.is_open = True
    assert not bench.budget.exhausted


@pytest.mark.slow
async def test_a_platform_that_fails_every_third_request_gets_a_tenth_of_retries_and_no_device_fails() -> None:
    limiter = AdaptiveRateLimiter(400)
    caller = RetryingCaller(
        limiter, CircuitBreaker("eu", give_up_after=60), Backoff(max_attempts=50, initial_delay=0.01), retry_budget=0.1
    )
    requests = 0

    async def every_third_fails() -> str:
        nonlocal requests
        requests += 1
        await anyio.lowlevel.checkpoint()
        if requests % 3 == 0:
            raise TransientError("InternalError")
        return "page"

    began, ended = anyio.current_time(), 0.0
    results: list[object] = []

    async def send_many() -> None:
        nonlocal ended
        for _ in range(20):
            sent = await caller.send(every_third_fails)
            results.append(sent.result)
        ended = anyio.current_time()

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(send_many)
    assert results == ["page"] * 400
    saved = max(MIN_SAVED_RETRIES, 10 * 0.1 * 400)
    assert 190 <= caller.stats.retried <= saved + 0.1 * 400 * (ended - began) + 1
