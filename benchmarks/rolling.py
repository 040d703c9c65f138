"""How old the oldest answer gets where a night bears a third of a fleet, and how old they are on average.

python benchmarks/rolling.py [--devices N] [--nights N]

Real audits, over sockets, night after night, with a budget of a third of the calls that the fleet takes; a policy is
violated by some devices, others change often. An answer's age is counted in nights, by the run that it is from. The
best possible mean is that of a fleet whose oldest are asked each night, and nothing else.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import anyio
import duckdb
from nights import calls_of, night

from auditor.engine.progress import Result
from auditor.simulator.lifecycle import Life

LIFE = Life(connecting=0.2, always_online=0.4)
RULES = """
[[rule]]
name = "nobody is behind"
newest = "99%"
"""
FIRST = 5
"""Nights until the fleet was seen whole, and the order of the ages has settled."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=6_000)
    parser.add_argument("--nights", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="auditor-rolling-") as temporary:
        directory = Path(temporary)
        full = anyio.run(_night, options.devices, 0, directory / "full", {})
        budget = calls_of(full) // 3
        print(f"{options.devices:,} devices take {calls_of(full):,} calls; each night has {budget:,}")
        print(f"{'night':>5}{'calls':>8}{'unseen':>8}{'oldest':>8}{'mean':>7}  asked")
        names: dict[str, int] = {}
        oldest, means = 0, []
        for day in range(options.nights):
            result = anyio.run(_night, options.devices, day, directory / "rolling", {"calls": budget})
            names[result.folder.name] = day
            ages = ages_of(result.folder, names, day)
            mean = sum(age * count for age, count in ages.items()) / sum(ages.values())
            choice = result.manifest.choice
            asked = {} if choice is None else choice.accounts[0].asked
            print(
                f"{day + 1:>5}{calls_of(result):>8,}{result.manifest.devices.pending:>8,}{max(ages):>8}{mean:>7.2f}  "
                + ", ".join(f"{count:,} {why}" for why, count in asked.items()),
                flush=True,
            )
            oldest = max(oldest, *ages)
            means += [mean] if day >= FIRST else []
        best = best_mean(options.devices, budget * options.devices / calls_of(full))
        mean = sum(means) / len(means)
        print(f"oldest answer in any night: {oldest} nights")
        print(
            f"mean age from night {FIRST + 1} on: {mean:.3f} nights, the best possible is {best:.3f}: {mean / best:.3f}"
        )


def ages_of(folder: Path, names: dict[str, int], now: int) -> dict[int, int]:
    """Devices by the age of their answers, in nights."""
    database = duckdb.connect()
    asked = database.execute(f"SELECT count(*) FROM '{folder / 'devices.parquet'}' WHERE source = 'asked'").fetchall()
    ages = {0: int(asked[0][0])}
    if (folder / "carried.parquet").exists():
        for run, count in database.execute(
            f"SELECT run, count(*) FROM '{folder / 'carried.parquet'}' GROUP BY run"
        ).fetchall():
            ages[now - names[run]] = ages.get(now - names[run], 0) + count
    return ages


def best_mean(devices: int, a_night: float) -> float:
    left, age, total = float(devices), 0, 0.0
    while left > 0:
        some = min(left, a_night)
        total += age * some
        left, age = left - some, age + 1
    return total / devices


async def _night(devices: int, day: int, directory: Path, table: dict[str, Any]) -> Result:
    rules = RULES if "calls" in table else None
    return await night(devices, 7, day, LIFE, directory, rules=rules, **table)


if __name__ == "__main__":
    main()
