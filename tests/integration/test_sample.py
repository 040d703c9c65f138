"""Audits of a random sample: which devices are sampled, the run's numbers, and the stopping rule."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest

import auditor
from auditor.errors import SettingsError
from auditor.runs.estimates import read_stratified_counts
from auditor.selection.ranking import SampleSpec
from auditor.selection.selection_files import SelectionFiles
from auditor.selection.selector import DeviceSelector
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.integration.audits import stop_after
from tests.integration.test_audit import account_table, settings_for
from tests.integration.test_incremental import ALL, audit, rows

pytestmark = pytest.mark.anyio


def world_of(devices: int = 1_000, **parts: Any) -> World:
    return World(devices, today=time.time(), large=0, **parts)


def sampled_devices(folder: Path) -> list[str]:
    return [name for (name,) in rows(folder, "SELECT device_name FROM plan ORDER BY rank")]


async def test_sample_has_each_product_by_its_size_and_is_partial(tmp_path: Path) -> None:
    world = world_of()
    world.write_fleet(tmp_path / "fleet.csv")
    result = await audit(tmp_path, world, sample_size=200, seed=1)
    manifest = result.manifest
    assert (result.exit_code, manifest.state, manifest.error) == (0, "partial", None)
    assert (manifest.unsampled, manifest.devices.pending, manifest.remaining_devices) == (800, 800, 0)
    assert manifest.requests.sent == 200
    counts = dict(rows(result.folder, "SELECT product_key, count(*) FROM devices GROUP BY 1"))
    queried = dict(rows(result.folder, "SELECT product_key, count(*) FROM devices WHERE source = 'queried' GROUP BY 1"))
    assert all(abs(queried[key] - 0.2 * counts[key]) <= 2 for key in counts)
    assert auditor.verify_run(result.folder) == []
    assert not list(result.folder.glob(".*"))


@pytest.mark.slow
async def test_same_seed_samples_the_same_devices(tmp_path: Path) -> None:
    world = world_of()
    world.write_fleet(tmp_path / "fleet.csv")
    one, same, other = [
        sampled_devices((await audit(tmp_path, world, sample_size=100, seed=seed)).folder) for seed in (1, 1, 2)
    ]
    assert one == same
    assert one != other
    longer = sampled_devices((await audit(tmp_path, world, sample_size=150, seed=1)).folder)
    assert len(set(one) - set(longer)) <= 4  # a longer sample has the shorter one in it, but for what is rounded


@pytest.mark.slow
async def test_every_device_has_the_same_probability_to_be_sampled(tmp_path: Path) -> None:
    world = world_of(40, products=1, missing=0)
    world.write_fleet(tmp_path / "fleet.csv")
    run = (await audit(tmp_path, world, sample_size=10, seed=0)).folder
    counts: Counter[str] = Counter()
    for seed in range(60):
        files = SelectionFiles(*(tmp_path / f"{seed}-{name}.parquet" for name in SelectionFiles._fields))
        with DeviceSelector(
            tmp_path / "work", "eu", run / "fleet.parquet", include_never_activated=True, seed=seed
        ) as selector:
            assert selector.select_sample(files, SampleSpec(10)) == 30
        sampled = [name for (name,) in duckdb.read_parquet(str(files.queue)).project("device_name").fetchall()]
        assert seed != 0 or sampled == sampled_devices(run)
        counts.update(sampled)
    assert counts.total() == 600
    assert len(counts) == 40
    assert max(counts.values()) <= 30  # 15 on average, with a deviation of 3.4


async def test_never_activated_devices_are_counted_without_being_sampled(tmp_path: Path) -> None:
    world = world_of(400, inactive=0.2, missing=0)
    never = sum(not device.activated for device in world)
    result = await audit(tmp_path, world, fleet=ALL, sample_size=80, seed=3)
    assert result.manifest.never_activated == never
    assert result.manifest.requests.sent == 80
    assert result.manifest.unsampled == 400 - never - 80
    assert result.exit_code == 0


@pytest.mark.slow
async def test_interrupted_sample_continues_with_the_same_devices(tmp_path: Path) -> None:
    world = world_of()
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(0.005, 0.01), record_responses=True) as platform:
        settings = settings_for(
            tmp_path, account_table(platform.endpoint, tmp_path), sample_size=100, seed=1, concurrency=4
        )
        part = await stop_after(30, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        assert part.exit_code == 130
        assert part.manifest.remaining_devices == part.manifest.devices.pending - part.manifest.unsampled > 0
        result = await auditor.resume_audit(part.folder)
        again = await auditor.resume_audit(result.folder)
        assert platform.responses is not None
        assert (max(platform.responses.values()), platform.responses.total()) == (1, 100)
    assert (result.exit_code, result.manifest.unsampled) == (0, 900)
    assert again.exit_code == 0
    complete = await audit(tmp_path, world, sample_size=100, seed=1)
    assert sampled_devices(complete.folder) == sampled_devices(result.folder)
    assert auditor.verify_run(result.folder) == []


@pytest.mark.parametrize("level", ["fleet", "module", "product"])
@pytest.mark.slow
async def test_queries_end_at_the_required_precision(tmp_path: Path, level: Any) -> None:
    world = world_of(4_000)
    world.write_fleet(tmp_path / "fleet.csv")
    result = await audit(tmp_path, world, precision="5%", precision_of=level, seed=1)
    selection = result.manifest.selection
    assert selection is not None
    assert selection.achieved_precision is not None
    assert 0.04 < selection.achieved_precision <= 0.05
    assert (result.exit_code, result.manifest.remaining_devices, result.manifest.error) == (0, 0, None)
    queried = 4_000 - result.manifest.unsampled
    assert result.manifest.requests.sent == queried
    bounds = {"fleet": (200, 420), "module": (300, 3_000), "product": (900, 3_500)}
    assert bounds[level][0] < queried < bounds[level][1]
    assert auditor.verify_run(result.folder) == []


async def test_precision_that_needs_the_complete_fleet_gives_a_complete_run(tmp_path: Path) -> None:
    world = world_of(60)
    world.write_fleet(tmp_path / "fleet.csv")
    result = await audit(tmp_path, world, precision="0.1%", precision_of="product")
    assert (result.exit_code, result.manifest.unsampled) == (0, 0)
    assert result.manifest.state == "complete"


@pytest.mark.slow
async def test_intervals_of_samples_cover_the_true_shares(tmp_path: Path) -> None:
    world = world_of()
    world.write_fleet(tmp_path / "fleet.csv")
    true: Counter[tuple[str, str]] = Counter(
        (module.module_name.lower(), module.module_version)
        for device in world
        if device.exists
        for module in device.modules
    )
    covered = cases = 0
    for seed in range(12):
        result = await audit(tmp_path, world, sample_size=150, seed=seed)
        with auditor.Run(result.folder) as run:
            shares = list(read_stratified_counts(run._database).shares("fleet"))
        for share in shares:
            key = (share.version.module_name.lower(), share.version.module_version)
            cases += 1
            covered += share.interval.low <= true[key] / 1_000 <= share.interval.high
    assert cases > 200
    assert covered / cases >= 0.9


async def test_contradictory_selection_settings_are_rejected(tmp_path: Path) -> None:
    table = account_table("http://127.0.0.1:1/", tmp_path)
    for changes, says in (
        ({"sample_size": 10, "precision": "1%"}, "precision: sample_size already says"),
        ({"sample_size": 10, "since": "last"}, "sample_size: a sample is of the complete fleet"),
        ({"precision": "1%", "max_calls": 10}, "precision: a sample is of the complete fleet"),
        ({"precision": "60%"}, "precision: give one above 0% and below 50%"),
        ({"precision": "0%"}, "precision: give one above 0% and below 50%"),
        ({"sample_size": 0}, "sample_size: give a whole number from 1 up"),
        ({"max_calls": -1}, "max_calls: give a whole number from 1 up"),
        ({"recheck": "1"}, "recheck: '1' is not a percentage"),
        ({"fair_share": "110%"}, "fair_share: '110%' is not a percentage"),
        ({"max_age": "soon"}, "max_age: 'soon' is not a duration"),
        ({"since": ""}, "since: is empty"),
        ({"change_detection": "lax"}, 'change_detection: give "strict" or "reconnected"'),
    ):
        with pytest.raises(SettingsError, match=says):
            settings_for(tmp_path, table, **changes)
