"""What samples take of one fleet: one of so many devices, and one that takes as many as a precision does."""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace

from auditor.config.settings import Settings, part_of
from auditor.planning.capacity import Part, Taken, sum_of
from auditor.planning.models import StrategyPlan
from auditor.stats.intervals import Stratum, share_within
from auditor.stats.ratio_estimator import share_over

SAMPLE, PRECISION = 10_000, "1%"
"""What is compared where nobody says how large a sample is to be, or how good."""


def samples(settings: Settings, parts: list[Part]) -> Iterator[StrategyPlan]:
    """A sample of so many devices, and one that takes as many as a precision does, at worst."""
    devices = sum(part.devices for part in parts)
    if not devices:
        return
    wanted = SAMPLE if settings.sample is None else settings.sample
    if settings.sample is not None or wanted < devices:  # else it is every device
        drawn = _drawn(parts, wanted)
        yield _sampled(StrategyPlan("sample", sample=wanted), parts, drawn, _half(parts, drawn))
    precise = part_of(PRECISION if settings.precision is None else settings.precision)
    row = StrategyPlan("sample", precision=precise)
    if settings.precision_of == "product":
        each = [sum(_enough(size, precise) * products for size, products in part.sizes.items()) for part in parts]
        yield replace(_sampled(row, parts, each, None), half_width=round(_half(parts, each), 6))
        return
    number = bisect_left(range(devices), True, key=lambda some: _half(parts, _side_by_side(parts, some)) <= precise)
    drawn = _side_by_side(parts, min(devices, max(LEAST, number)))
    found = _sampled(row, parts, drawn, _half(parts, drawn))
    if settings.precision_of == "module":  # of a module that not all report, fewer devices tell
        found = replace(
            found, devices=None, calls=None, calls_least=found.calls, seconds=None, seconds_least=found.seconds
        )
    yield found


def _sampled(row: StrategyPlan, parts: list[Part], drawn: list[int], half: float | None) -> StrategyPlan:
    taken = sum_of(Taken(some, part.calls(some), part.seconds(some)) for part, some in zip(parts, drawn, strict=True))
    return replace(
        row,
        devices=taken.devices,
        calls=taken.calls,
        seconds=taken.seconds,
        oldest_nights=0,
        mean_nights=0.0,
        half_width=None if half is None else round(half, 6),
    )


def _drawn(parts: list[Part], wanted: int) -> list[int]:
    """How many devices of each account a sample has: by its devices, or by its quota where fleets are listed."""
    if any(part.account.listed for part in parts):
        return [min(part.devices, max(1, round(wanted * part.budgeted))) for part in parts]
    devices = sum(part.devices for part in parts)
    return [min(part.devices, max(1, round(wanted * part.devices / devices))) for part in parts]


def _side_by_side(parts: list[Part], number: int) -> list[int]:
    """How many devices of each account are asked when so many are in all, if each goes on at its pace to its end."""
    drawn = [0 for _ in parts]
    left = number
    while left > 0:
        open_ = [place for place, part in enumerate(parts) if drawn[place] < part.devices]
        if not open_:
            break
        weight = math.fsum(parts[place].budgeted for place in open_)
        before = left
        for place in open_:
            some = min(parts[place].devices - drawn[place], round(before * parts[place].budgeted / weight) or 1, left)
            drawn[place] += some
            left -= some
    return drawn


def _half(parts: list[Part], drawn: list[int]) -> float:
    """Half the interval of a share of 50%; infinite where nothing is drawn."""
    strata = [
        Stratum(part.devices, some, some, some // 2) for part, some in zip(parts, drawn, strict=True) if part.devices
    ]
    return share_over(strata).half if any(drawn) else math.inf


def _enough(devices: int, precise: float) -> int:
    """How many of so many devices are enough to know a share of 50% so well."""

    def half(some: int) -> float:
        return share_within(devices, some, some, some // 2).half

    return bisect_left(range(1, devices), True, key=lambda some: half(some) <= precise) + 1


LEAST, STEP, PRODUCT_STEP = 100, 1.02, 1.1
"""Devices that are answered before it is looked how well shares are known, and by what factor more between two looks.

A look now and then, for each look is a chance to end by luck; and one at all products takes longer.
"""
