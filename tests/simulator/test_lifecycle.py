"""What a fleet does as days pass, and what an audit that asks only some of its devices gets wrong by it."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.simulator.lifecycle import Life
from auditor.simulator.registry import DEVICE_SECRET_PREFIX, Record, record_of
from auditor.simulator.world import SimulatedDevice, World

TODAY = 1_800_000_000.25
DEVICES = 4_000
PARTS = st.sampled_from([0, 0.001, 0.05, 0.3, 0.7, 1])

Rule = Callable[[Record, float], bool]


def fleet(day: int, life: Life, *, devices: int = DEVICES, today: float | None = None) -> World:
    return World(devices, missing=0, silent=0, inactive=0, large=0, day=day, life=life, today=today)


def connecting_alone(part: float) -> Life:
    return Life(connecting=part, always_online=0)


def strict(record: Record, audited_at: float) -> bool:
    return record.status == "ONLINE" or max(record.changed, record.online or 0) > audited_at


def reconnected(record: Record, audited_at: float) -> bool:
    came_online = record.online is not None and record.online > audited_at
    return came_online or (record.status == "ONLINE" and record.changed > audited_at)


def wrong_by(rule: Rule, life: Life, days: int) -> tuple[list[SimulatedDevice], int]:
    """Audits of which each ends just before the next day begins, days that last seconds; those that carried wrongly.

    Also how many devices changed from one day to the next.
    """
    known = [(device.modules, 0.0) for device in fleet(0, life)]
    wrong, changed = [], 0
    for day in range(1, days + 1):
        today = TODAY + 3 * day
        known = [(modules, at or today * 1000 - 1) for modules, at in known]
        world, before = fleet(day, life, today=today), fleet(day - 1, life)
        for device in world:
            changed += device.modules != before.device(device.index).modules
            modules, audited_at = known[device.index]
            if rule(record_of(device, world.began), audited_at):
                known[device.index] = (device.modules, 0.0)
            elif modules != device.modules:
                wrong.append(device)
                known[device.index] = (device.modules, audited_at)
    return wrong, changed


@pytest.mark.parametrize("part", [0.05, 0.3, 0.7, 1])
def test_so_many_devices_connect_on_each_day(part: float) -> None:
    connect = 0.99 * part
    deviation = math.sqrt(connect * (1 - connect) * DEVICES)
    for day in (1, 2, 3, 19, 20, 21, 400):
        connected = sum(device.connected == day for device in fleet(day, connecting_alone(part)))
        assert abs(connected - connect * DEVICES) < 4 * deviation, day


def test_half_of_those_that_connect_are_still_online_when_the_day_is_asked() -> None:
    today = [device for device in fleet(9, connecting_alone(0.5)) if device.connected == 9]
    assert 0.45 < sum(device.status == "ONLINE" for device in today) / len(today) < 0.55
    assert {device.status for device in fleet(9, connecting_alone(0.5)) if device.connected < 9} == {
        "OFFLINE", "DISABLE",
    }  # fmt: skip


@given(st.builds(Life, PARTS, st.sampled_from([0, 0.5]), PARTS, st.sampled_from([0, 0.5])), st.integers(1, 3_000))
def test_a_days_last_connection_is_todays_or_that_of_the_day_before(life: Life, day: int) -> None:
    today, yesterday = fleet(day, life), fleet(day - 1, life)
    for index in range(40):
        new, old = today.device(index), yesterday.device(index)
        assert new.connected in {old.connected, day}
        assert old.connected < day
        assert new.reported in {old.reported, day}


def test_a_device_connects_once_in_each_stretch_of_days() -> None:
    days = [fleet(day, connecting_alone(0.1), devices=200) for day in range(201)]
    for index in range(200):
        connected = [day for day, world in enumerate(days) if day and world.device(index).connected == day]
        if days[0].device(index).status != "DISABLE":
            assert 19 <= len(connected) <= 21
            assert all(later - earlier < 20 for earlier, later in pairwise(connected))
        else:
            assert not connected


def test_a_device_that_did_not_connect_reports_what_it_reported_the_day_before() -> None:
    life = Life(connecting=0.3, always_online=0.3, restarting=0.5, offline_reports=0.1)
    changes = {"connected": 0, "online": 0, "offline": 0}
    for day in range(1, 6):
        before = fleet(day - 1, life)
        for device in fleet(day, life):
            if device.modules == before.device(device.index).modules:
                continue
            if device.connected == day:
                changes["connected"] += 1
            else:
                assert device.reported == day > device.connected == 0
                changes["online" if device.status == "ONLINE" else "offline"] += 1
    assert min(changes.values()) > 100


def test_a_device_that_connects_reports_all_that_reached_it_since() -> None:
    life = connecting_alone(0.2)
    every_day = fleet(6, Life(always_online=1))
    devices = list(fleet(6, life))
    assert all(each.modules == every_day.device(each.index).modules for each in devices if each.connected == 6)
    then = fleet(4, Life(always_online=1))
    assert all(each.modules == then.device(each.index).modules for each in devices if each.connected == 4)


def test_the_parts_of_a_fleet_are_as_large_as_told() -> None:
    life = Life(connecting=1, always_online=0.4, restarting=0.25, offline_reports=0.2)
    devices = list(fleet(5, life))
    parts = [
        sum(each.status == "ONLINE" and each.connected == 0 and each.reported == 5 for each in devices),
        sum(each.status == "OFFLINE" and each.connected == 0 and each.reported == 5 for each in devices),
        sum(each.status == "DISABLE" and each.connected == each.reported == 0 for each in devices),
        sum(each.connected == each.reported == 5 for each in devices),
    ]
    assert sum(parts) == DEVICES
    assert [part / DEVICES for part in parts] == pytest.approx([0.3, 0.2, 0.01, 0.49], abs=0.03)


def test_a_fleets_day_0_is_the_same_however_it_lives() -> None:
    lives = [Life(), connecting_alone(1), Life(0, 0, 0, 1), Life(0.5, 0.5, 1, 0.5)]
    first, *others = ([device.modules for device in fleet(0, life)] for life in lives)
    assert all(other == first for other in others)
    assert all(device.connected == device.reported == 0 for life in lives for device in fleet(0, life))


def test_strict_is_never_wrong_where_nobody_reports_offline() -> None:
    wrong, changed = wrong_by(strict, Life(connecting=0.1, always_online=0.3), 6)
    assert wrong == []
    assert changed > 1_000


def test_strict_misses_all_that_offline_reporters_change_and_nothing_else() -> None:
    life = Life(connecting=0.1, always_online=0.3, offline_reports=0.05)
    wrong, _ = wrong_by(strict, life, 6)
    assert {device.status for device in wrong} == {"OFFLINE"}
    silently = [index for index, device in enumerate(fleet(6, life)) if device.reported > device.connected == 0]
    silently = [index for index in silently if fleet(6, life).device(index).status == "OFFLINE"]
    days = [[fleet(day, life).device(index).modules for index in silently] for day in range(7)]
    changes = sum(new != old for before, after in pairwise(days) for old, new in zip(before, after, strict=True))
    assert len(wrong) == changes > 50


def test_reconnected_misses_all_that_devices_change_while_they_stay_online_and_nothing_else() -> None:
    life = Life(connecting=0.1, always_online=0.3)
    wrong, _ = wrong_by(reconnected, life, 6)
    staying = [device.index for device in fleet(0, life) if device.status == "ONLINE"]
    days = [[fleet(day, life).device(index).modules for index in staying] for day in range(7)]
    changes = sum(new != old for before, after in pairwise(days) for old, new in zip(before, after, strict=True))
    assert len(wrong) == changes > 500
    assert {device.index for device in wrong} <= set(staying)


def test_reconnected_is_never_wrong_where_those_online_restart_for_an_update() -> None:
    wrong, changed = wrong_by(reconnected, Life(connecting=0.1, always_online=0.3, restarting=1), 6)
    assert wrong == []
    assert changed > 500


def test_a_day_is_told_in_its_first_second_and_what_was_before_day_1_as_a_day_before_day_0() -> None:
    life = Life(connecting=0.3, always_online=0.3, restarting=0.5, offline_reports=0.1)
    for day in (0, 1, 4):
        world = World(DEVICES, day=day, life=life, today=TODAY)
        seen = set()
        for device in filter(lambda each: each.activated, world):
            record = record_of(device, world.began)
            began = (TODAY - (day - device.connected) * 86_400) * 1000
            assert record.online is not None
            assert record.created <= record.online <= record.changed
            if device.connected:
                assert began <= record.online
                assert record.changed <= began + 1_000
            else:
                assert record.changed <= began - 86_400_000
            assert (record.online == record.changed) == (device.status == "ONLINE")
            seen.add(device.connected)
        assert seen == set(range(day + 1))


def test_devices_are_registered_one_after_another_and_before_they_connect_in_a_world_of_any_size() -> None:
    for today in (None, 0, TODAY):
        world = World(1 << 40, day=2, today=today)
        devices = [world.device(index) for index in (0, 1, 5_000_000, 10_000_000, 1 << 39)]
        records = [record_of(device, world.began) for device in devices]
        created = [record.created for record in records]
        assert created == sorted(created)
        assert all(record.created <= (record.online or math.inf) for record in records)


def test_equal_arguments_give_equal_worlds_and_todays_date_changes_no_device() -> None:
    life = Life(connecting=0.3, always_online=0.3, offline_reports=0.1)
    once, again = (World(500, seed=4, day=7, life=life, today=TODAY) for _ in range(2))
    assert list(once) == list(again) == list(World(500, seed=4, day=7, life=life))
    assert [record_of(each, once.began) for each in once] == [record_of(each, again.began) for each in again]
    assert list(once) != list(World(500, seed=4, day=7, life=Life(connecting=0.2, always_online=0.3)))
    assert World(1, day=0).began == World(1, day=9).began
    assert record_of(once.device(0), once.began).secret.startswith(DEVICE_SECRET_PREFIX)


def test_devices_that_are_registered_meanwhile_live_as_the_others() -> None:
    longer = fleet(3, connecting_alone(0.5), devices=10).endless()
    assert {longer.device(index).connected for index in range(10, 200)} == {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["connecting", "always_online", "restarting", "offline_reports"])
@pytest.mark.parametrize("part", [-0.1, 1.1, math.nan])
def test_a_life_is_told_in_parts(name: str, part: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is a part"):
        Life(**{name: part})


def test_no_device_is_always_online_and_reports_offline() -> None:
    with pytest.raises(ValueError, match="together"):
        Life(always_online=0.7, offline_reports=0.4)
    assert {each.status for each in fleet(1, Life(always_online=0.7, offline_reports=0.3))} == {"ONLINE", "OFFLINE"}


@pytest.mark.parametrize("today", [-1, math.nan, math.inf, 1e12])
def test_today_is_a_time_since_1970(today: float) -> None:
    with pytest.raises(ValueError, match="today"):
        World(1, today=today)
