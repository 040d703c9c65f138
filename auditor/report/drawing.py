"""Pictures made safe for the page: a chart as SVG of a few plain elements, coloured by the page's style alone.

Altair says what is drawn, vl-convert draws it when the page is written. Of that SVG only shapes and text are kept:
nothing that acts, links, or styles itself, so that the page's policy can forbid all of it, and so that dark, light and
print colour one and the same picture.
"""

import re
from functools import cache
from xml.etree import ElementTree as ET

import altair as alt
import vl_convert
from markupsafe import Markup

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
