"""Parts of the manifest: exit reason, gaps, mismatches, requests, releases, changes, and the selection of devices."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from auditor.errors import UNKNOWN_PRODUCT, ExitReasonCode
from auditor.models import ChangeDetection, Level, RunWarning
from auditor.storage.json_types import (
    CallsPerSecond,
    Count,
    PositiveCallsPerSecond,
    PositiveCount,
    Seconds,
    Share,
    Timestamp,
)
from auditor.text.formatting import format_count


@dataclass(frozen=True, slots=True)
class ExitReason:
    """Why a run has its exit code.

    Attributes:
        code: the reason as a code, see ``auditor.errors``.
        message: the reason in a sentence.
    """

    code: ExitReasonCode
    message: str


@dataclass(frozen=True, slots=True)
class GapInfo:
    """A product with fewer listed devices than the platform reported.

    Attributes:
        product_key: the product; null: products are missing from the list of products.
        listed: devices listed, each once.
        total: total that the device list reported last; null: none.
        device_count: device count that the product list reported; null: none.
        reason: why the list was not read to its end, or may be incomplete; null: only the numbers differ.
    """

    product_key: str | None
    listed: Count
    total: Count | None
    device_count: Count | None
    reason: str | None = None

    @property
    def is_unknown_product(self) -> bool:
        """Whether the platform has no such product, so that the settings are wrong."""
        return self.product_key is not None and (self.reason or "").partition(":")[0] == UNKNOWN_PRODUCT

    def __str__(self) -> str:
        reported = max((number for number in (self.total, self.device_count) if number is not None), default=0)
        of, why = f" of {reported:,}" if reported > self.listed else "", f" ({self.reason})" if self.reason else ""
        if self.product_key is None:
            return f"a gap: {self.listed:,}{of} products listed{why}"
        return f"a gap: product {self.product_key}: {self.listed:,}{of} devices listed{why}"


@dataclass(frozen=True, slots=True)
class MismatchedAccount:
    """An account whose answers reached the wrong request, as a broken proxy or gateway delivers them.

    Attributes:
        account: name of the account.
        answers: answers that named another device than requested, or were contradicted by a second one. Each was
            replaced by another answer, or its device failed.
    """

    account: str
    answers: PositiveCount

    def __str__(self) -> str:
        found = f'account "{self.account}": {format_count(self.answers, "answer")} reached the wrong request'
        return f"{found}; a proxy or gateway between here and the platform is broken"


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Requests to the platform.

    Attributes:
        sent: requests sent, including retries.
        retried: those that were retries.
        throttled: throttling responses.
    """

    sent: Count = 0
    retried: Count = 0
    throttled: Count = 0


@dataclass(frozen=True, slots=True)
class ReleasesInfo:
    """Released firmware of an account's products, its update jobs, and their tasks.

    Attributes:
        account: name of the account.
        firmware: upgrade packages in ``firmware.parquet``.
        jobs: jobs of these.
        tasks: updates of devices in ``tasks.parquet``.
        requests: requests for them; they are not among the run's requests.
        problems: why they are incomplete, a sentence each; empty: they are complete.
    """

    account: str
    firmware: Count = 0
    jobs: Count = 0
    tasks: Count = 0
    requests: Count = 0
    problems: tuple[str, ...] = ()

    def warnings(self, run: str = "") -> Iterator[RunWarning]:
        """Yield a warning, with the first reasons, of the run folder ``run`` if they are incomplete."""
        if self.problems:
            first, more = "; ".join(self.problems[:3]), len(self.problems) - 3
            reason = f"{first}; and {format_count(more, 'more problem')}" if more > 0 else first
            yield RunWarning("releases", run, f'account "{self.account}": released firmware is incomplete: {reason}')


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests per second.

    Attributes:
        target: sum of the configured quotas; null: an account has none.
        achieved: mean of the run.
        learned: sum of what the platform accepted, as far as it was learned; null: no quota, or nothing learned.
        latency: mean seconds from a request to its response; null: no response yet.
        in_flight: mean number of requests in flight.
    """

    target: PositiveCallsPerSecond | None = None
    achieved: CallsPerSecond = 0.0
    learned: CallsPerSecond | None = None
    latency: Seconds | None = None
    in_flight: CallsPerSecond = 0.0


@dataclass(frozen=True, slots=True)
class Planned:
    """Estimate for the complete fleet at the start of the run, as ``auditor plan`` prints it.

    Attributes:
        requests: number of requests, including retries.
        seconds: duration at the quotas; null: a quota is unknown.
        in_flight: requests in flight that the quotas need; null: a quota is unknown.
    """

    requests: Count
    seconds: Seconds | None
    in_flight: Count | None


@dataclass(frozen=True, slots=True)
class ChangesInfo:
    """The changes since the previous run of the fleet, ``changes.parquet``.

    Attributes:
        previous: folder name of the previous run of the same name that covers the fleet.
        counts: rows by change, such as ``upgraded``; one for each module of a device.
    """

    previous: str
    counts: dict[str, PositiveCount] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LearnedOffset:
    """Time zone of last-online times that the platform reports without one, as the devices that are online show it.

    Attributes:
        minutes: offset from UTC; 480 is UTC+08:00.
        devices: devices that show it.
    """

    minutes: int
    devices: PositiveCount

    def __str__(self) -> str:
        hours, minutes = divmod(abs(self.minutes), 60)
        return f"UTC{'-' if self.minutes < 0 else '+'}{hours:02d}:{minutes:02d}"


@dataclass(frozen=True, slots=True)
class AccountSelection:
    """The devices of an account that a run queries.

    Attributes:
        account: name of the account.
        selected: devices selected for a query, by reason.
        over_budget: devices with a reason for a query, other than a recheck, that the call budget did not allow from
            the start.
        carried: devices whose previous results were selected to be carried forward.
        states_requested: devices whose connection states were requested.
        states_unknown: devices whose connection states the platform did not report, or that do not show whether they
            were online since; or that the search index does not have, if it is used instead. They are selected.
        requests: requests for connection states.
        selected_at: when the selection was made; carried results are at least this old. null: not recorded.
        unchanged: devices without a sign of change, those of the recheck included. null: not recorded.
        learned_offset: time zone of last-online times; null: they have one, or too few devices show it.
    """

    account: str
    selected: dict[str, Count] = field(default_factory=dict)
    over_budget: Count = 0
    carried: Count = 0
    states_requested: Count = 0
    states_unknown: Count = 0
    requests: RequestCounts = RequestCounts()
    selected_at: Timestamp | None = None
    unchanged: Count | None = None
    learned_offset: LearnedOffset | None = None


@dataclass(frozen=True, slots=True)
class Recheck:
    """Recheck: a random sample of the devices without a sign of change is queried.

    Results of devices that may have changed and were not queried are not part of it.

    Attributes:
        carried: devices without a sign of change, including the checked ones; the results of the others are carried.
        checked: devices in the recheck.
        answered: checked devices with a conclusive answer.
        changed: answered devices whose result differs from the previous one.
        rate: estimated fraction of these devices that changed nevertheless; null: no checked device answered.
        low: lower limit of its 95% confidence interval.
        high: upper limit.
    """

    carried: Count
    checked: Count
    answered: Count
    changed: Count
    rate: Share | None = None
    low: Share | None = None
    high: Share | None = None


@dataclass(frozen=True, slots=True)
class OutdatedResults:
    """How many of all carried results are outdated.

    Attributes:
        carried: devices whose results are carried.
        may_have_changed: those that were selected for a query, other than a recheck, and were not queried.
        low: lower limit of the outdated fraction: that of the recheck, and none of ``may_have_changed``. null: there
            is no recheck.
        high: upper limit: that of the recheck, and all of ``may_have_changed``.
    """

    carried: Count
    may_have_changed: Count
    low: Share | None = None
    high: Share | None = None


Strategy = Literal["incremental", "rolling", "sample", "index"]
"""How devices are selected.

``incremental``: those that may have changed since an earlier run. ``rolling``: as many as a budget allows. ``sample``:
a random sample. ``index``: a random part of those that the platform's search index has.
"""


@dataclass(frozen=True, slots=True)
class SelectionInfo:
    """The devices that a run queries, where these are not the complete fleet.

    Attributes:
        strategy: how devices are selected. incremental: those that may have changed since an earlier run. rolling: as
            many as a budget allows. sample: a random sample. index: a random part of those that the platform's search
            index has.
        baseline_run: folder of the earlier run whose results are carried forward; null: none.
        change_detection: rule by which connection states decide that a result is carried.
        seed: seed of the random selection.
        max_calls: call budget; null: none.
        sample_size: configured number of devices to sample; null: as many as the precision needs.
        precision: configured half-width of confidence intervals, as a fraction; null: not configured.
        precision_of: population of the shares that have this precision.
        achieved_precision: half the widest 95% confidence interval of these shares at the end; null: not configured, or
            no answer.
        budget_exhausted: whether the budget ended before all selected devices were queried.
        not_reached: selected devices, without those of a recheck, that were not queried and whose previous results
            are carried instead.
        accounts: accounts whose selection is final.
        recheck: recheck of devices without a sign of change; null: none.
        outdated: how many of the carried results are outdated; null: not an incremental run, or nothing is carried.
    """

    strategy: Strategy
    baseline_run: str | None = None
    change_detection: ChangeDetection | None = None
    seed: Count = 0
    max_calls: PositiveCount | None = None
    sample_size: PositiveCount | None = None
    precision: Share | None = None
    precision_of: Level | None = None
    achieved_precision: Share | None = None
    budget_exhausted: bool = False
    not_reached: Count = 0
    accounts: tuple[AccountSelection, ...] = ()
    recheck: Recheck | None = None
    outdated: OutdatedResults | None = None
