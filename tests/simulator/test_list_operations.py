import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from auditor.models import Dialect, Secret
from auditor.simulator.list_operations import DeviceListing
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.registry import DEVICE_SECRET_PREFIX, Churn, Registry
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.simulator.api_requests import PRODUCT_REFUSALS, ask, ask_as, code_of, get, named, signed_query, wait_until

pytestmark = pytest.mark.anyio

ACTION = "QueryDevice"
WRONG_PAGE = "iot.common.InvalidPageParams"


def key_of(world: World, product: int = 0) -> str:
    return world.product_keys[product]


def names(page: Any) -> list[str]:
    return [entry["deviceName"] for entry in page["data"]["deviceInfo"]]


async def pages_of(platform: Simulator, product_key: str, size: int = 50) -> AsyncIterator[Any]:
    """The answers from the first to the last, each asked for by the token of the one before."""
    page = await ask(platform, ACTION, ProductKey=product_key, PageSize=size, CurrentPage=1)
    yield page
    while token := page.get("nextToken"):
        page = await ask(platform, ACTION, ProductKey=product_key, PageSize=size, NextToken=token)
        yield page


def token_at(world: World, place: int, account: str = "simulated-key") -> str:
    """What a page that ends before ``place`` would give, without reading all pages before it."""
    listing = DeviceListing(Registry(world))
    return listing._token({"AccessKeyId": account, "ProductKey": key_of(world)}, place)


@pytest.mark.parametrize("size", [7, 36, 50])
async def test_pages_join_to_all_devices_that_exist_the_newest_first(size: int) -> None:
    world = World(400, missing=0.1)
    async with Simulator(world) as platform:
        for product_key in world.product_keys:
            own = [each.device_name for each in world if each.product_key == product_key and each.exists]
            pages = [page async for page in pages_of(platform, product_key, size)]
            assert [name for page in pages for name in names(page)] == own[::-1]
            assert ["nextToken" in page for page in pages] == [True] * (len(pages) - 1) + [False]
            for number, page in enumerate(pages, 1):
                told = [page[name] for name in ("page", "pageSize", "pageCount", "total")]
                assert told == [number, size, len(pages), len(own)]


async def test_an_entry_tells_what_the_platform_keeps(platform: Simulator, world: World) -> None:
    page = await ask(platform, ACTION, ProductKey=key_of(world), PageSize=1, CurrentPage=2)
    device = [each for each in world if each.product_key == key_of(world)][-2]
    (entry,) = page["data"]["deviceInfo"]
    assert set(entry) == {
        "deviceId", "deviceName", "deviceSecret", "deviceStatus", "deviceType", "gmtCreate", "gmtModified", "iotId",
        "nickname", "productKey", "utcCreate", "utcModified",
    }  # fmt: skip
    assert (entry["deviceName"], entry["iotId"], entry["productKey"]) == (
        device.device_name, device.iot_id, device.product_key,
    )  # fmt: skip
    assert page["code"] == ""


async def test_every_device_has_a_secret_of_its_own_that_a_search_finds() -> None:
    async with Simulator(World(150, products=1, missing=0)) as platform:
        entries = [each async for page in pages_of(platform, key_of(World(1))) for each in page["data"]["deviceInfo"]]
    secrets = {entry["deviceSecret"] for entry in entries}
    assert len(secrets) == 150
    assert all(secret.startswith(DEVICE_SECRET_PREFIX) for secret in secrets)


async def test_the_devices_that_were_never_activated_are_the_ones_listed_as_unactive() -> None:
    world = World(400, products=1, inactive=0.2)
    async with Simulator(world) as platform:
        entries = [each async for page in pages_of(platform, key_of(world)) for each in page["data"]["deviceInfo"]]
    unactive = {entry["iotId"] for entry in entries if entry["deviceStatus"] == "UNACTIVE"}
    assert unactive == {device.iot_id for device in world if device.exists and not device.activated}
    assert {entry["deviceStatus"] for entry in entries} == {"ONLINE", "OFFLINE", "UNACTIVE", "DISABLE"}


async def test_devices_are_dated_in_the_order_of_their_registration(platform: Simulator, world: World) -> None:
    entries = [each async for page in pages_of(platform, key_of(world)) for each in page["data"]["deviceInfo"]]
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
async def test_page_parameters_out_of_range_are_refused(dialect: Dialect, changes: dict[str, str]) -> None:
    world = World(10)
    async with Simulator(world, dialect=dialect) as platform:
        sent = {"ProductKey": key_of(world), "PageSize": "50", "CurrentPage": "1", **changes}
        assert await code_of(platform, ACTION, sent) == WRONG_PAGE


async def test_without_a_number_the_first_page_is_answered_and_without_a_size_none(
    platform: Simulator, world: World
) -> None:
    first = await ask(platform, ACTION, ProductKey=key_of(world), PageSize=5)
    assert (first["page"], len(names(first))) == (1, 5)
    assert (await ask(platform, ACTION, ProductKey=key_of(world)))["code"] == WRONG_PAGE


async def test_the_last_page_that_needs_no_token_is_answered(platform: Simulator, world: World) -> None:
    page = await ask(platform, ACTION, ProductKey=key_of(world), PageSize=50, CurrentPage=200)
    assert (page["success"], page["page"], names(page), "nextToken" in page) == (True, 200, [], False)


@pytest.mark.parametrize(("product_key", "code"), PRODUCT_REFUSALS)
async def test_a_product_that_is_none_is_refused(platform: Simulator, product_key: str, code: str) -> None:
    assert await code_of(platform, ACTION, {"ProductKey": product_key, "PageSize": "50"}) == code


async def test_a_token_wins_over_the_number_of_the_page_whatever_that_is(platform: Simulator, world: World) -> None:
    first = await ask(platform, ACTION, ProductKey=key_of(world), PageSize=30)
    sent = {"ProductKey": key_of(world), "PageSize": 30, "NextToken": first["nextToken"]}
    second = await ask(platform, ACTION, ProductKey=key_of(world), PageSize=30, CurrentPage=2)
    for number in ("1", "7", "9999999", "x", ""):
        assert (await ask(platform, ACTION, **sent, CurrentPage=number))["data"] == second["data"]


async def test_a_token_that_was_not_given_for_this_list_is_refused(world: World) -> None:
    stranger = SimulatedAccount("stranger", Secret("secret"))
    own = SimulatedAccount("own", Secret("secret"))
    async with Simulator(world, accounts=[own, stranger]) as platform:
        first = await ask_as(own, platform, ACTION, ProductKey=key_of(world), PageSize=5)
        token = first["nextToken"]
        swapped = ("B" if token[9] == "A" else "A").join((token[:9], token[10:]))
        for account, product, shown in [
            (own, 0, "TGlzdA"), (own, 0, "\N{SNOWMAN}"), (own, 0, "0"), (own, 0, swapped), (own, 0, token[:-1]),
            (own, 0, token + "A"), (own, 1, token), (stranger, 0, token),
        ]:  # fmt: skip
            sent = {"ProductKey": key_of(world, product), "PageSize": 5, "NextToken": shown}
            assert (await ask_as(account, platform, ACTION, **sent))["code"] == WRONG_PAGE
        sent = {"ProductKey": key_of(world), "PageSize": 5, "NextToken": token}
        assert (await ask_as(own, platform, ACTION, **sent))["page"] == 2


async def test_a_million_devices_of_a_product_can_be_listed_and_no_more() -> None:
    world = World(1_100_000, products=1, missing=0)
    async with Simulator(world) as platform:
        sent = {"ProductKey": key_of(world), "PageSize": 50}
        page = await ask(platform, ACTION, **sent, NextToken=token_at(world, 999_970))
        assert names(page)[-1] == world.device(100_000).device_name
        assert (page["total"], len(names(page))) == (1_100_000, 30)
        assert (await ask(platform, ACTION, **sent, NextToken=page["nextToken"]))["code"] == WRONG_PAGE


async def test_a_list_of_any_size_is_answered_at_once() -> None:
    world = World(10_000_000)
    async with Simulator(world) as platform:
        began = time.perf_counter()
        page = await ask(platform, ACTION, ProductKey=key_of(world), PageSize=50, NextToken=token_at(world, 900_000))
        assert time.perf_counter() - began < 1
    assert len(names(page)) == 50
    assert all(world.find(key_of(world), name) is not None for name in names(page))


async def test_alibabas_dialect_and_xml_hold_the_same(world: World) -> None:
    sent = {"ProductKey": key_of(world), "PageSize": "3"}
    async with Simulator(world) as platform:
        plain = await ask(platform, ACTION, **sent)
    async with Simulator(world, dialect="alibaba") as platform:
        pascal = await ask(platform, ACTION, **sent)
        query = signed_query(sent, constants={"Action": ACTION, "Format": ""})
        xml = ET.fromstring((await get(platform, query)).body)
    assert {"NextToken", "Page", "PageCount", "PageSize", "Total", "Data"} < set(pascal)
    assert [entry["DeviceName"] for entry in pascal["Data"]["DeviceInfo"]] == names(plain)
    assert [entry.findtext("DeviceName") for entry in xml.iterfind("Data/DeviceInfo")] == names(plain)
    assert xml.tag == "QueryDeviceResponse"


async def test_a_list_slides_back_while_devices_are_registered() -> None:
    world = World(200, products=1, missing=0, inactive=0)
    async with Simulator(world, churn=Churn(register_per_second=200)) as platform:
        first = await ask(platform, ACTION, ProductKey=key_of(world), PageSize=50)
        wait_until(lambda: platform.registered, reaches=10)
        second = await ask(platform, ACTION, ProductKey=key_of(world), PageSize=50, NextToken=first["nextToken"])
        again = set(names(first)) & set(names(second))
        assert again == set(names(first)[-len(again) :])
        assert 10 <= len(again) == second["total"] - first["total"] <= platform.registered
        newest = await ask(platform, ACTION, ProductKey=key_of(world), PageSize=1)
        device = world.endless().find(key_of(world), names(newest)[0])
        assert device is not None
        assert device.index >= 209
        assert (await ask(platform, "ListOTAModuleVersionsByDevice", **named(device)))["success"] is True


async def test_a_list_slides_forward_while_devices_are_removed_and_some_are_never_shown() -> None:
    world = World(400, products=1, missing=0)
    async with Simulator(world, churn=Churn(remove_per_second=400)) as platform:
        seen: set[str] = set()
        async for page in pages_of(platform, key_of(world)):
            seen.update(names(page))
            wait_until(lambda: len(platform.removed), reaches=len(platform.removed) + 10)
            assert 400 >= page["total"] >= 400 - len(platform.removed)
        lasted = {device.device_name for device in world if device.index not in platform.removed}
        gone = world.device(next(iter(platform.removed)))
        assert lasted - seen
        asked = (await ask(platform, "ListOTAModuleVersionsByDevice", **named(gone)))["code"]
        assert asked == "iot.device.NotExistedDevice"
