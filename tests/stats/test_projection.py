"""Projections of shares: right for the courses that rollouts take, and none where there is no course."""

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.stats.projection import Projection, project

GOAL = 0.95


def reached(course: list[float]) -> int:
    return next(day for day, share in enumerate(course) if share >= GOAL)


@given(st.floats(0.01, 0.12), st.integers(5, 40), st.randoms(use_true_random=False))
def test_the_day_of_staged_waves_is_right(step: float, seen: int, generator: object) -> None:
    course = [min(1.0, step * day) for day in range(200)]
    done = reached(course)
    if seen >= done:
        return
    noisy = [share + generator.uniform(-0.002, 0.002) for share in course[:seen]]  # type: ignore[attr-defined]
    found = project(list(range(seen)), noisy, GOAL)
    if found.days is None:
        assert found.problem == "too_far"
        assert done - (seen - 1) > 4 * min(seen - 1, 9)
    else:
        assert abs(seen - 1 + found.days - done) <= 1 + 0.1 * (done - seen + 1)


@given(st.floats(0.05, 0.4), st.integers(5, 40))
def test_the_day_of_devices_that_update_when_they_connect_is_right(rate: float, seen: int) -> None:
    course = [1 - exp(-rate * day) for day in range(200)]
    done = reached(course)
    if seen >= done:
        return
    found = project(list(range(seen)), course[:seen], GOAL)
    assert found.days is None or abs(seen - 1 + found.days - done) <= 1 + 0.15 * (done - seen + 1)


@pytest.mark.parametrize(
    ("shares", "problem"),
    [
        ([0.1, 0.2, 0.3], "few_runs"),
        ([0.1, 0.4, 0.4, 0.4, 0.4], "irregular"),
        ([0.1, 0.3, 0.1, 0.4, 0.1, 0.5], "irregular"),
        ([0.5, 0.4, 0.3, 0.2], "irregular"),
        ([0.100, 0.101, 0.102, 0.103, 0.104], "too_far"),
    ],
)
def test_without_a_course_there_is_no_day(shares: list[float], problem: str) -> None:
    assert project(list(range(len(shares))), shares, GOAL) == Projection(None, problem)  # type: ignore[arg-type]


def test_an_earlier_course_does_not_matter() -> None:
    shares = [0.0] * 10 + [0.1 * step for step in range(1, 6)]
    assert project(list(range(15)), shares, GOAL).days in {5, 6}


def test_a_share_at_the_goal_is_there() -> None:
    assert project([0, 1, 2, 3], [0.1, 0.5, 0.9, 0.95], GOAL) == Projection(0)
