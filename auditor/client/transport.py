"""One request and its answer on a kept connection: the very bytes that were signed go out, a bounded body comes back.

aiohttp opens, secures, keeps and proxies the connections and parses what comes on them. Its session is left out: it
makes an object of a request that is bytes already, and a timer, cookies and redirects for each. Measured, that is 50 of
the 80 microseconds that a request takes, see ``docs/speed.md``.
"""

import asyncio
from typing import NamedTuple

import aiohttp
from aiohttp import hdrs
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy

from auditor.client.connector import Connector
from auditor.errors import TransientError

BODY_LIMIT = 8 * 1024 * 1024
"""Bytes of a decompressed body that are read at most; 200 modules take about 40,000."""


class Received(NamedTuple):
    """What came back: the HTTP status, the headers, found without case, and the whole body, decompressed."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Exchange:
    """Asks one place for one thing after another, as many at a time as the connector has connections.

    Args:
        connector: gives connections; closed by ``close``.
        like: a request such as all are: whom it is sent to, through which proxy, with which headers.
        connect_timeout, timeout: seconds, for getting a connection, of the pool or a new one, and for the whole of a
            request. The connector minds the first, the watchdog the second once there is a connection.
    """

    def __init__(
        self, connector: Connector, like: aiohttp.ClientRequest, *, connect_timeout: float, timeout: float
    ) -> None:
        self._connector, self._like = connector, like
        self._connecting = aiohttp.ClientTimeout(connect=min(connect_timeout, timeout))
        headers = "".join(f"{name}: {value}\r\n" for name, value in like.headers.items())
        # An origin, or a whole address for a proxy that passes on what it reads, see RFC 9112, section 3.2.
        whole = like.proxy is not None and not like.is_ssl()
        self._before = f"{hdrs.METH_GET} {like.url if whole else like.url.raw_path}?"
        self._after = f" HTTP/1.1\r\n{headers}\r\n"
        self._watchdog = _Watchdog(timeout)

    async def get(self, query: str) -> Received:
        """Sends one request, once, and gives what comes back.

        Raises:
            TransientError: the body is larger than BODY_LIMIT.
            TimeoutError: it took too long.
            aiohttp.ClientError, HttpProcessingError, OSError, ValueError: what the network does.
        """
        watched = self._watchdog.watch()
        try:
            received = await self._ask(query, watched)
        except (aiohttp.ClientError, HttpProcessingError, OSError):
            if not watched.late:
                raise
        finally:
            self._watchdog.leave(watched)
        if watched.late:  # whatever is said of a connection that was cut; a body that ends with it even looks whole
            raise TimeoutError
        return received

    async def close(self) -> None:
        """Closes all connections, those in use as well."""
        self._watchdog.close()
        await self._connector.close()

    async def warm(self, connections: int) -> bool:
        """See ``Connector.warm``."""
        return await self._connector.warm(connections, self._connecting)

    async def _ask(self, query: str, watched: "_Watched") -> Received:
        connection = watched.connection = await self._connector.connect(self._like, [], self._connecting)
        try:
            answers = self._send(connection, query, watched)
            message, content = await answers.read()
            while 100 <= message.code < 200 and message.code != 101:  # noqa: PLR2004  news of an answer to come
                message, content = await answers.read()
            # Nearly every body has come with its head, and no wait is needed to take it.
            body = content.read_nowait() if content.is_eof() else await _whole(content, message.code)
            _refuse_larger(len(body), message.code)
        except BaseException:
            connection.close()
            raise
        connection.release()
        return Received(message.code, message.headers, body)

    def _send(self, connection: Connection, query: str, watched: "_Watched") -> ResponseHandler:
        """Writes a request; gives what its answers are read from."""
        transport, protocol = connection.transport, connection.protocol
        if transport is None or protocol is None or transport.is_closing() or watched.late:
            raise ConnectionResetError
        protocol.set_response_params(read_until_eof=True)
        transport.write(f"{self._before}{query}{self._after}".encode())
        return protocol


async def _whole(content: StreamReader, status: int) -> bytes:
    """The body of an answer with a status, as it comes."""
    parts: list[bytes] = []
    size = 0
    while not content.at_eof():
        parts.append(part := await content.readany())
        size += len(part)
        _refuse_larger(size, status)
    return b"".join(parts)


def _refuse_larger(size: int, status: int) -> None:
    """Raises TransientError if a body, decompressed, is larger than BODY_LIMIT."""
    if size > BODY_LIMIT:
        sentence = f"the answer is larger than {BODY_LIMIT:,} bytes"
        raise TransientError("auditor.OversizedAnswer", sentence, http_status=status)


class _Watched:
    """A request in flight, its connection once it has one, and whether its time is up."""

    __slots__ = ("connection", "late", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.late = False
        self.connection: Connection | None = None


class _Watchdog:
    """Cuts the connection of a request that takes too long. One timer serves them all: the first is the first to end.

    Args:
        seconds: that a request may take.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._going: dict[_Watched, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> _Watched:
        watched = _Watched(self._loop.time() + self._seconds)
        self._going[watched] = None
        if self._timer is None:
            self._timer = self._loop.call_at(watched.until, self._look)
        return watched

    def leave(self, watched: _Watched) -> None:
        self._going.pop(watched, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        for watched in list(self._going):
            if watched.until > now:
                self._timer = self._loop.call_at(watched.until, self._look)
                return
            del self._going[watched]
            watched.late = True
            if watched.connection is not None and watched.connection.transport is not None:
                watched.connection.transport.abort()
