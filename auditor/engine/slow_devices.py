"""Spans of devices that take long: so many of a period, with each request of the device.

Without a tracer, this adds nothing to the path of a device.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from auditor.client.operations import Operation
from auditor.client.responses import ApiResponse
from auditor.client.transport import METHOD
from auditor.config.settings import Account
from auditor.errors import PlatformError
from auditor.models import Device, DeviceFailure, Outcome
from auditor.tracing import FinishedSpan, Tracer, current_tracer

SLOW_NANOSECONDS = 1_000_000_000
"""Time from the first request of a device to its last answer, from which on a device is slow."""

MAX_SPANS, PERIOD_NANOSECONDS = 10, 10_000_000_000
"""Maximum number of slow devices of an account that are recorded in a period, and its length."""


class SendRequest(Protocol):
    """Sends one request of an operation; see ``ApiClient.call``."""

    def __call__(
        self, operation: Operation, parameters: Mapping[str, str], *, fresh_connection: bool = False
    ) -> Awaitable[ApiResponse]:
        """Return the response."""


@dataclass(slots=True)
class _Request:
    operation: str
    began: int
    ended: int = 0
    status: int | None = 200
    error: str | None = None


_requests: ContextVar[list[_Request] | None] = ContextVar("requests", default=None)
"""The requests so far of the device that this task reads."""


class SlowDevices:
    """Measures the devices of an account, and records spans of slow ones.

    Attributes:
        count: slow devices so far, also those that are not recorded.
    """

    def __init__(self, account: Account, tracer: Tracer | None = None) -> None:
        self.count = 0
        self._account, self._tracer = account.name, tracer or current_tracer()
        host, port = account.host_and_port
        # The query of a request is signed, and an address may have a password.
        self._http = {
            "http.request.method": METHOD,
            "server.address": host,
            "server.port": port,
            "url.full": f"{urlsplit(account.endpoint).scheme}://{host}:{port}/",
        }
        self._period, self._recorded = 0, 0

    def watch_requests(self, send: SendRequest) -> SendRequest:
        """Return a function that sends a request and measures it; without a tracer, ``send`` itself."""
        if self._tracer is None:
            return send

        async def timed(
            operation: Operation, parameters: Mapping[str, str], *, fresh_connection: bool = False
        ) -> ApiResponse:
            if (requests := _requests.get()) is None:
                return await send(operation, parameters, fresh_connection=fresh_connection)
            request = _Request(operation.name, time.time_ns())
            requests.append(request)
            try:
                return await send(operation, parameters, fresh_connection=fresh_connection)
            except PlatformError as error:
                request.status, request.error = error.http_status, error.code  # not the error, which refers to frames
                raise
            finally:
                request.ended = time.time_ns()

        return timed

    def watch(self, fetch: Callable[[Device], Awaitable[Outcome]]) -> Callable[[Device], Awaitable[Outcome]]:
        """Return a function that reads a device and records it if it is slow; without a tracer, ``fetch`` itself."""
        if self._tracer is None:
            return fetch

        async def watched(device: Device) -> Outcome:
            requests: list[_Request] = []
            token = _requests.set(requests)
            try:
                outcome = await fetch(device)
            finally:
                _requests.reset(token)
            if requests and requests[-1].ended - requests[0].began >= SLOW_NANOSECONDS:
                self._record(device, outcome, requests)
            return outcome

        return watched

    def _record(self, device: Device, outcome: Outcome, requests: list[_Request]) -> None:
        self.count += 1
        ended = requests[-1].ended
        if not 0 <= ended - self._period < PERIOD_NANOSECONDS:
            self._period, self._recorded = ended, 0
        if self._recorded >= MAX_SPANS or self._tracer is None:
            return
        self._recorded += 1
        self._tracer.record(
            FinishedSpan(
                "device",
                requests[0].began,
                ended,
                {
                    "auditor.account.name": self._account,
                    "auditor.product.key": device.product_key,
                    "auditor.device.name": device.device_name,
                    "auditor.device.iot_id": device.iot_id,
                    "auditor.device.status": "failed" if isinstance(outcome, DeviceFailure) else outcome.status,
                    "auditor.device.attempts": outcome.attempts,
                },
                outcome.code if isinstance(outcome, DeviceFailure) else None,
                parts=[self._describe(request, number) for number, request in enumerate(requests)],
            )
        )

    def _describe(self, request: _Request, number: int) -> FinishedSpan:
        """Return the span of a request by the semantic conventions for HTTP."""
        attributes = {
            **self._http,
            "auditor.operation": request.operation,
            "http.response.status_code": request.status,
            "http.request.resend_count": number or None,
        }
        return FinishedSpan(METHOD, request.began, request.ended, attributes, request.error, is_request=True)
