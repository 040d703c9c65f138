"""Cost of incremental audits, correctness of their results, and coverage of their measured error.

python benchmarks/incremental.py [--devices N] [--seeds N]

The first fleet has 5% of its devices connecting in a day, and no device that reports while it is offline. It is audited
completely, and incrementally a simulated day later with the rule `strict`. Every result is compared with the truth.
Then, for each seed, a small fleet with devices that break the rule is audited on two days. Some of the carried results
are outdated; the benchmark counts how often the measured interval covers the true fraction. Audits are real, over
sockets, without a quota.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import duckdb
from daily_audits import audit_day, calls_of, snapshot, truth
from harness import audit, platform

from auditor.engine.progress import AuditResult
from auditor.simulator.lifecycle import Lifecycle
from auditor.simulator.world import World

FEW = Lifecycle(connecting=0.0513, always_online=0.0)
BREAKING = Lifecycle(connecting=0.3, always_online=0.0, offline_reports=0.3)
SMALL, RECHECK = 4_000, "10%"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="auditor-incremental-") as temporary:
        costs(Path(temporary), options.devices)
        covered(Path(temporary), options.seeds)


def costs(folder: Path, devices: int) -> None:
    options = ["--devices", devices, "--per-second", 0, "--latency", 0, 0]
    options += ["--connecting", FEW.connecting, "--always-online", 0]
    calls = []
    for day, flags in enumerate(([], ["--since", "last"])):
        with platform(folder / f"day{day}", *options, "--day", day) as settings:
            text = settings.read_text().replace('name = "simulated"', 'name = "daily"', 1)
            settings.write_text(text)
            run = audit(settings, folder / "runs", *flags)
        selection = run.manifest["selection"] or {"accounts": []}
        states = sum(account["requests"]["sent"] for account in selection["accounts"])
        calls.append(run.manifest["requests"]["sent"] + states)
        print(
            f"day {day + 1}: {run.manifest['state']}, {calls[-1]:,} calls, {states:,} of them for states, "
            f"{run.manifest['carried']:,} of {devices:,} carried, {run.wall:.0f} s, {run.peak:.0f} MB",
            flush=True,
        )
        for account in selection["accounts"]:
            print(f"  selected: {account['selected']}; checked: {selection['recheck']}")
    world = World(devices, day=1, lifecycle=FEW, today=time.time())
    connected = sum(device.connected_day == 1 for device in world)
    newest = max((folder / "runs").iterdir())
    wrong = sum(one != other for one, other in zip(snapshot(newest), truth(world), strict=True))
    fraction = calls[1] / calls[0]
    print(f"connected since: {connected:,}, {connected / devices:.2%}; calls: {fraction:.2%} of the full audit's")
    print(f"results that differ from the truth: {wrong:,} of {devices:,}", flush=True)


def covered(folder: Path, seeds: int) -> None:
    hits, rates = 0, []
    for seed in range(seeds):
        directory = folder / f"seed{seed}"
        for day in range(2):
            table: dict[str, Any] = {"since": "last", "recheck": RECHECK, "seed": seed} if day else {}
            result = anyio.run(_audit, seed, day, directory, table)
        before, after = (World(SMALL, seed=seed, day=day, lifecycle=BREAKING) for day in range(2))
        old = {(key, name): modules for key, name, modules in truth(before)}
        new = {(key, name): modules for key, name, modules in truth(after)}
        database = duckdb.connect()
        to_carry = database.execute(
            f"SELECT product_key, device_name FROM '{result.folder / 'carried.parquet'}' UNION ALL "
            f"SELECT product_key, device_name FROM '{result.folder / 'plan.parquet'}' "
            "WHERE selection_reason = 'recheck'"
        ).fetchall()
        rate = sum(old[device] != new[device] for device in to_carry) / len(to_carry)
        selection = result.manifest.selection
        recheck = None if selection is None else selection.recheck
        if recheck is None or recheck.low is None or recheck.high is None:
            raise RuntimeError("no device was checked")
        hits += recheck.low <= rate <= recheck.high
        rates.append((rate, recheck.high - recheck.low, calls_of(result)))
    mean, width, calls = (sum(column) / len(rates) for column in zip(*rates, strict=True))
    print(
        f"{seeds} seeds of {SMALL:,} devices, of which {BREAKING.offline_reports:.0%} break the rule; "
        f"{RECHECK} checked: "
        f"{mean:.2%} of the carried results are outdated on average, "
        f"the 95% interval is {width:.2%} wide, {calls:,.0f} calls"
    )
    print(f"the interval covers the true fraction in {hits} of {seeds} seeds")


async def _audit(seed: int, day: int, directory: Path, table: dict[str, Any]) -> AuditResult:
    return await audit_day(SMALL, seed, day, BREAKING, directory, **table)


if __name__ == "__main__":
    main()
