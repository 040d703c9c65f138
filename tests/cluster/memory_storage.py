"""A storage in memory, and one whose operations happen in an order that a test decides."""

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeVar

from auditor.errors import ObjectStoreError
from auditor.storage.object_store import MAX_FILE_BYTES, MAX_OBJECT_BYTES, MemoryStore, StoredObject

T = TypeVar("T")

Fate = Literal["done", "refused", "lost", "killed", "killed after", "repeated"]
"""What happens to an operation: it is done; fails before or after its effect; its process is killed before or after;
or it is done, and what it put arrives once more later."""

MAX_WAIT = 10.0


class MemoryStorage(MemoryStore):
    """Objects in memory, and puts that arrive once more later."""

    def __init__(self) -> None:
        super().__init__()
        self.late: list[Callable[[], None]] = []


class Killed(BaseException):
    """The process of this thread is killed."""


class ScheduledProcess:
    """A process as a thread: before each operation on the storage it waits until a test decides its fate."""

    def __init__(self, storage: MemoryStorage, work: Callable[["ScheduledStorage"], None]) -> None:
        self._permitted, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._fate: Fate = "done"
        self._storage = ScheduledStorage(storage, self)
        self._work = work
        self.error: BaseException | None = None
        self.ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._paused.acquire(timeout=MAX_WAIT)

    def _run(self) -> None:
        try:
            self._work(self._storage)
        except BaseException as error:  # noqa: BLE001  the test looks at it
            self.error = error
        self.ended = True
        self._paused.release()

    def step(self, fate: Fate = "done") -> None:
        """Let the next operation happen, and return when the process waits again, or has ended."""
        if not self.ended:
            self._fate = fate
            self._permitted.release()
            assert self._paused.acquire(timeout=MAX_WAIT)

    def run_to_end(self) -> None:
        while not self.ended:
            self.step()

    def perform(self, operation: Callable[[], T], *, late: Callable[[], None] | None = None) -> T:
        self._paused.release()
        assert self._permitted.acquire(timeout=MAX_WAIT)
        fate = self._fate
        if fate == "killed":
            raise Killed
        if fate == "refused":
            raise ObjectStoreError("the storage is away")
        result = operation()
        if fate == "killed after":
            raise Killed
        if fate == "lost":
            raise ObjectStoreError("the answer was lost")
        if fate == "repeated" and late is not None:
            self._storage.late.append(late)
        return result


class ScheduledStorage:
    """The storage as one process sees it."""

    address = "memory"

    def __init__(self, storage: MemoryStorage, process: ScheduledProcess) -> None:
        self._inner, self._process = storage, process
        self.late = storage.late

    def put(self, key: str, content: bytes) -> None:
        put = lambda: self._inner.put(key, content)  # noqa: E731
        self._process.perform(put, late=put)

    def put_file(self, key: str, path: Path) -> None:
        self.put(key, path.read_bytes())

    def get(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        return self._process.perform(lambda: self._inner.get(key, max_bytes=max_bytes))

    def get_file(self, key: str, path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._process.perform(lambda: self._inner.get_file(key, path, max_bytes=max_bytes))

    def list(self, folder: str = "") -> list[StoredObject]:
        return self._process.perform(lambda: self._inner.list(folder))

    def delete(self, keys: Iterable[str]) -> None:
        raise AssertionError("nothing of a run is deleted")
