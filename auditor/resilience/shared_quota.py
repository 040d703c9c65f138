"""An account's budget as all know it who take part in it: the rate, who is there, and whose turn it is. It is pure."""

import math
import random
import secrets
from array import array
from dataclasses import dataclass, field
from struct import Struct
from typing import NamedTuple

from auditor.resilience.adaptive_rate import MOST_MOMENTS, Moments, Rate, move_moments, room_for

VERSION = 1.0
"""Of the layout of shared memory."""


PLACES = 16
"""Who can be known at a time; whoever comes beyond them takes his slots all the same."""


PRESENT, BEFORE = 1.5, 0.3
"""Seconds after which one who asks for no slot any more does not count; and does not go before others."""


AHEAD, AHEAD_AGAIN = 0.25, 0.02
"""How many seconds ahead a slot is taken where others take part; and by one who took the one before it as well."""


OTHERS_TURN = 10
"""While somebody goes first, one slot in so many is still for the others."""


YIELDS = 0.02
"""Seconds after which one who lets another go first looks again."""


FORGOTTEN = 60.0
"""Seconds without a slot after which what was learned counts no more."""


LONGEST_AHEAD = 300.0
"""Seconds ahead that a moment lies at most that can be true."""


_FIXED = Struct(f"={9 + Rate.STATE}d")


_ROW = Struct("=4d")


_STAMP, _CELLS, _ROW_CELLS = 0, _FIXED.size // 8, _ROW.size // 8


_MOMENTS = _CELLS + PLACES * _ROW_CELLS


Row = tuple[float, float, float, float]
"""Who, present until when, requests a second that he was told, and until when he goes before others (0: never)."""


def cells_for(moments: int) -> int:
    """Numbers of memory that a budget takes which remembers so many moments of sending."""
    return _MOMENTS + 1 + moments


def move(memory: "memoryview[float]", larger: "memoryview[float]") -> None:
    """Writes what lies in a budget's memory into one with room for more moments."""
    larger[:_MOMENTS] = memory[:_MOMENTS]
    move_moments(memory[_MOMENTS:], larger[_MOMENTS:])


@dataclass(frozen=True, slots=True)
class Participant:
    """One who takes part: ``told`` requests a second are his bound for all; with ``priority`` he goes before others."""

    told: float
    priority: bool = False
    token: float = field(default_factory=lambda: float(1 + secrets.randbits(50)))


class Slot(NamedTuple):
    """A slot at a moment, under its number; or, without a number, the moment when to ask again.

    ``many``: as many were due at that moment.
    """

    at: float
    number: int | None
    many: int = 1


class Budget:
    """The budget of an account: whoever takes part takes slots of one chain, so that all together keep the quota.

    Slots are taken one at a time, a moment ahead, so those who take part alternate, and one who dies leaves one slot
    unused at most. The lowest rate that was told to any of them who is present counts, and what one learns by a
    refusal, all know.

    Args:
        told: requests a second at most; infinite looks for the quota.
        memory: where it lies, of format ``d`` and ``cells_for`` cells; None is memory of this process alone.

    Attributes:
        rate: how fast.
        others: how many others are present.
        bound: requests a second at most, whatever was told.
    """

    def __init__(self, told: float, memory: "memoryview[float] | None" = None) -> None:
        self._memory = memory
        self._rows: list[Row] = []
        self._asked_at = 0.0
        self._last = 0.0
        self._priority_in_a_row = 0.0
        self.open_at = 0.0
        self.others = 0
        self.bound = math.inf
        self._stamp = 0.0
        moments = room_for(MOST_MOMENTS) if memory is None else memory[_MOMENTS:]
        self.rate = Rate(told, Moments(moments))

    def load(self, told: float, era: float, now: float) -> None:
        """Reads what the others have written; begins anew where that is of another time, or nothing, or broken.

        Args:
            told: what to begin with.
            era: a number that is another one where times mean something else, as after the machine has started anew.
            now: seconds.
        """
        memory = self._shared
        stamp, self._stamp = self._stamp, 0.0
        known = stamp > 0 and stamp == memory[_STAMP]  # nobody else has written since
        believed = known or self._read(memory, era, now + LONGEST_AHEAD)
        last = max(self._asked_at, self.open_at)  # nobody asks in a long pause
        if not believed or not now - FORGOTTEN <= last <= now + LONGEST_AHEAD:
            memory[:] = array("d", bytes(8 * len(memory)))
            self._rows = []
            self._asked_at = self.open_at = self._last = self._priority_in_a_row = 0.0
            self.rate = Rate(told, self.rate.moments)

    def _read(self, memory: "memoryview[float]", era: float, latest: float) -> bool:
        """Reads what lies there, if it can be true; no moment in it is later than ``latest`` then."""
        (
            stamp,
            version,
            its_era,
            many,
            self._asked_at,
            self.open_at,
            self._last,
            self._priority_in_a_row,
            bound,
            *state,
        ) = _FIXED.unpack_from(memory)
        if not stamp > 0 or (version, its_era) != (VERSION, era):
            return False
        sent = memory[_MOMENTS]
        if not 0 <= many <= PLACES or not 0 <= sent < math.inf or not bound > 0:
            return False
        if not self._asked_at <= latest or not self.open_at <= latest or not self.rate.restored(bound, state, latest):
            return False
        self._rows = list(_ROW.iter_unpack(memory[_CELLS : _CELLS + int(many) * _ROW_CELLS]))
        return all(told > 0 and until <= latest and before <= latest for _, until, told, before in self._rows)

    def store(self, era: float) -> None:
        """Writes it for the others."""
        memory, rate = self._shared, self.rate
        memory[_STAMP] = 0.0  # who is killed before the end leaves this, and all is begun anew
        own = (self._asked_at, self.open_at, self._last, self._priority_in_a_row, rate.told)
        _FIXED.pack_into(memory, 0, 0.0, VERSION, era, len(self._rows), *own, *rate.state)
        for number, row in enumerate(self._rows):
            _ROW.pack_into(memory, 8 * (_CELLS + number * _ROW_CELLS), *row)
        memory[_STAMP] = self._stamp = random.random() or 1.0  # noqa: S311  one of its own: two may change the same

    @property
    def _shared(self) -> "memoryview[float]":
        if self._memory is None:
            raise RuntimeError("this budget is not shared")
        return self._memory

    def reserve(self, one: Participant, now: float, most: int = 1) -> Slot:
        """The next slot, if it is near enough and his turn; or when to ask again.

        Args:
            one: who asks.
            now: seconds.
            most: how many slots he takes if they are due; those that are not yet are taken one by one.
        """
        self._asked_at = now
        rows = [row for row in self._rows if row[0] != one.token and row[1] > now]
        self.others = len(rows)
        self.rate.told = min(self.bound, one.told, *(row[2] for row in rows))
        slot = self._slot(one, now, most, yields=any(row[3] > now for row in rows) if rows else False)
        until = max(now, slot.at)
        rows.append((one.token, until + PRESENT, one.told, until + BEFORE if one.priority else 0.0))
        self._rows = rows[-PLACES:]
        return slot

    def _slot(self, one: Participant, now: float, most: int, *, yields: bool) -> Slot:
        if yields and not one.priority and self._priority_in_a_row < OTHERS_TURN - 1:
            return Slot(now + YIELDS, None)
        at = max(self.rate.next_at(), self.open_at)
        ahead = 0.0 if not self.others else AHEAD_AGAIN if self._last == one.token else AHEAD
        if at > now + ahead:
            return Slot(at - ahead, None)
        self._last = one.token
        self._priority_in_a_row = self._priority_in_a_row + 1 if one.priority else 0.0
        at = max(at, now)
        number, many = self.rate.sent(at), 1
        while many < most and self.rate.next_at() <= now:
            self.rate.sent(at)
            many += 1
        return Slot(at, number, many)

    def confirm(self, slot: Slot, now: float) -> float | None:
        """The moment of a slot that is used ``now``; None if it does not hold, for a pause began meanwhile."""
        if self.open_at > now:
            return None
        if slot.number is not None:
            self.rate.moments.correct(slot.number, now)
        return now

    def refused(self, sent_at: float, now: float) -> None:
        """The request that was sent at ``sent_at`` was refused for the quota, as is known ``now``."""
        self._asked_at = max(self._asked_at, now)
        self.open_at = max(self.open_at, self.rate.refused(sent_at, now))

    def pause(self, until: float) -> None:
        """Nothing is sent ``until`` then; a longer pause that is under way stays."""
        self.open_at = max(self.open_at, until)
