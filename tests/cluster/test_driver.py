"""The driver of a run: what it starts, starts again, seals and fetches, whatever its engine does."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest

import auditor
from auditor.cluster.cut import read_plan
from auditor.cluster.driver import (
    MAX_CONTINUED_SECONDS,
    MAX_STARTS,
    EndedShard,
    Engine,
    parse_engine,
    plan_fingerprint,
    run_on_engine,
)
from auditor.cluster.shard import ShardWorker
from auditor.cluster.storage import find_run_address, open_run
from auditor.concurrency import StopToken
from auditor.config.settings import Settings
from auditor.engine.progress import Progress
from auditor.errors import (
    AuditInterruptedError,
    AuditorError,
    AuditStoppedError,
    SettingsError,
    SupersededError,
    UsageError,
)
from auditor.runs.folder import CUT_PLAN
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from auditor.text.formatting import format_utc
from tests.cluster.shards import account_table, assert_same_run, cluster_settings

pytestmark = pytest.mark.anyio

Outcome = int | None | str | EndedShard
"""What happens to a start of a shard: it ends with a code or so, is killed too often (None), or does its work.

"taken over" is that another process does its work.
"""


class SimulatedEngine(Engine):
    """Queries shards in this process, one after the other, or ends them as a test decides."""

    def __init__(self, settings: Settings, outcome: Callable[[str, int], Outcome]) -> None:
        self._settings, self._outcome = settings, outcome
        self._started = asyncio.Queue[tuple[str, str, str]]()
        self.starts: dict[str, int] = {}

    def start(self, run: str, shard: str, fingerprint: str) -> None:
        self.starts[shard] = self.starts.get(shard, 0) + 1
        self._started.put_nowait((run, shard, fingerprint))

    async def next_ended(self) -> EndedShard:
        run, name, fingerprint = await self._started.get()
        outcome = self._outcome(name, self.starts[name])
        if isinstance(outcome, EndedShard):
            return outcome
        if not isinstance(outcome, str):
            return EndedShard(name, outcome)
        storage = open_run(run)
        assert plan_fingerprint(storage) == fingerprint
        plan = read_plan(storage)
        shard = next(each for each in plan.shards if each.name == name)
        worker = ShardWorker(storage, plan, shard, self._settings, stop=StopToken())
        code = await worker.run()
        return EndedShard(name, code if outcome == "work" else SupersededError.exit_code, reason=worker.reason)

    def open(self, _shards: int) -> AbstractAsyncContextManager[Engine]:
        @asynccontextmanager
        async def opened() -> AsyncIterator[Engine]:
            yield self

        return opened()


def work(_name: str, _start: int) -> Outcome:
    return "work"


async def drive(
    settings: Settings, outcome: Callable[[str, int], Outcome] = work, stop: StopToken | None = None
) -> tuple[SimulatedEngine, auditor.Run, list[Progress]]:
    engine, shown = SimulatedEngine(settings, outcome), list[Progress]()
    directory = Path(settings.directory) / "fetched"
    result = await run_on_engine(settings, engine.open, directory, stop=stop or StopToken(), on_progress=shown.append)
    assert result.exit_code == result.manifest.exit_code
    return engine, auditor.Run(result.folder), shown


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Simulator]:
    world = World(60, seed=4)
    world.write_fleet(tmp_path / "fleet.csv")
    (tmp_path / "shared").mkdir()
    async with Simulator(world) as simulator:
        yield simulator


@pytest.fixture
def settings(tmp_path: Path, platform: Simulator) -> Settings:
    return cluster_settings(tmp_path, account_table(platform.endpoint, tmp_path, lanes=3))


@pytest.mark.slow
async def test_a_run_is_that_of_one_machine_and_each_shard_is_started_once(settings: Settings) -> None:
    alone = (await auditor.run_audit(settings)).folder
    engine, run, shown = await drive(settings)
    assert_same_run(run.folder, alone)
    assert list(engine.starts.values()) == [1, 1, 1]
    assert (shown[0].fleet, shown[0].devices.pending, shown[0].resumed) == (60, 60, False)


async def test_what_died_is_started_again(settings: Settings) -> None:
    def die_first(_name: str, start: int) -> Outcome:
        return {1: None, 2: 130}.get(start, "work")

    engine, run, _ = await drive(settings, die_first)
    assert list(engine.starts.values()) == [MAX_STARTS] * 3
    assert run.manifest.exit_code == 0


async def test_a_shard_that_another_process_has_taken_over_and_ended_is_done(settings: Settings) -> None:
    engine, run, _ = await drive(settings, lambda name, _: "taken over" if name.startswith("0001") else "work")
    assert list(engine.starts.values()) == [1, 1, 1]
    assert run.manifest.exit_code == 0


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (75, (SupersededError, 1)),
        (2, (SettingsError, 1)),
        (3, (AuditStoppedError, MAX_STARTS)),  # the storage is away, or a disk is full
        (None, (AuditStoppedError, MAX_STARTS)),
    ],
)
async def test_a_shard_that_cannot_be_done_ends_the_run_unsealed_and_the_next_driver_continues_it(
    tmp_path: Path, settings: Settings, platform: Simulator, code: int | None, expected: tuple[type[AuditorError], int]
) -> None:
    engine = SimulatedEngine(settings, lambda name, _: code if name.startswith("0002") else "work")
    error, starts = expected
    with pytest.raises(error, match="shard eu 3/3"):
        await run_on_engine(settings, engine.open, Path(settings.directory), stop=StopToken())
    assert engine.starts["0002-eu"] == starts
    address, sent = find_run_address(str(tmp_path / "shared")), platform.counts.received
    again, run, shown = await drive(settings)
    assert list(again.starts) == ["0002-eu"]
    assert (run.folder.name, shown[0].resumed) == (Path(address).name, True)
    assert platform.counts.received - sent <= 22


async def test_a_refused_account_seals_the_run_as_one_machine_does(tmp_path: Path, platform: Simulator) -> None:
    def settings(key: str) -> Settings:
        right = account_table(platform.endpoint, tmp_path)
        return cluster_settings(tmp_path, right, {**right, "name": "us", "access_key_id": key})

    _, run, _ = await drive(settings("unknown"))
    manifest = run.manifest
    assert (manifest.exit_code, manifest.devices.answered, manifest.devices.pending) == (3, 60, 60)
    assert manifest.exit_reason is not None
    assert manifest.exit_reason.code == "refused_account"
    assert "was stopped 3 times (refused_account)" in str(manifest.error)
    assert auditor.verify_run(run.folder) == []
    _, run, _ = await drive(settings(DEFAULT_ACCOUNT.access_key_id))
    assert run.manifest.exit_code == 0, "a run that is sealed is not continued"


@pytest.mark.parametrize(("alone", "is_sealed"), [(True, True), (False, False)])
async def test_an_account_is_unreachable_only_if_no_lane_reaches_it(
    settings: Settings, *, alone: bool, is_sealed: bool
) -> None:
    def lose(name: str, _start: int) -> Outcome:
        lost = alone or name.startswith("0001")
        return EndedShard(name, 3, reason="unreachable_account") if lost else "work"

    if not is_sealed:
        with pytest.raises(AuditStoppedError, match="shard eu 2/3: it ended with exit code 3 at the last of 3 starts"):
            await drive(settings, lose)
        return
    _, run, _ = await drive(settings, lose)
    assert run.manifest.exit_reason is not None
    assert run.manifest.exit_reason.code == "unreachable_account"


async def test_the_last_start_of_a_shard_decides_and_no_earlier_refusal(settings: Settings) -> None:
    def fail(name: str, start: int) -> Outcome:
        return EndedShard(name, 3, reason="refused_account" if start < MAX_STARTS else None)

    with pytest.raises(AuditStoppedError, match="the same command continues the run"):
        await drive(settings, fail)
    _, run, _ = await drive(settings)
    assert run.manifest.exit_code == 0


async def test_an_interrupted_driver_says_how_to_continue(settings: Settings) -> None:
    stop = StopToken()

    def interrupt(_name: str, _start: int) -> Outcome:
        stop.request("interrupted by SIGINT")
        return 130

    with pytest.raises(AuditInterruptedError, match="interrupted by SIGINT; the same command continues"):
        await drive(settings, interrupt, stop)
    _, run, _ = await drive(settings)
    assert run.manifest.exit_code == 0


@pytest.mark.parametrize(
    ("code", "expected"), [(130, AuditInterruptedError), (2, SettingsError), (75, SupersededError)]
)
async def test_why_a_run_ended_is_reported_while_its_storage_is_away(
    tmp_path: Path, settings: Settings, code: int, expected: type[AuditorError]
) -> None:
    stop = StopToken()

    def end(_name: str, _start: int) -> Outcome:
        if code == 130:
            stop.request("interrupted by SIGINT")
        if (tmp_path / "shared").exists():
            (tmp_path / "shared").rename(tmp_path / "away")
        return code

    with pytest.raises(expected):
        await drive(settings, end, stop)


async def test_other_settings_cut_a_new_run(tmp_path: Path, settings: Settings, platform: Simulator) -> None:
    with pytest.raises(SupersededError):
        await drive(settings, lambda _name, _start: 75)
    await anyio.sleep(1.01)  # names of runs have seconds
    other = cluster_settings(tmp_path, account_table(platform.endpoint, tmp_path, lanes=2, fetch_product_modules=False))
    engine, run, shown = await drive(other)
    assert (list(engine.starts), shown[0].resumed) == (["0000-eu", "0001-eu", "0002-eu"][: len(engine.starts)], False)
    assert run.manifest.exit_code == 0


@pytest.mark.slow
async def test_another_fleet_and_an_old_run_cut_a_new_run(tmp_path: Path, settings: Settings) -> None:
    with pytest.raises(SupersededError):
        await drive(settings, lambda _name, _start: 75)
    await anyio.sleep(1.01)
    fleet = tmp_path / "fleet.csv"
    fleet.write_text("".join(fleet.read_text().splitlines(keepends=True)[:-10]))
    with pytest.raises(SupersededError):
        await drive(settings, lambda _name, _start: 75)
    storage = open_run(find_run_address(str(tmp_path / "shared")))
    plan = read_plan(storage)
    assert plan.fleet.devices == 50
    old = msgspec.structs.replace(plan, started_at=format_utc(time.time() - MAX_CONTINUED_SECONDS - 60))
    storage.put(CUT_PLAN, msgspec.json.encode(old))
    await anyio.sleep(1.01)
    _, run, shown = await drive(settings)
    assert (shown[0].resumed, run.manifest.devices.answered) == (False, 50)


async def test_shards_that_end_together_start_again_together(tmp_path: Path, platform: Simulator) -> None:
    settings = cluster_settings(tmp_path, account_table(platform.endpoint, tmp_path, lanes=10))
    assert settings.cluster is not None
    settings = msgspec.structs.replace(settings, cluster=msgspec.structs.replace(settings.cluster, checkpoint=0.5))
    started = list[float]()

    def end(_name: str, start: int) -> Outcome:
        if start == 1:
            return 130
        started.append(time.monotonic())
        return 75

    with pytest.raises(SupersededError):
        await drive(settings, end)
    assert len(started) == 10
    assert max(started) - min(started) < 0.5


async def test_the_class_of_an_exception_is_in_the_sentence(tmp_path: Path, settings: Settings) -> None:
    engine = SimulatedEngine(settings, lambda name, _: EndedShard(name, None, "ModuleNotFoundError"))
    with pytest.raises(AuditStoppedError, match="shard eu 1/3: it raised ModuleNotFoundError at the last of 3 starts"):
        await run_on_engine(settings, engine.open, Path(settings.directory), stop=StopToken())


def test_an_engine_is_on_this_machine_or_behind_tls() -> None:
    assert parse_engine("dask", 7) == 7
    assert parse_engine("dask:3", 7) == 3
    for address in ("tls://scheduler:8786", "tcp://127.0.0.1:8786", "tcp://[::1]:8786", "tcp://localhost:8786"):
        assert parse_engine(address, 7) == address
    for address in ("tcp://scheduler:8786", "tcp://10.0.0.1:8786", "tcp://0.0.0.0:8786", "tcp://localhost.example:1"):
        with pytest.raises(UsageError, match="who reaches this port can run programs there"):
            parse_engine(address, 7)
    for text in (
        "",
        "dask:0",
        "dask:x",
        "dask:-1",
        "dask:99999",
        "ray",
        "http://127.0.0.1:1",
        "tls://h",
        "tcp://[:1",
        "tls://h:x",
    ):
        with pytest.raises(UsageError, match="give dask"):
            parse_engine(text, 7)
