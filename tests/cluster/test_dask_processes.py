"""Shards by Dask in processes of their own, which are killed: those of one machine, and those of an operator."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import anyio
import pytest
import trustme

import auditor
from auditor.cluster.attempt_log import list_attempts
from auditor.cluster.cut import read_plan
from auditor.cluster.storage import find_run_address, open_run
from auditor.errors import AuditStoppedError
from auditor.simulator.server import DEFAULT_ACCOUNT
from auditor.simulator.world import World
from tests import forked
from tests.chaos.counting import run_platform
from tests.cli.test_cluster import write_settings
from tests.cluster.shards import account_table, assert_same_run

pytest.importorskip("distributed", reason="NOT TESTED: Dask, because distributed is missing")

from auditor.cluster.dask import SETTINGS_VARIABLE

pytestmark = pytest.mark.anyio

MAX_SECONDS = 120


@pytest.mark.live
@pytest.mark.slow
def test_every_line_of_a_refused_run_is_json(tmp_path: Path) -> None:
    world = World(5, seed=2)
    world.write_fleet(tmp_path / "fleet.csv")
    with run_platform(world, 5) as platform:
        settings = write_settings(tmp_path, account_table(platform.endpoint, tmp_path, access_key_id="unknown"))
        with driver(tmp_path, settings, 1, "--log-format", "json") as process:
            process.communicate(timeout=MAX_SECONDS)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert (process.returncode, "shard_failed" in events) == (3, True), lines


@contextmanager
def driver(folder: Path, settings: Path, processes: int, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command that drives a run, in a process group of its own."""
    words = [sys.executable, "-m", "auditor", "run", str(settings), "--on", f"dask:{processes}", *flags]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def processes_of(group: int) -> list[int]:
    """Return the processes of a group that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


def read_processes(numbers: list[int]) -> bytes:
    """Return environments and arguments of processes."""
    return b"".join(Path(f"/proc/{each}/{name}").read_bytes() for each in numbers for name in ("environ", "cmdline"))


def wait_until(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + MAX_SECONDS
    while not condition():
        assert time.monotonic() < ends_at
        time.sleep(0.05)


@pytest.mark.live
@pytest.mark.slow
async def test_killed_workers_and_a_killed_driver_give_the_run_of_one_machine(tmp_path: Path) -> None:
    world = World(200, seed=2)
    world.write_fleet(tmp_path / "fleet.csv")
    with run_platform(world, 5) as platform:
        table = account_table(platform.endpoint, tmp_path, lanes=3, calls_per_second=30)
        settings = write_settings(tmp_path, table)
        with driver(tmp_path, settings, 2) as first:
            wait_until(lambda: _count_parts(tmp_path / "shared") > 1)
            group = processes_of(first.pid)
            shown = read_processes(group)
            os.kill(max(_workers(group)), signal.SIGKILL)
            parts = _count_parts(tmp_path / "shared")
            wait_until(lambda: _count_parts(tmp_path / "shared") > parts)
            first.send_signal(signal.SIGKILL)
            wait_until(lambda: not processes_of(first.pid))
        assert first.stdout is not None
        with driver(tmp_path, settings, 1) as second:
            printed, _ = second.communicate(timeout=MAX_SECONDS)
        alone = await auditor.run_audit(auditor.load_settings(settings))
    log = (tmp_path / "log.txt").read_text()
    assert second.returncode == 0, log
    (run,) = [each for each in (tmp_path / "shared").iterdir() if each.name != "newest"]
    folder = Path(printed.strip())
    assert (folder.name, folder.parent) == (run.name, tmp_path / "audits")
    assert_same_run(folder, alone.folder)
    plan = read_plan(open_run(str(run)))
    assert max(len(list_attempts(open_run(str(run)), each.folder)) for each in plan.shards) > 1
    assert "resuming" in log
    stored = b"".join(each.read_bytes() for each in run.rglob("*") if each.is_file())
    secret = DEFAULT_ACCOUNT.secret.reveal().encode()
    assert secret not in shown + stored + log.encode()
    assert json.dumps(str(tmp_path / "secret")).encode() not in stored


class Programs:
    """Programs of Dask and their driver, as an operator starts them; all are killed in the end."""

    def __init__(self, folder: Path, settings: Path, *, protocol: str = "tcp", **variables: object) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.address = f"{protocol}://127.0.0.1:{self._port}"
        self._folder, self._settings, self._protocol = folder, settings, protocol
        scratch = folder / "scratch"
        scratch.mkdir()
        own = {SETTINGS_VARIABLE: settings, "TMPDIR": scratch, **variables}
        self._env = os.environ | {name: str(value) for name, value in own.items()}
        self._started: list[forked.ForkedCommand] = []

    def start(self, *words: object, **variables: object) -> forked.ForkedCommand:
        env = self._env | {name: str(value) for name, value in variables.items()}
        with (self._folder / ("driver.txt" if words[0] == "run" else "log.txt")).open("ab") as output:
            streams = [0, output.fileno(), output.fileno()]
            self._started.append(forked.start(*words, cwd=self._folder, streams=streams, env=env, dask=True))
        return self._started[-1]

    def scheduler(self) -> forked.ForkedCommand:
        where = ("--protocol", f"{self._protocol}://", "--host", "127.0.0.1", "--port", self._port)
        return self.start("scheduler", *where, "--no-dashboard")

    def worker(self) -> forked.ForkedCommand:
        return self.start("worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard")

    def driver(self, **variables: object) -> forked.ForkedCommand:
        return self.start("run", self._settings, "--on", self.address, **variables)

    @property
    def log(self) -> str:
        """What the drivers have written."""
        return (self._folder / "driver.txt").read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._started:
            each.send_signal(signal.SIGKILL)
            each.wait(MAX_SECONDS)


@pytest.mark.slow
@pytest.mark.live
async def test_a_killed_scheduler_ends_its_workers_and_the_same_command_continues_the_run(tmp_path: Path) -> None:
    world, concurrency = World(400, seed=2), 3
    world.write_fleet(tmp_path / "fleet.csv")
    with run_platform(world, 5) as platform:
        table = account_table(platform.endpoint, tmp_path, lanes=3, calls_per_second=90)
        settings = write_settings(tmp_path, table, more=f"concurrency = {concurrency}")
        settings.write_text(settings.read_text().replace("checkpoint = 0.5", "checkpoint = 2"))
        with Programs(tmp_path, settings) as programs:
            killed, workers, driver = programs.scheduler(), [programs.worker() for _ in range(2)], programs.driver()
            wait_until(lambda: _count_parts(tmp_path / "shared") > 1)
            await anyio.sleep(1)  # half of a checkpoint: some 30 answers of each worker are not stored
            killed.send_signal(signal.SIGKILL)
            assert driver.wait(MAX_SECONDS) == AuditStoppedError.exit_code, programs.log
            assert "the scheduler is gone; the same command continues the run" in programs.log
            assert "Traceback" not in programs.log
            assert [each.wait(MAX_SECONDS) for each in workers] == [0, 0]
            lost = platform.response_counts().total() - _count_lines(tmp_path / "shared")
            assert lost <= len(workers) * concurrency, "a worker has not stored its last answers"
            programs.scheduler()
            programs.worker()
            assert programs.driver().wait(MAX_SECONDS) == 0, programs.log
        alone = await auditor.run_audit(auditor.load_settings(settings))
    address = find_run_address(str(tmp_path / "shared"))
    assert_same_run(tmp_path / "audits" / Path(address).name, alone.folder)
    plan = read_plan(open_run(address))
    assert max(len(list_attempts(open_run(address), each.folder)) for each in plan.shards) == 2


@pytest.mark.slow
@pytest.mark.live
async def test_a_scheduler_with_certificates_takes_only_drivers_of_its_authority(tmp_path: Path) -> None:
    world = World(40, seed=2)
    world.write_fleet(tmp_path / "fleet.csv")
    variables = {name: _write_certificates(tmp_path / name) for name in ("own", "other")}
    with run_platform(world, 5) as platform:
        settings = write_settings(tmp_path, account_table(platform.endpoint, tmp_path, lanes=2))
        with Programs(tmp_path, settings, protocol="tls", **variables["own"]) as programs:
            programs.scheduler()
            programs.worker()
            refused = programs.driver(**variables["other"], DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="3s")
            assert refused.wait(MAX_SECONDS) == AuditStoppedError.exit_code, programs.log
            assert f"--on {programs.address}: the scheduler cannot be reached" in programs.log
            assert programs.driver().wait(MAX_SECONDS) == 0, programs.log
        alone = await auditor.run_audit(auditor.load_settings(settings))
    address = find_run_address(str(tmp_path / "shared"))
    assert_same_run(tmp_path / "audits" / Path(address).name, alone.folder)


def _write_certificates(folder: Path) -> dict[str, object]:
    """Write an authority and a certificate; return the variables of Dask that name them."""
    folder.mkdir()
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    names = {"CA_FILE": "ca.pem"}
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    for role in ("CLIENT", "WORKER", "SCHEDULER"):
        names |= {f"{role}__CERT": "cert.pem", f"{role}__KEY": "key.pem"}
    return {f"DASK_DISTRIBUTED__COMM__TLS__{name}": folder / file for name, file in names.items()}


def _count_parts(storage: Path) -> int:
    return sum(1 for _ in storage.glob("*/shards/*/attempts/*/parts/*.gz"))


def _count_lines(storage: Path) -> int:
    parts = storage.glob("*/shards/*/attempts/*/parts/*.gz")
    return sum(gzip.decompress(each.read_bytes()).count(b"\n") for each in parts)


def _workers(group: list[int]) -> list[int]:
    """Return the processes of Dask that query shards."""
    return [each for each in group if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]
