"""Where a response ends: aiohttp's parser, fed byte by byte, is the reference."""

import asyncio
import random

import pytest
from aiohttp.client_proto import ResponseHandler

from auditor.client.response_end import MAX_CHUNKS, MAX_HEAD_BYTES, NOT_YET, UNKNOWN, EndFinder, size_of
from tests.client.wire.sockets import http

pytestmark = pytest.mark.anyio

STRAY = (
    b"HTTP/1.1 200 OK\r\nX-Stray: ", b"HTTP/1.1 200 OK\r\n", b"HTT", b"\r\n\r\nHTTP/1.1 200 OK\r\nX: ", b"0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: 0\r\n0", b"\r\n0\r\n\r\n", b"HTTP/1.1 200 OK\r\n0\r\n",
)  # fmt: skip
BODIES = (b"", b"{}", b'{"success": true}', b"\r\n\r\n", b"\r\n0\r\n\r\n", *STRAY, b"\r\nContent-Length: 30\r\n\r\n")
ODD_LINE_ENDS = (*[b"\r\n"] * 20, b"\n", b"\r", b"\n\r", b"\r\r\n", b" \r\n", b"\r\n ")


def find_end(*packets: bytes) -> int:
    """Return what a connection knows of its response's size after these packets."""
    size = size_of(packets[0])
    finder = EndFinder()
    for packet in packets:
        size = finder.add(packet) if size == NOT_YET else size
    return size


def pieces(data: bytes, chance: random.Random) -> list[bytes]:
    cuts = sorted(chance.sample(range(1, len(data)), chance.choice([0, 0, 1, 3])))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def response(chance: random.Random, *, odd: bool) -> bytes:
    """Return a response of random form; ``odd``: with line ends that HTTP does not allow."""

    def line(text: bytes) -> bytes:
        return text + (chance.choice(ODD_LINE_ENDS) if odd else b"\r\n")

    body = chance.choice(BODIES)
    headers = [chance.choice([b"Date: x", b"X:y", b"Z: 0"]) for _ in range(chance.randrange(3))]
    if chance.random() < 0.5:
        name = chance.choice([b"Content-Length: ", b"content-length: ", b"Content-Length:", b"CONTENT-LENGTH:\t "])
        headers.append(name + b"%d" % len(body) + chance.choice([b"", b" "]))
    else:
        headers.append(b"Transfer-Encoding: chunked")
        half = len(body) // 2
        body = b"".join(line(b"%x" % len(each)) + line(each) for each in (body[:half], body[half:]) if each)
        body += line(b"0") + line(b"")
    chance.shuffle(headers)
    return b"".join(line(each) for each in (b"HTTP/1.1 200 OK", *headers)) + line(b"") + body


class Closable(asyncio.Transport):
    def close(self) -> None:
        """Do nothing: there is no connection."""


def reference(data: bytes, loop: asyncio.AbstractEventLoop) -> int | None:
    """Return the bytes after which aiohttp's parser has a complete response; None if there is none."""
    handler = ResponseHandler(loop)
    handler.connection_made(Closable())
    handler.set_response_params(read_until_eof=True, auto_decompress=False)
    for at in range(len(data)):
        handler.data_received(data[at : at + 1])
        if handler.exception() is not None:
            return None
        if handler._buffer and handler._buffer[0][0][1].is_eof():
            return at + 1
    return None


@pytest.mark.parametrize("seed", range(4))
async def test_an_end_is_where_the_parser_has_it_however_the_bytes_arrive(seed: int) -> None:
    chance, loop = random.Random(seed), asyncio.get_running_loop()
    for _ in range(300):
        whole = response(chance, odd=False)
        assert find_end(*pieces(whole, chance)) == len(whole) == reference(whole, loop), whole


@pytest.mark.parametrize("seed", range(4))
async def test_an_end_with_bytes_after_it_is_never_taken_for_the_end_of_all(seed: int) -> None:
    chance, loop = random.Random(seed), asyncio.get_running_loop()
    found = 0
    for _ in range(600):
        whole = response(chance, odd=chance.random() < 0.7) + chance.choice(STRAY)
        end = reference(whole, loop)
        if end is not None and whole[end:].strip():
            found += 1
            assert find_end(*pieces(whole, chance)) != len(whole), whole
    assert found > 100


@pytest.mark.parametrize(
    "data",
    [
        http(b"", status="204 No Content"), http(b"", status="304 Not Modified"), http(b"", status="503 Busy"),
        http(b"", status="103 Early Hints"), b"\r\n" + http(b"{}"), b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5_000 + b"\r\n\r\n{}", b"HTTP/1.1 200 OK\nContent-Length: 2\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: trailer\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}}}0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * (MAX_CHUNKS + 1) + b"0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;" + b"x" * 70 + b"\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES,
    ],
)  # fmt: skip
def test_an_unusual_response_has_no_certain_end(data: bytes) -> None:
    assert find_end(data) == UNKNOWN
