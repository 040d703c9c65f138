"""Audits whose fleets the platform lists, in this process against the simulated platform: what is written is the truth."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest

import auditor
from auditor.audit.preflight import check
from auditor.cli.runtime import log_to_stderr
from auditor.client.operations import LIST_OTA_MODULE_BY_PRODUCT, QUERY_DEVICE, QUERY_PRODUCT_LIST
from auditor.client.responses import decipher
from auditor.errors import FleetError
from auditor.fleet.discovery_journal import DEVICES_A_PAGE, PRODUCTS_A_PAGE
from auditor.models import Secret
from auditor.runs.products import read_products
from auditor.simulator.faults import Faults
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.registry import DEVICE_SECRET_PREFIX, Churn
from auditor.simulator.responses import Document, Refused
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import SimulatedDevice, World
from tests.integration.audits import plain
from tests.integration.test_audit import account_table, assert_true_to, lines_of, settings_for

pytestmark = pytest.mark.anyio

ALL = {"products": "all"}


def listed(folder: Path, platform: Simulator, fleet: object = ALL, **changes: Any) -> auditor.Settings:
    """Settings for one account whose fleet the platform lists."""
    account = {key: changes.pop(key) for key in ("expected_modules", "quotas", "per_second") if key in changes}
    return settings_for(folder, account_table(platform.endpoint, folder, fleet=fleet, **account), **changes)


def known_to_the_platform(world: Iterable[SimulatedDevice]) -> list[SimulatedDevice]:
    return [device for device in world if device.exists]


def fleet_of(folder: Path) -> list[dict[str, Any]]:
    with duckdb.connect() as database:
        rows = database.execute("FROM read_parquet(?)", [str(folder / "fleet.parquet")])
        names = [name for name, *_ in rows.description or ()]
        return [dict(zip(names, row, strict=True)) for row in rows.fetchall()]


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_every_device_that_the_platform_lists_is_audited(tmp_path: Path, dialect: Any) -> None:
    world = World(700, products=5, inactive=0.05)
    changes = {"dialect": dialect, "region_id": "cn-shanghai"} if dialect == "alibaba" else {}
    async with Simulator(world, dialect=dialect) as platform:
        table = account_table(platform.endpoint, tmp_path, fleet=ALL, **changes)
        result = await auditor.run_audit(settings_for(tmp_path, table))
    there = known_to_the_platform(world)
    assert (result.exit_code, result.manifest.state, result.manifest.error) == (0, "complete", None)
    assert auditor.verify(result.folder) == []
    assert_true_to(there, result.folder)
    (facts,) = result.manifest.listings
    never = sum(not device.activated for device in there)
    assert (facts.state, facts.products, facts.devices, facts.repeats, facts.gaps) == ("complete", 5, len(there), 0, ())
    assert facts.statuses["UNACTIVE"] == result.manifest.never_activated == never > 0
    assert sum(facts.statuses.values()) == result.manifest.fleet.devices == len(there)
    assert [path.name for path in result.folder.iterdir() if path.name.startswith(".")] == []


async def test_no_call_is_spent_on_a_device_that_was_never_activated_unless_it_is_wished(tmp_path: Path) -> None:
    world = World(300, missing=0, inactive=0.2, large=0)
    never = [device for device in world if not device.activated]
    async with Simulator(world, record_answers=True) as platform:
        result = await auditor.run_audit(listed(tmp_path, platform))
        spent = {name for name, _ in platform.answers or ()}
        assert spent == {device.iot_id for device in world if device.activated}
        lines = {line["iot_id"]: line for line in lines_of(result.folder / "devices.jsonl")}
        for device in never:
            line = lines[device.iot_id]
            assert (line["status"], line["reason"], line["attempts"], line["modules"]) == (
                "empty",
                "never_activated",
                0,
                [],
            )
        assert sum("reason" in line for line in lines.values()) == len(never) == result.manifest.never_activated
        asked_too = await auditor.run_audit(listed(tmp_path, platform, ALL | {"ask_never_activated": True}, name="all"))
        assert {name for name, _ in platform.answers or ()} == {device.iot_id for device in world}
    lines = {line["iot_id"]: line for line in lines_of(asked_too.folder / "devices.jsonl")}
    assert all(
        (lines[device.iot_id]["reason"], lines[device.iot_id]["attempts"]) == ("never_activated", 1) for device in never
    )
    assert asked_too.manifest.devices == result.manifest.devices


async def test_the_fleet_tells_status_and_times(tmp_path: Path) -> None:
    world = World(60, products=2)
    async with Simulator(world) as platform:
        result = await auditor.run_audit(listed(tmp_path, platform))
    rows = fleet_of(result.folder)
    assert list(rows[0]) == [
        "ordinal", "account", "product_key", "device_name", "iot_id", "device_status", "utc_create", "utc_modified",
    ]  # fmt: skip
    assert [row["ordinal"] for row in rows] == list(range(len(rows)))
    by_id = {row["iot_id"]: row for row in rows}
    for device in known_to_the_platform(world):
        row = by_id[device.iot_id]
        assert (row["product_key"], row["device_name"]) == (device.product_key, device.device_name)
        assert (row["device_status"] == "UNACTIVE") == (not device.activated)
        assert row["utc_create"] is not None


async def test_products_patterns_and_statuses_pick_whom_to_ask_and_other_products_cost_no_call(tmp_path: Path) -> None:
    world = World(400, products=4)
    first, second, *_ = world.product_keys
    fleet = {
        "products": [first, second],
        "exclude": {"device_name": ["*7"], "status": ["OFFLINE"]},
        "include": {"device_name": ["*0", "*2", "*4", "*6", "*8", "*7"]},
    }
    async with Simulator(world, record_answers=True, record_arrivals=True) as platform:
        result = await auditor.run_audit(listed(tmp_path, platform, fleet))
        pages = len(platform.arrivals_of[QUERY_DEVICE.name])
    rows = fleet_of(result.folder)
    there = known_to_the_platform(world)
    assert 0 < len(rows) < len(there)
    assert {row["product_key"] for row in rows} == {first, second}
    assert all(row["device_name"][-1] in "02468" and row["device_status"] != "OFFLINE" for row in rows)
    (facts,) = result.manifest.listings
    of_both = [device for device in there if device.product_key in {first, second}]
    assert facts.devices + facts.excluded == len(of_both)
    sizes = [sum(device.product_key == key for device in of_both) for key in (first, second)]
    assert pages == sum(-(-size // 50) + (size > 50) for size in sizes)


async def test_a_product_that_is_named_and_not_there_is_a_gap_and_the_run_is_partial(tmp_path: Path) -> None:
    world = plain(30)
    key = world.product_keys[0]
    async with Simulator(world) as platform:
        result = await auditor.run_audit(listed(tmp_path, platform, {"products": [key, "k1nowhere"]}))
    assert (result.exit_code, result.manifest.state) == (1, "partial")
    (facts,) = result.manifest.listings
    (gap,) = facts.gaps
    assert (facts.state, gap.product_key, gap.listed) == ("partial", "k1nowhere", 0)
    assert str(gap.reason).startswith("iot.prod.NotExistedProduct")
    assert "product k1nowhere: 0 devices listed (iot.prod.NotExistedProduct" in str(result.manifest.error)
    with auditor.Run(result.folder) as run:
        assert any("k1nowhere" in doubt for doubt in run.doubts)


async def test_an_empty_fleet_is_an_error_of_the_settings(tmp_path: Path) -> None:
    async with Simulator(plain(20)) as platform:
        fleet = {"products": "all", "include": {"device_name": ["nobody*"]}}
        result = await auditor.run_audit(listed(tmp_path, platform, fleet))
    assert (result.exit_code, result.manifest.state) == (FleetError.exit_code, "aborted")
    assert result.manifest.error == "no device is listed that is wanted; see fleet in the settings"


async def test_the_first_devices_of_all_accounts_are_listed_and_no_more_pages_than_that(tmp_path: Path) -> None:
    worlds = [plain(500, seed=seed) for seed in (1, 2, 3)]
    accounts = [SimulatedAccount(f"key-{n}", Secret("s"), world=world) for n, world in enumerate(worlds)]
    (tmp_path / "other").write_text("s")
    async with Simulator(worlds[0], accounts=accounts, record_arrivals=True) as platform:
        tables = [
            account_table(platform.endpoint, tmp_path, name=f"a{n}", access_key_id=f"key-{n}", fleet=ALL)
            | {"access_key_secret": {"file": str(tmp_path / "other")}}
            for n in range(3)
        ]
        result = await auditor.run_audit(settings_for(tmp_path, *tables), limit=520)
        assert len(platform.arrivals_of[QUERY_DEVICE.name]) < 25
    counts = [sum(row["account"] == f"a{n}" for row in fleet_of(result.folder)) for n in range(3)]
    assert counts == [500, 20, 0]
    assert (result.manifest.state, result.manifest.fleet.devices, result.manifest.fleet.limit) == ("complete", 520, 520)
    assert auditor.verify(result.folder) == []


async def test_faults_of_every_kind_do_not_make_a_listing_less_true(tmp_path: Path) -> None:
    world = World(1500, products=6, large=0)
    faults = Faults.evenly(0.1, silence=0.004, silence_seconds=1.0)
    async with Simulator(world, faults=faults, seed=5) as platform:
        result = await auditor.run_audit(listed(tmp_path, platform, timeout=0.5, retry_budget=1.0, attempts=20))
    assert (result.exit_code, result.manifest.state) == (0, "complete")
    assert_true_to(known_to_the_platform(world), result.folder)
    assert result.manifest.listings[0].requests.retried > 0


@pytest.mark.live
async def test_devices_that_exist_throughout_are_audited_though_others_come_and_go(tmp_path: Path) -> None:
    world = World(4000, products=3, missing=0, large=0)
    account = SimulatedAccount(
        DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, 10_000, quotas={"QueryDevice": 60}
    )
    churn = Churn(register_per_second=40, remove_per_second=60, seed=3)
    async with Simulator(world, accounts=[account], churn=churn, latency=(0.01, 0.03)) as platform:
        settings = listed(tmp_path, platform, quotas={"QueryDevice": 60}, per_second=10_000)
        result = await auditor.run_audit(settings)
        removed, registered = set(platform.removed), platform.registered
    assert len(removed) > 30
    assert registered > 30
    names = {row["device_name"] for row in fleet_of(result.folder)}
    assert {device.device_name for device in world if device.index not in removed} <= names
    (facts,) = result.manifest.listings
    assert facts.state == "complete"
    assert facts.repeats > 0  # so the list did slide
    assert auditor.verify(result.folder) == []


async def test_the_modules_that_products_define_are_asked_once_for_each_product(tmp_path: Path) -> None:
    world = World(300, products=4, large=0, inactive=0.03)
    async with Simulator(world, record_arrivals=True) as platform:
        result = await auditor.run_audit(listed(tmp_path, platform))
        assert len(platform.arrivals_of[LIST_OTA_MODULE_BY_PRODUCT.name]) == 4
    products = {row.product_key: row for row in read_products(result.folder / "products.jsonl")}
    assert products.keys() == set(world.product_keys)
    missing: dict[tuple[str, str], int] = {}
    for device in known_to_the_platform(world):
        reported = {module.module_name for module in device.modules}
        for module in products[device.product_key].modules or ():
            if module not in reported:
                missing[device.product_key, module] = missing.get((device.product_key, module), 0) + 1
    table = orjson.loads((result.folder / "inventory.json").read_bytes())
    assert missing
    assert {(row["product_key"], row["module_name"]): row["devices"] for row in table["modules_missing"]} == missing
    with auditor.select_devices(result.folder, auditor.Selection(missing=True)) as selected:
        assert selected.rows == sum(missing.values())


async def test_a_fleet_file_s_products_are_asked_about_if_that_is_wished(tmp_path: Path) -> None:
    world = plain(40)
    world.write_fleet(tmp_path / "fleet.csv")
    fleet = {"file": str(tmp_path / "fleet.csv")}
    async with Simulator(world, record_arrivals=True) as platform:
        plainly = await auditor.run_audit(listed(tmp_path, platform, fleet))
        assert LIST_OTA_MODULE_BY_PRODUCT.name not in platform.arrivals_of
        assert orjson.loads((plainly.folder / "inventory.json").read_bytes()).get("modules_missing") is None
        assert not (plainly.folder / "products.jsonl").exists()
        result = await auditor.run_audit(listed(tmp_path, platform, fleet, expected_modules=True, name="wished"))
    assert {row.product_key for row in read_products(result.folder / "products.jsonl")} == set(world.product_keys)
    assert auditor.verify(result.folder) == []


REFUSAL = Refused("iot.common.RamActionPermissionDeny", "The key may not do this.", None)


def refuse(platform: Simulator, *operations: str) -> None:
    """From now on the platform denies its keys some operations."""

    def denied(_parameters: object) -> Document:
        raise REFUSAL

    for operation in operations:
        platform._operations[operation] = denied


async def test_a_key_that_may_not_ask_for_modules_does_without_them(tmp_path: Path) -> None:
    async with Simulator(plain(30)) as platform:
        refuse(platform, LIST_OTA_MODULE_BY_PRODUCT.name)
        result = await auditor.run_audit(listed(tmp_path, platform))
    assert (result.exit_code, result.manifest.state) == (0, "complete")
    assert orjson.loads((result.folder / "inventory.json").read_bytes()).get("modules_missing") is None


async def test_a_key_that_may_not_list_products_lists_those_that_are_named(tmp_path: Path) -> None:
    world = plain(60)
    async with Simulator(world) as platform:
        refuse(platform, QUERY_PRODUCT_LIST.name)
        named = await auditor.run_audit(listed(tmp_path, platform, {"products": list(world.product_keys)}))
        every = await auditor.run_audit(listed(tmp_path, platform, name="every"))
    assert (named.exit_code, named.manifest.state, named.manifest.fleet.devices) == (0, "complete", 60)
    assert (every.exit_code, every.manifest.state) == (3, "aborted")
    assert "its fleet cannot be listed: the platform refuses it: iot.common.RamActionPermissionDeny" in str(
        every.manifest.error
    )


async def test_a_device_s_secret_is_in_no_file_and_no_log(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[bool] = []

    def spied(status: int, headers: Any, body: bytes, **more: Any) -> Any:
        told.append(DEVICE_SECRET_PREFIX.encode() in body)
        return decipher(status, headers, body, **more)

    monkeypatch.setattr("auditor.client.client.decipher", spied)
    caplog.set_level("DEBUG")
    log_to_stderr("debug")
    secret = DEVICE_SECRET_PREFIX.encode()
    async with Simulator(World(200)) as platform:
        result = await auditor.run_audit(listed(tmp_path, platform))
    assert any(told)  # the platform does tell it
    for path in list(tmp_path.rglob("*")):  # noqa: ASYNC240  nothing else is to be done meanwhile
        if path.is_file() and path.suffix != ".parquet":
            assert secret not in path.read_bytes(), path
    for path in result.folder.glob("*.parquet"):
        with duckdb.connect() as database:
            assert DEVICE_SECRET_PREFIX not in str(database.execute("FROM read_parquet(?)", [str(path)]).fetchall())
    said = capsys.readouterr()
    assert DEVICE_SECRET_PREFIX not in caplog.text + said.out + said.err


async def test_check_lists_the_products_and_asks_about_a_first_device(tmp_path: Path) -> None:
    world = plain(400)
    async with Simulator(world, record_arrivals=True) as platform:
        (found,) = await check(listed(tmp_path, platform))
        assert {name: len(times) for name, times in platform.arrivals_of.items()} == {
            "QueryProductList": 1,
            "QueryDevice": 1,
            "ListOTAModuleVersionsByDevice": 1,
        }
    assert (found.problem, found.products, found.devices, found.said) == (None, 4, 400, "ok")


async def test_check_tells_of_a_fleet_without_a_device(tmp_path: Path) -> None:
    async with Simulator(plain(20)) as platform:
        (found,) = await check(listed(tmp_path, platform, {"products": "all", "exclude": {"product_key": ["*"]}}))
    assert found.problem == 'account "eu": no device is listed that is wanted'


async def test_outcomes_come_of_a_listed_fleet_too(tmp_path: Path) -> None:
    world = World(150, inactive=0.1, large=0)
    async with Simulator(world) as platform, auditor.outcomes(listed(tmp_path, platform)) as stream:
        found = {outcome.device.iot_id: outcome.attempts async for outcome in stream}
    assert found == {device.iot_id: int(device.activated) for device in known_to_the_platform(world)}


async def test_pages_deep_in_a_product_keep_to_a_quota_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auditor.fleet.crawler.DEEP", 400)
    monkeypatch.setattr("auditor.simulator.operations.DEEP_FROM", 400)
    account = SimulatedAccount(
        DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, 5_000, quotas={"QueryDevice.deep": 8}
    )
    world = World(750, products=1, missing=0)
    async with Simulator(world, accounts=[account], record_arrivals=True) as platform:
        settings = listed(tmp_path, platform, per_second=5_000, quotas={"QueryDeviceDeep": 8})
        result = await auditor.run_audit(settings)
        moments = platform.arrivals_of[QUERY_DEVICE.name]
        assert platform.counts.throttled == 0
    assert (result.manifest.state, result.manifest.fleet.devices) == ("complete", 750)
    between = [later - earlier for earlier, later in itertools.pairwise(moments[:15])]
    assert all(gap < 0.07 for gap in between[:7])
    assert all(gap > 0.07 for gap in between[8:])


def test_pages_are_as_large_as_the_operations_allow() -> None:
    assert QUERY_PRODUCT_LIST.page_size == PRODUCTS_A_PAGE
    assert QUERY_DEVICE.page_size == DEVICES_A_PAGE
