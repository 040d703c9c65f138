"""What the recheck of an incremental run with a budget says, against the truth of many fleets."""

from collections.abc import Iterator

import duckdb
import pytest

from auditor.models import RunWarning
from auditor.query.warnings import recheck_warnings
from auditor.runs.estimates import count_not_reached, estimate_outdated, read_recheck
from auditor.runs.selection_info import AccountSelection, Recheck, SelectionInfo
from auditor.selection.ranking import RecheckOrder, SelectionBudget, rank_by_priority

SEEDS = 100
DEVICES = {"eu": 1_200, "us": 800}
BUDGETS = {"eu": 190, "us": 50}
RECHECK = 0.1


def random(purpose: str, seed: int) -> str:
    """Return the SQL of a random number of a device, 0 to 1."""
    return f"md5_number_lower('{seed}/{purpose}/' || account || device_name) / 18446744073709551616.0"


def warnings_of(recheck: Recheck) -> list[RunWarning]:
    return list(recheck_warnings("run", SelectionInfo("incremental", recheck=recheck)))


@pytest.fixture(scope="module")
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as database:
        yield database


def run_with_a_budget(database: duckdb.DuckDBPyConnection, seed: int, *, timed: bool) -> SelectionInfo:
    """Select and query the devices of a fleet within a budget, and create the views of its run.

    A fifth of the devices are connected, and nearly all of these have changed. Others have changed without a sign of
    it, the more the older their results are, and more in one product. ``timed``: time ends the run, and not a limit of
    the plan.
    """
    database.execute("DROP TABLE IF EXISTS fleet; DROP TABLE IF EXISTS selected_devices; DROP TABLE IF EXISTS lines")
    database.execute(
        "CREATE TABLE fleet (account VARCHAR, product_key VARCHAR, device_name VARCHAR, iot_id VARCHAR, "
        "audited_at TIMESTAMP, reason VARCHAR, changed BOOLEAN)"
    )
    accounts: list[AccountSelection] = []
    for account, devices in DEVICES.items():
        rate = 0.12 if account == "eu" else 0.02
        database.execute(f"""
          INSERT INTO fleet
          SELECT account, product_key, device_name, NULL, TIMESTAMP '2026-11-01' - to_hours(age),
            CASE WHEN is_connected THEN 'connected' WHEN {random("recheck", seed)} < {RECHECK} THEN 'recheck' END,
            {random("change", seed)} < CASE
              WHEN is_connected THEN 0.9 ELSE {rate} * (0.3 + age / 100) * if(product_key = 'p1', 2, 1)
            END
          FROM (
            SELECT *, {random("connected", seed)} < 0.2 AS is_connected, ({random("age", seed)} * 100)::INT AS age
            FROM (
              SELECT '{account}' AS account, 'p' || (i % 3)::VARCHAR AS product_key, 'd' || i::VARCHAR AS device_name
              FROM range({devices}) t(i)
            )
          )""")
        database.execute(f"""
          CREATE OR REPLACE TABLE candidates AS SELECT rowid AS position, * FROM fleet WHERE account = '{account}';
          CREATE OR REPLACE TABLE with_reason AS
          SELECT position, position AS previous_row, false AS renamed, false AS violating, 0 AS change_count, audited_at,
            NULL::TIMESTAMP AS failed_at, reason AS selection_reason
          FROM candidates;
          DROP TABLE IF EXISTS ranked""")
        limit = None if timed else BUDGETS[account]
        order = RecheckOrder(random("recheck", seed), RECHECK)
        rank_by_priority(database, SelectionBudget(BUDGETS[account], 0.9, limit), order)
        selected_devices = f"""
          SELECT account, product_key, device_name, iot_id, selection_reason, 'ok' AS status, position, rank,
            rank <= {BUDGETS[account]} AS is_reached, [{{module_name: 'm', module_version: 'old'}}] AS modules
          FROM ranked JOIN candidates USING (position)"""
        new = "INSERT INTO selected_devices" if accounts else "CREATE TABLE selected_devices AS"
        database.execute(f"{new} {selected_devices}")
        unchanged = database.execute(
            f"SELECT count(*) FROM fleet WHERE account = '{account}' AND reason IS DISTINCT FROM 'connected'"
        ).fetchall()
        accounts.append(AccountSelection(account, unchanged=unchanged[0][0]))
    database.execute("""
      CREATE TABLE lines AS
      SELECT f.account, f.product_key, f.device_name, f.iot_id, 'ok' AS status, f.changed, f.reason,
        CASE WHEN p.is_reached THEN 'queried' ELSE 'carried' END AS source,
        [{module_name: 'm', module_version: CASE WHEN p.is_reached AND changed THEN 'new' ELSE 'old' END}] AS modules
      FROM fleet f LEFT JOIN selected_devices p ON p.account = f.account AND p.device_name = f.device_name""")
    return SelectionInfo("incremental", accounts=tuple(accounts))


def true_rate(database: duckdb.DuckDBPyConnection, condition: str) -> float:
    ((rate,),) = database.execute(f"SELECT avg(changed::INT) FROM lines WHERE {condition}").fetchall()
    return float(rate)


@pytest.mark.slow
def test_intervals_of_a_run_with_a_budget_cover_the_truth(database: duckdb.DuckDBPyConnection) -> None:
    covered = covered_all = 0
    bias = []
    for seed in range(SEEDS):
        timed = bool(seed % 2)
        selection = run_with_a_budget(database, seed, timed=timed)
        recheck = read_recheck(database, selection)
        assert recheck is not None
        assert recheck.rate is not None
        assert recheck.low is not None
        assert recheck.high is not None
        assert recheck.answered >= 20
        true = true_rate(database, "reason IS DISTINCT FROM 'connected'")
        covered += recheck.low <= true <= recheck.high
        bias.append(recheck.rate - true)
        outdated = estimate_outdated(database, selection, recheck)
        assert outdated is not None
        assert outdated.low is not None
        assert outdated.high is not None
        carried, missed = (
            database.execute(f"SELECT count(*) FROM lines WHERE source = 'carried' AND {condition}").fetchall()[0][0]
            for condition in ("true", "reason = 'connected'")
        )
        assert (outdated.carried, outdated.may_have_changed) == (carried, missed)
        assert missed > 0.01 * carried
        covered_all += outdated.low <= true_rate(database, "source = 'carried'") <= outdated.high
        if timed:
            assert count_not_reached(database) == missed
    assert covered >= 93
    assert covered_all >= 93
    assert abs(sum(bias) / SEEDS) < 0.015


def test_only_a_part_of_a_budget_is_for_rechecks_until_nothing_else_is_left(
    database: duckdb.DuckDBPyConnection,
) -> None:
    run_with_a_budget(database, 1, timed=True)
    reasons = database.execute(
        "SELECT selection_reason FROM selected_devices WHERE account = 'eu' ORDER BY rank"
    ).fetchall()
    others = [place for place, (reason,) in enumerate(reasons) if reason != "recheck"]
    for end in (10, 50, others[-1]):
        rechecks = sum(reason == "recheck" for (reason,) in reasons[:end])
        assert rechecks == pytest.approx(RECHECK * end, abs=1)
    assert all(reason == "recheck" for (reason,) in reasons[others[-1] + 1 :])
    assert len(reasons) > others[-1] + 20


def test_estimate_over_the_limit_warns_although_a_small_check_proves_nothing(
    database: duckdb.DuckDBPyConnection,
) -> None:
    for checked, changed, warns in ((20, 1, True), (200, 2, False), (200, 3, True), (20, 0, False)):
        database.execute(f"""
          CREATE OR REPLACE TABLE selected_devices AS
          SELECT 'eu' AS account, 'p' AS product_key, 'd' || i::VARCHAR AS device_name, NULL::VARCHAR AS iot_id,
            'recheck' AS selection_reason, 'ok' AS status, [{{module_name: 'm', module_version: '1'}}] AS modules
          FROM range({checked}) t(i);
          CREATE OR REPLACE TABLE lines AS
          SELECT * REPLACE ([{{module_name: 'M', module_version: if(rowid < {changed}, '2', '1')}}] AS modules),
            'queried' AS source
          FROM selected_devices""")
        selection = SelectionInfo("incremental", accounts=(AccountSelection("eu", unchanged=2_000),))
        recheck = read_recheck(database, selection)
        assert recheck is not None
        assert (recheck.carried, recheck.checked, recheck.changed) == (2_000, checked, changed)
        assert recheck.low is not None
        assert recheck.low < 0.01
        assert ([warning.detail for warning in warnings_of(recheck)] != []) == warns
    assert "1 of 20" in warnings_of(Recheck(2_000, 20, 20, 1, 0.05, 0.001, 0.25))[0].detail
