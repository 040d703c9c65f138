"""Quotas in files: shared by processes and by limiters of one process, removed files, stopped processes."""

import fcntl
import math
import os
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
import structlog

from auditor.errors import SettingsError
from auditor.resilience import file_backend, quota_backends
from auditor.resilience.file_backend import FILE_SUFFIX, MAX_FILE_AGE, FileBackend, prepare_directory
from auditor.resilience.rate_limiter import AdaptiveRateLimiter
from auditor.resilience.shared_quota import size_for
from tests.resilience.test_rate_limiter import acquire_repeatedly, max_per_second

pytestmark = [pytest.mark.anyio, pytest.mark.live]

CLIENT = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    import anyio
    from auditor.resilience.file_backend import FileBackend
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a lost quota be shared again soon."""
    for module, name, seconds in (
        (quota_backends, "RECONNECT_INTERVAL", 0.05),
        (quota_backends, "REJOIN_DELAY", 0.1),
        (file_backend, "TIMEOUT", 0.2),
        (file_backend, "RECREATED_SECONDS", 0.1),
        (file_backend, "FILE_CHECK_INTERVAL", 0.0),
    ):
        monkeypatch.setattr(module, name, seconds)


def truncate(path: Path) -> None:
    path.write_bytes(b"")


def fill(byte: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(byte * path.stat().st_size)

    return write


def overwrite(at: int, number: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(struct.pack("=d", number))

    return write


def replace_file(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


def replace_by(create: Callable[[Path], None]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        create(path)

    return replace


def link(path: Path) -> None:
    path.symlink_to("/dev/zero")


def grow(path: Path) -> None:
    os.truncate(path, 2**30)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "truncated to the half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "truncated by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "ones": fill(b"\xff"),
    "zeros": fill(b"\0"),
    "text": fill(b"x"),
    "grown to a gigabyte": grow,
    "unlinked": Path.unlink,
    "replaced": replace_file,
    "a directory": replace_by(Path.mkdir),
    "a pipe": replace_by(os.mkfifo),
    "a link": replace_by(link),
    "no count": overwrite(size_for(0), math.nan),
    "endless count": overwrite(size_for(0), 1e18),
    "no rate": overwrite(64, math.nan),
    "endless rate": overwrite(64, 1e18),
    "negative rate": overwrite(64, -1.0),
    "a pause without end": overwrite(32, math.inf),
    "half written": overwrite(0, 7.0),
}


async def acquire_from(limiters: list[AdaptiveRateLimiter], count: int = 3) -> None:
    for _ in range(count):
        for each in limiters:
            with anyio.fail_after(1):
                await each.acquire()


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_file_stops_no_process_and_exceeds_no_quota(tmp_path: Path, quick: None, damage: str) -> None:
    path = tmp_path / "directory" / "shared"
    path.parent.mkdir()
    limiters = [AdaptiveRateLimiter(200, backend=FileBackend(path, 200)) for _ in range(2)]
    await acquire_from(limiters)
    DAMAGE[damage](path)
    expected = [] if "grown" in damage else ["quota_storage_lost"] * 2
    with structlog.testing.capture_logs() as logs:
        await acquire_from(limiters)
        assert [line["event"] for line in logs] == expected
        assert sum(each.rate for each in limiters) <= (201 if expected else 400)
        if path.is_dir():
            path.rmdir()
        elif not path.is_file() or path.is_symlink():
            path.unlink(missing_ok=True)
        await anyio.sleep(0.6 if expected else 0)
        await acquire_from(limiters)
    assert [line["event"] for line in logs[len(expected) :]] == ["quota_shared_again"] * len(expected)
    assert [each.other_participants for each in limiters] == [1, 1]
    assert path.stat().st_size >= size_for(4096)
    for each in limiters:
        await each.close()


async def test_a_quota_that_is_damaged_all_the_time_is_used_with_care(tmp_path: Path, quick: None) -> None:
    path = tmp_path / "shared"
    limiters = [AdaptiveRateLimiter(100, backend=FileBackend(path, 100)) for _ in range(2)]
    permits: list[list[float]] = [[], []]

    async def take(number: int) -> None:
        permits[number] += await acquire_repeatedly(limiters[number], 5, 2.0)

    async with anyio.create_task_group() as group:
        for number in range(2):
            group.start_soon(take, number)
        with anyio.move_on_after(2.0):
            while True:
                await anyio.sleep(0.02)
                truncate(path)
    moments = sorted(permits[0] + permits[1])
    assert max_per_second(moments) <= 125  # 200 if each used all of it
    assert len(moments) >= 70
    for each in limiters:
        await each.close()


async def test_a_removed_directory_stops_no_process_and_is_used_again_later(tmp_path: Path, quick: None) -> None:
    path = tmp_path / "directory" / "shared"
    path.parent.mkdir()
    limiters = [AdaptiveRateLimiter(100, backend=FileBackend(path, 100)) for _ in range(2)]
    for _ in range(2):
        for each in limiters:
            await each.acquire()
    shutil.rmtree(path.parent)
    with structlog.testing.capture_logs() as logs, anyio.fail_after(5):
        for _ in range(20):
            for each in limiters:
                await each.acquire()
    assert [(line["event"], line["reason"]) for line in logs] == [
        ("quota_storage_lost", "No such file or directory")
    ] * 2
    path.parent.mkdir()
    await anyio.sleep(0.6)
    assert path.exists()
    for each in limiters:
        await each.close()


def test_a_file_with_a_second_name_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "shared").hardlink_to(victim)
    with pytest.raises(OSError, match="not a regular file with one name"):
        FileBackend(tmp_path / "shared", 10)
    assert victim.read_text() == "mine"


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


async def test_a_holder_of_the_lock_stops_no_process(tmp_path: Path, quick: None) -> None:
    path = tmp_path / "shared"
    limiters = [AdaptiveRateLimiter(100, backend=FileBackend(path, 100)) for _ in range(2)]
    for _ in range(2):
        for each in limiters:
            await each.acquire()
    holder = os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with structlog.testing.capture_logs() as logs:
        with anyio.fail_after(5):
            for _ in range(20):
                for each in limiters:
                    await each.acquire()
        assert [each.rate for each in limiters] == pytest.approx([50, 50], rel=0.1)
        assert {line["reason"] for line in logs} == {"another process has held its lock for 0.2 s"}
        os.close(holder)
        await anyio.sleep(0.5)
        for _ in range(2):
            for each in limiters:
                await each.acquire()
    assert [line["event"] for line in logs[2:]] == ["quota_shared_again"] * 2
    assert [each.other_participants for each in limiters] == [1, 1]
    for each in limiters:
        await each.close()


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


@pytest.mark.slow
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


def test_a_directory_of_the_machine_is_private_and_its_unused_files_are_removed(tmp_path: Path) -> None:
    directory = tmp_path / "auditor-0"
    prepare_directory(directory)
    assert directory.stat().st_mode & 0o777 == 0o700
    old, new = directory / f"old{FILE_SUFFIX}", directory / f"new{FILE_SUFFIX}"
    for path in (old, new):
        FileBackend(path, 10)
    os.utime(old, (time.time() - MAX_FILE_AGE - 1,) * 2)
    prepare_directory(directory)
    assert (old.exists(), new.exists()) == (False, True)
    directory.chmod(0o777)
    with pytest.raises(SettingsError, match="not a directory that only this user can write"):
        prepare_directory(directory)
    new.unlink()
    directory.rmdir()
    directory.symlink_to(tmp_path)
    with pytest.raises(SettingsError, match="not a directory that only this user can write"):
        prepare_directory(directory)
