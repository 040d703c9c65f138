"""Intervals of sampled shares: the distributions as scipy has them, what is known for certain, and that they cover."""

from itertools import product
from math import sqrt

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy import stats

from auditor.stats.hypergeometric import TAIL, at_most, fewest, most
from auditor.stats.intervals import Interval, Stratum, difference, error_rate, is_noise, share_within, unseen
from auditor.stats.ratio_estimator import share_over, unseen_over

ROUNDING = 1e-7


@st.composite
def strata(draw: st.DrawFn, *, sampled: int = 0, all_report: bool = False) -> Stratum:
    devices = draw(st.integers(max(1, sampled), 3000))
    taken = draw(st.integers(min(sampled, devices), devices))
    reporting = taken if all_report else draw(st.integers(0, taken))
    return Stratum(devices, taken, reporting, draw(st.integers(0, reporting)))


def mirrored(stratum: Stratum) -> Stratum:
    """The same sample, asked for all other versions."""
    return Stratum(stratum.devices, stratum.sampled, stratum.reporting, stratum.reporting - stratum.running)


@given(strata(sampled=1, all_report=True), st.data())
def test_the_probability_of_a_sample_is_that_of_scipy(drawn: Stratum, data: st.DataObject) -> None:
    marked = data.draw(st.integers(0, drawn.devices))
    told = at_most(drawn.running, devices=drawn.devices, marked=marked, sampled=drawn.sampled)
    assert told == pytest.approx(
        stats.hypergeom.cdf(drawn.running, drawn.devices, marked, drawn.sampled), rel=1e-6, abs=1e-9
    )


@given(strata(sampled=1, all_report=True))
@example(Stratum(5_000_000, 2_000, 2_000, 3))
@example(Stratum(40, 39, 39, 39))
@example(Stratum(40, 1, 1, 0))  # 39 of 40 leave a tail of 2.5% to the digit
def test_exactly_the_numbers_that_are_not_unlikely_are_within_the_limits(drawn: Stratum) -> None:
    def tails(marked: int) -> float:
        law = stats.hypergeom(drawn.devices, marked, drawn.sampled)
        return float(min(law.sf(drawn.running - 1), law.cdf(drawn.running)))

    low = fewest(drawn.devices, drawn.sampled, drawn.running)
    high = most(drawn.devices, drawn.sampled, drawn.running)
    assert drawn.running <= low <= high <= drawn.devices - drawn.sampled + drawn.running
    assert tails(low) > TAIL - ROUNDING
    assert tails(high) > TAIL - ROUNDING
    assert low == drawn.running or tails(low - 1) < TAIL + ROUNDING
    assert high == drawn.devices - drawn.sampled + drawn.running or tails(high + 1) < TAIL + ROUNDING


@pytest.mark.parametrize(("reporting", "running"), [(30, 0), (30, 7), (399, 200), (5000, 3), (5000, 4990)])
def test_in_an_endless_fleet_few_devices_have_the_interval_of_clopper_and_pearson(reporting: int, running: int) -> None:
    judged = stats.binomtest(running, reporting).proportion_ci(method="exact")
    told = share_within(10**9, reporting, reporting, running)
    assert (told.low, told.high) == pytest.approx((judged.low, judged.high), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize(("reporting", "running"), [(400, 20), (5000, 4000)])
def test_in_an_endless_fleet_many_devices_have_the_interval_of_wilson(reporting: int, running: int) -> None:
    judged = stats.binomtest(running, reporting).proportion_ci(method="wilson")
    told = share_within(10**9, reporting, reporting, running)
    assert (told.low, told.high) == pytest.approx((judged.low, judged.high), rel=1e-4)


@pytest.mark.parametrize(("devices", "sampled"), [(40, 10), (150, 100), (150, 149), (1000, 40)])
def test_whatever_a_product_runs_is_covered(devices: int, sampled: int) -> None:
    intervals = [share_within(devices, sampled, sampled, running) for running in range(sampled + 1)]
    for marked in range(devices + 1):
        chances = stats.hypergeom.pmf(range(sampled + 1), devices, marked, sampled)
        covered = [each.low <= marked / devices <= each.high for each in intervals]
        assert sum(chances[covered]) >= 0.95


@pytest.mark.parametrize("reports", [4, 8, 25, 60])
def test_a_version_of_a_module_that_few_devices_report_is_covered(reports: int) -> None:
    devices, sampled = 80, 30
    for marked in range(1, reports + 1):
        covered, seen = 0.0, 0.0
        for reporting in range(1, min(reports, sampled) + 1):
            chance = float(stats.hypergeom.pmf(reporting, devices, reports, sampled))
            seen += chance
            for running, of_those in enumerate(stats.hypergeom.pmf(range(reporting + 1), reports, marked, reporting)):
                told = share_within(devices, sampled, reporting, running)
                covered += chance * float(of_those) * (told.low <= marked / reports <= told.high)
        assert covered / seen >= 0.95


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.1, 0.9), (0.995, 0.0), (0.995, 0.005), (0.0, 0.02), (0.98, 1.0)])
@pytest.mark.parametrize("sizes", [((30_000, 300), (300, 30)), ((4000, 100), (1000, 100)), ((200, 150), (200, 50))])
def test_whatever_two_products_run_is_covered_and_not_padded(
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
        told = share_over(
            [Stratum(size, taken, taken, running) for (size, taken), (running, _) in zip(sizes, seen, strict=True)]
        )
        if told.low <= true <= told.high:
            covered += seen[0][1] * seen[1][1]
    assert covered >= 0.93
    if all(0.05 <= share <= 0.95 for share in shares):
        assert covered <= 0.98


@given(st.lists(strata(sampled=1), min_size=1, max_size=6))
def test_the_share_lies_within_its_limits_and_these_are_shares(sample: list[Stratum]) -> None:
    assume(any(each.reporting for each in sample))
    told = share_over(sample)
    assert 0 <= told.low <= told.share + 1e-12
    assert told.share - 1e-12 <= told.high <= 1 + 1e-12
    assert told.half == (told.high - told.low) / 2


@given(st.lists(strata(), min_size=1, max_size=6))
def test_the_other_versions_have_the_interval_turned_round(sample: list[Stratum]) -> None:
    assume(any(each.reporting for each in sample))
    told, other = share_over(sample), share_over([mirrored(each) for each in sample])
    assert (told.low, told.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-9)


@given(st.lists(strata(sampled=2), min_size=2, max_size=6))
def test_neither_the_order_of_products_counts_nor_those_that_do_not_report(sample: list[Stratum]) -> None:
    assume(any(each.reporting for each in sample))
    told, other = share_over(sample), share_over([*reversed(sample), Stratum(500, 20, 0, 0), Stratum(0, 0, 0, 0)])
    assert (other.low, other.high) == pytest.approx((told.low, told.high), abs=1e-9)


@given(st.lists(strata(sampled=2, all_report=True), min_size=2, max_size=6))
def test_no_limit_contradicts_the_devices_that_were_seen(sample: list[Stratum]) -> None:
    told, devices = share_over(sample), sum(each.devices for each in sample)
    assert told.low * devices >= sum(each.running for each in sample) - 1e-6
    assert (1 - told.high) * devices >= sum(each.reporting - each.running for each in sample) - 1e-6


@pytest.mark.parametrize(
    "sample",
    [
        [Stratum(90_000, 3000, 3000, 1200), Stratum(20_000, 2000, 2000, 1500), Stratum(5000, 2500, 2500, 1000)],
        [*[Stratum(1000, 2, 2, 1)] * 2000, *[Stratum(500, 3, 3, 1)] * 2000],
    ],
    ids=["large products", "many products"],
)
def test_many_devices_have_the_interval_of_the_linearized_variance(sample: list[Stratum]) -> None:
    devices = sum(each.devices for each in sample)
    variance = sum(
        each.devices**2 * (1 - each.sampled / each.devices) * p * (1 - p) / (each.sampled - 1)
        for each in sample
        for p in (each.running / each.sampled,)
    )
    told = share_over(sample)
    assert told.half == pytest.approx(1.96 * sqrt(variance) / devices, rel=0.02)
    assert told.share == pytest.approx(sum(each.devices * each.running / each.sampled for each in sample) / devices)


def test_a_rare_version_of_two_products_sampled_at_one_rate_has_the_interval_of_a_poisson_count() -> None:
    told = share_over([Stratum(900_000, 9000, 9000, 3), Stratum(100_000, 1000, 1000, 2)])
    limits = stats.gamma.ppf([TAIL, 1 - TAIL], [5, 6]) / 10_000
    assert (told.low, told.high) == pytest.approx(tuple(limits), rel=0.02)


def test_a_product_that_was_read_whole_is_certain() -> None:
    assert share_within(250, 250, 200, 50) == Interval(0.25, 0.25, 0.25)
    assert share_over([Stratum(250, 250, 200, 50), Stratum(750, 750, 600, 150)]) == Interval(0.25, 0.25, 0.25)
    told = share_over([Stratum(1000, 1000, 1000, 600), Stratum(9000, 300, 300, 0)])
    assert told.low == told.share == 0.06
    assert told.high == pytest.approx(0.06 + 0.9 * unseen(9000, 300), rel=0.02)


def test_products_in_which_all_run_the_version_or_none_does_are_not_certain() -> None:
    told = share_over([Stratum(10_000, 200, 200, 200), Stratum(10_000, 200, 200, 0)])
    assert told.share == 0.5
    assert told.low < 0.5 - 100 / 20_000
    assert told.high > 0.5 + 100 / 20_000


def test_a_sample_of_most_devices_leaves_little_open() -> None:
    told = share_within(1000, 600, 600, 240)
    assert told.half == pytest.approx(1.96 * sqrt(0.4 * 0.6 * 0.4 / 600), rel=0.01)
    told = share_within(1000, 998, 998, 500)
    assert 0.5 <= told.low < told.high <= 0.502
    told = share_over([Stratum(3000, 2400, 2400, 24), Stratum(1000, 800, 800, 8)])
    exact = share_within(4000, 3200, 3200, 32)
    assert (told.low, told.high) == pytest.approx((exact.low, exact.high), rel=0.05)


def test_a_module_of_one_product_is_told_as_in_the_product() -> None:
    assert share_over([Stratum(9000, 300, 0, 0), Stratum(500, 60, 30, 4)]) == share_within(500, 60, 30, 4)


def test_no_more_is_unseen_than_a_product_has() -> None:
    sample = [Stratum(300, 2, 2, 0), Stratum(1_000_000, 500_000, 500_000, 0)]
    assert 290 < unseen_over(sample) * 1_000_300 < 305


def test_a_product_with_two_sampled_devices_by_luck_is_joined_with_those_that_had_none() -> None:
    lucky = [Stratum(100, number % 3, number % 3, number % 3 // 2) for number in range(300)]
    told = share_over([*lucky, Stratum(60_000, 600, 600, 300)])
    joined = share_over([Stratum(30_000, 300, 300, 100), Stratum(60_000, 600, 600, 300)])
    assert (told.low, told.share, told.high) == pytest.approx((joined.low, joined.share, joined.high))


def test_products_sampled_too_little_to_tell_a_variance_are_joined() -> None:
    small = [Stratum(100, number % 2, number % 2, number % 4 // 3) for number in range(400)]
    told = share_over([*small, Stratum(60_000, 300, 300, 150)])
    joined = share_over([Stratum(40_000, 200, 200, 100), Stratum(60_000, 300, 300, 150)])
    assert (told.low, told.share, told.high) == pytest.approx((joined.low, joined.share, joined.high))


def test_products_with_one_sampled_device_each_keep_their_weight() -> None:
    told = share_over([*(Stratum(100, 1, 1, 1) for _ in range(30)), *(Stratum(50, 1, 1, 0) for _ in range(30))])
    assert told.share == pytest.approx(2 / 3)
    assert 0.1 < told.half < 0.2


def test_what_is_unseen_is_what_a_version_that_none_runs_may_be() -> None:
    assert unseen(100_000, 1000) == share_within(100_000, 1000, 1000, 0).high == pytest.approx(0.0037, rel=0.02)
    assert unseen(50, 50) == 0
    assert unseen(50, 0) == 1
    one_rate = [Stratum(90_000, 900, 900, 5), Stratum(10_000, 100, 100, 0)]
    assert unseen_over(one_rate) == pytest.approx(unseen(100_000, 1000), rel=0.02)
    assert unseen_over([Stratum(90_000, 450, 450, 0), Stratum(10_000, 550, 550, 0)]) > 1.5 * unseen(100_000, 1000)


@given(st.integers(1, 5000), st.data())
def test_less_is_unseen_of_a_larger_sample(devices: int, data: st.DataObject) -> None:
    sampled = data.draw(st.integers(0, devices - 1))
    assert unseen(devices, sampled + 1) <= unseen(devices, sampled)


def test_a_recheck_tells_the_rate_of_errors() -> None:
    assert error_rate(1000, 1000, 10) == Interval(0.01, 0.01, 0.01)
    told = error_rate(1_000_000, 2000, 0)
    assert (told.low, told.share) == (0, 0)
    assert told.high == pytest.approx(0.00184, rel=0.01)


@given(strata(sampled=1, all_report=True), strata(sampled=1, all_report=True))
def test_a_change_and_its_reverse_are_told_alike(one: Stratum, other: Stratum) -> None:
    old, new = (share_within(each.devices, each.sampled, each.sampled, each.running) for each in (one, other))
    there, back = difference(old, new), difference(new, old)
    assert (there.low, there.share, there.high) == pytest.approx((-back.high, -back.share, -back.low))
    assert there.low <= there.share <= there.high
    assert is_noise(old, new) == is_noise(new, old)


def test_a_change_is_newcombe_s() -> None:
    # The first example of Newcombe (1998), method 10: 56 of 70 and 48 of 80.
    old, new = (
        Interval(running / devices, float(limits.low), float(limits.high))
        for running, devices in ((48, 80), (56, 70))
        for limits in (stats.binomtest(running, devices).proportion_ci(method="wilson"),)
    )
    told = difference(old, new)
    assert (told.low, told.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert not is_noise(old, new)


def test_against_a_fleet_read_whole_only_the_sample_is_uncertain() -> None:
    whole, sample = Interval(0.5, 0.5, 0.5), Interval(0.55, 0.49, 0.61)
    told = difference(whole, sample)
    assert (told.low, told.high) == pytest.approx((-0.01, 0.11))
    assert is_noise(whole, sample)
    assert is_noise(whole, whole)
    assert not is_noise(whole, Interval(0.501, 0.501, 0.501))


@pytest.mark.parametrize("numbers", [(10, 11, 5, 5), (10, 5, 6, 5), (10, 5, 5, 6), (10, 5, 5, -1)], ids=str)
def test_numbers_that_are_no_parts_of_each_other_are_refused(numbers: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="parts of each other"):
        share_within(*numbers)


def test_where_nothing_was_seen_no_share_is_made_up() -> None:
    with pytest.raises(ValueError, match="no share of no devices"):
        share_within(10, 5, 0, 0)
    with pytest.raises(ValueError, match="no share of no devices"):
        share_over([Stratum(10, 0, 0, 0), Stratum(20, 3, 0, 0)])
    with pytest.raises(ValueError, match="no share of no devices"):
        share_over([Stratum(10, 0, 0, 0)])
    with pytest.raises(ValueError, match="tell no rate"):
        error_rate(10, 0, 0)
