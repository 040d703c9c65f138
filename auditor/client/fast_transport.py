"""A transport below aiohttp's session, for accounts without a rate limit or with a high one.

aiohttp opens, secures, pools and proxies the connections and parses responses. Its session is left out. A session
builds objects from a request that is bytes already, and handles a timer, cookies and redirects for each. Measured, that
is 50 of the 80 microseconds that a request takes, see ``docs/speed.md``.

What is below the session is not documented by aiohttp and may change in any release. ``check_internals`` proves at
start that it works as this module expects. If it does not, ``open_transport`` uses the session.
"""

import asyncio
import inspect

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.http import HttpProcessingError
from yarl import URL

from auditor.client.connector import AccountConnector
from auditor.client.transport import METHOD, Endpoint, RawResponse, proxy_headers, read_body, request_headers


class FastTransport:
    """Writes requests to pooled connections as bytes. One timer serves all requests in flight."""

    def __init__(self, connector: AccountConnector, endpoint: Endpoint) -> None:
        self._connector = connector
        # The connector derives from it the target, proxy and pool key of all requests.
        self._template = template = aiohttp.ClientRequest(
            METHOD,
            URL(endpoint.url),
            headers=request_headers(endpoint),
            proxy=None if endpoint.proxy is None else URL(endpoint.proxy.url),
            proxy_headers=proxy_headers(endpoint),
            loop=asyncio.get_running_loop(),
        )
        self._connect_timeout = aiohttp.ClientTimeout(connect=min(endpoint.connect_timeout, endpoint.timeout))
        # The absolute form is for a proxy that reads the request, https://www.rfc-editor.org/rfc/rfc9112#section-3.2.
        absolute = template.proxy is not None and not template.is_ssl()
        headers = "".join(f"{name}: {value}\r\n" for name, value in template.headers.items())
        self._head = f"{METHOD} {template.url if absolute else template.url.raw_path}?"
        self._tail = f" HTTP/1.1\r\n{headers}\r\n"
        self._watchdog = _Watchdog(endpoint.timeout)

    async def send(self, query: str) -> RawResponse:
        """See ``Transport``."""
        watched = self._watchdog.watch()
        try:
            response = await self._send(query, watched)
        except (aiohttp.ClientError, HttpProcessingError, OSError):
            if not watched.timed_out:
                raise
        finally:
            self._watchdog.watched.pop(watched, None)
        if watched.timed_out:  # whatever a cut connection reports; a body that ends with it even seems complete
            raise TimeoutError
        return response

    async def prewarm(self, connections: int) -> bool:
        """See ``Transport``."""
        return await self._connector.prewarm(connections, in_flight=len(self._watchdog.watched))

    async def close(self) -> None:
        """See ``Transport``."""
        self._watchdog.close()
        await self._connector.close()

    async def _send(self, query: str, watched: "_WatchedRequest") -> RawResponse:
        connection = watched.connection = await self._connector.connect(self._template, [], self._connect_timeout)
        try:
            handler = self._write(connection, query, watched)
            message, content = await handler.read()
            while 100 <= message.code < 200 and message.code != 101:  # noqa: PLR2004  interim responses
                message, content = await handler.read()
            body = await read_body(content, message.code)
        except BaseException:
            connection.close()
            raise
        connection.release()
        return RawResponse(message.code, message.headers, body)

    def _write(self, connection: Connection, query: str, watched: "_WatchedRequest") -> ResponseHandler:
        """Write a request; return the handler that its response is read from."""
        transport, handler = connection.transport, connection.protocol
        if transport is None or handler is None or transport.is_closing() or watched.timed_out:
            raise ConnectionResetError
        handler.set_response_params(read_until_eof=True)
        transport.write(f"{self._head}{query}{self._tail}".encode())
        return handler


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
    handler.set_response_params(read_until_eof=True)
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


class _WatchedRequest:
    """A request in flight, its connection once it has one, and whether its time is up."""

    __slots__ = ("connection", "deadline", "timed_out")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.timed_out = False
        self.connection: Connection | None = None


class _Watchdog:
    """Cuts the connection of a request that takes too long. All have the same timeout, so the oldest expires first.

    Attributes:
        watched: the requests in flight, the oldest first.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self.watched: dict[_WatchedRequest, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def watch(self) -> _WatchedRequest:
        request = _WatchedRequest(self._loop.time() + self._timeout)
        self.watched[request] = None
        if self._timer is None:
            self._timer = self._loop.call_at(request.deadline, self._expire)
        return request

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for request in list(self.watched):
            if request.deadline > now:
                self._timer = self._loop.call_at(request.deadline, self._expire)
                return
            del self.watched[request]
            request.timed_out = True
            if request.connection is not None and request.connection.transport is not None:
                request.connection.transport.abort()
