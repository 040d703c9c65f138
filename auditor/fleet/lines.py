"""Where in a fleet file a record stands: for messages only, so it is read again, by Python, when something is wrong."""

import csv
import io
import re
import sys
import zlib
from collections.abc import Iterable, Iterator

from auditor.fleet.files import FleetFile, opened


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
