"""What each strategy takes of one fleet, side by side: calls, time, and how old or how wrong what it tells may be."""

import math
import sys
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from auditor.audit.parts import Part, Taken, sum_of
from auditor.audit.plan import Plan, all_known, answers_of, calls_within
from auditor.audit.sampling import samples
from auditor.audit.strategies import StrategyPlan, ages
from auditor.audit.workers import parts_of
from auditor.config import Settings
from auditor.fleet.states import AT_ONCE
from auditor.inventory.carrying import Carrying, SinceTold
from auditor.inventory.experience import Experience
from auditor.model import SinceRule
from auditor.settings import part_of
from auditor.terminal import safe

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
