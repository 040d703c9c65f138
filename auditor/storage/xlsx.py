"""Excel files, by XlsxWriter: a sheet of rows, more sheets where one is full, and a sheet that describes them.

Limits are from Excel's "specifications and limits": 1,048,576 rows and 16,384 columns per sheet, 32,767 characters per
cell, and numbers of 15 digits.
"""

import contextlib
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.errors import UsageError
from auditor.log import log
from auditor.storage.files import private_folder
from auditor.text.extras import describe_extra

if TYPE_CHECKING:
    from xlsxwriter import Workbook
    from xlsxwriter.format import Format
    from xlsxwriter.worksheet import Worksheet


MAX_SHEET_ROWS = 1_048_575
"""Rows of a sheet below the column names."""

MAX_SHEET_COLUMNS = 16_384

MAX_CELL_CHARACTERS = 32_767
"""Length of a cell in UTF-16 code units."""

WARNINGS = "warnings"
"""Key of a head whose value is a list of warnings, each an object with a ``message``."""

CUT = " … (cut)"
"""Mark at the end of a cell whose text was too long."""

_EXACT = 2**53
"""Not every integer from here on is exact in Excel; these are written as text."""

_WIDTH_ROWS, _MIN_WIDTH, _MAX_WIDTH = 1_000, 8, 60

_FILTER_MARK = 3


def write_xlsx(
    path: Path, *, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]], head: Mapping[str, object]
) -> None:
    """Write rows to an Excel file, a row in memory at a time.

    Text is never a formula. Cells that are too long are cut and marked, which the sheet ``About`` and the log report.
    That sheet is the second one, and the active one if ``head`` has warnings. Cells are numbers, texts, booleans and
    None.

    Raises:
        UsageError: XlsxWriter is not installed, or there are too many columns for a sheet.
    """
    try:
        from xlsxwriter import Workbook
        from xlsxwriter.exceptions import FileCreateError
    except ImportError:
        raise UsageError(f"writing Excel files needs XlsxWriter: {describe_extra('report')}") from None
    if len(columns) > MAX_SHEET_COLUMNS:
        raise UsageError(f"{len(columns):,} columns: an Excel sheet has {MAX_SHEET_COLUMNS:,} at most")
    with private_folder("excel") as work:
        complete = Path(work, "complete.xlsx")
        literal = dict.fromkeys(("strings_to_formulas", "strings_to_urls", "strings_to_numbers"), False)
        book = Workbook(str(complete), {"constant_memory": True, "tmpdir": str(work), "use_zip64": True, **literal})
        try:
            _fill(_Writer(book), name, columns, rows, head)
        except BaseException:
            with contextlib.suppress(Exception):  # it holds files open until it is closed
                book.close()
            raise
        try:
            book.close()
        except FileCreateError as error:
            cause = error.args[0] if error.args else None
            raise (cause if isinstance(cause, OSError) else OSError(str(error))) from error
        shutil.copyfile(complete, path)


class _Writer:
    """A workbook with its cell formats, that counts cut cells."""

    def __init__(self, book: "Workbook") -> None:
        self.book, self.cut_cells = book, 0
        self.bold = book.add_format({"bold": True, "bottom": 1})
        self.whole = book.add_format({"num_format": "#,##0"})
        self.share = book.add_format({"num_format": "0.0%"})
        wrapped = {"text_wrap": True, "valign": "top"}
        self.wrapped = book.add_format(wrapped | {"align": "left"})
        self.warning = book.add_format(wrapped | {"bold": True, "font_color": "#9C0006"})

    def text(self, text: str) -> str:
        """Return a text that fits into a cell."""
        if len(text) > MAX_CELL_CHARACTERS or not text.isascii():
            units = text.encode("utf-16-le", "replace")
            if len(units) > 2 * MAX_CELL_CHARACTERS:
                self.cut_cells += 1
                units = units[: 2 * (MAX_CELL_CHARACTERS - len(CUT))]
                text = units.decode("utf-16-le", "ignore") + CUT
            else:
                text = units.decode("utf-16-le")
        # XlsxWriter would take such a text for its own markup and write it unescaped.
        return f"'{text}"[:MAX_CELL_CHARACTERS] if text.startswith("<r>") and text.endswith("</r>") else text


class _Sheet:
    """One sheet; rows are written from the top, each once."""

    def __init__(self, writer: _Writer, sheet: "Worksheet") -> None:
        self.sheet, self._writer = sheet, writer
        self._text, self._number, self._boolean = sheet.write_string, sheet.write_number, sheet.write_boolean

    def write(self, row: int, column: int, value: object, style: "Format | None" = None) -> None:
        """Write a cell with the type of its value."""
        if value is None:
            return
        if isinstance(value, bool):
            self._boolean(row, column, value, style)
        elif isinstance(value, int) and abs(value) < _EXACT:
            self._number(row, column, value, style or self._writer.whole)
        elif isinstance(value, float) and math.isfinite(value):
            self._number(row, column, value, style)
        else:
            self._text(row, column, self._writer.text(str(value)), style)

    def set_widths(self, widths: Sequence[int]) -> None:
        for at, width in enumerate(widths):
            self.sheet.set_column(at, at, max(_MIN_WIDTH, min(width + _FILTER_MARK, _MAX_WIDTH)))


def _fill(
    writer: _Writer, name: str, columns: Sequence[str], rows: Iterable[Sequence[object]], head: Mapping[str, object]
) -> None:
    first = _start_sheet(writer, name, columns)
    about = _Sheet(writer, writer.book.add_worksheet("About"))
    styles = [writer.share if column == "share" else None for column in columns]
    widths = [len(column) for column in columns]
    sheets, sheet, at, count = [(first, 0)], first, 0, 0
    for row in rows:
        if at == MAX_SHEET_ROWS:
            sheets[-1] = (sheet, at)
            sheet, at = _start_sheet(writer, f"{name} {len(sheets) + 1}", columns), 0
            sheets.append((sheet, 0))
        at += 1
        for column, value in enumerate(row):
            sheet.write(at, column, value, styles[column])
        if count < _WIDTH_ROWS:
            widths = [max(width, _length(value)) for width, value in zip(widths, row, strict=True)]
        count += 1
    sheets[-1] = (sheet, at)
    for each, filled in sheets:
        each.sheet.freeze_panes(1, 0)
        each.sheet.autofilter(0, 0, filled, len(columns) - 1)
        each.set_widths(widths)
    if writer.cut_cells:
        limit = MAX_CELL_CHARACTERS
        log.warning("cells_cut", cells=writer.cut_cells, characters=limit)
    _write_about(writer, about, head, count)
    if head.get("warnings"):
        about.sheet.activate()


def _start_sheet(writer: _Writer, name: str, columns: Sequence[str]) -> _Sheet:
    sheet = _Sheet(writer, writer.book.add_worksheet(name))
    for at, column in enumerate(columns):
        sheet.write(0, at, column, writer.bold)
    return sheet


def _length(value: object) -> int:
    """Return about how many characters a cell shows."""
    if isinstance(value, float):
        return len(f"{value:.6g}")
    return len(f"{value:,}") if isinstance(value, int) else len(str(value)[:_MAX_WIDTH])


def _write_about(writer: _Writer, sheet: _Sheet, head: Mapping[str, object], count: int) -> None:
    """Write the sheet with the values of the head, and below them its tables."""
    pairs = [*_flatten(head), ("rows", count)]
    if writer.cut_cells:
        detail = f"{writer.cut_cells:,}: Excel holds {MAX_CELL_CHARACTERS:,} characters, they end in{CUT}"
        pairs.append(("cells cut", detail))
    for at, (label, value) in enumerate(pairs):
        emphasized = label.endswith(WARNINGS) and value != "none"
        sheet.write(at, 0, label, writer.bold)
        sheet.write(at, 1, value, writer.warning if emphasized else writer.wrapped)
    at = len(pairs)
    widths = [max(len(label) for label, _ in pairs), _MAX_WIDTH]
    for label, value in head.items():
        if isinstance(value, list | tuple) and _is_table(label, value):
            sheet.write(at + 1, 0, label, writer.bold)
            columns = _write_table(writer, sheet, at + 2, value)
            widths += [_MIN_WIDTH] * (columns - len(widths))
            at += 3 + len(value)
    sheet.set_widths(widths)


def _write_table(writer: _Writer, sheet: _Sheet, at: int, table: Sequence[Mapping[str, object]]) -> int:
    """Write a table from row ``at`` on; return its number of columns."""
    names: list[str] = []
    for row, each in enumerate(table, at + 1):
        flat: dict[str, object] = {}
        for label, value in _flatten(each):
            flat[label] = f"{flat[label]}; {value}" if label in flat else value
        if not names:
            names = list(flat)
            for column, name in enumerate(names):
                sheet.write(at, column, name, writer.bold)
        for column, value in enumerate(flat.values()):
            sheet.write(row, column, value)
    return len(names)


def _flatten(head: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield a label and a value each: ``{"old": {"devices": {"ok": 1}}}`` gives ``old devices ok``, 1."""
    for key, value in head.items():
        label = f"{prefix} {key.replace('_', ' ')}".strip()
        if isinstance(value, Mapping):
            yield from _flatten(value, label)
        elif isinstance(value, list | tuple):
            if key == WARNINGS:
                yield from ((label, each["message"]) for each in value or [{"message": "none"}])
            elif not _is_table(key, value):
                yield from ((label, each) for each in value or ["none"])
        else:
            yield label, value


def _is_table(key: str, values: Sequence[object]) -> bool:
    return key != WARNINGS and bool(values) and all(isinstance(each, Mapping) for each in values)
