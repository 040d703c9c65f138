"""Incremental audits: which devices are queried, which results are carried, and what the recheck measures."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import auditor
from auditor.client.operations import BATCH_GET_DEVICE_STATE
from auditor.errors import RunFolderError
from auditor.models import ChangeDetection
from auditor.query.describe import describe_selection
from auditor.query.warnings import recheck_warnings
from auditor.runs.folder import SELECTED
from auditor.runs.manifest import write_manifest
from auditor.selection import coordinator
from auditor.selection.selector import ChangeSelectionCounts, DeviceSelector
from auditor.simulator.faults import Corruption
from auditor.simulator.forms import MODEL_FORMS, ResponseForms
from auditor.simulator.lifecycle import Lifecycle
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.responses import Document, RequestRejected
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import SimulatedDevice, World
from tests.database import connect
from tests.integration.audits import stop_after, write_mixed_fleet
from tests.integration.test_audit import account_table, expected_status, settings_for

pytestmark = pytest.mark.anyio

DEVICES = 300
MANY = 600
"""Devices where a share of them is measured."""
QUIET = Lifecycle(connecting=0.1, always_online=0.0)
"""A fleet in which devices report only while they are online, and connections are visible."""

ALL = {"products": "all"}


def world_of(day: int, life: Lifecycle = QUIET, devices: int = DEVICES) -> World:
    return World(devices, lifecycle=life, day=day, today=time.time())


async def audit(
    folder: Path,
    world: World,
    *,
    corruptions: dict[int, Corruption] | None = None,
    fleet: object = None,
    forms: ResponseForms = MODEL_FORMS,
    **changes: Any,
) -> auditor.AuditResult:
    """Audit a world without a quota."""
    async with Simulator(world, corruptions=corruptions or {}, record_responses=True, forms=forms) as platform:
        account = {} if fleet is None else {"fleet": fleet}
        settings = settings_for(folder, account_table(platform.endpoint, folder, **account), **changes)
        return await auditor.run_audit(settings)


def rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    with connect() as database:
        for name in ("devices", "modules", "plan", "carried", "fleet"):
            if (path := folder / f"{name}.parquet").exists():
                database.execute(f"CREATE TEMP VIEW {name} AS FROM read_parquet('{path}')")
        return database.execute(query).fetchall()


def snapshot(folder: Path) -> list[tuple[str, frozenset[tuple[str, str]]]]:
    """Return status and modules of every device of a sealed run, in the fleet's order."""
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
    return expected_status(device), frozenset(modules if device.exists else ())


def differing(folder: Path, world: World) -> set[int]:
    """Return the devices, by index in the world, with a result that is not the truth."""
    pairs = zip(snapshot(folder), world, strict=True)
    return {device.index for found, device in pairs if found != truth(device)}


def write_fleet(world: World, path: Path, named: str) -> None:
    columns = {"iot_id": ("iot_id",), "names": ("product_key", "device_name")}
    if named == "mixed":
        write_mixed_fleet(world, path)
    else:
        world.write_fleet(path, columns=columns.get(named, ("product_key", "device_name", "iot_id")))


@pytest.mark.parametrize("named", ["names", "both", "mixed"])
async def test_only_connected_devices_are_queried_and_results_are_true(tmp_path: Path, named: str) -> None:
    write_fleet(world_of(0), tmp_path / "fleet.csv", named)
    first = await audit(tmp_path, world_of(0))
    world = world_of(1)
    result = await audit(tmp_path, world, since="last", recheck="0%")
    assert (result.exit_code, result.manifest.state) == (0, "complete")
    connected = {device.index for device in world if device.exists and device.connected_day == 1}
    assert {
        place for (place,) in rows(result.folder, "SELECT ordinal FROM devices WHERE source = 'queried'")
    } == connected
    assert result.manifest.carried == DEVICES - len(connected)
    assert not differing(result.folder, world)
    assert auditor.verify_run(result.folder) == []
    connections = rows(result.folder, "SELECT device_status, last_online_at IS NOT NULL FROM devices ORDER BY ordinal")
    assert [status for status, _ in connections] == [device.status if device.exists else None for device in world]
    assert all(has_time for status, has_time in connections if status in {"ONLINE", "OFFLINE"})
    with auditor.select_devices(result.folder, auditor.DeviceFilter(online=True)) as selected:
        online = {(row[2], row[3]) for row in selected.table}
    assert len(online) == sum(device.exists and device.status == "ONLINE" for device in world)
    selection = result.manifest.selection
    assert selection is not None
    assert (selection.strategy, selection.baseline_run, selection.change_detection) == (
        "incremental",
        first.folder.name,
        "strict",
    )
    (account,) = selection.accounts
    assert (account.selected, account.carried) == ({"connected": len(connected)}, result.manifest.carried)
    assert account.requests.sent == sum(-(-count // 50) for count in batches(world, named).values())


def batches(world: World, named: str) -> dict[object, int]:
    """Return how many devices can share a request for states, by product or iot_id."""
    counts: dict[object, int] = {}
    for device in world:
        by_id = named == "both" or (named == "mixed" and device.index % 2 == 0)
        key = None if by_id else device.product_key
        counts[key] = counts.get(key, 0) + 1
    return counts


@pytest.mark.slow
async def test_devices_listed_by_iot_id_are_carried_with_their_names(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv", columns=("iot_id",))
    await audit(tmp_path, world_of(0))
    world = world_of(1)
    result = await audit(tmp_path, world, since="last", recheck="0%")
    names = dict(rows(result.folder, "SELECT iot_id, device_name FROM devices WHERE status = 'ok'"))
    assert names == {device.iot_id: device.device_name for device in world if expected_status(device) == "ok"}
    modules = rows(result.folder, "SELECT iot_id, module_name, module_version FROM modules ORDER BY ALL")
    true = {(device.iot_id, module.module_name, module.module_version) for device in world for module in device.modules}
    assert len(modules) == len(true)
    assert set(modules) == true
    assert auditor.verify_run(result.folder) == []


@pytest.mark.slow
async def test_discovered_fleet_is_carried(tmp_path: Path) -> None:
    await audit(tmp_path, world_of(0), fleet=ALL)
    world = world_of(1)
    result = await audit(tmp_path, world, fleet=ALL, since="last", recheck="0%")
    present = [device for device in world if device.exists]
    listed = [name for (name,) in rows(result.folder, "SELECT device_name FROM devices ORDER BY ordinal")]
    found = dict(zip(listed, snapshot(result.folder), strict=True))
    assert found == {device.device_name: truth(device) for device in present}
    connected = sum(device.connected_day == 1 for device in present)
    never = sum(not device.activated for device in present)
    assert (result.manifest.requests.sent - connected) <= sum(len(device.modules) > 200 for device in present) * 5
    assert result.manifest.carried == len(present) - connected - never
    assert result.manifest.state == "complete"


@pytest.mark.slow
async def test_carried_results_keep_their_time_over_several_runs(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    runs = [await audit(tmp_path, world_of(0))]
    for day in (1, 2, 3):
        runs.append(await audit(tmp_path, world_of(day), since="last"))
        assert not differing(runs[-1].folder, world_of(day))
    first = dict(rows(runs[0].folder, "SELECT device_name, audited_at FROM devices"))
    kept = rows(runs[3].folder, f"SELECT device_name, audited_at FROM carried WHERE run = '{runs[0].folder.name}'")
    assert len(kept) > DEVICES / 2
    assert all(first[name] == moment for name, moment in kept)
    oldest = rows(runs[3].folder, "SELECT min(audited_at) FROM devices WHERE source = 'carried'")[0][0]
    assert runs[3].manifest.oldest_answer_at == f"{oldest:%Y-%m-%dT%H:%M:%S}.{oldest.microsecond // 1000:03d}Z"
    queried_by = {run for (run,) in rows(runs[3].folder, "SELECT DISTINCT run FROM carried")}
    assert queried_by == {run.folder.name for run in runs[:3]}


@pytest.mark.slow
async def test_recheck_measures_outdated_results(tmp_path: Path) -> None:
    life = Lifecycle(connecting=0.1, always_online=0.0, offline_reports=0.5)
    world_of(0, life, MANY).write_fleet(tmp_path / "fleet.csv")
    await audit(tmp_path, world_of(0, life, MANY))
    world = world_of(1, life, MANY)
    result = await audit(tmp_path, world, since="last", recheck="100%")
    silent = [device for device in world if device.reported_day > device.connected_day]
    before = {device.device_name: truth(device) for device in world_of(0, life, MANY)}
    wrong = sum(before[device.device_name] != truth(device) for device in silent)
    assert result.manifest.selection is not None
    recheck = result.manifest.selection.recheck
    assert recheck is not None
    assert (recheck.carried, recheck.checked, recheck.answered) == (recheck.checked, recheck.checked, recheck.checked)
    assert recheck.changed == wrong > 0
    assert recheck.rate == recheck.low == recheck.high == pytest.approx(wrong / recheck.checked)
    assert not differing(result.folder, world)
    (tmp_path / "some").mkdir()
    some = await audit(tmp_path / "some", world_of(0, life, MANY), fleet={"file": str(tmp_path / "fleet.csv")})
    part = await audit(
        tmp_path / "some",
        world,
        fleet={"file": str(tmp_path / "fleet.csv")},
        since=str(some.folder),
        recheck="30%",
        seed=5,
    )
    assert part.manifest.selection is not None
    checked = part.manifest.selection.recheck
    assert checked is not None
    assert checked.low is not None
    assert checked.high is not None
    assert 0 < checked.checked < checked.carried
    assert checked.low < wrong / checked.carried < checked.high
    assert len(differing(part.folder, world)) == wrong - checked.changed


@pytest.mark.slow
async def test_run_with_a_budget_reports_unreached_devices_apart_from_the_spot_check(tmp_path: Path) -> None:
    life = Lifecycle(connecting=0.3, always_online=0.0, offline_reports=0.3)
    world_of(0, life, MANY).write_fleet(tmp_path / "fleet.csv")
    await audit(tmp_path, world_of(0, life, MANY))
    world = world_of(1, life, MANY)
    result = await audit(tmp_path, world, since="last", recheck="20%", max_calls=100, seed=3)
    selection = result.manifest.selection
    assert selection is not None
    recheck, outdated = selection.recheck, selection.outdated
    connected = sum(device.exists and device.connected_day == 1 for device in world)
    assert recheck is not None
    assert recheck.carried == MANY - connected
    assert 8 <= recheck.answered < 12  # a tenth of the queries, although a fifth of the devices were to be checked
    assert outdated is not None
    assert outdated.low is not None
    assert outdated.high is not None
    assert outdated.carried == result.manifest.carried
    queried = dict(rows(result.folder, "SELECT selection_reason, count(*) FROM plan GROUP BY ALL"))
    assert selection.accounts[0].over_budget == connected - queried["connected"] > 40
    assert outdated.may_have_changed == selection.accounts[0].over_budget + selection.not_reached
    assert outdated.low <= len(differing(result.folder, world)) / outdated.carried <= outdated.high
    assert auditor.verify_run(result.folder) == []
    kinds = {warning.kind for warning in recheck_warnings("", selection)}
    assert "not_reached" in kinds
    lines = list(describe_selection(selection))
    assert any(
        f"{outdated.may_have_changed:,} of {outdated.carried:,} carried results are of devices" in line
        for line in lines
    )
    manifest = replace(result.manifest, selection=replace(selection, outdated=replace(outdated, may_have_changed=0)))
    write_manifest(result.folder, manifest)
    assert any("number of outdated results" in problem for problem in auditor.verify_run(result.folder))


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["strict", "reconnected"])
async def test_device_that_stays_online_is_queried_by_the_strict_rule_only(
    tmp_path: Path, rule: ChangeDetection
) -> None:
    life = Lifecycle(connecting=0.1, always_online=0.5)
    world_of(0, life).write_fleet(tmp_path / "fleet.csv")
    await audit(tmp_path, world_of(0, life))
    world = world_of(1, life)
    result = await audit(tmp_path, world, since="last", change_detection=rule, recheck="0%")
    before = {device.device_name: truth(device) for device in world_of(0, life)}
    staying = {
        device.index
        for device in world
        if device.reported_day > device.connected_day and truth(device) != before[device.device_name]
    }
    assert staying
    assert differing(result.folder, world) == (set() if rule == "strict" else staying)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "forms"),
    [
        ("strict", ResponseForms(last_online="text")),
        ("reconnected", ResponseForms(last_online="text")),
        ("reconnected", ResponseForms(last_online="mixed", timestamp="seconds", arrays="bare", scalars="text")),
        ("reconnected", ResponseForms(last_online="unreadable", timestamp="text")),
    ],
    ids=["strict, text", "reconnected, text", "reconnected, mixed", "reconnected, unreadable"],
)
async def test_results_are_true_whatever_the_form_of_times(
    tmp_path: Path, rule: ChangeDetection, forms: ResponseForms
) -> None:
    life = Lifecycle(connecting=0.2, always_online=0.3, restarting=1.0)
    world_of(2, life).write_fleet(tmp_path / "fleet.csv")
    await audit(tmp_path, world_of(2, life))
    world = world_of(3, life)
    result = await audit(tmp_path, world, forms=forms, since="last", change_detection=rule, recheck="0%")
    assert not differing(result.folder, world)
    assert result.manifest.selection is not None
    (account,) = result.manifest.selection.accounts
    if forms.last_online == "unreadable":
        assert account.selected.keys() <= {"connected", "unknown"}
        assert account.states_unknown > DEVICES / 2
        return
    # Exactly those that connected, or are online, are queried: the zone of the times without one was learned. A time
    # within an hour of the result does not decide, since daylight saving may have begun or ended.
    devices = [device for device in world if device.exists]
    online = {device.index for device in devices if device.status == "ONLINE"}
    connected = {device.index for device in devices if device.connected_day == 3}
    expected = connected | online if rule == "strict" else connected
    assert sum(account.selected.values()) == len(expected)
    assert account.selected.keys() <= {"connected", "unknown"}
    assert account.learned_offset is not None
    assert account.learned_offset.minutes == 8 * 60
    assert 20 <= account.learned_offset.devices <= len(online)
    assert any("without a zone read as UTC+08:00" in line for line in describe_selection(result.manifest.selection))


@pytest.mark.slow
async def test_new_and_failed_devices_are_queried_and_removed_devices_are_gone(tmp_path: Path) -> None:
    world = world_of(0)
    lines = [f"{device.product_key},{device.device_name}" for device in world]
    fleet = tmp_path / "fleet.csv"
    fleet.write_text("\n".join(("product_key,device_name", *lines[:-100])) + "\n")
    failing: dict[int, Corruption] = dict.fromkeys((3, 4), "no_total")
    first = await audit(tmp_path, world, corruptions=failing, max_attempts=1)
    assert first.manifest.devices.failed == 2
    fleet.write_text("\n".join(("product_key,device_name", *lines[100:], *lines[3:5])) + "\n")
    result = await audit(tmp_path, world_of(0), since="last", recheck="0%")
    assert result.manifest.selection is not None
    assert result.manifest.selection.accounts[0].selected == {"failed": 2, "new": 100}
    assert result.manifest.carried == DEVICES - 200
    assert {name for (name,) in rows(result.folder, "SELECT device_name FROM devices")} == {
        device.device_name for device in world if device.index in {3, 4} or device.index >= 100
    }


async def test_expired_result_is_queried(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    await audit(tmp_path, world_of(0))
    result = await audit(tmp_path, world_of(0), since="last", max_age="1h", recheck="0%")
    assert result.manifest.carried == DEVICES
    await anyio.sleep(1.1)
    result = await audit(tmp_path, world_of(0), since="last", max_age="1s", recheck="0%")
    assert result.manifest.selection is not None
    assert result.manifest.selection.accounts[0].selected == {"expired": DEVICES}


@pytest.mark.slow
async def test_devices_without_a_reported_state_are_queried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    await audit(tmp_path, world_of(0))
    refused = 0

    def refuse(_: object) -> Document:
        nonlocal refused
        refused += 1
        raise RequestRejected("Forbidden.RAM", "The key may not ask that.", 403)

    async with Simulator(world_of(0)) as platform:
        platform._operations[BATCH_GET_DEVICE_STATE.name] = refuse
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), since="last")
        result = await auditor.run_audit(settings)
    assert result.manifest.selection is not None
    (account,) = result.manifest.selection.accounts
    assert (account.selected, account.states_unknown) == ({"unknown": DEVICES}, DEVICES)
    assert (result.manifest.state, result.manifest.carried) == ("complete", 0)
    output = capsys.readouterr()
    assert "connection states are unknown" in output.out + output.err
    assert refused <= 64  # and not one for each fifty devices of a large fleet


async def test_first_incremental_audit_queries_all_devices(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    result = await audit(tmp_path, world_of(0), since="last")
    assert result.manifest.selection is not None
    assert (result.manifest.selection.baseline_run, result.manifest.selection.accounts[0].selected) == (
        None,
        {"new": DEVICES},
    )
    assert (result.manifest.state, result.manifest.carried) == ("complete", 0)


@pytest.mark.slow
async def test_modified_or_unsealed_run_is_no_baseline(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world_of(0), latency=(0.01, 0.02)) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), concurrency=4)
        part = await stop_after(20, platform, lambda stop: auditor.run_audit(settings, stop=stop))
    complete = await audit(tmp_path, world_of(0))
    with (complete.folder / "devices.jsonl").open("ab") as file:
        file.write(b"{}\n")
    for since in ("last", str(complete.folder)):
        with pytest.raises(RunFolderError, match="sealed"):
            await audit(tmp_path, world_of(1), since=since)
    with pytest.raises(RunFolderError, match="no such run"):
        await audit(tmp_path, world_of(1), since=str(tmp_path / "nowhere"))
    result = await audit(tmp_path, world_of(1), since=str(part.folder), recheck="0%")
    assert result.manifest.carried > 0  # the results of an incomplete run can be carried, too


@pytest.mark.slow
async def test_incomplete_run_is_not_the_default_baseline(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    complete = await audit(tmp_path, world_of(0))
    async with Simulator(world_of(0), latency=(0.01, 0.02)) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), concurrency=4)
        await stop_after(20, platform, lambda stop: auditor.run_audit(settings, stop=stop))
    await audit(tmp_path, world_of(0), sample_size=50)
    result = await audit(tmp_path, world_of(1), since="last")
    assert result.manifest.selection is not None
    assert result.manifest.selection.baseline_run == complete.folder.name


@pytest.mark.slow
async def test_interrupted_audit_continues_with_its_plan(tmp_path: Path) -> None:
    write_mixed_fleet(world_of(0), tmp_path / "fleet.csv")
    await audit(tmp_path, world_of(0))
    world = world_of(1)
    connected = sum(device.exists and device.connected_day == 1 for device in world)
    async with Simulator(world, latency=(0.005, 0.01), record_responses=True) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), since="last", concurrency=4)
        states = sum(-(-count // 50) for count in batches(world, "mixed").values())
        part = await stop_after(states + 10, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        assert part.exit_code == 130
        assert part.manifest.state == "partial"
        assert 0 < part.manifest.devices.pending < connected + DEVICES / 10
        assert auditor.verify_run(part.folder) == []
        result = await auditor.resume_audit(part.folder)
        assert platform.responses is not None
        assert max(platform.responses.values()) == 1
    assert (result.exit_code, result.manifest.state) == (0, "complete")
    assert not differing(result.folder, world)
    assert auditor.verify_run(result.folder) == []
    assert not list(result.folder.glob(".*"))


@pytest.mark.slow
async def test_audit_interrupted_before_its_plan_requests_no_state_again(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv", columns=("product_key", "device_name"))
    await audit(tmp_path, world_of(0))
    world = world_of(1)
    key = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret)
    async with Simulator(world, accounts=[key], latency=(0.02, 0.03), record_arrivals=True) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), since="last", concurrency=2)
        part = await stop_after(4, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        assert part.manifest.devices.pending == DEVICES
        assert not (part.folder / "plan.parquet").exists()
        result = await auditor.resume_audit(part.folder)
        requests = len(platform.arrivals_by_operation[BATCH_GET_DEVICE_STATE.name])
    assert not differing(result.folder, world)
    assert requests <= sum(-(-count // 50) for count in batches(world, "names").values()) + 1
    assert result.manifest.selection is not None
    assert result.manifest.selection.accounts[0].requests.sent == sum(
        -(-count // 50) for count in batches(world, "names").values()
    )
    assert result.manifest.state == "complete"


@pytest.mark.slow
async def test_plan_and_carried_results_are_verified(tmp_path: Path) -> None:
    world_of(0).write_fleet(tmp_path / "fleet.csv")
    await audit(tmp_path, world_of(0))
    result = await audit(tmp_path, world_of(1), since="last")
    assert {"plan.parquet", "carried.parquet"} <= {file.name for file in result.manifest.files}
    carried = result.folder / "carried.parquet"
    with connect() as database:
        database.execute(f"CREATE TEMP TABLE old AS FROM read_parquet('{carried}')")
        database.execute(f"COPY (FROM old WHERE status <> 'not_found') TO '{carried}' (FORMAT parquet)")
    problems = auditor.verify_run(result.folder)
    assert any("carried.parquet: " in problem and "sealed" in problem for problem in problems)
    assert any("run.json: says " in problem for problem in problems)


@pytest.mark.slow
async def test_a_fleet_that_grows_during_a_selection_does_not_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One account is listed while the selection of another one, whose devices are behind it in the fleet, reads them."""
    listed, filed = (tmp_path / name for name in ("us", "eu"))
    selected: list[list[tuple[Any, ...]]] = []

    class SlowSelector(DeviceSelector):
        def select_changed(self, *given: Any, **named: Any) -> ChangeSelectionCounts:
            (fleet,) = (tmp_path / "audits").glob("*/fleet.parquet") if self._account == "eu" else [None]
            with connect() as database:
                while (
                    fleet is not None
                    and not database.execute(
                        "SELECT count(*) FROM read_parquet(?) WHERE account = 'us'", [str(fleet)]
                    ).fetchall()[0][0]
                ):
                    time.sleep(0.01)
            return super().select_changed(*given, **named)

    for folder in (listed, filed):
        folder.mkdir()
    for day in (0, 1):
        world, other = world_of(day), World(60, seed=5, lifecycle=QUIET, day=day, today=time.time())
        world.write_fleet(filed / "fleet.csv")
        async with Simulator(other) as first, Simulator(world) as second:
            tables = (
                account_table(first.endpoint, listed, name="us", fleet=ALL),
                account_table(second.endpoint, filed, name="eu"),
            )
            settings = settings_for(tmp_path, *tables, since="last" if day else None, seed=1)
            if not day:
                before = (await auditor.run_audit(settings, directory=tmp_path / "first")).folder
                continue
            for selector in (DeviceSelector, SlowSelector):
                monkeypatch.setattr(coordinator, "DeviceSelector", selector)
                run = msgspec.structs.replace(settings, since=str(before))
                result = await auditor.run_audit(run)
                assert (result.manifest.state, auditor.verify_run(result.folder)) == ("complete", [])
                query = "SELECT account, product_key, device_name, iot_id, selection_reason FROM read_parquet(?) ORDER BY ALL"
                with connect() as database:
                    found = database.execute(query, [str(result.folder / SELECTED)]).fetchall()
                selected.append(found)
                result.folder.rename(tmp_path / f"run-{len(selected)}")
    assert selected[0] == selected[1]
    assert {row[0] for row in selected[0]} == {"us", "eu"}
