"""How many requests a second an account bears: told by the settings, learned from its refusals. Time is an argument.

The latest moments of sending, in a ring of numbers that several processes may share.
"""

import math
from array import array
from collections.abc import Sequence

MARGIN, LEAST_MARGIN, MOST_MARGIN = 0.026, 0.022, 0.25
"""Seconds by which a second is stretched, at first, at least and at most: a quota of 10 is sent in 1.03 s.

Requests of two seconds in a row that are jittered by J may fall into one of the server's seconds unless they are spread
over 1 + J of ours. 0.85 of 0.024 holds 10 ms of the network's jitter, 3 ms of a late timer, and 7 ms of a busy machine.
"""


ROOM = 0.85
"""The part of the margin that is kept free at any moment; the rest makes good for lateness, which else would add up."""


WIDER, NARROWER = 1.2, 1 - 1 / 8000
"""What a refusal at the ceiling makes of the margin, and what an answer there does: 1 refusal in some 1,800 is even."""


EXCUSED_REQUESTS, EXCUSED_SECONDS = 100, 2.0
"""A second refusal at the ceiling within so many requests, or seconds, is no chance any more."""


BUNCH = 0.06
"""Seconds of sending whose refusals are one: what a busy machine holds up goes out together."""


STILL, COUNTABLE = 0.98, 4.0
"""The part of the level that stays where a refusal may be chance; and the least level, in requests a second, for it."""


CATCH_UP = 0.05
"""Seconds that a timer may be late without its slots being lost; they go out together as far as there is room."""


CUT = 0.05
"""By what part the rate stays below the level that was refused, at first."""


RISE = 0.25
"""How steeply it rises beyond that level when a cycle has brought no refusal."""


CYCLE_REQUESTS, CYCLE_SECONDS = 110, 3.0
"""A cycle back up to the refused level takes so many answers, and so many seconds: one refusal in some 150 requests."""


SPACINGS = 2.0
"""How many requests' time is held back after a refusal; doubled while nothing but refusals comes."""


SLOWEST = 1 / 15
"""Requests a second that are sent even while nothing but refusals comes."""


MOST_MOMENTS = 4_096
"""Requests whose moments are remembered: two seconds at 2,000/s; faster, it is less than a second that is looked at."""


UNTOLD = 10.0
"""Where a search for an unknown quota begins, in requests a second."""


class Moments:
    """The latest moments when requests were sent, in seconds, each above 0; the oldest are written over.

    ``memory[0]`` counts all that ever were, the other cells are the ring. A moment that is negative is that of a
    request that was refused.

    Args:
        memory: where they lie, of format ``d``.
    """

    def __init__(self, memory: "memoryview[float]") -> None:
        self._memory = memory
        self._places = len(memory) - 1

    def __len__(self) -> int:
        return min(int(self._memory[0]), self._places)

    def add(self, moment: float) -> int:
        """Adds the latest moment; gives its number, for ``correct``."""
        number = int(self._memory[0])
        self._memory[1 + number % self._places] = moment
        self._memory[0] = number + 1
        return number

    def correct(self, number: int, moment: float) -> None:
        """Says when the request of a number was sent in truth."""
        if 0 < self._memory[0] - number <= self._places:
            self._memory[1 + number % self._places] = moment

    def latest(self, back: int) -> float:
        """The moment of the request before which there were ``back`` - 1 later ones; ``back`` from 1 to the length."""
        return abs(float(self._memory[1 + (int(self._memory[0]) - back) % self._places]))

    def refuse(self, moment: float) -> None:
        """Says that the request that was sent at a moment was refused."""
        count = int(self._memory[0])
        for number in range(count - 1, count - 1 - len(self), -1):
            at = 1 + number % self._places
            if self._memory[at] == moment:
                self._memory[at] = -moment
                return
            if abs(self._memory[at]) < moment - 1:  # neighbours may have changed places, but not by as much
                return

    def admitted(self, after: float, until: float) -> int:
        """How many requests were sent later than ``after``, and not later than ``until``, and not refused."""
        count, found = int(self._memory[0]), 0
        for number in range(count - 1, count - 1 - len(self), -1):
            moment = self._memory[1 + number % self._places]
            if abs(moment) < after - 1:
                break
            found += after < moment <= until
        return found


class Rate:
    """The requests a second of one account, steered by what became of its requests.

    Refused, it falls a little below what was admitted in the second before, rises back to that level in a curve that is
    flat there, stays about it for a cycle, and rises beyond it ever faster while no refusal comes: the cubic curve that
    TCP takes for the same reasons (RFC 9438). Cycles are counted in answers, so refusals stay rare at any rate.

    Args:
        told: requests a second that are never exceeded; infinite looks for the quota, beginning at ``UNTOLD``.
        moments: when requests were sent; those of this process alone if none are given.

    Attributes:
        now: requests a second.
        margin: seconds by which a second is stretched, learned from refusals at the ceiling.
    """

    STATE = 9
    """The numbers that ``state`` is."""

    def __init__(self, told: float, moments: Moments | None = None) -> None:
        self.margin = MARGIN
        self._told = told
        self._level = UNTOLD if told == math.inf else math.inf
        self._cycles = 1.0
        self.now = min(self._level, self.ceiling)
        self.moments = Moments(room_for(MOST_MOMENTS)) if moments is None else moments
        self._slot_at = -math.inf
        self._slowed_at = self._excused_at = -math.inf
        self._refusals_in_a_row = 0.0
        self._least_level = 0.0

    @property
    def state(self) -> tuple[float, ...]:
        """All that was learned, and where the slots are, in ``STATE`` numbers; what was told is not among them."""
        learned = (self.now, self.margin, self._level, self._cycles, self._least_level)
        return (*learned, self._slot_at, self._slowed_at, self._excused_at, self._refusals_in_a_row)

    def restored(self, told: float, state: Sequence[float], latest: float) -> bool:
        """Takes over what another one of the same moments has learned, see ``state``; if it can be true.

        Args:
            told: requests a second that are never exceeded.
            state: as the other's.
            latest: no moment in it can be later.
        """
        now, margin, level, cycles, least, *moments, in_a_row = state
        positive = 0 < now < math.inf and 0 < margin <= MOST_MARGIN and level > 0 and 0 <= least < math.inf
        if not positive or not math.isfinite(cycles) or not 0 <= in_a_row < math.inf:
            return False
        if not all(moment <= latest for moment in moments):
            return False
        self._told = told
        self.now, self.margin, self._level, self._cycles, self._least_level = state[:5]
        self._slot_at, self._slowed_at, self._excused_at, self._refusals_in_a_row = state[5:]
        return True

    @property
    def told(self) -> float:
        """Requests a second that are never exceeded."""
        return self._told

    @told.setter
    def told(self, told: float) -> None:
        if told == self._told:
            return
        if told == math.inf and self._level == math.inf:
            self._level, self._cycles = self.now, 1.0  # from now on it is looked for
        self._told = told
        self.now = self.ceiling if self._level == math.inf else min(self.now, self.ceiling)

    @property
    def ceiling(self) -> float:
        """Requests a second that are not exceeded, as the margin is now."""
        return self._told / (1 + self.margin)

    @property
    def _second(self) -> float:
        """Seconds to count requests in: one, or longer where there is less than one a second."""
        return max(1.0, 1 / self.now)

    def next_at(self) -> float:
        """The moment from which on one request may be sent.

        Slots have even distances, and those that were late are caught up with only as far as a sliding second would
        have room for them: a crowd that was held up by a busy machine fits between the requests before and after it.
        """
        bound = self._told
        if self._level < math.inf:
            bound = min(bound, max(self.now, self._level) * (1 + self.margin))
        calls = min(max(1, math.floor(bound)), MOST_MOMENTS)
        even = self._slot_at + 1 / self.now
        if len(self.moments) < calls:
            return even
        return max(even, self.moments.latest(calls) + (1 + ROOM * self.margin) * calls / bound)

    def sent(self, moment: float) -> int:
        """A request is sent at ``moment`` (seconds, never much before the one before); gives its number."""
        self._slot_at = max(self._slot_at + 1 / self.now, moment - CATCH_UP)
        return self.moments.add(moment)

    def admitted(self, sent_at: float) -> None:
        """The request that was sent at ``sent_at`` was not refused."""
        if sent_at < self._slowed_at:
            return
        self._refusals_in_a_row = 0.0
        if self._level == math.inf:
            self.margin = max(LEAST_MARGIN, self.margin * NARROWER)
            self.now = self.ceiling
            return
        self._cycles += min(1 / CYCLE_REQUESTS, 1 / (CYCLE_SECONDS * self.now))
        beyond = self._cycles - 1
        self.now = self._level * (1 + (RISE if beyond > 0 else CUT) * beyond**3)
        if self.now >= self.ceiling:
            self.now, self._level = self.ceiling, math.inf

    def refused(self, sent_at: float, now: float) -> float:
        """The request that was sent at ``sent_at`` was refused for the quota, as is known ``now``.

        Returns:
            The moment until which nothing should be sent.
        """
        self.moments.refuse(sent_at)
        second = self._second
        if self._level == math.inf and self._excused(sent_at):
            return now
        stretched = second * (1 + self.margin)
        # Half a request more, because a count of whole ones is uncertain by that.
        admitted = (self.moments.admitted(sent_at - stretched, sent_at) + 0.5) / second
        if sent_at < self._slowed_at:
            # It went out before the rate fell, so it is no reason to fall again; but it was counted as admitted.
            if self._least_level <= admitted < self._level:
                self._level = admitted
                self.now = min(self.now, self._level * (1 - CUT))
            return now
        again = self._refusals_in_a_row > 0 or now - self._slowed_at < second
        if self._refusals_in_a_row == 0:
            self._least_level = self.now / 2
        if again:
            level = min(self._level, admitted)
        elif self.now >= 0.98 * self.ceiling:
            level = min(self.ceiling, admitted / (1 + self.margin))
        else:
            # Below what was borne until now a refusal is chance at first, if as many were admitted all the same.
            borne = min(STILL * self._level, admitted / (1 + self.margin)) if self._level >= COUNTABLE else 0.0
            level = max(min(self.now, admitted) / (1 + self.margin), borne)
        self._level = max(level, self._least_level)
        self.now = max(self._level * (1 - CUT) / 2**self._refusals_in_a_row, min(SLOWEST, self._least_level))
        self._cycles = 0.0
        self._slowed_at = now
        self._refusals_in_a_row = min(self._refusals_in_a_row + 1, 60.0)
        return max(now + SPACINGS / self.now, self._room())

    def _excused(self, sent_at: float) -> bool:
        """Whether a refusal at the ceiling may be chance; if so the ceiling gives way a little, and the next tells."""
        since = sent_at - self._excused_at
        if abs(since) < BUNCH:
            return True
        if since < max(EXCUSED_SECONDS, EXCUSED_REQUESTS / self.now):
            return False
        self._excused_at = sent_at
        self.margin = min(MOST_MARGIN, self.margin * WIDER)
        self.now = self.ceiling
        return True

    def _room(self) -> float:
        """When a sliding second that holds as many as the level has room for one more."""
        calls = min(max(1, math.floor(self._level)), MOST_MOMENTS)
        if len(self.moments) < calls:
            return -math.inf
        return self.moments.latest(calls) + (1 + self.margin) * calls / self._level


def move_moments(memory: "memoryview[float]", larger: "memoryview[float]") -> None:
    """Writes moments into a memory with more room, under the same numbers."""
    if not 0 <= memory[0] <= 2**53:  # nobody counted to that: it is broken
        return
    larger[0] = memory[0]
    count, places, more_places = int(memory[0]), len(memory) - 1, len(larger) - 1
    for number in range(max(0, count - places), count):
        larger[1 + number % more_places] = memory[1 + number % places]


def room_for(moments: int) -> "memoryview[float]":
    """Memory of this process alone for so many moments."""
    return memoryview(array("d", bytes(8 * (moments + 1))))
