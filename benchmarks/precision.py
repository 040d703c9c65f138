"""How many calls it takes to know the versions of a fleet to a percent, whatever its size.

python benchmarks/precision.py [--devices N] [--precision 1%] [--seeds N]

Real audits as whole processes, over sockets, without a quota: `auditor run --precision`. Of every version that
the platform has it is seen whether the interval holds its true share: of one that the sample does not show, the one
from none to the most that such a version may have.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

from measured import audit, platform

from auditor.query.run import Run
from auditor.simulator.world import World
from auditor.stats.intervals import Interval
from auditor.stats.stratified import read_tallies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=10_000_000)
    parser.add_argument("--precision", default="1%")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    true = truth(options.devices)
    with tempfile.TemporaryDirectory(prefix="auditor-precision-") as temporary:
        folder = Path(temporary)
        with platform(folder, "--devices", options.devices, "--per-second", 0, "--latency", 0, 0) as settings:
            for seed in range(options.seeds):
                run = audit(settings, folder / "runs", "--precision", options.precision, "--seed", seed)
                newest = max((folder / "runs").iterdir())
                manifest = json.loads((newest / "run.json").read_text())
                with Run(newest) as opened:
                    tallies = read_tallies(opened._database)  # noqa: SLF001
                shares = {
                    (share.version.module_name.lower(), share.version.module_version): share.interval
                    for share in tallies.shares("fleet")
                }
                none = Interval(0.0, 0.0, tallies.unseen_in_fleet() or 0.0)
                intervals = ((shares.get(version, none), count / options.devices) for version, count in true.items())
                held = sum(interval.low <= share <= interval.high for interval, share in intervals)
                print(
                    f"{options.devices:,} devices to +-{options.precision}, seed {seed}: "
                    f"{manifest['requests']['sent']:,} calls, reached +-{manifest['choice']['reached']:.3%}; "
                    f"{held:,} of {len(true):,} versions are within their intervals, {len(shares):,} of them shown; "
                    f"{run.wall:.0f} s, {run.peak:.0f} MB",
                    flush=True,
                )


def truth(devices: int) -> Counter[tuple[str, str]]:
    """How many devices run each version of a module."""
    return Counter(
        (module.module_name.lower(), module.module_version)
        for device in World(devices)
        if device.exists
        for module in device.modules
    )


if __name__ == "__main__":
    main()
