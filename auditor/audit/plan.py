"""What an audit will take: calls, time at the quotas, requests in flight, and what would make it fit into a window."""

import math
import sys
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from auditor.audit.strategies import StrategyPlan
from auditor.audit.workers import at_once_for, workers_of
from auditor.config import Account, Settings
from auditor.fleet.rows import devices_to_ask
from auditor.inventory.experience import Asked, Experience, newest_experience
from auditor.inventory.folder import Planned
from auditor.terminal import safe

T = TypeVar("T")

REACHED = 0.97
"""The part of a quota that pacing reaches, as benchmarks show: it keeps a margin for jitter."""

ASSUMED_LATENCY = 0.3
"""Seconds from a request to its answer that are assumed where no run tells."""

MOST_AT_ONCE = 10_000
"""What ``at_once`` may be at most, as the settings have it."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """What would make an account's devices fit into a window that is too short for them; either is enough.

    Attributes:
        share: the share of the quota, in hundredths; None: the whole quota is too little.
        devices: how many of the devices fit into one window as things are.
        windows: how many such windows all devices take, and so how many accounts with the same quota and share would
            do it in one; None: not one device fits.
    """

    share: float | None
    devices: int
    windows: int | None


@dataclass(frozen=True, slots=True)
class AccountPlan:
    """What an account will take.

    Attributes:
        account: its name.
        devices: how many devices it is asked about.
        devices_assumed: whether that is what the platform listed for an earlier run: a plan asks nobody.
        calls_each: calls a device, repeats among them: a mean.
        calls_assumed: whether no run tells, so that one call a device is assumed.
        calls: calls for all devices.
        per_second: calls a second that are ours; None: no quota, or none that is known.
        share: the part of the quota that is ours.
        seconds: how long it takes at that rate; None: not known.
        in_flight: requests in flight that the rate needs; None: not known.
        fits: whether it fits into the window; None: not known, or no window was given.
        remedy: what would make it fit; None if it does.
    """

    account: str
    devices: int
    devices_assumed: bool
    calls_each: float
    calls_assumed: bool
    calls: int
    per_second: float | None
    share: float
    seconds: float | None
    in_flight: int | None
    fits: bool | None
    remedy: Remedy | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What an audit will take, as an earlier run of its name and the quotas tell.

    Attributes:
        name: the audit's.
        run: the name of the run folder that tells of calls and latency; None: there is none.
        devices, calls: of all accounts.
        seconds: how long the longest account takes, for they are audited side by side; None: one is not known.
        in_flight: requests in flight that all rates need together; None: one is not known.
        latency: seconds from a request to its answer.
        latency_assumed: whether no run tells that.
        at_once: the settings' own.
        at_once_advised: what it should be to use the quotas that are known; None: it is enough.
        window: seconds that there are; None: not told.
        fits: whether all accounts fit into it; None: not known, or no window was given.
        accounts: what each takes, in the settings' order.
        strategies: what asking every device takes, and what asking less does, side by side; empty: not compared.
    """

    name: str
    run: str | None
    devices: int
    calls: int
    seconds: float | None
    in_flight: int | None
    latency: float
    latency_assumed: bool
    at_once: int
    at_once_advised: int | None
    window: float | None
    fits: bool | None
    accounts: tuple[AccountPlan, ...]
    strategies: tuple[StrategyPlan, ...] = ()

    @property
    def planned(self) -> Planned:
        """The figures that a run's manifest keeps."""
        return Planned(self.calls, self.seconds, self.in_flight)


def plan_for(settings: Settings, fleet: Path, directory: Path, window: float | None = None) -> Plan:
    """The plan for a fleet.

    Args:
        settings: of the audit.
        fleet: the file that ``write_snapshot`` wrote.
        directory: where earlier runs lie.
        window: seconds that there are.
    """
    return plan_of(settings, devices_in(settings, fleet), newest_experience(directory, settings.name), window)


def devices_in(settings: Settings, fleet: Path) -> dict[str, int]:
    """How many devices of a fleet each account is to be asked about."""
    return devices_to_ask(fleet, [account.name for account in settings.account if not account.skips])


def plan_of(
    settings: Settings, devices: Mapping[str, int], before: Experience | None, window: float | None = None
) -> Plan:
    """The plan for so many devices of each account.

    Args:
        settings: of the audit.
        devices: how many devices each account has.
        before: what an earlier run tells.
        window: seconds that there are.
    """
    measured = None if before is None else before.latency
    asked = {} if before is None else before.asked
    plans = tuple(
        _account_plan(
            account,
            devices.get(account.name, 0),
            asked.get(account.name),
            answers,
            window,
        )
        for account, answers in zip(settings.account, answers_of(settings, before), strict=True)
    )
    seconds, in_flight = all_known(each.seconds for each in plans), all_known(each.in_flight for each in plans)
    fits = [each.fits for each in plans]
    return Plan(
        name=settings.name,
        run=None if before is None else safe(before.folder.name),
        devices=sum(each.devices for each in plans),
        calls=sum(each.calls for each in plans),
        seconds=None if seconds is None else max(seconds),
        in_flight=None if in_flight is None else sum(in_flight),
        latency=ASSUMED_LATENCY if measured is None else measured,
        latency_assumed=measured is None,
        at_once=settings.at_once,
        at_once_advised=_at_once_advised(settings, plans),
        window=window,
        fits=False if False in fits else None if None in fits else True,
        accounts=plans,
    )


def calls_within(settings: Settings, account: Account, before: Experience | None, seconds: float) -> int | None:
    """How many calls of an account fit into a length of time; None: that is not known.

    Args:
        settings: of the audit.
        account: one of theirs.
        before: what an earlier run tells.
        seconds: that there are.
    """
    measured = None if before is None else before.latency
    workers = workers_of(settings)[settings.account.index(account)]
    rates = [] if account.rate is None else [account.rate * REACHED]
    rates += [] if measured is None else [workers / max(measured, 1e-9)]
    return math.floor(min(rates) * seconds) if rates else None


class Answers(NamedTuple):
    """Seconds that an answer takes, and how many come a second at most with as many requests in flight as may be."""

    latency: float
    per_second: float


def answers_of(settings: Settings, before: Experience | None) -> list[Answers]:
    """How fast each account answers, in the settings' order, as far as an earlier run tells."""
    measured = None if before is None else before.latency
    if measured is None:
        return [Answers(ASSUMED_LATENCY, math.inf) for _ in settings.account]
    return [Answers(measured, workers / max(measured, 1e-9)) for workers in workers_of(settings)]


def _account_plan(
    account: Account, devices: int, asked: Asked | None, answers: Answers, window: float | None
) -> AccountPlan:
    calls = calls_for(devices, asked)
    rate = account.rate
    seconds = seconds_for(calls, rate, answers)
    in_flight = 0 if not calls else None if rate is None else max(1, math.ceil(rate * answers.latency))
    fits = None if window is None or seconds is None else seconds <= window
    return AccountPlan(
        account=account.name,
        devices=devices,
        devices_assumed=account.listed,
        calls_each=1.0 if asked is None else asked.requests / asked.devices,
        calls_assumed=asked is None,
        calls=calls,
        per_second=rate,
        share=account.share,
        seconds=seconds,
        in_flight=in_flight,
        fits=fits,
        remedy=_remedy(account, devices, asked, answers, window) if window is not None and fits is False else None,
    )


def _remedy(account: Account, devices: int, asked: Asked | None, answers: Answers, window: float) -> Remedy:
    """What would make it fit, found by trying: so a plan that follows the advice does fit."""

    def seconds(devices: int, share: float) -> float:
        known = seconds_for(calls_for(devices, asked), msgspec.structs.replace(account, share=share).rate, answers)
        return math.inf if known is None else known

    shares = (percent / 100 for percent in range(1, 101))
    share = next((share for share in shares if seconds(devices, share) <= window), None)
    fitting = bisect_right(range(devices + 1), window, key=lambda some: seconds(some, account.share)) - 1
    return Remedy(share, fitting, -(-devices // fitting) if fitting else None)


def calls_for(devices: int, asked: Asked | None) -> int:
    """Calls for so many devices; whole numbers, rounded up."""
    return devices if asked is None else -(-devices * asked.requests // asked.devices)


def seconds_for(calls: int, rate: float | None, answers: Answers) -> float | None:
    """How long so many calls take at a quota; None: it is not known."""
    if not calls:
        return 0.0
    return None if rate is None else round(calls / max(min(rate * REACHED, answers.per_second), sys.float_info.min), 3)


def _at_once_advised(settings: Settings, plans: Iterable[AccountPlan]) -> int | None:
    """What ``at_once`` should be, if it leaves an account less than it needs."""
    needed = [plan.in_flight or 0 for plan in plans]
    enough = all(need <= workers for need, workers in zip(needed, workers_of(settings), strict=True))
    return None if enough else at_once_for(settings, needed)


def all_known(values: Iterable[T | None]) -> list[T] | None:
    """The values, if all of them are known."""
    found = list(values)
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None
