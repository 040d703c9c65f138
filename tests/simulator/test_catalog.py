import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.simulator.catalog import FRACTION_SCALE, Layout

PRODUCTS = st.integers(1, 9)
PARTS = st.sampled_from([0.0, 0.001, 0.01, 0.3, 0.5, 0.9, 1.0])


def layout(products: int, devices: int = 1_000, missing: float = 0.0, kept: tuple[int, ...] = ()) -> Layout:
    return Layout(7, products, devices, round(missing * FRACTION_SCALE), kept)


@given(PRODUCTS, st.integers(0, 2**40))
def test_index_and_place_are_computed_from_each_other(products: int, index: int) -> None:
    product, place = layout(products).position_of(index)
    assert 0 <= product < products
    assert layout(products).index_at(product, place) == index


@given(PRODUCTS, st.integers(0, 300))
def test_the_count_of_places_equals_counting_one_by_one(products: int, devices: int) -> None:
    places = [layout(products).position_of(index) for index in range(devices)]
    for product in range(products):
        own = [place for number, place in places if number == product]
        assert own == list(range(layout(products).count_before(product, devices)))


def test_the_first_product_is_the_largest() -> None:
    assert [layout(4).count_before(product, 1_000_000) for product in range(4)] == [400_000, 300_000, 200_000, 100_000]


@given(PRODUCTS, PARTS, st.integers(0, 400), st.sets(st.integers(0, 500), max_size=9))
def test_the_count_of_missing_devices_equals_counting_one_by_one(
    products: int, missing: float, devices: int, kept: set[int]
) -> None:
    made = layout(products, devices, missing, tuple(kept))
    for product in range(products):
        lost = 0
        for place in range(made.count_before(product, devices) + 20):
            assert made.missing_before(product, place) == lost
            lost += not made.exists(made.index_at(product, place), product, place)


@given(PARTS)
def test_excepted_and_later_devices_exist(missing: float) -> None:
    made = layout(3, devices=100, missing=missing, kept=(5, 99))
    assert all(made.exists(index, *made.position_of(index)) for index in (5, 99, *range(100, 300)))


@pytest.mark.parametrize("missing", [0.0, 0.01, 0.37, 1.0])
def test_the_fraction_of_missing_devices_is_as_configured(missing: float) -> None:
    made = layout(1, 1_000_000, missing)
    assert made.missing_before(0, 1_000_000) == pytest.approx(missing * 1_000_000, abs=1)
