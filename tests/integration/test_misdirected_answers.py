"""A gateway that delivers answers late, twice, to another request, or in parts: no device gets another one.

The gateway is a server of bare bytes with its own record of the truth. Run as a program, this module queries 10,000
devices on each transport, and prints the figures.
"""

import asyncio
import contextlib
import itertools
import math
import random
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

import orjson
import pytest

import auditor
from auditor.client import transport
from auditor.engine import account_session
from auditor.engine.account_session import AccountSession, open_account
from auditor.engine.credentials import read_credentials
from auditor.engine.device_reader import MAX_READINGS
from auditor.models import Device, DeviceFailure, DeviceResult, Outcome
from auditor.query.warnings import completeness_warnings
from auditor.resilience.retry import Backoff
from tests.integration.test_audit import account_table, settings_for

pytestmark = pytest.mark.anyio

Kind = str
KINDS: tuple[Kind, ...] = ("named", "named", "named", "nameless", "empty", "not_found")
MOMENTS = (
    "with the answer", "just after", "while idle", "before the next answer", "within the next answer",
    "after an error", "in parts",
)  # fmt: skip


def version_of(number: int) -> str:
    return f"{number}.0"


def body_of(number: int, kind: Kind, request_id: str) -> bytes:
    if kind == "not_found":
        code = "iot.device.NotExistedDevice"
        return orjson.dumps({"success": False, "code": code, "errorMessage": "none", "requestId": request_id})
    module: dict[str, str] = {"moduleName": "default", "moduleVersion": version_of(number)}
    if kind == "named":
        module |= {"productKey": "k1", "deviceName": f"d{number}", "iotId": f"iot-{number}"}
    modules = [] if kind == "empty" else [module]
    return orjson.dumps(
        {
            "success": True, "code": "", "requestId": request_id, "currentPage": 1, "pageSize": 200,
            "pageCount": len(modules), "total": len(modules), "data": {"simpleOTAModuleInfo": modules},
        }
    )  # fmt: skip


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def write_later(writer: asyncio.StreamWriter, answer: bytes, delay: float) -> None:
    def write() -> None:
        if not writer.is_closing():
            writer.write(answer)

    asyncio.get_running_loop().call_later(delay, write)


class Gateway:
    """Answers requests for devices ``d0``, ``d1`` …; ``spoil`` decides what happens to each answer.

    At most ``max_spoiled`` answers of a device are spoiled.
    """

    def __init__(
        self,
        kind_of: Callable[[int], Kind],
        spoil: Callable[[], str],
        *,
        ids: str = "unique",
        max_spoiled: float = math.inf,
    ) -> None:
        self.requests = 0
        self._spoiled_of: Counter[int] = Counter()
        self._max_spoiled = max_spoiled
        self.spoiled: Counter[str] = Counter()
        self._kind_of, self._spoil, self._ids = kind_of, spoil, ids
        self._numbers = itertools.count()
        self._waiting: tuple[asyncio.Future[bytes], bytes] | None = None

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stale = b""
        where = ""
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            self.requests += 1
            query = dict(parse_qsl(head.split(b" ", 2)[1].partition(b"?")[2].decode()))
            number = int(query["DeviceName"].removeprefix("d"))
            request_id = "r1" if self._ids == "constant" else f"r-{next(self._numbers)}"
            answer = http(body_of(number, self._kind_of(number), request_id))
            half = len(answer) // 2
            if where == "before the next answer":
                writer.write(stale + answer)
            elif where == "within the next answer":
                writer.write(answer[:half] + stale + answer[half:])
            else:
                where = self._spoil() if self._spoiled_of[number] < self._max_spoiled else "not at all"
                self.spoiled[where] += 1
                self._spoiled_of[number] += where != "not at all"
                await self._write(writer, answer, where)
                stale = answer
                continue
            where = ""

    async def _write(self, writer: asyncio.StreamWriter, answer: bytes, where: str) -> None:
        if where == "with the answer":
            writer.write(answer + answer)
        elif where == "in parts":
            for start in range(0, len(answer), 97):
                writer.write(answer[start : start + 97])
                await writer.drain()
                await asyncio.sleep(0)
        elif where == "after an error":
            writer.write(http(b"<html>upstream timed out</html>", "504 Gateway Timeout"))
            write_later(writer, answer, 0.003)
        elif where == "swapped":
            writer.write(await self._swap(answer))
        else:
            writer.write(answer)
            if where in ("just after", "while idle"):
                delay = 0.0 if where == "just after" else random.Random(len(answer)).uniform(0, 0.01)
                write_later(writer, answer, delay)

    async def _swap(self, answer: bytes) -> bytes:
        """Exchange an answer for that of the next request that is to be swapped, if one comes soon."""
        if self._waiting is not None and not self._waiting[0].done():
            other, theirs = self._waiting
            self._waiting = None
            other.set_result(answer)
            return theirs
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting = future, answer
        try:
            return await asyncio.wait_for(future, 0.2)
        except TimeoutError:
            return answer


@asynccontextmanager
async def session_of(gateway: Gateway, folder: Path, workers: int = 16) -> AsyncIterator[AccountSession]:
    server = await asyncio.start_server(gateway, "127.0.0.1", 0)
    endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    settings = settings_for(folder, account_table(endpoint, folder), retry_budget=0.1)
    (credentials,) = read_credentials(settings)
    try:
        async with open_account(settings, settings.account[0], credentials, workers) as session:
            yield session
    finally:
        server.close()


async def fetch_all(session: AccountSession, numbers: Iterator[int], workers: int = 16) -> dict[int, Outcome]:
    outcomes: dict[int, Outcome] = {}

    async def work() -> None:
        for number in numbers:
            outcomes[number] = await session.fetch(Device("eu", "k1", f"d{number}", None))

    await asyncio.gather(*(work() for _ in range(workers)))
    return outcomes


def is_true(number: int, kind: Kind, outcome: Outcome) -> bool:
    """Return True for the device's own result, or a failure that says so."""
    if isinstance(outcome, DeviceFailure):
        return True
    if kind in ("empty", "not_found"):
        return outcome.status == kind
    return [each.module_version for each in outcome.modules] == [version_of(number)]


@pytest.fixture(params=["session", "fast"])
def transport_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "session":
        monkeypatch.setattr(transport, "FAST_TRANSPORT_RATE", math.inf)
    return str(request.param)


async def audit(  # noqa: PLR0917  the parameters of a test
    folder: Path, devices: int, kinds: tuple[Kind, ...], moments: tuple[str, ...], share: float, ids: str = "unique"
) -> tuple[Gateway, AccountSession, dict[int, Outcome]]:
    """Query devices through a gateway that spoils a share of the answers; the first ten devices are named."""
    order = random.Random(1)

    def kind_of(number: int) -> Kind:
        return "named" if number < 10 else kinds[number % len(kinds)]

    def spoil() -> str:
        return order.choice(moments) if moments and order.random() < share else "not at all"

    gateway = Gateway(kind_of, spoil, ids=ids)
    async with session_of(gateway, folder) as session:
        outcomes = await fetch_all(session, iter(range(devices)))
    wrong = [number for number, outcome in outcomes.items() if not is_true(number, kind_of(number), outcome)]
    assert wrong == []
    assert len(outcomes) == devices
    return gateway, session, outcomes


def failures_in(outcomes: dict[int, Outcome]) -> int:
    return sum(isinstance(each, DeviceFailure) for each in outcomes.values())


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.usefixtures("transport_name")
async def test_a_late_or_repeated_answer_is_never_another_device_s(tmp_path: Path, moment: str) -> None:
    gateway, _, outcomes = await audit(tmp_path, 240, KINDS, (moment,), 0.3)
    assert gateway.spoiled[moment] > 30
    assert failures_in(outcomes) == 0
    assert gateway.requests < 2.5 * 240


@pytest.mark.slow
@pytest.mark.usefixtures("transport_name")
async def test_swapped_answers_are_replaced_counted_and_cost_few_requests(tmp_path: Path) -> None:
    gateway, session, outcomes = await audit(tmp_path, 600, ("named", "named", "empty", "not_found"), ("swapped",), 0.1)
    assert gateway.spoiled["swapped"] > 50
    assert session.mismatches > 20
    assert failures_in(outcomes) <= 2
    assert gateway.requests < 4 * 600


@pytest.mark.parametrize("ids", ["constant", "unique"])
@pytest.mark.parametrize("nameless", [0, 1])
async def test_a_good_gateway_costs_one_request_a_device_and_one_more_for_modules_without_names(
    tmp_path: Path, ids: str, nameless: int
) -> None:
    kinds = ("named", "named", "empty", "not_found", *["nameless"] * nameless)
    gateway, session, outcomes = await audit(tmp_path, 200, kinds, (), 0.0, ids)
    confirmed = len(range(14, 200, 5)) * nameless  # the first ten have names
    assert confirmed <= gateway.requests - 200 <= confirmed + (16 if ids == "constant" else 0)
    assert session.mismatches == failures_in(outcomes) == 0


async def test_an_answer_that_is_held_back_holds_no_worker(tmp_path: Path) -> None:
    gateway = Gateway(lambda number: ("named", "empty", "nameless")[number], lambda: "not at all")
    pauses = []
    async with session_of(gateway, tmp_path) as session:
        for number in range(3):
            session.paused.on_pause = lambda: pauses.append(number)  # noqa: B023  called in this turn
            await session.fetch(Device("eu", "k1", f"d{number}", None))
        assert session.paused.count == 0
    assert pauses == [1]  # modules without names are confirmed immediately


@pytest.mark.slow
async def test_a_budget_is_kept_where_many_devices_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                query = dict(parse_qsl(head.split(b" ", 2)[1].partition(b"?")[2].decode()))
                number = int(query["DeviceName"].removeprefix("d"))
                answer = http(body_of(number, "named", f"r-{number}"))
                writer.write(http(b"", "503 Service Unavailable") if number % 3 == 2 else answer)
        writer.close()

    monkeypatch.setattr(account_session, "Backoff", partial(Backoff, initial_delay=0.02, max_delay=0.5))
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    table = account_table(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", tmp_path)
    rows = "".join(f"k1,d{number}\n" for number in range(1_500))
    (tmp_path / "fleet.csv").write_text(f"product_key,device_name\n{rows}")
    result = await auditor.run_audit(settings_for(tmp_path, table, concurrency=16, max_calls=400))
    server.close()
    assert 400 <= result.manifest.requests.sent <= 400 + 16 * (Backoff().max_attempts - 1)
    assert result.manifest.devices.ok > 50


async def test_a_run_counts_mismatched_answers_and_warns(tmp_path: Path) -> None:
    order = random.Random(1)
    # A device whose answers are swapped in all its readings fails, and whose are depends on the order of the requests.
    gateway = Gateway(
        lambda _: "named",
        lambda: "swapped" if order.random() < 0.3 else "not at all",
        max_spoiled=MAX_READINGS - 1,
    )
    server = await asyncio.start_server(gateway, "127.0.0.1", 0)
    table = account_table(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", tmp_path)
    rows = "".join(f"k1,d{number}\n" for number in range(100))
    (tmp_path / "fleet.csv").write_text(f"product_key,device_name\n{rows}")
    result = await auditor.run_audit(settings_for(tmp_path, table, concurrency=8))
    server.close()
    (mismatched,) = result.manifest.mismatched
    assert (result.manifest.state, mismatched.account) == ("complete", "eu")
    assert mismatched.answers == result.manifest.requests.sent - 100 > 10
    warnings = completeness_warnings(result.folder, result.manifest, result.manifest.devices)
    assert [(each.kind, f"{mismatched.answers:,} answers" in each.detail) for each in warnings] == [("mismatch", True)]


async def run_long(devices: int) -> None:
    for name in ("session", "fast"):
        transport.FAST_TRANSPORT_RATE = math.inf if name == "session" else 500.0
        for moments in (MOMENTS, ("swapped",)):
            kinds = KINDS if moments is MOMENTS else ("named", "named", "empty", "not_found")
            with tempfile.TemporaryDirectory() as folder:
                gateway, session, outcomes = await audit(Path(folder), devices, kinds, moments, 0.1)
            results = Counter(
                each.status if isinstance(each, DeviceResult) else each.code for each in outcomes.values()
            )
            print(  # noqa: T201
                f"{name}: {devices:,} devices, {gateway.requests:,} requests, none wrong; {dict(results)}; "
                f"{session.mismatches:,} mismatches; spoiled: {dict(gateway.spoiled)}"
            )


if __name__ == "__main__":
    asyncio.run(run_long(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
