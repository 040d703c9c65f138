"""Several accounts on one simulated platform: each has its own devices and its own quotas."""

import math

import pytest

from auditor.models import Secret
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.registry import Churn
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.simulator.api_requests import call, call_as, device_params, wait_until
from tests.simulator.test_list_operations import product_key_at, token_at

pytestmark = pytest.mark.anyio

SECRET = Secret("secret")
LISTING, PRODUCTS, VERSIONS = "QueryDevice", "QueryProductList", "ListOTAModuleVersionsByDevice"


async def first_throttled(
    platform: Simulator, account: SimulatedAccount, action: str, limit: int, **sent: object
) -> int:
    """Number of requests of a burst before one was throttled."""
    for number in range(limit):
        response = await call_as(account, platform, action, **sent)
        if response.get("Code") == "Throttling.User":
            return number
    return limit


async def test_accounts_see_only_their_own_devices() -> None:
    worlds = {name: World(40, seed=seed, missing=0) for seed, name in enumerate(("one", "two", "three"))}
    accounts = [SimulatedAccount("plain", SECRET)]
    accounts += [SimulatedAccount(name, SECRET, world=world) for name, world in worlds.items() if name != "one"]
    async with Simulator(worlds["one"], accounts=accounts) as platform:
        for account in accounts:
            world = worlds.get(account.access_key_id, worlds["one"])
            page = await call_as(account, platform, PRODUCTS, CurrentPage=1, PageSize=200)
            assert [each["productKey"] for each in page["data"]["list"]["productInfo"]] == list(world.product_keys)
            listed = await call_as(account, platform, LISTING, ProductKey=product_key_at(world), PageSize=50)
            assert listed["total"] == 16
            for other in worlds.values():
                code = (await call_as(account, platform, VERSIONS, **device_params(other.device(3))))["code"]
                assert code == ("" if other is world else "iot.prod.NotExistedProduct")
                sent = {"IotId": other.device(3).iot_id, "CurrentPage": 1, "PageSize": 200}
                code = (await call_as(account, platform, VERSIONS, **sent))["code"]
                assert code == ("" if other is world else "iot.device.InvalidIoTId")


async def test_churn_of_a_world_starts_with_its_own_first_list_request() -> None:
    own = SimulatedAccount("own", SECRET, world=World(0))
    plain = SimulatedAccount("plain", SECRET)
    async with Simulator(World(10), accounts=[own, plain], churn=Churn(1_000)) as platform:
        await call_as(own, platform, PRODUCTS, CurrentPage=1, PageSize=1)
        wait_until(lambda: platform.registry_for("own").registered, reaches=10)
        assert platform.registry_for().registered == platform.registry_for("plain").registered == 0


def test_an_account_has_the_documented_quotas_by_default() -> None:
    account = SimulatedAccount("key", SECRET, 7, quotas={LISTING: 3, "QueryDevice.deep": 0.5, PRODUCTS: math.inf})
    assert account.quota(VERSIONS) == 7
    assert [account.quota(LISTING), account.quota("QueryDevice.deep"), account.quota(PRODUCTS)] == [3, 0.5, None]
    documented = {"BatchGetDeviceState": 50, "BatchQueryDeviceDetail": 5, "ListOTAModuleByProduct": 10}
    assert {name: account.quota(name) for name in documented} == documented
    assert SimulatedAccount("key", SECRET, 7).quota("QueryDevice.deep") == 2


def test_an_account_without_a_quota_has_only_its_explicit_quotas() -> None:
    account = SimulatedAccount("key", SECRET, quotas={LISTING: 3})
    assert [account.quota(name) for name in (VERSIONS, PRODUCTS, "QueryDevice.deep", LISTING)] == [None, None, None, 3]


def test_a_quota_of_an_unknown_operation_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"QueryDevices, VERSIONS.deep"):
        SimulatedAccount("key", SECRET, quotas={"VERSIONS.deep": 1, "QueryDevices": 1})


async def test_each_operation_counts_against_its_documented_quota(world: World) -> None:
    account = SimulatedAccount("key", SECRET, 3)
    async with Simulator(world, accounts=[account]) as platform:
        details = {"ProductKey": world.device(1).product_key, "DeviceName.1": world.device(1).device_name}
        assert await first_throttled(platform, account, VERSIONS, 9, **device_params(world.device(1))) == 3
        assert await first_throttled(platform, account, "BatchQueryDeviceDetail", 9, **details) == 5
    assert platform.counts.throttled == 2


async def test_late_pages_have_a_separate_quota() -> None:
    world = World(200_000, products=1, missing=0)
    account = SimulatedAccount("key", SECRET, 1, quotas={LISTING: 4})
    sent = {"ProductKey": product_key_at(world), "PageSize": 50}
    async with Simulator(world, accounts=[account]) as platform:
        deep, before = (token_at(world, place, "key") for place in (100_000, 99_999))
        assert await first_throttled(platform, account, LISTING, 9, **sent, NextToken=deep) == 2
        assert await first_throttled(platform, account, LISTING, 9, **sent, NextToken=before) == 4
        assert await first_throttled(platform, account, PRODUCTS, 9, PageSize=200, CurrentPage=501) == 2


async def test_an_invalid_request_does_not_count_as_a_late_page(world: World) -> None:
    account = SimulatedAccount("key", SECRET, 1, quotas={LISTING: 4, "QueryDevice.deep": 1})
    async with Simulator(world, accounts=[account]) as platform:
        wrong = {"ProductKey": product_key_at(world), "PageSize": 50, "CurrentPage": 100_000}
        assert await first_throttled(platform, account, LISTING, 9, **wrong) == 4


async def test_arrivals_are_recorded_by_operation(world: World) -> None:
    async with Simulator(world, record_arrivals=True) as platform:
        for action in (VERSIONS, LISTING, LISTING, "Other", "Another"):
            await call(platform, action)
        assert platform.arrivals is not None
        assert platform.arrivals == sorted(
            moment for each in platform.arrivals_by_operation.values() for moment in each
        )
        assert {name: len(each) for name, each in platform.arrivals_by_operation.items()} == {
            VERSIONS: 1,
            LISTING: 2,
            "": 2,
        }


async def test_arrivals_are_not_recorded_by_default(platform: Simulator) -> None:
    await call(platform, LISTING)
    assert (platform.arrivals, platform.arrivals_by_operation) == (None, {})
