"""A query's rows as an Excel file, by XlsxWriter: a sheet of rows, more where one is full, and one that tells of them.

Limits are Excel's own (its "specifications and limits"): 1,048,576 rows and 16,384 columns a sheet, 32,767 characters a
cell, and numbers of 15 digits.
"""

import contextlib
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import structlog

from auditor.errors import UsageError

if TYPE_CHECKING:
    from xlsxwriter import Workbook
    from xlsxwriter.format import Format
    from xlsxwriter.worksheet import Worksheet


log = structlog.get_logger()


SHEET_ROWS = 1_048_575
"""Rows of a sheet, the one with the columns' names aside."""


SHEET_COLUMNS = 16_384


CELL_CHARACTERS = 32_767
"""Of a cell, counted as UTF-16 has them."""


CUT = " … (cut)"
"""What stands at the end of a cell that did not hold its text."""


_EXACT = 2**53
"""Whole numbers from here on are not all of them numbers in Excel; they are written as text."""


_WIDTH_ROWS, _NARROWEST, _WIDEST = 1_000, 8, 60


_FILTER_MARK = 3


@dataclass(frozen=True, slots=True)
class _Formats:
    """How cells look."""

    bold: "Format"
    whole: "Format"
    share: "Format"
    wrapped: "Format"
    doubt: "Format"


def write_workbook(
    path: Path, *, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]], head: Mapping[str, object]
) -> None:
    """Writes rows to an Excel file, a row in memory at a time.

    Text is text, whatever it begins with; cells that are too long are cut and marked, which the sheet ``About`` and
    the log tell. That sheet stands second, and comes up first where ``head`` has doubts.

    Args:
        path: the file to write.
        name: what the rows are called; the name of their sheet.
        columns: their columns' names.
        rows: numbers, texts, truth values and None.
        head: what is known of the rows, such as of which run they are.

    Raises:
        UsageError: XlsxWriter is not installed, or there are more columns than a sheet has.
        OSError: the file cannot be written.
    """
    try:
        from xlsxwriter import Workbook
        from xlsxwriter.exceptions import FileCreateError
    except ImportError:
        raise UsageError("writing Excel files needs XlsxWriter: pip install 'auditor[report]'") from None
    if len(columns) > SHEET_COLUMNS:
        raise UsageError(f"{len(columns):,} columns: a sheet of an Excel file has {SHEET_COLUMNS:,} at most")
    with TemporaryDirectory(prefix="auditor-excel-") as work:
        whole = Path(work, "whole.xlsx")
        book = Workbook(
            str(whole),
            {
                "constant_memory": True,
                "tmpdir": work,
                "strings_to_formulas": False,
                "strings_to_urls": False,
                "strings_to_numbers": False,
                "use_zip64": True,
            },
        )
        try:
            _fill(_Writer(book), name, columns, rows, head)
        except BaseException:
            with contextlib.suppress(Exception):  # it holds files open until it is closed
                book.close()
            raise
        try:
            book.close()
        except FileCreateError as error:
            raise (
                error.args[0] if error.args and isinstance(error.args[0], OSError) else OSError(str(error))
            ) from error
        shutil.copyfile(whole, path)


class _Writer:
    """The cells of a workbook, made to fit."""

    def __init__(self, book: "Workbook") -> None:
        self.book = book
        self.cut = 0
        add = book.add_format
        self.formats = _Formats(
            bold=add({"bold": True, "bottom": 1}),
            whole=add({"num_format": "#,##0"}),
            share=add({"num_format": "0.0%"}),
            wrapped=add({"text_wrap": True, "valign": "top", "align": "left"}),
            doubt=add({"text_wrap": True, "valign": "top", "bold": True, "font_color": "#9C0006"}),
        )

    def sheet(self, name: str) -> "_Sheet":
        return _Sheet(self, self.book.add_worksheet(name))

    def text(self, text: str) -> str:
        """A text that a cell can hold."""
        if len(text) > CELL_CHARACTERS or not text.isascii():
            units = text.encode("utf-16-le", "replace")
            if len(units) > 2 * CELL_CHARACTERS:
                self.cut += 1
                units = units[: 2 * (CELL_CHARACTERS - len(CUT))]
                text = units.decode("utf-16-le", "ignore") + CUT
            else:
                text = units.decode("utf-16-le")
        # XlsxWriter takes what looks so for text that it marked up itself, and would write it unescaped.
        return f"'{text}"[:CELL_CHARACTERS] if text.startswith("<r>") and text.endswith("</r>") else text


class _Sheet:
    """One sheet; rows are written from the top, and never again."""

    def __init__(self, writer: _Writer, sheet: "Worksheet") -> None:
        self.sheet = sheet
        self._writer = writer
        self._text = sheet.write_string
        self._number = sheet.write_number
        self._truth = sheet.write_boolean

    def write(self, row: int, column: int, value: object, style: "Format | None" = None) -> None:
        """Writes a cell as what it is."""
        if value is None:
            return
        if isinstance(value, bool):
            self._truth(row, column, value, style)
        elif isinstance(value, int) and abs(value) < _EXACT:
            self._number(row, column, value, style or self._writer.formats.whole)
        elif isinstance(value, float) and math.isfinite(value):
            self._number(row, column, value, style)
        else:
            self._text(row, column, self._writer.text(str(value)), style)

    def finish(self, columns: int, rows: int, widths: Sequence[int]) -> None:
        """Makes a table of rows one to read: names that stay, a filter, and columns that are wide enough."""
        self.sheet.freeze_panes(1, 0)
        self.sheet.autofilter(0, 0, rows, columns - 1)
        self.widths(widths)

    def widths(self, widths: Sequence[int]) -> None:
        for at, width in enumerate(widths):
            self.sheet.set_column(at, at, max(_NARROWEST, min(width + _FILTER_MARK, _WIDEST)))


def _fill(
    writer: _Writer, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]], head: Mapping[str, object]
) -> None:
    first = _begun(writer, name, columns)
    about = writer.sheet("About")
    styles = [writer.formats.share if column == "share" else None for column in columns]
    widths = [len(column) for column in columns]
    sheets, sheet, at, count = [(first, 0)], first, 0, 0
    for row in rows:
        if at == SHEET_ROWS:
            sheets[-1] = (sheet, at)
            sheet, at = _begun(writer, f"{name} {len(sheets) + 1}", columns), 0
            sheets.append((sheet, 0))
        at += 1
        for column, value in enumerate(row):
            sheet.write(at, column, value, styles[column])
        if count < _WIDTH_ROWS:
            widths = [max(width, _length(value)) for width, value in zip(widths, row, strict=True)]
        count += 1
    sheets[-1] = (sheet, at)
    for each, filled in sheets:
        each.finish(len(columns), filled, widths)
    if writer.cut:
        log.warning("cells are cut to what Excel holds, and marked", cells=writer.cut, characters=CELL_CHARACTERS)
    _tell(writer, about, head, count)
    if head.get("doubts"):
        about.sheet.activate()


def _begun(writer: _Writer, name: str, columns: Sequence[str]) -> _Sheet:
    sheet = writer.sheet(name)
    for at, column in enumerate(columns):
        sheet.write(0, at, column, writer.formats.bold)
    return sheet


def _length(value: object) -> int:
    """About how many characters a cell shows."""
    if isinstance(value, float):
        return len(f"{value:.6g}")
    return len(f"{value:,}") if isinstance(value, int) else len(str(value)[:_WIDEST])


def _tell(writer: _Writer, sheet: _Sheet, head: Mapping[str, object], count: int) -> None:
    """Fills the sheet that says of what the rows are and how whole that is; then what is a table itself."""
    facts = [*_facts(head), ("rows", count)]
    if writer.cut:
        facts.append(("cells cut", f"{writer.cut:,}: Excel holds {CELL_CHARACTERS:,} characters, they end in{CUT}"))
    at = 0
    for label, value in facts:
        doubted = label.endswith("doubts") and value != "none"
        sheet.write(at, 0, label, writer.formats.bold)
        sheet.write(at, 1, value, writer.formats.doubt if doubted else writer.formats.wrapped)
        at += 1
    widths = [max(len(label) for label, _ in facts), _WIDEST]
    for label, value in head.items():
        if isinstance(value, list | tuple) and _is_table(value):
            sheet.write(at + 1, 0, label, writer.formats.bold)
            columns = _tell_table(writer, sheet, at + 2, value)
            widths += [_NARROWEST] * (columns - len(widths))
            at += 3 + len(value)
    sheet.widths(widths)


def _tell_table(writer: _Writer, sheet: _Sheet, at: int, table: Sequence[Mapping[str, object]]) -> int:
    """Writes facts of several things, a row each under their names, from a row on; gives the number of columns."""
    names: list[str] = []
    for row, each in enumerate(table, at + 1):
        flat: dict[str, object] = {}
        for label, value in _facts(each):
            flat[label] = f"{flat[label]}; {value}" if label in flat else value
        if not names:
            names = list(flat)
            for column, name in enumerate(names):
                sheet.write(at, column, name, writer.formats.bold)
        for column, value in enumerate(flat.values()):
            sheet.write(row, column, value)
    return len(names)


def _facts(head: Mapping[str, object], of: str = "") -> Iterator[tuple[str, object]]:
    """What is known, a label and a value each: ``{"old": {"devices": {"ok": 1}}}`` is ``old devices ok``, 1."""
    for key, value in head.items():
        label = f"{of} {key.replace('_', ' ')}".strip()
        if isinstance(value, Mapping):
            yield from _facts(value, label)
        elif isinstance(value, list | tuple):
            if not _is_table(value):
                yield from ((label, each) for each in value or ["none"])
        else:
            yield label, value


def _is_table(values: Sequence[object]) -> bool:
    return bool(values) and all(isinstance(each, Mapping) for each in values)
