"""Discovery while devices are registered and removed: missed devices, quota used, and peak memory by fleet size.

python benchmarks/discovery.py [DEVICES …]
"""

import asyncio
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import duckdb

from auditor.client.operations import LIST_OTA_MODULE_BY_PRODUCT, QUERY_DEVICE
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.registry import Churn
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World

PRODUCTS = 40
CHURN_PER_SECOND = 20.0
"""Devices a second that are registered, and as many that are removed."""

LATENCY = (0.02, 0.08)

CALLS_PER_SECOND = 400.0
"""Devices a second that are queried after discovery."""

TITLES = (
    "",
    "devices",
    "found",
    "added",
    "gone",
    "missed",
    "pages",
    "used",
    "modules",
    "429",
    "seconds",
    "MB",
    "exit",
)
WIDTHS = (6, 9, 9, 6, 6, 6, 6, 6, 8, 7, 7, 6, 4)

SETTINGS = """\
name = "discovery"
quota_sharing = "none"

[[account]]
name = "simulated"
endpoint = "{endpoint}"
access_key_id = "{key}"
access_key_secret = {{ file = "secret" }}
calls_per_second = {per_second}
fleet = {{ products = "all" }}
"""


async def run(*arguments: object) -> tuple[float, float, int]:
    """Run a command; return wall seconds, peak memory in MB, and exit code."""
    started = time.monotonic()
    command = [sys.executable, "-m", "auditor", *map(str, arguments)]
    pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=[(os.POSIX_SPAWN_CLOSE, 0)])
    _, status, usage = await asyncio.to_thread(os.wait4, pid, 0)
    return time.monotonic() - started, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)


def quota_used(arrivals: Sequence[float], quota: float) -> float:
    """Return the fraction of a quota used between the first request and the last."""
    return (len(arrivals) - 1) / (arrivals[-1] - arrivals[0]) / quota if len(arrivals) > 1 else 0.0


def row(*cells: object) -> None:
    print(" ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)), flush=True)


async def measure(devices: int, folder: Path, command: str) -> float:
    """Discover, or audit, so many devices; print the results, and return the peak memory in MB."""
    world = World(devices, products=PRODUCTS, large=0)
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, CALLS_PER_SECOND)
    churn = Churn(CHURN_PER_SECOND, CHURN_PER_SECOND, seed=1)
    async with Simulator(world, accounts=[account], churn=churn, latency=LATENCY, record_arrivals=True) as platform:
        (folder / "secret").write_text(account.secret.reveal())
        (folder / "secret").chmod(0o600)
        settings = folder / "settings.toml"
        settings.write_text(
            SETTINGS.format(endpoint=platform.endpoint, key=account.access_key_id, per_second=CALLS_PER_SECOND)
        )
        fleet = folder / "fleet.parquet"
        if command == "fleet":
            wall, peak, code = await run("fleet", settings, "-o", fleet)
        else:
            wall, peak, code = await run("run", settings, "--out", folder / "runs")
            (fleet,) = (folder / "runs").glob("*/fleet.parquet")
        with duckdb.connect() as database:
            query = "SELECT device_name FROM read_parquet(?)"
            names = {name for (name,) in database.execute(query, [str(fleet)]).fetchall()}
        removed = platform.registry_for().removed
        existing = (device for device in world if device.exists and device.index not in removed)
        missed = sum(device.device_name not in names for device in existing)
        pages, modules = (
            platform.arrivals_by_operation.get(each.name, []) for each in (QUERY_DEVICE, LIST_OTA_MODULE_BY_PRODUCT)
        )
        counts = (
            f"{devices:,}",
            f"{len(names):,}",
            platform.registry_for().registered,
            len(list(removed)),
            missed,
            len(pages),
        )
        usage = (f"{quota_used(pages, 50):.1%}", f"{quota_used(modules, 10):.1%}", platform.counts.throttled)
        row(command, *counts, *usage, f"{wall:.1f}", f"{peak:.0f}", code)
    return peak


async def main(sizes: list[int]) -> None:
    row(*TITLES)
    # One audit shows how the quota of the modules is used; the others are for discovery alone.
    for command, selected in (("run", sizes[:1]), ("fleet", sizes)):
        peaks = []
        for devices in selected:
            with tempfile.TemporaryDirectory(prefix="auditor-discovery-") as temporary:
                peaks.append(await measure(devices, Path(temporary), command))
        for small, large in itertools.pairwise(peaks):
            print(f"{command:>6} peak memory: {large / small:.2f} times that of the previous size")


if __name__ == "__main__":
    asyncio.run(main([int(each) for each in sys.argv[1:]] or [20_000, 200_000]))
