"""Strategies side by side: what they take follows from counts and quotas, and ages are those that ranking leads to."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

import auditor
from auditor.config.settings import FleetSource
from auditor.errors import SettingsError
from auditor.planning.capacity import plan_of
from auditor.planning.measurements import Asked, Carrying, Experience, SinceTold, carrying_from
from auditor.planning.models import StrategyPlan
from auditor.planning.strategies import Known, ages, compare
from auditor.runs.manifest import Recheck
from auditor.selection.ranking import Budget, rank_by_worth
from auditor.simulator.server import Simulator
from tests.integration.audits import plain
from tests.integration.test_audit import account_table, settings_for
from tests.planning.test_planner import known as experience
from tests.planning.test_planner import settings_of


def rows_of(
    settings: auditor.Settings,
    devices: Mapping[str, int],
    *,
    window: float | None = None,
    before: Experience | None = None,
    carrying: Carrying | None = None,
    sizes: Mapping[str, Mapping[int, int]] | None = None,
) -> list[StrategyPlan]:
    plan = plan_of(settings, devices, before, window)
    return list(compare(settings, plan, Known(devices, sizes or {}, before, carrying or Carrying())))


def row_of(rows: list[StrategyPlan], strategy: str, **fields: object) -> StrategyPlan:
    (row,) = [
        each
        for each in rows
        if each.strategy == strategy and all(getattr(each, key) == value for key, value in fields.items())
    ]
    return row


def changed(settings: auditor.Settings, **fields: Any) -> auditor.Settings:
    return msgspec.structs.replace(settings, **fields)


@examples(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    asked=st.integers(1, 25),
    guaranteed=st.sampled_from([1.0, 0.9, 0.5, 0.25, 0.1]),
    violating=st.integers(0, 2**20),
)
def test_no_answer_gets_older_than_is_told_by_the_order_in_which_devices_are_asked(
    sizes: list[int], asked: int, guaranteed: float, violating: int
) -> None:
    told = ages(Counter(sizes), asked, guaranteed)
    if told is None:
        return
    oldest, mean = told
    database = duckdb.connect()
    database.execute(
        "CREATE TABLE wanted (place INT, product_key VARCHAR); CREATE TABLE read (place INT, night INT, worth BOOLEAN)"
    )
    places = [product for product, size in enumerate(sizes) for _ in range(size)]
    database.executemany("INSERT INTO wanted VALUES (?, ?)", [[at, f"k{key}"] for at, key in enumerate(places)])
    database.executemany(
        "INSERT INTO read VALUES (?, -1, ?)", [[at, bool(violating >> at & 1)] for at in range(len(places))]
    )
    for night in range(2 * oldest + 3):
        database.execute(
            "CREATE OR REPLACE TABLE asking AS SELECT place, place AS row, false AS renamed, 'ok' AS status, violating, changes, audited_at, "
            "NULL::TIMESTAMP AS failed_at, why FROM (SELECT place, worth AS violating, 0 AS changes, "
            "TIMESTAMP '2026-01-02' + to_days(night) AS audited_at, 'oldest' AS why FROM read)"
        )
        rank_by_worth(database, Budget(asked, guaranteed, asked))
        database.execute("UPDATE read SET night = $1 WHERE place IN (SELECT place FROM ranked)", [night])
        database.execute("DROP TABLE ranked")
        if night > oldest:
            found = database.execute("SELECT $1 - min(night), $1 - avg(night) FROM read", [night]).fetchall()[0]
            assert found[0] <= oldest
            assert found[1] <= mean + 1e-9


def test_ages_are_half_a_cycle_on_average_and_a_night_less_than_it_at_most() -> None:
    assert ages({1000: 1}, 100, 1.0) == (9, 4.5)
    assert ages({1000: 1}, 100, 0.5) == (19, 9.5)
    assert ages({1000: 1}, 1000, 0.5) == (0, 0.0)
    assert ages({1000: 1}, 100, 0.0) is None


def test_products_that_are_too_many_for_a_turn_each_leave_the_age_without_a_bound() -> None:
    assert ages({10: 100}, 50, 0.9) is None
    assert ages({10: 100}, 100, 0.9) == (9, 4.5)  # one of each


@pytest.mark.parametrize("sizes", [{}, {"a0": {1000: 90, 4: 1000}, "a1": {6000: 1}}])
def test_the_window_that_is_named_for_an_age_is_enough_and_a_second_less_is_not(
    sizes: dict[str, dict[int, int]],
) -> None:
    settings, devices = settings_of((10, 1), (3, 0.5)), {"a0": 94_000, "a1": 6_000}
    before = experience({"a0": Asked(10, 13)})
    rows = [row for row in rows_of(settings, devices, before=before, sizes=sizes) if row.strategy == "rolling"]
    assert [row.oldest_nights for row in rows] == [1, 3, 7]
    for row in rows:
        assert row.window is not None
        again = row_of(rows_of(settings, devices, before=before, sizes=sizes, window=row.window), "rolling")
        assert again == replace(row, fits=True)
        less = row_of(rows_of(settings, devices, before=before, sizes=sizes, window=row.window - 1), "rolling")
        assert less.oldest_nights is None or less.oldest_nights > (row.oldest_nights or 0)


def test_a_budget_of_calls_is_shared_by_quota_and_listing_counts_on_it() -> None:
    settings = changed(settings_of((30, 1), (10, 1)), calls=4_000, guaranteed="100%")
    row = row_of(rows_of(settings, {"a0": 30_000, "a1": 20_000}), "rolling")
    assert (row.devices, row.calls, row.budget, row.window) == (4_000, 4_000, 4_000, None)
    assert row.seconds == round(3_000 / 29.1, 3)
    assert row.oldest_nights == 19
    assert row.mean_nights == pytest.approx((30 * 4.5 + 20 * 9.5) / 50)
    listed = tuple(msgspec.structs.replace(each, fleet=FleetSource(products="all")) for each in settings.account)
    row = row_of(rows_of(changed(settings, account=listed), {"a0": 30_000, "a1": 20_000}), "rolling")
    assert row.calls == 4_000 - 600 - 400


def test_of_a_window_and_a_budget_the_less_counts() -> None:
    settings = changed(settings_of((10, 1)), calls=1_000)
    assert row_of(rows_of(settings, {"a0": 9_700}, window=100), "rolling").calls == pytest.approx(970, abs=1)
    assert row_of(rows_of(settings, {"a0": 9_700}, window=500), "rolling").calls == 1_000


def test_without_a_run_to_carry_from_everybody_is_asked_and_no_state() -> None:
    for row in rows_of(settings_of((10, 1)), {"a0": 970}):
        if row.strategy == "since":
            assert (row.calls, row.seconds, row.oldest_nights, row.calls_least) == (970, 100.0, 0, None)


def test_where_no_run_tells_who_connected_the_least_is_told() -> None:
    carrying = Carrying("20261122T020000Z-audit", {"a0": 9_000}, {})
    row = row_of(rows_of(settings_of((10, 0.5)), {"a0": 10_000}, carrying=carrying, window=60), "since", rule="strict")
    # 9,000 states, 50 a call; 1,000 that the run does not know; 1% of the carried
    assert (row.calls, row.calls_least, row.devices) == (None, 180 + 1_000 + 90, None)
    assert row.seconds_least == pytest.approx(180 / 24.25 + 1_090 / 4.85, abs=0.01)
    assert (row.seconds, row.fits) == (None, False)  # the least is too much already
    assert (
        row_of(
            rows_of(settings_of((10, 0.5)), {"a0": 10_000}, carrying=carrying, window=900), "since", rule="strict"
        ).fits
        is None
    )


def test_calls_since_are_those_of_a_run_of_the_same_rule() -> None:
    recheck = Recheck(8_000, 80, 80, 2, 0.025, 0.003, 0.086)
    told: dict[Any, SinceTold] = {"reconnected": SinceTold("run-a", {"a0": 0.2}, "run-b", recheck)}
    rows = rows_of(settings_of((10, 1)), {"a0": 10_000}, carrying=Carrying("run-b", {"a0": 10_000}, told))
    row = row_of(rows, "since", rule="reconnected")
    assert (row.devices, row.calls, row.calls_least) == (2_080, 200 + 2_080, None)
    assert (row.run, row.recheck_run) == ("run-a", "run-b")
    assert (row.recheck_rate, row.recheck_low, row.recheck_high) == (0.025, 0.003, 0.086)
    assert row_of(rows, "since", rule="strict").calls is None


@pytest.mark.parametrize("quota", ["unlimited", "auto"])
def test_without_a_quota_no_time_is_told_and_no_window_named(quota: str) -> None:
    carrying = Carrying("run", {"a0": 100, "a1": 100}, {})
    rows = rows_of(settings_of((10, 1), (quota, 1)), {"a0": 100, "a1": 100}, carrying=carrying)
    assert {row.seconds for row in rows} == {row.seconds_least for row in rows} == {None}
    assert not [row for row in rows if row.strategy == "rolling"]
    timed = row_of(rows_of(settings_of((10, 1), (quota, 1)), {"a0": 100, "a1": 100}, window=9), "rolling")
    assert (timed.calls, timed.oldest_nights, timed.fits) == (None, None, None)


def test_a_sample_is_as_wide_as_textbooks_have_it_corrected_for_the_finite_fleet() -> None:
    rows = rows_of(changed(settings_of((10, 1)), sample=10_000), {"a0": 40_000})
    row = row_of(rows, "sample", sample=10_000)
    assert (row.calls, row.seconds) == (10_000, round(10_000 / 9.7, 3))
    assert row.half_width == pytest.approx(1.96 * math.sqrt(0.25 / 10_000 * 0.75), rel=0.001)
    # n = N * 9604 / (N + 9604), Cochran's
    precise = row_of(rows, "sample", precision=0.01)
    assert precise.calls == pytest.approx(40_000 * 9_604 / 49_604, rel=0.001)
    assert precise.half_width is not None
    assert precise.half_width <= 0.01


def test_a_sample_of_more_than_the_fleet_is_the_fleet_and_is_not_offered_unasked() -> None:
    rows = rows_of(settings_of((10, 1)), {"a0": 500})
    assert [row.precision for row in rows if row.strategy == "sample"] == [0.01]
    row = row_of(rows_of(changed(settings_of((10, 1)), sample=10_000), {"a0": 500}), "sample", sample=10_000)
    assert (row.calls, row.half_width) == (500, 0.0)


def test_shares_of_a_product_take_more_and_those_of_a_module_at_least_as_much() -> None:
    settings, devices, sizes = settings_of((10, 1)), {"a0": 30_000}, {"a0": {10_000: 3}}

    def precise(level: str) -> StrategyPlan:
        rows = rows_of(changed(settings, precision="3%", precision_of=level), devices, sizes=sizes)
        return row_of(rows, "sample", precision=0.03)

    fleet, module, product = precise("fleet"), precise("module"), precise("product")
    assert (module.calls, module.calls_least) == (None, fleet.calls)
    assert product.calls == pytest.approx(3 * 10_000 * 1_067.1 / 11_067.1, abs=9)


def test_accounts_without_devices_and_fleets_of_one_are_planned() -> None:
    for devices in ({}, {"a0": 1}, {"a1": 2}):
        for window in (None, 5):
            rows = rows_of(settings_of((10, 1), (1, 1)), devices, window=window)
            assert rows[0].devices == sum(devices.values())
            assert all(row.calls is None or row.calls <= max(1, rows[0].devices) for row in rows)


@pytest.mark.anyio
async def test_a_run_that_carries_tells_the_next_plan_what_it_will_take(tmp_path: Path) -> None:
    world = plain(400)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        table = account_table(platform.endpoint, tmp_path, per_second=500)
        settings = settings_for(tmp_path, table)
        first = await auditor.run_audit(settings)
        least = row_of(list(auditor.plan_audit(settings).strategies), "since", rule="reconnected")
        second = await auditor.run_audit(changed(settings, since="last", since_rule="reconnected", recheck="10%"))
    assert least.calls_least == 8 + 4
    carrying = carrying_from(first.folder.parent, settings.name)
    assert carrying.answered is not None
    assert list(carrying.answered.values()) == [400]
    choice = second.manifest.choice
    assert choice is not None
    (account,) = choice.accounts
    row = row_of(list(auditor.plan_audit(settings).strategies), "since", rule="reconnected")
    connected = sum(number for why, number in account.asked.items() if why != "recheck")
    assert row.devices == connected + math.floor(0.01 * (400 - connected))
    assert (row.run, row.recheck_run) == (second.folder.name, second.folder.name)


@pytest.mark.parametrize("wrong", [{"calls": 0}, {"sample": 0}, {"precision": "1"}, {"precision": "60%"}])
def test_what_cannot_be_compared_with_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"^plan: {next(iter(wrong))}: "):
        auditor.plan_audit(settings_for(tmp_path, account_table("http://127.0.0.1:1/", tmp_path)), **wrong)


def test_a_budget_and_a_sample_are_compared_though_no_run_can_have_both(tmp_path: Path) -> None:
    plain(30).write_fleet(tmp_path / "fleet.csv")
    settings = settings_for(tmp_path, account_table("http://127.0.0.1:1/", tmp_path, per_second=10))
    rows = list(auditor.plan_audit(changed(settings, calls=20), sample=10, precision="5%").strategies)
    assert row_of(rows, "rolling").budget == 20
    assert (row_of(rows, "sample", sample=10).calls, row_of(rows, "sample", precision=0.05).calls) == (10, 30)
