import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.simulator.catalog import CERTAIN, Layout

PRODUCTS = st.integers(1, 9)
PARTS = st.sampled_from([0.0, 0.001, 0.01, 0.3, 0.5, 0.9, 1.0])


def layout(products: int, devices: int = 1_000, missing: float = 0.0, kept: tuple[int, ...] = ()) -> Layout:
    return Layout(7, products, devices, round(missing * CERTAIN), kept)


@given(PRODUCTS, st.integers(0, 2**40))
def test_an_index_and_its_place_are_told_from_each_other(products: int, index: int) -> None:
    product, place = layout(products).place_of(index)
    assert 0 <= product < products
    assert layout(products).index_at(product, place) == index


@given(PRODUCTS, st.integers(0, 300))
def test_the_places_of_a_product_are_counted_as_if_one_by_one(products: int, devices: int) -> None:
    places = [layout(products).place_of(index) for index in range(devices)]
    for product in range(products):
        own = [place for number, place in places if number == product]
        assert own == list(range(layout(products).places(product, devices)))


def test_the_first_product_is_the_largest() -> None:
    assert [layout(4).places(product, 1_000_000) for product in range(4)] == [400_000, 300_000, 200_000, 100_000]


@given(PRODUCTS, PARTS, st.integers(0, 400), st.sets(st.integers(0, 500), max_size=9))
def test_the_missing_are_counted_as_if_one_by_one(products: int, missing: float, devices: int, kept: set[int]) -> None:
    made = layout(products, devices, missing, tuple(kept))
    for product in range(products):
        lost = 0
        for place in range(made.places(product, devices) + 20):
            assert made.missing_before(product, place) == lost
            lost += not made.exists(made.index_at(product, place), product, place)


@given(PARTS)
def test_who_is_kept_or_comes_later_exists(missing: float) -> None:
    made = layout(3, devices=100, missing=missing, kept=(5, 99))
    assert all(made.exists(index, *made.place_of(index)) for index in (5, 99, *range(100, 300)))


@pytest.mark.parametrize("missing", [0.0, 0.01, 0.37, 1.0])
def test_as_many_are_missing_as_asked(missing: float) -> None:
    made = layout(1, 1_000_000, missing)
    assert made.missing_before(0, 1_000_000) == pytest.approx(missing * 1_000_000, abs=1)
