"""The state of a live run: the only owner of its manifest, with the counts that this process adds to it."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from auditor.client.operations import DEVICE_OPERATIONS
from auditor.engine.account_session import AccountSession
from auditor.engine.progress import DiscoveryProgress, Progress, combine_discovery_progress
from auditor.runs.journal import Journal
from auditor.runs.manifest import (
    DeviceCounts,
    DiscoveryInfo,
    FleetInfo,
    Manifest,
    write_manifest,
)
from auditor.runs.selection_info import (
    AccountSelection,
    MismatchedAccount,
    Planned,
    Rate,
    ReleasesInfo,
    RequestCounts,
    SelectionInfo,
)
from auditor.text.formatting import escape_undecodable


class RunState:
    """Counts what this process has done for a run, in addition to what earlier processes did.

    ``manifest`` is the one at the start of this process; ``accounts`` are the open accounts, whose list may grow.
    """

    def __init__(self, folder: Path, manifest: Manifest, journal: Journal, accounts: Sequence[AccountSession]) -> None:
        self._folder, self._journal, self._accounts = folder, journal, accounts
        self._recorded = manifest
        self._carried: Counter[str] = Counter()
        self._started_at = time.monotonic()
        self._querying_since: float | None = None
        self._before = (manifest.requests.sent, manifest.fleet.devices - manifest.devices.pending)

    def manifest(self) -> Manifest:
        """Return the current manifest."""
        recorded, requests, elapsed = self._recorded, self._requests(), self._query_seconds
        if recorded.rate.achieved:
            elapsed += recorded.requests.sent / recorded.rate.achieved  # the time of earlier processes
        achieved = round(requests.sent / max(elapsed, 0.001), 3)
        return replace(
            recorded,
            devices=self._device_counts(),
            requests=requests,
            rate=self._rate(achieved),
            mismatched=self._mismatched(),
            problems=(),
        )

    async def persist(self) -> None:
        """Write the current manifest to ``run.json``; raise RunNotWritableError if that fails."""
        # Computed in the thread: a manifest that was computed before the wait for the disk could be outdated.
        await self._journal.run_disk_work(
            lambda: write_manifest(self._folder, replace(self.manifest(), problems=self._problems()))
        )

    def record_fleet(self, fleet: FleetInfo, discovery: tuple[DiscoveryInfo, ...]) -> None:
        """Record a fleet to which discovered devices were added."""
        self._recorded = replace(self._recorded, fleet=fleet, discovery=discovery)

    def record_plan(self, planned: Planned | None) -> None:
        """Record the new plan."""
        self._recorded = replace(self._recorded, planned=planned)

    @property
    def releases(self) -> tuple[ReleasesInfo, ...]:
        """What was read of released firmware so far."""
        return self._recorded.releases

    def record_releases(self, releases: tuple[ReleasesInfo, ...]) -> None:
        """Record what was read of released firmware."""
        self._recorded = replace(self._recorded, releases=releases)

    @property
    def selection(self) -> SelectionInfo | None:
        """The selection so far; None: the run queries all devices."""
        return self._recorded.selection

    def record_selection(
        self, account: AccountSelection, carried: Mapping[str, int], *, unsampled: int
    ) -> SelectionInfo:
        """Record which devices of an account were selected; return the selection so far.

        ``carried`` counts the previous results that are now carried forward, by status, and ``unsampled`` the devices
        that are now known to be outside of the sample.
        """
        recorded = self._recorded
        if recorded.selection is None:
            raise ValueError("the run has no selection strategy")
        selection = replace(recorded.selection, accounts=(*recorded.selection.accounts, account))
        self._carried.update(carried)
        self._recorded = replace(recorded, selection=selection, unsampled=recorded.unsampled + unsampled)
        return selection

    def record_rejected(self, account: str, removed: Mapping[str, int]) -> None:
        """Record that results of an account were removed from those that were not queried, by status."""
        self._carried.subtract(removed)
        if (selection := self._recorded.selection) is not None:
            accounts = tuple(
                replace(each, carried=0) if each.account == account else each for each in selection.accounts
            )
            self._recorded = replace(self._recorded, selection=replace(selection, accounts=accounts))

    def finalize_selection(self, selection: SelectionInfo, carried: Mapping[str, int]) -> None:
        """Record the final selection, and the results that are carried in addition, by status."""
        self._carried.update(carried)
        self._recorded = replace(self._recorded, selection=selection)

    def start_querying(self) -> None:
        """Start the clock of the request rate, when the first devices are about to be queried."""
        self._querying_since = self._querying_since or time.monotonic()

    @property
    def fleet_devices(self) -> int:
        """Number of devices in the fleet so far."""
        return self._recorded.fleet.devices

    def progress(self, discovery: Mapping[str, DiscoveryProgress]) -> Progress:
        """Return the progress; ``discovery`` is that of the accounts whose discovery has not finished, by name."""
        recorded, finished = self._recorded, {session.name for session in self._accounts if session.finished}
        discovery = {name: each for name, each in discovery.items() if name not in finished}
        counts = self._device_counts()
        states = [session.states_progress for session in self._accounts if session.states_progress is not None]
        return Progress(
            folder=self._folder,
            fleet=recorded.fleet.devices - recorded.unsampled,
            devices=replace(counts, pending=counts.pending - recorded.unsampled),
            requests=self._requests(),
            in_flight=sum(session.stats.in_flight for session in self._accounts),
            target_rate=recorded.rate.target,
            learned_rate=self._learned_rate(),
            other_processes=max((session.quota_status.other_processes for session in self._accounts), default=0),
            elapsed=time.monotonic() - self._started_at,
            problem=next((problem for session in self._accounts if (problem := session.problem) is not None), None),
            before=self._before,
            resumed=bool(recorded.resumed_at),
            accounts=tuple(replace(each.progress, discovery=discovery.get(each.name)) for each in self._accounts),
            discovery=combine_discovery_progress(discovery.values()),
            states=(sum(done for done, _ in states), sum(total for _, total in states)) if states else None,
        )

    @property
    def _query_seconds(self) -> float:
        """Seconds in which this process has queried devices."""
        return 0.0 if self._querying_since is None else time.monotonic() - self._querying_since

    def _rate(self, achieved: float) -> Rate:
        before, stats = self._recorded.rate, [session.stats for session in self._accounts]
        answered, seconds = sum(each.answered for each in stats), sum(each.seconds for each in stats)
        return Rate(
            target=before.target,
            achieved=achieved,
            learned=self._learned_rate(),
            latency=round(seconds / answered, 6) if answered else before.latency,
            in_flight=round(seconds / max(self._query_seconds, 0.001), 3),
        )

    def _learned_rate(self) -> float | None:
        """Return the requests a second that all quotas allow, as learned; None where one account has no quota."""
        rates = [session.quota_status.rate for session in self._accounts]
        return None if None in rates or not rates else round(sum(rate for rate in rates if rate is not None), 3)

    def _device_counts(self) -> DeviceCounts:
        counts = {status: devices + self._carried[status] for status, devices in self._journal.counts.items()}
        return DeviceCounts(**counts, pending=self._recorded.fleet.devices - sum(counts.values()))

    def _problems(self) -> tuple[str, ...]:
        problems = (session.problem for session in self._accounts if not session.finished)
        return tuple(escape_undecodable(problem) for problem in problems if problem is not None)

    def _mismatched(self) -> tuple[MismatchedAccount, ...]:
        counts = Counter({each.account: each.answers for each in self._recorded.mismatched})
        counts.update({session.name: session.mismatches for session in self._accounts if session.mismatches})
        return tuple(MismatchedAccount(*each) for each in counts.items())

    def _requests(self) -> RequestCounts:
        stats = [session.request_stats(*DEVICE_OPERATIONS) for session in self._accounts]
        before = self._recorded.requests
        return RequestCounts(
            sent=before.sent + sum(each.sent for each in stats),
            retried=before.retried + sum(each.retried for each in stats),
            throttled=before.throttled + sum(each.throttled for each in stats),
        )
