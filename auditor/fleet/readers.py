"""Fleet files of all accepted kinds, as one relation of DuckDB: record, product_key, device_name, iot_id.

``record`` counts from 1 and identifies the line in the file. Columns are found by name, in the spelling of the files
(``product_key``) or of the platform (``productKey``, ``ProductKey``); others are ignored.

Error messages need the line of a record. Only for them, the file is read again, by Python.
"""

import csv
import gzip
import io
import re
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

import duckdb

from auditor.errors import FleetError
from auditor.storage.database import CSV_BLOCK_OPTIONS, error_reason, parquet, sql_identifier, sql_read_path, text_lines

Kind = Literal["csv", "tsv", "jsonl", "parquet", "list"]

COLUMNS = ("product_key", "device_name", "iot_id")

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

_REJECTS = "store_rejects=true, rejects_limit=0"

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class FleetFile:
    """A fleet file whose format was detected but whose records were not read.

    ``path`` may be a copy of standard input; ``label`` is its name in messages. ``gzipped`` is about its content,
    whatever its name. ``delimiter`` and ``header`` are those of csv and tsv.
    """

    path: Path
    label: str
    kind: Kind
    gzipped: bool = False
    delimiter: str = ","
    header: tuple[str, ...] = ()


def open_fleet_file(source: str, copy_to: Path) -> FleetFile:
    """Detect the format of a fleet file: by its suffix, else by its first line.

    ``-`` is standard input; it is copied to ``copy_to``, so that it can be read more than once.

    Raises:
        FleetError: it cannot be read, is not UTF-8, or has no column that identifies a device.
    """
    label = "standard input" if source == "-" else source
    path = copy_to if source == "-" else Path(source)
    try:
        if source == "-":
            _copy(sys.stdin.buffer, copy_to)
        elif path.exists() and not path.is_file() and not path.is_dir():  # a pipe, which can be read once only
            with path.open("rb") as pipe:
                _copy(pipe, copy_to)
            path = copy_to
        with path.open("rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
        with open_bytes(path, gzipped=gzipped) as file:
            start = file.read(1 << 16)
            while gzipped and file.read(1 << 20):
                pass  # to its checksum, which DuckDB does not check
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise FleetError(f"{label}: cannot be read: {reason}") from error
    if not start.removeprefix(_BOM).strip():
        raise FleetError(f"{label}: is empty; a fleet has at least one device")
    if start[:2] in {b"\xff\xfe", b"\xfe\xff"} or (b"\x00" in start and start[:4] != b"PAR1"):
        raise FleetError(f"{label}: is not UTF-8 text; save it as UTF-8 CSV")
    kind = _detect_kind(Path(source), start)
    if kind in {"csv", "tsv"}:
        return _read_header(FleetFile(path, label, kind, gzipped), start)
    if start.removeprefix(_BOM).lstrip()[:1] == b"[":
        raise FleetError(f"{label}: line 1: is a JSON array; write a JSON object a line, without the brackets")
    return FleetFile(path, label, kind, gzipped)


def records_sql(file: FleetFile, database: duckdb.DuckDBPyConnection) -> str:
    """Return the SQL of the file's records; malformed ones go to the database's ``reject_errors``.

    Raises:
        FleetError: the file is not Parquet although its name says so, or has no column that identifies a device.
    """
    source = sql_read_path(file.path)
    options = f"compression='{'gzip' if file.gzipped else 'none'}', {_REJECTS}"
    match file.kind:
        case "csv" | "tsv":
            names = ", ".join(f"'c{n}': 'VARCHAR'" for n in range(len(file.header)))
            positions = _locate_columns(file.header, file.label)
            columns = ", ".join(f"{'NULL' if at is None else f'c{at}'} AS {name}" for name, at in positions.items())
            # With more columns, DuckDB skips blank lines.
            blank = "WHERE c0 IS NOT NULL" if len(file.header) == 1 else ""
            delimiter = file.delimiter.replace("\t", "\\t")
            return (
                f"SELECT row_number() OVER () AS record, {columns} FROM read_csv({source}, delim='{delimiter}', "
                f"quote='\"', escape='\"', header=true, auto_detect=false, allow_quoted_nulls=false, "
                f"columns={{{names}}}, {CSV_BLOCK_OPTIONS}, {options}) {blank}"
            )
        case "parquet":
            try:
                schema = database.execute(f"DESCRIBE SELECT * FROM {parquet(file.path)}").fetchall()
            except duckdb.Error as error:
                raise FleetError(f"{file.label}: is not a Parquet file: {error_reason(error)}") from error
            header = [str(row[0]) for row in schema]
            positions = _locate_columns(header, file.label)
            casts = {
                name: f"CAST({sql_identifier(header[at])} AS VARCHAR)"
                for name, at in positions.items()
                if at is not None
            }
            columns = ", ".join(f"{casts.get(name, 'NULL')} AS {name}" for name in COLUMNS)
            return f"SELECT row_number() OVER () AS record, {columns} FROM {parquet(file.path)}"
        case "jsonl":
            columns = ", ".join(
                f"coalesce({', '.join(f'texts[{3 * n + k}]' for k in (1, 2, 3))}) AS {name}"
                for n, name in enumerate(COLUMNS)
            )
            return (
                f"SELECT record, {columns}, kind IS DISTINCT FROM 'OBJECT' OR list_has_any(kinds, {_INVALID_TYPES}) "
                "AS malformed FROM (SELECT record, CASE WHEN json_valid(line) THEN json_type(line) END AS kind, "
                f"CASE WHEN kind = 'OBJECT' THEN json_extract_string(line, [{_PATHS}]) END AS texts, "
                f"CASE WHEN kind = 'OBJECT' THEN json_type(line, [{_PATHS}]) END AS kinds "
                f"FROM ({_lines(source, options)}))"
            )
        case "list":
            return (
                "SELECT record, CASE WHEN len(parts) = 2 THEN parts[1] END AS product_key, "
                "CASE WHEN len(parts) = 2 THEN parts[2] END AS device_name, "
                "CASE WHEN len(parts) <> 2 THEN line END AS iot_id, len(parts) > 2 AS malformed "
                f"FROM (SELECT record, line, regexp_split_to_array(line, '[/,;\\s]+') AS parts "
                f"FROM ({_lines(source, options)}) WHERE NOT starts_with(line, '#'))"
            )


def _detect_kind(path: Path, start: bytes) -> Kind:
    name = re.sub(r"\.gz$", "", path.name, flags=re.IGNORECASE)
    if (kind := _SUFFIXES.get(Path(name).suffix.lower())) is not None:
        return kind
    if start[:4] == b"PAR1":
        return "parquet"
    first = start.removeprefix(_BOM).lstrip()
    if first.startswith(b"{"):
        return "jsonl"
    words = {_normalize(word.decode("utf-8", "replace")) for word in re.split(rb"[,;\t\"]+", first.splitlines()[0])}
    if words & {_normalize(name) for name in COLUMNS}:
        return "csv"
    return "list"


def _normalize(name: str) -> str:
    return name.strip().lower().replace("_", "").replace(" ", "")


def _read_header(file: FleetFile, start: bytes) -> FleetFile:
    """Return the file with its header, split by the delimiter that finds most of our columns."""
    text = start.removeprefix(_BOM).decode("utf-8", "replace")
    ours = {_normalize(name) for name in COLUMNS}
    found: dict[str, tuple[str, ...]] = {}
    for delimiter in "\t" if file.kind == "tsv" else ",;\t":
        try:
            found[delimiter] = tuple(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)))
        except csv.Error as error:
            raise FleetError(f"{file.label}: line 1: is not a header: {error}") from error
    delimiter = max(found, key=lambda each: (sum(_normalize(name) in ours for name in found[each]), len(found[each])))
    header = tuple(name.strip() for name in found[delimiter])
    _locate_columns(header, file.label)
    return FleetFile(file.path, file.label, file.kind, file.gzipped, delimiter, header)


def _locate_columns(header: Iterable[str], label: str) -> dict[str, int | None]:
    """Return the position of each of our columns in a header; None without one."""
    header = list(header)
    names = [_normalize(name) for name in header]
    positions: dict[str, int | None] = {}
    for name in COLUMNS:
        key = _normalize(name)
        if names.count(key) > 1:
            raise FleetError(f"{label}: line 1: the column {name} occurs twice")
        positions[name] = names.index(key) if key in names else None
    if positions["iot_id"] is None and None in {positions["product_key"], positions["device_name"]}:
        has = repr(", ".join(header)[:200]) if any(header) else "none"
        raise FleetError(f"{label}: line 1: needs the columns product_key and device_name, or iot_id; it has {has}")
    return positions


def _lines(source: str, options: str) -> str:
    """Return the SQL of a text file's lines as records, trimmed; blank lines are counted but dropped."""
    return (
        "SELECT record, line FROM (SELECT row_number() OVER () AS record, trim(trim(line), e' \\t') AS line FROM "
        f"({text_lines(source, options)})) WHERE line <> ''"
    )


def _spellings(name: str) -> tuple[str, str, str]:
    head, *tail = name.split("_")
    camel = head + "".join(part.title() for part in tail)
    return name, camel, camel[0].upper() + camel[1:]


_PATHS = ", ".join(f"'$.{spelling}'" for name in COLUMNS for spelling in _spellings(name))

_INVALID_TYPES = ["OBJECT", "ARRAY", "BOOLEAN", "DOUBLE"]
"""JSON types that cannot identify a device; text and integers can."""


def _copy(stream: IO[bytes], target: Path) -> None:
    with target.open("wb") as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)


def open_bytes(path: Path, *, gzipped: bool) -> IO[bytes]:
    """Open the file for reading its decompressed bytes."""
    return cast("IO[bytes]", gzip.open(path, "rb")) if gzipped else path.open("rb")


def find_lines(file: FleetFile, records: Iterable[int], rejected: frozenset[int]) -> dict[int, int]:
    """Return the line on which each record starts (a row number for Parquet).

    ``rejected`` are numbers of records that DuckDB rejected; unlike ``records`` they count the header and blank lines.
    """
    wanted = set(records)
    if file.kind in {"csv", "tsv"}:
        starts = (start for number, start, fields in _records(file) if number > 1 and number not in rejected and fields)
        return {record: start for record, start in enumerate(starts, 1) if record in wanted}
    found: dict[int, int] = {}
    numbers = sorted(rejected)
    for record in wanted:
        line = record
        for number in numbers:
            line += number <= line
        found[record] = line
    return found


def find_rejected_lines(file: FleetFile, numbers: Iterable[int]) -> dict[int, int]:
    """Return the line on which each record starts that DuckDB rejected; their numbers count header and blank lines."""
    wanted = set(numbers)
    if file.kind not in {"csv", "tsv"}:
        return {number: number for number in wanted}
    return {number: start for number, start, _ in _records(file) if number in wanted}


def find_mixed_line_ending(file: FleetFile) -> int | None:
    """Return the first line whose line ending differs from line 1, or None: DuckDB accepts one kind per file."""
    if file.kind == "parquet":
        return None
    with _text(file) as text:
        try:
            first = ""
            for number, line in enumerate(text, 1):
                ending = line[len(line.rstrip("\r\n")) :]
                first = first or ending
                if ending not in {"", first}:
                    return number
        except (OSError, EOFError, zlib.error):
            return None
    return None


def _records(file: FleetFile) -> Iterator[tuple[int, int, list[str]]]:
    """Yield number, first line and fields of each record of a csv or tsv file."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with _text(file) as text:
            reader = csv.reader(text, delimiter=file.delimiter)
            start = 1
            for number, fields in enumerate(reader, 1):
                yield number, start, fields
                start = reader.line_num + 1
    except (csv.Error, OSError, EOFError, zlib.error):
        return
    finally:
        csv.field_size_limit(limit)


def _text(file: FleetFile) -> io.TextIOWrapper:
    raw = open_bytes(file.path, gzipped=file.gzipped)
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline="")
