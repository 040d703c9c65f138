"""An outage of the platform: the circuit opens, probes are sent, and no device loses an attempt."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest

from auditor.errors import AccountStoppedError, NotFoundError, PlatformError, ThrottledError, TransientError
from auditor.models import CallResult
from auditor.resilience import circuit_breaker, retry
from auditor.resilience.circuit_breaker import (
    MAX_FAILING_SECONDS,
    OPEN_AFTER_FAILURES,
    OPEN_AFTER_SECONDS,
    CircuitBreaker,
)
from auditor.resilience.rate_limiter import UnlimitedRateLimiter
from auditor.resilience.retry import Backoff, RetryingCaller

pytestmark = pytest.mark.anyio

DOWN = TransientError("ServiceUnavailable")


@dataclass
class Bench:
    """The circuit breaker of an account, with a clock that only the test advances."""

    now: float = 1000.0
    breaker: CircuitBreaker = field(init=False)

    def __post_init__(self) -> None:
        self.breaker = CircuitBreaker("eu", give_up_after=60, clock=lambda: self.now)

    def fail(self, times: int, error: PlatformError = DOWN) -> None:
        for _ in range(times):
            self.breaker.record_failure(error)


def test_many_failures_in_a_row_over_some_time_open_the_circuit_and_a_success_closes_it() -> None:
    bench = Bench()
    bench.breaker.record_success()
    bench.now += OPEN_AFTER_SECONDS
    bench.fail(OPEN_AFTER_FAILURES - 1)
    assert not bench.breaker.is_open
    bench.fail(1)
    assert bench.breaker.is_open
    bench.breaker.record_success()
    assert not bench.breaker.is_open


def test_many_failures_in_a_moment_do_not_open_the_circuit() -> None:
    bench = Bench()
    bench.breaker.record_success()
    bench.now += OPEN_AFTER_SECONDS - 0.1
    bench.fail(10 * OPEN_AFTER_FAILURES)
    assert not bench.breaker.is_open


def test_failures_among_successes_do_not_open_the_circuit() -> None:
    bench = Bench()
    for _ in range(100):
        bench.breaker.record_success()
        bench.now += OPEN_AFTER_SECONDS
        bench.fail(OPEN_AFTER_FAILURES - 1)
    assert not bench.breaker.is_open


def test_throttling_does_not_open_the_circuit() -> None:
    bench = Bench()
    bench.breaker.record_success()
    bench.now += OPEN_AFTER_SECONDS
    bench.fail(10 * OPEN_AFTER_FAILURES, ThrottledError("Throttling.User"))
    assert not bench.breaker.is_open


def test_an_account_that_never_succeeded_is_stopped_and_its_circuit_stays_closed() -> None:
    bench = Bench()
    bench.fail(OPEN_AFTER_FAILURES)
    bench.now += 59
    bench.fail(OPEN_AFTER_FAILURES)
    assert not bench.breaker.is_open
    bench.now += 1
    with pytest.raises(AccountStoppedError):
        bench.fail(1)


def test_a_circuit_that_stays_open_stops_the_account() -> None:
    bench = Bench()
    bench.breaker.record_success()
    bench.now += OPEN_AFTER_SECONDS
    bench.fail(OPEN_AFTER_FAILURES)
    bench.now += MAX_FAILING_SECONDS
    with pytest.raises(AccountStoppedError, match="600 s"):
        bench.fail(1)


class Platform:
    """Requests by device number: some devices always fail, and all during an outage. Records the requests."""

    def __init__(self, *, broken: frozenset[int] = frozenset()) -> None:
        self.down = False
        self.broken = broken
        self.requested: list[int] = []
        self.in_flight = 0

    def request_for(self, device: int) -> Callable[[], Awaitable[str]]:
        async def request() -> str:
            self.requested.append(device)
            self.in_flight += 1
            try:
                await anyio.lowlevel.checkpoint()
                if self.down or device in self.broken:
                    raise DOWN
                return f"page of {device}"
            finally:
                self.in_flight -= 1

        return request


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A circuit that opens, and is probed, within hundredths of a second."""
    monkeypatch.setattr(circuit_breaker, "OPEN_AFTER_SECONDS", 0.02)
    monkeypatch.setattr(retry, "PROBE_BACKOFF", Backoff(initial_delay=0.01, max_delay=0.02))


def new_caller(*, attempts: int = 8) -> RetryingCaller:
    return RetryingCaller(
        UnlimitedRateLimiter(),
        CircuitBreaker("eu", give_up_after=60),
        Backoff(max_attempts=attempts, initial_delay=0.05, max_delay=0.1),
    )


async def query_all(caller: RetryingCaller, platform: Platform, devices: range) -> dict[int, CallResult[str]]:
    sent: dict[int, CallResult[str]] = {}

    async def query(device: int) -> None:
        sent[device] = await caller.send(platform.request_for(device))

    async with anyio.create_task_group() as group:
        for device in devices:
            group.start_soon(query, device)
    return sent


@pytest.mark.usefixtures("quick")
async def test_an_outage_longer_than_all_attempts_fails_no_device_and_is_probed_singly() -> None:
    platform, caller = Platform(), new_caller()
    await caller.send(platform.request_for(0))
    platform.down = True
    requests_while_down = 0

    async def end_of_outage() -> None:
        nonlocal requests_while_down
        await anyio.sleep(0.5)
        before = len(platform.requested)
        await anyio.sleep(0.5)
        requests_while_down = len(platform.requested) - before
        platform.down = False

    async with anyio.create_task_group() as group:
        group.start_soon(end_of_outage)
        sent = await query_all(caller, platform, range(1, 51))
    assert all(each.result == f"page of {device}" for device, each in sent.items())
    # One probe every 0.01 to 0.02 s, where 50 devices would send 1,000 requests and more.
    assert 5 <= requests_while_down <= 100
    assert platform.in_flight == 0


@pytest.mark.usefixtures("quick")
async def test_probes_repeat_the_last_successful_request() -> None:
    platform, caller = Platform(), new_caller()
    await caller.send(platform.request_for(7))
    platform.down = True
    with anyio.move_on_after(0.6):
        await query_all(caller, platform, range(100, 150))
    assert set(platform.requested[-5:]) == {7}


@pytest.mark.usefixtures("quick")
async def test_devices_that_always_fail_end_as_failed_if_no_others_remain() -> None:
    platform, caller = Platform(broken=frozenset(range(1, 31))), new_caller(attempts=5)
    await caller.send(platform.request_for(0))
    with anyio.fail_after(20):
        sent = await query_all(caller, platform, range(1, 31))
    assert all(each.result is DOWN for each in sent.values())
    assert len(platform.requested) <= 30 * 5 * 2


@pytest.mark.usefixtures("quick")
async def test_an_unknown_device_shows_that_the_platform_works() -> None:
    caller = new_caller()

    async def gone() -> str:
        await anyio.lowlevel.checkpoint()
        raise NotFoundError("iot.device.NotExistedDevice")

    await caller.send(gone)
    platform = Platform(broken=frozenset(range(30)))
    with anyio.fail_after(20):
        sent = await query_all(caller, platform, range(30))
    assert all(each.result is DOWN for each in sent.values())
