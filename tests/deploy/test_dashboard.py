"""The dashboard of ``deploy/grafana``: generated, valid, and each panel has data of thirty nights in a real Prometheus."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from auditor.cli.app import app
from auditor.hooks.metric_samples import HELP
from tests.deploy.alerts import (
    BEYOND,
    CHECKED,
    CROWDED,
    DAY,
    GPS_RELEASED,
    HOUR,
    LAST,
    LATE,
    MISSING,
    NIGHTS,
    OLD,
    ROLLED_BACK,
    TAMPERED,
    THROTTLED,
)
from tests.deploy.conftest import History
from tests.deploy.servers import get, needs_prometheus

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "auditor.json"
PYTHON = Path(os.environ.get("AUDITOR_GRAFANA_PYTHON", ROOT / ".grafana" / "bin" / "python"))

SCHEMAS: dict[str, Any] = json.loads(Path(__file__).with_name("grafana_schemas.json").read_text())
"""The JSON Schemas of Grafana's objects: github.com/grafana/grafana-foundation-sdk v0.0.18 (Apache-2.0), without
descriptions."""

for _definition, _property in (("MatcherConfig", "options"), ("DynamicConfigValue", "value")):
    SCHEMAS["dashboard"]["definitions"][_definition]["properties"][_property] = {}  # any value, in Grafana's own source

ALL = {"run": ".*", "account": ".*", "product": ".*", "module": ".*"}
ONE = {"run": "nightly", "account": "demo", "product": "p1", "module": "(ble|mcu)"}
"""What Grafana puts in place of the variables: all, or what a person selected."""

AT = (NIGHTS - 1) * DAY + 11 * HOUR + HOUR // 2
"""Half an hour before the machine dies."""


WITH_DATA = {
    "What needs you now": ROLLED_BACK * DAY + 12 * HOUR + HOUR // 2,
    "Left out of the metrics": CROWDED * DAY + 12 * HOUR + HOUR // 2,
}
"""When panels have data that are empty on a day without a problem."""


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def targets() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each query with its panel."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield panel, target


def expression(target: dict[str, Any], variables: dict[str, str]) -> str:
    found = re.sub(r"\$(\w+)", lambda match: variables[match[1]], str(target["expr"]))
    assert "$" not in found
    return found


def evaluate(
    history: History, target: dict[str, Any], variables: dict[str, str], *, at: int = AT
) -> list[dict[str, Any]]:
    """Return the series of a query, as Grafana requests it: at the end of the nights (``at``), or all over them."""
    query = expression(target, variables)
    if target["instant"]:
        found = get(history.address, "query", query=query, time=history.start + at)["result"]
        return [{"metric": each["metric"], "values": [each["value"]]} for each in found]
    times = {"start": history.start + CHECKED.start, "end": history.start + LAST, "step": HOUR}
    series: list[dict[str, Any]] = get(history.address, "query_range", query=query, **times)["result"]
    return series


def shown(history: History, title: str, moment: int, **labels: str) -> float | None:
    """Return the value of a chart at a time; None: there is none."""
    (target,) = [target for panel, target in targets() if panel["title"] == title and not target["instant"]]
    for series in evaluate(history, target, ALL):
        if labels.items() <= series["metric"].items():
            for at, value in series["values"]:
                if int(at) == history.start + moment:
                    return float(value)
    return None


@pytest.mark.skipif(
    not PYTHON.exists(), reason="NOT TESTED: the dashboard, because .grafana is missing (make .grafana/.installed)"
)
def test_the_dashboard_is_what_its_code_generates() -> None:
    code = DASHBOARD.with_name("dashboard.py")
    generated = subprocess.run([PYTHON, code], capture_output=True, text=True, check=True).stdout
    assert generated == DASHBOARD.read_text(), "run make dashboard"
    linked = subprocess.run([PYTHON, code, "https://wiki/docs/"], capture_output=True, text=True, check=True).stdout
    assert [each["url"] for each in json.loads(linked)["links"]] == [
        f"https://wiki/docs/{name}.md" for name in ("monitoring", "rollouts", "rules")
    ]


def part(name: str, definition: str) -> dict[str, Any]:
    return {"$ref": f"#/definitions/{definition}", "definitions": SCHEMAS[name]["definitions"]}


def problems_of(dashboard: dict[str, Any]) -> list[str]:
    """Return what Grafana's schemas refuse: of the dashboard, and of the options and queries of each panel."""
    checks = [(SCHEMAS["dashboard"], dashboard)]
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            continue
        name = panel["type"].replace("-", "")
        checks.append((part(name, "Options"), panel["options"]))
        if "FieldConfig" in SCHEMAS[name]["definitions"]:
            checks.append((part(name, "FieldConfig"), panel["fieldConfig"]["defaults"]["custom"]))
        checks += [(part("prometheus", "Dataquery"), target) for target in panel.get("targets", ())]
    return [
        f"{error.json_path}: {error.message}"
        for schema, value in checks
        for error in jsonschema.Draft7Validator(schema).iter_errors(value)
    ]


def test_the_dashboard_is_valid_by_the_schemas_of_grafana() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert problems_of(dashboard) == []
    broken = json.loads(DASHBOARD.read_text())
    broken["panels"][0]["options"]["colorMode"] = "rainbow"
    broken["templating"]["list"][1]["includeEverything"] = True
    assert len(problems_of(broken)) == 2


def test_panels_are_described_and_do_not_overlap() -> None:
    places: set[tuple[int, int]] = set()
    for panel in panels():
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & places, panel["title"]
        assert max(x for x, _ in cells) < 24
        places |= cells
        assert panel["type"] in {"row", "text"} or panel["description"].endswith(".")
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)


def test_each_metric_and_each_command_of_the_dashboard_exists() -> None:
    names = {name for _, target in targets() for name in re.findall(r"\bauditor_\w+", target["expr"])}
    assert len(names) > 15
    assert names <= set(HELP)
    (text,) = [panel["options"]["content"] for panel in panels() if panel["type"] == "text"]
    advised = re.findall(r"`auditor ([a-z]+)([^`]*)`", text)
    assert len(advised) > 8
    for command, arguments in advised:
        existing = {name for argument in app[command].assemble_argument_collection() for name in argument.names}
        assert {each for each in arguments.split() if each.startswith("--")} <= existing, command


@pytest.mark.slow
@needs_prometheus
@pytest.mark.parametrize("variables", [ALL, ONE], ids=["all", "one"])
def test_each_expression_returns_data_of_the_nights(history: History, variables: dict[str, str]) -> None:
    empty = [
        f"{panel['title']}: {target['expr']}"
        for panel, target in targets()
        if not evaluate(history, target, variables, at=WITH_DATA.get(panel["title"], AT))
    ]
    assert empty == []


@pytest.mark.slow
@needs_prometheus
def test_what_needs_someone_and_what_is_left_out_are_rows_of_their_day(history: History) -> None:
    found = {
        panel["title"]: evaluate(history, target, ALL, at=WITH_DATA[panel["title"]])
        for panel, target in targets()
        if panel["title"] in WITH_DATA
    }
    alerts = {(row["metric"]["alertname"], row["metric"]["severity"]) for row in found["What needs you now"]}
    stalled = ("AuditorRolloutStalled", "warning")
    assert alerts == {("AuditorRolledBack", "critical"), ("AuditorPolicyViolated", "warning"), stalled}
    left_out = {row["metric"]["__name__"]: float(row["values"][0][1]) for row in found["Left out of the metrics"]}
    assert left_out["auditor_modules_omitted"] == 3, "mcu of two products, ble and gps, but one"
    assert left_out["auditor_module_versions_omitted"] > 0


@pytest.mark.slow
@needs_prometheus
def test_each_expression_is_limited_to_the_selected_audit(history: History) -> None:
    """Apart from counts, which are 0."""
    for panel, target in targets():
        found = evaluate(history, target, ALL | {"run": "another"})
        assert all(float(value) == 0 for series in found for _, value in series["values"]), panel["title"]


@pytest.mark.slow
@needs_prometheus
@pytest.mark.parametrize(
    ("name", "expected"),
    [("run", ["nightly"]), ("account", ["demo"]), ("product", ["p1", "p2"]), ("module", ["ble", "gps", "mcu"])],
)
def test_variables_offer_what_the_nights_have(history: History, name: str, expected: list[str]) -> None:
    (variable,) = [each for each in json.loads(DASHBOARD.read_text())["templating"]["list"] if each["name"] == name]
    query = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
    assert query is not None
    selector = re.sub(r"\$(\w+)", lambda match: ALL[match[1]], query[1])
    times = {"start": history.start, "end": history.start + LAST}
    assert get(history.address, f"label/{query[2]}/values", **{"match[]": selector}, **times) == expected


@pytest.mark.slow
@needs_prometheus
def test_the_nights_with_a_problem_can_be_seen(history: History) -> None:
    noon = 12 * HOUR + HOUR // 2
    since, alerts = "Time since the last run", "Alerts over time"
    assert (shown(history, since, MISSING * DAY + noon) or 0) > 30 * HOUR
    assert shown(history, alerts, MISSING * DAY + noon, alertname="AuditorRunMissing") == 1
    assert (shown(history, since, LATE * DAY + 7 * HOUR + HOUR // 2) or 0) > 25 * HOUR
    assert shown(history, alerts, LATE * DAY + 5 * HOUR + HOUR // 2, alertname="AuditorRunDied") == 1
    assert shown(history, "Progress", LATE * DAY + 2 * HOUR + HOUR // 2) == pytest.approx(12 / 40)
    assert (shown(history, since, (LATE - 1) * DAY + noon) or DAY) < 10 * HOUR
    assert shown(history, "Coverage", BEYOND * DAY + noon) == 0.75
    assert shown(history, "Failed devices by code", BEYOND * DAY + noon) == 10
    assert shown(history, "Warnings about the numbers", TAMPERED * DAY + noon, kind="tampered") == 1
    share = "Devices on the target version"
    before, after = (shown(history, share, n * DAY + noon, module_name="ble") for n in (ROLLED_BACK - 1, ROLLED_BACK))
    assert (before, after) == (1, 0.25)
    assert shown(history, "Violations by severity", ROLLED_BACK * DAY + noon, severity="error") == 15
    assert shown(history, "Throttled calls", THROTTLED * DAY + noon) == 0.1
    assert (shown(history, "Age of the oldest result", OLD * DAY + noon) or 0) > 14 * DAY
    before, after = (shown(history, share, n * DAY + noon, module_name="gps") for n in (5, GPS_RELEASED))
    assert (before, after) == (0.5, 1)
    assert shown(history, since, LAST - HOUR // 2) is None, "the machine is dead: a gap"
    assert shown(history, alerts, LAST - HOUR // 2, alertname="AuditorRunMissing") == 1
