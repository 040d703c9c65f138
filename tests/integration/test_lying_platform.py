"""A platform that lies about itself: the run claims no more than was proven, and takes no more calls than allowed."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

import auditor
from auditor.engine.device_reader import MAX_READINGS
from auditor.resilience import retry

pytestmark = pytest.mark.anyio

Query = dict[str, str]
Answer = Callable[[Query], dict[str, Any] | Awaitable[dict[str, Any]]]

REFUSED = {"Code": "InvalidTimeStamp.Expired", "Message": "no", "RequestId": "t"}


def versions(query: Query, *, total: int = 1, **fields: object) -> dict[str, Any]:
    device = {"productKey": query["ProductKey"], "deviceName": query["DeviceName"]}
    module = {"moduleName": "default", "moduleVersion": "1.0", **device}
    success = {"success": True, "code": "", "requestId": f"r-{query['SignatureNonce']}", "total": total}
    return {**success, "data": {"simpleOTAModuleInfo": [module]}, **fields}


@asynccontextmanager
async def platform(answer: Answer) -> AsyncIterator[tuple[str, Counter[str]]]:
    """A server that answers each query; gives its endpoint, and counts the requests by operation."""
    counts: Counter[str] = Counter()

    async def serve(request: web.BaseRequest) -> web.Response:
        query = dict(request.query)
        counts[query["Action"]] += 1
        document = found if isinstance(found := answer(query), dict) else await found
        return web.Response(
            status=400 if "Message" in document else 200,
            headers={"Date": formatdate(usegmt=True)},
            body=orjson.dumps(document),
            content_type="application/json",
        )

    runner = web.ServerRunner(web.Server(serve, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/", counts
    finally:
        await runner.cleanup()


def load(folder: Path, endpoint: str, *, devices: int | None, rate: object = '"unlimited"', more: str = "") -> Any:
    fleet = '{ products = "all" }'
    if devices is not None:
        rows = "\n".join(f"k{number % 2},d-{number:03}" for number in range(devices))
        (folder / "fleet.csv").write_text(f"product_key,device_name\n{rows}\n")
        fleet = '{ file = "fleet.csv" }'
    (folder / "secret").write_text("secret")
    path = folder / "settings.toml"
    path.write_text(
        f'directory = "audits"\nquota_sharing = "none"\nconcurrency = 8\n{more}\n[[account]]\nname = "eu"\n'
        f'endpoint = "{endpoint}"\naccess_key_id = "key"\naccess_key_secret = {{ file = "secret" }}\n'
        f"calls_per_second = {rate}\nfleet = {fleet}\n"
    )
    return auditor.load_settings(path)


async def test_devices_whose_timestamps_are_refused_do_not_stop_the_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "MAX_CLOCK_DELAY", 0.02)
    async with platform(lambda query: REFUSED if query["ProductKey"] == "k1" else versions(query)) as (url, counts):
        result = await auditor.run_audit(load(tmp_path, url, devices=16))
    devices = result.manifest.devices
    assert (result.exit_code, devices.ok, devices.failed, devices.pending) == (1, 8, 8, 0)
    assert counts.total() <= 8 + 8 * 22


async def test_a_platform_that_refuses_its_own_time_is_not_blamed_on_this_machine(tmp_path: Path) -> None:
    async with platform(lambda _: REFUSED) as (url, _):
        result = await auditor.run_audit(load(tmp_path, url, devices=2))
    assert result.exit_code == 3
    assert "the platform refuses the time of its own answers" in str(result.manifest.error)
    assert "set the clock" not in str(result.manifest.error)


async def test_a_call_budget_holds_for_devices_that_are_read_again(tmp_path: Path) -> None:
    def endless(query: Query) -> dict[str, Any]:
        return versions(query, total=5_000)

    async with platform(endless) as (url, counts):
        result = await auditor.run_audit(load(tmp_path, url, devices=40, more="max_calls = 12"))
    assert counts.total() <= 12 + MAX_READINGS
    assert (result.manifest.state, result.manifest.devices.ok) == ("partial", 0)


async def test_a_success_with_the_code_of_an_error_is_no_result(tmp_path: Path) -> None:
    def contradict(query: Query) -> dict[str, Any]:
        if query["DeviceName"] == "d-000":
            return versions(query)
        return versions(query, total=0, data=None, code="iot.system.SystemException")

    async with platform(contradict) as (url, _):
        result = await auditor.run_audit(load(tmp_path, url, devices=4, more="max_attempts = 2"))
    devices = result.manifest.devices
    assert (result.manifest.state, devices.ok, devices.empty, devices.failed) == ("partial", 1, 0, 3)


def product_list(keys: list[str], counts: object = None) -> dict[str, Any]:
    products = [{"ProductKey": key, "ProductName": "n", "DeviceCount": counts} for key in keys]
    return {
        "Success": True,
        "Code": "",
        "RequestId": "p",
        "Data": {"Total": len(keys), "List": {"ProductInfo": products}},
    }


def device_list(key: str, names: list[str], total: object) -> dict[str, Any]:
    devices = [{"ProductKey": key, "DeviceName": name, "DeviceStatus": "ONLINE"} for name in names]
    return {"Success": True, "Code": "", "RequestId": "d", "Total": total, "Data": {"DeviceInfo": devices}}


def module_list(key: str) -> dict[str, Any]:
    modules = [{"ModuleName": name, "ProductKey": key} for name in ("default", f"only-{key}")]
    return {"Success": True, "Code": "", "RequestId": "m", "Data": modules}


def read_info(result: auditor.AuditResult) -> Any:
    return json.loads((result.folder / "run.json").read_text())["discovery"][0]


@pytest.mark.parametrize("total", [None, "many", -1, True, [], 2.5, 10**15])
async def test_a_list_without_a_total_is_no_complete_fleet(tmp_path: Path, total: object) -> None:
    def answer(query: Query) -> dict[str, Any]:
        match query["Action"]:
            case "QueryProductList":
                return product_list(["k1"])
            case "QueryDevice":
                return device_list("k1", ["d-1", "d-2"], total)
            case "ListOTAModuleByProduct":
                return module_list("k1")
        return versions(query)

    async with platform(answer) as (url, _):
        result = await auditor.run_audit(load(tmp_path, url, devices=None))
    info = read_info(result)
    assert (info["state"], info["devices"], info["gap_count"]) == ("partial", 2, 1)
    assert "no total" in info["gaps"][0]["reason"]
    assert result.exit_code == 1


async def test_answers_about_another_product_are_requested_again(tmp_path: Path) -> None:
    seen: Counter[tuple[str, str]] = Counter()
    other = {"k1": "k2", "k2": "k1"}

    def answer(query: Query) -> dict[str, Any]:
        action = query["Action"]
        if action == "QueryProductList":
            return product_list(["k1", "k2"], 2)
        key = query["ProductKey"]
        seen[action, key] += 1
        about = other[key] if seen[action, key] == 1 else key
        if action == "QueryDevice":
            return device_list(about, [f"{about}-1", f"{about}-2"], 2)
        return module_list(about) if action == "ListOTAModuleByProduct" else versions(query)

    async with platform(answer) as (url, _):
        result = await auditor.run_audit(load(tmp_path, url, devices=None))
    assert (result.manifest.state, result.manifest.devices.ok, read_info(result)["state"]) == (
        "complete",
        4,
        "complete",
    )
    lines = [json.loads(line) for line in (result.folder / "products.jsonl").read_text().splitlines()]
    modules = {line["product_key"]: line["modules"] for line in lines if line.get("modules")}
    assert modules == {key: ["default", f"only-{key}"] for key in ("k1", "k2")}


@pytest.mark.slow
async def test_connection_states_that_are_throttled_all_the_time_do_not_stop_the_account(tmp_path: Path) -> None:
    throttled = {"Code": "Throttling.User", "Message": "slow down", "RequestId": "t"}

    def answer(query: Query) -> dict[str, Any]:
        return throttled if query["Action"] == "BatchGetDeviceState" else versions(query)

    async with platform(answer) as (url, counts):
        settings = load(tmp_path, url, devices=6, more="give_up_after = 2")
        first = await auditor.run_audit(settings)
        changed = load(tmp_path, url, devices=6, more='give_up_after = 2\nsince = "last"')
        result = await auditor.run_audit(changed)
    assert first.manifest.devices.ok == result.manifest.devices.ok == 6
    assert (result.manifest.state, result.exit_code) == ("complete", 0)
    assert 0 < counts["BatchGetDeviceState"] < 8
