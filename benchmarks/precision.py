"""Calls that an audit needs to measure the versions of a fleet to a given precision.

python benchmarks/precision.py [--devices N] [--precision 1%] [--seeds N]

Real audits as processes, over sockets, without a quota: `auditor run --precision`. For every version of the platform
the benchmark checks whether the interval covers the true share. A version without a sampled device has the interval
from 0 to the largest likely share of such a version.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

from harness import audit, platform

from auditor.query.run import Run
from auditor.runs.estimates import read_stratified_counts
from auditor.simulator.world import World
from auditor.stats.intervals import Interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=10_000_000)
    parser.add_argument("--precision", default="1%")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    true_counts = truth(options.devices)
    with tempfile.TemporaryDirectory(prefix="auditor-precision-") as temporary:
        folder = Path(temporary)
        with platform(folder, "--devices", options.devices, "--per-second", 0, "--latency", 0, 0) as settings:
            for seed in range(options.seeds):
                run = audit(settings, folder / "runs", "--precision", options.precision, "--seed", seed)
                newest = max((folder / "runs").iterdir())
                manifest = json.loads((newest / "run.json").read_text())
                with Run(newest) as opened:
                    counts = read_stratified_counts(opened._database)  # noqa: SLF001
                shares = {
                    (share.version.module_name.lower(), share.version.module_version): share.interval
                    for share in counts.shares("fleet")
                }
                none = Interval(0.0, 0.0, counts.unseen_fleet_share() or 0.0)
                intervals = (
                    (shares.get(version, none), count / options.devices) for version, count in true_counts.items()
                )
                covered = sum(interval.low <= share <= interval.high for interval, share in intervals)
                print(
                    f"{options.devices:,} devices to +-{options.precision}, seed {seed}: "
                    f"{manifest['requests']['sent']:,} calls, "
                    f"achieved +-{manifest['selection']['achieved_precision']:.3%}; "
                    f"{covered:,} of {len(true_counts):,} versions are within their intervals, "
                    f"{len(shares):,} of them sampled; "
                    f"{run.wall:.0f} s, {run.peak:.0f} MB",
                    flush=True,
                )


def truth(devices: int) -> Counter[tuple[str, str]]:
    """Return how many devices run each version of a module."""
    return Counter(
        (module.module_name.lower(), module.module_version)
        for device in World(devices)
        if device.exists
        for module in device.modules
    )


if __name__ == "__main__":
    main()
