"""What a Redis whose clock lies can make several processes send. Time is simulated."""

import math
from bisect import bisect_left
from collections.abc import Callable

import pytest

from auditor.resilience.quota_backends import ClockAheadError, QuotaLostError
from auditor.resilience.redis_backend import MAX_DRIFT, MAX_JUMP, RedisBackend, RedisConnection, _RedisReply
from auditor.resilience.shared_quota import Command, NotDue, Participant, Permit, SharedQuota

pytestmark = pytest.mark.anyio

RATE, STEP = 20.0, 0.005
EPOCH = 1.9e9

ServerClock = Callable[[float], float]

CLOCKS: dict[str, ServerClock] = {
    "honest": lambda now: now,
    "slow by half a percent": lambda now: 0.995 * now,
    "fast by half a percent": lambda now: 1.005 * now,
    "twice as fast": lambda now: 2 * now,
    "a quarter too fast": lambda now: 1.25 * now,
    "2% too fast": lambda now: 1.02 * now,
    "ten times as fast": lambda now: 10 * now,
    "a saw": lambda now: now + 20 * (now // 4 % 2),
    "small jumps": lambda now: now + 0.2 * (now // 1),
    "one jump": lambda now: now + 30 * (now > 5),
    "a clock that is corrected": lambda now: now + 0.2 * (now > 5),
}
HONEST = {"honest", "slow by half a percent", "fast by half a percent", "a clock that is corrected"}


class Machine:
    """The time of all processes, which is the true one, and a server that speaks of its own."""

    def __init__(self, server_clock: ServerClock) -> None:
        self.now, self._server_clock = 0.0, server_clock
        self._value = b""

    def monotonic(self) -> float:
        return 1_000.0 + self.now

    def _reply(self, stored: bytes | None) -> _RedisReply:
        ahead = EPOCH + self._server_clock(self.now) - self.monotonic()
        return _RedisReply(ahead - 0.0005, ahead + 0.0005, stored)

    async def check(self, key: str) -> _RedisReply:
        return self._reply(None)

    async def replace(self, key: str, stamp: bytes, value: bytes) -> _RedisReply:
        if self._value[:8] != stamp:
            return self._reply(self._value)
        self._value = value
        return self._reply(None)

    def connect(self) -> RedisConnection:
        connection = RedisConnection("redis://127.0.0.1:1/0")
        reply = self._reply(None)
        connection.offset = (reply.low + reply.high) / 2
        connection.check = self.check  # type: ignore[method-assign]
        connection.replace = self.replace  # type: ignore[method-assign]
        return connection


class Process:
    """Takes as many permits as it gets, from the moment ``started``, and records when it sends."""

    def __init__(self, machine: Machine, started: float) -> None:
        self.started, self._machine = started, machine
        self._participant = Participant(RATE)
        self._permit: Permit | None = None
        self._next_at = 0.0
        self.backend: RedisBackend | None = None

    async def run(self) -> int:
        """Do what is due now; return the number of requests sent."""
        if self._machine.now < self.started:
            return 0
        if self.backend is None:
            self.backend = RedisBackend(self._machine.connect(), "account", RATE)
        now = self.backend.clock()
        if self._permit is None and now >= self._next_at:
            result = await self.backend.transaction(Command(SharedQuota.reserve, (self._participant, 1)))
            if isinstance(result, NotDue):
                self._next_at = min(result.until, now + 0.5)
            else:
                self._permit = result
        if self._permit is None or now < self._permit.at:
            return 0
        self._permit = None
        return 1


async def sends(machine: Machine, processes: list[Process], seconds: float) -> list[float]:
    """Return the moments of all requests."""
    sent: list[float] = []
    while machine.now < seconds:
        for process in processes:
            sent += [machine.now] * await process.run()
        machine.now += STEP
    for process in processes:
        if process.backend is not None:
            await process.backend.close()
    return sent


def in_any_second(sent: list[float]) -> int:
    return max(bisect_left(sent, each + 1 - STEP / 2) - at for at, each in enumerate(sent))


@pytest.mark.parametrize("name", CLOCKS)
@pytest.mark.parametrize("starts", [[0.0], [0.0, 0.3], [0.0, 0.1, 0.4]], ids=len)
async def test_no_clock_makes_processes_send_much_more_than_the_quota(
    name: str, starts: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(CLOCKS[name])
    monkeypatch.setattr("time.monotonic", machine.monotonic)
    sent = await sends(machine, [Process(machine, each) for each in starts], 20.0)
    # One more permit than a tenth: a process that joins reads a clock that has gained up to 0.25 s on the others'.
    assert in_any_second(sent) <= 1.1 * RATE + 1
    if name in HONEST:
        assert len(sent) >= 0.92 * RATE * 20


async def test_our_clock_never_jumps_ahead_with_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(CLOCKS["2% too fast"])
    monkeypatch.setattr("time.monotonic", machine.monotonic)
    process = Process(machine, 0.0)
    while machine.now < 10.0:
        await process.run()
        assert process.backend is not None
        gained = process.backend.clock() - EPOCH - machine.now
        assert gained <= MAX_JUMP + MAX_DRIFT * machine.now + 0.001
        machine.now += STEP
    assert process.backend is not None
    await process.backend.close()


async def backend_of(machine: Machine) -> RedisBackend:
    backend = RedisBackend(machine.connect(), "account", RATE)
    await backend.transaction(Command(SharedQuota.refresh))
    return backend


@pytest.mark.parametrize("factor", [1.0, 1.005, 0.5, 1.25, 2.0])
async def test_a_clock_that_is_still_too_fast_is_not_shared_again(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(lambda now: factor * now)
    monkeypatch.setattr("time.monotonic", machine.monotonic)
    backend = await backend_of(machine)
    for _ in range(5):
        machine.now += 1.0
        if factor > 1.02:
            with pytest.raises(QuotaLostError, match="runs too fast"):
                await backend._check()
        else:
            await backend._check()
    await backend.close()


async def test_a_clock_that_jumped_once_is_shared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(CLOCKS["one jump"])
    monkeypatch.setattr("time.monotonic", machine.monotonic)
    backend = await backend_of(machine)
    machine.now = 6.0
    with pytest.raises(ClockAheadError, match="jumped ahead"):
        await backend._transact(Command(SharedQuota.refresh))
    machine.now = 7.0
    await backend._check()
    await backend.close()


async def test_a_process_that_is_alone_because_of_a_clock_expects_two_others(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(CLOCKS["twice as fast"])
    monkeypatch.setattr("time.monotonic", machine.monotonic)
    sent = await sends(machine, [Process(machine, 0.0)], 20.0)
    late = [each for each in sent if each > 3]
    assert len(late) == pytest.approx(17 * RATE / 3, abs=8)
    assert math.isclose(late[-1], 20.0, abs_tol=0.2)
