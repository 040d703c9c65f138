"""Strategies by which a run asks a fleet, and how old answers get by the one that asks a part of it each night."""

from dataclasses import dataclass
from typing import Literal

from auditor.models import SinceRule
from auditor.runs.manifest import Planned

Kind = Literal["full", "since", "rolling", "sample"]
"""``full``: every device. The others are as a run's ``choice`` has them."""


@dataclass(frozen=True, slots=True)
class StrategyPlan:
    """What one strategy takes in one run, and how old or how wrong what it tells may be. None: not known, or not told.

    Attributes:
        strategy: how devices are chosen.
        rule: when an answer is carried, for ``since``.
        sample: so many devices are drawn, for ``sample``.
        precision: how well shares are to be known, as a part, for ``sample``.
        budget: calls that there are, for ``rolling``.
        window: seconds that there are a night, for ``rolling``.
        devices: how many are asked.
        calls: for these, and for the states of devices.
        calls_least: what it takes at the least, where only that is known.
        seconds: how long that takes, for the longest account.
        seconds_least: likewise, at the least.
        oldest_nights: how many nights the oldest answer is old at most when a run ends, if each night has one run; 0:
            all are of this run.
        mean_nights: how many they are old on average at most.
        half_width: half the 95% confidence interval of a share of the fleet's devices at worst, which is that of 50%.
        recheck_rate, recheck_low, recheck_high: the part of the carried whose answers were other ones by now, with its
            95% confidence interval, as an earlier run measured.
        recheck_run: the name of that run's folder.
        run: the name of the run folder that tells how many devices are asked.
        fits: whether it fits into the window.
    """

    strategy: Kind
    rule: SinceRule | None = None
    sample: int | None = None
    precision: float | None = None
    budget: int | None = None
    window: float | None = None
    devices: int | None = None
    calls: int | None = None
    calls_least: int | None = None
    seconds: float | None = None
    seconds_least: float | None = None
    oldest_nights: int | None = None
    mean_nights: float | None = None
    half_width: float | None = None
    recheck_rate: float | None = None
    recheck_low: float | None = None
    recheck_high: float | None = None
    recheck_run: str | None = None
    run: str | None = None
    fits: bool | None = None


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
