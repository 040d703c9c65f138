"""Memory, open files and asyncio tasks of a process that audits for minutes at 200 calls a second with 5% faults.

python benchmarks/soak.py [MINUTES]

The process makes four audits, one after the other. The first one is the warm-up. A line is fitted to the samples of the
others with least squares: its slope is what a leak would add in an hour. Exits with 1 if a figure is not flat.
"""

import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import anyio

import auditor
from auditor.simulator import DEFAULT_ACCOUNT, Faults, Simulator, World
from auditor.simulator.faults import KINDS

AUDITS = 4
"""Number of audits; the first one is the warm-up."""

RATE, FAULTS = 200, 0.05
"""Calls per second, and fraction of faulty answers of all kinds but throttling, which would lower the rate."""

SILENCE_SECONDS = 5.0
"""Seconds until a connection without an answer is closed."""

SAMPLE_SECONDS = 0.5
"""Seconds between two samples."""

FLAT_FRACTION, FLAT_NUMBER = 0.05, 3.0
"""A figure is flat if it grows by less than this fraction of its mean, or by less than this number, while measured."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Figures of this process; ``memory`` in MB, ``at`` in seconds."""

    at: float
    memory: float
    descriptors: float
    tasks: float


def take_sample() -> Sample:
    """Return the figures now. Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return Sample(time.monotonic(), memory, sum(1 for _ in os.scandir("/proc/self/fd")), len(asyncio.all_tasks()))


def fit_slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line through points."""
    x_mean, y_mean = (sum(values) / len(points) for values in zip(*points, strict=True))
    square = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / square if square else 0.0


async def audit_repeatedly(settings: auditor.Settings, seconds: float) -> list[Sample]:
    """Make all audits, of some seconds each; return the samples of those after the first, while devices are queried."""
    samples: list[Sample] = []
    sealing = True

    def on_progress(progress: auditor.Progress) -> None:
        nonlocal sealing
        sealing = progress.sealing

    async def sample() -> None:
        while True:
            await anyio.sleep(SAMPLE_SECONDS)
            if not sealing:
                samples.append(take_sample())

    for number in range(AUDITS):
        async with anyio.create_task_group() as group:
            group.start_soon(sample)
            result = await auditor.run_audit(settings, on_progress=on_progress, max_seconds=seconds)
            group.cancel_scope.cancel()
        sealing = True
        requests = result.manifest.requests
        print(
            f"audit {number + 1}: {result.manifest.devices.ok:,} ok, {result.manifest.devices.failed:,} failed, "
            f"{requests.sent:,} requests, {requests.retried:,} retries, "
            f"{take_sample().memory:.0f} MB, {take_sample().descriptors:.0f} descriptors",
            flush=True,
        )
        if number == 0:
            samples.clear()
    return samples


def print_slopes(samples: Sequence[Sample]) -> bool:
    """Print the slope of each figure; return True if all are flat."""
    seconds = samples[-1].at - samples[0].at
    print(f"{len(samples)} samples in {seconds:.0f} s after the warm-up")
    print(f"{'':>14} {'mean':>8} {'per hour':>10} {'growth':>8}")
    flat = True
    for name, unit in (("memory", "MB"), ("descriptors", ""), ("tasks", "")):
        values = [getattr(sample, name) for sample in samples]
        mean = sum(values) / len(values)
        slope = fit_slope([(sample.at, value) for sample, value in zip(samples, values, strict=True)])
        growth = slope * seconds
        is_flat = growth < max(FLAT_NUMBER, FLAT_FRACTION * mean)
        flat = flat and is_flat
        verdict = "flat" if is_flat else "GROWS"
        print(f"{name:>11} {unit:>2} {mean:>8.1f} {slope * 3600:>+10.1f} {growth:>+8.1f}  {verdict}")
    return flat


def simulate(folder: Path, devices: int, endpoint: Connection) -> None:
    """Serve a simulated platform until this process is terminated; send its endpoint."""

    async def serve() -> None:
        world = World(devices)
        world.write_fleet(folder / "fleet.csv")
        kinds = {kind: FAULTS / (len(KINDS) - 1) for kind in KINDS if kind != "throttle"}
        async with Simulator(world, faults=Faults(**kinds, silence_seconds=SILENCE_SECONDS)) as platform:
            endpoint.send(platform.endpoint)
            await anyio.sleep_forever()

    anyio.run(serve)


def main(minutes: float) -> int:
    seconds = minutes * 60 / AUDITS
    receiving, sending = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="auditor-soak-") as temporary:
        folder = Path(temporary)
        process = multiprocessing.get_context("spawn").Process(
            target=simulate, args=(folder, int(RATE * seconds) + 1, sending), daemon=True
        )
        process.start()
        try:
            secret = folder / "secret"
            secret.write_text(DEFAULT_ACCOUNT.secret.reveal())
            account = {
                "name": "soak",
                "endpoint": receiving.recv(),
                "access_key_id": DEFAULT_ACCOUNT.access_key_id,
                "access_key_secret": {"file": str(secret)},
                "calls_per_second": RATE,
                "fleet": {"file": str(folder / "fleet.csv")},
            }
            settings = {"directory": str(folder / "runs"), "since": "none", "account": [account]}
            samples = anyio.run(audit_repeatedly, auditor.parse_settings(settings), seconds)
        finally:
            process.terminate()
            process.join()
    return 0 if print_slopes(samples) else 1


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if sys.argv[1:] else 15.0))
