"""Progress of a running audit, as reported to a callback, and the result of a finished one."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from auditor.log import log
from auditor.runs.manifest import DeviceCounts, Manifest
from auditor.runs.selection_info import RequestCounts
from auditor.storage.json_types import Count


@dataclass(frozen=True, slots=True)
class DiscoveryProgress:
    """How far the discovery of devices is, of one account or of several that have not finished.

    Attributes:
        accounts: number of these accounts.
        products: products that are listed.
        products_done: those that are completely listed.
        devices: devices that are listed so far.
        devices_reported: devices of the products by the platform's own count; None: a product has no count.
        pages: pages that this process received.
    """

    accounts: Count
    products: Count
    products_done: Count
    devices: Count
    devices_reported: Count | None
    pages: Count


@dataclass(frozen=True, slots=True)
class AccountProgress:
    """How far one account is, counted since this process started or resumed the run.

    Attributes:
        sent: requests sent.
        done: devices with an outcome, including the ``failed`` ones.
        in_flight: requests without an answer yet.
        rate: requests a second that the account's quota currently allows, as learned; None without a quota.
        finished: whether the account is queried no more.
        stopped: why the account was stopped, if it was.
        problem: why no results arrive from it now, if there is a reason.
        discovery: progress of its discovery; None once it has finished, and for a fleet file.
        configured_rate: requests a second that the quota allows as configured; None without one.
        throttled: requests that the platform refused for the quota.
        paused: devices that wait, mostly for a retry.
        longest_wait: seconds for which the oldest request in flight has no answer.
        timeout: seconds after which a request without an answer fails.
        other_processes: number of other processes that share its quota now.
    """

    name: str
    sent: int
    done: int
    failed: int
    in_flight: int
    rate: float | None
    finished: bool
    stopped: str | None
    problem: str | None
    discovery: DiscoveryProgress | None = None
    configured_rate: float | None = None
    throttled: int = 0
    paused: int = 0
    longest_wait: float = 0.0
    timeout: float = 0.0
    other_processes: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an audit is. Devices outside of a sample do not count here.

    Attributes:
        fleet: devices whose discovery has finished.
        devices, requests: of the complete run.
        target_rate: requests a second that all quotas allow as configured; None where an account has no quota.
        elapsed: seconds since this process started or resumed the run.
        learned_rate: requests a second that all quotas currently allow, as learned.
        other_processes: number of other processes that share one of the quotas now.
        problem: the problem of an account that gives no usable answer, if there is one.
        sealing: whether all queries have ended and the run is being sealed.
        before: requests sent and devices done by earlier processes.
        resumed: whether the run was resumed.
        discovery: progress of the accounts whose discovery has not finished.
        states: for how many devices, of how many, the connection state is known; None: of none now.
        release_pages: pages of firmware, update jobs and their tasks that this process has read; None: none now.
        accounts: progress of each account, in the settings' order.
    """

    folder: Path
    fleet: int
    devices: DeviceCounts
    requests: RequestCounts
    in_flight: int
    target_rate: float | None
    elapsed: float
    learned_rate: float | None = None
    other_processes: int = 0
    problem: str | None = None
    sealing: bool = False
    before: tuple[int, int] = (0, 0)
    resumed: bool = False
    discovery: DiscoveryProgress | None = None
    states: tuple[int, int] | None = None
    release_pages: int | None = None
    accounts: tuple[AccountProgress, ...] = ()


ProgressCallback = Callable[[Progress], None]


class ProgressReporter:
    """Reports progress to a callback, if there is one; a callback that fails is not called again."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback

    def report(self, progress: Callable[[], Progress]) -> None:
        """Pass the progress on, which is computed only if there is a callback."""
        if self._callback is None:
            return
        try:
            self._callback(progress())
        except Exception as error:  # noqa: BLE001  an audit of hours does not end for a display
            log.warning("progress_callback_failed", error=repr(error))
            self._callback = None


@dataclass(frozen=True, slots=True)
class AuditResult:
    """The result of an audit. The run folder is valid in every case.

    ``exit_code``: 0 done; 1 more devices failed or pending than ``max_failed`` allows, or an account is silent; 3 an
    account was stopped, or the folder cannot be written; 130 interrupted.
    """

    folder: Path
    manifest: Manifest
    exit_code: int


def combine_discovery_progress(parts: Collection[DiscoveryProgress]) -> DiscoveryProgress | None:
    """Return the sum of the progress of several accounts; None if there are none."""
    if not parts:
        return None
    reported = [each.devices_reported for each in parts]
    return DiscoveryProgress(
        accounts=sum(each.accounts for each in parts),
        products=sum(each.products for each in parts),
        products_done=sum(each.products_done for each in parts),
        devices=sum(each.devices for each in parts),
        devices_reported=None if None in reported else sum(count for count in reported if count is not None),
        pages=sum(each.pages for each in parts),
    )
