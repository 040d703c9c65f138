"""The simulated platform on a socket: signatures, nonces, quotas, faults and answers as the real one has them.

Faults below HTTP: what the simulated platform does to a connection instead of answering on it as it should.
"""

import asyncio
import random
import socket
import ssl
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from email.utils import formatdate
from types import MappingProxyType, TracebackType
from typing import Self
from uuid import uuid4

from aiohttp import web

from auditor.models import Dialect, Secret
from auditor.simulator.faults import FaultKind, Faults, FaultSource, Lie
from auditor.simulator.gateway import Gateway, answer_format, read_parameters
from auditor.simulator.operations import Service
from auditor.simulator.quotas import Meter, SimulatedAccount, Throttled, WindowKind
from auditor.simulator.registry import NO_CHURN, Churn, Registry
from auditor.simulator.responses import JSON, Refused, Reply, refusal, success
from auditor.simulator.world import World

DEFAULT_ACCOUNT = SimulatedAccount("simulated-key", Secret("simulated-secret"))
"""The one account, without a quota, of a simulator that is given none."""


_SHUTDOWN_SECONDS = 0.2


_NO_LIES: Mapping[int, Lie] = MappingProxyType({})


_NO_FAULTS = Faults()


_BELOW_HTTP = {"reset", "cut", "silence", "drip", "http10"}


@dataclass(slots=True)
class Counts:
    """What the simulator has seen since it started.

    received = answered + all refusals + all faults + those still in progress or hung up on.

    Attributes:
        received: requests, whatever became of them.
        answered: requests answered with a page, lies too, ``http10`` not: that is among the faults.
        refused_by_code: refusals by the platform's code, throttling too, faults not.
        faults: faults by their kind.
    """

    received: int = 0
    answered: int = 0
    refused_by_code: Counter[str] = field(default_factory=Counter)
    faults: Counter[FaultKind] = field(default_factory=Counter)

    @property
    def throttled(self) -> int:
        """Requests refused because they were over the quota."""
        return self.refused_by_code["Throttling.User"]


class Simulator:
    """A platform to practise on, on the running asyncio loop: ``async with Simulator(world) as platform: …``.

    Args:
        world: the devices that it knows, for accounts without a world of their own.
        accounts: who may call, and how fast.
        dialect: how it spells its answers.
        window: how it counts quotas, see ``auditor.simulator.quota``.
        latency: the least and the most seconds that an answer takes, evenly drawn.
        jitter: the least and the most seconds that a request takes until the quota counts it, evenly drawn.
        competitor: another client's calls a second on every quota, from when and until when, in seconds since the
            first call that the quota counted.
        faults: what goes wrong by chance, after the quota has counted the request.
        lies: by a device's index, what is wrong with the answers about its modules.
        churn: devices that are registered and removed, in each world from its first listing request on.
        seed: of the faults and the latency.
        clock_offset: seconds that the server's clock is ahead of this machine's.
        port: 0 takes a free one.
        ssl_context: given, the endpoint is HTTPS.
        tells_retry_after: whether a throttled answer says by ``x-acs-retry-after``, in ms, when to come again.
        record_arrivals: whether ``arrivals`` and ``arrivals_of`` are kept; they grow with every request.
        record_answers: whether ``answers`` is kept; it grows with every device.

    Attributes:
        counts: what happened so far.
        outage: while it is set, every request that has passed gateway and quota meets this fault.
        answers: how often each page of each device was answered, refusals of the device too: by the iot_id that it
            was called by, or else ``product_key/device_name``, and the page.
        arrivals: ``time.monotonic()`` of each request that reached the quota, throttled ones too.
        arrivals_of: the same by the operation's name; unknown operations are under "".
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
        lies: Mapping[int, Lie] = _NO_LIES,
        churn: Churn = NO_CHURN,
        seed: int = 0,
        clock_offset: float = 0.0,
        host: str = "127.0.0.1",
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        tells_retry_after: bool = False,
        record_arrivals: bool = False,
        record_answers: bool = False,
    ) -> None:
        self.counts = Counts()
        self.outage: FaultKind | None = None
        self.answers: Counter[tuple[str, int]] | None = Counter() if record_answers else None
        self.arrivals: list[float] | None = [] if record_arrivals else None
        self.arrivals_of: dict[str, list[float]] = defaultdict(list)
        self._dialect = dialect
        self._latency, self._jitter = latency, jitter
        self._faults = FaultSource(faults, seed)
        self._silence_seconds = faults.silence_seconds
        self._random = random.Random(seed)  # noqa: S311  latency, no secret
        self._host, self._port, self._ssl_context = host, port, ssl_context
        self._tells_retry_after = tells_retry_after
        self._gateway = Gateway(accounts)
        self._meter = Meter(window, competitor)
        self._service = Service(Registry(world, churn), lies, self.answers)
        self._operations = self._service.operations
        self._services: dict[str, Service] = {}
        of_world = {id(world): self._service}
        for account in accounts:
            own = world if account.world is None else account.world
            if id(own) not in of_world:
                of_world[id(own)] = Service(Registry(own, churn), lies, self.answers)
            self._services[account.access_key_id] = of_world[id(own)]
        # One clock for timestamps, Date and quotas: it never jumps, and its seconds turn with the calendar's.
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
        """From now on the key is refused as a disabled one; raises KeyError if no account has it."""
        self._gateway.revoke(access_key_id)

    @property
    def registered(self) -> int:
        """How many devices of the simulator's world were registered since its first listing request."""
        return self.registry_of().registered

    @property
    def removed(self) -> AbstractSet[int]:
        """The indices of the devices of the simulator's world that were removed since its first listing request."""
        return self.registry_of().removed

    def registry_of(self, access_key_id: str = "") -> Registry:
        """The devices that exist now for an account; of one without a world of its own, those of the simulator's."""
        registry = self._services.get(access_key_id, self._service).registry
        registry.catch_up(time.monotonic())
        return registry

    async def __aenter__(self) -> Self:
        # A client that hangs up ends its handler: silence must not outlive the connection.
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
            kind = self.outage or self._faults.draw()
            if self._latency[1] > 0:
                await asyncio.sleep(self._random.uniform(*self._latency))
            if kind is not None:
                return await self._fail(kind, request, parameters, request_id)
            reply = self._answer(parameters, request_id)
            self.counts.answered += 1
        except Refused as refused:
            self.counts.refused_by_code[refused.code] += 1
            reply = refusal(refused, request_id, self._dialect, answer_format(parameters))
            if isinstance(refused, Throttled) and self._tells_retry_after:
                wait = str(round(refused.wait * 1000) + 1)
                reply = Reply(reply.status, reply.body, reply.content_type, {"x-acs-retry-after": wait})
        return self._response(reply)

    def _count(self, account: SimulatedAccount, parameters: Mapping[str, str], now: float) -> None:
        """Counts a request against its account's quota for the operation; raises Throttled when it is used up."""
        service = self._services.get(account.access_key_id, self._service)
        if self.arrivals is not None:
            action = parameters["Action"]
            self.arrivals.append(now - self._epoch)
            self.arrivals_of[action if action in service.operations else ""].append(now - self._epoch)
        self._meter.count(account, service.quota_name(parameters), now)

    def _answer(self, parameters: Mapping[str, str], request_id: str) -> Reply:
        service = self._services.get(parameters["AccessKeyId"], self._service)
        document = service.answer(parameters, time.monotonic())
        return success(parameters["Action"], document, request_id, self._dialect, answer_format(parameters))

    async def _fail(
        self, kind: FaultKind, request: web.BaseRequest, parameters: Mapping[str, str], request_id: str
    ) -> web.StreamResponse:
        self.counts.faults[kind] += 1
        if kind in _BELOW_HTTP:
            if (transport := request.transport) is not None:
                await self._fail_below_http(kind, transport, parameters, request_id)
            # Never sent: the connection is gone, but the server wants a response object.
            return web.Response()
        now = time.monotonic() + self._epoch
        reply = self._faults.reply(
            kind, request_id=request_id, dialect=self._dialect, answer_format=answer_format(parameters), now=now
        )
        return self._response(reply)

    async def _fail_below_http(
        self, kind: FaultKind, transport: asyncio.Transport, parameters: Mapping[str, str], request_id: str
    ) -> None:
        date = self._now_as_date()
        if kind != "http10":
            await fail_below_http(kind, transport, date=date, seconds=self._silence_seconds)
            return
        try:
            reply = self._answer(parameters, request_id)
        except Refused as refused:
            reply = refusal(refused, request_id, self._dialect, answer_format(parameters))
        answer_as_http10(transport, reply, date)

    def _response(self, reply: Reply) -> web.Response:
        headers = {"Content-Type": reply.content_type, "Date": self._now_as_date(), **reply.headers}
        return web.Response(status=reply.status, body=reply.body, headers=headers)

    def _now_as_date(self) -> str:
        """The server's clock as ``Date`` has it, formatted once a second."""
        second = int(time.monotonic() + self._epoch)
        if second != self._date_second:
            self._date_second, self._date = second, formatdate(second, usegmt=True)
        return self._date


async def _read(request: web.BaseRequest, into: dict[str, str]) -> None:
    """Reads the parameters of the query and, of a POST, of its form; raises Refused."""
    query = request.raw_path.partition("?")[2]
    if not query.isascii():
        # Unescaped bytes come as surrogates, which nothing can encode again.
        query = query.encode(errors="surrogateescape").decode(errors="replace")
    read_parameters(query, into)
    if request.method == "POST":
        if request.content_type == "application/x-www-form-urlencoded" and request.body_exists:
            read_parameters((await request.read()).decode("utf-8", "replace"), into)
    elif request.method != "GET":
        raise Refused("UnsupportedHTTPMethod", "This http method is not supported.", 405)


DRIP_SECONDS = 0.05
"""Between two parts of a body that drips."""


_NO_LINGERING = struct.pack("ii", 1, 0)


_HALF_A_BODY = b'{"code":"","currentPage":1,"data":{"simpleOTAModuleInfo":[{"device'


_PROMISED = 100_000


async def fail_below_http(kind: FaultKind, transport: asyncio.Transport, *, date: str, seconds: float) -> None:
    """Does to a connection what a fault of ``kind`` (reset, cut, silence or drip) does, and ends it.

    Args:
        kind: what goes wrong.
        transport: the connection; a client that hangs up and a shutdown cancel what lasts.
        date: the answer's ``Date``, where there is one.
        seconds: how long silence and a drip last.
    """
    match kind:
        case "cut":
            transport.write(_beginning(date))
            # Closed, not aborted: what was written still arrives.
            transport.close()
            return
        case "silence":
            await asyncio.sleep(seconds)
        case "drip":
            await _drip(transport, date, seconds)
        case _:
            # Without lingering the kernel sends a reset; else the client would see an orderly end.
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
    transport.abort()


async def _drip(transport: asyncio.Transport, date: str, seconds: float) -> None:
    """A body that comes steadily, so that no wait for the next byte is long, and never comes to its end."""
    transport.write(_beginning(date))
    end = time.monotonic() + seconds
    while not transport.is_closing() and time.monotonic() < end:
        transport.write(b" ")
        await asyncio.sleep(DRIP_SECONDS)


def answer_as_http10(transport: asyncio.Transport, reply: Reply, date: str) -> None:
    """A whole answer as an old proxy gives it: no length, the body ends with the connection."""
    headers = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
    head = f"HTTP/1.0 {reply.status} OK\r\nContent-Type: {reply.content_type}\r\nDate: {date}\r\n{headers}\r\n"
    transport.write(head.encode() + reply.body)
    transport.close()


def _beginning(date: str) -> bytes:
    """The head of an answer and less of its body than the head promises."""
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {JSON}\r\nDate: {date}\r\nContent-Length: {_PROMISED}\r\n\r\n"
    return head.encode() + _HALF_A_BODY
