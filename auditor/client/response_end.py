"""Where a response ends, from its bytes alone. Pure.

aiohttp's parser says when a response is complete, but not whether more bytes came with it: it keeps to itself what may
become the head of another response. Whatever is not exactly as HTTP's grammar has it counts as unknown here, because
the parser reads some of that differently.
"""

import re

NOT_YET, UNKNOWN = -1, 0
"""In place of a size: more of the response is needed, and nothing can be said about it."""

MAX_HEAD_BYTES = 128 * 1024
"""Bytes of a head that comes in parts, up to which its end is found."""

MAX_CHUNKS, MAX_CHUNK_LINE = 1_000, 64
"""Chunks of a response, and bytes of the line before each, up to which its end is found."""

_STATUS_END = 12
"""Where the status ends that a response begins with: ``HTTP/1.1 200``."""

_KEPT_STATUSES = frozenset(b"%d" % status for status in range(200, 500)) - {b"204", b"304"}
"""Final statuses that are the platform's own, of responses that have a body."""

_LENGTH = b"\r\nContent-Length: "
_ANY_LENGTH = re.compile(rb"\r\nContent-Length:[ \t]*([0-9]{1,18})[ \t]*\r\n", re.IGNORECASE)
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r\n")
_LAST_CHUNK = b"0\r\n\r\n"


def size_of(data: bytes) -> int:
    """Return the bytes of the response that ``data`` begins with, head and body, as its head states it.

    It is ``NOT_YET`` if the head is incomplete or states no length, as with a body in chunks, and ``UNKNOWN`` if
    another response may follow it late (5xx), precedes it (1xx), or if it has no body.
    """
    if data[9:_STATUS_END] not in _KEPT_STATUSES:
        return NOT_YET if len(data) < _STATUS_END else UNKNOWN
    end = data.find(b"\n\r\n")
    if end < 0:
        return NOT_YET
    if data[end - 1] != ord("\r") or data.find(b"\n\n", 0, end) >= 0:
        return UNKNOWN
    at = data.find(_LENGTH, 0, end)
    if at < 0:
        found = _ANY_LENGTH.search(data, 0, end + 1)
        return NOT_YET if found is None else end + 3 + int(found[1])
    at += len(_LENGTH)
    try:
        return end + 3 + int(data[at : data.find(b"\r", at)])  # what is no number to HTTP, aiohttp refuses
    except ValueError:
        return UNKNOWN


class EndFinder:
    """Finds the end of a response whose head comes in parts, or whose body comes in chunks."""

    def __init__(self) -> None:
        self._rest = b""  # received, and not yet understood
        self._skip = self._received = self._chunks = 0
        self._in_chunks = False

    def add(self, data: bytes) -> int:
        """Take the next bytes of the response, from its first one; return its size as ``size_of`` does."""
        self._received += len(data)
        data = self._rest + data
        if not self._in_chunks:
            size = size_of(data)
            if size != NOT_YET:
                return size
            end = data.find(b"\n\r\n")
            if end < 0:
                self._rest = data
                return NOT_YET if len(data) <= MAX_HEAD_BYTES else UNKNOWN
            self._in_chunks, data = True, data[end + 3 :]
        return self._read_chunks(data)

    def _read_chunks(self, data: bytes) -> int:
        """Follow the chunks in ``data``; those with trailers have an unknown end."""
        at = self._skip
        while (end := data.find(b"\n", at, at + MAX_CHUNK_LINE)) >= 0:
            line = _CHUNK_LINE.fullmatch(data, at, end + 1)
            self._chunks += 1
            if line is None or self._chunks > MAX_CHUNKS:
                return UNKNOWN
            size = int(line[1], 16)
            if not size:
                break
            at = end + 3 + size
            if at <= len(data) and data[at - 2 : at] != b"\r\n":
                return UNKNOWN
        self._skip, self._rest = max(at - len(data), 0), data[at:]
        if self._rest == _LAST_CHUNK:
            return self._received
        is_last = end >= 0
        if len(self._rest) >= MAX_CHUNK_LINE or (is_last and not _LAST_CHUNK.startswith(self._rest)):
            return UNKNOWN
        return NOT_YET
