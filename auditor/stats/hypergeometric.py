"""Exact limits for the number of marked devices in a finite population, from a simple random sample.

Clopper & Pearson (1934) test every possible number of marked devices: each gives a probability for a sample as extreme
as the observed one. Numbers that are not unlikely form the interval. They did this for infinite populations. For a
fleet the distribution is hypergeometric, as in Buonaccorsi (1987), whose set this is: for every number in it both
tails are above 2.5%.
"""

from functools import lru_cache
from math import exp, lgamma

TAIL = 0.025
"""Probability outside each limit of a 95% interval."""

_NEGLIGIBLE = 1e-12

_UNLIKELY_BELOW = TAIL - 1e-9
"""A tail of exactly 2.5% is not too small, whichever way its last bit was rounded."""


def cumulative_probability(observed: int, *, devices: int, marked: int, sampled: int) -> float:
    """Return the probability that a sample of some devices holds at most ``observed`` of the ``marked`` devices.

    The terms are added from ``observed`` away from the middle of the distribution, where they fall fast.
    """
    if observed >= min(marked, sampled):
        return 1.0
    if observed < max(0, sampled - devices + marked):
        return 0.0
    if observed * devices < sampled * marked:
        return _lower_tail(observed, devices, marked, sampled)
    # The upper tail is the lower tail of the unmarked devices.
    return 1.0 - _lower_tail(sampled - observed - 1, devices, devices - marked, sampled)


@lru_cache(maxsize=65_536)
def lower_limit(devices: int, sampled: int, observed: int) -> int:
    """Return the smallest number of marked devices at which ``observed`` or more in the sample is not unlikely."""
    if observed == 0:
        return 0
    low, high = observed, min(devices - sampled + observed, -(-observed * devices // sampled))
    while low < high:
        middle = (low + high) // 2
        fewer = cumulative_probability(observed - 1, devices=devices, marked=middle, sampled=sampled)
        if 1.0 - fewer >= _UNLIKELY_BELOW:
            high = middle
        else:
            low = middle + 1
    return low


def upper_limit(devices: int, sampled: int, observed: int) -> int:
    """Return the largest number of marked devices at which ``observed`` or fewer in the sample is not unlikely."""
    return devices - lower_limit(devices, sampled, sampled - observed)


def _lower_tail(observed: int, devices: int, marked: int, sampled: int) -> float:
    """Return the sum of the terms up to ``observed``, which must be below the mean."""
    rest = devices - marked - sampled
    if observed < max(0, -rest):
        return 0.0
    term = exp(
        _log_binomial(marked, observed)
        + _log_binomial(devices - marked, sampled - observed)
        - _log_binomial(devices, sampled)
    )
    total = 0.0
    while term > total * _NEGLIGIBLE:
        total += term
        term *= observed * (rest + observed) / ((marked - observed + 1) * (sampled - observed + 1))
        observed -= 1
    return total


def _log_binomial(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
