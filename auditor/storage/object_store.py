"""Objects by key, in a directory or in a cloud's object storage: put, get, list and delete.

No conditional write is used: not every storage has one (Alibaba OSS answers 501 to ``If-None-Match``). An object is
replaced as a whole, and a list has every object that was put before.
"""

import contextlib
import errno
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Protocol

from auditor.concurrency import TimeLimit
from auditor.errors import InvalidObjectError, ObjectMissingError, ObjectStoreError, RunNotWritableError, SettingsError
from auditor.models import Secret
from auditor.storage.files import atomic_replace, open_contained, read_contained, translate_os_errors

OptionValue = str | bool | Secret

MAX_OBJECT_BYTES = 64 << 20
"""Size up to which an object is read into memory."""

MAX_FILE_BYTES = 64 << 30
"""Size up to which an object is written to a file, if the caller has no better limit."""

MAX_KEY_BYTES, MAX_SEGMENT_BYTES = 1024, 255
"""Longest key of S3, and longest name of a file."""

_BLOCK_BYTES = 8 << 20
"""Bytes of a file that are copied together."""

_STALE_SECONDS = 60.0
"""Age from which an unfinished file of a directory was left by a killed process."""

_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.new")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in a list: its key, and its size in bytes."""

    key: str
    bytes: int


class ObjectStore(Protocol):
    """Objects by key. A key is a relative path with ``/``; see ``check_key``.

    Every method raises ObjectStoreError if the storage fails, ObjectMissingError if there is no such object, and
    InvalidObjectError if one has more bytes than the limit.

    Attributes:
        address: where the objects are, without secrets.
    """

    address: str

    def put(self, key: str, content: bytes) -> None:
        """Store an object, in place of one that exists; readers see the old one or the new one, never a part."""

    def put_file(self, key: str, path: Path) -> None:
        """Store the content of a file, as ``put``, some MB in memory at a time."""

    def get(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """Return the content of an object; one that is larger is an error."""

    def get_file(self, key: str, path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        """Write the content of an object to a file, some MB in memory at a time; a larger one is an error."""

    def list(self, folder: str = "") -> list[StoredObject]:
        """Return the objects whose keys begin with ``folder`` and ``/``, in the order of their keys; "": all."""

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects; one that does not exist is accepted."""


def check_key(key: str) -> None:
    """Raise InvalidObjectError unless every storage can have an object of this key, and a directory has it inside."""
    segments = key.split("/")
    if any(segment in {"", ".", ".."} or len(segment.encode()) > MAX_SEGMENT_BYTES for segment in segments):
        raise InvalidObjectError(f"{key!r} is no key: a part of it is empty, a dot, or too long")
    if len(key.encode()) > MAX_KEY_BYTES or re.search(r"[\x00-\x1f\x7f\\]", key) or _UNFINISHED.fullmatch(segments[-1]):
        raise InvalidObjectError(f"{key!r} is no key: it is too long, or has characters that no key has")


def open_store(
    address: str, options: Mapping[str, OptionValue] | None = None, *, limit: TimeLimit | None = None
) -> ObjectStore:
    """Open a directory, or an object storage such as ``s3://bucket/folder``; nothing is sent yet.

    Credentials that are not among the options come from the environment, or from the role of the instance.

    Args:
        address: path of a directory, or an address that begins with ``s3://``, ``gs://`` or ``az://``.
        options: see ``OPTIONS``. A directory has none.
        limit: when all operations must end.

    Raises:
        SettingsError: the address or an option cannot be used, or the package ``obstore`` is not installed.
    """
    options = options or {}
    scheme, separator, rest = address.partition("://")
    if not separator:
        if options:
            raise SettingsError(f"{address}: {next(iter(options))}: a directory has no such option; leave it out")
        return DirectoryStore(Path(address))
    if scheme not in OPTIONS:
        raise SettingsError(f"{address}: give a directory, or an address with s3://, gs:// or az://")
    bucket, _, folder = rest.partition("/")
    folder = folder.strip("/")
    try:
        check_key(folder or "folder")
    except InvalidObjectError:
        bucket = ""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", bucket):
        raise SettingsError(f"{scheme}://: give {scheme}://BUCKET/FOLDER, without a password")
    for name in options:
        if name not in OPTIONS[scheme]:
            raise SettingsError(f"{address}: {name}: is no option; the options are {', '.join(OPTIONS[scheme])}")
    endpoint = options.get("endpoint")
    if endpoint is not None and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", str(endpoint)):
        raise SettingsError(f"{address}: endpoint: give https://HOST or http://HOST")  # it may have a password
    from auditor.storage.cloud_store import CloudStore

    return CloudStore(scheme, bucket, folder, options, limit or TimeLimit())


class MemoryStore:
    """Objects in the memory of this process, for tests."""

    def __init__(self) -> None:
        self.address = "memory"
        self._objects: dict[str, bytes] = {}
        self._lock = Lock()

    def put(self, key: str, content: bytes) -> None:
        """See ``ObjectStore``."""
        check_key(key)
        with self._lock:
            self._objects[key] = bytes(content)

    def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore``."""
        self.put(key, path.read_bytes())

    def get(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """See ``ObjectStore``."""
        check_key(key)
        with self._lock:
            content = self._objects.get(key)
        if content is None:
            raise missing_object(self.address, key)
        if len(content) > max_bytes:
            raise too_large_object(self.address, key, max_bytes)
        return content

    def get_file(self, key: str, path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        """See ``ObjectStore``."""
        path.write_bytes(self.get(key, max_bytes=max_bytes))

    def list(self, folder: str = "") -> list[StoredObject]:
        """See ``ObjectStore``."""
        with self._lock:
            found = [(key, len(content)) for key, content in self._objects.items()]
        return [StoredObject(key, size) for key, size in sorted(found) if not folder or key.startswith(f"{folder}/")]

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore``."""
        with self._lock:
            for key in keys:
                self._objects.pop(key, None)


class DirectoryStore:
    """Objects as the files of a directory, which is created if the folder above it exists, unless ``create`` is False.

    A file is written beside itself and renamed once it is on disk. Links that another user made are not followed.
    """

    def __init__(self, root: Path, *, create: bool = True) -> None:
        self.address = str(root)
        self._root, self._create = root.absolute(), create

    def put(self, key: str, content: bytes) -> None:
        """See ``ObjectStore``."""
        self._write(key, lambda new: new.write_bytes(content))

    def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore``."""
        self._write(key, lambda new: shutil.copyfile(path, new))

    def get(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """See ``ObjectStore``."""
        path = self._path(key)
        with self._reading(key):
            return read_contained(path.parent, path.name, max_bytes=max_bytes)

    def get_file(self, key: str, path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        """See ``ObjectStore``."""
        source = self._path(key)
        with self._reading(key), open_contained(source.parent, source.name) as content, path.open("wb") as file:
            if os.fstat(content.fileno()).st_size > max_bytes:
                raise too_large_object(self.address, key, max_bytes)
            shutil.copyfileobj(content, file, _BLOCK_BYTES)

    def list(self, folder: str = "") -> list[StoredObject]:
        """See ``ObjectStore``."""
        top = self._path(folder) if folder else self._root
        found = []
        with self._failing("cannot be listed"):
            for parent, _, names in os.walk(top, onerror=_raise_unless_missing):
                for name in names:
                    path = Path(parent, name)
                    if not _UNFINISHED.fullmatch(name):
                        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                            found.append(StoredObject(path.relative_to(self._root).as_posix(), path.lstat().st_size))
        return sorted(found, key=lambda each: each.key)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore``. Folders that become empty are deleted, too."""
        for key in keys:
            path = self._path(key)
            with self._failing(f"{key}: cannot be deleted"):
                path.unlink(missing_ok=True)
            for parent in path.parents[: key.count("/")]:
                try:
                    parent.rmdir()
                except OSError:  # not empty, or deleted meanwhile
                    break

    def _path(self, key: str) -> Path:
        check_key(key)
        return self._root / key

    def _write(self, key: str, write: Callable[[Path], object]) -> None:
        path = self._path(key)
        try:
            with self._failing(f"{key}: cannot be written"):
                if self._create:
                    self._root.mkdir(exist_ok=True)
                for folder in reversed(path.parents[: key.count("/")]):
                    folder.mkdir(exist_ok=True)
                _remove_unfinished(path)
                with atomic_replace(path) as new:
                    write(new)
        except RunNotWritableError as error:
            raise ObjectStoreError(str(error)) from error

    def _failing(self, failure: str) -> contextlib.AbstractContextManager[None]:
        return translate_os_errors(f"{self.address}: {failure}", ObjectStoreError)

    @contextlib.contextmanager
    def _reading(self, key: str) -> Iterator[None]:
        try:
            with self._failing(f"{key}: cannot be read"):
                yield
        except ObjectStoreError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError) or self._path(key).is_dir():
                raise missing_object(self.address, key) from None
            if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EFBIG:
                raise InvalidObjectError(str(error)) from error
            raise


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of a file that they were writing."""
    begin = f".{path.name[:100]}."
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            if entry.name.startswith(begin) and _UNFINISHED.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _STALE_SECONDS:
                        Path(entry.path).unlink()


OPTIONS: dict[str, dict[str, str]] = {
    "s3": {
        "access_key_id": "access_key_id",
        "secret_access_key": "secret_access_key",
        "session_token": "session_token",
        "region": "region",
        "endpoint": "endpoint",
        "virtual_hosted_style": "virtual_hosted_style_request",
        "ca_file": "",
    },
    "gs": {"service_account_file": "service_account", "ca_file": ""},
    "az": {
        "account_name": "account_name",
        "account_key": "account_key",
        "sas_token": "sas_key",
        "endpoint": "endpoint",
        "ca_file": "",
    },
}
"""Options by scheme, with the names that obstore has for them."""


def missing_object(address: str, key: str) -> ObjectMissingError:
    """Return the error for an object that a storage does not have."""
    return ObjectMissingError(f"{address}: has no {key}")


def too_large_object(address: str, key: str, max_bytes: int) -> InvalidObjectError:
    """Return the error for an object that is larger than its reader allows."""
    return InvalidObjectError(f"{address}: {key}: cannot be read: has more than {max_bytes:,} bytes")
