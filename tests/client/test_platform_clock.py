"""What a clock learns from dates: agreement of several answers, never a single one. Time is simulated."""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle

import pytest

from auditor.client.platform_clock import (
    EARLIEST_TIME,
    LATEST_TIME,
    MAX_OFFSET,
    MAX_REFUSALS,
    MAX_REFUSALS_AFTER_SUCCESS,
    MIN_REFUSALS,
    MIN_REFUSALS_AFTER_SUCCESS,
    MIN_REFUSED_SECONDS,
    PlatformClock,
)

NOW = 1_750_000_000.25
ACCEPTED = 900


class Platform:
    """Nodes with clocks of their own, and a client that signs with what it learned from them."""

    def __init__(self, machine: float, *nodes: float | None, now: float = NOW) -> None:
        """``machine`` and ``nodes`` are seconds ahead of the true time; None: a node that sends no ``Date``."""
        self.now, self.machine, self.clock = now, machine, PlatformClock()
        self._nodes: Iterator[float | None] = cycle(nodes)
        self.accepted = self.refused = 0
        self.hopeless = False

    def shuffle(self, nodes: Sequence[float | None], seed: int) -> None:
        chance = random.Random(seed)
        self._nodes = (chance.choice(nodes) for _ in cycle([None]))

    def send(self) -> bool:
        """Send one request to the next node; return whether its timestamp was accepted."""
        node = next(self._nodes)
        self.now += 0.1
        signed_offset, own = self.clock.offset, self.now + self.machine
        date = None if node is None else float(int(self.now + node))
        if abs(own + signed_offset - (self.now + (node or 0))) <= ACCEPTED:
            self.accepted += 1
            if self.clock.refused or not self.clock.sampled_at <= own < self.clock.next_answer_at:
                self.clock.record_accepted(signed_offset)
                self.clock.record_answer(date, own - 0.05, own)
            return True
        self.refused += 1
        self.hopeless = not self.clock.record_refused(date, own, signed_offset)
        return False

    def error(self) -> float:
        """Return how many seconds the client's idea of the time is off."""
        return abs(self.machine + self.clock.offset)


@pytest.mark.parametrize("machine", [-2400.0, 2400.0, 7200.0, -7 * 86_400.0, 40 * 86_400.0, -55 * 365 * 86_400.0])
def test_a_machine_whose_clock_is_wrong_works_after_three_requests(machine: float) -> None:
    platform = Platform(machine, 0.0)
    assert [platform.send() for _ in range(6)] == [False, False, False, True, True, True]
    assert platform.error() <= 1


@pytest.mark.parametrize("wrong", [-NOW, -30 * 365 * 86_400.0, -7200.0, 600.0, 2400.0, 30 * 86_400.0, 8e9])
@pytest.mark.parametrize("nodes", [2, 5, 10])
def test_one_wrong_node_moves_nothing(wrong: float, nodes: int) -> None:
    platform = Platform(0.0, *[0.0] * (nodes - 1), wrong)
    for _ in range(2_000):
        platform.send()
        assert platform.clock.offset == 0
    assert not platform.hopeless
    assert platform.refused == (2_000 // nodes if abs(wrong) > ACCEPTED else 0)


@pytest.mark.parametrize("seed", range(10))
def test_wrong_nodes_in_random_order_move_nothing(seed: int) -> None:
    platform = Platform(0.0)
    platform.shuffle([0.0] * 7 + [-2400.0, 5000.0, 300.0], seed)
    for _ in range(5_000):
        platform.send()
        assert platform.clock.offset == 0


@pytest.mark.parametrize("wrong", [-NOW, 90_000.0, None])
def test_a_wrong_machine_and_a_wrong_node_are_told_apart(wrong: float | None) -> None:
    platform = Platform(2400.0, 0.0, wrong, 0.0)
    results = [platform.send() for _ in range(30)]
    assert results.index(True) <= 5
    assert platform.error() <= 1
    assert not platform.hopeless


@pytest.mark.parametrize("machine", [-600.0, -60.0, 14.0, 60.0, 600.0])
def test_a_difference_that_is_accepted_is_corrected_when_ten_answers_agree(machine: float) -> None:
    platform = Platform(machine, 0.0)
    for _ in range(9):
        assert platform.send()
        assert platform.clock.offset == 0
    platform.send()
    assert platform.error() <= 1


@pytest.mark.parametrize("machine", [0.0, 1.0, -3.0])
def test_a_clock_that_is_nearly_right_is_left_alone(machine: float) -> None:
    platform = Platform(machine, 0.0, 0.7)
    for _ in range(500):
        platform.send()
        assert platform.clock.offset == 0


def test_an_agreed_offset_moves_slowly() -> None:
    platform = Platform(60.0, 0.0)
    for _ in range(300):
        platform.send()
    platform.machine, before, began = 660.0, platform.clock.offset, platform.now
    while platform.error() > 2:
        platform.send()
        assert abs(platform.clock.offset - before) <= 1 + (platform.now - began)
    assert platform.now - began >= 590


def test_dates_that_the_accepted_timestamps_contradict_are_ignored() -> None:
    clock = PlatformClock()
    for number in range(100):  # a proxy that writes its own Date
        clock.record_accepted(clock.offset)
        clock.record_answer(0.0, NOW + number, NOW + number + 0.1)
    assert clock.offset == 0


def test_a_machine_whose_clock_jumps_is_followed_after_twelve_refusals() -> None:
    platform = Platform(0.0, 0.0)
    for _ in range(50):
        platform.send()
    platform.machine = 2400.0
    results = [platform.send() for _ in range(20)]
    assert results.index(True) == MIN_REFUSALS_AFTER_SUCCESS
    assert platform.error() <= 1
    assert not platform.hopeless


@pytest.mark.parametrize("in_flight", [MIN_REFUSALS_AFTER_SUCCESS, 20, 200])
@pytest.mark.parametrize("jump", [-3600.0, 2400.0, 40 * 86_400.0])
def test_requests_in_flight_when_the_machine_s_clock_jumps_do_not_end_the_account(in_flight: int, jump: float) -> None:
    clock = PlatformClock()
    for number in range(5):
        clock.record_accepted(clock.offset)
        clock.record_answer(NOW + number, NOW + number, NOW + number + 0.1)
    assert all(clock.record_refused(NOW + 10, NOW + 10 - jump, 0.0) for _ in range(in_flight))
    assert clock.offset == pytest.approx(jump, abs=1)


def test_an_offset_that_is_learned_after_a_success_and_refused_again_ends_the_account() -> None:
    clock, refusals = PlatformClock(), 1
    clock.record_accepted(0.0)
    while clock.record_refused(NOW + 86_400, NOW, clock.offset):
        refusals += 1
    assert refusals == MIN_REFUSALS_AFTER_SUCCESS + MAX_REFUSALS


def test_refusals_of_requests_that_were_sent_before_the_change_do_not_count() -> None:
    clock = PlatformClock()
    for _ in range(50):
        assert clock.record_refused(NOW + 2400, NOW, 0.0)
    assert clock.offset == pytest.approx(2400, abs=1)


DATES: dict[str, Callable[[int], float | None]] = {
    "none": lambda _: None,
    "our own": lambda _: NOW,
    "1970": lambda _: 0.0,
    "before the program": lambda _: EARLIEST_TIME - 1,
    "far ahead": lambda _: NOW + 30 * 365 * 86_400,
    "2044": lambda _: 2_335_219_200.0,
    "two years ahead": lambda _: NOW + 2 * MAX_OFFSET,
    "more than a year ago": lambda _: NOW - MAX_OFFSET - 1,
    "another each time": lambda number: NOW + 10_000 * number * (-1) ** number,
}


@pytest.mark.parametrize("name", DATES)
@pytest.mark.parametrize("accepted_before", [False, True])
def test_refusals_that_agree_on_nothing_usable_end_the_account(name: str, *, accepted_before: bool) -> None:
    clock = PlatformClock()
    if accepted_before:
        clock.record_accepted(0.0)
    refusals = MAX_REFUSALS_AFTER_SUCCESS if accepted_before else MAX_REFUSALS
    moments = [NOW] * (refusals - 1) + [NOW + MIN_REFUSED_SECONDS]
    results = [clock.record_refused(DATES[name](n + 1), now, clock.offset) for n, now in enumerate(moments)]
    assert results == [True] * (refusals - 1) + [False]
    assert clock.offset == 0


def test_refusals_do_not_end_an_account_whose_other_requests_are_accepted() -> None:
    clock, moment = PlatformClock(), NOW
    for _ in range(10 * MAX_REFUSALS_AFTER_SUCCESS):
        moment += MIN_REFUSED_SECONDS / MAX_REFUSALS_AFTER_SUCCESS / 2
        clock.record_accepted(clock.offset)
        assert all(clock.record_refused(moment, moment, clock.offset) for _ in range(2 * MAX_REFUSALS_AFTER_SUCCESS))
    assert clock.record_refused(moment, moment + MIN_REFUSED_SECONDS, clock.offset) is False


def test_a_platform_that_refuses_its_own_time_ends_the_account() -> None:
    clock, refusals = PlatformClock(), 1
    while clock.record_refused(NOW + 86_400, NOW, clock.offset):
        refusals += 1
    assert refusals == MAX_REFUSALS
    assert clock.offset == pytest.approx(86_400, abs=1)


def test_what_is_signed_is_always_within_bounds() -> None:
    chance = random.Random(7)
    clock, now = PlatformClock(), NOW
    for _ in range(20_000):
        now += chance.random()
        date = chance.choice([None, now + chance.gauss(0, 10 ** chance.uniform(0, 11)), 0.0, -1e18, 1e18])
        if chance.random() < 0.5:
            clock.record_accepted(clock.offset)
            clock.record_answer(date, now, now + chance.random())
        else:
            clock.record_refused(date, now, clock.offset)
        assert abs(clock.offset) <= MAX_OFFSET + 20_000


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("lead", [-880.0, -300.0, 5.0, 300.0, 880.0])
def test_a_date_that_is_always_ahead_of_the_timestamp_leads_to_no_refusal(lead: float, *, checked: bool) -> None:
    clock, now = PlatformClock(), NOW
    for _ in range(20_000):
        now += 1.01
        if checked and abs(clock.offset) > ACCEPTED:
            pytest.fail(f"refused with {clock.offset} s")
        clock.record_accepted(clock.offset)
        clock.record_answer(now + clock.offset + lead, now - 0.05, now)
        assert abs(clock.offset) <= ACCEPTED - 60


def test_dates_that_walk_to_both_sides_stay_within_what_was_accepted_first() -> None:
    clock, now, chance = PlatformClock(), NOW, random.Random(3)
    for _ in range(300):
        lead = chance.choice([-880.0, 880.0])
        for _ in range(200):
            now += 1.01
            clock.record_accepted(clock.offset)
            clock.record_answer(now + clock.offset + lead, now - 0.05, now)
            assert abs(clock.offset) <= ACCEPTED - 60


@pytest.mark.parametrize("machine", [-850.0, 850.0, 880.0, -899.0])
def test_a_difference_that_is_barely_accepted_is_corrected_up_to_a_minute(machine: float) -> None:
    platform = Platform(machine, 0.0)
    for _ in range(3_000):
        assert platform.send()
    assert platform.error() <= 61


def test_agreed_refusals_end_what_accepted_requests_allowed() -> None:
    platform = Platform(0.0, 0.0)
    for _ in range(50):
        platform.send()
    for jump in (2400.0, -86_400.0, 3_000.0):
        platform.machine += jump
        for _ in range(600):
            platform.send()
        assert platform.error() <= 1
        platform.machine += 300.0  # and what they allow since then is enough for a smaller correction
        for _ in range(4_000):
            platform.send()
        assert platform.error() <= 2
    assert not platform.hopeless


@pytest.mark.parametrize("year", [1970, 2000, 2023, 2099])
def test_a_machine_without_a_clock_of_its_own_takes_any_plausible_time(year: int) -> None:
    started = (year - 1970) * 365.25 * 86_400
    for date in (EARLIEST_TIME, NOW, LATEST_TIME):
        clock = PlatformClock()
        for _ in range(MIN_REFUSALS):
            clock.record_refused(date, started, 0.0)
        assert clock.offset == pytest.approx(date - started, abs=1)
    clock = PlatformClock()
    assert [clock.record_refused(LATEST_TIME + 1, started, 0.0) for _ in range(MAX_REFUSALS)][-1] is False
    assert clock.offset == 0


@pytest.mark.parametrize("date", [2_335_219_200.0, 2 * MAX_OFFSET + NOW])
def test_a_lie_about_the_year_changes_nothing_for_the_requests_after_it(date: float) -> None:
    clock = PlatformClock()
    for _ in range(MAX_REFUSALS - 1):
        assert clock.record_refused(date, NOW, clock.offset)
    clock.record_accepted(clock.offset)
    assert (clock.offset, clock.refused) == (0, False)
