import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from auditor.simulator.quotas import ContendedWindow, FixedWindow, SlidingWindow, TokenBucket, new_window, window_size

RATES = st.one_of(st.integers(1, 30).map(float), st.floats(0.1, 30))
# Times as whole sixty-fourths of a second, which floats hold exactly.
TIMES = st.lists(st.integers(0, 400), max_size=200).map(lambda ticks: [1e6 + tick / 64 for tick in sorted(ticks)])


def admitted(kind: object, times: list[float]) -> list[float]:
    return [now for now in times if kind.admit(now)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["fixed", "sliding", "bucket"])
@pytest.mark.parametrize("quota", [1, 10, 500])
def test_every_window_admits_exactly_its_quota_at_one_moment(kind: str, quota: int) -> None:
    assert len(admitted(new_window(kind, quota), [100.0] * (quota + 50))) == quota  # type: ignore[arg-type]


def test_a_fixed_window_starts_again_with_each_calendar_second() -> None:
    counted = FixedWindow(2)
    assert admitted(counted, [10.98, 10.99, 10.995, 11.0, 11.01, 11.02]) == [10.98, 10.99, 11.0, 11.01]


def test_a_sliding_window_admits_again_one_second_after_each_call() -> None:
    counted = SlidingWindow(2)
    assert admitted(counted, [10.0, 10.5, 10.75, 11.0, 11.25, 11.5]) == [10.0, 10.5, 11.0, 11.5]


def test_a_throttled_call_does_not_count() -> None:
    counted = SlidingWindow(1)
    assert admitted(counted, [10.0, 10.25, 10.5, 10.75, 11.0]) == [10.0, 11.0]


def test_a_bucket_is_refilled_at_the_rate_and_holds_at_most_one_second() -> None:
    counted = TokenBucket(4)
    assert admitted(counted, [10.0] * 5 + [10.25] * 2 + [10.5] * 2) == [10.0] * 4 + [10.25, 10.5]
    assert len(admitted(counted, [60.0] * 9)) == 4


@given(RATES, TIMES)
@example(1.2, [1000001.671875, 1000002.5])  # a window ends between them, and a quotient that is rounded says otherwise
def test_no_calendar_window_has_more_than_the_quota(rate: float, times: list[float]) -> None:
    calls, seconds = window_size(rate)
    taken = admitted(FixedWindow(rate), times)
    numbers = [now // seconds for now in taken]
    assert all(numbers.count(number) <= calls for number in numbers)


@given(RATES, TIMES)
def test_no_second_has_more_than_a_sliding_quota(rate: float, times: list[float]) -> None:
    calls, seconds = window_size(rate)
    taken = admitted(SlidingWindow(rate), times)
    for start in taken:
        assert sum(0 <= now - start < seconds for now in taken) <= calls


@given(RATES, TIMES)
def test_no_period_has_more_than_a_bucket_and_its_refill(rate: float, times: list[float]) -> None:
    taken = admitted(TokenBucket(rate), times)
    for place, start in enumerate(taken):
        for more, end in enumerate(taken[place:], 1):
            assert more <= max(1.0, rate) + (end - start) * rate + 1e-6


@pytest.mark.parametrize("kind", ["fixed", "sliding", "bucket"])
@given(rate=RATES, times=TIMES)
def test_the_reported_wait_is_sufficient(kind: str, rate: float, times: list[float]) -> None:
    counted = new_window(kind, rate)  # type: ignore[arg-type]
    for now in times:
        counted.admit(now)
    last = times[-1] if times else 1e6
    wait = counted.wait(last)
    assert 0 <= wait <= max(1.0, 1 / rate) + 1e-6
    assert counted.admit(last + wait + 1e-6)


def test_a_quota_below_one_is_one_call_in_a_longer_time() -> None:
    assert window_size(0.5) == (1, 2.0)
    assert window_size(10) == (10, 1.0)
    assert window_size(2.5) == (2, 0.8)


@pytest.mark.parametrize("rate", [0, -1, float("inf"), float("nan")])
def test_a_quota_must_be_a_positive_number(rate: float) -> None:
    with pytest.raises(ValueError, match="per_second"):
        new_window("sliding", rate)


def test_another_client_calls_between_its_begin_and_its_end() -> None:
    counted = ContendedWindow(FixedWindow(10), per_second=4, begin=11.0, end=13.0)
    # In a second that two clients fill, whoever comes when it is full is refused.
    evenly = [10 + number / 10 for number in range(40)]
    granted = admitted(counted, [each + 0.01 for each in evenly])
    assert [sum(int(moment) == second for moment in granted) for second in (10, 11, 12, 13)] == [10, 7, 7, 9]


def test_the_reported_wait_includes_the_calls_of_another_client() -> None:
    counted = ContendedWindow(SlidingWindow(2), per_second=1, begin=10.5, end=20.0)
    assert counted.admit(10.0)
    assert counted.wait(10.25) == 0
    assert counted.wait(10.75) == pytest.approx(0.25)
