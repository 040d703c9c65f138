"""The vendor's own SDK as an independent client: its requests, its signatures, its POST."""

import gc
import json
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import anyio.to_thread
import pytest
from aliyunsdkcore.acs_exception.exceptions import ServerException
from aliyunsdkcore.auth.credentials import StsTokenCredential
from aliyunsdkcore.client import AcsClient
from aliyunsdkiot.request.v20180120.BatchGetDeviceStateRequest import BatchGetDeviceStateRequest
from aliyunsdkiot.request.v20180120.BatchQueryDeviceDetailRequest import BatchQueryDeviceDetailRequest
from aliyunsdkiot.request.v20180120.ListOTAModuleByProductRequest import ListOTAModuleByProductRequest
from aliyunsdkiot.request.v20180120.ListOTAModuleVersionsByDeviceRequest import ListOTAModuleVersionsByDeviceRequest
from aliyunsdkiot.request.v20180120.QueryDeviceRequest import QueryDeviceRequest
from aliyunsdkiot.request.v20180120.QueryProductListRequest import QueryProductListRequest

from auditor.models import AccessKey, Dialect
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import SimulatedDevice, World

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect the connections that the SDK leaves open, so that no later test does."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def call_sdk(
    port: int, secret: str, request: Any, method: str, parameters: Mapping[str, object], *, key: AccessKey | None = None
) -> Any:
    client = AcsClient(DEFAULT_ACCOUNT.access_key_id, secret, "cn-shanghai", port=port, auto_retry=False)
    if key is not None and key.token is not None:
        temporary = StsTokenCredential(key.key_id, key.secret.reveal(), key.token.reveal())
        client = AcsClient(region_id="cn-shanghai", port=port, auto_retry=False, credential=temporary)
    request.set_endpoint("127.0.0.1")
    request.set_protocol_type("http")
    request.set_method(method)
    for name, value in parameters.items():
        getattr(request, f"set_{name}")(value)
    return json.loads(client.do_action_with_exception(request))


async def send(platform: Simulator, request: Any, method: str = "POST", **parameters: object) -> Any:
    right = DEFAULT_ACCOUNT.secret.reveal()
    return await anyio.to_thread.run_sync(call_sdk, platform.port, right, request, method, parameters)


async def call(platform: Simulator, *, secret: str | None = None, method: str = "POST", **parameters: str) -> Any:
    right = DEFAULT_ACCOUNT.secret.reveal()
    request = ListOTAModuleVersionsByDeviceRequest()
    whole = {"CurrentPage": "1", "PageSize": "50", **parameters}
    return await anyio.to_thread.run_sync(call_sdk, platform.port, secret or right, request, method, whole)


def device_names(device: SimulatedDevice) -> list[dict[str, str]]:
    return [
        {
            "deviceName": device.device_name,
            "iotId": device.iot_id,
            "moduleName": module.module_name,
            "moduleVersion": module.module_version,
            "productKey": device.product_key,
        }
        for module in device.modules
    ]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("index", [1, *range(10, 20)])
async def test_the_sdk_gets_a_devices_modules_by_name(world: World, method: str, index: int) -> None:
    device = world.device(index)
    async with Simulator(world) as platform:
        answer = await call(platform, method=method, ProductKey=device.product_key, DeviceName=device.device_name)
    assert answer.pop("requestId")
    assert answer == {
        "code": "",
        "currentPage": 1,
        "data": {"simpleOTAModuleInfo": device_names(device)},
        "pageCount": 1,
        "pageSize": 50,
        "success": True,
        "total": len(device.modules),
    }


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_the_sdk_gets_a_devices_modules_by_iot_id(world: World, dialect: Dialect) -> None:
    device = world.device(1)
    async with Simulator(world, dialect=dialect) as platform:
        answer = await call(platform, IotId=device.iot_id, IotInstanceId="iot-instance")
    document = {name.lower(): value for name, value in answer.items()}
    assert document["total"] == 3
    assert document["success"] is True
    (entries,) = document["data"].values()
    assert [list(entry.values()) for entry in entries] == [list(entry.values()) for entry in device_names(device)]


async def test_alibabas_dialect_is_in_pascal_case(world: World) -> None:
    device = world.device(1)
    async with Simulator(world, dialect="alibaba") as platform:
        answer = await call(platform, ProductKey=device.product_key, DeviceName=device.device_name)
    assert set(answer) == {
        "Code", "CurrentPage", "Data", "PageCount", "PageSize", "RequestId", "Success", "Total",
    }  # fmt: skip
    assert set(answer["Data"]["SimpleOTAModuleInfo"][0]) == {
        "DeviceName", "IotId", "ModuleName", "ModuleVersion", "ProductKey",
    }  # fmt: skip


async def test_the_sdk_reports_a_wrong_secret(world: World) -> None:
    async with Simulator(world) as platform:
        with pytest.raises(ServerException) as caught:
            await call(platform, secret="wrong", IotId=world.device(1).iot_id)
    # The SDK says so of SignatureDoesNotMatch only if the server's string to sign equals its own.
    assert caught.value.get_error_code() == "InvalidAccessKeySecret"
    assert caught.value.get_http_status() == 400
    assert platform.counts.rejected_by_code == {"SignatureDoesNotMatch": 1}


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_sdk_lists_a_products_devices_by_tokens(method: str) -> None:
    world = World(150, missing=0.1)
    product_key = world.product_keys[1]
    own = [device.iot_id for device in world if device.product_key == product_key and device.exists]
    async with Simulator(world) as platform:
        request = QueryDeviceRequest()
        page = await send(platform, request, method, ProductKey=product_key, PageSize="20", CurrentPage="1")
        seen = [entry["iotId"] for entry in page["data"]["deviceInfo"]]
        while token := page.get("nextToken"):
            page = await send(
                platform, QueryDeviceRequest(), method, ProductKey=product_key, PageSize="20", NextToken=token
            )
            assert page["total"] == len(own)
            seen += [entry["iotId"] for entry in page["data"]["deviceInfo"]]
    assert seen == own[::-1]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_sdk_lists_products_and_their_modules(world: World, method: str) -> None:
    async with Simulator(world) as platform:
        answer = await send(platform, QueryProductListRequest(), method, CurrentPage="1", PageSize="200")
        products = answer["data"]["list"]["productInfo"]
        assert [product["productKey"] for product in products] == list(world.product_keys)
        assert answer["data"]["total"] == 4
        assert sum(product["deviceCount"] for product in products) == 200
        for product in world.products:
            answer = await send(platform, ListOTAModuleByProductRequest(), method, ProductKey=product.product_key)
            assert [each["moduleName"] for each in answer["data"]] == [
                module.versions[0].module_name for module in product.modules
            ]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_sdk_gets_the_states_and_details_of_many_devices(world: World, method: str) -> None:
    devices = [device for device in world if device.product_key == world.product_keys[2]][:40]
    named = {"ProductKey": devices[0].product_key, "DeviceNames": [device.device_name for device in devices]}
    async with Simulator(world) as platform:
        by_name = await send(platform, BatchGetDeviceStateRequest(), method, **named)
        iot_ids = [device.iot_id for device in devices]
        by_id = await send(platform, BatchGetDeviceStateRequest(), method, IotIds=iot_ids)
        details = await send(platform, BatchQueryDeviceDetailRequest(), method, **named)
    assert by_name["deviceStatusList"] == by_id["deviceStatusList"]
    assert [entry["iotId"] for entry in by_id["deviceStatusList"]["deviceStatus"]] == iot_ids
    assert [entry["iotId"] for entry in details["data"]["data"]] == iot_ids


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_the_sdk_uses_a_temporary_key_until_it_expires(world: World, method: str) -> None:
    device = world.device(1)
    parameters = {
        "CurrentPage": "1",
        "PageSize": "50",
        "ProductKey": device.product_key,
        "DeviceName": device.device_name,
    }

    async def call_with(key: AccessKey) -> Any:
        request = ListOTAModuleVersionsByDeviceRequest()
        call = partial(call_sdk, platform.port, "", request, method, parameters, key=key)
        return await anyio.to_thread.run_sync(call)

    async with Simulator(world) as platform:
        answer = await call_with(platform.issue_key(DEFAULT_ACCOUNT.access_key_id, 60))
        assert answer["data"]["simpleOTAModuleInfo"] == device_names(device)
        with pytest.raises(ServerException) as expired:
            await call_with(platform.issue_key(DEFAULT_ACCOUNT.access_key_id, 0))
        assert expired.value.get_error_code() == "InvalidSecurityToken.Expired"
