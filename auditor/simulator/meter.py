"""Counts each request against its account's quota for the operation, and refuses those that are over it."""

from collections import defaultdict

from auditor.simulator.account import SimulatedAccount
from auditor.simulator.answers import Refused
from auditor.simulator.quota import Contended, Window, WindowKind, window


class Throttled(Refused):
    """Over the quota; ``wait`` is in seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__("Throttling.User", "Request was denied due to user flow control.", 400)
        self.wait = wait


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
