"""A small proxy on a socket of this machine: tunnels by CONNECT, forwards absolute addresses, and fails as it is told."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from auditor.config.proxy import Proxy
from auditor.models import Secret

USER, PASSWORD = "user", "p@ss/w\u00f6rd"
QUOTED_PASSWORD = "p%40ss%2Fw%C3%B6rd"
TOKEN = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@dataclass
class SeenByProxy:
    """What a proxy saw; ``answer`` is what it says instead of doing its work, and None hangs up."""

    port: int = 0
    password: bool = False
    answer: bytes | None = b""
    heads: list[str] = field(default_factory=list)
    connections: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def lines(self) -> list[str]:
        return [head.partition("\r\n")[0] for head in self.heads]

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def proxy(self) -> Proxy:
        """The proxy as a client is told of it."""
        url = f"http://{self.place}"
        return Proxy(url, Secret(USER), Secret(PASSWORD)) if self.password else Proxy(url)

    @property
    def address(self) -> str:
        """As it stands in settings."""
        user = f"{USER}:{QUOTED_PASSWORD}@" if self.password else ""
        return f"http://{user}{self.place}/"


@asynccontextmanager
async def proxying(*, password: bool = False, answer: bytes | None = b"") -> AsyncIterator[SeenByProxy]:
    """A proxy that is at work; with ``password`` it wants one."""
    seen = SeenByProxy(password=password, answer=answer)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        task = asyncio.current_task()
        assert task is not None
        seen.tasks.add(task)
        try:
            await _serve(seen, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            seen.tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
        tasks = list(seen.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _serve(seen: SeenByProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        seen.heads.append(head)
        if seen.answer is None:
            return
        if seen.answer:
            writer.write(seen.answer)
            await writer.drain()
            if not seen.answer.startswith(b"HTTP/1.1 200"):
                return
            await asyncio.Event().wait()
        if seen.password and f"proxy-authorization: basic {TOKEN}".lower() not in head.lower():
            writer.write(b'HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic realm="r"\r\nContent-Length: 0\r\n\r\n')
            await writer.drain()
            continue
        method, target, _ = head.split(" ", 2)
        if method == "CONNECT":
            host, _, port = target.rpartition(":")
            await _tunnel(host.strip("[]"), int(port), reader, writer)
            return
        await _forward(head, target, writer)


async def _tunnel(host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        there, to_there = await asyncio.open_connection(host, port)
    except OSError:
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nnope")
        await writer.drain()
        return
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while part := await source.read(65_536):
            sink.write(part)
            await sink.drain()
        sink.close()

    try:
        await asyncio.gather(pump(reader, to_there), pump(there, writer))
    finally:
        to_there.transport.abort()


async def _forward(head: str, target: str, writer: asyncio.StreamWriter) -> None:
    """One request by plain HTTP: the line as it came but for the host, without what is said to the proxy alone."""
    parts = urlsplit(target)
    lines = [line for line in head.split("\r\n")[1:-2] if not line.lower().startswith("proxy-")]
    path = target.split(parts.netloc, 1)[1]
    method = head.partition(" ")[0]
    try:
        there, to_there = await asyncio.open_connection(parts.hostname, parts.port or 80)
    except OSError:
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\nnope")
        await writer.drain()
        return
    try:
        to_there.write("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode("latin-1"))
        answer = await there.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:")
        )
        writer.write(answer + await there.readexactly(length))
        await writer.drain()
    finally:
        to_there.transport.abort()
