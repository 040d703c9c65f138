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

from dataclasses import dataclass
from math import hypot, sqrt

from auditor.stats.hypergeometric import fewest, most

Z = 1.959963984540054
"""The quantile of the normal distribution that leaves ``TAIL`` above it."""


MANY_SAMPLED = 400


MANY_EITHER_WAY = 20
"""From so many sampled devices on, and so many of them with and so many without the version, Wilson's is as good."""


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


def _exact(devices: int, sampled: int, shown: int) -> Interval:
    share = shown / sampled
    return Interval(share, fewest(devices, sampled, shown) / devices, most(devices, sampled, shown) / devices)


def _wilson(share: float, size: float) -> tuple[float, float]:
    spread = Z * Z / size
    middle = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * sqrt((share * (1 - share) + spread / 4) / size)
    return middle - half, middle + half
