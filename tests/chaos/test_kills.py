"""Kills at any moment of an audit: no result is lost or duplicated, and written results are not queried again."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

import auditor
from auditor.runs.manifest import read_manifest, write_manifest
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.chaos.figures import KILLS, LONG_RUN_KILLS, SEED, print_figures
from tests.chaos.killing import CONCURRENCY, run_killed_audits
from tests.integration.test_audit import account_table, assert_matches, settings_for

pytestmark = pytest.mark.slow

DEVICES = 5_000 if KILLS >= LONG_RUN_KILLS else 600
"""Devices of each fleet."""


def test_killed_and_resumed_audits_end_with_all_results(tmp_path: Path) -> None:
    began = time.monotonic()
    figures = run_killed_audits(tmp_path, kills=KILLS, devices=DEVICES, seed=SEED)
    print_figures(figures.table(CONCURRENCY), began)
    assert figures.kills.total() == KILLS
    assert figures.unreadable == []
    assert figures.lost == 0
    assert figures.duplicate_lines == 0
    assert figures.queried_twice <= figures.in_flight <= KILLS * CONCURRENCY


@pytest.mark.anyio
async def test_a_run_killed_between_seal_and_verification_is_resumed(tmp_path: Path) -> None:
    world = World(20)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path))
        first = await auditor.run_audit(settings)
        received = platform.counts.received
        write_manifest(first.folder, replace(read_manifest(first.folder), state="partial"))
        second = await auditor.run_audit(settings, resume=True)
        assert platform.counts.received == received
    assert second.folder == first.folder
    assert second.manifest.state == "complete"
    assert_matches(world, first.folder)
