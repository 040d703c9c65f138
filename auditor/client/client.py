"""The client of one account's platform: each call is signed, sent once, and parsed into a response or an error."""

import itertools
import time
import uuid
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp.http import HttpProcessingError
from yarl import URL

from auditor.client.operations import API_VERSION, Operation
from auditor.client.platform_clock import REFUSAL_TOLERANCE, PlatformClock
from auditor.client.responses import ApiResponse, parse_http_date, parse_response
from auditor.client.signing import Signer
from auditor.client.transport import METHOD, Endpoint, Transport, open_transport
from auditor.client.transport_errors import attribute_to_proxy, redact, to_platform_error
from auditor.errors import AccountDeniedError, ClockSkewError, NeverActivatedError, NotFoundError, PlatformError
from auditor.models import AccessKey, Secret
from auditor.text.formatting import format_utc_second


class ApiClient:
    """Calls one account's platform. Use as an asynchronous context manager; entering it raises SettingsError if the
    endpoint's ``ca_file`` cannot be used.

    Attributes:
        clock: the platform's clock, learned from its answers.
    """

    def __init__(
        self, endpoint: Endpoint, access_key_id: str, secret: Secret, *, wall_clock: Callable[[], float] = time.time
    ) -> None:
        constants = {"Format": "JSON"}
        if endpoint.region_id is not None:
            constants["RegionId"] = endpoint.region_id
        if endpoint.instance_id is not None:
            constants["IotInstanceId"] = endpoint.instance_id
        self._constants = constants
        self.use_key(AccessKey(access_key_id, secret))
        self._endpoint = endpoint
        url = URL(endpoint.url)
        self.host = url.host or endpoint.url
        self._http_proxy = endpoint.proxy if url.scheme == "http" else None
        self._wall_clock = wall_clock
        self.clock = PlatformClock()
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

    def use_key(self, key: AccessKey) -> None:
        """Sign the next requests with another access key."""
        self._signer = Signer(key.key_id, key.secret, self._constants, token=key.token)
        self._token = key.token

    async def call(
        self, operation: Operation, parameters: Mapping[str, str], *, fresh_connection: bool = False
    ) -> ApiResponse:
        """Send one request, newly signed, and return its response.

        Args:
            operation: what to call.
            parameters: those of the operation.
            fresh_connection: whether to use a connection that no response has arrived on before.

        Raises:
            PlatformError: of the class that says what to do next; never anything else for what the network does.
        """
        if self._transport is None:
            raise RuntimeError("the client is not open: use it as `async with ApiClient(…) as client`")
        clock, sent_at = self.clock, self._wall_clock()
        offset, token = clock.offset, self._token
        query, signature = self._signer.sign(
            METHOD,
            {"Action": operation.name, "Version": API_VERSION, **parameters},
            timestamp=format_utc_second(int(sent_at + offset)),
            nonce=f"{self._nonce_prefix}{next(self._numbers):012x}",
        )
        outcome: ApiResponse | PlatformError
        response = None
        try:
            response = await self._transport.send(query, fresh_connection=fresh_connection or clock.refused)
            outcome = parse_response(
                response.status,
                response.headers,
                response.body,
                now=(now := self._wall_clock()),
                response_type=operation.response_type,
                decode_page=operation.decode_page,
            )
            if clock.refused or not clock.sampled_at <= now < clock.next_answer_at:
                clock.record_accepted(offset)
                clock.record_answer(parse_http_date(response.headers.get("Date")), sent_at, now)
        except PlatformError as error:  # of the platform, or of a proxy that answers plain HTTP itself
            outcome = error if self._http_proxy is None else attribute_to_proxy(error, self._http_proxy, self.host)
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
            outcome = to_platform_error(error, self.host, self._endpoint.proxy)
        if isinstance(outcome, PlatformError):
            if isinstance(outcome, ClockSkewError):
                outcome = self._record_refused_clock(outcome, None if response is None else response.headers, offset)
            elif isinstance(outcome, NotFoundError | NeverActivatedError):
                clock.record_accepted(offset)
            if isinstance(outcome, AccountDeniedError):
                outcome.operation = operation.name
            # Raised here, outside of any `except`. Otherwise aiohttp's exceptions would stay reachable as its context,
            # which `from None` only hides, with the URL they hold. The old frames hold the signed query too.
            secrets = (signature,) if token is None else (signature, token.reveal())
            raise redact(outcome, *secrets).with_traceback(None)
        return outcome

    @property
    def clock_offset(self) -> float:
        """Seconds that the platform's clock is ahead of this machine's, as far as several answers agree on it."""
        return self.clock.offset

    def _record_refused_clock(
        self, error: ClockSkewError, headers: Mapping[str, str] | None, signed_offset: float
    ) -> PlatformError:
        """Record a refused timestamp; return the error, or a denial of the account if no further request can help."""
        date, now = parse_http_date((headers or {}).get("Date")), self._wall_clock()
        if self.clock.record_refused(date, now, signed_offset):
            return error
        sent, theirs = (
            "none" if each is None else format_utc_second(int(each)) for each in (now + signed_offset, date)
        )
        sentence = f"every timestamp is refused; the last was {sent}, the Date of its answer is {theirs}"
        denied = AccountDeniedError(error.code, sentence, http_status=error.http_status, request_id=error.request_id)
        agrees = date is not None and abs(now + signed_offset - date) <= REFUSAL_TOLERANCE
        denied.cause = "platform_clock" if agrees else "clock"
        return denied

    async def prewarm(self, connections: int) -> bool:
        """Open connections in advance; see ``AccountConnector.prewarm``. A client that is not open does nothing."""
        return self._transport is None or await self._transport.prewarm(connections)
