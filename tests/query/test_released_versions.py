"""Which versions are released: by the jobs that install them, or by their verification where jobs are unknown."""

from collections.abc import Mapping, Sequence

import duckdb
import pytest

from auditor.query.run_views import released_versions_query
from auditor.runs.views import FIRMWARE_COLUMNS, TASK_COLUMNS

Job = tuple[str, str, str]
"""Status, type and target of a job."""

UPGRADE, VERIFY = "UPGRADE_FIRMWARE", "VERIFY_FIRMWARE"


def released(
    jobs: Sequence[Job] | None, tasks: Sequence[str] = (), *, running: int = 0, verification: str = "unverified"
) -> bool:
    """Whether a version is released whose jobs, and tasks of the first job, these are; 100 devices have the module."""
    with duckdb.connect() as database:
        for table, columns in (("firmware", FIRMWARE_COLUMNS), ("tasks", TASK_COLUMNS)):
            database.execute(f"CREATE TABLE {table} ({', '.join(f'{name} {kind}' for name, kind in columns.items())})")
        rows = ", ".join(
            f"{{'job_id': 'j{at}', 'job_status': '{status}', 'job_type': '{kind}', 'selection_type': 'STATIC', "
            f"'target_selection': '{target}', 'created_at': NULL, 'scheduled_at': NULL, 'ended_at': NULL}}"
            for at, (status, kind, target) in enumerate(jobs or ())
        )
        found = "NULL" if jobs is None else f"[{rows}]"
        database.execute(
            "INSERT INTO firmware BY NAME SELECT 'eu' AS account, 'p' AS product_key, 'Wifi' AS module_name, "
            f"'2.0' AS version, '{verification}' AS verification, TIMESTAMP '2026-11-01' AS created_at, {found} AS jobs"
        )
        for at, status in enumerate(tasks):
            database.execute(
                "INSERT INTO tasks BY NAME SELECT 'eu' AS account, 'p' AS product_key, $1 AS device_name, "
                "'wifi' AS module_name, '2.0' AS version, $2 AS task_status, 'j0' AS job_id",
                [f"device{at}", status],
            )
        counts: Mapping[str, int] = {"1.0": 100 - running, "2.0": running}
        versions = ", ".join(f"('eu', 'p', 'wifi', '{version}', {devices})" for version, devices in counts.items())
        query = f"FROM (VALUES {versions}) t(account, product_key, module_name, module_version, devices)"
        ((result,),) = database.execute(
            f"SELECT released FROM ({released_versions_query(query, 0.1)}) WHERE version = '2.0'"
        ).fetchall()
    return bool(result)


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([], False),
        ([("PLANNED", UPGRADE, "ALL")], False),
        ([("IN_PROGRESS", UPGRADE, "ALL")], True),
        ([("COMPLETED", UPGRADE, "GRAY")], True),
        ([("COMPLETED", VERIFY, "SPECIFIC")], False),
        ([("CANCELED", UPGRADE, "ALL")], False),
        ([("COMPLETED", VERIFY, "SPECIFIC"), ("IN_PROGRESS", UPGRADE, "GROUP")], True),
        ([("IN_PROGRESS", UPGRADE, "SPECIFIC")], False),
        ([("IN_PROGRESS", UPGRADE, "SPECIFIC"), ("PLANNED", UPGRADE, "ALL")], False),
    ],
)
def test_a_job_that_was_started_for_more_than_selected_devices_releases(*, jobs: list[Job], expected: bool) -> None:
    assert released(jobs) is expected


@pytest.mark.parametrize(("tasks", "expected"), [(["CANCELED"] * 20, False), (["SUCCEEDED"], True), (["FAILED"], True)])
def test_a_cancelled_job_was_started_if_it_tried_a_device(*, tasks: list[str], expected: bool) -> None:
    assert released([("CANCELED", UPGRADE, "ALL")], tasks) is expected


@pytest.mark.parametrize(("devices", "expected"), [(9, False), (10, True)])
def test_a_version_for_selected_devices_is_a_beta_until_they_are_many(*, devices: int, expected: bool) -> None:
    job = ("IN_PROGRESS", UPGRADE, "SPECIFIC")
    assert released([job], ["QUEUED"] * devices) is expected
    assert released([job], running=devices) is expected


def test_without_known_jobs_a_verified_version_is_released() -> None:
    assert released(None, verification="verified")
    assert not released(None)
    assert not released([], verification="verified")
