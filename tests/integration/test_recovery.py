"""What a resume repairs or rejects in a run folder: damaged lines, states between two steps, changed settings."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

import auditor
from auditor.cli.runtime import log_to_stderr
from auditor.config.settings import SecretSource
from auditor.errors import RunFolderError
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.integration.audits import (
    SLOW_LATENCY,
    assert_complete_and_correct,
    assert_queried_once,
    folder_contents,
    interrupted_audit,
    plain_world,
    query_counts,
    settings_at,
)
from tests.integration.test_audit import account_table, read_lines, settings_for

pytestmark = pytest.mark.anyio


def edit_manifest(folder: Path, **changes: object) -> None:
    table = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(table | changes))


async def test_damaged_lines_are_dropped_and_logged_and_their_devices_queried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = plain_world(30)
    world.write_fleet(tmp_path / "fleet.csv")
    log_to_stderr("warning", "json")
    async with Simulator(world, record_responses=True) as platform:
        done = await auditor.run_audit(settings_at(tmp_path, platform))
        live = done.folder / "devices.jsonl"
        lines = live.read_bytes().splitlines(keepends=True)
        spoilt = [json.loads(line)["iot_id"] for line in lines[3:9]]
        lines[3] = b"\0" * 80 + b"\n"
        lines[4] = lines[4][:50] + b"\xff" + lines[4][50:]
        lines[5] = b"[]\n"
        lines[6] = lines[6].replace(b'"status":"ok"', b'"status":"oh"')
        lines[7] = lines[7].replace(b'"total":', b'"total":9')
        lines[8] = lines[8].replace(b'"account":"eu"', b'"account":null')
        live.write_bytes(b"".join(lines) + lines[10][:40])
        edit_manifest(done.folder, state="running")
        result = await auditor.resume_audit(done.folder)
        counts = query_counts(platform)
    assert_complete_and_correct(world, result)
    assert {device for device, times in counts.items() if times == 2} == set(spoilt)
    (logged,) = [json.loads(line) for line in capsys.readouterr().err.splitlines() if "dropped" in line]
    assert (logged["level"], logged["lines"], logged["file"]) == ("warning", 6, str(live))


def killed_while_sealing(folder: Path) -> None:
    shutil.rmtree(folder / ".sealing", ignore_errors=True)
    (folder / ".sealing").mkdir()
    (folder / ".sealing" / "devices.parquet").write_bytes(b"PAR1 half")
    (folder / ".reserve").write_bytes(b"x" * 65536)


def killed_while_sealed_files_were_removed(folder: Path) -> None:
    for name in ("devices.parquet", "inventory.csv"):
        (folder / name).unlink()


def killed_before_failures_were_rotated(folder: Path) -> None:
    (folder / "failures.1.jsonl").hardlink_to(folder / "failures.jsonl")


def killed_while_failures_were_rotated(folder: Path) -> None:
    killed_before_failures_were_rotated(folder)
    (folder / "failures.jsonl.new").touch()


def killed_while_it_resumed(folder: Path) -> None:
    shutil.copy(folder / "fleet.parquet", folder / ".remaining.parquet")
    (folder / ".resuming").mkdir()
    (folder / ".resuming" / "lines.parquet").write_bytes(b"")
    (folder / ".verifying-abcd").mkdir()
    for name in ("run.json.new", "devices.jsonl.new", "devices.parquet.new"):
        (folder / name).write_bytes(b"{")


def killed_in_a_line(folder: Path) -> None:
    with (folder / "devices.jsonl").open("ab") as file:
        file.write(b'{"account":"eu","product_key":"x')


def without_failures(folder: Path) -> None:
    (folder / "failures.jsonl").unlink()


@pytest.mark.parametrize(
    "happened",
    [
        killed_while_sealing,
        killed_while_sealed_files_were_removed,
        killed_before_failures_were_rotated,
        killed_while_failures_were_rotated,
        killed_while_it_resumed,
        killed_in_a_line,
        without_failures,
    ],
)
async def test_run_that_was_killed_between_two_steps_is_completed(
    tmp_path: Path, happened: Callable[[Path], None]
) -> None:
    world = plain_world(40)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY, corruptions={2: "other_device"}) as platform:
        first = await interrupted_audit(platform, settings_at(tmp_path, platform), answers=20)
        port = platform.port
    failures = (first.folder / "failures.jsonl").read_bytes()
    assert len(failures.splitlines()) == 1
    edit_manifest(first.folder, state="running")
    happened(first.folder)
    async with Simulator(world, port=port, record_responses=True) as platform:
        with capture_logs() as logged:
            result = await auditor.resume_audit(first.folder)
        assert len(query_counts(platform)) == first.manifest.devices.unanswered
    assert logged == []  # what a kill leaves is no damage
    assert_complete_and_correct(world, result)
    rotated = [path.read_bytes() for path in result.folder.glob("failures.*.jsonl")]
    assert rotated == ([] if happened is without_failures else [failures])


@pytest.fixture
async def interrupted_run(tmp_path: Path) -> tuple[World, auditor.Settings, Path]:
    """A run with devices pending, and its settings; its platform is gone."""
    world = plain_world(24)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY) as platform:
        settings = settings_at(tmp_path, platform)
        first = await interrupted_audit(platform, settings, answers=5)
    return world, settings, first.folder


InterruptedRun = tuple[World, auditor.Settings, Path]


@pytest.mark.parametrize("what", ["missing", "changed"])
async def test_run_with_a_changed_fleet_is_rejected_and_left_unchanged(
    interrupted_run: InterruptedRun, what: str
) -> None:
    _, _, folder = interrupted_run
    fleet = folder / "fleet.parquet"
    content = fleet.read_bytes()
    fleet.unlink()
    if what == "changed":
        fleet.write_bytes(content + b" ")
    before = folder_contents(folder)
    with pytest.raises(RunFolderError, match=r"fleet\.parquet is missing or was changed"):
        await auditor.resume_audit(folder)
    assert folder_contents(folder) == before


@pytest.mark.slow
async def test_run_with_resume_names_every_changed_setting_and_starts_a_new_run(
    tmp_path: Path, interrupted_run: InterruptedRun
) -> None:
    _, settings, folder = interrupted_run
    before = folder_contents(folder)
    account = account_table(
        "http://127.0.0.1:1/", tmp_path, calls_per_second=5, quota_share=0.5, dialect="alibaba", region_id="r"
    )
    new = account_table("http://127.0.0.1:1/", tmp_path, name="us")
    other = settings_for(tmp_path, account, new, concurrency=9, timeout=3.0, give_up_after=0.5, max_failed="1%")
    with capture_logs() as logs:
        result = await auditor.run_audit(other, resume=True)
    assert result.folder != folder
    (said,) = (str(line["reason"]) for line in logs if line["event"] == "run_not_resumed")
    for difference in (
        'account "us" was added',
        f'account "eu": endpoint changed from "{settings.account[0].endpoint}" to "http://127.0.0.1:1/"',
        'account "eu": dialect changed from "tuya" to "alibaba"',
        'account "eu": region_id changed from not set to "r"',
    ):
        assert difference in said
    assert folder_contents(folder) == before


@pytest.mark.slow
async def test_given_settings_may_change_rates_and_credentials_but_not_accounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted_run: InterruptedRun
) -> None:
    world, settings, folder = interrupted_run
    port = int(settings.account[0].endpoint.rstrip("/").rpartition(":")[2])
    (tmp_path / "secret").rename(tmp_path / "moved")
    before = folder_contents(folder)
    async with Simulator(world, port=port) as platform:
        good = account_table(platform.endpoint, tmp_path, calls_per_second=200, quota_share=0.9)
        good["access_key_secret"] = {"env": "NEW_PLACE"}
        monkeypatch.setenv("NEW_PLACE", (tmp_path / "moved").read_text())
        del good["fleet"]
        for change, said in (
            ({"endpoint": "http://127.0.0.1:1/"}, "endpoint changed"),
            ({"dialect": "alibaba", "region_id": "r"}, "dialect changed"),
            ({"name": "us"}, 'account "eu" was removed; account "us" was added'),
        ):
            with pytest.raises(RunFolderError, match=said):
                await auditor.resume_audit(folder, settings=settings_for(tmp_path, {**good, **change}))
        assert folder_contents(folder) == before
        others = settings_for(tmp_path, good, concurrency=7, fsync_interval=0, page_size=100, name="another")
        result = await auditor.resume_audit(folder, settings=others)
    assert_complete_and_correct(world, result)
    assert result.manifest.rate.target == pytest.approx(180)
    kept = result.manifest.settings
    assert kept is not None
    assert (kept["concurrency"], kept["fsync_interval"]) == (7, 0.0)


@pytest.mark.slow
async def test_run_without_settings_needs_given_ones_with_the_same_accounts(
    tmp_path: Path, interrupted_run: InterruptedRun
) -> None:
    world, settings, folder = interrupted_run
    edit_manifest(folder, settings=None)
    with pytest.raises(RunFolderError, match=r"has no settings; give them with --settings"):
        await auditor.resume_audit(folder)
    elsewhere = settings_for(tmp_path, account_table("http://127.0.0.1:1/", tmp_path))
    with pytest.raises(RunFolderError, match="the run has other accounts"):
        await auditor.resume_audit(folder, settings=elsewhere)
    port = int(settings.account[0].endpoint.rstrip("/").rpartition(":")[2])
    async with Simulator(world, port=port, record_responses=True) as platform:
        result = await auditor.resume_audit(folder, settings=settings)
        assert max(query_counts(platform).values()) == 1
    assert_complete_and_correct(world, result)


@pytest.mark.slow
async def test_run_with_a_moved_ca_file_continues_with_settings_that_name_the_new_path(
    tmp_path: Path, interrupted_run: InterruptedRun
) -> None:
    world, settings, folder = interrupted_run
    kept = json.loads((folder / "run.json").read_text())["settings"]
    kept["account"][0]["ca_file"] = str(tmp_path / "gone.pem")
    edit_manifest(folder, settings=kept)
    with pytest.raises(RunFolderError, match=r"gone\.pem is not a file; give other settings with --settings"):
        await auditor.resume_audit(folder)
    port = int(settings.account[0].endpoint.rstrip("/").rpartition(":")[2])
    async with Simulator(world, port=port):
        assert_complete_and_correct(world, await auditor.resume_audit(folder, settings=settings))


@pytest.mark.slow
async def test_path_that_json_cannot_hold_does_not_prevent_an_audit(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(str(tmp_path / "secret-")) + b"\xff")
    world = plain_world(24)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY, record_responses=True) as platform:
        table = account_table(platform.endpoint, tmp_path)
        settings = settings_for(tmp_path, table, concurrency=4)
        shutil.copy(tmp_path / "secret", odd)
        account = msgspec.structs.replace(settings.account[0], access_key_secret=SecretSource(file=odd))
        first = await interrupted_audit(platform, msgspec.structs.replace(settings, account=(account,)), answers=5)
        assert first.manifest.settings is None
        result = await auditor.resume_audit(first.folder, settings=settings)
        assert_queried_once(platform, world)
    assert_complete_and_correct(world, result)
    assert len(read_lines(result.folder / "devices.jsonl")) == 24
