"""Plans of listed fleets before the first run: the platform counts the devices, and lists none."""

from pathlib import Path
from typing import Any

import pytest

import auditor
from auditor.client.operations import QUERY_DEVICE, QUERY_PRODUCT_LIST
from auditor.errors import AccountStoppedError, FleetError, SettingsError
from auditor.planning.device_counts import count_listed_fleets
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


async def test_error_names_the_account_and_a_command_that_needs_no_platform(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:1/"
    tables = [listed(nowhere, tmp_path, name, {"products": "all"}) for name in ("eu", "us")]
    tables[1] |= {"access_key_id": "other"}
    settings = settings_for(tmp_path, *tables, give_up_after=0.5, timeout=0.5)
    advice = "plan with a fleet file.*: auditor plan CONFIG --account eu --fleet FILE$"
    with pytest.raises(FleetError, match=f'^accounts "eu", "us": the platform lists their fleets.*{advice}'):
        auditor.plan_audit(settings)
    with pytest.raises(AccountStoppedError, match=f'^account "eu": its devices cannot be counted: .*{advice}'):
        await count_listed_fleets(settings, ["eu", "us"])
    (tmp_path / "secret").unlink()
    with pytest.raises(SettingsError, match=f"secret.*{advice}"):
        await count_listed_fleets(settings, ["eu", "us"])
