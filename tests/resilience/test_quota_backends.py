"""Quotas in files: shared by processes and by limiters of one process, removed files, stopped processes."""

import fcntl
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import anyio
import pytest
import structlog

from auditor.errors import SettingsError
from auditor.resilience import quota_backends
from auditor.resilience.quota_backends import FILE_SUFFIX, MAX_FILE_AGE, FileBackend, machine_directory
from auditor.resilience.rate_limiter import AdaptiveRateLimiter
from tests.resilience.test_rate_limiter import acquire_repeatedly, max_per_second

pytestmark = [pytest.mark.anyio, pytest.mark.live]

CLIENT = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    import anyio
    from auditor.resilience.quota_backends import FileBackend
    from auditor.resilience.rate_limiter import AdaptiveRateLimiter

    async def main(path, per_second, priority):
        backend = FileBackend(Path(path), per_second)
        limiter = AdaptiveRateLimiter(per_second, backend=backend, priority=priority)
        while True:
            print(repr(await limiter.acquire()), flush=True)

    anyio.run(main, sys.argv[1], float(sys.argv[2]), sys.argv[3] == "priority")
    """
)


def start(path: Path, per_second: float, *, priority: bool = False) -> "subprocess.Popen[str]":
    """Start a process that acquires permits and prints their moments."""
    command = [sys.executable, "-c", CLIENT, str(path), str(per_second), "priority" if priority else "-"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def end(process: "subprocess.Popen[str]") -> list[float]:
    """Kill the process; return the moments of its permits."""
    process.kill()
    out, _ = process.communicate(timeout=10)
    return [float(line) for line in out.splitlines()]


def test_two_processes_share_one_quota_and_the_remaining_one_has_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    killed, remaining = start(path, 50), start(path, 50)
    assert killed.stdout is not None
    killed.stdout.readline()
    time.sleep(4)
    killed_at = time.monotonic()
    of_killed = end(killed)
    time.sleep(3)
    moments = end(remaining)
    assert max_per_second(sorted(of_killed + moments)) <= 50
    own = [moment for moment in moments if killed_at - 2.5 <= moment < killed_at]
    others = [moment for moment in of_killed if killed_at - 2.5 <= moment < killed_at]
    assert len(own) + len(others) >= 0.9 * 2.5 * 50
    assert min(len(own), len(others)) >= 0.4 * (len(own) + len(others))
    assert sum(killed_at + 0.5 <= moment < killed_at + 2.5 for moment in moments) >= 0.9 * 2 * 50


def test_a_process_with_priority_has_nearly_all_of_the_quota(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    usual, urgent = start(path, 50), start(path, 50, priority=True)
    assert urgent.stdout is not None
    urgent.stdout.readline()
    time.sleep(3)
    ended_at = time.monotonic()
    first, others = end(urgent), end(usual)
    of_first = sum(ended_at - 2 <= moment < ended_at for moment in first)
    of_others = sum(ended_at - 2 <= moment < ended_at for moment in others)
    assert of_first >= 0.8 * 2 * 48
    assert 3 <= of_others <= 0.2 * 2 * 48


async def test_limiters_of_one_process_share_a_quota_too(tmp_path: Path) -> None:
    limiters = [AdaptiveRateLimiter(40, backend=FileBackend(tmp_path / "shared", 40)) for _ in range(2)]
    permits: list[list[float]] = [[], []]

    async def take(number: int) -> None:
        permits[number] += await acquire_repeatedly(limiters[number], 5, 2.5)

    async with anyio.create_task_group() as group:
        group.start_soon(take, 0)
        group.start_soon(take, 1)
    assert max_per_second(sorted(permits[0] + permits[1])) <= 40
    assert min(map(len, permits)) >= 0.4 * sum(map(len, permits))
    assert sum(map(len, permits)) >= 0.85 * 2.5 * 40
    assert [each.other_participants for each in limiters] == [1, 1]
    for each in limiters:
        await each.close()


async def test_a_pause_of_one_process_holds_the_other(tmp_path: Path) -> None:
    one, other = (AdaptiveRateLimiter(100, backend=FileBackend(tmp_path / "shared", 100)) for _ in range(2))
    await one.acquire()
    await other.acquire()
    one.pause(0.4)
    began = time.monotonic()
    await other.acquire()
    assert time.monotonic() - began >= 0.35


async def test_throttling_of_one_process_slows_the_other(tmp_path: Path) -> None:
    one, other = (AdaptiveRateLimiter(100, backend=FileBackend(tmp_path / "shared", 100)) for _ in range(2))
    sent = [await one.acquire() for _ in range(20)]
    for sent_at in (sent[0], sent[-1]):
        one.on_throttled(sent_at)
    with anyio.fail_after(5):
        await other.acquire()
    assert other.rate == one.rate < 90


async def test_a_removed_file_is_created_again(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    one = AdaptiveRateLimiter(100, backend=FileBackend(path, 100))
    await one.acquire()
    path.unlink()
    other = AdaptiveRateLimiter(100, backend=FileBackend(path, 100))
    await other.acquire()
    for _ in range(10):
        await one.acquire()
        await other.acquire()
        await anyio.sleep(0.06)
    assert (one.other_participants, other.other_participants) == (1, 1)


async def test_a_removed_directory_stops_no_process_and_is_used_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota_backends, "FILE_CHECK_INTERVAL", 0.0)
    monkeypatch.setattr(quota_backends, "REOPEN_INTERVAL", 0.1)
    path = tmp_path / "directory" / "shared"
    path.parent.mkdir()
    one, other = (AdaptiveRateLimiter(100, backend=FileBackend(path, 100)) for _ in range(2))
    for limiter in (one, other):
        await limiter.acquire()
    shutil.rmtree(path.parent)
    with structlog.testing.capture_logs() as logs:
        with anyio.fail_after(5):
            for _ in range(20):
                await one.acquire()
                await other.acquire()
    assert [line["event"] for line in logs] == ["cannot reopen the shared quota"] * 2
    assert (one.other_participants, other.other_participants) == (1, 1)
    path.parent.mkdir()
    await anyio.sleep(0.1)
    for _ in range(2):
        await one.acquire()
        await other.acquire()
    assert path.exists()


async def test_what_was_learned_survives_a_long_retry_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditor.resilience.shared_quota.STATE_LIFETIME", 0.2)
    limiter = AdaptiveRateLimiter(100, backend=FileBackend(tmp_path / "shared", 100))
    sent = [await limiter.acquire() for _ in range(20)]
    for sent_at in sent:
        limiter.on_throttled(sent_at)
    slowed = limiter.rate
    limiter.on_throttled(sent[-1], 0.5)
    await limiter.acquire()
    assert limiter.rate == pytest.approx(slowed, rel=0.1)
    assert limiter.rate < 90


async def test_a_stopped_holder_of_the_lock_is_bypassed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_backends, "MAX_LOCK_WAIT", 0.2)
    path = tmp_path / "shared"
    limiter = AdaptiveRateLimiter(100, backend=FileBackend(path, 100))
    await limiter.acquire()
    holder = os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with structlog.testing.capture_logs() as logs:
        with anyio.fail_after(5):
            await limiter.acquire()
            await limiter.acquire()
    assert [line["event"] for line in logs] == ["another process holds the shared quota and is stopped"]
    os.close(holder)


async def test_successes_recorded_while_another_process_holds_the_lock_count_later(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    limiter = AdaptiveRateLimiter(math.inf, backend=FileBackend(path, math.inf))
    sent_at = await limiter.acquire()
    holder = os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    for _ in range(500):
        limiter.on_success(sent_at)
    before = limiter.rate
    os.close(holder)
    await limiter.acquire()
    assert limiter.rate > before


def test_a_stopped_process_holds_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    stopped, other = start(path, 20), start(path, 20)
    assert stopped.stdout is not None
    stopped.stdout.readline()
    stopped.send_signal(signal.SIGSTOP)
    stopped_at = time.monotonic()
    time.sleep(3)
    moments = end(other)
    stopped.send_signal(signal.SIGCONT)
    end(stopped)
    assert sum(stopped_at + 1 <= moment for moment in moments) >= 0.8 * 2 * 20


@pytest.mark.parametrize("mode", [0o700, 0o770, 0o777])
def test_a_file_is_writable_for_those_who_can_write_its_directory(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    FileBackend(tmp_path / "shared", 10)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == mode & 0o666


def test_the_directory_of_the_machine_is_private_and_its_unused_files_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota_backends, "MACHINE_DIRECTORY", str(tmp_path / "auditor-{user}"))
    directory = machine_directory()
    assert directory.stat().st_mode & 0o777 == 0o700
    old, new = directory / f"old{FILE_SUFFIX}", directory / f"new{FILE_SUFFIX}"
    for path in (old, new):
        FileBackend(path, 10)
    os.utime(old, (time.time() - MAX_FILE_AGE - 1,) * 2)
    assert machine_directory() == directory
    assert (old.exists(), new.exists()) == (False, True)
    directory.chmod(0o777)
    with pytest.raises(SettingsError, match="not a directory that only this user can write"):
        machine_directory()
    new.unlink()
    directory.rmdir()
    directory.symlink_to(tmp_path)
    with pytest.raises(SettingsError, match="not a directory that only this user can write"):
        machine_directory()
