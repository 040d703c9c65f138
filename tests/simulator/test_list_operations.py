import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from auditor.models import Dialect, Secret
from auditor.simulator.list_operations import DeviceListOperation
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.registry import DEVICE_SECRET_PREFIX, Churn, Registry
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.simulator.api_requests import (
    PRODUCT_ERRORS,
    call,
    call_as,
    device_params,
    error_code,
    get,
    signed_query,
    wait_until,
)

pytestmark = pytest.mark.anyio

ACTION = "QueryDevice"
WRONG_PAGE = "iot.common.InvalidPageParams"


def product_key_at(world: World, product: int = 0) -> str:
    return world.product_keys[product]


def device_names(page: Any) -> list[str]:
    return [entry["deviceName"] for entry in page["data"]["deviceInfo"]]


async def fetch_pages(platform: Simulator, product_key: str, size: int = 50) -> AsyncIterator[Any]:
    """All pages, each requested with the token of the previous one."""
    page = await call(platform, ACTION, ProductKey=product_key, PageSize=size, CurrentPage=1)
    yield page
    while token := page.get("nextToken"):
        page = await call(platform, ACTION, ProductKey=product_key, PageSize=size, NextToken=token)
        yield page


def token_at(world: World, place: int, account: str = "simulated-key") -> str:
    """Token of the page that ends before ``place``."""
    operation = DeviceListOperation(Registry(world))
    return operation._token({"AccessKeyId": account, "ProductKey": product_key_at(world)}, place)


@pytest.mark.parametrize("size", [7, 36, 50])
async def test_pages_contain_all_existing_devices_the_newest_first(size: int) -> None:
    world = World(400, missing=0.1)
    async with Simulator(world) as platform:
        for product_key in world.product_keys:
            own = [each.device_name for each in world if each.product_key == product_key and each.exists]
            pages = [page async for page in fetch_pages(platform, product_key, size)]
            assert [name for page in pages for name in device_names(page)] == own[::-1]
            assert ["nextToken" in page for page in pages] == [True] * (len(pages) - 1) + [False]
            for number, page in enumerate(pages, 1):
                reported = [page[name] for name in ("page", "pageSize", "pageCount", "total")]
                assert reported == [number, size, len(pages), len(own)]


async def test_an_entry_has_the_fields_of_the_record(platform: Simulator, world: World) -> None:
    page = await call(platform, ACTION, ProductKey=product_key_at(world), PageSize=1, CurrentPage=2)
    device = [each for each in world if each.product_key == product_key_at(world)][-2]
    (entry,) = page["data"]["deviceInfo"]
    assert set(entry) == {
        "deviceId", "deviceName", "deviceSecret", "deviceStatus", "deviceType", "gmtCreate", "gmtModified", "iotId",
        "nickname", "productKey", "utcCreate", "utcModified",
    }  # fmt: skip
    assert (entry["deviceName"], entry["iotId"], entry["productKey"]) == (
        device.device_name, device.iot_id, device.product_key,
    )  # fmt: skip
    assert page["code"] == ""


async def test_every_device_has_a_different_secret_with_the_prefix() -> None:
    async with Simulator(World(150, products=1, missing=0)) as platform:
        entries = [
            each
            async for page in fetch_pages(platform, product_key_at(World(1)))
            for each in page["data"]["deviceInfo"]
        ]
    secrets = {entry["deviceSecret"] for entry in entries}
    assert len(secrets) == 150
    assert all(secret.startswith(DEVICE_SECRET_PREFIX) for secret in secrets)


async def test_exactly_the_devices_that_were_never_activated_are_listed_as_unactive() -> None:
    world = World(400, products=1, inactive=0.2)
    async with Simulator(world) as platform:
        entries = [
            each async for page in fetch_pages(platform, product_key_at(world)) for each in page["data"]["deviceInfo"]
        ]
    unactive = {entry["iotId"] for entry in entries if entry["deviceStatus"] == "UNACTIVE"}
    assert unactive == {device.iot_id for device in world if device.exists and not device.activated}
    assert {entry["deviceStatus"] for entry in entries} == {"ONLINE", "OFFLINE", "UNACTIVE", "DISABLE"}


async def test_devices_are_dated_in_the_order_of_their_registration(platform: Simulator, world: World) -> None:
    entries = [
        each async for page in fetch_pages(platform, product_key_at(world)) for each in page["data"]["deviceInfo"]
    ]
    assert all(new["utcCreate"] > old["utcCreate"] for new, old in pairwise(entries))
    assert all(entry["utcModified"] >= entry["utcCreate"] for entry in entries)
    assert entries[-1]["utcCreate"] == "2025-03-01T00:00:00.000Z"
    assert entries[-1]["gmtCreate"] == "2025-03-01 08:00:00"


@pytest.mark.parametrize(
    "changes",
    [
        {"PageSize": "0"}, {"PageSize": "51"}, {"PageSize": "x"}, {"PageSize": ""}, {"CurrentPage": "0"},
        {"CurrentPage": "-1"}, {"CurrentPage": "1.0"}, {"CurrentPage": ""}, {"CurrentPage": "201"},
        {"CurrentPage": "10001", "PageSize": "1"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_page_parameters_out_of_range_are_rejected(dialect: Dialect, changes: dict[str, str]) -> None:
    world = World(10)
    async with Simulator(world, dialect=dialect) as platform:
        sent = {"ProductKey": product_key_at(world), "PageSize": "50", "CurrentPage": "1", **changes}
        assert await error_code(platform, ACTION, sent) == WRONG_PAGE


async def test_the_page_number_is_optional_and_the_page_size_is_not(platform: Simulator, world: World) -> None:
    first = await call(platform, ACTION, ProductKey=product_key_at(world), PageSize=5)
    assert (first["page"], len(device_names(first))) == (1, 5)
    assert (await call(platform, ACTION, ProductKey=product_key_at(world)))["code"] == WRONG_PAGE


async def test_the_last_page_without_a_token_is_returned(platform: Simulator, world: World) -> None:
    page = await call(platform, ACTION, ProductKey=product_key_at(world), PageSize=50, CurrentPage=200)
    assert (page["success"], page["page"], device_names(page), "nextToken" in page) == (True, 200, [], False)


@pytest.mark.parametrize(("product_key", "code"), PRODUCT_ERRORS)
async def test_an_unknown_product_is_rejected(platform: Simulator, product_key: str, code: str) -> None:
    assert await error_code(platform, ACTION, {"ProductKey": product_key, "PageSize": "50"}) == code


async def test_a_token_takes_precedence_over_any_page_number(platform: Simulator, world: World) -> None:
    first = await call(platform, ACTION, ProductKey=product_key_at(world), PageSize=30)
    sent = {"ProductKey": product_key_at(world), "PageSize": 30, "NextToken": first["nextToken"]}
    second = await call(platform, ACTION, ProductKey=product_key_at(world), PageSize=30, CurrentPage=2)
    for number in ("1", "7", "9999999", "x", ""):
        assert (await call(platform, ACTION, **sent, CurrentPage=number))["data"] == second["data"]


async def test_a_token_of_another_list_is_rejected(world: World) -> None:
    stranger = SimulatedAccount("stranger", Secret("secret"))
    own = SimulatedAccount("own", Secret("secret"))
    async with Simulator(world, accounts=[own, stranger]) as platform:
        first = await call_as(own, platform, ACTION, ProductKey=product_key_at(world), PageSize=5)
        token = first["nextToken"]
        swapped = ("B" if token[9] == "A" else "A").join((token[:9], token[10:]))
        for account, product, shown in [
            (own, 0, "TGlzdA"), (own, 0, "\N{SNOWMAN}"), (own, 0, "0"), (own, 0, swapped), (own, 0, token[:-1]),
            (own, 0, token + "A"), (own, 1, token), (stranger, 0, token),
        ]:  # fmt: skip
            sent = {"ProductKey": product_key_at(world, product), "PageSize": 5, "NextToken": shown}
            assert (await call_as(account, platform, ACTION, **sent))["code"] == WRONG_PAGE
        sent = {"ProductKey": product_key_at(world), "PageSize": 5, "NextToken": token}
        assert (await call_as(own, platform, ACTION, **sent))["page"] == 2


async def test_only_a_million_devices_of_a_product_can_be_listed() -> None:
    world = World(1_100_000, products=1, missing=0)
    async with Simulator(world) as platform:
        sent = {"ProductKey": product_key_at(world), "PageSize": 50}
        page = await call(platform, ACTION, **sent, NextToken=token_at(world, 999_970))
        assert device_names(page)[-1] == world.device(100_000).device_name
        assert (page["total"], len(device_names(page))) == (1_100_000, 30)
        assert (await call(platform, ACTION, **sent, NextToken=page["nextToken"]))["code"] == WRONG_PAGE


async def test_a_list_of_any_size_is_returned_immediately() -> None:
    world = World(10_000_000)
    async with Simulator(world) as platform:
        began = time.perf_counter()
        page = await call(
            platform, ACTION, ProductKey=product_key_at(world), PageSize=50, NextToken=token_at(world, 900_000)
        )
        assert time.perf_counter() - began < 1
    assert len(device_names(page)) == 50
    assert all(world.find(product_key_at(world), name) is not None for name in device_names(page))


async def test_alibabas_dialect_and_xml_have_the_same_content(world: World) -> None:
    sent = {"ProductKey": product_key_at(world), "PageSize": "3"}
    async with Simulator(world) as platform:
        plain = await call(platform, ACTION, **sent)
    async with Simulator(world, dialect="alibaba") as platform:
        pascal = await call(platform, ACTION, **sent)
        query = signed_query(sent, constants={"Action": ACTION, "Format": ""})
        xml = ET.fromstring((await get(platform, query)).body)
    assert {"NextToken", "Page", "PageCount", "PageSize", "Total", "Data"} < set(pascal)
    assert [entry["DeviceName"] for entry in pascal["Data"]["DeviceInfo"]] == device_names(plain)
    assert [entry.findtext("DeviceName") for entry in xml.iterfind("Data/DeviceInfo")] == device_names(plain)
    assert xml.tag == "QueryDeviceResponse"


async def test_a_list_shifts_back_while_devices_are_registered() -> None:
    world = World(200, products=1, missing=0, inactive=0)
    async with Simulator(world, churn=Churn(register_per_second=200)) as platform:
        first = await call(platform, ACTION, ProductKey=product_key_at(world), PageSize=50)
        wait_until(lambda: platform.registry_for().registered, reaches=10)
        second = await call(
            platform, ACTION, ProductKey=product_key_at(world), PageSize=50, NextToken=first["nextToken"]
        )
        again = set(device_names(first)) & set(device_names(second))
        assert again == set(device_names(first)[-len(again) :])
        assert 10 <= len(again) == second["total"] - first["total"] <= platform.registry_for().registered
        newest = await call(platform, ACTION, ProductKey=product_key_at(world), PageSize=1)
        device = world.unbounded().find(product_key_at(world), device_names(newest)[0])
        assert device is not None
        assert device.index >= 209
        assert (await call(platform, "ListOTAModuleVersionsByDevice", **device_params(device)))["success"] is True


async def test_a_list_shifts_forward_while_devices_are_removed_and_some_are_never_listed() -> None:
    world = World(400, products=1, missing=0)
    async with Simulator(world, churn=Churn(remove_per_second=400)) as platform:
        seen: set[str] = set()
        async for page in fetch_pages(platform, product_key_at(world)):
            seen.update(device_names(page))
            wait_until(lambda: len(platform.registry_for().removed), reaches=len(platform.registry_for().removed) + 10)
            assert 400 >= page["total"] >= 400 - len(platform.registry_for().removed)
        lasted = {device.device_name for device in world if device.index not in platform.registry_for().removed}
        gone = world.device(next(iter(platform.registry_for().removed)))
        assert lasted - seen
        code = (await call(platform, "ListOTAModuleVersionsByDevice", **device_params(gone)))["code"]
        assert code == "iot.device.NotExistedDevice"
