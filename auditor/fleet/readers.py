"""Fleet files of every accepted kind, as one relation of DuckDB: record, product_key, device_name, iot_id.

``record`` counts from 1 and leads back to the line in the file. Columns are found by name, in the spelling of the
files (``product_key``) or of the platform (``productKey``, ``ProductKey``); others are ignored.

Where in a fleet file a record stands: for messages only, so it is read again, by Python, when something is wrong.
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
from auditor.storage.database import BLOCKS, parquet, quoted_to_read, reason_of, text_lines

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
    """A fleet file, looked at but not yet read.

    Attributes:
        path: the file; what came on standard input has been kept in one.
        shown: how messages name it.
        kind: how its records are written.
        gzipped: whether it is compressed, whatever its name says.
        delimiter: between the fields of csv and tsv.
        header: its column names as they stand there, for csv and tsv.
    """

    path: Path
    shown: str
    kind: Kind
    gzipped: bool = False
    delimiter: str = ","
    header: tuple[str, ...] = ()


def look_at(source: str, keep: Path) -> FleetFile:
    """Finds out what kind of file a fleet is: by its suffix, else by its first line.

    Args:
        source: a path; ``-`` is standard input.
        keep: where standard input is written to, so that it can be read more than once.

    Raises:
        FleetError: it cannot be read, is not UTF-8, or has no column that names a device.
    """
    shown = "standard input" if source == "-" else source
    path = keep if source == "-" else Path(source)
    try:
        if source == "-":
            _copy(sys.stdin.buffer, keep)
        elif path.exists() and not path.is_file() and not path.is_dir():  # a pipe, which is read but once
            with path.open("rb") as pipe:
                _copy(pipe, keep)
            path = keep
        with path.open("rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
        with opened(path, gzipped=gzipped) as file:
            start = file.read(1 << 16)
            while gzipped and file.read(1 << 20):
                pass  # to its checksum, which DuckDB does not look at
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise FleetError(f"{shown}: cannot be read: {reason}") from error
    if not start.removeprefix(_BOM).strip():
        raise FleetError(f"{shown}: is empty; a fleet has at least one device")
    if start[:2] in {b"\xff\xfe", b"\xfe\xff"} or (b"\x00" in start and start[:4] != b"PAR1"):
        raise FleetError(f"{shown}: is not UTF-8 text; save it as UTF-8 CSV")
    kind = _kind_of(Path(source), start)
    if kind in {"csv", "tsv"}:
        return _with_header(FleetFile(path, shown, kind, gzipped), start)
    if start.removeprefix(_BOM).lstrip()[:1] == b"[":
        raise FleetError(f"{shown}: line 1: is a JSON array; write a JSON object a line, without the brackets")
    return FleetFile(path, shown, kind, gzipped)


def relation(file: FleetFile, database: duckdb.DuckDBPyConnection) -> str:
    """The SQL that gives the file's records; malformed ones go to the database's ``reject_errors``.

    Raises:
        FleetError: a Parquet file that is none, or without a column that names a device.
    """
    source = quoted_to_read(file.path)
    options = f"compression='{'gzip' if file.gzipped else 'none'}', {_REJECTS}"
    match file.kind:
        case "csv" | "tsv":
            names = ", ".join(f"'c{n}': 'VARCHAR'" for n in range(len(file.header)))
            picked = _picked(file.header, file.shown)
            columns = ", ".join(f"{'NULL' if at is None else f'c{at}'} AS {name}" for name, at in picked.items())
            blank = "WHERE c0 IS NOT NULL" if len(file.header) == 1 else ""  # elsewhere DuckDB leaves blank lines out
            delimiter = file.delimiter.replace("\t", "\\t")
            return (
                f"SELECT row_number() OVER () AS record, {columns} FROM read_csv({source}, delim='{delimiter}', "
                f"quote='\"', escape='\"', header=true, auto_detect=false, allow_quoted_nulls=false, "
                f"columns={{{names}}}, {BLOCKS}, {options}) {blank}"
            )
        case "parquet":
            try:
                schema = database.execute(f"DESCRIBE SELECT * FROM {parquet(file.path)}").fetchall()
            except duckdb.Error as error:
                raise FleetError(f"{file.shown}: is not a Parquet file: {reason_of(error)}") from error
            header = [str(row[0]) for row in schema]
            columns = ", ".join(
                "NULL AS " + name
                if at is None
                else f'CAST("{header[at].replace(chr(34), chr(34) * 2)}" AS VARCHAR) AS {name}'
                for name, at in _picked(header, file.shown).items()
            )
            return f"SELECT row_number() OVER () AS record, {columns} FROM {parquet(file.path)}"
        case "jsonl":
            columns = ", ".join(
                f"coalesce({', '.join(f'texts[{3 * n + k}]' for k in (1, 2, 3))}) AS {name}"
                for n, name in enumerate(COLUMNS)
            )
            return (
                f"SELECT record, {columns}, kind IS DISTINCT FROM 'OBJECT' OR list_has_any(kinds, {_NO_NAMES}) "
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


def _kind_of(path: Path, start: bytes) -> Kind:
    name = re.sub(r"\.gz$", "", path.name, flags=re.IGNORECASE)
    if (known := _SUFFIXES.get(Path(name).suffix.lower())) is not None:
        return known
    if start[:4] == b"PAR1":
        return "parquet"
    first = start.removeprefix(_BOM).lstrip()
    if first.startswith(b"{"):
        return "jsonl"
    words = {_plain(word.decode("utf-8", "replace")) for word in re.split(rb"[,;\t\"]+", first.splitlines()[0])}
    if words & {_plain(name) for name in COLUMNS}:
        return "csv"
    return "list"


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "").replace(" ", "")


def _with_header(file: FleetFile, start: bytes) -> FleetFile:
    """The file with its columns, split by the delimiter that finds most of ours.

    Raises:
        FleetError: no column names a device, or one of them stands there twice.
    """
    text = start.removeprefix(_BOM).decode("utf-8", "replace")
    ours = {_plain(name) for name in COLUMNS}
    found: dict[str, tuple[str, ...]] = {}
    for delimiter in "\t" if file.kind == "tsv" else ",;\t":
        try:
            found[delimiter] = tuple(next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)))
        except csv.Error as error:
            raise FleetError(f"{file.shown}: line 1: is not a header: {error}") from error
    delimiter = max(found, key=lambda each: (sum(_plain(name) in ours for name in found[each]), len(found[each])))
    header = tuple(name.strip() for name in found[delimiter])
    _picked(header, file.shown)
    return FleetFile(file.path, file.shown, file.kind, file.gzipped, delimiter, header)


def _picked(header: Iterable[str], shown: str) -> dict[str, int | None]:
    """Where each of our columns stands in a header.

    Raises:
        FleetError: no column names a device, or one of them stands there twice.
    """
    header = list(header)
    plain = [_plain(name) for name in header]
    picked: dict[str, int | None] = {}
    for name in COLUMNS:
        key = _plain(name)
        if plain.count(key) > 1:
            raise FleetError(f"{shown}: line 1: the column {name} stands there twice")
        picked[name] = plain.index(key) if key in plain else None
    if picked["iot_id"] is None and None in {picked["product_key"], picked["device_name"]}:
        has = repr(", ".join(header)[:200]) if any(header) else "none"
        raise FleetError(f"{shown}: line 1: needs the columns product_key and device_name, or iot_id; it has {has}")
    return picked


def _lines(source: str, options: str) -> str:
    """The lines of a text file as records, trimmed; blank ones count but do not appear."""
    return (
        "SELECT record, line FROM (SELECT row_number() OVER () AS record, trim(trim(line), e' \\t') AS line FROM "
        f"({text_lines(source, options)})) WHERE line <> ''"
    )


def _spellings(name: str) -> tuple[str, str, str]:
    head, *tail = name.split("_")
    camel = head + "".join(part.title() for part in tail)
    return name, camel, camel[0].upper() + camel[1:]


_PATHS = ", ".join(f"'$.{spelling}'" for name in COLUMNS for spelling in _spellings(name))


_NO_NAMES = ["OBJECT", "ARRAY", "BOOLEAN", "DOUBLE"]
"""Kinds of JSON that name no device; text and whole numbers do."""


def _copy(stream: IO[bytes], keep: Path) -> None:
    with keep.open("wb") as copy:
        shutil.copyfileobj(stream, copy, 1 << 20)


def opened(path: Path, *, gzipped: bool) -> IO[bytes]:
    """The file's bytes, decompressed."""
    return cast("IO[bytes]", gzip.open(path, "rb")) if gzipped else path.open("rb")


def lines_of(file: FleetFile, records: Iterable[int], rejected: frozenset[int]) -> dict[int, int]:
    """The line on which each of some records starts (a row number for Parquet).

    Args:
        file: as it was looked at.
        records: the ``record`` numbers of the relation.
        rejected: the record numbers, counting the header and blank lines, that DuckDB put aside.
    """
    wanted = set(records)
    found: dict[int, int] = {}
    if file.kind not in {"csv", "tsv"}:
        put_aside = sorted(rejected)
        for record in sorted(wanted):
            line = record
            for number in put_aside:
                line += number <= line
            found[record] = line
        return found
    record = 0
    for number, start, fields in _records(file):
        if number == 1 or number in rejected or not fields:
            continue
        record += 1
        if record in wanted:
            found[record] = start
    return found


def line_of_rejected(file: FleetFile, numbers: Iterable[int]) -> dict[int, int]:
    """The line on which each record starts that DuckDB put aside; it counts records, with header and blank lines."""
    wanted = set(numbers)
    if file.kind not in {"csv", "tsv"}:
        return {number: number for number in wanted}
    return {number: start for number, start, _ in _records(file) if number in wanted}


def odd_ending(file: FleetFile) -> int | None:
    """The first line that ends otherwise than line 1 does, if there is one: DuckDB takes one kind of ending a file."""
    if file.kind == "parquet":
        return None
    with _text(file) as text:
        try:
            ending = re.compile(r"[\r\n]*\Z")
            first = ""
            for number, line in enumerate(text, 1):
                this = ending.search(line)
                first = first or (this[0] if this else "")
                if this and this[0] not in {"", first}:
                    return number
        except (OSError, EOFError, zlib.error):
            return None
    return None


def _records(file: FleetFile) -> Iterator[tuple[int, int, list[str]]]:
    """A csv's or tsv's records: number, first line, fields. For messages only: DuckDB does the reading."""
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
    raw = opened(file.path, gzipped=file.gzipped)
    return io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace", newline="")
