"""What people see of an audit under way: a live view on a terminal, plain lines elsewhere, all on standard error."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from auditor.cli.console import say
from auditor.engine.monitor import SLOWED
from auditor.engine.progress import AccountProgress, ListingProgress, Progress, Watch
from auditor.text.formatting import safe, span

PLAIN_SECONDS = 5.0
"""How often it is told where there is no terminal."""


SMOOTHING = 10.0
"""Seconds over which rates and the time left are taken."""


MOST_ACCOUNTS = 20
"""Accounts that are shown, those in trouble first."""


@contextmanager
def watching() -> Iterator[Watch]:
    """A watcher for an audit: a live view on a terminal, a plain line or two every few seconds elsewhere."""
    view = _View()
    if not sys.stderr.isatty():
        yield _announced(_plain(view))
        return
    console = Console(stderr=True, highlight=False)
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def watch(progress: Progress) -> None:
            line, accounts = view.of(progress)
            live.update(_drawn(progress, line, accounts))

        yield _announced(watch)


def _drawn(progress: Progress, line: str, accounts: list[tuple[AccountProgress, float]]) -> RenderableType:
    """A bar and a line for the whole, and a line for each account that is cut where the terminal ends."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=progress.fleet, completed=_done(progress), width=30), Text(line))
    if not accounts:
        return grid
    shown = [(safe(account.name), _state(account, rate)) for account, rate in accounts[:MOST_ACCOUNTS]]
    width = max(len(name) for name, _ in shown)
    lines = [f"{name:<{width}}  {state}" for name, state in shown]
    if len(accounts) > MOST_ACCOUNTS:
        lines.append(f"and {len(accounts) - MOST_ACCOUNTS:,} more")
    return Group(grid, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


def _announced(watch: Watch) -> Watch:
    """A watcher that says first which run is gone on with."""
    told = False

    def announced(progress: Progress) -> None:
        nonlocal told
        if progress.resumed and not told:
            left = f"{progress.devices.unanswered:,} of {progress.fleet:,} devices are left to ask"
            fleets = "" if progress.listing is None else ", and fleets are left to list"
            say(f"going on with {safe(progress.folder)}: {left}{fleets}")
        told = True
        watch(progress)

    return announced


def _plain(view: "_View") -> Watch:
    last = time.monotonic()

    def watch(progress: Progress) -> None:
        nonlocal last
        line, accounts = view.of(progress)
        if progress.sealing or time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            say(line)
            if accounts:
                more = f"; and {len(accounts) - MOST_ACCOUNTS:,} more" if len(accounts) > MOST_ACCOUNTS else ""
                shown = (f"{safe(account.name)}: {_brief(account, rate)}" for account, rate in accounts[:MOST_ACCOUNTS])
                say(f"  {'; '.join(shown)}{more}")

    return watch


class _Recent:
    """Rates over the last seconds: an average since the start hides what happens now."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def rates(self, elapsed: float, sent: int, done: int, before: tuple[int, int] = (0, 0)) -> tuple[float, float]:
        """Requests and devices a second, lately; ``before``: how many there were when it began."""
        now = (elapsed, sent, done)
        if not self._seen:
            self._seen.append((0.0, *before))
        self._seen.append(now)
        while self._seen[0] is not now and self._seen[1][0] <= elapsed - SMOOTHING:
            self._seen.popleft()
        seconds = max(elapsed - self._seen[0][0], 0.001)
        return (sent - self._seen[0][1]) / seconds, (done - self._seen[0][2]) / seconds


class _View:
    """An audit in words, with what must be remembered for the rates of it and of each account."""

    def __init__(self) -> None:
        self._all = _Recent()
        self._each: dict[str, _Recent] = {}

    def of(self, progress: Progress) -> tuple[str, list[tuple[AccountProgress, float]]]:
        """A line for the whole, and where there are several accounts, each with its requests a second lately: those in
        trouble first.
        """
        rates = self._all.rates(progress.elapsed, progress.requests.sent, _done(progress), progress.before)
        accounts = [(each, self._rate(each, progress.elapsed)) for each in progress.accounts]
        accounts.sort(key=lambda pair: pair[0].stopped is None and pair[0].trouble is None)
        return _line(progress, rates), [] if progress.sealing or len(accounts) < 2 else accounts  # noqa: PLR2004

    def _rate(self, account: AccountProgress, elapsed: float) -> float:
        requests, _ = self._each.setdefault(account.name, _Recent()).rates(elapsed, account.sent, account.done)
        return requests


def _state(account: AccountProgress, rate: float) -> str:
    """Where an account stands; why it is in trouble last, for that may be long."""
    if account.stopped is not None:
        return f"{_brief(account, rate)}; {_reason(account, account.stopped)}"
    if account.ended:
        return _brief(account, rate)
    trouble = "" if account.trouble is None else f"; {_reason(account, account.trouble)}"
    return f"{_brief(account, rate)}, {account.in_flight} in flight{trouble}"


def _brief(account: AccountProgress, rate: float) -> str:
    """The same in a few words."""
    state = "stopped" if account.stopped is not None else "ended" if account.ended else f"{rate:,.1f} requests/s"
    if account.listing is not None and account.stopped is None:
        return f"listing {_listing(account.listing)}"
    trouble = ", in trouble" if account.trouble is not None else ""
    failed = f", {account.failed:,} failed" if account.failed else ""
    return f"{state}{trouble}, {account.done:,} done{failed}"


def _reason(account: AccountProgress, sentence: str) -> str:
    return safe(sentence.removeprefix(f'account "{account.name}": '))


def _done(progress: Progress) -> int:
    return progress.fleet - progress.devices.pending


def _line(progress: Progress, rates: tuple[float, float]) -> str:
    done = _done(progress)
    if progress.listing is not None and not progress.fleet:
        rate = f"{progress.listing.pages / max(progress.elapsed, 0.001):,.1f} requests/s"
        trouble = "" if progress.trouble is None else f"; {safe(progress.trouble)}"
        return f"listing: {_listing(progress.listing)}, {rate}{trouble}"
    if progress.sealing:
        return f"{done:,}/{progress.fleet:,} devices in {span(progress.elapsed)}, sealing"
    if progress.states is not None:
        told, every = progress.states
        trouble = "" if progress.trouble is None else f"; {safe(progress.trouble)}"
        return f"asking who was connected: {told:,}/{every:,} devices ({told / max(every, 1):.1%}){trouble}"
    requests, devices = rates
    left = span(progress.devices.pending / devices) if devices > 0 else "?"
    throttled = f", {progress.requests.throttled:,} over the quota" if progress.requests.throttled else ""
    trouble = "" if progress.trouble is None else f"; {safe(progress.trouble)}"
    listing = "" if progress.listing is None else f"; still listing: {_listing(progress.listing)}"
    return (
        f"{done:,}/{progress.fleet:,} devices ({done / max(progress.fleet, 1):.1%}), "
        f"{requests:,.1f} requests/s{_pace(progress, requests)}, "
        f"{progress.in_flight} in flight, {progress.devices.failed:,} failed{throttled}, {left} left{listing}{trouble}"
    )


def _listing(listing: ListingProgress) -> str:
    """How far the fleets are known that the platform lists."""
    told = "" if listing.told is None else f" of about {max(listing.told, listing.devices):,}"
    return f"{listing.done:,}/{listing.products:,} products, {listing.devices:,}{told} devices"


def _pace(progress: Progress, requests: float) -> str:
    """What of the quota that is, what is known of the quota beyond what was told, and who shares it."""
    told, allowed, said = progress.per_second, progress.allowed, []
    if told is not None:
        said.append(f"{requests / told:.0%} of the quota")
    if allowed is not None and (told is None or allowed < SLOWED * told):
        said.append(f"at {allowed:,.1f}/s")
    if progress.others:
        said.append(f"shared with {progress.others} other{'s' if progress.others > 1 else ''}")
    return f" ({', '.join(said)})" if said else ""
