"""Audits with a budget that is too small for the fleet: whom they ask first, what they carry, and how they end."""

import time
from collections import Counter
from pathlib import Path

import duckdb
import pytest

import auditor
from auditor.selection.ranking import Budget
from auditor.selection.selector import Choosing
from auditor.simulator.lifecycle import Life
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.integration.audits import ended_after
from tests.integration.test_audit import account_table, settings_for
from tests.integration.test_incremental import differing, night, rows

pytestmark = pytest.mark.anyio

STILL = Life(connecting=0.0, always_online=0.0)


def plain(day: int = 0, devices: int = 300, life: Life = STILL) -> World:
    """A world in which every device answers with one page."""
    return World(devices, missing=0, silent=0, inactive=0, large=0, day=day, life=life, today=time.time())


def ages(folder: Path, runs: list[str]) -> Counter[int]:
    """Devices by the age of their answers, in nights."""
    found = Counter({0: rows(folder, "SELECT count(*) FROM devices WHERE source = 'asked'")[0][0]})
    if (folder / "carried.parquet").exists():
        for run, devices in rows(folder, "SELECT run, count(*) FROM carried GROUP BY run"):
            found[len(runs) - 1 - runs.index(run)] += devices
    return found


async def test_a_budget_goes_round_the_fleet_and_every_night_s_run_is_a_whole_snapshot(tmp_path: Path) -> None:
    plain().write_fleet(tmp_path / "fleet.csv")
    runs: list[str] = []
    for number in range(8):
        result = await night(tmp_path, plain(number), calls=100)
        runs.append(result.folder.name)
        assert result.manifest.requests.sent == 100
        assert auditor.verify(result.folder) == []
        pending = max(0, 300 - 100 * (number + 1))
        assert result.manifest.devices.pending == pending
        assert (result.exit_code, result.manifest.state) == ((1, "partial") if pending else (0, "complete"))
        assert not pending or result.manifest.error is None
        found = ages(result.folder, runs)
        assert max(found) <= 3
        if number >= 2:
            assert found.total() == 300
            assert not differing(result.folder, plain(number))
    assert found == {0: 100, 1: 100, 2: 100}


async def test_what_is_not_asked_in_time_is_carried_and_the_run_is_whole(tmp_path: Path) -> None:
    world = plain()
    world.write_fleet(tmp_path / "fleet.csv")
    first = await night(tmp_path, world)
    async with Simulator(plain(1), latency=(0.02, 0.03)) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), at_once=2)
        result = await auditor.run_audit(settings, until=time.time() + 1.5)
    assert (result.exit_code, result.manifest.state, result.manifest.error) == (0, "complete", None)
    assert 0 < result.manifest.carried < 300
    assert 0 <= result.manifest.requests.sent - (300 - result.manifest.carried) <= 2  # in flight when time was up
    assert result.manifest.choice is not None
    assert (result.manifest.choice.strategy, result.manifest.choice.since) == ("rolling", first.folder.name)
    assert result.manifest.choice.spent
    assert result.manifest.choice.unreached == result.manifest.carried
    assert auditor.verify(result.folder) == []
    assert not differing(result.folder, world)


async def test_without_an_earlier_run_or_where_it_is_not_wished_a_deadline_leaves_devices_pending(
    tmp_path: Path,
) -> None:
    plain().write_fleet(tmp_path / "fleet.csv")
    async with Simulator(plain(), latency=(0.02, 0.03)) as platform:
        table = account_table(platform.endpoint, tmp_path)
        for since in (None, "none"):
            settings = settings_for(tmp_path, table, at_once=2, **({} if since is None else {"since": since}))
            result = await auditor.run_audit(settings, until=time.time() + 1.0)
            assert (result.exit_code, result.manifest.state, result.manifest.carried) == (1, "partial", 0)
            assert result.manifest.devices.pending > 0
            await auditor.resume_audit(result.folder)


async def test_an_interrupted_round_is_gone_on_with_in_its_order(tmp_path: Path) -> None:
    plain().write_fleet(tmp_path / "fleet.csv")
    await night(tmp_path, plain(), calls=200)
    async with Simulator(plain(1), latency=(0.01, 0.02), record_answers=True) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), at_once=2, calls=150)
        part = await ended_after(20, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        assert (part.exit_code, part.manifest.state) == (130, "partial")
        assert part.manifest.carried == 150
        result = await auditor.resume_audit(part.folder)
        assert platform.answers is not None
        assert max(platform.answers.values()) == 1
        assert platform.answers.total() == 150
    assert (result.exit_code, result.manifest.state) == (0, "complete")
    new = rows(result.folder, "SELECT count(*) FROM plan WHERE why = 'new'")
    assert new == [(100,)]
    assert auditor.verify(result.folder) == []


async def test_who_violates_the_policy_and_who_changed_is_asked_before_the_oldest(tmp_path: Path) -> None:
    life = Life(connecting=0.0, always_online=1.0)
    plain(life=life).write_fleet(tmp_path / "fleet.csv")
    rules = tmp_path / "rules.toml"
    first = await night(tmp_path, plain(0, life=life))
    versions = rows(
        first.folder, "SELECT module_version, count(*) FROM modules WHERE module_name = 'default' GROUP BY 1"
    )
    bad = min(versions, key=lambda each: (each[1] < 5, each[1]))[0]
    rules.write_text(f"[[rule]]\nname = 'not that one'\nmodule = 'default'\ndeny = ['{bad}']\n")
    second = await night(tmp_path, plain(1, life=life), calls=300)
    third = await night(tmp_path, plain(2, life=life), calls=60, guaranteed="0%", policy={"file": str(rules)})
    was = {name for (name,) in rows(second.folder, f"SELECT device_name FROM modules WHERE module_version = '{bad}'")}
    told = rows(third.folder, "SELECT device_name, why, changes FROM plan ORDER BY rank")
    assert {name for name, why, _ in told if why == "violating"} == was & {name for name, _, _ in told}
    order = [why for _, why, _ in told]
    assert order == sorted(order, key=["violating", "changed", "oldest"].index)
    assert all(changes > 0 for _, why, changes in told if why == "changed")
    assert all(changes == 0 for _, why, changes in told if why == "oldest")


def ranked(tmp_path: Path, budget: Budget, *, products: dict[str, int], known: str) -> list[tuple[str, int, str]]:
    """Product, place and reason of those who are asked, of a fleet and of what is known of it, in order."""
    fleet, path = tmp_path / "fleet.parquet", tmp_path / "known.parquet"
    with duckdb.connect() as database:
        names = " UNION ALL ".join(
            f"SELECT '{key}' AS product_key, i FROM range({count}) t(i)" for key, count in products.items()
        )
        database.execute(
            "CREATE TABLE fleet AS SELECT row_number() OVER (ORDER BY product_key, i) - 1 AS ordinal, 'eu' AS account, "
            f"product_key, product_key || '-' || i AS device_name, NULL::VARCHAR AS iot_id, i FROM ({names})"
        )
        database.execute(f"COPY (SELECT * EXCLUDE (i) FROM fleet ORDER BY ordinal) TO '{fleet}' (FORMAT parquet)")
        database.execute(
            f"COPY (SELECT account, product_key, device_name, NULL::VARCHAR AS iot_id, 'ok' AS status, "
            "[]::STRUCT(module_name VARCHAR, module_version VARCHAR)[] AS modules, 0 AS total, 1 AS pages, "
            "NULL::VARCHAR AS request_id, TIMESTAMP '2026-11-01' + to_hours(i::INTEGER) AS audited_at, "
            "NULL::VARCHAR AS reason, 'run' AS run, 0 AS changes, NULL::TIMESTAMP AS failed_at, violating "
            f"FROM (SELECT *, {known} AS violating FROM fleet)) TO '{path}' (FORMAT parquet)"
        )
    with Choosing(tmp_path / "work", "eu", fleet, ask_all=True, seed=1) as choosing:
        choosing.match(path)
        choosing.take_all()
        choosing.write(tmp_path / "ask.parquet", tmp_path / "plan.parquet", tmp_path / "carried.parquet", budget)
    found = rows(tmp_path, "SELECT product_key, device_name, why FROM plan ORDER BY rank")
    with duckdb.connect() as database:
        asked = database.execute(f"SELECT device_name FROM '{tmp_path / 'ask.parquet'}'").fetchall()
    assert [name for _, name, _ in found] == [name for (name,) in asked]
    return [(key, int(name.rpartition("-")[2]), why) for key, name, why in found]


def test_each_product_has_its_guaranteed_part_whatever_is_worth_more_elsewhere(tmp_path: Path) -> None:
    products = {"large": 900, "small": 100}
    order = ranked(tmp_path, Budget(100, 0.5, 100), products=products, known="product_key = 'large'")
    assert len(order) == 100
    small = [place for key, place, _ in order if key == "small"]
    assert small == [0, 1, 2, 3, 4]  # half of its tenth, and the oldest of them
    assert [place for key, place, _ in order if key == "large"][:45] == list(range(45))
    assert {why for key, _, why in order if key == "large"} == {"violating"}


def test_a_budget_that_ends_early_was_fair_to_every_product_by_its_size(tmp_path: Path) -> None:
    order = ranked(tmp_path, Budget(200, 1.0, None), products={"a": 600, "b": 200, "c": 200}, known="false")
    assert len(order) == 1000
    for length in (10, 50, 100, 200):
        seen = Counter(key for key, _, _ in order[:length])
        assert abs(seen["a"] - 0.6 * length) <= 2
        assert abs(seen["b"] - 0.2 * length) <= 2


def test_a_product_is_not_starved_where_turns_are_rounded_up(tmp_path: Path) -> None:
    products = {f"p{number:02}": 10 for number in range(20)}
    order = ranked(tmp_path, Budget(5, 0.9, 5), products=products, known="product_key < 'p05' AND i > 0")
    assert all(place == 0 for _, place, _ in order)  # the oldest of some products, and no younger one that violates
