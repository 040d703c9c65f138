"""Audits that were ended early and are gone on with, in this process: they end complete, true, each device asked once."""

import json
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import auditor
from auditor.errors import RunFolderError
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from tests.integration.audits import (
    SLOW,
    asked,
    assert_asked_once,
    assert_complete_and_true,
    begun,
    contents,
    plain,
    settings_at,
    write_mixed_fleet,
)
from tests.integration.test_audit import account_table, lines_of, settings_for

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("named", ["iot_id", "names", "both", "mixed"])
async def test_an_ended_audit_is_gone_on_with_and_asks_every_device_once(tmp_path: Path, named: str) -> None:
    world = plain(60)
    columns = {"iot_id": ("iot_id",), "names": ("product_key", "device_name")}
    if named == "mixed":
        write_mixed_fleet(world, tmp_path / "fleet.csv")
    else:
        world.write_fleet(tmp_path / "fleet.csv", columns=columns.get(named, ("product_key", "device_name", "iot_id")))
    async with Simulator(world, latency=SLOW, record_answers=True) as platform:
        first = await begun(platform, settings_at(tmp_path, platform))
        result = await auditor.resume_audit(first.folder)
        assert_asked_once(platform, world)
    assert result.folder == first.folder
    assert_complete_and_true(world, result)


async def test_an_audit_may_be_gone_on_with_many_times(tmp_path: Path) -> None:
    world = plain(80)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW, record_answers=True) as platform:
        settings = settings_at(tmp_path, platform)
        first = await begun(platform, settings)
        for answered in (25, 40, 55):
            again = await begun(platform, settings, answered=answered, resume=True)
            assert again.folder == first.folder
            assert auditor.verify(again.folder) == []
        result = await auditor.resume_audit(tmp_path / "audits")
        assert_asked_once(platform, world)
    assert_complete_and_true(world, result)
    assert len(result.manifest.resumed_at) == 4


async def test_a_cancelled_audit_is_gone_on_with_and_only_what_was_in_flight_is_asked_again(tmp_path: Path) -> None:
    world = plain(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW, record_answers=True) as platform:
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
        assert (manifest["state"], manifest["error"]) == ("partial", "stopped at once")
        result = await auditor.resume_audit(folder)
        counts = asked(platform)
    assert_complete_and_true(world, result)
    assert len(counts) == 60
    assert counts.total() <= 60 + 4


async def test_an_audit_whose_time_was_up_ends_in_time_and_is_gone_on_with(tmp_path: Path) -> None:
    world = plain(80)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(0.1, 0.12), record_answers=True) as platform:
        settings = settings_at(tmp_path, platform)
        until = time.time() + 1.5
        first = await auditor.run_audit(settings, until=until)
        assert time.time() < until + 0.5
        assert (first.manifest.state, first.manifest.error, first.exit_code) == ("partial", "its time was up", 1)
        assert 0 < first.manifest.devices.ok < 80
        assert auditor.verify(first.folder) == []
        over = await auditor.resume_audit(first.folder, until=time.time() - 5)
        assert over.manifest.devices == first.manifest.devices
        result = await auditor.resume_audit(first.folder)
        assert_asked_once(platform, world)
    assert_complete_and_true(world, result)


async def test_failures_are_tried_anew_and_the_old_ones_set_aside_under_numbers(tmp_path: Path) -> None:
    world = plain(30)
    liars = (3, 17)
    world.write_fleet(tmp_path / "fleet.csv")
    seen: list[bytes] = []
    port = 0
    for lies in (dict.fromkeys(liars, "other_device"), dict.fromkeys(liars, "other_device"), {}):
        async with Simulator(world, lies=lies, port=port, record_answers=True) as platform:  # type: ignore[arg-type]
            port = platform.port
            settings = settings_at(tmp_path, platform)
            result = await (auditor.resume_audit(tmp_path / "audits") if seen else auditor.run_audit(settings))
            if seen:
                assert asked(platform).keys() == {world.device(liar).iot_id for liar in liars}
        failures = (result.folder / "failures.jsonl").read_bytes()
        assert failures.count(b"\n") == len(lies) == result.manifest.devices.failed
        assert auditor.verify(result.folder) == []
        seen.append(failures)
    assert_complete_and_true(world, result)
    aside = {path.name: path.read_bytes() for path in result.folder.glob("failures.*.jsonl")}
    assert aside == {"failures.1.jsonl": seen[0], "failures.2.jsonl": seen[1]}
    assert result.manifest.failures == ()


async def test_several_accounts_each_go_on_with_what_is_left_of_theirs(tmp_path: Path) -> None:
    worlds = [plain(50, seed=seed) for seed in (1, 2)]
    async with (
        Simulator(worlds[0], latency=SLOW, record_answers=True) as one,
        Simulator(worlds[1], latency=SLOW, record_answers=True) as two,
    ):
        tables = []
        for name, world, platform in zip(("eu", "us"), worlds, (one, two), strict=True):
            world.write_fleet(tmp_path / f"{name}.csv")
            fleet = {"file": str(tmp_path / f"{name}.csv")}
            tables.append(account_table(platform.endpoint, tmp_path, name=name, fleet=fleet))
        first = await begun(one, settings_for(tmp_path, *tables, at_once=8))
        result = await auditor.resume_audit(first.folder)
        assert_asked_once(one, worlds[0])
        assert_asked_once(two, worlds[1])
    assert_complete_and_true([*worlds[0], *worlds[1]], result)


async def test_an_account_whose_key_dies_stops_alone_and_is_gone_on_with_once_the_key_works(tmp_path: Path) -> None:
    worlds = [plain(60, seed=seed) for seed in (1, 2)]
    async with Simulator(worlds[0], latency=SLOW, record_answers=True) as alive:
        async with Simulator(worlds[1], latency=SLOW, record_answers=True) as dying:
            tables = []
            for name, world, platform in zip(("alive", "dying"), worlds, (alive, dying), strict=True):
                world.write_fleet(tmp_path / f"{name}.csv")
                fleet = {"file": str(tmp_path / f"{name}.csv")}
                tables.append(account_table(platform.endpoint, tmp_path, name=name, fleet=fleet))
            settings = settings_for(tmp_path, *tables, at_once=8)

            async def revoke() -> None:
                while dying.counts.answered < 20:  # noqa: ASYNC110  the platform has no event
                    await anyio.sleep(0.002)
                dying.revoke(DEFAULT_ACCOUNT.access_key_id)

            async with anyio.create_task_group() as group:
                group.start_soon(revoke)
                first = await auditor.run_audit(settings)
            port, before = dying.port, asked(dying)
        assert (first.exit_code, first.manifest.state) == (3, "aborted")
        assert 'account "dying"' in str(first.manifest.error)
        assert "alive" not in str(first.manifest.error)
        assert_asked_once(alive, worlds[0])
        answered = [line["account"] for line in lines_of(first.folder / "devices.jsonl")]
        assert answered.count("alive") == 60
        # What was in flight beside the refusal is given up; whether the platform had answered it already is chance.
        assert len(before) - 3 <= answered.count("dying") <= len(before)
        asked_again = len(before) - answered.count("dying")
        assert auditor.verify(first.folder) == []
        async with Simulator(worlds[1], port=port, record_answers=True) as again:
            result = await auditor.resume_audit(first.folder)
            counts = before + asked(again)
        assert_asked_once(alive, worlds[0])
    assert (len(counts), counts.total()) == (60, 60 + asked_again)
    assert_complete_and_true([*worlds[0], *worlds[1]], result)


async def test_a_complete_run_is_left_alone_to_the_byte(tmp_path: Path) -> None:
    world = plain(10)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        done = await auditor.run_audit(settings_at(tmp_path, platform))
        before, received = contents(done.folder), platform.counts.received
        again = await auditor.resume_audit(done.folder)
        assert platform.counts.received == received
    assert contents(done.folder) == before
    assert (again.exit_code, again.manifest) == (0, done.manifest)


async def test_run_with_resume_goes_on_only_where_devices_are_pending(tmp_path: Path) -> None:
    world = plain(40)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW, lies={3: "other_device"}) as platform:
        settings = settings_at(tmp_path, platform)
        first = await begun(platform, settings)
        other = await auditor.run_audit(settings_at(tmp_path, platform, name="weekly"), resume=True)
        failed = await auditor.run_audit(settings, resume=True)
        anew = await auditor.run_audit(settings, resume=True)
    assert other.folder != first.folder
    assert failed.folder == first.folder
    assert (failed.manifest.state, failed.manifest.devices.failed, failed.manifest.devices.pending) == ("partial", 1, 0)
    assert anew.folder not in {first.folder, other.folder}


async def test_requests_and_rate_add_up_over_the_stretches(tmp_path: Path) -> None:
    world = plain(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW) as platform:
        first = await begun(platform, settings_at(tmp_path, platform), answered=50)
        assert first.manifest.requests.sent == platform.counts.received
        took = first.manifest.requests.sent / first.manifest.rate.achieved
        began = time.monotonic()
        result = await auditor.resume_audit(first.folder)
        whole = time.monotonic() - began
        assert result.manifest.requests.sent == platform.counts.received
    elapsed = result.manifest.requests.sent / result.manifest.rate.achieved
    assert took < elapsed < took + whole + 0.01
    assert result.manifest.started_at == first.manifest.started_at


async def test_settings_that_were_loaded_elsewhere_still_find_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = plain(40)
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    world.write_fleet(here / "fleet.csv")
    (here / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
    async with Simulator(world, latency=SLOW, record_answers=True) as platform:
        (here / "nightly.toml").write_text(
            f'name = "nightly"\nat_once = 4\n[[account]]\nname = "eu"\nendpoint = "{platform.endpoint}"\n'
            f'access_key_id = "{DEFAULT_ACCOUNT.access_key_id}"\naccess_key_secret = {{ file = "secret" }}\n'
            'per_second = "unlimited"\nfleet = { file = "fleet.csv" }\n'
        )
        monkeypatch.chdir(here)
        settings = auditor.load_settings("nightly.toml")
        first = await begun(platform, settings)
        folder = here / first.folder
        monkeypatch.chdir(elsewhere)
        kept = json.loads((folder / "run.json").read_text())["settings"]
        assert kept["account"][0]["access_key_secret"] == {"file": str(here / "secret")}
        assert kept["account"][0]["fleet"] == {"file": str(here / "fleet.csv")}
        assert kept["directory"] == str(here / "audits")
        assert DEFAULT_ACCOUNT.secret.reveal() not in (folder / "run.json").read_text()
        result = await auditor.resume_audit(folder)
        assert_asked_once(platform, world)
    assert_complete_and_true(world, result)
    assert DEFAULT_ACCOUNT.secret.reveal() not in (folder / "run.json").read_text()


async def test_a_run_that_another_writes_is_not_gone_on_with(tmp_path: Path) -> None:
    world = plain(60)
    world.write_fleet(tmp_path / "fleet.csv")
    refused: list[str] = []
    async with Simulator(world, latency=SLOW) as platform:
        settings = settings_at(tmp_path, platform)
        first = await begun(platform, settings)

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
    assert sorted("is under way" in sentence for sentence in refused) == [False, True]
    assert sum("another process is writing this run" in sentence for sentence in refused) == 1
    assert_complete_and_true(world, result)
