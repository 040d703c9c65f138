"""What comes after the asking: sealing and proving a run, and reading it, beside the unthrottled audit that made it.

python benchmarks/sealing.py [--devices N] [--modules N]

The audit is measured as a whole process against the fast local server, each with a core of its own. Then the same run
is sealed and verified again, and `auditor inventory` reads it, each in a process of its own on the audit's core.
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
    "sealing": "from auditor.inventory.seal import seal as step",
    "verifying": "from auditor.inventory.verify import verify as step",
}
TIMED = """
import sys, time
from pathlib import Path
{step}
began = time.perf_counter()
step(Path(sys.argv[1]))
print(time.perf_counter() - began)
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
            said, whole = timed(command)
        run = said.strip()
        print(f"{options.devices:,} devices with {options.modules} modules each")
        print(f"{'whole audit':<12} {whole:7.2f} s  {options.devices / whole:,.0f} devices/s")
        for name, step in STEPS.items():
            said, _ = timed(["-c", TIMED.format(step=step), run])
            print(f"{name:<12} {float(said):7.2f} s  {float(said) / whole:.1%} of the audit")
        _, seconds = timed(["-m", "auditor", "inventory", run])
        print(f"{'inventory':<12} {seconds:7.2f} s  as a command")


def timed(arguments: list[str]) -> tuple[str, float]:
    """What a Python process prints, and the seconds that it takes as a whole."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.sched_setaffinity(process.pid, {CLIENT_CORE})
    said, trouble = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed with {process.returncode}: {trouble}")
    return said, time.perf_counter() - began


if __name__ == "__main__":
    main()
