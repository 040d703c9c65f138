"""How the simulated platform counts a quota: calendar seconds, a sliding second, or a bucket. Time is an argument.

The platform's documents give a number of calls per second and not the kind of window, so a client has to stay
inside all three.

Counts each request against its account's quota for the operation, and refuses those that are over it.

Who may call the simulated platform, how often, and whose devices they see.
"""

import math
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from auditor.client.operations import LIST_OTA_MODULE_VERSIONS_BY_DEVICE, OTHERS
from auditor.models import Secret
from auditor.simulator.responses import Refused
from auditor.simulator.world import World

WindowKind = Literal["fixed", "sliding", "bucket"]
"""The kinds of window, see the classes."""


class Window(Protocol):
    """Counts the calls of one account to one operation."""

    def admit(self, now: float) -> bool:
        """Whether a call at ``now`` (seconds, never falling) is inside the quota; a refused call does not count."""

    def wait(self, now: float) -> float:
        """Seconds from ``now`` until a call would be admitted if no other comes before."""


def window(kind: WindowKind, per_second: float) -> Window:
    """A window of ``kind`` for a quota of ``per_second`` calls."""
    if not per_second > 0 or not math.isfinite(per_second):
        raise ValueError(f"per_second must be a positive number, not {per_second}")
    match kind:
        case "fixed":
            return FixedWindow(per_second)
        case "sliding":
            return SlidingWindow(per_second)
        case "bucket":
            return Bucket(per_second)


def calls_and_seconds(per_second: float) -> tuple[int, float]:
    """The quota as whole calls in a span of seconds: 10 is 10 in 1 s, 0.5 is 1 in 2 s, 2.5 is 2 in 0.8 s."""
    calls = max(1, math.floor(per_second))
    return calls, calls / per_second


class FixedWindow:
    """Counts anew in every calendar second of the server's clock, so two bursts may meet at its turn."""

    def __init__(self, per_second: float) -> None:
        self._calls, self._seconds = calls_and_seconds(per_second)
        self._number = -1.0
        self._used = 0

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
    """Admits a call if fewer than the quota were admitted in the second before it: no second ever holds more."""

    def __init__(self, per_second: float) -> None:
        calls, self._seconds = calls_and_seconds(per_second)
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


class Bucket:
    """Holds one second's calls, full at first, and is refilled evenly: a full burst, then the bare rate."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._capacity = max(1.0, per_second)
        self._level = self._capacity
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


class Contended:
    """A window that another client uses too: evenly, and taking no notice of its refusals.

    Args:
        window: what counts.
        per_second: calls of the other client.
        begin, end: when it asks, by the clock of ``now``.
    """

    def __init__(self, window: Window, *, per_second: float, begin: float, end: float) -> None:
        self._window = window
        self._every = 1 / per_second
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
        # What the other one asked since the last call is counted now, at the moments when it asked.
        while self._next <= min(now, self._end):
            self._window.admit(self._next)
            self._next += self._every


class Throttled(Refused):
    """Over the quota; ``wait`` is in seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__("Throttling.User", "Request was denied due to user flow control.", 400)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class SimulatedAccount:
    """One access key of the simulated platform.

    Attributes:
        per_second: the account's quota for ListOTAModuleVersionsByDevice, in calls per second; the other operations
            have the documented ones. None: no quota for any operation.
        world: the account's devices; None: the simulator's.
        quotas: other quotas than these, in calls per second, by the operation's name; ``QueryDevice.deep`` for
            requests whose page begins late. Infinity is no quota.
    """

    access_key_id: str
    secret: Secret
    per_second: float | None = None
    world: World | None = None
    quotas: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        unknown = self.quotas.keys() - _DOCUMENTED.keys() - {_AUDITED}
        if unknown:
            raise ValueError(f"no operation has a quota called {', '.join(sorted(unknown))}")

    def quota(self, name: str) -> float | None:
        """The calls per second that ``quotas`` would have under ``name``; None: as many as there are."""
        documented = None if self.per_second is None else _DOCUMENTED.get(name, self.per_second)
        quota = self.quotas.get(name, documented)
        return None if quota == math.inf else quota


class Meter:
    """A window for each account and quota.

    Args:
        kind: of the windows.
        competitor: another client's calls a second on every quota, from when and until when, in seconds since the
            first call that the quota counted.
    """

    def __init__(self, kind: WindowKind, competitor: tuple[float, float, float] | None) -> None:
        self._kind, self._competitor = kind, competitor
        self._windows: dict[str, dict[str, Window]] = defaultdict(dict)

    def count(self, account: SimulatedAccount, name: str, now: float) -> None:
        """Counts a request at ``now`` against the quota called ``name``; raises Throttled when it is used up."""
        windows = self._windows[account.access_key_id]
        counted = windows.get(name)
        if counted is None:
            per_second = account.quota(name)
            if per_second is None:
                return
            counted = windows[name] = self._made(per_second, now)
        if not counted.admit(now):
            raise Throttled(counted.wait(now))

    def _made(self, per_second: float, now: float) -> Window:
        made = window(self._kind, per_second)
        if self._competitor is None:
            return made
        theirs, begin, end = self._competitor
        return Contended(made, per_second=theirs, begin=now + begin, end=now + end)


DEEP = ".deep"
"""After an operation's name: its requests for pages that begin late, where these have a quota of their own."""


_DOCUMENTED = {operation.name: operation.per_second for operation in OTHERS} | {
    operation.name + DEEP: operation.per_second_deep for operation in OTHERS if operation.per_second_deep is not None
}


_AUDITED = LIST_OTA_MODULE_VERSIONS_BY_DEVICE.name
