"""Audits of a part of a fleet where things go wrong: accounts that are refused, deadlines too soon, odd states, clocks."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import auditor
from auditor.client.operations import BATCH_GET_DEVICE_STATE
from auditor.errors import SettingsError
from auditor.models import Secret
from auditor.simulator.faults import Lie
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.responses import Document, Refused
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.audits import ended_after
from tests.integration.test_audit import account_table, settings_for
from tests.integration.test_incremental import DEVICES, QUIET, differing, night, rows, world_of
from tests.integration.test_rolling import plain

pytestmark = pytest.mark.anyio

OTHER = SimulatedAccount("other", Secret("other-secret"))


def two_accounts(folder: Path, endpoint: str, *, key: str = "other", **changes: Any) -> auditor.Settings:
    """Settings for two accounts, each with a fleet file of its own."""
    (folder / "other-secret").write_text("other-secret")
    eu = account_table(endpoint, folder)
    other = {
        "name": "b",
        "endpoint": endpoint,
        "access_key_id": key,
        "access_key_secret": {"file": str(folder / "other-secret")},
        "per_second": "unlimited",
        "fleet": {"file": str(folder / "b.csv")},
    }
    return settings_for(folder, eu, other, **changes)


async def test_a_sample_of_which_nobody_was_asked_in_time_is_resumed_as_one(tmp_path: Path) -> None:
    world = world_of(0)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(1.5, 1.6), record_answers=True) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), sample=20, seed=1, at_once=2)
        part = await auditor.run_audit(settings, until=time.time() + 1.0)
        assert (part.exit_code, part.manifest.to_ask, part.manifest.unsampled) == (1, 20, DEVICES - 20)
        platform._latency = (0.0, 0.0)
        result = await auditor.resume_audit(part.folder)
        assert platform.answers is not None
        assert len(platform.answers) <= 22  # those in flight when time was up are asked again
    assert (result.exit_code, result.manifest.unsampled, result.manifest.devices.pending) == (
        0,
        DEVICES - 20,
        DEVICES - 20,
    )


async def test_a_precision_waits_for_every_account(tmp_path: Path) -> None:
    world, other = world_of(0, devices=1_500), World(1_500, seed=9, large=0)
    world.write_fleet(tmp_path / "fleet.csv")
    other.write_fleet(tmp_path / "b.csv")
    accounts = [DEFAULT_ACCOUNT, SimulatedAccount("other", Secret("other-secret"), None, other, {})]
    async with Simulator(world, accounts=accounts) as platform:
        settings = two_accounts(tmp_path, platform.endpoint, precision="5%", seed=1)
        result = await auditor.run_audit(settings)
    choice = result.manifest.choice
    assert choice is not None
    assert choice.reached is not None
    assert (result.exit_code, choice.reached <= 0.05) == (0, True)
    asked = dict(rows(result.folder, "SELECT account, count(*) FROM devices WHERE source = 'asked' GROUP BY 1"))
    assert min(asked.values()) >= 100


async def test_a_precision_that_is_not_reached_is_no_success(tmp_path: Path) -> None:
    world = world_of(0, devices=1_500)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(0.02, 0.03)) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), precision="2%", seed=1, at_once=2)
        result = await auditor.run_audit(settings, until=time.time() + 2.0)
    assert result.manifest.choice is not None
    assert result.manifest.choice.reached is not None
    assert result.manifest.choice.reached > 0.02
    assert result.exit_code == 1


@pytest.mark.parametrize(
    "changes", [{"since": "last", "recheck": "30%", "seed": 3}, {"since": "last", "recheck": "100%"}, {"calls": 100}]
)
async def test_a_device_that_the_fleet_names_twice_has_one_answer(tmp_path: Path, changes: dict[str, Any]) -> None:
    world = plain(devices=150)
    names = [f"{device.product_key},{device.device_name}," for device in world]
    ids = [f",,{device.iot_id}" for device in world]
    (tmp_path / "fleet.csv").write_text("\n".join(("product_key,device_name,iot_id", *names, *ids)) + "\n")
    await night(tmp_path, world)
    result = await night(tmp_path, plain(1, devices=150), **changes)
    assert (result.exit_code, result.manifest.state, result.manifest.error) == (0, "complete", None)
    assert result.manifest.carried > 0 or changes.get("recheck") == "100%"
    assert auditor.verify(result.folder) == []


async def test_a_budget_that_cannot_bear_the_states_goes_where_it_is_worth_most(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    await night(tmp_path, world_of(0))
    result = await night(tmp_path, world_of(1), since="last", calls=8)
    assert result.manifest.requests.sent == 8
    choice = result.manifest.choice
    assert choice is not None
    assert choice.accounts[0].requests.sent == 0
    assert choice.spent
    assert choice.accounts[0].beyond == DEVICES - 8
    few = await night(tmp_path, world_of(2), since="last", calls=30)
    assert few.manifest.choice is not None
    (account,) = few.manifest.choice.accounts
    assert account.requests.sent + few.manifest.requests.sent <= 30
    assert few.manifest.choice.spent
    assert account.beyond > 0


async def test_every_account_has_a_part_of_a_budget(tmp_path: Path) -> None:
    world = plain(devices=100)
    world.write_fleet(tmp_path / "fleet.csv")
    world.write_fleet(tmp_path / "b.csv")
    async with Simulator(world, accounts=[DEFAULT_ACCOUNT, OTHER]) as platform:
        result = await auditor.run_audit(two_accounts(tmp_path, platform.endpoint, calls=31))
        assert result.manifest.requests.sent == 31
        asked = dict(rows(result.folder, "SELECT account, count(*) FROM devices WHERE source = 'asked' GROUP BY 1"))
        assert sorted(asked.values()) == [15, 16]
        with pytest.raises(SettingsError, match="calls: give at least one for each of the 2 accounts"):
            two_accounts(tmp_path, platform.endpoint, calls=1)


async def test_what_is_known_is_carried_where_time_ends_while_states_are_asked(tmp_path: Path) -> None:
    world = world_of(0, devices=1_000)
    world.write_fleet(tmp_path / "fleet.csv", columns=("product_key", "device_name"))
    await night(tmp_path, world)
    async with Simulator(world, latency=(0.4, 0.5)) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), since="last", at_once=2)
        result = await auditor.run_audit(settings, until=time.time() + 2.0)
    assert (result.exit_code, result.manifest.state, result.manifest.carried) == (0, "complete", 1_000)
    assert result.manifest.choice is not None
    assert result.manifest.choice.spent
    assert auditor.verify(result.folder) == []


async def test_an_account_that_is_refused_leaves_the_others_their_night(tmp_path: Path) -> None:
    world = plain(devices=200)
    world.write_fleet(tmp_path / "fleet.csv")
    world.write_fleet(tmp_path / "b.csv")
    async with Simulator(world, accounts=[DEFAULT_ACCOUNT, OTHER]) as platform:
        await auditor.run_audit(two_accounts(tmp_path, platform.endpoint))
    async with Simulator(world, latency=(0.02, 0.03)) as platform:  # which knows the other key no more
        result = await auditor.run_audit(two_accounts(tmp_path, platform.endpoint, at_once=4), until=time.time() + 1.5)
    assert result.exit_code == 3
    states = rows(result.folder, "SELECT DISTINCT account, status = 'pending' FROM devices")
    assert ("eu", True) not in states
    assert ("b", True) in states
    assert auditor.verify(result.folder) == []


async def test_failures_of_a_sample_are_measured_by_the_sample(tmp_path: Path) -> None:
    world = plain(devices=1_000)
    world.write_fleet(tmp_path / "fleet.csv")
    lies: dict[int, Lie] = dict.fromkeys(range(1_000), "no_total")
    result = await night(tmp_path, world, lies=lies, attempts=1, sample=20, max_failed="10%")
    assert (result.manifest.devices.failed, result.exit_code) == (20, 1)


async def test_a_sample_that_is_done_is_not_resumed_by_the_next_night(tmp_path: Path) -> None:
    world = plain(devices=100)
    world.write_fleet(tmp_path / "fleet.csv")
    first = await night(tmp_path, world, sample=20)
    async with Simulator(world) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), sample=20)
        second = await auditor.run_audit(settings, resume=True)
    assert second.folder != first.folder
    assert second.manifest.requests.sent == 20


async def test_a_run_of_a_part_of_the_fleet_is_not_carried_from_unless_it_is_named(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    whole = await night(tmp_path, world_of(0))
    async with Simulator(world_of(0)) as platform:
        await auditor.run_audit(settings_for(tmp_path, account_table(platform.endpoint, tmp_path)), limit=50)
    result = await night(tmp_path, world_of(1), since="last")
    assert result.manifest.choice is not None
    assert result.manifest.choice.since == whole.folder.name


async def test_a_run_whose_past_has_gone_asks_everybody(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv", columns=("product_key", "device_name"))
    base = await night(tmp_path, world_of(0))
    world = world_of(1)
    async with Simulator(world, latency=(0.02, 0.03)) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), since="last", at_once=2)
        part = await ended_after(3, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        shutil.rmtree(part.folder / ".choosing")
        shutil.rmtree(base.folder)
        result = await auditor.resume_audit(part.folder)
    assert (result.exit_code, result.manifest.state, result.manifest.carried) == (0, "complete", 0)
    assert not differing(result.folder, world)


ODD: dict[str, Any] = {
    "no times": {"timestamp": None, "lastOnlineTime": None},
    "text for times": {"timestamp": "yesterday"},
    "another device's id": {"iotId": "another"},
    "never activated, of one that answered": {"status": "UNACTIVE", "iotId": None},
    "a status of its own": {"status": "SLEEPING"},
    "none": None,
}


@pytest.mark.parametrize("odd", ODD)
async def test_a_state_that_proves_nothing_is_no_reason_to_carry(tmp_path: Path, odd: str) -> None:
    world = World(100, missing=0, silent=0, inactive=0, large=0, life=QUIET, today=time.time())
    world.write_fleet(tmp_path / "fleet.csv", columns=("product_key", "device_name"))
    await night(tmp_path, world)
    async with Simulator(world) as platform:
        honest: Any = platform._operations[BATCH_GET_DEVICE_STATE.name]

        def answer(parameters: Any) -> Document:
            document: Any = honest(parameters)
            entries = document["deviceStatusList"]["deviceStatus"]
            if (change := ODD[odd]) is None:
                return {"data": None}
            return {"deviceStatusList": {"deviceStatus": [{**entry, **change} for entry in entries]}}

        platform._operations[BATCH_GET_DEVICE_STATE.name] = answer
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), since="last")
        result = await auditor.run_audit(settings)
    assert (result.manifest.state, result.manifest.carried) == ("complete", 0)


async def test_clocks_that_differ_are_no_reason_to_carry(tmp_path: Path) -> None:
    world = world_of(0)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, clock_offset=-7 * 86_400) as platform:  # we are a week ahead
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path))
        await auditor.run_audit(settings)
        result = await auditor.run_audit(
            settings_for(tmp_path, account_table(platform.endpoint, tmp_path), since="last")
        )
    assert (result.manifest.state, result.manifest.carried) == ("complete", 0)


async def test_states_may_not_be_told_of_one_account_alone(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    world_of(0).write_fleet(tmp_path / "b.csv")
    async with Simulator(world_of(0), accounts=[DEFAULT_ACCOUNT, OTHER]) as platform:
        await auditor.run_audit(two_accounts(tmp_path, platform.endpoint))
        honest, asked = platform._operations[BATCH_GET_DEVICE_STATE.name], 0

        def sometimes(parameters: Any) -> Document:
            nonlocal asked
            asked += 1
            if asked % 2:
                raise Refused("iot.common.InvalidPageParams", "Not now.")
            return honest(parameters)

        platform._operations[BATCH_GET_DEVICE_STATE.name] = sometimes
        settings = two_accounts(tmp_path, platform.endpoint, since="last", recheck="0%")
        result = await auditor.run_audit(settings)
    assert result.manifest.state == "complete"
    assert result.manifest.choice is not None
    untold = sum(account.untold for account in result.manifest.choice.accounts)
    assert 0 < untold < 2 * DEVICES
    assert result.manifest.carried == 2 * DEVICES - untold
