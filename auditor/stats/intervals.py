"""95% intervals for shares of a fleet that are estimated from a sample.

The sample is random, without replacement, and stratified. The strata are products of known size. Within a product
every device has the same probability to be sampled. The interval for one product is

- exact (Clopper & Pearson 1934, for finite populations Buonaccorsi 1987, see ``auditor.stats.hypergeometric``), or
- Wilson's (1927), with the sample size corrected for the finite population, if many devices were seen with the version
  and many without. It is quicker, and as good at these numbers.

Over several products the share is the combined ratio estimate with its linearized variance (Cochran 1977, chapters 5A
and 6). Its interval takes three steps:

1. Each sampled device deviates from its product's mean: upwards if it runs the version, downwards if it runs another
   one. The upward deviations are modelled as a weighted Poisson count with the same variance and skewness, and so are
   the downward ones. This is right for rare versions, and approaches the normal distribution for others.
2. The limits of both sides are those of Fay & Feuer (1997): one more device counts as observed, in the product where it
   has the largest weight. So a product in which all devices run the version, or none, is not taken as certain. Still,
   one device at most is added over all products. The quantiles are those of Wilson & Hilferty (1931).
3. Both sides are combined as in Newcombe (1998): the squared half-widths add up (Zou & Donner 2008).

Korn & Graubard (1998) use a Clopper-Pearson interval of an effective sample size instead. It has one weight for
everything unobserved, the mean weight, which is too small if products were sampled at different rates.

Products with fewer than two sampled devices give no variance and are combined (Cochran 1977, section 5A.12).
"""

from dataclasses import dataclass
from math import hypot, sqrt

from auditor.stats.hypergeometric import lower_limit, upper_limit

Z = 1.959963984540054
"""Quantile of the normal distribution with the probability ``TAIL`` above it."""

MIN_WITH_MODULE_FOR_WILSON = 400
"""Sampled devices with the module from which Wilson's interval is used."""

MIN_EITHER_WAY_FOR_WILSON = 20
"""Sampled devices with the version, and with another one, from which Wilson's interval is used."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A share, or a change of one, with the limits of its 95% confidence interval.

    Attributes:
        share: the estimate.
        low: lower limit.
        high: upper limit.
    """

    share: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the width of the interval: the number after a plus-minus sign."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True)
class Stratum:
    """Sample counts of one product for one version of one module; each count is a part of the one before it.

    ``answered`` devices were sampled and have an answer, ``with_module`` report the module, and ``on_version`` run the
    version.
    """

    devices: int
    answered: int
    with_module: int
    on_version: int

    def __post_init__(self) -> None:
        if not 0 <= self.on_version <= self.with_module <= self.answered <= self.devices:
            raise ValueError(f"counts of a stratum must not increase from devices to on_version: {self}")

    @property
    def fully_sampled(self) -> bool:
        """Whether all its devices were sampled and answered, so that nothing about it is uncertain."""
        return self.answered == self.devices


def share_interval(devices: int, sampled: int, with_module: int, on_version: int) -> Interval:
    """Return a version's share of a product's devices that report its module; ValueError if no sampled one does."""
    product = Stratum(devices, sampled, with_module, on_version)
    if not with_module:
        raise ValueError("no sampled device reports the module, so its versions have no share")
    share, others = on_version / with_module, with_module - on_version
    if product.fully_sampled:
        return Interval(share, share, share)
    if with_module < MIN_WITH_MODULE_FOR_WILSON or min(on_version, others) < MIN_EITHER_WAY_FOR_WILSON:
        # How many devices report the module is uncertain, too. The limits are widest at the largest likely number.
        return _exact(upper_limit(devices, sampled, with_module), with_module, on_version)
    low, high = _wilson(share, with_module * (devices - 1) / (devices - sampled))
    max_with_module = devices - sampled + with_module
    return Interval(share, max(low, on_version / max_with_module), min(high, 1 - others / max_with_module))


def unseen_share_limit(devices: int, sampled: int) -> float:
    """Return the upper 97.5% limit (0 to 1) for the share of a version that no sampled device runs."""
    return upper_limit(devices, sampled, 0) / devices


def error_rate(population: int, checked: int, wrong: int) -> Interval:
    """Return the exact interval for the fraction of wrong items in a population, from a random check of some items.

    Raises:
        ValueError: no item was checked, or the counts contradict each other.
    """
    if not 0 <= wrong <= checked <= population or not checked:
        raise ValueError(f"no error rate follows from {wrong} wrong of {checked} checked of {population}")
    return _exact(population, checked, wrong)


def difference_interval(old: Interval, new: Interval) -> Interval:
    """Return the change of a share: the hybrid interval of Newcombe (1998) for two independent samples.

    For samples with devices in common the interval is wider than necessary.
    """
    change = new.share - old.share
    return Interval(
        change,
        change - hypot(new.share - new.low, old.high - old.share),
        change + hypot(new.high - new.share, old.share - old.low),
    )


def _exact(devices: int, sampled: int, observed: int) -> Interval:
    share = observed / sampled
    low, high = lower_limit(devices, sampled, observed), upper_limit(devices, sampled, observed)
    return Interval(share, low / devices, high / devices)


def _wilson(share: float, size: float) -> tuple[float, float]:
    spread = Z * Z / size
    middle = (share + spread / 2) / (1 + spread)
    half_width = Z / (1 + spread) * sqrt((share * (1 - share) + spread / 4) / size)
    return middle - half_width, middle + half_width
