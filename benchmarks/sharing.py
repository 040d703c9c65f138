"""Two audits in two processes on one account: what they use together, how they part it, and what one leaves behind.

python benchmarks/sharing.py [--redis] [PER_SECOND …]

With --redis they share through a redis-server that is started for it, as two machines would, else as one machine does.
They run side by side for 70 s; then one is killed, and the other goes on for 20 s. Latency is 20 to 300 ms behind the
simulated platform's count, jitter up to 10 ms before it.
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
    """Requests that the audit in a directory of runs has sent, as its manifest says."""
    manifests = list(folder.glob("runs/*/run.json"))
    return int(json.loads(manifests[0].read_text())["requests"]["sent"]) if manifests else 0


async def measure(quota: float, window: WindowKind, folder: Path, budget: str) -> None:
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
            settings = SETTINGS.format(endpoint=platform.endpoint, key=account.access_key_id, told=quota)
            (each / "settings.toml").write_text(f"budget = {budget}\n{settings}")
            command = [sys.executable, "-m", "auditor", "run", str(each / "settings.toml"), "--out", str(each / "runs")]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        while platform.counts.received == 0:
            await anyio.sleep(0.01)
        began, parts = time.monotonic(), [0, 0]
        while (now := time.monotonic() - began) < case.seconds:
            throttled = platform.counts.throttled
            case.samples.append((now, platform.counts.received - throttled, throttled))
            if now >= TOGETHER and processes[0].poll() is None:
                parts = [sent_by(each) for each in folders]
                processes[0].kill()
            await anyio.sleep(SAMPLE)
        for process in processes:
            process.kill()
            process.wait()
    used, refused = case.within(10, TOGETHER)
    least = min(parts) / max(1, sum(parts))
    back = case.until(TOGETHER, 0.95, 1.1)
    print(f"{quota:>8g} {window:>8} {used:>7.1%} {refused:>8.2%} {least:>14.1%} {back:>14.1f} s", flush=True)


@contextmanager
def redis_server() -> Iterator[str]:
    """The settings of a budget in a redis-server of its own."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        time.sleep(0.5)
        yield f'{{ redis = "redis://127.0.0.1:{port}/0" }}'
        process.kill()


async def main(quotas: list[float], budget: str) -> None:
    print(f"{'quota/s':>8} {'window':>8} {'used':>7} {'refused':>8} {'smaller part':>14} {'all after kill':>16}")
    for quota in quotas:
        for window in WINDOWS:
            with tempfile.TemporaryDirectory(prefix="auditor-sharing-") as temporary:
                await measure(quota, window, Path(temporary), budget)


if __name__ == "__main__":
    given = [float(each) for each in sys.argv[1:] if each != "--redis"] or [10.0, 50.0]
    with redis_server() if "--redis" in sys.argv else nullcontext('"machine"') as place:
        anyio.run(main, given, place, backend_options={"use_uvloop": True})
