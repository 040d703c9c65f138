"""Connections to one account's platform, direct or through a proxy, and the resolution of host names."""

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection

from auditor.client.decoders import MAX_BODY_BYTES
from auditor.client.response_end import NOT_YET, UNKNOWN, EndFinder, size_of
from auditor.client.transport_errors import proxy_error
from auditor.errors import SettingsError, TransientError

MAX_UNCHECKED_BYTES = 64 * 1024
"""Bytes of a response that are passed on without a check: more than nearly all responses have."""

MAX_RESPONSE_BYTES = MAX_BODY_BYTES + 1024 * 1024
"""Maximum size of a response with its headers, as it is received."""

MAX_BUFFERED_BYTES = 64 * 1024 * 1024
"""Maximum size of the large responses that arrive on all connections together, without their first
``MAX_UNCHECKED_BYTES``. Headers take about twice their size in memory.
"""

MAX_INTERIM_RESPONSES = 100
"""Interim responses (1xx) to one request; more than one or two are unusual."""


def ssl_context(ca_file: str | None) -> ssl.SSLContext:
    """Return a context that trusts a PEM file's authorities, or the system's; raise SettingsError if it has none."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise SettingsError(f"ca_file: {ca_file} holds no certificates to trust: {error}") from error


class AccountConnector(aiohttp.TCPConnector):
    """A pool of connections to one endpoint. It never gives out a connection that may deliver an old response.

    aiohttp checks for complete unexpected responses when a connection returns to the pool. Data that arrives later,
    while the connection is idle, or the beginning of a response, which aiohttp's parser keeps to itself, would be taken
    for the response to the next request: another device's response. After a status of 5xx the real response may still
    arrive, because a gateway sends one when the platform is late. So a connection is used again only if its last
    response ended exactly where its head says, see ``ResponseLimiter``.

    Args:
        limit: maximum number of connections.
        tls: what TLS connections are verified with.
        connect_timeout: seconds for getting a connection.
        single_use: whether every request gets a connection of its own, which no old response can arrive on.
    """

    def __init__(
        self, *, limit: int, tls: ssl.SSLContext | bool, connect_timeout: float, single_use: bool = False
    ) -> None:
        keepalive = None if single_use else 30
        super().__init__(limit=limit, ssl=tls, keepalive_timeout=keepalive, force_close=single_use, resolver=Resolver())
        self._tls, self._connect_timeout = tls, connect_timeout
        self._last_request: tuple[aiohttp.ClientRequest, tuple[Any, ...], dict[str, Any]] | None = None
        self._limiters: dict[asyncio.Transport, ResponseLimiter] = {}
        self._buffer = _Buffer()
        self._opened = self._used = 0

    def single_use(self) -> "AccountConnector":
        """Return a connector for the same endpoint whose connections are used once."""
        return AccountConnector(limit=self.limit, tls=self._tls, connect_timeout=self._connect_timeout, single_use=True)

    async def connect(self, req: aiohttp.ClientRequest, *args: Any, **options: Any) -> Connection:  # noqa: ANN401
        """See ``aiohttp.BaseConnector``; raise ProxyError if the proxy gives no connection."""
        self._last_request = req, args, options
        self._used += 1
        started = asyncio.get_running_loop().time()
        limit: asyncio.Timeout | None = None
        try:
            connection = await super().connect(req, *args, **options)
            if self._is_usable(connection):
                return connection
            # Without the limit, a server that sends first on all connections would be called forever.
            async with asyncio.timeout_at(started + self._connect_timeout) as limit:
                while True:
                    connection.close()
                    connection = await super().connect(req, *args, **options)
                    if self._is_usable(connection):
                        return connection
        except aiohttp.ClientSSLError:  # of the host that the proxy connects to
            raise
        except (aiohttp.ClientError, OSError) as error:
            if req.proxy is None or (limit is not None and limit.expired()):
                raise
            place = f"{req.proxy.host_subcomponent}:{req.proxy.port}"
            raise proxy_error(error, f"the proxy {place}", req.host) from None

    def limiter_of(self, connection: Connection) -> "ResponseLimiter | None":
        """Return what the responses on a connection pass through; None if it has closed."""
        return None if connection.transport is None else self._limiters.get(connection.transport)

    async def prewarm(self, connections: int, *, in_flight: int) -> bool:
        """Open connections until there are as many, idle or in use, so that later requests need no handshake.

        It does nothing before the first request, which shows where to connect. Errors are left to later requests.
        Where connections do not last, as many are opened in advance as there are requests.

        Args:
            connections: wanted number of connections.
            in_flight: requests that have a connection or wait for one.

        Returns:
            False if connections were missing and none was opened.
        """
        wanted = min(connections, self.limit)
        self._forget_closed()
        if self._last_request is None or len(self._limiters) >= wanted:
            return True
        if self._opened - wanted > 2 * self._used:
            return False
        request, args, options = self._last_request
        opened = self._opened
        all_started = asyncio.Event()

        async def open_one() -> None:
            self._used -= 1
            connection = await self.connect(request, *args, **options)
            if (limiter := self.limiter_of(connection)) is not None:
                limiter.connection = None  # no request is in flight
            try:
                await all_started.wait()
            finally:
                connection.release()

        # Idle connections are taken too, so that the others are new; all return to the pool immediately.
        tasks = [asyncio.ensure_future(open_one()) for _ in range(wanted - in_flight)]
        try:
            await asyncio.sleep(0)
            all_started.set()
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            for task in tasks:
                task.cancel()
        return not tasks or self._opened > opened

    def _is_usable(self, connection: Connection) -> bool:
        """Return True for a connection without unexpected data that is not about to close."""
        transport, handler = connection.transport, connection.protocol
        if transport is None or handler is None:
            return True  # closed in this moment, which the request itself reports
        limiter = self._limiters.get(transport)
        if limiter is None:
            if len(self._limiters) >= 2 * self.limit:
                self._forget_closed()
            limiter = self._limiters[transport] = ResponseLimiter(handler, self._buffer)
            transport.set_protocol(limiter)
            limiter.connection = connection
            self._opened += 1
            # `should_close` is not documented. Should it be gone one day, connections are used once.
            return not getattr(handler, "should_close", False)
        limiter.connection = connection
        return limiter.begin() and not getattr(handler, "should_close", True)

    def _forget_closed(self) -> None:
        self._limiters = {each: limiter for each, limiter in self._limiters.items() if not each.is_closing()}


class _Buffer:
    """Size of the large responses that are arriving, ``size`` bytes on all connections of a pool."""

    def __init__(self) -> None:
        self.size = 0


class ResponseLimiter(asyncio.Protocol):
    """Passes what arrives on a connection on to aiohttp, aborts a response without end, and finds surplus bytes.

    aiohttp limits a header line, the number of headers, and the body that it is read from. It does not limit interim
    responses, all headers together, or the responses of all connections together.

    Attributes:
        handler: aiohttp's protocol.
        connection: what the request in flight holds, or the last request held; None: it was given out for none.
        received: bytes received since the connection was last given out.
    """

    def __init__(self, handler: ResponseHandler, buffer: _Buffer) -> None:
        self.received = 0
        self.connection: Connection | None = None
        self._releasing: Connection | None = None
        self._size, self._finder = UNKNOWN, EndFinder()
        self.handler = handler
        self._buffer, self._buffered = buffer, 0
        self._pass_on: Callable[[bytes], None] = handler.data_received
        self._interim_responses = 0

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        if not self.received:
            self._size = UNKNOWN if self.connection is None else size_of(data)  # None: no request is in flight
            self._interim_responses = 0
            if self._size == NOT_YET:
                self._finder = EndFinder()
        self.received += len(data)
        if self._size == NOT_YET:
            self._size = self._finder.add(data)
        if self.received > MAX_UNCHECKED_BYTES:
            self._check(data)
        self._pass_on(data)

    def begin(self) -> bool:
        """Begin a request; return False if something follows the last response, or may arrive late.

        The last byte received must be the end of the last response, as its ``Content-Length`` or the end of its chunks
        says. A response with a status of 5xx, after an interim response, with trailers, or of another form has no such
        end, nor has what arrived while no request was in flight.
        """
        ended_exactly = not self.received or self.received == self._size
        self.received = 0
        return ended_exactly

    def release_buffer(self) -> None:
        """Stop counting the response: it was read or abandoned."""
        self._buffer.size -= self._buffered
        self._buffered = 0

    def _check(self, data: bytes) -> None:
        if self.connection is not None and self.connection is not self._releasing:
            self._releasing = self.connection
            self.connection.add_callback(self.release_buffer)
        self._buffered += len(data)
        self._buffer.size += len(data)
        self._interim_responses += data.count(b"HTTP/1.1 1")
        if self._interim_responses > MAX_INTERIM_RESPONSES:
            sentence = f"more than {MAX_INTERIM_RESPONSES} interim responses (HTTP 1xx) and no final one"
            self._abort(TransientError("auditor.InvalidHTTP", sentence))
        elif self.received > MAX_RESPONSE_BYTES:
            sentence = f"the response and its headers are larger than {MAX_RESPONSE_BYTES:,} bytes"
            self._abort(TransientError("auditor.ResponseTooLarge", sentence))
        elif self._buffer.size > MAX_BUFFERED_BYTES:
            sentence = f"the responses that arrive together are larger than {MAX_BUFFERED_BYTES:,} bytes"
            self._abort(TransientError("auditor.ResponseTooLarge", sentence))

    def _abort(self, error: TransientError) -> None:
        self._pass_on = _ignore
        self.release_buffer()
        transport = self.handler.transport
        self.handler.set_exception(error)
        if transport is not None:
            transport.abort()

    def eof_received(self) -> None:
        """See ``asyncio.Protocol``."""
        self.handler.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self.release_buffer()
        self.handler.connection_lost(error)

    def pause_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        self.handler.pause_writing()

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        self.handler.resume_writing()


def _ignore(_data: bytes) -> None:
    """Drop what arrives after a response was aborted."""


class Resolver(AbstractResolver):
    """Resolves names in threads of its own, which neither the loop's end nor the process's waits for.

    The loop's own threads are few, and waited for. If the name servers of one host are silent, which the system accepts
    for a minute, all other names would wait, and so would the end.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See ``aiohttp.abc.AbstractResolver``."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[list[ResolveResult]] = loop.create_future()

        def set_result(found: list[ResolveResult] | Exception) -> None:
            if result.done():  # the request was cancelled
                return
            if isinstance(found, Exception):
                result.set_exception(found)
            else:
                result.set_result(found)

        def resolve() -> None:
            found: list[ResolveResult] | Exception
            try:
                found = _resolve_addresses(host, port, family)
            except Exception as error:  # noqa: BLE001  it is raised where the result is awaited
                found = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(set_result, found)

        threading.Thread(target=resolve, name="auditor-name", daemon=True).start()
        return await result

    async def close(self) -> None:
        """See ``aiohttp.abc.AbstractResolver``."""


def _resolve_addresses(host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult]:
    numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    found = socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return [
        ResolveResult(
            hostname=host,
            # Includes the interface's name if an IPv6 address is link-local.
            host=socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0],
            port=port,
            family=address_family,
            proto=protocol,
            flags=numeric,
        )
        for address_family, _, protocol, _, address in found
    ]
