"""A server that speaks Redis's protocol and lies: a named loss of the quota, and never a hang, a crash or a burst."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
import structlog.testing

from auditor.errors import SettingsError
from auditor.resilience import quota_backends, redis_backend
from auditor.resilience.rate_limiter import AdaptiveRateLimiter
from auditor.resilience.redis_backend import ERA, RedisBackend, RedisConnection
from auditor.resilience.retry import MAX_RETRY_AFTER
from auditor.resilience.shared_quota import Participant, SharedQuota, size_for

pytestmark = pytest.mark.anyio

Reply = Callable[[list[bytes]], bytes]

RATE = 50.0


def bulks(*values: bytes) -> bytes:
    return b"*%d\r\n" % len(values) + b"".join(b"$%d\r\n%s\r\n" % (len(each), each) for each in values)


def server_time(now: float, *stored: bytes) -> bytes:
    return bulks(str(int(now)).encode(), str(int(now % 1 * 1e6)).encode(), *stored)


def is_check(arguments: list[bytes]) -> bool:
    return b"KEYS[2]" in arguments[1]


@asynccontextmanager
async def lying(reply: Reply) -> AsyncIterator[str]:
    """A server that replies to each script; gives its address."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                sizes = range(int(line[1:]))
                arguments = [(await reader.readexactly(int((await reader.readline())[1:]) + 2))[:-2] for _ in sizes]
                writer.write(reply(arguments) if arguments[0].upper() == b"EVAL" else b"+OK\r\n")
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()


NO_REPLY = {
    "deeply nested": b"*1\r\n" * 100_000,
    "nested as deep as the interpreter": b"*1\r\n" * 2_000 + b":1\r\n",
    "text in place of an array": b"$2\r\n12\r\n",
    "a negative length": b"*2\r\n$-7\r\n",
    "nothing": b"*-1\r\n",
    "no numbers": bulks(b"1e5", b"0"),
    "a number of 5,000 digits": bulks(b"9" * 5_000, b"0"),
    "errors within": b"*2\r\n-ERR a\r\n-ERR b\r\n",
    "a moment of the universe's end": server_time(1e18),
    "a moment before 1970": bulks(b"-99999999999", b"0"),
}


@pytest.mark.parametrize("name", NO_REPLY)
async def test_a_reply_that_cannot_be_right_is_an_error_at_the_start(name: str) -> None:
    async with lying(lambda _: NO_REPLY[name]) as address:
        with pytest.raises(SettingsError, match=r"cannot use redis://.*(unexpected response|impossible time)"):
            await RedisConnection(address).open()


@asynccontextmanager
async def participant(reply: Reply) -> AsyncIterator[AdaptiveRateLimiter]:
    async with lying(reply) as address:
        connection = RedisConnection(address)
        await connection.open()
        limiter = AdaptiveRateLimiter(RATE, backend=RedisBackend(connection, "account", RATE))
        try:
            yield limiter
        finally:
            await limiter.close()
            await connection.close()


async def lost_reason(limiter: AdaptiveRateLimiter, requests: int = 400) -> str:
    """Acquire permits until the quota is lost, and a few more: why it is lost."""
    with structlog.testing.capture_logs() as logs, anyio.fail_after(60):
        for _ in range(requests):
            await limiter.acquire()
            if logs:
                break
        for _ in range(3):
            limiter.on_success(await limiter.acquire())
    return str(logs[0]["reason"]) if logs else "not lost"


@pytest.mark.parametrize("name", NO_REPLY)
async def test_a_reply_that_cannot_be_right_later_loses_the_quota_and_the_audit_continues(name: str) -> None:
    async with participant(lambda each: server_time(time.time()) if is_check(each) else NO_REPLY[name]) as limiter:
        assert await lost_reason(limiter) in {"an unexpected response", "its clock shows an impossible time"}


async def test_a_clock_that_does_not_advance_loses_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_backend, "MAX_LAG", 0.3)
    now = time.time()
    async with participant(lambda each: server_time(time.time() if is_check(each) else now)) as limiter:
        assert await lost_reason(limiter) == "its time does not advance, or too slowly"


@pytest.mark.slow
@pytest.mark.parametrize("step", [0.9, 5.0, 29.0])
async def test_a_clock_that_jumps_again_and_again_loses_the_quota(step: float) -> None:
    jumps = 0

    def reply(arguments: list[bytes]) -> bytes:
        nonlocal jumps
        jumps += not is_check(arguments)
        return server_time(time.time() + step * jumps)

    async with participant(reply) as limiter:
        assert await lost_reason(limiter) == "its time has jumped ahead"
        assert jumps <= 40 / step + 3


def paused(quota: SharedQuota, now: float) -> None:
    quota.pause(now + 0.3, now)


def sent_ahead(quota: SharedQuota, now: float) -> None:
    for _ in range(60):
        quota.rate.on_sent(now + 290)


async def test_a_pause_that_no_participant_makes_loses_the_quota() -> None:
    written = b""

    def reply(arguments: list[bytes]) -> bytes:
        nonlocal written
        if is_check(arguments) or not written:
            written = b"" if is_check(arguments) else arguments[5]
            return server_time(time.time())
        memory = bytearray(written[16:])
        quota = SharedQuota(RATE, memoryview(memory))
        quota.load(RATE, ERA, time.time())
        quota.pause(time.time() + 299, time.time())
        quota.store(ERA)
        return server_time(time.time(), b"another." + written[8:16] + bytes(memory))

    async with participant(reply) as limiter:
        assert await lost_reason(limiter) == "what was stored there is gone or damaged"


@pytest.mark.parametrize("change", [paused, sent_ahead])
async def test_a_quota_that_never_gives_a_permit_is_lost(
    change: Callable[[SharedQuota, float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota_backends, "MAX_WAIT", 0.5)
    monkeypatch.setattr(quota_backends, "MAX_WAIT_IN_PERMITS", 1)
    writes = 0

    def reply(arguments: list[bytes]) -> bytes:
        nonlocal writes
        now = time.time()
        if is_check(arguments):
            return server_time(now)
        writes += 1
        memory = bytearray(size_for(64))
        quota = SharedQuota(RATE, memoryview(memory))
        quota.reserve(Participant(RATE), 1, now)
        change(quota, now)
        quota.store(ERA)
        stamp = b"lie%05d" % (writes // 2)
        # Every other write succeeds, so that what was written before is what the lie allows.
        return server_time(now) if writes % 2 else server_time(now, stamp + bytes(8) + bytes(memory))

    async with participant(reply) as limiter:
        assert (await lost_reason(limiter)).startswith("it has given no permit for ")


def test_a_wait_may_be_longer_than_the_longest_pause() -> None:
    assert quota_backends.MAX_WAIT > 1.1 * MAX_RETRY_AFTER
