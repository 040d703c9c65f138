"""How requests in flight and a call budget are divided among accounts: in proportion to their quotas, and fixed.

Unused concurrency is never lent to another account. An account whose platform stops responding would keep what it had
borrowed, and would delay the others.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from auditor.config.settings import Settings
from auditor.engine.account_session import AccountSession
from auditor.models import Device

_ROUNDING = 1e-9


def concurrency_per_account(settings: Settings) -> list[int]:
    """Return each account's fraction of ``concurrency``, in the settings' order: at least one request in flight."""
    weights = _quota_weights(settings)
    free = max(0, settings.concurrency - len(weights))
    return [1 + math.floor(free * weight / math.fsum(weights) + _ROUNDING) for weight in weights]


def min_concurrency_for(settings: Settings, needed: Sequence[int]) -> int:
    """Return the least ``concurrency`` that gives each account as many requests in flight as it needs."""
    weights = _quota_weights(settings)
    free = ((need - 1) * math.fsum(weights) / weight for need, weight in zip(needed, weights, strict=True) if need > 1)
    return len(weights) + math.ceil(max(free, default=0.0) - _ROUNDING)


def quota_fractions(settings: Settings) -> list[float]:
    """Return each account's fraction of a call budget, in the settings' order: in proportion to its quota."""
    weights = _quota_weights(settings)
    return [weight / math.fsum(weights) for weight in weights]


def calls_per_account(settings: Settings) -> list[int]:
    """Return each account's calls of ``max_calls``, in the settings' order: one, and its fraction of the rest."""
    free = max(0, (settings.max_calls or 0) - len(settings.account))
    fractions = quota_fractions(settings)
    ends = [math.floor(free * math.fsum(fractions[:number]) + _ROUNDING) for number in range(len(fractions) + 1)]
    return [1 + end - begin for begin, end in pairwise(ends)]


def _quota_weights(settings: Settings) -> list[float]:
    """Return the quotas; one that is not configured counts as the mean of the others.

    ``quota_share`` does not count: it may change at any time, which would change what the other accounts get.
    """
    quotas = [None if isinstance(each.calls_per_second, str) else each.calls_per_second for each in settings.account]
    configured = [quota for quota in quotas if quota is not None]
    mean = math.fsum(configured) / len(configured) if configured else 1.0
    return [mean if quota is None else quota for quota in quotas]


class CallBudget:
    """Calls that may be sent by all accounts together.

    Further pages of devices and requests that were throttled may exceed it by a few, and probes during an outage by up
    to four a minute, since the account is waited for.

    ``calls_before`` were sent by earlier processes. ``exhausted``: a device was not queried because of the budget.
    """

    def __init__(self, settings: Settings, accounts: Sequence[AccountSession], calls_before: int) -> None:
        self._calls, self._accounts, self._calls_before = settings.max_calls, accounts, calls_before
        self._pulled = 0
        self.exhausted = False

    @property
    def reason(self) -> str | None:
        """Why devices were not queried, if the budget is the reason."""
        return f"the budget of {self._calls:,} calls is exhausted" if self.exhausted else None

    def limit(self, devices: Iterator[Device]) -> Iterator[Device]:
        """Yield the devices until the budget is exhausted."""
        if self._calls is None:
            yield from devices
            return
        for device in devices:
            if self._unreserved(self._calls) <= 0:
                self.exhausted = True
                return
            self._pulled += 1
            yield device

    def may_retry(self) -> bool:
        """Return whether a device whose request failed may have another call."""
        return self._calls is None or self._unreserved(self._calls) >= 0

    def _unreserved(self, calls: int) -> int:
        """Return how many calls are left. One is reserved for every device that was pulled and waits for a request."""
        sent = self._calls_before + sum(session.total_sent for session in self._accounts)
        waiting = self._pulled - sum(session.fetched + session.stats.in_flight for session in self._accounts)
        return calls - sent - max(0, waiting)
