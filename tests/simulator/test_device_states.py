from collections.abc import Iterable
from typing import Any

import pytest

from auditor.simulator.lifecycle import Life
from auditor.simulator.registry import DEVICE_SECRET_PREFIX
from auditor.simulator.server import Simulator
from auditor.simulator.world import SimulatedDevice, World
from tests.simulator.api_requests import PRODUCT_REFUSALS, ask, code_of

pytestmark = pytest.mark.anyio

STATES, DETAILS = "BatchGetDeviceState", "BatchQueryDeviceDetail"


def numbered(name: str, values: Iterable[str]) -> dict[str, str]:
    return {f"{name}.{number}": value for number, value in enumerate(values, 1)}


def of_first_product(world: World) -> list[SimulatedDevice]:
    return [device for device in world if device.product_key == world.product_keys[0]]


def by_name(devices: list[SimulatedDevice]) -> dict[str, str]:
    named = numbered("DeviceName", (device.device_name for device in devices))
    return {"ProductKey": devices[0].product_key, **named}


async def states(platform: Simulator, sent: dict[str, str]) -> list[Any]:
    entries: list[Any] = (await ask(platform, STATES, **sent))["deviceStatusList"]["deviceStatus"]
    return entries


async def details(platform: Simulator, sent: dict[str, str]) -> list[Any]:
    entries: list[Any] = (await ask(platform, DETAILS, **sent))["data"]["data"]
    return entries


async def test_states_are_the_same_by_name_and_by_id_and_in_the_order_asked_for(
    platform: Simulator, world: World
) -> None:
    devices = of_first_product(world)[:50]
    by_id = await states(platform, numbered("IotId", (device.iot_id for device in devices)))
    assert [entry["iotId"] for entry in by_id] == [device.iot_id for device in devices]
    assert by_id == await states(platform, by_name(devices))
    assert all(
        set(entry) == {"deviceName", "iotId", "status", "timestamp", "lastOnlineTime", "asAddress"} for entry in by_id
    )
    assert all(entry["timestamp"] >= entry["lastOnlineTime"] > 1_740_000_000_000 for entry in by_id)


async def test_numbers_of_names_need_not_come_in_order_nor_without_gaps(platform: Simulator, world: World) -> None:
    one, two = of_first_product(world)[:2]
    sent = {"ProductKey": one.product_key, "DeviceName.10": two.device_name, "DeviceName.9": one.device_name}
    assert [entry["deviceName"] for entry in await states(platform, sent)] == [one.device_name, two.device_name]


async def test_ids_of_several_products_go_into_one_request_and_win_over_names(
    platform: Simulator, world: World
) -> None:
    sent = {**by_name([world.device(9)]), **numbered("IotId", (world.device(index).iot_id for index in range(4)))}
    assert [entry["iotId"] for entry in await states(platform, sent)] == [world.device(i).iot_id for i in range(4)]


@pytest.mark.parametrize("day", [0, 3])
async def test_a_devices_state_is_the_status_it_is_listed_with(day: int) -> None:
    world = World(50, products=1, missing=0, day=day, life=Life(connecting=0.4, always_online=0.3))
    async with Simulator(world) as platform:
        listed = await ask(platform, "QueryDevice", ProductKey=world.product_keys[0], PageSize=50)
        expected = {entry["iotId"]: entry["deviceStatus"] for entry in listed["data"]["deviceInfo"]}
        shown = await states(platform, numbered("IotId", expected))
        detailed = await details(platform, by_name(list(world)))
    assert {entry["iotId"]: entry["status"] for entry in shown} == expected
    assert {entry["iotId"]: entry["status"] for entry in detailed} == expected
    assert expected == {device.iot_id: device.status for device in world}
    assert set(expected.values()) >= {"ONLINE", "OFFLINE"}


async def test_a_device_that_was_never_activated_was_never_online() -> None:
    world = World(1, missing=0, inactive=1)
    async with Simulator(world) as platform:
        (entry,) = await states(platform, by_name([world.device(0)]))
        assert (entry["status"], set(entry)) == ("UNACTIVE", {"deviceName", "iotId", "status", "timestamp"})
        (detail,) = await details(platform, by_name([world.device(0)]))
        assert (detail["status"], detail["firmwareVersion"]) == ("UNACTIVE", "")


async def test_a_day_later_those_that_connected_show_it_and_the_others_are_as_they_were() -> None:
    life, today = Life(connecting=0.3, always_online=0.2), 1_800_000_000
    seen: list[list[Any]] = []
    worlds = [World(50, products=1, missing=0, inactive=0, day=day, life=life, today=today) for day in (4, 5)]
    for world in worlds:
        async with Simulator(world) as platform:
            seen.append(await states(platform, by_name(list(world))))
    for device, old, new in zip(worlds[1], *seen, strict=True):
        if device.connected == 5:
            assert 0 <= new["lastOnlineTime"] - today * 1000 <= new["timestamp"] - today * 1000 <= 1_000
        else:
            assert new["lastOnlineTime"] == old["lastOnlineTime"] - 86_400_000
            assert new["timestamp"] < today * 1000 - 86_000_000
            assert new["status"] == ("OFFLINE" if device.connected == 4 else old["status"])
    assert {entry["status"] for entry in seen[1]} >= {"ONLINE", "OFFLINE"}
    assert 5 < sum(device.connected == 5 for device in worlds[1]) < 25


async def test_who_does_not_exist_is_left_out() -> None:
    world = World(60, products=1, missing=0.3)
    existing = [device.device_name for device in list(world)[:50] if device.exists]
    sent = by_name(list(world)[:50])
    async with Simulator(world) as platform:
        shown = await states(platform, sent)
        assert [entry["deviceName"] for entry in shown] == existing
        assert 30 < len(shown) < 40
        assert [entry["deviceName"] for entry in await details(platform, sent)] == existing
        ids = numbered("IotId", [world.device(0).iot_id[::-1], "nobody"])
        assert await states(platform, ids) == []


async def test_details_tell_the_version_of_the_module_default(platform: Simulator, world: World) -> None:
    devices = of_first_product(world)
    entries = await details(platform, by_name(devices[:100]))
    expected = [next((m.module_version for m in each.modules if m.module_name == "default"), "") for each in devices]
    assert [entry["firmwareVersion"] for entry in entries] == expected[:100]
    assert len(set(expected)) > 1
    assert all(entry["deviceSecret"].startswith(DEVICE_SECRET_PREFIX) for entry in entries)
    assert {entry["productName"] for entry in entries} == {"Simulated product 1"}


@pytest.mark.parametrize(("action", "most"), [(STATES, 50), (DETAILS, 100)])
async def test_too_many_devices_are_refused(action: str, most: int) -> None:
    world = World(most + 1, products=1, missing=0)
    async with Simulator(world) as platform:
        assert (await ask(platform, action, **by_name(list(world)[:most])))["success"] is True
        assert await code_of(platform, action, by_name(list(world))) == "iot.system.IllegalRequest"


async def test_too_many_ids_are_refused(platform: Simulator, world: World) -> None:
    sent = numbered("IotId", (device.iot_id for device in list(world)[:51]))
    assert await code_of(platform, STATES, sent) == "iot.system.IllegalRequest"


@pytest.mark.parametrize("action", [STATES, DETAILS])
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, "iot.device.NullDeviceName"),
        ({"DeviceName": "dev-00000000"}, "iot.device.NullDeviceName"),
        ({"DeviceName.0": "dev-00000000"}, "iot.device.NullDeviceName"),
        ({"DeviceName.x": "dev-00000000"}, "iot.device.NullDeviceName"),
        ({"DeviceName.1": ""}, "iot.device.NullDeviceName"),
        ({"DeviceName.1": "dev-00000000", "DeviceName.2": "a/b/c"}, "iot.device.InvalidFormattedDeviceName"),
    ],
)
async def test_devices_that_are_wrongly_named_are_refused(
    platform: Simulator, world: World, action: str, changes: dict[str, str], code: str
) -> None:
    assert await code_of(platform, action, {"ProductKey": world.product_keys[0], **changes}) == code


@pytest.mark.parametrize("action", [STATES, DETAILS])
@pytest.mark.parametrize(("product_key", "code"), PRODUCT_REFUSALS)
async def test_names_of_a_product_that_is_none_are_refused(
    platform: Simulator, action: str, product_key: str, code: str
) -> None:
    assert await code_of(platform, action, {"ProductKey": product_key, "DeviceName.1": "dev-00000000"}) == code


async def test_alibabas_dialect_is_in_pascal_case(world: World) -> None:
    sent = by_name([world.device(1)])
    async with Simulator(world, dialect="alibaba") as platform:
        (state,) = (await ask(platform, STATES, **sent))["DeviceStatusList"]["DeviceStatus"]
        (detail,) = (await ask(platform, DETAILS, **sent))["Data"]["Data"]
    assert set(state) == {"DeviceName", "IotId", "Status", "Timestamp", "LastOnlineTime", "AsAddress"}
    assert detail["FirmwareVersion"] == world.device(1).modules[0].module_version
