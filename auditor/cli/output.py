"""How commands that read runs write: a table for people, a file or standard output for the next program."""

import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

from cyclopts import Parameter

from auditor.cli.console import say
from auditor.errors import UsageError
from auditor.text.formatting import PIPE_WIDTH, safe

if TYPE_CHECKING:
    from auditor.storage.tables import Table, TableFormat


Format = Literal["table", "csv", "json", "jsonl", "parquet", "xlsx"]


Out = Annotated[Path | None, Parameter(alias="-o", allow_leading_hyphen=True)]


TABLE_ROWS = 1_000
"""Rows that a table for people has: it is laid out in memory, and nobody reads more."""


BINARY = ("parquet", "xlsx")


def chosen(form: Format | None, out: Path | None) -> Format:
    """The format that was asked for: if none was named, what the file's name ends with, or a table.

    Raises:
        UsageError: a table was to be written to a file, or something binary to a terminal.
    """
    to_stdout = out is None or str(out) == "-"
    others = f"{', '.join(get_args(Format)[1:-1])} or {get_args(Format)[-1]}"
    if to_stdout:
        if form in BINARY and sys.stdout.isatty():
            raise UsageError(f"{form} is nothing to read on a terminal: name a file with -o")
        return form or "table"
    if form == "table":
        raise UsageError(f"a table goes to standard output; choose --format {others} for a file")
    ending = "" if out is None else out.suffix.lower().removeprefix(".")
    for each in get_args(Format)[1:]:
        if form == each or (form is None and ending == each):
            return cast("Format", each)
    raise UsageError(f"{out}: its name tells no format; choose --format {others}")


def deliver(
    form: Format | None,
    out: Path | None,
    *,
    show: Callable[[], None],
    write: "Callable[[Path, TableFormat], None]",
) -> None:
    """Shows a table, or writes a file; what goes to standard output is whole before its first byte is written.

    Raises:
        UsageError: the format does not go there; see ``chosen``.
    """
    form = chosen(form, out)
    if form == "table":
        show()
    elif out is not None and str(out) != "-":
        from auditor.runs.folder import refuse_own_file

        refuse_own_file(out)
        write(out, form)
    else:
        with TemporaryDirectory(prefix="auditor-") as temporary:
            whole = Path(temporary, "whole")
            write(whole, form)
            with whole.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)


def note(doubts: Iterable[str]) -> None:
    """Says on standard error why numbers are not of a whole fleet, or not to be relied on."""
    for doubt in doubts:
        say(f"note: {safe(doubt)}")


def print_rows(table: "Table", limit: int | None = None, *, brief: bool = False) -> None:
    """Rows as a table, ``TABLE_ROWS`` of them or as many as are wished; more are told of on standard error.

    ``brief`` leaves out columns that say nothing: zeros, nothing, one account, modules that are all kept.
    """
    from rich.console import Console
    from rich.table import Table as Shown

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    shown = Shown(box=None, pad_edge=False, header_style="bold")
    most, cut = TABLE_ROWS if limit is None else limit, False
    rows: list[tuple[object, ...]] = []
    for row in table:
        if cut := len(rows) == most:
            break
        rows.append(row)
    said = [at for at, name in enumerate(table.columns) if not brief or _says(name, {row[at] for row in rows})]
    if brief and "source" in table.columns and table.columns.index("source") not in said:
        said = [at for at in said if table.columns[at] != "audited_at"]  # as if the whole run had been asked at once
    for at in said:
        name = table.columns[at].replace("_", " ") if brief else table.columns[at]
        numbers = any(isinstance(row[at], int | float) for row in rows)
        shown.add_column(safe(name), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(_shown(row[at]) for at in said))
    console.print(shown)
    if cut:
        say(f"note: a table has {most:,} rows; --format csv, json, jsonl, parquet or xlsx has all of them")


def _says(name: str, values: set[object]) -> bool:
    if len(values) > 1:
        return True
    return name != "account" and values not in ({0}, {None}, {"asked"}) and (name != "presence" or values != {"kept"})


def _shown(cell: object) -> str:
    """A cell of a table: what a device told is made harmless, and nothing is an empty cell."""
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return "" if cell is None else safe(f"{cell:.6g}" if isinstance(cell, float) else cell)
