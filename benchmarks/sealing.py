"""Cost of sealing, verifying and reading a run, compared with the unthrottled audit that wrote it.

python benchmarks/sealing.py [--devices N] [--modules N]

The audit is measured as a complete process against the fast local server; each has its own core. Then the same run is
sealed and verified again, and `auditor inventory` reads it, each in its own process on the audit's core.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from speed import CLIENT_CORE, server, settings, write_fleet

STEPS = {
    "sealing": "from auditor.runs.seal import seal_run as step",
    "verifying": "from auditor.runs.verify import verify_run as step",
}
TIMED = """
import sys, time
from pathlib import Path
{step}
started = time.perf_counter()
step(Path(sys.argv[1]))
print(time.perf_counter() - started)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--modules", type=int, choices=range(1, 7), default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="auditor-sealing-") as temporary:
        folder = Path(temporary)
        write_fleet(folder, options.devices)
        with server(options.modules) as port:
            command = ["-m", "auditor", "run", str(settings(folder, port)), "--log-level", "error"]
            output, audit_seconds = timed(command)
        run = output.strip()
        print(f"{options.devices:,} devices with {options.modules} modules each")
        print(f"{'audit':<12} {audit_seconds:7.2f} s  {options.devices / audit_seconds:,.0f} devices/s")
        for name, step in STEPS.items():
            output, _ = timed(["-c", TIMED.format(step=step), run])
            print(f"{name:<12} {float(output):7.2f} s  {float(output) / audit_seconds:.1%} of the audit")
        _, seconds = timed(["-m", "auditor", "inventory", run])
        print(f"{'inventory':<12} {seconds:7.2f} s  as a command")


def timed(arguments: list[str]) -> tuple[str, float]:
    """Return the output of a Python process and its duration in seconds."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.sched_setaffinity(process.pid, {CLIENT_CORE})
    output, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed with {process.returncode}: {errors}")
    return output, time.perf_counter() - started


if __name__ == "__main__":
    main()
