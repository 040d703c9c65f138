import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.simulator.registry import Churn, Registry
from auditor.simulator.world import World

WORLDS = st.builds(
    World, st.integers(0, 120), products=st.integers(1, 5), missing=st.sampled_from([0, 0.2, 1]), seed=st.integers(0, 9)
)


def existing(registry: Registry) -> list[int]:
    """Indices of the existing devices, found by name, one by one."""
    everyone = registry.world.unbounded()
    devices = map(everyone.device, range(len(registry.world) + registry.registered + 10))
    return [each.index for each in devices if registry.find(each.product_key, each.device_name) is not None]


@given(WORLDS)
def test_without_churn_the_devices_of_the_world_exist(world: World) -> None:
    registry = Registry(world)
    registry.start_churn(0)
    registry.advance(1e9)
    assert existing(registry) == [device.index for device in world if device.exists]
    assert (registry.registered, registry.removed) == (0, set())


@settings(max_examples=40)
@given(WORLDS, st.integers(0, 40), st.integers(0, 40), st.integers(0, 3))
def test_lists_and_counts_are_those_of_the_devices_that_exist(
    world: World, register: int, remove: int, seconds: int
) -> None:
    registry = Registry(world, Churn(register, remove, seed=3))
    registry.start_churn(100)
    registry.advance(100 + seconds)
    expected = existing(registry)
    began = {device.index for device in world if device.exists}
    assert set(expected) == (began | set(range(len(world), len(world) + register * seconds))) - registry.removed
    assert registry.registered == register * seconds
    for product in range(len(world.products)):
        own = [index for index in reversed(expected) if world.layout.position_of(index)[0] == product]
        assert registry.count(product) == len(own)
        assert [device.index for device in registry.newest(product, 0, 1_000)] == own
        assert [device.index for device in registry.newest(product, 3, 5)] == own[3:8]


def test_a_removed_device_is_not_found_and_a_registered_one_is() -> None:
    registry = Registry(World(50, missing=0), Churn(10, 10))
    everyone = registry.world.unbounded()
    assert registry.find_by_iot_id(everyone.device(50).iot_id) is None
    registry.start_churn(0)
    registry.advance(2)
    assert (registry.registered, len(registry.removed)) == (20, 20)
    for index in range(70):
        device = everyone.device(index)
        expected = None if index in registry.removed else device
        assert registry.find_by_iot_id(device.iot_id) == expected
        assert registry.find(device.product_key, device.device_name) == expected


def test_churn_starts_with_the_first_list_request() -> None:
    registry = Registry(World(50), Churn(10, 10))
    registry.advance(1_000)
    registry.start_churn(1_000)
    registry.start_churn(900)
    registry.advance(1_000.5)
    assert (registry.registered, len(registry.removed)) == (5, 5)


def test_the_same_seed_and_time_give_the_same_devices_at_any_number_of_requests() -> None:
    once, often = (Registry(World(1_000), Churn(30, 50, seed=8)) for _ in range(2))
    other = Registry(World(1_000), Churn(30, 50, seed=9))
    for registry in (once, often, other):
        registry.start_churn(0)
    for hundredth in range(401):
        often.advance(hundredth / 100)
    once.advance(4)
    other.advance(4)
    assert (once.registered, once.removed) == (often.registered, often.removed)
    assert once.removed != other.removed


def test_devices_of_every_product_and_age_are_removed() -> None:
    registry = Registry(World(10_000, missing=0), Churn(0, 2_000))
    registry.start_churn(0)
    registry.advance(1)
    shares = [
        sum(registry.world.layout.position_of(index)[0] == product for index in registry.removed)
        for product in range(4)
    ]
    assert [round(share / 2_000, 1) for share in shares] == [0.4, 0.3, 0.2, 0.1]
    assert sum(registry.removed) / 2_000 == pytest.approx(5_000, abs=250)


def test_the_last_device_can_be_removed_and_others_registered_later() -> None:
    registry = Registry(World(3, missing=0), Churn(1, 100))
    registry.start_churn(0)
    registry.advance(0.5)
    assert len(registry.removed) == 3
    registry.advance(5)
    assert registry.registered == 5
    assert sum(registry.count(product) for product in range(4)) == 8 - len(registry.removed) <= 1


@pytest.mark.parametrize("rate", [-1, math.inf, math.nan])
def test_churn_is_a_number_of_devices_a_second(rate: float) -> None:
    with pytest.raises(ValueError, match="a second"):
        Churn(rate, 0)
    with pytest.raises(ValueError, match="a second"):
        Churn(0, rate)


@settings(max_examples=40)
@given(WORLDS, st.integers(0, 40), st.integers(0, 40), st.data())
def test_devices_whose_names_start_alike_are_those_of_all_devices(
    world: World, register: int, remove: int, data: st.DataObject
) -> None:
    registry = Registry(world, Churn(register, remove, seed=3))
    registry.start_churn(100)
    for product in range(len(world.products)):
        registry.advance(101 + product)  # names of the product before are kept
        devices = list(registry.created(product, None, None))
        names = [device.device_name for device in devices]
        prefix = data.draw(st.sampled_from([*(name[:length] for name in names[:9] for length in (1, 3, 30)), "", "~"]))
        ignores_case = data.draw(st.booleans())
        wanted = prefix.swapcase() if ignores_case else prefix
        found = registry.created_with_prefix(product, None, None, wanted, ignores_case=ignores_case)
        assert list(found) == [device for device in devices if device.device_name.startswith(prefix)]
