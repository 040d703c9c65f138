"""Partial audits with failures: denied accounts, early deadlines, unusual states, and clocks that differ."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import auditor
from auditor.client.operations import BATCH_GET_DEVICE_STATE
from auditor.errors import SettingsError
from auditor.models import Secret
from auditor.simulator.faults import Corruption
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.responses import Document, RequestRejected
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.audits import stop_after
from tests.integration.test_audit import account_table, settings_for
from tests.integration.test_incremental import DEVICES, MANY, QUIET, audit, differing, rows, world_of
from tests.integration.test_rolling import plain

pytestmark = pytest.mark.anyio

OTHER = SimulatedAccount("other", Secret("other-secret"))


def two_accounts(folder: Path, endpoint: str, *, key: str = "other", **changes: Any) -> auditor.Settings:
    """Return settings with two accounts, each with its own fleet file."""
    (folder / "other-secret").write_text("other-secret")
    eu = account_table(endpoint, folder)
    other = {
        "name": "b",
        "endpoint": endpoint,
        "access_key_id": key,
        "access_key_secret": {"file": str(folder / "other-secret")},
        "calls_per_second": "unlimited",
        "fleet": {"file": str(folder / "b.csv")},
    }
    return settings_for(folder, eu, other, **changes)


async def test_sample_without_results_before_the_deadline_is_resumed_as_a_sample(tmp_path: Path) -> None:
    world = world_of(0)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(1.5, 1.6), record_responses=True) as platform:
        settings = settings_for(
            tmp_path, account_table(platform.endpoint, tmp_path), sample_size=20, seed=1, concurrency=2
        )
        part = await auditor.run_audit(settings, until=time.time() + 1.0)
        assert (part.exit_code, part.manifest.remaining_devices, part.manifest.unsampled) == (1, 20, DEVICES - 20)
        platform._latency = (0.0, 0.0)
        result = await auditor.resume_audit(part.folder)
        assert platform.responses is not None
        assert len(platform.responses) <= 22  # those in flight at the deadline are queried again
    assert (result.exit_code, result.manifest.unsampled, result.manifest.devices.pending) == (
        0,
        DEVICES - 20,
        DEVICES - 20,
    )


@pytest.mark.slow
async def test_precision_needs_results_of_every_account(tmp_path: Path) -> None:
    world, other = world_of(0, devices=1_500), World(1_500, seed=9, large=0)
    world.write_fleet(tmp_path / "fleet.csv")
    other.write_fleet(tmp_path / "b.csv")
    accounts = [DEFAULT_ACCOUNT, SimulatedAccount("other", Secret("other-secret"), None, other, {})]
    async with Simulator(world, accounts=accounts) as platform:
        settings = two_accounts(tmp_path, platform.endpoint, precision="5%", seed=1)
        result = await auditor.run_audit(settings)
    selection = result.manifest.selection
    assert selection is not None
    assert selection.achieved_precision is not None
    assert (result.exit_code, selection.achieved_precision <= 0.05) == (0, True)
    queried = dict(rows(result.folder, "SELECT account, count(*) FROM devices WHERE source = 'queried' GROUP BY 1"))
    assert min(queried.values()) >= 100


async def test_missed_precision_is_not_a_success(tmp_path: Path) -> None:
    world = world_of(0, devices=1_500)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(0.02, 0.03)) as platform:
        settings = settings_for(
            tmp_path, account_table(platform.endpoint, tmp_path), precision="2%", seed=1, concurrency=2
        )
        result = await auditor.run_audit(settings, until=time.time() + 2.0)
    assert result.manifest.selection is not None
    assert result.manifest.selection.achieved_precision is not None
    assert result.manifest.selection.achieved_precision > 0.02
    assert result.exit_code == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"since": "last", "recheck": "30%", "seed": 3}, {"since": "last", "recheck": "100%"}, {"max_calls": 100}],
)
async def test_device_listed_under_two_names_has_one_result(tmp_path: Path, changes: dict[str, Any]) -> None:
    world = plain(devices=150)
    names = [f"{device.product_key},{device.device_name}," for device in world]
    ids = [f",,{device.iot_id}" for device in world]
    (tmp_path / "fleet.csv").write_text("\n".join(("product_key,device_name,iot_id", *names, *ids)) + "\n")
    await audit(tmp_path, world)
    result = await audit(tmp_path, plain(1, devices=150), **changes)
    assert (result.exit_code, result.manifest.state, result.manifest.error) == (0, "complete", None)
    assert result.manifest.carried > 0 or changes.get("recheck") == "100%"
    assert auditor.verify_run(result.folder) == []


@pytest.mark.slow
async def test_budget_too_small_for_states_is_spent_by_priority(tmp_path: Path) -> None:
    world_of(0, devices=MANY).write_fleet(tmp_path / "fleet.csv")
    await audit(tmp_path, world_of(0, devices=MANY))
    result = await audit(tmp_path, world_of(1, devices=MANY), since="last", max_calls=8)
    assert result.manifest.requests.sent == 8
    selection = result.manifest.selection
    assert selection is not None
    assert selection.accounts[0].requests.sent == 0
    assert selection.budget_exhausted
    assert selection.accounts[0].over_budget == MANY - 8
    second = await audit(tmp_path, world_of(2, devices=MANY), since="last", max_calls=30)
    assert second.manifest.selection is not None
    (account,) = second.manifest.selection.accounts
    assert account.requests.sent + second.manifest.requests.sent <= 30
    assert second.manifest.selection.budget_exhausted
    assert account.over_budget > 0


async def test_budget_is_divided_among_accounts(tmp_path: Path) -> None:
    world = plain(devices=100)
    world.write_fleet(tmp_path / "fleet.csv")
    world.write_fleet(tmp_path / "b.csv")
    async with Simulator(world, accounts=[DEFAULT_ACCOUNT, OTHER]) as platform:
        result = await auditor.run_audit(two_accounts(tmp_path, platform.endpoint, max_calls=31))
        assert result.manifest.requests.sent == 31
        queried = dict(rows(result.folder, "SELECT account, count(*) FROM devices WHERE source = 'queried' GROUP BY 1"))
        assert sorted(queried.values()) == [15, 16]
        with pytest.raises(SettingsError, match="calls: give at least one for each of the 2 accounts"):
            two_accounts(tmp_path, platform.endpoint, max_calls=1)


@pytest.mark.slow
async def test_deadline_during_state_requests_carries_previous_results(tmp_path: Path) -> None:
    world = world_of(0, devices=1_000)
    world.write_fleet(tmp_path / "fleet.csv", columns=("product_key", "device_name"))
    await audit(tmp_path, world)
    async with Simulator(world, latency=(0.4, 0.5)) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), since="last", concurrency=2)
        result = await auditor.run_audit(settings, until=time.time() + 2.0)
    assert (result.exit_code, result.manifest.state, result.manifest.carried) == (0, "complete", 1_000)
    assert result.manifest.selection is not None
    assert result.manifest.selection.budget_exhausted
    assert auditor.verify_run(result.folder) == []


@pytest.mark.slow
async def test_denied_account_does_not_affect_the_others(tmp_path: Path) -> None:
    world = plain(devices=200)
    world.write_fleet(tmp_path / "fleet.csv")
    world.write_fleet(tmp_path / "b.csv")
    async with Simulator(world, accounts=[DEFAULT_ACCOUNT, OTHER]) as platform:
        await auditor.run_audit(two_accounts(tmp_path, platform.endpoint))
    async with Simulator(world, latency=(0.04, 0.05)) as platform:  # without the other key
        result = await auditor.run_audit(
            two_accounts(tmp_path, platform.endpoint, concurrency=4), until=time.time() + 3.0
        )
    assert result.exit_code == 3
    states = rows(result.folder, "SELECT DISTINCT account, status = 'pending' FROM devices")
    assert ("eu", True) not in states
    assert ("b", True) in states
    assert auditor.verify_run(result.folder) == []


async def test_failures_of_a_sample_are_compared_with_the_sample_size(tmp_path: Path) -> None:
    world = plain(devices=1_000)
    world.write_fleet(tmp_path / "fleet.csv")
    corruptions: dict[int, Corruption] = dict.fromkeys(range(1_000), "no_total")
    result = await audit(tmp_path, world, corruptions=corruptions, max_attempts=1, sample_size=20, max_failed="10%")
    assert (result.manifest.devices.failed, result.exit_code) == (20, 1)


@pytest.mark.slow
async def test_finished_sample_is_not_resumed_by_the_next_run(tmp_path: Path) -> None:
    world = plain(devices=100)
    world.write_fleet(tmp_path / "fleet.csv")
    first = await audit(tmp_path, world, sample_size=20)
    async with Simulator(world) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), sample_size=20)
        second = await auditor.run_audit(settings, resume=True)
    assert second.folder != first.folder
    assert second.manifest.requests.sent == 20


@pytest.mark.slow
async def test_limited_run_is_not_the_default_baseline(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    complete = await audit(tmp_path, world_of(0))
    async with Simulator(world_of(0)) as platform:
        await auditor.run_audit(settings_for(tmp_path, account_table(platform.endpoint, tmp_path)), limit=50)
    result = await audit(tmp_path, world_of(1), since="last")
    assert result.manifest.selection is not None
    assert result.manifest.selection.baseline_run == complete.folder.name


@pytest.mark.slow
async def test_run_with_a_deleted_baseline_queries_all_devices(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv", columns=("product_key", "device_name"))
    base = await audit(tmp_path, world_of(0))
    world = world_of(1)
    async with Simulator(world, latency=(0.02, 0.03)) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), since="last", concurrency=2)
        part = await stop_after(3, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        shutil.rmtree(part.folder / ".selection")
        shutil.rmtree(base.folder)
        result = await auditor.resume_audit(part.folder)
    assert (result.exit_code, result.manifest.state, result.manifest.carried) == (0, "complete", 0)
    assert not differing(result.folder, world)


UNUSUAL_STATES: dict[str, Any] = {
    "no times": {"timestamp": None, "lastOnlineTime": None},
    "text for times": {"timestamp": "yesterday"},
    "another device's id": {"iotId": "another"},
    "never activated, of one that answered": {"status": "UNACTIVE", "iotId": None},
    "a status of its own": {"status": "SLEEPING"},
    "none": None,
}


@pytest.mark.parametrize("kind", UNUSUAL_STATES)
async def test_unusual_state_does_not_justify_carrying(tmp_path: Path, kind: str) -> None:
    world = World(100, missing=0, silent=0, inactive=0, large=0, lifecycle=QUIET, today=time.time())
    world.write_fleet(tmp_path / "fleet.csv", columns=("product_key", "device_name"))
    await audit(tmp_path, world)
    async with Simulator(world) as platform:
        original: Any = platform._operations[BATCH_GET_DEVICE_STATE.name]

        def answer(parameters: Any) -> Document:
            document: Any = original(parameters)
            entries = document["deviceStatusList"]["deviceStatus"]
            if (change := UNUSUAL_STATES[kind]) is None:
                return {"data": None}
            return {"deviceStatusList": {"deviceStatus": [{**entry, **change} for entry in entries]}}

        platform._operations[BATCH_GET_DEVICE_STATE.name] = answer
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), since="last")
        result = await auditor.run_audit(settings)
    assert (result.manifest.state, result.manifest.carried) == ("complete", 0)


@pytest.mark.slow
async def test_clock_difference_does_not_justify_carrying(tmp_path: Path) -> None:
    world = world_of(0)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, clock_offset=-7 * 86_400) as platform:  # we are a week ahead
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path))
        await auditor.run_audit(settings)
        result = await auditor.run_audit(
            settings_for(tmp_path, account_table(platform.endpoint, tmp_path), since="last")
        )
    assert (result.manifest.state, result.manifest.carried) == ("complete", 0)


@pytest.mark.slow
async def test_states_may_be_unavailable_for_some_requests(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    world_of(0).write_fleet(tmp_path / "b.csv")
    async with Simulator(world_of(0), accounts=[DEFAULT_ACCOUNT, OTHER]) as platform:
        await auditor.run_audit(two_accounts(tmp_path, platform.endpoint))
        original, requests = platform._operations[BATCH_GET_DEVICE_STATE.name], 0

        def sometimes(parameters: Any) -> Document:
            nonlocal requests
            requests += 1
            if requests % 2:
                raise RequestRejected("iot.common.InvalidPageParams", "Not now.")
            return original(parameters)

        platform._operations[BATCH_GET_DEVICE_STATE.name] = sometimes
        settings = two_accounts(tmp_path, platform.endpoint, since="last", recheck="0%")
        result = await auditor.run_audit(settings)
    assert result.manifest.state == "complete"
    assert result.manifest.selection is not None
    unknown = sum(account.states_unknown for account in result.manifest.selection.accounts)
    assert 0 < unknown < 2 * DEVICES
    assert result.manifest.carried == 2 * DEVICES - unknown
