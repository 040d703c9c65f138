"""Write command results: a table for people, a file or standard output for other programs."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from auditor.cli.console import print_note, print_notes
from auditor.cli.options import OUTPUT
from auditor.errors import UsageError
from auditor.text.formats import BINARY_FORMATS, TABLE_FORMATS, TableFormat, list_formats
from auditor.text.formatting import PIPE_WIDTH, escape_lines, format_share, safe
from auditor.text.time_zones import parse_time_zone, show_time

if TYPE_CHECKING:
    from typing import BinaryIO

    from rich.console import Console
    from rich.text import Text

    from auditor.models import RunWarning
    from auditor.runs.manifest import Manifest
    from auditor.storage.tables import ResultTable


Format = Literal["table", TableFormat]

FormatOption = Annotated[
    Format | None, Parameter(group=OUTPUT, help="Write this format; default: table, or as the file's name ends.")
]

MAX_TABLE_ROWS = 1_000
"""Rows of a table for people. It is laid out in memory."""

COLUMN_GAP = 2
"""Characters between two columns."""

MIN_SENTENCE_WIDTH = 20
"""Characters of the narrowest column of sentences."""

DISPENSABLE = (
    "request_id", "iot_id", "run", "reason", "days", "created_at", "audited_at", "last_online_at", "source",
    "device_status", "presence", "unsampled", "same", "joined", "left", "not_seen", "old_devices", "new_devices",
    "product_name",
)  # fmt: skip
"""Columns that a narrow terminal leaves out first, in this order."""

IDENTIFYING = frozenset(
    {"product_key", "device_name", "module_name", "module_version", "change", "old_version", "new_version", "rule"}
)
"""Columns that a table always has."""

TIME_COLUMNS = frozenset({"since", "until"})
"""Columns of times, besides those whose names end with ``_at``."""

SHARE_COLUMNS = frozenset({"share", "low", "high"})

COUNT_STYLES = {"upgraded": "green", "downgraded": "red", "vanished": "red", "failed": "red", "changed": "yellow"}
"""Columns of counts that have a colour where they are not 0."""

_COUNT_COLUMNS = frozenset({*COUNT_STYLES, "appeared", "joined", "left", "not_seen", "unsampled"})
"""Columns of counts in which most are 0."""

_ARROWS = {"upgraded": " ↑", "downgraded": " ↓"}

_WORD_COLUMNS = frozenset({"change", "status", "verdict", "severity"})
"""Columns of words that have a colour."""

WORD_STYLES = {
    **dict.fromkeys(("downgraded", "vanished", "failed", "violated", "error"), "red"),
    **dict.fromkeys(("changed", "pending", "unparseable", "not seen", "not_seen", "warning"), "yellow"),
    **dict.fromkeys(("upgraded", "compliant"), "green"),
}
"""Colours of words in a table: red needs action, yellow may, green is as expected."""

SENTENCE_WIDTH = 40
"""Characters from which a text with spaces is a sentence in a table whose columns are not known."""

_FRACTION = re.compile(r"(?<=:\d\d)\.\d+")

STDOUT_NAMES = frozenset({"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})

ALL_ROWS = f"--format {list_formats(TABLE_FORMATS)} writes all of them"
"""Advice beside a table that is cut."""


def resolve_format(format_: Format | None, out: Path | None) -> Format:
    """Return the format to write: the given one, or that of the file's name, or a table.

    Raises:
        UsageError: a table cannot be written to a file, nor a binary format to a terminal, or the name gives no format.
    """
    names = list_formats(TABLE_FORMATS)
    if is_stdout(out):
        if format_ in BINARY_FORMATS and sys.stdout.isatty():
            raise UsageError(f"{format_} cannot be shown on a terminal; name a file with -o")
        return format_ or "table"
    if format_ == "table":
        raise UsageError(f"a table cannot be written to a file; use --format {names}")
    ending = "" if out is None else out.suffix.lower().removeprefix(".")
    for each in TABLE_FORMATS:
        if each == (format_ or ending):
            return each
    raise UsageError(f"{out}: the name does not give a format; use --format {names}")


def emit(
    format_: Format | None, out: Path | None, *, show: Callable[[], None], write: Callable[[Path, TableFormat], None]
) -> None:
    """Show a table, or write a file in the format of ``resolve_format``."""
    resolved = resolve_format(format_, out)
    if resolved == "table":
        show()
    else:
        emit_file(out, lambda path: write(path, resolved))


def emit_file(out: Path | None, write: Callable[[Path], None]) -> None:
    """Write a file, or its content to standard output. Nothing is replaced or printed before it is complete."""
    if out is not None and not is_stdout(out):
        from auditor.errors import RunNotWritableError
        from auditor.runs.folder import refuse_run_file
        from auditor.storage.files import atomic_replace, is_special_output

        refuse_run_file(out)
        if is_special_output(out):
            write(out)
            return
        with atomic_replace(out, or_overwrite=True) as new:
            try:
                write(new)
            except RunNotWritableError as error:
                raise RunNotWritableError(str(error).replace(str(new), str(out))) from error
        return
    from auditor.storage.files import private_folder

    with private_folder("output") as temporary:
        path = temporary / "output"
        write(path)
        with path.open("rb") as file:
            write_to_stdout(file)


def write_to_stdout(content: "BinaryIO") -> None:
    """Copy UTF-8 text or a binary file to standard output. On a terminal, escape what it would act on."""
    import io
    import shutil

    if not sys.stdout.isatty():
        sys.stdout.flush()
        shutil.copyfileobj(content, sys.stdout.buffer)
        return
    text = io.TextIOWrapper(content, encoding="utf-8", errors="backslashreplace")
    while part := text.read(1 << 16):
        sys.stdout.write(escape_lines(part))
    text.detach()  # its owner closes the file


def is_stdout(out: Path | None) -> bool:
    """Return whether an output path means standard output. By its name, it is written even if it is a file."""
    return out is None or str(out) in STDOUT_NAMES


def print_warnings(warnings: "Iterable[RunWarning]") -> None:
    """Print warnings to standard error."""
    from auditor.query.describe import describe_warning

    print_notes(map(describe_warning, warnings))


def table_zone(manifest: "Manifest", *, local_time: bool) -> tzinfo | None:
    """Return the zone of times in tables: that of the settings, or UTC; with --local-time this machine's (None)."""
    if local_time:
        return None
    name = (manifest.settings or {}).get("time_zone")
    if not isinstance(name, str):
        return UTC
    try:
        return parse_time_zone(name)
    except ValueError as error:
        print_notes([f"times are in UTC: time_zone of the run: {error}"])
        return UTC


def describe_starts(manifests: Sequence["Manifest"], zone: tzinfo | None) -> Iterator[str]:
    """Yield when runs started, whose names have it in UTC, for another zone."""
    if zone is not UTC:
        yield f"started: {' and '.join(safe(each.started_at) for each in manifests)}"


def open_console(pipe_width: int = PIPE_WIDTH) -> "Console":
    """Return a console for standard output. A pipe gets wide lines, so that nothing is left out."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else pipe_width)


@dataclass(slots=True)
class Column:
    """A column of a table for people: its cells are escaped.

    Attributes:
        name: header.
        cells: text of each row, or text with a style.
        justify: where cells are aligned.
        drop: columns with a lower number are left out first where the terminal is too narrow; None: never.
        min_sentence: cells are sentences, which continue in the next line between words, in a column of this width or
            more; None: a cell is one line.
    """

    name: str
    cells: "list[str | Text]"
    justify: Literal["left", "right"] = "left"
    drop: int | None = None
    min_sentence: int | None = None

    @property
    def widest(self) -> int:
        """The characters of its longest cell."""
        from rich.cells import cell_len

        return max((cell_len(str(cell)) for cell in self.cells), default=0)

    @property
    def longest_word(self) -> int:
        """The characters of the longest text that must be in one line."""
        from rich.cells import cell_len

        if self.min_sentence is None:
            return self.widest
        return max((cell_len(word) for cell in self.cells for word in str(cell).split()), default=0)

    def width(self, *, header_lines: bool) -> int:
        """Return the characters that it needs; ``header_lines``: its header may be several lines."""
        from rich.cells import cell_len

        header = max(map(cell_len, self.name.split())) if header_lines and self.name else cell_len(self.name)
        return max(header, self.widest if self.min_sentence is None else min(self.widest, self.min_sentence))


def print_columns(columns: Sequence[Column]) -> None:
    """Print columns as a table of the terminal's width: no cell but a sentence is split over lines.

    Where the terminal is too narrow, leave out empty columns, and write what all rows have in a line above. If that is
    not enough, leave out columns, and then cut the longest cells, with a mark. Say so.
    """
    from rich.table import Table
    from rich.text import Text

    console = open_console()
    columns, common = _separate_common(columns, console.width)
    for line in _common_lines(common, console.width):
        console.print(Text(line))
    shown, widths = _fit_columns(columns, console.width)
    cut = any(width < column.longest_word for column, width in zip(shown, widths, strict=True))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, width in zip(shown, widths, strict=True):
        header = column.name.replace(" ", "\n") if width < column.width(header_lines=False) else column.name
        in_line = column.min_sentence is None
        table.add_column(Text(header), justify=column.justify, no_wrap=in_line, overflow="ellipsis", max_width=width)
    for row in zip(*(column.cells for column in shown), strict=True):
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    if console.is_terminal:
        console.print(table)
    else:  # without spaces at the ends of lines
        with console.capture() as capture:
            console.print(table)
        sys.stdout.write("".join(f"{line.rstrip(' ')}\n" for line in capture.get().splitlines()))
        sys.stdout.flush()  # what follows on standard error comes after it
    # A column without a name has nothing that others do not have.
    missing = [column.name for column in columns if column.name and not any(column is each for each in shown)]
    parts = [f"no space for {', '.join(missing)}"] if missing else []
    parts += ["what ends with … is cut"] if cut else []
    if parts:
        advice = "a wider terminal or --format csv shows all"
        print_note(f"lines of {console.width} characters: {'; '.join(parts)}; {advice}")


def _gaps(columns: Sequence[Column]) -> int:
    return COLUMN_GAP * (len(columns) - 1)


def _separate_common(columns: Sequence[Column], width: int) -> tuple[Sequence[Column], list[Column]]:
    """Return the columns of a table, and those to write above it, if the table is too wide: all their cells agree.

    Columns without a text are in neither.
    """

    def fits(shown: Sequence[Column]) -> bool:
        return sum(column.width(header_lines=True) for column in shown) + _gaps(shown) <= width

    if not columns or not columns[0].cells or fits(columns):
        return columns, []
    filled = [column for column in columns if any(map(str, column.cells))]
    if fits(filled) or len(columns[0].cells) < 2:  # noqa: PLR2004  one row has nothing in common
        return filled, []
    common = [
        column
        for column in filled
        if column.name and len(set(map(str, column.cells))) == 1 and len(_common_lines([column], width)) == 1
    ]
    if len(common) == len(filled):  # the number of rows is seen
        common = common[1:]
    return [column for column in filled if not any(column is each for each in common)], common


def _common_lines(columns: Sequence[Column], width: int) -> list[str]:
    """Return lines with the names and the only cell of columns: no name or cell is split, unless it is too long."""
    from rich.cells import cell_len

    lines, last = list[str](), len(columns) - 1
    for at, column in enumerate(columns):
        part = f"{column.name} {column.cells[0]}{'' if at == last else ','}"
        if lines and cell_len(f"{lines[-1]} {part}") <= width:
            lines[-1] = f"{lines[-1]} {part}"
        elif not lines and cell_len(f"in each row: {part}") <= width:
            lines = [f"in each row: {part}"]
        else:
            lines = [*(lines or ["in each row:"]), f"  {part}"]
    return lines


def _leave_out(columns: Sequence[Column], widths: Mapping[int, int], width: int) -> list[Column]:
    """Return the columns that stay, at least one; ``widths`` are theirs, by identity."""
    shown, left_out = list(columns), list[int]()
    needed = sum(widths.values()) + _gaps(columns)
    for column in sorted((each for each in columns if each.drop is not None), key=lambda each: each.drop or 0):
        if needed <= width or len(shown) == 1:
            break
        left_out.append(id(column))
        needed -= widths[id(column)] + COLUMN_GAP
        shown = [each for each in columns if id(each) not in left_out]
    for key in reversed(left_out):  # a narrow one may fit after all, since a wide one was left out after it
        if needed + widths[key] + COLUMN_GAP <= width:
            left_out.remove(key)
            needed += widths[key] + COLUMN_GAP
    return [each for each in columns if id(each) not in left_out]


def _fit_columns(columns: Sequence[Column], width: int) -> tuple[list[Column], list[int]]:
    """Return the columns that fit, and the width of each. If those that stay do not fit, the widest are narrower."""
    widths = {id(column): column.width(header_lines=True) for column in columns}
    shown = _leave_out(columns, widths, width)

    def excess() -> int:
        return sum(widths[id(column)] for column in shown) + _gaps(shown) - width

    while (too_much := excess()) > 0:
        widest = max(shown, key=lambda column: widths[id(column)])
        if widths[id(widest)] <= 1:
            break
        others = max((widths[id(each)] for each in shown if each is not widest), default=0)
        widths[id(widest)] = max(widths[id(widest)] - too_much, min(others, widths[id(widest)] - 1), 1)
    for column in shown:  # headers stay in one line, and sentences get longer, where there is space
        free, header = -excess(), column.width(header_lines=False)
        if widths[id(column)] < header <= widths[id(column)] + free:
            widths[id(column)] = header
        if column.min_sentence is not None:
            widths[id(column)] += min(max(0, -excess()), max(0, column.widest - widths[id(column)]))
    return shown, [widths[id(column)] for column in shown]


def print_rows(
    table: "ResultTable", limit: int | None = None, *, brief: bool = False, zone: tzinfo | None = UTC
) -> None:
    """Print rows as a table, at most ``limit`` or ``MAX_TABLE_ROWS`` of them.

    With ``brief``, leave out columns without information, such as zeros or a single account. Show times,
    which are in UTC, in ``zone``; see ``table_zone``.
    """
    max_rows = MAX_TABLE_ROWS if limit is None else limit
    rows = list(islice(table, max_rows + 1))
    cut = len(rows) > max_rows
    del rows[max_rows:]
    indices = [
        at for at, name in enumerate(table.columns) if not brief or _is_informative(name, {row[at] for row in rows})
    ]
    if brief and "source" in table.columns and table.columns.index("source") not in indices:
        indices = [at for at in indices if table.columns[at] != "audited_at"]  # every row is from this run
    form = partial(_format_brief_cell, marks=shows_marks()) if brief else lambda _, cell: _format_cell(cell)
    columns = [
        Column(
            safe(name.replace("_", " ") if brief else name),
            [form(name, _shorten_time(row[at], zone) if _is_time(name) else row[at]) for row in rows],
            "right" if any(isinstance(row[at], int | float) for row in rows) else "left",
        )
        for at, name in ((at, table.columns[at]) for at in indices)
    ]
    if brief:
        _rank_columns([table.columns[at] for at in indices], columns)
    else:
        _rank_from_right(columns)
    print_columns(columns)
    if cut:
        print_note(f"the table shows {max_rows:,} rows; {ALL_ROWS}")


def _rank_from_right(columns: Sequence[Column]) -> None:
    """Let a narrow terminal leave out the last columns first: the caller has selected and ordered them."""
    for at, column in enumerate(columns):
        column.drop = len(columns) - at
        is_long = any(" " in str(cell) and len(str(cell)) > SENTENCE_WIDTH for cell in column.cells)
        column.min_sentence = MIN_SENTENCE_WIDTH if is_long else None


def _rank_columns(names: Sequence[str], columns: Sequence[Column]) -> None:
    """Set which columns a narrow terminal leaves out first: ``DISPENSABLE``, then others from the right."""
    for at, (name, column) in enumerate(zip(names, columns, strict=True)):
        if name in DISPENSABLE:
            column.drop = DISPENSABLE.index(name)
        elif name not in IDENTIFYING:
            column.drop = len(DISPENSABLE) + len(names) - at
        column.min_sentence = MIN_SENTENCE_WIDTH if name in {"reason", "message"} else None
    if "iot_id" in names:
        iot_ids = columns[names.index("iot_id")]
        named = columns[names.index("device_name")].cells if "device_name" in names else [""] * len(iot_ids.cells)
        if any(iot_id and not name for iot_id, name in zip(iot_ids.cells, named, strict=True)):
            iot_ids.drop = None  # it is the only name of some devices


def _is_time(column: str) -> bool:
    return column.endswith("_at") or column in TIME_COLUMNS


def _shorten_time(moment: object, zone: tzinfo | None) -> object:
    """Return a time in a zone, in whole seconds."""
    shown = show_time(moment, zone)
    return shown if shown is None else _FRACTION.sub("", str(shown))


def _is_informative(name: str, values: set[object]) -> bool:
    if len(values) > 1:
        return True
    return name != "account" and values not in ({0}, {None}, {"queried"}) and (name != "presence" or values != {"kept"})


def shows_marks() -> bool:
    """Return whether standard output is a terminal that has characters other than ASCII."""
    return sys.stdout.isatty() and not open_console().options.ascii_only


def _format_brief_cell(name: str, cell: object, *, marks: bool) -> "str | Text":
    """Return a cell of a column; ``marks``: a count may have an arrow, and 0 may be a dot."""
    if name in _COUNT_COLUMNS and isinstance(cell, int):
        from rich.text import Text

        if not cell:
            return Text("·" if marks else "0", style="dim")
        return Text(f"{cell:,}{_ARROWS.get(name, '') if marks else ''}", style=COUNT_STYLES.get(name, ""))
    if name in SHARE_COLUMNS and isinstance(cell, float):
        return format_share(cell, aligned=True)
    if name in _WORD_COLUMNS and cell in WORD_STYLES:
        from rich.text import Text

        return Text(str(cell), style=WORD_STYLES[str(cell)])
    return _format_cell(cell)


def _format_cell(cell: object) -> str:
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return "" if cell is None else safe(f"{cell:.6g}" if isinstance(cell, float) else cell)
