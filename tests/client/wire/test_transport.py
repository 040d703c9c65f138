"""Which transport an account gets, and that neither ever sends a signed request twice."""

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from typing import NoReturn

import pytest
from aiohttp.client_proto import ResponseHandler
from structlog.testing import capture_logs

from auditor.client import transport as module
from auditor.client.client import ApiClient
from auditor.client.fast_transport import FastTransport, check_internals
from auditor.client.transport import FAST_TRANSPORT_RATE, Endpoint, SessionTransport, open_transport
from auditor.errors import TransientError
from auditor.models import Secret
from tests.client.wire.sockets import KEY_ID, SECRET, SUCCESS, answering, ask, client_of, http, serving
from tests.client.wire.test_client import parameters_of

pytestmark = pytest.mark.anyio

GOOD = http(SUCCESS)


@pytest.fixture
def _fresh_warning() -> Iterator[None]:
    module._warn_of_fallback.cache_clear()
    yield
    module._warn_of_fallback.cache_clear()


@pytest.mark.parametrize(
    ("rate", "kind"),
    [
        (None, SessionTransport), (0.001, SessionTransport), (10.0, SessionTransport),
        (FAST_TRANSPORT_RATE, SessionTransport), (FAST_TRANSPORT_RATE + 1, FastTransport), (math.inf, FastTransport),
    ],
)  # fmt: skip
async def test_the_rate_of_an_account_selects_its_transport(rate: float | None, kind: type) -> None:
    opened = await open_transport(Endpoint("http://127.0.0.1:1/", calls_per_second=rate))
    assert type(opened) is kind
    await opened.close()


async def without_response(*_: object) -> NoReturn:
    raise AttributeError("'ResponseHandler' object has no attribute 'read'")


async def with_another_result(*_: object) -> tuple[object]:
    return (object(),)


@pytest.mark.usefixtures("_fresh_warning")
@pytest.mark.parametrize("read", [without_response, with_another_result])
async def test_missing_internals_select_the_session_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, read: object
) -> None:
    original = ResponseHandler.read
    async with serving(answering(GOOD)) as seen:
        with capture_logs() as logs:
            monkeypatch.setattr(ResponseHandler, "read", read)
            opened = [await open_transport(Endpoint(seen.url, calls_per_second=math.inf)) for _ in range(3)]
            monkeypatch.setattr(ResponseHandler, "read", original)
        assert {type(each) for each in opened} == {SessionTransport}
        assert [(entry["log_level"], entry["event"]) for entry in logs] == [("warning", "fast_transport_unavailable")]
        response = await opened[0].send("a=1")
        assert (response.status, response.body) == (200, SUCCESS)
        for each in opened:
            await each.close()


@pytest.mark.usefixtures("_fresh_warning")
async def test_another_signature_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    await check_internals()
    monkeypatch.setattr(ResponseHandler, "set_response_params", lambda self, *, timer: None)
    with pytest.raises(TypeError):
        await check_internals()


async def test_no_signed_request_is_sent_twice_to_a_server_that_closes_kept_connections() -> None:
    turn = itertools.count()

    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        match next(turn) % 4:
            case 0 | 2:
                writer.write(GOOD)  # and the connection is kept
            case 1:
                writer.close()  # when the next request has arrived
            case 3:
                writer.write(GOOD)
                await writer.drain()
                await asyncio.sleep(0.002)
                writer.close()  # while it is idle, or just as the next request is written

    calls = failures = 0
    async with serving(serve) as seen, client_of(seen.url, connections=4) as client:

        async def worker() -> None:
            nonlocal calls, failures
            for _ in range(60):
                calls += 1
                try:
                    await ask(client)
                except TransientError as error:
                    assert error.code == "auditor.Disconnected"  # noqa: PT017
                    failures += 1

        await asyncio.gather(*(worker() for _ in range(4)))
    nonces = Counter(parameters_of(target)["SignatureNonce"] for target in seen.targets)
    assert set(nonces.values()) == {1}
    assert len(seen.lines) <= calls
    assert failures > 10, "connections did break"


async def test_a_request_is_a_post_without_a_body() -> None:
    async with serving(answering(GOOD)) as seen, client_of(seen.url) as client:
        await ask(client)
        await ask(client)
    method_and_headers = {(head.split(" ")[0], head.partition("\r\n")[2]) for head in seen.heads}
    ((method, headers),) = method_and_headers
    lines = dict(line.lower().split(": ", 1) for line in headers.strip().split("\r\n"))
    assert method == "POST"
    assert lines["content-length"] == "0"
    assert lines["content-type"] == "application/x-www-form-urlencoded"
    assert lines.keys() == {"host", "user-agent", "accept", "accept-encoding", "content-length", "content-type"}


async def test_a_client_without_a_configured_rate_uses_the_session() -> None:
    async with (
        serving(answering(GOOD)) as seen,
        ApiClient(Endpoint(seen.url), KEY_ID, Secret(SECRET)) as client,
    ):
        assert (await ask(client)).request_id == "R"
        assert isinstance(client._transport, SessionTransport)
