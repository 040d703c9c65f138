"""A budget in Redis: what auditors keep together through a real server, and what becomes of them without it."""

import math
import sys
import time
from array import array
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
import structlog.testing
from anyio.abc import TaskGroup
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import SettingsError
from auditor.models import Secret
from auditor.resilience import redis_backend as redis_ledger
from auditor.resilience.adaptive_rate import Moments, room_for
from auditor.resilience.rate_limiter import Quota
from auditor.resilience.redis_backend import HOLD, Server, SharedRedis
from auditor.resilience.shared_quota import Budget, Participant, cells_for, move
from tests.resilience.redis_server import RedisServer, needs_redis

pytestmark = pytest.mark.anyio


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path)
    yield running
    running.kill()


@pytest.fixture
async def server(redis: RedisServer) -> AsyncIterator[Server]:
    opened = Server(redis.address)
    await opened.open()
    yield opened
    await opened.close()


class Auditor:
    """One who always has work; ``sent`` is when he sent it."""

    def __init__(self, server: Server, per_second: float, group: TaskGroup | None = None) -> None:
        self.ledger = SharedRedis(server, "account", per_second)
        self.quota = Quota(per_second, ledger=self.ledger)
        self.sent: list[float] = []
        self.work = anyio.CancelScope()
        if group is not None:
            group.start_soon(self._send)

    async def _send(self) -> None:
        try:
            with self.work:
                while True:
                    slot = await self.quota.slot()
                    self.sent.append(time.monotonic())
                    self.quota.admitted(slot)
        finally:
            await self.ledger.close()

    def within(self, begin: float, end: float) -> int:
        return sum(begin <= moment < end for moment in self.sent)


def most_in_a_second(*auditors: Auditor) -> int:
    moments = sorted(moment for each in auditors for moment in each.sent)
    return max(sum(first <= moment < first + 1 for moment in moments) for first in moments)


async def after(seconds: float) -> float:
    await anyio.sleep(seconds)
    return time.monotonic()


@needs_redis
async def test_two_keep_the_quota_together_and_have_equal_parts(server: Server) -> None:
    async with anyio.create_task_group() as group:
        auditors = [Auditor(server, 50, group) for _ in range(2)]
        began = await after(1.0)
        ended = await after(3.0)
        group.cancel_scope.cancel()
    parts = [each.within(began, ended) for each in auditors]
    assert sum(parts) >= 0.85 * 150
    assert min(parts) >= 0.4 * sum(parts)
    assert most_in_a_second(*auditors) <= 50


@needs_redis
async def test_who_ends_leaves_his_part_to_the_other(server: Server) -> None:
    async with anyio.create_task_group() as group:
        stays, ends = Auditor(server, 40, group), Auditor(server, 40, group)
        await after(1.0)
        ends.work.cancel()
        began = await after(2.0)
        ended = await after(1.5)
        assert stays.quota.others == 0
        group.cancel_scope.cancel()
    assert stays.within(began, ended) >= 0.85 * 60
    assert most_in_a_second(stays, ends) <= 40


@needs_redis
async def test_what_one_learns_by_a_refusal_the_other_obeys_at_once(server: Server) -> None:
    one, other = Auditor(server, 20), Auditor(server, 20)
    sent_at = await one.quota.slot()
    await other.quota.slot()
    before = other.quota.rate
    assert before is not None
    one.quota.refused(sent_at, 2.0)
    await anyio.sleep(0.1)
    began = time.monotonic()
    await other.quota.slot()
    assert time.monotonic() - began >= 1.7
    assert other.quota.rate is not None
    assert other.quota.rate < before
    for each in (one, other):
        await each.ledger.close()


@needs_redis
async def test_the_lowest_rate_that_was_told_counts_and_both_have_room_for_their_own(server: Server) -> None:
    async with anyio.create_task_group() as group:
        slow, fast = Auditor(server, 10, group), Auditor(server, 100, group)
        began = await after(1.0)
        ended = await after(2.0)
        group.cancel_scope.cancel()
    assert slow.within(began, ended) + fast.within(began, ended) <= 20
    assert len(slow.ledger._known) == len(fast.ledger._known) == 8 * cells_for(300)


@needs_redis
async def test_a_lost_redis_neither_stops_nor_bursts(redis: RedisServer, server: Server) -> None:
    with structlog.testing.capture_logs() as logs:
        async with anyio.create_task_group() as group:
            auditors = [Auditor(server, 20, group) for _ in range(2)]
            await after(1.5)
            redis.kill()
            lost = await after(1.5)
            alone = await after(2.0)
            redis.start()
            back = await after(1.0 + HOLD + 1.0)
            ended = await after(2.0)
            assert [each.quota.others for each in auditors] == [1, 1]
            group.cancel_scope.cancel()
    for each in auditors:
        assert 15 <= each.within(lost, alone) <= 20
    assert sum(each.within(back, ended) for each in auditors) >= 0.85 * 40
    assert most_in_a_second(*auditors) <= 20 + len(auditors)  # each may be late by a moment
    told = [each["event"].partition(":")[0] for each in logs if each["log_level"] == "warning"]
    assert told == ["Redis is lost"] * 2 + ["Redis answers again"] * 2


@needs_redis
async def test_a_redis_that_hangs_is_lost_after_a_second(redis: RedisServer, server: Server) -> None:
    async with anyio.create_task_group() as group:
        auditor = Auditor(server, 20, group)
        await after(0.5)
        redis.stall()
        hung = await after(2.5)
        ended = await after(1.0)
        group.cancel_scope.cancel()
    assert auditor.within(hung, ended) >= 15  # nobody else was there, so all of it is his
    assert most_in_a_second(auditor) <= 20


@needs_redis
async def test_half_is_careful_where_it_is_not_known_who_is_there(redis: RedisServer, server: Server) -> None:
    redis.kill()
    auditor = Auditor(server, 20)
    await auditor.quota.slot()
    assert auditor.quota.rate == pytest.approx(10, rel=0.05)
    await auditor.ledger.close()


@needs_redis
async def test_who_finds_that_redis_has_forgotten_waits_for_the_others(redis: RedisServer, server: Server) -> None:
    auditor = Auditor(server, 100)
    await auditor.quota.slot()
    redis.kill()
    redis.start()
    began = time.monotonic()
    await auditor.quota.slot()
    assert time.monotonic() - began >= HOLD
    await auditor.ledger.close()


@needs_redis
async def test_what_lies_there_and_is_no_budget_is_replaced(server: Server) -> None:
    await server.replace("auditor:account", b"", b"rubbish")
    auditor = Auditor(server, 100)
    with anyio.fail_after(1):
        for _ in range(3):
            await auditor.quota.slot()
    assert len(auditor.ledger.budget.rate.moments) == 3
    await auditor.ledger.close()


@needs_redis
@pytest.mark.parametrize("seconds", [-3600.0, -0.2, 0.2, 3600.0])
async def test_a_server_whose_clock_is_set_makes_nobodys_clock_fall_or_stand_still(
    server: Server, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    one, other = Auditor(server, 100), Auditor(server, 100)
    await one.quota.slot()
    await other.quota.slot()
    before = one.ledger.clock(), other.ledger.clock()
    replace = Server.replace

    async def with_another_clock(self: Server, key: str, stamp: bytes, value: bytes) -> redis_ledger._Reply:
        reply = await replace(self, key, stamp, value)
        return reply._replace(low=reply.low + seconds, high=reply.high + seconds)

    monkeypatch.setattr(Server, "replace", with_another_clock)
    with anyio.fail_after(2):
        for _ in range(5):
            await one.quota.slot()
            await other.quota.slot()
    after = one.ledger.clock(), other.ledger.clock()
    assert after[0] > before[0]
    assert after[1] > before[1]
    assert after[0] == pytest.approx(after[1], abs=0.05)
    for each in (one, other):
        await each.ledger.close()


@needs_redis
@pytest.mark.parametrize("password", [None, Secret("wrong-one")])
async def test_a_wrong_password_is_told_and_not_repeated(tmp_path: Path, password: Secret | None) -> None:
    redis = RedisServer(tmp_path, "--requirepass", "right-one")
    try:
        with pytest.raises(SettingsError, match="cannot be used") as caught:
            await Server(redis.address, password).open()
        right = Server(redis.address, Secret("right-one"))
        await right.open()
        await right.close()
    finally:
        redis.kill()
    assert redis.address in str(caught.value)
    assert "-one" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_a_wrong_address_is_told() -> None:
    with pytest.raises(SettingsError, match=r"budget: redis: redis://127\.0\.0\.1:1/0 cannot be used: .*; mend the"):
        await Server("redis://127.0.0.1:1/0").open()


def test_where_the_library_is_not_installed_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(SettingsError, match=r"pip install 'auditor\[redis\]'"):
        Server("redis://127.0.0.1:1/0")


def memory_of(cells: int) -> "memoryview[float]":
    return memoryview(array("d", bytes(8 * cells)))


MOMENTS = st.lists(st.floats(0.001, 1.0), max_size=60)


@given(MOMENTS, st.integers(1, 20), st.integers(0, 20))
def test_moments_keep_their_numbers_in_a_larger_memory(distances: list[float], places: int, more: int) -> None:
    memory, larger = room_for(places), room_for(places + more)
    moments, moment = Moments(memory), 1000.0
    for distance in distances:
        moment += distance
        moments.add(moment)
    cells = cells_for(0) - 1
    head = array("d", [float(cell) for cell in range(cells)])
    whole, moved = memory_of(cells + len(memory)), memory_of(cells + len(larger))
    whole[:] = head + array("d", memory)
    move(whole, moved)
    found = Moments(moved[cells:])
    assert moved[:cells].tolist() == head.tolist()
    assert [found.latest(back) for back in range(1, len(moments) + 1)] == [
        moments.latest(back) for back in range(1, len(moments) + 1)
    ]
    if distances:
        found.correct(len(distances) - 1, 7.0)
        assert found.latest(1) == 7.0
    assert found.add(9999.0) == len(distances)


STEPS = st.lists(st.tuples(st.sampled_from(["reserve", "refused", "admitted", "pause"]), st.floats(0, 2)), max_size=40)


@given(STEPS, st.sampled_from([0.5, 10.0, 300.0, math.inf]))
def test_what_is_stored_is_what_another_loads(steps: list[tuple[str, float]], told: float) -> None:
    memory = memory_of(cells_for(64))
    writer, reader, one = Budget(told, memory), Budget(told, memory), Participant(told)
    now, sent_at = 1000.0, 1000.0
    writer.load(told, 1.0, now)
    writer.reserve(one, now)
    for step, seconds in steps:
        now += seconds
        if step == "reserve":
            sent_at = writer.reserve(one, now).at
        elif step == "refused":
            writer.refused(sent_at, now)
        elif step == "admitted":
            writer.rate.admitted(sent_at)
        else:
            writer.pause(now + seconds)
        writer.reserve(one, now)
        writer.store(1.0)
        reader.load(told, 1.0, now)
        assert reader.rate.state == writer.rate.state
        assert (reader.rate.told, reader.open_at) == (writer.rate.told, writer.open_at)
