"""Cost of reading many devices a call: by the platform's search index, or the details of one module."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from auditor.client.operations import BATCH_QUERY_DEVICE_DETAIL, QUERY_DEVICE_BY_SQL
from auditor.config.settings import Settings, parse_percentage
from auditor.planning.capacity import AccountLoad, Cost, with_accounts
from auditor.planning.measurements import QueriedDevices
from auditor.planning.models import AccountPlan, BulkReadingKind, Plan, Remedy


@dataclass(frozen=True, slots=True)
class BulkReading:
    """How an account is read in bulk.

    Attributes:
        kind: what is read.
        load: the account; its ``queried`` is about the devices that are queried one by one.
        fraction: fraction of the devices, 0 to 1, that ``queried`` applies to.
        calls: calls for all devices.
        quota: quota of these calls in calls per second.
    """

    kind: BulkReadingKind
    load: AccountLoad
    fraction: float
    calls: int
    quota: float

    def cost(self, devices: int | None = None, quota_share: float | None = None) -> Cost:
        """Return the cost of a number of devices, by default all, with the configured share of the quota or another."""
        account, total = self.load.account, self.load.devices
        if quota_share is not None:
            account = msgspec.structs.replace(account, quota_share=quota_share)
        devices = total if devices is None else devices
        calls = -(-self.calls * devices // max(1, total))
        return replace(self.load, account=account).cost(math.floor(self.fraction * devices), calls, self.quota)


def bulk_reading(settings: Settings, load: AccountLoad) -> BulkReading | None:
    """Return how an account is read in bulk; None: its devices are queried one by one.

    Of a product's devices, details take as many calls as they have batches. Devices whose details are not conclusive
    are then queried one by one, as many as in the measured run.
    """
    if settings.modules is not None:
        size = BATCH_QUERY_DEVICE_DETAIL.page_size
        calls = sum(-(-devices // size) * products for devices, products in load.products_by_size.items())
        quota = load.account.quotas.batch_query_device_detail or BATCH_QUERY_DEVICE_DETAIL.calls_per_second
        before = load.queried
        one_by_one = QueriedDevices(1, 0) if before is None else QueriedDevices(before.devices, before.one_by_one)
        return BulkReading("details", replace(load, queried=one_by_one), 1.0, calls, quota)
    if load.account.read != "device":
        return BulkReading("index", load, parse_percentage(settings.recheck), *index_calls(load))
    return None


def index_calls(load: AccountLoad) -> tuple[int, float]:
    """Return the number of pages of an account's devices in the search index, and the quota for them.

    Each page repeats a row of the one before.
    """
    per_page = QUERY_DEVICE_BY_SQL.page_size - 1
    pages = sum((size // per_page + 1) * products for size, products in load.products_by_size.items())
    return pages, load.account.quotas.query_device_by_sql or QUERY_DEVICE_BY_SQL.calls_per_second


def plan_as_configured(settings: Settings, plan: Plan, loads: Sequence[AccountLoad]) -> Plan:
    """Return the plan of a run that reads each account as the settings say; ``plan`` queries every device.

    With ``read = "auto"`` every device may have to be queried, so that is planned.
    """
    accounts = []
    for each, load in zip(plan.accounts, loads, strict=True):
        reading = None if load.account.read == "auto" else bulk_reading(settings, load)
        accounts.append(each if reading is None else _plan_account(each, reading, plan.window))
    return with_accounts(settings, plan, accounts)


def _plan_account(plan: AccountPlan, reading: BulkReading, window: float | None) -> AccountPlan:
    cost, account = reading.cost(), reading.load.account
    rate = None if account.rate is None else reading.quota * account.quota_share
    rates = [rate] if cost.calls == reading.calls else [rate, account.rate]
    in_flight = None
    if not cost.calls:
        in_flight = 0
    elif account.rate is not None:
        in_flight = max(1, *(math.ceil((each or 0) * reading.load.throughput.latency) for each in rates))
    fits = None if window is None or cost.seconds is None else cost.seconds <= window
    return replace(
        plan,
        read=reading.kind,
        calls_per_device=cost.calls / plan.devices if plan.devices else 0.0,
        calls_assumed=False,
        calls=cost.calls,
        calls_per_second=rate,
        seconds=cost.seconds,
        in_flight=in_flight,
        fits=fits,
        remedy=_remedy(reading, window) if window is not None and fits is False else None,
    )


def _remedy(reading: BulkReading, window: float) -> Remedy:
    """Return what makes an account fit into ``window`` seconds, found by trial."""

    def seconds(devices: int, quota_share: float | None = None) -> float:
        estimate = reading.cost(devices, quota_share).seconds
        return math.inf if estimate is None else estimate

    devices = reading.load.devices
    shares = (percent / 100 for percent in range(1, 101))
    share = next((share for share in shares if seconds(devices, share) <= window), None)
    fitting = bisect_right(range(devices + 1), window, key=seconds) - 1
    return Remedy(share, fitting, -(-devices // fitting) if fitting else None)
