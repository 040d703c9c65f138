"""Cost of samples: one of a given size, and one that is large enough for a given precision."""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace

from auditor.config.settings import Settings, parse_percentage
from auditor.planning.capacity import AccountLoad, total_cost
from auditor.planning.models import StrategyPlan
from auditor.stats.intervals import Stratum, share_interval
from auditor.stats.ratio_estimator import combined_share_interval

DEFAULT_SAMPLE_SIZE, DEFAULT_PRECISION = 10_000, "1%"
"""Sample that is compared if neither a size nor a precision is given."""

MIN_SAMPLED, CHECK_FACTOR, PRODUCT_CHECK_FACTOR = 100, 1.02, 1.1
"""Devices with a result before the first check of the precision, and the factor between two checks.

Checks are rare because each one is a chance to stop by luck. A check of every product takes longer.
"""


def sample_plans(settings: Settings, loads: list[AccountLoad]) -> Iterator[StrategyPlan]:
    """Yield the plan for a sample of a given size, and for one with a given precision, in the worst case."""
    devices = sum(load.devices for load in loads)
    if not devices:
        return
    size = DEFAULT_SAMPLE_SIZE if settings.sample_size is None else settings.sample_size
    if settings.sample_size is not None or size < devices:  # otherwise it is every device
        counts = _sample_per_account(loads, size)
        yield _cost_row(StrategyPlan("sample", sample_size=size), loads, counts, _half_width(loads, counts))
    precision = parse_percentage(DEFAULT_PRECISION if settings.precision is None else settings.precision)
    row = StrategyPlan("sample", precision=precision)
    if settings.precision_of == "product":
        counts = [
            sum(_devices_for_precision(size, precision) * products for size, products in load.products_by_size.items())
            for load in loads
        ]
        yield replace(_cost_row(row, loads, counts, None), half_width=round(_half_width(loads, counts), 6))
        return

    def precise(total: int) -> bool:
        return _half_width(loads, _reached_per_account(loads, total)) <= precision

    needed = bisect_left(range(devices), True, key=precise)
    counts = _reached_per_account(loads, min(devices, max(MIN_SAMPLED, needed)))
    found = _cost_row(row, loads, counts, _half_width(loads, counts))
    if settings.precision_of == "module":  # fewer devices report a module, so this is a lower bound
        found = replace(found, devices=None, calls=None, min_calls=found.calls, seconds=None, min_seconds=found.seconds)
    yield found


def _cost_row(row: StrategyPlan, loads: list[AccountLoad], counts: list[int], half_width: float | None) -> StrategyPlan:
    cost = total_cost(load.cost(count) for load, count in zip(loads, counts, strict=True))
    half_width = None if half_width is None else round(half_width, 6)
    return replace(row, **cost._asdict(), max_age_runs=0, mean_age_runs=0.0, half_width=half_width)


def _sample_per_account(loads: list[AccountLoad], size: int) -> list[int]:
    """Return the sampled devices of each account: by its devices, or by its quota if the platform lists a fleet."""
    if any(load.account.uses_discovery for load in loads):
        return [min(load.devices, max(1, round(size * load.quota_fraction))) for load in loads]
    devices = sum(load.devices for load in loads)
    return [min(load.devices, max(1, round(size * load.devices / devices))) for load in loads]


def _reached_per_account(loads: list[AccountLoad], total: int) -> list[int]:
    """Return the devices that each account has queried when all together have queried ``total``, each at its rate."""
    counts = [0 for _ in loads]
    left = total
    while left > 0:
        unfinished = [index for index, load in enumerate(loads) if counts[index] < load.devices]
        if not unfinished:
            break
        weight = math.fsum(loads[index].quota_fraction for index in unfinished)
        to_divide = left
        for index in unfinished:
            load = loads[index]
            count = min(load.devices - counts[index], round(to_divide * load.quota_fraction / weight) or 1, left)
            counts[index] += count
            left -= count
    return counts


def _half_width(loads: list[AccountLoad], counts: list[int]) -> float:
    """Return half the width of the interval of a share of 50%; infinity if no device is sampled."""
    strata = [
        Stratum(load.devices, count, count, count // 2)
        for load, count in zip(loads, counts, strict=True)
        if load.devices
    ]
    return combined_share_interval(strata).half_width if any(counts) else math.inf


def _devices_for_precision(devices: int, precision: float) -> int:
    """Return how many of a product's devices must be sampled for a share of 50% to be that precise."""

    def precise(count: int) -> bool:
        return share_interval(devices, count, count, count // 2).half_width <= precision

    return bisect_left(range(1, devices), True, key=precise) + 1
