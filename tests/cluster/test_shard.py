"""Shards of one run, queried one after the other in this process: their run is that of one machine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

import auditor
from auditor.cluster import mirror, progress
from auditor.cluster.attempt_log import AttemptLog, list_attempts
from auditor.cluster.cut import read_plan
from auditor.cluster.merge import seal_if_done
from auditor.cluster.plan import ShardPlan
from auditor.cluster.progress import fetch_run, read_progress
from auditor.cluster.records import FAILED, MAX_PART_BYTES, MAX_RECORD_BYTES, compress_lines, expand_lines
from auditor.cluster.shard import ShardWorker
from auditor.cluster.stop import stop_shards
from auditor.cluster.storage import RunDirectory
from auditor.config.settings import Settings
from auditor.errors import InvalidObjectError, ObjectStoreError, SettingsError, SupersededError, UsageError
from auditor.simulator.faults import Faults
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from auditor.storage.object_store import ObjectStore, open_store
from tests.cluster.memory_storage import MemoryStorage
from tests.cluster.shards import account_table, assert_same_run, cluster_settings, cut, run_all
from tests.storage.s3 import needs_s3, simulated_s3

pytestmark = pytest.mark.anyio

FAULTS = Faults(reset=0.01, unavailable=0.01, business=0.01)


async def run_alone(settings: auditor.Settings) -> Path:
    return (await auditor.run_audit(settings)).folder


@pytest.fixture(params=["directory", "memory", pytest.param("s3", marks=needs_s3)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "memory":
        yield MemoryStorage()
    elif request.param == "directory":
        (tmp_path / "run").mkdir()
        yield RunDirectory(tmp_path / "run")
    else:
        keys = {"access_key_id": "AKID", "secret_access_key": "SECRET"}
        with simulated_s3(tmp_path) as s3:
            s3.failures = 0.02
            yield open_store(f"s3://lake/cluster/{tmp_path.name}", {**s3.options, **keys})


@pytest.mark.slow
@pytest.mark.parametrize("fleet", ["filed", "mixed", "default"])
async def test_shards_give_the_run_of_one_machine(tmp_path: Path, fleet: str, storage: ObjectStore) -> None:
    world = World(300, seed=3)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, faults=FAULTS, seed=3) as platform, Simulator(World(90, seed=5)) as other:
        filed = account_table(platform.endpoint, tmp_path, lanes=3, fetch_product_modules=fleet != "default")
        listed = account_table(other.endpoint, tmp_path, "us", fleet={"products": "all"})
        accounts = [listed, filed] if fleet == "mixed" else [filed]
        changes = {"modules": ["default"]} if fleet == "default" else {}
        settings = cluster_settings(tmp_path, *accounts, **changes)
        alone = await run_alone(settings)
        _, plan = cut(settings, storage)
        assert await run_all(storage, plan, settings) == [0] * len(plan.shards)
    folder = fetch_run(storage, tmp_path / "fetched")
    assert_same_run(folder, alone)
    manifest, expected = auditor.Run(folder).manifest, auditor.Run(alone).manifest
    assert (manifest.state, manifest.exit_code, manifest.devices) == (expected.state, 0, expected.devices)
    assert (bool(manifest.fleet.sha256), manifest.modules) == (True, expected.modules)
    assert [each.devices for each in manifest.discovery] == [each.devices for each in expected.discovery]
    assert {each.state for each in read_progress(storage, plan)} == {"done"}


async def interrupted_worker(
    storage: ObjectStore, plan: ShardPlan, settings: auditor.Settings, enough: Callable[[], bool]
) -> int:
    """Run the first shard until a condition holds, then request its end."""
    stop = auditor.StopToken()
    codes: list[int] = []

    async def work() -> None:
        codes.append(await ShardWorker(storage, plan, plan.shards[0], settings, stop=stop).run())

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        while not enough() and not codes:  # noqa: ASYNC110  the storage has no event
            await anyio.sleep(0.01)
        stop.request("interrupted by a test")
    return codes[0]


def has_part(storage: ObjectStore) -> bool:
    return any("/parts/" in each.key for each in storage.list())


@pytest.mark.parametrize("fleet", ["filed", "listed"])
@pytest.mark.slow
async def test_an_interrupted_shard_is_continued_from_the_storage(tmp_path: Path, fleet: str) -> None:
    world = World(400, seed=1)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(0.01, 0.03), record_responses=True) as platform:
        source = {"products": "all"} if fleet == "listed" else {"file": str(tmp_path / "fleet.csv")}
        table = account_table(platform.endpoint, tmp_path, fleet=source)
        settings = cluster_settings(tmp_path, table, concurrency=8)
        storage, plan = cut(settings)
        assert await interrupted_worker(storage, plan, settings, lambda: has_part(storage)) == 130
        before = platform.counts.answered
        assert await run_all(storage, plan, settings) == [0]
        queried = [count for (_, page), count in (platform.responses or {}).items() if page == 1]
        assert before > 4
        assert sum(queried) == len(queried), "a device whose answer was stored was queried again"
        alone = await run_alone(settings)
    folder = fetch_run(storage, tmp_path / "fetched")
    assert_same_run(folder, alone)
    assert len(list_attempts(storage, plan.shards[0].folder)) == 2
    assert auditor.Run(folder).manifest.requests.sent >= sum(queried)


@pytest.mark.slow
async def test_a_worker_whose_shard_is_taken_over_ends_with_75(tmp_path: Path) -> None:
    world = World(400)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(0.05, 0.05)) as platform:
        settings = cluster_settings(tmp_path, account_table(platform.endpoint, tmp_path), concurrency=8)
        storage, plan = cut(settings)

        async def take_over() -> None:
            while not has_part(storage):  # noqa: ASYNC110  the storage has no event
                await anyio.sleep(0.01)
            AttemptLog(storage, plan.shards[0].folder).begin()

        async with anyio.create_task_group() as group:
            group.start_soon(take_over)
            with pytest.raises(SupersededError):
                await ShardWorker(storage, plan, plan.shards[0], settings, stop=auditor.StopToken()).run()
        assert not any(each.is_done for each in list_attempts(storage, plan.shards[0].folder).values())
        assert await run_all(storage, plan, settings) == [0]
    assert auditor.verify_run(fetch_run(storage, tmp_path / "fetched")) == []


class AbsentStorage(MemoryStorage):
    """A storage that is away for a number of operations."""

    away = 0

    def put(self, key: str, content: bytes) -> None:
        if self.away and "/parts/" in key:
            self.away -= 1
            raise ObjectStoreError("the storage is away")
        super().put(key, content)


@pytest.mark.slow
async def test_a_storage_that_is_away_pauses_the_shard_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PAUSE_SECONDS", 0.2)
    world = World(300)
    world.write_fleet(tmp_path / "fleet.csv")
    storage = AbsentStorage()
    async with Simulator(world, latency=(0.02, 0.03), record_responses=True) as platform:
        settings = cluster_settings(tmp_path, account_table(platform.endpoint, tmp_path), concurrency=4)
        _, plan = cut(settings, storage)
        storage.away = 8
        assert await run_all(storage, plan, settings) == [0]
        queried = [count for (_, page), count in (platform.responses or {}).items() if page == 1]
    assert storage.away == 0
    assert sum(queried) == len(queried)
    assert len(list_attempts(storage, plan.shards[0].folder)) == 2, "the shard was not paused"
    assert auditor.verify_run(fetch_run(storage, tmp_path / "fetched")) == []


async def test_a_storage_that_stays_away_ends_the_shard_with_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "GIVE_UP_SECONDS", 0.3)
    World(20).write_fleet(tmp_path / "fleet.csv")
    storage = AbsentStorage()
    async with Simulator(World(20)) as platform:
        settings = cluster_settings(tmp_path, account_table(platform.endpoint, tmp_path))
        _, plan = cut(settings, storage)
        storage.away = 1_000_000
        with pytest.raises(ObjectStoreError) as error:
            await run_all(storage, plan, settings)
    assert error.value.exit_code == 3


async def test_a_refused_account_ends_its_shard_with_3_and_leaves_the_others(tmp_path: Path) -> None:
    world = World(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        bad = account_table(platform.endpoint, tmp_path, "us", access_key_id="LTAIunknown")
        good = account_table(platform.endpoint, tmp_path)
        settings = cluster_settings(tmp_path, good, bad)
        storage, plan = cut(settings)
        assert await run_all(storage, plan, settings) == [0, 3]
        assert {each.shard.account: each.state for each in read_progress(storage, plan)}["eu"] == "done"
        assert not any(each.key == "run.json" for each in storage.list())


async def test_other_settings_are_refused_by_name_before_a_call(tmp_path: Path) -> None:
    World(20).write_fleet(tmp_path / "fleet.csv")
    async with Simulator(World(20)) as platform:
        settings = cluster_settings(tmp_path, account_table(platform.endpoint, tmp_path))
        storage, plan = cut(settings)
        other = cluster_settings(
            tmp_path, account_table("http://127.0.0.1:1/", tmp_path, dialect="alibaba", region_id="x")
        )
        with pytest.raises(SettingsError) as error:
            ShardWorker(storage, plan, plan.shards[0], other, stop=auditor.StopToken())
        assert platform.counts.received == 0
    assert 'account "eu": endpoint differs; account "eu": dialect differs' in str(error.value)


def test_a_storage_that_is_the_directory_of_run_folders_is_refused(tmp_path: Path) -> None:
    cluster = {"storage": f"{tmp_path}/audits/"}
    with pytest.raises(SettingsError, match='cluster: storage: is the directory that "directory" names, too'):
        cluster_settings(tmp_path, account_table("http://127.0.0.1:1/", tmp_path), cluster=cluster)


async def test_no_secret_and_no_setting_of_a_worker_reaches_the_storage(tmp_path: Path) -> None:
    world = World(40)
    world.write_fleet(tmp_path / "fleet.csv")
    marker = tmp_path / "marker-of-a-worker"
    marker.mkdir()
    async with Simulator(world) as platform:
        table: dict[str, Any] = account_table(platform.endpoint, tmp_path)
        secret = (tmp_path / "secret").read_text()
        (marker / "key").write_text(secret)
        table["access_key_secret"] = {"command": ["cat", str(marker / "key")]}
        settings = cluster_settings(tmp_path, table)
        storage, plan = cut(settings)
        assert await run_all(storage, plan, settings) == [0]
    stored = b"".join(storage.get(each.key) for each in storage.list())
    for text in (secret, "marker-of-a-worker", str(tmp_path / "audits")):
        assert text.encode() not in stored


async def run_in_memory(folder: Path) -> tuple[MemoryStorage, ShardPlan, Settings]:
    """Run all shards of thirty devices, and seal the run."""
    World(30).write_fleet(folder / "fleet.csv")
    storage = MemoryStorage()
    async with Simulator(World(30)) as platform:
        settings = cluster_settings(folder, account_table(platform.endpoint, folder))
        _, plan = cut(settings, storage)
        assert await run_all(storage, plan, settings) == [0]
    return storage, plan, settings


@pytest.mark.slow
async def test_two_processes_that_seal_the_run_store_the_same(tmp_path: Path) -> None:
    storage, plan, _ = await run_in_memory(tmp_path)
    first = storage.get("run.json")
    storage.delete(["run.json"])
    async with anyio.create_task_group() as group:
        group.start_soon(seal_if_done, storage, plan)
        group.start_soon(seal_if_done, storage, plan)
    assert storage.get("run.json") == first
    assert len({each.key.split("/")[1] for each in storage.list("sealed")}) == 1
    assert await seal_if_done(storage, plan) is None


async def test_two_processes_that_fetch_the_run_have_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, _, _ = await run_in_memory(tmp_path)
    fetch_files, folder = progress._fetch_files, tmp_path / "fetched"

    def fetch_both(*arguments: Any) -> None:
        """Let another process be faster."""
        monkeypatch.setattr(progress, "_fetch_files", fetch_files)
        fetch_run(storage, folder)
        fetch_files(*arguments)

    monkeypatch.setattr(progress, "_fetch_files", fetch_both)
    assert fetch_run(storage, folder) == folder
    assert auditor.verify_run(folder) == []
    assert [each.name for each in tmp_path.glob("*fetch*")] == ["fetched"]  # noqa: ASYNC240


async def test_a_damaged_part_ends_the_shard_immediately(tmp_path: Path) -> None:
    storage, plan, settings = await run_in_memory(tmp_path)
    part = next(each.key for each in storage.list() if "/parts/" in each.key)
    storage.delete(["run.json"])
    bomb = compress_lines(b"x" * (MAX_PART_BYTES + 1))
    for content in (storage.get(part)[:-20], b"not compressed", compress_lines(b"no line break"), bomb):
        storage.put(part, content)
        with pytest.raises(InvalidObjectError, match=f"{part}: is damaged"):
            await ShardWorker(storage, plan, plan.shards[0], settings, stop=auditor.StopToken()).run()


@pytest.mark.parametrize("name", ["shards/0000-eu/fleet.parquet", "fleet.parquet"])
async def test_a_fleet_that_is_not_that_of_the_plan_is_refused(tmp_path: Path, name: str) -> None:
    World(30).write_fleet(tmp_path / "fleet.csv")
    (tmp_path / "other.csv").write_text("".join((tmp_path / "fleet.csv").read_text().splitlines(keepends=True)[:-1]))
    async with Simulator(World(30)) as platform:
        table = account_table(platform.endpoint, tmp_path)
        settings = cluster_settings(tmp_path, table)
        storage, plan = cut(settings)
        other, _ = cut(cluster_settings(tmp_path, table | {"fleet": {"file": str(tmp_path / "other.csv")}}))
        storage.put(name, other.get(name))
        with pytest.raises(InvalidObjectError, match=f"{name}: is damaged: it is not the fleet of the run"):
            await run_all(storage, plan, settings)
        assert (platform.counts.received == 0) == name.startswith("shards")
    assert not any(each.key == "run.json" for each in storage.list())


async def test_failures_of_a_stopped_shard_are_sealed(tmp_path: Path) -> None:
    world = World(800, seed=1)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, faults=Faults(business=0.5), latency=(0.05, 0.05)) as platform:
        settings = cluster_settings(tmp_path, account_table(platform.endpoint, tmp_path), concurrency=8, max_attempts=2)
        storage, plan = cut(settings)

        def has_failure() -> bool:
            parts = [storage.get(each.key) for each in storage.list() if "/parts/" in each.key]
            return any(FAILED in expand_lines(part, "part") for part in parts)

        assert await interrupted_worker(storage, plan, settings, has_failure) == 130
    assert [each.name for each in stop_shards(storage, plan)] == [plan.shards[0].name]
    manifest = await seal_if_done(storage, plan)
    assert manifest is not None
    assert manifest.devices.failed > 0
    assert manifest.devices.pending > 0
    assert auditor.verify_run(fetch_run(storage, tmp_path / "fetched")) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../elsewhere"),
        ("name", "/tmp/x"),
        ("checkpoint", 1e9),
        ("shards", [{"name": "../../x", "account": "eu"}]),
    ],
)
async def test_a_plan_with_names_that_lead_elsewhere_is_refused(tmp_path: Path, field: str, value: object) -> None:
    World(5).write_fleet(tmp_path / "fleet.csv")
    storage, _ = cut(cluster_settings(tmp_path, account_table("http://127.0.0.1:1/", tmp_path)))
    plan = orjson.loads(storage.get("plan.json"))
    storage.put("plan.json", orjson.dumps(plan | {field: value}))
    with pytest.raises(UsageError, match="is not a plan"):
        read_plan(storage)


async def test_a_damaged_state_is_shown_and_does_not_keep_a_run_from_its_end(tmp_path: Path) -> None:
    world = World(400)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(0.01, 0.03)) as platform:
        settings = cluster_settings(tmp_path, account_table(platform.endpoint, tmp_path), concurrency=8)
        storage, plan = cut(settings)
        assert await interrupted_worker(storage, plan, settings, lambda: has_part(storage)) == 130
    for content in (b"not json", b"x" * (MAX_RECORD_BYTES + 1)):
        for each in storage.list():
            if each.key.endswith("/state.json"):
                storage.put(each.key, content)
        (shown,) = read_progress(storage, plan)
        assert (shown.state, shown.age, shown.readable) == ("silent", None, False)
    assert len(stop_shards(storage, plan)) == 1
    manifest = await seal_if_done(storage, plan)
    assert manifest is not None
    assert manifest.devices.ok > 0


async def test_a_marker_of_the_greatest_name_is_one_sentence(tmp_path: Path) -> None:
    World(5).write_fleet(tmp_path / "fleet.csv")
    storage, plan = cut(cluster_settings(tmp_path, account_table("http://127.0.0.1:1/", tmp_path)))
    storage.put(f"{plan.shards[0].folder}/markers/999999-{16 * '0'}", b"")
    with pytest.raises(InvalidObjectError, match="markers: has a marker of 999,999 attempts; delete it"):
        AttemptLog(storage, plan.shards[0].folder).begin()


async def test_a_base_that_names_something_else_is_refused(tmp_path: Path) -> None:
    World(5).write_fleet(tmp_path / "fleet.csv")
    storage, plan = cut(cluster_settings(tmp_path, account_table("http://127.0.0.1:1/", tmp_path)))
    first = AttemptLog(storage, plan.shards[0].folder)
    first.begin()
    bases: tuple[object, ...] = (
        {"snapshot": "../../secret"},
        {"parts": [["../x", 1]]},
        {"parts": [[first.name, 10**9]]},
        [],
        "x",
    )
    for base in bases:
        storage.put(f"{plan.shards[0].folder}/attempts/{first.name}/base.json", orjson.dumps(base))
        with pytest.raises(ObjectStoreError, match="was not written by an attempt"):
            AttemptLog(storage, plan.shards[0].folder).begin()
