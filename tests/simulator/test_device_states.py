from collections.abc import Iterable
from typing import Any

import pytest

from auditor.simulator.lifecycle import Lifecycle
from auditor.simulator.registry import DEVICE_SECRET_PREFIX
from auditor.simulator.server import Simulator
from auditor.simulator.world import SimulatedDevice, World
from tests.simulator.api_requests import PRODUCT_ERRORS, call, china_time, error_code

pytestmark = pytest.mark.anyio

STATES, DETAILS = "BatchGetDeviceState", "BatchQueryDeviceDetail"


def numbered_params(name: str, values: Iterable[str]) -> dict[str, str]:
    return {f"{name}.{number}": value for number, value in enumerate(values, 1)}


def devices_of_first_product(world: World) -> list[SimulatedDevice]:
    return [device for device in world if device.product_key == world.product_keys[0]]


def name_params(devices: list[SimulatedDevice]) -> dict[str, str]:
    named = numbered_params("DeviceName", (device.device_name for device in devices))
    return {"ProductKey": devices[0].product_key, **named}


async def states(platform: Simulator, sent: dict[str, str]) -> list[Any]:
    entries: list[Any] = (await call(platform, STATES, **sent))["deviceStatusList"]["deviceStatus"]
    return entries


async def details(platform: Simulator, sent: dict[str, str]) -> list[Any]:
    entries: list[Any] = (await call(platform, DETAILS, **sent))["data"]["data"]
    return entries


async def test_states_are_the_same_by_name_and_by_id_and_in_requested_order(platform: Simulator, world: World) -> None:
    devices = devices_of_first_product(world)[:50]
    by_id = await states(platform, numbered_params("IotId", (device.iot_id for device in devices)))
    assert [entry["iotId"] for entry in by_id] == [device.iot_id for device in devices]
    assert by_id == await states(platform, name_params(devices))
    assert all(
        set(entry) == {"deviceId", "deviceName", "iotId", "status", "timestamp", "lastOnlineTime", "asAddress"}
        for entry in by_id
    )
    assert all(entry["timestamp"] >= china_time(entry["lastOnlineTime"]) > 1_740_000_000_000 for entry in by_id)


async def test_numbered_names_may_be_unordered_and_have_gaps(platform: Simulator, world: World) -> None:
    one, two = devices_of_first_product(world)[:2]
    sent = {"ProductKey": one.product_key, "DeviceName.10": two.device_name, "DeviceName.9": one.device_name}
    assert [entry["deviceName"] for entry in await states(platform, sent)] == [one.device_name, two.device_name]


async def test_one_request_may_have_ids_of_several_products_which_take_precedence_over_names(
    platform: Simulator, world: World
) -> None:
    sent = {
        **name_params([world.device(9)]),
        **numbered_params("IotId", (world.device(index).iot_id for index in range(4))),
    }
    assert [entry["iotId"] for entry in await states(platform, sent)] == [world.device(i).iot_id for i in range(4)]


@pytest.mark.parametrize("day", [0, 3])
async def test_the_state_of_a_device_is_its_status_in_the_list(day: int) -> None:
    world = World(50, products=1, missing=0, day=day, lifecycle=Lifecycle(connecting=0.4, always_online=0.3))
    async with Simulator(world) as platform:
        listed = await call(platform, "QueryDevice", ProductKey=world.product_keys[0], PageSize=50)
        expected = {entry["iotId"]: entry["deviceStatus"] for entry in listed["data"]["deviceInfo"]}
        shown = await states(platform, numbered_params("IotId", expected))
        detailed = await details(platform, name_params(list(world)))
    assert {entry["iotId"]: entry["status"] for entry in shown} == expected
    assert {entry["iotId"]: entry["status"] for entry in detailed} == expected
    assert expected == {device.iot_id: device.status for device in world}
    assert set(expected.values()) >= {"ONLINE", "OFFLINE"}


async def test_a_device_that_was_never_activated_was_never_online() -> None:
    world = World(1, missing=0, inactive=1)
    async with Simulator(world) as platform:
        (entry,) = await states(platform, name_params([world.device(0)]))
        assert (entry["status"], set(entry)) == ("UNACTIVE", {"deviceName", "iotId", "status", "timestamp"})
        (detail,) = await details(platform, name_params([world.device(0)]))
        assert (detail["status"], detail["firmwareVersion"]) == ("UNACTIVE", "")


async def test_only_devices_that_connected_have_a_new_state_a_day_later() -> None:
    lifecycle, today = Lifecycle(connecting=0.3, always_online=0.2), 1_800_000_000
    seen: list[list[Any]] = []
    worlds = [World(50, products=1, missing=0, inactive=0, day=day, lifecycle=lifecycle, today=today) for day in (4, 5)]
    for world in worlds:
        async with Simulator(world) as platform:
            seen.append(await states(platform, name_params(list(world))))
    for device, old, new in zip(worlds[1], *seen, strict=True):
        if device.connected_day == 5:
            assert 0 <= china_time(new["lastOnlineTime"]) - today * 1000 <= new["timestamp"] - today * 1000 <= 1_000
        else:
            assert china_time(new["lastOnlineTime"]) == china_time(old["lastOnlineTime"]) - 86_400_000
            assert new["timestamp"] < today * 1000 - 86_000_000
            assert new["status"] == ("OFFLINE" if device.connected_day == 4 else old["status"])
    assert {entry["status"] for entry in seen[1]} >= {"ONLINE", "OFFLINE"}
    assert 5 < sum(device.connected_day == 5 for device in worlds[1]) < 25


async def test_devices_that_do_not_exist_are_omitted() -> None:
    world = World(60, products=1, missing=0.3)
    existing = [device.device_name for device in list(world)[:50] if device.exists]
    sent = name_params(list(world)[:50])
    async with Simulator(world) as platform:
        shown = await states(platform, sent)
        assert [entry["deviceName"] for entry in shown] == existing
        assert 30 < len(shown) < 40
        assert [entry["deviceName"] for entry in await details(platform, sent)] == existing
        ids = numbered_params("IotId", [world.device(0).iot_id[::-1], "nobody"])
        assert await states(platform, ids) == []


async def test_details_have_the_version_of_the_module_default(platform: Simulator, world: World) -> None:
    devices = devices_of_first_product(world)
    entries = await details(platform, name_params(devices[:100]))
    expected = [next((m.module_version for m in each.modules if m.module_name == "default"), "") for each in devices]
    assert [entry["firmwareVersion"] for entry in entries] == expected[:100]
    assert len(set(expected)) > 1
    assert all(entry["deviceSecret"].startswith(DEVICE_SECRET_PREFIX) for entry in entries)
    assert {entry["productName"] for entry in entries} == {"Simulated product 1"}


@pytest.mark.parametrize(("action", "limit"), [(STATES, 50), (DETAILS, 100)])
async def test_too_many_devices_are_rejected(action: str, limit: int) -> None:
    world = World(limit + 1, products=1, missing=0)
    async with Simulator(world) as platform:
        assert (await call(platform, action, **name_params(list(world)[:limit])))["success"] is True
        assert await error_code(platform, action, name_params(list(world))) == "iot.system.IllegalRequest"


async def test_too_many_ids_are_rejected(platform: Simulator, world: World) -> None:
    sent = numbered_params("IotId", (device.iot_id for device in list(world)[:51]))
    assert await error_code(platform, STATES, sent) == "iot.system.IllegalRequest"


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
async def test_invalid_device_names_are_rejected(
    platform: Simulator, world: World, action: str, changes: dict[str, str], code: str
) -> None:
    assert await error_code(platform, action, {"ProductKey": world.product_keys[0], **changes}) == code


@pytest.mark.parametrize("action", [STATES, DETAILS])
@pytest.mark.parametrize(("product_key", "code"), PRODUCT_ERRORS)
async def test_names_of_an_unknown_product_are_rejected(
    platform: Simulator, action: str, product_key: str, code: str
) -> None:
    assert await error_code(platform, action, {"ProductKey": product_key, "DeviceName.1": "dev-00000000"}) == code


async def test_alibabas_dialect_is_in_pascal_case(world: World) -> None:
    sent = name_params([world.device(1)])
    async with Simulator(world, dialect="alibaba") as platform:
        (state,) = (await call(platform, STATES, **sent))["DeviceStatusList"]["DeviceStatus"]
        (detail,) = (await call(platform, DETAILS, **sent))["Data"]["Data"]
    assert set(state) == {"AsAddress", "DeviceId", "DeviceName", "IotId", "LastOnlineTime", "Status", "Timestamp"}
    assert detail["FirmwareVersion"] == world.device(1).modules[0].module_version
