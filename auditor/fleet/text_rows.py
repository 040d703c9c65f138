"""Rows of fleet files that are text: tables (csv, tsv), JSON Lines and plain lists."""

import csv
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import IO, Literal, cast

from auditor.errors import FleetError
from auditor.fleet.columns import (
    ALL_COLUMNS,
    COLUMNS,
    BadRowReport,
    FileRow,
    column_of,
    encode_attributes,
    identifying_columns,
    is_attribute,
    is_column_name,
    is_header,
    is_same_header,
    locate_attributes,
    locate_columns,
    refuse_many_attributes,
)
from auditor.fleet.names import BadRowError, is_blank, is_error_value, show, strip_invisible
from auditor.storage.compressed import BoundedGzip
from auditor.storage.files import open_regular_file

Kind = Literal["csv", "tsv", "jsonl", "parquet", "list"]

MAX_LINE = 1_000_000
"""Maximum length of a line, in characters."""

_BLOCK = 1 << 16
"""Characters that are read at a time."""

_MAX_HEADER_CELL = 24
"""Length of a cell that may be the name of a column; longer ones are not checked."""

_MAX_CHECKED = 10_000

_QUOTES = "Write a quote inside of quotes twice."

_SEPARATE = "Put tables with different columns into separate files, or remove the name of a column from the row."


@dataclass(frozen=True, slots=True)
class FleetFile:
    """A fleet file whose format was detected but whose rows were not read.

    ``path`` may be a copy of standard input; ``label`` is its name in messages. ``gzipped`` is about its content,
    whatever its name. ``preamble`` is the number of lines before the header, which csv and tsv have. ``exact``:
    ``auditor fleet`` wrote it, so each text is a name as it is.
    """

    path: Path
    label: str
    kind: Kind
    gzipped: bool = False
    encoding: str = "utf-8-sig"
    preamble: int = 0
    delimiter: str = ","
    exact: bool = False

    @property
    def row_word(self) -> str:
        """What a row's number counts."""
        return "row" if self.kind == "parquet" else "line"


@contextmanager
def open_bytes(path: Path, *, gzipped: bool) -> Iterator[IO[bytes]]:
    """Open the file for reading its decompressed bytes."""
    with open_regular_file(path) as raw:
        if not gzipped:
            yield raw
        else:
            with BoundedGzip(raw) as file:
                yield cast("IO[bytes]", file)


@contextmanager
def open_lines(file: FleetFile) -> Iterator[Iterator[str]]:
    """Open the lines of a file of text, whatever its line endings; each ends with a newline."""

    def read(text: io.TextIOWrapper) -> Iterator[str]:
        number = 1
        while block := text.read(_BLOCK):
            block += (rest := text.readline(MAX_LINE))
            number += block.count("\n")
            if len(rest) == MAX_LINE:
                advice = "check its quotes and line endings"
                raise FleetError(f"{file.label}: line {number}: has {MAX_LINE:,} characters or more; {advice}")
            yield from io.StringIO(block)

    try:
        with (
            open_bytes(file.path, gzipped=file.gzipped) as raw,
            io.TextIOWrapper(raw, file.encoding, "replace") as text,
        ):
            yield read(text)
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(file.label, error) from error


def unreadable(label: str, error: Exception) -> FleetError:
    """Return the error of a file that cannot be read."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return FleetError(f"{label}: cannot be read: {reason}")


class _TableLayout:
    """Where our columns are in the rows of a table, by its header on the line ``number``."""

    def __init__(self, header: Sequence[str], file: FleetFile, number: int) -> None:
        at = f"{file.label}: line {number}"
        positions, attributes = locate_columns(header, at), locate_attributes(header, at, exact=file.exact)
        self.header, self.width = tuple(header), len(header)
        # Behind the fields of a row are the value of columns that the file does not have, and the attributes.
        places = (self.width if place is None else place for place in positions)
        self.pick = itemgetter(*places, self.width + 1)
        self.names = [place for place in positions[: len(COLUMNS)] if place is not None]
        self._attributes = tuple(attributes.items())

    def encode_attributes(self, fields: Sequence[str]) -> str:
        """Return the attributes of a row; raise BadRowError if they are too long."""
        if not self._attributes:
            return ""
        return encode_attributes({name: fields[place] for name, place in self._attributes})


class _TableReader:
    """Reads csv and tsv. A header further down, as in joined files, is valid from there on."""

    def __init__(self, file: FleetFile, lines: Iterator[str], report: BadRowReport) -> None:
        self._file, self._report = file, report
        self._line, self._checked = "", set[str]()
        for _ in range(file.preamble):
            next(lines)
        self._records = csv.reader(
            self._remember(lines), delimiter=file.delimiter, strict=True, skipinitialspace=not file.exact
        )
        try:
            header = next(self._records)
        except csv.Error as error:
            at = f"{file.label}: line {file.preamble + 1}"
            raise FleetError(f"{at}: is not a header: {error}; check its quotes") from error
        self._layout = _TableLayout(header, file, file.preamble + 1)

    def _remember(self, lines: Iterator[str]) -> Iterator[str]:
        for self._line in lines:
            yield self._line

    def read(self) -> Iterator[FileRow]:
        """Yield the rows that can be read."""
        preamble, records, checked, layout = self._file.preamble, self._records, self._checked, self._layout
        width, key, pick = layout.width, layout.names[0], layout.pick
        while True:
            number = preamble + records.line_num + 1
            try:
                fields = next(records)
                if len(fields) != width:
                    fields = self._fit(fields)
                if (cell := fields[key]) not in checked and self._is_blank_or_header(fields, cell, number):
                    layout = self._layout
                    width, key, pick = layout.width, layout.names[0], layout.pick
                    continue
            except StopIteration:
                return
            except csv.Error:
                if preamble + records.line_num > number:
                    self._report(number, BadRowError("opens a quote that is not closed", _QUOTES))
                    continue
                fields = _split_leniently(self._line, self._file.delimiter)
                if len(fields) != width or any('"' in fields[at] for at in layout.names):
                    self._report(number, BadRowError("has a quote in the wrong place", _QUOTES))
                    continue
            except BadRowError as error:
                self._report(number, error)
                continue
            try:
                attributes = layout.encode_attributes(fields)
            except BadRowError as error:
                self._report(number, error)
                continue
            fields += "", attributes
            yield pick(fields), number

    def _fit(self, fields: list[str]) -> list[str]:
        """Return as many fields as the header has: spreadsheets omit or add delimiters at the end of rows.

        The fields of another header are returned as they are.
        """
        width = self._layout.width
        if not all(map(is_blank, fields[width:])):
            if self._has_column_names(fields) and is_header(fields):
                return fields
            problem = f"has {len(fields)} columns, but the header has {width}"
            raise BadRowError(problem, "Put values that contain the delimiter into quotes.")
        return [*fields[:width], *[""] * (width - len(fields))]

    def _has_column_names(self, fields: list[str]) -> bool:
        return any(is_column_name(fields[at]) for at in self._layout.names)

    def _is_blank_or_header(self, fields: list[str], cell: str, number: int) -> bool:
        """Return whether a row is blank or a header, which then is the header of the rows below."""
        if len(cell) > _MAX_HEADER_CELL and cell not in self._layout.header:
            return False
        if all(map(is_blank, fields)):
            return True
        if not self._is_header(fields):
            if len(self._checked) < _MAX_CHECKED and not is_blank(cell):
                self._checked.add(cell)
            return False
        self._layout = _TableLayout(fields, self._file, number)
        return True

    def _is_header(self, fields: list[str]) -> bool:
        """Return whether a row is a header; raise BadRowError if it may be one, or a part of one."""
        if not (names := identifying_columns(fields)):
            return False
        if self._file.exact:
            if len(names) > 1 and tuple(fields) != self._layout.header:
                raise BadRowError("is a header of other columns", _SEPARATE)
            return tuple(fields) == self._layout.header
        is_complete, has_names = is_header(fields), self._has_column_names(fields)
        if has_names and not is_complete:
            raise BadRowError("has the name of a column as a value", "Remove the line.")
        if is_complete and not has_names and not is_same_header(fields, self._layout.header):
            raise BadRowError("may be a device, or a header of other columns", _SEPARATE)
        return is_complete


def read_table(file: FleetFile, report: BadRowReport) -> Iterator[FileRow]:
    """Yield the rows of csv and tsv."""
    with open_lines(file) as lines:
        yield from _TableReader(file, lines, report).read()


def _split_leniently(line: str, delimiter: str) -> list[str]:
    """Return the fields of a line whose quotes do not fit, each without its own quotes."""
    return [_unquote(each.strip()) for each in line.rstrip("\n").split(delimiter)]


def _unquote(text: str) -> str:
    """Return a text without the quotes around it, if it has no others."""
    return re.sub(r'^"([^"]*)"$', r"\1", text)


_LIST_SEPARATORS = re.compile(r"[/,;\s]+", re.ASCII)

_PAIR = ("product_key", "device_name")

_LIST_HEADERS = ([*_PAIR], ["iot_id"])


def read_list(file: FleetFile, report: BadRowReport) -> Iterator[FileRow]:
    """Yield the rows of a plain list: each an iot_id, or a product_key and a device_name."""
    with open_lines(file) as lines:
        for number, line in enumerate(lines, 1):
            text = strip_invisible(line)
            if is_error_value(text):
                report(number, BadRowError(f"has {show(text)}, an error value of a spreadsheet", "Correct the cell."))
                continue
            if not text or text.startswith("#"):
                continue
            parts = [_unquote(each) for each in _LIST_SEPARATORS.split(text)]
            while len(parts) > len(_PAIR) and not parts[-1]:
                parts.pop()
            header = [column_of(each) for each in parts] if len(text) <= 2 * _MAX_HEADER_CELL else []
            if header in _LIST_HEADERS or not any(parts):
                continue
            if header and all(each in COLUMNS for each in header):
                report(number, BadRowError("is a header of other columns", "Save a table as CSV."))
            elif len(parts) > len(_PAIR):
                advice = "Write an iot_id, or a product_key and a device_name."
                report(number, BadRowError(f"has {len(parts)} names", advice))
            elif len(parts) == len(_PAIR):
                yield (parts[0], parts[1], "", "", "", "", ""), number
            else:
                yield ("", "", parts[0], "", "", "", ""), number


class _NotInteger(str):
    """A number of JSON with a fraction or an exponent, as it is written."""

    __slots__ = ()


def read_json(file: FleetFile, report: BadRowReport) -> Iterator[FileRow]:
    """Yield the rows of JSON Lines: numbers as they are written, so that no digit is lost."""
    decoder = json.JSONDecoder(
        object_pairs_hook=tuple,
        parse_int=str,
        parse_float=_NotInteger,
        parse_constant=lambda text: None if text == "NaN" else _NotInteger(text),
    )
    names = set[str]()
    with open_lines(file) as lines:
        for number, line in enumerate(lines, 1):
            if not (text := strip_invisible(line)):
                continue
            try:
                members = _decode_object(decoder, text)
                found, attributes = _pick_members(members), _pick_attributes(members, exact=file.exact)
                if not names.issuperset(attributes):
                    names.update(attributes)
                    refuse_many_attributes(names, f"{file.label}: line {number}")
                encoded = encode_attributes(attributes)
            except BadRowError as error:
                report(number, error)
                continue
            yield (*(found.get(name, "") for name in ALL_COLUMNS), encoded), number


def _decode_object(decoder: json.JSONDecoder, text: str) -> tuple[tuple[str, object], ...]:
    """Return the members of a JSON object; raise BadRowError if the text is none."""
    try:
        value = decoder.decode(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, tuple):
        raise BadRowError("is not a JSON object", "Write a JSON object a line.")
    return value


def _pick_members(members: Iterable[tuple[str, object]]) -> dict[str, str]:
    """Return the text of each of our columns that a JSON object has; raise BadRowError if it cannot be a name."""
    found: dict[str, str] = {}
    for key, value in members:
        if value is None or (name := column_of(key)) is None:
            continue
        if isinstance(value, str) and (name not in COLUMNS or not isinstance(value, _NotInteger)):
            if found.setdefault(name, value) != value and name in COLUMNS:
                raise BadRowError(f"has two values for {name}", "Leave one of them out.")
        elif name in COLUMNS:
            kind = "an object" if isinstance(value, tuple) else "a list" if isinstance(value, list) else "a truth value"
            problem = f"the number {value}, not a whole one" if isinstance(value, _NotInteger) else kind
            raise BadRowError(f"has as {name} {problem}", "Write it as a string.")
    return found


def _pick_attributes(members: Iterable[tuple[str, object]], *, exact: bool) -> dict[str, str]:
    """Return the attributes that a JSON object has. The members of an object in it are attributes ``name.member``."""
    found: dict[str, str] = {}
    for key, value in members:
        name = strip_invisible(key)
        if is_attribute(name, exact=exact):
            found |= {each: text for each, text in _attribute_texts(name, value) if each not in found}
    return found


_MAX_DEPTH = 8
"""Nesting of a member of JSON up to which it is kept."""


def _attribute_texts(name: str, value: object, depth: int = _MAX_DEPTH) -> Iterator[tuple[str, str]]:
    match value:
        case tuple() | list() if not depth:
            return
        case str():
            yield name, str(value)
        case bool():
            yield name, "true" if value else "false"
        case tuple():
            for key, inner in value:
                yield from _attribute_texts(f"{name}.{key}", inner, depth - 1)
        case list():
            yield name, ",".join(text for each in value for _, text in _attribute_texts(name, each, depth - 1))
