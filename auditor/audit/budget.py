"""A budget of calls: devices are pulled as long as it lasts."""

from collections.abc import Iterator, Sequence

from auditor.audit.account import AskedAccount
from auditor.config import Settings
from auditor.model import Device


class CallBudget:
    """Calls that may be sent, of all accounts together. Repeats of what is in flight may take it beyond by a few.

    Args:
        settings: tell the budget.
        accounts: who is asked.
        before: calls of earlier stretches.

    Attributes:
        spent: whether a device was left unasked for it.
    """

    def __init__(self, settings: Settings, accounts: Sequence[AskedAccount], before: int) -> None:
        self._calls, self._accounts, self._before = settings.calls, accounts, before
        self._pulled = 0
        self.spent = False

    @property
    def why(self) -> str | None:
        """Why devices were left unasked, if they were."""
        return f"the budget of {self._calls:,} calls is spent" if self.spent else None

    def within(self, devices: Iterator[Device]) -> Iterator[Device]:
        """The devices, as long as the budget lasts."""
        if self._calls is None:
            yield from devices
            return
        for device in devices:
            if self._left() <= 0:
                self.spent = True
                return
            self._pulled += 1
            yield device

    def _left(self) -> int:
        """Calls that are left once everybody who was pulled has had one."""
        sent = self._before + sum(asked.all_sent for asked in self._accounts)
        waiting = self._pulled - sum(asked.fetched + asked.tally.in_flight for asked in self._accounts)
        return (self._calls or 0) - sent - max(0, waiting)
