"""Workers of one run that are killed, suspended and started twice, while their storage goes away: always the same run."""

import os
import random
import shutil
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import anyio
import orjson
import pytest

import auditor
from auditor.cluster.attempt_log import list_attempts
from auditor.cluster.attempts import owner
from auditor.cluster.cut import cut_run
from auditor.cluster.plan import ShardPlan
from auditor.cluster.progress import fetch_run
from auditor.cluster.storage import open_run
from auditor.simulator.world import World
from tests import forked
from tests.chaos.counting import PlatformThread, run_platform
from tests.chaos.figures import SEED, print_figures
from tests.cluster.shards import account_table, assert_same_run

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("AUDITOR_ROUNDS", "3"))
"""Runs of shards; ``make chaos`` has 200."""

DEVICES = 160
CHECKPOINT = 0.2
MAX_EVENTS, MAX_STARTS = 8, 60
MAX_ROUND_SECONDS = 240

EVENTS = ("kill", "kill", "suspend", "suspend", "twice", "away")


class Scheduler:
    """Starts each index until it has ended with 0, as an array job does, and never again after 75."""

    def __init__(self, folder: Path, run: Path, settings: Path, plan: ShardPlan, rng: random.Random) -> None:
        self._folder, self._run, self._settings, self._rng = folder, run, settings, rng
        self._output = (folder / "output.txt").open("ab")
        self._indices = range(len(plan.shards))
        self._processes: dict[int, list[forked.ForkedCommand]] = {index: [] for index in self._indices}
        self._suspended: list[tuple[forked.ForkedCommand, float]] = []
        self.done: set[int] = set()
        self.codes: Counter[int] = Counter()
        self.events: Counter[str] = Counter()
        self.starts = 0

    def start(self, index: int) -> None:
        self.starts += 1
        assert self.starts <= MAX_STARTS, f"no end: {self.codes}"
        words = ("shard", self._run, "--settings", self._settings)
        env = {**os.environ, "SLURM_ARRAY_TASK_ID": str(index), "TMPDIR": str(self._folder)}
        streams = [0, self._output.fileno(), self._output.fileno()]
        self._processes[index].append(forked.start(*words, cwd=self._folder, streams=streams, env=env))

    def poll(self) -> bool:
        """Note which processes have ended, and start indices without one; return whether all are done."""
        for index, processes in self._processes.items():
            for process in [each for each in processes if each.poll() is not None]:
                processes.remove(process)
                self._end(index, process)
            if index not in self.done and all(self._is_suspended(each) for each in processes):
                self.start(index)
        for process, until in list(self._suspended):
            if time.monotonic() >= until:
                self._continue(process)
        return len(self.done) == len(self._indices)

    def _end(self, index: int, process: forked.ForkedCommand) -> None:
        code = process.returncode or 0
        self.codes[code] += 1
        assert code in {0, 3, 75, -signal.SIGKILL}, (code, (self._folder / "output.txt").read_text()[-3000:])
        if code == 0:
            self.done.add(index)
        assert code != 3 or self.events["away"], "only a storage that is away ends a shard so"

    def _is_suspended(self, process: forked.ForkedCommand) -> bool:
        return any(each is process for each, _ in self._suspended)

    def _continue(self, process: forked.ForkedCommand) -> None:
        self._suspended = [(each, until) for each, until in self._suspended if each is not process]
        process.send_signal(signal.SIGCONT)

    def disturb(self) -> None:
        event = self._rng.choice(EVENTS)
        running = [
            (index, each) for index, many in self._processes.items() for each in many if not self._is_suspended(each)
        ]
        if not running:
            return
        index, process = self._rng.choice(running)
        self.events[event] += 1
        match event:
            case "kill":
                process.send_signal(signal.SIGKILL)
            case "suspend":
                process.send_signal(signal.SIGSTOP)
                self._suspended.append((process, time.monotonic() + self._rng.uniform(0.1, 3)))
            case "twice":
                self.start(index)
            case _:
                self._run.rename(self._run.with_name("away"))
                time.sleep(self._rng.uniform(0.05, 0.6))
                self._run.with_name("away").rename(self._run)

    def finish(self) -> None:
        """Continue what is suspended; it must end by itself: with 75, or with 0 if its shard was done."""
        for process, _ in list(self._suspended):
            self._continue(process)
        for index, processes in self._processes.items():
            for process in processes:
                process.wait(MAX_ROUND_SECONDS)
                self._end(index, process)
        self._output.close()

    def kill_all(self) -> None:
        for process in [each for many in self._processes.values() for each in many]:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)


def write_settings(folder: Path, platform: PlatformThread) -> Path:
    filed = account_table(platform.endpoint, folder, lanes=2)
    listed = account_table(platform.endpoint, folder, "us", fleet={"products": "all"})
    lines = [f"concurrency = 6\ndirectory = '{folder / 'audits'}'\n[cluster]\nstorage = '{folder}'"]
    lines.append(f"checkpoint = {CHECKPOINT}")
    for account in (filed, listed):
        lines.append("[[account]]")
        lines += [f"{key} = {_toml(value)}" for key, value in account.items()]
    path = folder / "nightly.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return orjson.dumps(value).decode()


def run_round(folder: Path, settings_file: Path, rng: random.Random) -> tuple[Scheduler, Path]:
    """Cut a run, and finish it despite everything; return its sealed folder."""
    run = folder / "run"
    storage = open_run(str(run), create=True)
    _, plan = cut_run(auditor.load_settings(settings_file), lambda _: storage)
    scheduler = Scheduler(folder, run, settings_file, plan, rng)
    began, disturbed_at = time.monotonic(), time.monotonic() + 0.5
    try:
        while not scheduler.poll():
            now = time.monotonic()
            assert now - began < MAX_ROUND_SECONDS, f"no end: {scheduler.codes}, {scheduler.events}"
            if now >= disturbed_at and scheduler.events.total() < MAX_EVENTS:
                scheduler.disturb()
                disturbed_at = now + rng.uniform(0.05, 0.8)
            time.sleep(0.02)
        scheduler.finish()
    finally:
        scheduler.kill_all()
    for shard in plan.shards:
        attempts = list_attempts(storage, shard.folder)
        assert owner(attempts) == max(attempts)
        assert any(each.is_done for each in attempts.values())
    return scheduler, fetch_run(storage, folder / "fetched")


@pytest.mark.live
def test_disturbed_shards_give_the_run_of_one_machine(tmp_path: Path) -> None:
    began = time.monotonic()
    events, codes, responses, devices = Counter[str](), Counter[int](), 0, 0
    for number in range(ROUNDS):
        rng = random.Random(SEED * 1_000 + number)
        folder = tmp_path / str(number)
        folder.mkdir()
        world = World(DEVICES, seed=rng.getrandbits(32))
        world.write_fleet(folder / "fleet.csv")
        with run_platform(world, rng.getrandbits(32)) as platform:
            settings_file = write_settings(folder, platform)
            alone = anyio.run(auditor.run_audit, auditor.load_settings(settings_file)).folder
            before = platform.response_counts().total()
            scheduler, fetched = run_round(folder, settings_file, rng)
            responses += platform.response_counts().total() - before
        assert_same_run(fetched, alone)
        devices += auditor.Run(alone).manifest.fleet.devices
        events += scheduler.events
        codes += scheduler.codes
        shutil.rmtree(folder)
    text = f"{ROUNDS} runs: {dict(events)}; exit codes {dict(codes)}; {responses / devices:.2f} responses a device"
    print_figures(text, began)
    assert codes[0] >= 3 * ROUNDS
