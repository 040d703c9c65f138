"""Coverage of the intervals of sampled shares, over 400 seeds.

python benchmarks/sampling.py [SEEDS]

Three kinds of fleets are simulated: products of 40 to 300 devices; products of 100,000 and more; and one product of
half a million with three of thousands and sixteen small ones. All devices report a module, or some devices of some
products. Versions have one share in all products or different ones, belong to one product, run on all devices but a
few, or on 0.1% of them. Products are sampled by size, and in other fleets with at least 1, 5 or 30 devices, so that
sampling rates differ. The simulation draws numbers of devices, which is equivalent to devices, and faster.

Every version of a product is a case, for the product, for its module over products, and for the fleet if all devices
report the module. A version without a sampled device has the interval from 0 to the unseen share.

Columns: the number of cases, how often the interval covers the share, and its mean half-width; the coverage for shares
up to 0.2%, and from 95%; and the first three figures for the cases whose interval must not be too wide: shares of 5% to
95%, and at least 400 sampled devices that report the module.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from auditor.stats.intervals import Interval, Stratum, share_interval, unseen_share_limit
from auditor.stats.ratio_estimator import combined_share_interval, combined_unseen_share_limit

MIN_COVERAGE, MAX_COVERAGE = 0.93, 0.98
"""Minimum coverage of all cases, and maximum coverage of those whose interval must not be too wide."""

SETTINGS = {"small": (0, 1, 5, 30), "large": (0, 30), "skewed": (0, 1, 5, 30)}
"""Kinds of fleets, and the minimum sample of each product."""

RARE = 0.001
NEARLY_ALL = 0.995
ROUNDING = 1e-12

Numbers = Mapping[str | None, int]
"""Devices of a product by version of a module; None: those that do not report the module."""


@dataclass
class Coverage:
    """Number of cases, of covered cases, and sum of half-widths."""

    cases: int = 0
    covered: int = 0
    half_widths: float = 0.0

    def add(self, interval: Interval, share: float) -> None:
        self.cases += 1
        self.covered += interval.low - ROUNDING <= share <= interval.high + ROUNDING
        self.half_widths += interval.half_width

    @property
    def coverage(self) -> float:
        return self.covered / self.cases if self.cases else float("nan")

    def percentage(self) -> str:
        return f"{self.coverage:>8.2%}" if self.cases else f"{'-':>8}"

    def figures(self) -> str:
        return f"{self.cases:>9,} {self.percentage()} {self.half_widths / max(1, self.cases):>8.4f}"


@dataclass(frozen=True, slots=True)
class Case:
    """A version's true share at a level, its interval, and the number of sampled devices with the module."""

    level: str
    interval: Interval
    share: float
    reporting: int


@dataclass
class Row:
    """Coverage for one kind of fleet, one minimum sample, and one level."""

    overall: Coverage = field(default_factory=Coverage)
    rare: Coverage = field(default_factory=Coverage)
    universal: Coverage = field(default_factory=Coverage)
    moderate: Coverage = field(default_factory=Coverage)

    def add(self, case: Case) -> None:
        self.overall.add(case.interval, case.share)
        if case.share <= 2 * RARE:
            self.rare.add(case.interval, case.share)
        if case.share >= 0.95:
            self.universal.add(case.interval, case.share)
        if 0.05 <= case.share <= 0.95 and case.reporting >= 400:
            self.moderate.add(case.interval, case.share)


def sizes_of(kind: str, random: Random) -> list[int]:
    """Return the number of devices of each product of a fleet."""
    if kind == "small":
        return [random.randint(40, 300) for _ in range(20)]
    if kind == "large":
        return [random.randint(100_000, 400_000) for _ in range(4)]
    return [500_000, *(random.randint(5_000, 30_000) for _ in range(3)), *(random.randint(40, 300) for _ in range(16))]


def sample_of(kind: str, devices: int, random: Random) -> int:
    """Return the sample size."""
    if kind == "small":
        return round(devices * random.choice((0.1, 0.3, 0.6)))
    return random.choice((1500, 4000, 10_000))


def allotted(sizes: Sequence[int], sample: int, random: Random, minimum: int = 0) -> list[int]:
    """Return the sample size of each product: its minimum, or its devices with the smallest ranks of all.

    A product's device number j, in random order, has the rank (j + u) / devices, with one random u for the product. So
    the first devices of the order are of all products by their size, up to one device.
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
    """Yield the numbers of four modules in each product; all devices report two of them."""
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
    """Return the devices of a product by version of a module."""
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


def draw_sample(numbers: Numbers, sampled: int, random: Random) -> Counter[str | None]:
    """Return the numbers of a random sample of a product's devices, without replacement."""
    return Counter(random.sample(list(numbers), sampled, counts=list(numbers.values())))


def examine(sizes: Sequence[int], taken: Sequence[int], numbers: Sequence[Numbers], random: Random) -> Iterator[Case]:
    """Draw a sample of one module, and yield a case for every version at every level."""
    seen = [draw_sample(each, sampled, random) for each, sampled in zip(numbers, taken, strict=True)]
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
    """Return the interval of a version of one product, sampled or not."""
    if running or reporting < sampled:
        return share_interval(devices, sampled, reporting, running)
    return Interval(0.0, 0.0, unseen_share_limit(devices, sampled))


def over(strata: Sequence[Stratum]) -> Interval:
    """Return the interval of a version over products, sampled or not."""
    if any(each.on_version for each in strata):
        return combined_share_interval(strata)
    return Interval(0.0, 0.0, combined_unseen_share_limit(strata))


def measure(kind: str, minimum: int, seeds: int) -> dict[str, Row]:
    """Return the coverage for a number of fleets of a kind, by level."""
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
            found = measure(kind, minimum, seeds)
            for level in ("product", "module", "fleet"):
                row = found[level]
                rows.append(row)
                print(f"{kind:<7} {minimum:>8} {level:<8} {row.overall.figures()}", end=" ")
                print(f"{row.rare.percentage()} {row.universal.percentage()} | {row.moderate.figures()}", flush=True)
    lowest = min(row.overall.coverage for row in rows)
    highest = max(row.moderate.coverage for row in rows if row.moderate.cases)
    print(
        f"minimum coverage {lowest:.2%} (required {MIN_COVERAGE:.0%}); "
        f"maximum of moderate shares {highest:.2%} (allowed {MAX_COVERAGE:.0%})"
    )
    if lowest < MIN_COVERAGE or highest > MAX_COVERAGE:
        sys.exit("the intervals do not have the required coverage")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
