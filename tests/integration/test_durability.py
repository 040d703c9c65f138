"""Audits on a slow, full or broken disk: complete lines only, exit code 3, and a resume that completes the run."""

import errno
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import auditor
from auditor.simulator.server import Simulator
from tests.integration.audits import (
    SLOW_LATENCY,
    assert_complete_and_correct,
    assert_queried_once,
    plain_world,
    query_counts,
    settings_at,
)
from tests.integration.test_audit import read_lines

pytestmark = pytest.mark.anyio

JOURNALS = ("devices.jsonl", "failures.jsonl")


def file_name(descriptor: int) -> str:
    return Path(f"/proc/self/fd/{descriptor}").readlink().name


@pytest.fixture
def sync_counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the syncs of each journal to disk."""
    counts: Counter[str] = Counter()
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        counts[file_name(descriptor)] += 1
        fsync(descriptor)

    monkeypatch.setattr("auditor.storage.files.os.fsync", counted)
    return counts


@pytest.mark.slow
async def test_results_are_synced_at_the_interval_or_before_each_counts(
    tmp_path: Path, sync_counts: Counter[str]
) -> None:
    world = plain_world(48)
    world.write_fleet(tmp_path / "fleet.csv")
    by_interval: dict[float, int] = {}
    async with Simulator(world, latency=(0.1, 0.11)) as platform:
        for every in (0.25, 3600.0):
            sync_counts.clear()
            result = await auditor.run_audit(settings_at(tmp_path, platform, fsync_interval=every))
            by_interval[every] = sync_counts["devices.jsonl"]
    async with Simulator(world) as platform:
        sync_counts.clear()
        result = await auditor.run_audit(settings_at(tmp_path, platform, fsync_interval=0))
    assert_complete_and_correct(world, result)
    # 12 rounds of 0.1 seconds; each file is also synced when it is opened and closed.
    besides = by_interval[3600.0]
    assert besides + 2 <= by_interval[0.25] <= besides + 7
    # At most four wait at a time, so that 48 need 12 syncs at least.
    assert 12 <= sync_counts["devices.jsonl"] - besides <= 48


async def test_failed_sync_ends_the_run_and_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    asked_of: list[int] = []
    fsync = os.fsync

    def broken(descriptor: int) -> None:
        if file_name(descriptor) == "devices.jsonl" and _is_for_writing(descriptor):
            asked_of.append(len(asked_of))
            if len(asked_of) == 5:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    async with Simulator(world, latency=SLOW_LATENCY) as platform:
        with monkeypatch.context() as patched:
            patched.setattr("auditor.storage.files.os.fsync", broken)
            first = await auditor.run_audit(settings_at(tmp_path, platform, fsync_interval=0))
        assert len(asked_of) == 5
        assert (first.exit_code, first.manifest.state) == (3, "aborted")
        assert str(first.manifest.error) == f"{first.folder}/devices.jsonl: cannot be written: Input/output error"
        assert first.manifest.devices.pending > 30
        assert auditor.verify_run(first.folder) == []
        result = await auditor.resume_audit(first.folder)
    assert_complete_and_correct(world, result)


def _is_for_writing(descriptor: int) -> bool:
    flags = Path(f"/proc/self/fdinfo/{descriptor}").read_text().split("flags:")[1].split()[0]
    return int(flags, 8) & os.O_ACCMODE == os.O_WRONLY


def disk_with_room_for(bytes_left: int) -> Callable[[int, bytes], int]:
    """An ``os.write`` that fills up in the middle of a line."""
    write, room = os.write, [bytes_left]

    def limited(descriptor: int, content: bytes) -> int:
        if file_name(descriptor) != "devices.jsonl":
            return write(descriptor, content)
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = write(descriptor, content[: room[0]])
        room[0] -= taken
        return taken

    return limited


@pytest.mark.slow
@pytest.mark.parametrize("taken_back", ["taken back", "torn"])
async def test_full_disk_leaves_complete_lines_and_a_resume_completes_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_back: str
) -> None:
    def broken(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY, record_responses=True) as platform:
        with monkeypatch.context() as patched:
            patched.setattr("auditor.storage.files.os.write", disk_with_room_for(7_777))
            if taken_back == "torn":
                patched.setattr("auditor.storage.files.os.ftruncate", broken)
            first = await auditor.run_audit(settings_at(tmp_path, platform))
        live = first.folder / "devices.jsonl"
        manifest = json.loads((first.folder / "run.json").read_text())
        assert (first.exit_code, manifest["state"]) == (3, "aborted")
        assert manifest["error"] == f"{live}: cannot be written: No space left on device; free some space"
        if taken_back == "torn":
            assert live.stat().st_size == 7_777
            assert not live.read_bytes().endswith(b"\n")
        else:
            answered = read_lines(live)
            assert live.stat().st_size <= 7_777
            assert manifest["devices"]["ok"] == len(answered) > 0
        assert auditor.verify_run(first.folder) == []
        result = await auditor.resume_audit(first.folder)
        assert query_counts(platform).total() <= 60 + 4
    assert_complete_and_correct(world, result)


@pytest.mark.slow
async def test_failures_that_cannot_be_written_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write

    def full(descriptor: int, content: bytes) -> int:
        if file_name(descriptor) == "failures.jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content)

    world = plain_world(40)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW_LATENCY, corruptions={5: "other_device"}) as platform:
        with monkeypatch.context() as patched:
            patched.setattr("auditor.storage.files.os.write", full)
            first = await auditor.run_audit(settings_at(tmp_path, platform))
        port = platform.port
    assert (first.exit_code, first.manifest.state) == (3, "aborted")
    assert "failures.jsonl: cannot be written: No space left" in str(first.manifest.error)
    async with Simulator(world, port=port, record_responses=True) as platform:
        result = await auditor.resume_audit(first.folder)
        assert query_counts(platform).total() == first.manifest.devices.pending
    assert_complete_and_correct(world, result)


@pytest.mark.slow
async def test_journal_that_cannot_be_opened_releases_the_folder_for_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = plain_world(20)
    world.write_fleet(tmp_path / "fleet.csv")
    opened = os.open

    def refused(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).endswith("failures.jsonl") and flags & os.O_APPEND:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, flags, *more, **named)

    async with Simulator(world, record_responses=True) as platform:
        with monkeypatch.context() as patched:
            patched.setattr("auditor.storage.files.os.open", refused)
            first = await auditor.run_audit(settings_at(tmp_path, platform))
        assert (first.exit_code, first.manifest.state) == (3, "aborted")
        assert "failures.jsonl: cannot be written: Permission denied" in str(first.manifest.error)
        result = await auditor.resume_audit(first.folder)
        assert_queried_once(platform, world)
    assert_complete_and_correct(world, result)
