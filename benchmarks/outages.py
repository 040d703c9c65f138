"""Cost of an outage: the platform fails for minutes in the middle of an audit with default settings.

python benchmarks/outages.py [SECONDS [KIND …]]
"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import anyio

import auditor
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World

QUOTA = 50.0
BEFORE = 10.0
"""Seconds of the audit before the outage, and about as many after it."""


async def main(seconds: float, kinds: list[str]) -> None:
    print(f"an outage of {seconds:g} s in an audit of 25 s at {QUOTA:g}/s, with default settings")
    print(
        f"{'outage':>12} {'state':>9} {'failed':>7} {'sent in it':>12} {'back after':>11} "
        f"{'busiest second after':>21} {'throttled':>9}"
    )
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="auditor-outages-") as temporary:
            await measure(kind, seconds, Path(temporary))


async def measure(kind: str, seconds: float, folder: Path) -> None:
    world = World(int(QUOTA * 25), large=0)
    world.write_fleet(folder / "fleet.csv")
    (folder / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, QUOTA)
    ends: list[float] = []
    async with Simulator(world, accounts=[account], latency=(0.02, 0.08), record_arrivals=True) as platform:
        own = {
            "name": "measured",
            "endpoint": platform.endpoint,
            "access_key_id": account.access_key_id,
            "access_key_secret": {"file": "secret"},
            "calls_per_second": QUOTA,
            "fleet": {"file": "fleet.csv"},
        }
        settings = auditor.parse_settings({"account": [own]}, folder=folder)

        async def simulate_outage() -> None:
            await anyio.sleep(BEFORE)
            platform.outage = kind  # type: ignore[assignment]  # an unknown one is a KeyError
            ends.append(time.monotonic())
            await anyio.sleep(seconds)
            platform.outage = None
            ends.append(time.monotonic())

        async with anyio.create_task_group() as group:
            group.start_soon(simulate_outage)
            result = await auditor.run_audit(settings)
            group.cancel_scope.cancel()
        started, ended = ends
        arrivals = platform.arrivals or []
        within = sum(started <= at < ended for at in arrivals)
        after = [at for at in arrivals if at >= ended]
        busiest = max(Counter(int(at - ended) for at in after).values())
        back = next((a for a, b in zip(after, after[5:], strict=False) if b - a < 1.0), after[0]) - ended
    print(
        f"{kind:>12} {result.manifest.state:>9} {result.manifest.devices.failed:>7} {within:>12,} {back:>9.1f} s "
        f"{busiest:>21} {result.manifest.requests.throttled:>9}",
        flush=True,
    )


if __name__ == "__main__":
    anyio.run(
        main,
        float(sys.argv[1]) if len(sys.argv) > 1 else 120.0,
        sys.argv[2:] or ["unavailable", "silence", "reset"],
        backend_options={"use_uvloop": True},
    )
