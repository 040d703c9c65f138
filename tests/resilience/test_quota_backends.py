"""Budgets in files, shared by real processes and by gates side by side, and what becomes of broken ones."""

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
from auditor.resilience import quota_backends as ledger_room
from auditor.resilience.quota_backends import KEPT, SUFFIX, SharedFile, place_on_this_machine
from auditor.resilience.rate_limiter import Quota
from tests.resilience.test_rate_limiter import grants_of, most_in_a_second

pytestmark = [pytest.mark.anyio, pytest.mark.live]

SENDS = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    import anyio
    from auditor.pace.ledger import SharedFile
    from auditor.pace.quota import Quota

    async def main(path, per_second, priority):
        quota = Quota(per_second, ledger=SharedFile(Path(path), per_second), priority=priority)
        while True:
            print(repr(await quota.slot()), flush=True)

    anyio.run(main, sys.argv[1], float(sys.argv[2]), sys.argv[3] == "priority")
    """
)


def start(path: Path, per_second: float, *, priority: bool = False) -> "subprocess.Popen[str]":
    """A process that takes slots and prints their moments."""
    command = [sys.executable, "-c", SENDS, str(path), str(per_second), "priority" if priority else "-"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def end(process: "subprocess.Popen[str]") -> list[float]:
    """Kills it; gives the moments of its slots."""
    process.kill()
    out, _ = process.communicate(timeout=10)
    return [float(line) for line in out.splitlines()]


def test_two_processes_keep_one_quota_and_the_one_that_stays_has_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    dies, stays = start(path, 50), start(path, 50)
    assert dies.stdout is not None
    dies.stdout.readline()
    time.sleep(4)
    killed_at = time.monotonic()
    left = end(dies)
    time.sleep(3)
    moments = end(stays)
    assert most_in_a_second(sorted(left + moments)) <= 50
    together = [moment for moment in moments if killed_at - 2.5 <= moment < killed_at]
    others = [moment for moment in left if killed_at - 2.5 <= moment < killed_at]
    assert len(together) + len(others) >= 0.9 * 2.5 * 50
    assert min(len(together), len(others)) >= 0.4 * (len(together) + len(others))
    assert sum(killed_at + 0.5 <= moment < killed_at + 2.5 for moment in moments) >= 0.9 * 2 * 50


def test_a_process_that_goes_first_has_most_of_the_quota(tmp_path: Path) -> None:
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


async def test_gates_of_one_process_share_as_well(tmp_path: Path) -> None:
    gates = [Quota(40, ledger=SharedFile(tmp_path / "shared", 40)) for _ in range(2)]
    grants: list[list[float]] = [[], []]

    async def take(number: int) -> None:
        grants[number] += await grants_of(gates[number], 5, 2.5)

    async with anyio.create_task_group() as group:
        group.start_soon(take, 0)
        group.start_soon(take, 1)
    assert most_in_a_second(sorted(grants[0] + grants[1])) <= 40
    assert min(map(len, grants)) >= 0.4 * sum(map(len, grants))
    assert sum(map(len, grants)) >= 0.85 * 2.5 * 40
    assert [gate.others for gate in gates] == [1, 1]
    for gate in gates:
        await gate.close()


async def test_a_pause_of_one_holds_the_other(tmp_path: Path) -> None:
    one, other = (Quota(100, ledger=SharedFile(tmp_path / "shared", 100)) for _ in range(2))
    await one.slot()
    await other.slot()
    one.pause(0.4)
    began = time.monotonic()
    await other.slot()
    assert time.monotonic() - began >= 0.35


async def test_what_one_is_refused_slows_the_other(tmp_path: Path) -> None:
    one, other = (Quota(100, ledger=SharedFile(tmp_path / "shared", 100)) for _ in range(2))
    sent = [await one.slot() for _ in range(20)]
    for sent_at in (sent[0], sent[-1]):
        one.refused(sent_at)
    with anyio.fail_after(5):
        await other.slot()
    assert other.rate == one.rate < 90


async def test_a_file_that_is_removed_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    one = Quota(100, ledger=SharedFile(path, 100))
    await one.slot()
    path.unlink()
    other = Quota(100, ledger=SharedFile(path, 100))
    await other.slot()
    for _ in range(10):
        await one.slot()
        await other.slot()
        await anyio.sleep(0.06)
    assert (one.others, other.others) == (1, 1)


async def test_a_directory_that_is_removed_stops_nobody_and_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_room, "LOOKED_AFTER", 0.0)
    monkeypatch.setattr(ledger_room, "AGAIN_AFTER", 0.1)
    path = tmp_path / "directory" / "shared"
    path.parent.mkdir()
    one, other = (Quota(100, ledger=SharedFile(path, 100)) for _ in range(2))
    for quota in (one, other):
        await quota.slot()
    shutil.rmtree(path.parent)
    with structlog.testing.capture_logs() as logs:
        with anyio.fail_after(5):
            for _ in range(20):
                await one.slot()
                await other.slot()
    assert [line["event"] for line in logs] == ["the shared budget cannot be opened anew"] * 2
    assert (one.others, other.others) == (1, 1)
    path.parent.mkdir()
    await anyio.sleep(0.1)
    for _ in range(2):
        await one.slot()
        await other.slot()
    assert path.exists()


async def test_a_long_wish_to_wait_is_no_reason_to_forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auditor.resilience.shared_quota.FORGOTTEN", 0.2)
    quota = Quota(100, ledger=SharedFile(tmp_path / "shared", 100))
    sent = [await quota.slot() for _ in range(20)]
    for sent_at in sent:
        quota.refused(sent_at)
    slowed = quota.rate
    quota.refused(sent[-1], 0.5)
    await quota.slot()
    assert quota.rate == pytest.approx(slowed, rel=0.1)
    assert quota.rate < 90


async def test_a_holder_that_stands_still_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_room, "STUCK", 0.2)
    path = tmp_path / "shared"
    quota = Quota(100, ledger=SharedFile(path, 100))
    await quota.slot()
    holder = os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with structlog.testing.capture_logs() as logs:
        with anyio.fail_after(5):
            await quota.slot()
            await quota.slot()
    assert [line["event"] for line in logs] == ["another process holds the shared budget and does not go on"]
    os.close(holder)


async def test_answers_told_while_another_holds_the_lock_count_later(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    quota = Quota(math.inf, ledger=SharedFile(path, math.inf))
    sent_at = await quota.slot()
    holder = os.open(path, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    for _ in range(500):
        quota.admitted(sent_at)
    before = quota.rate
    os.close(holder)
    await quota.slot()
    assert quota.rate > before


def test_a_stopped_process_keeps_no_lock(tmp_path: Path) -> None:
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
def test_a_file_can_be_written_by_whom_its_directory_can_be_written(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    SharedFile(tmp_path / "shared", 10)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == mode & 0o666


def test_the_place_of_this_machine_is_ours_alone_and_old_budgets_in_it_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_room, "ON_THIS_MACHINE", str(tmp_path / "auditor-{user}"))
    place = place_on_this_machine()
    assert place.stat().st_mode & 0o777 == 0o700
    old, new = place / f"old{SUFFIX}", place / f"new{SUFFIX}"
    for path in (old, new):
        SharedFile(path, 10)
    os.utime(old, (time.time() - KEPT - 1,) * 2)
    assert place_on_this_machine() == place
    assert (old.exists(), new.exists()) == (False, True)
    place.chmod(0o777)
    with pytest.raises(SettingsError, match="not a directory of ours alone"):
        place_on_this_machine()
    new.unlink()
    place.rmdir()
    place.symlink_to(tmp_path)
    with pytest.raises(SettingsError, match="not a directory of ours alone"):
        place_on_this_machine()
