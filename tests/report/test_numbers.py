"""Counts of the report, compared with queries over the run's Parquet files."""

from pathlib import Path

import pytest

from auditor.policy.loader import load_policy
from auditor.report.render import write_report
from auditor.runs.folder import DEVICES, MODULES
from tests.database import connect
from tests.report.pages import ParsedPage, parse_page
from tests.runs.run_folders import every_status

STATES = ("ok", "empty", "not_found", "failed", "pending")
RULES = '[[rule]]\nname = "recalled"\ndeny = ["1.0"]\n'


def query_counts(run: Path) -> dict[str, int]:
    """Return the counts of a run by their names on the page; each is a query over its Parquet files."""
    found: dict[str, int] = {}
    with connect() as database:

        def count(name: str, query: str) -> None:
            (found[name],) = database.execute(query).fetchone() or (-1,)

        database.execute(f"CREATE TEMP VIEW devices AS FROM read_parquet('{run / DEVICES}')")
        database.execute(f"CREATE TEMP VIEW modules AS FROM read_parquet('{run / MODULES}')")
        count("devices.fleet", "SELECT count(*) FROM devices")
        for state in STATES:
            count(f"devices.{state}", f"SELECT count(*) FROM devices WHERE status = '{state}'")
        count("products.all", "SELECT count(DISTINCT (account, product_key)) FROM devices")
        count(
            "products.incomplete",
            "SELECT count(DISTINCT (account, product_key)) FROM devices WHERE status IN ('failed', 'pending')",
        )
        count("modules.all", "SELECT count(DISTINCT (account, product_key, lower(module_name))) FROM modules")
        count(
            "inventory.rows",
            "SELECT count(DISTINCT (account, product_key, lower(module_name), module_version)) FROM modules",
        )
        for code, devices in database.execute(
            "SELECT code, count(*) FROM devices WHERE status = 'failed' GROUP BY code"
        ).fetchall():
            found[f"failures.{code}"] = devices
        for account, devices, answered in database.execute(
            "SELECT account, count(*), count(*) FILTER (status IN ('ok', 'empty', 'not_found')) FROM devices GROUP BY ALL"
        ).fetchall():
            found |= {f"account.{account}.devices": devices, f"account.{account}.answered": answered}
        found |= {"policy.rules": 1, "policy.violated": 1}
        count("rule.recalled.violated", "SELECT count(DISTINCT device_name) FROM modules WHERE module_version = '1.0'")
        count("rule.recalled.compliant", "SELECT count(*) FROM devices WHERE status = 'ok'")
        found["rule.recalled.compliant"] -= found["rule.recalled.violated"]
        count("rule.recalled.not_seen", "SELECT count(*) FROM devices WHERE status IN ('failed', 'pending')")
        found |= {"rule.recalled.unparseable": 0, "rule.recalled.exempt": 0}
        # The newest version of each module, as the versions of this run are: of p1's ble that is 1.1, else there is one.
        found["modules.done"] = found["modules.all"] - 1
    return found


def query_rows(run: Path) -> set[tuple[str, ...]]:
    """Return the inventory: account, product, module, version, devices, and share of the module's devices."""
    with connect() as database:
        return {
            tuple(map(str, row))
            for row in database.execute(
                "SELECT account, product_key, lower(module_name) AS module, module_version, count(*) AS devices, "
                "devices / sum(devices) OVER (PARTITION BY account, product_key, module) FROM "
                f"read_parquet('{run / MODULES}') GROUP BY account, product_key, module, module_version"
            ).fetchall()
        }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return every_status(tmp_path / "runs" / "now").folder


@pytest.fixture
def page(run: Path, tmp_path: Path) -> ParsedPage:
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    return parse_page(write_report(run, tmp_path / "page.html", policy=load_policy(rules)))


def test_counts_on_the_page_equal_queries_over_the_files(run: Path, page: ParsedPage) -> None:
    from_manifest = {"requests.sent", "requests.retried", "requests.throttled"}
    shown = {name: int(value) for name, value in page.figures.items() if name not in from_manifest}
    unordered = {"modules.unordered"} & set(shown)
    assert {name: shown[name] for name in shown if name not in unordered} == query_counts(run)
    assert shown["devices.fleet"] == sum(shown[f"devices.{state}"] for state in STATES)
    assert all(shown[f"devices.{state}"] for state in STATES)


def test_rows_of_the_table_equal_the_inventory(run: Path, page: ParsedPage) -> None:
    def percent(share: str) -> str:
        return f"{int(float(share) * 1_000 + 1e-6) / 10:g}%"

    expected = {(*row[:5], percent(row[5])) for row in query_rows(run)}
    assert {tuple(row[:6]) for row in page.rows} == expected
    assert len(page.rows) == len(expected) == int(page.figures["inventory.rows"])
