"""What people see of settings, plans and runs: tables and lines. Names from devices are escaped."""

import math
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from auditor.cli.console import tell
from auditor.planning.capacity import MOST_AT_ONCE
from auditor.planning.models import AccountPlan, Plan, Remedy, StrategyPlan
from auditor.text.formatting import MINUTE, counted, safe, span

_TEN_YEARS = 315_000_000


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
    if plan.strategies:
        print_strategies(plan, console)


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


def print_strategies(plan: Plan, console: Console) -> None:
    """What strategies take, a row for each, then what that rests on, and which of them fit."""
    tell("")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("strategy", overflow="fold")
    for name in ("calls", "time", "oldest", "mean", "error"):
        table.add_column(name, justify="right")
    for each in plan.strategies:
        least = each.calls is None and each.calls_least is not None
        calls = f"{each.calls_least:,} + ?" if least else _number(each.calls)
        seconds = f"{_time(each.seconds_least)} + ?" if least else _time(each.seconds)
        mean = "" if each.mean_nights is None or not each.oldest_nights else f"{each.mean_nights:.1f}"
        table.add_row(_strategy(each), calls, seconds, _oldest(each), mean, _error(each))
    console.print(table)
    tell("")
    for sentence in (*_since_rests_on(plan), *_nights_rest_on(plan), *_fitting(plan)):
        tell(sentence)


def _strategy(row: StrategyPlan) -> str:
    """A strategy's name."""
    if row.strategy == "full":
        return "every device"
    if row.strategy == "since":
        return f"since, {row.rule}"
    if row.strategy == "sample":
        return f"sample of {row.sample:,}" if row.precision is None else f"sample for +-{100 * row.precision:g}%"
    calls = [] if row.budget is None else [f"{row.budget:,} calls"]
    times = [] if row.window is None else [f"in {_time(row.window)}"]
    return f"rolling, {' '.join((*calls, *times))}"


def _oldest(row: StrategyPlan) -> str:
    if row.oldest_nights is None:
        return "last seen" if row.strategy == "since" else "?"
    return counted(row.oldest_nights, "night") if row.oldest_nights else "tonight"


def _error(row: StrategyPlan) -> str:
    if row.half_width is not None:
        return f"+-{100 * row.half_width:.2g}%"
    if row.strategy != "since" or row.oldest_nights == 0:
        return ""
    if row.recheck_rate is None or row.recheck_low is None or row.recheck_high is None:
        return "?"
    return f"{100 * row.recheck_rate:.2g}% ({100 * row.recheck_low:.2g}-{100 * row.recheck_high:.2g}%)"


def _since_rests_on(plan: Plan) -> Iterator[str]:
    """What is known of those that carry answers."""
    since = [each for each in plan.strategies if each.strategy == "since"]
    if any(each.oldest_nights == 0 for each in since):
        yield "since: no run yet has answers to carry, so the first one asks every device"
    else:
        yield "since: an answer that is carried is as old as its device's last connection"
    for each in since:
        told = [] if each.run is None else [f"as large a part is asked as in the run {each.run}"]
        if each.recheck_run is not None:
            told.append(f"the error is the part of the carried that the recheck of {each.recheck_run} found changed")
        if told:
            yield f"{_strategy(each)}: {'; '.join(told)}"
    untold = " and ".join(_strategy(each) for each in since if each.calls_least is not None)
    if untold:
        yield f"{untold}: at least states, recheck, new and failed devices; how many connected, only such a run tells"


def _nights_rest_on(plan: Plan) -> Iterator[str]:
    """What the ages and errors of those rest on that ask a part of the fleet."""
    rolling = [each for each in plan.strategies if each.strategy == "rolling"]
    if any(each.oldest_nights for each in rolling):
        yield "rolling: ages in nights at most, with one run a night, once every device has had its turn"
    elif not rolling and plan.seconds is None:
        yield "rolling: how old answers get is unknown without a quota; give --calls"
    for each in rolling:
        if each.calls is not None and each.oldest_nights is None:
            yield f"{_strategy(each)}: not every product is sure of a turn, so nothing bounds the oldest answer's age"
    if any(each.half_width is not None for each in plan.strategies):
        yield "sample: +- is half the 95% interval of a share of the fleet at worst, which is that of 50%"


def _fitting(plan: Plan) -> Iterator[str]:
    """Which strategies fit into a window that is too short for every device."""
    if plan.fits is not False or plan.window is None:
        return
    fit = [_strategy(each) for each in plan.strategies if each.fits]
    may = [_strategy(each) for each in plan.strategies if each.fits is None and each.seconds_least is not None]
    told = [f"what would fit: {'; '.join(fit)}"] if fit else []
    told += [f"what may fit: {'; '.join(may)}"] if may else []
    yield "; ".join(told) or "no other strategy is known to fit either"


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
