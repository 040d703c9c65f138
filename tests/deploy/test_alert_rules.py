"""The alerts of ``deploy/prometheus`` over thirty nights, by promtool and by a real Prometheus and node_exporter."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from auditor.cli.app import app
from tests.deploy.alerts import (
    CHECKED,
    DAY,
    HOUR,
    LAST,
    MINUTE,
    Night,
    expected_firings,
    samples_of,
    series_of,
    severity_of,
    with_time,
)
from tests.deploy.conftest import History
from tests.deploy.servers import RULES, free_port, get, needs_prometheus, prometheus, wait_for

pytestmark = [pytest.mark.slow, needs_prometheus]

STEP = 5 * MINUTE
"""Prometheus forgets a sample after five minutes."""


def alert_queries(address: str) -> dict[str, str]:
    """Return the expressions of the alerts as Prometheus reads them; recorded ones are put in place of their names."""
    rules = [rule for group in get(address, "rules")["groups"] for rule in group["rules"]]
    recorded = {rule["name"]: rule["query"] for rule in rules if rule["type"] == "recording"}
    pattern = re.compile("|".join(map(re.escape, recorded)))
    return {
        rule["name"]: pattern.sub(lambda match: f"({recorded[match[0]]})", rule["query"])
        for rule in rules
        if rule["type"] == "alerting"
    }


def firing_at(moment: int) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (each.alert, tuple(sorted({**dict(each.labels), "run": "nightly"}.items())))
        for each in expected_firings()
        if each.first <= moment < each.last
    }


def test_exactly_the_alerts_that_should_fire_fire_and_resolve_by_promtool(nights: list[Night], tmp_path: Path) -> None:
    series = []
    for name, values in series_of(nights, set(re.findall(r"auditor_\w+", RULES.read_text()))):
        ends = [since for since, _ in values[1:]] + [LAST]
        texts = [f"_x{values[0][0] // STEP}"]
        for (since, value), end in zip(values, ends, strict=True):
            shown, steps = with_time(name, value, 0), (end - since) // STEP
            # "_x2" is two steps without a sample, and "1+0x2" three with one.
            texts.append(f"_x{steps}" if shown is None else f"{shown:.3f}+0x{steps - 1}")
        series.append({"series": name, "values": " ".join(texts)})
    checks = [
        {
            "expr": 'ALERTS{alertstate="firing"}',
            "eval_time": f"{moment // MINUTE}m",
            "exp_samples": [
                {
                    "labels": "ALERTS{" + ",".join(
                        f'{name}="{value}"'
                        for name, value in {**dict(labels), "alertname": alert, "alertstate": "firing", "severity": severity_of(alert, RULES)}.items()
                    ) + "}",
                    "value": 1,
                }
                for alert, labels in sorted(firing_at(moment))
            ],
        }
        for moment in CHECKED
    ]  # fmt: skip
    file = tmp_path / "thirty-nights.json"
    test = {"interval": f"{STEP // MINUTE}m", "input_series": series, "promql_expr_test": checks}
    order = re.findall(r"^  - name: (\S+)", RULES.read_text(), re.MULTILINE)  # otherwise it is random
    options = {"evaluation_interval": f"{3 * STEP // MINUTE}m", "group_eval_order": order}
    file.write_text(json.dumps({"rule_files": [str(RULES)], **options, "tests": [test]}))
    tested = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout[:3_000] + tested.stderr[:3_000]


def test_the_alerts_of_a_machine_that_died_fire_until_it_runs_again(tmp_path: Path) -> None:
    """Its metrics are gone after two days, and there again, by another run, after twelve."""
    gone, back = 2 * DAY // STEP, 10 * DAY // STEP
    values = f"0+0x{gone - 1} _x{back} {12 * DAY}+0x{DAY // STEP}"
    names = ("auditor_last_run_timestamp_seconds", "auditor_last_success_timestamp_seconds")
    series = [{"series": f'{name}{{run="nightly",instance="a"}}', "values": values} for name in names]
    alerts = {"AuditorRunMissing", "AuditorNoSuccess"}
    checks = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{at // MINUTE}m",
            "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(firing)],
        }
        for at, firing in (
            (DAY, set()),
            (3 * DAY, alerts),
            (10 * DAY, alerts),
            (12 * DAY - HOUR, alerts),
            (12 * DAY + HOUR, set()),
        )
    ]
    test = {"interval": f"{STEP // MINUTE}m", "input_series": series, "promql_expr_test": checks}
    order = re.findall(r"^  - name: (\S+)", RULES.read_text(), re.MULTILINE)
    options = {"evaluation_interval": f"{3 * STEP // MINUTE}m", "group_eval_order": order}
    file = tmp_path / "twelve-days.json"
    file.write_text(json.dumps({"rule_files": [str(RULES)], **options, "tests": [test]}))
    tested = subprocess.run(["promtool", "test", "rules", file], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stdout[:3_000] + tested.stderr[:3_000]


def test_prometheus_agrees_about_each_alert(history: History) -> None:
    rules = alert_queries(history.address)
    found: dict[int, set[Any]] = {moment: set() for moment in CHECKED}
    start = history.start
    for alert, query in rules.items():
        parameters = {"query": query, "start": start + CHECKED.start, "end": start + LAST, "step": HOUR}
        for series in get(history.address, "query_range", **parameters)["result"]:
            labels = tuple(sorted((k, v) for k, v in series["metric"].items() if not k.startswith("__")))
            for at, _ in series["values"]:
                found[int(at) - start].add((alert, labels))
    assert {moment: fired for moment, fired in found.items() if fired != firing_at(moment)} == {}
    assert {each.alert for each in expected_firings()} <= set(rules)


def test_node_exporter_serves_what_an_audit_writes_and_prometheus_reads_it(nights: list[Night], tmp_path: Path) -> None:
    textfiles = tmp_path / "textfile"
    textfiles.mkdir()
    last = next(night.metrics for night in reversed(nights) if night.metrics is not None)
    (textfiles / "auditor.prom").write_bytes(last)
    port = free_port()
    command = ["prometheus-node-exporter", "--collector.disable-defaults", "--collector.textfile",
               f"--collector.textfile.directory={textfiles}", f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    exporter = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with prometheus(tmp_path, scrape=port) as address:
            parameters = {"query": '{__name__=~"auditor_.*"}'}
            found = wait_for(lambda: get(address, "query", **parameters)["result"])
            alerts = get(address, "rules")
    finally:
        exporter.terminate()
        exporter.wait()
    scraped = {}
    for sample in found:
        labels = dict(sample["metric"])
        name = labels.pop("__name__")
        del labels["instance"], labels["job"]
        scraped[name, tuple(sorted(labels.items()))] = float(sample["value"][1])
    expected = {
        (name, tuple((k, v) for k, v in labels if v)): value for (name, labels), value in samples_of(last).items()
    }
    assert scraped == expected
    assert all(rule["health"] in {"ok", "unknown"} for group in alerts["groups"] for rule in group["rules"])


def test_each_command_that_an_alert_advises_exists() -> None:
    advised = re.findall(r'auditor ([a-z]+)([^."\n]*)', RULES.read_text())
    assert len(advised) > 8
    for command, arguments in advised:
        flags = {each for each in arguments.split() if each.startswith("--")}
        existing = {name for argument in app[command].assemble_argument_collection() for name in argument.names}
        assert flags <= existing, f"auditor {command}"
