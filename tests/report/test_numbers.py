"""Counts of the report, compared with queries over the run's Parquet files."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec import structs

from auditor.analysis.drift import diff_runs
from auditor.policy.loader import load_policy
from auditor.report.attention import list_attention
from auditor.report.builder import build_report
from auditor.report.filters import format_percent
from auditor.report.render import write_report
from auditor.report.tiles import list_tiles
from auditor.runs.folder import DEVICES, MODULES
from tests.database import connect
from tests.report.pages import ParsedPage, parse_page
from tests.runs.run_folders import build, carried_run, edit_manifest, every_status, failed, named, ok

STATES = ("ok", "empty", "not_found", "failed", "pending")
RULES = '[[rule]]\nname = "recalled"\ndeny = ["1.0"]\n'


def query_counts(run: Path) -> dict[str, float]:
    """Return the counts of a run by their names on the page; each is a query over its Parquet files."""
    found: dict[str, float] = {}
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
        found |= {"policy.rules": 1, "policy.violated": 1, "policy.error": 1}
        count("rule.recalled.violated", "SELECT count(DISTINCT device_name) FROM modules WHERE module_version = '1.0'")
        count("rule.recalled.compliant", "SELECT count(*) FROM devices WHERE status = 'ok'")
        found["rule.recalled.compliant"] -= found["rule.recalled.violated"]
        count("rule.recalled.not_seen", "SELECT count(*) FROM devices WHERE status IN ('failed', 'pending')")
        found |= {"rule.recalled.unparseable": 0, "rule.recalled.exempt": 0}
        answered = found["devices.fleet"] - found["devices.failed"] - found["devices.pending"]
        found["devices.answered"] = answered / found["devices.fleet"]
        count("accounts.all", "SELECT count(DISTINCT account) FROM devices")
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
    elsewhere = ("requests.", "rollouts.", "modules.")
    shown = {name: float(value) for name, value in page.figures.items() if not name.startswith(elsewhere)}
    expected = {name: value for name, value in query_counts(run).items() if value or name in shown}
    assert shown == pytest.approx(expected)
    assert shown["devices.fleet"] == sum(shown[f"devices.{state}"] for state in STATES)


def test_rows_of_the_table_equal_the_inventory(run: Path, page: ParsedPage) -> None:
    expected = {(*row[:5], format_percent(float(row[5]))) for row in query_rows(run)}
    assert {tuple(row[:6]) for row in page.rows} == expected
    assert len(page.rows) == len(expected) == int(page.figures["inventory.rows"])


VERSIONS = ["1.2", "1.10", "1.10.1", "2.0-rc1", "2.0"]
"""Versions in their order, the oldest first."""


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build five nights: a rollout that is done, one that moves, one that is rolled back, and one without progress."""
    directory = tmp_path_factory.mktemp("numbers")
    fleet = [named(n, product=f"p{n % 2}", account="eu" if n % 2 else "us") for n in range(60)]
    for night in range(5):
        answers = []
        for n, device in enumerate(fleet[:-1]):
            done = "2.0" if n < 58 else "1.10"
            moving = "2.0" if n < 10 + 10 * night else VERSIONS[n % 4]
            back = "2.0" if n % 3 and night in (2, 3) else "1.10.1"
            answers.append(ok(device, ("done", done), ("moving", moving), ("back", back)))
        folder = build(directory / "runs" / f"night{night}", fleet, [*answers, failed(fleet[-1])]).folder
        began = f"2026-11-2{night}T02:00:00.000Z"
        edit_manifest(folder, lambda manifest, began=began: replace(manifest, started_at=began))  # type: ignore[misc]
    write_report(folder, directory / "page.html", now=datetime(2026, 11, 24, 5, tzinfo=UTC))
    return directory


def count_versions(directory: Path) -> Counter[tuple[int, str, str, str]]:
    """Count devices by night, product, module and version, in plain Python over the rows of each run."""
    found: Counter[tuple[int, str, str, str]] = Counter()
    with connect() as database:
        for night in range(5):
            path = directory / "runs" / f"night{night}" / MODULES
            rows = database.execute(f"SELECT product_key, module_name, module_version FROM '{path}'").fetchall()
            found.update((night, *row) for row in rows)
    return found


@pytest.mark.slow
def test_shares_on_target_equal_counts_in_plain_python(history: Path) -> None:
    page, counts = parse_page(history / "page.html"), count_versions(history)
    newest = {key: number for key, number in counts.items() if key[0] == 4}
    on_target = sum(number for (*_, version), number in newest.items() if version == "2.0")
    assert int(page.figures["modules.on_target"]) == on_target
    assert float(page.figures["modules.share"]) == pytest.approx(on_target / sum(newest.values()))
    states = {name: int(value) for name, value in page.figures.items() if name.startswith("rollouts.")}
    assert states == {"rollouts.done": 2, "rollouts.moving": 2, "rollouts.rolled_back": 2}
    cells = {str(a["aria-label"]): a for tag, a in page.tags if tag == "a" and "cell" in str(a.get("class"))}
    assert len(cells) == 6
    for product in ("p0", "p1"):
        for module in ("done", "moving", "back"):
            devices = {v: newest.get((4, product, module, v), 0) for v in VERSIONS}
            share = format_percent(devices["2.0"] / sum(devices.values()))
            (label,) = (each for each in cells if each.startswith(f"{product}, {module}: "))
            assert label.startswith(f"{product}, {module}: {share} on 2.0, ")


def test_versions_over_the_runs_equal_counts_in_plain_python(history: Path) -> None:
    page, counts = parse_page(history / "page.html"), count_versions(history)
    assert page.island["runs"] == [f"2{night} Nov" for night in range(5)]
    found: Counter[tuple[int, str, str, str]] = Counter()
    for entry in page.island["modules"]:
        ordered = [version for version, *_ in entry["versions"]]
        assert ordered == sorted(ordered, key=VERSIONS.index, reverse=True), "versions are in their order"
        for version, age, devices in entry["versions"]:
            assert age == min(3, sorted(ordered, key=VERSIONS.index, reverse=True).index(version))
            for night, number in enumerate(devices):
                found[night, entry["product"], entry["module"], version] += number or 0
    assert +found == counts


def test_table_of_ages_equals_counts_in_plain_python(history: Path) -> None:
    report = build_report(history / "runs" / "night4", now=datetime(2026, 11, 24, 5, tzinfo=UTC))
    counts = count_versions(history)
    used = {
        (product, module): {key[3] for key in counts if key[1:3] == (product, module)}
        for _, product, module, _ in counts
    }
    for night, ages in enumerate(report.rollouts.ages):
        expected = [0] * 5
        for (at, product, module, version), number in counts.items():
            if at == night:
                newer = [v for v in used[product, module] if VERSIONS.index(v) > VERSIONS.index(version)]
                expected[min(3, len(newer))] += number
        assert ages is not None
        assert list(ages) == expected
    before, after = (ages[0] / sum(ages) for ages in report.rollouts.ages[-2:] if ages is not None)
    assert report.rollouts.change == pytest.approx(after - before)
    assert report.rollouts.done_by_run == tuple(
        sum(
            counts[night, product, module, "2.0"] >= 0.95 * sum(counts[night, product, module, v] for v in VERSIONS)
            for product, module in used
        )
        for night in range(5)
    )


def test_attention_and_tiles_equal_queries(history: Path) -> None:
    report = build_report(history / "runs" / "night4", now=datetime(2026, 11, 24, 5, tzinfo=UTC))
    counts = count_versions(history)
    behind = sum(n for (night, _, module, v), n in counts.items() if night == 4 and module == "back" and v != "2.0")
    with diff_runs(history / "runs" / "night3", history / "runs" / "night4") as drift:
        downgraded = drift.counts.downgraded
    first = list_attention(report)[0]
    assert (first.title, first.number) == ("2 rollouts were rolled back", behind)
    assert first.evidence == f"{downgraded} installed modules were downgraded since 23 Nov"
    tiles = {tile.figure: tile for tile in list_tiles(report)}
    assert tiles["drift.downgraded"].value == downgraded
    assert tiles["devices.answered"].value == pytest.approx(59 / 60)
    assert tiles["modules.share"].series == pytest.approx(
        [
            sum(n for (at, *_, v), n in counts.items() if at == night and v == "2.0")
            / sum(n for (at, *_), n in counts.items() if at == night)
            for night in range(5)
        ]
    )


def test_queried_devices_and_those_that_needed_no_request_add_up(tmp_path: Path) -> None:
    """A device that was never activated is known from the device list; the run's number of queries is without it."""
    fleet = [named(n) for n in range(9)]
    inactive = [structs.replace(ok(each), attempts=0, reason="never_activated") for each in fleet[4:6]]
    answers = [ok(each, ("ble", "1")) for each in fleet]
    carried = [(each, "2026-11-21 02:00:00") for each in answers[6:]]
    folder = carried_run(tmp_path / "run", fleet, [*answers[:4], *inactive], carried).folder
    figures = parse_page(write_report(folder, tmp_path / "page.html")).figures
    shown = {name: int(value) for name, value in figures.items() if name.startswith("ages.")}
    assert shown == {"ages.queried": 4, "ages.never_activated": 2, "ages.day": 3, "ages.carried": 3}
    assert sum(shown.values()) - shown["ages.carried"] == int(figures["devices.fleet"])
