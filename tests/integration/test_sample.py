"""Audits of a random sample: who is drawn, what the run says of itself, and when it knows enough."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import auditor
from auditor.errors import SettingsError
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from auditor.stats.stratified import read_tallies
from tests.integration.audits import ended_after
from tests.integration.test_audit import account_table, settings_for
from tests.integration.test_incremental import ALL, night, rows

pytestmark = pytest.mark.anyio


def world_of(devices: int = 1_000, **parts: Any) -> World:
    return World(devices, today=time.time(), large=0, **parts)


def drawn(folder: Path) -> list[str]:
    return [name for (name,) in rows(folder, "SELECT device_name FROM plan ORDER BY rank")]


async def test_a_sample_asks_so_many_of_each_product_by_its_size_and_is_no_census(tmp_path: Path) -> None:
    world = world_of()
    world.write_fleet(tmp_path / "fleet.csv")
    result = await night(tmp_path, world, sample=200, seed=1)
    manifest = result.manifest
    assert (result.exit_code, manifest.state, manifest.error) == (0, "partial", None)
    assert (manifest.unsampled, manifest.devices.pending, manifest.to_ask) == (800, 800, 0)
    assert manifest.requests.sent == 200
    counts = dict(rows(result.folder, "SELECT product_key, count(*) FROM devices GROUP BY 1"))
    asked = dict(rows(result.folder, "SELECT product_key, count(*) FROM devices WHERE source = 'asked' GROUP BY 1"))
    assert all(abs(asked[key] - 0.2 * counts[key]) <= 2 for key in counts)
    assert auditor.verify(result.folder) == []
    assert not list(result.folder.glob(".*"))


async def test_a_seed_draws_the_same_devices_and_another_one_others(tmp_path: Path) -> None:
    world = world_of()
    world.write_fleet(tmp_path / "fleet.csv")
    one, same, other = [drawn((await night(tmp_path, world, sample=100, seed=seed)).folder) for seed in (1, 1, 2)]
    assert one == same
    assert one != other
    longer = drawn((await night(tmp_path, world, sample=150, seed=1)).folder)
    assert len(set(one) - set(longer)) <= 4  # a longer sample has the shorter one in it, but for what is rounded


async def test_every_device_is_as_likely_to_be_drawn_as_another(tmp_path: Path) -> None:
    world = world_of(40, products=1, missing=0)
    world.write_fleet(tmp_path / "fleet.csv")
    counts: Counter[str] = Counter()
    for seed in range(60):
        counts.update(drawn((await night(tmp_path, world, sample=10, seed=seed)).folder))
    assert counts.total() == 600
    assert len(counts) == 40
    assert max(counts.values()) <= 30  # 15 on average, with a deviation of 3.4


async def test_devices_that_were_never_activated_are_known_without_being_drawn(tmp_path: Path) -> None:
    world = world_of(400, inactive=0.2, missing=0)
    never = sum(not device.activated for device in world)
    result = await night(tmp_path, world, fleet=ALL, sample=80, seed=3)
    assert result.manifest.never_activated == never
    assert result.manifest.requests.sent == 80
    assert result.manifest.unsampled == 400 - never - 80
    assert result.exit_code == 0


async def test_an_interrupted_sample_is_gone_on_with_and_asks_nobody_else(tmp_path: Path) -> None:
    world = world_of()
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(0.005, 0.01), record_answers=True) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), sample=100, seed=1, at_once=4)
        part = await ended_after(30, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        assert part.exit_code == 130
        assert part.manifest.to_ask == part.manifest.devices.pending - part.manifest.unsampled > 0
        result = await auditor.resume_audit(part.folder)
        again = await auditor.resume_audit(result.folder)
        assert platform.answers is not None
        assert (max(platform.answers.values()), platform.answers.total()) == (1, 100)
    assert (result.exit_code, result.manifest.unsampled) == (0, 900)
    assert again.exit_code == 0
    whole = await night(tmp_path, world, sample=100, seed=1)
    assert drawn(whole.folder) == drawn(result.folder)
    assert auditor.verify(result.folder) == []


@pytest.mark.parametrize("level", ["fleet", "module", "product"])
async def test_a_precision_ends_as_soon_as_shares_are_known_so_well(tmp_path: Path, level: Any) -> None:
    world = world_of(4_000)
    world.write_fleet(tmp_path / "fleet.csv")
    result = await night(tmp_path, world, precision="5%", precision_of=level, seed=1)
    choice = result.manifest.choice
    assert choice is not None
    assert choice.reached is not None
    assert 0.04 < choice.reached <= 0.05
    assert (result.exit_code, result.manifest.to_ask, result.manifest.error) == (0, 0, None)
    asked = 4_000 - result.manifest.unsampled
    assert result.manifest.requests.sent == asked
    bounds = {"fleet": (200, 420), "module": (300, 3_000), "product": (900, 3_500)}
    assert bounds[level][0] < asked < bounds[level][1]
    assert auditor.verify(result.folder) == []


async def test_a_precision_that_takes_the_whole_fleet_is_a_census(tmp_path: Path) -> None:
    world = world_of(60)
    world.write_fleet(tmp_path / "fleet.csv")
    result = await night(tmp_path, world, precision="0.1%", precision_of="product")
    assert (result.exit_code, result.manifest.unsampled) == (0, 0)
    assert result.manifest.state == "complete"


async def test_the_shares_of_a_sample_hold_the_truth_as_often_as_they_say(tmp_path: Path) -> None:
    world = world_of(2_000)
    world.write_fleet(tmp_path / "fleet.csv")
    true: Counter[tuple[str, str]] = Counter(
        (module.module_name.lower(), module.module_version)
        for device in world
        if device.exists
        for module in device.modules
    )
    held = cases = 0
    for seed in range(12):
        result = await night(tmp_path, world, sample=300, seed=seed)
        with auditor.Run(result.folder) as run:
            shares = list(read_tallies(run._database).shares("fleet"))
        for share in shares:
            key = (share.version.module_name.lower(), share.version.module_version)
            cases += 1
            held += share.interval.low <= true[key] / 2_000 <= share.interval.high
    assert cases > 200
    assert held / cases >= 0.9


async def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    table = account_table("http://127.0.0.1:1/", tmp_path)
    for changes, says in (
        ({"sample": 10, "precision": "1%"}, "precision: there is a sample"),
        ({"sample": 10, "since": "last"}, "sample: is drawn anew"),
        ({"precision": "1%", "calls": 10}, "precision: is drawn anew"),
        ({"precision": "60%"}, "precision: give one above 0% and below 50%"),
        ({"precision": "0%"}, "precision: give one above 0% and below 50%"),
        ({"sample": 0}, "sample: give a whole number from 1 up"),
        ({"calls": -1}, "calls: give a whole number from 1 up"),
        ({"recheck": "1"}, "recheck: '1' is no percentage"),
        ({"guaranteed": "110%"}, "guaranteed: '110%' is no percentage"),
        ({"max_age": "soon"}, "max_age: is no length of time"),
        ({"since": ""}, "since: is empty"),
        ({"since_rule": "lax"}, 'since_rule: give "strict" or "reconnected"'),
    ):
        with pytest.raises(SettingsError, match=says):
            settings_for(tmp_path, table, **changes)
