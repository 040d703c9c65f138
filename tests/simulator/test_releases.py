"""The firmware store: its jobs and tasks agree with what the devices of the world run."""

from collections import Counter
from typing import Any

import pytest

from auditor.client.operations import TASK_STATUSES
from auditor.models import ModuleVersion
from auditor.simulator import releases
from auditor.simulator.lifecycle import Lifecycle
from auditor.simulator.releases import FirmwareStore, SimulatedJob
from auditor.simulator.server import Simulator
from auditor.simulator.world import MS_PER_DAY, SimulatedDevice, World
from tests.simulator.api_requests import call

pytestmark = pytest.mark.anyio

QUIET = Lifecycle(connecting=0.1, always_online=0.4)
"""Many devices have not reported since they were to be updated."""


def world_of(day: int, **changes: Any) -> World:
    return World(1_500, **{"products": 3, "day": day, "lifecycle": QUIET, **changes})


def version_of(device: SimulatedDevice, module: str) -> ModuleVersion | None:
    return next((each for each in device.modules if each.module_name == module), None)


def rollouts(store: FirmwareStore) -> dict[tuple[int, int], list[SimulatedJob]]:
    """The jobs of each module that is rolled out, by product and module, except its first verification."""
    found: dict[tuple[int, int], list[SimulatedJob]] = {}
    for job in store.jobs.values():
        if job.name not in {"old", "verification"}:
            found.setdefault((job.firmware.product, job.firmware.module), []).append(job)
    return found


@pytest.mark.parametrize("day", [1, 3, 9, 60])
def test_a_task_succeeded_exactly_if_its_device_reports_the_version(day: int) -> None:
    world = world_of(day)
    store = FirmwareStore(world)
    statuses: Counter[str] = Counter()
    assert rollouts(store)
    for (product, place), jobs in rollouts(store).items():
        module = world.products[product].modules[place]
        of_device: dict[int, str] = {}
        for job in jobs:
            for task in store.tasks_of(job):
                assert task.index not in of_device, "a device is in two waves"
                of_device[task.index] = task.status
        name = module.next_version.module_name
        own = [
            device for device in world if device.exists and device.product_key == world.products[product].product_key
        ]
        for device in own:
            runs_it = version_of(device, name) == module.next_version
            assert (of_device.get(device.index) == "SUCCEEDED") == runs_it
        assert of_device.keys() <= {device.index for device in own if version_of(device, name) is not None}
        statuses.update(of_device.values())
    if day in {3, 9}:
        assert set(statuses) == set(TASK_STATUSES)
    if day == 60:
        assert "CONFIRM" not in statuses


def test_an_open_task_is_of_a_device_that_has_not_reported_since() -> None:
    world = world_of(6)
    store = FirmwareStore(world)
    waves = [job for job in store.jobs.values() if job.name == "wave"]
    tasks = [(job, task, world.device(task.index)) for job in waves for task in store.tasks_of(job)]
    opened = [(job, device) for job, task, device in tasks if task.status in releases._OPEN]
    assert opened
    assert all(device.reported_day < job.wave for job, device in opened)
    assert {store.job_status(job) for job, _ in opened} == {"IN_PROGRESS"}


def test_a_wave_whose_devices_have_all_reported_is_complete() -> None:
    store = FirmwareStore(world_of(6, lifecycle=Lifecycle(always_online=1.0)))
    waves = [job for job in store.jobs.values() if job.name == "wave"]
    assert {store.job_status(job) for job in waves} == {"COMPLETED"}
    assert {task.status for job in waves for task in store.tasks_of(job)} == {"SUCCEEDED", "FAILED"}


def test_there_is_a_wave_each_day_until_the_rollout_has_reached_all_devices() -> None:
    store = FirmwareStore(world_of(60))
    for (product, place), jobs in rollouts(store).items():
        last = store.world.products[product].modules[place].last_update_day
        assert [job.wave for job in jobs if job.name == "wave"] == list(range(1, (last or 0) + 1))
        assert not any(job.name == "planned" for job in jobs)
        assert all(job.created == store.world.began + job.wave * MS_PER_DAY for job in jobs if job.name == "wave")
    assert not rollouts(FirmwareStore(world_of(0)))


def test_a_later_day_keeps_the_jobs_of_earlier_waves() -> None:
    before, after = FirmwareStore(world_of(3)), FirmwareStore(world_of(5))
    waves = [job for job in before.jobs.values() if job.name == "wave"]
    assert waves
    for job in waves:
        succeeded = {task.index for task in before.tasks_of(job) if task.status == "SUCCEEDED"}
        assert succeeded <= {task.index for task in after.tasks_of(after.jobs[job.job_id])}


async def test_the_pages_of_a_job_have_each_task_once_and_its_status_filters_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = world_of(3)
    store = FirmwareStore(world)
    job = max(store.jobs.values(), key=lambda job: len(store.tasks_of(job)))
    expected = [(world.device(task.index).iot_id, task.status) for task in store.tasks_of(job)]
    async with Simulator(world) as platform:

        async def read(**more: str) -> list[dict[str, Any]]:
            entries: list[dict[str, Any]] = []
            for page in range(1, 99):
                numbers = {"CurrentPage": str(page), "PageSize": "7"}
                answer = await call(platform, "ListOTATaskByJob", JobId=job.job_id, **numbers, **more)
                entries += answer["data"]["simpleOTATaskInfo"]
                if page >= answer["pageCount"]:
                    break
            assert len(entries) == answer["total"]
            return entries

        entries = await read()
        assert [(entry["iotId"], entry["taskStatus"]) for entry in entries] == expected
        assert len({entry["taskId"] for entry in entries}) == len(entries)
        for status in TASK_STATUSES:
            filtered = [(entry["iotId"], entry["taskStatus"]) for entry in await read(TaskStatus=status)]
            assert filtered == [each for each in expected if each[1] == status]
        monkeypatch.setattr(releases, "MAX_LISTED_TASKS", 20)
        answer = await call(platform, "ListOTATaskByJob", JobId=job.job_id, CurrentPage="3", PageSize="7")
        assert answer["code"] == "iot.common.InvalidPageParams"
