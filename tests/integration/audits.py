"""Audits in several stretches: one is ended in the middle, another goes on, and the platform tells who was asked."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import anyio

import auditor
from auditor.simulator.server import Simulator
from auditor.simulator.world import SimulatedDevice, World
from tests.integration.test_audit import account_table, assert_true_to, settings_for

SLOW = (0.01, 0.03)
"""Seconds that an answer takes: enough to end an audit in its middle."""


def plain(devices: int, *, seed: int = 0) -> World:
    """A world in which every device answers with one page."""
    return World(devices, seed=seed, missing=0, silent=0, inactive=0, large=0)


def settings_at(folder: Path, platform: Simulator, **changes: object) -> auditor.Settings:
    """Settings for one account that asks four devices at a time."""
    return settings_for(folder, account_table(platform.endpoint, folder), **{"at_once": 4, **changes})


def write_mixed_fleet(world: Iterable[SimulatedDevice], path: Path) -> None:
    """Every other device by its names, the others by iot_id."""
    rows = (
        f"{device.product_key},{device.device_name}," if device.index % 2 else f",,{device.iot_id}" for device in world
    )
    path.write_text("\n".join(("product_key,device_name,iot_id", *rows)) + "\n")


async def ended_after(
    answered: int, platform: Simulator, start: Callable[[auditor.Stop], Awaitable[auditor.Result]]
) -> auditor.Result:
    """An audit that is wished to end once the platform has answered so often."""
    stop = auditor.Stop()

    async def wish() -> None:
        while platform.counts.answered < answered:  # noqa: ASYNC110  the platform has no event
            await anyio.sleep(0.002)
        stop.wish("ended by a test")

    async with anyio.create_task_group() as group:
        group.start_soon(wish)
        result = await start(stop)
        group.cancel_scope.cancel()
    return result


async def begun(platform: Simulator, settings: auditor.Settings, *, answered: int = 10, **more: Any) -> auditor.Result:
    """An audit that ended with some devices answered and some pending."""
    result = await ended_after(answered, platform, lambda stop: auditor.run_audit(settings, stop=stop, **more))
    assert result.manifest.state == "partial"
    assert 0 < result.manifest.devices.pending < result.manifest.fleet.devices
    return result


def asked(platform: Simulator) -> Counter[str]:
    """How often each device was asked about."""
    counts: Counter[str] = Counter()
    for (device, _page), times in (platform.answers or {}).items():
        counts[device] += times
    return counts


def names_of(world: Iterable[SimulatedDevice]) -> set[str]:
    """By what a device may have been asked."""
    return {name for device in world for name in (device.iot_id, f"{device.product_key}/{device.device_name}")}


def assert_asked_once(platform: Simulator, world: World) -> None:
    counts = asked(platform)
    assert counts.keys() <= names_of(world)
    assert (len(counts), set(counts.values())) == (len(world), {1})


def assert_complete_and_true(world: Iterable[SimulatedDevice], result: auditor.Result) -> None:
    assert (result.manifest.state, result.exit_code, result.manifest.error) == ("complete", 0, None)
    assert auditor.verify(result.folder) == []
    assert_true_to(world, result.folder)
    left_over = [path.name for path in result.folder.iterdir() if path.name.startswith(".") or path.suffix == ".new"]
    assert left_over == []


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and when it was written."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
