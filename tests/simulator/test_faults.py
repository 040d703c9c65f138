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
from tests.simulator.api_requests import Seen, get, named, one_try, signed_query, url_of

pytestmark = pytest.mark.anyio

ALWAYS = {kind: Faults(**{kind: 1.0}) for kind in KINDS}


async def several(world: World, kind: FaultKind, times: int = 1, dialect: Dialect = "tuya") -> list[Seen]:
    async with Simulator(world, faults=ALWAYS[kind], dialect=dialect) as platform:
        seen = [await get(platform, signed_query(named(world.device(1)))) for _ in range(times)]
        assert platform.counts.faults == {kind: times}
        assert platform.counts.answered == 0
    return seen


async def test_a_reset_is_seen_as_a_reset_connection(world: World) -> None:
    async with Simulator(world, faults=ALWAYS["reset"]) as platform:
        with pytest.raises(aiohttp.ClientOSError) as caught:
            await get(platform, signed_query(named(world.device(1))))
        assert caught.value.errno == errno.ECONNRESET
        assert platform.counts.faults == {"reset": 1}


async def test_a_cut_answer_has_headers_and_half_a_body(world: World) -> None:
    async with Simulator(world, faults=ALWAYS["cut"]) as platform, one_try() as session:
        url = url_of(platform, signed_query(named(world.device(1))))
        async with session.get(url) as answer:
            assert answer.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        assert platform.counts.faults == {"cut": 1}


async def test_unavailable_is_the_gateways_503(world: World) -> None:
    (seen,) = await several(world, "unavailable")
    assert (seen.status, seen.json["Code"]) == (503, "ServiceUnavailable")


async def test_an_internal_error_is_empty_or_a_page(world: World) -> None:
    seen = await several(world, "internal", 20)
    assert {one.status for one in seen} == {500}
    assert {one.body[:9] for one in seen} == {b"", b"<!DOCTYPE"}


async def test_a_proxys_page_and_garbage_come_with_200(world: World) -> None:
    (page,) = await several(world, "html")
    assert (page.status, page.headers["Content-Type"], page.body[:9]) == (200, "text/html", b"<!DOCTYPE")
    (garbage,) = await several(world, "garbage")
    assert garbage.status == 200
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(garbage.body)


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_a_business_fault_is_a_refusal_inside_a_200(world: World, dialect: Dialect) -> None:
    (seen,) = await several(world, "business", dialect=dialect)
    assert (seen.status, seen.code) == (200, "iot.system.SystemException")


async def test_throttling_comes_in_its_several_shapes(world: World) -> None:
    seen = await several(world, "throttle", 40)
    assert {one.status for one in seen} == {400, 429}
    assert all(one.code.startswith("Throttling") for one in seen)
    hints = {(one.headers.get("Retry-After", "")[:1].isdigit(), "x-acs-retry-after" in one.headers) for one in seen}
    assert hints == {(True, False), (False, True), (False, False)}


async def test_a_nonce_fault_is_the_gateways_refusal(world: World) -> None:
    (seen,) = await several(world, "nonce")
    assert (seen.status, seen.code) == (400, "SignatureNonceUsed")


async def test_an_old_proxys_answer_is_right_and_ends_with_the_connection(world: World) -> None:
    async with Simulator(world, faults=ALWAYS["http10"], record_answers=True) as platform:
        reader, writer = await asyncio.open_connection("127.0.0.1", platform.port)
        query = signed_query(named(world.device(1)))
        writer.write(f"GET /?{query} HTTP/1.1\r\nHost: simulator\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        refused = await get(platform, signed_query({**named(world.device(1)), "DeviceName": "nobody"}))
    assert head.startswith(b"HTTP/1.0 200 ")
    assert b"content-length" not in head.lower()
    assert orjson.loads(body)["total"] == 3
    assert refused.code == "iot.device.NotExistedDevice"
    assert (platform.counts.faults, platform.counts.answered) == ({"http10": 2}, 0)
    assert platform.counts.refused_by_code == {}
    assert platform.answers is not None
    assert platform.answers.total() == 2


async def test_a_drip_keeps_coming_and_never_ends(world: World) -> None:
    async with Simulator(world, faults=Faults(drip=1, silence_seconds=0.5)) as platform, one_try() as session:
        before = time.monotonic()
        async with session.get(url_of(platform, signed_query(named(world.device(1))))) as answer:
            parts = [await answer.content.readany() for _ in range(4)]
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        assert time.monotonic() - before > 0.4
        assert all(parts)
        assert platform.counts.faults == {"drip": 1}


async def test_silence_answers_nothing_until_the_connection_is_closed(world: World) -> None:
    async with Simulator(world, faults=Faults(silence=1, silence_seconds=0.3)) as platform:
        before = time.monotonic()
        with pytest.raises(aiohttp.ClientConnectionError):
            await get(platform, signed_query(named(world.device(1))))
        assert time.monotonic() - before > 0.25


@pytest.mark.parametrize("kind", STALLS)
async def test_what_stalls_does_not_delay_the_shutdown(world: World, kind: FaultKind) -> None:
    before_all = asyncio.all_tasks()
    async with Simulator(world, faults=ALWAYS[kind]) as platform:
        waiting = [asyncio.create_task(get(platform, signed_query(named(world.device(1))))) for _ in range(5)]
        await asyncio.sleep(0.2)
        assert platform.counts.faults == {kind: 5}
        before = time.monotonic()
    assert time.monotonic() - before < 1
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(outcome, aiohttp.ClientError) for outcome in outcomes)
    assert asyncio.all_tasks() <= before_all


@pytest.mark.parametrize("kind", STALLS)
async def test_what_stalls_ends_when_the_client_hangs_up(world: World, kind: FaultKind) -> None:
    async with Simulator(world, faults=ALWAYS[kind]) as platform:
        before = asyncio.all_tasks()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await get(platform, signed_query(named(world.device(1))))
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() <= before


async def test_a_faulty_request_counts_against_the_quota(world: World) -> None:
    account = SimulatedAccount("key", Secret("secret"), per_second=0.01)
    async with Simulator(world, accounts=[account], faults=ALWAYS["unavailable"]) as platform:
        first = await get(platform, signed_query(named(world.device(1)), account=account))
        second = await get(platform, signed_query(named(world.device(1)), account=account))
    assert [first.code, second.code] == ["ServiceUnavailable", "Throttling.User"]


async def test_an_outage_begins_and_ends_while_the_platform_runs(world: World) -> None:
    account = SimulatedAccount("key", Secret("secret"), per_second=4)
    async with Simulator(world, accounts=[account], window="bucket") as platform:
        codes = []
        for outage in (None, "unavailable", "business", None, None):
            platform.outage = outage
            codes.append((await get(platform, signed_query(named(world.device(1)), account=account))).code)
    assert codes == ["", "ServiceUnavailable", "iot.system.SystemException", "", "Throttling.User"]
    assert platform.counts.faults == {"unavailable": 1, "business": 1}


async def test_every_request_is_counted_once(world: World) -> None:
    faults = Faults.evenly(0.5, silence=0)
    async with Simulator(world, faults=faults, seed=1) as platform:
        for index in range(100):
            with contextlib.suppress(aiohttp.ClientError):
                await get(platform, signed_query(named(world.device(index))))
    counts = platform.counts
    assert counts.received == 100
    assert counts.received == counts.answered + counts.refused_by_code.total() + counts.faults.total()
    assert 0 < counts.answered < 100


def test_the_same_seed_gives_the_same_faults() -> None:
    def drawn(seed: int) -> list[FaultKind | None]:
        source = FaultSource(Faults.evenly(0.5), seed)
        return [source.draw() for _ in range(200)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_faults_come_about_as_often_as_asked() -> None:
    source = FaultSource(Faults(reset=0.1, nonce=0.3), 5)
    drawn = Counter(source.draw() for _ in range(20_000))
    assert drawn["reset"] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert drawn["nonce"] / 20_000 == pytest.approx(0.3, abs=0.01)
    assert set(drawn) == {"reset", "nonce", None}


@given(st.floats(0, 1), st.booleans())
def test_an_even_split_adds_up_to_the_total_and_what_stalls_counts_as_one(total: float, quiet: bool) -> None:  # noqa: FBT001
    faults = Faults.evenly(total, silence=0.0 if quiet else None)
    assert sum(faults.chances) == pytest.approx(total)
    others = [chance for kind, chance in zip(KINDS, faults.chances, strict=True) if kind not in STALLS]
    assert all(one == other for one, other in pairwise(others))
    assert faults.silence == faults.drip == (0 if quiet else pytest.approx(others[0] / 2))


def test_impossible_probabilities_are_refused() -> None:
    for wrong in ({"reset": 0.6, "cut": 0.6}, {"html": -0.1}, {"silence_seconds": -1}):
        with pytest.raises(ValueError, match="silence_seconds"):
            Faults(**wrong)
    with pytest.raises(ValueError, match="silence"):
        Faults.evenly(0.1, silence=0.2)


async def test_latency_delays_each_answer(world: World) -> None:
    async with Simulator(world, latency=(0.1, 0.15)) as platform:
        before = time.monotonic()
        await get(platform, signed_query(named(world.device(1))))
        assert 0.1 <= time.monotonic() - before < 1


async def test_a_connection_is_kept_for_the_next_request(world: World) -> None:
    async with Simulator(world) as platform:
        reader, writer = await asyncio.open_connection("127.0.0.1", platform.port)
        for _ in range(3):
            query = signed_query(named(world.device(1)))
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
    async with Simulator(world, ssl_context=server) as platform, one_try() as session:
        assert platform.endpoint.startswith("https://127.0.0.1:")
        url = url_of(platform, signed_query(named(world.device(1))))
        async with session.get(url, ssl=client) as answer:
            assert orjson.loads(await answer.read())["total"] == 3


async def test_a_stopped_simulator_has_no_endpoint_and_can_start_again(world: World) -> None:
    platform = Simulator(world)
    with pytest.raises(RuntimeError, match="async with"):
        _ = platform.endpoint
    for _ in range(2):
        async with platform:
            assert (await get(platform, signed_query(named(world.device(1))))).status == 200
    assert platform.counts.answered == 2
