"""Fleet files of all accepted kinds, read once, as rows of text: each with the line on which it starts.

Columns are found by name, in the spelling of the files (``product_key``) or of the platform (``productKey``); others
are attributes. ``names`` decides what a text means.
"""

import csv
import io
import re
import shutil
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import orjson

from auditor.errors import FleetError
from auditor.fleet.columns import (
    ALL_COLUMNS,
    COLUMNS,
    BadRowReport,
    FileRow,
    encode_attributes,
    identifying_columns,
    is_header,
    is_of_discovery,
    locate_attributes,
    locate_columns,
)
from auditor.fleet.names import BadRowError, is_blank, show, strip_invisible
from auditor.fleet.text_rows import FleetFile, Kind, open_bytes, read_json, read_list, read_table, unreadable
from auditor.storage.database import (
    describe_repeated_rows,
    error_reason,
    parquet,
    result_rows,
    sql_identifier,
    sql_read_path,
)
from auditor.storage.files import create_own_file, open_regular_file

_SUFFIXES: dict[str, Kind] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "list",
    ".list": "list",
}

_START_BYTES = 1 << 16

_ENCODINGS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
"""Encodings by byte order mark; spreadsheets save "Unicode text" as UTF-16."""

_SEPARATOR = re.compile(r'\W*sep=([^"\s]|\t)"?[,;\t ]*', re.IGNORECASE)
"""A first line for Excel that names the delimiter."""


def open_fleet_file(source: str, copy_to: Path, database: duckdb.DuckDBPyConnection) -> FleetFile:
    """Detect the format of a fleet file: by its suffix, else by its first line.

    ``-`` is standard input; it is copied to ``copy_to``, so that it can be read more than once.

    Raises:
        FleetError: it cannot be read, is not text or Parquet, or has no column that identifies a device.
    """
    label = "standard input" if source == "-" else source
    path = copy_to if source == "-" else Path(source)
    try:
        if source == "-":
            _copy_standard_input(copy_to)
        with open_regular_file(path) as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
        with open_bytes(path, gzipped=gzipped) as file:
            start = file.read(_START_BYTES)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise unreadable(label, error) from error
    if (kind := _binary_kind(start, label)) is None:
        kind = _SUFFIXES.get(Path(re.sub(r"\.gz$", "", Path(source).name, flags=re.IGNORECASE)).suffix.lower())
    if kind == "parquet":
        table = FleetFile(path, label, kind)
        return replace(table, exact=is_of_discovery(_read_header(table, database)))
    encoding = next((name for mark, name in _ENCODINGS.items() if start.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig":
        _refuse_null_characters(start, label)
    text = start.decode(encoding, "replace")
    if is_blank(text):
        raise FleetError(f"{label}: is empty; a fleet has at least one device")
    return _detect_format(FleetFile(path, label, kind or "list", gzipped, encoding), text, sniffed=kind is None)


def _copy_standard_input(target: Path) -> None:
    """Copy standard input to a file, unless its start shows that it is no fleet: it may be endless."""
    start = sys.stdin.buffer.read(_START_BYTES)
    if not start.startswith((b"\x1f\x8b", *_ENCODINGS)) and _binary_kind(start, "standard input") is None:
        _refuse_null_characters(start, "standard input")
    with create_own_file(target) as copy:
        copy.write(start)
        shutil.copyfileobj(sys.stdin.buffer, copy, 1 << 20)


def _refuse_null_characters(start: bytes, label: str) -> None:
    if b"\x00" in start:
        raise FleetError(f"{label}: is not UTF-8 text; save it as CSV in UTF-8")


def _binary_kind(start: bytes, label: str) -> Kind | None:
    for name, first, advice in _OTHER_FORMATS:
        if first.match(start):
            raise FleetError(f"{label}: is {name}; {advice}")
    return "parquet" if start.startswith(b"PAR1") else None


_SAVE = "save it as CSV in UTF-8"

_DECOMPRESS = "decompress it; of the compressed formats, gzip is read"

_OTHER_FORMATS = [
    (name, re.compile(first, re.IGNORECASE | re.DOTALL), advice)
    for name, first, advice in (
        ("an Excel workbook or an archive", rb"PK\x03\x04|\xd0\xcf\x11\xe0", "save the sheet as CSV in UTF-8"),
        ("compressed with zstd", rb"\x28\xb5\x2f\xfd", _DECOMPRESS),
        ("compressed with bzip2", rb"BZh[1-9]1AY&SY", _DECOMPRESS),
        ("compressed with xz", rb"\xfd7zXZ\0", _DECOMPRESS),
        ("a 7-Zip archive", rb"7z\xbc\xaf\x27\x1c", _DECOMPRESS),
        ("an ORC file", rb"ORC[\0-\x1f]", "save it as Parquet, or as CSV in UTF-8"),
        ("an Avro file", rb"Obj\x01", "save it as Parquet, or as CSV in UTF-8"),
        ("an Arrow file", rb"ARROW1", "save it as Parquet, or as CSV in UTF-8"),
        ("an SQLite database", rb"SQLite format 3\0", "export its table as CSV in UTF-8"),
        ("a PDF document", rb"%PDF-", _SAVE),
        ("an Excel workbook in XML", rb"\W*<\?xml.{0,2000}(progid=\W?Excel|office:spreadsheet|<Workbook)", _SAVE),
        ("an HTML page", rb"\W*<(!doctype\s+html|html|head|body|table|meta)[\s>]", _SAVE),
        ("an XML document", rb"\W*<\?xml\s", _SAVE),
    )
]
"""Other formats of tables: the name of each, how it starts, and what to do."""


def read_rows(file: FleetFile, database: duckdb.DuckDBPyConnection, report: BadRowReport) -> Iterator[FileRow]:
    """Yield the rows of a file, without blank lines and repeated headers; ``report`` those that cannot be read.

    Raises:
        FleetError: the file cannot be read, or its columns cannot identify devices.
    """
    match file.kind:
        case "csv" | "tsv":
            return read_table(file, report)
        case "parquet":
            return _read_parquet(file, database, report)
        case "jsonl":
            return read_json(file, report)
        case "list":
            return read_list(file, report)


def _detect_format(file: FleetFile, start: str, *, sniffed: bool) -> FleetFile:
    """Return a file of text with its kind, its delimiter and the number of lines before its header."""
    lines, preamble, delimiters = [*io.StringIO(start, newline=None)], 0, "\t" if file.kind == "tsv" else ",;\t|"
    comment = "#" if file.kind == "list" else "\0"
    while preamble < len(lines) - 1:
        line = strip_invisible(lines[preamble])
        if (separator := _SEPARATOR.fullmatch(lines[preamble].rstrip("\r\n"))) is not None:
            delimiters = separator[1]
        elif line.strip(",;\t ") and not line.startswith(comment):
            break
        preamble += 1
    first, at = strip_invisible("".join(lines[preamble:])), f"{file.label}: line {preamble + 1}"
    if first.startswith("[") and file.kind not in {"csv", "tsv"}:
        raise FleetError(f"{at}: is a JSON array; write a JSON object a line, without the brackets")
    if file.kind == "jsonl" or (sniffed and first.startswith("{")):
        return replace(file, kind="jsonl", exact=_has_members_of_discovery(first))
    headers = {each: _split_header(lines[preamble:], each) for each in delimiters}
    delimiter = max(headers, key=lambda each: (len(identifying_columns(headers[each])), len(headers[each])))
    if file.kind == "list":
        if not is_header(headers[delimiter]):
            return file
        file = replace(file, kind="csv")
    locate_columns(headers[delimiter], at)
    exact = is_of_discovery(headers[delimiter])
    return replace(file, preamble=preamble, delimiter=delimiter, exact=exact)


def _has_members_of_discovery(lines: str) -> bool:
    """Return whether the first line of JSON Lines has the members that ``auditor fleet`` writes."""
    try:
        first = orjson.loads(lines.partition("\n")[0])
    except ValueError:  # it may be cut
        return False
    return isinstance(first, dict) and is_of_discovery(first)


def _split_header(lines: Sequence[str], delimiter: str) -> list[str]:
    try:
        return next(csv.reader(lines, delimiter=delimiter), [])
    except csv.Error:
        return []


def _read_header(file: FleetFile, database: duckdb.DuckDBPyConnection) -> list[str]:
    """Return the names of a Parquet file's columns, from its schema: DuckDB renames those that are equal."""
    query = f"SELECT name, num_children FROM parquet_schema({sql_read_path(file.path)})"
    try:
        return _top_level_names(database.cursor().execute(query).fetchall())
    except duckdb.Error as error:
        raise FleetError(f"{file.label}: is not a Parquet file: {error_reason(error)}") from error


def _read_parquet(file: FleetFile, database: duckdb.DuckDBPyConnection, report: BadRowReport) -> Iterator[FileRow]:
    try:
        reason = describe_repeated_rows(database, file.path)
    except (duckdb.Error, UnicodeDecodeError) as error:
        raise FleetError(f"{file.label}: cannot be read: {error_reason(error)}") from error
    if reason is not None:
        raise FleetError(f"{file.label}: {reason}")
    source, cursor = parquet(file.path), database.cursor()
    header, at = _read_header(file, database), f"{file.label}: its columns"
    positions, attributes = locate_columns(header, at), locate_attributes(header, at, exact=file.exact)
    try:
        types = [(str(name), str(kind)) for name, kind, *_ in cursor.execute(f"DESCRIBE FROM {source}").fetchall()]
        cells = []
        for name, place in zip(ALL_COLUMNS, positions, strict=True):
            text = None if place is None else _text_sql(name, *types[place])
            if place is not None and text is None and name in COLUMNS:
                _refuse_values(cursor, file, header[place], *types[place])
            cells.append("''" if text is None else f"coalesce({text}, '')")
        cells += (f"coalesce({_attribute_sql(*types[place])}, '')" for place in attributes.values())
        names = (*ALL_COLUMNS, *attributes)
        for number, row in enumerate(result_rows(cursor.execute(f"SELECT {', '.join(cells)} FROM {source}")), 1):
            try:
                texts = _decode_bytes(row, names)
                encoded = encode_attributes(dict(zip(attributes, texts[len(ALL_COLUMNS) :], strict=True)))
                yield (*texts[: len(ALL_COLUMNS)], encoded), number
            except BadRowError as error:
                report(number, error)
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        raise FleetError(f"{file.label}: cannot be read as Parquet: {error_reason(error)}") from error


def _decode_bytes(row: tuple[str | bytes, ...], names: Sequence[str]) -> tuple[str, ...]:
    """Return the texts of a row that may have bytes: Impala, Hive and older Spark do not mark texts as UTF-8."""
    texts = []
    for name, value in zip(names, row, strict=True):
        try:
            texts.append(
                value.decode("utf-8", "strict" if name in COLUMNS else "replace") if isinstance(value, bytes) else value
            )
        except UnicodeDecodeError:
            raise BadRowError(f"has as {name} bytes that are not UTF-8 text", "Export the column as text.") from None
    return tuple(texts)


_EXACT_TYPE = re.compile(r"VARCHAR|UUID|U?(TINY|SMALL|BIG|HUGE)INT|U?INTEGER|DECIMAL\(\d+,0\)")


def _text_sql(name: str, column: str, kind: str) -> str | None:
    """Return the SQL of the text of a column that means ``name``; None if its type has no exact text."""
    quoted = sql_identifier(column)
    if name.startswith("utc_") and kind.startswith("TIMESTAMP"):
        return _time_sql(quoted)
    if kind == "BLOB":
        return quoted
    return f"CAST({quoted} AS VARCHAR)" if _EXACT_TYPE.fullmatch(kind) else None


def _time_sql(quoted: str) -> str:
    # By its microseconds: a time with a zone would be shown in that of this machine.
    text = f"strftime(make_timestamp(epoch_us({quoted})), '%Y-%m-%dT%H:%M:%S.%f')"
    return f"CASE WHEN isfinite({quoted}) THEN {text} END"


def _attribute_sql(column: str, kind: str) -> str:
    """Return the SQL of the text of an attribute; bytes are decoded later."""
    quoted = sql_identifier(column)
    if kind == "BLOB":
        return quoted
    return _time_sql(quoted) if kind.startswith("TIMESTAMP") else f"CAST({quoted} AS VARCHAR)"


def _refuse_values(database: duckdb.DuckDBPyConnection, file: FleetFile, name: str, column: str, kind: str) -> None:
    """Raise FleetError if a column of another type than text and whole numbers has a value."""
    values = f"SELECT row_number() OVER (), CAST({sql_identifier(column)} AS VARCHAR) FROM {parquet(file.path)}"
    found = database.execute(f"FROM ({values}) AS t(number, text) WHERE text IS NOT NULL AND text <> 'nan' LIMIT 1")
    if (row := found.fetchone()) is not None:
        raise FleetError(
            f"{file.label}: row {row[0]} has in the column {show(name)} the value {show(str(row[1]))} of the type "
            f"{kind.partition('(')[0] if len(kind) > _MAX_TYPE else kind}, but only text and whole numbers name a "
            "device; export the column as text, from a source that has its exact values"
        )


_MAX_TYPE = 40
"""Characters of a type that an error quotes."""


def _top_level_names(schema: Sequence[tuple[str, int | None]]) -> list[str]:
    """Return the names of a Parquet file's columns; its schema lists them before their nested fields."""
    names, nested = [], 0
    for name, children in schema[1:]:
        if nested:
            nested -= 1
        else:
            names.append(name)
        nested += children or 0
    return names
