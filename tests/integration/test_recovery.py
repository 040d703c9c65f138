"""What a resume finds in a run folder, mends or refuses: spoilt lines, states between two steps, other settings."""

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
    SLOW,
    asked,
    assert_asked_once,
    assert_complete_and_true,
    begun,
    contents,
    plain,
    settings_at,
)
from tests.integration.test_audit import account_table, lines_of, settings_for

pytestmark = pytest.mark.anyio


def edit_manifest(folder: Path, **changes: object) -> None:
    table = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(table | changes))


async def test_spoilt_lines_are_dropped_and_told_and_their_devices_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = plain(30)
    world.write_fleet(tmp_path / "fleet.csv")
    log_to_stderr("warning")
    async with Simulator(world, record_answers=True) as platform:
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
        counts = asked(platform)
    assert_complete_and_true(world, result)
    assert {device for device, times in counts.items() if times == 2} == set(spoilt)
    (told,) = [json.loads(line) for line in capsys.readouterr().err.splitlines() if "dropped" in line]
    assert (told["level"], told["lines"], told["file"]) == ("warning", 6, str(live))


def killed_while_sealing(folder: Path) -> None:
    shutil.rmtree(folder / ".sealing", ignore_errors=True)
    (folder / ".sealing").mkdir()
    (folder / ".sealing" / "devices.parquet").write_bytes(b"PAR1 half")
    (folder / ".reserve").write_bytes(b"x" * 65536)


def killed_while_sealed_files_went(folder: Path) -> None:
    for name in ("devices.parquet", "inventory.csv"):
        (folder / name).unlink()


def killed_before_the_failures_were_begun_anew(folder: Path) -> None:
    (folder / "failures.1.jsonl").hardlink_to(folder / "failures.jsonl")


def killed_while_the_failures_were_begun_anew(folder: Path) -> None:
    killed_before_the_failures_were_begun_anew(folder)
    (folder / "failures.jsonl.new").touch()


def killed_while_it_resumed(folder: Path) -> None:
    shutil.copy(folder / "fleet.parquet", folder / ".left.parquet")
    (folder / ".resuming").mkdir()
    (folder / ".resuming" / "lines.parquet").write_bytes(b"")
    (folder / ".verifying-abcd").mkdir()
    for name in ("run.json.new", "devices.jsonl.new", "devices.parquet.new"):
        (folder / name).write_bytes(b"{")


def killed_in_a_line(folder: Path) -> None:
    with (folder / "devices.jsonl").open("ab") as file:
        file.write(b'{"account":"eu","product_key":"x')


def without_its_failures(folder: Path) -> None:
    (folder / "failures.jsonl").unlink()


@pytest.mark.parametrize(
    "happened",
    [
        killed_while_sealing,
        killed_while_sealed_files_went,
        killed_before_the_failures_were_begun_anew,
        killed_while_the_failures_were_begun_anew,
        killed_while_it_resumed,
        killed_in_a_line,
        without_its_failures,
    ],
)
async def test_a_run_that_was_killed_between_two_steps_ends_complete(
    tmp_path: Path, happened: Callable[[Path], None]
) -> None:
    world = plain(40)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW, lies={2: "other_device"}) as platform:
        first = await begun(platform, settings_at(tmp_path, platform), answered=20)
        port = platform.port
    failures = (first.folder / "failures.jsonl").read_bytes()
    assert len(failures.splitlines()) == 1
    edit_manifest(first.folder, state="running")
    happened(first.folder)
    async with Simulator(world, port=port, record_answers=True) as platform:
        with capture_logs() as logged:
            result = await auditor.resume_audit(first.folder)
        assert len(asked(platform)) == first.manifest.devices.unanswered
    assert logged == []  # what a kill leaves is no damage
    assert_complete_and_true(world, result)
    aside = [path.read_bytes() for path in result.folder.glob("failures.*.jsonl")]
    assert aside == ([] if happened is without_its_failures else [failures])


@pytest.fixture
async def ended(tmp_path: Path) -> tuple[World, auditor.Settings, Path]:
    """A run with devices pending, and its settings; its platform is gone."""
    world = plain(24)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW) as platform:
        settings = settings_at(tmp_path, platform)
        first = await begun(platform, settings, answered=5)
    return world, settings, first.folder


Ended = tuple[World, auditor.Settings, Path]


@pytest.mark.parametrize("what", ["missing", "changed"])
async def test_a_run_whose_fleet_is_not_what_it_was_is_refused_and_left_alone(ended: Ended, what: str) -> None:
    _, _, folder = ended
    fleet = folder / "fleet.parquet"
    content = fleet.read_bytes()
    fleet.unlink()
    if what == "changed":
        fleet.write_bytes(content + b" ")
    before = contents(folder)
    with pytest.raises(RunFolderError, match=r"fleet\.parquet is missing or was changed"):
        await auditor.resume_audit(folder)
    assert contents(folder) == before


async def test_run_with_resume_names_every_setting_that_differs_and_the_limit(tmp_path: Path, ended: Ended) -> None:
    _, settings, folder = ended
    before = contents(folder)
    account = account_table("http://127.0.0.1:1/", tmp_path, per_second=5, share=0.5, dialect="alibaba", region_id="r")
    new = account_table("http://127.0.0.1:1/", tmp_path, name="us")
    other = settings_for(tmp_path, account, new, at_once=9, timeout=3.0, max_failed="1%")
    with pytest.raises(RunFolderError) as refused:
        await auditor.run_audit(other, resume=True, limit=7)
    said = str(refused.value)
    for difference in (
        'account "us" is new',
        "at_once was 4 and is 9",
        "timeout was 30.0 and is 3.0",
        'max_failed was 0 and is "1%"',
        f'account "eu": endpoint was "{settings.account[0].endpoint}" and is "http://127.0.0.1:1/"',
        'account "eu": dialect was "tuya" and is "alibaba"',
        'account "eu": region_id was not set and is "r"',
        'account "eu": per_second was "unlimited" and is 5.0',
        'account "eu": share was 1.0 and is 0.5',
        "limit was not set and is 7",
        "give the same limit",
    ):
        assert difference in said
    assert said.count(" was ") == 9 + 1  # "was begun with other settings"
    assert contents(folder) == before


async def test_other_settings_may_change_pace_and_keys_but_not_whom_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: Ended
) -> None:
    world, settings, folder = ended
    port = int(settings.account[0].endpoint.rstrip("/").rpartition(":")[2])
    (tmp_path / "secret").rename(tmp_path / "moved")
    before = contents(folder)
    async with Simulator(world, port=port) as platform:
        good = account_table(platform.endpoint, tmp_path, per_second=200, share=0.9)
        good["access_key_secret"] = {"env": "NEW_PLACE"}
        monkeypatch.setenv("NEW_PLACE", (tmp_path / "moved").read_text())
        del good["fleet"]
        for change, said in (
            ({"endpoint": "http://127.0.0.1:1/"}, "endpoint was"),
            ({"dialect": "alibaba", "region_id": "r"}, "dialect was"),
            ({"name": "us"}, 'account "eu" is gone; account "us" is new'),
        ):
            with pytest.raises(RunFolderError, match=said):
                await auditor.resume_audit(folder, settings=settings_for(tmp_path, {**good, **change}))
        assert contents(folder) == before
        others = settings_for(tmp_path, good, at_once=7, fsync_every=0, page_size=100, name="another")
        result = await auditor.resume_audit(folder, settings=others)
    assert_complete_and_true(world, result)
    assert result.manifest.rate.target == pytest.approx(180)
    kept = result.manifest.settings
    assert kept is not None
    assert (kept["at_once"], kept["fsync_every"]) == (7, 0.0)


async def test_a_run_without_settings_needs_them_given_and_they_must_ask_the_same_accounts(
    tmp_path: Path, ended: Ended
) -> None:
    world, settings, folder = ended
    edit_manifest(folder, settings=None)
    with pytest.raises(RunFolderError, match=r"keeps no settings; give them with --settings"):
        await auditor.resume_audit(folder)
    elsewhere = settings_for(tmp_path, account_table("http://127.0.0.1:1/", tmp_path))
    with pytest.raises(RunFolderError, match="its accounts are others"):
        await auditor.resume_audit(folder, settings=elsewhere)
    port = int(settings.account[0].endpoint.rstrip("/").rpartition(":")[2])
    async with Simulator(world, port=port, record_answers=True) as platform:
        result = await auditor.resume_audit(folder, settings=settings)
        assert max(asked(platform).values()) == 1
    assert_complete_and_true(world, result)


async def test_a_run_whose_authority_s_file_has_moved_goes_on_with_settings_that_name_the_new_place(
    tmp_path: Path, ended: Ended
) -> None:
    world, settings, folder = ended
    kept = json.loads((folder / "run.json").read_text())["settings"]
    kept["account"][0]["ca_file"] = str(tmp_path / "gone.pem")
    edit_manifest(folder, settings=kept)
    with pytest.raises(RunFolderError, match=r"gone\.pem is not a file; give other settings with --settings"):
        await auditor.resume_audit(folder)
    port = int(settings.account[0].endpoint.rstrip("/").rpartition(":")[2])
    async with Simulator(world, port=port):
        assert_complete_and_true(world, await auditor.resume_audit(folder, settings=settings))


async def test_a_path_that_json_cannot_hold_is_no_reason_not_to_audit(tmp_path: Path) -> None:
    odd = os.fsdecode(os.fsencode(str(tmp_path / "secret-")) + b"\xff")
    world = plain(24)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW, record_answers=True) as platform:
        table = account_table(platform.endpoint, tmp_path)
        settings = settings_for(tmp_path, table, at_once=4)
        shutil.copy(tmp_path / "secret", odd)
        account = msgspec.structs.replace(settings.account[0], access_key_secret=SecretSource(file=odd))
        first = await begun(platform, msgspec.structs.replace(settings, account=(account,)), answered=5)
        assert first.manifest.settings is None
        result = await auditor.resume_audit(first.folder, settings=settings)
        assert_asked_once(platform, world)
    assert_complete_and_true(world, result)
    assert len(lines_of(result.folder / "devices.jsonl")) == 24
