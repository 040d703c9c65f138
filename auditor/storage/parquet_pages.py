"""Headers of the pages of Parquet files (Parquet format, Thrift compact protocol): how much text the pages can hold.

Metadata at the end of a file may be false. DuckDB reads a page by its own header, so the headers are what is counted.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, TypeAlias

MAX_PAGES = 100_000
"""Pages of a file whose headers are read; writers give a page 20,000 values, or 1 MB."""

_HEADER_BYTES, _MAX_HEADER_BYTES = 128, 1 << 20

_MAX_SHIFT = 63
"""Bits of a number before its last byte."""

_DICTIONARY, _DATA_V2 = 2, 3
"""Types of pages; further ones are data without values to share, and indexes."""

_DELTA_BYTE_ARRAY = 7
"""Encoding of a text as the start of the text before it, and what follows that."""

_Fields: TypeAlias = "dict[int, int | _Fields]"


class PageHeader(NamedTuple):
    """What a page's header says: its type, sizes in bytes when expanded and stored, values, encoding and own length."""

    kind: int
    size: int
    stored: int
    values: int
    encoding: int
    length: int


def bound_text(file: BinaryIO, chunks: list[tuple[int, int]]) -> int | None:
    """Return how many bytes of text columns of a file can have at most; None: that cannot be determined.

    ``chunks`` has the offset and the number of values of each part of a column.
    """
    bound, pages = 0, 0
    try:
        for offset, values in chunks:
            largest = 0
            for page in _read_headers(file, offset, values):
                pages += 1
                if pages > MAX_PAGES:
                    return None
                # Each value can be the largest text of a dictionary, or of those before it.
                if page.kind == _DICTIONARY or page.encoding == _DELTA_BYTE_ARRAY:
                    largest = max(largest, page.size)
                bound += page.size
            bound += values * largest
    except (ValueError, IndexError, OverflowError, OSError):  # also an offset that no file has
        return None
    return bound


def _read_headers(file: BinaryIO, offset: int, values: int) -> Iterator[PageHeader]:
    """Yield the headers of a column's pages until they have as many values; raise ValueError for other content."""
    while values > 0:
        page = _read_header(file, offset)
        if page.stored < 0 or page.size < 0 or page.values < 0:
            raise ValueError(page)
        yield page
        offset, values = offset + page.length + page.stored, values - page.values


def _read_header(file: BinaryIO, offset: int) -> PageHeader:
    size = _HEADER_BYTES
    while True:
        content = os.pread(file.fileno(), size, offset)
        try:
            fields, length = _read_struct(content, 0)
            break
        except IndexError:
            if len(content) < size or size > _MAX_HEADER_BYTES:
                raise
            size *= 8
    member, encoding_at = (8, 4) if fields.get(1) == _DATA_V2 else (5, 2)
    found = fields.get(member, {})
    data = found if isinstance(found, dict) else {}
    numbers = (*(fields.get(number, -1) for number in (1, 2, 3)), data.get(1, 0), data.get(encoding_at, 0))
    kind, expanded, stored, values, encoding = (each if isinstance(each, int) else -1 for each in numbers)
    return PageHeader(kind, expanded, stored, values, encoding, length)


def _read_struct(content: bytes, at: int, depth: int = 4) -> tuple[_Fields, int]:
    """Return the numbers and structs of a struct by their identifiers, and the position behind it.

    Raises:
        IndexError: it continues behind ``content``.
        ValueError: it has what no page header has.
    """
    fields: _Fields = {}
    identifier = 0
    while (head := content[at]) != 0:
        kind, step = head & 0xF, head >> 4
        at += 1
        if step:
            identifier += step
        else:
            identifier, at = _read_number(content, at)
        match kind:
            case 1 | 2:  # a truth value, in its type
                pass
            case 3:
                at += 1
            case 4 | 5 | 6:
                fields[identifier], at = _read_number(content, at)
            case 7:
                at += 8
            case 8:
                size, at = _read_unsigned(content, at)
                at += size
            case 12 if depth:
                fields[identifier], at = _read_struct(content, at, depth - 1)
            case _:
                raise ValueError(kind)
    return fields, at + 1


def _read_number(content: bytes, at: int) -> tuple[int, int]:
    number, at = _read_unsigned(content, at)
    return number >> 1 ^ -(number & 1), at


def _read_unsigned(content: bytes, at: int) -> tuple[int, int]:
    number, shift = 0, 0
    while (byte := content[at]) & 0x80:
        number, shift, at = number | (byte & 0x7F) << shift, shift + 7, at + 1
        if shift > _MAX_SHIFT:
            raise ValueError(number)
    return number | byte << shift, at + 1
