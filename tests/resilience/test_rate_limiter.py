"""The rate limiter: never too many requests in a second, and none during a pause."""

import math
import time
from typing import TypeVar

import anyio
import anyio.lowlevel
import pytest

from auditor.resilience.quota_backends import LocalBackend
from auditor.resilience.rate_limiter import MAX_PERMIT_AGE, AdaptiveRateLimiter, RateLimiter, UnlimitedRateLimiter
from auditor.resilience.shared_quota import Command

T = TypeVar("T")

pytestmark = pytest.mark.anyio


async def acquire_repeatedly(limiter: AdaptiveRateLimiter, waiters: int, seconds: float) -> list[float]:
    """Moments of the permits, with many waiting requests all the time."""
    permits: list[float] = []

    async def wait() -> None:
        while True:
            await limiter.acquire()
            permits.append(time.monotonic())

    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as waiting:
            for _ in range(waiters):
                waiting.start_soon(wait)
    return permits


def max_per_second(moments: list[float]) -> int:
    maximum = first = 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - 1.0:
            first += 1
        maximum = max(maximum, last - first + 1)
    return maximum


async def test_no_second_has_more_requests_than_the_quota_and_nearly_all_of_it_is_used() -> None:
    measured: dict[int, list[float]] = {}

    async def measure(per_second: int) -> None:
        measured[per_second] = await acquire_repeatedly(AdaptiveRateLimiter(per_second), 100, 2.2)

    async with anyio.create_task_group() as group:
        for per_second in (10, 50, 200, 1000):
            group.start_soon(measure, per_second)
    for per_second, permits in measured.items():
        assert max_per_second(permits) <= per_second
        assert len(permits) >= 0.8 * per_second * 2.2 * 0.9


async def test_a_quota_of_less_than_one_a_second_gives_one_permit_at_a_time() -> None:
    limiter = AdaptiveRateLimiter(0.5)
    await limiter.acquire()
    with anyio.move_on_after(0.1) as scope:
        await limiter.acquire()
    assert scope.cancelled_caught


async def test_without_a_quota_permits_are_given_immediately() -> None:
    limiter = UnlimitedRateLimiter()
    with anyio.fail_after(5):
        for _ in range(10_000):
            await limiter.acquire()


@pytest.mark.parametrize("per_second", [None, 1000.0])
async def test_a_pause_holds_waiting_requests_and_new_ones(per_second: float | None) -> None:
    limiter: RateLimiter = UnlimitedRateLimiter() if per_second is None else AdaptiveRateLimiter(per_second)
    permits: list[float] = []

    async def acquire_often() -> None:
        for _ in range(20):
            await limiter.acquire()
            permits.append(time.monotonic())
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as waiting:
        for _ in range(5):
            waiting.start_soon(acquire_often)
        await limiter.acquire()
        limiter.pause(0.3)
        began, before = time.monotonic(), len(permits)
        waiting.start_soon(acquire_often)
        assert limiter.paused
        await anyio.sleep(0.1)
        assert len(permits) == before
    assert len(permits) == 120
    assert min(moment for moment in permits[before:]) >= began + 0.295
    assert not limiter.paused


async def test_a_pause_during_another_pause_holds_its_waiting_requests_too() -> None:
    limiter = UnlimitedRateLimiter()
    limiter.pause(0.1)
    async with anyio.create_task_group() as waiting:
        began = time.monotonic()
        moments: list[float] = []

        async def wait() -> None:
            await limiter.acquire()
            moments.append(time.monotonic())

        waiting.start_soon(wait)
        await anyio.sleep(0.05)
        limiter.pause(0.2)
    assert moments[0] - began >= 0.245


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    now = 100.0
    limiter = AdaptiveRateLimiter(5, backend=LocalBackend(5, lambda: now))
    limiter.pause(10)
    limiter.pause(1)
    now = 109.9
    assert limiter.paused
    now = 110.0
    assert not limiter.paused


async def test_the_end_of_a_pause_does_not_burst() -> None:
    limiter = AdaptiveRateLimiter(50)
    limiter.pause(0.5)
    permits = await acquire_repeatedly(limiter, 100, 1.5)
    assert 40 <= len(permits) <= 51
    assert min(later - earlier for earlier, later in zip(permits, permits[5:], strict=False)) >= 0.04


async def test_idle_time_is_not_made_up_for() -> None:
    limiter = AdaptiveRateLimiter(100)
    await limiter.acquire()
    await anyio.sleep(0.5)
    began = time.monotonic()
    for _ in range(21):
        await limiter.acquire()
    assert time.monotonic() - began >= 0.14


async def test_throttling_lowers_the_rate_and_successes_raise_it_again() -> None:
    limiter = AdaptiveRateLimiter(200)
    initial = limiter.rate
    assert 0.95 * 200 <= initial < 200
    sent = [await limiter.acquire() for _ in range(40)]
    limiter.on_throttled(sent[0])
    tolerated = limiter.rate
    assert 0.98 * initial < tolerated < initial
    assert not limiter.paused
    limiter.on_throttled(sent[-1])
    assert limiter.paused
    slowed = limiter.rate
    assert slowed < 0.98 * initial
    with anyio.move_on_after(1.0):
        while True:
            limiter.on_success(await limiter.acquire())
    assert slowed < limiter.rate < 200


async def test_a_success_raises_the_rate_for_a_request_that_waits_at_a_much_lower_one() -> None:
    limiter = AdaptiveRateLimiter(1000)
    quota = limiter._backend.quota
    quota.rate._tolerated_at = time.monotonic() - 1  # another throttling response was taken for chance a second ago
    for _ in range(8):
        sent_at = await limiter.acquire()
        limiter.on_throttled(sent_at)
        quota.paused_until = 0.0  # this test does not wait for the pauses
        quota.rate._last_permit_at = 0.0
    slow = limiter.rate
    assert slow < 20
    sent_at = await limiter.acquire()
    with anyio.fail_after(3):
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                for _ in range(3):
                    await limiter.acquire()

            group.start_soon(wait)
            limiter.on_success(sent_at)
    assert limiter.rate > slow


@pytest.mark.parametrize("per_second", [None, 5.0])
def test_a_longer_retry_after_extends_a_pause_and_a_shorter_one_does_not(per_second: float | None) -> None:
    now = 100.0
    limiter: RateLimiter = (
        UnlimitedRateLimiter(lambda: now)
        if per_second is None
        else AdaptiveRateLimiter(per_second, backend=LocalBackend(per_second, lambda: now))
    )
    limiter.on_throttled(now, 5.0)
    limiter.on_throttled(now, 20.0)
    limiter.on_throttled(now, 1.0)
    now = 119.9
    assert limiter.paused
    now = 120.1
    assert not limiter.paused


def test_without_a_quota_pauses_double_in_a_series_of_throttling_responses() -> None:
    now, pauses = 100.0, []
    limiter = UnlimitedRateLimiter(lambda: now)
    for _ in range(8):
        limiter.on_throttled(now)
        limiter.on_throttled(now)
        pauses.append(limiter._paused_until - now)
        now = limiter._paused_until
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert limiter.rate is None


@pytest.mark.slow
@pytest.mark.parametrize("retry_after", [None, 0.2])
async def test_without_a_quota_throttled_requests_probe_one_by_one_until_one_succeeds(
    retry_after: float | None,
) -> None:
    limiter, began = UnlimitedRateLimiter(), time.monotonic()
    answered: list[float] = []
    throttled = 0

    async def send() -> None:
        nonlocal throttled
        while True:
            sent_at = await limiter.acquire()
            await anyio.sleep(0.01)
            if time.monotonic() < began + 3:
                throttled += 1
                limiter.on_throttled(sent_at, retry_after)
            else:
                answered.append(time.monotonic() - began)
                limiter.on_success(sent_at)
                return

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            for _ in range(64):
                group.start_soon(send)
    assert 64 < throttled <= 64 + 16
    assert answered[-1] <= 3 + 2.5
    with anyio.fail_after(1):
        for _ in range(1000):
            limiter.on_success(await limiter.acquire())


async def test_without_a_quota_a_cancelled_probe_stops_no_other() -> None:
    limiter = UnlimitedRateLimiter()
    limiter.on_throttled(await limiter.acquire(), 0.1)
    await limiter.acquire()  # it is never answered
    with anyio.fail_after(2):
        await limiter.acquire()


async def test_a_success_of_a_request_sent_before_the_throttling_response_releases_no_other() -> None:
    limiter = UnlimitedRateLimiter()
    early = [await limiter.acquire() for _ in range(50)]
    limiter.on_throttled(early[0], 0.05)
    for sent_at in early[1:]:
        limiter.on_success(sent_at)
    await limiter.acquire()
    with anyio.move_on_after(0.2) as scope:
        await limiter.acquire()
    assert scope.cancelled_caught


async def test_an_unknown_quota_is_searched_for_from_ten_a_second_on() -> None:
    now = 100.0
    limiter = AdaptiveRateLimiter(math.inf, backend=LocalBackend(math.inf, lambda: now))
    assert limiter.rate == 10
    for _ in range(2000):
        limiter.on_success(now)
    await limiter.acquire()
    assert limiter.rate > 20


async def test_a_pause_holds_the_remaining_permits_of_a_batch() -> None:
    limiter = AdaptiveRateLimiter(1000)
    await limiter.acquire()
    await anyio.sleep(0.05)
    permits: list[float] = []

    async def wait() -> None:
        await limiter.acquire()
        permits.append(time.monotonic())
        if len(permits) == 1:
            limiter.pause(0.3)

    async with anyio.create_task_group() as waiting:
        for _ in range(8):
            waiting.start_soon(wait)
    assert permits[1] - permits[0] >= 0.29


class DistantBackend(LocalBackend):
    """A backend with latency, as of a Redis in another town."""

    async def transaction(self, command: Command[T]) -> T:
        await anyio.sleep(0.03)
        result = command.apply(self.quota, self.clock())
        await anyio.sleep(0.03)
        return result


async def test_a_backend_with_latency_gives_permits_too() -> None:
    permits = await acquire_repeatedly(AdaptiveRateLimiter(10, backend=DistantBackend(10)), 5, 2.0)
    assert 12 <= len(permits) <= 21


async def test_cancelled_requests_take_no_permit_and_delay_no_others() -> None:
    limiter = AdaptiveRateLimiter(50)
    await limiter.acquire()
    permits: list[float] = []

    async def wait() -> None:
        await limiter.acquire()
        permits.append(time.monotonic())

    async with anyio.create_task_group() as cancelled:
        for _ in range(500):
            cancelled.start_soon(limiter.acquire)
        await anyio.sleep(0.05)
        cancelled.cancel_scope.cancel()
    with anyio.fail_after(5):  # 500 lost permits would take ten seconds
        async with anyio.create_task_group() as waiting:
            for _ in range(10):
                waiting.start_soon(wait)
    assert len(permits) == 10


class CountingBackend(LocalBackend):
    """Count the transactions."""

    def __init__(self, configured_rate: float) -> None:
        super().__init__(configured_rate)
        self.transactions = 0

    async def transaction(self, command: Command[T]) -> T:
        self.transactions += 1
        return await super().transaction(command)


async def test_at_a_high_rate_that_is_not_reached_many_permits_cost_one_transaction() -> None:
    backend = CountingBackend(1_000_000)
    limiter = AdaptiveRateLimiter(1_000_000, backend=backend)
    for _ in range(200):
        for _ in range(50):
            limiter.on_success(await limiter.acquire())
        await anyio.lowlevel.checkpoint()
    assert backend.transactions <= 200


async def test_permits_of_a_batch_expire() -> None:
    backend = CountingBackend(1_000_000)
    limiter = AdaptiveRateLimiter(1_000_000, backend=backend)
    await anyio.sleep(0.01)
    first = await limiter.acquire()
    await anyio.sleep(2 * MAX_PERMIT_AGE)
    assert await limiter.acquire() > first
    assert backend.transactions == 2
