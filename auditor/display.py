"""What people see of settings, plans and runs: tables and lines. Names from devices are escaped."""

import math
import sys
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

from auditor.audit.check import AccountCheck
from auditor.audit.plan import MOST_AT_ONCE, AccountPlan, Plan, Remedy
from auditor.findings import coverage
from auditor.inventory.folder import Manifest
from auditor.inventory.listings import ListingFacts
from auditor.terminal import MINUTE, counted, safe, span, tell

_TEN_YEARS = 315_000_000


def summary(manifest: Manifest, seconds: float) -> Iterator[str]:
    """What an audit came to, for standard error."""
    for listing in manifest.listings:
        yield listed(listing)
    yield coverage(manifest, manifest.devices)
    requests, rate = manifest.requests, manifest.rate
    of_quota = "" if rate.target is None else f", {rate.achieved / rate.target:.1%} of the quota"
    asking = requests.sent / rate.achieved if rate.achieved else 0.0
    expected = None if manifest.planned is None else manifest.planned.seconds
    planned = "" if expected is None else f", planned {_time(expected)}"
    yield (
        f"{requests.sent:,} requests in {span(asking)}{planned} ({rate.achieved:,.1f}/s{of_quota}), "
        f"{requests.retried:,} repeated, {requests.throttled:,} over the quota; "
        f"{span(seconds)} {'this time' if manifest.resumed_at else 'in all'}"
    )
    for failure in manifest.failures[:5]:
        yield f"failed: {failure.devices:,} with {safe(failure.code)}, such as {safe(failure.example)}"
    told = "; ".join(doubt for listing in manifest.listings for doubt in listing.doubts())
    if manifest.error is not None and manifest.error != told:
        yield f"stopped: {safe(manifest.error)}"


def listed(listing: ListingFacts) -> str:
    """What listing an account's fleet came to, in one line."""
    if listing.state == "pending":
        return f"{safe(listing.account)}: its fleet is not listed to the end; what was listed is kept for a resume"
    name = f'account "{listing.account}": '
    requests, products = counted(listing.requests.sent, "request"), counted(listing.products, "product")
    never = listing.statuses.get("UNACTIVE", 0)
    left_out = f", {listing.excluded:,} left out by the settings" if listing.excluded else ""
    return (
        f"{safe(listing.account)}: {counted(listing.devices, 'device')} of {products} listed in {requests}, "
        f"{never:,} of them never activated{left_out}"
        + "".join(f"; {safe(doubt.removeprefix(name))}" for doubt in listing.doubts())
    )


def print_checks(checks: Iterable[AccountCheck]) -> None:
    """One line for each account that was checked."""
    for check in checks:
        repeats = f", {check.duplicates:,} repeats dropped" if check.duplicates else ""
        listed = "" if check.products is None else f" of {counted(check.products, 'product')}"
        clock = f", its clock is {check.clock_offset:+.0f} s off" if check.clock_offset else ""
        said = check.problem or f"answers in {check.seconds * 1000:.0f} ms, the first device is {check.said}{clock}"
        tell(
            f"{'ok  ' if check.problem is None else 'FAIL'} {safe(check.account)} ({safe(check.endpoint)}): "
            f"{counted(check.devices, 'device')}{listed}{repeats}; {safe(said)}"
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
    for each in plan.accounts:
        if each.devices_assumed:
            yield (
                f"{_account(each)}: the platform lists its fleet; its devices are those that the newest run found, "
                "and listing them comes first: about a call for 50 devices"
            )
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


def _number(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _time(seconds: float | None) -> str:
    """A length of time that is planned, rounded up; it may be unknown, or beyond all measure."""
    if seconds is None:
        return "?"
    if seconds >= _TEN_YEARS:
        return "over 10 years"
    return span(math.ceil(10 * seconds) / 10 if seconds < MINUTE else math.ceil(seconds))
