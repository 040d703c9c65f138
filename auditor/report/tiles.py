"""The tiles of a report's first screen: a number each, with its change and its values by run."""

from collections.abc import Sequence
from dataclasses import dataclass

from auditor.analysis.rollout_states import RolloutState
from auditor.policy.model import Severity
from auditor.report.attention import Tone, read_verdict
from auditor.report.filters import format_day, format_number, format_percent, format_points, format_signed
from auditor.report.model import Report
from auditor.text.formatting import format_count


@dataclass(frozen=True, slots=True)
class TileCount:
    """A count below a tile's value: its name as a figure, and its noun."""

    figure: str
    count: int
    noun: str


@dataclass(frozen=True, slots=True)
class Tile:
    """A number of the first screen.

    Attributes:
        figure: its name.
        title: what it is.
        value: the number.
        text: the number as it is shown.
        counts_below: counts below it; those of zero are left out.
        change: its change since the previous run; empty: there is none.
        tone: tone of the number.
        series: its value by run, for a sparkline; None: unknown in that run.
        limits: limits of the sparkline's scale; None: those of the values.
    """

    figure: str
    title: str
    value: float
    text: str
    counts_below: tuple[TileCount, ...]
    change: str = ""
    tone: Tone = "plain"
    series: tuple[float | None, ...] = ()
    limits: tuple[float | None, float | None] = (None, None)

    @property
    def color(self) -> str:
        """Color of the sparkline."""
        return "accent" if self.tone == "plain" else self.tone


def list_tiles(report: Report) -> list[Tile]:
    """Return the tiles of the first screen."""
    tiles = [_device_tile(report), _answer_tile(report)]
    if report.rollouts.share is not None:
        tiles += [_target_tile(report), _rollout_tile(report)]
    if report.policy is not None and report.policy.problem is None:
        tiles.append(_policy_tile(report))
    if report.changes is not None and report.changes.shares is None:
        tiles.append(_change_tile(report))
    return tiles


def _device_tile(report: Report) -> Tile:
    coverage = report.coverage
    runs, previous = report.rollouts.runs, report.rollouts.previous_run
    added = 0 if previous is None else coverage.fleet - previous.devices.fleet
    counts_below = (
        TileCount("products.all", coverage.product_count, "product" if coverage.product_count == 1 else "products"),
        TileCount(
            "accounts.all",
            report.problems.account_count,
            "account" if report.problems.account_count == 1 else "accounts",
        ),
    )
    since = "" if previous is None else f" since {format_day(previous.started_at)}"
    change = f"{format_signed(added, 0)}{since}" if added else ""
    series = tuple(float(run.devices.fleet) for run in runs)
    return Tile("devices.fleet", "Devices", coverage.fleet, format_number(coverage.fleet), counts_below, change,
                series=series, limits=(0, 1.25 * max((1.0, *series))))  # fmt: skip


def _answer_tile(report: Report) -> Tile:
    coverage, previous = report.coverage, report.rollouts.previous_run
    states = coverage.by_state
    names = (("failed", "failed"), ("pending", "pending"), ("not_found", "not found"), ("unsampled", "not sampled"))
    counts_below = tuple(TileCount(f"devices.{name}", states[name], noun) for name, noun in names)
    counts_below += (TileCount("ages.carried", coverage.ages.carried, "carried"),)
    series = tuple(run.answered for run in report.rollouts.runs)
    before = None if previous is None else previous.answered
    change = "" if before is None else format_points(coverage.answered - before)
    low = min((share for share in series if share is not None), default=0.0)
    return Tile(
        "devices.answered", "Answered", coverage.answered, format_percent(coverage.answered), counts_below, change,
        read_verdict(report).tone, series, (min(0.9, low), 1),
    )  # fmt: skip


def _target_tile(report: Report) -> Tile:
    rollouts = report.rollouts
    sources = {str(each.rollout.target_source) for each in rollouts.rollouts if each.rollout.target is not None}
    kinds: dict[tuple[str, ...], str] = {("newest",): "newest", ("released",): "released"}
    kind = kinds.get(tuple(sources), "target")
    title = f"On {kind} firmware"
    answered = report.coverage.answered
    of = f" of the {format_percent(answered)} of devices that answered" if report.labels and answered < 1 else ""
    ages = rollouts.ages[-1] if rollouts.ages else None
    without = f"; {ages[-1]:,} more have no order" if ages and ages[-1] else ""
    noun = f"of {rollouts.devices:,} installed modules{of}{without}"
    counts_below = (TileCount("modules.on_target", rollouts.on_target, noun),)
    series = tuple(_on_target(ages) for ages in rollouts.ages)
    change = "" if rollouts.change is None else format_points(rollouts.change)
    share = rollouts.share
    return Tile(
        "modules.share", title, share or 0, format_percent(share), counts_below, change, series=series, limits=(0, 1)
    )


def _on_target(ages: Sequence[int] | None) -> float | None:
    ordered = sum(ages[:-1]) if ages else 0
    return ages[0] / ordered if ages and ordered else None


def _rollout_tile(report: Report) -> Tile:
    states: tuple[RolloutState, ...] = ("rolled_back", "stalled", "done", "not_started", "unknown")
    counts_below = tuple(
        TileCount(f"rollouts.{state}", report.rollouts.count(state), state.replace("_", " ")) for state in states
    )
    unknown = report.rollouts.unknown_count
    counts_below += (TileCount("modules.unknown", unknown, f"{'module' if unknown == 1 else 'modules'} without data"),)
    moving, active = report.rollouts.count("moving"), report.rollouts.active
    text = f"{moving:,} of {active:,}" if active else "0"
    return Tile("rollouts.moving", "Rollouts moving", moving, text, counts_below,
                series=report.rollouts.done_by_run, limits=(0, None))  # fmt: skip


def _policy_tile(report: Report) -> Tile:
    policy = report.policy
    verdicts = {} if policy is None else policy.verdicts
    names = (
        ("warning", "warning", "warnings"),
        ("note", "note", "notes"),
        ("unparseable", "unparseable", "unparseable"),
        ("not_seen", "rule not seen", "rules not seen"),
        ("compliant", "rule complies", "rules comply"),
    )
    counts_below = tuple(
        TileCount(f"policy.{key}", verdicts.get(key, 0), one if verdicts.get(key) == 1 else more)
        for key, one, more in names
    )
    severities: tuple[tuple[Severity, Tone], ...] = (("error", "bad"), ("warning", "warn"), ("note", "plain"))
    for severity, color in severities:
        if count := verdicts.get(severity, 0):
            others = tuple(each for each in counts_below if each.figure != f"policy.{severity}")
            return Tile(f"policy.{severity}", "Policy", count, format_count(count, severity), others, tone=color)
    tone: Tone = "warn" if policy is not None and policy.is_undecided else "good"
    return Tile("policy.violated", "Policy", 0, "none violated", counts_below, tone=tone)


def _change_tile(report: Report) -> Tile:
    changes = report.changes
    assert changes is not None  # noqa: S101  the caller's condition
    counts, since = changes.counts, format_day(changes.started_at)
    names = (
        ("upgraded", "upgraded"),
        ("changed", "changed"),
        ("joined", "new devices"),
        ("left", "gone"),
        ("not_seen", "not seen"),
    )
    counts_below = tuple(TileCount(f"drift.{name}", getattr(counts, name), noun) for name, noun in names)
    tone: Tone
    name, text, tone = "upgraded", format_number(counts.upgraded), "plain"
    if counts.downgraded:
        name, text, tone = "downgraded", f"{counts.downgraded:,} ↓", "bad"
    recorded = (None if run.changes is None else float(run.changes.get(name, 0)) for run in report.rollouts.runs[:-1])
    return Tile(
        f"drift.{name}", name.capitalize(), getattr(counts, name), text,
        tuple(each for each in counts_below if each.figure != f"drift.{name}"), f"since {since}", tone,
        (*recorded, float(getattr(counts, name))), (0, None),
    )  # fmt: skip
