"""How far the shares that a sample shows may be from those of the fleet: intervals of 95%.

The sample is random, without replacement, and stratified: the strata are products, whose sizes are known, and within a
product every device is as likely to be in the sample as another. Of a product the interval is

- exact (Clopper & Pearson 1934, for finite populations Buonaccorsi 1987, see ``auditor.inventory.hypergeometric``), or,
- where many devices were seen with the version and many without, Wilson's (1927), with his sample size corrected for
  the finite population, which is the quicker one and by then as good.

Over products the share is the combined ratio estimate with its linearized variance (Cochran 1977, chapters 5A and 6),
and the interval is drawn in three steps:

1. Each sampled device stands off its product's mean, above if it runs the version and below if it runs another one.
   What stands above is taken for a Poisson count of a certain weight with the same variance and skewness, and so is
   what stands below. That is right for rare versions, and becomes the normal distribution for others.
2. Their limits are those of Fay & Feuer (1997): towards more, one device counts as added, in the product where it would
   weigh most. So a product in which all run the version, or none does, is not taken for certain, and still no more than
   one device is added to all products together. The quantiles are those of Wilson & Hilferty (1931).
3. Both are joined as Newcombe (1998) joins intervals, whose squared halves add up (Zou & Donner 2008).

Korn & Graubard (1998) hold a Clopper-Pearson interval of an effective sample size instead. It has one weight for all
that was not seen, the mean one, which is too little where products were sampled at different rates.

Products of which less than two devices were sampled tell nothing of their variance and are joined (Cochran 1977,
section 5A.12).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot, log, sqrt

from auditor.inventory.hypergeometric import TAIL, fewest, most

Z = 1.959963984540054
"""The quantile of the normal distribution that leaves ``TAIL`` above it."""

MANY_SAMPLED = 400
MANY_EITHER_WAY = 20
"""From so many sampled devices on, and so many of them with and so many without the version, Wilson's is as good."""

MOST_UNSEEN = -log(TAIL)
"""How many devices of a weight of one may be there and not be seen; 3.7, as the rule of three has it for one tail."""

_SYMMETRIC = 1e-12
_VARIANCE_TAKES = 2
_FIELDS = ("devices", "sampled", "reporting", "running")


@dataclass(frozen=True, slots=True)
class Interval:
    """A share, or a change of one, and the limits between which the fleet's is, 95 times of a hundred."""

    share: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of its width: what stands behind a plus-minus."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class Stratum:
    """A product, as far as one version of one module goes.

    Attributes:
        devices: how many the product has.
        sampled: how many of them are in the sample, and answered.
        reporting: how many of those report the module.
        running: how many of those run the version.
    """

    devices: int
    sampled: int
    reporting: int
    running: int

    def __post_init__(self) -> None:
        if not 0 <= self.running <= self.reporting <= self.sampled <= self.devices:
            raise ValueError(f"these numbers cannot be parts of each other: {self}")

    @property
    def read_whole(self) -> bool:
        """Whether all its devices were sampled: then nothing about it is uncertain."""
        return self.sampled == self.devices


def share_within(devices: int, sampled: int, reporting: int, running: int) -> Interval:
    """A version's share of the devices of one product that report its module.

    Raises:
        ValueError: no sampled device reports it.
    """
    product = Stratum(devices, sampled, reporting, running)
    if not reporting:
        raise ValueError("no share of no devices is known")
    share, others = running / reporting, reporting - running
    if product.read_whole:
        return Interval(share, share, share)
    if reporting < MANY_SAMPLED or min(running, others) < MANY_EITHER_WAY:
        # How many devices report the module is not known either. At the most that are likely, limits are the widest.
        return _exact(most(devices, sampled, reporting), reporting, running)
    low, high = _wilson(share, reporting * (devices - 1) / (devices - sampled))
    at_most = devices - sampled + reporting
    return Interval(share, max(low, running / at_most), min(high, 1 - others / at_most))


def unseen(devices: int, sampled: int) -> float:
    """The most that is likely to be the share of what no sampled device shows: ``share_within`` of none."""
    return most(devices, sampled, 0) / devices


def error_rate(population: int, checked: int, wrong: int) -> Interval:
    """The share of wrong ones in a population, of which some were checked, drawn at random; exact.

    Raises:
        ValueError: none were checked.
    """
    if not 0 <= wrong <= checked <= population or not checked:
        raise ValueError(f"{wrong} wrong of {checked} checked of {population} tell no rate")
    return _exact(population, checked, wrong)


def difference(old: Interval, new: Interval) -> Interval:
    """How much a share changed: the hybrid interval of Newcombe (1998) from those of two independent samples.

    Samples that have devices in common tell more than this makes of them.
    """
    change = new.share - old.share
    return Interval(
        change,
        change - hypot(new.share - new.low, old.high - old.share),
        change + hypot(new.high - new.share, old.share - old.low),
    )


def is_noise(old: Interval, new: Interval) -> bool:
    """Whether two shares may differ only because the samples do."""
    changed = difference(old, new)
    return changed.low <= 0 <= changed.high


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


def _exact(devices: int, sampled: int, shown: int) -> Interval:
    share = shown / sampled
    return Interval(share, fewest(devices, sampled, shown) / devices, most(devices, sampled, shown) / devices)


def _wilson(share: float, size: float) -> tuple[float, float]:
    spread = Z * Z / size
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * sqrt((share * (1 - share) + spread / 4) / size)
    return middle - half, middle + half
