"""The simulated platform on a socket: signatures, nonces, quotas, faults and responses like those of the real one.

Faults below HTTP act on the connection instead of sending a response.
"""

import asyncio
import random
import socket
import ssl
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from types import MappingProxyType, TracebackType
from typing import Self
from uuid import uuid4

from aiohttp import web

from auditor.models import AccessKey, Dialect, Secret
from auditor.simulator.faults import Corruption, FaultKind, Faults, FaultSource
from auditor.simulator.forms import MODEL_FORMS, ResponseForms
from auditor.simulator.gateway import Gateway, read_parameters, response_format
from auditor.simulator.operations import OperationService, ResponseCounter
from auditor.simulator.quotas import QuotaExceeded, QuotaMeter, SimulatedAccount, WindowKind
from auditor.simulator.registry import NO_CHURN, Churn, Registry
from auditor.simulator.responses import JSON, RequestRejected, SimulatedResponse, error_response, success_response
from auditor.simulator.search.options import IndexOptions
from auditor.simulator.world import World

DEFAULT_ACCOUNT = SimulatedAccount("simulated-key", Secret("simulated-secret"))
"""Account of a simulator by default, without a quota."""

_SHUTDOWN_SECONDS = 0.2
_NO_CORRUPTIONS: Mapping[int, Corruption] = MappingProxyType({})
_NO_FAULTS = Faults()
_BELOW_HTTP = {"reset", "cut", "silence", "drip", "http10"}


@dataclass(slots=True)
class SimulatorCounts:
    """Requests since the simulator started.

    received = answered + rejected + faults + those in progress or closed by the client.

    Attributes:
        answered: successful responses, including corrupted ones; ``http10`` is among the faults.
        rejected_by_code: rejected requests by code, including throttled ones, without faults.
    """

    received: int = 0
    answered: int = 0
    rejected_by_code: Counter[str] = field(default_factory=Counter)
    faults: Counter[FaultKind] = field(default_factory=Counter)

    @property
    def throttled(self) -> int:
        """Requests that were rejected because they were over the quota."""
        return self.rejected_by_code["Throttling.User"]


class Simulator:
    """A simulated platform on the running asyncio loop: ``async with Simulator(world) as platform: …``.

    Args:
        world: devices of accounts without a world of their own.
        accounts: access keys and their quotas.
        dialect: spelling of the responses.
        window: how quotas are counted, see ``auditor.simulator.quotas``.
        latency: minimum and maximum seconds of a response, uniformly distributed.
        jitter: the same, before the quota counts a request.
        competitor: calls a second of another client on every quota, with begin and end in seconds since the first
            call that the quota counted.
        faults: random faults, after the quota has counted the request.
        corruptions: by a device's index, how the responses about its modules are corrupted.
        forms: forms of the members of a response, where documents, models and samples differ.
        churn: devices that are registered and removed, in each world from its first list request on.
        index: how devices are indexed for QueryDeviceBySQL; None: the platform does not have this operation.
        seed: random seed of faults and latency.
        clock_offset: seconds by which the server's clock is ahead of this machine's.
        port: 0 selects a free one.
        ssl_context: makes the endpoint HTTPS.
        send_retry_after: whether throttling responses have ``x-acs-retry-after``, in ms.
        record_arrivals: whether to record ``arrivals`` and ``arrivals_by_operation``, which grow with every request.
        record_responses: whether to record ``responses``, which grows with every device.

    Attributes:
        counts: requests so far.
        outage: fault of every request that has passed gateway and quota, while it is set.
        responses: number of responses by device and page, including errors of the device. A device is named by the
            iot_id of the request, or else by ``product_key/device_name``.
        arrivals: ``time.monotonic()`` of each request that reached the quota, including throttled ones.
        arrivals_by_operation: the same by operation; unknown operations are under "".
    """

    def __init__(
        self,
        world: World,
        *,
        accounts: Sequence[SimulatedAccount] = (DEFAULT_ACCOUNT,),
        dialect: Dialect = "tuya",
        window: WindowKind = "sliding",
        latency: tuple[float, float] = (0.0, 0.0),
        jitter: tuple[float, float] = (0.0, 0.0),
        competitor: tuple[float, float, float] | None = None,
        faults: Faults = _NO_FAULTS,
        corruptions: Mapping[int, Corruption] = _NO_CORRUPTIONS,
        forms: ResponseForms = MODEL_FORMS,
        churn: Churn = NO_CHURN,
        index: IndexOptions | None = None,
        seed: int = 0,
        clock_offset: float = 0.0,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        send_retry_after: bool = False,
        record_arrivals: bool = False,
        record_responses: bool = False,
    ) -> None:
        self.counts = SimulatorCounts()
        self.outage: FaultKind | None = None
        self.responses: ResponseCounter | None = Counter() if record_responses else None
        self.arrivals: list[float] | None = [] if record_arrivals else None
        self.arrivals_by_operation: dict[str, list[float]] = defaultdict(list)
        self._dialect, self._forms = dialect, forms
        self._latency, self._jitter = latency, jitter
        self._faults = FaultSource(faults, seed)
        self._silence_seconds = faults.silence_seconds
        self._random = random.Random(seed)  # noqa: S311  latency, no secret
        self._host, self._port, self._ssl_context = host, port, ssl_context
        self._send_retry_after = send_retry_after
        self._gateway = Gateway(accounts)
        self._meter = QuotaMeter(window, competitor)
        self._service = OperationService(Registry(world, churn), corruptions, self.responses, forms, index)
        self._operations = self._service.operations
        self._services: dict[str, OperationService] = {}
        by_world = {id(world): self._service}
        for account in accounts:
            own = world if account.world is None else account.world
            if id(own) not in by_world:
                by_world[id(own)] = OperationService(Registry(own, churn), corruptions, self.responses, forms, index)
            self._services[account.access_key_id] = by_world[id(own)]
        # One clock for timestamps, Date and quotas: it never jumps, and its seconds are those of the calendar.
        self._epoch = time.time() - time.monotonic() + clock_offset
        self._date_second, self._date = -1, ""
        self._request_id_end = str(uuid4())[8:]
        self._runner: web.ServerRunner | None = None

    @property
    def endpoint(self) -> str:
        """``http://HOST:PORT/`` (or https) of the running simulator."""
        scheme = "http" if self._ssl_context is None else "https"
        return f"{scheme}://{self._host}:{self.port}/"

    @property
    def port(self) -> int:
        """The port of the running simulator."""
        if self._runner is None:
            raise RuntimeError("the simulator is not running: use it with `async with`")
        return int(self._runner.addresses[0][1])

    def revoke(self, access_key_id: str) -> None:
        """Reject the key from now on, as a disabled one; raise KeyError if no account has it."""
        self._gateway.revoke(access_key_id)

    def issue_key(self, access_key_id: str, seconds: float) -> AccessKey:
        """Return a temporary key of an account, valid for so many seconds; raise KeyError if no account has the id."""
        return self._gateway.issue_key(access_key_id, time.monotonic() + self._epoch + seconds)

    def registry_for(self, access_key_id: str = "") -> Registry:
        """Return the devices that exist now for an account; without one, those of the simulator's world."""
        registry = self._services.get(access_key_id, self._service).registry
        registry.advance(time.monotonic())
        return registry

    async def __aenter__(self) -> Self:
        # A client that disconnects ends its handler: silence must not outlive the connection.
        server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=_SHUTDOWN_SECONDS)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port, ssl_context=self._ssl_context, backlog=1024).start()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.counts.received += 1
        request_id = f"{self.counts.received & 0xFFFFFFFF:08x}{self._request_id_end}"
        parameters: dict[str, str] = {}
        try:
            await _read(request, parameters)
            now = time.monotonic() + self._epoch
            account = self._gateway.check(request.method, parameters, now)
            if self._jitter[1] > 0:
                await asyncio.sleep(self._random.uniform(*self._jitter))
                now = time.monotonic() + self._epoch
            self._count(account, parameters, now)
            kind = self.outage or self._faults.next_fault()
            if self._latency[1] > 0:
                await asyncio.sleep(self._random.uniform(*self._latency))
            if kind is not None:
                return await self._fail(kind, request, account, parameters, request_id)
            reply = self._answer(account, parameters, request_id)
            self.counts.answered += 1
        except RequestRejected as error:
            self.counts.rejected_by_code[error.code] += 1
            reply = error_response(error, request_id, self._dialect, response_format(parameters), forms=self._forms)
            if isinstance(error, QuotaExceeded) and self._send_retry_after:
                wait = str(round(error.wait * 1000) + 1)
                reply = SimulatedResponse(reply.status, reply.body, reply.content_type, {"x-acs-retry-after": wait})
        return self._response(reply)

    def _count(self, account: SimulatedAccount, parameters: Mapping[str, str], now: float) -> None:
        """Count a request against its account's quota for the operation; raise QuotaExceeded if it is used up."""
        service = self._services.get(account.access_key_id, self._service)
        if self.arrivals is not None:
            action = parameters["Action"]
            self.arrivals.append(now - self._epoch)
            self.arrivals_by_operation[action if action in service.operations else ""].append(now - self._epoch)
        self._meter.count(account, service.quota_name(parameters), now)

    def _answer(self, account: SimulatedAccount, parameters: Mapping[str, str], request_id: str) -> SimulatedResponse:
        service = self._services.get(account.access_key_id, self._service)
        document = service.answer(parameters, time.monotonic())
        action, encoding = parameters["Action"], response_format(parameters)
        return success_response(action, document, request_id, self._dialect, encoding, forms=self._forms)

    async def _fail(
        self,
        kind: FaultKind,
        request: web.BaseRequest,
        account: SimulatedAccount,
        parameters: Mapping[str, str],
        request_id: str,
    ) -> web.StreamResponse:
        self.counts.faults[kind] += 1
        if kind in _BELOW_HTTP:
            if (transport := request.transport) is not None:
                await self._fail_below_http(kind, transport, account, parameters, request_id)
            # Never sent: the connection is closed, but the server requires a response object.
            return web.Response()
        now = time.monotonic() + self._epoch
        encoding = response_format(parameters)
        reply = self._faults.response(kind, now, request_id, self._dialect, encoding, forms=self._forms)
        return self._response(reply)

    async def _fail_below_http(
        self,
        kind: FaultKind,
        transport: asyncio.Transport,
        account: SimulatedAccount,
        parameters: Mapping[str, str],
        request_id: str,
    ) -> None:
        date = self._now_as_date()
        if kind != "http10":
            await fail_below_http(kind, transport, date=date, seconds=self._silence_seconds)
            return
        try:
            reply = self._answer(account, parameters, request_id)
        except RequestRejected as error:
            reply = error_response(error, request_id, self._dialect, response_format(parameters), forms=self._forms)
        send_as_http10(transport, reply, date)

    def _response(self, reply: SimulatedResponse) -> web.Response:
        headers = {"Content-Type": reply.content_type, "Date": self._now_as_date(), **reply.headers}
        return web.Response(status=reply.status, body=reply.body, headers=headers)

    def _now_as_date(self) -> str:
        """Return the server's time for the header ``Date``, formatted once a second."""
        second = int(time.monotonic() + self._epoch)
        if second != self._date_second:
            self._date_second, self._date = second, formatdate(second, usegmt=True)
        return self._date


async def _read(request: web.BaseRequest, into: dict[str, str]) -> None:
    """Read the parameters of the query and of the form of a POST; raise RequestRejected."""
    query = request.raw_path.partition("?")[2]
    if not query.isascii():
        # Unescaped bytes are surrogates here, which cannot be encoded.
        query = query.encode(errors="surrogateescape").decode(errors="replace")
    read_parameters(query, into)
    if request.method == "POST":
        if request.content_type == "application/x-www-form-urlencoded" and request.body_exists:
            read_parameters((await request.read()).decode("utf-8", "replace"), into)
    elif request.method != "GET":
        raise RequestRejected("UnsupportedHTTPMethod", "This http method is not supported.", 405)


DRIP_SECONDS = 0.05
"""Seconds between two bytes of a body that drips."""

_NO_LINGER = struct.pack("ii", 1, 0)
_PARTIAL_BODY = b'{"code":"","currentPage":1,"data":{"simpleOTAModuleInfo":[{"device'
_CONTENT_LENGTH = 100_000


async def fail_below_http(kind: FaultKind, transport: asyncio.Transport, *, date: str, seconds: float) -> None:
    """Apply a fault of ``kind`` (reset, cut, silence or drip) to a connection, and end it.

    Silence and drip last for ``seconds``; a client that disconnects and a shutdown cancel them.
    """
    match kind:
        case "cut":
            transport.write(_partial_response(date))
            # Closed, not aborted, so that what was written arrives.
            transport.close()
            return
        case "silence":
            await asyncio.sleep(seconds)
        case "drip":
            await _drip(transport, date, seconds)
        case _:
            # Without linger the kernel sends a reset instead of an orderly end.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()


async def _drip(transport: asyncio.Transport, date: str, seconds: float) -> None:
    """Send a body without end, steadily, so that no wait for the next byte is long."""
    transport.write(_partial_response(date))
    end = time.monotonic() + seconds
    while not transport.is_closing() and time.monotonic() < end:
        transport.write(b" ")
        await asyncio.sleep(DRIP_SECONDS)


def send_as_http10(transport: asyncio.Transport, reply: SimulatedResponse, date: str) -> None:
    """Send a complete response as an old proxy does: without length, the body ends with the connection."""
    headers = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
    head = f"HTTP/1.0 {reply.status} OK\r\nContent-Type: {reply.content_type}\r\nDate: {date}\r\n{headers}\r\n"
    transport.write(head.encode() + reply.body)
    transport.close()


def _partial_response(date: str) -> bytes:
    """Return the head of a response and less of its body than its Content-Length."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {JSON}\r\nDate: {date}\r\nContent-Length: {_CONTENT_LENGTH}\r\n\r\n"
    return head.encode() + _PARTIAL_BODY
