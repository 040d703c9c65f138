import time
from collections import Counter
from collections.abc import Iterator

import anyio
import pytest
from anyio.lowlevel import checkpoint

from auditor.engine.worker_pool import Stop, fan_out
from auditor.errors import AccountStoppedError, RunNotWritableError
from auditor.models import Answered, Device, Outcome

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
    return Answered(device, "empty", (), 0, 1, 1, None, 0.0)


class Asking:
    """A ``fetch`` and a ``write`` that keep count."""

    def __init__(self) -> None:
        self.fetched: Counter[str] = Counter()
        self.written: Counter[str] = Counter()
        self.in_flight = 0
        self.most_in_flight = 0

    async def fetch(self, device: Device) -> Outcome:
        self.fetched[str(device)] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            for _ in range(len(self.fetched) % 3 + 1):
                await checkpoint()
        finally:
            self.in_flight -= 1
        return outcome_of(device)

    async def write(self, outcome: Outcome) -> None:
        self.written[str(outcome.device)] += 1


@pytest.mark.parametrize(
    ("devices", "at_once"), [(0, 1), (0, 8), (1, 1), (1, 8), (7, 8), (8, 8), (1000, 1), (1000, 64)]
)
async def test_every_device_is_fetched_once_and_written_once(devices: int, at_once: int) -> None:
    asking = Asking()
    await fan_out(Source(devices), asking.fetch, asking.write, at_once=at_once, stop=Stop())
    everyone = {f"p1/device{number}": 1 for number in range(1, devices + 1)}
    assert asking.fetched == everyone
    assert asking.written == everyone
    assert asking.most_in_flight == min(devices, at_once)


async def test_the_source_is_never_pulled_further_ahead_than_the_workers() -> None:
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

    await fan_out(source, fetch, write, at_once=16, stop=Stop())
    assert written == 500


async def test_a_slow_device_holds_up_no_other() -> None:
    asking, slow = Asking(), anyio.Event()

    async def fetch(device: Device) -> Outcome:
        if device.device_name == "device1":
            await slow.wait()
        return await asking.fetch(device)

    async def write(outcome: Outcome) -> None:
        await asking.write(outcome)
        if len(asking.written) == 99:
            slow.set()

    with anyio.fail_after(5):
        await fan_out(Source(100), fetch, write, at_once=2, stop=Stop())
    assert len(asking.written) == 100


async def test_a_stopped_account_cancels_the_rest_and_is_raised_plain() -> None:
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
        await fan_out(source, fetch, write, at_once=10, stop=Stop())
    assert source.pulled == 20
    assert cancelled > 0
    assert 10 <= len(written) < 20 - cancelled


async def test_the_first_of_several_stops_is_raised() -> None:
    async def fetch(device: Device) -> Outcome:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01 if device.device_name == "device1" else 0.03)
        raise AccountStoppedError("demo", str(device.device_name))

    with pytest.raises(AccountStoppedError, match=r"device1$"):
        await fan_out(Source(5), fetch, Asking().write, at_once=5, stop=Stop())


async def test_a_run_that_cannot_be_written_ends_the_asking() -> None:
    asking = Asking()

    async def write(_outcome: Outcome) -> None:
        raise RunNotWritableError("full")

    with pytest.raises(RunNotWritableError, match="full"):
        await fan_out(Source(1000), asking.fetch, write, at_once=4, stop=Stop())
    assert len(asking.fetched) <= 8


async def test_a_wish_to_stop_lets_what_is_in_flight_finish_and_pulls_nothing_new() -> None:
    source, stop, asking = Source(1000), Stop(drain_seconds=5), Asking()

    async def fetch(device: Device) -> Outcome:
        if source.pulled == 50:
            stop.wish("enough")
            stop.wish("later")
        await anyio.sleep(0.001)
        return await asking.fetch(device)

    began = time.monotonic()
    await fan_out(source, fetch, asking.write, at_once=10, stop=stop)
    assert time.monotonic() - began < 4
    assert stop.reason == "enough"
    assert 50 <= source.pulled <= 60
    assert len(asking.written) == source.pulled


async def test_after_a_wish_nobody_is_asked_at_all() -> None:
    source, stop, asking = Source(10), Stop(), Asking()
    stop.wish("before it began")
    with anyio.fail_after(1):
        await fan_out(source, asking.fetch, asking.write, at_once=4, stop=stop)
    assert source.pulled == 0
    assert not asking.fetched


async def test_the_drain_is_bounded() -> None:
    stop, asking = Stop(drain_seconds=0.05), Asking()

    async def fetch(device: Device) -> Outcome:
        if device.device_name == "device3":
            stop.wish("now")
        if device.device_name in {"device1", "device2"}:
            await anyio.sleep(60)
        return await asking.fetch(device)

    began = time.monotonic()
    await fan_out(Source(1000), fetch, asking.write, at_once=3, stop=stop)
    assert 0.048 <= time.monotonic() - began < 2  # a loop rounds its timers to milliseconds
    assert set(asking.written) == {"p1/device3"}


async def test_a_bug_is_not_taken_for_data() -> None:
    async def fetch(device: Device) -> Outcome:
        if device.device_name == "device5":
            raise ValueError("a bug")
        return outcome_of(device)

    with pytest.RaisesGroup(ValueError, flatten_subgroups=True):
        await fan_out(Source(100), fetch, Asking().write, at_once=3, stop=Stop())


async def test_a_source_that_breaks_is_not_taken_for_its_end() -> None:
    def broken() -> Iterator[Device]:
        yield Device("demo", None, None, "i1")
        raise OSError("gone")

    with pytest.RaisesGroup(OSError, flatten_subgroups=True):
        await fan_out(broken(), Asking().fetch, Asking().write, at_once=3, stop=Stop())


async def test_cancelling_from_outside_cancels_the_workers() -> None:
    asking = Asking()

    async def fetch(device: Device) -> Outcome:
        await anyio.sleep(60)
        return outcome_of(device)

    with anyio.move_on_after(0.05) as scope:
        await fan_out(Source(100), fetch, asking.write, at_once=3, stop=Stop())
    assert scope.cancelled_caught
    assert not asking.written


async def test_two_fan_outs_end_by_one_wish() -> None:
    stop, asking = Stop(), Asking()

    async def fetch(device: Device) -> Outcome:
        await anyio.sleep(0.001)
        return await asking.fetch(device)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(lambda: fan_out(Source(10**9), fetch, asking.write, at_once=4, stop=stop))
            await anyio.sleep(0.05)
            stop.wish("both")
    assert asking.in_flight == 0
