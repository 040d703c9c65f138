"""Lifecycle of a fleet over days, and which changes an incremental audit misses."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.simulator.lifecycle import Lifecycle
from auditor.simulator.registry import DEVICE_SECRET_PREFIX, DeviceRecord, device_record
from auditor.simulator.world import SimulatedDevice, World

TODAY = 1_800_000_000.25
DEVICES = 2_000
FRACTIONS = st.sampled_from([0, 0.001, 0.05, 0.3, 0.7, 1])

Rule = Callable[[DeviceRecord, float], bool]


def fleet(day: int, lifecycle: Lifecycle, *, devices: int = DEVICES, today: float | None = None) -> World:
    return World(devices, missing=0, silent=0, inactive=0, large=0, day=day, lifecycle=lifecycle, today=today)


def only_connecting(fraction: float) -> Lifecycle:
    return Lifecycle(connecting=fraction, always_online=0)


def strict(record: DeviceRecord, audited_at: float) -> bool:
    return record.status == "ONLINE" or max(record.changed, record.online or 0) > audited_at


def reconnected(record: DeviceRecord, audited_at: float) -> bool:
    came_online = record.online is not None and record.online > audited_at
    return came_online or (record.status == "ONLINE" and record.changed > audited_at)


def missed_changes(rule: Rule, lifecycle: Lifecycle, days: int) -> tuple[list[SimulatedDevice], int]:
    """Devices whose carried results were outdated, with audits that end just before the next day begins.

    Also the number of changes from one day to the next. A day lasts 3 s here.
    """
    previous = [(device.modules, 0.0) for device in fleet(0, lifecycle)]
    missed, changed = [], 0
    for day in range(1, days + 1):
        today = TODAY + 3 * day
        previous = [(modules, at or today * 1000 - 1) for modules, at in previous]
        world, before = fleet(day, lifecycle, today=today), fleet(day - 1, lifecycle)
        for device in world:
            changed += device.modules != before.device(device.index).modules
            modules, audited_at = previous[device.index]
            if rule(device_record(device, world.began), audited_at):
                previous[device.index] = (device.modules, 0.0)
            elif modules != device.modules:
                missed.append(device)
                previous[device.index] = (device.modules, audited_at)
    return missed, changed


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.7, 1])
def test_the_configured_fraction_of_devices_connects_on_each_day(fraction: float) -> None:
    connect = 0.99 * fraction
    deviation = math.sqrt(connect * (1 - connect) * DEVICES)
    for day in (1, 2, 3, 19, 20, 21, 400):
        connected = sum(device.connected_day == day for device in fleet(day, only_connecting(fraction)))
        assert abs(connected - connect * DEVICES) < 4 * deviation, day


def test_half_of_the_devices_that_connect_on_a_day_are_online_on_it() -> None:
    today = [device for device in fleet(9, only_connecting(0.5)) if device.connected_day == 9]
    assert 0.45 < sum(device.status == "ONLINE" for device in today) / len(today) < 0.55
    assert {device.status for device in fleet(9, only_connecting(0.5)) if device.connected_day < 9} == {
        "OFFLINE", "DISABLE",
    }  # fmt: skip


@given(
    st.builds(Lifecycle, FRACTIONS, st.sampled_from([0, 0.5]), FRACTIONS, st.sampled_from([0, 0.5])),
    st.integers(1, 3_000),
)
def test_the_last_connection_of_a_day_is_on_it_or_that_of_the_day_before(lifecycle: Lifecycle, day: int) -> None:
    today, yesterday = fleet(day, lifecycle), fleet(day - 1, lifecycle)
    for index in range(40):
        new, old = today.device(index), yesterday.device(index)
        assert new.connected_day in {old.connected_day, day}
        assert old.connected_day < day
        assert new.reported_day in {old.reported_day, day}


@pytest.mark.slow
def test_a_device_connects_once_in_each_period() -> None:
    days = [fleet(day, only_connecting(0.1), devices=200) for day in range(201)]
    for index in range(200):
        connected = [day for day, world in enumerate(days) if day and world.device(index).connected_day == day]
        if days[0].device(index).status != "DISABLE":
            assert 19 <= len(connected) <= 21
            assert all(later - earlier < 20 for earlier, later in pairwise(connected))
        else:
            assert not connected


def test_a_device_that_did_not_connect_has_the_versions_of_the_day_before() -> None:
    lifecycle = Lifecycle(connecting=0.3, always_online=0.3, restarting=0.5, offline_reports=0.1)
    changes = {"connected": 0, "online": 0, "offline": 0}
    for day in range(1, 6):
        before = fleet(day - 1, lifecycle)
        for device in fleet(day, lifecycle):
            if device.modules == before.device(device.index).modules:
                continue
            if device.connected_day == day:
                changes["connected"] += 1
            else:
                assert device.reported_day == day > device.connected_day == 0
                changes["online" if device.status == "ONLINE" else "offline"] += 1
    assert min(changes.values()) > 100


def test_a_device_that_connects_reports_all_updates_since() -> None:
    lifecycle = only_connecting(0.2)
    every_day = fleet(6, Lifecycle(always_online=1))
    devices = list(fleet(6, lifecycle))
    assert all(each.modules == every_day.device(each.index).modules for each in devices if each.connected_day == 6)
    then = fleet(4, Lifecycle(always_online=1))
    assert all(each.modules == then.device(each.index).modules for each in devices if each.connected_day == 4)


def test_the_fractions_of_a_fleet_are_as_configured() -> None:
    lifecycle = Lifecycle(connecting=1, always_online=0.4, restarting=0.25, offline_reports=0.2)
    devices = list(fleet(5, lifecycle))
    counts = [
        sum(each.status == "ONLINE" and each.connected_day == 0 and each.reported_day == 5 for each in devices),
        sum(each.status == "OFFLINE" and each.connected_day == 0 and each.reported_day == 5 for each in devices),
        sum(each.status == "DISABLE" and each.connected_day == each.reported_day == 0 for each in devices),
        sum(each.connected_day == each.reported_day == 5 for each in devices),
    ]
    assert sum(counts) == DEVICES
    assert [fraction / DEVICES for fraction in counts] == pytest.approx([0.3, 0.2, 0.01, 0.49], abs=0.03)


def test_day_0_of_a_fleet_does_not_depend_on_its_lifecycle() -> None:
    lifecycles = [Lifecycle(), only_connecting(1), Lifecycle(0, 0, 0, 1), Lifecycle(0.5, 0.5, 1, 0.5)]
    first, *others = ([device.modules for device in fleet(0, lifecycle)] for lifecycle in lifecycles)
    assert all(other == first for other in others)
    assert all(
        device.connected_day == device.reported_day == 0 for lifecycle in lifecycles for device in fleet(0, lifecycle)
    )


def test_strict_misses_no_change_without_offline_reports() -> None:
    wrong, changed = missed_changes(strict, Lifecycle(connecting=0.1, always_online=0.3), 6)
    assert wrong == []
    assert changed > 1_000


@pytest.mark.slow
def test_strict_misses_exactly_the_changes_of_offline_reporters() -> None:
    lifecycle = Lifecycle(connecting=0.1, always_online=0.3, offline_reports=0.05)
    wrong, _ = missed_changes(strict, lifecycle, 6)
    assert {device.status for device in wrong} == {"OFFLINE"}
    silently = [
        index for index, device in enumerate(fleet(6, lifecycle)) if device.reported_day > device.connected_day == 0
    ]
    silently = [index for index in silently if fleet(6, lifecycle).device(index).status == "OFFLINE"]
    days = [[fleet(day, lifecycle).device(index).modules for index in silently] for day in range(7)]
    changes = sum(new != old for before, after in pairwise(days) for old, new in zip(before, after, strict=True))
    assert len(wrong) == changes > 50


@pytest.mark.slow
def test_reconnected_misses_exactly_the_changes_of_devices_that_stay_online() -> None:
    lifecycle = Lifecycle(connecting=0.1, always_online=0.3)
    wrong, _ = missed_changes(reconnected, lifecycle, 6)
    staying = [device.index for device in fleet(0, lifecycle) if device.status == "ONLINE"]
    days = [[fleet(day, lifecycle).device(index).modules for index in staying] for day in range(7)]
    changes = sum(new != old for before, after in pairwise(days) for old, new in zip(before, after, strict=True))
    assert len(wrong) == changes > 500
    assert {device.index for device in wrong} <= set(staying)


def test_reconnected_misses_no_change_if_online_devices_restart_for_an_update() -> None:
    wrong, changed = missed_changes(reconnected, Lifecycle(connecting=0.1, always_online=0.3, restarting=1), 6)
    assert wrong == []
    assert changed > 500


def test_connections_are_in_the_first_second_of_their_day_or_a_day_before_day_0() -> None:
    lifecycle = Lifecycle(connecting=0.3, always_online=0.3, restarting=0.5, offline_reports=0.1)
    for day in (0, 1, 4):
        world = World(DEVICES, day=day, lifecycle=lifecycle, today=TODAY)
        seen = set()
        for device in filter(lambda each: each.activated, world):
            record = device_record(device, world.began)
            began = (TODAY - (day - device.connected_day) * 86_400) * 1000
            assert record.online is not None
            assert record.created <= record.online <= record.changed
            if device.connected_day:
                assert began <= record.online
                assert record.changed <= began + 1_000
            else:
                assert record.changed <= began - 86_400_000
            assert (record.online == record.changed) == (device.status == "ONLINE")
            seen.add(device.connected_day)
        assert seen == set(range(day + 1))


def test_devices_are_registered_one_after_another_and_before_they_connect_in_a_world_of_any_size() -> None:
    for today in (None, 0, TODAY):
        world = World(1 << 40, day=2, today=today)
        devices = [world.device(index) for index in (0, 1, 5_000_000, 10_000_000, 1 << 39)]
        records = [device_record(device, world.began) for device in devices]
        created = [record.created for record in records]
        assert created == sorted(created)
        assert all(record.created <= (record.online or math.inf) for record in records)


def test_equal_arguments_give_equal_worlds_and_todays_date_changes_no_device() -> None:
    lifecycle = Lifecycle(connecting=0.3, always_online=0.3, offline_reports=0.1)
    once, again = (World(500, seed=4, day=7, lifecycle=lifecycle, today=TODAY) for _ in range(2))
    assert list(once) == list(again) == list(World(500, seed=4, day=7, lifecycle=lifecycle))
    assert [device_record(each, once.began) for each in once] == [device_record(each, again.began) for each in again]
    assert list(once) != list(World(500, seed=4, day=7, lifecycle=Lifecycle(connecting=0.2, always_online=0.3)))
    assert World(1, day=0).began == World(1, day=9).began
    assert device_record(once.device(0), once.began).secret.startswith(DEVICE_SECRET_PREFIX)


def test_devices_registered_later_have_the_same_lifecycle() -> None:
    longer = fleet(3, only_connecting(0.5), devices=10).unbounded()
    assert {longer.device(index).connected_day for index in range(10, 200)} == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["connecting", "always_online", "restarting", "offline_reports"])
@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_a_lifecycle_consists_of_fractions(name: str, fraction: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a fraction"):
        Lifecycle(**{name: fraction})


def test_no_device_is_always_online_and_reports_offline() -> None:
    with pytest.raises(ValueError, match="together"):
        Lifecycle(always_online=0.7, offline_reports=0.4)
    assert {each.status for each in fleet(1, Lifecycle(always_online=0.7, offline_reports=0.3))} == {
        "ONLINE",
        "OFFLINE",
    }


@pytest.mark.parametrize("today", [-1, math.nan, math.inf, 1e12])
def test_today_is_a_time_since_1970(today: float) -> None:
    with pytest.raises(ValueError, match="today"):
        World(1, today=today)
