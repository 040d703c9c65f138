"""Temporary access keys of a minute during an audit of minutes, beside the same audit with a lasting key.

python benchmarks/credentials.py [MINUTES]

Both audits run concurrently, each against a simulated platform of its own at 50 calls a second. The keys come from a
CredentialsURI on loopback through the vendor's library. Exits with 1 if a device failed, or the audit with temporary
keys used 1% more or less of its quota.
"""

import asyncio
import json
import multiprocessing
import sys
import tempfile
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import harness

from auditor.simulator import DEFAULT_ACCOUNT, Simulator, World
from auditor.simulator.quotas import SimulatedAccount

sys.path.insert(0, str(Path(__file__).parents[1]))  # the service is that of the tests
from tests.credentials_service import credentials_service

RATE, KEY_SECONDS = 50, 60.0
"""Calls per second, and seconds for which a key is valid."""

MAX_DIFFERENCE = 0.01


async def serve(devices: int, pipe: Connection) -> None:
    """Run two platforms and a service that gives keys of the second, and send what they counted at the end."""
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, calls_per_second=RATE)
    world = World(devices, missing=0, large=0)
    async with AsyncExitStack() as stack:
        latency = (0.02, 0.08)
        platforms = [
            await stack.enter_async_context(
                Simulator(world, accounts=(account,), latency=latency, record_arrivals=True)
            )
            for _ in range(2)
        ]
        service = await stack.enter_async_context(credentials_service(platforms[1], seconds=KEY_SECONDS))
        pipe.send(([each.endpoint for each in platforms], service.uri))
        while not pipe.poll():
            await asyncio.sleep(0.1)
        counts = [(each.arrivals or [0.0], dict(each.counts.rejected_by_code)) for each in platforms]
        pipe.send((counts, len(service.issued)))


def write_settings(folder: Path, name: str, endpoint: str, keys: str) -> Path:
    """Write the settings of an audit; return their file."""
    text = f"""
name = "{name}"
quota_sharing = "none"
[[account]]
name = "{name}"
endpoint = "{endpoint}"
{keys}
calls_per_second = {RATE}
fleet = {{ file = "fleet.csv" }}
"""
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


async def measure(minutes: float) -> bool:
    """Print the figures of both audits; return whether they are as required."""
    devices = round(RATE * 60 * minutes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        World(devices, missing=0, large=0).write_fleet(folder / "fleet.csv")
        (folder / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(target=run_server, args=(devices, theirs))
        process.start()
        endpoints, uri = ours.recv()
        lasting = f'access_key_id = "{DEFAULT_ACCOUNT.access_key_id}"\naccess_key_secret = {{ file = "secret" }}'
        temporary_keys = f'credentials = {{ type = "credentials_uri", credentials_uri = "{uri}" }}'
        files = [
            write_settings(folder, name, endpoint, keys)
            for name, endpoint, keys in zip(("lasting", "temporary"), endpoints, (lasting, temporary_keys), strict=True)
        ]
        runs = await asyncio.gather(*(asyncio.to_thread(harness.audit, file, folder / file.stem) for file in files))
        ours.send(None)
        counts, issued = ours.recv()
        process.join()
    used, requests = [], []
    for file, run, (arrivals, rejected) in zip(files, runs, counts, strict=True):
        seconds = arrivals[-1] - arrivals[0]
        requests.append(len(arrivals))
        used.append(len(arrivals) / seconds / RATE)
        print(
            f"{file.stem:10} {len(arrivals):,} requests in {seconds:.1f} s, {used[-1]:.2%} of the quota; "
            f"devices {json.dumps(run.manifest['devices'])}; refused {json.dumps(rejected)}"
        )
    more = used[1] / used[0] - 1, requests[1] / requests[0] - 1
    print(f"{issued} keys of {KEY_SECONDS:g} s; quota used {more[0]:+.2%}, requests {more[1]:+.2%}")
    failed: int = sum(run.manifest["devices"]["failed"] + run.manifest["devices"]["pending"] for run in runs)
    return failed == 0 and max(map(abs, more)) < MAX_DIFFERENCE


def run_server(devices: int, pipe: Connection) -> None:
    """Run the platforms in a process of their own."""
    asyncio.run(serve(devices, pipe))


if __name__ == "__main__":
    sys.exit(not asyncio.run(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 5)))
