"""Audits of the module default alone, compared with what every device of the simulated world runs."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import auditor
from auditor.audit.preflight import preflight
from auditor.client.operations import BATCH_QUERY_DEVICE_DETAIL as DETAILS
from auditor.errors import SettingsError, UsageError
from auditor.simulator import operations
from auditor.simulator.responses import RequestRejected
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import SimulatedDevice, World
from tests.bulk.test_index_reader import start_audit
from tests.integration.audits import stop_after, write_mixed_fleet
from tests.integration.test_audit import account_table, read_lines, settings_for

pytestmark = pytest.mark.anyio

VERSIONS = "ListOTAModuleVersionsByDevice"


def settings_of(platform: Simulator, folder: Path, **changes: Any) -> auditor.Settings:
    """Return settings for all products of one account, or for a fleet file if ``fleet`` names one."""
    fleet = changes.pop("fleet", {"products": "all"})
    options = {"modules": ["default"], **changes}
    return settings_for(folder, account_table(platform.endpoint, folder, fleet=fleet), **options)


def calls(platform: Simulator) -> dict[str, int]:
    return {name: len(times) for name, times in platform.arrivals_by_operation.items()}


def default_version(device: SimulatedDevice) -> str | None:
    reported = device.modules if device.exists and device.activated else ()
    return next((each.module_version for each in reported if each.module_name == "default"), None)


def expected_status(device: SimulatedDevice) -> str:
    if not device.exists:
        return "not_found"
    return "empty" if default_version(device) is None else "ok"


def assert_snapshot(devices: list[SimulatedDevice], result: auditor.AuditResult) -> None:
    """Check that every device is in the run exactly once, with the version of ``default`` and nothing else."""
    assert (result.manifest.state, result.exit_code, result.manifest.error) == ("complete", 0, None)
    assert auditor.verify_run(result.folder) == []
    lines = read_lines(result.folder / "devices.jsonl")
    assert Counter(line["iot_id"] for line in lines) == Counter(each.iot_id for each in devices)
    by_id = {line["iot_id"]: line for line in lines}
    for device in devices:
        line, version = by_id[device.iot_id], default_version(device)
        modules = [] if version is None else [{"module_name": "default", "module_version": version}]
        assert (line["status"], line["modules"], line["total"]) == (expected_status(device), modules, len(modules))
    assert [path.name for path in result.folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_details_give_the_default_module_of_a_hundred_devices_a_call(tmp_path: Path, dialect: Any) -> None:
    world = World(3_000, products=4, silent=0, inactive=0.05)
    async with Simulator(world, dialect=dialect, record_arrivals=True) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path))
        sent = calls(platform)
    there = [device for device in world if device.exists]
    assert_snapshot(there, result)
    assert sent[DETAILS.name] <= len(there) / 100 + 4
    assert VERSIONS not in sent
    assert "ListOTAModuleByProduct" not in sent  # it would name modules that no device can have here
    assert result.manifest.requests.sent == sent[DETAILS.name]
    assert result.manifest.modules == ("default",)
    head = json.loads((result.folder / "inventory.json").read_text())
    assert (head["complete"], head["modules"]) == (True, ["default"])
    assert result.manifest.exit_reason is not None
    assert result.manifest.exit_reason.message.endswith("have an answer about the module default")
    assert result.manifest.planned is not None
    assert result.manifest.planned.requests == pytest.approx(len(there) / 100, abs=5)
    with auditor.Run(result.folder) as run:
        assert [each.kind for each in run.warnings] == ["modules"]
        assert {each.module_name for each in run.inventory()} == {"default"}
        rows = run.table("devices").to_dicts()
    assert {row["source"] for row in rows if row["device_status"] != "UNACTIVE"} == {"details"}


@pytest.mark.slow
async def test_devices_that_an_answer_does_not_decide_are_queried_themselves(tmp_path: Path) -> None:
    """Of a fleet file: by iot_id, unknown to the platform, without a version, or the last one of its product."""
    world = World(901, products=3, missing=0.05, silent=0.05, inactive=0.05)
    write_mixed_fleet(world, tmp_path / "fleet.csv")
    async with Simulator(world, record_arrivals=True, record_responses=True) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path, fleet={"file": str(tmp_path / "fleet.csv")}))
        queried = {name for name, _ in platform.responses or {}}
    assert (result.manifest.state, result.exit_code) == ("complete", 0)
    assert auditor.verify_run(result.folder) == []
    with auditor.Run(result.folder) as run:
        rows = run.table("devices").to_dicts()
    found = {row["device_name"] or row["iot_id"]: (row["status"], row["source"]) for row in rows}
    for device in world:
        by_name = bool(device.index % 2)
        decided = by_name and device.exists and (not device.activated or default_version(device) is not None)
        name = device.device_name if by_name or device.device_name in found else device.iot_id
        assert found[name] == (expected_status(device), "details" if decided else "queried")
        key = f"{device.product_key}/{device.device_name}" if by_name else device.iot_id
        assert (key in queried) is not decided


def twice(entries: list[Any]) -> list[Any]:
    return [entries[0], *entries]


def without(entries: list[Any]) -> list[Any]:
    return entries[1:]


def foreign(entries: list[Any]) -> list[Any]:
    return [{**entries[0], "deviceName": "another"}, *entries[1:]]


def other_product(entries: list[Any]) -> list[Any]:
    return [{**entries[0], "productKey": "another"}, *entries[1:]]


def replaced(entries: list[Any]) -> list[Any]:
    return [{**entries[0], "iotId": "another"}, *entries[1:]]


def nameless(entries: list[Any]) -> list[Any]:
    return [{**entries[0], "deviceName": None}, *entries[1:]]


@pytest.mark.parametrize(
    ("change", "queried"),
    [(twice, 1), (without, 1), (replaced, 1), (foreign, 100), (other_product, 100), (nameless, 100), (None, 100)],
)
async def test_an_answer_that_contradicts_its_request_decides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Any]], list[Any]] | None, queried: int
) -> None:
    def answer(*arguments: Any) -> Any:
        document: Any = original(*arguments)
        own = [each for each in document["data"]["data"] if each["deviceName"] == first.device_name]
        if not own:
            return document
        others = [each for each in document["data"]["data"] if each not in own]
        return {"data": {} if change is None else {"data": change([*own, *others])}}

    original = operations.device_details
    monkeypatch.setattr(operations, "device_details", answer)
    world = World(400, products=1, missing=0, silent=0, inactive=0, large=0)
    first = world.device(0)
    async with Simulator(world, record_arrivals=True) as platform:
        result = await auditor.run_audit(settings_of(platform, tmp_path))
        assert calls(platform)[VERSIONS] == queried
    assert_snapshot(list(world), result)


@pytest.mark.slow
@pytest.mark.parametrize("code", ["Forbidden.RAM", "InvalidAction.NotFound", "iot.system.IllegalRequest"])
async def test_a_refused_operation_costs_few_requests_and_is_remembered_for_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> Any:
        raise RequestRejected(code, "refused", 403 if code.startswith("Forbidden") else 200)

    monkeypatch.setattr(operations, "device_details", refuse)
    world = World(900, products=2, missing=0, silent=0, inactive=0)
    async with Simulator(world, record_arrivals=True, latency=(0.001, 0.002)) as platform:
        settings = settings_of(platform, tmp_path, concurrency=4)
        first = await stop_after(300, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        assert first.manifest.state == "partial"
        sent = calls(platform)[DETAILS.name]
        assert sent == (3 if code == "iot.system.IllegalRequest" else 1)
        result = await auditor.resume_audit(first.folder)
        assert calls(platform)[DETAILS.name] == sent
    assert capsys.readouterr().err.count("details of devices cannot be read") == 1
    assert_snapshot(list(world), result)
    with auditor.Run(result.folder) as run:
        assert {row["source"] for row in run.table("devices").to_dicts()} == {"queried"}


async def test_check_names_the_permission_that_is_missing(tmp_path: Path) -> None:
    world = World(20, products=1, missing=0, silent=0, inactive=0)
    account = replace(DEFAULT_ACCOUNT, denied=frozenset({DETAILS.name}))
    async with Simulator(world, accounts=(account,)) as platform:
        (check,) = await preflight(settings_of(platform, tmp_path))
    assert check.problem is not None
    assert "modules needs BatchQueryDeviceDetail, which is denied" in check.problem
    assert "iot:BatchQueryDeviceDetail" in check.problem


@pytest.mark.slow
async def test_an_interrupted_run_loses_nothing_and_reads_no_device_twice(tmp_path: Path) -> None:
    world = World(2_000, products=3, silent=0.01, inactive=0.02)
    for answers in (2, 20, 40):
        (folder := tmp_path / str(answers)).mkdir()
        async with Simulator(world, latency=(0.001, 0.004), record_arrivals=True) as platform:
            settings = settings_of(platform, folder, concurrency=2)
            first = await stop_after(answers, platform, partial(start_audit, settings))
            result = await auditor.resume_audit(first.folder)
            there = [device for device in world if device.exists]
            # A batch that was in flight is requested again, and the products' last ones are divided again.
            assert calls(platform)[DETAILS.name] <= len(there) / 100 + 3 * 2 + 2
        assert_snapshot(there, result)


@pytest.mark.slow
async def test_a_quota_of_its_own_limits_the_details(tmp_path: Path) -> None:
    world = World(1_500, products=1, missing=0, silent=0, inactive=0)
    account = replace(DEFAULT_ACCOUNT, calls_per_second=100.0, quotas={DETAILS.name: 20.0})
    async with Simulator(world, accounts=(account,), record_arrivals=True) as platform:
        table = account_table(
            platform.endpoint, tmp_path, fleet={"products": "all"}, calls_per_second=100, quotas={DETAILS.name: 20}
        )
        result = await auditor.run_audit(settings_for(tmp_path, table, modules=["default"]))
        assert calls(platform)[DETAILS.name] == 15
        assert platform.counts.throttled == 0
    assert_snapshot(list(world), result)


@pytest.mark.slow
async def test_samples_and_incremental_runs_read_details(tmp_path: Path) -> None:
    world = World(1_000, products=2, missing=0, silent=0, inactive=0)
    async with Simulator(world, record_arrivals=True) as platform:
        sample = await auditor.run_audit(settings_of(platform, tmp_path, name="sample", sample_size=300))
        assert (sample.manifest.unsampled, sample.exit_code) == (700, 0)
        assert calls(platform)[DETAILS.name] <= 5
        await auditor.run_audit(settings_of(platform, tmp_path))
        result = await auditor.run_audit(settings_of(platform, tmp_path, since="last"))
        assert VERSIONS not in calls(platform)
    assert (result.manifest.state, auditor.verify_run(result.folder)) == ("complete", [])


@pytest.mark.slow
async def test_runs_of_other_modules_are_neither_mixed_nor_compared(tmp_path: Path) -> None:
    world = World(60, products=1, missing=0, silent=0, inactive=0)
    async with Simulator(world) as platform:
        everything = await auditor.run_audit(settings_of(platform, tmp_path, modules=None, name="all"))
        only = await auditor.run_audit(settings_of(platform, tmp_path, name="default"))
        for name, modules in (("all", ["default"]), ("default", None)):
            with pytest.raises(SettingsError, match="give this audit another name"):
                await auditor.run_audit(settings_of(platform, tmp_path, modules=modules, name=name))
        with pytest.raises(SettingsError, match="no baseline of the other kind"):
            await auditor.run_audit(settings_of(platform, tmp_path, name="new", since=str(everything.folder)))
    with (
        pytest.raises(UsageError, match="has only the module default"),
        auditor.diff_runs(only.folder, everything.folder),
    ):
        pass
    with auditor.diff_runs(everything.folder, only.folder, criteria=auditor.DeviceFilter(module="default")) as drift:
        assert (drift.counts.same, drift.counts.vanished, drift.counts.removed) == (60, 0, 0)


async def test_a_rule_about_a_module_that_is_not_read_is_refused(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rule]]\nname = "radio"\nmodule = "ble"\nminimum = "1"\n')
    world = World(20, products=1, missing=0, silent=0, inactive=0)
    async with Simulator(world) as platform:
        settings = settings_of(platform, tmp_path, policy={"file": str(rules)})
        with pytest.raises(SettingsError, match='rule "radio": is about module ble'):
            auditor.prepare_hooks(settings)
        result = await auditor.run_audit(settings)
    with (
        pytest.raises(SettingsError, match="reads only the module default"),
        auditor.evaluate_policy(result.folder, auditor.load_policy(rules)),
    ):
        pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modules": ["ble"]}, r'give \["default"\]'),
        ({"modules": []}, r'give \["default"\]'),
        ({"modules": ["default"], "max_calls": 10}, "max_calls counts single ones"),
        ({"modules": ["default"], "precision": "1%"}, "precision counts single ones"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings_for(tmp_path, account_table("http://127.0.0.1:1/", tmp_path), **changes)


def test_details_do_not_go_with_the_index(tmp_path: Path) -> None:
    table = account_table("http://127.0.0.1:1/", tmp_path, fleet={"products": "all"}, read="index")
    with pytest.raises(SettingsError, match="the index has all modules of a device in one call"):
        settings_for(tmp_path, table, modules=["default"])
