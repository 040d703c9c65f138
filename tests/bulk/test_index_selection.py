"""Runs that read the search index and query a part of the devices: incremental ones, samples, and those with a budget."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import auditor
from auditor.errors import SettingsError
from auditor.models import ModuleVersion
from auditor.simulator.lifecycle import Lifecycle
from auditor.simulator.registry import Registry
from auditor.simulator.search.options import IndexOptions
from auditor.simulator.server import Simulator
from auditor.simulator.world import SimulatedDevice, World
from tests.bulk.test_index_reader import ROWS, VERSIONS, assert_snapshot, calls, rows_of, settings_of
from tests.database import connect
from tests.integration.test_audit import account_table, settings_for

pytestmark = pytest.mark.anyio

STATES = "BatchGetDeviceState"


def world_of(day: int, devices: int = 600) -> World:
    """Return a fleet in which all devices are online all the time, so that connection states save nothing."""
    life = Lifecycle(connecting=0.0, always_online=1.0)
    return World(devices, products=3, missing=0, silent=0.02, inactive=0, lifecycle=life, day=day, today=time.time())


def reasons(result: auditor.AuditResult) -> dict[str, int]:
    with connect() as database:
        plan = f"read_parquet('{result.folder / 'plan.parquet'}')"
        query = f"SELECT selection_reason, count(*) FROM {plan} GROUP BY ALL"
        return dict(database.execute(query).fetchall())


@pytest.mark.slow
async def test_an_incremental_run_queries_the_devices_whose_versions_in_the_index_differ(tmp_path: Path) -> None:
    before, after = world_of(1), world_of(4)
    async with Simulator(before, index=IndexOptions()) as platform:
        await auditor.run_audit(settings_of(platform, tmp_path, "device"))
    async with Simulator(after, index=IndexOptions(), record_arrivals=True) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path, since="last", recheck="5%", seed=3))
        sent = calls(platform)
    assert_snapshot(after, result)
    changed = sum(new.modules != old.modules for old, new in zip(before, after, strict=True))
    found = reasons(result)
    assert 20 < changed < 500
    assert found["differs"] == changed
    assert set(found) == {"differs", "recheck"}
    assert sent[VERSIONS] == sum(found.values())
    assert STATES not in sent
    selection = result.manifest.selection
    assert selection is not None
    assert (selection.strategy, selection.accounts[0].unchanged) == ("incremental", 600 - changed)
    assert selection.recheck is not None
    assert (selection.recheck.checked, selection.recheck.changed) == (found["recheck"], 0)
    sources = dict(rows_of(result.folder, "SELECT source, count(*) FROM {devices} GROUP BY source"))
    assert sources == {"queried": sum(found.values()), "carried": 600 - sum(found.values())}


@pytest.mark.slow
async def test_without_an_index_an_incremental_run_requests_connection_states(tmp_path: Path) -> None:
    world = world_of(1, 60)
    async with Simulator(world, record_arrivals=True) as platform:
        await auditor.run_audit(settings_of(platform, tmp_path, "device"))
        result = await auditor.run_audit(settings_of(platform, tmp_path, since="last"))
        assert calls(platform)[STATES] > 0
    assert_snapshot(world, result)


@pytest.mark.slow
async def test_auto_queries_all_devices_if_the_index_shows_too_few_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index is so far behind that it has the versions of the previous run."""
    before, after = world_of(1), world_of(4)

    def modules(_: Registry, device: SimulatedDevice, ago: float = 0.0) -> tuple[ModuleVersion, ...]:
        return before.device(device.index).modules if ago else device.modules

    async with Simulator(before) as platform:
        await auditor.run_audit(settings_of(platform, tmp_path, "device"))
    monkeypatch.setattr(Registry, "modules", modules)
    async with Simulator(after, index=IndexOptions(lag=1.0)) as platform:
        options = {"since": "last", "recheck": "10%", "seed": 1}
        result = await auditor.run_audit(settings_of(platform, tmp_path, "auto", **options))
    assert_snapshot(after, result)
    assert rows_of(result.folder, "SELECT DISTINCT source FROM {devices}") == [("queried",)]
    assert reasons(result).keys() == {"recheck"}


@pytest.mark.slow
@pytest.mark.parametrize(("max_calls", "queried"), [(30, True), (15, False)])
async def test_a_budget_of_calls_pays_for_the_index_first(tmp_path: Path, max_calls: int, *, queried: bool) -> None:
    """600 devices of 3 products have about 15 pages; the rest of the budget is for the recheck."""
    world = world_of(1)
    async with Simulator(world, index=IndexOptions(), record_arrivals=True) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path, max_calls=max_calls, recheck="20%"))
        sent = sum(calls(platform).values()) - calls(platform).get("ListOTAModuleByProduct", 0)
    assert_snapshot(world, result)
    selection = result.manifest.selection
    assert selection is not None
    assert selection.budget_exhausted
    assert sent <= max(max_calls, 17)
    sources = Counter(source for (source,) in rows_of(result.folder, "SELECT source FROM {devices}"))
    assert (0 < sources["queried"] <= max_calls) is queried
    assert sources["index"] == 600 - sources["queried"]
    assert selection.recheck is not None
    assert selection.recheck.answered == sources["queried"]


@pytest.mark.slow
async def test_a_sample_of_a_fleet_that_the_index_lists_is_queried(tmp_path: Path) -> None:
    world = world_of(1)
    async with Simulator(world, index=IndexOptions(), record_arrivals=True) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path, sample_size=50))
        sent = calls(platform)
    assert (sent[VERSIONS], result.exit_code, auditor.verify_run(result.folder)) == (50, 0, [])
    assert sent[ROWS] <= 600 / 49 + 6
    assert "QueryDevice" not in sent
    sources = Counter(rows_of(result.folder, "SELECT source FROM {devices}"))
    assert sources == {("queried",): 50, ("unsampled",): 550}
    assert [path.name for path in result.folder.iterdir() if path.name.startswith(".")] == []


def test_what_does_not_fit_the_index_is_refused_in_one_sentence(tmp_path: Path) -> None:
    def load(**changes: Any) -> auditor.Settings:
        account = {"fleet": {"products": "all"}, "read": "auto"} | changes.pop("account", {})
        return settings_for(tmp_path, account_table("http://127.0.0.1:1/", tmp_path, **account), **changes)

    with pytest.raises(SettingsError, match="the index lists the devices itself"):
        load(account={"fleet": {"file": "fleet.csv"}})
    with pytest.raises(SettingsError, match='set read = "index", or leave out max_calls'):
        load(max_calls=10)
    assert load(max_calls=10, account={"read": "index"}).max_calls == 10
