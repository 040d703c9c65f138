import time
from collections import Counter
from collections.abc import Iterator

import anyio
import pytest
from anyio.lowlevel import checkpoint

from auditor.concurrency import StopToken
from auditor.engine.worker_pool import MAX_PAUSED_PER_WORKER, run_workers
from auditor.errors import AccountStoppedError, RunNotWritableError
from auditor.models import Device, DeviceResult, Outcome
from auditor.resilience.retry import PausedTasks

pytestmark = pytest.mark.anyio


class Source:
    """Devices by number, counting how many were pulled."""

    def __init__(self, devices: int) -> None:
        self.pulled = 0
        self._devices = devices

    def __iter__(self) -> Iterator[Device]:
        return self

    def __next__(self) -> Device:
        if self.pulled == self._devices:
            raise StopIteration
        self.pulled += 1
        return Device("demo", "p1", f"device{self.pulled}", None)


def outcome_of(device: Device) -> Outcome:
    return DeviceResult(device, "empty", (), 0, 1, 1, None, 0.0)


class CountingFetch:
    """A ``fetch`` and a ``write`` that keep count."""

    def __init__(self) -> None:
        self.fetched: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.in_flight = 0
        self.max_in_flight = 0

    async def fetch(self, device: Device) -> Outcome:
        self.fetched[str(device)] += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            for _ in range(len(self.fetched) % 3 + 1):
                await checkpoint()
        finally:
            self.in_flight -= 1
        return outcome_of(device)

    async def write(self, outcome: Outcome) -> None:
        self.written[str(outcome.device)] += 1


@pytest.mark.parametrize(
    ("devices", "concurrency"), [(0, 1), (0, 8), (1, 1), (1, 8), (7, 8), (8, 8), (1000, 1), (1000, 64)]
)
async def test_every_device_is_fetched_once_and_written_once(devices: int, concurrency: int) -> None:
    counting = CountingFetch()
    await run_workers(Source(devices), counting.fetch, counting.write, concurrency=concurrency, stop=StopToken())
    expected = {f"p1/device{number}": 1 for number in range(1, devices + 1)}
    assert counting.fetched == expected
    assert counting.written == expected
    assert counting.max_in_flight == min(devices, concurrency)


async def test_the_source_is_never_pulled_ahead_of_the_workers() -> None:
    source, written = Source(500), 0

    async def fetch(device: Device) -> Outcome:
        await checkpoint()
        assert source.pulled - written <= 16
        return outcome_of(device)

    async def write(_outcome: Outcome) -> None:
        nonlocal written
        await checkpoint()
        assert source.pulled - written <= 16
        written += 1

    await run_workers(source, fetch, write, concurrency=16, stop=StopToken())
    assert written == 500


async def test_a_slow_device_delays_no_other() -> None:
    counting, slow = CountingFetch(), anyio.Event()

    async def fetch(device: Device) -> Outcome:
        if device.device_name == "device1":
            await slow.wait()
        return await counting.fetch(device)

    async def write(outcome: Outcome) -> None:
        await counting.write(outcome)
        if len(counting.written) == 99:
            slow.set()

    with anyio.fail_after(5):
        await run_workers(Source(100), fetch, write, concurrency=2, stop=StopToken())
    assert len(counting.written) == 100


async def test_a_stopped_account_cancels_the_rest_and_is_raised_unwrapped() -> None:
    source, cancelled, written = Source(1000), 0, []

    async def fetch(device: Device) -> Outcome:
        nonlocal cancelled
        if device.device_name == "device20":
            raise AccountStoppedError("demo", "refused")
        if source.pulled >= 15:
            try:
                await anyio.sleep(60)
            except anyio.get_cancelled_exc_class():
                cancelled += 1
                raise
        await checkpoint()
        return outcome_of(device)

    async def write(outcome: Outcome) -> None:
        written.append(outcome)

    with anyio.fail_after(5), pytest.raises(AccountStoppedError, match="refused"):
        await run_workers(source, fetch, write, concurrency=10, stop=StopToken())
    assert source.pulled == 20
    assert cancelled > 0
    assert 10 <= len(written) < 20 - cancelled


async def test_the_first_of_several_stops_is_raised() -> None:
    async def fetch(device: Device) -> Outcome:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01 if device.device_name == "device1" else 0.03)
        raise AccountStoppedError("demo", str(device.device_name))

    with pytest.raises(AccountStoppedError, match=r"device1$"):
        await run_workers(Source(5), fetch, CountingFetch().write, concurrency=5, stop=StopToken())


async def test_a_run_that_cannot_be_written_ends_the_queries() -> None:
    counting = CountingFetch()

    async def write(_outcome: Outcome) -> None:
        raise RunNotWritableError("full")

    with pytest.raises(RunNotWritableError, match="full"):
        await run_workers(Source(1000), counting.fetch, write, concurrency=4, stop=StopToken())
    assert len(counting.fetched) <= 8


async def test_a_stop_request_lets_running_fetches_finish_and_pulls_nothing_new() -> None:
    source, stop, counting = Source(1000), StopToken(drain_seconds=5), CountingFetch()

    async def fetch(device: Device) -> Outcome:
        if source.pulled == 50:
            stop.request("enough")
            stop.request("later")
        await anyio.sleep(0.001)
        return await counting.fetch(device)

    began = time.monotonic()
    await run_workers(source, fetch, counting.write, concurrency=10, stop=stop)
    assert time.monotonic() - began < 4
    assert stop.reason == "enough"
    assert 50 <= source.pulled <= 60
    assert len(counting.written) == source.pulled


async def test_after_a_stop_request_no_device_is_fetched() -> None:
    source, stop, counting = Source(10), StopToken(), CountingFetch()
    stop.request("before it began")
    with anyio.fail_after(1):
        await run_workers(source, counting.fetch, counting.write, concurrency=4, stop=stop)
    assert source.pulled == 0
    assert not counting.fetched


async def test_the_drain_is_bounded() -> None:
    stop, counting = StopToken(drain_seconds=0.05), CountingFetch()

    async def fetch(device: Device) -> Outcome:
        if device.device_name == "device3":
            stop.request("now")
        if device.device_name in {"device1", "device2"}:
            await anyio.sleep(60)
        return await counting.fetch(device)

    began = time.monotonic()
    await run_workers(Source(1000), fetch, counting.write, concurrency=3, stop=stop)
    assert 0.048 <= time.monotonic() - began < 2  # a loop rounds its timers to milliseconds
    assert set(counting.written) == {"p1/device3"}


async def test_an_unexpected_error_is_raised_unwrapped() -> None:
    async def fetch(device: Device) -> Outcome:
        if device.device_name == "device5":
            raise ValueError("a bug")
        return outcome_of(device)

    with pytest.raises(ValueError, match="a bug"):
        await run_workers(Source(100), fetch, CountingFetch().write, concurrency=3, stop=StopToken())


async def test_an_error_of_the_source_is_not_mistaken_for_its_end() -> None:
    def broken() -> Iterator[Device]:
        yield Device("demo", None, None, "i1")
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await run_workers(broken(), CountingFetch().fetch, CountingFetch().write, concurrency=3, stop=StopToken())


async def test_cancelling_from_outside_cancels_the_workers() -> None:
    counting = CountingFetch()

    async def fetch(device: Device) -> Outcome:
        await anyio.sleep(60)
        return outcome_of(device)

    with anyio.move_on_after(0.05) as scope:
        await run_workers(Source(100), fetch, counting.write, concurrency=3, stop=StopToken())
    assert scope.cancelled_caught
    assert not counting.written


async def test_one_stop_request_ends_two_pools() -> None:
    stop, counting = StopToken(), CountingFetch()

    async def fetch(device: Device) -> Outcome:
        await anyio.sleep(0.001)
        return await counting.fetch(device)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(lambda: run_workers(Source(10**9), fetch, counting.write, concurrency=4, stop=stop))
            await anyio.sleep(0.05)
            stop.request("both")
    assert counting.in_flight == 0


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_fetch_that_pauses_holds_no_worker(concurrency: int) -> None:
    paused, counting = PausedTasks(), CountingFetch()
    healthy_written, released, running, max_running = 0, anyio.Event(), 0, 0

    async def fetch(device: Device) -> Outcome:
        nonlocal running, max_running
        running += 1
        max_running = max(max_running, running)
        await checkpoint()
        if int(str(device.device_name).removeprefix("device")) % 10 == 0:
            running -= 1
            with paused:
                await released.wait()
            running += 1
        running -= 1
        return outcome_of(device)

    async def write(outcome: Outcome) -> None:
        nonlocal healthy_written
        await counting.write(outcome)
        healthy_written += not released.is_set()
        if healthy_written == 90:  # nine of ten devices are done while the others wait
            released.set()

    with anyio.fail_after(5):
        await run_workers(Source(100), fetch, write, concurrency=concurrency, stop=StopToken(), paused=paused)
    assert len(counting.written) == 100
    assert set(counting.written.values()) == {1}
    assert (paused.count, paused.on_pause) == (0, None)
    assert max_running <= concurrency + 10


@pytest.mark.parametrize("error", [AccountStoppedError("demo", "refused"), ValueError("a bug")])
async def test_after_an_error_a_pause_starts_no_worker(error: Exception) -> None:
    paused = PausedTasks()

    async def fetch(device: Device) -> Outcome:
        await checkpoint()
        if device.device_name == "device1":
            raise error
        return outcome_of(device)

    with pytest.raises(type(error)):
        await run_workers(Source(9), fetch, CountingFetch().write, concurrency=3, stop=StopToken(), paused=paused)
    assert (paused.count, paused.on_pause) == (0, None)


async def test_paused_fetches_are_limited() -> None:
    paused, source, stop = PausedTasks(), Source(10_000), StopToken()

    async def fetch(device: Device) -> Outcome:
        with paused:
            await anyio.sleep_forever()
        return outcome_of(device)

    async with anyio.create_task_group() as group:
        group.start_soon(
            lambda: run_workers(source, fetch, CountingFetch().write, concurrency=3, stop=stop, paused=paused)
        )
        for _ in range(200):
            await checkpoint()
        assert source.pulled == 3 * MAX_PAUSED_PER_WORKER + 3
        group.cancel_scope.cancel()
