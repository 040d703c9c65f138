import csv
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.simulator.catalog import version_text
from auditor.simulator.world import World

SEEDS = st.integers(-5, 2**40)
INDICES = st.integers(0, 999_999)
EXPECTED_42 = ("gw@hall:00000042", "k1eZb6t5mC", "ZQCpQVNxie9nemRYzHApYQ8f6d3c70f0")


@given(SEEDS, INDICES)
def test_a_device_is_found_by_its_name_and_by_its_id_if_it_exists(seed: int, index: int) -> None:
    world = World(1_000_000, seed=seed, missing=0.3)
    device = world.device(index)
    expected = device if device.exists else None
    assert world.find(device.product_key, device.device_name) == expected
    assert world.find_by_iot_id(device.iot_id) == expected


@given(INDICES)
def test_a_device_is_not_found_under_another_product(index: int) -> None:
    world = World(1_000_000, missing=0)
    device = world.device(index)
    for product_key in world.product_keys:
        if product_key != device.product_key:
            assert world.find(product_key, device.device_name) is None


@given(st.text(max_size=40))
def test_invented_names_and_ids_are_not_found(text: str) -> None:
    world = World(100)
    existing = {device.iot_id for device in world} | {device.device_name for device in world}
    if text not in existing:
        assert world.find_by_iot_id(text) is None
        assert all(world.find(key, text) is None for key in world.product_keys)


@pytest.mark.parametrize(
    "name",
    ["dev-", "dev-1", "dev-000000001", "dev-" + "\N{ARABIC-INDIC DIGIT ONE}" * 8, "dev-" + "9" * 5000, "dev-00000100"],
)
def test_a_nearly_correct_name_is_not_found(name: str) -> None:
    world = World(100, missing=0)
    assert all(world.find(key, name) is None for key in world.product_keys)


def test_an_id_with_the_suffix_of_a_device_is_not_found() -> None:
    world = World(100, missing=0)
    iot_id = world.device(5).iot_id
    assert world.find_by_iot_id(iot_id) is not None
    assert world.find_by_iot_id("x" * 22 + iot_id[22:]) is None
    assert world.find_by_iot_id(iot_id.swapcase()) is None


def test_an_id_after_the_end_of_the_world_is_not_found() -> None:
    assert World(100).find_by_iot_id(World(101, missing=0).device(100).iot_id) is None


@given(INDICES)
def test_names_satisfy_the_rules_of_the_platform(index: int) -> None:
    device = World(1_000_000).device(index)
    assert 4 <= len(device.device_name) <= 32
    assert set(device.device_name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_@.:")
    assert len(device.iot_id) == 32
    assert device.iot_id.isalnum()
    assert device.iot_id.isascii()
    assert device.product_key.startswith("k1")


def test_the_same_arguments_give_the_same_world_and_another_seed_another() -> None:
    assert list(World(500, seed=3)) == list(World(500, seed=3))
    assert [device.iot_id for device in World(500, seed=3)] != [device.iot_id for device in World(500, seed=4)]


def test_worlds_never_change_between_versions_of_the_simulator() -> None:
    # A written fleet file and a recorded run stay usable only while this device stays what it is.
    device = World(1_000_000, seed=7).device(42)
    again = World(1_000_000, seed=7).find(device.product_key, device.device_name)
    assert (device.device_name, device.product_key, device.iot_id) == EXPECTED_42
    assert again == device


def test_a_larger_world_has_the_same_devices() -> None:
    assert list(World(50)) == list(World(5_000))[:50]


def test_ids_and_names_are_unique() -> None:
    devices = list(World(20_000))
    assert len({device.iot_id for device in devices}) == len(devices)
    assert len({(device.product_key, device.device_name) for device in devices}) == len(devices)


@pytest.mark.slow
def test_the_fractions_are_about_as_configured() -> None:
    devices = list(World(20_000, missing=0.1, inactive=0.05, silent=0.2, large=0.03))
    existing = [device for device in devices if device.exists]
    active = [device for device in existing if device.activated]
    speaking = [device for device in active if device.modules]
    assert len(existing) / len(devices) == pytest.approx(0.9, abs=0.01)
    assert len(active) / len(existing) == pytest.approx(0.95, abs=0.01)
    assert len(speaking) / len(active) == pytest.approx(0.8, abs=0.015)
    assert sum(len(device.modules) > 200 for device in speaking) / len(speaking) == pytest.approx(0.03, abs=0.006)


def test_devices_that_cannot_report_have_no_modules() -> None:
    for device in World(5_000, missing=0.3, inactive=0.3):
        assert device.modules == () or (device.exists and device.activated)


@given(INDICES, st.integers(0, 1_200))
def test_a_device_can_have_an_exact_number_of_modules(index: int, modules: int) -> None:
    device = World(1_000_000, missing=1, inactive=1, silent=1, module_counts={index: modules}).device(index)
    assert device.exists
    assert device.activated
    assert len(device.modules) == modules


@given(INDICES)
def test_module_names_of_a_device_are_unique_whatever_their_case(index: int) -> None:
    device = World(1_000_000, missing=0, inactive=0, silent=0, large=0.5).device(index)
    assert len({module.module_name.lower() for module in device.modules}) == len(device.modules)
    assert device.modules[0].module_name == "default"


def test_one_version_of_a_module_dominates_and_others_lag() -> None:
    runs = Counter(
        (device.product_key, module.module_version)
        for device in World(20_000, large=0)
        for module in device.modules
        if module.module_name == "default"
    )
    for product_key in World(1).product_keys:
        shares = sorted((runs[key] for key in runs if key[0] == product_key), reverse=True)
        assert 0.55 < shares[0] / sum(shares) < 0.85
        assert len(shares) >= 4


def test_some_devices_have_not_reported_every_module() -> None:
    world = World(2_000, products=8, large=0, silent=0, missing=0, inactive=0)
    per_product: dict[str, set[int]] = {}
    for device in world:
        per_product.setdefault(device.product_key, set()).add(len(device.modules))
    assert any(len(sizes) > 1 for sizes in per_product.values())
    assert all(1 <= size <= 5 for sizes in per_product.values() for size in sizes)


@given(st.integers(0, 5), st.integers(0, 40), st.integers(0, 40))
def test_releases_never_share_a_version_text(shape: int, one: int, other: int) -> None:
    assert (version_text(shape, one) == version_text(shape, other)) == (one == other)


def test_a_million_devices_take_no_memory() -> None:
    tracemalloc.start()
    world = World(1_000_000)
    for index in range(0, 1_000_000, 1_000):
        world.device(index)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(world) == 1_000_000
    assert held < 200_000


def test_a_fleet_file_has_all_devices_including_missing_ones(tmp_path: Path) -> None:
    world = World(300, missing=0.5)
    world.write_fleet(tmp_path / "fleet.csv")
    with (tmp_path / "fleet.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["product_key", "device_name", "iot_id"]
    assert rows[1:] == [[device.product_key, device.device_name, device.iot_id] for device in world]


def test_a_fleet_file_has_the_requested_columns(tmp_path: Path) -> None:
    world = World(3)
    world.write_fleet(tmp_path / "fleet.csv", columns=("iot_id",))
    assert (tmp_path / "fleet.csv").read_text().split() == ["iot_id", *(device.iot_id for device in world)]
    with pytest.raises(ValueError, match="product_key, device_name, iot_id"):
        world.write_fleet(tmp_path / "fleet.csv", columns=("secret",))


def test_invalid_arguments_of_a_world_are_rejected() -> None:
    with pytest.raises(ValueError, match="devices"):
        World(-1)
    with pytest.raises(ValueError, match="product"):
        World(1, products=0)
    with pytest.raises(ValueError, match="silent"):
        World(1, silent=1.5)
    with pytest.raises(ValueError, match="module_counts"):
        World(1, module_counts={0: -1})
    with pytest.raises(IndexError):
        World(1).device(1)
    assert list(World(0)) == []


@pytest.mark.slow
def test_updates_reach_more_devices_each_day_and_few_are_rolled_back() -> None:
    days = [World(12_000, day=day) for day in range(6)]
    assert list(days[0]) == list(World(12_000))
    ran: dict[tuple[str, str], list[Counter[str]]] = {}
    for day, world in enumerate(days):
        for device in world:
            for module in device.modules[:5]:
                counters = ran.setdefault((device.product_key, module.module_name), [Counter() for _ in days])
                counters[day][module.module_version] += 1
    reached = []
    for counters in ran.values():
        new_versions = set(counters[5]) - set(counters[0])
        if new_versions:
            (version,) = new_versions
            counts = [counter[version] for counter in counters]
            assert counts == sorted(counts)
            assert counts[5] > counts[1] > 0
            reached.append(counts[5] / counters[5].total())
    assert 1 < len(reached) < len(ran)
    assert all(0.15 < fraction <= 0.98 for fraction in reached)
    still = [index for index in range(12_000) if days[0].device(index).modules == days[5].device(index).modules]
    assert 1_200 < len(still) < 10_800


def test_only_the_versions_of_a_device_change_over_days() -> None:
    for before, after in zip(World(1_000), World(1_000, day=3), strict=True):
        assert (before.device_name, before.iot_id, before.exists) == (after.device_name, after.iot_id, after.exists)
        assert [each.module_name for each in before.modules] == [each.module_name for each in after.modules]


def test_a_negative_day_is_rejected() -> None:
    with pytest.raises(ValueError, match="day"):
        World(1, day=-1)
