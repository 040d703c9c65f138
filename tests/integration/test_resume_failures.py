"""Going on where it is not easy: stubborn devices, a platform that is gone, odd lines, broken neighbours, a full disk."""

import json
import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

import auditor
from auditor.audit.resume import unfinished
from auditor.errors import RunFolderError, StoppedAtOnceError
from auditor.resilience.retry import Backoff
from auditor.runs.locking import Hold
from auditor.simulator.responses import Document, Refused
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.audits import SLOW, assert_complete_and_true, begun, plain, settings_at
from tests.integration.test_audit import account_table, settings_for

pytestmark = pytest.mark.anyio

LISTING = "ListOTAModuleVersionsByDevice"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "delay", lambda _self, _failures, draw: 0.01 * draw)


def make_stubborn(platform: Simulator, world: World, indexes: set[int], code: str) -> None:
    """Lets some devices be answered with nothing but an error."""
    names = {world.device(index).iot_id for index in indexes}
    answer = platform._operations[LISTING]

    def stubborn(parameters: Mapping[str, str]) -> Document:
        if parameters.get("IotId") in names:
            raise Refused(code, "Not now.")
        return answer(parameters)

    platform._operations[LISTING] = stubborn


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("code", ["iot.system.SystemException", "iot.common.AuthActionPermissionDeny"])
async def test_devices_that_never_answer_stay_failed_and_their_account_is_not_blamed(tmp_path: Path, code: str) -> None:
    world = plain(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        make_stubborn(platform, world, set(range(50, 60)), code)
        settings = settings_at(tmp_path, platform, attempts=4, max_failed=10)
        first = await auditor.run_audit(settings)
        again = await auditor.resume_audit(first.folder)
    for result in (first, again):
        assert (result.manifest.state, result.exit_code, result.manifest.error) == ("partial", 0, None)
        assert (result.manifest.devices.ok, result.manifest.devices.failed) == (50, 10)
    assert unfinished(tmp_path / "audits", "audit") is None


async def test_a_resume_on_a_platform_that_is_gone_says_so_and_can_be_resumed(tmp_path: Path) -> None:
    world = plain(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW) as platform:
        port = platform.port
        first = await begun(platform, settings_at(tmp_path, platform, attempts=2))
    gone = await auditor.resume_audit(first.folder, until=time.time() + 3)
    assert (gone.manifest.state, gone.exit_code) == ("aborted", 3)
    assert "auditor.Unreachable" in str(gone.manifest.error)
    assert gone.manifest.devices.ok == first.manifest.devices.ok
    async with Simulator(world, port=port):
        result = await auditor.resume_audit(first.folder)
    assert_complete_and_true(world, result)


async def test_a_deadline_does_not_hide_a_platform_that_was_never_reached(tmp_path: Path) -> None:
    plain(5).write_fleet(tmp_path / "fleet.csv")
    table = account_table("http://127.0.0.1:9/", tmp_path)
    result = await auditor.run_audit(settings_for(tmp_path, table), until=time.time() + 2)
    assert (result.manifest.state, result.exit_code) == ("aborted", 3)
    assert "auditor.Unreachable" in str(result.manifest.error)


@pytest.mark.parametrize("odd", ["twice", "foreign"])
async def test_lines_that_no_audit_writes_are_refused_before_anything_is_asked(tmp_path: Path, odd: str) -> None:
    world = plain(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW) as platform:
        first = await begun(platform, settings_at(tmp_path, platform))
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


async def test_a_broken_neighbour_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = plain(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW) as platform:
        settings = settings_at(tmp_path, platform)
        first = await begun(platform, settings)
        broken = tmp_path / "audits" / "20200101T000000Z-audit"
        shutil.copytree(first.folder, broken)
        (broken / "run.json").write_text('{"x')
        result = await auditor.run_audit(settings, resume=True)
    assert result.folder == first.folder
    assert_complete_and_true(world, result)
    assert str(broken) in "".join(capsys.readouterr())
    with auditor.Run(tmp_path / "audits") as run:
        assert run.folder == first.folder


async def test_a_run_is_not_gone_on_with_beside_another_of_its_name(tmp_path: Path) -> None:
    world = plain(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW) as platform:
        settings = settings_at(tmp_path, platform)
        first, second = await begun(platform, settings), await begun(platform, settings, answered=30)
        assert first.folder != second.folder
        with ExitStack() as holding:
            holding.enter_context(Hold(second.folder))
            with pytest.raises(RunFolderError, match='named "audit" is under way'):
                await auditor.resume_audit(first.folder)
        assert_complete_and_true(world, await auditor.resume_audit(first.folder))


async def test_a_run_is_gone_on_with_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = plain(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW) as platform:
        first = await begun(platform, settings_at(tmp_path, platform))
        monkeypatch.chdir(first.folder)
        result = await auditor.resume_audit(".")
    assert_complete_and_true(world, result)


async def test_keys_may_lie_elsewhere_and_paths_be_written_otherwise(tmp_path: Path) -> None:
    world = plain(60)
    world.write_fleet(tmp_path / "fleet.csv")
    (tmp_path / "deeper").mkdir()
    async with Simulator(world, latency=SLOW) as platform:
        first = await begun(platform, settings_at(tmp_path, platform))
        (tmp_path / "rotated").write_text(DEFAULT_ACCOUNT.secret.reveal())
        table = account_table(
            platform.endpoint,
            tmp_path,
            access_key_secret={"file": str(tmp_path / "rotated")},
            fleet={"file": str(tmp_path / "deeper" / ".." / "fleet.csv")},
        )
        result = await auditor.run_audit(settings_for(tmp_path, table, at_once=4), resume=True)
    assert result.folder == first.folder
    assert_complete_and_true(world, result)


async def test_a_wish_to_stop_ends_an_audit_that_still_reads_its_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain(5).write_fleet(tmp_path / "fleet.csv")
    monkeypatch.setattr("auditor.audit.runner.new_run", lambda *_: time.sleep(1))
    stop = auditor.Stop()
    stop.wish("enough")
    table = account_table("http://127.0.0.1:9/", tmp_path)
    began = time.monotonic()
    with pytest.raises(StoppedAtOnceError, match="enough"):
        await auditor.run_audit(settings_for(tmp_path, table), stop=stop)
    assert time.monotonic() - began < 0.9


async def test_nobody_else_s_hidden_folders_are_swept(tmp_path: Path) -> None:
    world = plain(5)
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
