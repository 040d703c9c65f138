"""The quota as a gate: never too many in any second, closed for everyone while paused."""

import math
import time
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.lowlevel
import pytest

from auditor.resilience.quota_backends import Alone
from auditor.resilience.rate_limiter import Gate, NoQuota, Quota
from auditor.resilience.shared_quota import Budget

T = TypeVar("T")

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
    quota = NoQuota()
    with anyio.fail_after(5):
        for _ in range(10_000):
            await quota.slot()


@pytest.mark.parametrize("per_second", [None, 1000.0])
async def test_a_pause_closes_the_gate_for_those_who_wait_and_those_who_come(per_second: float | None) -> None:
    quota: Gate = NoQuota() if per_second is None else Quota(per_second)
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
    quota = NoQuota()
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
    quota = Quota(5, ledger=Alone(5, lambda: now))
    quota.pause(10)
    quota.pause(1)
    now = 109.9
    assert quota.paused
    now = 110.0
    assert not quota.paused


async def test_the_end_of_a_pause_is_no_burst() -> None:
    quota = Quota(50)
    quota.pause(0.5)
    grants = await grants_of(quota, 100, 1.5)
    assert 40 <= len(grants) <= 51
    assert min(later - earlier for earlier, later in zip(grants, grants[5:], strict=False)) >= 0.04


async def test_an_idle_spell_is_not_made_up_for() -> None:
    quota = Quota(100)
    await quota.slot()
    await anyio.sleep(0.5)
    began = time.monotonic()
    for _ in range(21):
        await quota.slot()
    assert time.monotonic() - began >= 0.14


async def test_a_refusal_slows_the_account_down_and_answers_bring_it_back() -> None:
    quota = Quota(200)
    told = quota.rate
    assert told is not None
    assert 0.95 * 200 <= told < 200
    sent = [await quota.slot() for _ in range(40)]
    quota.refused(sent[0])
    excused = quota.rate
    assert 0.98 * told < excused < told
    assert not quota.paused
    quota.refused(sent[-1])
    assert quota.paused
    slowed = quota.rate
    assert slowed is not None
    assert slowed < 0.98 * told
    with anyio.move_on_after(1.0):
        while True:
            quota.admitted(await quota.slot())
    risen = quota.rate
    assert risen is not None
    assert slowed < risen < 200


async def test_an_answer_opens_the_gate_for_one_who_waits_at_a_much_slower_rate() -> None:
    quota = Quota(1000)
    budget = quota._ledger.budget
    budget.rate._excused_at = time.monotonic() - 1  # another refusal was taken for chance a second ago
    for _ in range(8):
        sent_at = await quota.slot()
        quota.refused(sent_at)
        budget.open_at = 0.0  # the pauses themselves are not waited for here
        budget.rate._slot_at = 0.0
    slow = quota.rate
    assert slow is not None
    assert slow < 20
    sent_at = await quota.slot()
    with anyio.fail_after(3):
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                for _ in range(3):
                    await quota.slot()

            group.start_soon(wait)
            quota.admitted(sent_at)
    rate = quota.rate
    assert rate is not None
    assert rate > slow


@pytest.mark.parametrize("per_second", [None, 5.0])
def test_a_longer_wish_extends_a_pause_that_is_under_way_and_a_shorter_one_does_not(per_second: float | None) -> None:
    now = 100.0
    quota: Gate = (
        NoQuota(lambda: now) if per_second is None else Quota(per_second, ledger=Alone(per_second, lambda: now))
    )
    quota.refused(now, 5.0)
    quota.refused(now, 20.0)
    quota.refused(now, 1.0)
    now = 119.9
    assert quota.paused
    now = 120.1
    assert not quota.paused


def test_without_a_quota_pauses_double_while_refusals_go_on() -> None:
    now, pauses = 100.0, []
    quota = NoQuota(lambda: now)
    for _ in range(8):
        quota.refused(now)
        quota.refused(now)
        pauses.append(quota._open_at - now)
        now = quota._open_at
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert quota.rate is None


def test_an_unknown_quota_is_looked_for_from_ten_a_second_on() -> None:
    now = 100.0
    quota = Quota(math.inf, ledger=Alone(math.inf, lambda: now))
    assert quota.rate == 10
    for _ in range(2000):
        quota.admitted(now)
    assert quota.rate is not None
    assert quota.rate > 20


async def test_slots_that_were_due_together_are_held_by_a_pause_that_the_first_of_them_brings() -> None:
    quota = Quota(1000)
    await quota.slot()
    await anyio.sleep(0.05)
    granted: list[float] = []

    async def wait() -> None:
        await quota.slot()
        granted.append(time.monotonic())
        if len(granted) == 1:
            quota.pause(0.3)

    async with anyio.create_task_group() as crowd:
        for _ in range(8):
            crowd.start_soon(wait)
    assert granted[1] - granted[0] >= 0.29


class FarAway(Alone):
    """A budget that is a while away, as one in a Redis of another town is."""

    async def look(self, work: Callable[[Budget], T]) -> T:
        await anyio.sleep(0.03)
        result = work(self.budget)
        await anyio.sleep(0.03)
        return result


async def test_a_budget_that_is_far_away_gives_slots_all_the_same() -> None:
    grants = await grants_of(Quota(10, ledger=FarAway(10)), 5, 2.0)
    assert 12 <= len(grants) <= 21


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
