"""The commands of an audit on several machines."""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.from_thread import start_blocking_portal

import auditor
from auditor.cli.app import main
from auditor.cli.commands.cluster import INDEX_VARIABLES
from auditor.cluster.attempt_log import AttemptLog, list_attempts
from auditor.cluster.cut import cut_run, read_plan
from auditor.cluster.stop import stop_shards
from auditor.cluster.storage import open_run
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests import forked
from tests.cluster.shards import account_table, assert_same_run
from tests.storage.s3 import needs_s3, simulated_s3

DEVICES = 60


def write_settings(folder: Path, *tables: dict[str, object], name: str = "nightly.toml", more: str = "") -> Path:
    (folder / "shared").mkdir(exist_ok=True)
    lines = [
        f"directory = '{folder / 'audits'}'",
        more,
        "[cluster]",
        f"storage = '{folder / 'shared'}'",
        "checkpoint = 0.5",
    ]
    for table in tables:
        lines.append("[[account]]")
        lines += [f"{key} = {toml(value)}" for key, value in table.items()]
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Simulator]:
    world = World(DEVICES, seed=2)
    world.write_fleet(tmp_path / "fleet.csv")
    simulator = Simulator(world)
    with start_blocking_portal("asyncio") as portal, portal.wrap_async_context_manager(simulator):
        yield simulator


def run_command(folder: Path, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
    return forked.run(*words, cwd=folder, env={**os.environ, **env})


def test_a_run_is_cut_queried_shown_verified_and_fetched(tmp_path: Path, platform: Simulator) -> None:
    settings = write_settings(tmp_path, account_table(platform.endpoint, tmp_path, lanes=2))
    checked = run_command(tmp_path, "check", settings)
    assert (checked.returncode, "keeps what was written" in checked.stdout) == (0, True)
    cut = run_command(tmp_path, "cut", settings)
    address = cut.stdout.strip()
    assert (cut.returncode, "2 shards" in cut.stderr) == (0, True)
    assert "waiting" in run_command(tmp_path, "status", tmp_path / "shared").stdout
    not_sealed = run_command(tmp_path, "verify", address)
    assert (not_sealed.returncode, "is not sealed" in not_sealed.stderr) == (2, True)
    variables = ({"JOB_COMPLETION_INDEX": "0"}, {"AWS_BATCH_JOB_ARRAY_INDEX": "1"}, {"SLURM_ARRAY_TASK_ID": "2"})
    for variable, place in zip(variables, (address, tmp_path / "shared", address), strict=True):
        ended = run_command(tmp_path, "shard", place, "--settings", settings, **variable)
        assert ended.returncode == 0, ended.stderr
    assert "nothing to do" in ended.stderr
    again = run_command(tmp_path, "shard", address, "--settings", settings, "--index", "0")
    assert (again.returncode, "was done already, 0 devices pending" in again.stderr) == (0, True)
    shown = run_command(tmp_path, "status", address).stdout
    assert "exit 0 (success)" in shown
    assert shown.count(" done ") == 2
    for place in (address, tmp_path / "shared", "s3://lake/run"):
        for words in (["inventory", place], ["runs", place], ["diff", place, place]):
            read = run_command(tmp_path, *words)
            assert (read.returncode, f"{place}: is a run that was cut; auditor fetch" in read.stderr) == (2, True), (
                words
            )
    verified = run_command(tmp_path, "verify", address)
    assert (verified.returncode, verified.stderr) == (0, f"{address}: verified\n")
    fetched = run_command(tmp_path, "fetch", address, tmp_path / "fetched")
    assert fetched.returncode == 0
    alone = anyio.run(auditor.run_audit, auditor.load_settings(settings)).folder
    assert_same_run(Path(fetched.stdout.strip()), alone)
    again = run_command(tmp_path, "fetch", address, tmp_path / "fetched")
    assert (again.returncode, again.stdout) == (0, fetched.stdout)
    assert "was fetched before, and is equal" in again.stderr
    changed = Path(fetched.stdout.strip()) / "inventory.csv"
    changed.write_bytes(changed.read_bytes() + b"x")
    other = run_command(tmp_path, "fetch", address, tmp_path / "fetched")
    assert (other.returncode, "exists, and is not this run" in other.stderr) == (2, True)


def test_a_damaged_part_of_a_sealed_run_does_not_verify(tmp_path: Path, platform: Simulator) -> None:
    settings = write_settings(tmp_path, account_table(platform.endpoint, tmp_path))
    address = run_command(tmp_path, "cut", settings).stdout.strip()
    assert run_command(tmp_path, "shard", address, "--settings", settings, "--index", "0").returncode == 0
    (sealed,) = (Path(address) / "sealed").iterdir()
    inventory = sealed / "inventory.csv"
    inventory.write_bytes(inventory.read_bytes().replace(b"1", b"2", 1))
    verified = run_command(tmp_path, "verify", address)
    assert (verified.returncode, "inventory.csv" in verified.stdout) == (1, True)
    (sealed / "modules.parquet").unlink()
    fetched = run_command(tmp_path, "fetch", address, tmp_path / "fetched")
    assert fetched.returncode == 3
    assert "inventory.csv: is not the file" in fetched.stderr
    assert "modules.parquet: is missing" in fetched.stderr
    assert list((tmp_path / "fetched").iterdir()) == []


def test_stop_seals_what_exists_and_later_workers_have_nothing_to_do(tmp_path: Path, platform: Simulator) -> None:
    listed = account_table(platform.endpoint, tmp_path, "us", fleet={"products": "all"})
    settings = write_settings(tmp_path, account_table(platform.endpoint, tmp_path), listed)
    address = run_command(tmp_path, "cut", settings).stdout.strip()
    assert run_command(tmp_path, "shard", address, "--settings", settings, "--index", "0").returncode == 0
    stopped = run_command(tmp_path, "stop", address)
    assert (stopped.returncode, "1 shard stopped" in stopped.stderr) == (1, True), stopped.stderr
    fetched = run_command(tmp_path, "fetch", address)
    manifest = auditor.Run(Path(tmp_path, fetched.stdout.strip())).manifest
    assert (manifest.state, manifest.devices.answered, manifest.fleet.devices) == ("partial", DEVICES, DEVICES)
    assert [each.state for each in manifest.discovery] == ["pending"]
    before = platform.counts.received
    assert run_command(tmp_path, "shard", address, "--settings", settings, "--index", "1").returncode == 0
    assert platform.counts.received == before


def test_a_shard_that_was_stopped_and_a_run_that_did_not_succeed_are_reported(
    tmp_path: Path, platform: Simulator
) -> None:
    tables = [account_table(platform.endpoint, tmp_path, name) for name in ("eu", "us")]
    settings = write_settings(tmp_path, *tables)
    address = run_command(tmp_path, "cut", settings).stdout.strip()
    storage = open_run(address)
    plan = read_plan(storage)
    stop_shards(storage, msgspec.structs.replace(plan, shards=plan.shards[1:]))
    first = run_command(tmp_path, "shard", address, "--settings", settings, "--index", "0")
    assert (first.returncode, "every device was queried" in first.stderr) == (0, True)
    assert "the sealed run did not succeed" in first.stderr
    assert "exit 1" in first.stderr
    second = run_command(tmp_path, "shard", address, "--settings", settings, "--index", "1")
    assert (second.returncode, f"was done already, {DEVICES} devices pending" in second.stderr) == (0, True)


def test_status_shows_counts_of_a_stopped_shard_and_why_a_shard_ended(tmp_path: Path, platform: Simulator) -> None:
    refused = account_table(platform.endpoint, tmp_path, "us", access_key_id="unknown")
    settings = write_settings(tmp_path, account_table(platform.endpoint, tmp_path), refused)
    address = run_command(tmp_path, "cut", settings).stdout.strip()
    assert run_command(tmp_path, "shard", address, "--settings", settings, "--index", "1").returncode == 3
    (row,) = [line for line in run_command(tmp_path, "status", address).stdout.splitlines() if line.startswith("us ")]
    assert row.split()[-1] == "refused_account"
    assert run_command(tmp_path, "stop", address).returncode == 1
    (row,) = [line for line in run_command(tmp_path, "status", address).stdout.splitlines() if line.startswith("eu ")]
    assert row.split()[-4:] == [str(DEVICES), "0", "0", "1"]


def test_what_cannot_be_cut_or_queried_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    World(5).write_fleet(tmp_path / "fleet.csv")
    table = account_table("http://127.0.0.1:1/", tmp_path)
    settings = write_settings(tmp_path, table)
    sampled = write_settings(tmp_path, table, name="sampled.toml", more="sample_size = 3")
    without = tmp_path / "without.toml"
    without.write_text(
        settings.read_text().replace("[cluster]", "").replace("storage =", "name =").replace("checkpoint = 0.5", "")
    )
    for name in ("JOB_COMPLETION_INDEX", "SLURM_ARRAY_TASK_ID", "AWS_BATCH_JOB_ARRAY_INDEX"):
        monkeypatch.delenv(name, raising=False)
    assert main(["cut", str(sampled)]) == 2
    assert "sample_size: is not for a run of shards: a sample is drawn" in capsys.readouterr().err
    assert list((tmp_path / "shared").iterdir()) == []
    (tmp_path / "shared").rename(tmp_path / "away")
    assert main(["cut", str(settings)]) == 3
    assert "is no directory now; create it, or mount it" in capsys.readouterr().err
    (tmp_path / "away").rename(tmp_path / "shared")
    assert main(["cut", str(settings)]) == 0
    address = capsys.readouterr().out.strip()
    for words, code, text in (
        (["--index", "-1"], 2, "give a number from 0 to 0"),
        ([], 2, "no index: give --index"),
        (["--index", "0", "--site", "paris"], 2, "has no shard of this run"),
    ):
        assert main(["shard", address, "--settings", str(settings), *words]) == code
        assert text in capsys.readouterr().err
    for index in ("9" * 5_000, "-1", "one"):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
        assert main(["shard", address, "--settings", str(settings)]) == 2
        assert "is no index from 0; give --index" in capsys.readouterr().err
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    lanes = write_settings(tmp_path, account_table("http://127.0.0.1:1/", tmp_path, lanes=3), name="lanes.toml")
    cut_run(auditor.load_settings(lanes), lambda _: open_run(str(tmp_path / "three"), create=True))
    for name, count in INDEX_VARIABLES.items():
        monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
        with monkeypatch.context() as patched:
            patched.setenv(name, "2")
            patched.setenv(count, "2")
            assert main(["shard", str(tmp_path / "three"), "--settings", str(lanes)]) == 2
            assert f"{count}: 2: 3 shards need as many indexes; start more, or give --index" in capsys.readouterr().err
    storage = open_run(address)
    plan = read_plan(storage)
    storage.put("plan.json", msgspec.json.encode(msgspec.structs.replace(plan, started_at="2026-11-01T02:00:00Z")))
    assert main(["shard", address, "--settings", str(settings), "--index", "0", "--newer-than", "20h"]) == 3
    assert "was cut at 2026-11-01T02:00:00Z, which is not within --newer-than 20h" in capsys.readouterr().err
    away = str(tmp_path / "away" / "20261101T020000Z-audit")
    for words in (["status"], ["verify"], ["metrics"], ["resume", "--settings", str(settings)]):
        assert main([words[0], away, *words[1:]]) == 3
        assert "is no directory now" in capsys.readouterr().err
    for command in (["stop"], ["fetch"], ["shard", "--settings", str(settings), "--index", "0"]):
        assert main([command[0], str(tmp_path / "elsewhere"), *command[1:]]) == 3
        assert "is no directory now" in capsys.readouterr().err
        assert main([command[0], str(tmp_path), *command[1:]]) == 2
        assert (
            "neither published runs nor a run" if command == ["fetch"] else "has no plan.json"
        ) in capsys.readouterr().err
    assert read_plan(open_run(address)).shards[0].devices == 5


@pytest.mark.slow
def test_resume_queries_the_shards_that_are_not_done_and_leaves_a_running_one_to_its_process(
    tmp_path: Path, platform: Simulator
) -> None:
    settings = write_settings(tmp_path, account_table(platform.endpoint, tmp_path, lanes=3))
    address = run_command(tmp_path, "cut", settings).stdout.strip()
    refused = run_command(tmp_path, "resume", address)
    assert (refused.returncode, "give those of this machine by --settings" in refused.stderr) == (2, True)
    flagged = run_command(tmp_path, "resume", address, "--settings", settings, "--priority")
    assert (flagged.returncode, "--priority: is not for a run of shards" in flagged.stderr) == (2, True)
    storage = open_run(address)
    plan = read_plan(storage)
    assert run_command(tmp_path, "shard", address, "--settings", settings, "--index", "0").returncode == 0
    AttemptLog(storage, plan.shards[1].folder).begin()  # its process is silent after three checkpoints of 0.5 s
    before = platform.counts.received
    resumed = run_command(tmp_path, "resume", tmp_path / "shared", "--settings", settings)
    assert (resumed.returncode, resumed.stdout.strip()) == (0, address), resumed.stderr
    assert "other processes query these shards" in resumed.stderr
    assert "exit 0 (success)" in resumed.stderr
    assert platform.counts.received - before <= 45
    assert [len(list_attempts(storage, each.folder)) for each in plan.shards] == [1, 2, 1]
    again = run_command(tmp_path, "resume", address, "--settings", settings)
    assert (again.returncode, platform.counts.received - before <= 45) == (0, True)
    alone = anyio.run(auditor.run_audit, auditor.load_settings(settings)).folder
    fetched = run_command(tmp_path, "fetch", address)
    assert_same_run(Path(tmp_path, fetched.stdout.strip()), alone)
    shown = run_command(tmp_path, "metrics", address)
    assert (shown.returncode, f'auditor_fleet_devices{{run="audit"}} {DEVICES}.0' in shown.stdout) == (0, True)


@pytest.mark.slow
def test_prune_keeps_the_newest_runs_of_a_storage_and_those_that_are_not_sealed(
    tmp_path: Path, platform: Simulator
) -> None:
    settings = write_settings(tmp_path, account_table(platform.endpoint, tmp_path))
    address = Path(run_command(tmp_path, "cut", settings).stdout.strip())
    assert run_command(tmp_path, "shard", address, "--settings", settings, "--index", "0").returncode == 0
    days = ("20261101", "20261102", "20261103", "20261104")
    old = [address.with_name(f"{day}T020000Z-audit") for day in days]
    for each in old:
        shutil.copytree(address, each)
    (old[0] / "run.json").unlink()  # not sealed
    (old[1] / "plan.json").unlink()  # a deletion that was killed
    shutil.rmtree(old[1] / "sealed")
    storage = tmp_path / "shared"
    words = ("prune", storage, "--keep", "2")
    shown = run_command(tmp_path, *words, "--dry-run")
    assert sorted(shown.stdout.split()) == [str(old[1]), str(old[2])]
    assert all(each.exists() for each in old)
    pruned = run_command(tmp_path, *words)
    assert (pruned.returncode, sorted(pruned.stdout.split())) == (0, [str(old[1]), str(old[2])])
    assert f"skipped: {old[0]}: is not sealed; auditor stop" in pruned.stderr
    assert "2 runs deleted, 3 kept" in pruned.stderr
    assert [each.name for each in sorted(storage.iterdir())] == [old[0].name, old[3].name, address.name, "newest"]
    assert run_command(tmp_path, "verify", storage).returncode == 0
    assert run_command(tmp_path, "prune", storage).returncode == 2
    assert "0 runs deleted" in run_command(tmp_path, "prune", storage, "--keep-days", "1").stderr
    spaced = shutil.copytree(storage, tmp_path / "our runs")
    advice = (
        run_command(tmp_path, "prune", spaced, "--keep", "1").stderr.partition("is not sealed; ")[2].splitlines()[0]
    )
    command = advice.removesuffix(" seals what it has")
    assert command == f"auditor stop '{spaced / old[0].name}'"
    assert run_command(tmp_path, *shlex.split(command)[1:]).returncode in (0, 1)
    assert (spaced / old[0].name / "run.json").exists()


@pytest.mark.slow
@needs_s3
def test_a_bucket_is_used_with_credentials_of_the_environment_alone(tmp_path: Path, platform: Simulator) -> None:
    settings = write_settings(tmp_path, account_table(platform.endpoint, tmp_path, lanes=2))
    bucket = f"s3://lake/{tmp_path.name}"
    settings.write_text(settings.read_text().replace(str(tmp_path / "shared"), bucket))
    with simulated_s3(tmp_path) as s3:
        env = s3.environment
        cut = run_command(tmp_path, "cut", settings, **env)
        assert cut.stdout.startswith(f"{bucket}/"), cut.stderr
        for index in range(2):
            ended = run_command(tmp_path, "shard", bucket, "--settings", settings, "--index", index, **env)
            assert ended.returncode == 0, ended.stderr
        assert "exit 0 (success)" in run_command(tmp_path, "status", bucket, **env).stdout
        fetched = run_command(tmp_path, "fetch", bucket, **env)
        alone = anyio.run(auditor.run_audit, auditor.load_settings(settings)).folder
        assert_same_run(Path(tmp_path, fetched.stdout.strip()), alone)
        assert "auditor_" in run_command(tmp_path, "metrics", bucket, **env).stdout
        assert "0 runs deleted, 1 kept" in run_command(tmp_path, "prune", bucket, "--keep", "1", **env).stderr
        denied = run_command(tmp_path, "status", bucket, **(env | {"AWS_ENDPOINT_URL": "https://127.0.0.1:1"}))
        assert (denied.returncode, "SECRETCANARY" in denied.stderr) == (3, False)
