"""What answers teach of an account: when it is stopped, and how long it holds back. Clocks and draws are fake."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from auditor.errors import (
    AccountStoppedError,
    ClockSkewError,
    ForbiddenDeviceError,
    PlatformError,
    RefusedAccountError,
    ThrottledError,
    TransientError,
)
from auditor.resilience.circuit_breaker import FORBIDDEN_LIMIT, PATIENCE, Feedback
from auditor.resilience.rate_limiter import FIRST_PAUSE, NoQuota
from auditor.resilience.retry import LONGEST_PAUSE, Backoff, Pacer


@dataclass
class Bench:
    """An account's feedback beside a clock that only the test moves."""

    draw: Callable[[], float] = lambda: 0.0
    now: float = 1000.0
    quota: NoQuota = field(init=False)
    feedback: Feedback = field(init=False)

    def __post_init__(self) -> None:
        self.quota = NoQuota(lambda: self.now)
        self.feedback = Feedback("eu", give_up_after=60, clock=lambda: self.now)
        self.pacer = Pacer(self.quota, self.feedback, Backoff(), draw=self.draw)

    def throttle(self, wish: float | None = None) -> None:
        self.pacer._hold_back(throttled(wish), self.now)

    def pause_after(self, wish: float | None = None) -> float:
        """How long the account holds back after one more refusal; then the pause is over."""
        self.throttle(wish)
        began = self.now
        opened = self.quota._open_at
        self.now = max(self.now, opened)
        assert not self.quota.paused
        return opened - began


def throttled(wish: float | None = None) -> ThrottledError:
    error = ThrottledError("Throttling.User", "slow down")
    error.retry_after = wish
    return error


DENIED = ForbiddenDeviceError("iot.common.AuthActionPermissionDeny", "not yours")
CUT = TransientError("auditor.CutBody", "closed")


@pytest.mark.parametrize("proven", [False, True])
def test_a_refused_account_stops_at_once_and_says_which_and_why(proven: bool) -> None:  # noqa: FBT001
    bench = Bench()
    if proven:
        bench.feedback.succeeded()
    with pytest.raises(AccountStoppedError) as caught:
        bench.feedback.failed(RefusedAccountError("InvalidAccessKeyId.NotFound", "Specified access key is not found."))
    assert caught.value.account == "eu"
    assert 'account "eu"' in str(caught.value)
    assert "InvalidAccessKeyId.NotFound: Specified access key is not found." in str(caught.value)


def test_an_account_that_is_denied_every_device_is_stopped() -> None:
    bench = Bench()
    for _ in range(FORBIDDEN_LIMIT - 1):
        bench.feedback.failed(DENIED)
    with pytest.raises(AccountStoppedError, match=r'"eu".*denies.*AuthActionPermissionDeny'):
        bench.feedback.failed(DENIED)


def test_denied_devices_among_answered_ones_stop_nothing() -> None:
    bench = Bench()
    for _ in range(FORBIDDEN_LIMIT - 1):
        bench.feedback.failed(DENIED)
    bench.feedback.succeeded()
    for _ in range(10 * FORBIDDEN_LIMIT):
        bench.feedback.failed(DENIED)


@pytest.mark.parametrize("error", [CUT, throttled(), ClockSkewError("InvalidTimeStamp.Expired")])
def test_an_account_that_never_answered_is_given_up_after_a_while(error: PlatformError) -> None:
    bench = Bench()
    bench.feedback.failed(error)
    bench.now += 59.9
    bench.feedback.failed(error)
    bench.now += 0.1
    with pytest.raises(AccountStoppedError) as caught:
        bench.feedback.failed(error)
    assert 'account "eu": no usable answer for 60 s' in str(caught.value)
    assert error.code in str(caught.value)
    assert ("endpoint" in str(caught.value)) is not isinstance(error, ThrottledError)


def test_an_account_that_did_answer_gets_more_patience_and_then_is_stopped_too() -> None:
    bench = Bench()
    bench.feedback.succeeded()
    bench.feedback.failed(CUT)
    bench.now += PATIENCE - 0.1
    bench.feedback.failed(CUT)
    bench.now += 0.1
    with pytest.raises(AccountStoppedError, match="600 s") as caught:
        bench.feedback.failed(CUT)
    assert "endpoint" not in str(caught.value)


def test_an_answer_in_between_renews_the_patience() -> None:
    bench = Bench()
    for _ in range(10):
        bench.feedback.failed(CUT)
        bench.now += 50
        bench.feedback.succeeded()
    bench.feedback.failed(CUT)
    bench.now += PATIENCE - 1
    bench.feedback.failed(CUT)


def test_time_without_any_request_is_no_failure() -> None:
    bench = Bench()
    bench.now += 10_000
    bench.feedback.failed(CUT)


def test_pauses_double_while_refusals_go_on_up_to_the_longest_and_begin_anew_after_an_answer() -> None:
    bench = Bench()
    bench.feedback.succeeded()
    pauses = [bench.pause_after() for _ in range(9)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    bench.quota.admitted(bench.now)
    assert bench.pause_after() == FIRST_PAUSE


def test_a_wish_is_obeyed_and_capped() -> None:
    bench = Bench()
    assert bench.pause_after(7.5) == 7.5
    assert bench.pause_after(0.25) == pytest.approx(0.25)
    bench.feedback.succeeded()
    assert bench.pause_after(86_400.0) == LONGEST_PAUSE


def test_a_wish_for_no_delay_is_no_wish() -> None:
    bench = Bench()
    assert [bench.pause_after(0.0) for _ in range(3)] == [1, 2, 4]


def test_chance_lengthens_a_pause_by_a_tenth_at_most_and_never_beyond_the_longest() -> None:
    bench = Bench(draw=lambda: 1.0)
    assert bench.pause_after(10.0) == pytest.approx(11.0)
    bench.feedback.succeeded()
    assert bench.pause_after(LONGEST_PAUSE) == LONGEST_PAUSE


def test_refusals_that_come_together_are_one_pause() -> None:
    bench = Bench()
    for _ in range(64):
        bench.throttle()
    assert bench.quota._open_at == bench.now + FIRST_PAUSE
    bench.now += FIRST_PAUSE
    assert bench.pause_after() == 2 * FIRST_PAUSE


def test_failures_that_are_no_refusal_hold_nothing_back() -> None:
    bench = Bench()
    bench.feedback.failed(CUT)
    bench.feedback.failed(DENIED)
    assert not bench.quota.paused


def test_an_account_is_proven_by_its_first_answer_only() -> None:
    bench = Bench()
    bench.feedback.failed(CUT)
    bench.feedback.failed(DENIED)
    assert not bench.feedback.proven
    bench.feedback.succeeded()
    bench.feedback.failed(CUT)
    assert bench.feedback.proven
