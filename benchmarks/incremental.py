"""What an audit since the last one costs, whether its snapshot is the truth, and whether its measured error is.

python benchmarks/incremental.py [--devices N] [--seeds N]

First a fleet of which 5% connect in a day, and where no device reports while it is offline, is audited whole, and since
that a simulated day later by the rule `strict`; every device of the snapshot is compared with the platform's truth.
Then, for each seed, a small fleet with devices that break the rule is audited in two nights: of the answers that were
to be carried some are wrong, and it is counted how often the interval that the run measures covers the true part.
Audits are real ones, over sockets, without a quota.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio
import duckdb
from measured import audit, platform
from nights import calls_of, night, snapshot, truth

from auditor.engine.progress import Result
from auditor.simulator.lifecycle import Life
from auditor.simulator.world import World

FEW = Life(connecting=0.0513, always_online=0.0)
BREAKING = Life(connecting=0.3, always_online=0.0, offline_reports=0.3)
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
    asked = (
        "--devices",
        devices,
        "--per-second",
        0,
        "--latency",
        0,
        0,
        "--connecting",
        FEW.connecting,
        "--always-online",
        0,
    )
    calls = []
    for day, options in enumerate(([], ["--since", "last"])):
        with platform(folder / f"day{day}", *asked, "--day", day) as settings:
            text = settings.read_text().replace('name = "simulated"', 'name = "nights"', 1)
            settings.write_text(text)
            run = audit(settings, folder / "runs", *options)
        choice = run.manifest["choice"] or {"accounts": []}
        states = sum(account["requests"]["sent"] for account in choice["accounts"])
        calls.append(run.manifest["requests"]["sent"] + states)
        print(
            f"night {day + 1}: {run.manifest['state']}, {calls[-1]:,} calls, {states:,} of them for states, "
            f"{run.manifest['carried']:,} of {devices:,} carried, {run.wall:.0f} s, {run.peak:.0f} MB",
            flush=True,
        )
        for account in choice["accounts"]:
            print(f"  asked: {account['asked']}; checked: {choice['recheck']}")
    world = World(devices, day=1, life=FEW, today=time.time())
    connected = sum(device.connected == 1 for device in world)
    newest = max((folder / "runs").iterdir())
    wrong = sum(one != other for one, other in zip(snapshot(newest), truth(world), strict=True))
    part = calls[1] / calls[0]
    print(f"connected since: {connected:,}, {connected / devices:.2%}; calls: {part:.2%} of the full audit's")
    print(f"devices of the snapshot that differ from the truth: {wrong:,} of {devices:,}", flush=True)


def covered(folder: Path, seeds: int) -> None:
    hits, rates = 0, []
    for seed in range(seeds):
        directory = folder / f"seed{seed}"
        for day in range(2):
            table: dict[str, Any] = {"since": "last", "recheck": RECHECK, "seed": seed} if day else {}
            result = anyio.run(_night, seed, day, directory, table)
        before, now = (World(SMALL, seed=seed, day=day, life=BREAKING) for day in range(2))
        known = {(key, name): modules for key, name, modules in truth(before)}
        fresh = {(key, name): modules for key, name, modules in truth(now)}
        database = duckdb.connect()
        to_carry = database.execute(
            f"SELECT product_key, device_name FROM '{result.folder / 'carried.parquet'}' UNION ALL "
            f"SELECT product_key, device_name FROM '{result.folder / 'plan.parquet'}' WHERE why = 'recheck'"
        ).fetchall()
        rate = sum(known[device] != fresh[device] for device in to_carry) / len(to_carry)
        choice = result.manifest.choice
        recheck = None if choice is None else choice.recheck
        if recheck is None or recheck.low is None or recheck.high is None:
            raise RuntimeError("nothing was checked")
        hits += recheck.low <= rate <= recheck.high
        rates.append((rate, recheck.high - recheck.low, calls_of(result)))
    mean, width, calls = (sum(column) / len(rates) for column in zip(*rates, strict=True))
    print(
        f"{seeds} seeds of {SMALL:,} devices, of which {BREAKING.offline_reports:.0%} break the rule; "
        f"{RECHECK} checked: "
        f"{mean:.2%} of the carried are wrong on average, the 95% interval is {width:.2%} wide, {calls:,.0f} calls"
    )
    print(f"the interval covers the true part in {hits} of {seeds} seeds")


async def _night(seed: int, day: int, directory: Path, table: dict[str, Any]) -> Result:
    return await night(SMALL, seed, day, BREAKING, directory, **table)


if __name__ == "__main__":
    main()
