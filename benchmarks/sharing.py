"""Two audits in two processes on one account: what they use together, how they share it, and after one is killed.

python benchmarks/sharing.py [--redis] [PER_SECOND …]

With --redis they share through a redis-server, as two machines would, else as on one machine. They run concurrently
for 70 s; then one is killed, and the other continues for 20 s. Latency is 20 to 300 ms after the simulated platform
counts a request, jitter up to 10 ms before it.
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import anyio
from contention import JITTER, LATENCY, SAMPLE, SETTINGS, WINDOWS, Case

from auditor.simulator.quotas import SimulatedAccount, WindowKind
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World

TOGETHER, ALONE = 70.0, 20.0


def sent_by(folder: Path) -> int:
    """Return the requests that the audit in a directory of runs has sent, by its manifest."""
    manifests = list(folder.glob("runs/*/run.json"))
    return int(json.loads(manifests[0].read_text())["requests"]["sent"]) if manifests else 0


async def measure(quota: float, window: WindowKind, folder: Path, quota_sharing: str) -> None:
    folders = [folder / name for name in ("first", "second")]
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, quota)
    world = World(int(quota * (TOGETHER + ALONE) * 1.2), large=0)
    case = Case(window, quota, quota, TOGETHER + ALONE)
    async with Simulator(world, accounts=[account], window=window, latency=LATENCY, jitter=JITTER) as platform:
        processes = []
        for each in folders:
            each.mkdir()
            world.write_fleet(each / "fleet.csv")
            (each / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
            settings = SETTINGS.format(endpoint=platform.endpoint, key=account.access_key_id, configured=quota)
            (each / "settings.toml").write_text(f"quota_sharing = {quota_sharing}\n{settings}")
            command = [sys.executable, "-m", "auditor", "run", str(each / "settings.toml"), "--out", str(each / "runs")]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        while platform.counts.received == 0:
            await anyio.sleep(0.01)
        started, sent = time.monotonic(), [0, 0]
        while (now := time.monotonic() - started) < case.seconds:
            throttled = platform.counts.throttled
            case.samples.append((now, platform.counts.received - throttled, throttled))
            if now >= TOGETHER and processes[0].poll() is None:
                sent = [sent_by(each) for each in folders]
                processes[0].kill()
            await anyio.sleep(SAMPLE)
        for process in processes:
            process.kill()
            process.wait()
    used, fraction = case.within(10, TOGETHER)
    smaller = min(sent) / max(1, sum(sent))
    back = case.until(TOGETHER, 0.95, 1.1)
    print(f"{quota:>8g} {window:>8} {used:>7.1%} {fraction:>9.2%} {smaller:>14.1%} {back:>14.1f} s", flush=True)


@contextmanager
def redis_server() -> Iterator[str]:
    """Start a redis-server; yield the setting for a quota in it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        time.sleep(0.5)
        yield f'{{ redis = "redis://127.0.0.1:{port}/0" }}'
        process.kill()


async def main(quotas: list[float], quota_sharing: str) -> None:
    print(f"{'quota/s':>8} {'window':>8} {'used':>7} {'throttled':>9} {'smaller share':>14} {'all after kill':>16}")
    for quota in quotas:
        for window in WINDOWS:
            with tempfile.TemporaryDirectory(prefix="auditor-sharing-") as temporary:
                await measure(quota, window, Path(temporary), quota_sharing)


if __name__ == "__main__":
    given = [float(each) for each in sys.argv[1:] if each != "--redis"] or [10.0, 50.0]
    with redis_server() if "--redis" in sys.argv else nullcontext('"machine"') as quota_sharing:
        anyio.run(main, given, quota_sharing, backend_options={"use_uvloop": True})
