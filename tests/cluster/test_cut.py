"""Runs that are cut with ``since``: shards carry the results of the newest run of their storage."""

import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

import auditor
from auditor.cluster.attempt_log import list_attempts
from auditor.cluster.cut import cut_run
from auditor.cluster.plan import ShardPlan
from auditor.cluster.progress import fetch_run
from auditor.cluster.storage import join_address, open_run
from auditor.config.settings import Settings
from auditor.errors import InvalidObjectError, SettingsError
from auditor.simulator.lifecycle import Lifecycle
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from auditor.storage.object_store import ObjectStore
from tests.cluster.shards import account_table, assert_same_run, cluster_settings, run_all
from tests.cluster.test_shard import has_part, interrupted_worker

pytestmark = pytest.mark.anyio

DEVICES = 200
QUIET = Lifecycle(connecting=0.2, always_online=0.0)


def world_of(day: int) -> World:
    return World(DEVICES, lifecycle=QUIET, day=day, today=time.time())


@asynccontextmanager
async def settings_of(folder: Path, day: int, *, latency: float = 0.0, **changes: object) -> AsyncIterator[Settings]:
    """Run two platforms at a day: the fleet of one is in a file, and the other one lists its fleet."""
    world, delays = world_of(day), (latency, latency)
    (folder / "shared").mkdir(exist_ok=True)
    world.write_fleet(folder / "fleet.csv")
    listed = World(60, seed=5, lifecycle=QUIET, day=day, today=time.time())
    async with Simulator(world, latency=delays) as platform, Simulator(listed) as other:
        tables = [
            account_table(platform.endpoint, folder),
            account_table(other.endpoint, folder, "us", fleet={"products": "all"}),
        ]
        yield cluster_settings(folder, *tables, seed=3, **changes)


async def cut_and_run(folder: Path, settings: Settings) -> tuple[ObjectStore, ShardPlan, Path]:
    storage, plan, name = cut_here(settings)
    assert await run_all(storage, plan, settings) == [0] * len(plan.shards)
    return storage, plan, fetch_run(storage, folder / "fetched" / name)


def cut_here(settings: Settings) -> tuple[ObjectStore, ShardPlan, str]:
    assert settings.cluster is not None
    address = settings.cluster.storage
    name, plan = cut_run(settings, lambda name: open_run(join_address(address, name), create=True))
    return open_run(join_address(address, name)), plan, name


async def run_first(folder: Path) -> Path:
    """Run shards without a previous run, so that all devices are queried; the run is the previous one of one machine, too."""
    async with settings_of(folder, 0, since="last") as settings:
        storage, plan, fetched = await cut_and_run(folder, settings)
    assert plan.selection is not None
    assert (plan.selection.baseline_run, auditor.Run(fetched).manifest.devices.answered) == (None, DEVICES + 60)
    return fetch_run(storage, folder / "audits" / fetched.name)


async def test_shards_carry_the_results_of_the_previous_run_as_one_machine_does(tmp_path: Path) -> None:
    first = await run_first(tmp_path)
    await anyio.sleep(1.01)  # names of runs have seconds
    async with settings_of(tmp_path, 1, since="last") as settings:
        storage, plan, fetched = await cut_and_run(tmp_path, settings)
        alone = (await auditor.run_audit(settings)).folder
    assert auditor.verify_run(alone) == []
    assert_same_run(fetched, alone)
    selection, expected = auditor.Run(fetched).manifest.selection, auditor.Run(alone).manifest.selection
    assert selection is not None
    assert expected is not None
    assert (selection.baseline_run, expected.baseline_run) == (first.name, first.name)
    counts, expected_counts = (
        {each.account: (each.selected, each.carried, each.unchanged) for each in found.accounts}  # as they end
        for found in (selection, expected)
    )
    assert counts == expected_counts
    assert selection.recheck == expected.recheck
    assert 0 < sum(each.carried for each in selection.accounts) < DEVICES + 60
    stored = storage.get(f"{plan.shards[0].folder}/baseline.parquet")
    storage.put(f"{plan.shards[0].folder}/baseline.parquet", stored + b"x")
    again, other, _ = cut_here(settings)
    again.put(f"{other.shards[0].folder}/baseline.parquet", stored + b"x")
    with pytest.raises(InvalidObjectError, match=r"baseline\.parquet: is damaged"):
        await run_all(again, other, settings)


@pytest.mark.slow
async def test_an_interrupted_shard_keeps_its_selection(tmp_path: Path) -> None:
    await run_first(tmp_path)
    await anyio.sleep(1.01)
    async with settings_of(tmp_path, 1, latency=0.05, since="last", concurrency=2) as settings:
        storage, plan, name = cut_here(settings)
        assert await interrupted_worker(storage, plan, settings, lambda: has_part(storage)) == 130
        assert any(each.key.endswith("snapshots/000001/carried.parquet") for each in storage.list())
        assert await run_all(storage, plan, settings) == [0, 0]
        alone = (await auditor.run_audit(settings)).folder
    assert len(list_attempts(storage, plan.shards[0].folder)) == 2
    assert_same_run(fetch_run(storage, tmp_path / "fetched" / name), alone)


@pytest.mark.slow
async def test_a_damaged_run_is_skipped_for_an_older_one(tmp_path: Path) -> None:
    await run_first(tmp_path)
    (first,) = [each for each in (tmp_path / "shared").iterdir() if each.name != "newest"]
    for second, name in enumerate(("run.json", "sealed")):
        damaged = shutil.copytree(first, first.with_name(f"20991231T00000{second}Z-audit"))
        path = damaged / name if name == "run.json" else next(damaged.glob("sealed/*/modules.parquet"))
        path.write_text("damaged")
    async with settings_of(tmp_path, 1, since="last") as settings:
        _, plan, _ = cut_here(settings)
    assert plan.selection is not None
    assert plan.selection.baseline_run == first.name


@pytest.mark.slow
async def test_since_of_a_path_and_other_modules_are_refused(tmp_path: Path) -> None:
    first = await run_first(tmp_path)
    async with settings_of(tmp_path, 1, since=str(first)) as settings:
        with pytest.raises(SettingsError, match="since: is not for a run of shards"):
            cut_here(settings)
    async with settings_of(tmp_path, 1, since="last", modules=["default"]) as settings:
        with pytest.raises(SettingsError, match="modules: differs from that of"):
            cut_here(settings)
