"""Sending of signed requests: one request, one response, never a hidden retry.

Two transports have one interface. ``SessionTransport`` is the default and uses the public interface of aiohttp only.
``FastTransport`` (``auditor.client.fast_transport``) works below aiohttp's session. It is selected for accounts whose
rate makes the difference matter, and only if the installed aiohttp has everything it relies on.

Requests are sent with POST. aiohttp, and a proxy too, may send a GET a second time if a kept connection breaks
(https://www.rfc-editor.org/rfc/rfc9110#section-9.2.2), but each attempt needs its own nonce and time. Both SDKs of the
vendor use POST as well, with all parameters in the query and an empty body.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import aiohttp
import structlog
from multidict import CIMultiDictProxy
from yarl import URL

from auditor.client.connector import AccountConnector, ssl_context
from auditor.config.proxy import Proxy
from auditor.errors import TransientError

log = structlog.get_logger()

METHOD = "POST"
"""HTTP method of all requests; it is part of the text that is signed."""

MAX_BODY_BYTES = 8 * 1024 * 1024
"""Maximum size of a decompressed response body; 200 modules take about 40,000 bytes."""

FAST_TRANSPORT_RATE = 500.0
"""Calls per second above which an account uses the fast transport.

A session costs about 50 microseconds a call: 2.5% of a core at this rate, but half of the throughput without a limit.
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


class RawResponse(NamedTuple):
    """An HTTP status, headers (read without case), and the complete body, decompressed."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Transport(Protocol):
    """Sends requests of one account, as many concurrently as its endpoint has connections."""

    async def send(self, query: str) -> RawResponse:
        """Send one request exactly once and return its response.

        Args:
            query: the signed query string, sent unchanged.

        Raises:
            TransientError: the body is larger than MAX_BODY_BYTES.
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
    """Sends requests through an ``aiohttp.ClientSession``."""

    def __init__(self, connector: AccountConnector, endpoint: Endpoint) -> None:
        url = URL(endpoint.url)
        self._connector = connector
        self._scheme, self._authority, self._path = url.scheme, url.raw_authority, url.raw_path
        self._proxy = None if endpoint.proxy is None else URL(endpoint.proxy.url)
        self._proxy_headers = proxy_headers(endpoint)
        self._in_flight = 0
        self._session = aiohttp.ClientSession(
            connector=connector,
            headers=request_headers(endpoint),
            skip_auto_headers=["Content-Type"],
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=endpoint.timeout, connect=min(endpoint.connect_timeout, endpoint.timeout)
            ),
        )

    async def send(self, query: str) -> RawResponse:
        """See ``Transport``."""
        url = URL.build(
            scheme=self._scheme, authority=self._authority, path=self._path, query_string=query, encoded=True
        )
        self._in_flight += 1
        try:
            async with self._session.post(
                url, allow_redirects=False, proxy=self._proxy, proxy_headers=self._proxy_headers
            ) as response:
                body = await read_body(response.content, response.status)
                return RawResponse(response.status, response.headers, body)
        finally:
            self._in_flight -= 1

    async def prewarm(self, connections: int) -> bool:
        """See ``Transport``."""
        return await self._connector.prewarm(connections, in_flight=self._in_flight)

    async def close(self) -> None:
        """See ``Transport``."""
        await self._session.close()


def request_headers(endpoint: Endpoint) -> dict[str, str]:
    """Return the headers of all requests, besides those that HTTP needs."""
    headers = {"User-Agent": endpoint.user_agent, "Accept": "application/json", "Accept-Encoding": "gzip"}
    # Without TLS the proxy reads the request itself, and removes this header.
    return headers if URL(endpoint.url).scheme == "https" else headers | _proxy_authorization(endpoint.proxy)


def proxy_headers(endpoint: Endpoint) -> dict[str, str] | None:
    """Return the headers of a CONNECT request; None without a proxy.

    They include Host: aiohttp adds it later, and pools connections by these headers.
    """
    if endpoint.proxy is None:
        return None
    return {"Host": URL(endpoint.url).host_port_subcomponent or "", **_proxy_authorization(endpoint.proxy)}


async def read_body(content: aiohttp.StreamReader, status: int) -> bytes:
    """Return the complete body of a response; raise TransientError if it is larger than MAX_BODY_BYTES."""
    if content.is_eof():  # nearly all bodies arrive together with their headers
        body = content.read_nowait()
        _check_size(len(body), status)
        return body
    chunks: list[bytes] = []
    size = 0
    while not content.at_eof():
        chunks.append(chunk := await content.readany())
        size += len(chunk)
        _check_size(size, status)
    return b"".join(chunks)


def _check_size(size: int, status: int) -> None:
    if size > MAX_BODY_BYTES:
        sentence = f"the response is larger than {MAX_BODY_BYTES:,} bytes"
        raise TransientError("auditor.ResponseTooLarge", sentence, http_status=status)


def _proxy_authorization(proxy: Proxy | None) -> dict[str, str]:
    if proxy is None or proxy.authorization is None:
        return {}
    return {"Proxy-Authorization": proxy.authorization.reveal()}


@cache
def _warn_of_fallback(reason: str) -> None:
    """Log once in a process why the fast transport is not used."""
    log.warning("fast transport not available, using aiohttp's session", aiohttp=aiohttp.__version__, reason=reason)
