"""A quota with several participants, in virtual time: whose turn it is, what they use together, what all learn."""

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.resilience.adaptive_rate import INITIAL_MARGIN
from auditor.resilience.shared_quota import (
    MAX_PARTICIPANTS,
    STATE_LIFETIME,
    Command,
    NotDue,
    Participant,
    Permit,
    SharedQuota,
    size_for,
)

T = TypeVar("T")

ERA = 7.0


def allocate(sends: int = 512) -> "memoryview[int]":
    return memoryview(bytearray(size_for(sends)))


@dataclass
class Client:
    """A participant that always has work, with its own view of the memory; present from ``begin`` to ``end``."""

    memory: "memoryview[int]"
    configured_rate: float = 50.0
    priority: bool = False
    begin: float = 0.0
    end: float = math.inf
    sent: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.quota = SharedQuota(self.configured_rate, self.memory)
        self.participant = Participant(self.configured_rate, self.priority)

    def apply(self, method: Callable[..., T], *arguments: object, now: float) -> T:
        self.quota.load(self.configured_rate, ERA, now)
        result = Command(method, arguments).apply(self.quota, now)
        self.quota.store(ERA)
        return result

    def reserve(self, now: float) -> Permit | NotDue:
        return self.apply(SharedQuota.reserve, self.participant, 1, now=now)


def run(clients: list[Client], seconds: float, began: float = 1000.0) -> None:
    """Let the clients send as fast as they may. Each sleeps until its permit and is a moment late."""
    numbers = itertools.count()
    events: list[tuple[float, int, Client, Permit | None]] = [
        (began + each.begin + 0.001 * number, next(numbers), each, None) for number, each in enumerate(clients)
    ]
    heapq.heapify(events)
    while events[0][0] < began + seconds:
        now, _, each, permit = heapq.heappop(events)
        if now >= began + each.end:
            if not events:
                return
            continue
        if permit is not None and each.apply(SharedQuota.confirm, permit, now=now) is not None:
            each.sent.append(now)
        reserved = each.reserve(now)
        pending = reserved if isinstance(reserved, Permit) else None
        heapq.heappush(events, (max(reserved[0], now) + 0.001, next(numbers), each, pending))


def between(client: Client, begin: float, end: float) -> int:
    return sum(1000 + begin <= moment < 1000 + end for moment in client.sent)


def max_per_second(moments: list[float]) -> int:
    moments, first, maximum = sorted(moments), 0, 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - 1.0:
            first += 1
        maximum = max(maximum, last - first + 1)
    return maximum


@pytest.mark.parametrize("quota", [1.0, 4.0, 10.0, 50.0, 200.0])
@pytest.mark.parametrize("participants", [2, 3])
def test_participants_stay_within_the_quota_together_and_have_equal_shares(quota: float, participants: int) -> None:
    memory = allocate()
    clients = [Client(memory, quota) for _ in range(participants)]
    run(clients, 62)
    shares = [between(each, 2, 62) for each in clients]
    assert sum(shares) >= 0.96 * 60 * quota
    assert max_per_second([moment for each in clients for moment in each.sent]) <= quota
    assert min(shares) >= 0.9 * sum(shares) / participants


def test_a_killed_participant_leaves_its_share_to_the_other() -> None:
    memory = allocate()
    stays, dies = Client(memory), Client(memory, end=20)
    run([stays, dies], 30)
    assert between(stays, 10, 20) <= 0.55 * 500
    assert between(stays, 21, 26) >= 0.95 * 250
    assert max_per_second(stays.sent + dies.sent) <= 50


def test_a_later_participant_has_its_share_immediately() -> None:
    memory = allocate()
    early, late = Client(memory), Client(memory, begin=10)
    run([early, late], 20)
    assert between(early, 0, 10) >= 0.95 * 500
    assert between(late, 11, 20) >= 0.45 * 9 * 50
    assert max_per_second(early.sent + late.sent) <= 50


def test_reducedicipant_with_priority_has_nine_of_ten_permits_while_it_is_present() -> None:
    memory = allocate()
    nightly, urgent = Client(memory), Client(memory, priority=True, begin=10, end=20)
    run([nightly, urgent], 30)
    assert between(urgent, 11, 20) == pytest.approx(0.9 * 9 * 48.7, rel=0.05)
    assert between(nightly, 11, 20) == pytest.approx(0.1 * 9 * 48.7, rel=0.2)
    assert between(nightly, 21, 30) >= 0.95 * 9 * 48.7


def test_two_participants_with_priority_take_turns() -> None:
    memory = allocate()
    clients = [Client(memory, priority=True) for _ in range(2)]
    run(clients, 20)
    assert between(clients[0], 2, 20) == pytest.approx(between(clients[1], 2, 20), rel=0.05)


def test_the_lowest_configured_rate_applies_while_its_participant_is_present() -> None:
    memory = allocate()
    full, reduced = Client(memory, 50), Client(memory, 20, begin=10, end=20)
    run([full, reduced], 40)
    assert between(full, 0, 10) >= 0.95 * 500
    assert between(full, 11, 20) + between(reduced, 11, 20) <= 20 * 9
    assert between(reduced, 11, 20) >= 0.4 * 20 * 9
    assert between(full, 25, 40) >= 0.95 * 50 * 15


def test_throttling_of_one_participant_slows_all_down() -> None:
    memory = allocate()
    one, two = Client(memory), Client(memory)
    run([one, two], 5)
    now = 1005.0
    for back in (3, 2, 1):
        one.apply(SharedQuota.on_throttled, one.sent[-back], now, now=now)
        now += 0.1
    two.quota.load(50, ERA, now)
    assert two.quota.rate.current_rate == one.quota.rate.current_rate < 48
    assert two.quota.paused_until == one.quota.paused_until > 1005.1


def test_a_pause_holds_all_participants_and_voids_permits_taken_ahead() -> None:
    memory = allocate()
    one, two = Client(memory), Client(memory)
    run([one, two], 5)
    permit = two.reserve(1005.0)
    assert isinstance(permit, Permit)
    one.apply(SharedQuota.pause, 1010.0, now=1005.0)
    assert two.apply(SharedQuota.confirm, permit, now=1005.1) is None
    retry = two.reserve(1005.2)
    assert isinstance(retry, NotDue)
    assert retry.until == pytest.approx(1010, abs=0.3)
    assert isinstance(two.reserve(1010.3), Permit)


def test_more_participants_than_the_table_holds_share_the_schedule_too() -> None:
    memory = allocate()
    clients = [Client(memory) for _ in range(MAX_PARTICIPANTS + 4)]
    run(clients, 20)
    assert max_per_second([moment for each in clients for moment in each.sent]) <= 50
    assert min(len(each.sent) for each in clients) >= 20


def test_what_was_learned_is_discarded_after_some_time_and_in_another_era() -> None:
    memory = allocate()
    one = Client(memory)
    run([one], 5)
    for back in (20, 1):
        one.quota.on_throttled(one.sent[-back], 1005.0, 1005.0)
    one.quota.store(ERA)
    two = Client(memory)
    two.quota.load(50, ERA, 1006.0)
    assert two.quota.rate.current_rate < 48
    two.quota.load(50, ERA + 1, 1006.0)
    assert two.quota.rate.current_rate == 50 / (1 + INITIAL_MARGIN)
    assert len(two.quota.rate.send_log) == 0
    one.quota.store(ERA)
    two.quota.load(50, ERA, 1005.0 + STATE_LIFETIME + 1)
    assert two.quota.rate.current_rate == 50 / (1 + INITIAL_MARGIN)


def test_moments_far_ahead_are_those_of_another_clock() -> None:
    memory = allocate()
    one = Client(memory)
    run([one], 5)
    two = Client(memory)
    two.quota.load(50, ERA, 100.0)
    assert two.quota.paused_until == 0.0
    assert two.reserve(100.0) == Permit(100.0, 0, 1)


@given(
    cell=st.integers(0, size_for(0) // 8 - 1), number=st.sampled_from([math.nan, math.inf, -math.inf, -5.0, 0.0, 1e18])
)
def test_corrupt_memory_delays_no_permit_for_long(cell: int, number: float) -> None:
    memory = allocate(64)
    run([Client(memory, 10)], 2)
    memory.cast("d")[cell] = number
    one, now = Client(memory, 10), 1002.0
    permit = one.reserve(now)
    while isinstance(permit, NotDue) and now < 1400:
        now = max(now + 0.001, min(permit.until, now + 0.5))
        permit = one.reserve(now)
    assert now < 1400
    assert now <= permit[0] <= now + 1


def test_a_quota_is_read_as_it_was_stored_last() -> None:
    memory = allocate(64)
    one, two = Client(memory, 10), Client(memory, 10)
    one.reserve(1000.0)
    two.reserve(1000.0)
    one.quota.load(10, ERA, 1000.1)
    assert len(one.quota.rate.send_log) == 2
    one.quota.pause(1010.0, 1000.1)  # not stored
    one.quota.load(10, ERA, 1000.2)
    assert one.quota.paused_until == 0.0


@given(rate=st.floats(0.1, 10_000), now=st.floats(1, 1e9))
def test_a_quota_is_loaded_as_it_was_stored(rate: float, now: float) -> None:
    memory = allocate()
    one, two = Client(memory, rate), Client(memory, rate)
    permit = one.reserve(now)
    assert isinstance(permit, Permit)
    one.quota.pause(now + 3, now)
    one.quota.store(ERA)
    two.quota.load(rate, ERA, now)
    assert two.quota.rate.state == one.quota.rate.state
    assert two.quota.rate.configured_rate == rate
    assert two.quota.paused_until == now + 3
    assert two.quota.rate.send_log.latest(1) == permit.at
