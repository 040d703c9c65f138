"""The learned rate against the platform's windows, in virtual time: quota used, throttling, convergence."""

import heapq
import math
import random
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.resilience.adaptive_rate import (
    INITIAL_MARGIN,
    INITIAL_SEARCH_RATE,
    MARGIN_GROWTH,
    MAX_MARGIN,
    MIN_MARGIN,
    CubicRateController,
    SendLog,
    allocate_log,
)
from auditor.simulator.quotas import ContendedWindow, Window, WindowKind, new_window

WINDOWS: list[WindowKind] = ["fixed", "sliding", "bucket"]
STRICT: list[WindowKind] = ["fixed", "sliding"]
REQUEST, RESPONSE = 0, 1


@dataclass
class Account:
    """A client that always has work, with jitter before the platform counts a request, and latency after it."""

    rate: CubicRateController
    window: Window
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    now: float = 1_000_000.0
    accepted: list[float] = field(default_factory=list)
    throttled: list[float] = field(default_factory=list)
    _events: list[tuple[float, int, float, bool]] = field(default_factory=list)
    _paused_until: float = -math.inf

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            permit_at = max(self.now, self.rate.next_permit_at(), self._paused_until)
            next_event = self._events[0][0] if self._events else math.inf
            self.now = min(permit_at, next_event)
            if self.now >= end:
                self.now = end
                return
            if permit_at < next_event:
                self.rate.on_sent(self.now)
                counted_at = self.now + self.rng.uniform(0, 0.010)
                heapq.heappush(self._events, (counted_at, REQUEST, self.now, True))
            else:
                self._handle(*heapq.heappop(self._events))

    def _handle(self, at: float, kind: int, sent_at: float, accepted: bool) -> None:  # noqa: FBT001
        if kind == REQUEST:
            accepted = self.window.admit(at)
            (self.accepted if accepted else self.throttled).append(at)
            latency = self.rng.uniform(0.02, 0.3) if accepted else 0.005
            heapq.heappush(self._events, (at + latency, RESPONSE, sent_at, accepted))
        elif accepted:
            self.rate.on_success(sent_at)
        else:
            self._paused_until = max(self._paused_until, self.rate.on_throttled(sent_at, at))

    def since(self, moment: float) -> tuple[float, float]:
        """Requests accepted a second since a moment, and the throttled fraction of all requests since then."""
        accepted = len(self.accepted) - bisect_left(self.accepted, moment)
        throttled = len(self.throttled) - bisect_left(self.throttled, moment)
        return accepted / (self.now - moment), throttled / max(1, accepted + throttled)


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("quota", [10, 50, 200])
def test_a_correctly_configured_quota_is_used_without_throttling(kind: WindowKind, quota: int) -> None:
    account = Account(CubicRateController(quota), new_window(kind, quota))
    began = account.now
    account.run(60)
    used, throttled = account.since(began)
    assert used >= 0.97 * quota
    assert throttled <= 0.001


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("quota", [5, 25])
def test_a_quota_of_half_the_configured_rate_is_learned(kind: WindowKind, quota: int) -> None:
    account = Account(CubicRateController(2 * quota), new_window(kind, quota))
    account.run(10)
    converged_at = account.now
    account.run(80)
    used, throttled = account.since(converged_at)
    assert used >= 0.9 * quota
    assert throttled < 0.02 + 1 / (8 * quota)  # one request in a cycle of some eight seconds


@pytest.mark.parametrize("kind", STRICT)
@pytest.mark.parametrize(
    ("quota", "taken"), [(1, 0.4), (2, 0.9), (10, 0.4), (10, 0.9), (50, 0.9), (300, 0.4), (1000, 0.9)]
)
def test_the_rate_recovers_within_ten_seconds_after_another_client_at_any_quota(
    kind: WindowKind, quota: float, taken: float
) -> None:
    begin, end = 1_000_005.0, 1_000_035.0
    other = ContendedWindow(new_window(kind, quota), per_second=taken * quota, begin=begin, end=end)
    account = Account(CubicRateController(quota), other)
    account.run(35)
    throttled = sum(begin <= moment < end for moment in account.throttled)
    assert throttled <= 0.5 * 30 + 0.03 * quota * 30
    account.run(10)
    assert account.rate.current_rate >= 0.95 * account.rate.max_rate
    account.run(20)
    assert account.since(account.now - 18)[0] >= 0.93 * quota


def test_an_idle_account_does_not_recover_by_time_alone() -> None:
    rate = CubicRateController(50)
    moments = send_evenly(rate, 300, 0.02)
    for number in (100, 299):
        rate.on_throttled(moments[number], moments[number] + 0.1)
    slowed = rate.current_rate
    rate.on_sent(10_000.0)
    rate.on_success(10_000.0)
    assert rate.current_rate < 1.03 * slowed


@pytest.mark.parametrize("kind", STRICT)
def test_the_rate_gives_way_to_another_client_and_recovers_after_it(kind: WindowKind) -> None:
    other = ContendedWindow(new_window(kind, 50), per_second=20, begin=1_000_020.0, end=1_000_040.0)
    account = Account(CubicRateController(50), other)
    account.run(25)
    account.run(15)
    used, _ = account.since(1_000_025.0)
    _, throttled = account.since(1_000_020.0)
    assert used == pytest.approx(30, rel=0.1)
    assert throttled < 0.03
    account.run(10)
    account.run(5)
    used, _ = account.since(account.now - 5)
    assert used >= 0.95 * 50


@pytest.mark.parametrize("kind", STRICT)
def test_a_quota_of_one_is_learned_where_one_and_a_half_is_configured(kind: WindowKind) -> None:
    account = Account(CubicRateController(1.5), new_window(kind, 1))
    account.run(60)
    converged_at = account.now
    account.run(200)
    used, throttled = account.since(converged_at)
    assert 0.75 <= used <= 1.0
    assert throttled < 0.15  # one request in a cycle of some eight seconds shows whether there is room again


@pytest.mark.parametrize("quota", [4, 50, 300])
def test_an_unknown_quota_is_searched_for(quota: int) -> None:
    account = Account(CubicRateController(math.inf), new_window("sliding", quota))
    assert account.rate.current_rate == INITIAL_SEARCH_RATE
    account.run(60)
    converged_at = account.now
    account.run(60)
    used, throttled = account.since(converged_at)
    assert used >= 0.9 * quota
    assert throttled < 0.02 + 1 / (8 * quota)


def test_the_configured_rate_is_never_exceeded() -> None:
    account = Account(CubicRateController(50), new_window("sliding", 1000))
    account.run(60)
    assert account.rate.current_rate == account.rate.max_rate == 50 / (1 + account.rate.margin)


def test_successes_at_the_maximum_rate_narrow_the_margin_down_to_its_minimum() -> None:
    rate = CubicRateController(10)
    for _ in range(20_000):
        rate.on_success(0.0)
    assert rate.margin == MIN_MARGIN
    assert rate.current_rate == 10 / (1 + MIN_MARGIN)


def test_throttling_at_the_maximum_rate_widens_the_margin_up_to_its_maximum() -> None:
    rate, now = CubicRateController(10), 0.0
    margins = [rate.margin]
    for _ in range(30):
        rate._w_max = math.inf
        rate.current_rate = rate.max_rate
        now += 10
        rate.on_success(now)
        rate.on_throttled(now, now)
        rate.on_success(now)
        margins.append(rate.margin)
    assert margins[0] == INITIAL_MARGIN < margins[1]
    assert margins[-1] == pytest.approx(MAX_MARGIN, rel=0.001)


def send_evenly(rate: CubicRateController, requests: int, interval: float, begin: float = 100.0) -> list[float]:
    moments = [begin + number * interval for number in range(requests)]
    for moment in moments:
        rate.on_sent(moment)
    return moments


def test_one_throttling_response_at_the_maximum_rate_only_widens_the_margin_and_the_next_slows_down() -> None:
    rate = CubicRateController(50)
    moments = send_evenly(rate, 100, 0.02)
    assert rate.on_throttled(moments[-9], 102.1) == 102.1
    assert rate.on_throttled(moments[-8], 102.1) == 102.1  # of the same burst
    assert rate.margin == pytest.approx(INITIAL_MARGIN * MARGIN_GROWTH)
    assert rate.current_rate == rate.max_rate
    paused_until = rate.on_throttled(moments[-1], 102.2)
    assert rate.current_rate < 0.97 * rate.max_rate
    assert paused_until > 102.2


def test_throttling_is_taken_for_chance_once_in_a_hundred_requests() -> None:
    rate = CubicRateController(10)
    moments = send_evenly(rate, 300, 0.1)
    rate.on_throttled(moments[100], 110.1)
    rate.on_throttled(moments[205], 120.6)
    assert rate.current_rate == rate.max_rate
    rate.on_throttled(moments[295], 129.6)
    assert rate.current_rate < rate.max_rate


def test_throttling_of_requests_sent_before_a_slow_down_slows_down_no_further() -> None:
    rate = CubicRateController(50)
    moments = send_evenly(rate, 100, 0.02)
    rate.on_throttled(moments[-9], 102.09)
    rate.on_throttled(moments[-3], 102.1)
    slowed = rate.current_rate
    assert 0.85 * 50 <= slowed < 50
    paused_until = rate.on_throttled(moments[-2], 102.2)
    assert rate.current_rate >= slowed - 1
    assert paused_until <= 102.2


def test_pauses_double_in_a_series_of_throttling_responses_and_one_success_ends_it() -> None:
    rate, now = CubicRateController(50), 100.0
    pauses = []
    for _ in range(18):
        rate.on_sent(now)
        paused_until = rate.on_throttled(now, now + 0.01)
        pauses.append(paused_until - now)
        now = paused_until
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(pauses))
    assert pauses[11] == pytest.approx(2 * pauses[10], rel=0.3)
    assert 10 <= pauses[-1] <= 11
    rate.on_sent(now)
    rate.on_success(now)
    assert rate.current_rate >= 10


def test_half_a_second_of_throttling_shows_how_many_requests_were_accepted() -> None:
    rate = CubicRateController(50)
    send_evenly(rate, 25, 0.02)
    rate.on_throttled(100.4, 100.49)
    rate.on_sent(100.5)
    paused_until = rate.on_throttled(100.5, 100.51)
    assert rate.current_rate == pytest.approx(25, rel=0.1)
    # Twenty-five were sent from 100.0 on: a sliding second has room again when the first of them leaves it.
    assert 101.0 <= paused_until <= 101.1


@given(
    quota=st.floats(0.5, 3_000_000),
    sends=st.integers(0, 300),
    interval=st.floats(0, 0.01),
    idle=st.floats(0, 0.2),
    limit=st.integers(0, 60),
    capacity=st.sampled_from([16, 64, 4096]),
)
def test_a_batch_of_sends_is_as_many_as_single_ones(
    *, quota: float, sends: int, interval: float, idle: float, limit: int, capacity: int
) -> None:
    limit = min(limit, capacity)
    batched, single = (CubicRateController(quota, SendLog(allocate_log(capacity))) for _ in range(2))
    for rate in (batched, single):
        now = send_evenly(rate, sends, interval)[-1] + idle if sends else 100.0
        rate.on_sent(now)
    count = batched.send_due(now, now, limit)
    expected = 0
    while expected < limit and single.next_permit_at() <= now:
        single.on_sent(now)
        expected += 1
    assert abs(count - expected) <= 1  # sums are rounded otherwise
    if count == expected:
        assert batched.send_log.count == single.send_log.count
        assert batched.next_permit_at() == pytest.approx(single.next_permit_at(), abs=1e-6)
        kept = range(1, len(single.send_log) + 1)
        assert [batched.send_log.latest(back) for back in kept] == [single.send_log.latest(back) for back in kept]
