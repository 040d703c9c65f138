"""Charts of the report as SVG of a few plain elements, coloured by the page's style alone.

Altair describes a chart, and vl-convert renders it when the page is written. Only shapes and text of that SVG are kept:
no scripts, links or styles. So the page's content security policy can forbid all of these, and one chart has the
colours of the light, dark and print style.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from xml.etree import ElementTree as ET

import altair as alt
import vl_convert
from markupsafe import Markup

from auditor.query.describe import format_limits
from auditor.report.filters import display_text, format_day, format_percent
from auditor.report.model import HistorySection, ModuleAdoption, ModuleShares

STATE_COLORS = {
    "ok": "ok", "empty": "empty", "not_found": "not-found", "failed": "failed", "pending": "pending",
    "unsampled": "unsampled",
}  # fmt: skip
"""Color of each state of a device."""

_OLDER_COLORS = {0: (), 1: ("c3",), 2: ("c1", "c3"), 3: ("c1", "c2", "c3"), 4: ("c1", "c2", "c3", "c4")}
"""Colors of older versions by their number: from cold to warm, the older the warmer."""

_UNORDERED_COLORS = ("c5", "c1", "c2", "c3", "c4")
"""Colors of versions that cannot be ordered; none is the color of the newest version."""

_WIDTH = 320
"""Width of a chart in the page's pixels, as all lengths here."""

_ROW_HEIGHT, _BAR_HEIGHT = 34, 9

_LEFT, _TOP, _COLUMN_HEIGHT, _BELOW, _MAX_COLUMN_WIDTH = 34, 6, 120, 32, 30

_HEIGHT = _TOP + _COLUMN_HEIGHT + _BELOW

_SHARE_SCALE = alt.Scale(domain=[0, 1], range=[_TOP + _COLUMN_HEIGHT, _TOP])


def draw_states(by_state: Mapping[str, int]) -> Markup:
    """Draw the fleet as one bar with a segment for each state."""
    rows: list[dict[str, object]] = []
    widths: list[float] = []
    left = 0.0
    fleet = sum(by_state.get(state, 0) for state in STATE_COLORS)
    gap = 0.0025  # fraction of the width
    for state, color in STATE_COLORS.items():
        share = by_state.get(state, 0) / fleet if fleet else 0.0
        if share:
            rows.append({"color": color})
            widths.append(max(share, 0.004))  # small segments stay visible
    total = sum(widths) + gap * (len(widths) - 1)
    for row, width in zip(rows, widths, strict=True):
        row.update({"left": left, "right": left + width / total, "top": 0, "bottom": 1})
        left += (width + gap) / total
    base = alt.Chart(_data(rows), width=1_000, height=10)
    chart = base.mark_rect().encode(**_box(1_000, 1, 10), color=_color_encoding([str(row["color"]) for row in rows]))
    return render_svg(chart, 1_000, 10, full_width=True)


def draw_versions(module: ModuleShares) -> Markup:
    """Draw a module's versions, the most frequent first: a bar for the share of its devices that runs each.

    If the share is an estimate from a sample, a line across the end of the bar marks its confidence interval.
    """
    rows: list[dict[str, object]] = []
    for version in module.versions:
        color = "accent" if version.order == "newest" else "plain"
        row = _bar(display_text(version.module_version, 24), version.devices, version.share, color)
        if version.low is not None and version.high is not None:
            figures = f"{format_percent(version.share)}  ·  {format_limits(version.low, version.high)}"
            row |= {"figures": figures, "low": version.low, "high": version.high}
        rows.append(row)
    if module.other_versions:
        name = f"{module.other_versions:,} other version{'' if module.other_versions == 1 else 's'}"
        rows.append(_bar(name, module.other_devices, module.other_devices / module.devices, "rest"))
    for index, row in enumerate(rows):
        top = index * _ROW_HEIGHT + 21
        row.update({"left": 0, "baseline": top - 6, "top": top, "bottom": top + _BAR_HEIGHT})
    height = len(rows) * _ROW_HEIGHT
    base = alt.Chart(_data(rows), width=_WIDTH, height=height)
    box, baseline = _box(_WIDTH, height, height), alt.Y("baseline:Q", axis=None, scale=_y_scale(height, height))
    track = base.mark_rect(color=COLORS["track"]).encode(**box | {"x2": alt.X2("full:Q")})
    bars = base.mark_rect().encode(**box, color=_color_encoding([str(row["color"]) for row in rows]))
    names = base.mark_text(align="left", baseline="alphabetic", fontSize=13, color=COLORS["ink"])
    figures = base.mark_text(align="right", baseline="alphabetic", fontSize=12, color=COLORS["muted"])
    texts = (
        names.encode(x=alt.value(0), y=baseline, text="name:N"),
        figures.encode(x=alt.value(_WIDTH), y=baseline, text="figures:N"),
    )
    intervals = [
        row | {"middle": index * _ROW_HEIGHT + 21 + _BAR_HEIGHT / 2} for index, row in enumerate(rows) if "low" in row
    ]
    lines = alt.Chart(_data(intervals), width=_WIDTH, height=height).mark_rule(color=COLORS["ink"], strokeWidth=2)
    x = alt.X("low:Q", axis=None, scale=alt.Scale(domain=[0, 1], range=[0, _WIDTH]))
    middle = alt.Y("middle:Q", axis=None, scale=_y_scale(height, height))
    whiskers = [lines.encode(x=x, x2="high:Q", y=middle)] if intervals else []
    return render_svg(alt.layer(track, bars, *whiskers, *texts), _WIDTH, height)


def adoption_colors(adoption: ModuleAdoption) -> tuple[str, ...]:
    """Return the colors of a module's versions over time; the newest version in use has the accent color.

    It is not always the first version: one that was rolled back is newer, but only in use in earlier runs.
    """
    newest = adoption.module.newest
    others = [text for text in adoption.versions if text is not None and text != newest]
    colors = dict(zip(others, _UNORDERED_COLORS if newest is None else _OLDER_COLORS[len(others)], strict=False))
    return tuple("rest" if text is None else colors.get(text, "accent") for text in adoption.versions)


def draw_adoption(adoption: ModuleAdoption, history: HistorySection) -> Markup:
    """Draw a module over time: a column for each run, newer versions at the bottom; runs with a label are marked."""
    colors = adoption_colors(adoption)
    rows = [
        {"run": run, "position": position, "share": share, "color": colors[position]}
        for run, shares in enumerate(adoption.shares)
        for position, share in enumerate(shares or ())
        if share
    ]
    marked = [{"run": run} for run, past in enumerate(history.runs) if past.label]
    runs = len(history.runs)
    x = alt.X(
        "run:O",
        axis=None,
        scale=alt.Scale(domain=list(range(runs)), range=[_LEFT, _WIDTH], paddingInner=0.18, paddingOuter=0.1),
    )
    columns = _adoption_chart(rows).mark_bar(size=min(_MAX_COLUMN_WIDTH, 0.82 * (_WIDTH - _LEFT) / runs))
    shares = columns.encode(
        x=x,
        y=alt.Y("share:Q", axis=None, scale=_SHARE_SCALE, stack="zero"),
        order="position:Q",
        color=_color_encoding([str(row["color"]) for row in rows]),
    )
    diamonds = _adoption_chart(marked).mark_point(
        shape="diamond", size=56, filled=True, color=COLORS["warn"], opacity=1
    )
    marks = diamonds.encode(x=x, y=alt.value(_TOP + _COLUMN_HEIGHT + 9))
    return render_svg(alt.layer(*_grid(), shares, marks, *_date_labels(history)), _WIDTH, _HEIGHT)


def _adoption_chart(rows: Sequence[Mapping[str, object]]) -> alt.Chart:
    return alt.Chart(_data(rows), width=_WIDTH, height=_HEIGHT)


def _grid() -> tuple[alt.Chart, alt.Chart]:
    """Draw lines at 0, 50 and 100% of the devices."""
    levels = _adoption_chart([{"level": level, "name": format_percent(level)} for level in (0, 0.5, 1)])
    level = alt.Y("level:Q", axis=None, scale=_SHARE_SCALE)
    lines = levels.mark_rule(color=COLORS["line"], strokeWidth=1)
    names = levels.mark_text(align="right", baseline="middle", fontSize=11, color=COLORS["muted"])
    return (
        lines.encode(x=alt.value(_LEFT), x2=alt.value(_WIDTH), y=level),
        names.encode(x=alt.value(_LEFT - 5), y=level, text="name:N"),
    )


def _date_labels(history: HistorySection) -> list[alt.Chart]:
    """Draw the days of the first and the last run."""
    bottom = alt.value(_HEIGHT - 4)
    first, last = (
        _adoption_chart([{"name": format_day(past.started_at)}]) for past in (history.runs[0], history.runs[-1])
    )
    left = first.mark_text(align="left", baseline="alphabetic", fontSize=11, color=COLORS["muted"])
    right = last.mark_text(align="right", baseline="alphabetic", fontSize=11, color=COLORS["muted"])
    labels = [left.encode(x=alt.value(_LEFT), y=bottom, text="name:N")]
    if len(history.runs) > 1:
        labels.append(right.encode(x=alt.value(_WIDTH), y=bottom, text="name:N"))
    return labels


def _bar(name: str, devices: int, share: float, color: str) -> dict[str, object]:
    return {
        "name": name,
        "figures": f"{devices:,}  ·  {format_percent(share)}",
        "right": share,
        "full": 1,
        "color": color,
    }


def _box(width: int, extent: int, height: int) -> dict[str, Any]:
    """Return the position of a rectangle: ``left`` to ``right`` (fractions of the width), and ``top`` to ``bottom``.

    ``extent`` is the value of ``bottom`` at the chart's lower edge.
    """
    return {
        "x": alt.X("left:Q", axis=None, scale=alt.Scale(domain=[0, 1], range=[0, width])),
        "x2": alt.X2("right:Q"),
        "y": alt.Y("top:Q", axis=None, scale=_y_scale(extent, height)),
        "y2": alt.Y2("bottom:Q"),
    }


def _y_scale(extent: int, height: int) -> alt.Scale:
    return alt.Scale(domain=[0, extent], range=[0, height])


def _data(rows: Sequence[Mapping[str, object]]) -> alt.InlineData:
    return alt.InlineData(values=[dict(row) for row in rows])


def _color_encoding(names: Sequence[str]) -> alt.Color:
    used = list(dict.fromkeys(names))
    return alt.Color("color:N", legend=None, scale=alt.Scale(domain=used, range=[COLORS[name] for name in used]))


COLORS = {
    name: f"#0a00{number:02x}"
    for number, name in enumerate(
        ("ok", "empty", "not-found", "failed", "pending", "unsampled", "c1", "c2", "c3", "c4", "c5", "rest", "accent",
         "plain", "track", "ink", "muted", "line", "warn")
    )
}  # fmt: skip
"""Placeholder colors while a chart is rendered, one for each color class of the page's style."""

_CLASSES = {color: name for name, color in COLORS.items()}

_SHAPES = {"path": ("d", "transform"), "rect": ("x", "y", "width", "height", "transform"),
           "line": ("x1", "y1", "x2", "y2", "transform"), "text": ("transform", "text-anchor", "font-size",
           "font-weight")}  # fmt: skip

_STYLE_ATTRIBUTES = ("opacity", "fill-opacity", "stroke-width", "stroke-dasharray")

_DECIMALS = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def render_svg(
    chart: alt.LayerChart | alt.FacetChart | alt.Chart, width: int, height: int, *, full_width: bool = False
) -> Markup:
    """Render a chart as an SVG element that is hidden from screen readers; the page has its numbers as text.

    Args:
        chart: the chart, in ``COLORS``.
        width: width in the page's pixels.
        height: height in the page's pixels.
        full_width: fill the width of the page, at the same height.
    """
    configured = chart.configure_view(stroke=None).configure(padding=0, background="transparent", autosize="none")
    svg = vl_convert.vegalite_to_svg(configured.to_dict(), vl_version=_version(), allowed_base_urls=[])
    elements = "".join(_sanitize(ET.fromstring(svg)))  # noqa: S314  our own library's SVG, without entities
    attributes = 'class="stretch" preserveAspectRatio="none"' if full_width else 'class="picture"'
    return Markup(  # noqa: S704  all text in it is escaped
        f'<svg {attributes} viewBox="0 0 {width} {height}" aria-hidden="true" focusable="false">{elements}</svg>'
    )


@cache
def _version() -> str:
    """Return the Vega-Lite version that Altair writes for, in vl-convert's notation."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def _sanitize(element: ET.Element) -> list[str]:
    """Return the SVG of an element's shapes and text; all other elements and attributes are dropped."""
    kind = element.tag.rpartition("}")[2]
    if kind in _SHAPES:
        return _shape(kind, element)
    inner = [text for child in element if child.tag.rpartition("}")[2] != "defs" for text in _sanitize(child)]
    transform = element.get("transform", "")
    if not inner or kind != "g" or transform in ("", "translate(0,0)"):
        return inner
    return [f'<g transform="{Markup.escape(_round_decimals(transform))}">', *inner, "</g>"]


def _shape(kind: str, element: ET.Element) -> list[str]:
    classes = [f"{use}-{_CLASSES[color]}" for use in ("fill", "stroke") if (color := element.get(use, "")) in _CLASSES]
    if not classes or element.get("display") == "none":
        return []
    kept = [(name, value) for name in (*_SHAPES[kind], *_STYLE_ATTRIBUTES) if (value := element.get(name)) is not None]
    attributes = "".join(f' {name}="{Markup.escape(_round_decimals(value))}"' for name, value in kept)
    text = Markup.escape("".join(element.itertext())) if kind == "text" else ""
    return [f'<{kind} class="{" ".join(classes)}"{attributes}>{text}</{kind}>']


def _round_decimals(value: str) -> str:
    return _DECIMALS.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value)
