"""The client against real sockets: what it sends, what it reads, and what it makes of everything that breaks."""

import asyncio
import gzip
import socket
import time
import uuid
from contextlib import AsyncExitStack
from email.utils import formatdate
from itertools import cycle
from typing import NoReturn
from urllib.parse import parse_qs, unquote

import orjson
import pytest
from aiohttp import web

from auditor.client.client import ApiClient
from auditor.client.decoders import MAX_BODY_BYTES
from auditor.client.fast_transport import FastTransport
from auditor.client.operations import LIST_OTA_MODULE_VERSIONS_BY_DEVICE, module_version_params
from auditor.client.platform_clock import MAX_REFUSALS, MIN_REFUSALS
from auditor.client.responses import parse_module_page
from auditor.client.signing import signature, string_to_sign
from auditor.client.transport import SessionTransport
from auditor.errors import AccountDeniedError, ClockSkewError, PlatformError, TransientError
from auditor.models import Device, Secret
from auditor.simulator.faults import Faults
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.client.wire.sockets import (
    KEY_ID,
    PARAMETERS,
    SECRET,
    SUCCESS,
    Serve,
    answering,
    ask,
    client_of,
    closing,
    endpoint_of,
    failure_of,
    http,
    resetting,
    serving,
)

pytestmark = pytest.mark.anyio

GOOD = http(SUCCESS, "Content-Type: application/json")


def parameters_of(target: str) -> dict[str, str]:
    return {name: value for name, (value,) in parse_qs(target.partition("?")[2], keep_blank_values=True).items()}


async def test_the_bytes_on_the_wire_are_the_bytes_that_were_signed() -> None:
    async with serving(answering(GOOD)) as seen, client_of(seen.url) as client:
        await ask(client)
    (line,) = seen.lines
    method, target, version = line.split(" ")
    canonical, _, sent = target.removeprefix("/?").rpartition("&Signature=")
    assert (method, version, target[:2]) == ("POST", "HTTP/1.1", "/?")
    assert unquote(sent) == signature(Secret(SECRET), string_to_sign("POST", canonical))
    told = parameters_of(target)
    assert PARAMETERS.items() <= told.items()
    assert told.keys() - PARAMETERS.keys() == {
        "Action", "Version", "Format", "AccessKeyId", "SignatureMethod", "SignatureVersion", "SignatureNonce",
        "Timestamp", "Signature",
    }  # fmt: skip
    assert (told["Action"], told["Version"], told["Format"], told["AccessKeyId"]) == (
        "ListOTAModuleVersionsByDevice", "2018-01-20", "JSON", KEY_ID,
    )  # fmt: skip


async def test_no_header_tells_of_keys_and_the_user_agent_is_ours() -> None:
    async with serving(answering(GOOD)) as seen, client_of(seen.url, user_agent="auditor/9") as client:
        await ask(client)
    _, _, headers = seen.heads[0].partition("\r\n")
    assert "user-agent: auditor/9\r\n" in headers.lower()
    assert "authorization" not in headers.lower()
    assert SECRET not in seen.heads[0]


async def test_every_request_has_a_uuid_of_its_own_as_nonce_whichever_client_sends_it() -> None:
    async with serving(answering(GOOD)) as seen:
        for _ in range(2):
            async with client_of(seen.url) as client:
                for _ in range(25):
                    await ask(client)
    nonces = {parameters_of(target)["SignatureNonce"] for target in seen.targets}
    assert len(nonces) == 50
    assert all(str(uuid.UUID(nonce)) == nonce for nonce in nonces)
    assert len(set(seen.signatures)) == 50


async def test_a_connection_is_used_again() -> None:
    async with serving(answering(GOOD)) as seen, client_of(seen.url) as client:
        for _ in range(5):
            await ask(client)
    assert (len(seen.lines), seen.connections) == (5, 1)


async def test_connections_are_opened_before_they_are_needed_and_then_used() -> None:
    async with serving(answering(GOOD)) as seen, client_of(seen.url) as client:
        assert await client.prewarm(4)
        assert seen.connections == 0  # nothing has shown yet where to
        await ask(client)
        assert await client.prewarm(4)
        assert (seen.connections, len(seen.lines)) == (4, 1)
        await client.prewarm(3)
        await asyncio.gather(*(ask(client) for _ in range(4)))
        assert (seen.connections, len(seen.lines)) == (4, 5)


async def test_connections_that_cannot_be_opened_in_advance_fail_no_one() -> None:
    async with AsyncExitStack() as stack:
        async with serving(answering(GOOD)) as seen:
            client = await stack.enter_async_context(client_of(seen.url))
            await ask(client)
        assert not await client.prewarm(4)
        failure = await failure_of(client)
    assert isinstance(failure, TransientError)


@pytest.mark.parametrize(("status", "connections"), [("400 Bad", 1), ("429 Slow", 1), ("503 Busy", 3), ("504 Late", 3)])
async def test_an_error_leaves_the_connection_usable_unless_the_answer_may_still_come(
    status: str, connections: int
) -> None:
    whole = http(b'{"Code": "ServiceUnavailable"}', status=status)
    async with serving(answering(whole)) as seen, client_of(seen.url) as client:
        for _ in range(3):
            assert (await failure_of(client)).code == "ServiceUnavailable"
    assert (len(seen.lines), seen.connections) == (3, connections)


async def test_the_instance_and_region_are_sent_when_they_are_set() -> None:
    async with serving(answering(GOOD)) as seen, client_of(seen.url, region_id="r-1", instance_id="iot-1") as client:
        await ask(client)
    told = parameters_of(seen.targets[0])
    assert (told["RegionId"], told["IotInstanceId"]) == ("r-1", "iot-1")


async def test_a_kept_connection_that_dies_under_a_request_is_one_request_and_one_failure() -> None:
    answered = 0

    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        nonlocal answered
        answered += 1
        if answered % 2:
            writer.write(GOOD)
        else:
            writer.close()

    async with serving(serve) as seen, client_of(seen.url) as client:
        for calls in range(1, 7):
            if calls % 2:
                await ask(client)
            else:
                error = await failure_of(client)
                assert (type(error), error.code) == (TransientError, "auditor.Disconnected")
            assert len(seen.lines) == calls, "aiohttp must not send a request again by itself"


async def test_a_connection_closed_while_idle_costs_no_second_request() -> None:
    async with serving(closing(GOOD)) as seen, client_of(seen.url) as client:
        for calls in range(1, 6):
            try:
                await ask(client)
            except TransientError as error:
                assert error.code == "auditor.Disconnected"  # noqa: PT017  either is right, another code is not
            assert len(seen.lines) <= calls


async def test_a_compressed_answer_is_read() -> None:
    whole = http(gzip.compress(SUCCESS), "Content-Encoding: gzip")
    async with serving(answering(whole)) as seen, client_of(seen.url) as client:
        assert (await ask(client)).request_id == "R"
    assert "accept-encoding: gzip\r\n" in seen.heads[0].lower()


async def test_an_answer_in_many_chunks_is_whole() -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for place in range(0, len(SUCCESS), 7):
            await response.write(SUCCESS[place : place + 7])
        return response

    app = web.Application()
    app.router.add_post("/", stream)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with client_of(f"http://127.0.0.1:{runner.addresses[0][1]}/") as client:
            assert (await ask(client)).request_id == "R"
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("bomb", [False, True])
async def test_a_body_beyond_the_limit_is_refused(bomb: bool) -> None:  # noqa: FBT001
    size = 12 * MAX_BODY_BYTES if bomb else MAX_BODY_BYTES + 1
    body = b" " * size
    whole = http(gzip.compress(body, 1), "Content-Encoding: gzip") if bomb else http(body)
    async with serving(answering(whole)) as seen, client_of(seen.url) as client:
        error = await failure_of(client)
    assert (type(error), error.code, error.http_status) == (TransientError, "auditor.ResponseTooLarge", 200)


async def test_a_body_of_just_the_limit_is_read() -> None:
    page = b'{"success":true,"code":"","requestId":"R","total":0,"data":{"simpleOTAModuleInfo":[]}}'
    body = page + b" " * (MAX_BODY_BYTES - len(page))
    async with serving(answering(http(body))) as seen, client_of(seen.url) as client:
        assert (await ask(client)).request_id == "R"


async def silence(_writer: asyncio.StreamWriter, _target: str) -> None:
    await asyncio.Event().wait()


async def slow_drip(writer: asyncio.StreamWriter, _target: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not writer.is_closing():
        writer.write(b" ")
        await asyncio.sleep(0.01)


async def slow_head(writer: asyncio.StreamWriter, _target: str) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while not writer.is_closing():
        writer.write(b"X-A: b\r\n")
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("serve", [silence, slow_drip, slow_head])
async def test_an_answer_that_does_not_end_in_time_is_a_timeout(serve: Serve) -> None:
    async with serving(serve) as seen, client_of(seen.url, timeout=0.2) as client:
        task = asyncio.ensure_future(failure_of(client))
        error = await asyncio.wait_for(task, 10)
    assert (type(error), error.code) == (TransientError, "auditor.Timeout")
    assert "127.0.0.1" in error.message
    assert len(seen.lines) == 1


BROKEN: dict[str, tuple[Serve, str]] = {
    "reset": (resetting, "auditor.Disconnected"),
    "closed": (closing(b""), "auditor.Disconnected"),
    "half a head": (closing(b"HTTP/1.1 200 OK\r\nContent-"), "auditor.Disconnected"),
    "cut body": (closing(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"), "auditor.IncompleteBody"),
    "cut chunks": (closing(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"), "auditor.IncompleteBody"),
    "cut HTTP/1.0": (closing(b"HTTP/1.0 200 OK\r\n\r\n" + SUCCESS[:30]), "auditor.InvalidJSON"),
    "garbage": (closing(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "auditor.InvalidHTTP"),
    "binary": (closing(bytes(range(256)) * 4), "auditor.InvalidHTTP"),
    "huge header": (closing(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"), "auditor.InvalidHTTP"),
    "no content": (answering(b"HTTP/1.1 204 No Content\r\n\r\n"), "auditor.InvalidJSON"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_breaks_on_the_way_is_transient_and_named_and_asked_once(name: str) -> None:
    serve, code = BROKEN[name]
    async with serving(serve) as seen, client_of(seen.url) as client:
        error = await failure_of(client)
    assert (type(error), error.code) == (TransientError, code)
    assert len(seen.lines) == 1


async def test_a_body_that_is_not_the_gzip_it_claims_to_be_is_transient() -> None:
    whole = http(b"not compressed at all", "Content-Encoding: gzip")
    async with serving(answering(whole)) as seen, client_of(seen.url) as client:
        assert type(await failure_of(client)) is TransientError


async def test_an_old_server_that_ends_a_body_by_closing_is_understood() -> None:
    async with serving(closing(b"HTTP/1.0 200 OK\r\n\r\n" + SUCCESS)) as seen, client_of(seen.url) as client:
        assert (await ask(client)).request_id == "R"


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"])
async def test_a_redirect_is_not_followed(status: str) -> None:
    async with serving(answering(GOOD)) as elsewhere:
        whole = http(b"", f"Location: {elsewhere.url}", status=status)
        async with serving(answering(whole)) as seen, client_of(seen.url) as client:
            error = await failure_of(client)
    assert (type(error), error.code) == (TransientError, f"HTTP {status[:3]}")
    assert (len(seen.lines), elsewhere.connections) == (1, 0)


async def test_cookies_are_not_kept() -> None:
    async with serving(answering(http(SUCCESS, "Set-Cookie: a=b"))) as seen, client_of(seen.url) as client:
        await ask(client)
        await ask(client)
    assert "cookie:" not in seen.heads[1].lower()


async def test_a_refused_connection_names_the_host() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take it
        async with client_of(f"http://127.0.0.1:{taken.getsockname()[1]}/") as client:
            error = await failure_of(client)
    assert (type(error), error.code) == (TransientError, "auditor.Unreachable")
    assert "127.0.0.1" in error.message


async def test_a_name_that_does_not_exist_is_named() -> None:
    async with client_of("http://platform.invalid:8686/") as client:
        error = await failure_of(client)
    assert (type(error), error.code) == (TransientError, "auditor.DNS")
    assert "platform.invalid" in error.message


@pytest.mark.parametrize("status", ["400 Bad", "200 OK"])
async def test_a_platform_error_carries_its_status_and_request_id(status: str) -> None:
    whole = http(b'{"Code": "Odd", "Message": "m", "RequestId": "Q", "Success": false}', status=status)
    async with serving(answering(whole)) as seen, client_of(seen.url) as client:
        error = await failure_of(client)
    assert (error.code, error.message, error.http_status, error.request_id) == ("Odd", "m", int(status[:3]), "Q")


async def test_a_client_that_is_not_open_says_how_to_open_it() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await ask(client_of("http://127.0.0.1:1/"))


async def test_a_cancelled_call_leaves_the_client_usable() -> None:
    asked = asyncio.Event()

    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        if asked.is_set():
            writer.write(GOOD)
        else:
            asked.set()
            await asyncio.Event().wait()

    async with serving(serve) as seen, client_of(seen.url) as client:
        task = asyncio.ensure_future(ask(client))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await ask(client)).request_id == "R"
    assert len(seen.lines) == 2


def simulated(platform: Simulator, secret: Secret = DEFAULT_ACCOUNT.secret) -> ApiClient:
    return ApiClient(endpoint_of(platform.endpoint), DEFAULT_ACCOUNT.access_key_id, secret)


@pytest.mark.parametrize("by_id", [False, True])
async def test_the_strict_platform_answers_with_the_devices_modules(by_id: bool) -> None:  # noqa: FBT001
    world = World(10, missing=0, silent=0, inactive=0, large=0, module_counts={1: 7})
    known = world.device(1)
    device = Device("a", known.product_key, known.device_name, known.iot_id if by_id else None)
    async with Simulator(world) as platform, simulated(platform) as client:
        answer = await client.call(LIST_OTA_MODULE_VERSIONS_BY_DEVICE, module_version_params(device, 1, 200))
    page = parse_module_page(answer)
    assert (page.number, page.total) == (1, 7)
    assert tuple(reported.module for reported in page.reported) == known.modules
    assert {reported.iot_id for reported in page.reported} == {known.iot_id}


@pytest.mark.parametrize("offset", [1200, -1200])
async def test_a_clock_that_is_off_is_learned_from_three_refusals_and_the_next_call_goes_well(offset: int) -> None:
    world = World(2, missing=0, silent=0, inactive=0, large=0)
    parameters = module_version_params(Device("a", None, None, world.device(0).iot_id), 1, 200)
    async with Simulator(world, clock_offset=offset) as platform, simulated(platform) as client:
        for _ in range(MIN_REFUSALS):
            assert client.clock_offset == 0
            with pytest.raises(ClockSkewError):
                await client.call(LIST_OTA_MODULE_VERSIONS_BY_DEVICE, parameters)
        assert client.clock_offset == pytest.approx(offset, abs=2)
        await client.call(LIST_OTA_MODULE_VERSIONS_BY_DEVICE, parameters)
        assert platform.counts.answered == 1


@pytest.mark.parametrize(
    ("code", "header"),
    [
        ("InvalidTimeStamp.Expired", None),
        ("IllegalTimestamp", "Date: Thu, 01 Jan 1970 00:00:00 GMT"),
        ("X.TimeStamp", "Date: no"),
    ],
)
async def test_refused_timestamps_without_a_usable_date_end_the_account_with_both_times(
    code: str, header: str | None
) -> None:
    body = orjson.dumps({"Code": code})
    answer = http(body, *([] if header is None else [header]), status="400 Bad")
    async with serving(answering(answer)) as seen, client_of(seen.url) as client:
        for _ in range(MAX_REFUSALS - 1):
            assert isinstance(await failure_of(client), ClockSkewError)
        error = await failure_of(client)
        assert client.clock_offset == 0
    assert isinstance(error, AccountDeniedError)
    assert (error.cause, error.code) == ("clock", code)
    assert "every timestamp is refused; the last was 20" in str(error)
    assert ("1970-01-01T00:00:00Z" in str(error)) == (header is not None and "1970" in header)
    assert "clock of this machine" in error.advice


async def test_single_answers_with_a_wrong_date_do_not_move_the_clock() -> None:
    wrong = cycle([0.0, 0.0, -time.time(), 0.0, 7200.0, 0.0, 600.0, 0.0, 0.0, 0.0])

    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        writer.write(http(SUCCESS, f"Date: {formatdate(time.time() + next(wrong), usegmt=True)}"))

    async with serving(serve) as seen, client_of(seen.url) as client:
        for _ in range(60):
            await ask(client)
            assert client.clock_offset == 0
    assert len(seen.lines) == 60


async def test_a_wrong_secret_is_a_refused_account() -> None:
    async with Simulator(World(1)) as platform, simulated(platform, Secret("wrong")) as client:
        with pytest.raises(AccountDeniedError) as caught:
            await ask(client)
    assert caught.value.code == "SignatureDoesNotMatch"
    assert "string to sign" not in str(caught.value)


async def test_a_troubled_platform_brings_answers_and_platform_errors_and_one_request_per_call() -> None:
    world = World(3, missing=0, silent=0, inactive=0, large=0)
    parameters = module_version_params(Device("a", None, None, world.device(0).iot_id), 1, 200)
    faults = Faults.evenly(0.7, silence=0.0)
    async with Simulator(world, faults=faults, seed=3) as platform, simulated(platform) as client:
        answered = 0
        for _ in range(150):
            try:
                await client.call(LIST_OTA_MODULE_VERSIONS_BY_DEVICE, parameters)
            except PlatformError as error:
                assert error.code  # noqa: PT017
            else:
                answered += 1
        assert platform.counts.received == 150
        assert platform.counts.answered + platform.counts.faults["http10"] == answered
        assert platform.counts.faults["http10"] > 0
        assert 0 < answered < 150


async def test_connections_that_do_not_come_about_hold_up_no_request() -> None:
    async with serving(answering(GOOD)) as seen, client_of(seen.url) as client:
        await asyncio.gather(ask(client), ask(client))
        assert isinstance(client._transport, SessionTransport | FastTransport)
        connector = client._transport._connector
        connect = connector._create_connection

        async def never(*_: object) -> NoReturn:
            await asyncio.sleep(60)
            raise AssertionError

        connector._create_connection = never  # type: ignore[assignment,method-assign]
        warming = asyncio.create_task(client.prewarm(6))
        await asyncio.sleep(0.02)
        async with asyncio.timeout(2):
            for _ in range(20):
                await asyncio.gather(ask(client), ask(client))
        warming.cancel()
        await asyncio.wait([warming])
        await asyncio.sleep(0.01)
        connector._create_connection = connect  # type: ignore[method-assign]
        assert await client.prewarm(6)
    assert seen.connections == 6
