"""How the requests that may be in flight are divided among accounts: by their quotas, and for good.

A part that an account does not need is lent to nobody: one whose platform falls silent would keep what it had
borrowed, and delay the others with it.

A budget of calls: devices are pulled as long as it lasts.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from auditor.config.settings import Settings
from auditor.engine.account_session import AskedAccount
from auditor.models import Device

_ROUNDING = 1e-9


def workers_of(settings: Settings) -> list[int]:
    """Requests in flight of each account, in the settings' order: its part of ``at_once``, one at the least."""
    weights = _weights(settings)
    free = max(0, settings.at_once - len(weights))
    return [1 + math.floor(free * weight / math.fsum(weights) + _ROUNDING) for weight in weights]


def at_once_for(settings: Settings, needed: Sequence[int]) -> int:
    """What ``at_once`` has to be at the least for each account's part to be as much as it needs."""
    weights = _weights(settings)
    free = ((need - 1) * math.fsum(weights) / weight for need, weight in zip(needed, weights, strict=True) if need > 1)
    return len(weights) + math.ceil(max(free, default=0.0) - _ROUNDING)


def parts_of(settings: Settings) -> list[float]:
    """The part of a budget of calls that each account has, in the settings' order: by its quota."""
    weights = _weights(settings)
    return [weight / math.fsum(weights) for weight in weights]


def allotted(settings: Settings) -> list[int]:
    """Calls of the budget that each account has, in the settings' order: one at the least, the rest by its quota."""
    free = max(0, (settings.calls or 0) - len(settings.account))
    parts = parts_of(settings)
    ends = [math.floor(free * math.fsum(parts[:number]) + _ROUNDING) for number in range(len(parts) + 1)]
    return [1 + end - begin for begin, end in pairwise(ends)]


def _weights(settings: Settings) -> list[float]:
    """Quotas; one that is not known counts as the mean of those that are. The share of it that is ours does not count:
    it may be changed at any time, and would change what the others have.
    """
    quotas = [None if isinstance(each.per_second, str) else each.per_second for each in settings.account]
    known = [quota for quota in quotas if quota is not None]
    mean = math.fsum(known) / len(known) if known else 1.0
    return [mean if quota is None else quota for quota in quotas]


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
