"""Audits by the platform's search index, compared with what every device of the simulated world runs."""

import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

import auditor
from auditor.bulk.index_reader import IndexRefusedError, _IndexReader
from auditor.fleet.discovery_journal import ProductDiscovery
from auditor.simulator.registry import Churn
from auditor.simulator.responses import RequestRejected
from auditor.simulator.search import device_index
from auditor.simulator.search.device_index import DeviceIndex, format_date
from auditor.simulator.search.options import IndexOptions
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import SimulatedDevice, World
from tests.database import connect
from tests.integration.audits import stop_after
from tests.integration.test_audit import account_table, expected_status, settings_for

pytestmark = pytest.mark.anyio

ROWS = "QueryDeviceBySQL"
VERSIONS = "ListOTAModuleVersionsByDevice"


def settings_of(platform: Simulator, folder: Path, read: str = "index", **changes: object) -> auditor.Settings:
    fleet = {"products": "all", "query_never_activated": False}
    return settings_for(folder, account_table(platform.endpoint, folder, fleet=fleet, read=read), **changes)


def calls(platform: Simulator) -> dict[str, int]:
    return {name: len(times) for name, times in platform.arrivals_by_operation.items()}


def rows_of(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with connect() as database:
        devices = f"read_parquet('{folder / 'devices.parquet'}')"
        modules = f"read_parquet('{folder / 'modules.parquet'}')"
        return database.execute(query.format(devices=devices, modules=modules)).fetchall()


def assert_snapshot(world: World, result: auditor.AuditResult) -> None:
    """Check that every device is in the run exactly once, with exactly its versions."""
    assert (result.manifest.state, result.exit_code, result.manifest.error) == ("complete", 0, None)
    assert auditor.verify_run(result.folder) == []
    there = [device for device in world if device.exists]
    found = rows_of(result.folder, "SELECT product_key, device_name, status FROM {devices}")
    expected = Counter((each.product_key, each.device_name, expected_status(each)) for each in there)
    assert Counter(found) == expected
    versions = rows_of(result.folder, "SELECT device_name, module_name, module_version FROM {modules}")
    assert Counter(versions) == Counter(
        (each.device_name, module.module_name, module.module_version)
        for each in there
        for module in (each.modules if each.activated else ())
    )
    left = [path.name for path in result.folder.iterdir() if path.name.startswith(".") or path.suffix == ".new"]
    assert left == []


async def start_audit(settings: auditor.Settings, stop: auditor.StopToken) -> auditor.AuditResult:
    return await auditor.run_audit(settings, stop=stop)


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_the_index_gives_what_the_devices_run_in_a_fraction_of_the_calls(tmp_path: Path, dialect: Any) -> None:
    world = World(2_000, products=5, inactive=0.05)
    async with Simulator(world, dialect=dialect, index=IndexOptions(), record_arrivals=True) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path, recheck="2%"))
        sent = calls(platform)
    assert_snapshot(world, result)
    there = sum(device.exists for device in world)
    assert sent[ROWS] <= there / 49 + 5 * 2
    assert "QueryDevice" not in sent
    sources = dict(rows_of(result.folder, "SELECT source, count(*) FROM {devices} GROUP BY source"))
    selection = result.manifest.selection
    assert selection is not None
    assert selection.strategy == "index"
    assert selection.recheck is not None
    assert selection.recheck.changed == 0
    assert sources["index"] == selection.accounts[0].carried > 1_700
    assert 10 < selection.recheck.checked < 80
    assert selection.outdated is not None
    assert selection.outdated.high is not None
    assert 0 < selection.outdated.high < 0.2


async def test_names_tags_and_groups_are_attributes(tmp_path: Path) -> None:
    world = World(120, products=2, missing=0, inactive=0)
    async with Simulator(world, index=IndexOptions()) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path))
    found = dict(rows_of(result.folder, "SELECT device_name, attributes FROM {devices}"))
    for device in world:
        attributes = dict(device.tags)
        attributes |= {"nickname": device.nickname} if device.nickname else {}
        attributes |= {"groups": ",".join(device.groups)} if device.groups else {}
        own = {
            name: text for name, text in found[device.device_name].items() if name not in {"product_name", "node_type"}
        }
        assert own == attributes


@pytest.mark.parametrize("ignores_case", [False, True])
@pytest.mark.slow
async def test_devices_created_at_one_time_are_read_whole(tmp_path: Path, *, ignores_case: bool) -> None:
    world = World(900, products=2, registration_interval=0)
    index = IndexOptions(ignores_case=ignores_case)
    async with Simulator(world, index=index) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path))
    assert_snapshot(world, result)


@pytest.mark.slow
async def test_a_few_devices_created_at_each_time_are_read_whole(tmp_path: Path) -> None:
    """The clock of the world stops for the last devices, so that a page ends among equals."""
    world = World(700, products=1, registration_interval=1)
    world.created_at = lambda index: 1_750_000_000_000 + index // 7  # type: ignore[method-assign]
    async with Simulator(world, index=IndexOptions()) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path))
    assert_snapshot(world, result)


@pytest.mark.slow
async def test_no_device_is_missed_that_was_there_throughout(tmp_path: Path) -> None:
    world = World(3_000, products=3, missing=0, inactive=0)
    churn = Churn(register_per_second=100, remove_per_second=100)
    async with Simulator(world, index=IndexOptions(), churn=churn, latency=(0.002, 0.01)) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path))
        registry = platform.registry_for()
    assert auditor.verify_run(result.folder) == []
    found = {name for (name,) in rows_of(result.folder, "SELECT device_name FROM {devices}")}
    assert registry.removed
    assert [
        each.device_name for each in world if each.index not in registry.removed and each.device_name not in found
    ] == []


@pytest.mark.slow
@pytest.mark.parametrize("index", [None, IndexOptions(is_refused=True)])
async def test_an_account_without_an_index_is_queried_device_by_device(
    tmp_path: Path, index: IndexOptions | None, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(150, products=2, inactive=0)
    async with Simulator(world, index=index, record_arrivals=True) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path))
        sent = calls(platform)
    assert_snapshot(world, result)
    assert sent[ROWS if index is not None else ""] == 1
    assert capsys.readouterr().err.count("the index cannot be read") == 1
    assert {source for (source,) in rows_of(result.folder, "SELECT DISTINCT source FROM {devices}")} == {"queried"}


@pytest.mark.slow
async def test_auto_queries_all_devices_if_too_many_results_are_wrong(tmp_path: Path) -> None:
    world = World(1_500, products=2, missing=0, silent=0, inactive=0)
    # So slow that no version changes while the test runs.
    index, churn = IndexOptions(lag=3_600_000), Churn(changes_per_hour=0.0003)
    async with Simulator(world, index=index, churn=churn) as platform:
        kept = await auditor.run_audit(settings_of(platform, tmp_path, recheck="5%", seed=1, name="kept"))
        result = await auditor.run_audit(settings_of(platform, tmp_path, "auto", recheck="5%", seed=1))
    assert_snapshot(world, result)
    assert {source for (source,) in rows_of(result.folder, "SELECT DISTINCT source FROM {devices}")} == {"queried"}
    recheck = kept.manifest.selection.recheck if kept.manifest.selection else None
    assert recheck is not None
    assert recheck.low is not None
    assert recheck.high is not None
    assert recheck.low < 0.3 < recheck.high
    assert auditor.verify_run(kept.folder) == []


@pytest.mark.slow
async def test_an_interrupted_run_loses_nothing_and_reads_no_row_twice(tmp_path: Path) -> None:
    world = World(1_200, products=3, inactive=0.02)
    index = IndexOptions()
    for answers in (3, 15, 30):
        (folder := tmp_path / str(answers)).mkdir()
        async with Simulator(world, index=index, latency=(0.001, 0.004), record_arrivals=True) as platform:
            settings = settings_of(platform, folder, recheck="3%", concurrency=2)
            first = await stop_after(answers, platform, partial(start_audit, settings))
            result = await auditor.resume_audit(first.folder)
            assert calls(platform)[ROWS] <= 1_200 / 49 + 3 * 2 + 2
        assert_snapshot(world, result)


@pytest.mark.slow
async def test_an_incremental_run_carries_no_result_of_the_index(tmp_path: Path) -> None:
    world = World(200, products=1, today=time.time() - 86_400, missing=0, inactive=0)
    async with Simulator(world, index=IndexOptions(), record_arrivals=True) as platform:
        await auditor.run_audit(settings_of(platform, tmp_path, recheck="10%"))
        queried = calls(platform)[VERSIONS]
        await auditor.run_audit(settings_of(platform, tmp_path, "device", since="last"))
        assert calls(platform)[VERSIONS] - queried >= 200 - queried


@pytest.mark.slow
async def test_an_index_that_cannot_count_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices created at one time are counted before they are divided by their names."""

    def refuse(*_: object) -> int:
        raise RequestRejected("iot.system.IllegalRequest", "count is not supported")

    monkeypatch.setattr(DeviceIndex, "_count", refuse)
    world = World(150, products=2, registration_interval=0)
    async with Simulator(world, index=IndexOptions()) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path))
    assert_snapshot(world, result)
    assert {source for (source,) in rows_of(result.folder, "SELECT DISTINCT source FROM {devices}")} == {"queried"}


@pytest.mark.parametrize("code", ["ServiceUnavailable", "iot.system.IllegalRequest"])
async def test_a_resume_tries_the_index_again_only_if_its_failure_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    def fail(*_: object) -> list[SimulatedDevice]:
        raise RequestRejected(code, "not now")

    monkeypatch.setattr("auditor.engine.account_session.MAX_OPTIONAL_SECONDS", 0.3)
    world = World(60, products=1)
    account = replace(DEFAULT_ACCOUNT, denied=frozenset({"QueryDevice"}))
    async with Simulator(world, accounts=(account,), index=IndexOptions()) as platform:
        with monkeypatch.context() as patch:
            patch.setattr(DeviceIndex, "_rows", fail)
            first = await auditor.run_audit(settings_of(platform, tmp_path))
        assert first.exit_code == 3
        resumed = await auditor.resume_audit(first.folder)
    if code == "ServiceUnavailable":
        assert_snapshot(world, resumed)
        assert rows_of(resumed.folder, "SELECT count(*) FROM {devices} WHERE source = 'index'") != [(0,)]
    else:
        assert resumed.exit_code == 3


async def test_a_time_that_no_statement_can_have_makes_the_run_query_its_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_index, "format_date", lambda date: f'{format_date(date)}"')
    world = World(200, products=2, missing=0, inactive=0)
    async with Simulator(world, index=IndexOptions()) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path))
    assert result.exit_code == 0
    assert rows_of(result.folder, "SELECT source, count(*) FROM {devices} GROUP BY source") == [("queried", 200)]


@pytest.mark.slow
async def test_two_refusals_of_an_index_at_one_moment_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(600, products=6, missing=0, silent=0, inactive=0)
    pages = 0

    async def read_page(reader: _IndexReader, product: ProductDiscovery) -> None:
        nonlocal pages
        pages += 1
        if pages == 1:
            await read(reader, product)
            return
        try:
            await anyio.sleep(0.05)
        finally:
            raise IndexRefusedError("not as documented")

    read = _IndexReader._read_page
    monkeypatch.setattr(_IndexReader, "_read_page", read_page)
    async with Simulator(world, index=IndexOptions(), latency=(0.02, 0.02)) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path))
    assert pages > 2
    assert (result.exit_code, result.manifest.devices.ok) == (0, 600)


async def test_products_without_a_count_are_counted_by_the_index(tmp_path: Path) -> None:
    world = World(120, products=2, missing=0, inactive=0)
    account = replace(DEFAULT_ACCOUNT, denied=frozenset({"QueryProductList"}))
    fleet = {"products": list(world.product_keys)}
    async with Simulator(world, accounts=(account,), index=IndexOptions()) as platform:
        table = account_table(platform.endpoint, tmp_path, fleet=fleet, read="index")
        result = await auditor.run_audit(settings_for(tmp_path, table))
    assert_snapshot(world, result)
    assert result.manifest.discovery[0].gaps == ()


async def test_a_limit_is_reached_although_devices_are_excluded(tmp_path: Path) -> None:
    world = World(600, products=1, missing=0, inactive=0)
    excluded = [device.device_name for device in list(world)[:200]]
    fleet = {"products": "all", "exclude": {"device_name": excluded}}
    async with Simulator(world, index=IndexOptions(), record_arrivals=True) as platform:
        table = account_table(platform.endpoint, tmp_path, fleet=fleet, read="index")
        result = await auditor.run_audit(settings_for(tmp_path, table), limit=100)
        sent = calls(platform)
    assert (result.manifest.state, result.exit_code, result.manifest.fleet.devices) == ("complete", 0, 100)
    assert sent[ROWS] < 600 / 49
