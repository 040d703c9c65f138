"""What is logged of accounts while they are asked: that one is sick, slowed down, shared, or has too few in flight."""

import time
from collections.abc import Callable, Sequence

import structlog

from auditor.engine.account_session import AskedAccount

log = structlog.get_logger()


EVERY = 60.0
"""Seconds between two lines of figures, at level info."""


SLOWED, RECOVERED = 0.9, 0.95
"""The parts of the told rate below which an account is said to be slowed down, and above which it is no more."""


FULL_SECONDS = 5.0
"""Seconds in a row with every request that may be in flight in flight, until that is said."""


class Notices:
    """Looks at accounts now and then, and logs what has changed; each thing once while it lasts.

    Args:
        accounts: to look at.
        clock: seconds.
    """

    def __init__(self, accounts: Sequence[AskedAccount], clock: Callable[[], float] = time.monotonic) -> None:
        self._accounts, self._clock = accounts, clock
        self._said: set[tuple[str, str]] = set()
        self._full_since: dict[str, float] = {}
        self._told_at = clock()

    def look(self) -> None:
        """Logs what has changed since the last look."""
        now = self._clock()
        for asked in self._accounts:
            self._sickness(asked)
            self._pace(asked)
            self._in_flight(asked, now)
        if now - self._told_at >= EVERY:
            self._told_at = now
            for asked in self._accounts:
                log.info("pace", **figures(asked))

    def _begins(self, asked: AskedAccount, what: str, holds: bool, ends: bool) -> str | None:  # noqa: FBT001
        """``begins`` or ``ends`` when that is new."""
        key = (asked.name, what)
        if holds and key not in self._said:
            self._said.add(key)
            return "begins"
        if ends and key in self._said:
            self._said.remove(key)
            return "ends"
        return None

    def _sickness(self, asked: AskedAccount) -> None:
        match self._begins(asked, "sick", asked.sick, not asked.sick):
            case "begins":
                log.warning("nothing succeeds, so the platform is probed", account=asked.name, reason=asked.trouble)
            case "ends":
                log.warning("the platform answers again", account=asked.name)
        waits = asked.pace.repeats_wait and not asked.sick
        if self._begins(asked, "repeats", waits, not waits) == "begins":
            log.warning("more repeats than the budget for them allows", account=asked.name, reason=asked.trouble)

    def _pace(self, asked: AskedAccount) -> None:
        pace = asked.pace
        if pace.rate is not None and pace.told is not None:
            slow, well = pace.rate < SLOWED * pace.told, pace.rate > RECOVERED * pace.told
            match self._begins(asked, "slow", slow, well):
                case "begins":
                    log.warning("refused for the quota: slowed down below what the settings tell", **figures(asked))
                case "ends":
                    log.warning("the quota is there again", **figures(asked))
        match self._begins(asked, "shared", pace.others > 0, pace.others == 0):
            case "begins":
                log.info("the quota is shared with another audit", account=asked.name, others=pace.others)
            case "ends":
                log.info("the quota is shared no more", account=asked.name)

    def _in_flight(self, asked: AskedAccount, now: float) -> None:
        pace = asked.pace
        if asked.tally.in_flight < asked.workers or pace.rate is None:
            self._full_since.pop(asked.name, None)
            return
        since = self._full_since.setdefault(asked.name, now)
        latency = asked.tally.seconds / max(1, asked.tally.answered)
        needed = round(pace.rate * latency) + 1
        if needed <= asked.workers:  # they wait for what does not come, and more of them would too
            return
        if now - since >= FULL_SECONDS and self._begins(asked, "full", holds=True, ends=False):
            log.warning(
                "at_once is too small to use the quota at this latency",
                account=asked.name,
                in_flight=asked.tally.in_flight,
                latency=round(latency, 3),
                needed=needed,
            )


def figures(asked: AskedAccount) -> dict[str, object]:
    """An account's pace in figures, as they are logged."""
    pace, tally = asked.pace, asked.tally
    return {
        "account": asked.name,
        "rate": None if pace.rate is None else round(pace.rate, 2),
        "sent": tally.sent,
        "retried": tally.retried,
        "throttled": tally.throttled,
        "in_flight": tally.in_flight,
        "others": pace.others,
    }
