"""Maximum and mean age of results with a budget for a third of the fleet.

python benchmarks/rolling.py [--devices N] [--runs N]

Real audits, over sockets, one a simulated day, with a budget of a third of the calls that the fleet takes. Some devices
violate a policy, others change often. The age of a result is counted in runs, from the run that queried it. The best
possible mean is that of a fleet in which each run queries only the oldest.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import anyio
import duckdb
from daily_audits import audit_day, calls_of

from auditor.engine.progress import AuditResult
from auditor.simulator.lifecycle import Lifecycle

LIFE = Lifecycle(connecting=0.2, always_online=0.4)
RULES = """
[[rule]]
name = "up to date"
newest = "99%"
"""
FIRST = 5
"""Runs until every device has a result, and the ages are stable."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=6_000)
    parser.add_argument("--runs", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="auditor-rolling-") as temporary:
        directory = Path(temporary)
        full = anyio.run(_audit, options.devices, 0, directory / "full", {})
        budget = calls_of(full) // 3
        print(f"{options.devices:,} devices take {calls_of(full):,} calls; each run has {budget:,}")
        print(f"{'run':>5}{'calls':>8}{'pending':>8}{'oldest':>8}{'mean':>7}  selected")
        names: dict[str, int] = {}
        oldest, means = 0, []
        for day in range(options.runs):
            result = anyio.run(_audit, options.devices, day, directory / "rolling", {"max_calls": budget})
            names[result.folder.name] = day
            ages = ages_of(result.folder, names, day)
            mean = sum(age * count for age, count in ages.items()) / sum(ages.values())
            selection = result.manifest.selection
            selected = {} if selection is None else selection.accounts[0].selected
            print(
                f"{day + 1:>5}{calls_of(result):>8,}{result.manifest.devices.pending:>8,}{max(ages):>8}{mean:>7.2f}  "
                + ", ".join(f"{count:,} {reason}" for reason, count in selected.items()),
                flush=True,
            )
            oldest = max(oldest, *ages)
            means += [mean] if day >= FIRST else []
        best = best_mean(options.devices, budget * options.devices / calls_of(full))
        mean = sum(means) / len(means)
        print(f"oldest result of any run: {oldest} runs")
        print(f"mean age from run {FIRST + 1} on: {mean:.3f} runs, the best possible is {best:.3f}: {mean / best:.3f}")


def ages_of(folder: Path, names: dict[str, int], now: int) -> dict[int, int]:
    """Return the devices by the age of their results, in runs."""
    database = duckdb.connect()
    queried = database.execute(
        f"SELECT count(*) FROM '{folder / 'devices.parquet'}' WHERE source = 'queried'"
    ).fetchall()
    ages = {0: int(queried[0][0])}
    if (folder / "carried.parquet").exists():
        for run, count in database.execute(
            f"SELECT run, count(*) FROM '{folder / 'carried.parquet'}' GROUP BY run"
        ).fetchall():
            ages[now - names[run]] = ages.get(now - names[run], 0) + count
    return ages


def best_mean(devices: int, per_run: float) -> float:
    left, age, total = float(devices), 0, 0.0
    while left > 0:
        count = min(left, per_run)
        total += age * count
        left, age = left - count, age + 1
    return total / devices


async def _audit(devices: int, day: int, directory: Path, table: dict[str, Any]) -> AuditResult:
    rules = RULES if "max_calls" in table else None
    return await audit_day(devices, 7, day, LIFE, directory, rules=rules, **table)


if __name__ == "__main__":
    main()
