"""What the tables of a run should have, computed from the simulator's store without any of the program's readers."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

import auditor
from auditor.simulator.releases import FirmwareStore, SimulatedJob, task_message
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.integration.test_audit import account_table, settings_for

OPERATIONS = ("ListOTAFirmware", "ListOTAJobByFirmware", "ListOTATaskByJob")

Rows = list[tuple[Any, ...]]


def released_settings(
    folder: Path, platform: Simulator, *, account: dict[str, Any] | None = None, **changes: Any
) -> auditor.Settings:
    """Settings for one account that read released firmware, of every age."""
    table = account_table(platform.endpoint, folder, **(account or {}))
    return settings_for(folder, table, **{"released": True, "max_job_age": "999d", **changes})


def read_rows(folder: Path, query: str) -> Rows:
    """The rows of a query, in which `firmware` and `tasks` are the files of a run."""
    with duckdb.connect() as database:
        for name in ("firmware", "tasks"):
            database.execute(f"CREATE VIEW {name} AS FROM read_parquet('{folder / f'{name}.parquet'}')")
        return database.execute(query).fetchall()


def at(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).replace(tzinfo=None)


def expected_firmware(store: FirmwareStore) -> Rows:
    return sorted(
        (
            store.world.products[each.product].product_key, each.version.module_name, each.version.module_version,
            each.source.module_version if each.source else None, each.firmware_id,
            "verified" if each.verified else "unverified", "difference" if each.source else "full", at(each.created),
        )
        for each in store.firmware.values()
    )  # fmt: skip


def expected_jobs(store: FirmwareStore) -> Rows:
    return sorted(
        (job.firmware.firmware_id, job.job_id, store.job_status(job), at(job.created)) for job in store.jobs.values()
    )


def expected_tasks(store: FirmwareStore, jobs: Iterable[SimulatedJob] | None = None) -> Rows:
    """Each device that a job updates, and how that ended."""
    rows = []
    for job in store.jobs.values() if jobs is None else jobs:
        for task in store.tasks_of(job):
            device = store.world.device(task.index)
            rows.append(
                (
                    device.product_key, device.device_name, device.iot_id, job.firmware.version.module_name,
                    job.firmware.version.module_version, task.status, task_message(task) or None, job.job_id,
                )
            )  # fmt: skip
    return sorted(rows, key=repr)


def assert_released(world: World, folder: Path, jobs: Iterable[SimulatedJob] | None = None) -> None:
    """Check that both tables of a run have exactly what the platform has; of tasks, those of ``jobs``."""
    store = FirmwareStore(world)
    columns = "product_key, module_name, version, source_version, firmware_id, verification, package_type, created_at"
    assert sorted(read_rows(folder, f"SELECT {columns} FROM firmware")) == expected_firmware(store)
    of_job = "SELECT firmware_id, job.job_id, job.job_status, job.created_at FROM (SELECT *, unnest(jobs) AS job FROM firmware)"
    assert sorted(read_rows(folder, of_job)) == expected_jobs(store)
    columns = "product_key, device_name, iot_id, module_name, version, task_status, task_message, job_id"
    assert sorted(read_rows(folder, f"SELECT {columns} FROM tasks"), key=repr) == expected_tasks(store, jobs)


def requests_by_operation(platform: Simulator) -> dict[str, int]:
    """Requests for releases so far, of a platform with ``record_arrivals``."""
    return {name: len(platform.arrivals_by_operation[name]) for name in OPERATIONS}
