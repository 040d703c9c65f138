"""Where an audit stands, in numbers: for its manifest, and for whoever watches."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from auditor.engine.account_session import AskedAccount
from auditor.engine.progress import ListingProgress, Progress, together
from auditor.runs.journal import Journal
from auditor.runs.manifest import DeviceCounts, FleetFacts, ListingFacts, Manifest, Rate, RequestCounts


class Standing:
    """Counts what a stretch of an audit has done, on top of what was done before it.

    Args:
        folder: the run folder.
        manifest: as the stretch began.
        journal: what is written.
        accounts: who is asked.
    """

    def __init__(self, folder: Path, manifest: Manifest, journal: Journal, accounts: Sequence[AskedAccount]) -> None:
        self.manifest = manifest
        self._folder, self._journal, self.accounts = folder, journal, accounts
        self._began = time.monotonic()
        self._asking_since: float | None = None
        self._before = (manifest.requests.sent, manifest.fleet.devices - manifest.devices.pending)

    @property
    def requests_before(self) -> int:
        """Requests for module versions and states that earlier stretches sent."""
        choice = self.manifest.choice
        states = () if choice is None else (account.requests.sent for account in choice.accounts)
        return self._before[0] + sum(states)

    @property
    def elapsed(self) -> float:
        """Seconds since the stretch began."""
        return time.monotonic() - self._began

    def begin_asking(self) -> None:
        """From now on devices are asked about: only from then on there is a rate."""
        self._asking_since = self._asking_since or time.monotonic()

    @property
    def _asking(self) -> float:
        """Seconds in which devices were asked about."""
        return 0.0 if self._asking_since is None else time.monotonic() - self._asking_since

    def grow(self, fleet: FleetFacts, listings: tuple[ListingFacts, ...]) -> None:
        """The fleet has grown."""
        self.manifest = replace(self.manifest, fleet=fleet, listings=listings)

    def now(self) -> Manifest:
        """The manifest as the audit stands now."""
        requests, before = self._requests(), self.manifest
        elapsed = self._asking
        if before.rate.achieved:
            elapsed += before.requests.sent / before.rate.achieved  # what earlier stretches took
        achieved = round(requests.sent / max(elapsed, 0.001), 3)
        return replace(before, devices=self._counts(), requests=requests, rate=self._rate(achieved))

    def progress(self, listings: Mapping[str, ListingProgress]) -> Progress:
        """What a watcher is told; ``listings`` are of the accounts whose fleets are not known yet."""
        before, ended = self.manifest, {asked.name for asked in self.accounts if asked.ended}
        listings = {name: each for name, each in listings.items() if name not in ended}
        counts, states = self._counts(), [asked.states for asked in self.accounts if asked.states is not None]
        return Progress(
            folder=self._folder,
            fleet=before.fleet.devices - before.unsampled,
            devices=replace(counts, pending=counts.pending - before.unsampled),
            requests=self._requests(),
            in_flight=sum(asked.tally.in_flight for asked in self.accounts),
            per_second=before.rate.target,
            allowed=self._allowed(),
            others=max((asked.pace.others for asked in self.accounts), default=0),
            elapsed=self.elapsed,
            trouble=next((said for asked in self.accounts if (said := asked.trouble) is not None), None),
            before=self._before,
            resumed=bool(before.resumed_at),
            accounts=tuple(replace(asked.progress, listing=listings.get(asked.name)) for asked in self.accounts),
            listing=together(listings.values()),
            states=(sum(told for told, _ in states), sum(every for _, every in states)) if states else None,
        )

    def _rate(self, achieved: float) -> Rate:
        before, tallies = self.manifest.rate, [asked.tally for asked in self.accounts]
        answered, seconds = sum(tally.answered for tally in tallies), sum(tally.seconds for tally in tallies)
        return Rate(
            target=before.target,
            achieved=achieved,
            allowed=self._allowed(),
            latency=round(seconds / answered, 6) if answered else before.latency,
            in_flight=round(seconds / max(self._asking, 0.001), 3),
        )

    def _allowed(self) -> float | None:
        """Requests a second that all quotas bear together, as far as was learned; None where one account has none."""
        rates = [asked.pace.rate for asked in self.accounts]
        return None if None in rates or not rates else round(sum(rate for rate in rates if rate is not None), 3)

    def _counts(self) -> DeviceCounts:
        written = self._journal.counts
        return DeviceCounts(**written, pending=self.manifest.fleet.devices - sum(written.values()))

    def _requests(self) -> RequestCounts:
        tallies, before = [asked.tally for asked in self.accounts], self.manifest.requests
        return RequestCounts(
            sent=before.sent + sum(tally.sent for tally in tallies),
            retried=before.retried + sum(tally.retried for tally in tallies),
            throttled=before.throttled + sum(tally.throttled for tally in tallies),
        )
