"""Requests in flight, divided among accounts."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import auditor
from auditor.engine.allocation import concurrency_per_account, min_concurrency_for


def settings_of(*quotas: object, concurrency: int = 64, quota_share: float = 1.0) -> auditor.Settings:
    accounts: list[dict[str, Any]] = [
        {
            "name": f"a{number}",
            "endpoint": "https://example.com/",
            "access_key_id": f"key-{number}",
            "access_key_secret": {"env": "NO_SUCH_VARIABLE"},
            "calls_per_second": quota,
            "quota_share": quota_share if isinstance(quota, float) else 1.0,
        }
        for number, quota in enumerate(quotas)
    ]
    return auditor.parse_settings({"concurrency": concurrency, "account": accounts})


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
def test_each_account_has_its_fraction_and_at_least_one_request(quotas: list[object], workers: list[int]) -> None:
    assert concurrency_per_account(settings_of(*quotas)) == workers
    assert concurrency_per_account(settings_of(*quotas, quota_share=0.3)) == workers


quotas = st.lists(st.floats(0.001, 1_000_000) | st.sampled_from(["unlimited", "auto", 10.0]), min_size=1, max_size=6)


@given(quotas, st.integers(1, 10_000))
def test_all_accounts_together_stay_within_concurrency_unless_each_needs_one(
    quotas: list[object], concurrency: int
) -> None:
    workers = concurrency_per_account(settings_of(*quotas, concurrency=concurrency))
    assert min(workers) >= 1
    assert sum(workers) <= max(concurrency, len(quotas))
    assert sum(workers) > concurrency - len(quotas)


@given(quotas, st.data())
def test_advised_concurrency_is_enough_and_less_is_not(quotas: list[object], data: st.DataObject) -> None:
    needed = data.draw(st.lists(st.integers(0, 20), min_size=len(quotas), max_size=len(quotas)))
    advised = min_concurrency_for(settings_of(*quotas), needed)
    if advised > 10_000:
        return
    assert all(
        has >= need
        for has, need in zip(concurrency_per_account(settings_of(*quotas, concurrency=advised)), needed, strict=True)
    )
    if advised > max(len(quotas), 1):
        fewer = concurrency_per_account(settings_of(*quotas, concurrency=advised - 1))
        assert any(has < need for has, need in zip(fewer, needed, strict=True))
