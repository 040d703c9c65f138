"""Show the progress of an audit on standard error: live on a terminal, as lines of the log elsewhere."""

import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Literal, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from auditor.cli.console import LOG_STYLE, is_dumb_terminal, print_error
from auditor.engine.monitor import SLOWED_FRACTION
from auditor.engine.progress import AccountProgress, DiscoveryProgress, Progress, ProgressCallback
from auditor.text.formatting import format_count, format_duration, format_utc_second, safe

PLAIN_INTERVAL, LATER_INTERVAL, FIRST_SECONDS = 5.0, 60.0, 60.0
"""Seconds between plain lines, between later ones of text, and after which those begin: a log has few of a long run."""

RATE_WINDOW = 10.0
"""Seconds over which rates and the remaining time are averaged."""

MAX_ACCOUNTS = 20
"""Accounts that are shown, those with problems first."""

_NAME_WIDTH, _STATE_WIDTH, _RATE_WIDTH, _REMAINING_WIDTH = 16, 7, 11, 14
"""Characters of columns: the maximum of names, and the minimum of the others, so that they stay in their places."""

_STATE_STYLES = {"stopped": "red", "failing": "red", "slowed": "yellow", "done": "dim"}


Stage = Literal["discovery", "states", "querying", "releases", "sealing"]
"""What an audit does now: listing devices, reading their connection states, querying them, and what comes after."""


@contextmanager
def show_progress() -> Iterator[ProgressCallback]:
    """Yield a callback that shows an audit's progress in the style of this process."""
    view, style = _ProgressView(), LOG_STYLE.progress
    if style == "none":
        yield _announce_resume(lambda _: None)
        return
    if LOG_STYLE.format == "json":
        yield _announce_resume(_print_records(view))
        return
    if style == "line" or not sys.stderr.isatty() or is_dumb_terminal():
        yield _announce_resume(_print_lines(view))
        return
    console = Console(stderr=True, highlight=False)
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def watch(progress: Progress) -> None:
            live.update(_render(progress, view.describe(progress)))

        yield _announce_resume(watch)


def _render(progress: Progress, shown: "_Description") -> RenderableType:
    """Render a line for the audit, one for each account, and what the last devices wait for.

    Columns stay where they are, and lines are cut at the terminal's width.
    """
    degraded = progress.problem is not None or any(each.stopped is not None for each in progress.accounts)
    if not _is_querying(progress):
        lines: list[RenderableType] = [
            Text(shown.line, no_wrap=True, overflow="ellipsis", style="red" if degraded else "")
        ]
    else:
        lines = [_render_total(progress, shown.remaining, degraded=degraded)]
    if shown.accounts and not progress.sealing and (_is_querying(progress) or len(shown.accounts) > 1):
        lines += _render_accounts(progress, shown.accounts[:MAX_ACCOUNTS])
        if len(shown.accounts) > MAX_ACCOUNTS:
            lines.append(Text(f"  and {len(shown.accounts) - MAX_ACCOUNTS:,} more accounts"))
    if shown.waiting is not None:
        lines.append(Text(shown.waiting, no_wrap=True, overflow="ellipsis"))
    return Group(*lines)


def _render_total(progress: Progress, remaining: str, *, degraded: bool) -> RenderableType:
    """Render the devices with an outcome: numbers, a bar, and the remaining time. Each column has a fixed place."""
    done, fleet, colour = _completed(progress), f"{progress.fleet:,}", "red" if degraded else "blue"
    share = int(100 * done / max(progress.fleet, 1))
    bar = ProgressBar(total=progress.fleet, completed=done, complete_style=colour, finished_style=colour)
    grid = Table.grid(padding=(0, 2), expand=True)
    for _ in range(2):
        grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right", min_width=_REMAINING_WIDTH)
    grid.add_row(f"{done:>{len(fleet)},} / {fleet}", f"{share:>3}%", bar, remaining)
    return grid


def _render_accounts(progress: Progress, accounts: list[tuple[AccountProgress, float]]) -> Iterator[Text]:
    """Yield a line for each account: state, devices, requests a second, failed devices, and what is the matter.

    Only the last column is cut where the terminal is too narrow.
    """
    digits = len(f"{progress.fleet:,}")
    names = [safe(account.name) for account, _ in accounts]
    width = min(max(map(cell_len, names)), _NAME_WIDTH)
    for name, (account, rate) in zip(names, accounts, strict=True):
        state = _state_of(account)
        of = "" if account.configured_rate is None else f" of {account.configured_rate:,.0f}"
        active = f"{rate:,.0f}/s{of}" if not account.finished and account.stopped is None else ""
        shown = name if cell_len(name) <= width else f"{set_cell_size(name, width - 1)}…"
        line = Text(no_wrap=True, overflow="ellipsis").append(f"  {set_cell_size(shown, width)}  ")
        line.append(f"{state:<{_STATE_WIDTH}}", style=_STATE_STYLES.get(state, ""))
        line.append(f"  {account.done:>{digits},}  {active:>{_RATE_WIDTH}}  ")
        line.append(f"{account.failed:>{digits},} failed", style="red" if account.failed else "")
        yield line.append(f"  {_describe_detail(account)}")


AccountState = Literal["stopped", "done", "failing", "listing", "slowed", "ok"]


def _state_of(account: AccountProgress) -> AccountState:
    """Return an account's state in a word."""
    if account.stopped is not None:
        return "stopped"
    if account.finished:
        return "done"
    if account.problem is not None:
        return "failing"
    if account.discovery is not None:
        return "listing"
    return "slowed" if _is_slowed(account) else "ok"


def _is_slowed(account: AccountProgress) -> bool:
    rate, configured = account.rate, account.configured_rate
    return rate is not None and configured is not None and rate < SLOWED_FRACTION * configured


def _describe_detail(account: AccountProgress) -> str:
    """Return what is the matter with an account, or how far its discovery is."""
    if (problem := account.stopped or account.problem) is not None:
        return _account_error(account, problem)
    parts = [_describe_discovery(account.discovery)] if account.discovery is not None else []
    if account.throttled:
        allowed = f", {account.rate:,.1f}/s accepted" if _is_slowed(account) else ""
        parts.append(f"quota refused {account.throttled:,}x{allowed}")
    if account.other_processes and not account.finished:
        parts.append(f"shared with {format_count(account.other_processes, 'other')}")
    return "; ".join(parts)


def describe_last_devices(progress: Progress) -> str | None:
    """Return what the last devices wait for; None while there are others to query."""
    active = [each for each in progress.accounts if not each.finished]
    waiting, paused = sum(each.in_flight for each in active), sum(each.paused for each in active)
    pending = progress.devices.pending
    if not _is_querying(progress) or progress.discovery is not None or not 0 < pending <= waiting + paused:
        return None
    parts = []
    if waiting:
        slowest = max(active, key=lambda each: each.longest_wait)
        longest = f"{slowest.longest_wait:.0f} of {slowest.timeout:.0f} s"
        parts.append(f"{waiting:,} waiting for {'an answer' if waiting == 1 else 'answers'}, longest {longest}")
    if paused:
        parts.append(f"{paused:,} waiting for a retry")
    return f"last {format_count(pending, 'device')}: {'; '.join(parts)}"


def _is_querying(progress: Progress) -> bool:
    """Return whether devices are queried now, as opposed to what comes before and after."""
    elsewhere = progress.sealing or progress.release_pages is not None or progress.states is not None
    return progress.fleet > 0 and not elsewhere


def _announce_resume(watch: ProgressCallback) -> ProgressCallback:
    """Wrap a callback to print first which run is resumed."""
    announced = False

    def announce(progress: Progress) -> None:
        nonlocal announced
        if progress.resumed and not announced:
            parts = [f"{progress.devices.unanswered:,} of {progress.fleet:,} devices remain"] if progress.fleet else []
            parts += [] if progress.discovery is None else ["fleets are not completely listed"]
            print_error(f"resuming {safe(progress.folder)}: {', and '.join(parts)}", event="resuming")
        announced = True
        watch(progress)

    return announce


def _print_lines(view: "_ProgressView") -> ProgressCallback:
    """Return a callback that prints plain lines, fewer after the first minute."""
    last = started = time.monotonic()
    written = ""  # the problem in the line before, which is not repeated

    def watch(progress: Progress) -> None:
        nonlocal last, written
        described = view.describe(progress)
        line, accounts = described.line, described.accounts
        now = time.monotonic()
        interval = PLAIN_INTERVAL if now - started < FIRST_SECONDS else LATER_INTERVAL
        if progress.sealing or now - last >= interval:
            last = now
            problem = _describe_problem(progress)
            if problem and problem == written and line.endswith(problem):
                line = f"{line.removesuffix(problem)}; the problem lasts"
            written = problem
            print_error(f"{format_utc_second(int(time.time()))} {line}", event="progress")
            if len(accounts) > 1 and not progress.sealing:
                more = f"; and {len(accounts) - MAX_ACCOUNTS:,} more" if len(accounts) > MAX_ACCOUNTS else ""
                shown = (
                    f"{safe(account.name)}: {_summarize_account(account, rate)}"
                    for account, rate in accounts[:MAX_ACCOUNTS]
                )
                print_error(f"  {'; '.join(shown)}{more}", event="progress")

    return watch


def _print_records(view: "_ProgressView") -> ProgressCallback:
    """Return a callback that prints JSON lines at an interval, and when the stage changes."""
    last, before = -math.inf, ""

    def watch(progress: Progress) -> None:
        nonlocal last, before
        stage, described = _stage_of(progress), view.describe(progress)
        if stage != before or time.monotonic() - last >= PLAIN_INTERVAL:
            last, before = time.monotonic(), stage
            print_error(described.line, "info", event="progress", **_record(progress, described, stage))

    return watch


def _stage_of(progress: Progress) -> Stage:
    if progress.sealing:
        return "sealing"
    if progress.release_pages is not None:
        return "releases"
    if progress.states is not None:
        return "states"
    return "discovery" if progress.discovery is not None and not progress.fleet else "querying"


def _record(progress: Progress, described: "_Description", stage: Stage) -> dict[str, object]:
    """Return the values of a line of progress in JSON."""
    states = None if progress.states is None else dict(zip(("read", "requested"), progress.states, strict=True))
    return {
        "run": safe(progress.folder.name),
        "stage": stage,
        "resumed": progress.resumed,
        "elapsed": round(progress.elapsed, 3),
        "fleet": progress.fleet,
        "devices": asdict(progress.devices),
        "requests": asdict(progress.requests),
        "in_flight": progress.in_flight,
        "requests_per_second": round(described.requests_per_second, 2),
        "target_rate": progress.target_rate,
        "learned_rate": progress.learned_rate,
        "remaining_seconds": described.remaining_seconds,
        "other_processes": progress.other_processes,
        "problem": None if progress.problem is None else safe(progress.problem),
        "discovery": None if progress.discovery is None else asdict(progress.discovery),
        "states": states,
        "release_pages": progress.release_pages,
        "accounts": [_account_record(account, rate) for account, rate in described.accounts],
    }


def _account_record(account: AccountProgress, rate: float) -> dict[str, object]:
    problem = account.stopped or account.problem
    return {
        "name": safe(account.name),
        "state": _state_of(account),
        "done": account.done,
        "failed": account.failed,
        "sent": account.sent,
        "throttled": account.throttled,
        "in_flight": account.in_flight,
        "paused": account.paused,
        "requests_per_second": round(rate, 2),
        "configured_rate": account.configured_rate,
        "learned_rate": account.rate,
        "other_processes": account.other_processes,
        "problem": None if problem is None else safe(problem),
        "discovery": None if account.discovery is None else asdict(account.discovery),
    }


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


class _Description(NamedTuple):
    """An audit in words: a line, the remaining time, what the last devices wait for, and accounts with their rates.

    ``remaining_seconds``: None if no device had an outcome in the last seconds.
    """

    line: str
    remaining: str
    waiting: str | None
    accounts: list[tuple[AccountProgress, float]]
    requests_per_second: float
    remaining_seconds: float | None


class _ProgressView:
    """Describes an audit, and keeps what its rates need."""

    def __init__(self) -> None:
        self._total = _RateWindow()
        self._accounts: dict[str, _RateWindow] = {}

    def describe(self, progress: Progress) -> "_Description":
        """Return the audit in words, and its accounts with their requests per second, those with problems first."""
        rates = self._total.rates(progress.elapsed, progress.requests.sent, _completed(progress), progress.before)
        accounts = [(each, self._rate(each, progress.elapsed)) for each in progress.accounts]
        accounts.sort(key=lambda pair: pair[0].stopped is None and pair[0].problem is None)
        waiting = describe_last_devices(progress)
        seconds = progress.devices.pending / rates[1] if rates[1] > 0 else None
        remaining = "? left" if seconds is None else f"{format_duration(seconds)} left"
        line = _describe_progress(progress, rates[0], remaining if waiting is None else waiting)
        left = None if seconds is None else round(seconds, 1)
        return _Description(line, remaining if waiting is None else "", waiting, accounts, rates[0], left)

    def _rate(self, account: AccountProgress, elapsed: float) -> float:
        window = self._accounts.setdefault(account.name, _RateWindow())
        requests, _ = window.rates(elapsed, account.sent, account.done)
        return requests


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


def _describe_problem(progress: Progress) -> str:
    return "" if progress.problem is None else f"; {safe(progress.problem)}"


def _describe_progress(progress: Progress, requests: float, remaining: str) -> str:
    """Return a line for the audit, which sends ``requests`` a second now."""
    done = _completed(progress)
    problem = _describe_problem(progress)
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
    throttled = f", {progress.requests.throttled:,} throttled" if progress.requests.throttled else ""
    discovery = "" if progress.discovery is None else f"; still discovering: {_describe_discovery(progress.discovery)}"
    return (
        f"{done:,}/{progress.fleet:,} devices ({done / max(progress.fleet, 1):.1%}), "
        f"{requests:,.1f} requests/s{_describe_quota(progress, requests)}, "
        f"{progress.in_flight} in flight, {progress.devices.failed:,} failed{throttled}, {remaining}"
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
    """Return the fraction in use of what the settings allow, a learned limit below it, and who shares it."""
    target, learned, parts = progress.target_rate, progress.learned_rate, []
    if target is not None:
        parts.append(f"{requests / target:.0%} of {target:,.4g}/s")
    if learned is not None and (target is None or learned < SLOWED_FRACTION * target):
        parts.append(f"limited to {learned:,.1f}/s")
    if progress.other_processes:
        parts.append(f"shared with {format_count(progress.other_processes, 'other')}")
    return f" ({', '.join(parts)})" if parts else ""
