"""The recipe of deploy/slurm, run by a real Slurm: shards are an array job, and a requeued task continues its shard."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

import auditor
from auditor.cluster.attempt_log import list_attempts
from auditor.cluster.cut import read_plan
from auditor.cluster.progress import fetch_run
from auditor.cluster.storage import find_run_address, open_run
from auditor.simulator.world import World
from tests import forked
from tests.chaos.counting import run_platform
from tests.cli.test_cluster import write_settings
from tests.cluster.shards import account_table, assert_same_run
from tests.deploy.slurm import MAX_SECONDS, needs_slurm, running_slurm

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@needs_slurm
@pytest.mark.live
def test_an_array_job_of_slurm_gives_the_run_of_one_machine(tmp_path: Path) -> None:
    """One task is requeued while it queries, as Slurm does when a node fails."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    world = World(120, seed=6)
    world.write_fleet(tmp_path / "fleet.csv")
    program = tmp_path / "auditor"
    program.write_text(f'#!/bin/bash\nPYTHONPATH={ROOT} exec {sys.executable} -m auditor "$@"\n')
    program.chmod(0o755)
    with run_platform(world, 5) as platform, running_slurm(folder) as slurm:
        slurm.environment["PATH"] = f"{tmp_path}:{slurm.environment['PATH']}"
        tables = [
            account_table(platform.endpoint, tmp_path, "eu", calls_per_second=10),
            account_table(platform.endpoint, tmp_path, "us"),
        ]
        settings = write_settings(tmp_path, *tables)
        assert forked.run("cut", settings, cwd=tmp_path).returncode == 0
        address = find_run_address(str(tmp_path / "shared"))
        recipe = ROOT / "deploy" / "slurm" / "auditor.sbatch"
        words = ("--parsable", "--array=0-2", f"--output={tmp_path}/log-%a.txt", f"--chdir={tmp_path}")
        job = slurm.call("sbatch", *words, recipe, address, settings).strip()
        storage = open_run(address)
        plan = read_plan(storage)
        _wait_for(
            lambda: any("0000-eu/attempts" in each.key and "/parts/" in each.key for each in storage.list()), tmp_path
        )
        slurm.call("scontrol", "requeue", f"{job}_0")
        _wait_for(lambda: not slurm.call("squeue", "--noheader", f"--jobs={job}"), tmp_path)
        alone = anyio.run(auditor.run_audit, auditor.load_settings(settings)).folder
    assert_same_run(fetch_run(storage, tmp_path / "fetched"), alone)
    assert [len(list_attempts(storage, each.folder)) for each in plan.shards] == [2, 1]
    assert "nothing to do" in (tmp_path / "log-2.txt").read_text()


def _wait_for(condition: Callable[[], bool], folder: Path) -> None:
    ends_at = time.monotonic() + MAX_SECONDS
    while not condition():
        assert time.monotonic() < ends_at, [each.read_text() for each in folder.glob("log-*.txt")]
        time.sleep(0.2)
