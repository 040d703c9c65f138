"""Lists of products and devices that hang, are exchanged, or are larger than requested: no device is lost silently."""

from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

import auditor
from auditor.config.settings import FleetSource
from auditor.fleet import discovery_journal
from auditor.fleet.discovery_journal import PRODUCTS_PER_PAGE, DiscoveryJournal
from auditor.models import ListPage, Product
from tests.integration.test_lying_platform import (
    Query,
    device_list,
    load,
    module_list,
    platform,
    product_list,
    read_info,
    versions,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("page", [1, 2])
async def test_a_stop_ends_the_list_of_products_in_the_middle_of_a_page(tmp_path: Path, page: int) -> None:
    stop = auditor.StopToken(drain_seconds=0.01)

    async def hang() -> dict[str, Any]:
        stop.request("stopped by a test")
        await anyio.sleep_forever()
        raise AssertionError

    def answer(query: Query) -> Any:
        if query["Action"] != "QueryProductList":
            return versions({**query, "ProductKey": "k", "DeviceName": "d"})
        if query["CurrentPage"] == str(page):
            return hang()
        document = product_list([f"k{number}" for number in range(PRODUCTS_PER_PAGE)], 1)
        document["Data"]["Total"] = PRODUCTS_PER_PAGE + 1
        return document

    async with platform(answer) as (url, _):
        with anyio.fail_after(60):
            result = await auditor.run_audit(load(tmp_path, url, devices=None), stop=stop)
    assert (result.exit_code, result.manifest.state) == (130, "partial")
    assert result.manifest.discovery[0].state == "pending"


async def test_an_account_whose_list_only_times_out_is_unreachable_and_not_refused(tmp_path: Path) -> None:
    busy = {"Success": False, "Code": "iot.system.SystemException", "ErrorMessage": "busy", "RequestId": "r"}

    def answer(query: Query) -> dict[str, Any]:
        if query["Action"] == "QueryProductList" and query["CurrentPage"] == "1":
            return {**product_list([f"k{number}" for number in range(PRODUCTS_PER_PAGE)], 1), "Total": 300}
        return busy

    async with platform(answer) as (url, _):
        result = await auditor.run_audit(load(tmp_path, url, devices=None, more="max_attempts = 2"))
    assert result.manifest.exit_reason is not None
    assert (result.exit_code, result.manifest.exit_reason.code) == (3, "unreachable_account")


SIZES = {"k1": 3, "k2": 0, "k3": 1}


@pytest.mark.parametrize("count", [None, 0])
async def test_an_exchanged_empty_list_of_devices_loses_no_product(tmp_path: Path, count: int | None) -> None:
    requests = Counter[str]()

    def answer(query: Query) -> dict[str, Any]:
        match query["Action"]:
            case "QueryProductList":
                document = product_list(list(SIZES), None)
                document["Data"]["List"]["ProductInfo"][1]["DeviceCount"] = count
                return document
            case "QueryDevice":
                key = query["ProductKey"]
                requests[key] += 1
                if key == "k1" and requests[key] == 1:
                    return device_list("k2", [], 0)
                return device_list(key, [f"{key}-{number}" for number in range(SIZES[key])], SIZES[key])
            case "ListOTAModuleByProduct":
                return module_list(query["ProductKey"])
        return versions(query)

    async with platform(answer) as (url, _):
        result = await auditor.run_audit(load(tmp_path, url, devices=None))
    assert (result.exit_code, result.manifest.state, result.manifest.devices.ok) == (0, "complete", 4)
    assert read_info(result)["devices"] == 4
    # An empty product costs one more request, and none if its own count proves that it is empty.
    assert requests == {"k1": 2, "k2": 2 if count is None else 1, "k3": 1}


async def test_a_page_that_is_empty_after_others_is_confirmed_too(tmp_path: Path) -> None:
    names = [f"d{number:03}" for number in range(60)]
    requests = Counter[str]()

    def answer(query: Query) -> dict[str, Any]:
        match query["Action"]:
            case "QueryProductList":
                return product_list(["k1"], None)
            case "QueryDevice":
                page = int(query["CurrentPage"])
                requests[query["CurrentPage"]] += 1
                if page == 2 and requests["2"] == 1:
                    return device_list("k1", [], 0)
                return device_list("k1", names[50 * (page - 1) : 50 * page], len(names))
            case "ListOTAModuleByProduct":
                return module_list("k1")
        return versions(query)

    async with platform(answer) as (url, _):
        result = await auditor.run_audit(load(tmp_path, url, devices=None))
    assert (result.exit_code, result.manifest.devices.ok, requests["2"]) == (0, 60, 2)


async def test_a_page_with_more_items_than_requested_is_not_believed(tmp_path: Path) -> None:
    def answer(query: Query) -> dict[str, Any]:
        match query["Action"]:
            case "QueryProductList":
                return product_list(["k1"], 51)
            case "QueryDevice":
                return device_list("k1", [f"d{number}" for number in range(51)], 51)
        return versions({**query, "ProductKey": "k1", "DeviceName": "d"})

    async with platform(answer) as (url, _):
        result = await auditor.run_audit(load(tmp_path, url, devices=None))
    info = read_info(result)
    assert (result.exit_code, info["devices"], info["missing"]) == (1, 0, 51)
    assert "requested 50 items, got a page of 51" in info["gaps"][0]["reason"]


def test_no_more_products_are_held_than_can_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A total that changes makes pages be read again, and these have other products each time."""
    monkeypatch.setattr(discovery_journal, "MAX_PRODUCTS", 1_000)
    path = tmp_path / "eu.jsonl"
    with DiscoveryJournal(path, FleetSource(products="all")) as journal:
        for number in range(100):
            keys = (f"k{number}-{each}" for each in range(PRODUCTS_PER_PAGE))
            page = tuple(Product(key, None, None) for key in keys)
            if journal.products_complete:
                break
            journal.record_products(ListPage(page, None, 20_000 if number % 2 else 10_000, None))
        problem = "no more than 1,000 can be listed"
        assert (len(journal.products), len(journal.keys), journal.pager.problem) == (1_000, 1_000, problem)
        assert journal.products_complete
    with DiscoveryJournal(path, FleetSource(products="all")) as replayed:
        assert (replayed.products.keys(), replayed.pager.problem) == (journal.products.keys(), problem)
