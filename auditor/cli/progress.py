"""Show the progress of an audit on standard error: live on a terminal, as lines of the log elsewhere."""

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

from auditor.cli.console import LOG_STYLE, is_dumb_terminal, print_error
from auditor.engine.monitor import SLOWED_FRACTION
from auditor.engine.progress import AccountProgress, DiscoveryProgress, Progress, ProgressCallback
from auditor.text.formatting import format_count, format_duration, safe

PLAIN_INTERVAL = 5.0
"""Seconds between plain lines."""

RATE_WINDOW = 10.0
"""Seconds over which rates and the remaining time are averaged."""

MAX_ACCOUNTS = 20
"""Accounts that are shown, those with problems first."""


@contextmanager
def show_progress() -> Iterator[ProgressCallback]:
    """Yield a callback that shows an audit's progress."""
    view = _ProgressView()
    if not sys.stderr.isatty() or is_dumb_terminal() or LOG_STYLE.format == "json":
        yield _announce_resume(_print_lines(view))
        return
    console = Console(stderr=True, highlight=False)
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def watch(progress: Progress) -> None:
            line, accounts = view.describe(progress)
            live.update(_render(progress, line, accounts))

        yield _announce_resume(watch)


def _render(progress: Progress, line: str, accounts: list[tuple[AccountProgress, float]]) -> RenderableType:
    """Render a bar and a line for the audit, and a line for each account, cut at the terminal's width."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(ProgressBar(total=progress.fleet, completed=_completed(progress), width=30), Text(line))
    if not accounts:
        return grid
    shown = [(safe(account.name), _describe_account(account, rate)) for account, rate in accounts[:MAX_ACCOUNTS]]
    width = max(len(name) for name, _ in shown)
    lines = [f"{name:<{width}}  {description}" for name, description in shown]
    if len(accounts) > MAX_ACCOUNTS:
        lines.append(f"and {len(accounts) - MAX_ACCOUNTS:,} more")
    return Group(grid, *(Text(line, no_wrap=True, overflow="ellipsis") for line in lines))


def _announce_resume(watch: ProgressCallback) -> ProgressCallback:
    """Wrap a callback to print first which run is resumed."""
    announced = False

    def announce(progress: Progress) -> None:
        nonlocal announced
        if progress.resumed and not announced:
            remaining = f"{progress.devices.unanswered:,} of {progress.fleet:,} devices remain"
            discovery = "" if progress.discovery is None else ", and fleets are not completely listed"
            print_error(f"resuming {safe(progress.folder)}: {remaining}{discovery}")
        announced = True
        watch(progress)

    return announce


def _print_lines(view: "_ProgressView") -> ProgressCallback:
    last = time.monotonic()

    def watch(progress: Progress) -> None:
        nonlocal last
        line, accounts = view.describe(progress)
        if progress.sealing or time.monotonic() - last >= PLAIN_INTERVAL:
            last = time.monotonic()
            print_error(line)
            if accounts:
                more = f"; and {len(accounts) - MAX_ACCOUNTS:,} more" if len(accounts) > MAX_ACCOUNTS else ""
                shown = (
                    f"{safe(account.name)}: {_summarize_account(account, rate)}"
                    for account, rate in accounts[:MAX_ACCOUNTS]
                )
                print_error(f"  {'; '.join(shown)}{more}")

    return watch


class _RateWindow:
    """Rates over the last seconds. An average since the start would hide what happens now."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int]] = deque()

    def rates(self, elapsed: float, sent: int, done: int, before: tuple[int, int] = (0, 0)) -> tuple[float, float]:
        """Return requests and devices per second over the last ``RATE_WINDOW`` seconds, or fewer after the start.

        ``sent`` and ``done`` are the totals ``elapsed`` seconds after the start, ``before`` those at the start.
        """
        now = (elapsed, sent, done)
        if not self._samples:
            self._samples.append((0.0, *before))
        self._samples.append(now)
        while self._samples[0] is not now and self._samples[1][0] <= elapsed - RATE_WINDOW:
            self._samples.popleft()
        seconds = max(elapsed - self._samples[0][0], 0.001)
        return (sent - self._samples[0][1]) / seconds, (done - self._samples[0][2]) / seconds


class _ProgressView:
    """Describes an audit, and keeps what its rates need."""

    def __init__(self) -> None:
        self._total = _RateWindow()
        self._accounts: dict[str, _RateWindow] = {}

    def describe(self, progress: Progress) -> tuple[str, list[tuple[AccountProgress, float]]]:
        """Return a line for the audit, and its accounts with their requests per second if there are several.

        Accounts with problems come first.
        """
        rates = self._total.rates(progress.elapsed, progress.requests.sent, _completed(progress), progress.before)
        accounts = [(each, self._rate(each, progress.elapsed)) for each in progress.accounts]
        accounts.sort(key=lambda pair: pair[0].stopped is None and pair[0].problem is None)
        several = len(accounts) > 1 and not progress.sealing
        return _describe_progress(progress, rates), accounts if several else []

    def _rate(self, account: AccountProgress, elapsed: float) -> float:
        window = self._accounts.setdefault(account.name, _RateWindow())
        requests, _ = window.rates(elapsed, account.sent, account.done)
        return requests


def _describe_account(account: AccountProgress, rate: float) -> str:
    """Return a line for an account, with the reason of a problem at its end, for that may be long."""
    if account.stopped is not None:
        return f"{_summarize_account(account, rate)}; {_account_error(account, account.stopped)}"
    if account.finished:
        return _summarize_account(account, rate)
    problem = "" if account.problem is None else f"; {_account_error(account, account.problem)}"
    return f"{_summarize_account(account, rate)}, {account.in_flight} in flight{problem}"


def _summarize_account(account: AccountProgress, rate: float) -> str:
    """Return the account's state in a few words."""
    if account.discovery is not None and account.stopped is None:
        return f"discovering {_describe_discovery(account.discovery)}"
    state = "stopped" if account.stopped is not None else "done" if account.finished else f"{rate:,.1f} requests/s"
    problem = ", unhealthy" if account.problem is not None else ""
    failed = f", {account.failed:,} failed" if account.failed else ""
    return f"{state}{problem}, {format_count(account.done, 'device')}{failed}"


def _account_error(account: AccountProgress, sentence: str) -> str:
    return safe(sentence.removeprefix(f'account "{account.name}": '))


def _completed(progress: Progress) -> int:
    return progress.fleet - progress.devices.pending


def _describe_progress(progress: Progress, rates: tuple[float, float]) -> str:
    done = _completed(progress)
    problem = "" if progress.problem is None else f"; {safe(progress.problem)}"
    if progress.discovery is not None and not progress.fleet:
        rate = f"{progress.discovery.pages / max(progress.elapsed, 0.001):,.1f} requests/s"
        return f"discovering: {_describe_discovery(progress.discovery)}, {rate}{problem}"
    if progress.sealing:
        return f"{done:,}/{progress.fleet:,} devices in {format_duration(progress.elapsed)}, sealing"
    if progress.release_pages is not None:
        pages = format_count(progress.release_pages, "page")
        return f"{done:,}/{progress.fleet:,} devices; reading released firmware: {pages}{problem}"
    if progress.states is not None:
        read, requested = progress.states
        share = f"{read / max(requested, 1):.1%}"
        return f"reading connection states: {read:,}/{requested:,} devices ({share}){problem}"
    requests, devices = rates
    remaining = format_duration(progress.devices.pending / devices) if devices > 0 else "?"
    throttled = f", {progress.requests.throttled:,} throttled" if progress.requests.throttled else ""
    discovery = "" if progress.discovery is None else f"; still discovering: {_describe_discovery(progress.discovery)}"
    return (
        f"{done:,}/{progress.fleet:,} devices ({done / max(progress.fleet, 1):.1%}), "
        f"{requests:,.1f} requests/s{_describe_quota(progress, requests)}, "
        f"{progress.in_flight} in flight, {progress.devices.failed:,} failed{throttled}, {remaining} left"
        f"{discovery}{problem}"
    )


def _describe_discovery(discovery: DiscoveryProgress) -> str:
    """Return how many products and devices are listed."""
    total = ""
    if discovery.devices_reported is not None:
        total = f" of about {max(discovery.devices_reported, discovery.devices):,}"
    products = f"{discovery.products_done:,}/{discovery.products:,} products"
    return f"{products}, {discovery.devices:,}{total} devices"


def _describe_quota(progress: Progress, requests: float) -> str:
    """Return the fraction of the quota in use, a learned limit below the quota, and who shares it."""
    target, learned, parts = progress.target_rate, progress.learned_rate, []
    if target is not None:
        parts.append(f"{requests / target:.0%} of the quota")
    if learned is not None and (target is None or learned < SLOWED_FRACTION * target):
        parts.append(f"limited to {learned:,.1f}/s")
    if progress.other_processes:
        parts.append(f"shared with {format_count(progress.other_processes, 'other')}")
    return f" ({', '.join(parts)})" if parts else ""
