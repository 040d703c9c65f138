"""Draw the dashboard from its JSON and the data of the thirty nights, without Grafana, which cannot be installed here.

python -m tests.deploy.picture FILE.png

It shows which panels there are, where they are, and which data each gets. Grafana draws them in its own way.
"""

import html
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.deploy.alerts import DAY, HOUR, LAST, ROLLED_BACK, build_nights
from tests.deploy.conftest import History, fill_prometheus
from tests.deploy.test_dashboard import ALL, DASHBOARD, evaluate

AT = ROLLED_BACK * DAY + 12 * HOUR + HOUR // 2
"""When numbers and tables are drawn: noon of the rollback."""

COLUMN, ROW, WIDTH = 58, 30, 24 * 58
"""Pixels of Grafana's grid."""

COLOURS = ("#73bf69", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#fade2a", "#8ab8ff", "#ffa6b0")
NAMED = {
    "green": "#73bf69",
    "orange": "#ff9830",
    "red": "#f2495c",
    "blue": "#5794f2",
    "yellow": "#fade2a",
    "text": "#ccc",
}

STYLE = """
body { margin: 0; background: #111217; color: #ccccdc; font: 12px "Noto Sans", sans-serif; }
.panel { position: absolute; box-sizing: border-box; padding: 4px 8px; overflow: hidden; background: #181b1f;
  border: 1px solid #2c3036; border-radius: 2px; }
.row { position: absolute; font-size: 15px; padding-top: 4px; }
.title { font-weight: 600; height: 18px; white-space: nowrap; }
.big { font-size: 26px; font-weight: 600; text-align: center; margin-top: 18px; }
td, th { text-align: left; padding: 2px 8px; border-bottom: 1px solid #2c3036; } table { border-collapse: collapse; }
.legend { white-space: nowrap; font-size: 10px; } pre { font-size: 9px; margin: 0; white-space: pre-wrap; }
"""


def label(target: dict[str, Any], metric: dict[str, str]) -> str:
    text: str = target["legendFormat"]
    for name, value in metric.items():
        text = text.replace(f"{{{{{name}}}}}", value)
    return text


def shown(value: float, unit: str) -> str:
    match unit:
        case "percentunit":
            return f"{value:.1%}"
        case "s":
            return f"{value / 86_400:.1f} d" if value >= 86_400 else f"{value / 3_600:.1f} h"
    return f"{value:,.4g}"


def draw_number(panel: dict[str, Any], history: History) -> str:
    target, defaults = panel["targets"][0], panel["fieldConfig"]["defaults"]
    found = evaluate(history, target, ALL, at=AT)
    cells = []
    for series in found:
        value, name = float(series["values"][-1][1]), label(target, series["metric"])
        steps = [each for each in defaults["thresholds"]["steps"] if each["value"] is None or value >= each["value"]]
        text = name if panel["options"]["textMode"] == "name" else shown(value, defaults.get("unit", ""))
        small = f'<div class="legend">{html.escape(name)} {text}</div>'
        big = f'<div class="big" style="color: {NAMED[steps[-1]["color"]]}">{html.escape(text)}</div>'
        cells.append(big if len(found) == 1 else small)
    return "".join(cells) or f'<div class="big">{defaults.get("noValue", "No data")}</div>'


def draw_chart(panel: dict[str, Any], history: History) -> str:
    width, height = panel["gridPos"]["w"] * COLUMN - 70, panel["gridPos"]["h"] * ROW - 70
    target, defaults = panel["targets"][0], panel["fieldConfig"]["defaults"]
    found = evaluate(history, target, ALL, at=AT)[:12]
    limits = [each["value"] for each in defaults.get("thresholds", {}).get("steps", []) if each["value"]]
    values = [float(value) for series in found for _, value in series["values"]]
    top = defaults.get("max") or max([*values, *limits], default=1) or 1
    timeline = panel["type"] == "state-timeline"
    width -= 130 * timeline  # for the names
    lines = [f'<text x="0" y="10" fill="#888" font-size="10">{shown(top, defaults.get("unit", ""))}</text>'] * (
        not timeline
    )
    for limit in limits:
        y = height - limit / top * height
        lines.append(f'<line x1="0" x2="{width}" y1="{y}" y2="{y}" stroke="#ff9830" stroke-dasharray="4"/>')
    for number, series in enumerate(found):
        colour = COLOURS[number % len(COLOURS)]
        for n, (at, value) in enumerate(series["values"]):
            x = (int(at) - history.start) / LAST * width
            if timeline:
                y = number * height / len(found)
                lines.append(
                    f'<rect x="{x + 130:.1f}" y="{y:.1f}" width="2.2" height="{0.8 * height / len(found):.1f}" fill="#f2495c"/>'
                )
                continue
            y = height - float(value) / top * height
            joined = n and int(at) - int(series["values"][n - 1][0]) <= 3_600
            if joined:
                before = height - float(series["values"][n - 1][1]) / top * height
                earlier = x - 3_600 / LAST * width
                lines.append(
                    f'<path d="M{earlier:.1f} {before:.1f}L{x:.1f} {y:.1f}" stroke="{colour}" stroke-width="1.6"/>'
                )
        if timeline:
            y = (number + 0.6) * height / len(found)
            lines.append(f'<text x="0" y="{y:.1f}" fill="#ccc" font-size="10">{label(target, series["metric"])}</text>')
    names = [
        f'<span style="color: {COLOURS[n % len(COLOURS)]}">━ {html.escape(label(target, each["metric"]))}</span> '
        for n, each in enumerate(found)
    ]
    extent = width + 130 * timeline
    return f'<svg width="{extent}" height="{height + 4}" viewBox="0 0 {extent} {height + 4}">{"".join(lines)}</svg>' + (
        "" if timeline else f'<div class="legend">{"".join(names)}</div>'
    )


def draw_table(panel: dict[str, Any], history: History) -> str:
    options = panel["transformations"][1]["options"]
    renamed = dict(sorted(options["renameByName"].items(), key=lambda item: options["indexByName"][item[0]]))
    merged: dict[tuple[str, ...], dict[str, str]] = {}
    for target in panel["targets"]:
        for series in evaluate(history, target, ALL, at=AT):
            key = tuple(v for k, v in sorted(series["metric"].items()) if k not in {"state", "severity"})
            row = merged.setdefault(key, {})
            row |= series["metric"] | {f"Value #{target['refId']}": shown(float(series["values"][-1][1]), "")}
    head = "".join(f"<th>{name}</th>" for name in renamed.values())
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(row.get(key, ''))}</td>" for key in renamed) + "</tr>"
        for row in merged.values()
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def draw_text(panel: dict[str, Any], _: History) -> str:
    return f"<pre>{html.escape(panel['options']['content'])}</pre>"


def draw(history: History) -> Iterator[str]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        grid, kind = panel["gridPos"], panel["type"]
        place = f"left: {grid['x'] * COLUMN}px; top: {grid['y'] * ROW}px; width: {grid['w'] * COLUMN - 6}px; height: {grid['h'] * ROW - 6}px"
        title = html.escape(panel["title"])
        if kind == "row":
            yield f'<div class="row" style="{place}">▾ {title}</div>'
            continue
        inner = {
            "stat": draw_number, "timeseries": draw_chart, "state-timeline": draw_chart, "table": draw_table,
            "text": draw_text,
        }[kind](panel, history)  # fmt: skip
        yield f'<div class="panel" style="{place}"><div class="title">{title}</div>{inner}</div>'


def main(path: str) -> int:
    browser = shutil.which("chromium")
    with tempfile.TemporaryDirectory(prefix="dashboard-") as temporary:
        folder = Path(temporary)
        (folder / "runs").mkdir()
        with fill_prometheus(list(build_nights(folder / "runs")), folder) as history:
            page = f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>{''.join(draw(history))}"
        bottom = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in json.loads(DASHBOARD.read_text())["panels"])
        (folder / "page.html").write_text(page)
        with sync_playwright() as playwright:
            arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
            started = playwright.chromium.launch(executable_path=browser, args=arguments)
            view = started.new_page(viewport={"width": WIDTH, "height": bottom * ROW})
            view.goto((folder / "page.html").as_uri())
            view.screenshot(path=path)
            started.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
