"""Render a history for people: the runs, and the share of each version over time as a line. Names are escaped."""

from collections.abc import Iterator, Sequence
from datetime import UTC, tzinfo
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from auditor.analysis.adoption import ModuleSeries, VersionSeries
from auditor.analysis.history import History, RunSummary
from auditor.analysis.rollout_states import ROLLOUT_STATES, RolloutState, UnknownReason
from auditor.analysis.rollouts import NoDate, Rollout, Rollouts, read_rollouts, rollouts_of
from auditor.cli.console import print_error, print_note
from auditor.cli.output import ALL_ROWS, Column, open_console, print_columns
from auditor.errors import RunFolderError
from auditor.text.formatting import format_count, format_share, safe
from auditor.text.shell import format_command
from auditor.text.time_zones import show_time

LEVELS, PLAIN_LEVELS = "▁▂▃▄▅▆▇█", "_.-:=+*#"
"""Shares above 0 and up to 1, in eighths; the second for a terminal that only shows ASCII."""

ZERO_LEVEL, PLAIN_ZERO_LEVEL = "·", " "

MARKS = {
    "s": "random sample: shares are estimates",
    "~": "incomplete: not of the complete fleet",
    "!": "damaged: see the notes",
    "?": "not sealed: no versions yet",
}

_STYLES = {"s": "cyan", "~": "yellow", "!": "bold red", "?": "dim"}

MAX_TABLE_ROLLOUTS = 100
"""Rollouts in a table."""

MAX_STATUS_ROLLOUTS = 3
"""Rollouts that need attention, in ``auditor status``."""

_VERSION_WIDTH, _NUMBERS_WIDTH, _RUN_WIDTH, _MIN_LINE_WIDTH = 18, 32, 4, 8
"""Characters: maximum of a version, of the numbers beside a line, and of one run in a line; minimum of a line."""


def print_history(history: History, zone: tzinfo | None = UTC) -> None:
    """Print the runs, oldest first, and for each module a line for each main version; times are in ``zone``.

    A single module also gets a table of shares by run.
    """
    console = open_console(pipe_width=100)
    marks = [_mark_of(run) for run in history.runs]
    first, last = (_format_start(history.runs[at], zone)[:10] for at in (0, -1))
    console.print(Text(f"{safe(history.name)}: {format_count(len(marks), 'run')}, {first} to {last}\n", style="bold"))
    console.print(_runs_table(history.runs, marks, zone))
    for mark, meaning in MARKS.items():
        if mark in marks:
            console.print(Text(f"{mark} {meaning}", style=_STYLES[mark]))
    adoption = history.adoption()
    rollouts: dict[tuple[str, str | None, str], Rollout] = {}
    try:
        rollouts = {(each.account, each.product_key, each.module_name): each for each in rollouts_of(history).rollouts}
    except RunFolderError as error:  # a damaged file of released firmware costs no history
        print_note(f"rollouts are unknown: {safe(error)}")
    for module in adoption.modules:
        console.print()
        console.print(_module_title(module, history.runs, zone))
        if (rollout := rollouts.get((module.account, module.product_key, module.module_name))) is not None:
            console.print(describe_rollout(rollout), soft_wrap=not console.is_terminal)
        console.print(_versions_table(console, module, marks))
        if len(adoption.modules) == 1:
            console.print()
            console.print(_shares_table(history.runs, marks, module, zone))
    if not adoption.modules:
        console.print("\nno versions: these runs have none of the requested modules")
    elif adoption.module_count > len(adoption.modules):
        print_note(
            f"{len(adoption.modules)} of {adoption.module_count:,} modules of products, with the most devices; "
            f"--product and --module select others, and {ALL_ROWS}"
        )


def _mark_of(run: RunSummary) -> str:
    if run.tampered:
        return "!"
    if not run.sealed:
        return "?"
    if run.label == "sample" and len(run.warnings) == 1:
        return "s"
    return "~" if run.warnings else " "


def _format_start(run: RunSummary, zone: tzinfo | None) -> str:
    return safe(show_time(run.started_at[:16].replace("T", " "), zone))


def _render_mark(mark: str) -> Text:
    return Text(mark, style=_STYLES.get(mark, ""))


def _runs_table(runs: Sequence[RunSummary], marks: Sequence[str], zone: tzinfo | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("started", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("state")
    sampled = any(run.unsampled for run in runs)
    for name in ("devices", "answered", "failed", "pending", *(("not sampled",) if sampled else ())):
        table.add_column(name, justify="right")
    for run, mark in zip(runs, marks, strict=True):
        counts = run.devices
        numbers = (counts.fleet, counts.answered, counts.failed, counts.pending - run.unsampled, run.unsampled)
        style = _STYLES.get(mark, "")
        table.add_row(
            _format_start(run, zone),
            _render_mark(mark),
            Text(safe(run.label), style=style),
            *(f"{number:,}" for number in numbers[: 5 if sampled else 4]),
        )
    return table


def _module_title(module: ModuleSeries, runs: Sequence[RunSummary], zone: tzinfo | None) -> Text:
    product = safe(module.product_key or "?")
    devices, run = next(
        (devices, run) for devices, run in zip(module.devices[::-1], runs[::-1], strict=True) if devices is not None
    )
    found = f"  reported by {format_count(devices, 'device')}{' of a sample' if run.unsampled else ''}"
    at = "" if run is runs[-1] else f" in the run of {_format_start(run, zone)}"
    return Text(f"{safe(module.account)} {product} {safe(module.module_name)}", style="bold") + Text(
        f"{found}{at}", style="not bold"
    )


def _versions_table(console: Console, module: ModuleSeries, marks: Sequence[str]) -> Table:
    """Return a table with the shares of each version over time, the newest share, its change, and its devices."""
    width = max(_MIN_LINE_WIDTH, console.width - _VERSION_WIDTH - _NUMBERS_WIDTH)
    run_width = max(1, min(_RUN_WIDTH, width // len(marks)))
    shown = list(_evenly_spread(len(marks), width // run_width))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("version", overflow="ellipsis", no_wrap=True, max_width=_VERSION_WIDTH)
    table.add_column("share over time", no_wrap=True)
    for name in ("share", "change", "devices"):
        table.add_column(name, justify="right", no_wrap=True)
    plain = console.options.ascii_only
    for line in module.versions:
        graph = "".join(_level(line.shares[at], plain=plain) * run_width for at in shown)
        shares = [share for share in line.shares if share is not None] or [0.0]
        devices = next((count for count in reversed(line.devices) if count is not None), 0)
        table.add_row(
            _version_label(line),
            Text(graph, style="cyan"),
            format_share(shares[-1], aligned=True),
            _format_points(shares[-1] - shares[0]),
            f"{devices:,}",
        )
    if any(marks[at] != " " for at in shown):
        table.add_row("", Text("").join(_render_mark(marks[at] * run_width) for at in shown))
    return table


def _evenly_spread(runs: int, columns: int) -> Iterator[int]:
    """Yield the runs to show: all, or evenly spread ones with the first and the last."""
    if runs <= columns:
        yield from range(runs)
    else:
        yield from (round(at * (runs - 1) / (columns - 1)) for at in range(columns))


def _level(share: float | None, *, plain: bool) -> str:
    levels, zero = (PLAIN_LEVELS, PLAIN_ZERO_LEVEL) if plain else (LEVELS, ZERO_LEVEL)
    if share is None:
        return " "
    return levels[min(len(levels) - 1, int(share * len(levels)))] if share > 0 else zero


def _version_label(line: VersionSeries) -> str:
    if line.module_version is None:
        return f"{line.versions:,} others" if line.versions > 1 else "1 other"
    return safe(line.module_version) or '""'


def _format_points(change: float) -> str:
    """Format a change in percentage points."""
    return f"{100 * change:+.1f}" if round(1000 * change) else "="


def _shares_table(runs: Sequence[RunSummary], marks: Sequence[str], module: ModuleSeries, zone: tzinfo | None) -> Table:
    """Return a table with the shares of the main versions, a row for each run."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("started", no_wrap=True)
    table.add_column("", no_wrap=True)
    for line in module.versions:
        table.add_column(Text(_version_label(line)), justify="right", overflow="ellipsis", no_wrap=True, min_width=6)
    for at, (run, mark) in enumerate(zip(runs, marks, strict=True)):
        shares = (line.shares[at] for line in module.versions)
        cells = ("?" if share is None else format_share(share, aligned=True) if share else "" for share in shares)
        table.add_row(_format_start(run, zone), _render_mark(mark), *cells)
    return table


STATE_NAMES: dict[RolloutState, str] = {state: state.replace("_", " ") for state in ROLLOUT_STATES}

STATE_STYLES: dict[RolloutState, str] = {
    "done": "green",
    "moving": "cyan",
    "stalled": "yellow",
    "rolled_back": "bold red",
    "not_started": "",
    "unknown": "dim",
}

UNKNOWN_REASONS: dict[UnknownReason, str] = {
    "no_order": "no version is the newest",
    "few_answers": "few of its devices have an answer",
    "imprecise": "the share is too imprecise",
    "short_history": "the runs cover too few days",
}

NO_DATES: dict[NoDate, str] = {
    "few_runs": "too few runs for a date",
    "irregular": "too irregular for a date",
    "too_far": "too slow for a date",
    "failed_devices": "never done, since so many updates failed",
}


SHORT_REASONS: dict[UnknownReason | NoDate, str] = {
    "no_order": "no newest version",
    "few_answers": "few answers",
    "imprecise": "imprecise",
    "short_history": "too few days",
    "few_runs": "too few runs",
    "irregular": "irregular",
    "too_far": "too slow",
    "failed_devices": "never",
}
"""Why a rollout has no date, in a cell of a table."""


def describe_rollout(rollout: Rollout) -> Text:
    """Return the target of a module, its share and change, its state, and what became of the devices behind."""
    text = Text("target ")
    if rollout.target is None:
        text.append("unknown: no version is the newest", STATE_STYLES["unknown"])
        return text
    released = "" if rollout.released_at is None else f" {rollout.released_at:%Y-%m-%d}"
    text.append(f"{safe(rollout.target)} ({rollout.target_source}{released}): ")
    if rollout.share is not None:
        text.append(f"{format_share(rollout.share)} of devices")
        change = "=" if rollout.change is None else _format_points(rollout.change)
        text.append(f", {change} points a day" if change != "=" else "")
        text.append(", ")
    text.append(STATE_NAMES[rollout.state], STATE_STYLES[rollout.state])
    if rollout.reason is not None:
        text.append(f" ({UNKNOWN_REASONS[rollout.reason]})")
    elif rollout.runs_in_state > 1:
        text.append(f" for {rollout.runs_in_state:,} runs")
    if rollout.expected_at is not None:
        text.append(f", done by {rollout.expected_at}")
    elif rollout.no_date is not None:
        text.append(f", {NO_DATES[rollout.no_date]}")
    if rollout.behind and rollout.share is not None:
        text.append(f"; {rollout.behind:,} behind{_describe_updates(rollout)}")
    return text


def _describe_updates(rollout: Rollout) -> str:
    counts = {
        "failed": rollout.failed,
        "offered": rollout.offered,
        "reverted": rollout.reverted,
        "never offered": rollout.never_offered,
    }
    found = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    return f" ({found})" if found else ""


def print_rollouts(rollouts: Rollouts) -> None:
    """Print a row for each rollout, the most urgent first, and the number of all of them by state.

    Columns in which no rollout has a value are left out.
    """
    shown = rollouts.by_urgency[:MAX_TABLE_ROLLOUTS]
    account, product, module = Column("account", []), Column("product", []), Column("module", [])
    state, target, share = Column("state", []), Column("target", []), Column("share", [], "right")
    change, behind = Column("a day", [], "right", 6), Column("behind", [], "right", 7)
    drops = {"failed": 1, "offered": 3, "reverted": 0, "never offered": 2}
    by_update = [Column(name, [], "right", drop) for name, drop in drops.items()]
    runs, date = Column("runs", [], "right", 5), Column("done by", [], "right", 8)
    for each in shown:
        account.cells.append(safe(each.account))
        product.cells.append(safe(each.product_name or each.product_key or "?"))
        module.cells.append(safe(each.module_name))
        state.cells.append(Text(STATE_NAMES[each.state], style=STATE_STYLES[each.state]))
        target.cells.append(safe(each.target or "?"))
        share.cells.append("?" if each.share is None else format_share(each.share, aligned=True))
        change.cells.append("" if each.change is None else _format_points(each.change))
        behind.cells.append(f"{each.behind:,}")
        numbers = (each.failed, each.offered, each.reverted, each.never_offered)
        for column, number in zip(by_update, numbers, strict=True):
            column.cells.append("" if number is None else f"{number:,}")
        runs.cells.append(f"{each.runs_in_state:,}")
        date.cells.append(_format_date(each))
    several = [account] if len({each.account for each in shown}) > 1 else []
    columns = [*several, product, module, state, target, share, change, behind, *by_update, runs, date]
    if shown:
        print_columns([column for column in columns if any(map(str, column.cells))])
    print_error(f"{format_count(rollouts.count, 'rollout')}: {_count_states(rollouts) or 'none'}")
    if rollouts.count > len(shown):
        print_note(f"{len(shown):,} of them, the most urgent first; {ALL_ROWS}")


def _format_date(rollout: Rollout) -> Text:
    """Return when a rollout will be done, or why that is not known; nothing if it is done or does not move."""
    if rollout.expected_at is not None:
        return Text(str(rollout.expected_at))
    reason = rollout.reason or rollout.no_date
    return Text("" if reason is None else SHORT_REASONS[reason], style="dim")


def _count_states(rollouts: Rollouts) -> str:
    counted = ((STATE_NAMES[state], count.rollouts) for state, count in rollouts.by_state.items())
    return ", ".join(f"{count:,} {name}" for name, count in counted if count)


def describe_rollouts(run: Path) -> Iterator[str]:
    """Yield lines about the rollouts of a run: their number by state, and those that need attention."""
    try:
        rollouts = read_rollouts(run)
    except RunFolderError as error:
        yield f"rollouts: unknown: {safe(error)}"
        return
    if any(count.rollouts for state, count in rollouts.by_state.items() if state != "unknown"):
        yield f"rollouts: {_count_states(rollouts)}"
    urgent = [each for each in rollouts.by_urgency if each.state in {"rolled_back", "stalled"}]
    for each in urgent[:MAX_STATUS_ROLLOUTS]:
        product = safe(each.product_name or each.product_key or "?")
        yield f"  {product} {safe(each.module_name)}: {describe_rollout(each)}"
    if len(urgent) > MAX_STATUS_ROLLOUTS:
        command = format_command("auditor history", run.parent, flags=[("--rollouts", None)])
        yield f"  {len(urgent) - MAX_STATUS_ROLLOUTS:,} more: {command}"
