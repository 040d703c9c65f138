"""The storage of a run that several machines share: a directory that all of them mount, or an object storage.

It needs little, so that any storage has it: what was put is listed, and is read as it was put. Nothing is put on a
condition or appended to. Credentials of an object storage come from the environment, or from the machine's role.
"""

import contextlib
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from auditor.errors import InvalidObjectError, ObjectMissingError, ObjectStoreError, UsageError
from auditor.runs.folder import CUT_PLAN, NEWEST_CUT
from auditor.storage.object_store import (
    MAX_FILE_BYTES,
    MAX_OBJECT_BYTES,
    DirectoryStore,
    ObjectStore,
    StoredObject,
    open_store,
)

CHECK_FOLDER = "check"
"""Folder of the objects with which a storage is checked."""

_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


def open_run(address: str, *, create: bool = False) -> ObjectStore:
    """Return the storage of a run; ``create`` makes its directory, but not the one above it, which may not be mounted.

    Raises:
        SettingsError: the address cannot be used.
        UsageError: its directory cannot be created.
        ObjectStoreError: its directory, or with ``create`` the one above it, does not exist now.
    """
    if "://" in address:
        return open_store(address)
    path = Path(address)
    if create:
        if not path.parent.is_dir():
            raise ObjectStoreError(f"{path.parent}: is no directory now; create it, or mount it")
        try:
            path.mkdir(0o700, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{address}: cannot be created: {error.strerror}") from error
    if not path.is_dir():
        raise ObjectStoreError(
            f"{address}: is no directory now; check that it is mounted, and what auditor cut printed"
        )
    return RunDirectory(path)


def find_object(storage: ObjectStore, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes | None:
    """Return the content of an object; None: there is no such object."""
    try:
        return storage.get(key, max_bytes=max_bytes)
    except ObjectMissingError:
        return None


def record_newest(storage: ObjectStore, audit: str, run: str) -> None:
    """Record the newest run of an audit, so that its shards are found by the address of the storage of all runs."""
    storage.put(f"{NEWEST_CUT}/{audit}", run.encode())


def find_run_address(address: str, audit: str | None = None) -> str:
    """Return the address of a run: the given one, or that of the newest run in this storage, of an audit or of all.

    Raises:
        UsageError: it has neither, or runs of several audits and none is named.
        ObjectStoreError: the storage cannot be used now.
    """
    storage = open_run(address)
    if find_object(storage, CUT_PLAN) is not None:
        return address
    audits = {each.key.rpartition("/")[2] for each in storage.list(NEWEST_CUT)}
    if audit is not None and audit in audits:
        audits = {audit}
    if not audits or (audit is not None and audit not in audits):
        raise UsageError(f"{address}: has no {CUT_PLAN}, so it is no run that was cut; give what auditor cut printed")
    if len(audits) > 1:
        raise UsageError(f"{address}: has runs of {', '.join(sorted(audits))}; give the address of one of them")
    run = storage.get(f"{NEWEST_CUT}/{audits.pop()}", max_bytes=300).decode("ascii", "replace")
    if not is_run_key(run) or "/" in run:
        raise ObjectStoreError(f"{address}: does not name its newest run")
    return join_address(address, run)


def join_address(storage: str, name: str) -> str:
    """Return the address of a run in a storage."""
    return f"{storage.rstrip('/')}/{name}"


class RunDirectory(DirectoryStore):
    """The directory of a run. If it is not mounted now, nothing is written in its place."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, create=False)
        self._folder = root.absolute()

    def put(self, key: str, content: bytes) -> None:
        """See ``ObjectStore``."""
        self._require_contained(key)
        super().put(key, content)

    def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore``."""
        self._require_contained(key)
        super().put_file(key, path)

    def get(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """See ``ObjectStore``."""
        self._require_contained(key)
        try:
            return super().get(key, max_bytes=max_bytes)
        except ObjectMissingError:
            self._require_mounted()  # otherwise nothing is missing
            raise

    def get_file(self, key: str, path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        """See ``ObjectStore``."""
        self._require_contained(key)
        super().get_file(key, path, max_bytes=max_bytes)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore``."""
        for key in keys:
            self._require_contained(key)
            super().delete([key])

    def list(self, folder: str = "") -> list[StoredObject]:
        """See ``ObjectStore``. What no process of a run writes is left out."""
        self._require_contained(f"{folder}/each" if folder else "each")
        found = [each for each in super().list(folder) if is_run_key(each.key)]
        self._require_mounted()  # otherwise the list may be a part
        return found

    def _require_mounted(self) -> None:
        if not self._folder.is_dir():
            raise ObjectStoreError(f"{self.address}: is no directory now; check that it is mounted")

    def _require_contained(self, key: str) -> None:
        """Raise ObjectStoreError if the directory is away, or a link in it leads elsewhere."""
        self._require_mounted()
        folder = (self._folder / key).parent
        if not is_run_key(key) or not folder.resolve().is_relative_to(self._folder.resolve()):
            raise InvalidObjectError(f"{self.address}/{key[:80]!r}: leads out of the run")


def is_run_key(key: str) -> bool:
    """Return whether a key is one that processes of a run write."""
    return all(map(_SEGMENT.fullmatch, key.split("/")))


def check_storage(storage: ObjectStore) -> None:
    """Check that a storage lists what was put, and keeps what was written, by two small objects.

    Raises:
        ObjectStoreError: it does not, or it cannot be used.
    """
    keys = [f"{CHECK_FOLDER}/{secrets.token_hex(8)}" for _ in range(2)]
    try:
        for key in keys:
            storage.put(key, key.encode())
            if key not in {each.key for each in storage.list(CHECK_FOLDER)}:
                raise ObjectStoreError(f"{storage.address}: does not list what was put before, so it cannot hold runs")
        for key in keys:
            storage.put(key, key.upper().encode())
            if storage.get(key, max_bytes=100) != key.upper().encode():
                raise ObjectStoreError(f"{storage.address}: returns other content than was put, so it cannot hold runs")
    finally:
        with contextlib.suppress(ObjectStoreError):  # workers may not be allowed to delete; what stays is small
            storage.delete(keys)
