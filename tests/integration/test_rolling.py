"""Audits with a budget that is too small for the fleet: their order, what they carry, and how they end."""

import time
from collections import Counter
from pathlib import Path

import pytest

import auditor
from auditor.selection.ranking import SelectionBudget
from auditor.selection.selection_files import SelectionFiles
from auditor.selection.selector import DeviceSelector
from auditor.simulator.lifecycle import Lifecycle
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.database import connect
from tests.integration.audits import stop_after
from tests.integration.test_audit import account_table, settings_for
from tests.integration.test_incremental import audit, differing, rows

pytestmark = pytest.mark.anyio

STILL = Lifecycle(connecting=0.0, always_online=0.0)


def plain(day: int = 0, devices: int = 300, life: Lifecycle = STILL) -> World:
    """Return a world in which every device has one page of modules."""
    return World(devices, missing=0, silent=0, inactive=0, large=0, day=day, lifecycle=life, today=time.time())


def ages(folder: Path, runs: list[str]) -> Counter[int]:
    """Count devices by the age of their results, in runs."""
    found = Counter({0: rows(folder, "SELECT count(*) FROM devices WHERE source = 'queried'")[0][0]})
    if (folder / "carried.parquet").exists():
        for run, devices in rows(folder, "SELECT run, count(*) FROM carried GROUP BY run"):
            found[len(runs) - 1 - runs.index(run)] += devices
    return found


@pytest.mark.slow
async def test_budget_covers_the_fleet_over_several_runs_and_each_run_is_complete(tmp_path: Path) -> None:
    plain().write_fleet(tmp_path / "fleet.csv")
    runs: list[str] = []
    for number in range(6):
        result = await audit(tmp_path, plain(number), max_calls=100)
        runs.append(result.folder.name)
        assert result.manifest.requests.sent == 100
        assert auditor.verify_run(result.folder) == []
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


@pytest.mark.slow
async def test_devices_not_queried_before_the_deadline_are_carried(tmp_path: Path) -> None:
    world = plain()
    world.write_fleet(tmp_path / "fleet.csv")
    first = await audit(tmp_path, world)
    async with Simulator(plain(1), latency=(0.04, 0.05)) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), concurrency=2)
        result = await auditor.run_audit(settings, until=time.time() + 3.0)
    assert (result.exit_code, result.manifest.state, result.manifest.error) == (0, "complete", None)
    assert 0 < result.manifest.carried < 300
    assert 0 <= result.manifest.requests.sent - (300 - result.manifest.carried) <= 2  # in flight when time was up
    assert result.manifest.selection is not None
    assert (result.manifest.selection.strategy, result.manifest.selection.baseline_run) == (
        "rolling",
        first.folder.name,
    )
    assert result.manifest.selection.budget_exhausted
    assert result.manifest.selection.not_reached == result.manifest.carried
    assert auditor.verify_run(result.folder) == []
    assert not differing(result.folder, world)


@pytest.mark.slow
async def test_deadline_leaves_devices_pending_without_a_baseline(
    tmp_path: Path,
) -> None:
    plain().write_fleet(tmp_path / "fleet.csv")
    async with Simulator(plain(), latency=(0.02, 0.03)) as platform:
        table = account_table(platform.endpoint, tmp_path)
        for since in (None, "none"):
            settings = settings_for(tmp_path, table, concurrency=2, **({} if since is None else {"since": since}))
            result = await auditor.run_audit(settings, until=time.time() + 1.0)
            assert (result.exit_code, result.manifest.state, result.manifest.carried) == (1, "partial", 0)
            assert result.manifest.devices.pending > 0
            await auditor.resume_audit(result.folder)


@pytest.mark.slow
async def test_interrupted_rolling_run_continues_with_its_plan(tmp_path: Path) -> None:
    plain().write_fleet(tmp_path / "fleet.csv")
    await audit(tmp_path, plain(), max_calls=200)
    async with Simulator(plain(1), latency=(0.01, 0.02), record_responses=True) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), concurrency=2, max_calls=150)
        part = await stop_after(20, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        assert (part.exit_code, part.manifest.state) == (130, "partial")
        assert part.manifest.carried == 150
        result = await auditor.resume_audit(part.folder)
        assert platform.responses is not None
        assert max(platform.responses.values()) == 1
        assert platform.responses.total() == 150
    assert (result.exit_code, result.manifest.state) == (0, "complete")
    new = rows(result.folder, "SELECT count(*) FROM plan WHERE selection_reason = 'new'")
    assert new == [(100,)]
    assert auditor.verify_run(result.folder) == []


@pytest.mark.slow
async def test_violating_and_changed_devices_are_queried_before_the_oldest(tmp_path: Path) -> None:
    life = Lifecycle(connecting=0.0, always_online=1.0)
    plain(life=life).write_fleet(tmp_path / "fleet.csv")
    rules = tmp_path / "rules.toml"
    first = await audit(tmp_path, plain(0, life=life))
    versions = rows(
        first.folder, "SELECT module_version, count(*) FROM modules WHERE module_name = 'default' GROUP BY 1"
    )
    bad = min(versions, key=lambda each: (each[1] < 5, each[1]))[0]
    rules.write_text(f"[[rule]]\nname = 'not that one'\nmodule = 'default'\ndeny = ['{bad}']\n")
    second = await audit(tmp_path, plain(1, life=life), max_calls=300)
    third = await audit(tmp_path, plain(2, life=life), max_calls=60, fair_share="0%", policy={"file": str(rules)})
    violating = {
        name for (name,) in rows(second.folder, f"SELECT device_name FROM modules WHERE module_version = '{bad}'")
    }
    plan = rows(third.folder, "SELECT device_name, selection_reason, change_count FROM plan ORDER BY rank")
    assert {name for name, reason, _ in plan if reason == "violating"} == violating & {name for name, _, _ in plan}
    order = [reason for _, reason, _ in plan]
    assert order == sorted(order, key=["violating", "changed", "oldest"].index)
    assert all(count > 0 for _, reason, count in plan if reason == "changed")
    assert all(count == 0 for _, reason, count in plan if reason == "oldest")


def select_rolling(
    tmp_path: Path, budget: SelectionBudget, *, products: dict[str, int], violating: str
) -> list[tuple[str, int, str]]:
    """Return product, number and reason of selected devices, in order; ``violating`` is SQL."""
    fleet, path = tmp_path / "fleet.parquet", tmp_path / "baseline.parquet"
    with connect() as database:
        names = " UNION ALL ".join(
            f"SELECT '{key}' AS product_key, i FROM range({count}) t(i)" for key, count in products.items()
        )
        database.execute(
            "CREATE TEMP TABLE fleet AS SELECT row_number() OVER (ORDER BY product_key, i) - 1 AS ordinal, 'eu' AS account, "
            "product_key, product_key || '-' || i AS device_name, NULL::VARCHAR AS iot_id, "
            f"NULL::VARCHAR AS device_status, i FROM ({names})"
        )
        database.execute(f"COPY (SELECT * EXCLUDE (i) FROM fleet ORDER BY ordinal) TO '{fleet}' (FORMAT parquet)")
        database.execute(
            f"COPY (SELECT account, product_key, device_name, NULL::VARCHAR AS iot_id, 'ok' AS status, "
            "[]::STRUCT(module_name VARCHAR, module_version VARCHAR)[] AS modules, 0 AS total, 1 AS pages, "
            "NULL::VARCHAR AS request_id, TIMESTAMP '2026-11-01' + to_hours(i::INTEGER) AS audited_at, "
            "NULL::VARCHAR AS reason, 'run' AS run, 0 AS change_count, NULL::TIMESTAMP AS failed_at, violating "
            f"FROM (SELECT *, {violating} AS violating FROM fleet)) TO '{path}' (FORMAT parquet)"
        )
    files = SelectionFiles(
        tmp_path / "queue.parquet",
        tmp_path / "plan.parquet",
        tmp_path / "carried.parquet",
        tmp_path / "connections.parquet",
    )
    with DeviceSelector(tmp_path / "work", "eu", fleet, include_never_activated=True, seed=1) as selector:
        selector.select_rolling(path, lambda: budget, files)
    found = rows(tmp_path, "SELECT product_key, device_name, selection_reason FROM plan ORDER BY rank")
    with connect() as database:
        queue = database.execute(f"SELECT device_name FROM '{files.queue}'").fetchall()
    assert [name for _, name, _ in found] == [name for (name,) in queue]
    return [(key, int(name.rpartition("-")[2]), reason) for key, name, reason in found]


def test_each_product_has_its_fair_share(tmp_path: Path) -> None:
    products = {"large": 900, "small": 100}
    order = select_rolling(
        tmp_path, SelectionBudget(100, 0.5, 100), products=products, violating="product_key = 'large'"
    )
    assert len(order) == 100
    small = [number for key, number, _ in order if key == "small"]
    assert small == [0, 1, 2, 3, 4]  # half of its tenth, the oldest of them
    assert [number for key, number, _ in order if key == "large"][:45] == list(range(45))
    assert {reason for key, _, reason in order if key == "large"} == {"violating"}


def test_every_prefix_of_the_queue_is_fair_to_products_by_size(tmp_path: Path) -> None:
    order = select_rolling(
        tmp_path, SelectionBudget(200, 1.0, None), products={"a": 600, "b": 200, "c": 200}, violating="false"
    )
    assert len(order) == 1000
    for length in (10, 50, 100, 200):
        seen = Counter(key for key, _, _ in order[:length])
        assert abs(seen["a"] - 0.6 * length) <= 2
        assert abs(seen["b"] - 0.2 * length) <= 2


def test_rounded_up_turns_do_not_starve_a_product(tmp_path: Path) -> None:
    products = {f"p{number:02}": 10 for number in range(20)}
    order = select_rolling(
        tmp_path, SelectionBudget(5, 0.9, 5), products=products, violating="product_key < 'p05' AND i > 0"
    )
    assert all(number == 0 for _, number, _ in order)  # the oldest of some products, and no younger one that violates
