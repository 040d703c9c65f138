"""The state of a rollout: an interval has a state only if all shares in it have it."""

from datetime import UTC, datetime, timedelta
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from auditor.analysis.rollout_states import DEFAULT_THRESHOLDS, TargetShare, rollout_state
from tests.analysis.test_rollouts import state_of

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)

PERMILLE = st.integers(0, 1000)


def share(day: float, one: int, other: int) -> TargetShare:
    low, high = sorted((one, other))
    return TargetShare(day, (low + high) / 2000, low / 1000, high / 1000)


def exact_state(points: list[tuple[float, Fraction]]) -> str:
    return state_of([(BEGIN + timedelta(days=day), value) for day, value in points])


@given(st.lists(PERMILLE, min_size=1, max_size=12), st.integers(1, 3))
def test_exact_shares_have_the_state_of_the_documentation(values: list[int], step: int) -> None:
    shares = [share(at * step, value, value) for at, value in enumerate(values)]
    expected = exact_state([(at * step, Fraction(value, 1000)) for at, value in enumerate(values)])
    assert rollout_state(shares, DEFAULT_THRESHOLDS)[0] == expected


@given(st.data(), st.lists(st.tuples(PERMILLE, st.integers(5, 200)), min_size=1, max_size=8))
def test_imprecise_shares_have_a_state_only_if_all_values_in_them_have_it(
    data: st.DataObject, intervals: list[tuple[int, int]]
) -> None:
    shares = [share(at, low, min(1000, low + width)) for at, (low, width) in enumerate(intervals)]
    if any(each.high - each.low < 0.005 for each in shares):
        return
    state, reason = rollout_state(shares, DEFAULT_THRESHOLDS)
    values = [data.draw(st.integers(low, min(1000, low + width))) for low, width in intervals]
    exact = exact_state([(at, Fraction(value, 1000)) for at, value in enumerate(values)])
    assert state in {"unknown", exact}
    assert (state == "unknown") == (reason is not None)


@given(st.lists(PERMILLE, min_size=2, max_size=10), st.lists(st.booleans(), min_size=10, max_size=10), PERMILLE)
def test_an_imprecise_share_that_proves_no_peak_changes_no_state_after_it(
    values: list[int], places: list[bool], odd: int
) -> None:
    shares = [share(at, value, value) for at, value in enumerate(values)]
    with_odd = [
        each
        for at, exact in enumerate(shares)
        for each in (
            [share(at - 0.5, odd, odd + 100)] if places[at] and odd <= max(values[:at], default=0) + 100 else []
        )
        + [exact]
    ]
    assert rollout_state(with_odd, DEFAULT_THRESHOLDS) == rollout_state(shares, DEFAULT_THRESHOLDS)


def test_a_rollout_whose_peak_is_known_from_imprecise_runs_is_rolled_back() -> None:
    rising = [share(at, 10 * at, 10 * at) for at in range(4)] + [share(4, 300, 310), share(5, 770, 780)]
    for fallen in (share(6, 50, 50), share(6, 45, 55)):
        assert rollout_state([*rising, fallen], DEFAULT_THRESHOLDS) == ("rolled_back", None)
