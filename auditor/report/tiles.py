"""The verdict on a run, and the tiles of the first screen: a number each, with its change and its values by run."""

from collections.abc import Sequence
from dataclasses import dataclass

from auditor.analysis.rollout_states import RolloutState
from auditor.policy.model import Severity
from auditor.query.warnings import is_tolerated, state_label
from auditor.report.attention import Tone
from auditor.report.filters import format_number, format_percent, format_points, format_signed, format_since
from auditor.report.model import Report
from auditor.runs.manifest import SUCCESSFUL_STATES
from auditor.text.formatting import format_count


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a run: its state in a word, a sentence, and their tone."""

    state: str
    sentence: str
    tone: Tone


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


def read_verdict(report: Report) -> Verdict:
    """Return the verdict on the run against ``max_failed``."""
    manifest = report.manifest
    counts, unsampled = report.coverage.counts, report.coverage.unsampled
    tolerated = is_tolerated(manifest)
    state = state_label(report.state, counts, unsampled, tolerated=tolerated)
    if "tampered" in report.labels:
        return Verdict("files were changed", "do not rely on these numbers", "bad")
    if manifest.state == "running":
        tone: Tone = "bad" if report.state == "killed" else "warn"
        return Verdict(state, f"{format_number(counts.pending - unsampled)} devices are pending", tone)
    if manifest.state == "aborted":
        nothing = not report.coverage.fleet and not manifest.missing_devices
        return Verdict("aborted", "no device was listed" if nothing else manifest.describe_unanswered(), "bad")
    unanswered = manifest.remaining_devices or manifest.missing_devices or manifest.fleet.shared_identities
    sentence = manifest.describe_unanswered() if unanswered else "every device has an answer"
    if unsampled:
        sentence = f"{sentence}; {_describe_sampled(report)}" if unanswered else _describe_sampled(report)
    if manifest.state == "within_tolerance" or (tolerated and unanswered):
        kind = "sample" if unsampled else "complete"
        return Verdict(f"{kind}, failures within max_failed", sentence, "good")
    if unsampled and state == "sample":
        return Verdict("sample", _describe_sampled(report), "good")
    complete = manifest.state in SUCCESSFUL_STATES and not report.labels
    return Verdict(
        "incomplete" if not complete and state == "complete" else state, sentence, "good" if complete else "bad"
    )


def _describe_sampled(report: Report) -> str:
    coverage = report.coverage
    answered = format_percent(coverage.answered)
    return f"{answered} of {coverage.sampled:,} devices sampled from {coverage.fleet:,} answered"


def list_tiles(report: Report) -> list[Tile]:
    """Return the tiles of the first screen."""
    tiles = [_device_tile(report), _answer_tile(report)] if report.coverage.fleet else []
    if report.rollouts.share is not None:
        tiles += [_target_tile(report), _rollout_tile(report)]
    if report.policy is not None and report.policy.problem is None and report.has_answers:
        tiles.append(_policy_tile(report))
    if report.changes is not None and report.changes.shares is None and report.has_answers:
        tiles.append(_change_tile(report))
    return tiles


def _since(report: Report, started_at: str) -> str:
    return format_since(started_at, report.manifest.started_at)


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
    since = "" if previous is None else f" since {_since(report, previous.started_at)}"
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
    answered = report.coverage.answered
    of = f" of the {format_percent(answered)} of devices that answered" if report.labels and answered < 1 else ""
    ages = rollouts.ages[-1] if rollouts.ages else None
    without = f"; {ages[-1]:,} more have no target" if ages and ages[-1] else ""
    noun = f"of {rollouts.devices:,} installed modules{of}{without}"
    counts_below: tuple[TileCount, ...] = (TileCount("modules.on_target", rollouts.on_target, noun),)
    if rollouts.previous_run is not None:
        moved = f"{'target' if rollouts.moved_targets == 1 else 'targets'} moved since"
        since = _since(report, rollouts.previous_run.started_at)
        counts_below += (TileCount("targets.moved", rollouts.moved_targets, f"{moved} {since}"),)
    series = tuple(_on_target(ages) for ages in rollouts.ages)
    change = "" if rollouts.change is None else format_points(rollouts.change)
    share = rollouts.share
    return Tile(
        "modules.share", "On target", share or 0, format_percent(share), counts_below, change,
        series=series, limits=(0, 1),
    )  # fmt: skip


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
    moving = report.rollouts.count("moving")
    text = f"{moving:,} of {report.rollouts.total:,}"
    return Tile("rollouts.moving", "Rollouts moving", moving, text, counts_below,
                series=report.rollouts.done_by_run, limits=(0, None))  # fmt: skip


def _policy_tile(report: Report) -> Tile:
    policy = report.policy
    verdicts = {} if policy is None else policy.verdicts
    names = (
        ("warning", "warning", "warnings"),
        ("note", "note", "notes"),
        ("undecided", "undecided", "undecided"),
        ("compliant", "rule complies", "rules comply"),
    )
    undecided = 0 if policy is None else policy.undecided
    numbers = {**verdicts, "undecided": undecided}
    counts_below = tuple(
        TileCount(f"policy.{key}", numbers.get(key, 0), one if numbers.get(key) == 1 else more)
        for key, one, more in names
    )
    severities: tuple[tuple[Severity, Tone], ...] = (("error", "bad"), ("warning", "warn"), ("note", "plain"))
    for severity, color in severities:
        if count := verdicts.get(severity, 0):
            others = tuple(each for each in counts_below if each.figure != f"policy.{severity}")
            return Tile(f"policy.{severity}", "Policy", count, format_count(count, severity), others, tone=color)
    if policy is not None and policy.is_undecided:
        return Tile("policy.undecided", "Policy", undecided, f"{undecided:,} undecided", (), tone="warn")
    return Tile("policy.violated", "Policy", 0, "none violated", counts_below, tone="good")


def _change_tile(report: Report) -> Tile:
    changes = report.changes
    assert changes is not None  # noqa: S101  the caller's condition
    counts, since = changes.counts, _since(report, changes.started_at)
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
