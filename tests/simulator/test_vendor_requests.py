"""Requests of the client, compared with those that both SDKs of the vendor build, sign and send."""

import gc
import importlib
import json
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from aliyunsdkcore.client import AcsClient

import auditor
from auditor.simulator.lifecycle import Lifecycle
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.audits import write_mixed_fleet
from tests.integration.test_audit import account_table, settings_for
from tests.simulator.vendor import model_errors, request_model, send

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]

Request = dict[str, str]

UNIQUE = {"SignatureNonce", "Timestamp", "Signature"}
"""Parameters that differ between any two requests."""

COMMON = {
    "AccessKeyId", "Action", "Format", "RegionId", "SignatureMethod", "SignatureVersion", "Version",
}  # fmt: skip
"""Parameters that the SDKs add."""

DEVICES = 60


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Collect the connections that the older SDK leaves open, so that no later test does."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def recorded(platform: Simulator, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """All requests from now on that the platform accepts, with signatures that it has checked."""
    requests: list[Request] = []
    check = platform._gateway.check

    def recording(method: str, parameters: Mapping[str, str], now: float) -> SimulatedAccount:
        account = check(method, parameters, now)
        requests.append({name: value for name, value in parameters.items() if name not in UNIQUE})
        return account

    monkeypatch.setattr(platform._gateway, "check", recording)
    return requests


async def requests_of_audits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Request]]:
    """The requests of a discovery, of a module alone, and of a complete and an incremental audit with either name."""
    sent = defaultdict(list)
    write_mixed_fleet(World(DEVICES, products=1), folder / "fleet.csv")
    account = {"dialect": "alibaba", "region_id": "cn-shanghai", "instance_id": "iot-instance"}
    discovery = {**account, "fleet": {"products": "all"}}
    life = Lifecycle(connecting=0.1, always_online=0.0)
    for table, day, changes in (
        (discovery, 0, {"directory": str(folder / "discovery")}),
        (account, 0, {"directory": str(folder / "details"), "modules": ["default"]}),
        (account, 0, {}),
        (account, 1, {"since": "last", "released": True}),
    ):
        world = World(DEVICES, products=1, lifecycle=life, module_counts={0: 450}, day=day, today=time.time())
        async with Simulator(world, dialect="alibaba") as platform:
            requests = recorded(platform, monkeypatch)
            settings = settings_for(folder, account_table(platform.endpoint, folder, **table), **changes)
            await auditor.run_audit(settings)
        for request in requests:
            sent[request["Action"]].append(request)
    return sent


def distinct(requests: list[Request]) -> list[Request]:
    """The longest request with each set of parameters, where ``IotId.1`` and ``IotId.2`` are one."""
    shapes: dict[frozenset[str], Request] = {}
    for request in sorted(requests, key=len):
        shapes[frozenset(name.partition(".")[0] for name in request)] = request
    return list(shapes.values())


def typed_parameters(action: str, request: Request) -> dict[str, Any]:
    """The parameters of an operation as its request model has them: numbers, and arrays of ``IotId.N``."""
    typed: dict[str, Any] = {}
    for name, value in sorted(request.items(), key=lambda item: (len(item[0]), item[0])):
        array, _, number = name.partition(".")
        if number:
            typed.setdefault(array, []).append(value)
        elif name not in COMMON:
            typed[name] = int(value) if name in {"CurrentPage", "PageSize"} else value
    return typed


def send_with_older_sdk(port: int, action: str, parameters: Mapping[str, object]) -> Any:
    """Send a request of ``aliyun-python-sdk-iot``, whose setters of arrays are in the plural."""
    request = getattr(importlib.import_module(f"aliyunsdkiot.request.v20180120.{action}Request"), f"{action}Request")()
    request.set_endpoint("127.0.0.1")
    request.set_protocol_type("http")
    for name, value in parameters.items():
        getattr(request, f"set_{name}s" if isinstance(value, list) else f"set_{name}")(value)
    secret = DEFAULT_ACCOUNT.secret.reveal()
    client = AcsClient(DEFAULT_ACCOUNT.access_key_id, secret, "cn-shanghai", port=port, auto_retry=False)
    return json.loads(client.do_action_with_exception(request))


async def test_both_sdks_build_the_requests_of_an_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = await requests_of_audits(tmp_path, monkeypatch)
    assert sorted(sent) == [
        "BatchGetDeviceState", "BatchQueryDeviceDetail", "ListOTAFirmware", "ListOTAJobByFirmware",
        "ListOTAModuleByProduct", "ListOTAModuleVersionsByDevice", "ListOTATaskByJob", "QueryDevice",
        "QueryProductList",
    ]  # fmt: skip
    shapes = [request for requests in sent.values() for request in distinct(requests)]
    assert len(shapes) == 12
    async with Simulator(World(DEVICES, products=1), dialect="alibaba") as platform:
        built = recorded(platform, monkeypatch)
        for request in shapes:
            action = request["Action"]
            parameters = typed_parameters(action, request)
            assert model_errors(type(request_model(action, {})), parameters) == []
            await anyio.to_thread.run_sync(send, platform.port, action, parameters)
            await anyio.to_thread.run_sync(send_with_older_sdk, platform.port, action, parameters)
    for request, newer, older in zip(shapes, built[::2], built[1::2], strict=True):
        assert older == request | {"SignatureType": ""}
        # The newer SDK writes `json`, and the region only into the name of the host.
        assert newer | {"Format": "JSON", "RegionId": "cn-shanghai"} == request
