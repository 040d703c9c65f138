"""The alerts of ``deploy/prometheus`` over thirty nights, by promtool and by a real Prometheus and node_exporter."""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from auditor.cli.app import app
from tests.deploy.alerts import (
    DAY,
    HOUR,
    MINUTE,
    NIGHTS,
    Night,
    build_nights,
    expected_firings,
    samples_of,
)

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "auditor.rules.yml"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(shutil.which, ("promtool", "prometheus", "prometheus-node-exporter"))),
        reason="Prometheus is not installed (Debian: prometheus, prometheus-node-exporter)",
    ),
]

STEP = 5 * MINUTE
"""Prometheus forgets a sample after five minutes."""

LAST = NIGHTS * DAY + 12 * HOUR

CHECKED = range(HOUR // 2, LAST, HOUR)
"""Times at which alerts are compared: at half past, since all of them begin and end near a full hour."""


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> list[Night]:
    return list(build_nights(tmp_path_factory.mktemp("nights")))


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


def series_of(nights: Sequence[Night]) -> Iterator[tuple[str, list[tuple[int, float | None]]]]:
    """Yield each series that the rules read, with its value from a time on; None: from then on there is none."""
    names = set(re.findall(r"auditor_\w+", RULES.read_text()))
    samples = [(night.since, {} if night.metrics is None else samples_of(night.metrics)) for night in nights]
    for key in sorted({key for _, found in samples for key in found}):
        if key[0] in names:
            labels = ",".join(f'{name}="{value}"' for name, value in key[1])
            yield f"{key[0]}{{{labels}}}", [(since, found.get(key)) for since, found in samples]


def with_time(name: str, value: float | None, since_start: float) -> float | None:
    """Return a value; times are moved so that the first midnight is ``since_start``."""
    from tests.runs.run_folders import START

    return value if value is None or "timestamp" not in name else value - START + since_start


def test_exactly_the_alerts_that_should_fire_fire_and_resolve_by_promtool(nights: list[Night], tmp_path: Path) -> None:
    series = []
    for name, values in series_of(nights):
        ends = [since for since, _ in values[1:]] + [LAST]
        texts = [f"_x{values[0][0] // STEP - 1}"]
        for (since, value), end in zip(values, ends, strict=True):
            shown = with_time(name, value, 0)
            texts.append(f"{'_' if shown is None else f'{shown:.3f}'}x{(end - since) // STEP - 1}")
        series.append(
            {"series": name, "values": " ".join(text.replace("x", "+0x") if text[0] != "_" else text for text in texts)}
        )
    checks = [
        {
            "expr": 'ALERTS{alertstate="firing"}',
            "eval_time": f"{moment // MINUTE}m",
            "exp_samples": [
                {
                    "labels": "ALERTS{" + ",".join(
                        f'{name}="{value}"'
                        for name, value in {**dict(labels), "alertname": alert, "alertstate": "firing", "severity": severity(alert)}.items()
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


def severity(alert: str) -> str:
    found = re.search(rf"alert: {alert}\n.*?severity: (\w+)", RULES.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def test_prometheus_agrees_about_each_alert(nights: list[Night], tmp_path: Path) -> None:
    start = int(time.time()) // DAY * DAY - LAST // DAY * DAY - DAY
    lines: list[str] = []
    for name, values in series_of(nights):
        metric = name.partition("{")[0]
        lines.append(f"# TYPE {metric} gauge")
        ends = [since for since, _ in values[1:]] + [LAST]
        for (since, value), end in zip(values, ends, strict=True):
            if (shown := with_time(name, value, start)) is not None:
                lines += [f"{name} {shown} {start + at}" for at in CHECKED if since <= at < end]
    data = tmp_path / "data"
    backfill(lines, tmp_path, data)
    with prometheus(tmp_path, data=data) as address:
        rules = alert_queries(address)
        found: dict[int, set[Any]] = {moment: set() for moment in CHECKED}
        for alert, query in rules.items():
            parameters = {"query": query, "start": start + CHECKED.start, "end": start + LAST, "step": HOUR}
            for series in get(address, "query_range", **parameters)["result"]:
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


def backfill(lines: Sequence[str], folder: Path, data: Path) -> None:
    """Write samples to the database of a Prometheus; a metric has one TYPE line, and its series are together."""
    seen, kept = set(), []
    for line in lines:
        if line not in seen or not line.startswith("#"):
            kept.append(line)
        seen.add(line)
    (folder / "metrics").write_text("\n".join([*kept, "# EOF\n"]))
    run(
        "promtool",
        "tsdb",
        "create-blocks-from",
        "openmetrics",
        "--max-block-duration=744h",
        "--quiet",
        folder / "metrics",
        data,
    )


def run(*command: object) -> str:
    ended = subprocess.run([str(each) for each in command], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2_000:]
    return ended.stdout


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def prometheus(folder: Path, *, data: Path | None = None, scrape: int | None = None) -> Iterator[str]:
    """Start a Prometheus with the rules, and yield its address."""
    jobs = [] if scrape is None else [
        {"job_name": "node", "scrape_interval": "1s", "static_configs": [{"targets": [f"127.0.0.1:{scrape}"]}]}
    ]  # fmt: skip
    config = folder / "prometheus.json"
    config.write_text(json.dumps({"rule_files": [str(RULES)], "scrape_configs": jobs}))
    port = free_port()
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={data or folder / 'tsdb'}",
               "--storage.tsdb.retention.time=10y", f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    with (folder / "prometheus.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(lambda: is_ready(address))
        yield address
    finally:
        server.terminate()
        server.wait()


def is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/-/ready") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def get(address: str, path: str, **parameters: object) -> Any:
    query = urllib.parse.urlencode(parameters)
    with urllib.request.urlopen(f"{address}/api/v1/{path}?{query}") as answer:
        return json.load(answer)["data"]


def wait_for(condition: Any, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.1)
    return found
