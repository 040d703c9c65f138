from typing import Any

import pytest

from auditor.models import Dialect
from auditor.simulator.faults import Corruption
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.simulator.api_requests import device_params, get, signed_query

pytestmark = pytest.mark.anyio


async def fetch_page(platform: Simulator, parameters: dict[str, str]) -> Any:
    return (await get(platform, signed_query(parameters))).json


def module_names(page: Any) -> list[str]:
    return [entry["moduleName"] for entry in page["data"]["simpleOTAModuleInfo"]]


async def test_pages_contain_all_modules_and_the_next_one_is_empty(platform: Simulator, world: World) -> None:
    device = world.device(0)
    pages = [await fetch_page(platform, device_params(device, number)) for number in (1, 2, 3, 4)]
    assert [len(module_names(page)) for page in pages] == [200, 200, 50, 0]
    assert [name for page in pages for name in module_names(page)] == [module.module_name for module in device.modules]
    for number, page in enumerate(pages, 1):
        assert (page["currentPage"], page["pageCount"], page["pageSize"], page["total"]) == (number, 3, 200, 450)


@pytest.mark.parametrize(("index", "page_count"), [(2, 0), (3, 1), (4, 2)])
async def test_the_page_count_fits_the_total(platform: Simulator, world: World, index: int, page_count: int) -> None:
    assert (await fetch_page(platform, device_params(world.device(index))))["pageCount"] == page_count


@pytest.mark.parametrize(
    ("page", "size"), [("0", "200"), ("-1", "10"), ("1", "0"), ("1", "201"), ("x", "10"), ("1.0", "10"), ("", "10")]
)
async def test_page_parameters_out_of_range_are_rejected(
    platform: Simulator, world: World, page: str, size: str
) -> None:
    seen = await get(platform, signed_query(device_params(world.device(1), page, size)))
    assert (seen.status, seen.code, seen.json["success"]) == (200, "iot.common.InvalidPageParams", False)
    assert set(seen.json) == {"success", "code", "errorMessage", "requestId"}


async def test_a_missing_page_parameter_is_rejected(platform: Simulator, world: World) -> None:
    parameters = device_params(world.device(1))
    del parameters["PageSize"]
    assert (await fetch_page(platform, parameters))["code"] == "iot.common.InvalidPageParams"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"ProductKey": ""}, "iot.prod.NullProductKey"),
        ({"DeviceName": ""}, "iot.device.NullDeviceName"),
        ({"ProductKey": "", "DeviceName": ""}, "iot.prod.NullProductKey"),
        ({"ProductKey": "", "DeviceName": "", "IoTID": "misspelt"}, "iot.prod.NullProductKey"),
        ({"ProductKey": "k1 nonsense"}, "iot.prod.InvalidFormattedProductkey"),
        ({"DeviceName": "abc"}, "iot.device.InvalidFormattedDeviceName"),
        ({"DeviceName": "a" * 33}, "iot.device.InvalidFormattedDeviceName"),
        ({"DeviceName": "dev/00000001"}, "iot.device.InvalidFormattedDeviceName"),
        ({"ProductKey": "k1nowhere"}, "iot.prod.NotExistedProduct"),
        ({"DeviceName": "dev-99999999"}, "iot.device.NotExistedDevice"),
        ({"IotId": "unknown"}, "iot.device.InvalidIoTId"),
    ],
)
async def test_an_invalid_device_name_is_rejected(
    platform: Simulator, world: World, changes: dict[str, str], code: str
) -> None:
    parameters = {name: value for name, value in {**device_params(world.device(1)), **changes}.items() if value}
    assert (await fetch_page(platform, parameters))["code"] == code


async def test_an_iot_id_takes_precedence_over_a_name(platform: Simulator, world: World) -> None:
    page = await fetch_page(platform, {**device_params(world.device(3)), "IotId": world.device(1).iot_id})
    assert page["total"] == 3


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_missing_and_inactive_devices_are_rejected(dialect: Dialect) -> None:
    missing, inactive = World(1, missing=1), World(1, missing=0, inactive=1)
    for world, code in ((missing, "iot.device.NotExistedDevice"), (inactive, "iot.device.InactiveDevice")):
        async with Simulator(world, dialect=dialect) as platform:
            seen = await get(platform, signed_query(device_params(world.device(0))))
            assert (seen.status, seen.code) == (200, code)
            assert seen.json["Success" if dialect == "alibaba" else "success"] is False


async def test_a_silent_device_has_no_modules(platform: Simulator, world: World) -> None:
    page = await fetch_page(platform, device_params(world.device(2)))
    assert (page["success"], page["total"], module_names(page)) == (True, 0, [])


async def corrupted_response(world: World, lie: Corruption, page: int, index: int = 0) -> Any:
    async with Simulator(world, corruptions={index: lie}) as platform:
        assert (await fetch_page(platform, device_params(world.device(3))))["total"] == 200, "others must stay true"
        return await fetch_page(platform, device_params(world.device(index), page))


async def test_corruption_always_page_1(world: World) -> None:
    first = [module.module_name for module in world.device(0).modules[:200]]
    numbered = await corrupted_response(world, "always_page_1", 2)
    assert (module_names(numbered), numbered["currentPage"]) == (first, 2)
    echoed = await corrupted_response(world, "always_page_1_echo_1", 2)
    assert (module_names(echoed), echoed["currentPage"]) == (first, 1)


async def test_corruption_empties_later_pages(world: World) -> None:
    assert len(module_names(await corrupted_response(world, "empty_page_early", 1))) == 200
    page = await corrupted_response(world, "empty_page_early", 2)
    assert (module_names(page), page["total"], page["pageCount"]) == ([], 450, 3)


async def test_corruption_of_data(world: World) -> None:
    null = await corrupted_response(world, "data_null", 1)
    assert (null["data"], null["total"], null["pageCount"]) == (None, 0, 0)
    hollow = await corrupted_response(world, "data_hollow", 1)
    assert (hollow["data"], hollow["total"], hollow["pageCount"]) == ({}, 0, 0)
    contradicted = await corrupted_response(world, "data_hollow_with_total", 1)
    assert (contradicted["data"], contradicted["total"], contradicted["pageCount"]) == ({}, 3, 1)
    array = await corrupted_response(world, "data_array", 3)
    assert (len(array["data"]), array["total"]) == (50, 450)


async def test_corruption_of_totals(world: World) -> None:
    assert "total" not in await corrupted_response(world, "no_total", 1)
    assert (await corrupted_response(world, "page_count_1", 1))["pageCount"] == 1
    assert [(await corrupted_response(world, "total_grows", page))["total"] for page in (1, 2, 3)] == [450, 451, 452]


async def test_corruption_names_another_device(world: World) -> None:
    page = await corrupted_response(world, "other_device", 1, index=1)
    device = world.device(1)
    assert {entry["deviceName"] for entry in page["data"]["simpleOTAModuleInfo"]} == {"another-device"}
    assert device.iot_id not in {entry["iotId"] for entry in page["data"]["simpleOTAModuleInfo"]}


async def test_responses_are_counted_by_device_and_page_only_if_they_concern_a_device() -> None:
    world = World(2, missing=0, silent=0, inactive=0, large=0, module_counts={0: 450})
    device = world.device(0)
    by_id = {"IotId": device.iot_id, "CurrentPage": "1", "PageSize": "200"}
    unknown = {**device_params(device), "DeviceName": "unknown"}
    async with Simulator(world, record_responses=True) as platform:
        for parameters in (
            device_params(device),
            device_params(device, 2),
            device_params(device, 2),
            by_id,
            unknown,
            device_params(device, "x"),
        ):
            await get(platform, signed_query(parameters))
        await get(platform, "Action=unsigned")
        platform.outage = "business"
        await get(platform, signed_query(device_params(device)))
    name = f"{device.product_key}/{device.device_name}"
    called = {(name, 1): 1, (name, 2): 2, (device.iot_id, 1): 1, (f"{device.product_key}/unknown", 1): 1}
    assert platform.responses == called


async def test_responses_are_not_recorded_by_default(platform: Simulator, world: World) -> None:
    await get(platform, signed_query(device_params(world.device(1))))
    assert platform.responses is None
