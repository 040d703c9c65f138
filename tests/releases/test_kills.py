"""Processes that are killed while they read released firmware: nothing is lost, and no page is requested again."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

import auditor
from auditor.runs.manifest import read_manifest
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.releases import FirmwareStore
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.test_audit import assert_matches
from tests.releases.released import OPERATIONS, assert_released

KILLS = 4
CONCURRENCY = 8
"""Lists that are read concurrently, so as many requests can be in flight at a kill."""


class CountingSimulator(Simulator):
    """A simulated platform that counts the successful requests of each page of each list."""

    def __init__(self, world: World) -> None:
        super().__init__(
            world, latency=(0.02, 0.04), accounts=[SimulatedAccount("simulated-key", DEFAULT_ACCOUNT.secret)]
        )
        self.pages: Counter[tuple[str, ...]] = Counter()
        for name in OPERATIONS:
            self._operations[name] = self._counting(name)

    def _counting(self, name: str):  # type: ignore[no-untyped-def]  # noqa: ANN202  an operation
        answer = self._operations[name]

        def counted(parameters):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            names = ("ProductKey", "FirmwareId", "JobId", "CurrentPage")
            self.pages[name, *(parameters.get(each, "") for each in names)] += 1
            return answer(parameters)

        return counted


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
    return tmp_path / "settings.toml"


def write_settings(path: Path, endpoint: str) -> None:
    path.write_text(f"""
directory = "audits"
released = true
[[account]]
name = "eu"
endpoint = "{endpoint}"
access_key_id = "simulated-key"
access_key_secret = {{ file = "secret" }}
calls_per_second = "unlimited"
fleet = {{ file = "fleet.csv" }}
""")


def start(settings: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "XDG_STATE_HOME": str(settings.parent / "state")}
    command = [sys.executable, "-m", "auditor", "run", str(settings), "--resume"]
    with (settings.parent / "output.txt").open("ab") as output:
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


@pytest.mark.slow
def test_killed_runs_end_with_all_releases(tmp_path: Path, settings_file: Path) -> None:
    world = World(400, products=3, day=4, today=time.time())
    world.write_fleet(tmp_path / "fleet.csv")
    rng = random.Random(19)
    simulator = CountingSimulator(world)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(simulator) as platform:
        write_settings(settings_file, platform.endpoint)
        killed = 0
        for _ in range(KILLS):
            process, before = start(settings_file), sum(simulator.pages.values())
            enough = before + rng.randint(1, 25)
            while process.poll() is None and sum(simulator.pages.values()) < enough:
                time.sleep(0.002)
            process.kill()
            killed += process.wait() < 0
        process = start(settings_file)
        assert process.wait(120) == 0, (tmp_path / "output.txt").read_text()
    assert killed >= 2
    (run,) = (tmp_path / "audits").iterdir()
    manifest = read_manifest(run)
    assert (manifest.state, manifest.releases[0].problems, auditor.verify_run(run)) == ("complete", (), [])
    assert_matches(world, run)
    assert_released(world, run, [job for job in FirmwareStore(world).jobs.values() if job.name != "old"])
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
    again = sum(count - 1 for count in simulator.pages.values())
    assert again <= killed * CONCURRENCY
    assert manifest.releases[0].requests >= sum(simulator.pages.values())
