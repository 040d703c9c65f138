"""Calls, time and requests in flight of an audit at its quotas, and what would make it fit into a time window."""

import math
import sys
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from auditor.client.operations import BATCH_GET_DEVICE_STATE, BATCH_QUERY_DEVICE_DETAIL
from auditor.config.settings import Account, Settings
from auditor.engine.allocation import concurrency_per_account, min_concurrency_for
from auditor.fleet.table import count_devices_to_query
from auditor.planning.measurements import QueriedDevices, RunMeasurements, latest_measurements
from auditor.planning.models import AccountPlan, Plan, Remedy
from auditor.text.formatting import safe

T = TypeVar("T")

ACHIEVED_QUOTA_FRACTION = 0.97
"""Fraction of a quota that the rate limiter achieves in benchmarks: it keeps a margin for jitter."""

ASSUMED_LATENCY = 0.3
"""Seconds from a request to its response, if no run measured it."""

MAX_CONCURRENCY = 10_000
"""Maximum of the setting ``concurrency``."""


def plan_fleet(settings: Settings, fleet: Path, directory: Path) -> Plan:
    """Return the plan for the devices in a file that ``write_snapshot`` wrote; earlier runs are in ``directory``."""
    included = [account.name for account in settings.account if not account.skips_never_activated]
    devices = count_devices_to_query(fleet, included)
    return plan_queries(settings, devices, latest_measurements(directory, settings.name))


def plan_queries(settings: Settings, devices: Mapping[str, int], measurements: RunMeasurements | None) -> Plan:
    """Return the plan for querying devices as the settings say: one a call, or in batches if they name modules."""
    if settings.modules is None:
        return plan_devices(settings, devices, measurements)
    quota = BATCH_QUERY_DEVICE_DETAIL.calls_per_second
    accounts = tuple(
        each
        if each.calls_per_second == "unlimited"
        else msgspec.structs.replace(each, calls_per_second=each.quotas.batch_query_device_detail or quota)
        for each in settings.account
    )
    batches = dict.fromkeys(devices, QueriedDevices(BATCH_QUERY_DEVICE_DETAIL.page_size, 1))
    latency = None if measurements is None else measurements.latency
    folder = Path() if measurements is None else measurements.folder
    return plan_devices(
        msgspec.structs.replace(settings, account=accounts), devices, RunMeasurements(folder, batches, latency)
    )


def plan_devices(
    settings: Settings,
    devices: Mapping[str, int],
    measurements: RunMeasurements | None,
    window: float | None = None,
    *,
    counted: Collection[str] = (),
) -> Plan:
    """Return the plan for a number of devices per account; ``window`` is in seconds.

    The platform has ``counted`` the devices of these accounts for the plan.
    """
    latency = None if measurements is None else measurements.latency
    queried = {} if measurements is None else measurements.queried
    plans = tuple(
        _account_plan(account, devices.get(account.name, 0), queried.get(account.name), throughput, window)
        for account, throughput in zip(settings.account, account_throughputs(settings, measurements), strict=True)
    )
    plan = Plan(
        name=settings.name,
        run=None if measurements is None else safe(measurements.folder.name),
        devices=0,
        calls=0,
        seconds=None,
        in_flight=None,
        latency=ASSUMED_LATENCY if latency is None else latency,
        latency_assumed=latency is None,
        concurrency=settings.concurrency,
        concurrency_advised=None,
        window=window,
        fits=None,
        accounts=(),
    )
    return with_accounts(
        settings,
        plan,
        [
            replace(each, devices_assumed=False, devices_counted=True) if each.account in counted else each
            for each in plans
        ],
    )


def with_accounts(settings: Settings, plan: Plan, accounts: Sequence[AccountPlan]) -> Plan:
    """Return a plan with other accounts, and their sums."""
    seconds = all_or_none(each.seconds for each in accounts)
    in_flight = all_or_none(each.in_flight for each in accounts)
    fits = [each.fits for each in accounts]
    return replace(
        plan,
        devices=sum(each.devices for each in accounts),
        calls=sum(each.calls for each in accounts),
        seconds=None if seconds is None else max(seconds),
        in_flight=None if in_flight is None else sum(in_flight),
        concurrency_advised=_advised_concurrency(settings, accounts),
        fits=False if False in fits else None if None in fits else True,
        accounts=tuple(accounts),
    )


def max_calls_within(
    settings: Settings, account: Account, measurements: RunMeasurements | None, seconds: float
) -> int | None:
    """Return how many calls of an account fit into a time; None: unknown."""
    latency = None if measurements is None else measurements.latency
    workers = concurrency_per_account(settings)[settings.account.index(account)]
    rates = [] if account.rate is None else [account.rate * ACHIEVED_QUOTA_FRACTION]
    rates += [] if latency is None else [workers / max(latency, 1e-9)]
    return math.floor(min(rates) * seconds) if rates else None


class Throughput(NamedTuple):
    """Latency of an account in seconds, and its maximum call rate at the configured concurrency."""

    latency: float
    max_calls_per_second: float


def account_throughputs(settings: Settings, measurements: RunMeasurements | None) -> list[Throughput]:
    """Return the throughput of each account, in the settings' order, as far as an earlier run measured it."""
    latency = None if measurements is None else measurements.latency
    if latency is None:
        return [Throughput(ASSUMED_LATENCY, math.inf) for _ in settings.account]
    return [Throughput(latency, workers / max(latency, 1e-9)) for workers in concurrency_per_account(settings)]


def _account_plan(
    account: Account, devices: int, queried: QueriedDevices | None, throughput: Throughput, window: float | None
) -> AccountPlan:
    calls = estimate_calls(devices, queried)
    rate = account.rate
    seconds = estimate_seconds(calls, rate, throughput)
    in_flight = 0 if not calls else None if rate is None else max(1, math.ceil(rate * throughput.latency))
    fits = None if window is None or seconds is None else seconds <= window
    return AccountPlan(
        account=account.name,
        devices=devices,
        devices_assumed=account.uses_discovery,
        devices_counted=False,
        calls_per_device=1.0 if queried is None else queried.requests / queried.devices,
        calls_assumed=queried is None,
        calls=calls,
        calls_per_second=rate,
        quota_share=account.quota_share,
        seconds=seconds,
        in_flight=in_flight,
        fits=fits,
        remedy=_remedy(account, devices, queried, throughput, window) if window is not None and fits is False else None,
    )


def _remedy(
    account: Account, devices: int, queried: QueriedDevices | None, throughput: Throughput, window: float
) -> Remedy:
    """Return what makes an account fit into ``window`` seconds; found by trial, so a plan that follows it does fit."""

    def seconds(devices: int, share: float) -> float:
        rate = msgspec.structs.replace(account, quota_share=share).rate
        estimate = estimate_seconds(estimate_calls(devices, queried), rate, throughput)
        return math.inf if estimate is None else estimate

    shares = (percent / 100 for percent in range(1, 101))
    share = next((share for share in shares if seconds(devices, share) <= window), None)
    fitting = bisect_right(range(devices + 1), window, key=lambda count: seconds(count, account.quota_share)) - 1
    return Remedy(share, fitting, -(-devices // fitting) if fitting else None)


def estimate_calls(devices: int, queried: QueriedDevices | None) -> int:
    """Return the calls for a number of devices, rounded up; one call per device if nothing was measured."""
    return devices if queried is None else -(-devices * queried.requests // queried.devices)


def estimate_seconds(calls: int, rate: float | None, throughput: Throughput) -> float | None:
    """Return how long calls take at a rate in calls per second; None: unknown."""
    if not calls:
        return 0.0
    if rate is None:
        return None
    achieved = min(rate * ACHIEVED_QUOTA_FRACTION, throughput.max_calls_per_second)
    return round(calls / max(achieved, sys.float_info.min), 3)


def _advised_concurrency(settings: Settings, plans: Iterable[AccountPlan]) -> int | None:
    """Return the ``concurrency`` that gives each account as much as it needs; None: the setting is enough."""
    needed = [plan.in_flight or 0 for plan in plans]
    enough = all(need <= workers for need, workers in zip(needed, concurrency_per_account(settings), strict=True))
    return None if enough else min_concurrency_for(settings, needed)


def all_or_none(values: Iterable[T | None]) -> list[T] | None:
    """Return the values; None if one of them is None."""
    found = list(values)
    present = [value for value in found if value is not None]
    return present if len(present) == len(found) else None


class Cost(NamedTuple):
    """Devices to query, all calls, and seconds (None: unknown), of one account or of all."""

    devices: int
    calls: int
    seconds: float | None


def total_cost(costs: Iterable[Cost]) -> Cost:
    """Return the cost of all accounts: calls add up, and the slowest account determines the time."""
    devices, calls, times = zip(*costs, strict=True)
    seconds = all_or_none(times)
    return Cost(sum(devices), sum(calls), None if seconds is None else round(max(seconds), 3))


@dataclass(frozen=True, slots=True)
class AccountLoad:
    """An account's devices, and what determines their cost.

    ``products_by_size``: number of products by their number of devices; ``quota_fraction``: fraction of a call budget.
    """

    account: Account
    devices: int
    products_by_size: Mapping[int, int]
    queried: QueriedDevices | None
    throughput: Throughput
    quota_fraction: float

    def cost(self, devices: int, bulk_calls: int = 0, bulk_quota: float | None = None) -> Cost:
        """Return the cost of a number of its devices, after calls about many devices, with a quota of their own.

        By default, these are for connection states.
        """
        calls = estimate_calls(devices, self.queried)
        quota = self.account.quotas.batch_get_device_state or BATCH_GET_DEVICE_STATE.calls_per_second
        bulk_rate = None if self.account.rate is None else (bulk_quota or quota) * self.account.quota_share
        rates = (calls, self.account.rate), (bulk_calls, bulk_rate)
        seconds = all_or_none(estimate_seconds(count, rate, self.throughput) for count, rate in rates)
        return Cost(devices, calls + bulk_calls, None if seconds is None else sum(seconds))
