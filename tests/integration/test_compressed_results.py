"""Audits whose results are compressed when they are sealed: resumed from every state that a kill can leave."""

import gzip
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

import auditor
from auditor.config.settings import Settings
from auditor.errors import RunFolderError
from auditor.runs import journal
from auditor.runs.folder import COMPRESSED_RESULTS, RESULTS, SEALED
from auditor.runs.manifest import read_manifest, write_manifest
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.integration.audits import (
    SLOW_LATENCY,
    assert_complete_and_correct,
    assert_queried_once,
    interrupted_audit,
    plain_world,
    settings_at,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def compress_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MIN_COMPRESSED_BYTES", 0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    return world


@pytest.fixture
async def platform(world: World) -> AsyncIterator[Simulator]:
    async with Simulator(world, latency=SLOW_LATENCY, record_responses=True) as platform:
        yield platform


@pytest.fixture
def settings(tmp_path: Path, platform: Simulator) -> Settings:
    return settings_at(tmp_path, platform)


def stored_results(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*devices.jsonl*"))


@pytest.mark.parametrize("killed", ["not", "before the manifest", "before the removal", "in the resume"])
async def test_every_device_is_queried_once_wherever_a_kill_came(
    platform: Simulator, world: World, settings: Settings, killed: str
) -> None:
    first = await interrupted_audit(platform, settings)
    assert stored_results(first.folder) == [COMPRESSED_RESULTS]
    assert auditor.verify_run(first.folder) == []
    if killed in {"before the manifest", "before the removal"}:
        running = replace(first.manifest, state="running", finished_at=None, files=(), exit_code=None, exit_reason=None)
        write_manifest(first.folder, running)
    if killed in {"before the removal", "in the resume"}:
        content = gzip.decompress((first.folder / COMPRESSED_RESULTS).read_bytes())
        (first.folder / RESULTS).write_bytes(content)
    result = await auditor.resume_audit(first.folder)
    assert_queried_once(platform, world)
    assert_complete_and_correct(world, result)
    assert stored_results(result.folder) == [COMPRESSED_RESULTS]


@pytest.mark.slow
async def test_a_kill_while_a_resumed_run_appends_loses_nothing(
    platform: Simulator, world: World, settings: Settings
) -> None:
    first = await interrupted_audit(platform, settings)
    again = await interrupted_audit(platform, settings, answers=40, resume=True)
    assert again.folder == first.folder
    content = gzip.decompress((again.folder / COMPRESSED_RESULTS).read_bytes())
    for name in (COMPRESSED_RESULTS, *SEALED):
        (again.folder / name).unlink()
    (again.folder / RESULTS).write_bytes(content + b'{"account":"de')  # a torn line
    write_manifest(again.folder, replace(again.manifest, state="running", finished_at=None, files=()))
    result = await auditor.resume_audit(again.folder)
    assert_queried_once(platform, world)
    assert_complete_and_correct(world, result)


async def test_a_damaged_file_stops_a_resume_before_any_query(platform: Simulator, settings: Settings) -> None:
    first = await interrupted_audit(platform, settings)
    results = first.folder / COMPRESSED_RESULTS
    results.write_bytes(results.read_bytes()[:-9])
    received, manifest = platform.counts.received, (first.folder / "run.json").read_bytes()
    with pytest.raises(RunFolderError, match=r"devices\.jsonl\.gz: cannot be read: is incomplete"):
        await auditor.resume_audit(first.folder)
    assert platform.counts.received == received
    assert (first.folder / "run.json").read_bytes() == manifest
    assert stored_results(first.folder) == [COMPRESSED_RESULTS]
    assert read_manifest(first.folder).state == "partial"
