"""Resumes under difficulty: failing devices, an unreachable platform, invalid lines, unreadable runs, a full disk."""

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

import auditor
from auditor.audit.resume import find_unfinished
from auditor.errors import AuditInterruptedError, RunFolderError
from auditor.resilience.retry import Backoff
from auditor.runs.locking import RunLock
from auditor.simulator.responses import Document, RequestRejected
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.audits import (
    SLOW_LATENCY,
    assert_complete_and_correct,
    interrupted_audit,
    plain_world,
    settings_at,
)
from tests.integration.test_audit import account_table, settings_for

pytestmark = pytest.mark.anyio

LISTING_LINE = "ListOTAModuleVersionsByDevice"


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "delay", lambda _self, _failures, draw: 0.01 * draw)


def fail_devices(platform: Simulator, world: World, indexes: set[int], code: str) -> None:
    """Lets some devices be answered with nothing but an error."""
    names = {world.device(index).iot_id for index in indexes}
    answer = platform._operations[LISTING_LINE]

    def stubborn(parameters: Mapping[str, str]) -> Document:
        if parameters.get("IotId") in names:
            raise RequestRejected(code, "Not now.")
        return answer(parameters)

    platform._operations[LISTING_LINE] = stubborn


@pytest.mark.usefixtures("short_delays")
@pytest.mark.parametrize("code", ["iot.system.SystemException", "iot.common.AuthActionPermissionDeny"])
async def test_devices_that_never_answer_stay_failed_and_their_account_is_not_stopped(
    tmp_path: Path, code: str
) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        fail_devices(platform, world, set(range(50, 60)), code)
        settings = settings_at(tmp_path, platform, max_attempts=4, max_failed=10)
        first = await auditor.run_audit(settings)
        again = await auditor.resume_audit(first.folder)
    for result in (first, again):
        assert (result.manifest.state, result.exit_code, result.manifest.error) == ("within_tolerance", 0, None)
        assert (result.manifest.devices.ok, result.manifest.devices.failed) == (50, 10)
    assert find_unfinished(tmp_path / "audits", settings) is None


@pytest.mark.slow
async def test_resume_on_an_unreachable_platform_reports_it_and_can_be_resumed(tmp_path: Path) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY) as platform:
        port = platform.port
        first = await interrupted_audit(platform, settings_at(tmp_path, platform, max_attempts=2))
    gone = await auditor.resume_audit(first.folder, until=time.time() + 3)
    assert (gone.manifest.state, gone.exit_code) == ("aborted", 3)
    assert "auditor.Unreachable" in str(gone.manifest.error)
    assert gone.manifest.devices.ok == first.manifest.devices.ok
    async with Simulator(world, port=port):
        result = await auditor.resume_audit(first.folder)
    assert_complete_and_correct(world, result)


async def test_deadline_does_not_hide_an_unreachable_platform(tmp_path: Path) -> None:
    plain_world(5).write_fleet(tmp_path / "fleet.csv")
    table = account_table("http://127.0.0.1:9/", tmp_path)
    result = await auditor.run_audit(settings_for(tmp_path, table), until=time.time() + 2)
    assert (result.manifest.state, result.exit_code) == ("aborted", 3)
    assert "auditor.Unreachable" in str(result.manifest.error)


@pytest.mark.parametrize("odd", ["twice", "foreign"])
async def test_invalid_lines_are_rejected_before_any_query(tmp_path: Path, odd: str) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY) as platform:
        first = await interrupted_audit(platform, settings_at(tmp_path, platform))
        lines = first.folder / "devices.jsonl"
        line = lines.read_bytes().splitlines(keepends=True)[0]
        if odd == "foreign":
            line = json.dumps(json.loads(line) | {"iot_id": "nobody", "device_name": "nobody"}).encode() + b"\n"
        lines.write_bytes(lines.read_bytes() + line)
        received, manifest = platform.counts.received, (first.folder / "run.json").read_bytes()
        with pytest.raises(RunFolderError, match=r"devices\.jsonl was edited: 1 of its lines"):
            await auditor.resume_audit(first.folder)
        assert platform.counts.received == received
    assert (first.folder / "run.json").read_bytes() == manifest
    assert (first.folder / "modules.parquet").is_file()


@pytest.mark.slow
async def test_unreadable_run_of_the_same_directory_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY) as platform:
        settings = settings_at(tmp_path, platform)
        first = await interrupted_audit(platform, settings)
        broken = tmp_path / "audits" / "20200101T000000Z-audit"
        shutil.copytree(first.folder, broken)
        (broken / "run.json").write_text('{"x')
        result = await auditor.run_audit(settings, resume=True)
    assert result.folder == first.folder
    assert_complete_and_correct(world, result)
    assert str(broken) in "".join(capsys.readouterr())
    with auditor.Run(tmp_path / "audits") as run:
        assert run.folder == first.folder


@pytest.mark.slow
async def test_run_is_not_resumed_while_another_of_its_name_is_written(tmp_path: Path) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY) as platform:
        settings = settings_at(tmp_path, platform)
        first, second = (
            await interrupted_audit(platform, settings),
            await interrupted_audit(platform, settings, answers=30),
        )
        assert first.folder != second.folder
        with ExitStack() as holding:
            holding.enter_context(RunLock(second.folder))
            with pytest.raises(RunFolderError, match='named "audit" is running'):
                await auditor.resume_audit(first.folder)
        assert_complete_and_correct(world, await auditor.resume_audit(first.folder))


@pytest.mark.slow
async def test_run_is_resumed_from_its_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY) as platform:
        first = await interrupted_audit(platform, settings_at(tmp_path, platform))
        monkeypatch.chdir(first.folder)
        result = await auditor.resume_audit(".")
    assert_complete_and_correct(world, result)


@pytest.mark.slow
async def test_credentials_may_move_and_paths_may_be_written_differently(tmp_path: Path) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    (tmp_path / "deeper").mkdir()
    async with Simulator(world, latency=SLOW_LATENCY) as platform:
        first = await interrupted_audit(platform, settings_at(tmp_path, platform))
        (tmp_path / "rotated").write_text(DEFAULT_ACCOUNT.secret.reveal())
        table = account_table(
            platform.endpoint,
            tmp_path,
            access_key_secret={"file": str(tmp_path / "rotated")},
            fleet={"file": str(tmp_path / "deeper" / ".." / "fleet.csv")},
        )
        result = await auditor.run_audit(settings_for(tmp_path, table, concurrency=4), resume=True)
    assert result.folder == first.folder
    assert_complete_and_correct(world, result)


async def test_stop_request_ends_an_audit_that_still_reads_its_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_world(5).write_fleet(tmp_path / "fleet.csv")
    monkeypatch.setattr("auditor.audit.runner.create_run", lambda *_: time.sleep(1))
    stop = auditor.StopToken()
    stop.request("enough")
    table = account_table("http://127.0.0.1:9/", tmp_path)
    began = time.monotonic()
    with pytest.raises(AuditInterruptedError, match="enough"):
        await auditor.run_audit(settings_for(tmp_path, table), stop=stop)
    assert time.monotonic() - began < 0.9


async def test_foreign_hidden_folders_are_not_removed(tmp_path: Path) -> None:
    world = plain_world(5)
    world.write_fleet(tmp_path / "fleet.csv")
    precious = [tmp_path / "audits" / name for name in (".new-precious", ".pruned-not", ".new-20260101T000000Z-x")]
    for folder in precious:
        folder.mkdir(parents=True)
    ours = tmp_path / "audits" / ".new-20260101T000000Z-audit-0123abcd"
    ours.mkdir()
    async with Simulator(world) as platform:
        await auditor.run_audit(settings_at(tmp_path, platform))
    assert all(folder.is_dir() for folder in precious)
    assert not ours.exists()
