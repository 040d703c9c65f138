"""Speed of auditor and its alternatives against one fast local server: devices a second, CPU, memory.

python benchmarks/speed.py [--rounds N] [--scale S] [--only NAME …] [--json FILE]; docs/speed.md explains the figures

Server and client each have their own core. `auditor run` is measured as a complete process, from start and fleet file
to sealed and verified run. The others are measured from their first request on, which is an advantage for them. Slow
ones query fewer devices. Print medians, the spread of the rounds, and ratios.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
OTHERS = HERE.parent / ".bench" / "bin" / "python"
"""An environment with the packages of others, from `make bench-speed`."""

OWN = frozenset({"auditor_run", "auditor_limited", "auditor_session", "stream", "aiohttp_tuned", "aiohttp_plain"})
"""Contenders that need only packages of this project."""

SERVER_CORE, CLIENT_CORE = 0, 1

DEVICES = {
    "auditor_run": 100_000,
    "auditor_limited": 100_000,
    "auditor_session": 100_000,
    "stream": 100_000,
    "aiohttp_tuned": 100_000,
    "aiohttp_plain": 50_000,
    "sdk_core": 5_000,
    "sdk_tea": 5_000,
    "dlt": 4_000,
}

TITLES = {
    "auditor_run": "`auditor run`, complete",
    "auditor_limited": "`auditor run`, complete, with a limit of 1,000,000 calls/s that is never reached",
    "auditor_session": "`auditor run`, complete, with aiohttp's session as below 500 calls/s",
    "stream": "auditor's stream, in a program",
    "aiohttp_tuned": "bare loop: aiohttp tuned, on uvloop",
    "aiohttp_plain": "bare loop: aiohttp with its defaults",
    "sdk_core": "vendor's SDK (aliyun-python-sdk-iot), 50 threads",
    "sdk_tea": "vendor's SDK (alibabacloud-iot20180120), 50 threads",
    "dlt": "dlt's REST client, 50 threads",
}


SESSION_ONLY = """
import math, sys
from auditor.cli import main
from auditor.client import transport
transport.FAST_TRANSPORT_RATE = math.inf
sys.exit(main())
"""

COMPLETE_RUNS = {
    "auditor_run": ("-m", "auditor"),
    "auditor_limited": ("-m", "auditor"),
    "auditor_session": ("-c", SESSION_ONLY),
}
"""Contenders that run the complete program; the last one without the fast transport."""

LIMITS = {"auditor_limited": "1_000_000"}
"""Calls per second of an account, where it has a limit."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One round of one contender: devices a second, CPU microseconds a device, peak memory in MB."""

    devices_per_second: float
    cpu_microseconds: float
    peak_megabytes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the numbers of devices")
    parser.add_argument("--only", nargs="*", choices=DEVICES, default=list(DEVICES))
    parser.add_argument(
        "--json", type=Path, default=OTHERS.parents[1] / "speed.json", help="file for every round's figures"
    )
    options = parser.parse_args()
    if not OTHERS.exists() and not OWN.issuperset(options.only):
        parser.error(f"{OTHERS} is missing: run `make bench-speed`, or select with --only {' '.join(OWN)}")
    figures: dict[str, list[Figure]] = {name: [] for name in options.only}
    with tempfile.TemporaryDirectory(prefix="auditor-speed-") as temporary, server() as port:
        for number in range(options.rounds):
            for name in options.only:
                devices = max(100, int(DEVICES[name] * options.scale))
                folder = Path(temporary, f"{number}-{name}")
                figures[name].append(measure(name, port, devices, folder))
                print(f"round {number + 1}: {name}: {figures[name][-1].devices_per_second:,.0f}/s", file=sys.stderr)
    print(*table(figures), sep="\n")
    rounds = {name: [asdict(each) for each in found] for name, found in figures.items()}
    options.json.parent.mkdir(exist_ok=True)
    options.json.write_text(json.dumps({"devices": DEVICES, "scale": options.scale, "rounds": rounds}, indent=2))


@contextmanager
def server(modules: int = 2) -> Iterator[str]:
    """Start the fast local server on its own core; yield its port."""
    command = [sys.executable, str(HERE / "echo_server.py"), str(modules)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        os.sched_setaffinity(process.pid, {SERVER_CORE})
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def measure(name: str, port: str, devices: int, folder: Path) -> Figure:
    """Run one contender on its own fleet."""
    folder.mkdir()
    fleet = write_fleet(folder, devices)
    if name in COMPLETE_RUNS:
        command = [
            sys.executable,
            *COMPLETE_RUNS[name],
            "run",
            str(settings(folder, port, LIMITS.get(name))),
            "--log-level",
            "error",
        ]
    else:
        python = Path(sys.executable) if name in OWN else OTHERS
        command = [str(python), str(HERE / "contender.py"), name, port, str(fleet), str(folder / "answers.jsonl")]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    os.sched_setaffinity(process.pid, {CLIENT_CORE})
    assert process.stdout is not None
    output = process.stdout.read().strip()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        raise SystemExit(f"{name} failed with {process.returncode}: {' '.join(command)}")
    seconds = time.perf_counter() - started if name in COMPLETE_RUNS else float(output)
    answers = results_of(Path(output)) if name in COMPLETE_RUNS else folder / "answers.jsonl"
    with gzip.open(answers) if answers.suffix == ".gz" else answers.open("rb") as file:
        lines = sum(1 for _ in file)
    if lines != devices:
        raise SystemExit(f"{name} wrote {lines} lines for {devices} devices")
    cpu = usage.ru_utime + usage.ru_stime
    return Figure(devices / seconds, 1e6 * cpu / devices, usage.ru_maxrss / 1024)


def results_of(folder: Path) -> Path:
    """Return a run's file of results: those of a large run are compressed."""
    compressed = folder / "devices.jsonl.gz"
    return compressed if compressed.exists() else folder / "devices.jsonl"


def write_fleet(folder: Path, devices: int) -> Path:
    fleet = folder / "fleet.csv"
    with fleet.open("w") as file:
        file.write("product_key,device_name\n")
        file.writelines(f"k1h9drZble,device{number:07d}\n" for number in range(devices))
    return fleet


def settings(folder: Path, port: str, limit: str | None = None) -> Path:
    (folder / "secret").write_text("bench-secret")
    path = folder / "bench.toml"
    path.write_text(
        f"""concurrency = 50
[[account]]
name = "bench"
endpoint = "http://127.0.0.1:{port}/"
access_key_id = "bench-key"
access_key_secret = {{ file = "secret" }}
calls_per_second = {limit or '"unlimited"'}
fleet = {{ file = "fleet.csv" }}
"""
    )
    return path


def table(figures: dict[str, list[Figure]]) -> Iterator[str]:
    """Yield the medians as a Markdown table; ``spread`` compares the slowest and the fastest round with them."""
    ours = median(figures["auditor_run"]).devices_per_second if figures.get("auditor_run") else None
    yield "| | devices/s | spread | CPU µs each | peak MB | `auditor run` is |"
    yield "|---|---:|---|---:|---:|---:|"
    for name, found in figures.items():
        middle = median(found)
        speeds = [each.devices_per_second / middle.devices_per_second - 1 for each in found]
        ratio = "" if ours is None else f"{ours / middle.devices_per_second:.2f} x"
        yield (
            f"| {TITLES[name]} | {middle.devices_per_second:,.0f} | {min(speeds):+.0%} {max(speeds):+.0%} | "
            f"{middle.cpu_microseconds:,.0f} | {middle.peak_megabytes:,.0f} | {ratio} |"
        )


def median(found: list[Figure]) -> Figure:
    columns = zip(*(asdict(each).values() for each in found), strict=True)
    return Figure(*map(statistics.median, columns))


if __name__ == "__main__":
    main()
