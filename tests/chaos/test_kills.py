"""Kills at any moment of an audit: nothing is lost, nothing comes twice, and what was written is not asked again."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

import auditor
from auditor.runs.manifest import read_manifest, write_manifest
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.chaos.figures import KILLS, MANY, SEED, show
from tests.chaos.killing import AT_ONCE, audit_under_fire
from tests.integration.test_audit import account_table, assert_true_to, settings_for

DEVICES = 5_000 if KILLS >= MANY else 600
"""Of each fleet."""


def test_an_audit_that_is_killed_and_gone_on_with_ends_in_the_whole_truth(tmp_path: Path) -> None:
    began = time.monotonic()
    figures = audit_under_fire(tmp_path, kills=KILLS, devices=DEVICES, seed=SEED)
    show(figures.table(AT_ONCE), began)
    assert figures.kills.total() == KILLS
    assert figures.unreadable == []
    assert figures.lost == 0
    assert figures.written_twice == 0
    assert figures.asked_twice <= figures.in_flight <= KILLS * AT_ONCE


@pytest.mark.anyio
async def test_a_run_that_was_killed_between_its_seal_and_its_proof_is_not_begun_anew(tmp_path: Path) -> None:
    world = World(20)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path))
        first = await auditor.run_audit(settings)
        asked = platform.counts.received
        write_manifest(first.folder, replace(read_manifest(first.folder), state="partial"))
        second = await auditor.run_audit(settings, resume=True)
        assert platform.counts.received == asked
    assert second.folder == first.folder
    assert second.manifest.state == "complete"
    assert_true_to(world, first.folder)
