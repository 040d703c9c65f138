"""Shapes of a gate against windows that count otherwise, simulated in virtual time: quota used, and refusals.

python benchmarks/pacing.py [SEEDS]

Prints two tables. Steady: shape, window and jitter before the count, at 10, 50 and 200/s. Scenarios: another client
takes 40% of 50/s from second 20 to 40, the quota is half of what was told, and 10 s without work.
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

from auditor.simulator.quotas import WindowKind, window

WINDOWS: tuple[WindowKind, ...] = ("fixed", "sliding", "bucket")
LATENCY = (0.020, 0.300)
LATE_TIMER, STALL = 0.003, (0.003, 0.060)
"""Seconds that a timer is late: up to the first, and where the machine is busy one in 20 between the others."""

QUICK_REFUSAL = (0.001, 0.010)
BEGIN = 1_000_000.0
"""The client's clock at the beginning; the server's is ahead by a fraction of a second."""

JITTER: dict[str, Callable[[random.Random], float]] = {
    "0-1 ms": lambda chance: chance.uniform(0, 0.001),
    "0-10 ms": lambda chance: chance.uniform(0, 0.010),
    "hiccups": lambda chance: (
        chance.uniform(0, 0.010) + (chance.uniform(0.010, 0.040) if chance.random() < 0.003 else 0)
    ),
    "10-150 ms": lambda chance: chance.uniform(0.010, 0.150),
    "heavy tail": lambda chance: (
        0.002 + chance.expovariate(200) if chance.random() < 0.97 else chance.uniform(0.02, 0.3)
    ),
}


@dataclass(frozen=True)
class Case:
    """One simulation. ``other`` is a client of its own that takes a part of the quota between two seconds."""

    kind: WindowKind
    quota: float
    jitter: str = "0-10 ms"
    seconds: float = 90.0
    told: float | None = None
    other: tuple[float, float, float] | None = None
    idle: tuple[float, float] | None = None
    slow_refusals: bool = False
    tells: bool = False
    busy: bool = False


@dataclass
class Seen:
    """The moments, in seconds since the beginning, at which requests were sent, admitted and refused."""

    quota: float
    sent: list[float] = field(default_factory=list)
    admitted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def used(self, begin: float, end: float) -> float:
        return _between(self.admitted, begin, end) / (end - begin) / self.quota

    def refusals(self, begin: float, end: float) -> float:
        return _between(self.refused, begin, end) / max(1, _between(self.sent, begin, end))

    def first(self, begin: float, low: float, high: float) -> float:
        """Seconds from ``begin`` to the first 2 s with between ``low`` and ``high`` of the quota used in them."""
        tries = (begin + 0.25 * step for step in range(200))
        return next((at for at in tries if low <= self.used(at, at + 2) <= high), math.inf) - begin


def _between(moments: list[float], begin: float, end: float) -> int:
    return bisect_left(moments, end) - bisect_left(moments, begin)


class World:
    """Client, network and server as events in virtual time."""

    def __init__(self, case: Case, shape: Callable[[float, float], Shape], seed: int) -> None:
        self.case, self.chance = case, random.Random(seed)
        self.phase = self.chance.random()
        self.shape = shape(case.told or case.quota, self.phase)
        self.window = window(case.kind, case.quota)
        self.seen = Seen(case.quota)
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = count()
        self.now = BEGIN
        self.wake_at = math.inf

    def at(self, moment: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (moment, next(self.numbers), what))

    def run(self) -> Seen:
        self.plan()
        if self.case.other is not None:
            self.at(BEGIN + self.case.other[1], lambda: self.other(0))
        while self.events and self.events[0][0] < BEGIN + self.case.seconds:
            self.now, _, what = heapq.heappop(self.events)
            what()
        return self.seen

    def plan(self) -> None:
        """Sets the client's one timer anew."""
        moment = max(self.now, self.shape.next_at(self.now))
        if self.case.idle is not None and self.case.idle[0] <= moment - BEGIN < self.case.idle[1]:
            moment = BEGIN + self.case.idle[1]
        if moment in (self.wake_at, math.inf):
            return
        self.wake_at = moment
        late = self.chance.uniform(0, LATE_TIMER) if moment > self.now else 0.0
        if self.case.busy and self.chance.random() < 0.05:
            late = self.chance.uniform(*STALL)
        self.at(moment + late, lambda: self.wake(moment))

    def wake(self, planned: float) -> None:
        if planned != self.wake_at:
            return
        self.wake_at = math.inf
        while self.shape.next_at(self.now) <= self.now + 1e-9:
            self.shape.sent(self.now)
            self.seen.sent.append(self.now - BEGIN)
            sent_at = self.now
            self.at(self.now + JITTER[self.case.jitter](self.chance), lambda sent_at=sent_at: self.count(sent_at))  # type: ignore[misc]
        self.plan()

    def count(self, sent_at: float) -> None:
        """The request reaches the server's count."""
        behind = self.chance.uniform(*LATENCY)
        if self.window.admit(self.now + self.phase):
            self.seen.admitted.append(self.now - BEGIN)
            self.at(self.now + behind, lambda: self.answer(sent_at))
            return
        self.seen.refused.append(self.now - BEGIN)
        wish = self.window.wait(self.now + self.phase) + 0.001 if self.case.tells else None
        behind = behind if self.case.slow_refusals else self.chance.uniform(*QUICK_REFUSAL)
        self.at(self.now + behind, lambda: self.refusal(sent_at, wish))

    def answer(self, sent_at: float) -> None:
        self.shape.answered(sent_at, self.now)
        self.plan()

    def refusal(self, sent_at: float, wish: float | None) -> None:
        self.shape.refused(sent_at, self.now, wish)
        self.plan()

    def other(self, number: int) -> None:
        """Another client's request, which asks evenly and takes no notice of refusals."""
        part, begin, end = self.case.other or (0.0, 0.0, 0.0)
        self.window.admit(self.now + self.phase)
        following = BEGIN + begin + (number + 1) / (part * self.case.quota)
        if following < BEGIN + end:
            self.at(max(self.now, following + self.chance.uniform(0, 0.010)), lambda: self.other(number + 1))


def runs(case: Case, shape: str, seeds: int) -> Iterator[Seen]:
    return (World(case, SHAPES[shape], seed).run() for seed in range(seeds))


def worst_and_best(values: list[float], form: str) -> str:
    return f"{min(values):{form}} … {max(values):{form}}"


def steady(seeds: int) -> None:
    print("Steady state, seconds 10 to 90: quota used, and refusals of all requests (the mean of the seeds)")
    print(f"{'shape':>22} {'window':>8} {'jitter':>15} " + " ".join(f"{f'at {q}/s':>16}" for q in (10, 50, 200)))
    for shape in SHAPES:
        for kind in WINDOWS:
            for jitter, busy in (*((each, False) for each in JITTER), ("0-10 ms", True)):
                cells = []
                for quota in (10, 50, 200):
                    seen = list(runs(Case(kind, quota, jitter, busy=busy), shape, seeds))
                    used = sum(each.used(10, 90) for each in seen) / seeds
                    refused = sum(each.refusals(0, 90) for each in seen) / seeds
                    cells.append(f"{used:>8.1%} {refused:>7.2%}")
                named = f"{jitter}, busy" if busy else jitter
                print(f"{shape:>22} {kind:>8} {named:>15} {' '.join(cells)}", flush=True)


def scenarios(shape: str, seeds: int, *, slow_refusals: bool, tells: bool) -> None:
    print(f"\n{shape}: refusals come {'as late as answers' if slow_refusals else 'at once'}, ", end="")
    print(f"{'with' if tells else 'without'} a delay to wait for; the least and the most of {seeds} seeds")
    for kind in WINDOWS:
        case = Case(kind, 50, seconds=70, other=(0.4, 20, 40), slow_refusals=slow_refusals, tells=tells)
        seen = list(runs(case, shape, seeds))
        print(
            f"{'another takes 40%':>20} {'50/s':>6} {kind:>8}: "
            f"within 10% after {worst_and_best([each.first(20, 0.54, 0.66) for each in seen], '.1f')} s, "
            f"of the rest used {worst_and_best([each.used(25, 40) / 0.6 for each in seen], '.1%')}, "
            f"refused {worst_and_best([each.refusals(20, 40) for each in seen], '.1%')}, "
            f"back above 95% after {worst_and_best([each.first(40, 0.95, 9) for each in seen], '.1f')} s"
        )
    for quota in (5, 25, 100):
        for kind in WINDOWS:
            case = Case(kind, quota, told=2 * quota, slow_refusals=slow_refusals, tells=tells)
            seen = list(runs(case, shape, seeds))
            print(
                f"{'half of what is told':>20} {f'{quota}/s':>6} {kind:>8}: "
                f"used {worst_and_best([each.used(10, 90) for each in seen], '.1%')}, "
                f"refused {worst_and_best([each.refusals(10, 90) for each in seen], '.2%')}, "
                f"in the first 10 s {worst_and_best([_between(each.refused, 0, 10) for each in seen], 'g')} requests"
            )
    for kind in WINDOWS:
        seen = list(runs(Case(kind, 50, seconds=60, idle=(20, 30)), shape, seeds))
        print(
            f"{'10 s without work':>20} {'50/s':>6} {kind:>8}: "
            f"used in the 10 s after it {worst_and_best([each.used(30, 40) for each in seen], '.1%')}, "
            f"refused {worst_and_best([each.refusals(30, 40) for each in seen], '.2%')}",
            flush=True,
        )


if __name__ == "__main__":
    number_of_seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    steady(number_of_seeds)
    for late, telling in ((False, False), (False, True), (True, False)):
        scenarios("learned", 4 * number_of_seeds, slow_refusals=late, tells=telling)
    scenarios("bucket of 1%, leak 98%", number_of_seeds, slow_refusals=False, tells=False)
