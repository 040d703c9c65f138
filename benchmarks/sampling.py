"""Whether the intervals of sampled shares hold what they say: how often the true share lies within, over 400 seeds.

python benchmarks/sampling.py [SEEDS]

Fleets of three kinds are made up and sampled: products of 40 to 300 devices, products of 100,000 and more, and one
product of half a million beside three of thousands and sixteen small ones. Their modules are reported by all devices,
or by some of some products. Versions are rolled out by one share in all products or by many, are of one product alone,
run on all devices but a few, or on 0.1% of them. Of each product as many devices are sampled as its size tells, and in
other fleets at least 1, 5 or 30, so that products are sampled at unequal rates. What is drawn are numbers of devices,
which is the same as devices, and quicker.

Every version that a product runs is a case, for the product, for its module over products, and for the fleet if all
devices report the module. A version that the sample does not show has the interval from none to what may be unseen.

Columns: of all cases how many, how often the share was in the interval, and half of the mean width; how often where the
share is 0.2% at most, and where it is 95% at least; and the same three figures of the cases that must not be padded,
whose share is 5% to 95% and whose sample has 400 devices or more that report the module.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from auditor.stats.intervals import Interval, Stratum, share_within, unseen
from auditor.stats.ratio_estimator import share_over, unseen_over

LEAST, MOST = 0.93, 0.98
"""Of all cases so many must be covered at least, and of those that must not be padded so many at most."""

SETTINGS = {"small": (0, 1, 5, 30), "large": (0, 30), "skewed": (0, 1, 5, 30)}
"""Kinds of fleets, and of how many devices each product's sample is at least."""

RARE = 0.001
NEARLY_ALL = 0.995
ROUNDING = 1e-12

Numbers = Mapping[str | None, int]
"""Of a product, how many devices run each version of a module, and under None how many do not report it."""


@dataclass
class Tally:
    """Cases, those covered, and the sum of half widths."""

    cases: int = 0
    covered: int = 0
    halves: float = 0.0

    def add(self, interval: Interval, share: float) -> None:
        self.cases += 1
        self.covered += interval.low - ROUNDING <= share <= interval.high + ROUNDING
        self.halves += interval.half

    @property
    def coverage(self) -> float:
        return self.covered / self.cases if self.cases else float("nan")

    def part(self) -> str:
        return f"{self.coverage:>8.2%}" if self.cases else f"{'-':>8}"

    def figures(self) -> str:
        return f"{self.cases:>9,} {self.part()} {self.halves / max(1, self.cases):>8.4f}"


@dataclass(frozen=True, slots=True)
class Case:
    """A version's true share at a level, its interval, and of how many sampled devices that is."""

    level: str
    interval: Interval
    share: float
    reporting: int


@dataclass
class Row:
    """The cases of one kind of fleet, of one way to sample it, at one level."""

    every: Tally = field(default_factory=Tally)
    rare: Tally = field(default_factory=Tally)
    universal: Tally = field(default_factory=Tally)
    unpadded: Tally = field(default_factory=Tally)

    def add(self, case: Case) -> None:
        self.every.add(case.interval, case.share)
        if case.share <= 2 * RARE:
            self.rare.add(case.interval, case.share)
        if case.share >= 0.95:
            self.universal.add(case.interval, case.share)
        if 0.05 <= case.share <= 0.95 and case.reporting >= 400:
            self.unpadded.add(case.interval, case.share)


def sizes_of(kind: str, random: Random) -> list[int]:
    """The numbers of devices of a fleet's products."""
    if kind == "small":
        return [random.randint(40, 300) for _ in range(20)]
    if kind == "large":
        return [random.randint(100_000, 400_000) for _ in range(4)]
    return [500_000, *(random.randint(5_000, 30_000) for _ in range(3)), *(random.randint(40, 300) for _ in range(16))]


def sample_of(kind: str, devices: int, random: Random) -> int:
    """How many devices are sampled."""
    if kind == "small":
        return round(devices * random.choice((0.1, 0.3, 0.6)))
    return random.choice((1500, 4000, 10_000))


def allotted(sizes: Sequence[int], sample: int, random: Random, minimum: int = 0) -> list[int]:
    """How many devices of each product are sampled: its own minimum, or those with the smallest ranks of all.

    A product's device number j, in random order, has the rank (j + u) / devices, with one random u for the product. So
    the first devices of the whole order are of all products, as many of each as its size tells, but for one.
    """
    starts = [random.random() for _ in sizes]

    def until(rank: float) -> list[int]:
        return [min(size, max(0, int(rank * size - start + 1))) for size, start in zip(sizes, starts, strict=True)]

    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (low, middle) if sum(until(middle)) >= sample else (middle, high)
    return [max(min(size, minimum), taken) for size, taken in zip(sizes, until(high), strict=True)]


def modules_of(sizes: Sequence[int], random: Random) -> Iterator[list[Numbers]]:
    """Four modules of a fleet, two of them reported by all devices; of each its numbers in every product."""
    for everywhere in (True, True, False, False):
        style = random.choice(("rollout", "mix", "any"))
        rolled_out = random.random()
        numbers: list[Numbers] = []
        for place, size in enumerate(sizes):
            if everywhere:
                reporting = size
            elif random.random() < 0.4:
                reporting = 0
            else:
                reporting = max(1, round(size * random.choice((random.random(), 0.02, 0.98))))
            numbers.append({**versions_of(reporting, place, style, rolled_out, random), None: size - reporting})
        yield numbers


def versions_of(devices: int, place: int, style: str, rolled_out: float, random: Random) -> dict[str | None, int]:
    """How many of a product's devices run which version of a module."""
    found: Counter[str | None] = Counter()
    if not devices:
        return {}
    if random.random() < 0.5:
        found["rare"] = min(devices, max(1, round(devices * RARE * random.choice((0.5, 1, 2)))))
    if random.random() < 0.3 and found.total() < devices:
        found[f"single in {place}"] = 1
    if style == "any":
        style = random.choice(("pure", "nearly", "own", "rollout", "mix"))
    if style == "pure":
        shares = {random.choice("abc"): 1.0}
    elif style == "nearly":
        first, second = random.sample("abc", 2)
        shares = {second: 1 - NEARLY_ALL, first: NEARLY_ALL}
    elif style == "own":
        shares = {"a": 0.02, f"own of {place}": 0.98}
    elif style == "rollout":
        new = min(1.0, max(0.0, rolled_out + random.gauss(0, 0.15)))
        shares = {"a": new, "b": 1 - new}
    else:
        weights = [random.gammavariate(0.7, 1) for _ in "abcdef"]
        shares = {version: weight / sum(weights) for version, weight in zip("abcdef", weights, strict=True)}
    for version, share in shares.items():
        found[version] += min(devices - found.total(), round(devices * share))
    found[version] += devices - found.total()
    return {version: number for version, number in found.items() if number}


def drawn(numbers: Numbers, sampled: int, random: Random) -> Counter[str | None]:
    """The numbers of so many devices of a product, drawn at random without replacement."""
    return Counter(random.sample(list(numbers), sampled, counts=list(numbers.values())))


def examine(sizes: Sequence[int], taken: Sequence[int], numbers: Sequence[Numbers], random: Random) -> Iterator[Case]:
    """Draws a sample of one module; every version that there is, at every level."""
    seen = [drawn(each, sampled, random) for each, sampled in zip(numbers, taken, strict=True)]
    reporting = [each.total() - each[None] for each in seen]
    reports = [size - each.get(None, 0) for each, size in zip(numbers, sizes, strict=True)]
    for size, sampled, answered, domain, true, shown in zip(
        sizes, taken, reporting, reports, numbers, seen, strict=True
    ):
        for version in true if answered else ():
            if version is not None:
                interval = within(size, sampled, answered, shown[version])
                yield Case("product", interval, true[version] / domain, answered)
    if sum(reporting):
        level = "fleet" if reports == list(sizes) else "module"
        for version in sorted({version for each in numbers for version in each if version is not None}):
            strata = [
                Stratum(size, sampled, answered, shown[version])
                for size, sampled, answered, shown in zip(sizes, taken, reporting, seen, strict=True)
            ]
            share = sum(each.get(version, 0) for each in numbers) / sum(reports)
            yield Case(level, over(strata), share, sum(reporting))


def within(devices: int, sampled: int, reporting: int, running: int) -> Interval:
    """The interval of a product, for a version that its sample shows or does not show."""
    if running or reporting < sampled:
        return share_within(devices, sampled, reporting, running)
    return Interval(0.0, 0.0, unseen(devices, sampled))


def over(strata: Sequence[Stratum]) -> Interval:
    """The interval over products, for a version that the sample shows or does not show."""
    if any(each.running for each in strata):
        return share_over(strata)
    return Interval(0.0, 0.0, unseen_over(strata))


def measured(kind: str, minimum: int, seeds: int) -> dict[str, Row]:
    """The cases of so many fleets of a kind, by level."""
    rows: dict[str, Row] = defaultdict(Row)
    for seed in range(seeds):
        random = Random(f"{kind} {minimum} {seed}")
        sizes = sizes_of(kind, random)
        taken = allotted(sizes, sample_of(kind, sum(sizes), random), random, minimum)
        for numbers in modules_of(sizes, random):
            for case in examine(sizes, taken, numbers, random):
                rows[case.level].add(case)
    return rows


def main(seeds: int) -> None:
    rows: list[Row] = []
    figures = f"{'cases':>9} {'covered':>8} {'half':>8}"
    print(f"{'fleet':<7} {'at least':>8} {'level':<8} {figures} {'to 0.2%':>8} {'from 95%':>8} | {figures}")
    for kind, minimums in SETTINGS.items():
        for minimum in minimums:
            found = measured(kind, minimum, seeds)
            for level in ("product", "module", "fleet"):
                row = found[level]
                rows.append(row)
                print(f"{kind:<7} {minimum:>8} {level:<8} {row.every.figures()}", end=" ")
                print(f"{row.rare.part()} {row.universal.part()} | {row.unpadded.figures()}", flush=True)
    least = min(row.every.coverage for row in rows)
    most = max(row.unpadded.coverage for row in rows if row.unpadded.cases)
    print(f"covered {least:.2%} at least (to be {LEAST:.0%}); where not to be padded {most:.2%} at most ({MOST:.0%})")
    if least < LEAST or most > MOST:
        sys.exit("the intervals do not hold what they say")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
