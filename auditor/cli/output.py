"""Write command results: a table for people, a file or standard output for other programs."""

import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

from cyclopts import Parameter

from auditor.cli.console import print_error
from auditor.cli.options import OUTPUT
from auditor.errors import UsageError
from auditor.text.formatting import PIPE_WIDTH, escape_lines, safe

if TYPE_CHECKING:
    from typing import BinaryIO

    from rich.console import Console

    from auditor.models import RunWarning
    from auditor.storage.tables import ResultTable, TableFormat


Format = Literal["table", "csv", "json", "jsonl", "parquet", "xlsx"]

FormatOption = Annotated[
    Format | None, Parameter(group=OUTPUT, help="Write this format; default: table, or as the file's name ends.")
]

MAX_TABLE_ROWS = 1_000
"""Rows of a table for people. It is laid out in memory."""

BINARY_FORMATS = ("parquet", "xlsx")

STDOUT_NAMES = frozenset({"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})

ALL_ROWS = "--format csv, json, jsonl, parquet or xlsx writes all of them"
"""Advice beside a table that is cut."""


def resolve_format(format_: Format | None, out: Path | None) -> Format:
    """Return the format to write: the given one, or that of the file's name, or a table.

    Raises:
        UsageError: a table cannot be written to a file, nor a binary format to a terminal, or the name gives no format.
    """
    formats = get_args(Format)[1:]
    names = f"{', '.join(formats[:-1])} or {formats[-1]}"
    if is_stdout(out):
        if format_ in BINARY_FORMATS and sys.stdout.isatty():
            raise UsageError(f"{format_} cannot be shown on a terminal; name a file with -o")
        return format_ or "table"
    if format_ == "table":
        raise UsageError(f"a table cannot be written to a file; use --format {names}")
    ending = "" if out is None else out.suffix.lower().removeprefix(".")
    for each in formats:
        if format_ == each or (format_ is None and ending == each):
            return cast("Format", each)
    raise UsageError(f"{out}: the name does not give a format; use --format {names}")


def emit(
    format_: Format | None, out: Path | None, *, show: Callable[[], None], write: "Callable[[Path, TableFormat], None]"
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


def read_from(path: Path) -> Path:
    """Return the folder of the run that a path means for reading; say which, if a newer one is not whole.

    Raises:
        RunFolderError: it means none; see ``find_stored_run``.
    """
    from auditor.runs.folder import find_run, find_stored_run
    from auditor.runs.manifest import MANIFEST

    if (path / MANIFEST).exists():
        return find_run(path)
    run, newest = find_stored_run(path, "whole")
    if run.folder != newest.folder:
        state = newest.manifest.state.replace("_", " ") if newest.manifest.covers_fleet else "of a part of the fleet"
        print_notes([f"reading {run.folder}, the newest whole run; {newest.folder.name} is newer, and is {state}"])
    return run.folder


def print_notes(sentences: Iterable[str]) -> None:
    """Print sentences to standard error, one a line."""
    for sentence in sentences:
        print_error(f"note: {safe(sentence)}")


def open_console(pipe_width: int = PIPE_WIDTH) -> "Console":
    """Return a console for standard output. A pipe gets wide lines, so that no name is broken."""
    from rich.console import Console

    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else pipe_width)


def print_rows(
    table: "ResultTable", limit: int | None = None, *, brief: bool = False, local_time: bool = False
) -> None:
    """Print rows as a table, at most ``limit`` or ``MAX_TABLE_ROWS`` of them.

    With ``brief``, leave out columns without information, such as zeros or a single account. With ``local_time``, show
    times, which are in UTC, in this machine's time zone.
    """
    from rich.table import Table

    shown = Table(box=None, pad_edge=False, header_style="bold")
    max_rows = MAX_TABLE_ROWS if limit is None else limit
    rows = list(islice(table, max_rows + 1))
    cut = len(rows) > max_rows
    del rows[max_rows:]
    indices = [
        at for at, name in enumerate(table.columns) if not brief or _is_informative(name, {row[at] for row in rows})
    ]
    if brief and "source" in table.columns and table.columns.index("source") not in indices:
        indices = [at for at in indices if table.columns[at] != "audited_at"]  # every row is from this run
    for at in indices:
        name = table.columns[at].replace("_", " ") if brief else table.columns[at]
        numbers = any(isinstance(row[at], int | float) for row in rows)
        shown.add_column(safe(name), justify="right" if numbers else "left", overflow="fold")
    times = {at for at in indices if local_time and table.columns[at].endswith("_at")}
    for row in rows:
        shown.add_row(*(_format_cell(_to_local_time(row[at]) if at in times else row[at]) for at in indices))
    open_console().print(shown)
    if cut:
        print_error(f"note: the table shows {max_rows:,} rows; {ALL_ROWS}")


def _is_informative(name: str, values: set[object]) -> bool:
    if len(values) > 1:
        return True
    return name != "account" and values not in ({0}, {None}, {"queried"}) and (name != "presence" or values != {"kept"})


def _to_local_time(cell: object) -> object:
    """Return a time in UTC as text in this machine's time zone, with its offset; anything else as it is."""
    try:
        return datetime.fromisoformat(str(cell)).replace(tzinfo=UTC).astimezone().isoformat(" ", "seconds")
    except (ValueError, OverflowError):
        return cell


def _format_cell(cell: object) -> str:
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return "" if cell is None else safe(f"{cell:.6g}" if isinstance(cell, float) else cell)
