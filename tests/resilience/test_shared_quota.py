"""The budget that several take part in, in virtual time: whose turn it is, what all keep together, what all learn."""

import heapq
import itertools
import math
import random
from array import array
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.resilience.adaptive_rate import MARGIN
from auditor.resilience.shared_quota import FORGOTTEN, PLACES, Budget, Participant, Slot, cells_for

ERA = 7.0


def memory_for(moments: int = 512) -> "memoryview[float]":
    return memoryview(array("d", bytes(8 * cells_for(moments))))


@dataclass
class Auditor:
    """One who always has work, with his own view of the shared memory; ``begin`` and ``end`` are when he is there."""

    memory: "memoryview[float]"
    told: float = 50.0
    priority: bool = False
    begin: float = 0.0
    end: float = math.inf
    sent: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.budget = Budget(self.told, self.memory)
        self.me = Participant(self.told, self.priority)

    def reserve(self, now: float) -> Slot:
        self.budget.load(self.told, ERA, now)
        slot = self.budget.reserve(self.me, now)
        self.budget.store(ERA)
        return slot

    def confirm(self, slot: Slot, now: float) -> float | None:
        self.budget.load(self.told, ERA, now)
        held = self.budget.confirm(slot, now)
        self.budget.store(ERA)
        return held


def run(auditors: list[Auditor], seconds: float, began: float = 1000.0) -> None:
    """Lets them send as fast as they may; each sleeps until his moment and is a moment late."""
    numbers = itertools.count()
    events: list[tuple[float, int, Auditor, Slot | None]] = [
        (began + each.begin + 0.001 * number, next(numbers), each, None) for number, each in enumerate(auditors)
    ]
    heapq.heapify(events)
    while events[0][0] < began + seconds:
        now, _, each, slot = heapq.heappop(events)
        if now >= began + each.end:
            if not events:
                return
            continue
        if slot is not None and each.confirm(slot, now) is not None:
            each.sent.append(now)
        slot = each.reserve(now)
        coming = slot if slot.number is not None else None
        heapq.heappush(events, (max(slot.at, now) + 0.001, next(numbers), each, coming))


def between(auditor: Auditor, begin: float, end: float) -> int:
    return sum(1000 + begin <= moment < 1000 + end for moment in auditor.sent)


def most_in_a_second(moments: list[float]) -> int:
    moments, first, most = sorted(moments), 0, 0
    for last, moment in enumerate(moments):
        while moments[first] <= moment - 1.0:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.parametrize("quota", [1.0, 4.0, 10.0, 50.0, 200.0])
@pytest.mark.parametrize("many", [2, 3])
def test_those_who_take_part_keep_the_quota_together_and_have_equal_parts(quota: float, many: int) -> None:
    memory = memory_for()
    auditors = [Auditor(memory, quota) for _ in range(many)]
    run(auditors, 62)
    parts = [between(each, 2, 62) for each in auditors]
    assert sum(parts) >= 0.96 * 60 * quota
    assert most_in_a_second([moment for each in auditors for moment in each.sent]) <= quota
    assert min(parts) >= 0.9 * sum(parts) / many


def test_who_is_killed_leaves_his_part_to_the_other() -> None:
    memory = memory_for()
    stays, dies = Auditor(memory), Auditor(memory, end=20)
    run([stays, dies], 30)
    assert between(stays, 10, 20) <= 0.55 * 500
    assert between(stays, 21, 26) >= 0.95 * 250
    assert most_in_a_second(stays.sent + dies.sent) <= 50


def test_who_comes_later_has_his_part_at_once() -> None:
    memory = memory_for()
    early, late = Auditor(memory), Auditor(memory, begin=10)
    run([early, late], 20)
    assert between(early, 0, 10) >= 0.95 * 500
    assert between(late, 11, 20) >= 0.45 * 9 * 50
    assert most_in_a_second(early.sent + late.sent) <= 50


def test_who_goes_first_has_nine_of_ten_slots_while_he_is_there() -> None:
    memory = memory_for()
    nightly, urgent = Auditor(memory), Auditor(memory, priority=True, begin=10, end=20)
    run([nightly, urgent], 30)
    assert between(urgent, 11, 20) == pytest.approx(0.9 * 9 * 48.7, rel=0.05)
    assert between(nightly, 11, 20) == pytest.approx(0.1 * 9 * 48.7, rel=0.2)
    assert between(nightly, 21, 30) >= 0.95 * 9 * 48.7


def test_two_who_go_first_take_turns() -> None:
    memory = memory_for()
    auditors = [Auditor(memory, priority=True) for _ in range(2)]
    run(auditors, 20)
    assert between(auditors[0], 2, 20) == pytest.approx(between(auditors[1], 2, 20), rel=0.05)


def test_the_lowest_told_rate_counts_while_he_is_there_who_was_told_it() -> None:
    memory = memory_for()
    all_of_it, a_part = Auditor(memory, 50), Auditor(memory, 20, begin=10, end=20)
    run([all_of_it, a_part], 40)
    assert between(all_of_it, 0, 10) >= 0.95 * 500
    assert between(all_of_it, 11, 20) + between(a_part, 11, 20) <= 20 * 9
    assert between(a_part, 11, 20) >= 0.4 * 20 * 9
    assert between(all_of_it, 25, 40) >= 0.95 * 50 * 15


def test_what_one_learns_by_a_refusal_slows_all_down() -> None:
    memory = memory_for()
    one, two = Auditor(memory), Auditor(memory)
    run([one, two], 5)
    now = 1005.0
    for back in (3, 2, 1):
        one.budget.load(50, ERA, now)
        one.budget.refused(one.sent[-back], now)
        one.budget.store(ERA)
        now += 0.1
    two.budget.load(50, ERA, now)
    assert two.budget.rate.now == one.budget.rate.now < 48
    assert two.budget.open_at == one.budget.open_at > 1005.1


def test_a_pause_holds_all_and_voids_slots_that_were_taken() -> None:
    memory = memory_for()
    one, two = Auditor(memory), Auditor(memory)
    run([one, two], 5)
    slot = two.reserve(1005.0)
    assert slot.number is not None
    one.budget.load(50, ERA, 1005.0)
    one.budget.pause(1010.0)
    one.budget.store(ERA)
    assert two.confirm(slot, 1005.1) is None
    held = two.reserve(1005.2)
    assert held.number is None
    assert held.at == pytest.approx(1010, abs=0.3)
    assert two.reserve(1010.3).number is not None


def test_more_than_can_be_known_take_slots_of_the_chain_all_the_same() -> None:
    memory = memory_for()
    auditors = [Auditor(memory) for _ in range(PLACES + 4)]
    run(auditors, 20)
    assert most_in_a_second([moment for each in auditors for moment in each.sent]) <= 50
    assert min(len(each.sent) for each in auditors) >= 20


def test_what_was_learned_is_forgotten_after_a_while_and_in_another_era() -> None:
    memory = memory_for()
    one = Auditor(memory)
    run([one], 5)
    for back in (20, 1):
        one.budget.refused(one.sent[-back], 1005.0)
    one.budget.store(ERA)
    two = Auditor(memory)
    two.budget.load(50, ERA, 1006.0)
    assert two.budget.rate.now < 48
    two.budget.load(50, ERA + 1, 1006.0)
    assert two.budget.rate.now == 50 / (1 + MARGIN)
    assert len(two.budget.rate.moments) == 0
    one.budget.store(ERA)
    two.budget.load(50, ERA, 1005.0 + FORGOTTEN + 1)
    assert two.budget.rate.now == 50 / (1 + MARGIN)


def test_times_that_lie_far_ahead_are_those_of_another_clock() -> None:
    memory = memory_for()
    one = Auditor(memory)
    run([one], 5)
    two = Auditor(memory)
    two.budget.load(50, ERA, 100.0)
    assert two.budget.open_at == 0.0
    assert two.reserve(100.0) == Slot(100.0, 0, 1)


def test_what_a_killed_process_leaves_half_written_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_for(64)
    one = Auditor(memory, 10)
    run([one], 2)
    with monkeypatch.context() as killed:
        killed.setattr(random, "random", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            one.reserve(1002.0)
    two = Auditor(memory, 10)
    two.budget.load(10, ERA, 1002.0)
    assert len(two.budget.rate.moments) == 0


@given(
    cell=st.integers(0, cells_for(64) - 66), number=st.sampled_from([math.nan, math.inf, -math.inf, -5.0, 0.0, 1e18])
)
def test_whatever_stands_in_the_memory_a_slot_comes_soon(cell: int, number: float) -> None:
    memory = memory_for(64)
    run([Auditor(memory, 10)], 2)
    memory[cell] = number
    one, now = Auditor(memory, 10), 1002.0
    slot = one.reserve(now)
    while slot.number is None and now < 1400:
        now = max(now + 0.001, min(slot.at, now + 0.5))
        slot = one.reserve(now)
    assert now < 1400
    assert now <= slot.at <= now + 1


def test_what_another_wrote_is_read_and_what_was_not_written_is_not_kept() -> None:
    memory = memory_for(64)
    one, two = Auditor(memory, 10), Auditor(memory, 10)
    one.reserve(1000.0)
    two.reserve(1000.0)
    one.budget.load(10, ERA, 1000.1)
    assert len(one.budget.rate.moments) == 2
    one.budget.pause(1010.0)  # and is killed
    one.budget.load(10, ERA, 1000.2)
    assert one.budget.open_at == 0.0


@given(told=st.floats(0.1, 10_000), now=st.floats(1, 1e9))
def test_what_is_stored_is_what_is_loaded(told: float, now: float) -> None:
    memory = memory_for()
    one, two = Auditor(memory, told), Auditor(memory, told)
    slot = one.reserve(now)
    one.budget.pause(now + 3)
    one.budget.store(ERA)
    two.budget.load(told, ERA, now)
    assert two.budget.rate.state == one.budget.rate.state
    assert two.budget.rate.told == told
    assert two.budget.open_at == now + 3
    assert two.budget.rate.moments.latest(1) == slot.at
