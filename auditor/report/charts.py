"""Charts as SVG: shapes in the color classes of the page's style, without scripts, links or inline styles.

A chart is hidden from screen readers: the page has its numbers as text. Text is never scaled: the plot fills its place,
and the labels beside it are SVG elements of their own, positioned in percent.
"""

from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup

STATE_COLORS = {
    "ok": "ok", "empty": "empty", "not_found": "not-found", "failed": "failed", "pending": "pending",
    "unsampled": "unsampled",
}  # fmt: skip
"""Color of each state of a device."""

AGE_COLORS = ("n0", "n1", "n2", "n3", "unordered")
"""Color of each of ``AGES``: the newer, the darker."""

COLORS = (
    *STATE_COLORS.values(),
    *AGE_COLORS,
    "newer",
    "track",
    "accent",
    "good",
    "warn",
    "bad",
    "muted",
    "line",
    "plain",
)
"""Colors of the page's style with a class for each use."""

_WIDTH, _HEIGHT = 120, 28
"""Coordinates of a sparkline, which is stretched to its place."""

_MIN_SEGMENT = 0.004
"""Width of the smallest segment of a bar, so that it stays visible."""

_EDGE = 4
"""Height of the edges of a chart, in percent."""

_DATE_INTERVALS = 3
"""Intervals between the starts below a chart, if it has as many runs."""

_MIN_LABEL_DISTANCE = 8.0
"""Distance of labels at the end of a chart, in percent of its height."""


def draw_bar(segments: Iterable[tuple[str, float]], kind: str = "mini") -> Markup:
    """Draw a bar of segments, each a color and its size, in proportion to their sum."""
    sizes = [(color, size) for color, size in segments if size > 0]
    total = sum(size for _, size in sizes)
    widths = [max(size / total, _MIN_SEGMENT) for _, size in sizes]
    scale = 100 / sum(widths) if widths else 0
    shapes, left = [], 0.0
    for (color, _), width in zip(sizes, widths, strict=True):
        shapes.append(f'<rect class="fill-{color}" x="{_number(left)}" width="{_number(width * scale)}" height="8"/>')
        left += width * scale
    return _svg(f"{kind} bar", 100, 8, shapes)


def draw_share(share: float, color: str, low: float | None = None, high: float | None = None) -> Markup:
    """Draw a share as a bar on its track; a line marks the interval of an estimate."""
    shapes = [
        '<rect class="fill-track" width="100" height="8"/>',
        f'<rect class="fill-{color}" width="{_number(100 * share)}" height="8"/>',
    ]
    if low is not None and high is not None:
        limits = f'x1="{_number(100 * low)}" x2="{_number(100 * high)}"'
        shapes.append(f'<line class="interval" {limits} y1="4" y2="4"/>')
    return _svg("mini bar", 100, 8, shapes)


def draw_sparkline(
    values: Sequence[float | None],
    color: str,
    low: float | None = None,
    high: float | None = None,
    *,
    filled: bool = True,
) -> Markup | str:
    """Draw values by run as a line with a dot at its end; None: a gap. Nothing for fewer than two.

    Args:
        values: a value for each run.
        color: color of the line.
        low: lower limit of the scale; None: the least value.
        high: upper limit of the scale; None: the greatest value.
        filled: draw an area below the line.
    """
    present = [value for value in values if value is not None]
    if len(present) < 2:  # noqa: PLR2004  a line has two ends
        return ""
    low = min(present) if low is None else low
    high = max(present) if high is None else high
    if low == high:
        low, high = min(0.0, low), max(1.0, high * 2)
    lines, areas = [], []
    for part in _parts(values):
        points = [(_across(at, len(values), _WIDTH - 8) + 2, _down(value, low, high)) for at, value in part]
        path = _path(points)
        lines.append(path)
        areas.append(f"{path}V{_HEIGHT}H{_number(points[0][0])}Z")
    at, last = [(at, value) for at, value in enumerate(values) if value is not None][-1]
    dot = f"M{_number(_across(at, len(values), _WIDTH - 8) + 2)} {_number(_down(last, low, high))}h.01"
    shapes = [
        *([f'<path class="fill-{color} area" d="{"".join(areas)}"/>'] if filled else []),
        f'<path class="stroke-{color} line" d="{"".join(lines)}"/>',
        f'<path class="stroke-{color} dot" d="{dot}"/>',
    ]
    return _svg("spark", _WIDTH, _HEIGHT, shapes)


def draw_ages(
    runs: Sequence[Sequence[float] | None], labels: Sequence[str], dates: Sequence[str], marked: Sequence[int] = ()
) -> Markup:
    """Draw shares by run as areas on top of each other, the first one at the bottom, with labels at their ends.

    Args:
        runs: for each run the share of each area; None: the run has none, and is bridged.
        labels: a label for each area; empty: it has none.
        dates: the start of each run.
        marked: numbers of runs that are marked by a line.
    """
    places = [(at, shares) for at, shares in enumerate(runs) if shares is not None]
    if len(places) == 1:  # a single run is a column
        places = [(0, places[0][1]), (len(runs) - 1 or 1, places[0][1])]
    count = max(len(runs), 2)
    lower = [0.0] * len(places)
    shapes, ends = [], []
    for area, color in enumerate(AGE_COLORS[: len(labels)]):
        upper = [bottom + shares[area] for bottom, (_, shares) in zip(lower, places, strict=True)]
        if any(shares[area] for _, shares in places):
            top = [(_across(at, count, 100), 100 * (1 - y)) for (at, _), y in zip(places, upper, strict=True)]
            below = [(_across(at, count, 100), 100 * (1 - y)) for (at, _), y in zip(places, lower, strict=True)]
            shapes.append(f'<path class="fill-{color}" d="{_path(top)}{_path(below[::-1], start="L")}Z"/>')
            ends.append((100 * (1 - (upper[-1] + lower[-1]) / 2), labels[area]))
        lower = upper
    shapes += [f'<path class="grid" d="M0 {y}H100"/>' for y in (25, 50, 75)]
    shapes += [f'<path class="mark" d="M{_number(min(99.7, _across(at, count, 100)))} 0V100"/>' for at in marked]
    plot = _svg("plot", 100, 100, shapes)
    axis = _labels("axis", "end", [(y, f"{100 - y}%") for y in (0, 25, 50, 75, 100)])
    return Markup('<div class="chart">{}{}{}{}</div>').format(
        axis, plot, _labels("ends", "start", _spread(ends)), _date_labels(dates)
    )


def _date_labels(dates: Sequence[str]) -> Markup:
    """Draw the starts of some runs below a chart, the first and the last one included.

    If they have times, there is room for these two. The last one has no day if it is that of the first one.
    """
    count = len(dates)
    has_times = any(", " in date for date in dates)
    intervals = 1 if has_times else max(1, min(_DATE_INTERVALS, (count - 1) // 2))
    labelled = sorted({round(part * (count - 1) / intervals) for part in range(intervals + 1)})
    labels = []
    for at in labelled:
        anchor = "start" if at == 0 else "end" if at == count - 1 else "middle"
        kind = "between" if 0 < at < count - 1 else "main"
        left = _number(_across(at, max(count, 2), 100))
        text = dates[at].removeprefix(f"{dates[0].partition(', ')[0]}, ") if at else dates[at]
        labels.append(
            Markup('<text class="{}" x="{}%" y="12" text-anchor="{}">{}</text>').format(kind, left, anchor, text)
        )
    return Markup('<svg class="dates" aria-hidden="true" focusable="false">{}</svg>').format(Markup("").join(labels))


def _labels(kind: str, anchor: str, places: Iterable[tuple[float, str]]) -> Markup:
    """Draw texts at heights in percent."""
    x = "100%" if anchor == "end" else "0"
    texts = [
        Markup('<text x="{}" y="{}%" dy="{}" text-anchor="{}">{}</text>').format(x, _number(y), _shift(y), anchor, text)
        for y, text in places
        if text
    ]
    return Markup('<svg class="{}" aria-hidden="true" focusable="false">{}</svg>').format(kind, Markup("").join(texts))


def _shift(y: float) -> str:
    """Return how far a text's baseline is below a height in percent: at the edges it stays inside."""
    return ".7em" if y < _EDGE else "0" if y > 100 - _EDGE else ".35em"


def _spread(ends: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Move labels apart that would overlap: upwards, as the areas are in order from the bottom; then down again."""
    places = [y for y, _ in ends]
    for at in range(1, len(places)):
        places[at] = min(places[at], places[at - 1] - _MIN_LABEL_DISTANCE)
    if places and places[-1] < 0:
        places[-1] = 0.0
        for at in range(len(places) - 2, -1, -1):
            places[at] = max(places[at], places[at + 1] + _MIN_LABEL_DISTANCE)
    return [(y, text) for y, (_, text) in zip(places, ends, strict=True)]


def color_classes() -> str:
    """Return the style of the classes that charts use."""
    uses = (("fill", "fill"), ("stroke", "stroke"), ("bg", "background"))
    return "".join(f".{use}-{name} {{ {key}: var(--{name}); }}\n" for name in COLORS for use, key in uses)


def state_segments(by_state: Mapping[str, int]) -> list[tuple[str, float]]:
    """Return the segments of a bar of devices by state."""
    return [(color, by_state.get(state, 0)) for state, color in STATE_COLORS.items()]


def _parts(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Return runs of values without a gap, with their places."""
    parts: list[list[tuple[int, float]]] = [[]]
    for at, value in enumerate(values):
        if value is not None:
            parts[-1].append((at, value))
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _across(at: int, count: int, width: float) -> float:
    return at * width / (count - 1)


def _down(value: float, low: float, high: float) -> float:
    return _HEIGHT - 3 - (min(max(value, low), high) - low) / (high - low) * (_HEIGHT - 6)


def _path(points: Iterable[tuple[float, float]], start: str = "M") -> str:
    return "".join(f"{start if at == 0 else 'L'}{_number(x)} {_number(y)}" for at, (x, y) in enumerate(points))


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _svg(kind: str, width: int, height: int, shapes: Sequence[str]) -> Markup:
    box = f'viewBox="0 0 {width} {height}" preserveAspectRatio="none"'
    return Markup(f'<svg class="{kind}" {box} aria-hidden="true" focusable="false">{"".join(shapes)}</svg>')  # noqa: S704  numbers and our own color names only
