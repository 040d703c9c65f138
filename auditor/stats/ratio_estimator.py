"""Shares over many strata: the combined ratio estimator."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot, log, sqrt

from auditor.stats.hypergeometric import TAIL
from auditor.stats.intervals import Interval, Stratum, Z, share_within

MOST_UNSEEN = -log(TAIL)
"""How many devices of a weight of one may be there and not be seen; 3.7, as the rule of three has it for one tail."""


_SYMMETRIC = 1e-12


_VARIANCE_TAKES = 2


_FIELDS = ("devices", "sampled", "reporting", "running")


def share_over(strata: Sequence[Stratum]) -> Interval:
    """A version's share of the devices of several products that report its module.

    Where each sampled device reports it, it is the share of all devices. A product of which two devices or more were
    sampled, and none reports the module, may be left out.

    Raises:
        ValueError: no sampled device reports it.
    """
    groups = _groups([each for each in strata if each.devices])
    reporting = [each for group in groups for each in group if each.reporting]
    if len(reporting) == 1:
        (only,) = reporting
        return share_within(only.devices, only.sampled, only.reporting, only.running)
    running = sum(each.devices * each.running / each.sampled for each in reporting)
    domain = sum(each.devices * each.reporting / each.sampled for each in reporting)
    if not domain:
        raise ValueError("no share of no devices is known")
    share = running / domain
    above, below = _Side(), _Side()
    for group in groups:
        if not all(each.read_whole for each in group):
            _deviations(group, share, above, below)
    low = share - hypot(above.fewer(), below.more()) / domain
    high = share + hypot(above.more(), below.fewer()) / domain
    if all(each.reporting == each.sampled for each in reporting):
        low = max(low, sum(each.running for each in reporting) / domain)
        high = min(high, 1 - sum(each.reporting - each.running for each in reporting) / domain)
    return Interval(share, min(share, max(low, 0.0)), max(share, min(high, 1.0)))


def unseen_over(strata: Sequence[Stratum]) -> float:
    """The most that is likely to be the share, over products, of what no sampled device shows.

    It may all be in the product that was sampled the least. Where all were sampled at one rate, it is as ``unseen`` has
    it for the sums.

    Raises:
        ValueError: no sampled device reports the module.
    """
    return share_over([replace(each, running=0) for each in strata]).high


@dataclass(slots=True)
class _Side:
    """What stands above the means, or below them: the second and third cumulants of its sum.

    Attributes:
        second: of the devices that were sampled.
        third: likewise.
        one: what one more device would add to the sum at most.
        one_second: what it would add to the second cumulant.
        one_third: and to the third.
    """

    second: float = 0.0
    third: float = 0.0
    one: float = 0.0
    one_second: float = 0.0
    one_third: float = 0.0

    def fewer(self) -> float:
        """How much less than its estimate the sum may be."""
        return -_quantile(self.second, self.third, -Z)

    def more(self) -> float:
        """How much more than its estimate the sum may be."""
        return self.one + _quantile(self.second + self.one_second, self.third + self.one_third, Z)


def _deviations(group: Sequence[Stratum], share: float, above: _Side, below: _Side) -> None:
    """Adds how the sampled devices of one product, or of joined ones, stand off their mean.

    A device is 1 - share if it runs the version, -share if it reports another one, and 0 if it reports none.
    """
    sampled = sum(each.sampled for each in group)
    mean = sum(each.running - share * each.reporting for each in group) / sampled
    freedom = sampled / max(1, sampled - 1)
    up, down = 1 - share - mean, share + mean
    for each in group:
        weight, left = each.devices / each.sampled, 1 - each.sampled / each.devices
        # The variance of a sample without replacement has one such factor, its skewness another (it turns its sign when
        # more than half of the devices are sampled; then it is so small that none is the safe one).
        variance, skewness = freedom * left * weight**2, freedom * left * max(0.0, 2 * left - 1) * weight**3
        others, silent = each.reporting - each.running, each.sampled - each.reporting
        above.second += variance * each.running * up**2
        above.third += skewness * each.running * up**3
        below.second += variance * others * down**2
        below.third += skewness * others * down**3
        side = above if mean < 0 else below
        side.second += variance * silent * mean**2
        side.third += skewness * silent * abs(mean) ** 3
        if each.reporting:
            # No more than all the devices that were not sampled can be unseen.
            unit = min(weight, (each.devices - each.sampled) / MOST_UNSEEN)
            for side, deviation in ((above, unit * up), (below, unit * down)):
                if deviation > side.one:
                    side.one = deviation
                    side.one_second = left * deviation**2
                    side.one_third = left * max(0.0, 2 * left - 1) * deviation**3


def _quantile(second: float, third: float, z: float) -> float:
    """How far a sum may be from its mean: a gamma distribution of these cumulants, by Wilson & Hilferty (1931)."""
    if third <= _SYMMETRIC * second**1.5:
        return z * sqrt(second)
    weight = third / second
    count = second / weight**2
    root = max(0.0, 1 - 1 / (9 * count) + z / (3 * sqrt(count)))
    return weight * count * (root**3 - 1)


def _groups(strata: Sequence[Stratum]) -> list[list[Stratum]]:
    """Products alone, and joined those that tell nothing of their variance.

    Each of these keeps its weight if all were sampled at least once: the sample was meant to have one of each. Else it
    was chance that took a device of one and none of another, by their sizes, and together they are one product; with
    them those that had the same chance and have two devices in the sample by luck.
    """
    thin = [each for each in strata if each.sampled < min(_VARIANCE_TAKES, each.devices)]
    rest = [each for each in strata if each.sampled >= min(_VARIANCE_TAKES, each.devices)]
    if not thin:
        return [[each] for each in rest]
    if len(thin) > 1 and all(each.sampled for each in thin):
        return [thin, *([each] for each in rest)]
    rate = sum(each.sampled for each in strata) / sum(each.devices for each in strata)
    alone = []
    for each in sorted(rest, key=lambda each: (each.read_whole, each.devices)):
        lucky = each.sampled == _VARIANCE_TAKES and not each.read_whole and each.devices * rate < _VARIANCE_TAKES
        if lucky or sum(one.sampled for one in thin) < _VARIANCE_TAKES:
            thin.append(each)
        else:
            alone.append([each])
    return [[Stratum(*(sum(getattr(each, name) for each in thin) for name in _FIELDS))], *alone]
