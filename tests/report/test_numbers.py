"""Every count that the report shows, against queries over the run's Parquet files."""

from pathlib import Path

import duckdb
import pytest

from auditor.policy.loader import load_rules
from auditor.report.render import write_report
from auditor.runs.folder import DEVICES, MODULES
from tests.report.pages import Read, read
from tests.runs.run_folders import every_status

STATES = ("ok", "empty", "not_found", "failed", "pending")
RULES = '[[rule]]\nname = "recalled"\ndeny = ["1.0"]\n'


def counts_of(run: Path) -> dict[str, int]:
    """The counts of a run by the names that the page gives them; each is a query over its two Parquet files."""
    found: dict[str, int] = {}
    with duckdb.connect() as database:

        def count(name: str, query: str) -> None:
            (found[name],) = database.execute(query).fetchone() or (-1,)

        database.execute(f"CREATE VIEW devices AS FROM read_parquet('{run / DEVICES}')")
        database.execute(f"CREATE VIEW modules AS FROM read_parquet('{run / MODULES}')")
        count("devices.fleet", "SELECT count(*) FROM devices")
        for state in STATES:
            count(f"devices.{state}", f"SELECT count(*) FROM devices WHERE status = '{state}'")
        count("products.all", "SELECT count(DISTINCT (account, product_key)) FROM devices")
        count(
            "products.lacking",
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
        found |= {"rule.recalled.unparseable": 0, "rule.recalled.excepted": 0}
        # The newest version of each module, as the versions of this run are: of p1's ble that is 1.1, else there is one.
        found["modules.done"] = found["modules.all"] - 1
    return found


def rows_of(run: Path) -> set[tuple[str, ...]]:
    """The inventory: account, product, module, version, devices, and the part of the module's devices."""
    with duckdb.connect() as database:
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
def page(run: Path, tmp_path: Path) -> Read:
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    return read(write_report(run, tmp_path / "page.html", rules=load_rules(rules)))


def test_every_count_on_the_page_is_a_query_over_the_files(run: Path, page: Read) -> None:
    from_manifest = {"requests.sent", "requests.retried", "requests.throttled"}
    shown = {name: int(value) for name, value in page.figures.items() if name not in from_manifest}
    unknown = {"modules.unknown"} & set(shown)
    assert {name: shown[name] for name in shown if name not in unknown} == counts_of(run)
    assert shown["devices.fleet"] == sum(shown[f"devices.{state}"] for state in STATES)
    assert all(shown[f"devices.{state}"] for state in STATES)


def test_every_row_of_the_table_is_one_of_the_inventory(run: Path, page: Read) -> None:
    def told(share: str) -> str:
        return f"{int(float(share) * 1_000 + 1e-6) / 10:g}%"

    expected = {(*row[:5], told(row[5])) for row in rows_of(run)}
    assert {tuple(row[:6]) for row in page.rows} == expected
    assert len(page.rows) == len(expected) == int(page.figures["inventory.rows"])
