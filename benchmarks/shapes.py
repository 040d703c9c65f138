"""Shapes of a gate, without a clock of their own: what others do, and what an audit does."""

import heapq
import math
from collections.abc import Callable
from typing import Protocol

from auditor.resilience.adaptive_rate import Rate
from auditor.simulator.quotas import calls_and_seconds


class Shape(Protocol):
    """A gate without a clock of its own."""

    def next_at(self, now: float) -> float: ...
    def sent(self, now: float) -> None: ...
    def answered(self, sent_at: float, now: float) -> None: ...
    def refused(self, sent_at: float, now: float, wish: float | None) -> None: ...


class Bucket:
    """aiolimiter's ``AsyncLimiter(size, size / leak)``, with this project's former pause of a second or more."""

    def __init__(self, size: float, leak: float) -> None:
        self.size, self.leak = size, leak
        self.level, self.at, self.open_at, self.in_a_row = 0.0, 0.0, 0.0, 0

    def next_at(self, now: float) -> float:
        level = max(0.0, self.level - (now - self.at) * self.leak)
        return max(self.open_at, now + max(0.0, level + 1 - self.size) / self.leak)

    def sent(self, now: float) -> None:
        self.level, self.at = max(0.0, self.level - (now - self.at) * self.leak) + 1, now

    def answered(self, sent_at: float, now: float) -> None:  # noqa: ARG002
        self.in_a_row = 0

    def refused(self, sent_at: float, now: float, wish: float | None) -> None:  # noqa: ARG002
        if now >= self.open_at:
            self.open_at = now + min(60.0, wish or 2.0**self.in_a_row)
            self.in_a_row += 1


class CreditBack:
    """A slot is free again one second after its answer: never refused, whatever the window."""

    def __init__(self, quota: float) -> None:
        self.free, self.seconds = calls_and_seconds(quota)
        self.back: list[float] = []

    def next_at(self, now: float) -> float:
        while self.back and self.back[0] <= now + 1e-9:
            heapq.heappop(self.back)
            self.free += 1
        return now if self.free else min(self.back, default=math.inf)

    def sent(self, now: float) -> None:  # noqa: ARG002
        self.free -= 1

    def answered(self, sent_at: float, now: float) -> None:  # noqa: ARG002
        heapq.heappush(self.back, now + self.seconds)

    def refused(self, sent_at: float, now: float, wish: float | None) -> None:  # noqa: ARG002
        self.answered(sent_at, now)


class PhaseLocked:
    """Spreads each of the server's seconds over its slots, ``guard`` before its end; knows the phase exactly."""

    def __init__(self, quota: float, phase: float, guard: float = 0.015) -> None:
        self.calls, self.seconds = calls_and_seconds(quota)
        self.phase, self.guard = phase, guard
        self.number, self.used = -1, 0

    def next_at(self, now: float) -> float:
        number = math.floor((now + self.phase) / self.seconds)
        if number > self.number:
            self.number, self.used = number, 0
        while self.used < self.calls and self.slot(self.number, self.used) < now - 0.02:
            self.used += 1
        return self.slot(self.number, self.used) if self.used < self.calls else self.slot(self.number + 1, 0)

    def slot(self, number: int, used: int) -> float:
        return number * self.seconds - self.phase + 0.0005 + (self.seconds - self.guard) * used / self.calls

    def sent(self, now: float) -> None:  # noqa: ARG002
        self.used += 1

    def answered(self, sent_at: float, now: float) -> None: ...
    def refused(self, sent_at: float, now: float, wish: float | None) -> None: ...


class Learned:
    """The gate of ``auditor.pace``: even slots at a rate that is learned, which is the very code an audit runs."""

    def __init__(self, quota: float) -> None:
        self.rate = Rate(quota)
        self.open_at = -math.inf

    def next_at(self, now: float) -> float:  # noqa: ARG002
        return max(self.rate.next_at(), self.open_at)

    def sent(self, now: float) -> None:
        self.rate.sent(now)

    def answered(self, sent_at: float, now: float) -> None:  # noqa: ARG002
        self.rate.admitted(sent_at)

    def refused(self, sent_at: float, now: float, wish: float | None) -> None:
        self.open_at = max(self.open_at, self.rate.refused(sent_at, now), now + (wish or 0.0))


SHAPES: dict[str, Callable[[float, float], Shape]] = {
    "AsyncLimiter(r, 1)": lambda quota, _: Bucket(quota, quota),
    "AsyncLimiter(1, 1/r)": lambda quota, _: Bucket(1.0, quota),
    "bucket of 1%, leak 98%": lambda quota, _: Bucket(max(1.0, 0.01 * quota) + 0.00294 * quota, 0.98 * quota),
    "credit back": lambda quota, _: CreditBack(quota),
    "phase-locked": PhaseLocked,
    "learned": lambda quota, _: Learned(quota),
}
