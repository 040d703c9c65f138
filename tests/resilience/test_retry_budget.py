"""The part of a quota that repeats may take: it comes with time, and what is beyond it waits or is the platform's."""

import anyio
import anyio.lowlevel
import pytest

from auditor.errors import TransientError
from auditor.resilience.circuit_breaker import SICK_FAILURES, SPENT_SECONDS, Feedback
from auditor.resilience.rate_limiter import NoQuota, Quota
from auditor.resilience.retry import REPEATS, Backoff, Pacer, RetryBudget

pytestmark = pytest.mark.anyio


class Clocked:
    """A budget of a tenth of a quota, beside a clock that only the test moves."""

    def __init__(self, per_second: float = 10.0) -> None:
        self.now = 100.0
        gate = Quota(per_second)
        self.feedback = Feedback("eu", give_up_after=60, clock=lambda: self.now)
        self.budget = RetryBudget(0.1, gate, lambda: self.now)
        self.per_second = 0.1 * gate.rate

    async def taken(self) -> int:
        """Repeats that may be sent at once."""
        count = 0
        with anyio.move_on_after(0.03):
            while True:
                await self.budget.take(self.feedback)
                count += 1
        return count


async def test_some_repeats_are_saved_and_the_others_come_with_time() -> None:
    clocked = Clocked()
    assert await clocked.taken() == REPEATS
    clocked.now += 5.5 / clocked.per_second
    assert await clocked.taken() == 5
    clocked.now += 1000
    assert await clocked.taken() == REPEATS


async def test_a_large_quota_saves_those_of_ten_seconds() -> None:
    clocked = Clocked(1000.0)
    clocked.now += 1000
    assert await clocked.taken() == int(10 * clocked.per_second)


async def test_without_a_quota_there_is_no_budget() -> None:
    budget = RetryBudget(0.1, NoQuota())
    with anyio.fail_after(5):
        for _ in range(1000):
            await budget.take(Feedback("eu", give_up_after=60))
    assert not budget.short


async def test_repeats_beyond_the_budget_are_the_breaker_s_once_nothing_succeeds() -> None:
    clocked = Clocked()
    clocked.feedback.succeeded()
    await clocked.taken()
    for _ in range(SICK_FAILURES - 1):
        clocked.feedback.failed(TransientError("ServiceUnavailable"))
    await clocked.taken()
    assert not clocked.feedback.sick
    clocked.feedback.failed(TransientError("ServiceUnavailable"))
    await clocked.taken()
    assert not clocked.feedback.sick  # what is on its way may still be good
    clocked.now += SPENT_SECONDS
    with anyio.fail_after(5):
        await clocked.budget.take(clocked.feedback)
    assert clocked.feedback.sick  # a second and a half sooner than without that


async def test_nobody_waits_for_a_budget_once_the_platform_is_sick() -> None:
    clocked = Clocked()
    clocked.feedback.succeeded()
    await clocked.taken()
    async with anyio.create_task_group() as crowd:
        for _ in range(3):
            crowd.start_soon(clocked.budget.take, clocked.feedback)
        await anyio.sleep(0.01)
        assert clocked.budget.short
        clocked.feedback.sick = True
    assert not clocked.budget.short


async def test_a_platform_that_fails_every_third_request_is_repeated_a_tenth_and_loses_no_device() -> None:
    quota = Quota(400)
    pacer = Pacer(quota, Feedback("eu", give_up_after=60), Backoff(attempts=50, first=0.01), retry_budget=0.1)
    asked = 0

    async def every_third_fails() -> str:
        nonlocal asked
        asked += 1
        await anyio.lowlevel.checkpoint()
        if asked % 3 == 0:
            raise TransientError("InternalError")
        return "page"

    began, ended = anyio.current_time(), 0.0
    results: list[object] = []

    async def ask() -> None:
        nonlocal ended
        for _ in range(20):
            sent = await pacer.send(every_third_fails)
            results.append(sent.result)
        ended = anyio.current_time()

    async with anyio.create_task_group() as crowd:
        for _ in range(20):
            crowd.start_soon(ask)
    assert results == ["page"] * 400
    saved = max(REPEATS, 10 * 0.1 * 400)
    assert 190 <= pacer.tally.retried <= saved + 0.1 * 400 * (ended - began) + 1
