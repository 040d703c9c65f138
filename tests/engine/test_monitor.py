"""Changes of an account's health are logged once when they begin and once when they end."""

from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
import structlog

from auditor.engine.account_session import AccountSession, QuotaStatus
from auditor.engine.monitor import SATURATED_SECONDS, STATUS_LOG_SECONDS, HealthMonitor
from auditor.resilience.retry import RequestStats


@dataclass
class FakeSession:
    """The attributes of an account that the monitor checks, and a clock."""

    name: str = "eu"
    now: float = 100.0
    is_unhealthy: bool = False
    problem: str | None = "why"
    quota_status: QuotaStatus = QuotaStatus(configured_rate=10.0, rate=9.8, other_processes=0, retries_waiting=False)  # noqa: RUF009  it is frozen
    workers: int = 4
    stats: RequestStats = field(default_factory=RequestStats)

    def __post_init__(self) -> None:
        self.monitor = HealthMonitor([cast("AccountSession", self)], lambda: self.now)

    def events(self, **status: Any) -> list[tuple[str, str]]:
        """Return the levels and events that are logged once the status has changed."""
        self.quota_status = replace(self.quota_status, **status)
        with structlog.testing.capture_logs() as logs:
            self.monitor.check()
            self.monitor.check()
        assert {line["account"] for line in logs} <= {"eu"}
        return [(line["log_level"], line["event"]) for line in logs]


def test_a_healthy_account_is_not_logged() -> None:
    session = FakeSession()
    assert session.events() == []
    assert session.events(rate=9.3) == []


def test_a_slowdown_is_logged_once_and_so_is_its_end() -> None:
    session = FakeSession()
    slowed = ("warning", "quota_exceeded")
    assert session.events(rate=5.0) == [slowed]
    assert session.events(rate=9.2) == []
    assert session.events(rate=9.6) == [("warning", "quota_recovered")]
    assert session.events(rate=5.0) == [slowed]


def test_processes_that_share_the_quota_are_logged() -> None:
    session = FakeSession()
    assert session.events(other_processes=2) == [("info", "quota_shared")]
    assert session.events(other_processes=0) == [("info", "quota_unshared")]


def test_waiting_retries_are_logged_unless_the_account_is_unhealthy() -> None:
    session = FakeSession()
    assert session.events(retries_waiting=True) == [("warning", "retries_over_budget")]
    session.is_unhealthy = True
    assert session.events() == [("warning", "requests_failing")]
    session.is_unhealthy = False
    assert session.events(retries_waiting=False) == [("warning", "requests_succeeding")]


def test_too_few_requests_in_flight_are_logged_with_the_number_needed() -> None:
    session = FakeSession(stats=RequestStats(in_flight=4, answered=100, seconds=200.0))
    assert session.events() == []
    session.now += SATURATED_SECONDS
    with structlog.testing.capture_logs() as logs:
        session.monitor.check()
        session.monitor.check()
    assert [(line["event"], line["in_flight"], line["latency"], line["needed"]) for line in logs] == [
        ("concurrency_too_small", 4, 2.0, 21)
    ]


def test_a_platform_that_hangs_does_not_need_more_in_flight() -> None:
    session = FakeSession(stats=RequestStats(in_flight=4, answered=100, seconds=5.0))
    assert session.events() == []
    session.now += SATURATED_SECONDS
    assert session.events() == []


@pytest.mark.parametrize("changed", [{"rate": None, "configured_rate": None}, {}])
def test_brief_saturation_or_no_quota_is_not_logged(changed: dict[str, Any]) -> None:
    session = FakeSession(stats=RequestStats(in_flight=4, answered=1, seconds=1.0))
    assert session.events(**changed) == []
    session.now += SATURATED_SECONDS - 0.1
    assert session.events() == []
    session.stats.in_flight = 3
    assert session.events() == []
    session.stats.in_flight = 4
    session.now += 1
    assert session.events() == []


def test_status_is_logged_once_a_minute() -> None:
    session = FakeSession(stats=RequestStats(sent=7, retried=2, throttled=1, in_flight=3))
    session.now += STATUS_LOG_SECONDS
    with structlog.testing.capture_logs() as logs:
        session.monitor.check()
        session.monitor.check()
    assert logs == [
        {
            "account": "eu", "event": "status", "log_level": "info", "rate": 9.8, "sent": 7, "retried": 2, "throttled": 1,
            "in_flight": 3, "others": 0,
        }
    ]  # fmt: skip
