"""A platform that is sick: told from sick devices, probed instead of stormed, and no attempt of a device is burnt."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel
import pytest

from auditor.errors import AccountStoppedError, NotFoundError, PlatformError, ThrottledError, TransientError
from auditor.models import Sent
from auditor.resilience import circuit_breaker as feedback_room
from auditor.resilience import retry
from auditor.resilience.circuit_breaker import PATIENCE, SICK_FAILURES, SICK_SECONDS, Feedback
from auditor.resilience.rate_limiter import NoQuota
from auditor.resilience.retry import Backoff, Pacer

pytestmark = pytest.mark.anyio

DOWN = TransientError("ServiceUnavailable")


@dataclass
class Bench:
    """An account's feedback beside a clock that only the test moves."""

    now: float = 1000.0
    feedback: Feedback = field(init=False)

    def __post_init__(self) -> None:
        self.feedback = Feedback("eu", give_up_after=60, clock=lambda: self.now)

    def fail(self, times: int, error: PlatformError = DOWN) -> None:
        for _ in range(times):
            self.feedback.failed(error)


def test_many_failures_in_a_row_over_a_stretch_are_the_platform_s() -> None:
    bench = Bench()
    bench.feedback.succeeded()
    bench.now += SICK_SECONDS
    bench.fail(SICK_FAILURES - 1)
    assert not bench.feedback.sick
    bench.fail(1)
    assert bench.feedback.sick
    bench.feedback.succeeded()
    assert not bench.feedback.sick


def test_many_failures_in_a_moment_are_not_yet() -> None:
    bench = Bench()
    bench.feedback.succeeded()
    bench.now += SICK_SECONDS - 0.1
    bench.fail(10 * SICK_FAILURES)
    assert not bench.feedback.sick


def test_failures_among_successes_are_the_devices_own() -> None:
    bench = Bench()
    for _ in range(100):
        bench.feedback.succeeded()
        bench.now += SICK_SECONDS
        bench.fail(SICK_FAILURES - 1)
    assert not bench.feedback.sick


def test_refusals_for_the_quota_are_no_sickness() -> None:
    bench = Bench()
    bench.feedback.succeeded()
    bench.now += SICK_SECONDS
    bench.fail(10 * SICK_FAILURES, ThrottledError("Throttling.User"))
    assert not bench.feedback.sick


def test_an_account_that_never_worked_is_not_sick_but_given_up() -> None:
    bench = Bench()
    bench.fail(SICK_FAILURES)
    bench.now += 59
    bench.fail(SICK_FAILURES)
    assert not bench.feedback.sick
    bench.now += 1
    with pytest.raises(AccountStoppedError):
        bench.fail(1)


def test_a_sickness_without_end_stops_the_account() -> None:
    bench = Bench()
    bench.feedback.succeeded()
    bench.now += SICK_SECONDS
    bench.fail(SICK_FAILURES)
    bench.now += PATIENCE
    with pytest.raises(AccountStoppedError, match="600 s"):
        bench.fail(1)


class Platform:
    """Answers by number: some devices always fail, and while it is down all do. Counts what it is asked."""

    def __init__(self, *, broken: frozenset[int] = frozenset()) -> None:
        self.down = False
        self.broken = broken
        self.asked: list[int] = []
        self.in_flight = 0

    def about(self, device: int) -> Callable[[], Awaitable[str]]:
        async def request() -> str:
            self.asked.append(device)
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
    """Sickness that is seen and probed in hundredths of a second."""
    monkeypatch.setattr(feedback_room, "SICK_SECONDS", 0.02)
    monkeypatch.setattr(retry, "PROBING", Backoff(first=0.01, longest=0.02))


def pacer(*, attempts: int = 8) -> Pacer:
    return Pacer(NoQuota(), Feedback("eu", give_up_after=60), Backoff(attempts=attempts, first=0.05, longest=0.1))


async def ask_all(pacer: Pacer, platform: Platform, devices: range) -> dict[int, Sent[str]]:
    sent: dict[int, Sent[str]] = {}

    async def ask(device: int) -> None:
        sent[device] = await pacer.send(platform.about(device))

    async with anyio.create_task_group() as crowd:
        for device in devices:
            crowd.start_soon(ask, device)
    return sent


@pytest.mark.usefixtures("quick")
async def test_an_outage_longer_than_all_attempts_fails_no_device_and_is_probed_by_one() -> None:
    platform, sender = Platform(), pacer()
    await sender.send(platform.about(0))
    platform.down = True
    asked_while_down = 0

    async def end_of_outage() -> None:
        nonlocal asked_while_down
        await anyio.sleep(0.5)
        before = len(platform.asked)
        await anyio.sleep(0.5)
        asked_while_down = len(platform.asked) - before
        platform.down = False

    async with anyio.create_task_group() as group:
        group.start_soon(end_of_outage)
        sent = await ask_all(sender, platform, range(1, 51))
    assert all(each.result == f"page of {device}" for device, each in sent.items())
    # One probe every 0.01 to 0.02 s, where 50 devices would ask 1,000 times and more.
    assert 5 <= asked_while_down <= 100
    assert platform.in_flight == 0


@pytest.mark.usefixtures("quick")
async def test_what_is_asked_in_an_outage_is_what_was_answered_before() -> None:
    platform, sender = Platform(), pacer()
    await sender.send(platform.about(7))
    platform.down = True
    with anyio.move_on_after(0.6):
        await ask_all(sender, platform, range(100, 150))
    assert set(platform.asked[-5:]) == {7}


@pytest.mark.usefixtures("quick")
async def test_devices_that_always_fail_end_as_failed_though_nothing_else_is_left() -> None:
    platform, sender = Platform(broken=frozenset(range(1, 31))), pacer(attempts=5)
    await sender.send(platform.about(0))
    with anyio.fail_after(20):
        sent = await ask_all(sender, platform, range(1, 31))
    assert all(each.result is DOWN for each in sent.values())
    assert len(platform.asked) <= 30 * 5 * 2


@pytest.mark.usefixtures("quick")
async def test_a_device_s_refusal_shows_that_the_platform_is_well() -> None:
    sender = pacer()

    async def gone() -> str:
        await anyio.lowlevel.checkpoint()
        raise NotFoundError("iot.device.NotExistedDevice")

    await sender.send(gone)
    platform = Platform(broken=frozenset(range(30)))
    with anyio.fail_after(20):
        sent = await ask_all(sender, platform, range(30))
    assert all(each.result is DOWN for each in sent.values())
