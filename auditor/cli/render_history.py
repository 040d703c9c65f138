"""Render a history for people: the runs, and the share of each version over time as a line. Names are escaped."""

from collections.abc import Iterator, Sequence
from datetime import UTC, tzinfo

from rich.console import Console
from rich.table import Table
from rich.text import Text

from auditor.analysis.adoption import ModuleSeries, VersionSeries
from auditor.analysis.history import History, RunSummary
from auditor.cli.console import print_error
from auditor.cli.output import ALL_ROWS, open_console
from auditor.text.formatting import format_share, safe
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

_VERSION_WIDTH, _NUMBERS_WIDTH, _RUN_WIDTH, _MIN_LINE_WIDTH = 18, 32, 4, 8
"""Characters: maximum of a version, of the numbers beside a line, and of one run in a line; minimum of a line."""


def print_history(history: History, zone: tzinfo | None = UTC) -> None:
    """Print the runs, oldest first, and for each module a line for each main version; times are in ``zone``.

    A single module also gets a table of shares by run.
    """
    console = open_console(pipe_width=100)
    marks = [_mark_of(run) for run in history.runs]
    first, last = (_format_start(history.runs[at], zone)[:10] for at in (0, -1))
    console.print(Text(f"{safe(history.name)}: {len(marks):,} runs, {first} to {last}\n", style="bold"))
    console.print(_runs_table(history.runs, marks, zone))
    for mark, meaning in MARKS.items():
        if mark in marks:
            console.print(Text(f"{mark} {meaning}", style=_STYLES[mark]))
    adoption = history.adoption()
    for module in adoption.modules:
        console.print()
        console.print(_module_title(module, history.runs))
        console.print(_versions_table(console, module, marks))
        if len(adoption.modules) == 1:
            console.print()
            console.print(_shares_table(history.runs, marks, module, zone))
    if not adoption.modules:
        console.print("\nno versions: these runs have none of the requested modules")
    elif adoption.module_count > len(adoption.modules):
        print_error(
            f"note: {len(adoption.modules)} of {adoption.module_count:,} modules of products, with the most devices; "
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


def _module_title(module: ModuleSeries, runs: Sequence[RunSummary]) -> Text:
    product = safe(module.product_key or "?")
    counts = [(devices, run) for devices, run in zip(module.devices, runs, strict=True) if devices is not None]
    devices, sampled = (counts[-1][0], counts[-1][1].unsampled > 0) if counts else (0, False)
    return Text(f"{safe(module.account)} {product} {safe(module.module_name)}", style="bold") + Text(
        f"  {devices:,} devices{' of a sample' if sampled else ''} report it", style="not bold"
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
