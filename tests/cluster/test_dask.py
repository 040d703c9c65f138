"""Shards by Dask, on workers of a scheduler."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

import auditor
from auditor.__about__ import VERSION
from auditor.cluster.attempt_log import AttemptLog, list_attempts
from auditor.cluster.cut import cut_run
from auditor.cluster.driver import plan_fingerprint, run_on_engine
from auditor.cluster.plan import ShardPlan
from auditor.cluster.storage import find_run_address, open_run
from auditor.concurrency import StopToken
from auditor.errors import AuditStoppedError, SettingsError, UsageError
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
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


class ShownTasks(distributed.SchedulerPlugin):  # type: ignore[misc]  # the class has no types
    """What a scheduler has of its tasks, at each of their transitions: arguments, exceptions and their texts."""

    def __init__(self, scheduler: Any) -> None:
        self._tasks, self.content = scheduler.tasks, b""
        scheduler.add_plugin(self)

    def transition(self, key: str, *_: object, **more: object) -> None:
        task = self._tasks[key]
        parts = task.run_spec, task.exception, task.traceback, task.exception_text, task.traceback_text, more
        self.content += distributed.protocol.pickle.dumps(parts)


def no_log() -> None:
    """Leave the log of this process as it is."""


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(MAX_SECONDS):
        while not condition():  # noqa: ASYNC110  neither storages nor tasks have events
            await anyio.sleep(0.02)


def cut_by_file(path: Path) -> tuple[str, ShardPlan]:
    address = str(path.parent / "shared" / "run")
    return address, cut_run(auditor.load_settings(path), lambda _: open_run(address, create=True))[1]


@pytest.mark.slow
async def test_tasks_have_two_strings_and_a_fingerprint_and_no_secret(
    tmp_path: Path, small_settings: Callable[[Simulator], Path], caplog: pytest.LogCaptureFixture
) -> None:
    world = World(60, seed=2)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform, scheduler() as cluster:
        path = small_settings(platform)
        settings = auditor.load_settings(path)
        alone = (await auditor.run_audit(settings)).folder
        submitted, shown = list[tuple[object, ...]](), ShownTasks(cluster.scheduler)

        @asynccontextmanager
        async def recorded(_shards: int) -> AsyncIterator[DaskEngine]:
            async with open_dask(cluster.scheduler_address, path, no_log) as engine:
                submit = engine._client.submit

                def record(*words: object, **more: object) -> object:
                    submitted.append(words)
                    return submit(*words, **more)

                engine._client.submit = record
                yield engine

        result = await run_on_engine(settings, recorded, tmp_path / "fetched", stop=StopToken())
    assert_same_run(result.folder, alone)
    address = find_run_address(str(tmp_path / "shared"))
    fingerprint = plan_fingerprint(open_run(address))
    assert address.encode() in shown.content
    assert DEFAULT_ACCOUNT.secret.reveal().encode() not in shown.content
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
        fingerprint, shown = plan_fingerprint(storage), ShownTasks(cluster.scheduler)
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
        assert b"ShardEndedError" in shown.content
        assert b"is another run here" not in shown.content
        assert DEFAULT_ACCOUNT.secret.reveal().encode() not in shown.content
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
        return {"tcp://127.0.0.1:1": distributed.comm.CommClosedError("closed")}

    async def register_plugin(self, plugin: object) -> None:
        raise distributed.comm.CommClosedError("closed")


async def test_a_worker_that_ends_while_it_is_prepared_is_no_fault() -> None:
    plugin = engine_module.ShardStops(no_log, is_local=False)
    await engine_module._prepare_workers(DyingClient("running"), "tcp://127.0.0.1:2", plugin)
    with pytest.raises(AuditStoppedError, match="the scheduler is gone"):
        await engine_module._prepare_workers(DyingClient("closed"), "tcp://127.0.0.1:2", plugin)


def fail_to_open_log() -> None:
    raise PermissionError(13, "Permission denied", "/var/log/auditor")


async def test_each_driver_is_refused_by_a_worker_that_cannot_be_prepared(tmp_path: Path) -> None:
    async with scheduler() as cluster:
        for prepare in (fail_to_open_log, no_log, fail_to_open_log):
            refused = pytest.raises(UsageError, match=r"the worker \S+ cannot be prepared \(PermissionError\)")
            with nullcontext() if prepare is no_log else refused:
                async with open_dask(cluster.scheduler_address, tmp_path / "nightly.toml", prepare):
                    pass
        assert cluster.scheduler.worker_plugins.keys() >= {f"auditor {VERSION}"}


@pytest.mark.slow
@pytest.mark.live
async def test_a_fault_of_a_process_of_this_machine_names_the_flag_as_users_type_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--on dask: the worker \S+ cannot be prepared \(PermissionError\)"):
        async with open_dask(1, tmp_path / "nightly.toml", fail_to_open_log):
            pass


async def test_each_version_of_auditor_prepares_the_workers_that_come_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scheduler(workers=0) as cluster:
        for version in ("1.0", "2.0"):
            monkeypatch.setattr(engine_module.ShardStops, "name", f"auditor {version}")
            prepare = partial(_append, tmp_path / "prepared", version)
            async with open_dask(cluster.scheduler_address, tmp_path / "nightly.toml", prepare):
                pass
        assert not (tmp_path / "prepared").exists()
        cluster.scale(1)
        await until((tmp_path / "prepared").exists)
        await until(lambda: (tmp_path / "prepared").read_text().split() == ["1.0", "2.0"])


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(f"{line}\n")


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


@pytest.mark.slow
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
            alone, shown = (await auditor.run_audit(settings)).folder, ShownTasks(cluster.scheduler)
            result = await run_on_engine(
                settings,
                lambda _: open_dask(cluster.scheduler_address, path, no_log),
                tmp_path / "fetched",
                stop=StopToken(),
            )
    assert_same_run(result.folder, alone)
    assert f"s3://lake/{tmp_path.name}".encode() in shown.content
    keys = [value.encode() for name, value in s3.environment.items() if "KEY" in name]
    assert keys
    assert not any(key in shown.content for key in keys)
    assert list((tmp_path / "shared").iterdir()) == []
