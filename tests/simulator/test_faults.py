import asyncio
import contextlib
import errno
import re
import ssl
import time
from collections import Counter
from itertools import pairwise

import aiohttp
import orjson
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from auditor.models import Dialect, Secret
from auditor.simulator.faults import KINDS, STALLS, FaultKind, Faults, FaultSource
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.simulator.api_requests import RawResponse, device_params, get, signed_query, single_attempt, url_of

pytestmark = pytest.mark.anyio

ALWAYS = {kind: Faults(**{kind: 1.0}) for kind in KINDS}


async def responses_with_fault(
    world: World, kind: FaultKind, times: int = 1, dialect: Dialect = "tuya"
) -> list[RawResponse]:
    async with Simulator(world, faults=ALWAYS[kind], dialect=dialect) as platform:
        seen = [await get(platform, signed_query(device_params(world.device(1)))) for _ in range(times)]
        assert platform.counts.faults == {kind: times}
        assert platform.counts.answered == 0
    return seen


async def test_a_reset_resets_the_connection(world: World) -> None:
    async with Simulator(world, faults=ALWAYS["reset"]) as platform:
        with pytest.raises(aiohttp.ClientOSError) as caught:
            await get(platform, signed_query(device_params(world.device(1))))
        assert caught.value.errno == errno.ECONNRESET
        assert platform.counts.faults == {"reset": 1}


async def test_a_cut_response_has_headers_and_a_partial_body(world: World) -> None:
    async with Simulator(world, faults=ALWAYS["cut"]) as platform, single_attempt() as session:
        url = url_of(platform, signed_query(device_params(world.device(1))))
        async with session.get(url) as answer:
            assert answer.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        assert platform.counts.faults == {"cut": 1}


async def test_unavailable_is_the_gateways_503(world: World) -> None:
    (seen,) = await responses_with_fault(world, "unavailable")
    assert (seen.status, seen.json["Code"]) == (503, "ServiceUnavailable")


async def test_an_internal_error_is_empty_or_a_page_of_a_proxy(world: World) -> None:
    seen = await responses_with_fault(world, "internal", 20)
    assert {one.status for one in seen} == {500}
    assert {one.body[:9] for one in seen} == {b"", b"<!DOCTYPE"}


async def test_a_page_of_a_proxy_and_garbage_have_status_200(world: World) -> None:
    (page,) = await responses_with_fault(world, "html")
    assert (page.status, page.headers["Content-Type"], page.body[:9]) == (200, "text/html", b"<!DOCTYPE")
    (garbage,) = await responses_with_fault(world, "garbage")
    assert garbage.status == 200
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(garbage.body)


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_a_business_fault_is_an_error_with_status_200(world: World, dialect: Dialect) -> None:
    (seen,) = await responses_with_fault(world, "business", dialect=dialect)
    assert (seen.status, seen.code) == (200, "iot.system.SystemException")


async def test_throttling_has_all_its_forms(world: World) -> None:
    seen = await responses_with_fault(world, "throttle", 40)
    assert {one.status for one in seen} == {400, 429}
    assert all(one.code.startswith("Throttling") for one in seen)
    hints = {(one.headers.get("Retry-After", "")[:1].isdigit(), "x-acs-retry-after" in one.headers) for one in seen}
    assert hints == {(True, False), (False, True), (False, False)}


async def test_a_nonce_fault_is_an_error_of_the_gateway(world: World) -> None:
    (seen,) = await responses_with_fault(world, "nonce")
    assert (seen.status, seen.code) == (400, "SignatureNonceUsed")


async def test_a_response_of_an_old_proxy_is_correct_and_ends_with_the_connection(world: World) -> None:
    async with Simulator(world, faults=ALWAYS["http10"], record_responses=True) as platform:
        reader, writer = await asyncio.open_connection("127.0.0.1", platform.port)
        query = signed_query(device_params(world.device(1)))
        writer.write(f"GET /?{query} HTTP/1.1\r\nHost: simulator\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        refused = await get(platform, signed_query({**device_params(world.device(1)), "DeviceName": "nobody"}))
    assert head.startswith(b"HTTP/1.0 200 ")
    assert b"content-length" not in head.lower()
    assert orjson.loads(body)["total"] == 3
    assert refused.code == "iot.device.NotExistedDevice"
    assert (platform.counts.faults, platform.counts.answered) == ({"http10": 2}, 0)
    assert platform.counts.rejected_by_code == {}
    assert platform.responses is not None
    assert platform.responses.total() == 2


async def test_a_drip_sends_steadily_and_never_ends(world: World) -> None:
    async with Simulator(world, faults=Faults(drip=1, silence_seconds=0.5)) as platform, single_attempt() as session:
        before = time.monotonic()
        async with session.get(url_of(platform, signed_query(device_params(world.device(1))))) as answer:
            parts = [await answer.content.readany() for _ in range(4)]
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        assert time.monotonic() - before > 0.4
        assert all(parts)
        assert platform.counts.faults == {"drip": 1}


async def test_silence_sends_nothing_until_the_connection_is_closed(world: World) -> None:
    async with Simulator(world, faults=Faults(silence=1, silence_seconds=0.3)) as platform:
        before = time.monotonic()
        with pytest.raises(aiohttp.ClientConnectionError):
            await get(platform, signed_query(device_params(world.device(1))))
        assert time.monotonic() - before > 0.25


@pytest.mark.parametrize("kind", STALLS)
async def test_silence_and_drip_do_not_delay_the_shutdown(world: World, kind: FaultKind) -> None:
    before_all = asyncio.all_tasks()
    async with Simulator(world, faults=ALWAYS[kind]) as platform:
        waiting = [asyncio.create_task(get(platform, signed_query(device_params(world.device(1))))) for _ in range(5)]
        await asyncio.sleep(0.2)
        assert platform.counts.faults == {kind: 5}
        before = time.monotonic()
    assert time.monotonic() - before < 1
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, aiohttp.ClientError) for outcome in outcomes)
    assert asyncio.all_tasks() <= before_all


@pytest.mark.parametrize("kind", STALLS)
async def test_silence_and_drip_end_when_the_client_disconnects(world: World, kind: FaultKind) -> None:
    async with Simulator(world, faults=ALWAYS[kind]) as platform:
        before = asyncio.all_tasks()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await get(platform, signed_query(device_params(world.device(1))))
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() <= before


async def test_a_request_with_a_fault_counts_against_the_quota(world: World) -> None:
    account = SimulatedAccount("key", Secret("secret"), calls_per_second=0.01)
    async with Simulator(world, accounts=[account], faults=ALWAYS["unavailable"]) as platform:
        first = await get(platform, signed_query(device_params(world.device(1)), account=account))
        second = await get(platform, signed_query(device_params(world.device(1)), account=account))
    assert [first.code, second.code] == ["ServiceUnavailable", "Throttling.User"]


async def test_an_outage_can_start_and_end_while_the_platform_runs(world: World) -> None:
    account = SimulatedAccount("key", Secret("secret"), calls_per_second=4)
    async with Simulator(world, accounts=[account], window="bucket") as platform:
        codes = []
        for outage in (None, "unavailable", "business", None, None):
            platform.outage = outage
            codes.append((await get(platform, signed_query(device_params(world.device(1)), account=account))).code)
    assert codes == ["", "ServiceUnavailable", "iot.system.SystemException", "", "Throttling.User"]
    assert platform.counts.faults == {"unavailable": 1, "business": 1}


async def test_every_request_is_counted_once(world: World) -> None:
    faults = Faults.evenly(0.5, silence=0)
    async with Simulator(world, faults=faults, seed=1) as platform:
        for index in range(100):
            with contextlib.suppress(aiohttp.ClientError):
                await get(platform, signed_query(device_params(world.device(index))))
    counts = platform.counts
    assert counts.received == 100
    assert counts.received == counts.answered + counts.rejected_by_code.total() + counts.faults.total()
    assert 0 < counts.answered < 100


def test_the_same_seed_gives_the_same_faults() -> None:
    def faults_of(seed: int) -> list[FaultKind | None]:
        source = FaultSource(Faults.evenly(0.5), seed)
        return [source.next_fault() for _ in range(200)]

    assert faults_of(1) == faults_of(1)
    assert faults_of(1) != faults_of(2)


def test_faults_are_about_as_frequent_as_configured() -> None:
    source = FaultSource(Faults(reset=0.1, nonce=0.3), 5)
    found = Counter(source.next_fault() for _ in range(20_000))
    assert found["reset"] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert found["nonce"] / 20_000 == pytest.approx(0.3, abs=0.01)
    assert set(found) == {"reset", "nonce", None}


@given(st.floats(0, 1), st.booleans())
def test_an_even_split_adds_up_to_the_total_and_silence_and_drip_count_as_one(total: float, quiet: bool) -> None:  # noqa: FBT001
    faults = Faults.evenly(total, silence=0.0 if quiet else None)
    assert sum(faults.probabilities) == pytest.approx(total)
    others = [chance for kind, chance in zip(KINDS, faults.probabilities, strict=True) if kind not in STALLS]
    assert all(one == other for one, other in pairwise(others))
    assert faults.silence == faults.drip == (0 if quiet else pytest.approx(others[0] / 2))


def test_invalid_probabilities_are_rejected() -> None:
    for wrong in ({"reset": 0.6, "cut": 0.6}, {"html": -0.1}, {"silence_seconds": -1}):
        with pytest.raises(ValueError, match="silence_seconds"):
            Faults(**wrong)
    with pytest.raises(ValueError, match="silence"):
        Faults.evenly(0.1, silence=0.2)


async def test_latency_delays_each_response(world: World) -> None:
    async with Simulator(world, latency=(0.1, 0.15)) as platform:
        before = time.monotonic()
        await get(platform, signed_query(device_params(world.device(1))))
        assert 0.1 <= time.monotonic() - before < 1


async def test_a_connection_is_reused_for_the_next_request(world: World) -> None:
    async with Simulator(world) as platform:
        reader, writer = await asyncio.open_connection("127.0.0.1", platform.port)
        for _ in range(3):
            query = signed_query(device_params(world.device(1)))
            writer.write(f"GET /?{query} HTTP/1.1\r\nHost: simulator\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", head)
            assert length is not None
            assert orjson.loads(await reader.readexactly(int(length[1])))["total"] == 3
        writer.close()


async def test_an_endpoint_with_a_certificate_is_https(world: World) -> None:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    async with Simulator(world, ssl_context=server) as platform, single_attempt() as session:
        assert platform.endpoint.startswith("https://127.0.0.1:")
        url = url_of(platform, signed_query(device_params(world.device(1))))
        async with session.get(url, ssl=client) as answer:
            assert orjson.loads(await answer.read())["total"] == 3


async def test_a_stopped_simulator_has_no_endpoint_and_can_start_again(world: World) -> None:
    platform = Simulator(world)
    with pytest.raises(RuntimeError, match="async with"):
        _ = platform.endpoint
    for _ in range(2):
        async with platform:
            assert (await get(platform, signed_query(device_params(world.device(1))))).status == 200
    assert platform.counts.answered == 2
