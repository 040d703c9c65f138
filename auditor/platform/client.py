"""The wire: one pooled session for one account. Sends exactly the bytes that were signed, and reads a bounded body."""

import itertools
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Self

import aiohttp
from yarl import URL

from auditor.errors import ClockSkewError, PlatformError, TransientError
from auditor.model import Secret
from auditor.platform.answers import Answer, decipher
from auditor.platform.connections import Connector, explained, of_proxy, without
from auditor.platform.operations import API_VERSION, Operation
from auditor.platform.signing import Signer
from auditor.proxies import Proxy

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
        proxy: what it is reached through; None goes straight. Variables of the environment never count.
    """

    url: str
    region_id: str | None = None
    instance_id: str | None = None
    ca_file: str | None = None
    connect_timeout: float = 10.0
    timeout: float = 30.0
    connections: int = 64
    user_agent: str = field(default="auditor")
    proxy: Proxy | None = None


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
        self._connector: Connector | None = None
        self._proxy = None if endpoint.proxy is None else URL(endpoint.proxy.url)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        endpoint = self._endpoint
        self._connector = Connector(limit=endpoint.connections, ca_file=endpoint.ca_file)
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            timeout=self._timeout,
            headers={
                "User-Agent": endpoint.user_agent,
                "Accept": "application/json",
                "Accept-Encoding": "gzip",
                # Where there is no TLS the proxy reads the request itself, and takes this line out.
                **(_authorization(endpoint.proxy) if self._scheme == "http" else {}),
            },
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
        outcome = await self._exchange(self._session, url, operation)
        if isinstance(outcome, PlatformError):
            self._learn(outcome)
            # Raised here, outside every `except`: the exceptions of aiohttp carry the signed URL, and as the context
            # of ours they would reach whoever walks it (`from None` only hides it). The old frames hold the URL too.
            raise without(outcome, signed).with_traceback(None)
        return outcome

    async def warm(self, connections: int) -> bool:
        """Opens connections until there are so many, idle or not, so that later requests wait for no handshake.

        It does nothing before the first request, and raises nothing: requests tell what is wrong.

        Returns:
            False if some were missing and none could be opened.
        """
        return self._connector is None or await self._connector.warm(connections, self._timeout)

    async def _exchange(self, session: aiohttp.ClientSession, url: URL, operation: Operation) -> Answer | PlatformError:
        """What the platform answered, or what went wrong as our error."""
        try:
            async with session.get(
                url, allow_redirects=False, proxy=self._proxy, proxy_headers=self._told_the_proxy(url)
            ) as response:
                body = await _bounded(response)
                now = self._wall_clock()
                return decipher(response.status, response.headers, body, now=now, kept=operation.kept)
        except PlatformError as error:
            proxy = self._endpoint.proxy
            return error if proxy is None or self._scheme == "https" else of_proxy(error, proxy, self.host)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return explained(error, self.host, self._endpoint.proxy)

    def _told_the_proxy(self, url: URL) -> dict[str, str] | None:
        """What is said to a proxy when it is to connect us.

        Host, too: aiohttp adds it later, and connections are kept under what is said here.
        """
        if self._proxy is None:
            return None
        return {"Host": url.host_port_subcomponent or "", **_authorization(self._endpoint.proxy)}

    def _learn(self, error: PlatformError) -> None:
        if isinstance(error, ClockSkewError) and error.server_time is not None:
            self.clock_offset = error.server_time - self._wall_clock()


def _authorization(proxy: Proxy | None) -> dict[str, str]:
    if proxy is None or proxy.authorization is None:
        return {}
    return {"Proxy-Authorization": proxy.authorization.reveal()}


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
