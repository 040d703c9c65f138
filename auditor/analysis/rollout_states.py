"""The state of a rollout, from the share of its target over the runs. One definition for all that shows a state.

The rules are tried in this order. ``last`` is the newest share, the peak the largest one before it.

| state | rule |
|---|---|
| ``done`` | ``last`` is at least ``done`` |
| ``rolled_back`` | it is more than ``rolled_back`` below the peak, and has gained less than ``moving`` since then |
| ``not_started`` | no share is as large as ``started`` |
| ``moving`` | it is at least ``moving`` above the share of ``stalled_after`` before, or of the oldest run |
| ``stalled`` | none of these, and the shares cover ``stalled_after`` |
| ``unknown`` | none of these; or the share is unknown, or an interval that several states fit |

A share is an interval if its run is a sample, or if devices have no answer that usually have one. A rule applies to an
interval if it applies to each share in it. Imprecise shares of earlier runs are ignored if there are precise ones, so
that a sample, or a run that was cut short, changes no state of the runs after it. They count only where they prove a
far higher peak.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from auditor.config.settings import RolloutSettings, parse_percentage
from auditor.text.durations import parse_duration
from auditor.text.formatting import SECONDS_PER_DAY

RolloutState = Literal["done", "moving", "stalled", "rolled_back", "not_started", "unknown"]

ROLLOUT_STATES: tuple[RolloutState, ...] = get_args(RolloutState)

UnknownReason = Literal["no_order", "few_answers", "imprecise", "short_history"]
"""Why a state is unknown: no version is the newest of all, few devices of the product have an answer, the share is too
imprecise, or the runs cover less than ``stalled_after``."""

_SLACK = 0.9
"""Fraction of ``stalled_after`` after which it counts as over: runs do not start at the same second every day."""


@dataclass(frozen=True, slots=True)
class RolloutThresholds:
    """Thresholds of the rules, as fractions and days; see ``RolloutSettings``."""

    done: float
    moving: float
    stalled_after: float
    rolled_back: float
    started: float
    selected: float
    answered: float

    @property
    def precise(self) -> float:
        """Width of an interval up to which it counts as a number."""
        return self.moving / 2


def parse_thresholds(settings: RolloutSettings) -> RolloutThresholds:
    """Return the thresholds in valid settings."""
    shares = {
        name: parse_percentage(getattr(settings, name))
        for name in ("done", "moving", "rolled_back", "started", "selected", "answered")
    }
    return RolloutThresholds(stalled_after=parse_duration(settings.stalled_after) / SECONDS_PER_DAY, **shares)


DEFAULT_THRESHOLDS = parse_thresholds(RolloutSettings())


@dataclass(frozen=True, slots=True)
class TargetShare:
    """The share of a target in a run, with the limits between which it is.

    Attributes:
        day: start of the run, in days since 1970.
    """

    day: float
    share: float
    low: float
    high: float


def rollout_state(
    shares: Sequence[TargetShare], thresholds: RolloutThresholds
) -> tuple[RolloutState, UnknownReason | None]:
    """Return the state at the last of some shares, the oldest first, and why it is unknown."""
    last, earlier = shares[-1], comparable_shares(shares[:-1], thresholds)
    ended = [at for at, each in enumerate(earlier) if last.day - each.day >= _SLACK * thresholds.stalled_after]
    for state, is_certain, is_possible in _rules(last, earlier, ended[-1] if ended else 0, thresholds):
        if is_certain:
            return state, None
        if is_possible:
            return "unknown", "imprecise"
    return ("stalled", None) if ended else ("unknown", "short_history")


def _rules(
    last: TargetShare, earlier: Sequence[TargetShare], reference: int, thresholds: RolloutThresholds
) -> Iterator[tuple[RolloutState, bool, bool]]:
    """Yield the rules in their order: a state, whether it is certain, and whether it is possible.

    ``reference`` is the number of the earlier share that is ``stalled_after`` old.
    """
    low, high = _limits(last, thresholds)
    yield "done", _reaches(low, thresholds.done), _reaches(high, thresholds.done)
    before = [_limits(each, thresholds) for each in earlier]
    peak_low, peak_high = (max((each[side] for each in before), default=0.0) for side in (0, 1))
    is_below = not _reaches(thresholds.rolled_back, peak_low - high)
    may_be_below = not _reaches(thresholds.rolled_back, peak_high - low)
    peaks = _possible_peaks(before)
    since_peak = (
        _gain((low, high), before[max(peaks[-1], reference) :])[0],
        _gain((low, high), before[max(peaks[0], reference) :])[1],
    )
    yield (
        "rolled_back",
        is_below and not _reaches(since_peak[1], thresholds.moving),
        may_be_below and not _reaches(since_peak[0], thresholds.moving),
    )
    started_low, started_high = max(peak_low, low), max(peak_high, high)
    yield "not_started", not _reaches(started_high, thresholds.started), not _reaches(started_low, thresholds.started)
    since_reference = _gain((low, high), before[reference : reference + 1])
    # A rollout that is below its peak moves if it gains again; one that is not, if it is above the reference.
    gains = [since_peak] if is_below else [since_peak, since_reference] if may_be_below else [since_reference]
    yield (
        "moving",
        all(_reaches(low_gain, thresholds.moving) for low_gain, _ in gains),
        any(_reaches(high_gain, thresholds.moving) for _, high_gain in gains),
    )


def _possible_peaks(before: Sequence[tuple[float, float]]) -> list[int]:
    """Return which of some shares can be the last one that no other exceeds; without shares the first."""
    found: list[int] = []
    later = 0.0
    for at in range(len(before) - 1, -1, -1):
        if before[at][1] > later or not found:
            found.append(at)
        later = max(later, before[at][0])
    peak = max((low for low, _ in before), default=0.0)
    return [at for at in reversed(found) if before[at][1] >= peak] or [0]


def _gain(last: tuple[float, float], before: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the least and the most that a share is above the smallest one of some earlier ones; 0 without any."""
    if not before:
        return 0.0, 0.0
    return last[0] - min(high for _, high in before), last[1] - min(low for low, _ in before)


def _reaches(value: float, threshold: float) -> bool:
    """Return whether a difference of shares is a threshold or more: the last digits of floats do not count."""
    return value >= threshold - 1e-9


def comparable_shares(shares: Sequence[TargetShare], thresholds: RolloutThresholds) -> list[TargetShare]:
    """Return the shares of earlier runs that count: the precise ones, or all if none is.

    An imprecise one counts with its lower limit where that is more than ``rolled_back`` above all shares before it: it
    proves a peak from which a rollout can be rolled back.
    """
    if not any(_is_precise(each, thresholds) for each in shares):
        return list(shares)
    counting: list[TargetShare] = []
    peak = 0.0
    for each in shares:
        if _is_precise(each, thresholds):
            counting.append(each)
        elif not _reaches(thresholds.rolled_back, each.low - peak):
            counting.append(TargetShare(each.day, each.low, each.low, each.low))
        else:
            continue
        peak = max(peak, counting[-1].share)
    return counting


def _is_precise(share: TargetShare, thresholds: RolloutThresholds) -> bool:
    return share.high - share.low <= thresholds.precise


def _limits(share: TargetShare, thresholds: RolloutThresholds) -> tuple[float, float]:
    if _is_precise(share, thresholds):
        return share.share, share.share
    return share.low, share.high
