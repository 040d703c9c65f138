"""The quota of an account as all its participants see it: the rate, who is present, and whose turn it is. It is pure.

Participants change a quota by commands: values whose effect depends on nothing but the quota and the time. So a backend
may apply a command again when another process changed the quota in the meantime.
"""

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from struct import Struct
from typing import Generic, NamedTuple, TypeVar

from auditor.resilience.adaptive_rate import (
    MAX_LOGGED_SENDS,
    CubicRateController,
    RateState,
    SendLog,
    allocate_log,
    copy_log,
)

T = TypeVar("T")

VERSION = 3
"""Version of the layout. It is part of the names of shared files and keys, so other versions use others."""

MAX_PARTICIPANTS = 16
"""Participants in the table. Any others take permits of the same schedule, but are not counted."""

PRESENCE_TIMEOUT, PRIORITY_TIMEOUT = 1.5, 0.3
"""Seconds after its last permit that a participant counts as present, and that its priority is respected."""

AHEAD, AHEAD_IN_A_ROW = 0.25, 0.02
"""Seconds ahead that a permit is taken among several participants, and by the one that took the previous permit."""

SHARE_WITHOUT_PRIORITY = 10
"""One permit in so many stays for the others while a participant has priority."""

YIELD_SECONDS = 0.02
"""Seconds after which a participant that yields to another tries again."""

STATE_LIFETIME = 60.0
"""Seconds without a permit after which what was learned is discarded."""

MAX_AHEAD = 300.0
"""Seconds ahead of now that a stored moment can be. Later ones are of another clock."""

MAX_PAUSE_AHEAD = 75.0
"""Seconds that a pause can last at most, with some tolerance for clocks."""

MIN_CONFIGURED_RATE, ROUNDING = 1e-6, 1e-9
"""Requests a second that a participant can have configured at least, and the relative error of a product of rates."""


class _Header(NamedTuple):
    """The first fields of a shared quota. ``era`` differs where times mean something else."""

    version: int
    participant_count: int
    era: float
    active_at: float
    paused_until: float
    last_token: int
    priority_in_a_row: int
    configured_rate: float


class _Presence(NamedTuple):
    """A row of the table of participants; ``priority_until`` is 0 without priority."""

    token: int
    until: float
    configured_rate: float
    priority_until: float


_HEADER, _RATE, _PRESENCE = Struct("=IIdddQQd"), Struct("=9d"), Struct("=Qddd")

_TABLE_AT = _HEADER.size + _RATE.size
_LOG_AT = _TABLE_AT + MAX_PARTICIPANTS * _PRESENCE.size


def size_for(sends: int) -> int:
    """Return the bytes of a shared quota whose log holds so many sends."""
    return _LOG_AT + 8 * (1 + sends)


def copy_quota(memory: "memoryview[int]", larger: "memoryview[int]") -> None:
    """Copy a shared quota into a memory with room for more sends."""
    larger[:_LOG_AT] = memory[:_LOG_AT]
    copy_log(memory[_LOG_AT:].cast("d"), larger[_LOG_AT:].cast("d"))


@dataclass(frozen=True, slots=True)
class Participant:
    """A process that takes permits: its ``configured_rate`` limits all; with ``priority`` it goes before others."""

    configured_rate: float
    priority: bool = False
    token: int = field(default_factory=lambda: 1 + secrets.randbits(50))


class Permit(NamedTuple):
    """Permission for some requests at a moment; ``number`` is that of the first in the log of sends."""

    at: float
    number: int
    requests: int = 1


class NotDue(NamedTuple):
    """No permit yet: the next one is due at the moment ``until``."""

    until: float


class SharedQuota:
    """The quota of an account. All participants take permits of one schedule, so together they stay within the quota.

    Permits are taken a moment ahead, one at a time or those that are due, so participants alternate. One that dies
    leaves one permit unused at most. The lowest configured rate of those present applies, and all learn from a
    throttling response to one.

    Args:
        configured_rate: requests a second at most; infinite searches for the quota.
        memory: storage of ``size_for`` bytes; by default memory of this process alone.

    Attributes:
        paused_until: moment until which nothing is sent.
        other_participants: how many others are present.
        rate_limit: requests a second at most, whatever is configured.
    """

    def __init__(self, configured_rate: float, memory: "memoryview[int] | None" = None) -> None:
        self._memory = memory
        self._presences: list[_Presence] = []
        self._active_at = 0.0
        self._last_token = self._priority_in_a_row = 0
        self.paused_until = 0.0
        self.other_participants = 0
        self.rate_limit = math.inf
        log = allocate_log(MAX_LOGGED_SENDS) if memory is None else memory[_LOG_AT:].cast("d")
        self.rate = CubicRateController(configured_rate, SendLog(log))

    def load(self, configured_rate: float, era: float, now: float) -> bool:
        """Read what the others have written; start from scratch if it is of another time, empty or corrupt.

        ``era`` is a number that differs where times mean something else, as after a restart of the machine. Return
        whether it was read.
        """
        memory, latest = self._shared_memory, now + MAX_AHEAD
        is_valid = self._read(memory, era, latest)
        if is_valid and now - STATE_LIFETIME <= self.active_until <= latest:
            return True
        memory[:] = bytes(len(memory))
        self._presences = []
        self._active_at = self.paused_until = 0.0
        self._last_token = self._priority_in_a_row = 0
        self.rate = CubicRateController(configured_rate, self.rate.send_log)
        return False

    def _read(self, memory: "memoryview[int]", era: float, latest: float) -> bool:
        """Read the memory; return whether every value can be a participant's, with no moment after ``latest``."""
        header = _Header._make(_HEADER.unpack_from(memory))
        if (header.version, header.era) != (VERSION, era) or header.participant_count > MAX_PARTICIPANTS:
            return False
        state = RateState._make(_RATE.unpack_from(memory, _HEADER.size))
        table = memory[_TABLE_AT : _TABLE_AT + header.participant_count * _PRESENCE.size]
        presences = [_Presence._make(row) for row in _PRESENCE.iter_unpack(table)]
        moments = [header.active_at, header.paused_until]
        for row in presences:
            moments += row.until, row.priority_until
        rates = [header.configured_rate, *(row.configured_rate for row in presences)]
        # A rate above the configured one would exceed the quota of all participants together.
        if not state.current_rate * (1 + state.margin) <= header.configured_rate * (1 + ROUNDING):
            return False
        if not header.paused_until <= latest - MAX_AHEAD + MAX_PAUSE_AHEAD:
            return False
        if not (all(moment <= latest for moment in moments) and all(rate >= MIN_CONFIGURED_RATE for rate in rates)):
            return False
        if not (state.is_plausible(latest) and self.rate.send_log.is_plausible):
            return False
        self._active_at, self.paused_until = header.active_at, header.paused_until
        self._last_token, self._priority_in_a_row = header.last_token, header.priority_in_a_row
        self.rate.restore(header.configured_rate, state)
        self._presences = presences
        return True

    def store(self, era: float) -> None:
        """Write the quota for the others."""
        memory, rate = self._shared_memory, self.rate
        active = self._active_at, self.paused_until, self._last_token, self._priority_in_a_row
        header = _Header(VERSION, len(self._presences), era, *active, rate.configured_rate)
        _HEADER.pack_into(memory, 0, *header)
        _RATE.pack_into(memory, _HEADER.size, *rate.state)
        for number, row in enumerate(self._presences):
            _PRESENCE.pack_into(memory, _TABLE_AT + number * _PRESENCE.size, *row)

    @property
    def active_until(self) -> float:
        """Moment of the latest activity, or the end of a pause: no participant takes permits in a long pause."""
        return max(self._active_at, self.paused_until)

    @property
    def _shared_memory(self) -> "memoryview[int]":
        if self._memory is None:
            raise RuntimeError("this quota is not shared")
        return self._memory

    def reserve(self, participant: Participant, limit: int, now: float) -> Permit | NotDue:
        """Return the next permit if it is near enough and the participant's turn, else when to try again.

        It is for up to ``limit`` requests if so many are due. Those that are not yet due are taken singly.
        """
        self._active_at = now
        others = [row for row in self._presences if row.token != participant.token and row.until > now]
        self.other_participants = len(others)
        configured = participant.configured_rate
        self.rate.configured_rate = min(self.rate_limit, configured, *(row.configured_rate for row in others))
        yields = not participant.priority and any(row.priority_until > now for row in others)
        permit = self._next_permit(participant, now, limit, yields=yields)
        until = max(now, permit[0])
        priority_until = until + PRIORITY_TIMEOUT if participant.priority else 0.0
        others.append(_Presence(participant.token, until + PRESENCE_TIMEOUT, configured, priority_until))
        self._presences = others[-MAX_PARTICIPANTS:]
        return permit

    def _next_permit(self, participant: Participant, now: float, limit: int, *, yields: bool) -> Permit | NotDue:
        if yields and self._priority_in_a_row < SHARE_WITHOUT_PRIORITY - 1:
            return NotDue(now + YIELD_SECONDS)
        at = max(self.rate.next_permit_at(), self.paused_until)
        ahead = 0.0
        if self.other_participants:
            ahead = AHEAD_IN_A_ROW if self._last_token == participant.token else AHEAD
        if at > now + ahead:
            return NotDue(at - ahead)
        self._last_token = participant.token
        in_a_row = min(self._priority_in_a_row, SHARE_WITHOUT_PRIORITY) + 1
        self._priority_in_a_row = in_a_row if participant.priority else 0
        at = max(at, now)
        number = self.rate.on_sent(at)
        return Permit(at, number, 1 + self.rate.send_due(at, now, limit - 1))

    def confirm(self, permit: Permit, now: float) -> float | None:
        """Return the moment of a permit that is used ``now``, or None if a pause began in the meantime."""
        if self.paused_until > now:
            return None
        self.rate.send_log.correct(permit.number, now)
        return now

    def on_success(self, sent_at: float, count: int, _now: float) -> None:
        """Record that ``count`` requests sent at ``sent_at`` were not throttled."""
        self.rate.on_success(sent_at, count)

    def on_throttled(self, sent_at: float, received_at: float, _now: float) -> None:
        """Record a throttling response to the request sent at ``sent_at``."""
        self._active_at = max(self._active_at, received_at)
        self.paused_until = max(self.paused_until, self.rate.on_throttled(sent_at, received_at))

    def pause(self, until: float, _now: float) -> None:
        """Send nothing ``until`` a moment. A longer pause stays."""
        self.paused_until = max(self.paused_until, until)

    def refresh(self, _now: float) -> None:
        """Change nothing: a transaction with it stores the recorded events, and loads what others stored."""


class Command(NamedTuple, Generic[T]):
    """A change of a quota as a value: a method of ``SharedQuota``, and its arguments but for the time."""

    method: Callable[..., T]
    arguments: tuple[object, ...] = ()

    def apply(self, quota: SharedQuota, now: float) -> T:
        """Change the quota and return the result. A result that could not be stored is dropped, and applied again."""
        return self.method(quota, *self.arguments, now)
