"""One account's platform, asked: each request signed, sent once, and its answer read, or what went wrong told."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.http import HttpProcessingError
from yarl import URL

from auditor.client.connector import Connector, trust
from auditor.client.operations import API_VERSION, Operation
from auditor.client.responses import Answer, decipher
from auditor.client.signing import Signer
from auditor.client.transport import Exchange
from auditor.client.transport_errors import explained, of_proxy, without
from auditor.config.proxy import Proxy
from auditor.errors import ClockSkewError, PlatformError
from auditor.models import Secret


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
        self._url = URL(endpoint.url)
        self.host = self._url.host or endpoint.url
        self._wall_clock = wall_clock
        self.clock_offset = 0.0
        # A nonce is a UUID: nobody else draws the same beginning, and behind it every request has a number of its own.
        self._nonce, self._numbers = str(uuid.uuid4())[:-12], itertools.count()
        self._exchange: Exchange | None = None

    async def __aenter__(self) -> Self:
        endpoint = self._endpoint
        tls = trust(endpoint.ca_file) if self._url.scheme == "https" or endpoint.ca_file is not None else True
        connector = Connector(limit=endpoint.connections, tls=tls)
        self._exchange = Exchange(
            connector, self._like(), connect_timeout=endpoint.connect_timeout, timeout=endpoint.timeout
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            await exchange.close()

    def _like(self) -> aiohttp.ClientRequest:
        """A request such as all are, but for what is asked."""
        endpoint, plain = self._endpoint, self._url.scheme == "http"
        headers = {
            "User-Agent": endpoint.user_agent,
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            # Where there is no TLS the proxy reads the request itself, and takes this line out.
            **(_authorization(endpoint.proxy) if plain else {}),
        }
        return aiohttp.ClientRequest(
            "GET",
            self._url,
            headers=headers,
            proxy=None if endpoint.proxy is None else URL(endpoint.proxy.url),
            proxy_headers=self._told_the_proxy(),
            loop=asyncio.get_running_loop(),
        )

    async def call(self, operation: Operation, parameters: Mapping[str, str]) -> Answer:
        """One request, newly signed, and its answer.

        Raises:
            PlatformError: of the kind that says what to do next; never anything else for what the network does.
        """
        if self._exchange is None:
            raise RuntimeError("the client is not open: use it as `async with Client(…) as client`")
        query, signed = self._signer.sign(
            "GET",
            {"Action": operation.name, "Version": API_VERSION, **parameters},
            timestamp=_stamp(int(self._wall_clock() + self.clock_offset)),
            nonce=f"{self._nonce}{next(self._numbers):012x}",
        )
        outcome: Answer | PlatformError
        try:
            status, headers, body = await self._exchange.get(query)
            outcome = decipher(
                status, headers, body, now=self._wall_clock(), kept=operation.kept, documented=operation.documented
            )
        except PlatformError as error:
            outcome = self._whose(error)
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
            outcome = explained(error, self.host, self._endpoint.proxy)
        if isinstance(outcome, PlatformError):
            self._learn(outcome)
            # Raised here, outside every `except`: as the context of ours the exceptions of aiohttp would reach whoever
            # walks it (`from None` only hides it), with what they hold. The old frames hold the signed query too.
            raise without(outcome, signed).with_traceback(None)
        return outcome

    async def warm(self, connections: int) -> bool:
        """Opens connections until there are so many, idle or not, so that later requests wait for no handshake.

        It does nothing before the first request, and raises nothing: requests tell what is wrong.

        Returns:
            False if some were missing and none could be opened.
        """
        return self._exchange is None or await self._exchange.warm(connections)

    def _whose(self, error: PlatformError) -> PlatformError:
        """The error of an answer: the platform's, or that of a proxy which reads and answers itself."""
        proxy = self._endpoint.proxy
        return error if proxy is None or self._url.scheme == "https" else of_proxy(error, proxy, self.host)

    def _told_the_proxy(self) -> dict[str, str] | None:
        """What is said to a proxy when it is to connect us.

        Host, too: aiohttp adds it later, and connections are kept under what is said here.
        """
        if self._endpoint.proxy is None:
            return None
        return {"Host": self._url.host_port_subcomponent or "", **_authorization(self._endpoint.proxy)}

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
