"""Audits that read released firmware: the tables are the platform's truth, and nothing of it costs a device."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog

import auditor
from auditor.errors import RunFolderError
from auditor.models import Dialect
from auditor.query.run import TableName
from auditor.query.sql import query_run, query_runs
from auditor.runs.manifest import read_manifest, write_manifest
from auditor.simulator.forms import ResponseForms
from auditor.simulator.gateway import Parameters
from auditor.simulator.lifecycle import Lifecycle
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.releases import FirmwareStore
from auditor.simulator.responses import Document, RequestRejected
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.audits import stop_after, write_mixed_fleet
from tests.integration.test_audit import account_table, assert_matches, settings_for
from tests.releases.released import (
    OPERATIONS,
    assert_released,
    read_rows,
    released_settings,
    requests_by_operation,
)

pytestmark = pytest.mark.anyio

DEVICES = 240

RELEASE_TABLES: tuple[TableName, ...] = ("firmware", "jobs", "tasks", "device_releases")


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world in the middle of its rollouts; its fleet is in a file."""
    world = World(DEVICES, products=2, day=4, today=time.time())
    world.write_fleet(tmp_path / "fleet.csv")
    return world


def reject(platform: Simulator, operation: str, code: str, status: int | None = None) -> None:
    """Let the platform reject all requests of an operation."""

    def answer(_: object) -> Document:
        raise RequestRejected(code, "The user is not authorized to do this.", status)

    platform._operations[operation] = answer


def assert_devices_are_complete(world: World, result: auditor.AuditResult) -> None:
    """Check that nothing is wrong with the devices of a run."""
    assert (result.exit_code, result.manifest.state, result.manifest.error) == (0, "complete", None)
    assert auditor.verify_run(result.folder) == []
    assert_matches(world, result.folder)
    assert [path.name for path in result.folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
@pytest.mark.parametrize(
    "forms",
    [
        ResponseForms(),
        ResponseForms(scalars="text", arrays="bare", empty="null", unused="null", utc="digits"),
        ResponseForms(arrays="wrapped", empty="none", unused="text", utc="milliseconds"),
    ],
    ids=["documented", "bare", "wrapped"],
)
async def test_the_tables_have_what_the_platform_has(
    tmp_path: Path, world: World, dialect: Dialect, forms: ResponseForms
) -> None:
    account: dict[str, Any] = {"dialect": dialect} | ({"region_id": "cn-shanghai"} if dialect == "alibaba" else {})
    async with Simulator(world, dialect=dialect, forms=forms) as platform:
        result = await auditor.run_audit(released_settings(tmp_path, platform, account=account))
    assert_devices_are_complete(world, result)
    assert_released(world, result.folder)
    (info,) = result.manifest.releases
    store = FirmwareStore(world)
    tasks = sum(len(store.tasks_of(job)) for job in store.jobs.values())
    assert (info.firmware, info.jobs, info.tasks) == (len(store.firmware), len(store.jobs), tasks)
    assert info.problems == ()
    assert {"firmware.parquet", "tasks.parquet"} <= {file.name for file in result.manifest.files}
    assert {status for (status,) in read_rows(result.folder, "SELECT DISTINCT task_status FROM tasks")} >= {
        "SUCCEEDED", "FAILED", "CANCELED", "CONFIRM", "NOTIFIED",
    }  # fmt: skip


@pytest.mark.slow
async def test_a_device_that_the_fleet_names_by_id_has_its_tasks(tmp_path: Path, world: World) -> None:
    (tmp_path / "fleet.csv").write_text("iot_id\n" + "".join(f"{device.iot_id}\n" for device in world))
    async with Simulator(world) as platform:
        result = await auditor.run_audit(released_settings(tmp_path, platform))
    assert_released(world, result.folder)


async def test_a_run_that_does_not_read_releases_sends_no_request_for_them(tmp_path: Path, world: World) -> None:
    async with Simulator(world, record_arrivals=True) as platform:
        result = await auditor.run_audit(released_settings(tmp_path, platform, released=False))
        limited = await auditor.run_audit(released_settings(tmp_path, platform, name="limited"), limit=5)
        assert requests_by_operation(platform) == dict.fromkeys(OPERATIONS, 0)
    assert (result.manifest.releases, limited.manifest.releases) == ((), ())
    assert not (result.folder / "firmware.parquet").exists()
    with query_run(result.folder, "SELECT count(*) FROM firmware, jobs, tasks") as found:
        assert [*found.table.to_dicts()] == [{"count_star()": 0}]


@pytest.mark.slow
async def test_the_tasks_of_old_jobs_are_not_read(tmp_path: Path, world: World) -> None:
    store = FirmwareStore(world)
    async with Simulator(world) as platform:
        result = await auditor.run_audit(released_settings(tmp_path, platform, max_job_age="30d"))
        assert_released(world, result.folder, [job for job in store.jobs.values() if job.name != "old"])
        recent = await auditor.run_audit(released_settings(tmp_path, platform, name="recent", max_job_age="36h"))
    newest = [job for job in store.jobs.values() if job.created >= world.began + 3 * 86_400_000]
    in_progress = [job for job in store.jobs.values() if store.job_status(job) == "IN_PROGRESS" and job not in newest]
    assert newest
    assert in_progress
    newest += in_progress  # their tasks change, however old they are
    assert_released(world, recent.folder, newest)


@pytest.mark.slow
async def test_every_page_is_requested_once_and_never_before_the_devices(tmp_path: Path) -> None:
    world = World(1_500, products=1, day=4, today=time.time())
    world.write_fleet(tmp_path / "fleet.csv")
    store = FirmwareStore(world)
    sizes = [len(store.tasks_of(job)) for job in store.jobs.values()]
    assert max(sizes) > 200
    async with Simulator(world, record_arrivals=True) as platform:
        result = await auditor.run_audit(released_settings(tmp_path, platform))
        found = requests_by_operation(platform)
        devices = platform.arrivals_by_operation["ListOTAModuleVersionsByDevice"]
        assert min(platform.arrivals_by_operation["ListOTAFirmware"]) > max(devices)
        settings = released_settings(tmp_path, platform, account={"quota_share": 0.5})
        (plan,) = auditor.plan_audit(settings).accounts
        (limited,) = auditor.plan_audit(settings, limit=5).accounts
    # Of a list with several pages, the first one is read again at the end.
    pages = sum(max(1, -(-size // 100)) + (size > 100) for size in sizes)
    assert found == {"ListOTAFirmware": 1, "ListOTAJobByFirmware": len(store.firmware), "ListOTATaskByJob": pages}
    assert result.manifest.releases[0].requests == sum(found.values())
    assert_released(world, result.folder)
    # Half of the quota of 10 requests a second.
    expected = (sum(found.values()), sum(found.values()) / 5, result.folder.name)
    assert (plan.release_requests, plan.release_seconds, plan.release_run) == expected
    assert plan.calls < len(world) + sum(found.values())  # they are not among the calls
    assert limited.release_requests is None


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(("code", "status"), [("Forbidden.RAM", 403), ("InvalidAction.NotFound", 404)])
async def test_an_operation_that_is_not_permitted_is_one_warning_and_one_request(
    tmp_path: Path, world: World, operation: str, code: str, status: int
) -> None:
    async with Simulator(world, record_arrivals=True) as platform:
        reject(platform, operation, code, status)
        with structlog.testing.capture_logs() as logs:
            result = await auditor.run_audit(released_settings(tmp_path, platform))
        assert requests_by_operation(platform)[operation] == 1
    assert_devices_are_complete(world, result)
    (info,) = result.manifest.releases
    (problem,) = info.problems
    assert problem.startswith(f"{operation} is not permitted ({code}")
    assert problem.endswith(f"allow iot:{operation} for the access key, or leave out released")
    assert len([log for log in logs if log["log_level"] == "warning"]) == 1
    store, known = FirmwareStore(world), OPERATIONS.index(operation)
    assert (info.firmware, info.jobs) == (len(store.firmware) * (known > 0), len(store.jobs) * (known > 1))
    assert info.tasks == 0
    if operation == "ListOTAJobByFirmware":  # unknown, and not none, except of the one that was requested
        assert read_rows(result.folder, "SELECT count(*) FROM firmware WHERE jobs IS NOT NULL") == [(0,)]


async def test_an_account_that_is_refused_then_keeps_its_devices(tmp_path: Path, world: World) -> None:
    async with Simulator(world) as platform:
        reject(platform, "ListOTAFirmware", "InvalidAccessKeyId.Inactive", 403)
        result = await auditor.run_audit(released_settings(tmp_path, platform))
    assert_devices_are_complete(world, result)
    assert result.manifest.releases[0].problems


@pytest.mark.slow
async def test_a_platform_that_fails_then_keeps_its_devices(tmp_path: Path, world: World) -> None:
    async with Simulator(world, record_arrivals=True) as platform:
        reject(platform, "ListOTATaskByJob", "iot.system.SystemException")
        result = await auditor.run_audit(released_settings(tmp_path, platform, max_attempts=2))
        assert requests_by_operation(platform)["ListOTATaskByJob"] < 40
    assert_devices_are_complete(world, result)
    problems = result.manifest.releases[0].problems
    assert any("ListOTATaskByJob failed for 3 lists" in problem for problem in problems)


@pytest.mark.slow
async def test_a_platform_that_does_not_answer_is_not_waited_for(tmp_path: Path, world: World) -> None:
    async with Simulator(world) as platform:

        def silent(_: object) -> Document:
            platform.outage = "silence"
            raise RequestRejected("iot.system.SystemException", "System error.")

        platform._operations["ListOTAJobByFirmware"] = silent
        result = await auditor.run_audit(released_settings(tmp_path, platform, give_up_after=0.5))
    assert_devices_are_complete(world, result)
    assert any("gave no answer within 0.5 seconds" in problem for problem in result.manifest.releases[0].problems)
    assert result.manifest.releases[0].firmware == len(FirmwareStore(world).firmware)


@pytest.mark.slow
async def test_an_account_that_was_stopped_is_skipped_and_the_others_are_read(tmp_path: Path, world: World) -> None:
    revoked = SimulatedAccount("revoked", DEFAULT_ACCOUNT.secret)
    async with Simulator(world, accounts=[DEFAULT_ACCOUNT, revoked]) as platform:
        platform.revoke("revoked")
        tables = [account_table(platform.endpoint, tmp_path, name=name) for name in ("eu", "us")]
        tables[1]["access_key_id"] = "revoked"
        result = await auditor.run_audit(settings_for(tmp_path, *tables, released=True, max_job_age="999d"))
    assert result.manifest.exit_reason is not None
    assert result.manifest.exit_reason.code == "refused_account"
    assert_released(world, result.folder)
    read, skipped = result.manifest.releases
    assert (read.problems, skipped.requests, skipped.tasks) == ((), 0, 0)
    assert "InvalidAccessKeyId.Inactive" in skipped.problems[0]
    assert auditor.verify_run(result.folder) == []


@pytest.mark.slow
async def test_numbers_that_do_not_follow_from_the_tables_are_found(tmp_path: Path, world: World) -> None:
    async with Simulator(world) as platform:
        folder = (await auditor.run_audit(released_settings(tmp_path, platform))).folder
    manifest = read_manifest(folder)
    (info,) = manifest.releases
    for wrong in ("firmware", "jobs", "tasks"):
        changed = replace(info, **{wrong: getattr(info, wrong) + 1})
        write_manifest(folder, replace(manifest, releases=(changed,)))
        problems = auditor.verify_run(folder)
        assert problems == [
            "run.json: its numbers of released firmware do not follow from firmware.parquet and tasks.parquet"
        ]


@pytest.mark.slow
async def test_a_damaged_table_of_releases_costs_no_other_table(tmp_path: Path, world: World) -> None:
    async with Simulator(world) as platform:
        folder = (await auditor.run_audit(released_settings(tmp_path, platform))).folder
    with auditor.Run(folder) as run:
        tables = {name: len(run.table(name).to_dicts()) for name in RELEASE_TABLES}
        (info,) = run.manifest.releases
        assert [tables[name] for name in RELEASE_TABLES[:3]] == [info.firmware, info.jobs, info.tasks]
        assert tables["device_releases"] == len(run.table("modules").to_dicts())
    (folder / "firmware.parquet").write_bytes(b"PAR1 nonsense")
    with auditor.Run(folder) as run:
        assert [*run.inventory()]
        assert len(run.table("tasks").to_dicts()) == tables["tasks"]
        for name in ("firmware", "jobs", "device_releases"):
            with pytest.raises(RunFolderError, match=r"firmware\.parquet: cannot be read"):
                run.table(name).to_dicts()
    assert any("firmware.parquet" in problem for problem in auditor.verify_run(folder))


@pytest.mark.slow
async def test_an_unexpected_error_is_a_warning(tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Path, **__: object) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr("auditor.releases.collector.write_release_tables", fail)
    async with Simulator(world) as platform:
        result = await auditor.run_audit(released_settings(tmp_path, platform))
    assert_devices_are_complete(world, result)
    assert "a mistake" in result.manifest.releases[0].problems[0]


@pytest.mark.slow
async def test_an_error_on_a_resume_leaves_no_tables_of_the_earlier_session(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path, **__: object) -> None:
        raise KeyError("a mistake")

    device = next(device for device in world if device.exists and device.activated)
    async with Simulator(world, record_arrivals=True) as platform:
        versions = platform._operations["ListOTAModuleVersionsByDevice"]

        def fail_for_one(parameters: Parameters) -> Document:
            if parameters.get("IotId") == device.iot_id:
                raise RequestRejected("iot.system.SystemException", "System error.")
            return versions(parameters)

        platform._operations["ListOTAModuleVersionsByDevice"] = fail_for_one
        first = await auditor.run_audit(released_settings(tmp_path, platform, max_attempts=1))
        assert (first.manifest.state, first.manifest.devices.failed) == ("partial", 1)
        assert_released(world, first.folder)
        platform._operations["ListOTAModuleVersionsByDevice"] = versions
        sent = requests_by_operation(platform)
        monkeypatch.setattr("auditor.releases.collector.write_release_tables", fail)
        second = await auditor.resume_audit(first.folder, settings=released_settings(tmp_path, platform))
        assert requests_by_operation(platform) == sent
    assert_devices_are_complete(world, second)
    assert not (second.folder / "tasks.parquet").exists()


@pytest.mark.slow
async def test_an_end_that_is_requested_then_ends_the_run_with_all_devices(tmp_path: Path, world: World) -> None:
    async with Simulator(world, latency=(0.005, 0.005)) as platform:
        settings = released_settings(tmp_path, platform)
        total = DEVICES + 4
        result = await stop_after(total, platform, lambda stop: auditor.run_audit(settings, stop=stop))
    assert result.manifest.devices.pending == 0
    assert_devices_are_complete(world, result)
    assert "stopped by a test" in result.manifest.releases[0].problems[0]


async def test_requests_stay_within_the_quota_of_each_operation(tmp_path: Path) -> None:
    world = World(60, products=1, day=3, today=time.time())
    world.write_fleet(tmp_path / "fleet.csv")
    quotas = {"ListOTAFirmware": 20.0, "ListOTAJobByFirmware": 20.0, "ListOTATaskByJob": 20.0}
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, 200.0, quotas=quotas)
    async with Simulator(world, accounts=[account]) as platform:
        limits = {"calls_per_second": 200, "quotas": quotas}
        result = await auditor.run_audit(released_settings(tmp_path, platform, account=limits, quota_sharing="none"))
        assert platform.counts.throttled == 0
    assert_released(world, result.folder)


@pytest.mark.parametrize("lists_all", [True, False])
@pytest.mark.slow
async def test_a_job_with_more_tasks_than_can_be_listed_is_read_by_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, lists_all: bool
) -> None:
    life = Lifecycle(connecting=0.0, always_online=0.4)
    world = World(2_000, products=1, day=30, today=time.time(), lifecycle=life)
    store = FirmwareStore(world)
    waves = [job for job in store.jobs.values() if job.name != "old"]
    by_status = max(max(Counter(task.status for task in store.tasks_of(job)).values(), default=0) for job in waves)
    limit = 100 * -(-by_status // 100) if lists_all else 100
    assert any(len(store.tasks_of(job)) > limit for job in waves)
    for module in ("auditor.releases.list_journal", "auditor.simulator.releases"):
        monkeypatch.setattr(f"{module}.MAX_LISTED_TASKS", limit)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        settings = released_settings(tmp_path, platform, max_job_age="60d")
        result = await auditor.run_audit(settings)
    assert result.manifest.state == "complete"
    problems = result.manifest.releases[0].problems
    if lists_all:
        assert problems == ()
        assert_released(world, result.folder, waves)
    else:
        assert any("no more than 100 can be listed" in problem for problem in problems)


@pytest.mark.slow
async def test_the_views_of_several_runs_have_the_releases_of_each(tmp_path: Path, world: World) -> None:
    async with Simulator(world) as platform:
        for _ in range(2):
            await auditor.run_audit(released_settings(tmp_path, platform))
            await anyio.sleep(1.1)  # a folder is named for its second
        await auditor.run_audit(released_settings(tmp_path, platform, released=False))
    query = "SELECT run, count(*) AS tasks FROM tasks GROUP BY run"
    with query_runs(tmp_path / "audits", query) as found:
        rows = [*found.table.to_dicts()]
    expected = read_manifest(max((tmp_path / "audits").iterdir()))
    assert expected.releases == ()
    assert len(rows) == 2
    assert len({row["tasks"] for row in rows}) == 1
    query = "SELECT r.run, count(DISTINCT job_id) AS jobs FROM jobs j JOIN runs r ON r.run = j.run GROUP BY ALL"
    with query_runs(tmp_path / "audits", query) as found:
        assert {row["jobs"] for row in found.table.to_dicts()} == {len(FirmwareStore(world).jobs)}


@pytest.mark.slow
async def test_a_mixed_fleet_has_releases_and_a_changed_table_is_found(tmp_path: Path, world: World) -> None:
    write_mixed_fleet(world, tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        result = await auditor.run_audit(released_settings(tmp_path, platform))
    assert_released(world, result.folder)
    with (result.folder / "tasks.parquet").open("ab") as file:
        file.write(b"x")
    assert any("tasks.parquet" in problem for problem in auditor.verify_run(result.folder))
