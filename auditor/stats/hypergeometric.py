"""What a simple random sample tells of a finite population, exactly: tails of the hypergeometric distribution inverted.

Clopper & Pearson (1934) hold against each number of marked devices that the population could have the probability of a
sample as extreme as the one that was drawn, and keep those numbers that are not unlikely. They did it for endless
populations; for a fleet the distribution is the hypergeometric one, as in Buonaccorsi (1987), whose set this is: both
tails of every number that is kept are above 2.5%.
"""

from functools import lru_cache
from math import exp, lgamma

TAIL = 0.025
"""What may lie beyond either limit of an interval of 95%."""


_NEGLIGIBLE = 1e-12


_JUST_UNLIKELY = TAIL - 1e-9
"""A tail of 2.5% to the digit is none that is too small, whichever way the last bit was rounded."""


def at_most(shown: int, *, devices: int, marked: int, sampled: int) -> float:
    """The probability that no more than ``shown`` of ``sampled`` devices are of the ``marked`` ones among all.

    The terms are added from ``shown`` away from the middle of the distribution, where they fall fast.
    """
    if shown >= min(marked, sampled):
        return 1.0
    if shown < max(0, sampled - devices + marked):
        return 0.0
    if shown * devices < sampled * marked:
        return _tail(shown, devices, marked, sampled)
    # Seen from the unmarked devices, what lies above lies below.
    return 1.0 - _tail(sampled - shown - 1, devices, devices - marked, sampled)


@lru_cache(maxsize=65_536)
def fewest(devices: int, sampled: int, shown: int) -> int:
    """The smallest number of marked devices at which a sample that shows so many or more is not unlikely."""
    if shown == 0:
        return 0
    low, high = shown, min(devices - sampled + shown, -(-shown * devices // sampled))
    while low < high:
        middle = (low + high) // 2
        if 1.0 - at_most(shown - 1, devices=devices, marked=middle, sampled=sampled) >= _JUST_UNLIKELY:
            high = middle
        else:
            low = middle + 1
    return low


def most(devices: int, sampled: int, shown: int) -> int:
    """The largest number of marked devices at which a sample that shows so few or fewer is not unlikely."""
    return devices - fewest(devices, sampled, sampled - shown)


def _tail(shown: int, devices: int, marked: int, sampled: int) -> float:
    """The terms of ``shown`` and below, for a ``shown`` that is below the mean."""
    rest = devices - marked - sampled
    if shown < max(0, -rest):
        return 0.0
    term = exp(
        _log_choose(marked, shown) + _log_choose(devices - marked, sampled - shown) - _log_choose(devices, sampled)
    )
    total = 0.0
    while term > total * _NEGLIGIBLE:
        total += term
        term *= shown * (rest + shown) / ((marked - shown + 1) * (sampled - shown + 1))
        shown -= 1
    return total


def _log_choose(many: int, few: int) -> float:
    return lgamma(many + 1) - lgamma(few + 1) - lgamma(many - few + 1)
