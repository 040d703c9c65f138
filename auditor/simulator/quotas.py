"""Accounts of the simulated platform, and how it counts their quotas. Time is an argument.

The platform documents calls per second and not the kind of window. So there are three: calendar seconds, a sliding
second, and a token bucket; a client must stay within all of them.
"""

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from auditor.client.operations import (
    BATCH_GET_DEVICE_STATE,
    BATCH_QUERY_DEVICE_DETAIL,
    LIST_OTA_MODULE_BY_PRODUCT,
    LIST_OTA_MODULE_VERSIONS_BY_DEVICE,
    QUERY_DEVICE,
    QUERY_DEVICE_BY_SQL,
    QUERY_PRODUCT_LIST,
    RELEASE_OPERATIONS,
)
from auditor.models import Secret
from auditor.simulator.responses import RequestRejected
from auditor.simulator.world import World

DEEP_SUFFIX = ".deep"
"""Suffix of an operation's name: its requests for late pages, which have a separate quota."""

_OPERATIONS = (
    QUERY_PRODUCT_LIST, QUERY_DEVICE, QUERY_DEVICE_BY_SQL, BATCH_GET_DEVICE_STATE, BATCH_QUERY_DEVICE_DETAIL,
    LIST_OTA_MODULE_BY_PRODUCT, *RELEASE_OPERATIONS,
)  # fmt: skip

DOCUMENTED_QUOTAS = {
    **{each.name: each.calls_per_second for each in _OPERATIONS},
    **{each.name + DEEP_SUFFIX: each.deep_calls_per_second for each in _OPERATIONS if each.deep_calls_per_second},
}
"""Calls per second of the operations other than ListOTAModuleVersionsByDevice (Alibaba's pages)."""

WindowKind = Literal["fixed", "sliding", "bucket"]
"""Kinds of window, see the classes."""


class Window(Protocol):
    """Counts the calls of one account to one operation."""

    def admit(self, now: float) -> bool:
        """Count a call at ``now`` (seconds, never decreasing) if it is within the quota; return whether it is."""

    def wait(self, now: float) -> float:
        """Return the seconds from ``now`` until a call would be admitted if no other one is made before."""


def new_window(kind: WindowKind, per_second: float) -> Window:
    """Return a window for a quota of ``per_second`` calls."""
    if not per_second > 0 or not math.isfinite(per_second):
        raise ValueError(f"per_second must be a positive number, not {per_second}")
    match kind:
        case "fixed":
            return FixedWindow(per_second)
        case "sliding":
            return SlidingWindow(per_second)
        case "bucket":
            return TokenBucket(per_second)


def window_size(per_second: float) -> tuple[int, float]:
    """Return a quota as whole calls per seconds: 10 is 10 in 1 s, 0.5 is 1 in 2 s, 2.5 is 2 in 0.8 s."""
    calls = max(1, math.floor(per_second))
    return calls, calls / per_second


class FixedWindow:
    """Counts from 0 in every calendar second of the server's clock, so two bursts may be adjacent."""

    def __init__(self, per_second: float) -> None:
        self._calls, self._seconds = window_size(per_second)
        self._number, self._used = -1.0, 0

    def admit(self, now: float) -> bool:
        """See ``Window``."""
        number = now // self._seconds
        if number != self._number:
            self._number, self._used = number, 0
        if self._used >= self._calls:
            return False
        self._used += 1
        return True

    def wait(self, now: float) -> float:
        """See ``Window``."""
        number = now // self._seconds
        full = number == self._number and self._used >= self._calls
        return max(0.0, (number + 1) * self._seconds - now) if full else 0.0


class SlidingWindow:
    """Admits a call if fewer than the quota were admitted in the second before it: no second has more."""

    def __init__(self, per_second: float) -> None:
        calls, self._seconds = window_size(per_second)
        self._admitted: deque[float] = deque(maxlen=calls)

    def admit(self, now: float) -> bool:
        """See ``Window``."""
        if self.wait(now) > 0:
            return False
        self._admitted.append(now)
        return True

    def wait(self, now: float) -> float:
        """See ``Window``."""
        if len(self._admitted) < (self._admitted.maxlen or 0):
            return 0.0
        return max(0.0, self._seconds - (now - self._admitted[0]))


class TokenBucket:
    """Holds the calls of one second, initially full, and refills evenly: a full burst, then the plain rate."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._level = self._capacity = max(1.0, per_second)
        self._at: float | None = None

    def admit(self, now: float) -> bool:
        """See ``Window``."""
        self._refill(now)
        if self._level < 1:
            return False
        self._level -= 1
        return True

    def wait(self, now: float) -> float:
        """See ``Window``."""
        self._refill(now)
        return max(0.0, (1 - self._level) / self._per_second)

    def _refill(self, now: float) -> None:
        if self._at is not None:
            self._level = min(self._capacity, self._level + (now - self._at) * self._per_second)
        self._at = now


class ContendedWindow:
    """A window that another client uses too: evenly, and regardless of throttling.

    Args:
        window: counts the calls.
        per_second: calls of the other client.
        begin, end: when it calls, by the clock of ``now``.
    """

    def __init__(self, window: Window, *, per_second: float, begin: float, end: float) -> None:
        self._window = window
        self._interval = 1 / per_second
        self._next, self._end = begin, end

    def admit(self, now: float) -> bool:
        """See ``Window``."""
        self._catch_up(now)
        return self._window.admit(now)

    def wait(self, now: float) -> float:
        """See ``Window``."""
        self._catch_up(now)
        return self._window.wait(now)

    def _catch_up(self, now: float) -> None:
        # Calls of the other client since the last one are counted now, at their own moments.
        while self._next <= min(now, self._end):
            self._window.admit(self._next)
            self._next += self._interval


class QuotaExceeded(RequestRejected):
    """The request is over the quota; ``wait`` is in seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__("Throttling.User", "Request was denied due to user flow control.", 400)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class SimulatedAccount:
    """One access key of the simulated platform.

    Attributes:
        calls_per_second: quota for ListOTAModuleVersionsByDevice; the others are as documented. None: no quota at all.
        world: devices of the account; None: those of the simulator.
        quotas: other quotas, in calls per second by operation; ``QueryDevice.deep`` is for requests after the first
            100,000 devices. Infinity is no quota.
        denied: operations that the key may not use.
    """

    access_key_id: str
    secret: Secret
    calls_per_second: float | None = None
    world: World | None = None
    quotas: Mapping[str, float] = field(default_factory=dict, hash=False)
    denied: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = self.quotas.keys() - DOCUMENTED_QUOTAS.keys() - {LIST_OTA_MODULE_VERSIONS_BY_DEVICE.name}
        if unknown:
            raise ValueError(f"no operation has a quota named {', '.join(sorted(unknown))}")

    def quota(self, name: str) -> float | None:
        """Return the calls per second of the quota called ``name``; None: no quota."""
        documented = None if self.calls_per_second is None else DOCUMENTED_QUOTAS.get(name, self.calls_per_second)
        quota = self.quotas.get(name, documented)
        return None if quota == math.inf else quota


class QuotaMeter:
    """The windows of all accounts and quotas.

    Args:
        kind: of the windows.
        competitor: see ``Simulator``.
    """

    def __init__(self, kind: WindowKind, competitor: tuple[float, float, float] | None) -> None:
        self._kind, self._competitor = kind, competitor
        self._windows: dict[str, dict[str, Window]] = defaultdict(dict)

    def count(self, account: SimulatedAccount, name: str, now: float) -> None:
        """Count a request at ``now`` against the quota called ``name``; raise QuotaExceeded if it is used up."""
        windows = self._windows[account.access_key_id]
        counted = windows.get(name)
        if counted is None:
            if (per_second := account.quota(name)) is None:
                return
            counted = windows[name] = self._new_window(per_second, now)
        if not counted.admit(now):
            raise QuotaExceeded(counted.wait(now))

    def _new_window(self, per_second: float, now: float) -> Window:
        own = new_window(self._kind, per_second)
        if self._competitor is None:
            return own
        competing, begin, end = self._competitor
        return ContendedWindow(own, per_second=competing, begin=now + begin, end=now + end)
