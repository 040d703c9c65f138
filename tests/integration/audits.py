"""Audits that are interrupted and resumed, and what the platform recorded of their requests."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import anyio

import auditor
from auditor.simulator.server import Simulator
from auditor.simulator.world import SimulatedDevice, World
from tests.integration.test_audit import account_table, assert_matches, settings_for

SLOW_LATENCY = (0.01, 0.03)
"""Seconds per answer, enough to interrupt an audit."""


def plain_world(devices: int, *, seed: int = 0) -> World:
    """Return a world in which every device answers with one page."""
    return World(devices, seed=seed, missing=0, silent=0, inactive=0, large=0)


def settings_at(folder: Path, platform: Simulator, **changes: object) -> auditor.Settings:
    """Return settings for one account with four requests in flight."""
    return settings_for(folder, account_table(platform.endpoint, folder), **{"concurrency": 4, **changes})


def write_mixed_fleet(world: Iterable[SimulatedDevice], path: Path) -> None:
    """Write every other device by its names, and the others by iot_id."""
    rows = (
        f"{device.product_key},{device.device_name}," if device.index % 2 else f",,{device.iot_id}" for device in world
    )
    path.write_text("\n".join(("product_key,device_name,iot_id", *rows)) + "\n")


async def stop_after(
    answers: int, platform: Simulator, start: Callable[[auditor.StopToken], Awaitable[auditor.AuditResult]]
) -> auditor.AuditResult:
    """Run an audit and request its end after a number of answers."""
    stop = auditor.StopToken()

    async def request_stop() -> None:
        while platform.counts.answered < answers:  # noqa: ASYNC110  the platform has no event
            await anyio.sleep(0.002)
        stop.request("stopped by a test")

    async with anyio.create_task_group() as group:
        group.start_soon(request_stop)
        result = await start(stop)
        group.cancel_scope.cancel()
    return result


async def interrupted_audit(
    platform: Simulator, settings: auditor.Settings, *, answers: int = 10, **more: Any
) -> auditor.AuditResult:
    """Run an audit that ends with some devices answered and some pending."""
    result = await stop_after(answers, platform, lambda stop: auditor.run_audit(settings, stop=stop, **more))
    assert result.manifest.state == "partial"
    assert 0 < result.manifest.devices.pending < result.manifest.fleet.devices
    return result


def query_counts(platform: Simulator) -> Counter[str]:
    """Return how often each device was queried."""
    counts: Counter[str] = Counter()
    for (device, _page), times in (platform.responses or {}).items():
        counts[device] += times
    return counts


def query_names(world: Iterable[SimulatedDevice]) -> set[str]:
    """Return the names under which devices may have been queried."""
    return {name for device in world for name in (device.iot_id, f"{device.product_key}/{device.device_name}")}


def assert_queried_once(platform: Simulator, world: World) -> None:
    counts = query_counts(platform)
    assert counts.keys() <= query_names(world)
    assert (len(counts), set(counts.values())) == (len(world), {1})


def assert_complete_and_correct(world: Iterable[SimulatedDevice], result: auditor.AuditResult) -> None:
    assert (result.manifest.state, result.exit_code, result.manifest.error) == ("complete", 0, None)
    assert auditor.verify_run(result.folder) == []
    assert_matches(world, result.folder)
    left_over = [path.name for path in result.folder.iterdir() if path.name.startswith(".") or path.suffix == ".new"]
    assert left_over == []


def folder_contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return each file's bytes and modification time."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
