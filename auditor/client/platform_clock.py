"""The platform's clock, as an offset from this machine's clock on which several answers agree. Pure.

A single ``Date`` proves nothing: single nodes of the platform have been seen in 1970 or hours ahead. Two kinds of
answers count:

- An accepted request proves that its timestamp is within ``MAX_ACCEPTED_SKEW`` of the platform's clock. The dates of
  such answers correct a smaller difference, and move the offset slowly. All accepted requests together limit it,
  because a ``Date`` that is always ahead of the timestamp would move it for ever.
- A refused timestamp proves that the offset is wrong, or that one node is. Refusals that agree, without an accepted
  request in between, set a new offset, within what is plausible.
"""

from collections import deque
from math import inf
from statistics import median

MAX_ACCEPTED_SKEW = 900.0
"""Seconds between a request's timestamp and the platform's clock that the platform accepts (Alibaba's page on common
parameters)."""

ACCEPTED_MARGIN = 60.0
"""Seconds by which an offset stays within what accepted requests allow: a request takes time to arrive."""

EARLIEST_TIME, LATEST_TIME = 1_704_067_200.0, 2_082_758_400.0
"""A platform's time that sets a clock: from 2024-01-01, when there was no release yet, to 2036-01-01."""

MAX_OFFSET = 366 * 86_400.0
"""Seconds that a platform's time is from this machine's at most, if the latter is between those two as well.

A machine without a battery for its clock starts in 1970, or when its system was built. Then any time between counts.
"""

MIN_REFUSALS, MIN_REFUSALS_AFTER_SUCCESS = 3, 12
"""Refusals in a row that change the offset: while no request was accepted with it, and after that."""

MAX_REFUSALS, MAX_REFUSALS_AFTER_SUCCESS = 7, 36
"""Refusals in a row after which no offset helps, in the same two cases."""

MIN_REFUSED_SECONDS = 10.0
"""Seconds in which all timestamps must be refused as well, after a request was accepted."""

REFUSAL_TOLERANCE, ANSWER_TOLERANCE = 60.0, 3.0
"""Seconds within which refusals, and answers, agree. A ``Date`` has whole seconds, and the answer takes time."""

MIN_ANSWERS, MAX_ANSWERS, MIN_AGREEMENT = 10, 20, 0.75
"""Dates of accepted requests that an offset needs and that count, and the fraction of them that must agree."""

MIN_OFFSET = 5.0
"""Seconds below which a difference is not corrected: this machine's clock is then better than a ``Date``."""

MAX_STEP, SAMPLE_SECONDS = 1.0, 1.0
"""Seconds by which one answer moves an offset at most, and seconds from one answer that counts to the next."""


class PlatformClock:
    """Learns the offset of the platform's clock from the answers to one account. Times are in seconds since 1970.

    Attributes:
        offset: seconds that the platform's clock is ahead of this machine's, as far as answers agree on it.
        sampled_at, next_answer_at: when the ``Date`` of an accepted request counted last, and when it counts again, by
            this machine's clock.
        refused: whether the last timestamp was refused.
    """

    def __init__(self) -> None:
        self.offset = 0.0
        self.sampled_at = self.next_answer_at = 0.0
        self._answers: deque[float] = deque(maxlen=MAX_ANSWERS)
        self._refusals: list[float | None] = []
        self._refused_in_a_row, self._refused_since = 0, 0.0
        self._accepted = self._agreed = self.refused = False
        self._lowest, self._highest = -inf, inf  # what the accepted requests allow since an offset was agreed on

    def record_accepted(self, signed_offset: float) -> None:
        """Record that a timestamp was accepted that was signed with an offset."""
        if abs(signed_offset - self.offset) > REFUSAL_TOLERANCE:  # sent before the offset changed
            return
        self._lowest = max(self._lowest, signed_offset - MAX_ACCEPTED_SKEW)
        self._highest = min(self._highest, signed_offset + MAX_ACCEPTED_SKEW)
        self._accepted, self.refused = True, False
        self._refused_in_a_row = 0
        self._refusals.clear()

    def record_answer(self, date: float | None, sent_at: float, received_at: float) -> None:
        """Record the ``Date`` of an accepted request, None if it has none; times by this machine's clock."""
        enough = len(self._answers) >= MIN_ANSWERS
        self.sampled_at, self.next_answer_at = received_at, received_at + SAMPLE_SECONDS * (enough or date is None)
        if date is None or not 0 <= received_at - sent_at <= MAX_ACCEPTED_SKEW:
            return
        self._answers.append(date + 0.5 - (sent_at + received_at) / 2)  # a Date is rounded down
        middle = median(self._answers)
        agreeing = sum(abs(each - middle) <= ANSWER_TOLERANCE for each in self._answers)
        if len(self._answers) < MIN_ANSWERS or agreeing < MIN_AGREEMENT * len(self._answers):
            return
        if abs(middle - self.offset) > MAX_ACCEPTED_SKEW:  # then the platform would have refused the timestamps
            return
        target = middle if abs(middle) >= MIN_OFFSET else 0.0
        target = max(self._lowest + ACCEPTED_MARGIN, min(self._highest - ACCEPTED_MARGIN, target))
        step = target - self.offset
        self.offset += max(-MAX_STEP, min(MAX_STEP, step)) if self._agreed else step
        self._agreed = True

    def record_refused(self, date: float | None, now: float, signed_offset: float) -> bool:
        """Record a refused timestamp; return False if no further request can help.

        Args:
            date: the ``Date`` of the refusal; None if it has none.
            now: this machine's time.
            signed_offset: the offset that the request was signed with.
        """
        if abs(signed_offset - self.offset) > REFUSAL_TOLERANCE:  # sent before the offset changed
            return True
        self.refused = True
        if not self._refused_in_a_row:
            self._refused_since = now
        self._refused_in_a_row += 1
        self._refusals.append(self._offset_of(date, now))
        needed = MIN_REFUSALS_AFTER_SUCCESS if self._accepted else MIN_REFUSALS
        if len(self._refusals) >= needed and (agreed := self._agreed_refusals()) is not None:
            self.offset = agreed
            self._lowest, self._highest = -inf, inf
            self._refusals.clear()
            self._answers.clear()
            if self._accepted:  # requests were accepted before: the new offset gets all its refusals
                self._refused_in_a_row = 0
            self._accepted, self._agreed = False, True
        if not self._accepted:
            return self._refused_in_a_row < MAX_REFUSALS
        # Some devices alone may be refused: the requests for others are accepted meanwhile.
        is_brief = abs(now - self._refused_since) < MIN_REFUSED_SECONDS
        return self._refused_in_a_row < MAX_REFUSALS_AFTER_SUCCESS or is_brief

    def _offset_of(self, date: float | None, now: float) -> float | None:
        """Return the offset that a refusal's ``Date`` means; None if it cannot be the reason of the refusal."""
        if date is None or not EARLIEST_TIME <= date <= LATEST_TIME:
            return None
        offset = date + 0.5 - now
        is_plausible = abs(offset) <= MAX_OFFSET or not EARLIEST_TIME <= now <= LATEST_TIME
        return offset if is_plausible and abs(offset - self.offset) > REFUSAL_TOLERANCE else None

    def _agreed_refusals(self) -> float | None:
        """Return the offset on which most of the refusals with a usable date agree, at least ``MIN_REFUSALS``."""
        offsets = [each for each in self._refusals if each is not None]
        if not offsets:
            return None
        clusters = ([each for each in offsets if abs(each - center) <= REFUSAL_TOLERANCE] for center in offsets)
        agreeing = max(clusters, key=len)
        enough = len(agreeing) >= MIN_REFUSALS and 2 * len(agreeing) > len(offsets)
        return median(agreeing) if enough else None
