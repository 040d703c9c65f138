"""Reading in bulk at full size: calls, completeness, the measured error, kills, and what detects changes best.

python benchmarks/bulk.py [million] [ties] [intervals] [kills] [detection]

- million: 1,000,000 devices of 40 products by the search index, compared with what each device runs.
- ties: devices that were created at one time.
- intervals: 100 audits with an index that is an hour behind devices of which 2% change in an hour; how often the
  interval of the reported error contains the true one.
- kills: audits that are killed at 50 random moments, and resumed.
- detection: calls and outdated results of incremental runs, by connection states and by the details of devices.

Each platform is simulated in a process of its own. Exits with 1 if a figure is not as required.
"""

import asyncio
import csv
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import duckdb

import auditor
from auditor.simulator import DEFAULT_ACCOUNT, Simulator, World
from auditor.simulator.lifecycle import Lifecycle
from auditor.simulator.registry import Churn, Registry
from auditor.simulator.search.options import IndexOptions

ROWS = "QueryDeviceBySQL"
HOUR = 3_600.0

TIES = 100_000
"""Devices created at one time."""


@dataclass
class Platform:
    """A simulated platform in another process."""

    endpoint: str
    pipe: Connection

    def calls(self) -> dict[str, int]:
        """Return the requests so far, by operation."""
        self.pipe.send("calls")
        counts: dict[str, int] = self.pipe.recv()
        return counts


async def _serve(world: dict[str, Any], options: dict[str, Any], pipe: Connection) -> None:
    async with Simulator(World(**world), record_arrivals=True, **options) as simulator:
        pipe.send(simulator.endpoint)
        while True:
            if not pipe.poll():
                await asyncio.sleep(0.02)
            elif pipe.recv() == "stop":
                return
            else:
                pipe.send({name: len(times) for name, times in simulator.arrivals_by_operation.items()})


def serve(world: dict[str, Any], options: dict[str, Any], pipe: Connection) -> None:
    """Run a platform until it is to stop."""
    asyncio.run(_serve(world, options, pipe))


@contextmanager
def platform(world: dict[str, Any], **options: object) -> Iterator[Platform]:
    """Start a platform."""
    own, other = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(world, options, other))
    process.start()
    try:
        yield Platform(own.recv(), own)
        own.send("stop")
        process.join(30)
    finally:
        process.kill()


def write_settings(folder: Path, endpoint: str, **changes: object) -> Path:
    """Write the settings of an audit by the index; return their file."""
    (folder / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
    keys = {"name": "bulk", "directory": f"{folder}/audits", "quota_sharing": "none", **changes}
    lines = [f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in keys.items()]
    lines += ["[[account]]", 'name = "eu"', f'endpoint = "{endpoint}"', 'calls_per_second = "unlimited"']
    lines += [f'access_key_id = "{DEFAULT_ACCOUNT.access_key_id}"', 'access_key_secret = { file = "secret" }']
    lines += ['fleet = { products = "all" }', 'read = "index"']
    path = folder / "settings.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def command(*arguments: object) -> list[str]:
    """Return an auditor command."""
    return [sys.executable, "-m", "auditor", *map(str, arguments)]


def write_truth(devices: Iterable[Any], path: Path) -> None:
    """Write what each device runs, a row for each module, or one without."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("product_key", "device_name", "module_name", "module_version"))
        for device in devices:
            if device.exists:
                modules = device.modules if device.activated else ()
                for module in modules or (None,):
                    name, version = ("", "") if module is None else (module.module_name, module.module_version)
                    writer.writerow((device.product_key, device.device_name, name, version))


def differences(folder: Path, truth: Path) -> int:
    """Return the number of rows that a run and the truth do not have in common, each counted as often as it occurs."""
    rows = (
        f"SELECT d.product_key, d.device_name, coalesce(module_name, '') AS module_name, "
        f"coalesce(module_version, '') AS module_version FROM '{folder}/devices.parquet' d "
        f"LEFT JOIN '{folder}/modules.parquet' m ON d.product_key = m.product_key AND d.device_name = m.device_name"
    )
    expected = f"SELECT * FROM read_csv('{truth}', all_varchar=true, nullstr='\\N')"
    counted = "SELECT *, count(*) AS times FROM ({}) GROUP BY ALL"
    one, other = counted.format(rows), counted.format(expected)
    query = f"SELECT count(*) FROM (({one} EXCEPT {other}) UNION ALL ({other} EXCEPT {one}))"
    ((found,),) = duckdb.connect().execute(query).fetchall()
    return int(found)


def read_whole(name: str, devices: int, products: int, max_calls: int | None, **world: object) -> bool:
    """Read a fleet by the index once, and print calls, time and differences."""
    options: dict[str, Any] = {"devices": devices, "products": products, "missing": 0.0, **world}
    with tempfile.TemporaryDirectory() as temporary, platform(options, index=IndexOptions()) as served:
        folder = Path(temporary)
        path = write_settings(folder, served.endpoint, recheck="0%")
        started = time.monotonic()
        code = subprocess.run(command("run", path), capture_output=True, check=False).returncode
        seconds, calls = time.monotonic() - started, served.calls()
        run = auditor.find_run(folder / "audits")
        write_truth(World(**options), folder / "truth.csv")
        wrong, problems = differences(run, folder / "truth.csv"), auditor.verify_run(run)
    reading = calls[ROWS] + calls["QueryProductList"]
    print(
        f"{name}: {devices:,} devices of {products} products: {reading:,} calls"
        f"{'' if max_calls is None else f' (at most {max_calls:,})'}, {seconds:,.0f} s, exit {code}, "
        f"{wrong} rows differ from the devices, {len(problems)} problems found by verify",
        flush=True,
    )
    return not (code or wrong or problems or (max_calls is not None and reading > max_calls))


async def measure_error(seed: int, folder: Path) -> bool:
    """Audit a small fleet with an index that is behind; return whether the interval contains the true error."""
    world = World(800, seed=seed, products=2, missing=0, silent=0, inactive=0, large=0)
    churn = Churn(changes_per_hour=0.02, seed=seed)
    async with Simulator(world, index=IndexOptions(lag=HOUR), churn=churn) as simulator:
        path = write_settings(folder, simulator.endpoint, recheck="15%", seed=seed, name=f"s{seed}")
        result = await auditor.run_audit(auditor.load_settings(path))
    registry = Registry(world, churn)
    registry.advance(0.0)
    true = sum(registry.modules(each, HOUR) != registry.modules(each) for each in world) / 800
    recheck = result.manifest.selection.recheck if result.manifest.selection is not None else None
    if recheck is None or recheck.low is None or recheck.high is None:
        return False
    return recheck.low <= true <= recheck.high


def intervals(audits: int = 100, required: int = 93) -> bool:
    """Print how often the interval of the reported error contains the true one."""
    with tempfile.TemporaryDirectory() as temporary:
        found = sum(asyncio.run(measure_error(seed, Path(temporary))) for seed in range(audits))
    print(f"intervals: {found} of {audits} contain the true error (at least {required})", flush=True)
    return found >= required


def kills(number: int = 50) -> bool:
    """Kill audits at random moments, and resume them; print what was lost or read twice."""
    rng, done, audits, wrong = random.Random(8), 0, 0, 0
    options: dict[str, Any] = {"devices": 2_000, "products": 3, "inactive": 0.02}
    with platform(options, index=IndexOptions(), latency=(0.02, 0.06)) as served:
        while done < number:
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                path = write_settings(folder, served.endpoint, recheck="5%", concurrency=4)
                write_truth(World(**options), folder / "truth.csv")
                arguments: tuple[object, ...] = ("run", path)
                of_audit = 0
                while True:
                    process = subprocess.Popen(
                        command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                    )
                    target = sum(served.calls().values()) + rng.randrange(1, 80)
                    while process.poll() is None and of_audit < 8 and done < number:
                        if sum(served.calls().values()) >= target:
                            time.sleep(rng.random() * 0.2)
                            process.kill()
                            done, of_audit = done + 1, of_audit + 1
                            break
                        time.sleep(0.01)
                    if process.wait() == 0:
                        break
                    started = any((folder / "audits").glob("*-bulk")) if (folder / "audits").exists() else False
                    arguments = ("resume", folder / "audits") if started else ("run", path)
                run = auditor.find_run(folder / "audits")
                wrong += differences(run, folder / "truth.csv") + len(auditor.verify_run(run))
                audits += 1
    print(f"kills: {done} in {audits} audits, {wrong} rows lost, twice or wrong", flush=True)
    return wrong == 0


def detection(devices: int = 20_000) -> bool:
    """Print what an incremental run costs and misses, if states or details show what may have changed.

    States: 50 devices a call, 50 calls a second. Details: 100 devices a call, 5 calls a second. Then the selected
    devices, at 10 a second.
    """
    for name, life in (
        ("1% connect in a day", Lifecycle(connecting=0.01, always_online=0.0)),
        ("10% connect in a day", Lifecycle(connecting=0.1, always_online=0.0)),
        ("10% connect, 30% are always online", Lifecycle(connecting=0.1, always_online=0.3)),
        ("all are always online", Lifecycle(connecting=0.0, always_online=1.0)),
    ):
        pairs = [World(devices, missing=0, silent=0, inactive=0, lifecycle=life, day=day) for day in (10, 11)]
        connected = of_default = changed = missed = 0
        for old, new in zip(*pairs, strict=True):
            versions = [{each.module_name: each.module_version for each in device.modules} for device in (old, new)]
            is_default = versions[0].get("default") != versions[1].get("default")
            connected += new.status == "ONLINE" or new.connected_day == pairs[1].day
            changed += versions[0] != versions[1]
            of_default += is_default
            missed += versions[0] != versions[1] and not is_default
        states, details = (devices // 50, connected), (devices // 100, of_default)
        seconds = states[0] / 50 + states[1] / 10, details[0] / 5 + details[1] / 10
        print(
            f"detection, {name}: {changed:,} of {devices:,} devices changed. States: {sum(states):,} calls, "
            f"{seconds[0]:,.0f} s. Details: {sum(details):,} calls, {seconds[1]:,.0f} s, and {missed:,} results "
            f"outdated, {missed / max(1, changed):.0%} of the changes",
            flush=True,
        )
    return True


PARTS: dict[str, Callable[[], bool]] = {
    "million": lambda: read_whole("million", 1_000_000, 40, 20_500),
    "ties": lambda: read_whole("ties", TIES, 1, None, registration_interval=0),
    "intervals": intervals,
    "kills": kills,
    "detection": detection,
}


def main() -> None:
    """Run the parts that are named, or all."""
    selected = sys.argv[1:] or list(PARTS)
    sys.exit(0 if not [name for name in selected if not PARTS[name]()] else 1)


if __name__ == "__main__":
    main()
