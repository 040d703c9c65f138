"""Limiters against the platform's windows, simulated in virtual time: quota used, and throttling.

python benchmarks/rate_control.py [SEEDS]

Print two tables. Steady: limiter, window and jitter before the count, at 10, 50 and 200/s. Scenarios: another client
takes 40% of 50/s from second 20 to 40, the quota is half of the configured rate, and 10 s without work.
"""

import heapq
import math
import random
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from shapes import SHAPES, Shape

from auditor.simulator.quotas import WindowKind, new_window

WINDOWS: tuple[WindowKind, ...] = ("fixed", "sliding", "bucket")
LATENCY = (0.020, 0.300)
LATE_TIMER, STALL = 0.003, (0.003, 0.060)
"""Seconds that a timer is late: up to the first, and on a busy machine one in 20 between the others."""

QUICK_THROTTLING = (0.001, 0.010)
BEGIN = 1_000_000.0
"""The client's clock at the start; the server's is ahead by a fraction of a second."""

JITTER: dict[str, Callable[[random.Random], float]] = {
    "0-1 ms": lambda rng: rng.uniform(0, 0.001),
    "0-10 ms": lambda rng: rng.uniform(0, 0.010),
    "hiccups": lambda rng: rng.uniform(0, 0.010) + (rng.uniform(0.010, 0.040) if rng.random() < 0.003 else 0),
    "10-150 ms": lambda rng: rng.uniform(0.010, 0.150),
    "heavy tail": lambda rng: 0.002 + rng.expovariate(200) if rng.random() < 0.97 else rng.uniform(0.02, 0.3),
}


@dataclass(frozen=True)
class Case:
    """One simulation. ``other`` is another client that takes a fraction of the quota between two seconds."""

    kind: WindowKind
    quota: float
    jitter: str = "0-10 ms"
    seconds: float = 90.0
    configured: float | None = None
    other: tuple[float, float, float] | None = None
    idle: tuple[float, float] | None = None
    slow_throttling: bool = False
    retry_after: bool = False
    busy: bool = False


@dataclass
class Record:
    """Moments, in seconds since the start, of requests that were sent, accepted and throttled."""

    quota: float
    sent: list[float] = field(default_factory=list)
    accepted: list[float] = field(default_factory=list)
    throttled: list[float] = field(default_factory=list)

    def used(self, begin: float, end: float) -> float:
        return _between(self.accepted, begin, end) / (end - begin) / self.quota

    def throttled_fraction(self, begin: float, end: float) -> float:
        return _between(self.throttled, begin, end) / max(1, _between(self.sent, begin, end))

    def first(self, begin: float, low: float, high: float) -> float:
        """Return the seconds from ``begin`` to the first 2 s with between ``low`` and ``high`` of the quota used."""
        starts = (begin + 0.25 * step for step in range(200))
        return next((at for at in starts if low <= self.used(at, at + 2) <= high), math.inf) - begin


def _between(moments: list[float], begin: float, end: float) -> int:
    return bisect_left(moments, end) - bisect_left(moments, begin)


class World:
    """Client, network and server as events in virtual time."""

    def __init__(self, case: Case, shape: Callable[[float, float], Shape], seed: int) -> None:
        self.case, self.rng = case, random.Random(seed)
        self.phase = self.rng.random()
        self.shape = shape(case.configured or case.quota, self.phase)
        self.window = new_window(case.kind, case.quota)
        self.record = Record(case.quota)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = count()
        self.now = BEGIN
        self.wake_at = math.inf

    def at(self, moment: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.events, (moment, next(self.numbers), action))

    def run(self) -> Record:
        self.plan()
        if self.case.other is not None:
            self.at(BEGIN + self.case.other[1], lambda: self.other(0))
        while self.events and self.events[0][0] < BEGIN + self.case.seconds:
            self.now, _, action = heapq.heappop(self.events)
            action()
        return self.record

    def plan(self) -> None:
        """Set the client's only timer again."""
        moment = max(self.now, self.shape.next_permit_at(self.now))
        if self.case.idle is not None and self.case.idle[0] <= moment - BEGIN < self.case.idle[1]:
            moment = BEGIN + self.case.idle[1]
        if moment in (self.wake_at, math.inf):
            return
        self.wake_at = moment
        late = self.rng.uniform(0, LATE_TIMER) if moment > self.now else 0.0
        if self.case.busy and self.rng.random() < 0.05:
            late = self.rng.uniform(*STALL)
        self.at(moment + late, lambda: self.wake(moment))

    def wake(self, planned: float) -> None:
        if planned != self.wake_at:
            return
        self.wake_at = math.inf
        while self.shape.next_permit_at(self.now) <= self.now + 1e-9:
            self.shape.on_sent(self.now)
            self.record.sent.append(self.now - BEGIN)
            sent_at = self.now
            self.at(self.now + JITTER[self.case.jitter](self.rng), lambda sent_at=sent_at: self.count(sent_at))  # type: ignore[misc]
        self.plan()

    def count(self, sent_at: float) -> None:
        """The server counts the request."""
        latency = self.rng.uniform(*LATENCY)
        if self.window.admit(self.now + self.phase):
            self.record.accepted.append(self.now - BEGIN)
            self.at(self.now + latency, lambda: self.on_success(sent_at))
            return
        self.record.throttled.append(self.now - BEGIN)
        delay = self.window.wait(self.now + self.phase) + 0.001 if self.case.retry_after else None
        latency = latency if self.case.slow_throttling else self.rng.uniform(*QUICK_THROTTLING)
        self.at(self.now + latency, lambda: self.on_throttled(sent_at, delay))

    def on_success(self, sent_at: float) -> None:
        self.shape.on_success(sent_at, self.now)
        self.plan()

    def on_throttled(self, sent_at: float, delay: float | None) -> None:
        self.shape.on_throttled(sent_at, self.now, delay)
        self.plan()

    def other(self, number: int) -> None:
        """Send a request of another client, evenly and regardless of throttling."""
        fraction, begin, end = self.case.other or (0.0, 0.0, 0.0)
        self.window.admit(self.now + self.phase)
        next_at = BEGIN + begin + (number + 1) / (fraction * self.case.quota)
        if next_at < BEGIN + end:
            self.at(max(self.now, next_at + self.rng.uniform(0, 0.010)), lambda: self.other(number + 1))


def runs(case: Case, shape: str, seeds: int) -> Iterator[Record]:
    return (World(case, SHAPES[shape], seed).run() for seed in range(seeds))


def format_range(values: list[float], form: str) -> str:
    return f"{min(values):{form}} … {max(values):{form}}"


def steady(seeds: int) -> None:
    print("Steady state, seconds 10 to 90: quota used, and throttled requests (mean of the seeds)")
    print(f"{'limiter':>22} {'window':>8} {'jitter':>15} " + " ".join(f"{f'at {q}/s':>16}" for q in (10, 50, 200)))
    for shape in SHAPES:
        for kind in WINDOWS:
            for jitter, busy in (*((each, False) for each in JITTER), ("0-10 ms", True)):
                cells = []
                for quota in (10, 50, 200):
                    records = list(runs(Case(kind, quota, jitter, busy=busy), shape, seeds))
                    used = sum(each.used(10, 90) for each in records) / seeds
                    throttled = sum(each.throttled_fraction(0, 90) for each in records) / seeds
                    cells.append(f"{used:>8.1%} {throttled:>7.2%}")
                named = f"{jitter}, busy" if busy else jitter
                print(f"{shape:>22} {kind:>8} {named:>15} {' '.join(cells)}", flush=True)


def scenarios(shape: str, seeds: int, *, slow_throttling: bool, retry_after: bool) -> None:
    print(f"\n{shape}: throttling responses are {'as slow as others' if slow_throttling else 'quick'}, ", end="")
    print(f"{'with' if retry_after else 'without'} a delay; minimum and maximum of {seeds} seeds")
    for kind in WINDOWS:
        case = Case(kind, 50, seconds=70, other=(0.4, 20, 40), slow_throttling=slow_throttling, retry_after=retry_after)
        records = list(runs(case, shape, seeds))
        print(
            f"{'other client: 40%':>20} {'50/s':>6} {kind:>8}: "
            f"within 10% after {format_range([each.first(20, 0.54, 0.66) for each in records], '.1f')} s, "
            f"of the rest used {format_range([each.used(25, 40) / 0.6 for each in records], '.1%')}, "
            f"throttled {format_range([each.throttled_fraction(20, 40) for each in records], '.1%')}, "
            f"back above 95% after {format_range([each.first(40, 0.95, 9) for each in records], '.1f')} s"
        )
    for quota in (5, 25, 100):
        for kind in WINDOWS:
            case = Case(kind, quota, configured=2 * quota, slow_throttling=slow_throttling, retry_after=retry_after)
            records = list(runs(case, shape, seeds))
            print(
                f"{'half of configured':>20} {f'{quota}/s':>6} {kind:>8}: "
                f"used {format_range([each.used(10, 90) for each in records], '.1%')}, "
                f"throttled {format_range([each.throttled_fraction(10, 90) for each in records], '.2%')}, "
                f"in the first 10 s {format_range([_between(each.throttled, 0, 10) for each in records], 'g')} requests"
            )
    for kind in WINDOWS:
        records = list(runs(Case(kind, 50, seconds=60, idle=(20, 30)), shape, seeds))
        print(
            f"{'10 s without work':>20} {'50/s':>6} {kind:>8}: "
            f"used in the 10 s after it {format_range([each.used(30, 40) for each in records], '.1%')}, "
            f"throttled {format_range([each.throttled_fraction(30, 40) for each in records], '.2%')}",
            flush=True,
        )


if __name__ == "__main__":
    number_of_seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    steady(number_of_seeds)
    for late, with_delay in ((False, False), (False, True), (True, False)):
        scenarios("learned", 4 * number_of_seeds, slow_throttling=late, retry_after=with_delay)
    scenarios("bucket of 1%, leak 98%", number_of_seeds, slow_throttling=False, retry_after=False)
