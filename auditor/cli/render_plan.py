"""Render plans for people: cost by account, whether it fits a window, and a comparison of strategies."""

import math
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from auditor.cli.console import print_line
from auditor.cli.output import open_console
from auditor.planning.capacity import MAX_CONCURRENCY
from auditor.planning.models import AccountPlan, Plan, Remedy, StrategyPlan
from auditor.text.formatting import format_count, format_duration, safe

_TEN_YEARS = 315_000_000
"""Seconds. Longer durations are not written out."""


def print_plan(plan: Plan, *, compare: bool) -> None:
    """Print a row for each account, the assumptions, whether the plan fits, and with ``compare`` other strategies.

    If no account has a known quota, there are no times to print.
    """
    console = open_console(pipe_width=100)
    timed = any(each.calls_per_second is not None for each in plan.accounts)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("account", overflow="fold")
    for name in ("devices", "calls each", "calls", *(("calls/s", "time", "in flight") if timed else ())):
        table.add_column(name, justify="right")
    for each in plan.accounts:
        rate = "?" if each.calls_per_second is None else f"{each.calls_per_second:,.7g}"
        times = rate, format_planned_duration(each.seconds), _format_number(each.in_flight)
        row = safe(each.account), f"{each.devices:,}", f"{each.calls_per_device:,.2f}", f"{each.calls:,}"
        table.add_row(*row, *(times if timed else ()))
    if len(plan.accounts) > 1:
        times = "", format_planned_duration(plan.seconds), _format_number(plan.in_flight)
        table.add_row("concurrently", f"{plan.devices:,}", "", f"{plan.calls:,}", *(times if timed else ()))
    console.print(table)
    print_line("")
    for sentence in (*_describe_assumptions(plan, timed=timed), *_describe_fit(plan)):
        print_line(sentence)
    if plan.strategies and compare:
        _print_strategies(plan, console)


def _describe_assumptions(plan: Plan, *, timed: bool) -> Iterator[str]:
    yield from _describe_calls(plan)
    yield from _describe_device_counts(plan)
    for each in plan.accounts:
        if each.release_requests is not None:
            yield (
                f"{_account_label(each)}: {each.release_requests:,} more requests for released firmware come last, as "
                f"in the run {safe(each.release_run)}: {format_planned_duration(each.release_seconds)} at most"
            )
    if not timed:
        yield "the duration is unknown, because calls_per_second is not a number"
        return
    latency = "assumed latency" if plan.latency_assumed else "latency"
    seconds = f"{1_000 * plan.latency:,.0f} ms" if plan.latency < 1 else f"{plan.latency:,.3g} s"
    yield f"{latency}: {seconds}, which determines the requests in flight"
    for each in plan.accounts:
        if each.seconds is None:
            yield f"{_account_label(each)}: the duration is unknown, because calls_per_second is not a number"
    if plan.concurrency_advised is not None:
        possible = plan.concurrency_advised <= MAX_CONCURRENCY
        advice = f"set concurrency = {plan.concurrency_advised}" if possible else f"so is {MAX_CONCURRENCY:,}"
        yield f"concurrency = {plan.concurrency} is too small for these quotas, so it takes longer; {advice}"


def _describe_calls(plan: Plan) -> Iterator[str]:
    """Yield where the numbers of calls come from."""
    for each in plan.accounts:
        if each.read == "details":
            yield f"{_account_label(each)}: reads only the module default, up to 100 devices a call"
        elif each.read == "index":
            yield f"{_account_label(each)}: reads the search index, 49 devices a call, and queries a recheck"
    if all(each.read != "device" for each in plan.accounts):
        return
    if plan.run is None:
        yield "no earlier run of this name: assuming one call per device"
        return
    yield f"calls each: as in the run {safe(plan.run)}"
    for each in plan.accounts:
        if each.calls_assumed and each.devices:
            yield f"{_account_label(each)}: no calls in that run: assuming one call per device"


def _describe_device_counts(plan: Plan) -> Iterator[str]:
    """Yield where the numbers of devices of listed fleets come from."""
    origins = {
        each.account: "in the newest run"
        if each.devices_assumed
        else "the platform counts them (filters are applied to a sample)"
        for each in plan.accounts
        if each.devices_assumed or each.devices_counted
    }
    for each in plan.accounts:
        if each.account in origins:
            discovery = "; listing them comes first and takes about one call per 50 devices"
            origin = origins[each.account] if each.read == "index" else f"{origins[each.account]}{discovery}"
            yield f"{_account_label(each)}: number of devices as {origin}"


def _describe_fit(plan: Plan) -> Iterator[str]:
    if plan.window is None:
        return
    window = format_planned_duration(plan.window)
    if plan.fits is None:
        yield f"unknown whether it fits into {window}"
    else:
        yield f"it fits into {window}" if plan.fits else f"it does not fit into {window}"
    for each in plan.accounts:
        if each.remedy is not None:
            yield f"{_account_label(each)}: {_describe_remedy(each, each.remedy)}"


def _describe_remedy(plan: AccountPlan, remedy: Remedy) -> str:
    if remedy.quota_share is not None:
        return f"would fit with quota_share = {remedy.quota_share:g} instead of {plan.quota_share:g}"
    if remedy.windows is None:
        return "not one device fits into it"
    percent = math.floor(1000 * remedy.devices / plan.devices) / 10
    return (
        f"{percent:g}% of the devices fit, {remedy.devices:,} of {plan.devices:,} per window; "
        f"all of them need {remedy.windows:,} windows, or {remedy.windows:,} accounts with this quota instead of 1"
    )


def _print_strategies(plan: Plan, console: Console) -> None:
    """Print a row for each strategy, then an explanation, and which of them fit."""
    print_line("")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("strategy", overflow="fold")
    for name in ("calls", "time", "oldest", "mean", "error"):
        table.add_column(name, justify="right")
    for each in plan.strategies:
        bounded = each.calls is None and each.min_calls is not None
        calls = f"{each.min_calls:,} + ?" if bounded else _format_number(each.calls)
        seconds = (
            f"{format_planned_duration(each.min_seconds)} + ?" if bounded else format_planned_duration(each.seconds)
        )
        mean = "" if each.mean_age_runs is None or not each.max_age_runs else f"{each.mean_age_runs:.1f}"
        table.add_row(_strategy_name(each), calls, seconds, _format_max_age(each), mean, _format_error(each))
    console.print(table)
    print_line("")
    for sentence in (*_explain_incremental(plan), *_explain_rolling_and_sample(plan), *_describe_fitting(plan)):
        print_line(sentence)


def _strategy_name(row: StrategyPlan) -> str:
    if row.strategy == "full":
        return "every device"
    if row.strategy in {"index", "details"}:
        return row.strategy
    if row.strategy == "incremental":
        return f"incremental, {row.change_detection}"
    if row.strategy == "sample":
        return f"sample of {row.sample_size:,}" if row.precision is None else f"sample for +-{100 * row.precision:g}%"
    calls = [] if row.max_calls is None else [f"{row.max_calls:,} calls"]
    times = [] if row.window is None else [f"in {format_planned_duration(row.window)}"]
    return f"rolling, {' '.join((*calls, *times))}"


def _format_max_age(row: StrategyPlan) -> str:
    if row.max_age_runs is None:
        return "last seen" if row.strategy == "incremental" else "?"
    return format_count(row.max_age_runs, "run") if row.max_age_runs else "this run"


def _format_error(row: StrategyPlan) -> str:
    if row.half_width is not None:
        return f"+-{100 * row.half_width:.2g}%"
    if row.strategy != "incremental" or row.max_age_runs == 0:
        return ""
    if row.recheck_rate is None or row.recheck_low is None or row.recheck_high is None:
        return "?"
    return f"{100 * row.recheck_rate:.2g}% ({100 * row.recheck_low:.2g}-{100 * row.recheck_high:.2g}%)"


def _explain_incremental(plan: Plan) -> Iterator[str]:
    rows = [each for each in plan.strategies if each.strategy == "incremental"]
    if any(each.max_age_runs == 0 for each in rows):
        yield "incremental: no earlier run has results to carry, so the first run queries every device"
    else:
        yield "incremental: a carried result is as old as its device's last connection"
    for each in rows:
        sources = [] if each.run is None else [f"fraction of queried devices as in the run {each.run}"]
        if each.recheck_run is not None:
            sources.append(f"error as measured by the recheck of {each.recheck_run}")
        if sources:
            yield f"{_strategy_name(each)}: {'; '.join(sources)}"
    if bounded := " and ".join(_strategy_name(each) for each in rows if each.min_calls is not None):
        yield (
            f"{bounded}: lower bound of states, recheck, new and failed devices; only a run of this kind shows how "
            "many devices connect"
        )


def _explain_rolling_and_sample(plan: Plan) -> Iterator[str]:
    if any(each.strategy == "index" for each in plan.strategies):
        yield "index: the platform's search index, and its recheck; results are as old as the index is behind"
    for each in plan.strategies:
        if each.strategy == "details":
            before = "" if each.run is None else f"; devices are queried one by one as in the run {each.run}"
            yield f"details: the module default of all devices, and no other{before}"
    rolling = [each for each in plan.strategies if each.strategy == "rolling"]
    if any(each.max_age_runs for each in rolling):
        yield "rolling: maximum ages in runs, once every device has been queried"
    elif not rolling and plan.seconds is None:
        yield "rolling: the age of results is unknown without a quota; give --max-calls"
    for each in rolling:
        if each.calls is not None and each.max_age_runs is None:
            yield f"{_strategy_name(each)}: products may stay unqueried, so results have no maximum age"
    if any(each.half_width is not None for each in plan.strategies):
        yield "sample: +- is half the 95% interval of a share of the fleet in the worst case, a share of 50%"


def _describe_fitting(plan: Plan) -> Iterator[str]:
    """Yield which strategies fit into a window that is too short for every device."""
    if plan.fits is not False or plan.window is None:
        return
    fit = [_strategy_name(each) for each in plan.strategies if each.fits]
    may = [_strategy_name(each) for each in plan.strategies if each.fits is None and each.min_seconds is not None]
    parts = [f"would fit: {'; '.join(fit)}"] if fit else []
    parts += [f"may fit: {'; '.join(may)}"] if may else []
    yield "; ".join(parts) or "no other strategy is certain to fit"


def _account_label(plan: AccountPlan) -> str:
    return f'account "{safe(plan.account)}"'


def _format_number(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def format_planned_duration(seconds: float | None) -> str:
    """Format a planned duration, rounded up; ``?`` if it is unknown."""
    if seconds is None:
        return "?"
    if seconds >= _TEN_YEARS:
        return "over 10 years"
    return format_duration(seconds, round_up=True)
