"""One run, every command that reads it: each count is the same query over the same files, and warnings are printed with it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from prometheus_client.parser import text_string_to_metric_families

from auditor.hooks.payload import build_payload
from auditor.runs.folder import MODULES
from tests.cli.conftest import Auditor
from tests.report.pages import parse_html
from tests.report.test_numbers import STATES, query_counts, query_rows
from tests.runs.run_folders import every_status

RULES = '[[rule]]\nname = "recalled"\nseverity = "warning"\ndeny = ["1.0"]\n'

Shown = dict[str, int]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "rules.toml").write_text(RULES)
    return every_status(tmp_path / "runs" / "now").folder


def words_of(words: tuple[str, ...], run: Path) -> list[object]:
    """A command's words with the run in its place, the directory that it lies in, or a copy of it."""
    places = {"RUN": run, "DIR": run.parent, "COPY": run.parent.parent / "copy"}
    if "COPY" in words:
        shutil.copytree(run, places["COPY"])
    return [places.get(word, word) for word in words]


def of_document(document: dict[str, Any]) -> Shown:
    """The devices by state of a JSON object that says how whole its run is."""
    by_state: Shown = document["devices"]
    return {f"devices.{state}": by_state[state] for state in STATES}


def of_terminal(text: str) -> Shown:
    last = next(line for line in reversed(text.splitlines()) if " devices: " in line)
    found = re.search(r"(\d+) devices: (\d+) ok, (\d+) empty, (\d+) not found, (\d+) failed, (\d+) pending", last)
    assert found is not None, last
    fleet, *by_state = map(int, found.groups())
    return {"devices.fleet": fleet} | {f"devices.{state}": n for state, n in zip(STATES, by_state, strict=True)}


def of_rows(rows: list[dict[str, Any]]) -> Shown:
    """Devices by state, of a list that has a row for each device and module."""
    devices = {(row["account"], row["product_key"], row["device_name"]): row["status"] for row in rows}
    statuses = list(devices.values())
    return {"devices.fleet": len(devices)} | {f"devices.{state}": statuses.count(state) for state in STATES}


def of_metrics(text: str) -> Shown:
    shown: Shown = {"inventory.rows": 0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            value = int(sample.value)
            match family.name:
                case "auditor_fleet_devices":
                    shown["devices.fleet"] = value
                case "auditor_devices":
                    name = f"devices.{sample.labels['state']}"
                    shown[name] = shown.get(name, 0) + value
                case "auditor_failed_devices":
                    shown[f"failures.{sample.labels['code']}"] = value
                case "auditor_module_version_devices":
                    shown["inventory.rows"] += 1
                case "auditor_policy_rule_subjects":
                    shown[f"rule.{sample.labels['rule']}.{sample.labels['verdict']}"] = value
    return shown


def of_results(document: dict[str, Any]) -> Shown:
    verdicts = ("compliant", "violated", "unparseable", "not_seen", "exempt")
    found = of_document(document)
    for row in document["results"]:
        found |= {f"rule.{row['rule']}.{verdict}": row[verdict] for verdict in verdicts}
    return found


OF_PAGE = {"devices.answered", "policy.error", "policy.warning", "policy.note"}
"""Figures of the page alone, which its own tests count."""

SOURCES: dict[str, tuple[tuple[str, ...], Callable[[str], Shown]]] = {
    "inventory": (("inventory", "RUN"), of_terminal),
    "inventory in JSON": (("inventory", "RUN", "--format", "json"), lambda text: of_document(json.loads(text))),
    "devices": (
        ("devices", "RUN", "--format", "jsonl"),
        lambda text: of_rows([json.loads(line) for line in text.splitlines()]),
    ),
    "devices in JSON": (("devices", "RUN", "--format", "json"), lambda text: of_document(json.loads(text))),
    "sql": (
        ("sql", "RUN", "SELECT status, count(*) AS n FROM devices GROUP BY ALL", "--format", "jsonl"),
        lambda text: {f"devices.{row['status']}": row["n"] for row in map(json.loads, text.splitlines())},
    ),
    "history": (("history", "DIR", "--format", "json"), lambda text: of_document(json.loads(text)["runs"][0])),
    "diff": (("diff", "RUN", "COPY", "--format", "json"), lambda text: of_document(json.loads(text)["old"])),
    "policy": (
        ("policy", "RUN", "rules.toml", "--format", "json"),
        lambda text: of_results(json.loads(text)),
    ),
    "metrics": (("metrics", "RUN", "--rules", "rules.toml"), of_metrics),
    "report": (
        ("report", "RUN", "--rules", "rules.toml", "-o", "-"),
        lambda text: {
            name: int(value)
            for name, value in parse_html(text).figures.items()
            if not name.startswith(("requests.", "modules.", "rollouts.")) and name not in OF_PAGE
        },
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_counts_of_every_command_match_the_files(auditor: Auditor, run: Path, source: str) -> None:
    words, counts = SOURCES[source]
    done = auditor(*words_of(words, run))
    assert done.returncode == 0, done.stderr
    shown, expected = counts(done.stdout), query_counts(run)
    assert {name: shown[name] for name in shown} == {name: expected[name] for name in shown}
    assert {f"devices.{state}" for state in STATES} <= set(shown)


def test_manifest_and_webhook_agree(run: Path) -> None:
    expected = {name: count for name, count in query_counts(run).items() if name in {f"devices.{s}" for s in STATES}}
    manifest = json.loads((run / "run.json").read_text())
    assert of_document(manifest) == of_document(build_payload(run).data) == expected
    assert manifest["fleet"]["devices"] == sum(expected.values())


@pytest.mark.parametrize("words", [("inventory", "RUN"), ("history", "DIR")])
def test_versions_and_devices_match_the_files(auditor: Auditor, run: Path, words: tuple[str, ...]) -> None:
    done = auditor(*words_of(words, run), "--format", "jsonl")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    names = ("account", "product_key", "module_name", "module_version", "devices")
    expected = {row[:5] for row in query_rows(run)}
    assert {tuple(str(row[name]) for name in names) for row in found} == expected
    assert len(found) == len(expected) == query_counts(run)["inventory.rows"]


@pytest.mark.parametrize("source", SOURCES)
def test_a_partial_and_tampered_run_is_labelled_wherever_its_numbers_appear(
    auditor: Auditor, run: Path, source: str
) -> None:
    # The same rows in another file: every number stays, and nobody can know that.
    same = run / "same.parquet"
    duckdb.sql(f"COPY (FROM read_parquet('{run / MODULES}')) TO '{same}' (FORMAT parquet, COMPRESSION uncompressed)")
    same.replace(run / MODULES)
    done = auditor(*words_of(SOURCES[source][0], run))
    assert done.returncode == 0, done.stderr
    if source == "metrics":
        assert 'auditor_run_warnings{kind="tampered",run="nightly"} 1.0' in done.stdout
        assert 'auditor_run_warnings{kind="incomplete",run="nightly"} 1.0' in done.stdout
    else:
        assert ": partial: 2 devices failed, 2 pending" in done.stderr
        assert re.search(r"is not the (file|inventory) that was sealed", done.stderr)
