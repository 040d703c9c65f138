"""Audits of discovered fleets, in this process against the simulated platform: all results are correct."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest

import auditor
from auditor.audit.preflight import preflight
from auditor.cli.runtime import log_to_stderr
from auditor.client.operations import LIST_OTA_MODULE_BY_PRODUCT, QUERY_DEVICE, QUERY_PRODUCT_LIST
from auditor.client.responses import parse_response
from auditor.errors import FleetError
from auditor.fleet.discovery_journal import DEVICES_PER_PAGE, PRODUCTS_PER_PAGE
from auditor.models import Secret
from auditor.runs.products import read_products
from auditor.simulator.faults import Faults
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.registry import DEVICE_SECRET_PREFIX, Churn
from auditor.simulator.responses import Document, RequestRejected
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import SimulatedDevice, World
from tests.database import connect
from tests.integration.audits import plain_world
from tests.integration.test_audit import account_table, assert_matches, read_lines, settings_for

pytestmark = pytest.mark.anyio

ALL_PRODUCTS = {"products": "all"}


def discovery_settings(
    folder: Path, platform: Simulator, fleet: object = ALL_PRODUCTS, **changes: Any
) -> auditor.Settings:
    """Settings for one account whose fleet the platform lists."""
    account = {
        key: changes.pop(key) for key in ("fetch_product_modules", "quotas", "calls_per_second") if key in changes
    }
    return settings_for(folder, account_table(platform.endpoint, folder, fleet=fleet, **account), **changes)


def discoverable(world: Iterable[SimulatedDevice]) -> list[SimulatedDevice]:
    return [device for device in world if device.exists]


def read_fleet(folder: Path) -> list[dict[str, Any]]:
    with connect() as database:
        rows = database.execute("FROM read_parquet(?)", [str(folder / "fleet.parquet")])
        names = [name for name, *_ in rows.description or ()]
        return [dict(zip(names, row, strict=True)) for row in rows.fetchall()]


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_every_discovered_device_is_audited(tmp_path: Path, dialect: Any) -> None:
    world = World(700, products=5, inactive=0.05)
    changes = {"dialect": dialect, "region_id": "cn-shanghai"} if dialect == "alibaba" else {}
    async with Simulator(world, dialect=dialect) as platform:
        table = account_table(platform.endpoint, tmp_path, fleet=ALL_PRODUCTS, **changes)
        result = await auditor.run_audit(settings_for(tmp_path, table))
    there = discoverable(world)
    assert (result.exit_code, result.manifest.state, result.manifest.error) == (0, "complete", None)
    assert auditor.verify_run(result.folder) == []
    assert_matches(there, result.folder)
    (facts,) = result.manifest.discovery
    never = sum(not device.activated for device in there)
    assert (facts.state, facts.products, facts.devices, facts.duplicates, facts.gaps) == (
        "complete",
        5,
        len(there),
        0,
        (),
    )
    assert facts.statuses["UNACTIVE"] == result.manifest.never_activated == never > 0
    assert sum(facts.statuses.values()) == result.manifest.fleet.devices == len(there)
    assert [path.name for path in result.folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
async def test_never_activated_devices_are_queried_only_if_configured(tmp_path: Path) -> None:
    world = World(300, missing=0, inactive=0.2, large=0)
    never = [device for device in world if not device.activated]
    async with Simulator(world, record_responses=True) as platform:
        result = await auditor.run_audit(discovery_settings(tmp_path, platform))
        spent = {name for name, _ in platform.responses or ()}
        assert spent == {device.iot_id for device in world if device.activated}
        lines = {line["iot_id"]: line for line in read_lines(result.folder / "devices.jsonl")}
        for device in never:
            line = lines[device.iot_id]
            assert (line["status"], line["reason"], line["attempts"], line["modules"]) == (
                "empty",
                "never_activated",
                0,
                [],
            )
        assert sum("reason" in line for line in lines.values()) == len(never) == result.manifest.never_activated
        asked_too = await auditor.run_audit(
            discovery_settings(tmp_path, platform, ALL_PRODUCTS | {"query_never_activated": True}, name="all")
        )
        assert {name for name, _ in platform.responses or ()} == {device.iot_id for device in world}
    lines = {line["iot_id"]: line for line in read_lines(asked_too.folder / "devices.jsonl")}
    assert all(
        (lines[device.iot_id]["reason"], lines[device.iot_id]["attempts"]) == ("never_activated", 1) for device in never
    )
    assert asked_too.manifest.devices == result.manifest.devices


async def test_fleet_has_status_and_times(tmp_path: Path) -> None:
    world = World(60, products=2)
    async with Simulator(world) as platform:
        result = await auditor.run_audit(discovery_settings(tmp_path, platform))
    rows = read_fleet(result.folder)
    assert list(rows[0]) == [
        "ordinal", "account", "product_key", "device_name", "iot_id", "device_status", "utc_create", "utc_modified",
        "attributes",
    ]  # fmt: skip
    names = {product.product_key: product.product_name for product in world.products}
    assert [row["ordinal"] for row in rows] == list(range(len(rows)))
    by_id = {row["iot_id"]: row for row in rows}
    for device in discoverable(world):
        row = by_id[device.iot_id]
        assert (row["product_key"], row["device_name"]) == (device.product_key, device.device_name)
        assert (row["device_status"] == "UNACTIVE") == (not device.activated)
        assert row["utc_create"] is not None
        nickname = {"nickname": device.nickname} if device.nickname else {}
        listed = {"product_name": names[device.product_key], "node_type": "device"}
        assert row["attributes"] == nickname | listed
    with auditor.select_devices(result.folder, auditor.DeviceFilter(where=("nickname!=",))) as selected:
        assert {row[3] for row in selected.table} == {
            device.iot_id for device in discoverable(world) if device.nickname
        }


async def test_filters_select_devices_and_other_products_cost_no_call(tmp_path: Path) -> None:
    world = World(400, products=4)
    first, second, *_ = world.product_keys
    fleet = {
        "products": [first, second],
        "exclude": {"device_name": ["*7"], "status": ["OFFLINE"]},
        "include": {"device_name": ["*0", "*2", "*4", "*6", "*8", "*7"]},
    }
    async with Simulator(world, record_responses=True, record_arrivals=True) as platform:
        result = await auditor.run_audit(discovery_settings(tmp_path, platform, fleet))
        pages = len(platform.arrivals_by_operation[QUERY_DEVICE.name])
    rows = read_fleet(result.folder)
    there = discoverable(world)
    assert 0 < len(rows) < len(there)
    assert {row["product_key"] for row in rows} == {first, second}
    assert all(row["device_name"][-1] in "02468" and row["device_status"] != "OFFLINE" for row in rows)
    (facts,) = result.manifest.discovery
    of_both = [device for device in there if device.product_key in {first, second}]
    assert facts.devices + facts.excluded == len(of_both)
    sizes = [sum(device.product_key == key for device in of_both) for key in (first, second)]
    assert pages == sum(-(-size // 50) + (size > 50) for size in sizes)


async def test_configured_product_that_does_not_exist_is_a_gap(tmp_path: Path) -> None:
    world = plain_world(30)
    key = world.product_keys[0]
    async with Simulator(world) as platform:
        result = await auditor.run_audit(discovery_settings(tmp_path, platform, {"products": [key, "k1nowhere"]}))
    assert (result.exit_code, result.manifest.state) == (1, "partial")
    (facts,) = result.manifest.discovery
    (gap,) = facts.gaps
    assert (facts.state, gap.product_key, gap.listed) == ("partial", "k1nowhere", 0)
    assert str(gap.reason).startswith("iot.prod.NotExistedProduct")
    assert "product k1nowhere: 0 devices listed (iot.prod.NotExistedProduct" in str(result.manifest.error)
    with auditor.Run(result.folder) as run:
        assert any("k1nowhere" in warning.detail for warning in run.warnings)


async def test_empty_fleet_is_a_settings_error(tmp_path: Path) -> None:
    async with Simulator(plain_world(20)) as platform:
        fleet = {"products": "all", "include": {"device_name": ["nobody*"]}}
        result = await auditor.run_audit(discovery_settings(tmp_path, platform, fleet))
    assert (result.exit_code, result.manifest.state) == (FleetError.exit_code, "aborted")
    assert result.manifest.error == "no device matches the fleet settings"


@pytest.mark.slow
async def test_limit_discovers_only_the_pages_it_needs(tmp_path: Path) -> None:
    worlds = [plain_world(500, seed=seed) for seed in (1, 2, 3)]
    accounts = [SimulatedAccount(f"key-{n}", Secret("s"), world=world) for n, world in enumerate(worlds)]
    (tmp_path / "other").write_text("s")
    async with Simulator(worlds[0], accounts=accounts, record_arrivals=True) as platform:
        tables = [
            account_table(platform.endpoint, tmp_path, name=f"a{n}", access_key_id=f"key-{n}", fleet=ALL_PRODUCTS)
            | {"access_key_secret": {"file": str(tmp_path / "other")}}
            for n in range(3)
        ]
        result = await auditor.run_audit(settings_for(tmp_path, *tables), limit=520)
        assert len(platform.arrivals_by_operation[QUERY_DEVICE.name]) < 25
    counts = [sum(row["account"] == f"a{n}" for row in read_fleet(result.folder)) for n in range(3)]
    assert counts == [500, 20, 0]
    assert (result.manifest.state, result.manifest.fleet.devices, result.manifest.fleet.limit) == ("complete", 520, 520)
    assert auditor.verify_run(result.folder) == []


@pytest.mark.slow
async def test_discovery_is_correct_despite_all_faults(tmp_path: Path) -> None:
    world = World(1500, products=6, large=0)
    faults = Faults.evenly(0.1, silence=0.004, silence_seconds=1.0)
    async with Simulator(world, faults=faults, seed=5) as platform:
        result = await auditor.run_audit(
            discovery_settings(tmp_path, platform, timeout=0.5, retry_budget=1.0, max_attempts=20)
        )
    assert (result.exit_code, result.manifest.state) == (0, "complete")
    assert_matches(discoverable(world), result.folder)
    assert result.manifest.discovery[0].requests.retried > 0


@pytest.mark.live
@pytest.mark.slow
async def test_devices_that_exist_throughout_are_audited_while_others_are_added_and_removed(tmp_path: Path) -> None:
    world = World(4000, products=3, missing=0, large=0)
    account = SimulatedAccount(
        DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, 10_000, quotas={"QueryDevice": 60}
    )
    churn = Churn(register_per_second=40, remove_per_second=60, seed=3)
    async with Simulator(world, accounts=[account], churn=churn, latency=(0.01, 0.03)) as platform:
        settings = discovery_settings(tmp_path, platform, quotas={"QueryDevice": 60}, calls_per_second=10_000)
        result = await auditor.run_audit(settings)
        removed, registered = set(platform.registry_for().removed), platform.registry_for().registered
    assert len(removed) > 30
    assert registered > 30
    names = {row["device_name"] for row in read_fleet(result.folder)}
    assert {device.device_name for device in world if device.index not in removed} <= names
    (facts,) = result.manifest.discovery
    assert facts.state == "complete"
    assert facts.duplicates > 0  # so the list did slide
    assert auditor.verify_run(result.folder) == []


@pytest.mark.slow
async def test_modules_are_fetched_once_for_each_product(tmp_path: Path) -> None:
    world = World(300, products=4, large=0, inactive=0.03)
    async with Simulator(world, record_arrivals=True) as platform:
        result = await auditor.run_audit(discovery_settings(tmp_path, platform))
        assert len(platform.arrivals_by_operation[LIST_OTA_MODULE_BY_PRODUCT.name]) == 4
    products = {row.product_key: row for row in read_products(result.folder / "products.jsonl")}
    assert products.keys() == set(world.product_keys)
    missing: dict[tuple[str, str], int] = {}
    for device in discoverable(world):
        reported = {module.module_name for module in device.modules}
        for module in products[device.product_key].modules or ():
            if module not in reported:
                missing[device.product_key, module] = missing.get((device.product_key, module), 0) + 1
    table = orjson.loads((result.folder / "inventory.json").read_bytes())
    assert missing
    assert {(row["product_key"], row["module_name"]): row["devices"] for row in table["modules_missing"]} == missing
    with auditor.select_devices(result.folder, auditor.DeviceFilter(missing=True)) as selected:
        assert selected.rows == sum(missing.values())


@pytest.mark.slow
async def test_modules_of_a_fleet_file_s_products_are_fetched_if_configured(tmp_path: Path) -> None:
    world = plain_world(40)
    world.write_fleet(tmp_path / "fleet.csv")
    fleet = {"file": str(tmp_path / "fleet.csv")}
    async with Simulator(world, record_arrivals=True) as platform:
        plainly = await auditor.run_audit(discovery_settings(tmp_path, platform, fleet))
        assert LIST_OTA_MODULE_BY_PRODUCT.name not in platform.arrivals_by_operation
        assert orjson.loads((plainly.folder / "inventory.json").read_bytes()).get("modules_missing") is None
        assert not (plainly.folder / "products.jsonl").exists()
        result = await auditor.run_audit(
            discovery_settings(tmp_path, platform, fleet, fetch_product_modules=True, name="wished")
        )
    assert {row.product_key for row in read_products(result.folder / "products.jsonl")} == set(world.product_keys)
    assert auditor.verify_run(result.folder) == []


DENIED = RequestRejected("iot.common.RamActionPermissionDeny", "The key may not do this.", None)


def deny(platform: Simulator, *operations: str) -> None:
    """From now on the platform denies its keys some operations."""

    def denied(_parameters: object) -> Document:
        raise DENIED

    for operation in operations:
        platform._operations[operation] = denied


async def test_key_without_permission_for_modules_continues_without_them(tmp_path: Path) -> None:
    async with Simulator(plain_world(30)) as platform:
        deny(platform, LIST_OTA_MODULE_BY_PRODUCT.name)
        result = await auditor.run_audit(discovery_settings(tmp_path, platform))
    assert (result.exit_code, result.manifest.state) == (0, "complete")
    assert orjson.loads((result.folder / "inventory.json").read_bytes()).get("modules_missing") is None


async def test_key_without_permission_for_products_lists_the_configured_ones(tmp_path: Path) -> None:
    world = plain_world(60)
    async with Simulator(world) as platform:
        deny(platform, QUERY_PRODUCT_LIST.name)
        named = await auditor.run_audit(discovery_settings(tmp_path, platform, {"products": list(world.product_keys)}))
        every = await auditor.run_audit(discovery_settings(tmp_path, platform, name="every"))
    assert (named.exit_code, named.manifest.state, named.manifest.fleet.devices) == (0, "complete", 60)
    assert (every.exit_code, every.manifest.state) == (3, "aborted")
    assert "its devices cannot be listed: the platform refuses it: iot.common.RamActionPermissionDeny" in str(
        every.manifest.error
    )


async def test_device_secret_is_in_no_file_and_no_log(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[bool] = []

    def spied(status: int, headers: Any, body: bytes, **more: Any) -> Any:
        seen.append(DEVICE_SECRET_PREFIX.encode() in body)
        return parse_response(status, headers, body, **more)

    monkeypatch.setattr("auditor.client.client.parse_response", spied)
    caplog.set_level("DEBUG")
    log_to_stderr("debug")
    secret = DEVICE_SECRET_PREFIX.encode()
    async with Simulator(World(200)) as platform:
        result = await auditor.run_audit(discovery_settings(tmp_path, platform))
    assert any(seen)  # the platform does send it
    for path in list(tmp_path.rglob("*")):  # noqa: ASYNC240  nothing else is to be done meanwhile
        if path.is_file() and path.suffix != ".parquet":
            assert secret not in path.read_bytes(), path
    for path in result.folder.glob("*.parquet"):
        with connect() as database:
            assert DEVICE_SECRET_PREFIX not in str(database.execute("FROM read_parquet(?)", [str(path)]).fetchall())
    said = capsys.readouterr()
    assert DEVICE_SECRET_PREFIX not in caplog.text + said.out + said.err


async def test_preflight_lists_products_and_queries_a_first_device(tmp_path: Path) -> None:
    world = plain_world(400)
    async with Simulator(world, record_arrivals=True) as platform:
        (found,) = await preflight(discovery_settings(tmp_path, platform))
        assert {name: len(times) for name, times in platform.arrivals_by_operation.items()} == {
            "QueryProductList": 1,
            "QueryDevice": 1,
            "ListOTAModuleVersionsByDevice": 1,
            "ListOTAModuleByProduct": 1,
        }
    assert (found.problem, found.products, found.devices, found.result) == (None, 4, 400, "ok")


async def test_preflight_reports_a_fleet_without_devices(tmp_path: Path) -> None:
    async with Simulator(plain_world(20)) as platform:
        (found,) = await preflight(
            discovery_settings(tmp_path, platform, {"products": "all", "exclude": {"product_key": ["*"]}})
        )
    assert found.problem == 'account "eu": no device matches the fleet settings'


async def test_outcomes_of_a_discovered_fleet_are_streamed(tmp_path: Path) -> None:
    world = World(150, inactive=0.1, large=0)
    async with Simulator(world) as platform, auditor.stream_outcomes(discovery_settings(tmp_path, platform)) as stream:
        found = {outcome.device.iot_id: outcome.attempts async for outcome in stream}
    assert found == {device.iot_id: int(device.activated) for device in discoverable(world)}


@pytest.mark.slow
async def test_deep_pages_stay_within_their_own_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditor.fleet.crawler.DEEP_LIST_ITEMS", 400)
    monkeypatch.setattr("auditor.simulator.operations.FIRST_DEEP_ITEM", 400)
    account = SimulatedAccount(
        DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, 5_000, quotas={"QueryDevice.deep": 8}
    )
    world = World(750, products=1, missing=0)
    async with Simulator(world, accounts=[account], record_arrivals=True) as platform:
        settings = discovery_settings(tmp_path, platform, calls_per_second=5_000, quotas={"QueryDeviceDeep": 8})
        result = await auditor.run_audit(settings)
        moments = platform.arrivals_by_operation[QUERY_DEVICE.name]
        assert platform.counts.throttled == 0
    assert (result.manifest.state, result.manifest.fleet.devices) == ("complete", 750)
    between = [later - earlier for earlier, later in itertools.pairwise(moments[:15])]
    assert all(gap < 0.07 for gap in between[:7])
    assert all(gap > 0.07 for gap in between[8:])


def test_pages_are_as_large_as_the_operations_allow() -> None:
    assert QUERY_PRODUCT_LIST.page_size == PRODUCTS_PER_PAGE == 200
    assert QUERY_DEVICE.page_size == DEVICES_PER_PAGE == 50
