"""Audits that were interrupted and resumed in this process: they end complete and correct, with one query per device."""

import json
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import auditor
from auditor.engine.sent_requests import SENT_REQUESTS
from auditor.errors import RunFolderError
from auditor.releases.list_journal import RELEASES_FOLDER
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from tests.integration.audits import (
    SLOW_LATENCY,
    assert_complete_and_correct,
    assert_queried_once,
    folder_contents,
    interrupted_audit,
    plain_world,
    query_counts,
    settings_at,
    write_mixed_fleet,
)
from tests.integration.test_audit import account_table, read_lines, settings_for

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("named", ["iot_id", "names", "both", "mixed"])
async def test_resumed_audit_queries_every_device_once(tmp_path: Path, named: str) -> None:
    world = plain_world(60)
    columns = {"iot_id": ("iot_id",), "names": ("product_key", "device_name")}
    if named == "mixed":
        write_mixed_fleet(world, tmp_path / "fleet.csv")
    else:
        world.write_fleet(tmp_path / "fleet.csv", columns=columns.get(named, ("product_key", "device_name", "iot_id")))
    async with Simulator(world, latency=SLOW_LATENCY, record_responses=True) as platform:
        first = await interrupted_audit(platform, settings_at(tmp_path, platform))
        result = await auditor.resume_audit(first.folder)
        assert_queried_once(platform, world)
    assert result.folder == first.folder
    assert_complete_and_correct(world, result)


@pytest.mark.slow
async def test_audit_may_be_resumed_many_times(tmp_path: Path) -> None:
    world = plain_world(80)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY, record_responses=True) as platform:
        settings = settings_at(tmp_path, platform)
        first = await interrupted_audit(platform, settings)
        for answered in (25, 40, 55):
            again = await interrupted_audit(platform, settings, answers=answered, resume=True)
            assert again.folder == first.folder
            assert auditor.verify_run(again.folder) == []
        result = await auditor.resume_audit(tmp_path / "audits")
        assert_queried_once(platform, world)
    assert_complete_and_correct(world, result)
    assert len(result.manifest.resumed_at) == 4


async def test_resume_of_a_cancelled_audit_repeats_only_requests_in_flight(tmp_path: Path) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY, record_responses=True) as platform:
        with anyio.CancelScope() as scope:

            async def cut() -> None:
                while platform.counts.answered < 12:  # noqa: ASYNC110  the platform has no event
                    await anyio.sleep(0.002)
                scope.cancel()

            async with anyio.create_task_group() as group:
                group.start_soon(cut)
                await auditor.run_audit(settings_at(tmp_path, platform))
        (folder,) = (tmp_path / "audits").iterdir()
        manifest = json.loads((folder / "run.json").read_text())
        assert (manifest["state"], manifest["error"]) == ("partial", "interrupted immediately")
        result = await auditor.resume_audit(folder)
        counts = query_counts(platform)
    assert_complete_and_correct(world, result)
    assert len(counts) == 60
    assert counts.total() <= 60 + 4


@pytest.mark.slow
async def test_audit_with_a_deadline_ends_in_time_and_is_resumed(tmp_path: Path) -> None:
    world = plain_world(80)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(0.4, 0.48), record_responses=True) as platform:
        settings = settings_at(tmp_path, platform)
        until = time.time() + 6
        first = await auditor.run_audit(settings, until=until)
        assert time.time() < until + 0.5
        assert (first.manifest.state, first.manifest.error, first.exit_code) == (
            "partial",
            "the deadline was reached",
            1,
        )
        assert 0 < first.manifest.devices.ok < 80
        assert auditor.verify_run(first.folder) == []
        over = await auditor.resume_audit(first.folder, until=time.time() - 5)
        assert over.manifest.devices == first.manifest.devices
        result = await auditor.resume_audit(first.folder)
        assert_queried_once(platform, world)
    assert_complete_and_correct(world, result)


@pytest.mark.slow
async def test_failures_are_retried_and_old_ones_are_kept_in_numbered_files(tmp_path: Path) -> None:
    world = plain_world(30)
    failing = (3, 17)
    world.write_fleet(tmp_path / "fleet.csv")
    seen: list[bytes] = []
    port = 0
    for corruptions in (dict.fromkeys(failing, "other_device"), dict.fromkeys(failing, "other_device"), {}):
        async with Simulator(world, corruptions=corruptions, port=port, record_responses=True) as platform:  # type: ignore[arg-type]
            port = platform.port
            settings = settings_at(tmp_path, platform)
            result = await (auditor.resume_audit(tmp_path / "audits") if seen else auditor.run_audit(settings))
            if seen:
                assert query_counts(platform).keys() == {world.device(index).iot_id for index in failing}
        failures = (result.folder / "failures.jsonl").read_bytes()
        assert failures.count(b"\n") == len(corruptions) == result.manifest.devices.failed
        assert auditor.verify_run(result.folder) == []
        seen.append(failures)
    assert_complete_and_correct(world, result)
    aside = {path.name: path.read_bytes() for path in result.folder.glob("failures.*.jsonl")}
    assert aside == {"failures.1.jsonl": seen[0], "failures.2.jsonl": seen[1]}
    assert result.manifest.failures == ()


@pytest.mark.slow
async def test_each_account_continues_with_its_remaining_devices(tmp_path: Path) -> None:
    worlds = [plain_world(50, seed=seed) for seed in (1, 2)]
    async with (
        Simulator(worlds[0], latency=SLOW_LATENCY, record_responses=True) as one,
        Simulator(worlds[1], latency=SLOW_LATENCY, record_responses=True) as two,
    ):
        tables = []
        for name, world, platform in zip(("eu", "us"), worlds, (one, two), strict=True):
            world.write_fleet(tmp_path / f"{name}.csv")
            fleet = {"file": str(tmp_path / f"{name}.csv")}
            tables.append(account_table(platform.endpoint, tmp_path, name=name, fleet=fleet))
        first = await interrupted_audit(one, settings_for(tmp_path, *tables, concurrency=8))
        result = await auditor.resume_audit(first.folder)
        assert_queried_once(one, worlds[0])
        assert_queried_once(two, worlds[1])
    assert_complete_and_correct([*worlds[0], *worlds[1]], result)


@pytest.mark.slow
async def test_account_with_a_revoked_key_stops_alone_and_is_resumed_with_a_valid_key(tmp_path: Path) -> None:
    worlds = [plain_world(60, seed=seed) for seed in (1, 2)]
    async with Simulator(worlds[0], latency=SLOW_LATENCY, record_responses=True) as alive:
        async with Simulator(worlds[1], latency=SLOW_LATENCY, record_responses=True) as dying:
            tables = []
            for name, world, platform in zip(("alive", "dying"), worlds, (alive, dying), strict=True):
                world.write_fleet(tmp_path / f"{name}.csv")
                fleet = {"file": str(tmp_path / f"{name}.csv")}
                tables.append(account_table(platform.endpoint, tmp_path, name=name, fleet=fleet))
            settings = settings_for(tmp_path, *tables, concurrency=8)

            async def revoke() -> None:
                while dying.counts.answered < 20:  # noqa: ASYNC110  the platform has no event
                    await anyio.sleep(0.002)
                dying.revoke(DEFAULT_ACCOUNT.access_key_id)

            async with anyio.create_task_group() as group:
                group.start_soon(revoke)
                first = await auditor.run_audit(settings)
            port, before = dying.port, query_counts(dying)
        assert (first.exit_code, first.manifest.state) == (3, "aborted")
        assert 'account "dying"' in str(first.manifest.error)
        assert "alive" not in str(first.manifest.error)
        assert_queried_once(alive, worlds[0])
        answered = [line["account"] for line in read_lines(first.folder / "devices.jsonl")]
        assert answered.count("alive") == 60
        # Requests in flight beside the denied one are abandoned; whether the platform had answered them is random.
        assert len(before) - 3 <= answered.count("dying") <= len(before)
        asked_again = len(before) - answered.count("dying")
        assert auditor.verify_run(first.folder) == []
        async with Simulator(worlds[1], port=port, record_responses=True) as again:
            result = await auditor.resume_audit(first.folder)
            counts = before + query_counts(again)
        assert_queried_once(alive, worlds[0])
    assert (len(counts), counts.total()) == (60, 60 + asked_again)
    assert_complete_and_correct([*worlds[0], *worlds[1]], result)


async def test_complete_run_is_left_unchanged_to_the_byte(tmp_path: Path) -> None:
    world = plain_world(10)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        done = await auditor.run_audit(settings_at(tmp_path, platform))
        before, received = folder_contents(done.folder), platform.counts.received
        again = await auditor.resume_audit(done.folder)
        assert platform.counts.received == received
    assert folder_contents(done.folder) == before
    assert (again.exit_code, again.manifest) == (0, done.manifest)


async def test_working_files_that_a_kill_left_behind_a_complete_run_are_removed(tmp_path: Path) -> None:
    world = plain_world(10)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        done = await auditor.run_audit(settings_at(tmp_path, platform))
        before = folder_contents(done.folder)
        (done.folder / SENT_REQUESTS).write_bytes(b"x")
        for name in (RELEASES_FOLDER, ".releasing", ".selection", ".index"):
            (done.folder / name).mkdir()
            (done.folder / name / "file").touch()
        again = await auditor.resume_audit(done.folder)
    assert folder_contents(done.folder) == before
    assert again.manifest == done.manifest


async def test_resumed_full_audit_keeps_to_a_call_budget_of_its_new_settings(tmp_path: Path) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY) as platform:
        first = await interrupted_audit(platform, settings_at(tmp_path, platform))
        sent = first.manifest.requests.sent
        budget = sent + 10
        settings = settings_at(tmp_path, platform, max_calls=budget)
        result = await auditor.resume_audit(first.folder, settings=settings)
    assert result.manifest.selection is None
    assert sent < result.manifest.requests.sent <= budget
    assert result.manifest.error == f"the budget of {budget} calls is exhausted"
    assert result.manifest.devices.pending > 0


@pytest.mark.slow
async def test_run_with_resume_continues_only_unfinished_runs(tmp_path: Path) -> None:
    world = plain_world(40)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY, corruptions={3: "other_device"}) as platform:
        settings = settings_at(tmp_path, platform)
        first = await interrupted_audit(platform, settings)
        other = await auditor.run_audit(settings_at(tmp_path, platform, name="weekly"), resume=True)
        failed = await auditor.run_audit(settings, resume=True)
        new_run = await auditor.run_audit(settings, resume=True)
    assert other.folder != first.folder
    assert failed.folder == first.folder
    assert (failed.manifest.state, failed.manifest.devices.failed, failed.manifest.devices.pending) == ("partial", 1, 0)
    assert new_run.folder not in {first.folder, other.folder}


async def test_requests_and_rate_add_up_over_sessions(tmp_path: Path) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY) as platform:
        first = await interrupted_audit(platform, settings_at(tmp_path, platform), answers=50)
        assert first.manifest.requests.sent == platform.counts.received
        took = first.manifest.requests.sent / first.manifest.rate.achieved
        began = time.monotonic()
        result = await auditor.resume_audit(first.folder)
        whole = time.monotonic() - began
        assert result.manifest.requests.sent == platform.counts.received
    elapsed = result.manifest.requests.sent / result.manifest.rate.achieved
    assert took < elapsed < took + whole + 0.01
    assert result.manifest.started_at == first.manifest.started_at


async def test_settings_that_were_loaded_in_another_directory_find_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = plain_world(40)
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    world.write_fleet(here / "fleet.csv")
    (here / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
    async with Simulator(world, latency=SLOW_LATENCY, record_responses=True) as platform:
        (here / "nightly.toml").write_text(
            f'name = "nightly"\nconcurrency = 4\n[[account]]\nname = "eu"\nendpoint = "{platform.endpoint}"\n'
            f'access_key_id = "{DEFAULT_ACCOUNT.access_key_id}"\naccess_key_secret = {{ file = "secret" }}\n'
            'calls_per_second = "unlimited"\nfleet = { file = "fleet.csv" }\n'
        )
        monkeypatch.chdir(here)
        settings = auditor.load_settings("nightly.toml")
        first = await interrupted_audit(platform, settings)
        folder = here / first.folder
        monkeypatch.chdir(elsewhere)
        kept = json.loads((folder / "run.json").read_text())["settings"]
        assert kept["account"][0]["access_key_secret"] == {"file": str(here / "secret")}
        assert kept["account"][0]["fleet"] == {"file": str(here / "fleet.csv")}
        assert kept["directory"] == str(here / "audits")
        assert DEFAULT_ACCOUNT.secret.reveal() not in (folder / "run.json").read_text()
        result = await auditor.resume_audit(folder)
        assert_queried_once(platform, world)
    assert_complete_and_correct(world, result)
    assert DEFAULT_ACCOUNT.secret.reveal() not in (folder / "run.json").read_text()


@pytest.mark.slow
async def test_run_that_another_process_writes_is_not_resumed(tmp_path: Path) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    refused: list[str] = []
    async with Simulator(world, latency=SLOW_LATENCY) as platform:
        settings = settings_at(tmp_path, platform)
        first = await interrupted_audit(platform, settings)

        async def second(start: Any) -> None:
            while platform.counts.answered < 25:  # noqa: ASYNC110  the platform has no event
                await anyio.sleep(0.002)
            with pytest.raises(RunFolderError) as error:
                await start()
            refused.append(str(error.value))

        async with anyio.create_task_group() as group:
            group.start_soon(second, lambda: auditor.resume_audit(first.folder))
            group.start_soon(second, lambda: auditor.run_audit(settings))
            result = await auditor.resume_audit(first.folder)
    assert sorted("is running" in sentence for sentence in refused) == [False, True]
    assert sum("another process is writing this run" in sentence for sentence in refused) == 1
    assert_complete_and_correct(world, result)
