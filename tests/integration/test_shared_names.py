"""Several devices with one name: in the platform's device list, and in its answers. No device gets another one's versions."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import auditor
from auditor.query.warnings import completeness_warnings
from tests.database import connect
from tests.integration.test_lying_platform import Query, load, module_list, platform, product_list, versions

pytestmark = pytest.mark.anyio

Listed = dict[str, dict[str, str | None]]
"""The ``iot_id`` of each device, by product and name."""

FLEET: Listed = {"k1": {"a": "1", "b": "2", "c": "1", "d": None}, "k2": {"a": "3", "e": "4"}}


def listed(fleet: Listed) -> Callable[[Query], dict[str, Any] | None]:
    """Answer the operations that list a fleet."""

    def answer(query: Query) -> dict[str, Any] | None:
        match query["Action"]:
            case "QueryProductList":
                return product_list(list(fleet), None)
            case "QueryDevice":
                names = fleet[query["ProductKey"]]
                rows = [{"DeviceName": name, "IotId": iot_id} for name, iot_id in names.items()]
                return {"Success": True, "Code": "", "RequestId": "d", "Total": len(rows), "Data": {"DeviceInfo": rows}}
            case "ListOTAModuleByProduct":
                return module_list(query["ProductKey"])
        return None

    return answer


def answer_of(key: str | None, name: str | None, iot_id: str | None, version: str) -> dict[str, Any]:
    module = {"moduleName": "default", "moduleVersion": version}
    names = {"productKey": key, "deviceName": name, "iotId": iot_id}
    module |= {each: text for each, text in names.items() if text is not None}
    return versions({"ProductKey": "", "DeviceName": "", "SignatureNonce": "n"}, data={"simpleOTAModuleInfo": [module]})


def versions_of(folder: Path) -> dict[str, str]:
    with connect() as database:
        rows = database.execute(
            "SELECT product_key || '/' || device_name, module_version FROM read_parquet(?)",
            [str(folder / "modules.parquet")],
        )
        return dict(rows.fetchall())


@pytest.mark.parametrize("with_names", [True, False])
async def test_devices_that_are_listed_with_one_iot_id_are_queried_by_their_names(
    tmp_path: Path, *, with_names: bool
) -> None:
    owners = {iot_id: (key, name) for key, names in FLEET.items() for name, iot_id in names.items() if iot_id}
    lists, queried = listed(FLEET), Counter[str]()

    def answer(query: Query) -> dict[str, Any]:
        if (found := lists(query)) is not None:
            return found
        key, name = owners[query["IotId"]] if "IotId" in query else (query["ProductKey"], query["DeviceName"])
        queried[query.get("IotId") or f"{key}/{name}"] += 1
        iot_id, version = query.get("IotId"), f"{key}/{name}"
        return answer_of(key, name, iot_id, version) if with_names else answer_of(None, None, iot_id, version)

    async with platform(answer) as (url, _):
        result = await auditor.run_audit(load(tmp_path, url, devices=None))
    manifest = result.manifest
    assert (result.exit_code, manifest.state, manifest.devices.ok) == (0, "complete", 6)
    assert set(queried) == {"k1/a", "k1/c", "k1/d", "2", "3", "4"}
    assert auditor.verify_run(result.folder) == []
    assert all(device == version for device, version in versions_of(result.folder).items())
    (discovery,) = manifest.discovery
    assert (discovery.shared_iot_ids, manifest.fleet.shared_identities) == (2, 0)
    (warning,) = completeness_warnings(result.folder, manifest, manifest.devices)
    assert warning.kind == "shared_identity"
    assert "2 devices were listed with the iot_id of another one" in warning.detail


@pytest.mark.slow
async def test_a_device_that_answers_with_the_iot_id_of_another_one_does_not_get_its_versions(tmp_path: Path) -> None:
    fleet: Listed = {"k1": {"a": "1", "b": None, "c": "3"}}
    lists = listed(fleet)

    def answer(query: Query) -> dict[str, Any]:
        if (found := lists(query)) is not None:
            return found
        if "IotId" in query:
            name = {"1": "a", "3": "c"}[query["IotId"]]
            return answer_of("k1", name, query["IotId"], f"k1/{name}")
        return answer_of("k1", "b", "1", "k1/b")

    async with platform(answer) as (url, _):
        first = await auditor.run_audit(load(tmp_path, url, devices=None))
        result = await auditor.resume_audit(first.folder)
        tolerant = await auditor.run_audit(load(tmp_path, url, devices=None, more='max_failed = "70%"'))
    for each in (first, result):
        manifest = each.manifest
        assert (each.exit_code, manifest.state, manifest.devices.ok) == (1, "partial", 3)
        assert (manifest.exit_reason and manifest.exit_reason.code, manifest.fleet.shared_identities) == (
            "shared_identity",
            2,
        )
        assert "2 of 3 devices are named like another" in str(manifest.exit_reason)
        assert auditor.verify_run(each.folder) == []
        assert versions_of(each.folder)["k1/a"] == "k1/a"
        kinds = {warning.kind for warning in completeness_warnings(each.folder, manifest, manifest.devices)}
        assert kinds == {"shared_identity"}
    assert (tolerant.exit_code, tolerant.manifest.state) == (0, "within_tolerance")


@pytest.mark.parametrize("column", ["iot_id", "names"])
async def test_a_run_whose_devices_all_answer_as_one_is_no_success(tmp_path: Path, column: str) -> None:
    def answer(query: Query) -> dict[str, Any]:
        if column == "iot_id":
            return answer_of("k1", "victim", query["IotId"], "1.0")
        return answer_of(query["ProductKey"], query["DeviceName"], "one", "1.0")

    async with platform(answer) as (url, _):
        settings = load(tmp_path, url, devices=8)
        if column == "iot_id":
            (tmp_path / "fleet.csv").write_text("iot_id\n" + "".join(f"id{number}\n" for number in range(8)))
        result = await auditor.run_audit(settings)
    manifest = result.manifest
    assert (result.exit_code, manifest.state, manifest.devices.ok) == (1, "partial", 8)
    assert manifest.fleet.shared_identities == 8
    assert manifest.exit_reason is not None
    assert manifest.exit_reason.code == "shared_identity"
    assert not manifest.is_success
    assert auditor.verify_run(result.folder) == []


async def test_one_device_that_is_named_in_both_ways_stays_an_alias(tmp_path: Path) -> None:
    async with platform(lambda _: answer_of("k1", "a", "1", "1.0")) as (url, _):
        settings = load(tmp_path, url, devices=1)
        (tmp_path / "fleet.csv").write_text("product_key,device_name,iot_id\nk1,a,\n,,1\n")
        result = await auditor.run_audit(settings)
    fleet = result.manifest.fleet
    assert (result.exit_code, fleet.aliases, fleet.shared_identities) == (0, 1, 0)
