"""Fraction of a quota that an audit uses in 30 s, against the simulated platform's windows, and throttled requests.

python benchmarks/quota.py [PER_SECOND …]
"""

import sys
import tempfile
from pathlib import Path

from harness import audit, platform

SECONDS = 30
LATENCY = (20, 80)
WINDOWS = ("sliding", "fixed", "bucket")


def main(quotas: list[float]) -> None:
    print(f"{'quota/s':>8} {'window':>8} {'sent':>7} {'seconds':>8} {'used':>7} {'throttled':>9}")
    for quota in quotas:
        for window in WINDOWS:
            devices = int(quota * SECONDS)
            with tempfile.TemporaryDirectory(prefix="auditor-quota-") as temporary:
                folder = Path(temporary)
                options = ("--devices", devices, "--per-second", quota, "--window", window, "--latency", *LATENCY)
                with platform(folder, *options) as settings:
                    run = audit(settings, folder / "runs")
            requests, rate = run.manifest["requests"], run.manifest["rate"]
            seconds = requests["sent"] / rate["achieved"]
            print(
                f"{quota:>8g} {window:>8} {requests['sent']:>7,} {seconds:>8.1f} {rate['achieved'] / quota:>7.1%} "
                f"{requests['throttled']:>9}",
                flush=True,
            )


if __name__ == "__main__":
    main([float(each) for each in sys.argv[1:]] or [50.0])
