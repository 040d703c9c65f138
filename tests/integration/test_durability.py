"""What an audit does when the disk is slow, full or broken: whole lines only, exit 3, and a resume that ends exactly."""

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
from tests.integration.audits import SLOW, asked, assert_asked_once, assert_complete_and_true, plain, settings_at
from tests.integration.test_audit import lines_of

pytestmark = pytest.mark.anyio

LIVE = ("devices.jsonl", "failures.jsonl")


def name_of(descriptor: int) -> str:
    return Path(f"/proc/self/fd/{descriptor}").readlink().name


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of the live files was synced to disk."""
    counts: Counter[str] = Counter()
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        counts[name_of(descriptor)] += 1
        fsync(descriptor)

    monkeypatch.setattr("auditor.storage.files.os.fsync", counted)
    return counts


async def test_answers_are_synced_about_every_second_or_before_each_counts(
    tmp_path: Path, synced: Counter[str]
) -> None:
    world = plain(48)
    world.write_fleet(tmp_path / "fleet.csv")
    by_interval: dict[float, int] = {}
    async with Simulator(world, latency=(0.1, 0.11)) as platform:
        for every in (0.25, 3600.0):
            synced.clear()
            result = await auditor.run_audit(settings_at(tmp_path, platform, fsync_every=every))
            by_interval[every] = synced["devices.jsonl"]
    async with Simulator(world) as platform:
        synced.clear()
        result = await auditor.run_audit(settings_at(tmp_path, platform, fsync_every=0))
    assert_complete_and_true(world, result)
    # 12 rounds of 0.1 seconds; each file is synced besides when it is begun and when it is closed.
    besides = by_interval[3600.0]
    assert besides + 2 <= by_interval[0.25] <= besides + 7
    # At most four wait at a time, so that 48 need 12 syncs at least.
    assert 12 <= synced["devices.jsonl"] - besides <= 48


async def test_a_sync_that_fails_ends_the_run_and_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = plain(60)
    world.write_fleet(tmp_path / "fleet.csv")
    asked_of: list[int] = []
    fsync = os.fsync

    def broken(descriptor: int) -> None:
        if name_of(descriptor) == "devices.jsonl" and _is_for_writing(descriptor):
            asked_of.append(len(asked_of))
            if len(asked_of) == 5:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    async with Simulator(world, latency=SLOW) as platform:
        with monkeypatch.context() as patched:
            patched.setattr("auditor.storage.files.os.fsync", broken)
            first = await auditor.run_audit(settings_at(tmp_path, platform, fsync_every=0))
        assert len(asked_of) == 5
        assert (first.exit_code, first.manifest.state) == (3, "aborted")
        assert str(first.manifest.error) == f"{first.folder}/devices.jsonl cannot be written: Input/output error"
        assert first.manifest.devices.pending > 30
        assert auditor.verify(first.folder) == []
        result = await auditor.resume_audit(first.folder)
    assert_complete_and_true(world, result)


def _is_for_writing(descriptor: int) -> bool:
    flags = Path(f"/proc/self/fdinfo/{descriptor}").read_text().split("flags:")[1].split()[0]
    return int(flags, 8) & os.O_ACCMODE == os.O_WRONLY


def a_disk_with_room_for(bytes_left: int) -> Callable[[int, bytes], int]:
    """An ``os.write`` that fills up in the middle of a line."""
    write, room = os.write, [bytes_left]

    def limited(descriptor: int, content: bytes) -> int:
        if name_of(descriptor) != "devices.jsonl":
            return write(descriptor, content)
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = write(descriptor, content[: room[0]])
        room[0] -= taken
        return taken

    return limited


@pytest.mark.parametrize("taken_back", ["taken back", "torn"])
async def test_a_disk_that_fills_up_in_a_line_leaves_whole_lines_and_a_resume_ends_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_back: str
) -> None:
    def broken(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    world = plain(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW, record_answers=True) as platform:
        with monkeypatch.context() as patched:
            patched.setattr("auditor.storage.files.os.write", a_disk_with_room_for(7_777))
            if taken_back == "torn":
                patched.setattr("auditor.storage.files.os.ftruncate", broken)
            first = await auditor.run_audit(settings_at(tmp_path, platform))
        live = first.folder / "devices.jsonl"
        told = json.loads((first.folder / "run.json").read_text())
        assert (first.exit_code, told["state"]) == (3, "aborted")
        assert told["error"] == f"{live} cannot be written: No space left on device; free some space"
        if taken_back == "torn":
            assert live.stat().st_size == 7_777
            assert not live.read_bytes().endswith(b"\n")
        else:
            answered = lines_of(live)
            assert live.stat().st_size <= 7_777
            assert told["devices"]["ok"] == len(answered) > 0
        assert auditor.verify(first.folder) == []
        result = await auditor.resume_audit(first.folder)
        assert asked(platform).total() <= 60 + 4
    assert_complete_and_true(world, result)


async def test_failures_that_cannot_be_written_end_the_run_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def full(descriptor: int, content: bytes) -> int:
        if name_of(descriptor) == "failures.jsonl":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content)

    world = plain(40)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=SLOW, lies={5: "other_device"}) as platform:
        with monkeypatch.context() as patched:
            patched.setattr("auditor.storage.files.os.write", full)
            first = await auditor.run_audit(settings_at(tmp_path, platform))
        port = platform.port
    assert (first.exit_code, first.manifest.state) == (3, "aborted")
    assert "failures.jsonl cannot be written: No space left" in str(first.manifest.error)
    async with Simulator(world, port=port, record_answers=True) as platform:
        result = await auditor.resume_audit(first.folder)
        assert asked(platform).total() == first.manifest.devices.pending
    assert_complete_and_true(world, result)


async def test_a_live_file_that_cannot_be_opened_frees_the_folder_for_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = plain(20)
    world.write_fleet(tmp_path / "fleet.csv")
    opened = os.open

    def refused(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).endswith("failures.jsonl") and flags & os.O_APPEND:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, flags, *more, **named)

    async with Simulator(world, record_answers=True) as platform:
        with monkeypatch.context() as patched:
            patched.setattr("auditor.storage.files.os.open", refused)
            first = await auditor.run_audit(settings_at(tmp_path, platform))
        assert (first.exit_code, first.manifest.state) == (3, "aborted")
        assert "failures.jsonl cannot be written: Permission denied" in str(first.manifest.error)
        result = await auditor.resume_audit(first.folder)
        assert_asked_once(platform, world)
    assert_complete_and_true(world, result)
