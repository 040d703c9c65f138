"""Sending of signed requests: one request, one response, never a hidden retry.

Two transports have one interface. ``SessionTransport`` is the default and uses the public interface of aiohttp only.
``FastTransport`` (``auditor.client.fast_transport``) works below aiohttp's session. It is selected for accounts whose
rate makes the difference matter, and only if the installed aiohttp has everything it relies on.

Requests are sent with POST. aiohttp, and a proxy too, may send a GET a second time if a kept connection breaks
(https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2), but each attempt needs its own nonce and time. Both SDKs of the
vendor use POST as well, with all parameters in the query and an empty body.
"""

import asyncio
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import aiohttp
import msgspec
from multidict import CIMultiDictProxy
from yarl import URL

from auditor.client.connector import AccountConnector, ssl_context
from auditor.client.decoders import MAX_BODY_BYTES, decompress, too_large
from auditor.client.transport_errors import REDIRECTS, SWITCHING_PROTOCOLS, elsewhere
from auditor.config.proxy import Proxy
from auditor.log import log

METHOD = "POST"
"""HTTP method of all requests; it is part of the text that is signed."""

MAX_HEADER_BYTES, MAX_HEADERS = 65_536, 1_024
"""Bytes of one header, and number of headers. aiohttp's limits, 8,190 and 128, are less than proxies send.

All headers together are limited by ``auditor.client.connector.MAX_RESPONSE_BYTES``.
"""

FAST_TRANSPORT_RATE = 500.0
"""Calls per second above which an account uses the fast transport.

A session costs about 60 microseconds a call: 3% of a core at this rate, but half of the throughput without a limit.
"""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how one account's platform is reached.

    Attributes:
        url: ``https://HOST:PORT/``; plain ``http`` is for the simulated platform.
        region_id, instance_id: Alibaba's ``RegionId`` and ``IotInstanceId``; None sends none.
        ca_file: PEM file with the only trusted authorities; None trusts the system's.
        connect_timeout, timeout: seconds, for getting a connection and for a complete request.
        connections: maximum number of connections.
        user_agent: value of the header ``User-Agent``.
        proxy: proxy to use; None connects directly. Environment variables are never used.
        calls_per_second: the account's configured rate; infinity: no limit; None: not known in advance.
    """

    url: str
    region_id: str | None = None
    instance_id: str | None = None
    ca_file: str | None = None
    connect_timeout: float = 10.0
    timeout: float = 30.0
    connections: int = 64
    user_agent: str = "auditor"
    proxy: Proxy | None = None
    calls_per_second: float | None = None


class RawResponse(msgspec.Struct, frozen=True, gc=False):
    """An HTTP status, headers (read without case), and the complete body, decompressed."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Transport(Protocol):
    """Sends requests of one account, as many concurrently as its endpoint has connections."""

    async def send(self, query: str, *, fresh_connection: bool = False) -> RawResponse:
        """Send one request exactly once and return its response.

        Args:
            query: the signed query string, sent unchanged.
            fresh_connection: whether to use a connection that no response has arrived on before.

        Raises:
            TransientError: the body is too large or in an encoding that cannot be read, or the response is a redirect
                or changes the protocol.
            TimeoutError: the request took too long.
            aiohttp.ClientError, HttpProcessingError, OSError, ValueError: connection or HTTP failed.
        """

    async def prewarm(self, connections: int) -> bool:
        """Open connections in advance; see ``AccountConnector.prewarm``."""

    async def close(self) -> None:
        """Close all connections, including those in use."""


async def open_transport(endpoint: Endpoint) -> Transport:
    """Open the transport that fits the endpoint's rate; raise SettingsError if its ``ca_file`` cannot be used."""
    https = URL(endpoint.url).scheme == "https"
    connector = AccountConnector(
        limit=endpoint.connections,
        tls=ssl_context(endpoint.ca_file) if https or endpoint.ca_file is not None else True,
        connect_timeout=min(endpoint.connect_timeout, endpoint.timeout),
    )
    if (endpoint.calls_per_second or 0.0) > FAST_TRANSPORT_RATE:
        try:
            from auditor.client.fast_transport import FastTransport, check_internals

            await check_internals()
            return FastTransport(connector, endpoint)
        except Exception as error:  # noqa: BLE001  whatever another version of aiohttp does, the session works
            _warn_of_fallback(f"{type(error).__name__}: {error}")
    return SessionTransport(connector, endpoint)


class SessionTransport:
    """Sends requests through an ``aiohttp.ClientSession``.

    It has a timer of its own for all requests. The session's, one for each, takes 6% of a request's time.
    """

    def __init__(self, connector: AccountConnector, endpoint: Endpoint) -> None:
        url = URL(endpoint.url)
        self._connector, self._endpoint = connector, endpoint
        self._scheme, self._authority, self._path = url.scheme, url.raw_authority, url.raw_path
        self._proxy = None if endpoint.proxy is None else URL(endpoint.proxy.url)
        self._proxy_headers = proxy_headers(endpoint)
        self._watchdog = Watchdog(endpoint.timeout)
        self._single_use = SingleUse(connector, endpoint)
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=request_headers(endpoint),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None, connect=min(endpoint.connect_timeout, endpoint.timeout)),
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
        )

    async def send(self, query: str, *, fresh_connection: bool = False) -> RawResponse:
        """See ``Transport``."""
        if fresh_connection:
            return await self._single_use.send(query)
        url = URL.build(
            scheme=self._scheme, authority=self._authority, path=self._path, query_string=query, encoded=True
        )
        task = self._watchdog.watch()
        try:
            response = await self._session.request(
                METHOD, url, allow_redirects=False, proxy=self._proxy, proxy_headers=self._proxy_headers
            )
            try:
                content = response.content
                arrived = content.is_eof()
                body = read_arrived(content, response.status) if arrived else await read_body(content, response.status)
            finally:
                if not response.closed:  # a body that was read to its end has returned its connection to the pool
                    response.close()
        except asyncio.CancelledError:
            self._watchdog.raise_if_timed_out(task)
            raise
        finally:
            self._watchdog.forget(task)
        return to_raw_response(response.status, response.headers, body)

    async def prewarm(self, connections: int) -> bool:
        """See ``Transport``."""
        return await self._connector.prewarm(connections, in_flight=len(self._watchdog))

    async def close(self) -> None:
        """See ``Transport``."""
        self._watchdog.close()
        await self._single_use.close()
        await self._session.close()


class SingleUse:
    """Sends requests on connections that are used once. It is opened at its first request."""

    def __init__(self, connector: AccountConnector, endpoint: Endpoint) -> None:
        self._connector, self._endpoint = connector, endpoint
        self._transport: SessionTransport | None = None

    async def send(self, query: str) -> RawResponse:
        """Send one request on a new connection; see ``Transport``."""
        if self._transport is None:
            self._transport = SessionTransport(self._connector.single_use(), self._endpoint)
        return await self._transport.send(query)

    async def close(self) -> None:
        """Close all connections."""
        if self._transport is not None:
            await self._transport.close()


class Watchdog:
    """Cancels requests that take too long, with one timer. All have the same timeout, so the oldest expires first.

    A task waits for one request at a time.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        # For each task its deadline, the oldest first, and how many cancellations of it were requested before.
        self._in_flight: dict[asyncio.Task[Any], tuple[float, int]] = {}
        self._timed_out: dict[asyncio.Task[Any], int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return the number of requests in flight."""
        return len(self._in_flight)

    def watch(self) -> "asyncio.Task[Any]":
        """Start the time of a request of the current task; return the task."""
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a request needs a task that waits for it")
        deadline = self._loop.time() + self._timeout
        self._in_flight[task] = deadline, task.cancelling()
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._expire)
        return task

    def raise_if_timed_out(self, task: "asyncio.Task[Any]") -> None:
        """Raise TimeoutError if a CancelledError is due to the timeout alone, as ``asyncio.timeout`` does."""
        cancelling = self._timed_out.get(task)
        if cancelling is not None and task.uncancel() <= cancelling:
            raise TimeoutError

    def forget(self, task: "asyncio.Task[Any]") -> None:
        """End the time of a request."""
        if self._in_flight.pop(task, None) is None:
            self._timed_out.pop(task, None)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        for task, (deadline, cancelling) in list(self._in_flight.items()):
            if deadline > now:
                self._timer = self._loop.call_at(deadline, self._expire)
                return
            del self._in_flight[task]
            self._timed_out[task] = cancelling
            task.cancel()


def request_headers(endpoint: Endpoint) -> dict[str, str]:
    """Return the headers of all requests, besides those that HTTP needs.

    The content type is the one that the vendor's clients send. aiohttp would send another, or work to leave it out.
    """
    headers = {
        "User-Agent": endpoint.user_agent,
        "Accept": "application/json",
        "Accept-Encoding": "gzip",
        "Content-Type": "application/x-www-form-urlencoded",
    }
    # Without TLS the proxy reads the request itself, and removes this header.
    return headers if URL(endpoint.url).scheme == "https" else headers | _proxy_authorization(endpoint.proxy)


def proxy_headers(endpoint: Endpoint) -> dict[str, str] | None:
    """Return the headers of a CONNECT request; None without a proxy.

    They include Host: aiohttp adds it later, and pools connections by these headers.
    """
    if endpoint.proxy is None:
        return None
    return {"Host": URL(endpoint.url).host_port_subcomponent or "", **_proxy_authorization(endpoint.proxy)}


def read_arrived(content: aiohttp.StreamReader, status: int) -> bytes:
    """Do the same as ``read_body`` for a body that arrived together with its headers, as nearly all do."""
    body = content.read_nowait()
    if len(body) > MAX_BODY_BYTES:
        raise too_large(status)
    return body


async def read_body(content: aiohttp.StreamReader, status: int) -> bytes:
    """Return the complete body of a response as received; raise TransientError if it exceeds MAX_BODY_BYTES."""
    chunks: list[bytes] = []
    size = 0
    while not content.at_eof():
        chunks.append(chunk := await content.readany())
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise too_large(status)
    return b"".join(chunks)


def to_raw_response(status: int, headers: CIMultiDictProxy[str], body: bytes) -> RawResponse:
    """Return a response with its body decompressed; raise TransientError if it is none of the platform."""
    if status == SWITCHING_PROTOCOLS or status in REDIRECTS:
        raise elsewhere(status, headers)
    if not body.startswith(b"{"):  # JSON needs nothing, whatever the headers say
        body = decompress(body, headers.getall("Content-Encoding", ()), status)
    return RawResponse(status, headers, body)


def _proxy_authorization(proxy: Proxy | None) -> dict[str, str]:
    if proxy is None or proxy.authorization is None:
        return {}
    return {"Proxy-Authorization": proxy.authorization.reveal()}


@cache
def _warn_of_fallback(reason: str) -> None:
    """Log once in a process why the fast transport is not used."""
    log.warning("fast_transport_unavailable", aiohttp=aiohttp.__version__, reason=reason)
