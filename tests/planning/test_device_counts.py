"""Plans of listed fleets before the first run: the platform counts the devices, and lists none."""

from pathlib import Path
from typing import Any

import pytest

import auditor
from auditor.client.operations import QUERY_DEVICE, QUERY_PRODUCT_LIST
from auditor.errors import AccountStoppedError, FleetError, SettingsError
from auditor.planning.device_counts import _sampled_pages, count_listed_fleets
from auditor.simulator import list_operations
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.integration.test_audit import account_table, settings_for

pytestmark = pytest.mark.anyio


def listed(endpoint: str, folder: Path, name: str, fleet: object) -> dict[str, Any]:
    return account_table(endpoint, folder, name=name, fleet=fleet, calls_per_second=10)


async def test_product_list_counts_the_devices_and_no_device_is_listed(tmp_path: Path) -> None:
    world = World(700, products=5)
    async with Simulator(world, record_arrivals=True) as platform:
        settings = settings_for(tmp_path, listed(platform.endpoint, tmp_path, "eu", {"products": "all"}))
        counts = await count_listed_fleets(settings, ["eu"])
        assert len(platform.arrivals_by_operation[QUERY_PRODUCT_LIST.name]) == platform.counts.received == 1
    sizes = [
        sum(device.exists and device.product_key == each.product_key for device in world) for each in world.products
    ]
    assert sum(size * products for size, products in counts["eu"].items()) == sum(sizes)
    assert sum(counts["eu"].values()) == 5
    plan = auditor.plan_audit(settings, count_devices=lambda _, names: {name: counts[name] for name in names})
    (account,) = plan.accounts
    assert (account.devices, account.devices_assumed, account.devices_counted) == (sum(sizes), False, True)
    assert account.seconds == pytest.approx(sum(sizes) / 9.7, abs=0.001)


async def test_product_without_a_count_costs_one_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = list_operations._product_entry
    monkeypatch.setattr(
        list_operations,
        "_product_entry",
        lambda registry, number: {key: value for key, value in entry(registry, number).items() if key != "deviceCount"},
    )
    world = World(700, products=5)
    keys = [each.product_key for each in world.products[:3]]
    async with Simulator(world, record_arrivals=True) as platform:
        settings = settings_for(tmp_path, listed(platform.endpoint, tmp_path, "eu", {"products": keys}))
        counts = await count_listed_fleets(settings, ["eu"])
        assert len(platform.arrivals_by_operation[QUERY_DEVICE.name]) == 3
    expected = sum(device.exists and device.product_key in keys for device in world)
    assert sum(size * products for size, products in counts["eu"].items()) == expected


@pytest.mark.parametrize("never_activated", [False, True])
async def test_filters_of_small_fleets_are_applied_to_every_device(tmp_path: Path, *, never_activated: bool) -> None:
    world = World(700, products=5, inactive=0.2)
    excluded = world.products[1].product_key
    fleet = {
        "products": "all",
        "include": {"device_name": ["*1", "*2", "*3"]},
        "exclude": {"product_key": [excluded], "device_name": ["*13"]},
        "query_never_activated": never_activated,
    }
    async with Simulator(world, record_arrivals=True) as platform:
        settings = settings_for(tmp_path, listed(platform.endpoint, tmp_path, "eu", fleet))
        counts = await count_listed_fleets(settings, ["eu"])
        assert len(platform.arrivals_by_operation[QUERY_DEVICE.name]) <= 20
    expected = sum(
        device.exists and device.product_key != excluded and device.device_name[-1] in "123"
        and not device.device_name.endswith("13") and (device.activated or never_activated)
        for device in world
    )  # fmt: skip
    assert 0 < sum(size * products for size, products in counts["eu"].items()) == expected


async def test_filters_of_large_fleets_are_applied_to_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditor.planning.device_counts.SAMPLED_PAGES", 12)
    world = World(6_000, products=20)
    fleet = {"products": "all", "include": {"device_name": ["*1", "*2", "*3", "*4", "*5"]}}
    async with Simulator(world, record_arrivals=True) as platform:
        settings = settings_for(tmp_path, listed(platform.endpoint, tmp_path, "eu", fleet))
        counts = await count_listed_fleets(settings, ["eu"])
        assert len(platform.arrivals_by_operation[QUERY_DEVICE.name]) == 12
    exist = sum(device.exists for device in world)
    assert sum(size * products for size, products in counts["eu"].items()) == pytest.approx(exist / 2, rel=0.15)


def test_sampled_pages_are_spread_over_the_largest_lists() -> None:
    assert _sampled_pages({"a": 120, "b": 0, "c": 1}) == {"a": [1, 2, 3], "c": [1]}
    pages = _sampled_pages({"a": 1_000_000, "b": 100_000, "c": 60})
    assert pages["c"] == [1, 2]
    assert len(pages["a"]) == len(pages["b"]) == 19
    assert pages["a"][:3] == [1, 11, 22]
    assert max(pages["a"]) <= 200
    many = _sampled_pages({str(number): number for number in range(1_000)})
    assert many == {str(number): [1] for number in range(960, 1_000)}


async def test_error_names_the_account_and_a_command_that_needs_no_platform(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:1/"
    tables = [listed(nowhere, tmp_path, name, {"products": "all"}) for name in ("eu west", "us")]
    tables[1] |= {"access_key_id": "other"}
    settings = settings_for(tmp_path, *tables, give_up_after=0.5, timeout=0.5)
    advice = "plan with a fleet file.*: auditor plan CONFIG --account='eu west' --fleet=FILE$"
    with pytest.raises(FleetError, match=f'^accounts "eu west", "us": the platform lists their fleets.*{advice}'):
        auditor.plan_audit(settings)
    with pytest.raises(AccountStoppedError, match=f'^account "eu west": its devices cannot be counted: .*{advice}'):
        await count_listed_fleets(settings, ["eu west", "us"])
    (tmp_path / "secret").unlink()
    with pytest.raises(SettingsError, match=f"secret.*{advice}"):
        await count_listed_fleets(settings, ["eu west", "us"])
