"""A process that was stopped, or whose machine was suspended: the platform is not blamed for what failed meanwhile."""

from dataclasses import dataclass

import anyio.lowlevel
import pytest

from auditor.concurrency import MIN_STANDSTILL, RunningClock
from auditor.errors import PlatformError, TransientError
from auditor.resilience.circuit_breaker import CircuitBreaker
from auditor.resilience.rate_limiter import UnlimitedRateLimiter
from auditor.resilience.retry import Backoff, RetryingCaller

TIMED_OUT = TransientError("auditor.Timeout", "no answer within 30 s")
TICK = MIN_STANDSTILL / 10


@dataclass
class Machine:
    """Seconds since an arbitrary moment, which only the test advances."""

    now: float = 500.0

    def elapsed(self) -> float:
        return self.now


def ticking_clock() -> tuple[Machine, RunningClock]:
    machine = Machine()
    clock = RunningClock(machine.elapsed)
    clock.tick()
    return machine, clock


def run_for(machine: Machine, clock: RunningClock, seconds: float) -> None:
    for _ in range(round(seconds / TICK)):
        machine.now += TICK
        assert clock.tick() == 0


def test_a_standstill_does_not_count_and_is_reported_once() -> None:
    machine, clock = ticking_clock()
    began = clock()
    run_for(machine, clock, 3.0)
    machine.now += 60.0
    assert clock.tick() == pytest.approx(60.0)
    assert clock.tick() == 0
    run_for(machine, clock, 2.0)
    assert clock() - began == pytest.approx(5.0)


@pytest.mark.parametrize("ticks_first", [True, False])
def test_whatever_runs_first_after_a_standstill_notices_it(ticks_first: bool) -> None:  # noqa: FBT001
    machine, clock = ticking_clock()
    before = clock.standstills
    run_for(machine, clock, 1.0)
    machine.now += TICK / 2
    just_before = clock()
    assert not clock.has_stopped(before)
    machine.now += 3.0
    if ticks_first:
        clock.tick()
    assert clock.has_stopped(before)
    clock.tick()
    run_for(machine, clock, 1.0)
    assert not clock.has_stopped(clock.standstills)
    assert clock() >= just_before


def test_a_clock_that_does_not_tick_counts_all_seconds() -> None:
    machine = Machine()
    clock = RunningClock(machine.elapsed)
    began, before = clock(), clock.standstills
    machine.now += 3600.0
    assert clock() - began == pytest.approx(3600.0)
    assert not clock.has_stopped(before)


@pytest.mark.anyio
@pytest.mark.parametrize("stands_still", [True, False])
async def test_failures_of_a_standstill_are_sent_again_and_count_for_nothing(stands_still: bool) -> None:  # noqa: FBT001
    machine, clock = ticking_clock()
    breaker = CircuitBreaker("eu", give_up_after=60, clock=clock)
    breaker.record_success()
    caller = RetryingCaller(UnlimitedRateLimiter(), breaker, Backoff(max_attempts=1), clock=clock)
    sent = 0

    async def request() -> str:
        nonlocal sent
        await anyio.lowlevel.checkpoint()
        sent += 1
        if sent <= 10:
            machine.now += 700.0 if stands_still else 0.9 * MIN_STANDSTILL
            raise TIMED_OUT
        return "answer"

    result = await caller.send(request, "k1")
    if stands_still:  # 10 times 700 s, and any of them would have opened the circuit or stopped the account
        assert (result.result, result.attempts) == ("answer", 11)
        assert caller.stats.seconds < MIN_STANDSTILL
        assert breaker.last_error is None
    else:
        assert isinstance(result.result, PlatformError)
        assert breaker.last_error is TIMED_OUT
    assert not breaker.is_open
    assert not caller.failing_products.is_failing("k1")
