"""Several accounts on one simulated platform: each has its own devices and its own quotas."""

import math

import pytest

from auditor.client.operations import OTHERS
from auditor.models import Secret
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.registry import Churn
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.simulator.api_requests import ask, ask_as, named, wait_until
from tests.simulator.test_list_operations import key_of, token_at

pytestmark = pytest.mark.anyio

SECRET = Secret("secret")
LISTING, PRODUCTS, VERSIONS = "QueryDevice", "QueryProductList", "ListOTAModuleVersionsByDevice"


async def throttled_at(platform: Simulator, account: SimulatedAccount, action: str, most: int, **sent: object) -> int:
    """How many of a burst of requests were answered before one was throttled."""
    for number in range(most):
        answer = await ask_as(account, platform, action, **sent)
        if answer.get("Code") == "Throttling.User":
            return number
    return most


async def test_accounts_see_their_own_devices_alone() -> None:
    worlds = {name: World(40, seed=seed, missing=0) for seed, name in enumerate(("one", "two", "three"))}
    accounts = [SimulatedAccount("plain", SECRET)]
    accounts += [SimulatedAccount(name, SECRET, world=world) for name, world in worlds.items() if name != "one"]
    async with Simulator(worlds["one"], accounts=accounts) as platform:
        for account in accounts:
            world = worlds.get(account.access_key_id, worlds["one"])
            page = await ask_as(account, platform, PRODUCTS, CurrentPage=1, PageSize=200)
            assert [each["productKey"] for each in page["data"]["list"]["productInfo"]] == list(world.product_keys)
            listed = await ask_as(account, platform, LISTING, ProductKey=key_of(world), PageSize=50)
            assert listed["total"] == 16
            for other in worlds.values():
                code = (await ask_as(account, platform, VERSIONS, **named(other.device(3))))["code"]
                assert code == ("" if other is world else "iot.prod.NotExistedProduct")
                sent = {"IotId": other.device(3).iot_id, "CurrentPage": 1, "PageSize": 200}
                code = (await ask_as(account, platform, VERSIONS, **sent))["code"]
                assert code == ("" if other is world else "iot.device.InvalidIoTId")


async def test_devices_come_and_go_in_a_world_from_its_own_first_listing_on() -> None:
    own = SimulatedAccount("own", SECRET, world=World(0))
    plain = SimulatedAccount("plain", SECRET)
    async with Simulator(World(10), accounts=[own, plain], churn=Churn(1_000)) as platform:
        await ask_as(own, platform, PRODUCTS, CurrentPage=1, PageSize=1)
        wait_until(lambda: platform.registry_of("own").registered, reaches=10)
        assert platform.registered == platform.registry_of("plain").registered == 0


def test_the_documented_quotas_are_an_accounts_unless_it_has_others() -> None:
    account = SimulatedAccount("key", SECRET, 7, quotas={LISTING: 3, "QueryDevice.deep": 0.5, PRODUCTS: math.inf})
    documented = {each.name: each.per_second for each in OTHERS}
    assert account.quota(VERSIONS) == 7
    assert [account.quota(LISTING), account.quota("QueryDevice.deep"), account.quota(PRODUCTS)] == [3, 0.5, None]
    for name in ("BatchGetDeviceState", "BatchQueryDeviceDetail", "ListOTAModuleByProduct"):
        assert account.quota(name) == documented[name]
    assert SimulatedAccount("key", SECRET, 7).quota("QueryDevice.deep") == 2


def test_an_account_without_a_quota_has_none_but_those_it_is_given() -> None:
    account = SimulatedAccount("key", SECRET, quotas={LISTING: 3})
    assert [account.quota(name) for name in (VERSIONS, PRODUCTS, "QueryDevice.deep", LISTING)] == [None, None, None, 3]


def test_a_quota_of_no_operation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"QueryDevices, VERSIONS.deep"):
        SimulatedAccount("key", SECRET, quotas={"VERSIONS.deep": 1, "QueryDevices": 1})


async def test_operations_are_counted_each_against_its_documented_quota(world: World) -> None:
    account = SimulatedAccount("key", SECRET, 3)
    async with Simulator(world, accounts=[account]) as platform:
        details = {"ProductKey": world.device(1).product_key, "DeviceName.1": world.device(1).device_name}
        assert await throttled_at(platform, account, VERSIONS, 9, **named(world.device(1))) == 3
        assert await throttled_at(platform, account, "BatchQueryDeviceDetail", 9, **details) == 5
    assert platform.counts.throttled == 2


async def test_pages_that_begin_late_have_a_quota_of_their_own() -> None:
    world = World(200_000, products=1, missing=0)
    account = SimulatedAccount("key", SECRET, 1, quotas={LISTING: 4})
    sent = {"ProductKey": key_of(world), "PageSize": 50}
    async with Simulator(world, accounts=[account]) as platform:
        deep, before = (token_at(world, place, "key") for place in (100_000, 99_999))
        assert await throttled_at(platform, account, LISTING, 9, **sent, NextToken=deep) == 2
        assert await throttled_at(platform, account, LISTING, 9, **sent, NextToken=before) == 4
        assert await throttled_at(platform, account, PRODUCTS, 9, PageSize=200, CurrentPage=501) == 2


async def test_a_wrong_request_is_no_late_page(world: World) -> None:
    account = SimulatedAccount("key", SECRET, 1, quotas={LISTING: 4, "QueryDevice.deep": 1})
    async with Simulator(world, accounts=[account]) as platform:
        wrong = {"ProductKey": key_of(world), "PageSize": 50, "CurrentPage": 100_000}
        assert await throttled_at(platform, account, LISTING, 9, **wrong) == 4


async def test_arrivals_are_kept_by_operation(world: World) -> None:
    async with Simulator(world, record_arrivals=True) as platform:
        for action in (VERSIONS, LISTING, LISTING, "Other", "Another"):
            await ask(platform, action)
        assert platform.arrivals is not None
        assert platform.arrivals == sorted(moment for each in platform.arrivals_of.values() for moment in each)
        assert {name: len(each) for name, each in platform.arrivals_of.items()} == {VERSIONS: 1, LISTING: 2, "": 2}


async def test_without_the_wish_no_arrivals_are_kept(platform: Simulator) -> None:
    await ask(platform, LISTING)
    assert (platform.arrivals, platform.arrivals_of) == (None, {})
