"""Faults below HTTP: what the simulated platform does to a connection instead of answering on it as it should."""

import asyncio
import socket
import struct
import time

from auditor.simulator.answers import JSON, Reply
from auditor.simulator.faults import FaultKind

DRIP_SECONDS = 0.05
"""Between two parts of a body that drips."""

_NO_LINGERING = struct.pack("ii", 1, 0)
_HALF_A_BODY = b'{"code":"","currentPage":1,"data":{"simpleOTAModuleInfo":[{"device'
_PROMISED = 100_000


async def fail_below_http(kind: FaultKind, transport: asyncio.Transport, *, date: str, seconds: float) -> None:
    """Does to a connection what a fault of ``kind`` (reset, cut, silence or drip) does, and ends it.

    Args:
        kind: what goes wrong.
        transport: the connection; a client that hangs up and a shutdown cancel what lasts.
        date: the answer's ``Date``, where there is one.
        seconds: how long silence and a drip last.
    """
    match kind:
        case "cut":
            transport.write(_beginning(date))
            # Closed, not aborted: what was written still arrives.
            transport.close()
            return
        case "silence":
            await asyncio.sleep(seconds)
        case "drip":
            await _drip(transport, date, seconds)
        case _:
            # Without lingering the kernel sends a reset; else the client would see an orderly end.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
    transport.abort()


async def _drip(transport: asyncio.Transport, date: str, seconds: float) -> None:
    """A body that comes steadily, so that no wait for the next byte is long, and never comes to its end."""
    transport.write(_beginning(date))
    end = time.monotonic() + seconds
    while not transport.is_closing() and time.monotonic() < end:
        transport.write(b" ")
        await asyncio.sleep(DRIP_SECONDS)


def answer_as_http10(transport: asyncio.Transport, reply: Reply, date: str) -> None:
    """A whole answer as an old proxy gives it: no length, the body ends with the connection."""
    headers = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
    head = f"HTTP/1.0 {reply.status} OK\r\nContent-Type: {reply.content_type}\r\nDate: {date}\r\n{headers}\r\n"
    transport.write(head.encode() + reply.body)
    transport.close()


def _beginning(date: str) -> bytes:
    """The head of an answer and less of its body than the head promises."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {JSON}\r\nDate: {date}\r\nContent-Length: {_PROMISED}\r\n\r\n"
    return head.encode() + _HALF_A_BODY
