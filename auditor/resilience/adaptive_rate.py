"""Requests a second that an account accepts: configured, and learned from throttling responses. Time is an argument.

Each throttling response lowers the rate; it then rises again along the cubic curve of TCP CUBIC (RFC 9438). The log of
the latest sends is a ring of numbers that several processes can share.
"""

import math
from array import array
from bisect import bisect_left
from typing import NamedTuple

INITIAL_MARGIN, MIN_MARGIN, MAX_MARGIN = 0.026, 0.022, 0.25
"""Seconds by which a second is stretched: initially, at least and at most. A quota of 10 is sent in 1.03 s.

Two successive seconds of requests with a jitter of J can fall into one second of the server, unless they are spread
over 1 + J of ours. 0.85 of 0.024 covers 10 ms of network jitter, 3 ms of a late timer, and 7 ms of a busy machine.
"""

FREE_FRACTION = 0.85
"""Fraction of the margin that stays free at any moment. The rest absorbs delays, which would add up otherwise."""

MARGIN_GROWTH, MARGIN_DECAY = 1.2, 1 - 1 / 8000
"""Factors of the margin per throttling response and per success at the maximum rate: 1 in some 1,800 is in balance."""

TOLERATED_REQUESTS, TOLERATED_SECONDS = 100, 2.0
"""A second throttling response at the maximum rate within so many requests, or seconds, is not chance any more."""

BURST_SECONDS = 0.06
"""Throttling responses to requests sent within so many seconds count as one: a busy machine sends them together."""

COUNTABLE_RATE, PROBED_GROWTH = 10.0, 1.01
"""Requests a second from which their count in one second shows what was accepted, and the steps of a lower level."""

CHANCE_FRACTION, MIN_COUNTABLE = 0.98, 4.0
"""Fraction of ``w_max`` kept where throttling may be chance, and the smallest ``w_max`` for that, per second."""

CATCH_UP = 0.05
"""Seconds that a timer may be late without a loss of its permits; they are sent together if there is room."""

CUT = 0.05
"""Fraction by which the rate initially stays below the throttled level."""

RISE = 0.25
"""Fraction by which the rate first rises above that level, when a cycle brought no throttling response."""

CYCLE_REQUESTS, MIN_CYCLE_SECONDS, MAX_CYCLE_SECONDS = 110, 3.0, 6.0
"""Requests, and seconds, of a cycle back up to the throttled level: one throttling response in some 150 requests.

The seconds limit the requests. At a low rate so many requests would take minutes, and nothing else shows that another
client has left.
"""

RECOVERY_SECONDS = 8.7
"""Seconds after the last throttling response until the rate is back at the maximum, however low it was."""

PAUSE_REQUESTS, MAX_PAUSE_SECONDS, LONG_PAUSES_AFTER = 2.0, 5.0, 3
"""Pause after a throttling response, in request intervals; doubled while only throttling responses arrive.

The seconds limit it, so that a low rate recovers in time. They double after so many responses in a row.
"""

MIN_RATE = 1 / 5
"""Requests a second that are sent even while only throttling responses arrive."""

MAX_COUNTED_SENDS, MAX_STORED_CYCLE, MAX_THROTTLED_IN_A_ROW = 2.0**50, 1e6, 60.0
"""Largest values that a log's count, a cycle and a series can have. Larger ones were written by no controller."""

MAX_LOGGED_SENDS = 4_096
"""Sends in the log: two seconds at 2,000/s. At higher rates the log covers less than a second."""

INITIAL_SEARCH_RATE = 10.0
"""Requests a second at the start of the search for an unknown quota."""


class SendLog:
    """The moments of the latest sends, in seconds, each above 0. New ones overwrite the oldest.

    ``memory[0]`` counts all sends ever, and the other cells are the ring. A send that was throttled is negative.
    """

    def __init__(self, memory: "memoryview[float]") -> None:
        self._memory = memory
        self.capacity = len(memory) - 1

    def __len__(self) -> int:
        return min(int(self._memory[0]), self.capacity)

    @property
    def count(self) -> int:
        """Sends ever, which is the number of the next one."""
        return int(self._memory[0])

    @property
    def is_plausible(self) -> bool:
        """Whether the count can be one; shared memory may hold anything."""
        return 0 <= self._memory[0] <= MAX_COUNTED_SENDS

    def append(self, moment: float) -> int:
        """Append the latest send and return its number, for ``correct``."""
        number = int(self._memory[0])
        self._memory[1 + number % self.capacity] = moment
        self._memory[0] = number + 1
        return number

    def extend(self, moment: float, count: int) -> None:
        """Append ``count`` sends at one moment; ``count`` is at most the capacity."""
        number = int(self._memory[0])
        first = 1 + number % self.capacity
        before_end = min(count, self.capacity + 1 - first)
        moments = array("d", (moment,)) * count
        self._memory[first : first + before_end] = moments[:before_end]
        self._memory[1 : 1 + count - before_end] = moments[before_end:]
        self._memory[0] = number + count

    def correct(self, number: int, moment: float) -> None:
        """Replace the moment of a send by the actual one."""
        if 0 < self._memory[0] - number <= self.capacity:
            self._memory[1 + number % self.capacity] = moment

    def at(self, number: int) -> float:
        """Return the moment of a send that is in the log."""
        return abs(self._memory[1 + number % self.capacity])

    def latest(self, back: int) -> float:
        """Return the moment of the ``back``-th latest send; ``back`` is between 1 and the length."""
        return self.at(int(self._memory[0]) - back)

    def mark_throttled(self, moment: float) -> None:
        """Mark the request that was sent at a moment as throttled."""
        count = int(self._memory[0])
        for number in range(count - 1, count - 1 - len(self), -1):
            cell = 1 + number % self.capacity
            if self._memory[cell] == moment:
                self._memory[cell] = -moment
                return
            if abs(self._memory[cell]) < moment - 1:  # sends may be out of order, but not by as much
                return

    def count_accepted(self, after: float, until: float) -> int:
        """Count the sends later than ``after``, not later than ``until``, that were not throttled."""
        count, found = int(self._memory[0]), 0
        for number in range(count - 1, count - 1 - len(self), -1):
            moment = self._memory[1 + number % self.capacity]
            if abs(moment) < after - 1:
                break
            found += after < moment <= until
        return found


class RateState(NamedTuple):
    """All that a rate controller has learned, and the position of its schedule; the configured rate is not part of it.

    Attributes:
        margin: seconds by which a second is stretched.
        w_max: requests a second at which the account was throttled last; infinite at the maximum rate.
        cycle: seconds of sending since the last throttling response, see ``CubicRateController``.
        min_w_max: lower bound of ``w_max`` in a series of throttling responses.
        last_permit_at: moment of the latest permit on the even schedule.
        slowed_at: when the rate was lowered last.
        tolerated_at: when a throttling response was last taken for chance.
    """

    current_rate: float
    margin: float
    w_max: float
    cycle: float
    min_w_max: float
    last_permit_at: float
    slowed_at: float
    tolerated_at: float
    throttled_in_a_row: float

    def is_plausible(self, latest: float) -> bool:
        """Return whether the numbers can be a controller's, none of whose moments is later than ``latest``."""
        rates = 0 < self.current_rate < math.inf and self.w_max > 0 and 0 <= self.min_w_max < math.inf
        learned = 0 < self.margin <= MAX_MARGIN and 0 <= self.cycle <= MAX_STORED_CYCLE
        series = 0 <= self.throttled_in_a_row <= MAX_THROTTLED_IN_A_ROW
        moments = (self.last_permit_at, self.slowed_at, self.tolerated_at)
        return rates and learned and series and all(moment <= latest for moment in moments)


class CubicRateController:
    """Requests a second of one account, controlled by the responses.

    After a throttling response the rate drops a little below what was accepted in the second before. It rises back to
    that level along a curve that is flat there, stays near it for a cycle, and then rises above it ever faster while no
    throttling response arrives. This is the curve of TCP CUBIC, for the same reasons (RFC 9438). As there, a cycle is
    counted in seconds, so a low rate recovers as soon as a high one. They are seconds of sending: each success counts
    one interval of requests, and idle time counts nothing.

    Args:
        configured_rate: requests a second that are never exceeded; infinite searches for the quota, from
            ``INITIAL_SEARCH_RATE`` on.
        send_log: when requests were sent; by default a log of this process alone.

    Attributes:
        current_rate: requests a second.
        margin: seconds by which a second is stretched, learned from throttling responses at the maximum rate.
    """

    def __init__(self, configured_rate: float, send_log: SendLog | None = None) -> None:
        self.margin = INITIAL_MARGIN
        self._configured_rate = configured_rate
        self._w_max = INITIAL_SEARCH_RATE if configured_rate == math.inf else math.inf
        self._cycle = MAX_CYCLE_SECONDS
        self.current_rate = min(self._w_max, self.max_rate)
        self.send_log = SendLog(allocate_log(MAX_LOGGED_SENDS)) if send_log is None else send_log
        self._last_permit_at = self._slowed_at = self._tolerated_at = -math.inf
        self._throttled_in_a_row = self._min_w_max = 0.0

    @property
    def state(self) -> RateState:
        """What was learned, for ``restore``."""
        learned = (self.current_rate, self.margin, self._w_max, self._cycle, self._min_w_max)
        return RateState(*learned, self._last_permit_at, self._slowed_at, self._tolerated_at, self._throttled_in_a_row)

    def restore(self, configured_rate: float, state: RateState) -> None:
        """Take over what another controller of the same log has learned; ``state`` is plausible."""
        self._configured_rate = configured_rate
        self.current_rate, self.margin, self._w_max, self._cycle, self._min_w_max = state[:5]
        self._last_permit_at, self._slowed_at, self._tolerated_at, self._throttled_in_a_row = state[5:]

    @property
    def configured_rate(self) -> float:
        """Requests a second that are never exceeded."""
        return self._configured_rate

    @configured_rate.setter
    def configured_rate(self, configured_rate: float) -> None:
        if configured_rate == self._configured_rate:
            return
        if configured_rate == math.inf and self._w_max == math.inf:
            self._w_max, self._cycle = self.current_rate, MAX_CYCLE_SECONDS  # search for the quota from here on
        self._configured_rate = configured_rate
        self.current_rate = self.max_rate if self._w_max == math.inf else min(self.current_rate, self.max_rate)

    @property
    def max_rate(self) -> float:
        """The configured rate less the current margin."""
        return self._configured_rate / (1 + self.margin)

    def _window_limit(self) -> tuple[int, float]:
        """Return how many sends a sliding window may hold, and its seconds."""
        limit = self._configured_rate
        if self._w_max < math.inf:
            limit = min(limit, max(self.current_rate, self._w_max) * (1 + self.margin))
        calls = min(max(1, math.floor(limit)), MAX_LOGGED_SENDS)
        return calls, (1 + FREE_FRACTION * self.margin) * calls / limit

    def next_permit_at(self) -> float:
        """Return the moment from which one request may be sent.

        Permits are evenly spaced. Late ones are made up for only as far as a sliding second has room for them: requests
        that were delayed by a busy machine fit between those before and after them.
        """
        calls, seconds = self._window_limit()
        evenly = self._last_permit_at + 1 / self.current_rate
        if len(self.send_log) < calls:
            return evenly
        return max(evenly, self.send_log.latest(calls) + seconds)

    def on_sent(self, moment: float) -> int:
        """Record that a request is sent at ``moment``, never much before the previous one; return its number."""
        self._last_permit_at = max(self._last_permit_at + 1 / self.current_rate, moment - CATCH_UP)
        return self.send_log.append(moment)

    def send_due(self, moment: float, now: float, limit: int) -> int:
        """Record up to ``limit`` more requests as sent at ``moment``: those due ``now``. Return how many.

        It is ``on_sent`` repeated while ``next_permit_at`` is not after ``now``, at the cost of one. ``moment`` is that
        of the request that ``on_sent`` recorded last.
        """
        count = min(limit, math.floor((now - self._last_permit_at) * self.current_rate), self.send_log.capacity)
        if count < 1:
            return 0
        calls, seconds = self._window_limit()
        if calls <= self.send_log.capacity:
            count = min(count, self._room_in_window(calls, now - seconds))
            if count < 1:
                return 0
        self._last_permit_at += count / self.current_rate
        self.send_log.extend(moment, count)
        return count

    def _room_in_window(self, calls: int, begin: float) -> int:
        """Return how many sends fit into a window that begins then and may hold ``calls``."""
        log = self.send_log
        first = log.count - min(calls, len(log))
        inside = first + bisect_left(range(first, log.count), True, key=lambda number: log.at(number) > begin)
        return inside + calls - log.count

    def on_success(self, sent_at: float, count: int = 1) -> None:
        """Record that ``count`` requests sent at ``sent_at`` were not throttled."""
        if sent_at < self._slowed_at:
            return
        # The first success after a throttling response ends a pause, which counts too, unless the account was idle.
        seconds = (
            min(sent_at - self._slowed_at, PAUSE_REQUESTS / self.current_rate) if self._throttled_in_a_row else 0.0
        )
        self._throttled_in_a_row = 0.0
        for remaining in range(count, 0, -1):
            if self._w_max == math.inf:
                self.margin = max(MIN_MARGIN, self.margin * MARGIN_DECAY**remaining)
                self.current_rate = self.max_rate
                return
            self._cycle = min(self._cycle + max(seconds, 1 / self.current_rate), MAX_STORED_CYCLE)
            seconds = 0.0
            self.current_rate = self._rate_in_cycle()
            if self.current_rate >= self.max_rate:
                self.current_rate, self._w_max = self.max_rate, math.inf

    @property
    def _level_seconds(self) -> float:
        """Seconds of a cycle in which the rate is near ``w_max``."""
        return min(max(CYCLE_REQUESTS / self._w_max, MIN_CYCLE_SECONDS), MAX_CYCLE_SECONDS)

    def _rate_in_cycle(self) -> float:
        """Return the rate at this point of the cycle: below ``w_max`` at first, then above it, then up to the maximum.

        The fewer requests are in flight, the less a steep rise costs: at a low rate a single throttling response.
        """
        level = self._level_seconds
        if self._cycle < level:
            return self._w_max * (1 - CUT * (1 - self._cycle / level) ** 3)
        rise = (self._cycle - level) / ((RECOVERY_SECONDS - level) / 2)
        if self._configured_rate == math.inf or rise <= 1:
            return self._w_max * (1 + RISE * rise**3)
        rate = self._w_max * (1 + RISE)
        return rate + max(0.0, self.max_rate - rate) * min(1.0, rise - 1) ** 2

    def on_throttled(self, sent_at: float, now: float) -> float:
        """Record a throttling response to the request sent at ``sent_at``; return until when nothing should be sent."""
        self.send_log.mark_throttled(sent_at)
        window = max(1.0, 1 / self.current_rate)  # longer than a second at less than one request a second
        if self._w_max == math.inf and self._tolerate(sent_at):
            return now
        stretched = window * (1 + self.margin)
        # Half a request more, because a count of whole ones is uncertain by that.
        accepted = (self.send_log.count_accepted(sent_at - stretched, sent_at) + 0.5) / window
        if sent_at < self._slowed_at:
            # It was sent before the rate fell, so it is no reason to fall again. But it was counted as accepted.
            if self._min_w_max <= accepted < self._w_max:
                self._w_max = accepted
                self.current_rate = min(self.current_rate, self._w_max * (1 - CUT))
            return now
        probing = self._w_max < math.inf and self._cycle > self._level_seconds
        in_series = self._throttled_in_a_row > 0 or now - self._slowed_at < window
        if self._throttled_in_a_row == 0:
            self._min_w_max = self.current_rate / 2
        if in_series:
            w_max = min(self._w_max, accepted)
        elif self.current_rate >= 0.98 * self.max_rate:
            w_max = min(self.max_rate, accepted / (1 + self.margin))
        else:
            # Below the rate accepted so far, throttling is taken for chance first if as many were accepted.
            proven = 0.0
            if probing:  # the level was accepted for a whole cycle
                proven = CHANCE_FRACTION * self._w_max
            elif self._w_max >= MIN_COUNTABLE:
                proven = min(CHANCE_FRACTION * self._w_max, accepted / (1 + self.margin))
            if probing and self.current_rate < min(COUNTABLE_RATE, (1 + 2 * RISE) * self._w_max):
                accepted = min(accepted, PROBED_GROWTH * self._w_max * (1 + self.margin))
            w_max = max(min(self.current_rate, accepted) / (1 + self.margin), proven)
        self._w_max = max(w_max, self._min_w_max)
        self.current_rate = max(self._w_max * (1 - CUT) / 2**self._throttled_in_a_row, min(MIN_RATE, self._min_w_max))
        self._cycle = 0.0
        self._slowed_at = now
        requests = 1.0 if probing else PAUSE_REQUESTS
        longest = MAX_PAUSE_SECONDS * 2 ** max(0.0, self._throttled_in_a_row - LONG_PAUSES_AFTER)
        self._throttled_in_a_row = min(self._throttled_in_a_row + 1, MAX_THROTTLED_IN_A_ROW)
        return max(now + min(requests / self.current_rate, longest), self._window_free_at())

    def _tolerate(self, sent_at: float) -> bool:
        """Return whether throttling at the maximum rate may be chance; if so, widen the margin."""
        since = sent_at - self._tolerated_at
        if abs(since) < BURST_SECONDS:
            return True
        if since < max(TOLERATED_SECONDS, TOLERATED_REQUESTS / self.current_rate):
            return False
        self._tolerated_at = sent_at
        self.margin = min(MAX_MARGIN, self.margin * MARGIN_GROWTH)
        self.current_rate = self.max_rate
        return True

    def _window_free_at(self) -> float:
        """Return when a sliding second that may hold ``w_max`` requests has room for one more."""
        calls = min(max(1, math.floor(self._w_max)), MAX_LOGGED_SENDS)
        if len(self.send_log) < calls:
            return -math.inf
        return self.send_log.latest(calls) + (1 + self.margin) * calls / self._w_max


def copy_log(memory: "memoryview[float]", larger: "memoryview[float]") -> None:
    """Copy a log into a memory with more room; sends keep their numbers."""
    if not 0 <= memory[0] <= 2**53:  # no log counts that far: it is corrupt
        return
    larger[0] = memory[0]
    count, capacity, larger_capacity = int(memory[0]), len(memory) - 1, len(larger) - 1
    for number in range(max(0, count - capacity), count):
        larger[1 + number % larger_capacity] = memory[1 + number % capacity]


def allocate_log(sends: int) -> "memoryview[float]":
    """Return memory of this process alone for a log of so many sends."""
    return memoryview(array("d", bytes(8 * (sends + 1))))
