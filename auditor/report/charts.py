"""What the pictures of the report show, told to Altair.

Pictures made safe for the page: a chart as SVG of a few plain elements, coloured by the page's style alone.

Altair says what is drawn, vl-convert draws it when the page is written. Of that SVG only shapes and text are kept:
nothing that acts, links, or styles itself, so that the page's policy can forbid all of it, and so that dark, light and
print colour one and the same picture.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from xml.etree import ElementTree as ET

import altair as alt
import vl_convert
from markupsafe import Markup

from auditor.query.describe import limits
from auditor.report.filters import day, part, shown
from auditor.report.model import Adoption, History, Module

STATES = {
    "ok": "ok", "empty": "empty", "not_found": "not-found", "failed": "failed", "pending": "pending",
    "unsampled": "undrawn",
}  # fmt: skip
"""The ink of each state of a device, and of those that were not drawn."""


_AGES = {0: (), 1: ("c3",), 2: ("c1", "c3"), 3: ("c1", "c2", "c3"), 4: ("c1", "c2", "c3", "c4")}
"""Inks of versions besides the newest by age, from cold to warm, for so many of them."""


_KINDS = ("c5", "c1", "c2", "c3", "c4")
"""Inks of versions whose age is not known; none is that of the newest."""


_WIDTH = 320


_ROW, _BAR = 34, 9


_LEFT, _TOP, _COLUMNS, _BELOW, _WIDEST = 34, 6, 120, 32, 30


_UP = alt.Scale(domain=[0, 1], range=[_TOP + _COLUMNS, _TOP])


def states_picture(parts: Mapping[str, int]) -> Markup:
    """The fleet as one bar, a part for each state."""
    rows: list[dict[str, object]] = []
    wide: list[float] = []
    at = 0.0
    fleet = sum(parts.get(state, 0) for state in STATES)
    gap = 0.0025  # of its width
    for state, ink in STATES.items():
        share = parts.get(state, 0) / fleet if fleet else 0.0
        if share:
            rows.append({"ink": ink})
            wide.append(max(share, 0.004))  # what is there is seen, however small it is
    whole = sum(wide) + gap * (len(wide) - 1)
    for row, share in zip(rows, wide, strict=True):
        row.update({"left": at, "right": at + share / whole, "top": 0, "bottom": 1})
        at += (share + gap) / whole
    base = alt.Chart(_data(rows), width=1_000, height=10)
    chart = base.mark_rect().encode(**_box(1_000, 1, 10), color=_inks([str(row["ink"]) for row in rows]))
    return drawn(chart, 1_000, 10, stretch=True)


def versions_picture(module: Module) -> Markup:
    """A module's versions, the most frequent first: a bar for the part of its devices that runs each.

    Where that is an estimate by a sample, a line from end to end of its interval crosses the end of the bar.
    """
    rows: list[dict[str, object]] = []
    for version in module.versions:
        ink = "accent" if version.order == "newest" else "plain"
        row = _bar(shown(version.text, 24), version.devices, version.share, ink)
        if version.low is not None and version.high is not None:
            figures = f"{part(version.share)}  ·  {limits(version.low, version.high)}"
            row |= {"figures": figures, "low": version.low, "high": version.high}
        rows.append(row)
    if module.others:
        name = f"{module.others:,} other version{'' if module.others == 1 else 's'}"
        rows.append(_bar(name, module.others_devices, module.others_devices / module.devices, "rest"))
    for place, row in enumerate(rows):
        row.update(
            {"left": 0, "words": place * _ROW + 15, "top": place * _ROW + 21, "bottom": place * _ROW + 21 + _BAR}
        )
    height = len(rows) * _ROW
    base = alt.Chart(_data(rows), width=_WIDTH, height=height)
    box, words = _box(_WIDTH, height, height), alt.Y("words:Q", axis=None, scale=_downwards(height, height))
    track = base.mark_rect(color=INKS["track"]).encode(**box | {"x2": alt.X2("whole:Q")})
    bars = base.mark_rect().encode(**box, color=_inks([str(row["ink"]) for row in rows]))
    names = base.mark_text(align="left", baseline="alphabetic", fontSize=13, color=INKS["ink"])
    figures = base.mark_text(align="right", baseline="alphabetic", fontSize=12, color=INKS["muted"])
    texts = (
        names.encode(x=alt.value(0), y=words, text="name:N"),
        figures.encode(x=alt.value(_WIDTH), y=words, text="figures:N"),
    )
    between = [row | {"middle": place * _ROW + 21 + _BAR / 2} for place, row in enumerate(rows) if "low" in row]
    lines = alt.Chart(_data(between), width=_WIDTH, height=height).mark_rule(color=INKS["ink"], strokeWidth=2)
    across = alt.X("low:Q", axis=None, scale=alt.Scale(domain=[0, 1], range=[0, _WIDTH]))
    middle = alt.Y("middle:Q", axis=None, scale=_downwards(height, height))
    uncertain = [lines.encode(x=across, x2="high:Q", y=middle)] if between else []
    return drawn(alt.layer(track, bars, *uncertain, *texts), _WIDTH, height)


def adoption_inks(adoption: Adoption) -> tuple[str, ...]:
    """The inks of a module's versions over time: one stands for the newest that is alive, wherever it is known.

    That is not always the first of them: one that was rolled back is newer, and alive in earlier runs alone.
    """
    newest = adoption.module.newest
    others = [text for text in adoption.versions if text is not None and text != newest]
    inks = dict(zip(others, _KINDS if newest is None else _AGES[len(others)], strict=False))
    return tuple("rest" if text is None else inks.get(text, "accent") for text in adoption.versions)


def adoption_picture(adoption: Adoption, history: History) -> Markup:
    """A module over time: a column for each run, newer versions at the bottom; runs to be doubted are marked."""
    inks = adoption_inks(adoption)
    rows = [
        {"run": run, "place": place, "share": share, "ink": inks[place]}
        for run, shares in enumerate(adoption.shares)
        for place, share in enumerate(shares or ())
        if share
    ]
    marked = [{"run": run} for run, past in enumerate(history.runs) if past.label]
    runs = len(history.runs)
    across = alt.X(
        "run:O",
        axis=None,
        scale=alt.Scale(domain=list(range(runs)), range=[_LEFT, _WIDTH], paddingInner=0.18, paddingOuter=0.1),
    )
    columns = _adopted(rows).mark_bar(size=min(_WIDEST, 0.82 * (_WIDTH - _LEFT) / runs))
    shares = columns.encode(
        x=across,
        y=alt.Y("share:Q", axis=None, scale=_UP, stack="zero"),
        order="place:Q",
        color=_inks([str(row["ink"]) for row in rows]),
    )
    marks = _adopted(marked).mark_point(shape="diamond", size=56, filled=True, color=INKS["warn"], opacity=1)
    doubted = marks.encode(x=across, y=alt.value(_TOP + _COLUMNS + 9))
    return drawn(alt.layer(*_levels(), shares, doubted, *_ends(history)), _WIDTH, _TOP + _COLUMNS + _BELOW)


def _adopted(rows: Sequence[Mapping[str, object]]) -> alt.Chart:
    return alt.Chart(_data(rows), width=_WIDTH, height=_TOP + _COLUMNS + _BELOW)


def _levels() -> tuple[alt.Chart, alt.Chart]:
    """Lines at none, half and all of the devices."""
    levels = _adopted([{"level": level, "name": part(level)} for level in (0, 0.5, 1)])
    level = alt.Y("level:Q", axis=None, scale=_UP)
    lines = levels.mark_rule(color=INKS["line"], strokeWidth=1)
    names = levels.mark_text(align="right", baseline="middle", fontSize=11, color=INKS["muted"])
    return (
        lines.encode(x=alt.value(_LEFT), x2=alt.value(_WIDTH), y=level),
        names.encode(x=alt.value(_LEFT - 5), y=level, text="name:N"),
    )


def _ends(history: History) -> list[alt.Chart]:
    """The days of the first run and of the last."""
    bottom = alt.value(_TOP + _COLUMNS + _BELOW - 4)
    first, last = (_adopted([{"name": day(past.started_at)}]) for past in (history.runs[0], history.runs[-1]))
    left = first.mark_text(align="left", baseline="alphabetic", fontSize=11, color=INKS["muted"])
    right = last.mark_text(align="right", baseline="alphabetic", fontSize=11, color=INKS["muted"])
    ends = [left.encode(x=alt.value(_LEFT), y=bottom, text="name:N")]
    if len(history.runs) > 1:
        ends.append(right.encode(x=alt.value(_WIDTH), y=bottom, text="name:N"))
    return ends


def _bar(name: str, devices: int, share: float, ink: str) -> dict[str, object]:
    return {"name": name, "figures": f"{devices:,}  ·  {part(share)}", "right": share, "whole": 1, "ink": ink}


def _box(width: int, tall: int, height: int) -> dict[str, Any]:
    """Where a rectangle is: from ``left`` to ``right``, parts of the width, and from ``top`` to ``bottom``."""
    return {
        "x": alt.X("left:Q", axis=None, scale=alt.Scale(domain=[0, 1], range=[0, width])),
        "x2": alt.X2("right:Q"),
        "y": alt.Y("top:Q", axis=None, scale=_downwards(tall, height)),
        "y2": alt.Y2("bottom:Q"),
    }


def _downwards(tall: int, height: int) -> alt.Scale:
    return alt.Scale(domain=[0, tall], range=[0, height])


def _data(rows: Sequence[Mapping[str, object]]) -> alt.InlineData:
    return alt.InlineData(values=[dict(row) for row in rows])


def _inks(names: Sequence[str]) -> alt.Color:
    used = list(dict.fromkeys(names))
    return alt.Color("ink:N", legend=None, scale=alt.Scale(domain=used, range=[INKS[name] for name in used]))


INKS = {
    name: f"#0a00{place:02x}"
    for place, name in enumerate(
        ("ok", "empty", "not-found", "failed", "pending", "undrawn", "c1", "c2", "c3", "c4", "c5", "rest", "accent",
         "plain", "track", "ink", "muted", "line", "warn")
    )
}  # fmt: skip
"""Colours that stand for a class of the page's style, while a chart is drawn."""


_CLASSES = {colour: name for name, colour in INKS.items()}


_SHAPES = {"path": ("d", "transform"), "rect": ("x", "y", "width", "height", "transform"),
           "line": ("x1", "y1", "x2", "y2", "transform"), "text": ("transform", "text-anchor", "font-size",
           "font-weight")}  # fmt: skip


_DRAWN = ("opacity", "fill-opacity", "stroke-width", "stroke-dasharray")


_DECIMALS = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")


def drawn(
    chart: alt.LayerChart | alt.FacetChart | alt.Chart, width: int, height: int, *, stretch: bool = False
) -> Markup:
    """A chart as an SVG element without words for those who do not see it; the page has these beside it.

    Args:
        chart: what to draw, in the colours of ``INKS``.
        width: of the whole, in the page's pixels.
        height: the same.
        stretch: whether it is as wide as there is room, at its height.
    """
    whole = chart.configure_view(stroke=None).configure(padding=0, background="transparent", autosize="none")
    svg = vl_convert.vegalite_to_svg(whole.to_dict(), vl_version=_version(), allowed_base_urls=[])
    parts = "".join(_kept(ET.fromstring(svg)))  # noqa: S314  our own library's SVG, without entities
    how = 'class="stretch" preserveAspectRatio="none"' if stretch else 'class="picture"'
    return Markup(  # noqa: S704  every text in it was escaped again
        f'<svg {how} viewBox="0 0 {width} {height}" aria-hidden="true" focusable="false">{parts}</svg>'
    )


@cache
def _version() -> str:
    """The Vega-Lite that Altair writes for, as vl-convert names it."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def _kept(element: ET.Element) -> list[str]:
    kind = element.tag.rpartition("}")[2]
    if kind in _SHAPES:
        return _shape(kind, element)
    inner = [part for child in element if child.tag.rpartition("}")[2] != "defs" for part in _kept(child)]
    moved = element.get("transform", "")
    if not inner or kind != "g" or moved in ("", "translate(0,0)"):
        return inner
    return [f'<g transform="{Markup.escape(_short(moved))}">', *inner, "</g>"]


def _shape(kind: str, element: ET.Element) -> list[str]:
    classes = [f"{how}-{_CLASSES[ink]}" for how in ("fill", "stroke") if (ink := element.get(how, "")) in _CLASSES]
    if not classes or element.get("display") == "none":
        return []
    kept = [(name, value) for name in (*_SHAPES[kind], *_DRAWN) if (value := element.get(name)) is not None]
    attributes = "".join(f' {name}="{Markup.escape(_short(value))}"' for name, value in kept)
    text = Markup.escape("".join(element.itertext())) if kind == "text" else ""
    return [f'<{kind} class="{" ".join(classes)}"{attributes}>{text}</{kind}>']


def _short(value: str) -> str:
    return _DECIMALS.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
