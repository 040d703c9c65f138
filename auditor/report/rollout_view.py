"""How rollouts are shown: the map of products and modules, the rows of the table, and the details for the script."""

from collections import Counter, defaultdict
from dataclasses import dataclass

import orjson
from markupsafe import Markup

from auditor.analysis.rollout_states import RolloutState, RolloutThresholds
from auditor.analysis.rollouts import Rollout
from auditor.report.attention import behind_command
from auditor.report.charts import draw_sparkline
from auditor.report.filters import (
    UNKNOWN,
    display_text,
    format_days,
    format_percent,
    format_points,
    format_signed,
    format_starts,
)
from auditor.report.model import Report, RolloutDetail

MAX_MAP_ROWS, MAX_MAP_COLUMNS, MAX_MAP_BYTES = 40, 16, 250_000
"""Products and modules of the map, and its bytes."""

MAX_SHORT_MAP = 12
"""Products of a map that is less tall than the details of a module."""

_MAP_WIDTH, _SHORT_MAP_WIDTH, _CHARACTER_WIDTH = 484, 676, 6.6
"""Least pixels of all modules of a map, of those of a short one, and pixels of a character of their names."""

MAX_DETAIL_BYTES = 300_000
"""Bytes of the details."""

_SHADE_LIMITS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""Shares from which a cell of the map is darker."""

SHADES = tuple(f"h{number}" for number in range(len(_SHADE_LIMITS) + 2))
"""Shades of the map, the lightest first; the last one is for shares of rollouts that are done."""

GLYPHS: dict[RolloutState, str] = {
    "rolled_back": "↓", "stalled": "▪", "moving": "↑", "done": "✓", "not_started": "·", "unknown": "?",
}  # fmt: skip
"""Sign of each state of a rollout, in the order in which tables have them."""

_COLORS: dict[RolloutState, str] = {"rolled_back": "bad", "stalled": "warn", "moving": "accent"}
"""Color of each state; ``muted`` for the others."""

_NOTABLE_CHANGE = 0.01
"""Loss of a share per day that is marked."""


@dataclass(frozen=True, slots=True)
class MapCell:
    """A module of a product in the map: the number of its rollout, its color, and what it says."""

    number: int
    module: str
    shade: str
    state: RolloutState
    text: str
    label: str
    link: str


@dataclass(frozen=True, slots=True)
class MapRow:
    """A product in the map, with a cell for each module; None: it has no such module."""

    account: str
    product_key: str | None
    product_name: str | None
    devices: int
    cells: tuple[MapCell | None, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Products and modules by the share of devices on target: the largest ones, and the number of all products."""

    modules: tuple[str, ...]
    rows: tuple[MapRow, ...]
    products: int
    states: frozenset[RolloutState]

    @property
    def is_short(self) -> bool:
        """Whether the details go below the map: beside it they would be much taller."""
        return len(self.rows) <= MAX_SHORT_MAP

    @property
    def has_long_names(self) -> bool:
        """Whether a name of a module is wider than its column, so that the headings are turned."""
        room = (_SHORT_MAP_WIDTH if self.is_short else _MAP_WIDTH) / max(1, len(self.modules))
        return max((_CHARACTER_WIDTH * len(name) + 6 for name in self.modules), default=0) > room


def arrange_heat_map(report: Report, linked: int) -> HeatMap:
    """Arrange the rollouts by product and module, those with the most devices first.

    Args:
        report: the report.
        linked: number of rollouts, from the first one, that have a row in the table.
    """
    products: dict[tuple[str, str | None], dict[str, int]] = defaultdict(dict)
    sizes: Counter[tuple[str, str | None]] = Counter()
    modules: Counter[str] = Counter()
    titles: dict[str, str] = {}
    rollouts = [each.rollout for each in report.rollouts.rollouts]
    for number, each in enumerate(rollouts):
        product = each.account, each.product_key
        products[product][each.module_name.lower()] = number
        sizes[product] = max(sizes[product], each.devices)  # most of its devices report the largest module
        modules[each.module_name.lower()] += each.devices
        titles.setdefault(each.module_name.lower(), each.module_name)  # as the largest rollout has it
    columns = sorted(name for name, _ in modules.most_common(MAX_MAP_COLUMNS))
    rows, room = [], MAX_MAP_BYTES
    for product, devices in sizes.most_common(MAX_MAP_ROWS):
        numbers = [products[product].get(name) for name in columns]
        cells = tuple(None if at is None else _map_cell(rollouts[at], at, linked) for at in numbers)
        room -= sum(150 + 2 * _escaped_bytes(cell.label) for cell in cells if cell is not None)
        if room < 0:
            break
        name = next(rollouts[at].product_name for at in products[product].values())
        counted = report.rollouts.devices_by_product.get(product, devices)
        rows.append(MapRow(*product, name, counted, cells))
    states = frozenset(cell.state for row in rows for cell in row.cells if cell is not None)
    headings = tuple(titles[name] for name in columns)
    return HeatMap(headings, tuple(rows), max(len(products), report.coverage.product_count), states)


def _map_cell(rollout: Rollout, number: int, linked: int) -> MapCell:
    share = rollout.share
    if rollout.state == "rolled_back":
        shade = "back"
    elif share is None:
        shade = "unknown"
    else:
        shade = SHADES[-1] if rollout.state == "done" else SHADES[sum(share >= limit for limit in _SHADE_LIMITS)]
    sign = "" if rollout.state in ("done", "not_started") else f"{GLYPHS[rollout.state]} "
    text = "?" if share is None else f"{sign if rollout.state != 'unknown' else ''}{_whole_percent(share)}"
    names = f"{display_text(rollout.product_name or rollout.product_key, 32)}, {display_text(rollout.module_name, 24)}"
    label = f"{names}: {_describe_share(rollout, 24)}, {rollout.state.replace('_', ' ')}"
    link = f"rollout-{number}" if number < linked else "rollouts"
    return MapCell(number, rollout.module_name, shade, rollout.state, text, label, link)


def _whole_percent(share: float) -> int:
    """Return a share in whole percent: 100 only for all, and 0 only for none."""
    return int(100 * share) if share in {0.0, 1.0} else min(99, max(1, round(100 * share)))


def _describe_share(rollout: Rollout, length: int) -> str:
    """Return the share on the target, or what is unknown of it."""
    if rollout.target is None:
        return "the newest version is unknown"
    target = display_text(rollout.target, length)
    return f"{format_percent(rollout.share)} on {target}" if rollout.share is not None else f"share on {target} unknown"


def _escaped_bytes(text: str) -> int:
    return len(text.encode()) + 4 * sum(character in "<>&'\"" for character in text)


def draw_rollout(rollout: Rollout) -> str:
    """Draw the share by run, in the color of the rollout's state."""
    return draw_sparkline(rollout.shares, _COLORS.get(rollout.state, "muted"), 0, 1, filled=False)


def describe_rollouts(report: Report) -> str:
    """Return how many rollouts are active, and in which states they are."""
    rollouts = report.rollouts
    states: tuple[tuple[RolloutState, str], ...] = (
        ("moving", "moving"), ("stalled", "stalled"), ("rolled_back", "rolled back"),
    )  # fmt: skip
    parts = ", ".join(f"{rollouts.count(state):,} {name}" for state, name in states if rollouts.count(state))
    return f"{parts or 'none active'} of {rollouts.total:,}"


def list_state_filters(report: Report, shown: int) -> list[tuple[str, str, int]]:
    """Return the filters of the table of rollouts: the states they show, their title, and the number of its rows.

    The first one is in effect when the page is opened: active rollouts, or all if none is active.

    Args:
        report: the report.
        shown: number of rollouts, from the first one, that have a row in the table.
    """
    rows: Counter[RolloutState] = Counter(each.rollout.state for each in report.rollouts.rollouts[:shown])
    active: tuple[RolloutState, ...] = ("rolled_back", "stalled", "moving")
    every = ("", "All", rows.total())
    by_state = [
        (state, f"{glyph} {state.replace('_', ' ').capitalize()}", rows[state])
        for state, glyph in GLYPHS.items()
        if rows[state]
    ]
    count = sum(rows[state] for state in active)
    return [(" ".join(active), "Active", count), *by_state, every] if count else [every, *by_state]


def describe_states(thresholds: RolloutThresholds) -> str:
    """Return the rules of the states in a sentence each."""
    days = format_days(thresholds.stalled_after)
    moving = f"{100 * thresholds.moving:g} points"
    return (
        "The first rule that applies decides. "
        f"Done: at least {format_percent(thresholds.done)} of the devices run the target. "
        f"Rolled back: the share is more than {100 * thresholds.rolled_back:g} points below its peak, and has gained "
        f"less than {moving} since then. "
        f"Not started: it never reached {format_percent(thresholds.started)}. "
        f"Moving: it grew by at least {moving} in {days}. "
        "Stalled: it did not. "
        "Unknown: the versions have no order, too few devices answered, the share is imprecise, or the runs cover too "
        "few days."
    )


def encode_details(report: Report) -> Markup:
    """Return the versions of modules over the runs as JSON for the script, in which no text can end the element."""
    rollouts = report.rollouts
    room, modules = MAX_DETAIL_BYTES, []
    for each in rollouts.rollouts:
        entry = _detail_entry(each, report.path)
        room -= len(encode_json(entry).encode())
        if room < 0:
            break
        modules.append(entry)
    if not modules:
        return Markup()
    starts = format_starts([each.started_at for each in rollouts.runs])
    return Markup(encode_json({"runs": starts, "modules": modules}))  # noqa: S704  escaped by encode_json


def _detail_entry(detail: RolloutDetail, run: str) -> dict[str, object]:
    rollout = detail.rollout
    command = behind_command(run, rollout, "list them") if rollout.behind else None
    share = _describe_share(rollout, 32)
    change = "" if rollout.change is None else format_points(rollout.change)
    return {
        "account": display_text(rollout.account), "product": display_text(rollout.product_key),
        "name": display_text(rollout.product_name or rollout.product_key, 40),
        "module": display_text(rollout.module_name),
        "state": rollout.state, "glyph": GLYPHS[rollout.state], "share": share,
        "change": f"{change} a day" if change else "", "devices": rollout.devices, "count": detail.version_count,
        "command": "" if command is None else command.line,
        "versions": [
            [None if each.version is None else display_text(each.version, 32), each.age, each.devices]
            for each in detail.versions
        ],
    }  # fmt: skip


def encode_json(value: object) -> str:
    """Return JSON without a character that HTML or JavaScript could read as something else."""
    text = orjson.dumps(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def format_change_of_share(change: float | None) -> str:
    """Format a change of a share in percentage points, without their name; a dash if it is unknown."""
    return UNKNOWN if change is None else format_signed(100 * change)


def change_tone(rollout: Rollout) -> str:
    """Return the tone of the change of a share."""
    return "bad" if rollout.change is not None and rollout.change <= -_NOTABLE_CHANGE else ""
