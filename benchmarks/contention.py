"""Rate control of audits over a socket: with jitter, with another client, and with a wrongly configured quota.

python benchmarks/contention.py [steady] [contended] [half]

The audits of a group run concurrently for about 60 s each. Latency is 20 to 300 ms after the simulated platform counts
a request, jitter up to 10 ms before it.
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from auditor.simulator.quotas import SimulatedAccount, WindowKind
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World

LATENCY, JITTER = (0.020, 0.300), (0.0, 0.010)
SAMPLE = 0.25
"""Seconds between two readings of the platform's counters."""

WINDOWS: tuple[WindowKind, ...] = ("fixed", "sliding")


@dataclass
class Case:
    """One audit; ``samples`` are seconds since its first request, accepted and throttled requests so far."""

    window: WindowKind
    quota: float
    configured: float
    seconds: float
    competitor: tuple[float, float, float] | None = None
    samples: list[tuple[float, int, int]] = field(default_factory=list)

    def within(self, begin: float, end: float) -> tuple[float, float]:
        """Return the fractions of the quota used, and of requests throttled, from ``begin`` to ``end``."""
        inside = [each for each in self.samples if begin <= each[0] <= end]
        (first, accepted, throttled), (last, accepted_then, throttled_then) = inside[0], inside[-1]
        accepted, throttled = accepted_then - accepted, throttled_then - throttled
        return accepted / (last - first) / self.quota, throttled / max(1, accepted + throttled)

    def until(self, begin: float, low: float, high: float) -> float:
        """Return the seconds from ``begin`` to the first 2 s with between ``low`` and ``high`` of the quota used."""
        moments = (at for at, _, _ in self.samples if begin <= at < self.seconds - 2.5)
        return next((at - begin for at in moments if low <= self.within(at, at + 2.1)[0] <= high), float("inf"))


SETTINGS = """
concurrency = 200
[[account]]
name = "measured"
endpoint = "{endpoint}"
access_key_id = "{key}"
access_key_secret = {{ file = "secret" }}
calls_per_second = {configured}
fleet = {{ file = "fleet.csv" }}
"""


async def measure(case: Case, folder: Path) -> None:
    world = World(int(max(case.quota, case.configured) * case.seconds * 1.2), large=0)
    world.write_fleet(folder / "fleet.csv")
    (folder / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, case.quota)
    async with Simulator(
        world, accounts=[account], window=case.window, latency=LATENCY, jitter=JITTER, competitor=case.competitor
    ) as platform:
        settings = folder / "settings.toml"
        settings.write_text(
            SETTINGS.format(endpoint=platform.endpoint, key=account.access_key_id, configured=case.configured)
        )
        command = [sys.executable, "-m", "auditor", "run", str(settings), "--out", str(folder / "runs")]
        async with await anyio.open_process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while platform.counts.received == 0:
                await anyio.sleep(0.01)
            started = time.monotonic()
            while (now := time.monotonic() - started) < case.seconds:
                throttled = platform.counts.throttled
                case.samples.append((now, platform.counts.received - throttled, throttled))
                await anyio.sleep(SAMPLE)
            process.kill()


async def measure_all(cases: list[Case]) -> None:
    with tempfile.TemporaryDirectory(prefix="auditor-contention-") as temporary:
        async with anyio.create_task_group() as group:
            for number, case in enumerate(cases):
                folder = Path(temporary, str(number))
                folder.mkdir()
                group.start_soon(measure, case, folder)


async def steady() -> None:
    print(f"steady, from second 10 on\n{'quota/s':>8} {'window':>8} {'used':>7} {'throttled':>9}")
    for quotas in ((10,), (50,), (200,)):  # more concurrent audits would measure the machine
        cases = [Case(window, quota, quota, 70) for quota in quotas for window in WINDOWS]
        await measure_all(cases)
        for case in cases:
            used, throttled = case.within(10, case.seconds)
            print(f"{case.quota:>8g} {case.window:>8} {used:>7.1%} {throttled:>9.2%}", flush=True)


async def contended() -> None:
    cases = [Case(window, 50, 50, 60, (20, 20, 40)) for window in WINDOWS]
    await measure_all(cases)
    print("another client takes 20/s of 50/s from second 20 to 40")
    print(f"{'window':>8} {'within 10% after':>17} {'of the rest used':>17} {'throttled':>9} {'above 95% after':>16}")
    for case in cases:
        rest, _ = case.within(25, 40)
        _, throttled = case.within(20, 40)
        near, back = case.until(20, 0.54, 0.66), case.until(40, 0.95, 1.1)
        print(f"{case.window:>8} {near:>15.1f} s {rest / 0.6:>17.1%} {throttled:>9.2%} {back:>14.1f} s", flush=True)


async def half() -> None:
    cases = [Case(window, quota, 2 * quota, 60) for quota in (5, 10, 25, 50) for window in WINDOWS]
    await measure_all(cases)
    print("a quota of half the configured rate, from second 10 on")
    print(f"{'config/s':>8} {'window':>8} {'used':>7} {'throttled':>9}")
    for case in cases:
        used, throttled = case.within(10, case.seconds)
        print(f"{case.configured:>8g} {case.window:>8} {used:>7.1%} {throttled:>9.2%}", flush=True)


async def main(names: list[str]) -> None:
    for name, group in (("steady", steady), ("contended", contended), ("half", half)):
        if name in names or not names:
            await group()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1:], backend_options={"use_uvloop": True})
