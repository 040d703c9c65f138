"""The view of devices and releases, compared with the world and its store, device by device."""

import time
from pathlib import Path
from typing import Any

import pytest

import auditor
from auditor.query.sql import query_run
from auditor.simulator.lifecycle import Lifecycle
from auditor.simulator.releases import FirmwareStore, task_message
from auditor.simulator.responses import Document, RequestRejected
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.releases.released import released_settings

pytestmark = pytest.mark.anyio

COLUMNS = "device_name, module_name, module_version, released_version, behind_by, task_status, task_message"


def expected_rows(world: World, store: FirmwareStore, *, tasks: bool = True) -> list[tuple[Any, ...]]:
    """Each module of each device: what was released for it is what the rollout and the job before it installed."""
    last: dict[tuple[int, str], tuple[int, str, str | None]] = {}
    for job in store.jobs.values():
        for task in store.tasks_of(job):
            key = task.index, job.firmware.version.module_name
            entry = (job.created, task.status, task_message(task) or None)
            last[key] = max(last.get(key, entry), entry, key=lambda each: each[0])
    rows = []
    for device in world:
        for reported in device.modules:
            product = world.products[world.layout.position_of(device.index)[0]]
            module = next(each for each in product.modules if each.versions[0].module_name == reported.module_name)
            released = [module.versions[0]]
            if world.day and module.daily_fraction:
                released.append(module.next_version)
            behind = {module.next_version: 0, module.versions[0]: len(released) - 1, module.versions[1]: len(released)}
            status, message = (
                last.get((device.index, reported.module_name), (0, None, None))[1:] if tasks else (None, None)
            )
            rows.append(
                (
                    device.device_name, reported.module_name, reported.module_version, released[-1].module_version,
                    behind.get(reported), status, message,
                )
            )  # fmt: skip
    return sorted(rows, key=repr)


async def read_view(folder: Path) -> list[tuple[Any, ...]]:
    with query_run(folder, f"SELECT {COLUMNS} FROM device_releases") as found:
        return sorted((tuple(row) for row in found.table), key=repr)


@pytest.mark.slow
@pytest.mark.parametrize("day", [0, 5])
async def test_a_device_is_behind_by_the_versions_released_since_its_own(tmp_path: Path, day: int) -> None:
    life = Lifecycle(connecting=0.1, always_online=0.5)
    world = World(200, products=2, large=0, day=day, today=time.time(), lifecycle=life)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        result = await auditor.run_audit(released_settings(tmp_path, platform))
    rows = await read_view(result.folder)
    assert rows == expected_rows(world, FirmwareStore(world))
    assert {row[4] for row in rows} == ({None, 0, 1} if day == 0 else {None, 0, 1, 2})


async def test_firmware_without_known_jobs_is_released_if_it_was_verified(tmp_path: Path) -> None:
    world = World(60, products=1, large=0, day=5, today=time.time())
    world.write_fleet(tmp_path / "fleet.csv")

    def deny(_: object) -> Document:
        raise RequestRejected("Forbidden.RAM", "The user is not authorized.", 403)

    async with Simulator(world) as platform:
        platform._operations["ListOTAJobByFirmware"] = deny
        result = await auditor.run_audit(released_settings(tmp_path, platform))
    assert await read_view(result.folder) == expected_rows(world, FirmwareStore(world), tasks=False)


async def test_a_run_without_releases_has_the_view_with_nothing_known(tmp_path: Path) -> None:
    world = World(20, large=0)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        result = await auditor.run_audit(released_settings(tmp_path, platform, released=False))
    rows = await read_view(result.folder)
    assert len(rows) == sum(len(device.modules) for device in world)
    assert {row[3:] for row in rows} == {(None, None, None, None)}
