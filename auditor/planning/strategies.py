"""What each strategy takes of one fleet, side by side: calls, time, and how old or how wrong what it tells may be."""

import math
import sys
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from auditor.config.settings import Settings, part_of
from auditor.engine.allocation import parts_of
from auditor.models import SinceRule
from auditor.planning.capacity import Part, Taken, all_known, answers_of, calls_within, sum_of
from auditor.planning.measurements import Carrying, Experience, SinceTold
from auditor.planning.models import Plan, StrategyPlan
from auditor.planning.sample_size import samples
from auditor.selection.connectivity import AT_ONCE
from auditor.text.formatting import safe

OLDEST = 1, 3, 7
"""Nights that the oldest answer may be old, where nobody says how much time or how many calls there are."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a fleet and of earlier runs.

    Attributes:
        devices: how many devices of each account are to be asked about.
        sizes: how many products of each account have how many of them; an account whose do not add up counts as one.
        before: what an earlier run tells of calls and latency.
        carrying: what there is to carry.
    """

    devices: Mapping[str, int]
    sizes: Mapping[str, Mapping[int, int]]
    before: Experience | None
    carrying: Carrying


def compare(settings: Settings, plan: Plan, known: Known) -> Iterator[StrategyPlan]:
    """What strategies take, beginning with asking every device.

    Args:
        settings: their ``calls``, ``sample`` and ``precision`` say what is compared, else it is what people may want.
        plan: of asking every device.
        known: what is known.
    """
    parts = _parts(settings, known)
    rows = [
        StrategyPlan(
            "full", devices=plan.devices, calls=plan.calls, seconds=plan.seconds, oldest_nights=0, mean_nights=0.0
        )
    ]
    rules: tuple[SinceRule, ...] = ("strict", "reconnected")
    rows += [_since(settings, parts, rule, known.carrying) for rule in rules]
    rows += _rolling_rows(settings, plan, parts, known.before)
    rows += samples(settings, parts)
    for row in rows:
        yield replace(row, fits=_fits(row, plan.window))


def _fits(row: StrategyPlan, window: float | None) -> bool | None:
    if window is None:
        return None
    if row.seconds is None:
        return False if row.seconds_least is not None and row.seconds_least > window else None
    return row.seconds <= window


def _parts(settings: Settings, known: Known) -> list[Part]:
    asked = {} if known.before is None else known.before.asked
    found = []
    accounts = zip(settings.account, answers_of(settings, known.before), parts_of(settings), strict=True)
    for account, answers, budgeted in accounts:
        devices = known.devices.get(account.name, 0)
        sizes = known.sizes.get(account.name, {})
        if sum(size * products for size, products in sizes.items()) != devices:
            sizes = {devices: 1}
        found.append(Part(account, devices, sizes, asked.get(account.name), answers, budgeted))
    return found


def _since(settings: Settings, parts: list[Part], rule: SinceRule, carrying: Carrying) -> StrategyPlan:
    row = StrategyPlan("since", rule=rule)
    if carrying.run is None:  # nothing is known, so everybody is asked, and no state
        taken = sum_of(Taken(part.devices, part.calls(part.devices), part.seconds(part.devices)) for part in parts)
        return replace(
            row, devices=taken.devices, calls=taken.calls, seconds=taken.seconds, oldest_nights=0, mean_nights=0.0
        )
    told = carrying.told.get(rule, SinceTold())
    recheck = part_of(settings.recheck)
    sums = sum_of(_carried(part, carrying, told.asked.get(part.account.name), recheck) for part in parts)
    if told.recheck is not None:
        row = replace(
            row,
            recheck_rate=told.recheck.rate,
            recheck_low=told.recheck.low,
            recheck_high=told.recheck.high,
            recheck_run=None if told.recheck_run is None else safe(told.recheck_run),
        )
    if all(part.account.name in told.asked for part in parts if part.devices):
        run = None if told.run is None else safe(told.run)
        return replace(row, devices=sums.devices, calls=sums.calls, seconds=sums.seconds, run=run)
    return replace(row, calls_least=sums.calls, seconds_least=sums.seconds)


def _carried(part: Part, carrying: Carrying, told: float | None, recheck: float) -> Taken:
    """What an account takes; without ``told`` the least: as if nothing had connected."""
    answered = part.devices if carrying.answered is None else carrying.answered.get(part.account.name, 0)
    new = max(0, part.devices - answered)
    asked = max(new, math.ceil(part.devices * (told or 0.0) - 1e-6))
    asked += math.floor(recheck * (part.devices - asked))
    states = -(-(part.devices - new) // AT_ONCE)
    return Taken(asked, part.calls(asked) + states, part.seconds(asked, states))


def _rolling_rows(
    settings: Settings, plan: Plan, parts: list[Part], before: Experience | None
) -> Iterator[StrategyPlan]:
    """A row for what there is, or, where nobody says, one for each of several ages; none if no time is known."""
    if plan.window is not None or settings.calls is not None:
        yield _rolling(settings, parts, before, plan.window)
    elif plan.seconds is not None and plan.devices:
        last = math.ceil(plan.seconds) + 1

        def oldest(window: int) -> int:
            nights = _rolling(settings, parts, before, window).oldest_nights
            return sys.maxsize if nights is None else nights

        # Found by trying, so that a plan with this window says the same.
        windows = [bisect_left(range(1, last), -nights, key=lambda some: -oldest(some)) + 1 for nights in OLDEST]
        rows = [_rolling(settings, parts, before, window) for window in dict.fromkeys(windows)]
        yield from (row for row in rows if row.oldest_nights)  # 0 is every device


def _rolling(settings: Settings, parts: list[Part], before: Experience | None, window: float | None) -> StrategyPlan:
    row = StrategyPlan("rolling", budget=settings.calls, window=window)
    asked = all_known(_borne(settings, part, before, window) for part in parts)
    if asked is None:
        return row
    guaranteed = part_of(settings.guaranteed)
    taken = sum_of(Taken(some, part.calls(some), part.seconds(some)) for part, some in zip(parts, asked, strict=True))
    row = replace(row, devices=taken.devices, calls=taken.calls, seconds=taken.seconds)
    old = all_known(ages(part.sizes, some, guaranteed) for part, some in zip(parts, asked, strict=True))
    if old is None:
        return row
    weighted = sum(part.devices * mean for part, (_, mean) in zip(parts, old, strict=True))
    return replace(
        row,
        oldest_nights=max((oldest for oldest, _ in old), default=0),
        mean_nights=round(weighted / max(1, sum(part.devices for part in parts)), 3),
    )


def _borne(settings: Settings, part: Part, before: Experience | None, window: float | None) -> int | None:
    """How many devices of an account are asked a night; None: not known. Listing them counts on a budget of calls."""
    if not part.devices:
        return 0
    calls = []
    if window is not None and (timed := calls_within(settings, part.account, before, window)) is not None:
        calls.append(timed)
    if settings.calls is not None:
        listing = -(-part.devices // AT_ONCE) if part.account.listed else 0
        calls.append(max(0, math.floor(settings.calls * part.budgeted) - listing))
    each = 1.0 if part.asked is None else part.asked.requests / part.asked.devices
    return min(part.devices, math.floor(min(calls) / each)) if calls else None


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
