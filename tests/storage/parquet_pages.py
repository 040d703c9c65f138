"""Parquet files of one column of text whose pages are written by hand, in any order (Parquet format, Thrift compact)."""

from collections.abc import Sequence
from dataclasses import dataclass
from struct import pack

_PLAIN, _DELTA_BYTE_ARRAY, _RLE_DICTIONARY, _BYTE_ARRAY = 0, 7, 8, 6

_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12


@dataclass(frozen=True)
class Page:
    """A page as it is in the file, with its header; ``values`` of a dictionary page are none of the column."""

    content: bytes
    values: int


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _encode(kind: int, value: object) -> bytes:
    match value:
        case int():
            return _varint(value << 1 ^ value >> 63)
        case bytes():
            return _varint(len(value)) + value if kind == _BINARY else value
        case list():
            element, items = value
            return bytes([len(items) << 4 | element]) + b"".join(_encode(element, each) for each in items)
    raise TypeError(value)


def _struct(*fields: tuple[int, int, object]) -> bytes:
    """A struct of fields: identifier, type and value."""
    written, last = b"", 0
    for identifier, kind, value in fields:
        written += bytes([identifier - last << 4 | kind]) + _encode(kind, value)
        last = identifier
    return written + b"\0"


def _page(kind: int, content: bytes, values: int, encoding: int) -> Page:
    head = ((1, _I32, kind), (2, _I32, len(content)), (3, _I32, len(content)))
    if kind == 2:
        header = _struct(*head, (7, _STRUCT, _struct((1, _I32, values), (2, _I32, encoding))))
        return Page(header + content, 0)
    levels = ((3, _I32, 3), (4, _I32, 3))
    header = _struct(*head, (5, _STRUCT, _struct((1, _I32, values), (2, _I32, encoding), *levels)))
    return Page(header + content, values)


def plain_page(texts: Sequence[bytes]) -> Page:
    return _page(0, b"".join(pack("<I", len(text)) + text for text in texts), len(texts), _PLAIN)


def dictionary_page(texts: Sequence[bytes]) -> Page:
    return _page(2, b"".join(pack("<I", len(text)) + text for text in texts), len(texts), _PLAIN)


def delta_page(text: bytes, times: int) -> Page:
    """A text again and again, each as the whole text before it (DELTA_BYTE_ARRAY)."""
    shared = _deltas(0, len(text), times)  # lengths of what is equal: none of the first text, and all of it later
    lengths = _deltas(len(text), -len(text), times)
    return _page(0, shared + lengths + text, times, _DELTA_BYTE_ARRAY)


def _deltas(first: int, step: int, count: int) -> bytes:
    """A number, and as many times less one another that is the sum of it and ``step`` (DELTA_BINARY_PACKED)."""
    written = _varint(128) + _varint(1) + _varint(count) + _encode(_I32, first)
    for start in range(1, count, 128):  # blocks of 128 differences: the least one, the bits of each, their rest
        rest = 0 if start > 1 else abs(step)
        bits = rest.bit_length()
        lowest = step if start == 1 and step < 0 else 0
        values = [0] * 128
        if start == 1:
            values = [step - lowest, *[-lowest] * 127] if step < 0 else [step, *[0] * 127]
        packed = sum(value << bits * number for number, value in enumerate(values)) if bits else 0
        written += _encode(_I32, lowest) + bytes([bits]) + packed.to_bytes(bits * 16, "little")
    return written


def repeated_page(times: int) -> Page:
    """The first text of the dictionary, again and again."""
    return _page(0, b"\x01" + _varint(times << 1) + b"\0", times, _RLE_DICTIONARY)


def parquet_of_pages(pages: Sequence[Page], *, dictionary_offset: bool = False) -> bytes:
    """A file with these pages as the column ``a``; ``dictionary_offset``: the metadata name the dictionary's page."""
    body, rows = b"".join(page.content for page in pages), sum(page.values for page in pages)
    before = 4
    offsets = []
    for page in pages:
        offsets.append(before)
        before += len(page.content)
    dictionary = next((offset for page, offset in zip(pages, offsets, strict=True) if not page.values), None)
    metadata = _struct(
        (1, _I32, _BYTE_ARRAY), (2, _LIST, [_I32, [_PLAIN, _RLE_DICTIONARY]]), (3, _LIST, [_BINARY, [b"a"]]), (4, _I32, 0),
        (5, _I64, rows), (6, _I64, len(body)), (7, _I64, len(body)), (9, _I64, 4),
        *(((11, _I64, dictionary),) if dictionary_offset and dictionary is not None else ()),
    )  # fmt: skip
    root, column = _struct((4, _BINARY, b"r"), (5, _I32, 1)), ((1, _I32, _BYTE_ARRAY), (3, _I32, 0), (4, _BINARY, b"a"))
    footer = _struct(
        (1, _I32, 1),
        (2, _LIST, [_STRUCT, [root, _struct(*column, (6, _I32, 0))]]),
        (3, _I64, rows),
        (4, _LIST, [_STRUCT, [_struct(
            (1, _LIST, [_STRUCT, [_struct((2, _I64, 4), (3, _STRUCT, metadata))]]), (2, _I64, len(body)), (3, _I64, rows),
        )]]),
    )  # fmt: skip
    return b"PAR1" + body + footer + pack("<I", len(footer)) + b"PAR1"
