"""Strategies by which a run asks a fleet, and how old answers get by the one that asks a part of it each night."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from auditor.model import SinceRule

Kind = Literal["full", "since", "rolling", "sample"]
"""``full``: every device. The others are as a run's ``choice`` has them."""


@dataclass(frozen=True, slots=True)
class StrategyPlan:
    """What one strategy takes in one run, and how old or how wrong what it tells may be. None: not known, or not told.

    Attributes:
        strategy: how devices are chosen.
        rule: when an answer is carried, for ``since``.
        sample: so many devices are drawn, for ``sample``.
        precision: how well shares are to be known, as a part, for ``sample``.
        budget: calls that there are, for ``rolling``.
        window: seconds that there are a night, for ``rolling``.
        devices: how many are asked.
        calls: for these, and for the states of devices.
        calls_least: what it takes at the least, where only that is known.
        seconds: how long that takes, for the longest account.
        seconds_least: likewise, at the least.
        oldest_nights: how many nights the oldest answer is old at most when a run ends, if each night has one run; 0:
            all are of this run.
        mean_nights: how many they are old on average at most.
        half_width: half the 95% confidence interval of a share of the fleet's devices at worst, which is that of 50%.
        recheck_rate, recheck_low, recheck_high: the part of the carried whose answers were other ones by now, with its
            95% confidence interval, as an earlier run measured.
        recheck_run: the name of that run's folder.
        run: the name of the run folder that tells how many devices are asked.
        fits: whether it fits into the window.
    """

    strategy: Kind
    rule: SinceRule | None = None
    sample: int | None = None
    precision: float | None = None
    budget: int | None = None
    window: float | None = None
    devices: int | None = None
    calls: int | None = None
    calls_least: int | None = None
    seconds: float | None = None
    seconds_least: float | None = None
    oldest_nights: int | None = None
    mean_nights: float | None = None
    half_width: float | None = None
    recheck_rate: float | None = None
    recheck_low: float | None = None
    recheck_high: float | None = None
    recheck_run: str | None = None
    run: str | None = None
    fits: bool | None = None


def ages(sizes: Mapping[int, int], asked: int, guaranteed: float) -> tuple[int, float] | None:
    """How many nights answers are old when a run ends, at most: the oldest, and on average; None: there is no bound.

    Each night a product of n devices has a turn of t for those that were not read for the longest time: its part of
    what is guaranteed, rounded up, or down where rounding up gives all products together more than there is. What was
    in a turn is the newest of its product, so turns of C = ceil(n / t) nights have every device: it was asked C - 1
    nights ago at most. At the end of a run k turns, those of the nights 0 to k - 1, are k * t devices that are younger
    than k nights. So n - k * t at most are k nights old or older, and these for k from 1 to C - 1 add up to all ages:
    on average n * (C - 1) - t * C * (C - 1) / 2 nights by n, which is (C - 1) / 2 where t divides n. What is not
    guaranteed can only make them younger.

    Args:
        sizes: how many products have how many devices.
        asked: devices asked a night, of all products together.
        guaranteed: the part, 0 to 1, that products have by their size.
    """
    devices = sum(size * products for size, products in sizes.items())
    if asked >= devices:
        return 0, 0.0
    parts = {size: guaranteed * (asked * size / devices) for size in sizes}
    enough = sum(math.ceil(parts[size]) * products for size, products in sizes.items()) <= asked
    oldest, total = 0, 0.0
    for size, products in sizes.items():
        turn = math.ceil(parts[size]) if enough else math.floor(parts[size])
        if not turn:
            return None
        nights = -(-size // turn)
        oldest = max(oldest, nights - 1)
        total += products * (size * (nights - 1) - turn * nights * (nights - 1) / 2)
    return oldest, total / devices
