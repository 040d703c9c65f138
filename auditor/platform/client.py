"""The wire: one pooled session for one account. Sends exactly the bytes that were signed, and reads a bounded body."""

import asyncio
import itertools
import re
import ssl
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from auditor.errors import ClockSkewError, PlatformError, SettingsError, TransientError
from auditor.model import Secret
from auditor.platform.answers import Answer, decipher, one_line
from auditor.platform.operations import API_VERSION, Operation
from auditor.platform.signing import Signer, percent_encode

BODY_LIMIT = 8 * 1024 * 1024
"""Bytes of a decompressed body that are read at most; 200 modules take about 40,000."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one account is asked, and how.

    Attributes:
        url: ``https://HOST:PORT/``; plain ``http`` is for the simulated platform.
        region_id, instance_id: Alibaba's ``RegionId`` and ``IotInstanceId``; None sends none.
        ca_file: a PEM file with the only authorities to trust; None trusts the system's.
        connect_timeout, timeout: seconds, for connecting and for a whole request.
        connections: connections kept at most.
    """

    url: str
    region_id: str | None = None
    instance_id: str | None = None
    ca_file: str | None = None
    connect_timeout: float = 10.0
    timeout: float = 30.0
    connections: int = 64
    user_agent: str = field(default="auditor")


def trust(ca_file: str | None) -> ssl.SSLContext:
    """The authorities in a PEM file, or the system's, as what TLS connections are verified with.

    Raises:
        SettingsError: the file holds no certificates.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise SettingsError(f"ca_file: {ca_file} holds no certificates to trust: {error}") from error


class _Connector(aiohttp.TCPConnector):
    """A pool that gives out no connection on which something came that nobody asked for.

    aiohttp looks for that when a connection goes back into the pool; what comes later, while it lies there, would be
    taken for the answer to the next request: another device's answer.
    """

    _like: aiohttp.ClientRequest | None = None

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  aiohttp's own signature
    ) -> Connection:
        """See ``aiohttp.BaseConnector``."""
        self._like = req  # one account has one endpoint: connections for one request are good for all
        while True:
            connection = await super().connect(req, traces, timeout)
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()

    async def warm(self, connections: int, timeout: aiohttp.ClientTimeout) -> bool:  # noqa: ASYNC109  as above
        """Opens as many connections as are missing, once a request has shown where to; False if none could be."""
        idle = sum(len(pooled) for pooled in self._conns.values())
        missing = min(connections, self.limit) - len(self._acquired) - idle
        if self._like is None or missing <= 0:
            return True
        all_have_begun = asyncio.Event()

        async def open_one(request: aiohttp.ClientRequest) -> None:
            connection = await self.connect(request, [], timeout)
            try:
                await all_have_begun.wait()
            finally:
                connection.release()

        # Those in the pool are taken as well, so that the others are new ones, and given back at once.
        opening = [asyncio.ensure_future(open_one(self._like)) for _ in range(idle + missing)]
        try:
            await asyncio.sleep(0)
            all_have_begun.set()
            ends = await asyncio.gather(*opening, return_exceptions=True)  # what fails is told by requests
        finally:
            for each in opening:
                each.cancel()
        return sum(end is None for end in ends) > idle


class Client:
    """Asks one account's platform. Use as an asynchronous context manager; opening it raises SettingsError if the
    endpoint's ``ca_file`` cannot be used.

    Attributes:
        clock_offset: seconds that the platform's clock is ahead of ours, learned from a refused timestamp.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        access_key_id: str,
        secret: Secret,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        constants = {"Format": "JSON"}
        if endpoint.region_id is not None:
            constants["RegionId"] = endpoint.region_id
        if endpoint.instance_id is not None:
            constants["IotInstanceId"] = endpoint.instance_id
        self._signer = Signer(access_key_id, secret, constants)
        self._endpoint = endpoint
        url = URL(endpoint.url)
        self._authority, self._scheme, self._path = url.raw_authority, url.scheme, url.raw_path
        self.host = url.host or endpoint.url
        self._wall_clock = wall_clock
        self.clock_offset = 0.0
        # A nonce is a UUID: nobody else draws the same beginning, and behind it every request has a number of its own.
        self._nonce, self._numbers = str(uuid.uuid4())[:-12], itertools.count()
        self._timeout = aiohttp.ClientTimeout(total=endpoint.timeout, connect=endpoint.connect_timeout)
        self._connector: _Connector | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        endpoint = self._endpoint
        self._connector = _Connector(limit=endpoint.connections, ssl=trust(endpoint.ca_file), keepalive_timeout=30)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            timeout=self._timeout,
            headers={"User-Agent": endpoint.user_agent, "Accept": "application/json", "Accept-Encoding": "gzip"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        # aiohttp sends a GET again by itself when a kept connection turns out closed: the same bytes, so the same
        # nonce, and past the quota. It has no public switch; its own test client sets this one.
        self._session._retry_connection = False  # noqa: SLF001
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, operation: Operation, parameters: Mapping[str, str]) -> Answer:
        """One request, newly signed, and its answer.

        Raises:
            PlatformError: of the kind that says what to do next; never anything else for what the network does.
        """
        if self._session is None:
            raise RuntimeError("the client is not open: use it as `async with Client(…) as client`")
        query, signed = self._signer.sign(
            "GET",
            {"Action": operation.name, "Version": API_VERSION, **parameters},
            timestamp=_stamp(int(self._wall_clock() + self.clock_offset)),
            nonce=f"{self._nonce}{next(self._numbers):012x}",
        )
        url = URL.build(
            scheme=self._scheme, authority=self._authority, path=self._path, query_string=query, encoded=True
        )
        outcome = await self._exchange(self._session, url)
        if isinstance(outcome, PlatformError):
            self._learn(outcome)
            # Raised here, outside every `except`: the exceptions of aiohttp carry the signed URL, and as the context
            # of ours they would reach whoever walks it (`from None` only hides it). The old frames hold the URL too.
            raise _without(outcome, signed).with_traceback(None)
        return outcome

    async def warm(self, connections: int) -> bool:
        """Opens connections until there are so many, idle or not, so that later requests wait for no handshake.

        It does nothing before the first request, and raises nothing: requests tell what is wrong.

        Returns:
            False if some were missing and none could be opened.
        """
        return self._connector is None or await self._connector.warm(connections, self._timeout)

    async def _exchange(self, session: aiohttp.ClientSession, url: URL) -> Answer | PlatformError:
        """What the platform answered, or what went wrong as our error."""
        try:
            async with session.get(url, allow_redirects=False) as response:
                body = await _bounded(response)
                return decipher(response.status, response.headers, body, now=self._wall_clock())
        except PlatformError as error:
            return error
        except TimeoutError:
            return TransientError("auditor.Timeout", f"{self.host} did not answer in time")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return TransientError(*explained(error, self.host))

    def _learn(self, error: PlatformError) -> None:
        if isinstance(error, ClockSkewError) and error.server_time is not None:
            self.clock_offset = error.server_time - self._wall_clock()


@lru_cache(maxsize=4)  # one a second, for as many requests as there are in it
def _stamp(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """The whole body, or a TransientError if it is larger than BODY_LIMIT when decompressed."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > BODY_LIMIT:
            response.close()
            raise TransientError(
                "auditor.OversizedAnswer",
                f"the answer is larger than {BODY_LIMIT:,} bytes",
                http_status=response.status,
            )
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _without(error: PlatformError, signed: str) -> PlatformError:
    """The error with the request's signature, should the platform have quoted it, taken out of its text."""
    quoted = re.compile(f"{re.escape(signed)}|{re.escape(percent_encode(signed))}", re.IGNORECASE)
    error.code, error.message = quoted.sub("***", error.code), quoted.sub("***", error.message)
    if error.request_id is not None:
        error.request_id = quoted.sub("***", error.request_id)
    error.args = (f"{error.code}: {error.message}" if error.message else error.code,)
    return error


def explained(error: Exception, host: str) -> tuple[str, str]:
    """Our code and one sentence for what went wrong below HTTP, without the URL that aiohttp's text may hold."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            code, sentence = "auditor.TLS", f"{host} is not trusted: {error.certificate_error}"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            code, sentence = "auditor.TLS", f"no TLS with {host}: {getattr(error, 'os_error', error)}"
        case aiohttp.ClientConnectorDNSError():
            code, sentence = "auditor.DNS", f"the name {host} cannot be resolved"
        case aiohttp.ClientConnectorError():
            code, sentence = "auditor.Unreachable", f"{host} cannot be reached: {error.os_error.strerror or 'refused'}"
        case aiohttp.ClientPayloadError():
            code, sentence = "auditor.CutBody", f"{host} closed in the middle of a body"
        case aiohttp.ServerDisconnectedError() | ConnectionResetError() | aiohttp.ClientOSError():
            code, sentence = "auditor.Disconnected", f"{host} closed the connection"
        case _:
            code, sentence = "auditor.BadAnswer", f"{host} sent what is no HTTP answer ({type(error).__name__})"
    return code, one_line(sentence)
