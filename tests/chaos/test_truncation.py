"""A file of answers that ends anywhere: going on gives the inventory that would have been."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

import auditor
from auditor.runs.folder import ANSWERED, INVENTORY_CSV, SEALED
from auditor.runs.manifest import DeviceCounts, read_manifest, write_manifest
from auditor.runs.recovery import _mend as mend
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.chaos.figures import KILLS, MANY, show
from tests.integration.test_audit import account_table, assert_true_to, lines_of, settings_for

pytestmark = pytest.mark.anyio

WORLD = World(6, seed=3, missing=0, silent=0, inactive=0, large=0, special={3: 1, 4: 0, 5: 2})
"""Its last three devices have one module, none, and two: short lines of both states."""
LAST = 3
EACH = 1 if KILLS >= MANY else 60
"""``make chaos`` goes on to the end from every length; ``make test`` from one of so many and from all line ends, and mends every one."""


@contextmanager
def cut_copy(run: Path, length: int) -> Iterator[Path]:
    """The run as a process leaves it that is killed when it has written so many bytes of its answers."""
    copy = run.with_name("cut")
    shutil.copytree(run, copy)
    for name in SEALED:
        (copy / name).unlink()
    os.truncate(copy / ANSWERED, length)
    manifest = read_manifest(copy)
    pending = DeviceCounts(pending=manifest.fleet.devices)
    write_manifest(copy, replace(manifest, state="running", finished_at=None, files=(), devices=pending))
    yield copy
    shutil.rmtree(copy)


def lengths(run: Path) -> range:
    """Every length that ends in the last three lines: from none of them to all of them."""
    lines = (run / ANSWERED).read_bytes().splitlines(keepends=True)
    return range(sum(map(len, lines[:-LAST])), sum(map(len, lines)) + 1)


async def finished(folder: Path, platform: Simulator) -> Path:
    """A whole run, one request at a time: its lines are in the fleet's order."""
    WORLD.write_fleet(folder / "fleet.csv")
    settings = settings_for(folder, account_table(platform.endpoint, folder), at_once=1)
    result = await auditor.run_audit(settings)
    assert result.manifest.state == "complete"
    assert_true_to(WORLD, result.folder)
    return result.folder


async def test_a_file_cut_anywhere_keeps_its_whole_lines_and_no_other(tmp_path: Path) -> None:
    async with Simulator(WORLD) as platform:
        run = await finished(tmp_path, platform)
    content = (run / ANSWERED).read_bytes()
    for length in lengths(run):
        (run / ANSWERED).write_bytes(content[:length])
        mend(run)
        assert (run / ANSWERED).read_bytes() == content[: content.rfind(b"\n", 0, length) + 1]


async def test_gone_on_with_from_any_length_the_inventory_is_the_same(tmp_path: Path) -> None:
    began = time.monotonic()
    async with Simulator(WORLD) as platform:
        run = await finished(tmp_path, platform)
        content, inventory = ((run / name).read_bytes() for name in (ANSWERED, INVENTORY_CSV))
        chosen = [length for length in lengths(run) if length % EACH == 0 or content[length - 1 : length] == b"\n"]
        for length in chosen:
            before = platform.counts.received
            with cut_copy(run, length) as copy:
                result = await auditor.resume_audit(copy)
                assert result.manifest.state == "complete"
                assert (copy / INVENTORY_CSV).read_bytes() == inventory
                answered = [line["iot_id"] for line in lines_of(copy / ANSWERED)]
            assert answered == [device.iot_id for device in WORLD]
            assert platform.counts.received - before == len(WORLD) - content.count(b"\n", 0, length)
    show(f"{len(chosen)} of {len(lengths(run))} lengths of the last {LAST} lines gone on with", began)
    assert chosen[-1] == len(content)
