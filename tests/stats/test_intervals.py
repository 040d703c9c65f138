"""Intervals of sampled shares: agreement with scipy, certain cases, and coverage."""

from itertools import product
from math import sqrt

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import stats

from auditor.stats.hypergeometric import TAIL, cumulative_probability, lower_limit, upper_limit
from auditor.stats.intervals import (
    Interval,
    Stratum,
    difference_interval,
    error_rate,
    share_interval,
    unseen_share_limit,
)
from auditor.stats.ratio_estimator import combined_share_interval, combined_unseen_share_limit

ROUNDING = 1e-7


@st.composite
def strata(draw: st.DrawFn, *, sampled: int = 0, all_report: bool = False) -> Stratum:
    devices = draw(st.integers(max(1, sampled), 3000))
    taken = draw(st.integers(min(sampled, devices), devices))
    reporting = taken if all_report else draw(st.integers(0, taken))
    return Stratum(devices, taken, reporting, draw(st.integers(0, reporting)))


def mirrored(stratum: Stratum) -> Stratum:
    """Return the same sample with the counts of all other versions."""
    return Stratum(stratum.devices, stratum.answered, stratum.with_module, stratum.with_module - stratum.on_version)


@given(strata(sampled=1, all_report=True), st.data())
def test_cumulative_probability_equals_scipy(stratum: Stratum, data: st.DataObject) -> None:
    marked = data.draw(st.integers(0, stratum.devices))
    interval = cumulative_probability(
        stratum.on_version, devices=stratum.devices, marked=marked, sampled=stratum.answered
    )
    assert interval == pytest.approx(
        stats.hypergeom.cdf(stratum.on_version, stratum.devices, marked, stratum.answered), rel=1e-6, abs=1e-9
    )


@given(strata(sampled=1, all_report=True))
@example(Stratum(5_000_000, 2_000, 2_000, 3))
@example(Stratum(40, 39, 39, 39))
@example(Stratum(40, 1, 1, 0))  # 39 of 40 leave a tail of 2.5% to the digit
def test_limits_include_exactly_the_numbers_that_are_not_unlikely(stratum: Stratum) -> None:
    def tails(marked: int) -> float:
        law = stats.hypergeom(stratum.devices, marked, stratum.answered)
        return float(min(law.sf(stratum.on_version - 1), law.cdf(stratum.on_version)))

    low = lower_limit(stratum.devices, stratum.answered, stratum.on_version)
    high = upper_limit(stratum.devices, stratum.answered, stratum.on_version)
    assert stratum.on_version <= low <= high <= stratum.devices - stratum.answered + stratum.on_version
    assert tails(low) > TAIL - ROUNDING
    assert tails(high) > TAIL - ROUNDING
    assert low == stratum.on_version or tails(low - 1) < TAIL + ROUNDING
    assert high == stratum.devices - stratum.answered + stratum.on_version or tails(high + 1) < TAIL + ROUNDING


@pytest.mark.parametrize(("reporting", "running"), [(30, 0), (30, 7), (399, 200), (5000, 3), (5000, 4990)])
def test_few_sampled_devices_of_an_infinite_fleet_give_the_clopper_pearson_interval(
    reporting: int, running: int
) -> None:
    expected = stats.binomtest(running, reporting).proportion_ci(method="exact")
    interval = share_interval(10**9, reporting, reporting, running)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize(("reporting", "running"), [(400, 20), (5000, 4000)])
def test_many_sampled_devices_of_an_infinite_fleet_give_the_wilson_interval(reporting: int, running: int) -> None:
    expected = stats.binomtest(running, reporting).proportion_ci(method="wilson")
    interval = share_interval(10**9, reporting, reporting, running)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-4)


@pytest.mark.parametrize(("devices", "sampled"), [(40, 10), (150, 100), (150, 149), (1000, 40)])
def test_intervals_of_one_product_cover_every_true_share(devices: int, sampled: int) -> None:
    intervals = [share_interval(devices, sampled, sampled, running) for running in range(sampled + 1)]
    for marked in range(devices + 1):
        chances = stats.hypergeom.pmf(range(sampled + 1), devices, marked, sampled)
        covered = [each.low <= marked / devices <= each.high for each in intervals]
        assert sum(chances[covered]) >= 0.95


@pytest.mark.parametrize("reports", [4, 8, 25, 60])
def test_intervals_cover_versions_of_modules_that_few_devices_report(reports: int) -> None:
    devices, sampled = 80, 30
    for marked in range(1, reports + 1):
        covered, seen = 0.0, 0.0
        for reporting in range(1, min(reports, sampled) + 1):
            chance = float(stats.hypergeom.pmf(reporting, devices, reports, sampled))
            seen += chance
            for running, of_those in enumerate(stats.hypergeom.pmf(range(reporting + 1), reports, marked, reporting)):
                interval = share_interval(devices, sampled, reporting, running)
                covered += chance * float(of_those) * (interval.low <= marked / reports <= interval.high)
        assert covered / seen >= 0.95


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.1, 0.9), (0.995, 0.0), (0.995, 0.005), (0.0, 0.02), (0.98, 1.0)])
@pytest.mark.parametrize("sizes", [((30_000, 300), (300, 30)), ((4000, 100), (1000, 100)), ((200, 150), (200, 50))])
def test_intervals_of_two_products_cover_true_shares_and_are_not_too_wide(
    sizes: tuple[tuple[int, int], ...], shares: tuple[float, float]
) -> None:
    marked = [round(devices * share) for (devices, _), share in zip(sizes, shares, strict=True)]
    laws = [
        [(running, float(chance)) for running in range(sampled + 1) if (chance := law.pmf(running)) > 1e-7]
        for law, (_, sampled) in (
            (stats.hypergeom(devices, true, sampled), (devices, sampled))
            for (devices, sampled), true in zip(sizes, marked, strict=True)
        )
    ]
    true = sum(marked) / sum(devices for devices, _ in sizes)
    covered = 0.0
    for seen in product(*laws):
        interval = combined_share_interval(
            [Stratum(size, taken, taken, running) for (size, taken), (running, _) in zip(sizes, seen, strict=True)]
        )
        if interval.low <= true <= interval.high:
            covered += seen[0][1] * seen[1][1]
    assert covered >= 0.93
    if all(0.05 <= share <= 0.95 for share in shares):
        assert covered <= 0.98


@given(st.lists(strata(sampled=1), min_size=1, max_size=6))
def test_share_is_within_its_limits_and_limits_are_shares(sample: list[Stratum]) -> None:
    assume(any(each.with_module for each in sample))
    interval = combined_share_interval(sample)
    assert 0 <= interval.low <= interval.share + 1e-12
    assert interval.share - 1e-12 <= interval.high <= 1 + 1e-12
    assert interval.half_width == (interval.high - interval.low) / 2


@given(st.lists(strata(), min_size=1, max_size=6))
def test_interval_of_all_other_versions_is_mirrored(sample: list[Stratum]) -> None:
    assume(any(each.with_module for each in sample))
    interval, other = combined_share_interval(sample), combined_share_interval([mirrored(each) for each in sample])
    assert (interval.low, interval.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-9)


@given(st.lists(strata(sampled=2), min_size=2, max_size=6))
def test_order_of_products_and_products_without_the_module_change_nothing(sample: list[Stratum]) -> None:
    assume(any(each.with_module for each in sample))
    interval, other = (
        combined_share_interval(sample),
        combined_share_interval([*reversed(sample), Stratum(500, 20, 0, 0), Stratum(0, 0, 0, 0)]),
    )
    assert (other.low, other.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


@given(st.lists(strata(sampled=2, all_report=True), min_size=2, max_size=6))
def test_limits_do_not_contradict_the_sampled_devices(sample: list[Stratum]) -> None:
    interval, devices = combined_share_interval(sample), sum(each.devices for each in sample)
    assert interval.low * devices >= sum(each.on_version for each in sample) - 1e-6
    assert (1 - interval.high) * devices >= sum(each.with_module - each.on_version for each in sample) - 1e-6


@pytest.mark.parametrize(
    "sample",
    [
        [Stratum(90_000, 3000, 3000, 1200), Stratum(20_000, 2000, 2000, 1500), Stratum(5000, 2500, 2500, 1000)],
        [*[Stratum(1000, 2, 2, 1)] * 2000, *[Stratum(500, 3, 3, 1)] * 2000],
    ],
    ids=["large products", "many products"],
)
def test_many_sampled_devices_give_the_interval_of_the_linearized_variance(sample: list[Stratum]) -> None:
    devices = sum(each.devices for each in sample)
    variance = sum(
        each.devices**2 * (1 - each.answered / each.devices) * p * (1 - p) / (each.answered - 1)
        for each in sample
        for p in (each.on_version / each.answered,)
    )
    interval = combined_share_interval(sample)
    assert interval.half_width == pytest.approx(1.96 * sqrt(variance) / devices, rel=0.02)
    assert interval.share == pytest.approx(
        sum(each.devices * each.on_version / each.answered for each in sample) / devices
    )


def test_rare_version_in_two_products_sampled_at_one_rate_has_a_poisson_interval() -> None:
    interval = combined_share_interval([Stratum(900_000, 9000, 9000, 3), Stratum(100_000, 1000, 1000, 2)])
    limits = stats.gamma.ppf([TAIL, 1 - TAIL], [5, 6]) / 10_000
    assert (interval.low, interval.high) == pytest.approx(tuple(limits), rel=0.02)


def test_fully_sampled_product_is_certain() -> None:
    assert share_interval(250, 250, 200, 50) == Interval(0.25, 0.25, 0.25)
    assert combined_share_interval([Stratum(250, 250, 200, 50), Stratum(750, 750, 600, 150)]) == Interval(
        0.25, 0.25, 0.25
    )
    interval = combined_share_interval([Stratum(1000, 1000, 1000, 600), Stratum(9000, 300, 300, 0)])
    assert interval.low == interval.share == 0.06
    assert interval.high == pytest.approx(0.06 + 0.9 * unseen_share_limit(9000, 300), rel=0.02)


def test_sampled_products_with_all_or_no_devices_on_the_version_are_uncertain() -> None:
    interval = combined_share_interval([Stratum(10_000, 200, 200, 200), Stratum(10_000, 200, 200, 0)])
    assert interval.share == 0.5
    assert interval.low < 0.5 - 100 / 20_000
    assert interval.high > 0.5 + 100 / 20_000


def test_sample_of_nearly_all_devices_has_a_narrow_interval() -> None:
    interval = share_interval(1000, 600, 600, 240)
    assert interval.half_width == pytest.approx(1.96 * sqrt(0.4 * 0.6 * 0.4 / 600), rel=0.01)
    interval = share_interval(1000, 998, 998, 500)
    assert 0.5 <= interval.low < interval.high <= 0.502
    interval = combined_share_interval([Stratum(3000, 2400, 2400, 24), Stratum(1000, 800, 800, 8)])
    exact = share_interval(4000, 3200, 3200, 32)
    assert (interval.low, interval.high) == pytest.approx((exact.low, exact.high), rel=0.05)


def test_module_of_one_product_has_the_interval_of_that_product() -> None:
    assert combined_share_interval([Stratum(9000, 300, 0, 0), Stratum(500, 60, 30, 4)]) == share_interval(
        500, 60, 30, 4
    )


def test_unseen_share_is_limited_by_the_product_size() -> None:
    sample = [Stratum(300, 2, 2, 0), Stratum(1_000_000, 500_000, 500_000, 0)]
    assert 290 < combined_unseen_share_limit(sample) * 1_000_300 < 305


def test_product_with_two_sampled_devices_by_luck_is_combined_with_products_without_any() -> None:
    lucky = [Stratum(100, number % 3, number % 3, number % 3 // 2) for number in range(300)]
    interval = combined_share_interval([*lucky, Stratum(60_000, 600, 600, 300)])
    joined = combined_share_interval([Stratum(30_000, 300, 300, 100), Stratum(60_000, 600, 600, 300)])
    assert (interval.low, interval.share, interval.high) == pytest.approx((joined.low, joined.share, joined.high))


def test_products_with_too_few_sampled_devices_for_a_variance_are_combined() -> None:
    small = [Stratum(100, number % 2, number % 2, number % 4 // 3) for number in range(400)]
    interval = combined_share_interval([*small, Stratum(60_000, 300, 300, 150)])
    joined = combined_share_interval([Stratum(40_000, 200, 200, 100), Stratum(60_000, 300, 300, 150)])
    assert (interval.low, interval.share, interval.high) == pytest.approx((joined.low, joined.share, joined.high))


def test_products_with_one_sampled_device_each_keep_their_weight() -> None:
    interval = combined_share_interval(
        [*(Stratum(100, 1, 1, 1) for _ in range(30)), *(Stratum(50, 1, 1, 0) for _ in range(30))]
    )
    assert interval.share == pytest.approx(2 / 3)
    assert 0.1 < interval.half_width < 0.2


def test_unseen_share_is_the_upper_limit_of_a_version_without_sampled_devices() -> None:
    assert (
        unseen_share_limit(100_000, 1000)
        == share_interval(100_000, 1000, 1000, 0).high
        == pytest.approx(0.0037, rel=0.02)
    )
    assert unseen_share_limit(50, 50) == 0
    assert unseen_share_limit(50, 0) == 1
    one_rate = [Stratum(90_000, 900, 900, 5), Stratum(10_000, 100, 100, 0)]
    assert combined_unseen_share_limit(one_rate) == pytest.approx(unseen_share_limit(100_000, 1000), rel=0.02)
    assert combined_unseen_share_limit(
        [Stratum(90_000, 450, 450, 0), Stratum(10_000, 550, 550, 0)]
    ) > 1.5 * unseen_share_limit(100_000, 1000)


@given(st.integers(1, 5000), st.data())
def test_unseen_share_falls_with_the_sample_size(devices: int, data: st.DataObject) -> None:
    sampled = data.draw(st.integers(0, devices - 1))
    assert unseen_share_limit(devices, sampled + 1) <= unseen_share_limit(devices, sampled)


def test_error_rate_of_a_recheck() -> None:
    assert error_rate(1000, 1000, 10) == Interval(0.01, 0.01, 0.01)
    interval = error_rate(1_000_000, 2000, 0)
    assert (interval.low, interval.share) == (0, 0)
    assert interval.high == pytest.approx(0.00184, rel=0.01)


@given(strata(sampled=1, all_report=True), strata(sampled=1, all_report=True))
def test_change_and_its_reverse_have_mirrored_intervals(one: Stratum, other: Stratum) -> None:
    old, new = (share_interval(each.devices, each.answered, each.answered, each.on_version) for each in (one, other))
    there, back = difference_interval(old, new), difference_interval(new, old)
    assert (there.low, there.share, there.high) == pytest.approx((-back.high, -back.share, -back.low))
    assert there.low <= there.share <= there.high


def test_change_has_newcombe_interval() -> None:
    # The first example of Newcombe (1998), method 10: 56 of 70 and 48 of 80.
    old, new = (
        Interval(running / devices, float(limits.low), float(limits.high))
        for running, devices in ((48, 80), (56, 70))
        for limits in (stats.binomtest(running, devices).proportion_ci(method="wilson"),)
    )
    interval = difference_interval(old, new)
    assert (interval.low, interval.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert interval.low > 0


def test_change_against_a_complete_fleet_has_the_uncertainty_of_the_sample() -> None:
    complete, sample = Interval(0.5, 0.5, 0.5), Interval(0.55, 0.49, 0.61)
    interval = difference_interval(complete, sample)
    assert (interval.low, interval.high) == pytest.approx((-0.01, 0.11))
    assert difference_interval(complete, complete) == Interval(0, 0, 0)


@pytest.mark.parametrize("numbers", [(10, 11, 5, 5), (10, 5, 6, 5), (10, 5, 5, 6), (10, 5, 5, -1)], ids=str)
def test_contradictory_counts_are_rejected(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="must not increase"):
        share_interval(*numbers)


def test_shares_without_sampled_devices_are_rejected() -> None:
    with pytest.raises(ValueError, match="have no share"):
        share_interval(10, 5, 0, 0)
    with pytest.raises(ValueError, match="have no share"):
        combined_share_interval([Stratum(10, 0, 0, 0), Stratum(20, 3, 0, 0)])
    with pytest.raises(ValueError, match="have no share"):
        combined_share_interval([Stratum(10, 0, 0, 0)])
    with pytest.raises(ValueError, match="no error rate"):
        error_rate(10, 0, 0)
