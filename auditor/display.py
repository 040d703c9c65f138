"""What people see: tables on standard output, progress and talk on standard error. Names from devices are escaped."""

import math
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from auditor.audit.check import AccountCheck
from auditor.audit.notices import SLOWED
from auditor.audit.plan import MOST_AT_ONCE, AccountPlan, Plan, Remedy
from auditor.audit.progress import Progress, Watch
from auditor.findings import coverage
from auditor.inventory.folder import Manifest
from auditor.terminal import safe, say, tell

PLAIN_SECONDS = 5.0
"""How often a line is written where there is no terminal."""

_MINUTE, _TEN_YEARS = 60, 315_000_000

SMOOTHING = 10.0
"""Seconds over which the rate and the time left are taken."""


def summary(manifest: Manifest, seconds: float) -> Iterator[str]:
    """What an audit came to, for standard error."""
    yield coverage(manifest, manifest.devices)
    requests, rate = manifest.requests, manifest.rate
    of_quota = "" if rate.target is None else f", {rate.achieved / rate.target:.1%} of the quota"
    asking = requests.sent / rate.achieved if rate.achieved else 0.0
    expected = None if manifest.planned is None else manifest.planned.seconds
    planned = "" if expected is None else f", planned {_time(expected)}"
    yield (
        f"{requests.sent:,} requests in {_span(asking)}{planned} ({rate.achieved:,.1f}/s{of_quota}), "
        f"{requests.retried:,} repeated, {requests.throttled:,} over the quota; "
        f"{_span(seconds)} {'this time' if manifest.resumed_at else 'in all'}"
    )
    for failure in manifest.failures[:5]:
        yield f"failed: {failure.devices:,} with {safe(failure.code)}, such as {safe(failure.example)}"
    if manifest.error is not None:
        yield f"stopped: {safe(manifest.error)}"


def print_checks(checks: Iterable[AccountCheck]) -> None:
    """One line for each account that was checked."""
    for check in checks:
        repeats = f", {check.duplicates:,} repeats dropped" if check.duplicates else ""
        clock = f", its clock is {check.clock_offset:+.0f} s off" if check.clock_offset else ""
        said = check.problem or f"answers in {check.seconds * 1000:.0f} ms, the first device is {check.said}{clock}"
        tell(
            f"{'ok  ' if check.problem is None else 'FAIL'} {safe(check.account)} ({safe(check.endpoint)}): "
            f"{check.devices:,} devices{repeats}; {safe(said)}"
        )


def print_plan(plan: Plan) -> None:
    """What an audit will take: a row for each account, then what it rests on, and whether it fits."""
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 100)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("account", overflow="fold")
    for name in ("devices", "calls each", "calls", "calls/s", "time", "in flight"):
        table.add_column(name, justify="right")
    for each in plan.accounts:
        rate = "?" if each.per_second is None else f"{each.per_second:,.7g}"
        totals = _time(each.seconds), _number(each.in_flight)
        table.add_row(
            safe(each.account), f"{each.devices:,}", f"{each.calls_each:,.2f}", f"{each.calls:,}", rate, *totals
        )
    if len(plan.accounts) > 1:
        totals = _time(plan.seconds), _number(plan.in_flight)
        table.add_row("side by side", f"{plan.devices:,}", "", f"{plan.calls:,}", "", *totals)
    console.print(table)
    tell("")
    for sentence in (*_grounds(plan), *_verdict(plan)):
        tell(sentence)


def _grounds(plan: Plan) -> Iterator[str]:
    """What a plan rests on, and what stands in its way."""
    if plan.run is None:
        yield "no run of this name yet: one call a device is assumed"
    else:
        yield f"calls each are those of the run {safe(plan.run)}"
        for each in plan.accounts:
            if each.calls_assumed and each.devices:
                yield f"{_account(each)}: no calls in that run: one call a device is assumed"
    took = "is assumed to take" if plan.latency_assumed else "took"
    yield f"an answer {took} {plan.latency:,.5g} s, which tells how many requests must be in flight"
    for each in plan.accounts:
        if each.seconds is None:
            yield f"{_account(each)}: per_second tells no quota, so the time is unknown"
    if plan.at_once_advised is not None:
        possible = plan.at_once_advised <= MOST_AT_ONCE
        advice = f"set at_once = {plan.at_once_advised}" if possible else f"{MOST_AT_ONCE:,} would be too"
        yield f"at_once = {plan.at_once} is too little for these quotas, so it takes longer; {advice}"


def _verdict(plan: Plan) -> Iterator[str]:
    """Whether a plan fits into its window, and what would make it fit."""
    if plan.window is None:
        return
    if plan.fits is None:
        yield f"whether it fits into {_time(plan.window)} is unknown"
    elif plan.fits:
        yield f"it fits into {_time(plan.window)}"
    else:
        yield f"it does not fit into {_time(plan.window)}"
    for each in plan.accounts:
        if each.remedy is not None:
            yield f"{_account(each)}: {_advice(each, each.remedy)}"


def _advice(plan: AccountPlan, remedy: Remedy) -> str:
    if remedy.share is not None:
        return f"would fit with share = {remedy.share:g} instead of {plan.share:g}"
    if remedy.windows is None:
        return "not one device fits into that"
    part = math.floor(1000 * remedy.devices / plan.devices) / 10
    return (
        f"{part:g}% of the devices fit, {remedy.devices:,} of {plan.devices:,} a window; "
        f"all of them take {remedy.windows:,} windows, or {remedy.windows:,} accounts with this quota instead of 1"
    )


def _account(plan: AccountPlan) -> str:
    return f'account "{safe(plan.account)}"'


@contextmanager
def watching() -> Iterator[Watch]:
    """A watcher for an audit: a live line on a terminal, a plain line every few seconds elsewhere."""
    recent = _Recent()
    if not sys.stderr.isatty():
        yield _announced(_plain(recent))
        return
    console = Console(stderr=True, highlight=False)
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def watch(progress: Progress) -> None:
            bar = ProgressBar(total=progress.fleet, completed=_done(progress), width=30)
            grid = Table.grid(padding=(0, 1))
            grid.add_row(bar, Text(_line(progress, recent.rates(progress))))
            live.update(grid)

        yield _announced(watch)


def _announced(watch: Watch) -> Watch:
    """A watcher that says first which run is gone on with."""
    told = False

    def announced(progress: Progress) -> None:
        nonlocal told
        if progress.resumed and not told:
            left = progress.devices.unanswered
            say(f"going on with {safe(progress.folder)}: {left:,} of {progress.fleet:,} devices are left to ask")
        told = True
        watch(progress)

    return announced


def _plain(recent: "_Recent") -> Watch:
    last = time.monotonic()

    def watch(progress: Progress) -> None:
        nonlocal last
        rates = recent.rates(progress)
        if progress.sealing or time.monotonic() - last >= PLAIN_SECONDS:
            last = time.monotonic()
            say(_line(progress, rates))

    return watch


class _Recent:
    """Rates over the last seconds: an average since the start hides what happens now."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def rates(self, progress: Progress) -> tuple[float, float]:
        """Requests and devices a second, lately."""
        now = (progress.elapsed, progress.requests.sent, _done(progress))
        if not self._seen:
            self._seen.append((0.0, *progress.before))
        self._seen.append(now)
        while self._seen[0] is not now and self._seen[1][0] <= now[0] - SMOOTHING:
            self._seen.popleft()
        seconds = max(now[0] - self._seen[0][0], 0.001)
        return (now[1] - self._seen[0][1]) / seconds, (now[2] - self._seen[0][2]) / seconds


def _done(progress: Progress) -> int:
    return progress.fleet - progress.devices.pending


def _line(progress: Progress, rates: tuple[float, float]) -> str:
    done = _done(progress)
    if progress.sealing:
        return f"{done:,}/{progress.fleet:,} devices in {_span(progress.elapsed)}, sealing"
    requests, devices = rates
    left = _span(progress.devices.pending / devices) if devices > 0 else "?"
    throttled = f", {progress.requests.throttled:,} over the quota" if progress.requests.throttled else ""
    trouble = "" if progress.trouble is None else f"; {safe(progress.trouble)}"
    return (
        f"{done:,}/{progress.fleet:,} devices ({done / progress.fleet:.1%}), "
        f"{requests:,.1f} requests/s{_pace(progress, requests)}, "
        f"{progress.in_flight} in flight, {progress.devices.failed:,} failed{throttled}, {left} left{trouble}"
    )


def _number(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _time(seconds: float | None) -> str:
    """A length of time that is planned, rounded up; it may be unknown, or beyond all measure."""
    if seconds is None:
        return "?"
    if seconds >= _TEN_YEARS:
        return "over 10 years"
    return _span(math.ceil(10 * seconds) / 10 if seconds < _MINUTE else math.ceil(seconds))


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


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < _MINUTE else str(timedelta(seconds=round(seconds)))
