"""A quota in Redis: shared through a real server, and what happens when the server is lost."""

import asyncio
import math
import re
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
import structlog.testing
import trustme
from anyio.abc import TaskGroup
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import SettingsError
from auditor.models import Secret
from auditor.resilience import quota_backends, redis_backend
from auditor.resilience.adaptive_rate import SendLog, allocate_log
from auditor.resilience.quota_backends import REJOIN_DELAY, QuotaLostError
from auditor.resilience.rate_limiter import AdaptiveRateLimiter
from auditor.resilience.redis_backend import MAX_VALUE_SIZE, RedisBackend, RedisConnection, key_of
from auditor.resilience.shared_quota import Participant, SharedQuota, copy_quota, size_for
from auditor.text.extras import describe_extra
from tests.resilience.redis_server import RedisServer, needs_redis

pytestmark = pytest.mark.anyio


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    running = RedisServer(tmp_path)
    yield running
    running.kill()


@pytest.fixture
async def server(redis: RedisServer) -> AsyncIterator[RedisConnection]:
    opened = RedisConnection(redis.address)
    await opened.open()
    yield opened
    await opened.close()


class Client:
    """A participant that always has work; ``sent`` are the moments of its requests."""

    def __init__(self, server: RedisConnection, per_second: float, group: TaskGroup | None = None) -> None:
        self.backend = RedisBackend(server, "account", per_second)
        self.limiter = AdaptiveRateLimiter(per_second, backend=self.backend)
        self.sent: list[float] = []
        self.work = anyio.CancelScope()
        if group is not None:
            group.start_soon(self._send)

    async def _send(self) -> None:
        try:
            with self.work:
                while True:
                    sent_at = await self.limiter.acquire()
                    self.sent.append(time.monotonic())
                    self.limiter.on_success(sent_at)
        finally:
            await self.backend.close()

    def within(self, begin: float, end: float) -> int:
        return sum(begin <= moment < end for moment in self.sent)


def max_per_second(*clients: Client) -> int:
    moments = sorted(moment for each in clients for moment in each.sent)
    return max(sum(first <= moment < first + 1 for moment in moments) for first in moments)


async def after(seconds: float) -> float:
    await anyio.sleep(seconds)
    return time.monotonic()


@needs_redis
async def test_two_participants_share_the_quota_equally(server: RedisConnection) -> None:
    async with anyio.create_task_group() as group:
        clients = [Client(server, 50, group) for _ in range(2)]
        began = await after(1.0)
        ended = await after(3.0)
        group.cancel_scope.cancel()
    shares = [each.within(began, ended) for each in clients]
    assert sum(shares) >= 0.85 * 150
    assert min(shares) >= 0.4 * sum(shares)
    assert max_per_second(*clients) <= 50


@pytest.mark.slow
@needs_redis
async def test_a_participant_that_ends_leaves_its_share_to_the_other(server: RedisConnection) -> None:
    async with anyio.create_task_group() as group:
        remaining, ending = Client(server, 40, group), Client(server, 40, group)
        await after(1.0)
        ending.work.cancel()
        began = await after(2.0)
        ended = await after(1.5)
        assert remaining.limiter.other_participants == 0
        group.cancel_scope.cancel()
    assert remaining.within(began, ended) >= 0.85 * 60
    assert max_per_second(remaining, ending) <= 40


@needs_redis
async def test_throttling_of_one_participant_holds_the_other_immediately(server: RedisConnection) -> None:
    one, other = Client(server, 20), Client(server, 20)
    sent_at = await one.limiter.acquire()
    await other.limiter.acquire()
    before = other.limiter.rate
    one.limiter.on_throttled(sent_at, 2.0)
    await anyio.sleep(0.1)
    began = time.monotonic()
    await other.limiter.acquire()
    assert time.monotonic() - began >= 1.7
    assert other.limiter.rate < before
    for each in (one, other):
        await each.backend.close()


@pytest.mark.slow
@needs_redis
async def test_the_lowest_configured_rate_applies_and_the_larger_log_is_kept(
    server: RedisConnection,
) -> None:
    async with anyio.create_task_group() as group:
        slow, fast = Client(server, 10, group), Client(server, 100, group)
        began = await after(1.0)
        ended = await after(2.0)
        group.cancel_scope.cancel()
    assert slow.within(began, ended) + fast.within(began, ended) <= 20
    assert len(slow.backend._stored) == len(fast.backend._stored) == size_for(300)


@pytest.mark.slow
@needs_redis
async def test_a_lost_redis_neither_stops_nor_bursts(redis: RedisServer, server: RedisConnection) -> None:
    with structlog.testing.capture_logs() as logs:
        async with anyio.create_task_group() as group:
            clients = [Client(server, 20, group) for _ in range(2)]
            await after(1.5)
            redis.kill()
            lost = await after(1.5)
            alone = await after(2.0)
            redis.start()
            back = await after(1.0 + REJOIN_DELAY + 1.0)
            ended = await after(2.0)
            assert [each.limiter.other_participants for each in clients] == [1, 1]
            group.cancel_scope.cancel()
    for each in clients:
        assert 15 <= each.within(lost, alone) <= 20
    assert sum(each.within(back, ended) for each in clients) >= 0.85 * 40
    assert max_per_second(*clients) <= 20 + len(clients)  # each may be late by a moment
    events = [each["event"] for each in logs if each["log_level"] == "warning"]
    assert events == ["quota_storage_lost"] * 2 + ["quota_shared_again"] * 2


@pytest.mark.slow
@needs_redis
async def test_a_redis_that_hangs_is_lost_after_a_second(redis: RedisServer, server: RedisConnection) -> None:
    async with anyio.create_task_group() as group:
        client = Client(server, 20, group)
        await after(0.5)
        redis.stall()
        hung = await after(2.5)
        ended = await after(1.0)
        group.cancel_scope.cancel()
    assert client.within(hung, ended) >= 15  # there was no other participant, so it has all of the quota
    assert max_per_second(client) <= 20


@needs_redis
async def test_half_of_the_rate_is_used_if_the_participants_are_unknown(
    redis: RedisServer, server: RedisConnection
) -> None:
    redis.kill()
    client = Client(server, 20)
    await client.limiter.acquire()
    assert client.limiter.rate == pytest.approx(10, rel=0.05)
    await client.backend.close()


@needs_redis
async def test_a_participant_continues_alone_after_redis_has_lost_the_quota(
    redis: RedisServer, server: RedisConnection
) -> None:
    client, other = Client(server, 100), Client(server, 100)
    for _ in range(2):
        await client.limiter.acquire()
        await other.limiter.acquire()
    redis.kill()
    redis.start()
    with structlog.testing.capture_logs() as logs:
        await client.limiter.acquire()
    assert client.limiter.rate == pytest.approx(50, rel=0.1)
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("quota_storage_lost", "what was stored there is gone or damaged")
    ]
    for each in (client, other):
        await each.backend.close()


REFUSALS = {
    "full": ["CONFIG SET maxmemory 1", "CONFIG SET maxmemory-policy noeviction"],
    "replica": ["REPLICAOF 127.0.0.1 1"],
    "other type": ["DEL {key}", "RPUSH {key} 1"],
    "password after a restart": [],
    "too few replicas": ["CONFIG SET min-replicas-to-write 1"],
    "no scripts": ["ACL SETUSER default -eval"],
    "no keys": ["ACL SETUSER default resetkeys ~other:*"],
}


@needs_redis
@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_redis_that_refuses_to_write_is_lost_until_it_writes_again(
    redis: RedisServer, server: RedisConnection, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    monkeypatch.setattr(quota_backends, "RECONNECT_INTERVAL", 0.1)
    monkeypatch.setattr(quota_backends, "REJOIN_DELAY", 0.1)
    clients = [Client(server, 200) for _ in range(2)]
    for _ in range(3):
        for each in clients:
            await each.limiter.acquire()
    with structlog.testing.capture_logs() as logs:
        if not REFUSALS[refusal]:
            redis.restart("--requirepass", "changed")
        for line in REFUSALS[refusal]:
            redis.run(line.format(key=key_of("account")))
        with anyio.fail_after(5):
            for each in clients:
                await each.limiter.acquire()
        await anyio.sleep(0.5)
        with anyio.fail_after(1):
            for each in clients:
                await each.limiter.acquire()
        assert [line["event"] for line in logs] == ["quota_storage_lost"] * 2
        assert sum(each.limiter.rate for each in clients) <= 200
        with pytest.raises(SettingsError, match="cannot use"):
            await RedisConnection(redis.address).open("account")
    for each in clients:
        await each.backend.close()


@needs_redis
async def test_closing_ends_although_a_cancelled_client_reports_a_lost_connection(
    redis: RedisServer, server: RedisConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota_backends, "RECONNECT_INTERVAL", 0.01)
    client, checking = Client(server, 200), anyio.Event()
    await client.limiter.acquire()

    async def check() -> None:
        checking.set()
        try:
            await anyio.sleep(60)
        except asyncio.CancelledError:
            raise QuotaLostError("the connection was closed") from None

    monkeypatch.setattr(client.backend, "_check", check)
    redis.run("CONFIG SET maxmemory 1")
    await client.limiter.acquire()
    with anyio.fail_after(5):
        await checking.wait()
        await client.backend.close()


@needs_redis
async def test_a_full_redis_is_used_again_when_it_has_room(
    redis: RedisServer, server: RedisConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RECONNECT_INTERVAL", "REJOIN_DELAY"):
        monkeypatch.setattr(quota_backends, name, 0.1)
    client = Client(server, 200)
    await client.limiter.acquire()
    redis.run("CONFIG SET maxmemory 1")
    with structlog.testing.capture_logs() as logs:
        await client.limiter.acquire()
        redis.run("CONFIG SET maxmemory 0")
        await anyio.sleep(0.5)
        await client.limiter.acquire()
    assert [line["event"] for line in logs] == [
        "quota_storage_lost",
        "quota_shared_again",
    ]
    await client.backend.close()


def hostile_values(value: bytes) -> dict[str, bytes]:
    """Values under the key that no participant writes."""

    def with_number(at: int, number: float) -> bytes:
        return value[:at] + struct.pack("=d", number) + value[at + 8 :]

    numbers = {"huge": 1e18, "infinite": math.inf, "nan": math.nan, "negative": -1e18}
    # The seconds added to the clock, a moment, a pause, the rate, its margin, its level and its cycle.
    cells = {
        "added": 8,
        "active": 32,
        "paused": 40,
        "rate": 72,
        "margin": 80,
        "level": 88,
        "cycle": 96,
        "log": 16 + size_for(0) - 8,
    }
    damaged = {
        f"{name} {kind}": with_number(at, number) for name, at in cells.items() for kind, number in numbers.items()
    }
    return damaged | {
        "a day ahead": with_number(8, 86_400.0),
        "empty": b"",
        "short": value[:100],
        "ones": b"\xff" * len(value),
        "long": value * 2,
        "large": bytes(5_000_000),
    }


@pytest.mark.slow
@needs_redis
async def test_values_that_no_participant_writes_neither_stop_nor_exceed_the_quota(
    redis: RedisServer, server: RedisConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota_backends, "RECONNECT_INTERVAL", 0.02)
    monkeypatch.setattr(quota_backends, "REJOIN_DELAY", 0.0)
    whole = Client(server, 100)
    await whole.limiter.acquire()
    stored = redis.get(key_of("account"))
    assert len(stored) == size_for(300) + 16 <= MAX_VALUE_SIZE
    for name, value in hostile_values(stored).items():
        clients = [Client(server, 100) for _ in range(2)]
        for each in clients:
            await each.limiter.acquire()
        redis.set(key_of("account"), value)
        for _ in range(3):
            for each in clients:
                with anyio.fail_after(1):
                    await each.limiter.acquire()
        await anyio.sleep(0.1)
        for each in clients:
            with anyio.fail_after(1):
                await each.limiter.acquire()
            assert each.limiter.rate <= 100, name
            assert math.isfinite(each.backend.clock()), name
            await each.backend.close()
    await whole.backend.close()


@needs_redis
async def test_a_stored_value_that_is_no_quota_is_replaced(server: RedisConnection) -> None:
    await server.replace(key_of("account"), b"", b"garbage")
    client = Client(server, 100)
    with anyio.fail_after(1):
        for _ in range(3):
            await client.limiter.acquire()
    assert len(client.backend.quota.rate.send_log) == 3
    await client.backend.close()


@needs_redis
@pytest.mark.parametrize("seconds", [-3600.0, -0.2, 0.2, 3600.0])
async def test_a_clock_change_of_the_server_neither_turns_back_nor_stops_any_clock(
    server: RedisConnection, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    one, other = Client(server, 100), Client(server, 100)
    await one.limiter.acquire()
    await other.limiter.acquire()
    before = one.backend.clock(), other.backend.clock()
    replace = RedisConnection.replace

    async def with_another_clock(
        self: RedisConnection, key: str, stamp: bytes, value: bytes
    ) -> redis_backend._RedisReply:
        reply = await replace(self, key, stamp, value)
        return reply._replace(low=reply.low + seconds, high=reply.high + seconds)

    monkeypatch.setattr(RedisConnection, "replace", with_another_clock)
    with anyio.fail_after(10):
        for _ in range(5):
            await one.limiter.acquire()
            await other.limiter.acquire()
    after = one.backend.clock(), other.backend.clock()
    assert after[0] > before[0]
    assert after[1] > before[1]
    assert after[0] == pytest.approx(after[1], abs=0.05)
    for each in (one, other):
        await each.backend.close()


@needs_redis
@pytest.mark.parametrize("password", [None, Secret("wrong-one")])
async def test_a_wrong_password_is_reported_and_not_printed(tmp_path: Path, password: Secret | None) -> None:
    redis = RedisServer(tmp_path, "--requirepass", "right-one")
    try:
        with pytest.raises(SettingsError, match="cannot use") as caught:
            await RedisConnection(redis.address, password).open()
        right = RedisConnection(redis.address, Secret("right-one"))
        await right.open()
        await right.close()
    finally:
        redis.kill()
    assert redis.address in str(caught.value)
    assert "-one" not in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_redis
async def test_a_user_and_a_certificate_authority_are_used_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_backend, "TIMEOUT", 10.0)  # handshakes are slow on a busy machine
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    files = {name: tmp_path / name for name in ("cert", "key", "ca", "other")}
    certificate.cert_chain_pems[0].write_to_path(files["cert"])
    certificate.private_key_pem.write_to_path(files["key"])
    authority.cert_pem.write_to_path(files["ca"])
    trustme.CA().cert_pem.write_to_path(files["other"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tls = ["--tls-port", str(port), "--tls-cert-file", str(files["cert"]), "--tls-key-file", str(files["key"])]
    user = [
        "--user",
        "auditor",
        "on",
        ">open",
        "~auditor:*",
        "+eval",
        "+getrange",
        "+set",
        "+time",
        "+client",
        "+select",
    ]
    redis = RedisServer(tmp_path, *tls, "--tls-ca-cert-file", str(files["ca"]), "--tls-auth-clients", "no", *user)
    address = f"rediss://127.0.0.1:{port}/0"
    try:
        right = RedisConnection(address, Secret("open"), username="auditor", ca_file=str(files["ca"]))
        await right.open("account")
        client = Client(right, 100)
        for _ in range(3):
            await client.limiter.acquire()
        assert redis.get(key_of("account"))
        await client.backend.close()
        await right.close()
        for username, ca_file in (("nobody", "ca"), ("auditor", "other"), ("auditor", "missing")):
            path = str(files.get(ca_file, tmp_path / ca_file))
            with pytest.raises(SettingsError, match=r"cannot use rediss://.*; correct the address, the user"):
                await RedisConnection(address, Secret("open"), username=username, ca_file=path).open()
    finally:
        redis.kill()


async def test_a_wrong_address_is_reported() -> None:
    with pytest.raises(
        SettingsError, match=r"quota_sharing: redis: cannot use redis://127\.0\.0\.1:1/0: .*; correct the"
    ):
        await RedisConnection("redis://127.0.0.1:1/0").open()


def test_a_missing_library_is_reported_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(SettingsError, match=re.escape(describe_extra("redis"))):
        RedisConnection("redis://127.0.0.1:1/0")


MOMENTS = st.lists(st.floats(0.001, 1.0), max_size=60)


@given(MOMENTS, st.integers(1, 20), st.integers(0, 20))
def test_sends_keep_their_numbers_in_a_larger_memory(distances: list[float], capacity: int, more: int) -> None:
    memory, larger = allocate_log(capacity), allocate_log(capacity + more)
    moments, moment = SendLog(memory), 1000.0
    for distance in distances:
        moment += distance
        moments.append(moment)
    head = size_for(0) - 8
    quota = bytes(range(256)) * 4
    whole = memoryview(bytearray(quota[:head] + bytes(memory)))
    moved = memoryview(bytearray(head + len(larger) * 8))
    copy_quota(whole, moved)
    found = SendLog(moved[head:].cast("d"))
    assert moved[:head] == whole[:head]
    assert [found.latest(back) for back in range(1, len(moments) + 1)] == [
        moments.latest(back) for back in range(1, len(moments) + 1)
    ]
    if distances:
        found.correct(len(distances) - 1, 7.0)
        assert found.latest(1) == 7.0
    assert found.append(9999.0) == len(distances)


STEPS = st.lists(st.tuples(st.sampled_from(["reserve", "throttled", "success", "pause"]), st.floats(0, 2)), max_size=40)


@given(STEPS, st.sampled_from([0.5, 10.0, 300.0, math.inf]))
def test_another_participant_loads_what_was_stored(steps: list[tuple[str, float]], configured_rate: float) -> None:
    memory = memoryview(bytearray(size_for(64)))
    writer, reader, one = (
        SharedQuota(configured_rate, memory),
        SharedQuota(configured_rate, memory),
        Participant(configured_rate),
    )
    now, sent_at = 1000.0, 1000.0
    writer.load(configured_rate, 1.0, now)
    writer.reserve(one, 1, now)
    for step, seconds in steps:
        now += seconds
        if step == "reserve":
            sent_at = writer.reserve(one, 1, now)[0]
        elif step == "throttled":
            writer.on_throttled(sent_at, now, now)
        elif step == "success":
            writer.rate.on_success(sent_at)
        else:
            writer.pause(now + seconds, now)
        writer.reserve(one, 1, now)
        writer.store(1.0)
        reader.load(configured_rate, 1.0, now)
        assert reader.rate.state == writer.rate.state
        assert (reader.rate.configured_rate, reader.paused_until) == (writer.rate.configured_rate, writer.paused_until)
