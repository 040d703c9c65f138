"""The quota as a gate: never too many in any second, closed for everyone while paused."""

import time

import anyio
import anyio.lowlevel
import pytest

from auditor.pace.quota import Quota

pytestmark = pytest.mark.anyio


async def grants_of(quota: Quota, waiters: int, seconds: float) -> list[float]:
    """When requests were let through, with many waiters at the gate all the time."""
    grants: list[float] = []

    async def wait() -> None:
        while True:
            await quota.slot()
            grants.append(time.monotonic())

    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as crowd:
            for _ in range(waiters):
                crowd.start_soon(wait)
    return grants


def most_in_a_second(moments: list[float]) -> int:
    most = first = 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


async def test_no_window_of_a_second_holds_more_than_the_quota_and_most_of_it_is_used() -> None:
    measured: dict[int, list[float]] = {}

    async def measure(per_second: int) -> None:
        measured[per_second] = await grants_of(Quota(per_second), 100, 2.2)

    async with anyio.create_task_group() as together:
        for per_second in (10, 50, 200, 1000):
            together.start_soon(measure, per_second)
    for per_second, grants in measured.items():
        assert most_in_a_second(grants) <= per_second
        assert len(grants) >= 0.8 * per_second * 2.2 * 0.9


async def test_a_quota_of_less_than_one_a_second_lets_one_through_at_a_time() -> None:
    quota = Quota(0.5)
    await quota.slot()
    with anyio.move_on_after(0.1) as scope:
        await quota.slot()
    assert scope.cancelled_caught


async def test_without_a_quota_everything_is_let_through_at_once() -> None:
    quota = Quota(None)
    with anyio.fail_after(5):
        for _ in range(10_000):
            await quota.slot()


@pytest.mark.parametrize("per_second", [None, 1000.0])
async def test_a_pause_closes_the_gate_for_those_who_wait_and_those_who_come(per_second: float | None) -> None:
    quota = Quota(per_second)
    granted: list[float] = []

    async def pass_often() -> None:
        for _ in range(20):
            await quota.slot()
            granted.append(time.monotonic())
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as crowd:
        for _ in range(5):
            crowd.start_soon(pass_often)
        await quota.slot()
        quota.pause(0.3)
        began, before = time.monotonic(), len(granted)
        crowd.start_soon(pass_often)
        assert quota.paused
        await anyio.sleep(0.1)
        assert len(granted) == before
    assert len(granted) == 120
    assert min(moment for moment in granted[before:]) >= began + 0.295
    assert not quota.paused


async def test_a_pause_that_begins_while_a_waiter_sleeps_through_another_holds_him_too() -> None:
    quota = Quota(None)
    quota.pause(0.1)
    async with anyio.create_task_group() as crowd:
        began = time.monotonic()
        moments: list[float] = []

        async def wait() -> None:
            await quota.slot()
            moments.append(time.monotonic())

        crowd.start_soon(wait)
        await anyio.sleep(0.05)
        quota.pause(0.2)
    assert moments[0] - began >= 0.245


def test_a_longer_pause_stays_when_a_shorter_one_is_asked_for() -> None:
    now = 100.0
    quota = Quota(5, clock=lambda: now)
    quota.pause(10)
    quota.pause(1)
    now = 109.9
    assert quota.paused
    now = 110.0
    assert not quota.paused


async def test_cancelled_waiters_take_nothing_and_hold_up_nobody() -> None:
    quota = Quota(50)
    await quota.slot()
    grants: list[float] = []

    async def wait() -> None:
        await quota.slot()
        grants.append(time.monotonic())

    async with anyio.create_task_group() as doomed:
        for _ in range(500):
            doomed.start_soon(quota.slot)
        await anyio.sleep(0.05)
        doomed.cancel_scope.cancel()
    with anyio.fail_after(5):  # 500 lost slots would take ten seconds
        async with anyio.create_task_group() as crowd:
            for _ in range(10):
                crowd.start_soon(wait)
    assert len(grants) == 10
