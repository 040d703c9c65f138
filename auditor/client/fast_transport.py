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
from yarl import URL

from auditor.client.connector import AccountConnector
from auditor.client.transport import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    METHOD,
    Endpoint,
    RawResponse,
    SingleUse,
    Watchdog,
    proxy_headers,
    read_arrived,
    read_body,
    request_headers,
    to_raw_response,
)


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
        self._watchdog = Watchdog(endpoint.timeout)
        self._single_use = SingleUse(connector, endpoint)

    async def send(self, query: str, *, fresh_connection: bool = False) -> RawResponse:
        """See ``Transport``."""
        if fresh_connection:
            return await self._single_use.send(query)
        watched = self._watchdog.watch()
        try:
            return await self._send(query)
        except asyncio.CancelledError:
            watched.raise_if_timed_out()
            raise
        finally:
            self._watchdog.forget(watched)

    async def prewarm(self, connections: int) -> bool:
        """See ``Transport``."""
        return await self._connector.prewarm(connections, in_flight=len(self._watchdog.watched))

    async def close(self) -> None:
        """See ``Transport``."""
        self._watchdog.close()
        await self._single_use.close()
        await self._connector.close()

    async def _send(self, query: str) -> RawResponse:
        connection = await self._connector.connect(self._template, [], self._connect_timeout)
        try:
            handler = self._write(connection, query)
            message, content = await handler.read()
            while 100 <= message.code < 200 and message.code != 101:  # noqa: PLR2004  interim responses
                message, content = await handler.read()
            body = read_arrived(content, message.code) if content.is_eof() else await read_body(content, message.code)
        except BaseException:
            connection.close()
            raise
        connection.release()
        return to_raw_response(message.code, message.headers, body)

    def _write(self, connection: Connection, query: str) -> ResponseHandler:
        """Write a request; return the handler that its response is read from."""
        transport, handler = connection.transport, connection.protocol
        if transport is None or handler is None or transport.is_closing():
            raise ConnectionResetError
        _expect_response(handler)
        transport.write(f"{self._head}{query}{self._tail}".encode())
        return handler


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
