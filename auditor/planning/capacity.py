"""What an audit will take: calls, time at the quotas, requests in flight, and what would make it fit into a window.

The part of a plan that each account has: its devices, what they take at its quotas, and what all take together.
"""

import math
import sys
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from auditor.client.operations import BATCH_GET_DEVICE_STATE
from auditor.config.settings import Account, Settings
from auditor.engine.allocation import at_once_for, workers_of
from auditor.fleet.table import devices_to_ask
from auditor.planning.measurements import Asked, Experience, newest_experience
from auditor.planning.models import AccountPlan, Plan, Remedy
from auditor.text.formatting import safe

T = TypeVar("T")


REACHED = 0.97
"""The part of a quota that pacing reaches, as benchmarks show: it keeps a margin for jitter."""


ASSUMED_LATENCY = 0.3
"""Seconds from a request to its answer that are assumed where no run tells."""


MOST_AT_ONCE = 10_000
"""What ``at_once`` may be at most, as the settings have it."""


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


@dataclass(frozen=True, slots=True)
class Part:
    """An account's part of the fleet, and how fast it answers."""

    account: Account
    devices: int
    sizes: Mapping[int, int]
    asked: Asked | None
    answers: Answers
    budgeted: float

    def calls(self, devices: int) -> int:
        """Calls for so many of its devices."""
        return calls_for(devices, self.asked)

    def seconds(self, devices: int, states: int = 0) -> float | None:
        """How long it takes to ask about so many devices, after so many calls for states."""
        asking = seconds_for(self.calls(devices), self.account.rate, self.answers)
        quota = self.account.quotas.batch_get_device_state or BATCH_GET_DEVICE_STATE.per_second
        known = seconds_for(states, quota * self.account.share, self.answers)
        if self.account.rate is None and states:
            return None
        return None if asking is None or known is None else asking + known


class Taken(NamedTuple):
    """What an account takes, or all of them: devices that are asked, all calls, and seconds (None: not known)."""

    devices: int
    calls: int
    seconds: float | None


def sum_of(taken: Iterable[Taken]) -> Taken:
    """What accounts take together: calls add up, and the longest tells the time."""
    each = list(taken)
    seconds = all_known(one.seconds for one in each)
    return Taken(
        sum(one.devices for one in each),
        sum(one.calls for one in each),
        None if seconds is None else round(max(seconds, default=0.0), 3),
    )
