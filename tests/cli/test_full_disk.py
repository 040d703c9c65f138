"""A full disk, a real one of a few hundred KB: one clear sentence, intact files, and a resume that completes the run."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from auditor.engine.sent_requests import SENT_REQUESTS
from auditor.runs.verify import verify_run
from auditor.simulator.world import World
from tests.cli.conftest import Auditor, Platform, StartPlatform
from tests.cli.test_run import counts_of, manifest_of
from tests.integration.test_audit import assert_matches

DEVICES = 800


@pytest.fixture(scope="module")
def _mounting() -> None:
    """Skips, and says why, where no file system can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: a disk that fills up, for only root may mount one")
    tried = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"], capture_output=True, text=True, check=False
    )
    if tried.returncode != 0:
        pytest.skip(f"NOT TESTED: a disk that fills up, for none can be mounted: {tried.stderr.strip()}")
    subprocess.run(["umount", "/mnt"], check=True)


@pytest.fixture
def disk(tmp_path: Path, _mounting: None) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk, or makes it larger."""
    mounted = tmp_path / "disk"
    mounted.mkdir()

    def of_size(size: str) -> Path:
        how = f"remount,size={size}" if mounted.is_mount() else f"size={size}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", mounted], check=True)
        return mounted

    yield of_size
    if mounted.is_mount():
        subprocess.run(["umount", "--lazy", mounted], check=True)


@pytest.fixture
def world() -> World:
    return World(DEVICES)


@pytest.fixture
def quick(start_platform: StartPlatform) -> Platform:
    return start_platform("--devices", DEVICES, "--per-second", 0)


def lines_of(path: Path) -> int:
    """How many lines a file has, every one of them whole."""
    content = path.read_bytes()
    assert content.endswith(b"\n")
    return len({json.loads(line)["iot_id"] for line in content.splitlines()})


# The fleet takes 40 KB, the reserve 64, the answers 410, and sealing them 150.
@pytest.mark.parametrize("disk_of", [("320k", "asking"), ("600k", "sealing")])
def test_a_full_disk_is_one_sentence_and_a_later_resume_completes_the_run(
    auditor: Auditor, disk: Callable[[str], Path], quick: Platform, world: World, disk_of: tuple[str, str]
) -> None:
    size, met = disk_of
    runs = disk(size) / "runs"
    done = auditor("run", quick.settings, "--out", runs)
    assert done.returncode == 3, done.stderr
    folder = Path(done.stdout.strip())
    manifest, counts = manifest_of(folder), counts_of(manifest_of(folder))
    told = {
        "asking": f"{folder}/devices.jsonl: cannot be written: No space left on device; free some space",
        "sealing": f"{folder}: cannot be sealed: ",
    }[met]
    assert manifest["state"] == "aborted"
    said = str(manifest["error"])
    assert said.startswith(told)
    assert said.count("No space left on device") == said.count("; free some space") == 1
    assert said.endswith("; free some space")
    assert done.stderr.splitlines()[-1] == f"exit 3 (cannot_write): {said}"
    assert done.stderr.count(said) == 1
    assert f"resume with: auditor resume {folder}\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert (counts["pending"] > 0, sum(counts.values())) == (met == "asking", DEVICES)
    assert lines_of(folder / "devices.jsonl") == DEVICES - counts["pending"]
    hidden = {path.name for path in folder.iterdir() if path.name.startswith(".") or path.suffix == ".new"}
    assert hidden <= {SENT_REQUESTS}  # until the run is finished
    disk("16m")
    resumed = auditor("resume", runs)
    assert (resumed.returncode, resumed.stdout.strip()) == (0, str(folder)), resumed.stderr
    assert manifest_of(folder)["state"] == "complete"
    assert verify_run(folder) == []
    assert_matches(world, folder)


@pytest.mark.slow
def test_a_resume_on_a_full_disk_loses_nothing_and_can_be_retried(
    auditor: Auditor, disk: Callable[[str], Path], quick: Platform, world: World
) -> None:
    mounted = disk("320k")
    folder = Path(auditor("run", quick.settings, "--out", mounted / "runs").stdout.strip())
    before = lines_of(folder / "devices.jsonl")
    (mounted / "in-the-way").write_bytes(os.urandom(32 * 1024))
    done = auditor("resume", folder)
    assert done.returncode == 3
    assert "; free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert lines_of(folder / "devices.jsonl") >= before
    (mounted / "in-the-way").unlink()
    disk("16m")
    assert auditor("resume", folder).returncode == 0
    assert verify_run(folder) == []
    assert_matches(world, folder)


def test_a_full_disk_at_the_start_leaves_no_files(
    auditor: Auditor, disk: Callable[[str], Path], quick: Platform
) -> None:
    runs = disk("24k") / "runs"
    done = auditor("run", quick.settings, "--out", runs)
    assert done.returncode == 3
    assert done.stderr.startswith("auditor: ")
    assert done.stderr.endswith("; free some space\n")
    assert "No space left on device" in done.stderr
    assert list(runs.iterdir()) == []
