"""What is logged of an account's pace: once when it begins, once when it ends."""

from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import structlog

from auditor.engine.account_session import AskedAccount, Pace
from auditor.engine.monitor import EVERY, FULL_SECONDS, Notices
from auditor.resilience.retry import Tally


@dataclass
class Stand:
    """What notices look at of an account, and a clock."""

    name: str = "eu"
    now: float = 100.0
    sick: bool = False
    trouble: str | None = "why"
    pace: Pace = Pace(told=10.0, rate=9.8, others=0, repeats_wait=False)  # noqa: RUF009  it is frozen
    workers: int = 4
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        self.notices = Notices([cast("AskedAccount", self)], lambda: self.now)

    def said(self, **pace: Any) -> list[tuple[str, str]]:
        """What is logged once the pace has become so: levels and events."""
        self.pace = replace(self.pace, **pace)
        with structlog.testing.capture_logs() as logs:
            self.notices.look()
            self.notices.look()
        assert {line["account"] for line in logs} <= {"eu"}
        return [(line["log_level"], line["event"]) for line in logs]


def test_an_account_that_is_well_is_not_spoken_of() -> None:
    stand = Stand()
    assert stand.said() == []
    assert stand.said(rate=9.3) == []


def test_a_rate_well_below_the_told_one_is_said_once_and_so_is_its_return() -> None:
    stand = Stand()
    slowed = ("warning", "refused for the quota: slowed down below what the settings tell")
    assert stand.said(rate=5.0) == [slowed]
    assert stand.said(rate=9.2) == []
    assert stand.said(rate=9.6) == [("warning", "the quota is there again")]
    assert stand.said(rate=5.0) == [slowed]


def test_others_that_share_the_quota_are_told() -> None:
    stand = Stand()
    assert stand.said(others=2) == [("info", "the quota is shared with another audit")]
    assert stand.said(others=0) == [("info", "the quota is shared no more")]


def test_repeats_beyond_their_budget_are_told_unless_the_platform_is_sick() -> None:
    stand = Stand()
    assert stand.said(repeats_wait=True) == [("warning", "more repeats than the budget for them allows")]
    stand.sick = True
    assert stand.said() == [("warning", "nothing succeeds, so the platform is probed")]
    stand.sick = False
    assert stand.said(repeats_wait=False) == [("warning", "the platform answers again")]


def test_too_few_requests_in_flight_are_told_with_what_is_needed() -> None:
    stand = Stand(tally=Tally(in_flight=4, answered=100, seconds=200.0))
    assert stand.said() == []
    stand.now += FULL_SECONDS
    with structlog.testing.capture_logs() as logs:
        stand.notices.look()
        stand.notices.look()
    assert [(line["event"], line["in_flight"], line["latency"], line["needed"]) for line in logs] == [
        ("at_once is too small to use the quota at this latency", 4, 2.0, 21)
    ]


def test_a_platform_that_hangs_is_no_reason_to_have_more_in_flight() -> None:
    stand = Stand(tally=Tally(in_flight=4, answered=100, seconds=5.0))
    assert stand.said() == []
    stand.now += FULL_SECONDS
    assert stand.said() == []


@pytest.mark.parametrize("changed", [{"rate": None, "told": None}, {}])
def test_full_for_a_moment_or_without_a_quota_is_not_told(changed: dict[str, Any]) -> None:
    stand = Stand(tally=Tally(in_flight=4, answered=1, seconds=1.0))
    assert stand.said(**changed) == []
    stand.now += FULL_SECONDS - 0.1
    assert stand.said() == []
    stand.tally.in_flight = 3
    assert stand.said() == []
    stand.tally.in_flight = 4
    stand.now += 1
    assert stand.said() == []


def test_figures_are_told_every_minute() -> None:
    stand = Stand(tally=Tally(sent=7, retried=2, throttled=1, in_flight=3))
    stand.now += EVERY
    with structlog.testing.capture_logs() as logs:
        stand.notices.look()
        stand.notices.look()
    assert logs == [
        {
            "account": "eu", "event": "pace", "log_level": "info", "rate": 9.8, "sent": 7, "retried": 2, "throttled": 1,
            "in_flight": 3, "others": 0,
        }
    ]  # fmt: skip
