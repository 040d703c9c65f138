"""Shares over many strata: the combined ratio estimator."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import hypot, log, sqrt

from auditor.stats.hypergeometric import TAIL
from auditor.stats.intervals import Interval, Stratum, Z, share_interval

MAX_UNSEEN_WEIGHT = -log(TAIL)
"""Total weight that may exist and stay unobserved: 3.7, the rule of three for one tail."""

_SYMMETRIC_BELOW = 1e-12
"""Skewness below which a sum is treated as normally distributed."""

_MIN_SAMPLED_FOR_VARIANCE = 2

_COUNTS = ("devices", "answered", "with_module", "on_version")


def combined_share_interval(strata: Sequence[Stratum]) -> Interval:
    """Return a version's share of the devices of several products that report its module.

    If every sampled device reports the module, this is the share of all devices. A product may be omitted if two or
    more of its devices were sampled and none of them reports the module.

    Raises:
        ValueError: no sampled device reports the module.
    """
    groups = _groups([each for each in strata if each.devices])
    reporting = [each for group in groups for each in group if each.with_module]
    if len(reporting) == 1:
        (only,) = reporting
        return share_interval(only.devices, only.answered, only.with_module, only.on_version)
    running = sum(each.devices * each.on_version / each.answered for each in reporting)
    domain = sum(each.devices * each.with_module / each.answered for each in reporting)
    if not domain:
        raise ValueError("no sampled device reports the module, so its versions have no share")
    share = running / domain
    above, below = _Side(), _Side()
    for group in groups:
        if not all(each.fully_sampled for each in group):
            _add_deviations(group, share, above, below)
    low = share - hypot(above.margin_down(), below.margin_up()) / domain
    high = share + hypot(above.margin_up(), below.margin_down()) / domain
    if all(each.with_module == each.answered for each in reporting):
        low = max(low, sum(each.on_version for each in reporting) / domain)
        high = min(high, 1 - sum(each.with_module - each.on_version for each in reporting) / domain)
    return Interval(share, min(share, max(low, 0.0)), max(share, min(high, 1.0)))


def combined_unseen_share_limit(strata: Sequence[Stratum]) -> float:
    """Return the upper 97.5% limit (0 to 1) of the share, over several products, of a version without sampled devices.

    All its devices may be in the product with the lowest sampling rate. If all products were sampled at one rate, the
    result equals ``unseen_share_limit`` of the sums.
    """
    return combined_share_interval([replace(each, on_version=0) for each in strata]).high


@dataclass(slots=True)
class _Side:
    """Deviations above the means, or below them, as cumulants of their sum for the sampled devices.

    ``one`` is the largest value that one more device could add to the sum; ``one_second`` and ``one_third`` are what
    that device would add to the cumulants.
    """

    second: float = 0.0
    third: float = 0.0
    one: float = 0.0
    one_second: float = 0.0
    one_third: float = 0.0

    def margin_down(self) -> float:
        """Return how far the sum may be below its estimate."""
        return -_quantile(self.second, self.third, -Z)

    def margin_up(self) -> float:
        """Return how far the sum may be above its estimate."""
        return self.one + _quantile(self.second + self.one_second, self.third + self.one_third, Z)


def _add_deviations(group: Sequence[Stratum], share: float, above: _Side, below: _Side) -> None:
    """Add the deviations of the sampled devices of one product, or of combined ones, from their mean.

    A device has the value 1 - share if it runs the version, -share if it reports another one, and 0 if it reports none.
    """
    sampled = sum(each.answered for each in group)
    mean = sum(each.on_version - share * each.with_module for each in group) / sampled
    freedom = sampled / max(1, sampled - 1)
    up, down = 1 - share - mean, share + mean
    for each in group:
        weight, left = each.devices / each.answered, 1 - each.answered / each.devices
        # Sampling without replacement gives the variance one correction factor and the skewness another. The latter is
        # negative if more than half of the devices are sampled; it is small then, and 0 is the safe value.
        variance, skewness = freedom * left * weight**2, freedom * left * max(0.0, 2 * left - 1) * weight**3
        others, silent = each.with_module - each.on_version, each.answered - each.with_module
        above.second += variance * each.on_version * up**2
        above.third += skewness * each.on_version * up**3
        below.second += variance * others * down**2
        below.third += skewness * others * down**3
        side = above if mean < 0 else below
        side.second += variance * silent * mean**2
        side.third += skewness * silent * abs(mean) ** 3
        if each.with_module:
            # The unobserved devices cannot exceed the devices that were not sampled.
            unit = min(weight, (each.devices - each.answered) / MAX_UNSEEN_WEIGHT)
            for side, deviation in ((above, unit * up), (below, unit * down)):
                if deviation > side.one:
                    side.one = deviation
                    side.one_second = left * deviation**2
                    side.one_third = left * max(0.0, 2 * left - 1) * deviation**3


def _quantile(second: float, third: float, z: float) -> float:
    """Return how far a sum may be from its mean: a gamma distribution by Wilson & Hilferty (1931)."""
    if third <= _SYMMETRIC_BELOW * second**1.5:
        return z * sqrt(second)
    weight = third / second
    count = second / weight**2
    root = max(0.0, 1 - 1 / (9 * count) + z / (3 * sqrt(count)))
    return weight * count * (root**3 - 1)


def _groups(strata: Sequence[Stratum]) -> list[list[Stratum]]:
    """Return groups of products: products with too few sampled devices for a variance are combined.

    If all of these were sampled at least once, each keeps its weight: the sample was designed to hold one of each.
    Otherwise chance decided, by size, which of them have a sampled device. Then they form one product together, with
    the products that had the same chance and have two sampled devices only by luck.
    """
    thin = [each for each in strata if each.answered < min(_MIN_SAMPLED_FOR_VARIANCE, each.devices)]
    rest = [each for each in strata if each.answered >= min(_MIN_SAMPLED_FOR_VARIANCE, each.devices)]
    if not thin:
        return [[each] for each in rest]
    if len(thin) > 1 and all(each.answered for each in thin):
        return [thin, *([each] for each in rest)]
    rate = sum(each.answered for each in strata) / sum(each.devices for each in strata)
    single = []
    for each in sorted(rest, key=lambda each: (each.fully_sampled, each.devices)):
        lucky = (
            each.answered == _MIN_SAMPLED_FOR_VARIANCE
            and not each.fully_sampled
            and each.devices * rate < _MIN_SAMPLED_FOR_VARIANCE
        )
        if lucky or sum(one.answered for one in thin) < _MIN_SAMPLED_FOR_VARIANCE:
            thin.append(each)
        else:
            single.append([each])
    return [[Stratum(*(sum(getattr(each, name) for each in thin) for name in _COUNTS))], *single]
