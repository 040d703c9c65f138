"""When an account is stopped, and how long it pauses. Clocks and random numbers are fake."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from auditor.errors import (
    AccountDeniedError,
    AccountStoppedError,
    ClockSkewError,
    DeviceDeniedError,
    PlatformError,
    ThrottledError,
    TransientError,
)
from auditor.resilience.circuit_breaker import MAX_DENIED_DEVICES, MAX_FAILING_SECONDS, CircuitBreaker
from auditor.resilience.rate_limiter import MIN_PAUSE, UnlimitedRateLimiter
from auditor.resilience.retry import MAX_RETRY_AFTER, Backoff, RetryingCaller


@dataclass
class Bench:
    """The circuit breaker of an account, with a clock that only the test advances."""

    jitter: Callable[[], float] = lambda: 0.0
    now: float = 1000.0
    limiter: UnlimitedRateLimiter = field(init=False)
    breaker: CircuitBreaker = field(init=False)

    def __post_init__(self) -> None:
        self.limiter = UnlimitedRateLimiter(lambda: self.now)
        self.breaker = CircuitBreaker("eu", give_up_after=60, clock=lambda: self.now)
        self.caller = RetryingCaller(self.limiter, self.breaker, Backoff(), jitter=self.jitter)

    def throttle(self, retry_after: float | None = None) -> None:
        self.caller._slow_down(throttled(retry_after), self.now)

    def pause_after(self, retry_after: float | None = None) -> float:
        """Throttle once more; return the seconds of the pause, and end it."""
        self.throttle(retry_after)
        began = self.now
        paused_until = self.limiter._paused_until
        self.now = max(self.now, paused_until)
        assert not self.limiter.paused
        return paused_until - began


def throttled(retry_after: float | None = None) -> ThrottledError:
    error = ThrottledError("Throttling.User", "slow down")
    error.retry_after = retry_after
    return error


DENIED = DeviceDeniedError("iot.common.AuthActionPermissionDeny", "not yours")
CUT = TransientError("auditor.IncompleteBody", "closed")


@pytest.mark.parametrize("has_succeeded", [False, True])
def test_a_denied_account_is_stopped_immediately_with_name_and_reason(has_succeeded: bool) -> None:  # noqa: FBT001
    bench = Bench()
    if has_succeeded:
        bench.breaker.record_success()
    with pytest.raises(AccountStoppedError) as caught:
        bench.breaker.record_failure(
            AccountDeniedError("InvalidAccessKeyId.NotFound", "Specified access key is not found.")
        )
    assert caught.value.account == "eu"
    assert 'account "eu"' in str(caught.value)
    assert "InvalidAccessKeyId.NotFound: Specified access key is not found; check " in str(caught.value)


def test_an_account_that_is_denied_every_device_is_stopped() -> None:
    bench = Bench()
    for _ in range(MAX_DENIED_DEVICES - 1):
        bench.breaker.record_failure(DENIED)
    with pytest.raises(AccountStoppedError, match=r'"eu".*denies.*AuthActionPermissionDeny'):
        bench.breaker.record_failure(DENIED)


def test_denied_devices_among_successes_stop_nothing() -> None:
    bench = Bench()
    for _ in range(MAX_DENIED_DEVICES - 1):
        bench.breaker.record_failure(DENIED)
    bench.breaker.record_success()
    for _ in range(10 * MAX_DENIED_DEVICES):
        bench.breaker.record_failure(DENIED)


@pytest.mark.parametrize("error", [CUT, throttled(), ClockSkewError("InvalidTimeStamp.Expired")])
def test_an_account_that_never_succeeded_is_stopped_after_give_up_after(error: PlatformError) -> None:
    bench = Bench()
    bench.breaker.record_failure(error)
    bench.now += 59.9
    bench.breaker.record_failure(error)
    bench.now += 0.1
    with pytest.raises(AccountStoppedError) as caught:
        bench.breaker.record_failure(error)
    assert 'account "eu": no usable answer for 60 s' in str(caught.value)
    assert error.code in str(caught.value)
    assert ("endpoint" in str(caught.value)) is not isinstance(error, ThrottledError)


def test_an_account_that_has_succeeded_is_stopped_after_a_longer_time() -> None:
    bench = Bench()
    bench.breaker.record_success()
    bench.breaker.record_failure(CUT)
    bench.now += MAX_FAILING_SECONDS - 0.1
    bench.breaker.record_failure(CUT)
    bench.now += 0.1
    with pytest.raises(AccountStoppedError, match="600 s") as caught:
        bench.breaker.record_failure(CUT)
    assert "endpoint" not in str(caught.value)


def test_a_success_restarts_the_time() -> None:
    bench = Bench()
    for _ in range(10):
        bench.breaker.record_failure(CUT)
        bench.now += 50
        bench.breaker.record_success()
    bench.breaker.record_failure(CUT)
    bench.now += MAX_FAILING_SECONDS - 1
    bench.breaker.record_failure(CUT)


def test_time_without_any_request_is_no_failure() -> None:
    bench = Bench()
    bench.now += 10_000
    bench.breaker.record_failure(CUT)


def test_pauses_double_in_a_series_of_throttling_responses_and_start_again_after_a_success() -> None:
    bench = Bench()
    bench.breaker.record_success()
    pauses = [bench.pause_after() for _ in range(9)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    bench.limiter.on_success(bench.now)
    assert bench.pause_after() == MIN_PAUSE


def test_retry_after_is_respected_and_capped() -> None:
    bench = Bench()
    assert bench.pause_after(7.5) == 7.5
    assert bench.pause_after(0.25) == pytest.approx(0.25)
    bench.breaker.record_success()
    assert bench.pause_after(86_400.0) == MAX_RETRY_AFTER


def test_a_retry_after_of_zero_is_ignored() -> None:
    bench = Bench()
    assert [bench.pause_after(0.0) for _ in range(3)] == [1, 2, 4]


def test_jitter_lengthens_a_pause_by_a_tenth_at_most_and_never_above_the_maximum() -> None:
    bench = Bench(jitter=lambda: 1.0)
    assert bench.pause_after(10.0) == pytest.approx(11.0)
    bench.breaker.record_success()
    assert bench.pause_after(MAX_RETRY_AFTER) == MAX_RETRY_AFTER


def test_throttling_responses_that_arrive_together_are_one_pause() -> None:
    bench = Bench()
    for _ in range(64):
        bench.throttle()
    assert bench.limiter._paused_until == bench.now + MIN_PAUSE
    bench.now += MIN_PAUSE
    assert bench.pause_after() == 2 * MIN_PAUSE


def test_other_failures_cause_no_pause() -> None:
    bench = Bench()
    bench.breaker.record_failure(CUT)
    bench.breaker.record_failure(DENIED)
    assert not bench.limiter.paused


def test_an_account_has_succeeded_after_its_first_success() -> None:
    bench = Bench()
    bench.breaker.record_failure(CUT)
    bench.breaker.record_failure(DENIED)
    assert not bench.breaker.has_succeeded
    bench.breaker.record_success()
    bench.breaker.record_failure(CUT)
    assert bench.breaker.has_succeeded
