"""The client of one account's platform: each call is signed, sent once, and parsed into a response or an error."""

import itertools
import time
import uuid
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.http import HttpProcessingError
from yarl import URL

from auditor.client.operations import API_VERSION, Operation
from auditor.client.responses import ApiResponse, parse_response
from auditor.client.signing import Signer
from auditor.client.transport import METHOD, Endpoint, Transport, open_transport
from auditor.client.transport_errors import attribute_to_proxy, redact, to_platform_error
from auditor.errors import ClockSkewError, PlatformError
from auditor.models import Secret


class ApiClient:
    """Calls one account's platform. Use as an asynchronous context manager; entering it raises SettingsError if the
    endpoint's ``ca_file`` cannot be used.

    Attributes:
        clock_offset: seconds that the platform's clock is ahead of ours, learned from a rejected timestamp.
    """

    def __init__(
        self, endpoint: Endpoint, access_key_id: str, secret: Secret, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        constants = {"Format": "JSON"}
        if endpoint.region_id is not None:
            constants["RegionId"] = endpoint.region_id
        if endpoint.instance_id is not None:
            constants["IotInstanceId"] = endpoint.instance_id
        self._signer = Signer(access_key_id, secret, constants)
        self._endpoint = endpoint
        url = URL(endpoint.url)
        self.host = url.host or endpoint.url
        self._http_proxy = endpoint.proxy if url.scheme == "http" else None
        self._wall_clock = wall_clock
        self.clock_offset = 0.0
        # A nonce is a UUID: its random prefix is unique to this client, its end is the number of the request.
        self._nonce_prefix, self._numbers = str(uuid.uuid4())[:-12], itertools.count()
        self._transport: Transport | None = None

    async def __aenter__(self) -> Self:
        self._transport = await open_transport(self._endpoint)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.close()

    async def call(self, operation: Operation, parameters: Mapping[str, str]) -> ApiResponse:
        """Send one request, newly signed, and return its response.

        Raises:
            PlatformError: of the class that says what to do next; never anything else for what the network does.
        """
        if self._transport is None:
            raise RuntimeError("the client is not open: use it as `async with ApiClient(…) as client`")
        query, signature = self._signer.sign(
            METHOD,
            {"Action": operation.name, "Version": API_VERSION, **parameters},
            timestamp=_format_timestamp(int(self._wall_clock() + self.clock_offset)),
            nonce=f"{self._nonce_prefix}{next(self._numbers):012x}",
        )
        outcome: ApiResponse | PlatformError
        try:
            response = await self._transport.send(query)
            outcome = parse_response(
                *response,
                now=self._wall_clock(),
                response_type=operation.response_type,
                decode_page=operation.decode_page,
            )
        except PlatformError as error:  # of the platform, or of a proxy that answers plain HTTP itself
            outcome = error if self._http_proxy is None else attribute_to_proxy(error, self._http_proxy, self.host)
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
            outcome = to_platform_error(error, self.host, self._endpoint.proxy)
        if isinstance(outcome, PlatformError):
            if isinstance(outcome, ClockSkewError) and outcome.server_time is not None:
                self.clock_offset = outcome.server_time - self._wall_clock()
            # Raised here, outside of any `except`. Otherwise aiohttp's exceptions would stay reachable as its context,
            # which `from None` only hides, with the URL they hold. The old frames hold the signed query too.
            raise redact(outcome, signature).with_traceback(None)
        return outcome

    async def prewarm(self, connections: int) -> bool:
        """Open connections in advance; see ``AccountConnector.prewarm``. A client that is not open does nothing."""
        return self._transport is None or await self._transport.prewarm(connections)


@lru_cache(maxsize=4)  # one a second serves all requests of that second
def _format_timestamp(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))
