"""The vendor's own SDK as an independent client: its requests, its signatures, its POST."""

import gc
import json
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import anyio.to_thread
import pytest
from aliyunsdkcore.acs_exception.exceptions import ServerException
from aliyunsdkcore.client import AcsClient
from aliyunsdkiot.request.v20180120 import (
    ListOTAModuleVersionsByDeviceRequest as RequestOfSdk,
)

from auditor.model import Dialect
from auditor.simulator import DEFAULT_ACCOUNT, SimulatedDevice, Simulator, World

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """The SDK closes no connection; those it leaves are collected here, not in a test that comes later."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def ask_by_sdk(port: int, secret: str, method: str, **parameters: str) -> Any:
    client = AcsClient(DEFAULT_ACCOUNT.access_key_id, secret, "cn-shanghai", port=port, auto_retry=False)
    request = RequestOfSdk.ListOTAModuleVersionsByDeviceRequest()
    request.set_endpoint("127.0.0.1")
    request.set_protocol_type("http")
    request.set_method(method)
    request.set_CurrentPage("1")
    request.set_PageSize("50")
    for name, value in parameters.items():
        getattr(request, f"set_{name}")(value)
    return json.loads(client.do_action_with_exception(request))


async def ask(platform: Simulator, *, secret: str | None = None, method: str = "POST", **parameters: str) -> Any:
    right = DEFAULT_ACCOUNT.secret.reveal()
    call = partial(ask_by_sdk, platform.port, secret or right, method, **parameters)
    return await anyio.to_thread.run_sync(call)


def names_of(device: SimulatedDevice) -> list[dict[str, str]]:
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
        answer = await ask(platform, method=method, ProductKey=device.product_key, DeviceName=device.device_name)
    assert answer.pop("requestId")
    assert answer == {
        "code": "",
        "currentPage": 1,
        "data": {"simpleOTAModuleInfo": names_of(device)},
        "pageCount": 1,
        "pageSize": 50,
        "success": True,
        "total": len(device.modules),
    }


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_the_sdk_gets_a_devices_modules_by_iot_id(world: World, dialect: Dialect) -> None:
    device = world.device(1)
    async with Simulator(world, dialect=dialect) as platform:
        answer = await ask(platform, IotId=device.iot_id, IotInstanceId="iot-instance")
    document = {name.lower(): value for name, value in answer.items()}
    assert document["total"] == 3
    assert document["success"] is True
    (entries,) = document["data"].values()
    assert [list(entry.values()) for entry in entries] == [list(entry.values()) for entry in names_of(device)]


async def test_alibabas_dialect_is_in_pascal_case(world: World) -> None:
    device = world.device(1)
    async with Simulator(world, dialect="alibaba") as platform:
        answer = await ask(platform, ProductKey=device.product_key, DeviceName=device.device_name)
    assert set(answer) == {
        "Code", "CurrentPage", "Data", "PageCount", "PageSize", "RequestId", "Success", "Total",
    }  # fmt: skip
    assert set(answer["Data"]["SimpleOTAModuleInfo"][0]) == {
        "DeviceName", "IotId", "ModuleName", "ModuleVersion", "ProductKey",
    }  # fmt: skip


async def test_the_sdk_is_told_that_its_secret_is_wrong(world: World) -> None:
    async with Simulator(world) as platform:
        with pytest.raises(ServerException) as caught:
            await ask(platform, secret="wrong", IotId=world.device(1).iot_id)
    # The SDK says so of SignatureDoesNotMatch only if the server's string to sign equals its own.
    assert caught.value.get_error_code() == "InvalidAccessKeySecret"
    assert caught.value.get_http_status() == 400
    assert platform.counts.refused_by_code == {"SignatureDoesNotMatch": 1}
