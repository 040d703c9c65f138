"""Comparison of all strategies for one fleet: calls, time, and the age or error of their results."""

import math
import sys
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from auditor.client.operations import BATCH_GET_DEVICE_STATE
from auditor.config.settings import Settings, parse_percentage
from auditor.engine.allocation import quota_fractions
from auditor.models import ChangeDetection
from auditor.planning.bulk_reading import bulk_reading, index_calls
from auditor.planning.capacity import AccountLoad, Cost, account_throughputs, all_or_none, max_calls_within, total_cost
from auditor.planning.measurements import CHANGE_DETECTION_RULES, CarryMeasurements, IncrementalStats, RunMeasurements
from auditor.planning.models import Plan, StrategyPlan
from auditor.planning.sample_size import sample_plans
from auditor.text.formatting import safe

DEFAULT_AGES = 1, 3, 7
"""Maximum ages, in runs, that are compared if neither a window nor a call budget is given."""


@dataclass(frozen=True, slots=True)
class PlanningInputs:
    """Everything that a comparison is based on: the devices to query of each account, and earlier runs.

    ``products_by_size`` is the number of products of each account by their number of devices. An account whose numbers
    do not add up counts as one product.
    """

    devices: Mapping[str, int]
    products_by_size: Mapping[str, Mapping[int, int]]
    measurements: RunMeasurements | None
    carry: CarryMeasurements


def compare_strategies(settings: Settings, plan: Plan, inputs: PlanningInputs) -> Iterator[StrategyPlan]:
    """Yield the cost of each strategy; the first one, ``plan``, queries every device.

    ``max_calls``, ``sample_size`` and ``precision`` of the settings determine what is compared; defaults replace them.
    """
    loads = account_loads(settings, inputs)
    full = StrategyPlan("full", devices=plan.devices, calls=plan.calls, seconds=plan.seconds)
    rows = [replace(full, max_age_runs=0, mean_age_runs=0.0)]
    rows += _bulk_rows(settings, loads, inputs)
    rows += [_incremental_row(settings, loads, rule, inputs.carry) for rule in CHANGE_DETECTION_RULES]
    rows += _rolling_rows(settings, plan, loads, inputs.measurements)
    rows += sample_plans(settings, loads)
    for row in rows:
        yield replace(row, fits=_fits(row, plan.window))


def _fits(row: StrategyPlan, window: float | None) -> bool | None:
    if window is None:
        return None
    if row.seconds is None:
        return False if row.min_seconds is not None and row.min_seconds > window else None
    return row.seconds <= window


def account_loads(settings: Settings, inputs: PlanningInputs) -> list[AccountLoad]:
    """Return what determines the cost of each account, in the settings' order."""
    queried = {} if inputs.measurements is None else inputs.measurements.queried
    throughputs, fractions = account_throughputs(settings, inputs.measurements), quota_fractions(settings)
    loads = []
    for account, throughput, fraction in zip(settings.account, throughputs, fractions, strict=True):
        devices = inputs.devices.get(account.name, 0)
        by_size = inputs.products_by_size.get(account.name, {})
        if sum(size * products for size, products in by_size.items()) != devices:
            by_size = {devices: 1}
        loads.append(AccountLoad(account, devices, by_size, queried.get(account.name), throughput, fraction))
    return loads


def _bulk_rows(settings: Settings, loads: list[AccountLoad], inputs: PlanningInputs) -> Iterator[StrategyPlan]:
    """Yield a row if an account is read many devices a call; every device of the other accounts is queried."""
    readings = [bulk_reading(settings, load) for load in loads]
    costs = [each.cost() if each else load.cost(load.devices) for each, load in zip(readings, loads, strict=True)]
    kinds = {each.kind for each in readings if each is not None}
    for kind in kinds:
        run = None
        if kind == "details" and any(load.queried is not None and load.queried.one_by_one for load in loads):
            run = None if inputs.measurements is None else safe(inputs.measurements.folder.name)
        yield StrategyPlan(kind, **total_cost(costs)._asdict(), max_age_runs=0, mean_age_runs=0.0, run=run)


def _incremental_row(
    settings: Settings, loads: list[AccountLoad], rule: ChangeDetection, carry: CarryMeasurements
) -> StrategyPlan:
    row = StrategyPlan("incremental", change_detection=rule)
    if carry.run is None:  # without a baseline every device is queried, and no state
        cost = total_cost(load.cost(load.devices) for load in loads)
        return replace(row, **cost._asdict(), max_age_runs=0, mean_age_runs=0.0)
    stats = carry.by_rule.get(rule, IncrementalStats())
    recheck = parse_percentage(settings.recheck)
    cost = total_cost(_incremental_cost(load, carry, stats, recheck) for load in loads)
    if stats.recheck is not None:
        row = replace(
            row,
            recheck_rate=stats.recheck.rate,
            recheck_low=stats.recheck.low,
            recheck_high=stats.recheck.high,
            recheck_run=None if stats.recheck_run is None else safe(stats.recheck_run),
        )
    if all(load.account.name in stats.selected_fraction for load in loads if load.devices):
        run = None if stats.run is None else safe(stats.run)
        return replace(row, **cost._asdict(), run=run)
    return replace(row, min_calls=cost.calls, min_seconds=cost.seconds)


def _incremental_cost(load: AccountLoad, carry: CarryMeasurements, stats: IncrementalStats, recheck: float) -> Cost:
    """Return the cost of an account. If no fraction was measured, it is a lower bound: no device has reconnected."""
    answered = load.devices if carry.answered is None else carry.answered.get(load.account.name, 0)
    new = max(0, load.devices - answered)
    fraction = stats.selected_fraction.get(load.account.name, 0.0)
    selected = max(new, math.ceil(load.devices * fraction - 1e-6))
    selected += math.floor(recheck * (load.devices - selected))
    if load.account.read != "device":
        return load.cost(selected, *index_calls(load))
    return load.cost(selected, -(-(load.devices - new) // BATCH_GET_DEVICE_STATE.page_size))


def _rolling_rows(
    settings: Settings, plan: Plan, loads: list[AccountLoad], measurements: RunMeasurements | None
) -> Iterator[StrategyPlan]:
    """Yield a row for the given window and budget; without them, one for each default age, if times are known."""
    if plan.window is not None or settings.max_calls is not None:
        yield _rolling_row(settings, loads, measurements, plan.window)
    elif plan.seconds is not None and plan.devices:
        end = math.ceil(plan.seconds) + 1

        def max_age(window: int) -> int:
            age = _rolling_row(settings, loads, measurements, window).max_age_runs
            return sys.maxsize if age is None else age

        # Found by trying, so that a plan with this window gives the same age.
        windows = [bisect_left(range(1, end), -age, key=lambda window: -max_age(window)) + 1 for age in DEFAULT_AGES]
        rows = [_rolling_row(settings, loads, measurements, window) for window in dict.fromkeys(windows)]
        yield from (row for row in rows if row.max_age_runs)  # 0 is every device


def _rolling_row(
    settings: Settings, loads: list[AccountLoad], measurements: RunMeasurements | None, window: float | None
) -> StrategyPlan:
    row = StrategyPlan("rolling", max_calls=settings.max_calls, window=window)
    counts = all_or_none(_devices_per_run(settings, load, measurements, window) for load in loads)
    if counts is None:
        return row
    fair_share = parse_percentage(settings.fair_share)
    cost = total_cost(load.cost(count) for load, count in zip(loads, counts, strict=True))
    row = replace(row, **cost._asdict())
    ages = all_or_none(
        answer_ages(load.products_by_size, count, fair_share) for load, count in zip(loads, counts, strict=True)
    )
    if ages is None:
        return row
    weighted = sum(load.devices * mean for load, (_, mean) in zip(loads, ages, strict=True))
    return replace(
        row,
        max_age_runs=max((oldest for oldest, _ in ages), default=0),
        mean_age_runs=round(weighted / max(1, sum(load.devices for load in loads)), 3),
    )


def _devices_per_run(
    settings: Settings, load: AccountLoad, measurements: RunMeasurements | None, window: float | None
) -> int | None:
    """Return how many devices of an account a run queries; None: unknown. A call budget also pays for discovery."""
    if not load.devices:
        return 0
    calls = []
    if window is not None and (timed := max_calls_within(settings, load.account, measurements, window)) is not None:
        calls.append(timed)
    if settings.max_calls is not None:
        discovery = -(-load.devices // BATCH_GET_DEVICE_STATE.page_size) if load.account.uses_discovery else 0
        calls.append(max(0, math.floor(settings.max_calls * load.quota_fraction) - discovery))
    per_device = 1.0 if load.queried is None else load.queried.requests / load.queried.devices
    return min(load.devices, math.floor(min(calls) / per_device)) if calls else None


def answer_ages(products_by_size: Mapping[int, int], budget: int, fair_share: float) -> tuple[int, float] | None:
    """Return upper bounds for the age of results at the end of a run, in runs: of the oldest, and of the mean.

    Each run gives a product of n devices a turn of t devices, those with the oldest results. The turn is its part of
    the fair share, rounded up; it is rounded down if rounding up gives all products together more than there is. The
    devices of a turn become the newest of their product, so C = ceil(n / t) turns contain every device: each was
    queried C - 1 runs ago at most. At the end of a run the turns of the runs 0 to k - 1 are k * t devices younger than
    k runs. So at most n - k * t devices are k runs old or older. The sum over k from 1 to C - 1 is the sum of all ages:
    n * (C - 1) - t * C * (C - 1) / 2, which is n * (C - 1) / 2 if t divides n. The part of a run that is not shared
    fairly can only make results younger. There is no bound, None, if a product has no turn.

    ``budget`` are queried of all products together; ``fair_share`` of them, 0 to 1, is divided by size.
    """
    devices = sum(size * products for size, products in products_by_size.items())
    if budget >= devices:
        return 0, 0.0
    parts = {size: fair_share * (budget * size / devices) for size in products_by_size}
    enough = sum(math.ceil(parts[size]) * products for size, products in products_by_size.items()) <= budget
    oldest, total = 0, 0.0
    for size, products in products_by_size.items():
        turn = math.ceil(parts[size]) if enough else math.floor(parts[size])
        if not turn:
            return None
        turns = -(-size // turn)
        oldest = max(oldest, turns - 1)
        total += products * (size * (turns - 1) - turn * turns * (turns - 1) / 2)
    return oldest, total / devices
