"""Requests in flight, divided among accounts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import auditor
from auditor.engine.allocation import at_once_for, workers_of


def settings_of(*quotas: object, at_once: int = 64, share: float = 1.0) -> auditor.Settings:
    accounts: list[dict[str, Any]] = [
        {
            "name": f"a{number}",
            "endpoint": "https://example.com/",
            "access_key_id": f"key-{number}",
            "access_key_secret": {"env": "NO_SUCH_VARIABLE"},
            "per_second": quota,
            "share": share if isinstance(quota, float) else 1.0,
        }
        for number, quota in enumerate(quotas)
    ]
    return auditor.settings_from({"at_once": at_once, "account": accounts})


@pytest.mark.parametrize(
    ("quotas", "workers"),
    [
        ([10.0], [64]),
        (["unlimited", "unlimited", "auto"], [21, 21, 21]),
        ([0.1, 0.1, 0.1], [21, 21, 21]),
        ([1.0, 5.0, 10.0, 20.0, 50.0], [1, 4, 7, 14, 35]),
        ([1.0, 50.0, "unlimited"], [1, 40, 21]),
        ([10_000.0, *[1.0] * 63], [1] * 64),
        ([1.0] * 100, [1] * 100),
    ],
)
def test_each_has_a_part_by_its_quota_and_one_at_the_least(quotas: list[object], workers: list[int]) -> None:
    assert workers_of(settings_of(*quotas)) == workers
    assert workers_of(settings_of(*quotas, share=0.3)) == workers


quotas = st.lists(st.floats(0.001, 1_000_000) | st.sampled_from(["unlimited", "auto", 10.0]), min_size=1, max_size=6)


@given(quotas, st.integers(1, 10_000))
def test_all_together_have_no_more_than_there_are_unless_one_each_is_more(quotas: list[object], at_once: int) -> None:
    workers = workers_of(settings_of(*quotas, at_once=at_once))
    assert min(workers) >= 1
    assert sum(workers) <= max(at_once, len(quotas))
    assert sum(workers) > at_once - len(quotas)


@given(quotas, st.data())
def test_what_is_advised_is_enough_and_less_is_not(quotas: list[object], data: st.DataObject) -> None:
    needed = data.draw(st.lists(st.integers(0, 20), min_size=len(quotas), max_size=len(quotas)))
    advised = at_once_for(settings_of(*quotas), needed)
    if advised > 10_000:
        return
    assert all(has >= need for has, need in zip(workers_of(settings_of(*quotas, at_once=advised)), needed, strict=True))
    if advised > max(len(quotas), 1):
        fewer = workers_of(settings_of(*quotas, at_once=advised - 1))
        assert any(has < need for has, need in zip(fewer, needed, strict=True))
