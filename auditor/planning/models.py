"""Plans as data: the cost of a complete audit by account, and of each strategy (``auditor plan --format json``)."""

from dataclasses import dataclass
from typing import Literal

from auditor.models import ChangeDetection
from auditor.runs.selection_info import Planned

PlanStrategy = Literal["full", "index", "details", "incremental", "rolling", "sample"]
"""``full``: every device, one a call. ``details``: the module ``default`` of every device, many a call. The others are
those of ``selection.strategy`` in ``run.json``."""

BulkReadingKind = Literal["index", "details"]
"""Ways to read many devices a call: by the platform's search index, or the details of the module ``default`` only."""

AccountReading = Literal["device", "index", "details"]
"""How the devices of an account are read: ``device`` is one a call."""


@dataclass(frozen=True, slots=True)
class StrategyPlan:
    """Cost of one run with one strategy, and the age or error of its results. None: unknown, or not applicable.

    Attributes:
        strategy: how devices are selected.
        change_detection: which devices may have changed, for ``incremental``.
        sample_size: number of sampled devices, for ``sample``.
        precision: required half-width of intervals as a fraction, for ``sample``.
        max_calls: call budget of a run, for ``rolling``.
        window: seconds available for a run, for ``rolling``.
        devices: number of devices to query.
        calls: calls for these devices, and for connection states.
        min_calls: lower bound of the calls, if only that is known.
        seconds: duration, for the slowest account.
        min_seconds: lower bound of the duration, if only that is known.
        max_age_runs: maximum age of the oldest result at the end of a run, in runs; 0: every result is of this run.
        mean_age_runs: maximum mean age of the results, in runs.
        half_width: half the 95% interval of a share of the fleet in the worst case, a share of 50%.
        recheck_rate, recheck_low, recheck_high: fraction of the devices without a sign of change that changed, with its
            95% interval, as measured by an earlier run.
        recheck_run: name of that run's folder.
        run: name of the run folder that the number of devices is estimated from.
        fits: whether it fits into the plan's window.
    """

    strategy: PlanStrategy
    change_detection: ChangeDetection | None = None
    sample_size: int | None = None
    precision: float | None = None
    max_calls: int | None = None
    window: float | None = None
    devices: int | None = None
    calls: int | None = None
    min_calls: int | None = None
    seconds: float | None = None
    min_seconds: float | None = None
    max_age_runs: int | None = None
    mean_age_runs: float | None = None
    half_width: float | None = None
    recheck_rate: float | None = None
    recheck_low: float | None = None
    recheck_high: float | None = None
    recheck_run: str | None = None
    run: str | None = None
    fits: bool | None = None


@dataclass(frozen=True, slots=True)
class Remedy:
    """Changes that make an account fit into a window that is too short for it; either one is enough.

    Attributes:
        quota_share: smallest sufficient share of the quota, a multiple of 0.01; None: the complete quota is not enough.
        devices: number of devices that fit into one window with the current settings.
        windows: number of windows for all devices, or of accounts with the same quota and share for one window; None:
            not even one device fits.
    """

    quota_share: float | None
    devices: int
    windows: int | None


@dataclass(frozen=True, slots=True)
class AccountPlan:
    """Cost of one account.

    Attributes:
        account: its name.
        devices: number of devices to query.
        devices_assumed: whether that number is from an earlier run, because the platform lists the fleet.
        devices_counted: whether that number is the platform's own count, because no run has recorded the list. Filters
            reduce it by their share of a sample; without filters, devices that were never activated count, too.
        calls_per_device: mean number of calls for a device, with retries.
        calls_assumed: whether one call per device is assumed, because no run measured it.
        calls: calls for all devices.
        calls_per_second: configured rate; None: no quota, or an unknown one.
        quota_share: configured share of the quota.
        seconds: duration at that rate; None: unknown.
        in_flight: requests in flight that the rate requires; None: unknown.
        fits: whether it fits into the window; None: unknown, or no window was given.
        remedy: what would make it fit; None if it does.
        release_requests: requests for released firmware after the devices, as in ``release_run``; None: unknown, or the
            settings have no ``released``. They are not among the calls.
        release_seconds: maximum duration of these requests, at the quota of ``ListOTATaskByJob``.
        release_run: name of the run folder that their number is from.
        read: how its devices are read, which all of these figures are about.
    """

    account: str
    devices: int
    devices_assumed: bool
    devices_counted: bool
    calls_per_device: float
    calls_assumed: bool
    calls: int
    calls_per_second: float | None
    quota_share: float
    seconds: float | None
    in_flight: int | None
    fits: bool | None
    remedy: Remedy | None
    release_requests: int | None = None
    release_seconds: float | None = None
    release_run: str | None = None
    read: AccountReading = "device"


@dataclass(frozen=True, slots=True)
class Plan:
    """Cost of an audit, estimated from the quotas and an earlier run of the same name.

    Attributes:
        name: the audit's name.
        run: name of the run folder that calls and latency are estimated from; None: there is none.
        devices, calls: sums over all accounts.
        seconds: duration of the slowest account, as accounts are audited concurrently; None: one is unknown.
        in_flight: requests in flight that all rates require together; None: one is unknown.
        latency: seconds from a request to its response.
        latency_assumed: whether no run measured the latency.
        concurrency: the setting.
        concurrency_advised: value of the setting that the known quotas require; None: the setting is enough.
        window: seconds available; None: not given.
        fits: whether all accounts fit into the window; None: unknown, or no window was given.
        accounts: cost of each account, in the settings' order.
        strategies: cost of querying every device, and of each other strategy; empty: not compared.
    """

    name: str
    run: str | None
    devices: int
    calls: int
    seconds: float | None
    in_flight: int | None
    latency: float
    latency_assumed: bool
    concurrency: int
    concurrency_advised: int | None
    window: float | None
    fits: bool | None
    accounts: tuple[AccountPlan, ...]
    strategies: tuple[StrategyPlan, ...] = ()

    @property
    def planned(self) -> Planned:
        """The figures that are stored in a run's manifest."""
        return Planned(self.calls, self.seconds, self.in_flight)
