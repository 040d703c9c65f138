"""The firmware store of a world, its update jobs, and ListOTAFirmware, ListOTAJobByFirmware and ListOTATaskByJob.

Jobs follow the world: what a device runs on the world's day is what its tasks say. A module that is rolled out has

- a job that verifies the firmware on the first devices, on day 1;
- a wave each day, a job with the devices that the rollout reaches then. Their tasks succeed as soon as a device reports
  the version. Most of the devices that the rollout never reaches are in waves too, and fail;
- a job that was cancelled, with the others of these devices;
- a planned job, with the devices of the next day.

Before that, the version of most devices was installed by a job of 40 days before day 0; older firmware has no job.
Sources: Tuya's and Alibaba's pages of the operations. They give no code for an unknown firmware or job; the codes here
have the form of those for products and devices.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TypeVar

from auditor.client.operations import (
    LIST_OTA_FIRMWARE,
    LIST_OTA_JOB_BY_FIRMWARE,
    LIST_OTA_TASK_BY_JOB,
    MAX_LISTED_TASKS,
    TASK_STATUSES,
)
from auditor.models import ModuleVersion
from auditor.simulator.catalog import SimulatedModule
from auditor.simulator.forms import ResponseForms, time_member
from auditor.simulator.gateway import Parameters, find_product, invalid_page, numbered_values, read_paging_parameter
from auditor.simulator.responses import Document, RequestRejected
from auditor.simulator.world import MS_PER_DAY, SimulatedDevice, World

T = TypeVar("T")

OLD_JOB_DAYS = 40
"""Age, on day 0, of the job that installed the version of most devices."""

VERIFIED_DEVICES = 3
"""Devices on which a firmware is verified."""

MAX_NAMED_DEVICES = 100
"""Device names in one request of ListOTATaskByJob."""

_HOUR = 3_600_000
_OPEN = ("QUEUED", "NOTIFIED", "IN_PROGRESS")
_FAILURES = (
    "OTA_TIMEOUT: the device did not report the new version in time",
    "-1: upgrade failed, the battery is too low",
    "-3: the digest of the package does not match",
)


@dataclass(frozen=True, slots=True)
class SimulatedFirmware:
    """An upgrade package.

    Attributes:
        product, module: numbers in the world, and in the product.
        version, source: version that it installs, and the one that it can be installed on; None: any.
        created: milliseconds since 1970.
        verified: whether it was tested on devices.
    """

    firmware_id: str
    product: int
    module: int
    version: ModuleVersion
    source: ModuleVersion | None
    created: int
    verified: bool


@dataclass(frozen=True, slots=True)
class SimulatedJob:
    """A job that installs firmware. ``wave`` is its day in the rollout; 0: none."""

    job_id: str
    firmware: SimulatedFirmware
    name: str
    wave: int
    created: int


@dataclass(frozen=True, slots=True)
class SimulatedTask:
    """The update of a device by a job; ``order`` is a random number of the device."""

    index: int
    status: str
    order: int


class FirmwareStore:
    """Firmware, jobs and tasks of a world, newest first.

    Attributes:
        firmware: by id.
        jobs: by id.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.firmware: dict[str, SimulatedFirmware] = {}
        self.jobs: dict[str, SimulatedJob] = {}
        self._tasks: dict[tuple[int, int], dict[str, list[SimulatedTask]]] = {}
        for number, product in enumerate(world.products):
            for place, module in enumerate(product.modules):
                self._add_module(number, place, module)

    def jobs_of(self, firmware_id: str) -> list[SimulatedJob]:
        """Return the jobs of a firmware, the newest first."""
        return [job for job in self.jobs.values() if job.firmware.firmware_id == firmware_id][::-1]

    def tasks_of(self, job: SimulatedJob) -> list[SimulatedTask]:
        """Return the tasks of a job; the first call for a module reads all devices of its product."""
        key = job.firmware.product, job.firmware.module
        if key not in self._tasks:
            self._tasks[key] = self._compute_tasks(*key)
        return self._tasks[key].get(job.job_id, [])

    def job_status(self, job: SimulatedJob) -> str:
        """Return the status of a job, which is in progress while a task is open."""
        if job.name in {"planned", "cancelled"}:
            return {"planned": "PLANNED", "cancelled": "CANCELED"}[job.name]
        return "IN_PROGRESS" if any(task.status in _OPEN for task in self.tasks_of(job)) else "COMPLETED"

    def _add_module(self, product: int, place: int, module: SimulatedModule) -> None:
        began, day = self.world.began, self.world.day
        newest, before, source, *_ = module.versions
        self._add_firmware(product, place, before, source, began - 100 * MS_PER_DAY, verified=False)
        created = began - OLD_JOB_DAYS * MS_PER_DAY
        current = self._add_firmware(product, place, newest, None, created - _HOUR, verified=True)
        self._add_job(current, "old", 0, created)
        last = module.last_update_day
        if not day or last is None:
            return
        release = self._add_firmware(
            product, place, module.next_version, None, began + MS_PER_DAY - 2 * _HOUR, verified=True
        )
        self._add_job(release, "verification", 0, began + MS_PER_DAY - _HOUR)
        self._add_job(release, "cancelled", 0, began + MS_PER_DAY)
        for wave in range(1, min(day, last) + 1):
            self._add_job(release, "wave", wave, began + wave * MS_PER_DAY)
        if day < last:
            self._add_job(release, "planned", day + 1, began + day * MS_PER_DAY + 1)

    def _add_firmware(
        self,
        product: int,
        module: int,
        version: ModuleVersion,
        source: ModuleVersion | None,
        created: int,
        *,
        verified: bool,
    ) -> SimulatedFirmware:
        key = self.world.products[product].product_key
        firmware_id = self._id("firmware", key, version.module_name, version.module_version)
        found = SimulatedFirmware(firmware_id, product, module, version, source, created, verified)
        self.firmware[firmware_id] = found
        return found

    def _add_job(self, firmware: SimulatedFirmware, name: str, wave: int, created: int) -> None:
        job_id = self._id("job", firmware.firmware_id, name, str(wave))
        self.jobs[job_id] = SimulatedJob(job_id, firmware, name, wave, created)

    def _id(self, *parts: str) -> str:
        return blake2b(f"{self.world.seed} {' '.join(parts)}".encode(), digest_size=11).hexdigest()

    def _compute_tasks(self, product: int, place: int) -> dict[str, list[SimulatedTask]]:
        own = [job for job in self.jobs.values() if (job.firmware.product, job.firmware.module) == (product, place)]
        jobs = {(job.name, job.wave): job.job_id for job in own}
        tasks: dict[str, list[SimulatedTask]] = defaultdict(list)
        module = self.world.products[product].modules[place]
        name = module.versions[0].module_name
        for device in self._devices(product):
            reported = next((each for each in device.modules if each.module_name == name), None)
            if reported is None:
                continue
            order = self.world.rollout_order(device.index, place)
            if reported == module.versions[0]:
                tasks[jobs["old", 0]].append(SimulatedTask(device.index, "SUCCEEDED", order))
            if (planned := self._planned_task(module, device, reported, order)) is None:
                continue
            kind, wave, status = planned
            if (job_id := jobs.get((kind, wave))) is not None:
                tasks[job_id].append(SimulatedTask(device.index, status, order))
                if wave == 1 and status == "SUCCEEDED" and len(tasks[jobs["verification", 0]]) < VERIFIED_DEVICES:
                    tasks[jobs["verification", 0]].append(SimulatedTask(device.index, status, order))
        return tasks

    def _devices(self, product: int) -> Iterator[SimulatedDevice]:
        layout, devices = self.world.layout, len(self.world)
        for place in range(layout.count_before(product, devices)):
            device = self.world.device(layout.index_at(product, place))
            if device.exists:
                yield device

    def _planned_task(
        self, module: SimulatedModule, device: SimulatedDevice, reported: ModuleVersion, order: int
    ) -> tuple[str, int, str] | None:
        """Return name and day of the job that updates a device, and the status of its task; None: no job does."""
        last = module.last_update_day
        if last is None:
            return None
        wave = module.update_day(order)
        if wave is None:  # the rollout never reaches it
            return ("cancelled", 0, "CANCELED") if order % 4 == 0 else ("wave", 1 + order % last, "FAILED")
        if wave > self.world.day:
            return "planned", wave, "CONFIRM"
        if reported == module.next_version:
            return "wave", wave, "SUCCEEDED"
        if device.reported_day >= wave:
            return "wave", wave, "FAILED"
        return "wave", wave, _OPEN[order % len(_OPEN)]


class ReleaseOperations:
    """The operations that list the firmware of a store, jobs and tasks."""

    def __init__(self, store: FirmwareStore, forms: ResponseForms) -> None:
        self.store, self._forms = store, forms

    def firmware(self, parameters: Parameters) -> Document:
        """Answer ListOTAFirmware: of a product, or of all."""
        page = (
            read_paging_parameter(parameters, "CurrentPage"),
            read_paging_parameter(parameters, "PageSize", LIST_OTA_FIRMWARE.page_size),
        )
        found = [*self.store.firmware.values()][::-1]
        if "ProductKey" in parameters:
            product = find_product(parameters, self.store.world)
            found = [each for each in found if each.product == product]
        if version := parameters.get("DestVersion"):
            found = [each for each in found if each.version.module_version == version]
        listed, document = _page(found, *page)
        return {**document, "firmwareInfo": {"simpleFirmwareInfo": [self._firmware_entry(each) for each in listed]}}

    def jobs(self, parameters: Parameters) -> Document:
        """Answer ListOTAJobByFirmware."""
        size = read_paging_parameter(parameters, "PageSize", LIST_OTA_JOB_BY_FIRMWARE.page_size)
        page = read_paging_parameter(parameters, "CurrentPage")
        if (firmware := self.store.firmware.get(_required(parameters, "FirmwareId"))) is None:
            raise RequestRejected("iot.ota.NotExistedFirmware", "The specified firmware does not exist.")
        listed, document = _page(self.store.jobs_of(firmware.firmware_id), page, size)
        return {**document, "data": {"simpleOTAJobInfo": [self._job_entry(each) for each in listed]}}

    def tasks(self, parameters: Parameters) -> Document:
        """Answer ListOTATaskByJob: of all devices, of one status, or of named devices."""
        size = read_paging_parameter(parameters, "PageSize", LIST_OTA_TASK_BY_JOB.page_size)
        page = read_paging_parameter(parameters, "CurrentPage")
        if page * size > MAX_LISTED_TASKS:
            raise invalid_page("CurrentPage")
        if (job := self.store.jobs.get(_required(parameters, "JobId"))) is None:
            raise RequestRejected("iot.ota.NotExistedJob", "The specified job does not exist.")
        found = self.store.tasks_of(job)
        if status := parameters.get("TaskStatus"):
            if status not in TASK_STATUSES:
                raise RequestRejected("iot.system.IllegalRequest", "The parameter TaskStatus is invalid.")
            found = [task for task in found if task.status == status]
        if names := numbered_values(parameters, "DeviceNames", MAX_NAMED_DEVICES):
            found = [task for task in found if self.store.world.device(task.index).device_name in names]
        listed, document = _page(found, page, size)
        return {**document, "data": {"simpleOTATaskInfo": [self._task_entry(job, task) for task in listed]}}

    def _time(self, name: str, milliseconds: int, index: int) -> Document:
        return time_member(name, milliseconds, self._forms.utc, self._forms.zone, index)

    def _firmware_entry(self, firmware: SimulatedFirmware) -> Document:
        product, position = self.store.world.products[firmware.product], firmware.product + firmware.module
        return {
            "destVersion": firmware.version.module_version,
            "firmwareDesc": "",
            "firmwareId": firmware.firmware_id,
            "firmwareName": f"{firmware.version.module_name} {firmware.version.module_version}",
            "firmwareSign": firmware.firmware_id,
            "firmwareSize": 100_000 + len(firmware.firmware_id) * firmware.module,
            "moduleName": firmware.version.module_name,
            "productKey": product.product_key,
            "productName": product.product_name,
            "signMethod": "MD5",
            "srcVersion": firmware.source.module_version if firmware.source else "",
            "status": 1 if firmware.verified else 0,
            "type": 1 if firmware.source else 0,
            **self._time("utcCreate", firmware.created, position),
            **self._time("utcModified", firmware.created + _HOUR // 2, position),
        }

    def _job_entry(self, job: SimulatedJob) -> Document:
        status, planned = self.store.job_status(job), job.name == "planned"
        entry: Document = {
            "firmwareId": job.firmware.firmware_id,
            "jobId": job.job_id,
            "jobStatus": status,
            "jobType": "VERIFY_FIRMWARE" if job.name == "verification" else "UPGRADE_FIRMWARE",
            "productKey": self.store.world.products[job.firmware.product].product_key,
            "selectionType": "STATIC",
            "tags": {"otaTagDTO": [{"key": "wave", "value": str(job.wave)}]},
            "targetSelection": "SPECIFIC" if job.name == "verification" else "GRAY",
            **self._time("utcCreate", job.created, job.wave),
            **self._time("utcModified", job.created, job.wave),
            **self._time("utcStartTime", job.created + (MS_PER_DAY if planned else 1), job.wave),
        }
        if status in {"COMPLETED", "CANCELED"}:
            entry |= self._time("utcEndTime", job.created + 1_000, job.wave)
        return entry

    def _task_entry(self, job: SimulatedJob, task: SimulatedTask) -> Document:
        device, firmware = self.store.world.device(task.index), job.firmware
        module = self.store.world.products[firmware.product].modules[firmware.module]
        source = module.versions[1 if firmware.version == module.versions[0] else 0]
        return {
            "destVersion": firmware.version.module_version,
            "deviceName": device.device_name,
            "firmwareId": firmware.firmware_id,
            "iotId": device.iot_id,
            "jobId": job.job_id,
            "productKey": device.product_key,
            "productName": self.store.world.products[firmware.product].product_name,
            "progress": {"SUCCEEDED": "100", "IN_PROGRESS": str(task.order % 100)}.get(task.status, "0"),
            "srcVersion": source.module_version,
            "taskDesc": task_message(task),
            "taskId": f"{job.job_id[:12]}{task.index:x}",
            "taskStatus": task.status,
            "timeout": "1440",
            **self._time("utcCreate", job.created, task.index),
            **self._time("utcModified", job.created + task.order % 1_000, task.index),
        }


def task_message(task: SimulatedTask) -> str:
    """Return what the platform says about a task; empty if nothing is wrong with it."""
    if task.status == "CANCELED":
        return "the job was canceled"
    return _FAILURES[task.order % len(_FAILURES)] if task.status == "FAILED" else ""


def _required(parameters: Parameters, name: str) -> str:
    if not (value := parameters.get(name)):
        raise RequestRejected(f"Missing{name}", f"{name} is mandatory for this action.", 400)
    return value


def _page(items: list[T], page: int, size: int) -> tuple[list[T], Document]:
    """Return the items of a page, and the numbers of the list."""
    first, total = (page - 1) * size, len(items)
    numbers: Document = {"currentPage": page, "pageCount": -(-total // size), "pageSize": size, "total": total}
    return items[first : first + size], numbers
