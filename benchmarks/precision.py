"""How many calls it takes to know the versions of a fleet to a percent, whatever its size.

python benchmarks/precision.py [--devices N] [--precision 1%] [--seeds N]

Real audits as whole processes, over sockets, without a quota: `auditor run --precision`. Of every version that a sample
shows it is seen whether its interval holds the share in the platform's truth.
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

from measured import audit, platform

from auditor.inventory.estimates import read_tallies
from auditor.inventory.queries import Run
from auditor.simulator import World


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
                    shares = list(read_tallies(opened._database).shares("fleet"))  # noqa: SLF001
                held = sum(
                    share.interval.low
                    <= true[share.version.module_name.lower(), share.version.module_version] / options.devices
                    <= share.interval.high
                    for share in shares
                )
                print(
                    f"{options.devices:,} devices to +-{options.precision}, seed {seed}: "
                    f"{manifest['requests']['sent']:,} calls, reached +-{manifest['choice']['reached']:.3%}; "
                    f"{held} of {len(shares)} shares hold the truth; {run.wall:.0f} s, {run.peak:.0f} MB",
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
