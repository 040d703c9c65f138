"""Logs changes of an account's health: circuit open, slowed down, quota shared, or too few requests in flight.

It also logs that this process stood still, since its accounts are not unhealthy for that.
"""

import time
from collections.abc import Callable, Sequence
from typing import Literal

import anyio

from auditor.concurrency import MIN_STANDSTILL, RunningClock
from auditor.engine.account_session import AccountSession
from auditor.log import log

TICK_SECONDS = MIN_STANDSTILL / 10
"""Seconds between two ticks of the clock that stops with this process."""

STATUS_LOG_SECONDS = 60.0
"""Seconds between two status lines, at level info."""

SLOWED_FRACTION, RECOVERED_FRACTION = 0.9, 0.95
"""Fractions of the configured rate: below the first an account counts as slowed down, above the second as recovered."""

SATURATED_SECONDS = 5.0
"""Seconds during which all permitted requests are in flight before a warning is logged."""


class HealthMonitor:
    """Checks accounts at intervals and logs each change once."""

    def __init__(self, accounts: Sequence[AccountSession], clock: Callable[[], float] = time.monotonic) -> None:
        self._accounts, self._clock = accounts, clock
        self._reported: set[tuple[str, str]] = set()
        self._saturated_since: dict[str, float] = {}
        self._logged_at = clock()

    def check(self) -> None:
        """Log what has changed since the last check."""
        now = self._clock()
        for session in self._accounts:
            self._check_health(session)
            self._check_rate(session)
            self._check_concurrency(session, now)
        if now - self._logged_at >= STATUS_LOG_SECONDS:
            self._logged_at = now
            for session in self._accounts:
                log.info("status", **rate_figures(session))

    def _transition(
        self, session: AccountSession, condition: str, *, begins: bool, ends: bool
    ) -> Literal["begins", "ends"] | None:
        """Return ``begins`` or ``ends`` when a condition has changed so; remember it."""
        key = (session.name, condition)
        if begins and key not in self._reported:
            self._reported.add(key)
            return "begins"
        if ends and key in self._reported:
            self._reported.remove(key)
            return "ends"
        return None

    def _check_health(self, session: AccountSession) -> None:
        match self._transition(session, "unhealthy", begins=session.is_unhealthy, ends=not session.is_unhealthy):
            case "begins":
                log.warning("requests_failing", account=session.name, reason=session.problem)
            case "ends":
                log.warning("requests_succeeding", account=session.name)
        waiting = session.quota_status.retries_waiting and not session.is_unhealthy
        if self._transition(session, "retries", begins=waiting, ends=not waiting) == "begins":
            log.warning("retries_over_budget", account=session.name, reason=session.problem)

    def _check_rate(self, session: AccountSession) -> None:
        status = session.quota_status
        if status.rate is not None and status.configured_rate is not None:
            slowed = status.rate < SLOWED_FRACTION * status.configured_rate
            recovered = status.rate > RECOVERED_FRACTION * status.configured_rate
            match self._transition(session, "slowed", begins=slowed, ends=recovered):
                case "begins":
                    log.warning("quota_exceeded", **rate_figures(session))
                case "ends":
                    log.warning("quota_recovered", **rate_figures(session))
        others = status.other_processes
        match self._transition(session, "shared", begins=others > 0, ends=others == 0):
            case "begins":
                log.info("quota_shared", account=session.name, others=others)
            case "ends":
                log.info("quota_unshared", account=session.name)

    def _check_concurrency(self, session: AccountSession, now: float) -> None:
        rate, stats = session.quota_status.rate, session.stats
        if stats.in_flight < session.workers or rate is None:
            self._saturated_since.pop(session.name, None)
            return
        since = self._saturated_since.setdefault(session.name, now)
        latency = stats.seconds / max(1, stats.answered)
        needed = round(rate * latency) + 1
        if needed <= session.workers:  # the platform does not answer; more requests in flight would not be answered too
            return
        saturated = now - since >= SATURATED_SECONDS
        if saturated and self._transition(session, "saturated", begins=True, ends=False):
            log.warning(
                "concurrency_too_small",
                account=session.name,
                in_flight=stats.in_flight,
                latency=round(latency, 3),
                needed=needed,
            )


async def watch_clock(clock: RunningClock) -> None:
    """Let a clock tick, and log each standstill of this process; never return."""
    while True:
        await anyio.sleep(TICK_SECONDS)
        if seconds := clock.tick():
            log.warning(
                "process_stood_still",
                seconds=round(seconds, 1),
            )


def rate_figures(session: AccountSession) -> dict[str, object]:
    """Return the fields of an account's status line."""
    status, stats = session.quota_status, session.stats
    return {
        "account": session.name,
        "rate": None if status.rate is None else round(status.rate, 2),
        "sent": stats.sent,
        "retried": stats.retried,
        "throttled": stats.throttled,
        "in_flight": stats.in_flight,
        "others": status.other_processes,
    }
