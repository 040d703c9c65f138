"""A transport below aiohttp's session, for accounts without a rate limit or with a high one.

aiohttp opens, secures, pools and proxies the connections and parses responses. Its session is left out. A session
builds objects from a request that is bytes already, and handles a timer, cookies and redirects for each. Measured, that
is three quarters of the time that a request takes, see ``docs/speed.md``.

What is below the session is not documented by aiohttp and may change in any release. ``check_internals`` proves at
start that it works as this module expects. If it does not, ``open_transport`` uses the session.
"""

import asyncio
import inspect

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from yarl import URL

from auditor.client.connector import AccountConnector, ResponseLimiter
from auditor.client.transport import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    METHOD,
    Endpoint,
    RawResponse,
    SingleUse,
    proxy_headers,
    read_arrived,
    read_body,
    request_headers,
    to_raw_response,
)

KEEPALIVE_SECONDS = 30.0
"""Seconds after which a connection without a request is not used again."""


class KeptConnection:
    """A connection that is kept between requests, and what its responses pass through.

    ``used_at``: when its last request began, by the loop's clock.
    """

    __slots__ = ("connection", "handler", "limiter", "used_at")

    def __init__(self, connection: Connection, limiter: ResponseLimiter) -> None:
        self.connection, self.limiter, self.handler = connection, limiter, limiter.handler
        self.used_at = 0.0


class FastTransport:
    """Writes requests to connections as bytes. One timer serves all requests in flight.

    A connection is taken from the connector once, and kept until it closes: the connector's pool takes a fifth of a
    request's time.
    """

    def __init__(self, connector: AccountConnector, endpoint: Endpoint) -> None:
        self._connector = connector
        # The connector derives from it the target, proxy and pool key of all requests.
        self._loop = asyncio.get_running_loop()
        self._template = template = aiohttp.ClientRequest(
            METHOD,
            URL(endpoint.url),
            headers=request_headers(endpoint),
            proxy=None if endpoint.proxy is None else URL(endpoint.proxy.url),
            proxy_headers=proxy_headers(endpoint),
            loop=self._loop,
        )
        self._connect_timeout = aiohttp.ClientTimeout(connect=min(endpoint.connect_timeout, endpoint.timeout))
        # The absolute form is for a proxy that reads the request, https://www.rfc-editor.org/rfc/rfc9112#section-3.2.
        absolute = template.proxy is not None and not template.is_ssl()
        headers = "".join(f"{name}: {value}\r\n" for name, value in template.headers.items())
        self._head = f"{METHOD} {template.url if absolute else template.url.raw_path}?"
        self._tail = f" HTTP/1.1\r\n{headers}\r\n"
        self._timeout = endpoint.timeout
        self._idle: list[KeptConnection] = []
        self._deadlines: dict[KeptConnection, float] = {}  # of requests in flight, the earliest first
        self._on_new_connection = self._connecting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._single_use = SingleUse(connector, endpoint)

    async def send(self, query: str, *, fresh_connection: bool = False) -> RawResponse:
        """See ``Transport``."""
        if fresh_connection:
            return await self._single_use.send(query)
        now = self._loop.time()
        deadline = now + self._timeout
        kept = self._take_idle(now)
        if kept is None:
            return await self._send_on_new_connection(query, deadline)
        kept.used_at = now
        self._deadlines[kept] = deadline
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._expire)
        try:
            return await self._exchange(kept, query, deadline)
        finally:
            self._deadlines.pop(kept, None)

    async def prewarm(self, connections: int) -> bool:
        """See ``Transport``."""
        return await self._connector.prewarm(connections, in_flight=self._wanted())

    async def close(self) -> None:
        """See ``Transport``."""
        if self._timer is not None:
            self._timer.cancel()
        while self._idle:
            self._idle.pop().connection.close()
        await self._single_use.close()
        await self._connector.close()

    def _wanted(self) -> int:
        """Return how many connections are kept, in use or waited for."""
        return len(self._deadlines) + len(self._idle) + self._on_new_connection

    def _take_idle(self, now: float) -> KeptConnection | None:
        """Return the connection that was used last, if one can be used."""
        while self._idle:
            kept = self._idle.pop()
            is_clean = kept.limiter.begin() and not kept.handler.should_close
            if is_clean and now - kept.used_at < KEEPALIVE_SECONDS:
                return kept
            kept.connection.close()
        return None

    async def _send_on_new_connection(self, query: str, deadline: float) -> RawResponse:
        self._on_new_connection += 1
        try:
            async with asyncio.timeout_at(deadline):
                kept = await self._connect()
                kept.used_at = deadline - self._timeout
                return await self._exchange(kept, query, deadline)
        finally:
            self._on_new_connection -= 1

    async def _connect(self) -> KeptConnection:
        self._connecting += 1
        try:
            connection = await self._connector.connect(self._template, [], self._connect_timeout)
        finally:
            self._connecting -= 1
        limiter = self._connector.limiter_of(connection)
        if limiter is None:  # it closed in this moment
            connection.close()
            raise ConnectionResetError
        return KeptConnection(connection, limiter)

    async def _exchange(self, kept: KeptConnection, query: str, deadline: float) -> RawResponse:
        """Write a request and read its response."""
        handler = kept.handler
        try:
            _write(handler, f"{self._head}{query}{self._tail}".encode())
            message, content = await handler.read()
            while 100 <= message.code < 200 and message.code != 101:  # noqa: PLR2004  interim responses
                message, content = await handler.read()
            if content.is_eof():
                body = read_arrived(content, message.code)
            else:
                async with asyncio.timeout_at(deadline):
                    body = await read_body(content, message.code)
        except BaseException:
            kept.connection.close()
            raise
        if self._connecting and self._wanted() > self._connector.limit:  # a request waits for a connection
            kept.connection.release()
        else:
            kept.limiter.release_buffer()
            self._idle.append(kept)
        return to_raw_response(message.code, message.headers, body)

    def _expire(self) -> None:
        """End the requests whose time is up; all have the same timeout, so the oldest expires first."""
        self._timer = None
        now = self._loop.time()
        for kept, deadline in list(self._deadlines.items()):
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._expire)
                return
            del self._deadlines[kept]
            kept.handler.set_exception(TimeoutError())


def _write(handler: ResponseHandler, request: bytes) -> None:
    transport = handler.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError
    _expect_response(handler)
    transport.write(request)


def _expect_response(handler: ResponseHandler) -> None:
    handler.set_response_params(
        read_until_eof=True,
        auto_decompress=False,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        max_headers=MAX_HEADERS,
    )


async def check_internals() -> None:
    """Check that aiohttp has what this module relies on, by reading one response that no server sent.

    Raises:
        Exception: of any class, if something is missing or works differently.
    """
    inspect.signature(aiohttp.TCPConnector.connect).bind("connector", "request", [], aiohttp.ClientTimeout())
    for name in ("transport", "protocol", "close", "release"):
        getattr(Connection, name)
    handler = ResponseHandler(asyncio.get_running_loop())
    handler.connection_made(asyncio.Transport())
    _expect_response(handler)
    handler.data_received(b"HTTP/1.1 503 Busy\r\nX-Check: 1\r\nContent-Length: 2\r\n\r\n{}")
    async with asyncio.timeout(1):
        message, content = await handler.read()
        body = await read_body(content, message.code)
    response = (message.code, message.headers["x-check"], body, handler.should_close)
    if response != (503, "1", b"{}", False):
        raise RuntimeError(f"a response was read as {response}")
    handler.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    if not handler.should_close:
        raise RuntimeError("a response without a request was not noticed")
