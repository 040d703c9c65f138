"""Projection of a share that grows over days: when it will reach a goal, if it keeps its course.

Two courses are fitted by least squares, the share as a line, and the share that remains as an exponential decay. The
first is that of staged waves, the second that of devices which update when they next connect. The one that is closer to
the shares is used, if it is close enough and the goal is near enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, exp, log, sqrt
from typing import Literal

MIN_POINTS = 4
"""Shares that a fit needs: two for its parameters, and two that can contradict it."""

MAX_POINTS = 10
"""Newest shares that are fitted."""

MAX_ERROR, MAX_RELATIVE_ERROR = 0.005, 0.06
"""Root mean square error up to which a fit holds: points/100, or a fraction of the growth, whichever is larger."""

MAX_AHEAD = 5
"""How many times as long as the shares cover a projection may reach."""

_MIN_REMAINING = 1e-4
"""Smallest share that remains, for its logarithm."""

ProjectionProblem = Literal["few_runs", "irregular", "too_far"]
"""Why a projection does not hold: too few shares, shares that follow no course, or a goal that is too far away."""


@dataclass(frozen=True, slots=True)
class Projection:
    """When a share reaches a goal.

    Attributes:
        days: days from the last share; None: no fit holds.
        problem: why no fit holds; None: one does.
    """

    days: int | None
    problem: ProjectionProblem | None = None


def project(days: Sequence[float], shares: Sequence[float], goal: float) -> Projection:
    """Return in how many days, rounded up, a share reaches ``goal``; ``days`` are ascending, with a share each.

    As many of the newest shares are fitted as one course fits, so that an earlier change of course does not matter.
    """
    if len(days) < MIN_POINTS:
        return Projection(None, "few_runs")
    if shares[-1] >= goal:
        return Projection(0)
    for points in range(min(len(days), MAX_POINTS), MIN_POINTS - 1, -1):
        found = _project(days[-points:], shares[-points:], goal)
        if found.problem != "irregular":
            return found
    return Projection(None, "irregular")


def _project(days: Sequence[float], shares: Sequence[float], goal: float) -> Projection:
    growth = shares[-1] - shares[0]
    if growth <= 0:
        return Projection(None, "irregular")
    error, at_goal = min(_fit_line(days, shares, goal), _fit_decay(days, shares, goal))
    if error > max(MAX_ERROR, MAX_RELATIVE_ERROR * growth):
        return Projection(None, "irregular")
    ahead = at_goal - days[-1]
    if ahead > MAX_AHEAD * (days[-1] - days[0]):
        return Projection(None, "too_far")
    return Projection(max(1, ceil(ahead)))


def _fit_line(days: Sequence[float], shares: Sequence[float], goal: float) -> tuple[float, float]:
    """Return the error of a line through the shares, and the day on which it reaches the goal."""
    start, slope = _least_squares(days, shares)
    error = _error(shares, [start + slope * day for day in days])
    return error, (goal - start) / slope if slope > 0 else float("inf")


def _fit_decay(days: Sequence[float], shares: Sequence[float], goal: float) -> tuple[float, float]:
    """Return the error of an exponential decay of what remains, and the day on which the goal is reached."""
    start, slope = _least_squares(days, [log(max(_MIN_REMAINING, 1 - share)) for share in shares])
    error = _error(shares, [1 - exp(start + slope * day) for day in days])
    return error, (log(max(_MIN_REMAINING, 1 - goal)) - start) / slope if slope < 0 else float("inf")


def _least_squares(days: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    middle, mean = sum(days) / len(days), sum(values) / len(values)
    spread = sum((day - middle) ** 2 for day in days)
    slope = sum((day - middle) * (value - mean) for day, value in zip(days, values, strict=True)) / (spread or 1.0)
    return mean - slope * middle, slope


def _error(shares: Sequence[float], fitted: Sequence[float]) -> float:
    return sqrt(sum((one - other) ** 2 for one, other in zip(shares, fitted, strict=True)) / len(shares))
