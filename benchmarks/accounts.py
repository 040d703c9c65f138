"""Five accounts in one audit, one of them failing: time of the others, compared with the time of each alone.

python benchmarks/accounts.py [SECONDS]

The simulated platform, in a separate process, has four accounts of 1, 5, 20 and 50 calls a second, each with devices
for so many seconds (40). The key of a fifth is rejected in one audit; in another its endpoint accepts connections and
never responds. The time of an account is from the start of the run to its last result.
"""

import asyncio
import gzip
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from harness import audit

from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World

QUOTAS = {"one": 1.0, "five": 5.0, "twenty": 20.0, "fifty": 50.0}
LATENCY = (0.020, 0.300)
FAILING = "failing"

ACCOUNT = """
[[account]]
name = "{name}"
endpoint = "{endpoint}"
access_key_id = "{name}"
access_key_secret = {{ file = "secret" }}
calls_per_second = {quota}
fleet = {{ file = "{name}.csv" }}
"""


async def serve(devices: int) -> None:
    """Run the platform, and an endpoint that never responds; print their addresses."""
    accounts = [SimulatedAccount(name, DEFAULT_ACCOUNT.secret, quota) for name, quota in QUOTAS.items()]
    silent = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    async with Simulator(World(devices, large=0), accounts=accounts, latency=LATENCY) as platform:
        print(platform.endpoint, f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}/", flush=True)
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        await ended.wait()


@contextmanager
def platform(devices: int) -> Iterator[tuple[str, str]]:
    """Start the platform; yield its endpoint, and the one that never responds."""
    process = subprocess.Popen([sys.executable, __file__, "serve", str(devices)], stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None:
            raise RuntimeError("no output to read the endpoints from")
        endpoint, silent = process.stdout.readline().split()
        yield endpoint, silent
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def measure(folder: Path, names: Sequence[str], endpoints: dict[str, str]) -> dict[str, float]:
    """Audit these accounts; return the seconds until the last result of each."""
    text = 'quota_sharing = "none"\n' + "".join(
        ACCOUNT.format(name=name, endpoint=endpoints[name], quota=QUOTAS.get(name, 10.0)) for name in names
    )
    (folder / "settings.toml").write_text(text)
    runs = folder / f"runs-{len(list(folder.glob('runs-*')))}"
    started = datetime.fromisoformat(audit(folder / "settings.toml", runs).manifest["started_at"])
    ends: dict[str, float] = {}
    for path in runs.glob("*/devices.jsonl*"):
        results = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for line in results.splitlines():
            result = json.loads(line)
            seconds = (datetime.fromisoformat(result["audited_at"]) - started).total_seconds()
            ends[result["account"]] = max(seconds, ends.get(result["account"], 0.0))
    return ends


def main(seconds: float) -> None:
    world = World(int(max(QUOTAS.values()) * seconds), large=0)
    with (
        tempfile.TemporaryDirectory(prefix="auditor-accounts-") as temporary,
        platform(len(world)) as (endpoint, silent),
    ):
        folder = Path(temporary)
        (folder / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
        for name, quota in {**QUOTAS, FAILING: 10.0}.items():
            world.write_fleet(folder / f"{name}.csv")
            rows = (folder / f"{name}.csv").read_text().splitlines(keepends=True)
            (folder / f"{name}.csv").write_text("".join(rows[: 1 + int(quota * seconds)]))
        endpoints = dict.fromkeys((*QUOTAS, FAILING), endpoint)
        # The failing one first, so that it would delay all others.
        rejected = measure(folder, (FAILING, *QUOTAS), endpoints)
        hanging = measure(folder, (FAILING, *QUOTAS), {**endpoints, FAILING: silent})
        alone = {name: measure(folder, (name,), endpoints)[name] for name in QUOTAS}
    print(f"{'account':>8} {'quota/s':>8} {'alone':>8} {'with a rejected key':>24} {'with a silent endpoint':>26}")
    for name, quota in QUOTAS.items():
        compared = "".join(
            f"{ends[name]:>{width}.1f} s {ends[name] / alone[name]:>7.1%}"
            for ends, width in ((rejected, 14), (hanging, 16))
        )
        print(f"{name:>8} {quota:>8g} {alone[name]:>6.1f} s{compared}")
    worst = max(ends[name] / alone[name] for ends in (rejected, hanging) for name in QUOTAS)
    print(f"at most {worst - 1:+.1%} by four other accounts, one of them failing")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve(int(sys.argv[2])))
    else:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else 40.0)
