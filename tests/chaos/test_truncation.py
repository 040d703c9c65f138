"""A results file that ends anywhere: a resume gives the same inventory."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import auditor
from auditor.runs.folder import INVENTORY_CSV, RESULTS, SEALED
from auditor.runs.manifest import DeviceCounts, read_manifest, write_manifest
from auditor.runs.recovery import repair
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.chaos.figures import KILLS, LONG_RUN_KILLS, print_figures
from tests.integration.test_audit import account_table, assert_matches, read_lines, settings_for

pytestmark = [pytest.mark.slow, pytest.mark.anyio]

WORLD = World(6, seed=3, missing=0, silent=0, inactive=0, large=0, module_counts={3: 1, 4: 0, 5: 2})
"""Its last three devices have one, no and two modules: short lines of both statuses."""
LAST_LINES = 3
LENGTH_STEP = 1 if KILLS >= LONG_RUN_KILLS else 60
"""``make chaos`` resumes from every length, ``make test`` from one in so many and from all line ends."""


@contextmanager
def truncated_copy(run: Path, length: int) -> Iterator[Path]:
    """Copy a run as if it was killed after so many bytes of its results."""
    copy = run.with_name("cut")
    shutil.copytree(run, copy)
    for name in SEALED:
        (copy / name).unlink()
    os.truncate(copy / RESULTS, length)
    manifest = read_manifest(copy)
    pending = DeviceCounts(pending=manifest.fleet.devices)
    write_manifest(copy, replace(manifest, state="running", finished_at=None, files=(), devices=pending))
    yield copy
    shutil.rmtree(copy)


def lengths(run: Path) -> range:
    """Return all lengths that end in the last three lines, from none of them to all of them."""
    lines = (run / RESULTS).read_bytes().splitlines(keepends=True)
    return range(sum(map(len, lines[:-LAST_LINES])), sum(map(len, lines)) + 1)


async def finished_run(folder: Path, platform: Simulator) -> Path:
    """Return a complete run with one request at a time: its lines are in the order of the fleet."""
    WORLD.write_fleet(folder / "fleet.csv")
    settings = settings_for(folder, account_table(platform.endpoint, folder), concurrency=1)
    result = await auditor.run_audit(settings)
    assert result.manifest.state == "complete"
    assert_matches(WORLD, result.folder)
    return result.folder


async def test_a_file_truncated_anywhere_keeps_exactly_its_complete_lines(tmp_path: Path) -> None:
    async with Simulator(WORLD) as platform:
        run = await finished_run(tmp_path, platform)
    content = (run / RESULTS).read_bytes()
    for length in lengths(run):
        (run / RESULTS).write_bytes(content[:length])
        repair(run)
        assert (run / RESULTS).read_bytes() == content[: content.rfind(b"\n", 0, length) + 1]


async def test_a_resume_from_any_length_gives_the_same_inventory(tmp_path: Path) -> None:
    began = time.monotonic()
    async with Simulator(WORLD) as platform:
        run = await finished_run(tmp_path, platform)
        content, inventory = ((run / name).read_bytes() for name in (RESULTS, INVENTORY_CSV))
        selected = [
            length for length in lengths(run) if length % LENGTH_STEP == 0 or content[length - 1 : length] == b"\n"
        ]
        for length in selected:
            before = platform.counts.received
            with truncated_copy(run, length) as copy:
                result = await auditor.resume_audit(copy)
                assert result.manifest.state == "complete"
                assert (copy / INVENTORY_CSV).read_bytes() == inventory
                answered = sorted(line["iot_id"] for line in read_lines(copy / RESULTS))
            assert answered == sorted(device.iot_id for device in WORLD)
            assert platform.counts.received - before == len(WORLD) - content.count(b"\n", 0, length)
    print_figures(f"{len(selected)} of {len(lengths(run))} lengths of the last {LAST_LINES} lines resumed", began)
    assert selected[-1] == len(content)
