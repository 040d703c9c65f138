"""A process that is stopped and continued, as by Ctrl-Z or a paused machine, does not blame the platform for it."""

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest

from auditor.runs.manifest import read_manifest
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from tests.integration.audits import plain_world
from tests.integration.test_audit import assert_matches

pytestmark = pytest.mark.anyio

TIMEOUT, STOPPED_SECONDS = 2.0, 3.0


@pytest.mark.slow
async def test_requests_that_time_out_while_the_process_is_stopped_are_sent_again(tmp_path: Path) -> None:
    world = plain_world(100)
    async with Simulator(world, latency=(0.3, 0.4)) as platform:
        world.write_fleet(tmp_path / "fleet.csv")
        (tmp_path / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
        (tmp_path / "settings.toml").write_text(
            f'name = "stopped"\nconcurrency = 10\nmax_attempts = 1\ntimeout = {TIMEOUT}\n[[account]]\nname = "eu"\n'
            f'endpoint = "{platform.endpoint}"\naccess_key_id = "{DEFAULT_ACCOUNT.access_key_id}"\n'
            'access_key_secret = { file = "secret" }\ncalls_per_second = "unlimited"\nfleet = { file = "fleet.csv" }\n'
        )
        command = [sys.executable, "-m", "auditor", "run", str(tmp_path / "settings.toml")]
        async with await anyio.open_process(command, cwd=tmp_path) as process:
            while platform.counts.answered < 25 and process.returncode is None:  # noqa: ASYNC110  there is no event
                await anyio.sleep(0.01)
            os.kill(process.pid, signal.SIGSTOP)
            await anyio.sleep(STOPPED_SECONDS)
            os.kill(process.pid, signal.SIGCONT)
            assert process.stderr is not None
            log = b"".join([part async for part in process.stderr]).decode()
    assert process.returncode == 0, log
    (run,) = (tmp_path / "audits").iterdir()
    # One failure that counts would be a failed device.
    assert read_manifest(run).devices.failed == 0
    assert_matches(world, run)
    assert log.count("this process stood still") == 1
