"""Retries: which requests are sent again, how often, and how they are counted."""

from collections.abc import Awaitable, Callable, Iterable

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import (
    NO_CONNECTION_CODES,
    AccountDeniedError,
    AccountStoppedError,
    ClockSkewError,
    DeviceDeniedError,
    InconsistentResponseError,
    InvalidRequestError,
    NeverActivatedError,
    NonceUsedError,
    NotFoundError,
    PlatformError,
    ThrottledError,
    TransientError,
)
from auditor.resilience import rate_limiter
from auditor.resilience.circuit_breaker import CircuitBreaker
from auditor.resilience.rate_limiter import UnlimitedRateLimiter
from auditor.resilience.retry import (
    IMMEDIATE_CLOCK_RETRIES,
    MAX_ACCOUNT_ERRORS,
    Backoff,
    PausedTasks,
    RequestStats,
    RetryingCaller,
)

pytestmark = pytest.mark.anyio

CUT = TransientError("auditor.IncompleteBody")
THROTTLED = ThrottledError("Throttling.User")
THROTTLED.retry_after = 0.001


class CountedLimiter(UnlimitedRateLimiter):
    """Count the permits that it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0

    async def acquire(self) -> float:
        sent_at = await super().acquire()
        self.passed += 1
        return sent_at


class Bench:
    def __init__(self, *, attempts: int = 4, has_succeeded: bool = True, initial_delay: float = 0.0) -> None:
        self.limiter = CountedLimiter()
        self.breaker = CircuitBreaker("eu", give_up_after=60)
        if has_succeeded:
            self.breaker.record_success()
        self.caller = RetryingCaller(
            self.limiter, self.breaker, Backoff(max_attempts=attempts, initial_delay=initial_delay), jitter=lambda: 0.5
        )


def counts(bench: Bench) -> RequestStats:
    """The counts without the times of responses."""
    stats = bench.caller.stats
    return RequestStats(stats.sent, stats.retried, stats.throttled, stats.in_flight)


def respond_with(responses: Iterable[PlatformError | str]) -> Callable[[], Awaitable[str]]:
    """Return a request that gets these responses, one after another."""
    remaining = iter(responses)

    async def request() -> str:
        await anyio.lowlevel.checkpoint()
        response = next(remaining)
        if isinstance(response, PlatformError):
            raise response
        return response

    return request


async def test_a_success_is_returned_after_one_request() -> None:
    bench = Bench()
    sent = await bench.caller.send(respond_with(["page"]))
    assert (sent.result, sent.attempts) == ("page", 1)
    assert counts(bench) == RequestStats(sent=1)
    assert bench.limiter.passed == 1


@pytest.mark.parametrize("kind", [TransientError, NonceUsedError, ClockSkewError])
async def test_a_transient_failure_is_retried_within_the_quota(kind: type[PlatformError]) -> None:
    bench = Bench()
    sent = await bench.caller.send(respond_with([kind("x"), kind("x"), "page"]))
    assert (sent.result, sent.attempts) == ("page", 3)
    assert counts(bench) == RequestStats(sent=3, retried=2)
    assert bench.limiter.passed == 3


@pytest.mark.parametrize("attempts", [1, 2, 5])
async def test_the_last_failure_is_the_result_when_attempts_are_used_up(attempts: int) -> None:
    bench = Bench(attempts=attempts)
    last = TransientError("last")
    sent = await bench.caller.send(respond_with([*[CUT] * (attempts - 1), last, "too late"]))
    assert sent.result is last
    assert sent.attempts == attempts
    assert counts(bench) == RequestStats(sent=attempts, retried=attempts - 1)


@pytest.mark.parametrize("code", sorted(NO_CONNECTION_CODES))
async def test_no_attempt_is_used_up_before_an_account_can_be_connected_to(code: str) -> None:
    bench = Bench(attempts=2, has_succeeded=False)
    unconnected = TransientError(code)
    sent = await bench.caller.send(respond_with([*[unconnected] * 6, "page"]))
    assert (sent.result, sent.attempts) == ("page", 7)
    sent = await bench.caller.send(respond_with([unconnected, unconnected, "not reached"]))
    assert (sent.result, sent.attempts) == (unconnected, 2)


async def test_a_failure_after_a_connection_may_be_of_its_device_and_uses_up_an_attempt() -> None:
    bench = Bench(attempts=2, has_succeeded=False)
    sent = await bench.caller.send(respond_with([CUT, CUT, "not reached"]))
    assert (sent.result, sent.attempts) == (CUT, 2)
    unconnected = TransientError("auditor.DNS")
    sent = await bench.caller.send(respond_with([*[unconnected] * 30, CUT, "page"]), "p1")
    assert (sent.result, sent.attempts) == ("page", 32)


async def test_an_account_that_cannot_be_connected_to_is_given_up_after_its_seconds() -> None:
    now = 0.0
    bench = Bench(attempts=2, has_succeeded=False)
    breaker = CircuitBreaker("eu", give_up_after=60, clock=lambda: now)
    caller = RetryingCaller(bench.limiter, breaker, Backoff(max_attempts=2, initial_delay=0.0))

    async def request() -> str:
        nonlocal now
        await anyio.lowlevel.checkpoint()
        now += 7
        raise TransientError("auditor.DNS", "the name example.com cannot be resolved")

    with pytest.raises(
        AccountStoppedError, match=r"no usable answer for 60 s, .*cannot be resolved; check its endpoint"
    ):
        await caller.send(request)
    assert caller.stats.sent == 10


async def test_throttling_uses_up_no_attempt_and_counts_as_a_request() -> None:
    bench = Bench(attempts=2)
    sent = await bench.caller.send(respond_with([THROTTLED, CUT, THROTTLED, THROTTLED, "page"]))
    assert (sent.result, sent.attempts) == ("page", 5)
    assert counts(bench) == RequestStats(sent=5, retried=4, throttled=3)
    assert bench.limiter.passed == 5


@pytest.mark.parametrize("error", [THROTTLED, ClockSkewError("IllegalTimestamp")])
async def test_a_request_fails_if_it_alone_is_throttled_or_refused_for_its_time(
    monkeypatch: pytest.MonkeyPatch, error: PlatformError
) -> None:
    monkeypatch.setattr(rate_limiter, "PROBE_INTERVAL", 0.001)
    bench = Bench()

    async def healthy() -> str:
        return "page"

    await bench.caller.send(healthy)
    sent = await bench.caller.send(respond_with([error] * MAX_ACCOUNT_ERRORS + ["not reached"]))
    assert (sent.result, sent.attempts) == (error, MAX_ACCOUNT_ERRORS)


async def test_no_request_fails_while_the_complete_account_is_throttled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limiter, "PROBE_INTERVAL", 0.001)
    bench = Bench()
    throttled: list[PlatformError | str] = [THROTTLED] * (5 * MAX_ACCOUNT_ERRORS)
    responses = iter([*["page"] * 2, *throttled, *["page"] * 2])

    async def request() -> str:
        await anyio.lowlevel.checkpoint()
        response = next(responses)
        if isinstance(response, PlatformError):
            raise response
        return response

    for _ in range(2):
        await bench.caller.send(request)
    results = [await bench.caller.send(request) for _ in range(2)]
    assert [sent.result for sent in results] == ["page", "page"]
    assert bench.caller.stats.throttled == 5 * MAX_ACCOUNT_ERRORS


async def test_a_request_that_waits_for_a_retry_is_counted_as_paused() -> None:
    paused = PausedTasks()
    seen: list[int] = []
    paused.on_pause = lambda: seen.append(paused.count)
    breaker = CircuitBreaker("eu", give_up_after=60)
    breaker.record_success()
    caller = RetryingCaller(CountedLimiter(), breaker, Backoff(initial_delay=0.0), paused=paused)
    await caller.send(respond_with([CUT, CUT, "page"]))
    assert (seen, paused.count) == ([1, 1], 0)


CONCLUSIVE = [NotFoundError("a"), NeverActivatedError("b"), InvalidRequestError("c")]


@pytest.mark.parametrize("error", CONCLUSIVE, ids=lambda error: type(error).__name__)
async def test_a_conclusive_error_is_the_result_and_shows_that_the_account_works(error: PlatformError) -> None:
    bench = Bench(has_succeeded=False)
    sent = await bench.caller.send(respond_with([error]))
    assert sent.result is error
    assert sent.attempts == 1
    assert bench.breaker.has_succeeded
    assert counts(bench) == RequestStats(sent=1)


@pytest.mark.parametrize("error", [DeviceDeniedError("d"), InconsistentResponseError("e"), PlatformError("f")])
async def test_an_error_without_a_usable_response_is_the_result_too(error: PlatformError) -> None:
    bench = Bench(has_succeeded=False)
    sent = await bench.caller.send(respond_with([error]))
    assert sent.result is error
    assert not bench.breaker.has_succeeded
    assert counts(bench) == RequestStats(sent=1)


async def test_a_denied_account_stops_all_requests_at_the_cost_of_one() -> None:
    bench = Bench(has_succeeded=False)
    requests = 0

    async def request() -> str:
        nonlocal requests
        requests += 1
        await anyio.sleep(0.01)
        raise AccountDeniedError("SignatureDoesNotMatch")

    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with anyio.create_task_group() as group:
            for _ in range(30):
                group.start_soon(bench.caller.send, request)
    assert {type(error) for error in caught.value.exceptions} == {AccountStoppedError}
    assert requests == 1
    assert counts(bench) == RequestStats(sent=1)


async def test_waiting_requests_learn_that_the_account_was_stopped_and_send_nothing() -> None:
    bench = Bench()
    bench.limiter.pause(0.05)
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012
        async with anyio.create_task_group() as group:
            group.start_soon(bench.caller.send, respond_with(["page"]))
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(AccountStoppedError) as denied:
                bench.breaker.record_failure(AccountDeniedError("Forbidden"))
    assert [str(error) for error in caught.value.exceptions] == [str(denied.value)]
    assert counts(bench) == RequestStats()


async def test_one_request_is_sent_at_a_time_until_the_account_has_succeeded() -> None:
    bench = Bench(has_succeeded=False)
    in_flight, maximum = 0, {False: 0, True: 0}
    failures = iter([CUT, DeviceDeniedError("d"), CUT])

    async def request() -> str:
        nonlocal in_flight
        has_succeeded = bench.breaker.has_succeeded
        in_flight += 1
        maximum[has_succeeded] = max(maximum[has_succeeded], in_flight)
        assert bench.caller.stats.in_flight == in_flight
        await anyio.sleep(0.01)
        in_flight -= 1
        if (error := next(failures, None)) is not None:
            raise error
        return "page"

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(bench.caller.send, request)
    assert maximum[False] == 1
    assert maximum[True] > 1
    assert counts(bench) == RequestStats(sent=12, retried=2)


async def test_a_cancelled_request_leaves_the_counts_right_and_the_account_usable() -> None:
    bench = Bench(has_succeeded=False)

    async def request() -> str:
        await anyio.sleep_forever()
        raise AssertionError

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(bench.caller.send, request)
        await anyio.wait_all_tasks_blocked()
        assert counts(bench) == RequestStats(sent=1, in_flight=1)
        group.cancel_scope.cancel()
    assert counts(bench) == RequestStats(sent=1)
    with anyio.fail_after(5):
        assert (await bench.caller.send(respond_with(["page"]))).result == "page"


async def test_a_request_cancelled_during_a_pause_was_not_sent() -> None:
    bench = Bench()
    bench.limiter.pause(60)
    with anyio.move_on_after(0.05) as scope:
        await bench.caller.send(respond_with(["page"]))
    assert scope.cancelled_caught
    assert counts(bench) == RequestStats()


async def test_an_unexpected_error_is_raised_and_blocks_no_other_request() -> None:
    bench = Bench(has_succeeded=False)

    async def request() -> str:
        await anyio.lowlevel.checkpoint()
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        await bench.caller.send(request)
    assert counts(bench) == RequestStats(sent=1)
    with anyio.fail_after(5):
        assert (await bench.caller.send(respond_with(["page"]))).result == "page"


@given(
    failures=st.integers(1, 10_000),
    fraction=st.floats(0, 1, exclude_max=True),
    initial=st.floats(0.001, 10),
    maximum=st.floats(0.001, 100),
)
def test_a_delay_is_never_negative_nor_above_its_bounds(
    failures: int, fraction: float, initial: float, maximum: float
) -> None:
    delay = Backoff(initial_delay=initial, max_delay=maximum).delay(failures, fraction)
    assert 0 <= delay <= maximum
    assert delay <= initial * 2.0 ** min(failures - 1, 1000)


def test_delays_double_up_to_the_maximum_and_jitter_is_full() -> None:
    backoff = Backoff(initial_delay=0.5, max_delay=30)
    assert [backoff.delay(failures, 1.0) for failures in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.delay(3, 0.25) == 0.5
    assert backoff.delay(3, 0.0) == 0


async def test_a_request_whose_timestamp_is_always_refused_pauses_so_that_others_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench, pauses = Bench(initial_delay=0.5), []
    paused = PausedTasks()
    bench.caller._paused = paused

    async def sleep(seconds: float) -> None:
        assert paused.count == 1
        pauses.append(seconds)

    async def refuse() -> None:
        bench.caller.stats.answered += 1  # the request for another device
        raise ClockSkewError("InvalidTimeStamp.Expired")

    monkeypatch.setattr("auditor.resilience.retry.anyio.sleep", sleep)
    assert isinstance((await bench.caller.send(refuse)).result, ClockSkewError)
    assert len(pauses) == MAX_ACCOUNT_ERRORS - 1 - IMMEDIATE_CLOCK_RETRIES
    assert all(0 < pause <= 2 for pause in pauses)


async def test_the_longest_wait_is_that_of_the_oldest_request_in_flight() -> None:
    bench, answered = Bench(), [anyio.Event() for _ in range(3)]
    assert bench.caller.longest_wait == 0

    async def send(number: int) -> None:
        async def request() -> str:
            await answered[number].wait()
            if number == 1:
                raise NotFoundError("iot.device.NotExist")
            return "page"

        await bench.caller.send(request)

    async with anyio.create_task_group() as tasks:
        waits = []
        for number in range(3):
            tasks.start_soon(send, number)
            await anyio.sleep(0.02)
            waits.append(bench.caller.longest_wait)
        assert 0.01 < waits[0] < waits[1] - 0.01 < waits[2] - 0.02
        for number in (1, 0, 2):  # the second one fails, and the first one is the oldest until it is answered
            before = bench.caller.longest_wait
            answered[number].set()
            await anyio.wait_all_tasks_blocked()
            assert bench.caller.longest_wait < before or number == 1
    assert bench.caller.longest_wait == 0


async def test_a_retry_whose_call_was_used_while_it_waited_is_not_sent() -> None:
    bench = Bench(initial_delay=0.01)

    async def fail() -> None:
        raise TransientError("auditor.Timeout")

    bench.caller.may_retry = lambda: bench.caller.stats.sent < 5
    async with anyio.create_task_group() as group:
        for _ in range(4):  # each of them may be sent again before it waits, and only one of them afterwards
            group.start_soon(bench.caller.send, fail)
    assert bench.caller.stats.sent == 5
