"""How people see runs over time: the runs, and the shares of each module's versions as lines. Names are escaped."""

import sys
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from auditor.analysis.adoption import ModuleLine, VersionLine
from auditor.analysis.history import History, RunPoint
from auditor.cli.console import say
from auditor.text.formatting import part, safe

LEVELS, PLAIN_LEVELS = "▁▂▃▄▅▆▇█", "_.-:=+*#"
"""Shares from above 0 up to 1, in eighths; the second for a terminal that shows no more than ASCII."""


NOTHING, PLAIN_NOTHING = "·", " "


MARKS = {
    "s": "a random sample: its shares are estimates",
    "~": "not of the whole fleet",
    "!": "not to be relied on, see the notes",
    "?": "no versions: it is not sealed",
}


_STYLES = {"s": "cyan", "~": "yellow", "!": "bold red", "?": "dim"}


_VERSION_WIDTH, _NUMBERS_WIDTH, _RUN_WIDTH, _NARROWEST = 18, 32, 4, 8
"""Characters: what a version may take, what the numbers beside a line take, what one run may take in a line."""


def print_history(history: History) -> None:
    """The runs, the oldest first, then for each module a line for each chief version; a single one is told by run."""
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 100)
    marks = [_mark(run) for run in history.runs]
    first, last = _date(history.runs[0])[:10], _date(history.runs[-1])[:10]
    console.print(Text(f"{safe(history.name)}: {len(marks):,} runs, {first} to {last}\n", style="bold"))
    console.print(_runs(history.runs, marks))
    for mark, meaning in MARKS.items():
        if mark in marks:
            console.print(Text(f"{mark} {meaning}", style=_STYLES[mark]))
    adoption = history.adoption()
    for module in adoption.modules:
        console.print()
        console.print(_title(module, history.runs))
        console.print(_lines(console, module, marks))
        if len(adoption.modules) == 1:
            console.print()
            console.print(_shares(history.runs, marks, module))
    if not adoption.modules:
        console.print("\nno versions: no module that was asked for is in any of these runs")
    elif adoption.found > len(adoption.modules):
        say(
            f"note: {len(adoption.modules)} of {adoption.found:,} modules of products, those of most devices; "
            "--product and --module pick others, --format csv, json, jsonl, parquet or xlsx has all of them"
        )


def _mark(run: RunPoint) -> str:
    if run.tampered:
        return "!"
    if not run.sealed:
        return "?"
    if run.label == "sample" and len(run.doubts) == 1:
        return "s"
    return "~" if run.doubts else " "


def _date(run: RunPoint) -> str:
    return safe(run.started_at[:16].replace("T", " "))


def _marked(mark: str) -> Text:
    return Text(mark, style=_STYLES.get(mark, ""))


def _runs(runs: Sequence[RunPoint], marks: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("started", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("state")
    sampled = any(run.unsampled for run in runs)
    for name in ("devices", "answered", "failed", "pending", *(("not drawn",) if sampled else ())):
        table.add_column(name, justify="right")
    for run, mark in zip(runs, marks, strict=True):
        counts = run.devices
        answered = counts.ok + counts.empty + counts.not_found
        numbers = (answered + counts.unanswered, answered, counts.failed, counts.pending - run.unsampled, run.unsampled)
        style = _STYLES.get(mark, "")
        table.add_row(
            _date(run),
            _marked(mark),
            Text(safe(run.label), style=style),
            *(f"{number:,}" for number in numbers[: 5 if sampled else 4]),
        )
    return table


def _title(module: ModuleLine, runs: Sequence[RunPoint]) -> Text:
    product = safe(module.product_key or "?")
    told = [(devices, run) for devices, run in zip(module.devices, runs, strict=True) if devices is not None]
    devices, sampled = (told[-1][0], told[-1][1].unsampled > 0) if told else (0, False)
    return Text(f"{safe(module.account)} {product} {safe(module.module_name)}", style="bold") + Text(
        f"  {devices:,} devices{' of a sample' if sampled else ''} report it", style="not bold"
    )


def _lines(console: Console, module: ModuleLine, marks: Sequence[str]) -> Table:
    """A line for each version: its shares from run to run, then the newest share, what it gained, and its devices."""
    room = max(_NARROWEST, console.width - _VERSION_WIDTH - _NUMBERS_WIDTH)
    each = max(1, min(_RUN_WIDTH, room // len(marks)))
    picked = list(_picked(len(marks), room // each))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("version", overflow="ellipsis", no_wrap=True, max_width=_VERSION_WIDTH)
    table.add_column("share over time", no_wrap=True)
    for name in ("share", "change", "devices"):
        table.add_column(name, justify="right", no_wrap=True)
    plain = console.options.ascii_only
    for line in module.lines:
        drawn = "".join(_level(line.shares[at], plain=plain) * each for at in picked)
        known = [share for share in line.shares if share is not None] or [0.0]
        devices = next((count for count in reversed(line.devices) if count is not None), 0)
        table.add_row(
            _named(line),
            Text(drawn, style="cyan"),
            part(known[-1], aligned=True),
            _change(known[-1] - known[0]),
            f"{devices:,}",
        )
    if any(marks[at] != " " for at in picked):
        table.add_row("", Text("").join(_marked(marks[at] * each) for at in picked))
    return table


def _picked(runs: int, room: int) -> Iterator[int]:
    """The runs that are drawn: all, or if there is no room evenly spread ones, the first and the last among them."""
    if runs <= room:
        yield from range(runs)
    else:
        yield from (round(at * (runs - 1) / (room - 1)) for at in range(room))


def _level(share: float | None, *, plain: bool) -> str:
    levels, nothing = (PLAIN_LEVELS, PLAIN_NOTHING) if plain else (LEVELS, NOTHING)
    if share is None:
        return " "
    return levels[min(len(levels) - 1, int(share * len(levels)))] if share > 0 else nothing


def _named(line: VersionLine) -> str:
    if line.module_version is None:
        return f"{line.versions:,} others" if line.versions > 1 else "1 other"
    return safe(line.module_version) or '""'


def _change(change: float) -> str:
    """In percentage points."""
    return f"{100 * change:+.1f}" if round(1000 * change) else "="


def _shares(runs: Sequence[RunPoint], marks: Sequence[str], module: ModuleLine) -> Table:
    """A row for each run: the shares of the chief versions in it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("started", no_wrap=True)
    table.add_column("", no_wrap=True)
    for line in module.lines:
        table.add_column(Text(_named(line)), justify="right", overflow="ellipsis", no_wrap=True, min_width=6)
    for at, (run, mark) in enumerate(zip(runs, marks, strict=True)):
        shares = (line.shares[at] for line in module.lines)
        cells = ("?" if share is None else part(share, aligned=True) if share else "" for share in shares)
        table.add_row(_date(run), _marked(mark), *cells)
    return table
