"""Storage of a run that several machines share: objects under keys, such as ``plan.json``.

It needs little, so that any directory or object store has it: an object that was put is listed, and is read as it was
put. Nothing is put on a condition, renamed or appended to; some object stores refuse conditions.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from auditor.errors import MissingObjectError, RunNotWritableError, StorageError
from auditor.storage.files import atomic_replace, open_contained, read_contained

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")

CHECK_FOLDER = "check"
"""Folder of the objects with which a storage is checked."""


class StoredObject(NamedTuple):
    """An object of a listing: its key, its size in bytes, and when it was put, in seconds since 1970."""

    key: str
    size: int
    modified: float


class RunStorage(Protocol):
    """Objects under keys.

    All methods block, and raise StorageError if the storage cannot be used now. What was put is never empty.

    Attributes:
        address: for messages; it contains no secret.
    """

    address: str

    def put(self, key: str, content: bytes) -> None:
        """Store an object, whole; once this returns, it is listed."""

    def put_file(self, key: str, path: Path) -> None:
        """Store the content of a file, whole."""

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Return an object; raise MissingObjectError if there is none, StorageError if it is larger."""

    def get_file(self, key: str, path: Path) -> None:
        """Write an object to a file that does not exist; raise MissingObjectError if there is none."""

    def objects(self, folder: str = "") -> Iterator[StoredObject]:
        """Yield the objects below a folder, in any order. ``folder`` is empty or ends in ``/``."""


def require_key(key: str) -> str:
    """Return a key that is safe as a path, too; raise StorageError for another one."""
    if not all(map(_SEGMENT.fullmatch, key.split("/"))):
        raise StorageError(f"{key[:80]!r}: is not a key of a run")
    return key


class DirectoryStorage:
    """A directory that all machines mount, such as one of NFS. It must exist; see ``RunStorage``."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.address = str(root)

    def put(self, key: str, content: bytes) -> None:
        """Store an object durably: its bytes are on disk before its name."""
        with self._new_file(key) as new:
            new.write_bytes(content)

    def put_file(self, key: str, path: Path) -> None:
        """Store the content of a file durably."""
        with self._new_file(key) as new:
            shutil.copyfile(path, new)

    @contextmanager
    def _new_file(self, key: str) -> Iterator[Path]:
        """Yield a new file, which is in its place once the block ends; folders below the directory are created."""
        path = self._root / require_key(key)
        try:
            mode = stat.S_IMODE(self._root.stat().st_mode)  # a directory that is not mounted is not created
            for parent in reversed(path.relative_to(self._root).parents[:-1]):
                (self._root / parent).mkdir(mode, exist_ok=True)
            self._contained(path.parent)
            with atomic_replace(path, mode=mode & 0o666) as new:
                yield new
        except (OSError, RunNotWritableError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise StorageError(f"{self.address}/{key}: cannot be written: {reason}") from error

    def get(self, key: str, *, max_bytes: int) -> bytes:
        """Return an object; a link that leads out of the directory is refused."""
        path = self._root / require_key(key)
        try:
            return read_contained(self._contained(path.parent), path.name, max_bytes=max_bytes)
        except OSError as error:
            raise self._error(key, error, "read") from error

    def get_file(self, key: str, path: Path) -> None:
        """Copy an object to a new file."""
        source = self._root / require_key(key)
        try:
            with open_contained(self._contained(source.parent), source.name) as file, path.open("xb") as new:
                shutil.copyfileobj(file, new, 1 << 20)
        except OSError as error:
            raise self._error(key, error, "read") from error

    def objects(self, folder: str = "") -> Iterator[StoredObject]:
        """Yield the files below a folder, without links and hidden files."""
        top = self._root / require_key(folder.rstrip("/")) if folder else self._root
        try:
            self._root.stat()
            yield from self._walk(top)
        except FileNotFoundError as error:
            if not self._root.is_dir():
                raise self._error(folder or ".", error, "listed") from error
        except OSError as error:
            raise self._error(folder or ".", error, "listed") from error

    def _walk(self, folder: Path) -> Iterator[StoredObject]:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda each: each.name)
        for entry in found:
            if entry.name.startswith(".") or entry.is_symlink():
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # replaced or removed meanwhile
                continue
            if stat.S_ISDIR(status.st_mode):
                yield from self._walk(Path(entry.path))
            elif stat.S_ISREG(status.st_mode):
                key = str(Path(entry.path).relative_to(self._root))
                yield StoredObject(key, status.st_size, status.st_mtime)

    def _contained(self, folder: Path) -> Path:
        """Return a folder; raise OSError if a link leads out of the directory."""
        if not folder.resolve().is_relative_to(self._root.resolve()):
            raise OSError(errno.ELOOP, "a link leads out of the storage")
        return folder

    def _error(self, key: str, error: OSError, action: str) -> StorageError:
        missing = isinstance(error, FileNotFoundError) and self._root.is_dir()
        kind = MissingObjectError if missing else StorageError
        return kind(f"{self.address}/{key}: cannot be {action}: {error.strerror or error}")


def check_storage(storage: RunStorage) -> None:
    """Check that a storage lists what was put, and keeps what was written, by two small objects that stay.

    Raises:
        StorageError: it does not, or it cannot be used.
    """
    folder, names = f"{CHECK_FOLDER}/", [secrets.token_hex(8) for _ in range(2)]
    for name in names:
        storage.put(f"{folder}{name}", name.encode())
        if f"{folder}{name}" not in {each.key for each in storage.objects(folder)}:
            raise StorageError(f"{storage.address}: does not list what was put just before, so it cannot hold runs")
    for name in names:
        if storage.get(f"{folder}{name}", max_bytes=100) != name.encode():
            raise StorageError(f"{storage.address}: returns other content than was put, so it cannot hold runs")
