"""An audit on several machines beside one on one machine: speed, quota, a suspended worker, and a thousand shards.

python benchmarks/cluster.py [speed] [lanes] [zombie] [shards]

speed: server and worker each have their own core. Two workers run one after the other, each alone on its core, so
that neither the server nor a worker takes time from another: two machines with a core each would take the time of the
slower one, which also seals. lanes: one and three workers on an account of 400/s. zombie: a worker is suspended, or
loses its storage, and continues beside its successor on another machine. shards: 1,000 shards of ten accounts, without
the queries.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import anyio
from contention import JITTER, LATENCY, SAMPLE, Case
from speed import CLIENT_CORE, server, write_fleet

import auditor
from auditor.cluster.attempt_log import AttemptLog
from auditor.cluster.cut import cut_run
from auditor.cluster.merge import record_done, seal_if_done
from auditor.cluster.plan import FLEET_OBJECT, Shard, ShardPlan
from auditor.cluster.progress import fetch_run, read_progress
from auditor.cluster.records import compress_lines, encode_record
from auditor.cluster.storage import open_run
from auditor.models import Device, DeviceResult, ModuleVersion
from auditor.runs.journal import encode_outcome
from auditor.runs.manifest import DeviceCounts, FleetInfo, Manifest
from auditor.simulator.quotas import SimulatedAccount, WindowKind
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from auditor.storage.database import borrow_database, parquet
from auditor.storage.object_store import ObjectStore

PROGRAM = [sys.executable, "-m", "auditor"]

ROUNDS, DEVICES = 2, 300_000

LANES, QUOTA, SECONDS = (1, 3), 400.0, 50.0

ZOMBIE_QUOTA, ZOMBIE_CHECKPOINT = 100.0, 5.0

SHARDS, SHARD_ACCOUNTS, SHARD_DEVICES = 1_000, 10, 200_000


@dataclass(frozen=True, slots=True)
class Times:
    """Wall and processor seconds of a process."""

    wall: float
    cpu: float


def write_settings(folder: Path, endpoint: str, *, rate: object, lanes: int, accounts: int = 1) -> Path:
    (folder / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
    (folder / "shared").mkdir(exist_ok=True)
    tables = [
        f'[[account]]\nname = "account{number}"\nendpoint = "{endpoint}"\n'
        f'access_key_id = "{DEFAULT_ACCOUNT.access_key_id}"\naccess_key_secret = {{ file = "secret" }}\n'
        f'calls_per_second = {rate}\nlanes = {lanes}\nfleet = {{ file = "fleet{number or ""}.csv" }}\n'
        for number in range(accounts)
    ]
    path = folder / f"lanes-{lanes}.toml"
    cluster = f'[cluster]\nstorage = "{folder / "shared"}"\ncheckpoint = {ZOMBIE_CHECKPOINT}\n'
    path.write_text(
        f'directory = "{folder / "audits"}"\nconcurrency = 200\nquota_sharing = "none"\n{cluster}{"".join(tables)}'
    )
    return path


def cut(settings: Path) -> str:
    command = [*PROGRAM, "cut", str(settings)]
    return subprocess.run(command, check=True, text=True, stdout=-1, stderr=-3).stdout.strip()


def run_pinned(*words: object) -> Times:
    """Run a command alone on the worker's core."""
    started = time.perf_counter()
    process = subprocess.Popen([*PROGRAM, *map(str, words)], stdout=-3, stderr=-3)
    os.sched_setaffinity(process.pid, {CLIENT_CORE})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words} ended with {process.returncode}")
    return Times(time.perf_counter() - started, usage.ru_utime + usage.ru_stime)


def speed() -> None:
    rounds: list[dict[str, Times]] = []
    with tempfile.TemporaryDirectory(prefix="auditor-cluster-") as temporary, server() as port:
        for number in range(ROUNDS):
            folder = Path(temporary, str(number))
            folder.mkdir()
            write_fleet(folder, DEVICES)
            endpoint = f"http://127.0.0.1:{port}/"
            one, two = (write_settings(folder, endpoint, rate='"unlimited"', lanes=lanes) for lanes in (1, 2))
            found = {"auditor run": run_pinned("run", one)}
            address = cut(one)
            found["one worker, which also seals"] = run_pinned("shard", address, "--settings", one, "--index", 0)
            time.sleep(1)  # names of runs have seconds
            address = cut(two)
            for index, name in enumerate(("first of two workers", "second of two, which also seals")):
                found[name] = run_pinned("shard", address, "--settings", two, "--index", index)
            rounds.append(found)
    print(f"{DEVICES:,} devices without a quota, the fastest of {ROUNDS} rounds: wall seconds, processor seconds")
    fastest = min(rounds, key=lambda found: sum(each.wall for each in found.values()))
    for name, each in fastest.items():
        print(f"{name:>34} {each.wall:>7.2f} {each.cpu:>7.2f}")
    run, alone, first, second = fastest.values()
    slower = Times(max(first.wall, second.wall), max(first.cpu, second.cpu))
    for name, before, after in (("one worker to auditor run", run, alone), ("two workers to one", alone, slower)):
        print(
            f"speed of {name}: {before.wall / after.wall:.2f} by wall, {before.cpu / after.cpu:.2f} by processor time"
        )


def start_shard(address: str, settings: Path, index: int) -> subprocess.Popen[bytes]:
    words = [*PROGRAM, "shard", address, "--settings", str(settings), "--index", str(index)]
    return subprocess.Popen(words, stdout=-3, stderr=-3)


async def measure_lanes(lanes: int, window: WindowKind, folder: Path) -> None:
    world = World(int(QUOTA * SECONDS * 1.1), large=0)
    world.write_fleet(folder / "fleet.csv")
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, QUOTA)
    case = Case(window, QUOTA, QUOTA, SECONDS)
    async with Simulator(world, accounts=[account], window=window, latency=LATENCY, jitter=JITTER) as platform:
        settings = write_settings(folder, platform.endpoint, rate=QUOTA, lanes=lanes)
        address = await anyio.to_thread.run_sync(cut, settings)
        workers = [start_shard(address, settings, index) for index in range(lanes)]
        while platform.counts.received == 0:
            await anyio.sleep(0.01)
        started = time.monotonic()
        while (now := time.monotonic() - started) < SECONDS:
            throttled = platform.counts.throttled
            case.samples.append((now, platform.counts.received - throttled, throttled))
            await anyio.sleep(SAMPLE)
        for each in workers:
            each.kill()
            each.wait()
    used, _ = case.within(10, SECONDS)
    _, throttled_fraction = case.within(0, SECONDS)
    print(f"{lanes:>8} {window:>8} {used:>7.1%} {throttled_fraction:>9.2%}", flush=True)


def lanes() -> None:
    print(f"an account of {QUOTA:g}/s: used from second 10 to {SECONDS:g}, throttled from the first request on")
    print(f"{'workers':>8} {'window':>8} {'used':>7} {'throttled':>9}")
    for count in LANES:
        for window in get_args(WindowKind):
            with tempfile.TemporaryDirectory(prefix="auditor-cluster-") as temporary:
                anyio.run(measure_lanes, count, window, Path(temporary), backend_options={"use_uvloop": True})


async def measure_zombie(
    folder: Path, name: str, end: Callable[[int], object], resume: Callable[[int], object]
) -> None:
    """Measure the requests of a worker and its successor, after ``end`` and ``resume`` of the first one by its pid."""
    world = World(int(ZOMBIE_QUOTA * 60), large=0)
    world.write_fleet(folder / "fleet.csv")
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, ZOMBIE_QUOTA)
    async with Simulator(world, accounts=[account], latency=LATENCY, jitter=JITTER, record_arrivals=True) as platform:
        settings = write_settings(folder, platform.endpoint, rate=ZOMBIE_QUOTA, lanes=1)
        address = Path(await anyio.to_thread.run_sync(cut, settings))
        (folder / "mounted").symlink_to(address)
        first = start_shard(str(folder / "mounted"), settings, 0)
        await anyio.sleep(8)
        end(first.pid)
        second = start_shard(str(address), settings, 0)
        await anyio.sleep(10)
        resume(first.pid)
        resumed_at = time.monotonic()
        code = await anyio.to_thread.run_sync(first.wait)
        ended_after = time.monotonic() - resumed_at
        await anyio.sleep(2)
        second.kill()
        second.wait()
    arrivals = platform.arrivals or []
    by_second = Counter(int(each - arrivals[0]) for each in arrivals)
    together = [by_second[each] / ZOMBIE_QUOTA for each in range(max(by_second))]
    over = sum(each > 1.5 for each in together)
    print(
        f"{name}: at most {max(together):.2f} times the quota in a second, over 1.5 times in {over} seconds; "
        f"{platform.counts.throttled / platform.counts.received:.2%} throttled; the first worker ended with {code}, "
        f"{ended_after:.1f} s after it was back (a checkpoint is {ZOMBIE_CHECKPOINT:g} s)",
        flush=True,
    )


def zombie() -> None:
    with tempfile.TemporaryDirectory(prefix="auditor-cluster-") as temporary:
        anyio.run(measure_zombie, Path(temporary), "suspended", send(signal.SIGSTOP), send(signal.SIGCONT))
    with tempfile.TemporaryDirectory(prefix="auditor-cluster-") as temporary:
        mounted, away = Path(temporary, "mounted"), Path(temporary, "away")
        leave, come_back = rename(mounted, away), rename(away, mounted)
        anyio.run(measure_zombie, Path(temporary), "without its storage", leave, come_back)


def send(number: signal.Signals) -> Callable[[int], None]:
    return lambda pid: os.kill(pid, number)


def rename(path: Path, name: Path) -> Callable[[int], object]:
    return lambda _: path.rename(name)


@contextmanager
def printed(name: str) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    print(f"{name:>34} {time.perf_counter() - wall:>7.2f} {time.process_time() - cpu:>7.2f}", flush=True)


def finish_shard(storage: ObjectStore, plan: ShardPlan, shard: Shard, lines: bytes) -> None:
    """Store what a worker stores of a shard whose devices it has queried."""
    attempt = AttemptLog(storage, shard.folder)
    attempt.begin()
    attempt.append(compress_lines(lines))
    count = lines.count(b"\n")
    manifest = Manifest(
        auditor_version=plan.auditor_version, name=plan.name, state="complete", started_at=plan.started_at,
        accounts=tuple(each for each in plan.accounts if each.name == shard.account),
        fleet=FleetInfo("fleet.csv", count, 0, ""), finished_at=plan.started_at, devices=DeviceCounts(ok=count),
    )  # fmt: skip
    attempt.report(encode_record(manifest))
    attempt.finish(encode_record(manifest))
    record_done(storage, shard)


def query_lines(storage: ObjectStore, shard: Shard, work: Path) -> bytes:
    """Return the lines of a worker that has queried the devices of a shard: the work itself."""
    storage.get_file(f"{shard.folder}/{FLEET_OBJECT}", work / "fleet.parquet")
    with borrow_database() as database:
        rows = database.execute(f"SELECT product_key, device_name FROM {parquet(work / 'fleet.parquet')}").fetchall()
    now = time.time()
    results = (
        DeviceResult(
            device=Device(shard.account, product_key, device_name, None),
            status="ok",
            modules=(ModuleVersion("default", "1.4.2"), ModuleVersion("ble", "1.0.0")),
            total=2,
            pages=1,
            attempts=1,
            request_id="47f85a55-2ffb-40d4-9d0a-efd41fac7380",
            audited_at=now,
        )
        for product_key, device_name in rows
    )
    return b"".join(map(encode_outcome, results))


def shards() -> None:
    print(f"{SHARDS:,} shards of {SHARD_DEVICES:,} devices: wall seconds, processor seconds of this process")
    with tempfile.TemporaryDirectory(prefix="auditor-cluster-") as temporary:
        folder = Path(temporary)
        fleet = write_fleet(folder, SHARD_DEVICES // SHARD_ACCOUNTS)
        for number in range(1, SHARD_ACCOUNTS):
            (folder / f"fleet{number}.csv").symlink_to(fleet)
        lanes_each = SHARDS // SHARD_ACCOUNTS
        endpoint = "http://127.0.0.1:1/"
        path = write_settings(folder, endpoint, rate='"unlimited"', lanes=lanes_each, accounts=SHARD_ACCOUNTS)
        settings = auditor.load_settings(path)
        storage = open_run(str(folder / "shared" / "run"), create=True)
        with printed("cut"):
            _, plan = cut_run(settings, lambda _: storage)
        lines = {shard.name: query_lines(storage, shard, folder) for shard in plan.shards}
        with printed("begin, finish, record each shard"):
            for shard in plan.shards:
                finish_shard(storage, plan, shard, lines[shard.name])
        with printed("status"):
            assert {each.state for each in read_progress(storage, plan)} == {"done"}
        with printed("seal"):
            manifest = anyio.run(seal_if_done, storage, plan)
        assert manifest is not None
        assert manifest.devices.ok == SHARD_DEVICES
        with printed("fetch, verify"):
            assert auditor.verify_run(fetch_run(storage, folder / "fetched")) == []


if __name__ == "__main__":
    for part in (speed, lanes, zombie, shards):
        if part.__name__ in sys.argv[1:] or len(sys.argv) == 1:
            part()
