"""What a power cut may take: an outcome counts once it is on disk, or a sync follows soon; a sync that failed is final."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from auditor.errors import RunNotWritableError
from auditor.runs.journal import RESERVE_BYTES, DiskReserve, Journal, encode_outcome
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
    with Journal(*paths, fsync_interval=0) as journal:
        for number in range(3):
            await journal.append(answered(number))
            assert watched.covered(paths[0]) == paths[0].stat().st_size
        await journal.append(failed(3))
        assert watched.covered(paths[1]) == paths[1].stat().st_size == len(encode_outcome(failed(3)))


async def test_waiting_outcomes_share_a_sync_that_began_after_their_writes(paths: Paths, watched: Disk) -> None:
    done: list[int] = []
    with Journal(*paths, fsync_interval=0) as journal:

        async def write(number: int) -> None:
            await journal.append(answered(number))
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
    assert syncs == [len(encode_outcome(answered(0))), paths[0].stat().st_size]


async def test_at_an_interval_an_outcome_does_not_wait_for_the_disk(paths: Paths, watched: Disk) -> None:
    with Journal(*paths, fsync_interval=1.0) as journal:
        for number in range(5):
            await journal.append(answered(number))
        assert watched.began == []
        await journal.sync()
        assert watched.covered(paths[0]) == paths[0].stat().st_size
        before = len(watched.began)
        await journal.sync()  # nothing new
        assert len(watched.began) == before


async def test_a_failed_sync_is_final(paths: Paths, watched: Disk) -> None:
    refused: list[int] = []

    async def use(journal: Journal) -> None:
        async def write(number: int) -> None:
            with pytest.raises(RunNotWritableError, match=r"devices\.jsonl: cannot be written: Input/output error"):
                await journal.append(answered(number))
            refused.append(number)

        watched.error = OSError(errno.EIO, os.strerror(errno.EIO))
        watched.may_end.clear()
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(write, number)
            await until(lambda: watched.began)
            watched.may_end.set()

    async def run() -> None:
        with Journal(*paths, fsync_interval=0) as journal:
            await use(journal)

    with pytest.raises(RunNotWritableError, match="Input/output error"):
        await run()
    assert sorted(refused) == [0, 1, 2, 3, 4]
    assert [name for name, _ in watched.began].count(str(paths[0])) == 1


def test_the_reserve_takes_and_frees_room(tmp_path: Path) -> None:
    reserve = DiskReserve(tmp_path)
    reserve.allocate()
    (taken,) = tmp_path.iterdir()
    assert taken.stat().st_size == RESERVE_BYTES
    assert taken.stat().st_blocks * 512 >= RESERVE_BYTES
    reserve.release()
    reserve.release()
    assert list(tmp_path.iterdir()) == []


def test_a_reserve_without_room_is_an_error_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: Path, _content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("auditor.runs.journal.create_file", full)
    with pytest.raises(
        RunNotWritableError, match=rf"^{tmp_path}: cannot be written: No space left.*; free some space$"
    ):
        DiskReserve(tmp_path).allocate()
