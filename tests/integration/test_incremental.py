"""Audits that ask only who can have changed since an earlier one: who is asked, what is carried, and what is measured."""

import time
from pathlib import Path
from typing import Any

import anyio
import duckdb
import pytest

import auditor
from auditor.client.operations import BATCH_GET_DEVICE_STATE
from auditor.errors import RunFolderError
from auditor.models import SinceRule
from auditor.simulator.faults import Lie
from auditor.simulator.lifecycle import Life
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.responses import Document, Refused
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import SimulatedDevice, World
from tests.integration.audits import ended_after, write_mixed_fleet
from tests.integration.test_audit import account_table, settings_for, status_of

pytestmark = pytest.mark.anyio

DEVICES = 600
QUIET = Life(connecting=0.1, always_online=0.0)
"""A fleet of which no device reports while it is offline, and whoever connects shows it."""

ALL = {"products": "all"}


def world_of(day: int, life: Life = QUIET, devices: int = DEVICES) -> World:
    return World(devices, life=life, day=day, today=time.time())


async def night(
    folder: Path, world: World, *, lies: dict[int, Lie] | None = None, fleet: object = None, **changes: Any
) -> auditor.Result:
    """An audit of a world, without a quota."""
    async with Simulator(world, lies=lies or {}, record_answers=True) as platform:
        account = {} if fleet is None else {"fleet": fleet}
        settings = settings_for(folder, account_table(platform.endpoint, folder, **account), **changes)
        return await auditor.run_audit(settings)


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as database:
        for name in ("devices", "modules", "plan", "carried", "fleet"):
            if (path := folder / f"{name}.parquet").exists():
                database.execute(f"CREATE VIEW {name} AS FROM read_parquet('{path}')")
        return database.execute(query).fetchall()


def snapshot(folder: Path) -> list[tuple[str, frozenset[tuple[str, str]]]]:
    """Status and modules of every device of a sealed run, in the fleet's order."""
    same = " AND ".join(f"d.{name} IS NOT DISTINCT FROM m.{name}" for name in ("device_name", "iot_id"))
    query = (
        "SELECT status, list(m) FILTER (m.module_name IS NOT NULL) FROM devices d LEFT JOIN modules m "
        f"ON {same} AND d.product_key IS NOT DISTINCT FROM m.product_key GROUP BY ordinal, status ORDER BY ordinal"
    )
    found = rows(folder, query)
    return [
        (status, frozenset((each["module_name"], each["module_version"]) for each in modules or ()))
        for status, modules in found
    ]


def truth(device: SimulatedDevice) -> tuple[str, frozenset[tuple[str, str]]]:
    modules = {(module.module_name, module.module_version) for module in device.modules}
    return status_of(device), frozenset(modules if device.exists else ())


def differing(folder: Path, world: World) -> set[int]:
    """Devices, by their place in the world, of which a run says something else than the truth."""
    pairs = zip(snapshot(folder), world, strict=True)
    return {device.index for found, device in pairs if found != truth(device)}


def write_fleet(world: World, path: Path, named: str) -> None:
    columns = {"iot_id": ("iot_id",), "names": ("product_key", "device_name")}
    if named == "mixed":
        write_mixed_fleet(world, path)
    else:
        world.write_fleet(path, columns=columns.get(named, ("product_key", "device_name", "iot_id")))


@pytest.mark.parametrize("named", ["names", "both", "mixed"])
async def test_only_who_connected_is_asked_and_the_snapshot_is_the_truth(tmp_path: Path, named: str) -> None:
    write_fleet(world_of(0), tmp_path / "fleet.csv", named)
    first = await night(tmp_path, world_of(0))
    world = world_of(1)
    result = await night(tmp_path, world, since="last", recheck="0%")
    assert (result.exit_code, result.manifest.state) == (0, "complete")
    connected = {device.index for device in world if device.exists and device.connected == 1}
    assert {
        place for (place,) in rows(result.folder, "SELECT ordinal FROM devices WHERE source = 'asked'")
    } == connected
    assert result.manifest.carried == DEVICES - len(connected)
    assert not differing(result.folder, world)
    assert auditor.verify(result.folder) == []
    choice = result.manifest.choice
    assert choice is not None
    assert (choice.strategy, choice.since, choice.rule) == ("since", first.folder.name, "strict")
    (account,) = choice.accounts
    assert (account.asked, account.carried) == ({"connected": len(connected)}, result.manifest.carried)
    assert account.requests.sent == sum(-(-count // 50) for count in batches(world, named).values())


def batches(world: World, named: str) -> dict[object, int]:
    """Devices that may be asked about in one question."""
    counts: dict[object, int] = {}
    for device in world:
        by_id = named == "both" or (named == "mixed" and device.index % 2 == 0)
        key = None if by_id else device.product_key
        counts[key] = counts.get(key, 0) + 1
    return counts


async def test_devices_that_are_named_by_their_iot_id_alone_are_carried_with_their_names(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv", columns=("iot_id",))
    await night(tmp_path, world_of(0))
    world = world_of(1)
    result = await night(tmp_path, world, since="last", recheck="0%")
    known = dict(rows(result.folder, "SELECT iot_id, device_name FROM devices WHERE status = 'ok'"))
    assert known == {device.iot_id: device.device_name for device in world if status_of(device) == "ok"}
    modules = rows(result.folder, "SELECT iot_id, module_name, module_version FROM modules ORDER BY ALL")
    told = {(device.iot_id, module.module_name, module.module_version) for device in world for module in device.modules}
    assert len(modules) == len(told)
    assert set(modules) == told
    assert auditor.verify(result.folder) == []


async def test_a_fleet_that_the_platform_lists_is_carried_too(tmp_path: Path) -> None:
    await night(tmp_path, world_of(0), fleet=ALL)
    world = world_of(1)
    result = await night(tmp_path, world, fleet=ALL, since="last", recheck="0%")
    there = [device for device in world if device.exists]
    listed = [name for (name,) in rows(result.folder, "SELECT device_name FROM devices ORDER BY ordinal")]
    found = dict(zip(listed, snapshot(result.folder), strict=True))
    assert found == {device.device_name: truth(device) for device in there}
    asked = sum(device.connected == 1 for device in there)
    never = sum(not device.activated for device in there)
    assert (result.manifest.requests.sent - asked) <= sum(len(device.modules) > 200 for device in there) * 5
    assert result.manifest.carried == len(there) - asked - never
    assert result.manifest.state == "complete"


async def test_night_after_night_an_answer_keeps_the_time_when_it_was_read(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    runs = [await night(tmp_path, world_of(0))]
    for day in (1, 2, 3):
        runs.append(await night(tmp_path, world_of(day), since="last"))
        assert not differing(runs[-1].folder, world_of(day))
    first = dict(rows(runs[0].folder, "SELECT device_name, audited_at FROM devices"))
    kept = rows(runs[3].folder, f"SELECT device_name, audited_at FROM carried WHERE run = '{runs[0].folder.name}'")
    assert len(kept) > DEVICES / 2
    assert all(first[name] == moment for name, moment in kept)
    oldest = rows(runs[3].folder, "SELECT min(audited_at) FROM devices WHERE source = 'carried'")[0][0]
    assert runs[3].manifest.oldest == f"{oldest:%Y-%m-%dT%H:%M:%S}.{oldest.microsecond // 1000:03d}Z"
    asked = {run for (run,) in rows(runs[3].folder, "SELECT DISTINCT run FROM carried")}
    assert asked == {run.folder.name for run in runs[:3]}


async def test_how_often_carrying_was_wrong_is_measured(tmp_path: Path) -> None:
    life = Life(connecting=0.1, always_online=0.0, offline_reports=0.5)
    world_of(0, life).write_fleet(tmp_path / "fleet.csv")
    await night(tmp_path, world_of(0, life))
    world = world_of(1, life)
    result = await night(tmp_path, world, since="last", recheck="100%")
    silent = [device for device in world if device.reported > device.connected]
    before = {device.device_name: truth(device) for device in world_of(0, life)}
    wrong = sum(before[device.device_name] != truth(device) for device in silent)
    assert result.manifest.choice is not None
    recheck = result.manifest.choice.recheck
    assert recheck is not None
    assert (recheck.carried, recheck.asked, recheck.answered) == (recheck.asked, recheck.asked, recheck.asked)
    assert recheck.wrong == wrong > 0
    assert recheck.rate == recheck.low == recheck.high == pytest.approx(wrong / recheck.asked)
    assert not differing(result.folder, world)
    (tmp_path / "some").mkdir()
    some = await night(tmp_path / "some", world_of(0, life), fleet={"file": str(tmp_path / "fleet.csv")})
    part = await night(
        tmp_path / "some",
        world,
        fleet={"file": str(tmp_path / "fleet.csv")},
        since=str(some.folder),
        recheck="30%",
        seed=5,
    )
    assert part.manifest.choice is not None
    checked = part.manifest.choice.recheck
    assert checked is not None
    assert checked.low is not None
    assert checked.high is not None
    assert 0 < checked.asked < checked.carried
    assert checked.low < wrong / checked.carried < checked.high
    assert len(differing(part.folder, world)) == wrong - checked.wrong


@pytest.mark.parametrize("rule", ["strict", "reconnected"])
async def test_a_device_that_stays_online_is_asked_by_the_rule_that_minds_it(tmp_path: Path, rule: SinceRule) -> None:
    life = Life(connecting=0.1, always_online=0.5)
    world_of(0, life).write_fleet(tmp_path / "fleet.csv")
    await night(tmp_path, world_of(0, life))
    world = world_of(1, life)
    result = await night(tmp_path, world, since="last", since_rule=rule, recheck="0%")
    before = {device.device_name: truth(device) for device in world_of(0, life)}
    staying = {
        device.index
        for device in world
        if device.reported > device.connected and truth(device) != before[device.device_name]
    }
    assert staying
    assert differing(result.folder, world) == (set() if rule == "strict" else staying)


async def test_who_is_new_or_failed_is_asked_and_who_has_left_is_gone(tmp_path: Path) -> None:
    world = world_of(0)
    lines = [f"{device.product_key},{device.device_name}" for device in world]
    fleet = tmp_path / "fleet.csv"
    fleet.write_text("\n".join(("product_key,device_name", *lines[:500])) + "\n")
    failing: dict[int, Lie] = dict.fromkeys((3, 4), "no_total")
    first = await night(tmp_path, world, lies=failing, attempts=1)
    assert first.manifest.devices.failed == 2
    fleet.write_text("\n".join(("product_key,device_name", *lines[100:], *lines[3:5])) + "\n")
    result = await night(tmp_path, world_of(0), since="last", recheck="0%")
    assert result.manifest.choice is not None
    assert result.manifest.choice.accounts[0].asked == {"failed": 2, "new": 100}
    assert result.manifest.carried == 400
    assert {name for (name,) in rows(result.folder, "SELECT device_name FROM devices")} == {
        device.device_name for device in world if device.index in {3, 4} or device.index >= 100
    }


async def test_an_answer_that_is_too_old_is_asked_anew(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    await night(tmp_path, world_of(0))
    result = await night(tmp_path, world_of(0), since="last", max_age="1h", recheck="0%")
    assert result.manifest.carried == DEVICES
    await anyio.sleep(1.1)
    result = await night(tmp_path, world_of(0), since="last", max_age="1s", recheck="0%")
    assert result.manifest.choice is not None
    assert result.manifest.choice.accounts[0].asked == {"expired": DEVICES}


async def test_whose_state_is_not_told_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    await night(tmp_path, world_of(0))
    refused = 0

    def refuse(_: object) -> Document:
        nonlocal refused
        refused += 1
        raise Refused("Forbidden.RAM", "The key may not ask that.", 403)

    async with Simulator(world_of(0)) as platform:
        platform._operations[BATCH_GET_DEVICE_STATE.name] = refuse
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), since="last")
        result = await auditor.run_audit(settings)
    assert result.manifest.choice is not None
    (account,) = result.manifest.choice.accounts
    assert (account.asked, account.untold) == ({"unknown": DEVICES}, DEVICES)
    assert (result.manifest.state, result.manifest.carried) == ("complete", 0)
    said = capsys.readouterr()
    assert "states of devices are not known" in said.out + said.err
    assert refused <= 64  # and not one for each fifty devices of a large fleet


async def test_the_first_audit_since_the_last_asks_everybody(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    result = await night(tmp_path, world_of(0), since="last")
    assert result.manifest.choice is not None
    assert (result.manifest.choice.since, result.manifest.choice.accounts[0].asked) == (None, {"new": DEVICES})
    assert (result.manifest.state, result.manifest.carried) == ("complete", 0)


async def test_a_run_that_was_changed_or_is_not_sealed_is_not_carried_from(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world_of(0), latency=(0.01, 0.02)) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), at_once=4)
        part = await ended_after(20, platform, lambda stop: auditor.run_audit(settings, stop=stop))
    whole = await night(tmp_path, world_of(0))
    with (whole.folder / "devices.jsonl").open("ab") as file:
        file.write(b"{}\n")
    for since in ("last", str(whole.folder)):
        with pytest.raises(RunFolderError, match="is not the file that was sealed"):
            await night(tmp_path, world_of(1), since=since)
    with pytest.raises(RunFolderError, match="is no folder"):
        await night(tmp_path, world_of(1), since=str(tmp_path / "nowhere"))
    result = await night(tmp_path, world_of(1), since=str(part.folder), recheck="0%")
    assert result.manifest.carried > 0  # what a run knows that ended early is known as well


async def test_a_run_that_ended_early_is_passed_over_by_the_last_that_was_whole(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    whole = await night(tmp_path, world_of(0))
    async with Simulator(world_of(0), latency=(0.01, 0.02)) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), at_once=4)
        await ended_after(20, platform, lambda stop: auditor.run_audit(settings, stop=stop))
    await night(tmp_path, world_of(0), sample=50)
    result = await night(tmp_path, world_of(1), since="last")
    assert result.manifest.choice is not None
    assert result.manifest.choice.since == whole.folder.name


async def test_an_audit_that_is_ended_while_it_asks_goes_on_with_its_plan(tmp_path: Path) -> None:
    write_mixed_fleet(world_of(0), tmp_path / "fleet.csv")
    await night(tmp_path, world_of(0))
    world = world_of(1)
    connected = sum(device.exists and device.connected == 1 for device in world)
    async with Simulator(world, latency=(0.005, 0.01), record_answers=True) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), since="last", at_once=4)
        states = sum(-(-count // 50) for count in batches(world, "mixed").values())
        part = await ended_after(states + 10, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        assert part.exit_code == 130
        assert part.manifest.state == "partial"
        assert 0 < part.manifest.devices.pending < connected + DEVICES / 10
        assert auditor.verify(part.folder) == []
        result = await auditor.resume_audit(part.folder)
        assert platform.answers is not None
        assert max(platform.answers.values()) == 1
    assert (result.exit_code, result.manifest.state) == (0, "complete")
    assert not differing(result.folder, world)
    assert auditor.verify(result.folder) == []
    assert not list(result.folder.glob(".*"))


async def test_an_audit_that_is_ended_before_its_plan_asks_no_state_twice(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv", columns=("product_key", "device_name"))
    await night(tmp_path, world_of(0))
    world = world_of(1)
    key = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret)
    async with Simulator(world, accounts=[key], latency=(0.02, 0.03), record_arrivals=True) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), since="last", at_once=2)
        part = await ended_after(4, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        assert part.manifest.devices.pending == DEVICES
        assert not (part.folder / "plan.parquet").exists()
        result = await auditor.resume_audit(part.folder)
        asked = len(platform.arrivals_of[BATCH_GET_DEVICE_STATE.name])
    assert not differing(result.folder, world)
    assert asked <= sum(-(-count // 50) for count in batches(world, "names").values()) + 1
    assert result.manifest.choice is not None
    assert result.manifest.choice.accounts[0].requests.sent == sum(
        -(-count // 50) for count in batches(world, "names").values()
    )
    assert result.manifest.state == "complete"


async def test_what_is_carried_and_chosen_is_proven(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    await night(tmp_path, world_of(0))
    result = await night(tmp_path, world_of(1), since="last")
    assert {"plan.parquet", "carried.parquet"} <= {facts.name for facts in result.manifest.files}
    carried = result.folder / "carried.parquet"
    with duckdb.connect() as database:
        database.execute(f"CREATE TABLE old AS FROM read_parquet('{carried}')")
        database.execute(f"COPY (FROM old WHERE status <> 'not_found') TO '{carried}' (FORMAT parquet)")
    problems = auditor.verify(result.folder)
    assert any("carried.parquet: is not the file that was sealed" in problem for problem in problems)
    assert any("run.json: says that" in problem for problem in problems)
