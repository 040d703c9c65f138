"""What a power cut may take: an outcome counts once it is on disk, or a sync follows soon; a sync that failed is final."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from auditor.errors import RunNotWritableError
from auditor.runs import journal as disk
from auditor.runs.journal import Journal, SyncedJournal, free_reserve, line_of, reserve
from tests.runs.test_journal import answered, failed

pytestmark = pytest.mark.anyio

Paths = tuple[Path, Path]


class Disk:
    """The operating system's fsync, watched: what each file held when a sync of it began, and whether syncs may end."""

    def __init__(self) -> None:
        self.began: list[tuple[str, int]] = []
        self.may_end = threading.Event()
        self.may_end.set()
        self.error: OSError | None = None
        self._fsync = os.fsync

    def fsync(self, descriptor: int) -> None:
        self.began.append((str(Path(f"/proc/self/fd/{descriptor}").readlink()), os.fstat(descriptor).st_size))
        assert self.may_end.wait(5)
        if self.error is not None:
            error, self.error = self.error, None  # the system forgets what it could not write, and says yes next time
            raise error
        self._fsync(descriptor)

    def covered(self, path: Path) -> int:
        """Bytes of a file that the last sync that began covers."""
        return max((size for name, size in self.began if name == str(path)), default=0)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    watched = Disk()
    monkeypatch.setattr("auditor.storage.files.os.fsync", watched.fsync)
    yield watched
    watched.may_end.set()


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return tmp_path / "devices.jsonl", tmp_path / "failures.jsonl"


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not condition():  # noqa: ASYNC110  a file has no event
            await anyio.sleep(0.001)


async def test_at_0_seconds_an_outcome_counts_after_a_sync_that_began_after_its_write(
    paths: Paths, watched: Disk
) -> None:
    with Journal(*paths) as journal:
        synced = SyncedJournal(journal, 0)
        for number in range(3):
            await synced.write(answered(number))
            assert watched.covered(paths[0]) == paths[0].stat().st_size
        await synced.write(failed(3))
        assert watched.covered(paths[1]) == paths[1].stat().st_size == len(line_of(failed(3)))


async def test_outcomes_that_wait_share_a_sync_and_do_not_trust_one_that_began_before_them(
    paths: Paths, watched: Disk
) -> None:
    done: list[int] = []
    with Journal(*paths) as journal:
        synced = SyncedJournal(journal, 0)

        async def write(number: int) -> None:
            await synced.write(answered(number))
            done.append(number)

        watched.may_end.clear()
        async with anyio.create_task_group() as group:
            group.start_soon(write, 0)
            await until(lambda: watched.began)
            for number in range(1, 40):
                group.start_soon(write, number)
            await anyio.wait_all_tasks_blocked()
            # A file system that commits would hold a write up, and the requests on the event loop with it.
            assert paths[0].read_bytes().count(b"\n") == 1
            assert done == []
            watched.may_end.set()
        syncs = [size for name, size in watched.began if name == str(paths[0])]
    assert sorted(done) == list(range(40))
    assert syncs == [len(line_of(answered(0))), paths[0].stat().st_size]


async def test_at_an_interval_an_outcome_does_not_wait_for_the_disk(paths: Paths, watched: Disk) -> None:
    with Journal(*paths) as journal:
        synced = SyncedJournal(journal, 1.0)
        for number in range(5):
            await synced.write(answered(number))
        assert watched.began == []
        await synced.sync()
        assert watched.covered(paths[0]) == paths[0].stat().st_size
        before = len(watched.began)
        await synced.sync()  # nothing new
        assert len(watched.began) == before


async def test_a_sync_that_failed_is_not_asked_again_by_anybody(paths: Paths, watched: Disk) -> None:
    refused: list[int] = []

    async def use(journal: Journal) -> None:
        synced = SyncedJournal(journal, 0)

        async def write(number: int) -> None:
            with pytest.raises(RunNotWritableError, match=r"devices\.jsonl cannot be written: Input/output error"):
                await synced.write(answered(number))
            refused.append(number)

        watched.error = OSError(errno.EIO, os.strerror(errno.EIO))
        watched.may_end.clear()
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(write, number)
            await until(lambda: watched.began)
            watched.may_end.set()

    async def run() -> None:
        with Journal(*paths) as journal:
            await use(journal)

    with pytest.raises(RunNotWritableError, match="Input/output error"):
        await run()
    assert sorted(refused) == [0, 1, 2, 3, 4]
    assert [name for name, _ in watched.began].count(str(paths[0])) == 1


def test_the_reserve_takes_room_and_gives_it_back(tmp_path: Path) -> None:
    reserve(tmp_path)
    (taken,) = tmp_path.iterdir()
    assert taken.stat().st_size == disk.RESERVED
    assert taken.stat().st_blocks * 512 >= disk.RESERVED
    free_reserve(tmp_path)
    free_reserve(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_reserve_for_which_there_is_no_room_is_told_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / disk.RESERVE).symlink_to("/dev/full")
    with pytest.raises(RunNotWritableError, match=rf"^{tmp_path} cannot be written: No space left.*; free some space$"):
        reserve(tmp_path)
