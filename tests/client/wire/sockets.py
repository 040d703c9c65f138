"""A server of bare bytes, a client with a key that must not leak, and the walk along an exception's chain."""

import asyncio
import socket
import ssl
import struct
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import orjson

from auditor.client.client import ApiClient
from auditor.client.operations import LIST_OTA_MODULE_VERSIONS_BY_DEVICE
from auditor.client.responses import ApiResponse
from auditor.client.transport import Endpoint
from auditor.errors import PlatformError
from auditor.models import Secret

KEY_ID, SECRET = "key-id", "S3CRET-of-this-test"
PARAMETERS = {
    "CurrentPage": "1",
    "PageSize": "200",
    "ProductKey": "k1 /+*~%7E",
    "DeviceName": "ger\u00e4t:\u8bbe\u5907@1",
}
SUCCESS = orjson.dumps({"success": True, "code": "", "total": 0, "pageCount": 0, "data": {}, "requestId": "R"})

calls_per_second: float = 10.0
"""Rate of the accounts of all clients here: it selects their transport."""

Serve = Callable[[asyncio.StreamWriter, str], Awaitable[None]]


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass
class Seen:
    """What a server of bare bytes saw."""

    url: str = ""
    lines: list[str] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    connections: int = 0
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def targets(self) -> list[str]:
        return [line.split(" ")[1] for line in self.lines]

    @property
    def signatures(self) -> list[str]:
        return [target.rpartition("&Signature=")[2] for target in self.targets]


@asynccontextmanager
async def serving(serve: Serve, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Seen]:
    """Gives every request's line to ``serve``, which writes what it likes."""
    seen = Seen()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        seen.writers.add(writer)
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                seen.lines.append(head.partition("\r\n")[0])
                seen.heads.append(head)
                await serve(writer, seen.targets[-1])
                if not writer.is_closing():
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    seen.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    try:
        yield seen
    finally:
        server.close()
        for writer in seen.writers:
            writer.transport.abort()
        # The handlers end by themselves once their connections are gone.
        await asyncio.sleep(0.01)


def answering(whole: bytes) -> Serve:
    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        writer.write(whole)

    return serve


def closing(whole: bytes) -> Serve:
    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        writer.write(whole)
        await writer.drain()
        writer.close()

    return serve


async def resetting(writer: asyncio.StreamWriter, _target: str) -> None:
    # Without lingering the kernel sends a reset.
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def endpoint_of(url: str, **settings: object) -> Endpoint:
    return Endpoint(url, calls_per_second=calls_per_second, **settings)  # type: ignore[arg-type]


def client_of(url: str, *, timeout: float = 10.0, **settings: object) -> ApiClient:
    return ApiClient(endpoint_of(url, timeout=timeout, connect_timeout=timeout, **settings), KEY_ID, Secret(SECRET))


async def ask(client: ApiClient) -> ApiResponse:
    return await client.call(LIST_OTA_MODULE_VERSIONS_BY_DEVICE, PARAMETERS)


async def failure_of(client: ApiClient) -> PlatformError:
    """The error that a call ends with."""
    try:
        await ask(client)
    except PlatformError as error:
        return error
    raise AssertionError("the call went well")


def everything_in(error: BaseException | None) -> str:
    """All text that an exception and its causes and contexts, hidden ones too, can show to anybody."""
    parts: list[str] = []
    while error is not None:
        shown = "".join(traceback.format_exception(error))
        parts += [str(error), repr(error), repr(error.args), repr(getattr(error, "__dict__", {})), shown]
        parts += [everything_in(error.__cause__)] if error.__cause__ is not None else []
        error = error.__context__
    return "\n".join(parts)
