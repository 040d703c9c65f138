"""The part of a plan that each account has: its devices, what they take at its quotas, and what all take together."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from auditor.audit.plan import Answers, all_known, calls_for, seconds_for
from auditor.config import Account
from auditor.inventory.experience import Asked
from auditor.platform.operations import BATCH_GET_DEVICE_STATE


@dataclass(frozen=True, slots=True)
class Part:
    """An account's part of the fleet, and how fast it answers."""

    account: Account
    devices: int
    sizes: Mapping[int, int]
    asked: Asked | None
    answers: Answers
    budgeted: float

    def calls(self, devices: int) -> int:
        """Calls for so many of its devices."""
        return calls_for(devices, self.asked)

    def seconds(self, devices: int, states: int = 0) -> float | None:
        """How long it takes to ask about so many devices, after so many calls for states."""
        asking = seconds_for(self.calls(devices), self.account.rate, self.answers)
        quota = self.account.quotas.batch_get_device_state or BATCH_GET_DEVICE_STATE.per_second
        known = seconds_for(states, quota * self.account.share, self.answers)
        if self.account.rate is None and states:
            return None
        return None if asking is None or known is None else asking + known


class Taken(NamedTuple):
    """What an account takes, or all of them: devices that are asked, all calls, and seconds (None: not known)."""

    devices: int
    calls: int
    seconds: float | None


def sum_of(taken: Iterable[Taken]) -> Taken:
    """What accounts take together: calls add up, and the longest tells the time."""
    each = list(taken)
    seconds = all_known(one.seconds for one in each)
    return Taken(
        sum(one.devices for one in each),
        sum(one.calls for one in each),
        None if seconds is None else round(max(seconds, default=0.0), 3),
    )
