"""The learned rate against the platform's own windows, in virtual time: what is used, what is refused, how it settles."""

import heapq
import math
import random
from bisect import bisect_left
from dataclasses import dataclass, field

import pytest

from auditor.resilience.adaptive_rate import LEAST_MARGIN, MARGIN, MOST_MARGIN, UNTOLD, WIDER, Rate
from auditor.simulator.quotas import Contended, Window, WindowKind, window

WINDOWS: list[WindowKind] = ["fixed", "sliding", "bucket"]
STRICT: list[WindowKind] = ["fixed", "sliding"]
REQUEST, ANSWER = 0, 1


@dataclass
class Account:
    """A client that always has work, before a window with jitter before its count and latency behind it."""

    rate: Rate
    window: Window
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    now: float = 1_000_000.0
    admitted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    _events: list[tuple[float, int, float, bool]] = field(default_factory=list)
    _open_at: float = -math.inf

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            slot = max(self.now, self.rate.next_at(), self._open_at)
            coming = self._events[0][0] if self._events else math.inf
            self.now = min(slot, coming)
            if self.now >= end:
                self.now = end
                return
            if slot < coming:
                self.rate.sent(self.now)
                counted_at = self.now + self.chance.uniform(0, 0.010)
                heapq.heappush(self._events, (counted_at, REQUEST, self.now, True))
            else:
                self._happen(*heapq.heappop(self._events))

    def _happen(self, at: float, kind: int, sent_at: float, well: bool) -> None:  # noqa: FBT001
        if kind == REQUEST:
            well = self.window.admit(at)
            (self.admitted if well else self.refused).append(at)
            latency = self.chance.uniform(0.02, 0.3) if well else 0.005
            heapq.heappush(self._events, (at + latency, ANSWER, sent_at, well))
        elif well:
            self.rate.admitted(sent_at)
        else:
            self._open_at = max(self._open_at, self.rate.refused(sent_at, at))

    def since(self, moment: float) -> tuple[float, float]:
        """Requests admitted a second since a moment, and of all requests since then the part refused."""
        admitted = len(self.admitted) - bisect_left(self.admitted, moment)
        refused = len(self.refused) - bisect_left(self.refused, moment)
        return admitted / (self.now - moment), refused / max(1, admitted + refused)


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("quota", [10, 50, 200])
def test_a_quota_that_is_told_right_is_filled_without_a_refusal(kind: WindowKind, quota: int) -> None:
    account = Account(Rate(quota), window(kind, quota))
    began = account.now
    account.run(60)
    used, refused = account.since(began)
    assert used >= 0.97 * quota
    assert refused <= 0.001


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("quota", [5, 25])
def test_half_of_the_told_quota_is_found_and_kept(kind: WindowKind, quota: int) -> None:
    account = Account(Rate(2 * quota), window(kind, quota))
    account.run(10)
    settled = account.now
    account.run(80)
    used, refused = account.since(settled)
    assert used >= 0.9 * quota
    assert refused < 0.02


@pytest.mark.parametrize("kind", STRICT)
def test_another_client_is_given_way_and_what_it_frees_is_taken_back(kind: WindowKind) -> None:
    other = Contended(window(kind, 50), per_second=20, begin=1_000_020.0, end=1_000_040.0)
    account = Account(Rate(50), other)
    account.run(25)
    account.run(15)
    used, _ = account.since(1_000_025.0)
    _, refused = account.since(1_000_020.0)
    assert used == pytest.approx(30, rel=0.1)
    assert refused < 0.03
    account.run(10)
    account.run(5)
    used, _ = account.since(account.now - 5)
    assert used >= 0.95 * 50


@pytest.mark.parametrize("kind", STRICT)
def test_a_second_that_bears_one_call_is_learned_though_one_and_a_half_were_told(kind: WindowKind) -> None:
    account = Account(Rate(1.5), window(kind, 1))
    account.run(60)
    settled = account.now
    account.run(200)
    used, refused = account.since(settled)
    assert 0.9 <= used <= 1.0
    assert refused < 0.02


@pytest.mark.parametrize("quota", [4, 50, 300])
def test_a_quota_that_nobody_told_is_looked_for(quota: int) -> None:
    account = Account(Rate(math.inf), window("sliding", quota))
    assert account.rate.now == UNTOLD
    account.run(60)
    settled = account.now
    account.run(60)
    used, refused = account.since(settled)
    assert used >= 0.9 * quota
    assert refused < 0.02


def test_the_told_quota_is_never_exceeded() -> None:
    account = Account(Rate(50), window("sliding", 1000))
    account.run(60)
    assert account.rate.now == account.rate.ceiling == 50 / (1 + account.rate.margin)


def test_answers_at_the_ceiling_narrow_the_margin_down_to_its_least() -> None:
    rate = Rate(10)
    for _ in range(20_000):
        rate.admitted(0.0)
    assert rate.margin == LEAST_MARGIN
    assert rate.now == 10 / (1 + LEAST_MARGIN)


def test_a_refusal_at_the_ceiling_widens_the_margin_up_to_its_most() -> None:
    rate, now = Rate(10), 0.0
    margins = [rate.margin]
    for _ in range(30):
        rate._level = math.inf
        rate.now = rate.ceiling
        now += 10
        rate.admitted(now)
        rate.refused(now, now)
        rate.admitted(now)
        margins.append(rate.margin)
    assert margins[0] == MARGIN < margins[1]
    assert margins[-1] == pytest.approx(MOST_MARGIN, rel=0.001)


def sent_evenly(rate: Rate, requests: int, every: float, begin: float = 100.0) -> list[float]:
    moments = [begin + number * every for number in range(requests)]
    for moment in moments:
        rate.sent(moment)
    return moments


def test_one_refusal_at_the_ceiling_is_excused_but_for_a_wider_margin_and_the_next_is_not() -> None:
    rate = Rate(50)
    moments = sent_evenly(rate, 100, 0.02)
    assert rate.refused(moments[-9], 102.1) == 102.1
    assert rate.refused(moments[-8], 102.1) == 102.1  # of the same bunch
    assert rate.margin == pytest.approx(MARGIN * WIDER)
    assert rate.now == rate.ceiling
    opened = rate.refused(moments[-1], 102.2)
    assert rate.now < 0.97 * rate.ceiling
    assert opened > 102.2


def test_chance_is_believed_once_in_a_hundred_requests() -> None:
    rate = Rate(10)
    moments = sent_evenly(rate, 300, 0.1)
    rate.refused(moments[100], 110.1)
    rate.refused(moments[205], 120.6)
    assert rate.now == rate.ceiling
    rate.refused(moments[295], 129.6)
    assert rate.now < rate.ceiling


def test_refusals_of_requests_sent_before_the_slow_down_slow_down_no_further() -> None:
    rate = Rate(50)
    moments = sent_evenly(rate, 100, 0.02)
    rate.refused(moments[-9], 102.09)
    rate.refused(moments[-3], 102.1)
    slowed = rate.now
    assert 0.85 * 50 <= slowed < 50
    opened = rate.refused(moments[-2], 102.2)
    assert rate.now >= slowed - 1
    assert opened <= 102.2


def test_while_nothing_but_refusals_comes_the_wait_doubles_and_one_answer_ends_it() -> None:
    rate, now = Rate(50), 100.0
    waits = []
    for _ in range(18):
        rate.sent(now)
        opens = rate.refused(now, now + 0.01)
        waits.append(opens - now)
        now = opens
    assert waits == sorted(waits)
    assert waits[11] == pytest.approx(2 * waits[10], rel=0.3)
    assert 10 <= waits[-1] <= 31
    rate.sent(now)
    rate.admitted(now)
    assert rate.now >= 10


def test_half_a_second_of_refusals_says_how_much_was_admitted() -> None:
    rate = Rate(50)
    sent_evenly(rate, 25, 0.02)
    rate.refused(100.4, 100.49)
    rate.sent(100.5)
    opens = rate.refused(100.5, 100.51)
    assert rate.now == pytest.approx(25, rel=0.1)
    # Twenty-five went out from 100.0 on: a sliding second has room again when the first of them leaves it.
    assert 101.0 <= opens <= 101.1
