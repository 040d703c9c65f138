"""Repeats: what is sent again, what is not, how often, and what the tally says of it."""

from collections.abc import Awaitable, Callable, Iterable

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import (
    AccountStoppedError,
    ClockSkewError,
    ForbiddenDeviceError,
    InconsistentPagesError,
    NeverActivatedError,
    NonceUsedError,
    NotFoundError,
    PlatformError,
    RefusedAccountError,
    RefusedRequestError,
    ThrottledError,
    TransientError,
)
from auditor.resilience.circuit_breaker import Feedback
from auditor.resilience.rate_limiter import NoQuota
from auditor.resilience.retry import REFUSALS, Backoff, Pacer, Tally

pytestmark = pytest.mark.anyio

CUT = TransientError("auditor.CutBody")
THROTTLED = ThrottledError("Throttling.User")
THROTTLED.retry_after = 0.001


class CountedGate(NoQuota):
    """A gate that counts who passes."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0

    async def slot(self) -> float:
        sent_at = await super().slot()
        self.passed += 1
        return sent_at


class Bench:
    def __init__(self, *, attempts: int = 4, proven: bool = True, first: float = 0.0) -> None:
        self.quota = CountedGate()
        self.feedback = Feedback("eu", give_up_after=60)
        if proven:
            self.feedback.succeeded()
        self.pacer = Pacer(self.quota, self.feedback, Backoff(attempts=attempts, first=first), draw=lambda: 0.5)


def counts(bench: Bench) -> Tally:
    """The tally without how long answers took."""
    tally = bench.pacer.tally
    return Tally(tally.sent, tally.retried, tally.throttled, tally.in_flight)


def answers(said: Iterable[PlatformError | str]) -> Callable[[], Awaitable[str]]:
    """A request that is answered so, one after another."""
    coming = iter(said)

    async def request() -> str:
        await anyio.lowlevel.checkpoint()
        answer = next(coming)
        if isinstance(answer, PlatformError):
            raise answer
        return answer

    return request


async def test_an_answer_is_passed_on_after_one_request() -> None:
    bench = Bench()
    sent = await bench.pacer.send(answers(["page"]))
    assert (sent.result, sent.attempts) == ("page", 1)
    assert counts(bench) == Tally(sent=1)
    assert bench.quota.passed == 1


@pytest.mark.parametrize("kind", [TransientError, NonceUsedError, ClockSkewError])
async def test_a_transient_failure_is_sent_again_through_the_quota(kind: type[PlatformError]) -> None:
    bench = Bench()
    sent = await bench.pacer.send(answers([kind("x"), kind("x"), "page"]))
    assert (sent.result, sent.attempts) == ("page", 3)
    assert counts(bench) == Tally(sent=3, retried=2)
    assert bench.quota.passed == 3


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_the_last_failure_is_the_result_when_attempts_are_used_up(attempts: int) -> None:
    bench = Bench(attempts=attempts)
    last = TransientError("last")
    sent = await bench.pacer.send(answers([*[CUT] * (attempts - 1), last, "too late"]))
    assert sent.result is last
    assert sent.attempts == attempts
    assert counts(bench) == Tally(sent=attempts, retried=attempts - 1)


async def test_throttling_uses_up_no_attempt_and_counts_as_a_request() -> None:
    bench = Bench(attempts=2)
    sent = await bench.pacer.send(answers([THROTTLED, CUT, THROTTLED, THROTTLED, "page"]))
    assert (sent.result, sent.attempts) == ("page", 5)
    assert counts(bench) == Tally(sent=5, retried=4, throttled=3)
    assert bench.quota.passed == 5


async def test_a_request_that_is_throttled_for_ever_fails_in_the_end() -> None:
    bench = Bench()
    sent = await bench.pacer.send(answers([THROTTLED] * REFUSALS + ["never asked"]))
    assert (sent.result, sent.attempts) == (THROTTLED, REFUSALS)


CONCLUSIVE = [NotFoundError("a"), NeverActivatedError("b"), RefusedRequestError("c")]


@pytest.mark.parametrize("error", CONCLUSIVE, ids=lambda error: type(error).__name__)
async def test_what_no_repeat_would_change_is_the_result_and_proves_the_account(error: PlatformError) -> None:
    bench = Bench(proven=False)
    sent = await bench.pacer.send(answers([error]))
    assert sent.result is error
    assert sent.attempts == 1
    assert bench.feedback.proven
    assert counts(bench) == Tally(sent=1)


@pytest.mark.parametrize("error", [ForbiddenDeviceError("d"), InconsistentPagesError("e"), PlatformError("f")])
async def test_what_proves_nothing_is_the_result_too(error: PlatformError) -> None:
    bench = Bench(proven=False)
    sent = await bench.pacer.send(answers([error]))
    assert sent.result is error
    assert not bench.feedback.proven
    assert counts(bench) == Tally(sent=1)


async def test_a_refused_account_ends_all_at_the_cost_of_one_request() -> None:
    bench = Bench(proven=False)
    requests = 0

    async def request() -> str:
        nonlocal requests
        requests += 1
        await anyio.sleep(0.01)
        raise RefusedAccountError("SignatureDoesNotMatch")

    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with anyio.create_task_group() as crowd:
            for _ in range(30):
                crowd.start_soon(bench.pacer.send, request)
    assert {type(error) for error in caught.value.exceptions} == {AccountStoppedError}
    assert requests == 1
    assert counts(bench) == Tally(sent=1)


async def test_those_who_wait_to_repeat_learn_that_the_account_was_stopped_and_send_nothing() -> None:
    bench = Bench()
    bench.quota.pause(0.05)
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with anyio.create_task_group() as crowd:
            crowd.start_soon(bench.pacer.send, answers(["page"]))
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(AccountStoppedError) as refused:
                bench.feedback.failed(RefusedAccountError("Forbidden"))
    assert [str(error) for error in caught.value.exceptions] == [str(refused.value)]
    assert counts(bench) == Tally()


async def test_an_account_that_is_not_proven_is_asked_one_request_at_a_time_and_then_by_all() -> None:
    bench = Bench(proven=False)
    waiting, most = 0, {False: 0, True: 0}
    failures = iter([CUT, ForbiddenDeviceError("d"), CUT])

    async def request() -> str:
        nonlocal waiting
        proven = bench.feedback.proven
        waiting += 1
        most[proven] = max(most[proven], waiting)
        assert bench.pacer.tally.in_flight == waiting
        await anyio.sleep(0.01)
        waiting -= 1
        if (error := next(failures, None)) is not None:
            raise error
        return "page"

    async with anyio.create_task_group() as crowd:
        for _ in range(10):
            crowd.start_soon(bench.pacer.send, request)
    assert most[False] == 1
    assert most[True] > 1
    assert counts(bench) == Tally(sent=12, retried=2)


async def test_a_cancelled_request_leaves_the_tally_right_and_the_account_usable() -> None:
    bench = Bench(proven=False)

    async def request() -> str:
        await anyio.sleep_forever()
        raise AssertionError

    async with anyio.create_task_group() as crowd:
        for _ in range(5):
            crowd.start_soon(bench.pacer.send, request)
        await anyio.wait_all_tasks_blocked()
        assert counts(bench) == Tally(sent=1, in_flight=1)
        crowd.cancel_scope.cancel()
    assert counts(bench) == Tally(sent=1)
    with anyio.fail_after(5):
        assert (await bench.pacer.send(answers(["page"]))).result == "page"


async def test_a_waiter_cancelled_at_a_paused_gate_has_sent_nothing() -> None:
    bench = Bench()
    bench.quota.pause(60)
    with anyio.move_on_after(0.05) as scope:
        await bench.pacer.send(answers(["page"]))
    assert scope.cancelled_caught
    assert counts(bench) == Tally()


async def test_an_error_that_is_not_the_platforms_passes_through_and_frees_its_place() -> None:
    bench = Bench(proven=False)

    async def request() -> str:
        await anyio.lowlevel.checkpoint()
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await bench.pacer.send(request)
    assert counts(bench) == Tally(sent=1)
    with anyio.fail_after(5):
        assert (await bench.pacer.send(answers(["page"]))).result == "page"


@given(
    failures=st.integers(1, 10_000),
    draw=st.floats(0, 1, exclude_max=True),
    first=st.floats(0.001, 10),
    longest=st.floats(0.001, 100),
)
def test_a_delay_is_never_negative_nor_above_its_bounds(
    failures: int, draw: float, first: float, longest: float
) -> None:
    delay = Backoff(first=first, longest=longest).delay(failures, draw)
    assert 0 <= delay <= longest
    assert delay <= first * 2.0 ** min(failures - 1, 1000)


def test_delays_double_up_to_the_longest_and_jitter_is_full() -> None:
    backoff = Backoff(first=0.5, longest=30)
    assert [backoff.delay(failures, 1.0) for failures in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.delay(3, 0.25) == 0.5
    assert backoff.delay(3, 0.0) == 0
