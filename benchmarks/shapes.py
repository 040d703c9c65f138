"""Limiters without a clock: common ones, and the one of an audit."""

import heapq
import math
from collections.abc import Callable
from typing import Protocol

from auditor.resilience.adaptive_rate import CubicRateController
from auditor.simulator.quotas import window_size


class Shape(Protocol):
    """A limiter without a clock."""

    def next_permit_at(self, now: float) -> float: ...
    def on_sent(self, now: float) -> None: ...
    def on_success(self, sent_at: float, now: float) -> None: ...
    def on_throttled(self, sent_at: float, now: float, delay: float | None) -> None: ...


class Bucket:
    """aiolimiter's ``AsyncLimiter(size, size / leak)``, with a pause of a second or more."""

    def __init__(self, size: float, leak: float) -> None:
        self.size, self.leak = size, leak
        self.level, self.at, self.paused_until, self.in_a_row = 0.0, 0.0, 0.0, 0

    def next_permit_at(self, now: float) -> float:
        level = max(0.0, self.level - (now - self.at) * self.leak)
        return max(self.paused_until, now + max(0.0, level + 1 - self.size) / self.leak)

    def on_sent(self, now: float) -> None:
        self.level, self.at = max(0.0, self.level - (now - self.at) * self.leak) + 1, now

    def on_success(self, sent_at: float, now: float) -> None:  # noqa: ARG002
        self.in_a_row = 0

    def on_throttled(self, sent_at: float, now: float, delay: float | None) -> None:  # noqa: ARG002
        if now >= self.paused_until:
            self.paused_until = now + min(60.0, delay or 2.0**self.in_a_row)
            self.in_a_row += 1


class CreditBack:
    """A permit is free again one second after its response: never throttled, whatever the window."""

    def __init__(self, quota: float) -> None:
        self.free, self.seconds = window_size(quota)
        self.returning: list[float] = []

    def next_permit_at(self, now: float) -> float:
        while self.returning and self.returning[0] <= now + 1e-9:
            heapq.heappop(self.returning)
            self.free += 1
        return now if self.free else min(self.returning, default=math.inf)

    def on_sent(self, now: float) -> None:  # noqa: ARG002
        self.free -= 1

    def on_success(self, sent_at: float, now: float) -> None:  # noqa: ARG002
        heapq.heappush(self.returning, now + self.seconds)

    def on_throttled(self, sent_at: float, now: float, delay: float | None) -> None:  # noqa: ARG002
        self.on_success(sent_at, now)


class PhaseLocked:
    """Spread permits over each of the server's seconds, ``guard`` before its end, with a known phase."""

    def __init__(self, quota: float, phase: float, guard: float = 0.015) -> None:
        self.calls, self.seconds = window_size(quota)
        self.phase, self.guard = phase, guard
        self.number, self.used = -1, 0

    def next_permit_at(self, now: float) -> float:
        number = math.floor((now + self.phase) / self.seconds)
        if number > self.number:
            self.number, self.used = number, 0
        while self.used < self.calls and self.permit_at(self.number, self.used) < now - 0.02:
            self.used += 1
        return self.permit_at(self.number, self.used) if self.used < self.calls else self.permit_at(self.number + 1, 0)

    def permit_at(self, number: int, used: int) -> float:
        return number * self.seconds - self.phase + 0.0005 + (self.seconds - self.guard) * used / self.calls

    def on_sent(self, now: float) -> None:  # noqa: ARG002
        self.used += 1

    def on_success(self, sent_at: float, now: float) -> None: ...
    def on_throttled(self, sent_at: float, now: float, delay: float | None) -> None: ...


class Learned:
    """The limiter of audits: even permits at a learned rate, with the code that an audit runs."""

    def __init__(self, quota: float) -> None:
        self.rate = CubicRateController(quota)
        self.paused_until = -math.inf

    def next_permit_at(self, now: float) -> float:  # noqa: ARG002
        return max(self.rate.next_permit_at(), self.paused_until)

    def on_sent(self, now: float) -> None:
        self.rate.on_sent(now)

    def on_success(self, sent_at: float, now: float) -> None:  # noqa: ARG002
        self.rate.on_success(sent_at)

    def on_throttled(self, sent_at: float, now: float, delay: float | None) -> None:
        self.paused_until = max(self.paused_until, self.rate.on_throttled(sent_at, now), now + (delay or 0.0))


SHAPES: dict[str, Callable[[float, float], Shape]] = {
    "AsyncLimiter(r, 1)": lambda quota, _: Bucket(quota, quota),
    "AsyncLimiter(1, 1/r)": lambda quota, _: Bucket(1.0, quota),
    "bucket of 1%, leak 98%": lambda quota, _: Bucket(max(1.0, 0.01 * quota) + 0.00294 * quota, 0.98 * quota),
    "credit back": lambda quota, _: CreditBack(quota),
    "phase-locked": PhaseLocked,
    "learned": lambda quota, _: Learned(quota),
}
