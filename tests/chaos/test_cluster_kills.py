"""Processes of one run that are killed, suspended and started twice, while their storage goes away: always the same run."""

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import anyio
import orjson
import pytest

import auditor
from auditor.cluster.attempt_log import list_attempts
from auditor.cluster.attempts import owner
from auditor.cluster.cut import cut_run
from auditor.cluster.progress import fetch_run
from auditor.cluster.storage import join_address, record_newest
from auditor.simulator.world import World
from tests.chaos.counting import PlatformThread, run_platform
from tests.chaos.figures import SEED, print_figures
from tests.chaos.shard_jobs import ArrayJob, BucketPlace, CutRun, DaskJob, DirectoryPlace, Job, Place
from tests.cluster.shards import account_table, assert_same_run
from tests.storage.s3 import S3, needs_s3, simulated_s3

ROUNDS = int(os.environ.get("AUDITOR_ROUNDS", "20"))
"""Runs of shards; ``make chaos`` has 200."""

ROUNDS_OF_A_WORLD = 10

DEVICES = 120
LATENCY = (0.02, 0.06)
"""Seconds of an answer: the queries of a shard take a second, in which the machine has little to do."""

MAX_ROUND_SECONDS = 120

needs_dask = pytest.mark.skipif(
    find_spec("distributed") is None, reason="NOT TESTED: Dask, because distributed is missing"
)

JOBS: dict[str, type[Job]] = {"array": ArrayJob, "dask": DaskJob}


@contextmanager
def place_of(s3: S3 | None, folder: Path) -> Iterator[Place]:
    yield DirectoryPlace(folder) if s3 is None else BucketPlace(s3, folder)


def write_settings(folder: Path, platform: PlatformThread, place: Place, checkpoint: float) -> Path:
    filed = account_table(platform.endpoint, folder, lanes=2)
    listed = account_table(platform.endpoint, folder, "us", fleet={"products": "all"})
    lines = [f"concurrency = 4\ndirectory = '{folder / 'audits'}'\n[cluster]\nstorage = '{place.address}'"]
    lines.append(f"checkpoint = {checkpoint}")
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


def run_round(folder: Path, engine: str, place: Place, settings: Path, rng: random.Random) -> tuple[Job, Path]:
    """Cut a run, and finish it despite everything; return its sealed folder."""
    loaded = auditor.load_settings(settings)
    name, plan = cut_run(loaded, place.open)
    storage = place.open(name)
    record_newest(place.open(""), plan.name, name)
    run = CutRun(folder, place, join_address(place.address, name), storage, plan, settings)
    place.begin()
    job = JOBS[engine](run, rng)
    began, disturbed_at = time.monotonic(), time.monotonic() + rng.uniform(*job.pauses)
    try:
        while not job.poll():
            now = time.monotonic()
            assert now - began < MAX_ROUND_SECONDS, f"no end: {job.starts}, {job.events}, {job.read_output()}"
            if now >= disturbed_at:
                job.disturb()
                disturbed_at = now + rng.uniform(*job.pauses)
            time.sleep(0.02)
    finally:
        job.close()
    for shard in plan.shards:
        attempts = list_attempts(storage, shard.folder)
        assert owner(attempts) == max(attempts)
        assert any(each.is_done for each in attempts.values())
    job.check_attempts()
    job.check_losses()
    return job, fetch_run(storage, folder / "fetched")


@pytest.mark.live
@pytest.mark.parametrize(
    ("engine", "bucket", "share"),
    [
        ("array", False, 0.33),
        ("array", False, 0.34),
        ("array", False, 0.35),
        pytest.param("array", True, 0.2, marks=needs_s3),
        pytest.param("dask", False, 0.1, marks=[needs_dask, pytest.mark.slow]),
        pytest.param("dask", True, 0.1, marks=[needs_dask, needs_s3, pytest.mark.slow]),
    ],
)
def test_disturbed_shards_give_the_run_of_one_machine(
    tmp_path: Path, engine: str, *, bucket: bool, share: float, request: pytest.FixtureRequest
) -> None:
    began, rounds, case = time.monotonic(), round(share * ROUNDS), request.node.name
    events, codes, lost, responses, devices = Counter[str](), Counter[int](), list[int](), 0, 0
    with simulated_s3(tmp_path) if bucket else nullcontext() as s3:
        for first in range(0, rounds, ROUNDS_OF_A_WORLD):
            seed = random.Random(f"{SEED} {case} {first}").getrandbits(32)
            world = World(DEVICES, seed=seed)
            with run_platform(world, seed, LATENCY) as platform:
                alone: Path | None = None
                for number in range(first, min(rounds, first + ROUNDS_OF_A_WORLD)):
                    rng = random.Random(f"{SEED} {case} {number}")
                    folder = tmp_path / f"{number}"
                    folder.mkdir()
                    world.write_fleet(folder / "fleet.csv")
                    with place_of(s3, folder) as place:
                        settings = write_settings(folder, platform, place, 0.3 if bucket else 0.1)
                        if alone is None:
                            alone = anyio.run(auditor.run_audit, auditor.load_settings(settings)).folder
                            alone = alone.rename(tmp_path / f"alone-{number}")
                        before = platform.response_counts().total()
                        job, fetched = run_round(folder, engine, place, settings, rng)
                    responses += platform.response_counts().total() - before
                    assert_same_run(fetched, alone)
                    devices += auditor.Run(alone).manifest.fleet.devices
                    events, codes, lost = events + job.events, codes + job.codes, lost + job.lost
                    shutil.rmtree(folder)
    text = (
        f"{rounds} runs by {engine} {'on S3' if bucket else 'in a directory'}: {dict(events)}; exit codes {dict(codes)}"
    )
    text += f"; lost lines at {len(lost)} kills: {sum(lost)}, at most {max(lost, default=0)}"
    print_figures(f"{text}; {responses / devices:.2f} responses a device", began)
    assert rounds == 0 or events.total() > 0
