"""Shards by Dask: on workers of a scheduler, and on processes of one machine that are killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import anyio
import pytest
import trustme

import auditor
from auditor.cluster.attempt_log import AttemptLog, list_attempts
from auditor.cluster.cut import cut_run, read_plan
from auditor.cluster.driver import plan_fingerprint, run_on_engine
from auditor.cluster.plan import ShardPlan
from auditor.cluster.storage import find_run_address, open_run
from auditor.concurrency import StopToken
from auditor.errors import AuditStoppedError, SettingsError, UsageError
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests import forked
from tests.chaos.counting import run_platform
from tests.cli.test_cluster import write_settings
from tests.cluster.shards import account_table, assert_same_run
from tests.storage.s3 import needs_s3, simulated_s3

distributed: Any = pytest.importorskip("distributed", reason="NOT TESTED: Dask, because distributed is missing")

from auditor.cluster import dask as engine_module  # noqa: E402  needs distributed
from auditor.cluster.dask import SETTINGS_VARIABLE, DaskEngine, open_dask  # noqa: E402

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Dask's own connections
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

MAX_SECONDS = 120


@asynccontextmanager
async def scheduler(workers: int = 2) -> AsyncIterator[Any]:
    """Run a scheduler with workers in threads of this process, on a port of this machine."""
    async with distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=False, protocol="tcp://", host="127.0.0.1",
        dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False}, asynchronous=True, memory_limit=0,
    ) as cluster:  # fmt: skip
        yield cluster


@pytest.fixture
def small_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Simulator], Path]:
    def write(platform: Simulator) -> Path:
        settings = write_settings(tmp_path, account_table(platform.endpoint, tmp_path, lanes=2), more="concurrency = 4")
        monkeypatch.setenv(SETTINGS_VARIABLE, str(settings))
        return settings

    return write


def no_log() -> None:
    """Leave the log of this process as it is."""


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(MAX_SECONDS):
        while not condition():  # noqa: ASYNC110  neither storages nor tasks have events
            await anyio.sleep(0.02)


def cut_by_file(path: Path) -> tuple[str, ShardPlan]:
    address = str(path.parent / "shared" / "run")
    return address, cut_run(auditor.load_settings(path), lambda _: open_run(address, create=True))[1]


async def test_tasks_have_two_strings_and_a_fingerprint_and_no_secret(
    tmp_path: Path, small_settings: Callable[[Simulator], Path], caplog: pytest.LogCaptureFixture
) -> None:
    world = World(60, seed=2)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform, scheduler() as cluster:
        path = small_settings(platform)
        settings = auditor.load_settings(path)
        alone = (await auditor.run_audit(settings)).folder
        submitted: list[tuple[object, ...]] = []

        @asynccontextmanager
        async def recorded(_shards: int) -> AsyncIterator[DaskEngine]:
            async with open_dask(cluster.scheduler_address, path, no_log) as engine:
                submit = engine._client.submit

                def record(*words: object, **more: object) -> object:
                    submitted.append(words)
                    return submit(*words, **more)

                engine._client.submit = record
                yield engine
                shown = repr(list(cluster.scheduler.transition_log))
                assert DEFAULT_ACCOUNT.secret.reveal() not in shown

        result = await run_on_engine(settings, recorded, tmp_path / "fetched", stop=StopToken())
    assert_same_run(result.folder, alone)
    address = find_run_address(str(tmp_path / "shared"))
    fingerprint = plan_fingerprint(open_run(address))
    assert {words[1:] for words in submitted} == {(address, f"000{lane}-eu", fingerprint) for lane in range(2)}
    assert DEFAULT_ACCOUNT.secret.reveal() not in caplog.text


async def test_a_shard_that_is_not_done_ends_with_its_code_and_no_text(
    tmp_path: Path, small_settings: Callable[[Simulator], Path]
) -> None:
    world = World(300, seed=2)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(0.05, 0.05)) as platform, scheduler() as cluster:
        path = small_settings(platform)
        address, plan = cut_by_file(path)
        storage = open_run(address)
        fingerprint = plan_fingerprint(storage)
        async with open_dask(cluster.scheduler_address, path, no_log) as engine:
            engine.start(address, "0000-eu", "0" * 64)
            assert (await engine.next_ended()).code == 2
            engine.start(address, "0009-none", fingerprint)
            assert (await engine.next_ended()).code == 2
            engine.start(address, "0000-eu", fingerprint)
            await until(lambda: any("/parts/" in each.key for each in storage.list()))
            AttemptLog(storage, plan.shards[0].folder).begin()
            ended = await engine.next_ended()
            assert (ended.name, ended.code) == ("0000-eu", 75)
            engine.start(address, "0001-eu", fingerprint)
            await until(lambda: any("0001-eu/attempts" in each.key for each in storage.list()))
        assert not engine_module._RUNNING.is_any, "a worker has not stored its last answers"
        assert not any(each.is_done for shard in plan.shards for each in list_attempts(storage, shard.folder).values())


async def test_a_second_driver_leaves_the_shards_of_the_first_one_alone(
    tmp_path: Path, small_settings: Callable[[Simulator], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(100, seed=2)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(0.05, 0.05)) as platform, scheduler() as cluster:
        path = small_settings(platform)
        address, plan = cut_by_file(path)
        storage = open_run(address)
        async with open_dask(cluster.scheduler_address, path, no_log) as first:
            first.start(address, "0000-eu", plan_fingerprint(storage))
            await until(lambda: any("/parts/" in each.key for each in storage.list()))
            async with open_dask(cluster.scheduler_address, path, no_log):
                assert engine_module._RUNNING.is_any
            assert (await first.next_ended()).code == 0
        assert len(list_attempts(storage, plan.shards[0].folder)) == 1
    assert "has no worker" not in capsys.readouterr().err


async def test_a_scheduler_without_workers_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with scheduler(workers=0) as cluster:
        async with open_dask(cluster.scheduler_address, tmp_path / "nightly.toml", no_log):
            pass
        assert "the scheduler has no worker; shards wait for one" in capsys.readouterr().err
        await cluster.scale(1)


async def test_a_scheduler_that_cannot_be_used_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CONNECT_SECONDS", 0.2)
    with pytest.raises(SettingsError, match="needs certificates; name their files in Dask's configuration"):
        async with open_dask("tls://127.0.0.1:1", tmp_path / "nightly.toml", no_log):
            pass
    with pytest.raises(AuditStoppedError, match="the scheduler cannot be reached"):
        async with open_dask("tcp://127.0.0.1:1", tmp_path / "nightly.toml", no_log):
            pass


class DyingClient:
    """A client whose connection to a worker, or to the scheduler, ends at each request."""

    def __init__(self, status: str) -> None:
        self.status = status

    async def run(self, *_: object, **__: object) -> dict[str, Exception]:
        return {"tcp://127.0.0.1:1": OSError("closed")}

    async def register_plugin(self, plugin: object) -> None:
        raise OSError("closed")


async def test_a_worker_that_ends_while_it_is_prepared_is_no_fault() -> None:
    plugin = engine_module.ShardStops(no_log, is_local=False)
    await engine_module._prepare_workers(DyingClient("running"), "tcp://127.0.0.1:2", plugin)
    with pytest.raises(AuditStoppedError, match="the scheduler is gone"):
        await engine_module._prepare_workers(DyingClient("closed"), "tcp://127.0.0.1:2", plugin)


async def test_a_worker_without_auditor_is_one_sentence_with_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "without"
    folder.mkdir()
    (folder / "auditor.py").write_text("raise ModuleNotFoundError('auditor')\n")
    words = [sys.executable, "-m", "distributed.cli.dask_worker", "--no-nanny", "--no-dashboard", "--name", "lonely"]
    async with scheduler(workers=0) as cluster:
        address = cluster.scheduler_address
        worker = subprocess.Popen(  # noqa: ASYNC220  it returns immediately
            [*words, address], cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, stderr=subprocess.DEVNULL
        )
        try:
            await until(lambda: bool(cluster.scheduler.workers))
            (name,) = cluster.scheduler.workers
            with pytest.raises(UsageError, match=f"the worker {name} cannot import auditor \\(ModuleNotFoundError"):
                async with open_dask(address, tmp_path / "nightly.toml", no_log):
                    pass
        finally:
            worker.kill()
            worker.wait()


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


@needs_s3
async def test_a_run_by_dask_in_a_bucket_is_that_of_one_machine(
    tmp_path: Path, small_settings: Callable[[Simulator], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(60, seed=2)
    world.write_fleet(tmp_path / "fleet.csv")
    with simulated_s3(tmp_path) as s3:
        s3.failures = 0.02
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        async with Simulator(world) as platform, scheduler() as cluster:
            path = small_settings(platform)
            path.write_text(path.read_text().replace(str(tmp_path / "shared"), f"s3://lake/{tmp_path.name}"))
            settings = auditor.load_settings(path)
            alone = (await auditor.run_audit(settings)).folder
            result = await run_on_engine(
                settings,
                lambda _: open_dask(cluster.scheduler_address, path, no_log),
                tmp_path / "fetched",
                stop=StopToken(),
            )
            shown = repr(list(cluster.scheduler.transition_log))
    assert_same_run(result.folder, alone)
    assert not any(value in shown for name, value in s3.environment.items() if "KEY" in name)
    assert list((tmp_path / "shared").iterdir()) == []


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
    world = World(120, seed=2)
    world.write_fleet(tmp_path / "fleet.csv")
    with run_platform(world, 5) as platform:
        table = account_table(platform.endpoint, tmp_path, lanes=3, calls_per_second=45)
        settings = write_settings(tmp_path, table, more="concurrency = 3")
        with Programs(tmp_path, settings) as programs:
            killed, workers, driver = programs.scheduler(), [programs.worker() for _ in range(2)], programs.driver()
            wait_until(lambda: _count_parts(tmp_path / "shared") > 1)
            killed.send_signal(signal.SIGKILL)
            assert driver.wait(MAX_SECONDS) == AuditStoppedError.exit_code, programs.log
            assert "the scheduler is gone; the same command continues the run" in programs.log
            assert "Traceback" not in programs.log
            assert [each.wait(MAX_SECONDS) for each in workers] == [0, 0]
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


def _workers(group: list[int]) -> list[int]:
    """Return the processes of Dask that query shards."""
    return [each for each in group if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()]
