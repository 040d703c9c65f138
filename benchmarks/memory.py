"""Memory and speed of `auditor run` without a quota, which must not depend on the size of the fleet.

python benchmarks/memory.py [DEVICES …]
"""

import sys
import tempfile
from pathlib import Path

from harness import audit, platform


def main(sizes: list[int]) -> None:
    print(f"{'devices':>10} {'state':>9} {'peak MB':>8} {'ratio':>6} {'devices/s':>10} {'CPU µs each':>12}")
    first_peak = 0.0
    for devices in sizes:
        with tempfile.TemporaryDirectory(prefix="auditor-memory-") as temporary:
            folder = Path(temporary)
            with platform(folder, "--devices", devices, "--per-second", 0, "--latency", 0, 0) as settings:
                run = audit(settings, folder / "runs")
        first_peak = first_peak or run.peak
        print(
            f"{devices:>10,} {run.manifest['state']:>9} {run.peak:>8.0f} {run.peak / first_peak:>6.2f} "
            f"{devices / run.wall:>10,.0f} {run.cpu / devices * 1e6:>12,.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]] or [50_000, 1_000_000])
