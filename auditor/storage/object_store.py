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
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import anyio

from auditor.concurrency import TimeLimit, run_to_end
from auditor.errors import InvalidObjectError, ObjectMissingError, ObjectStoreError, RunNotWritableError, SettingsError
from auditor.models import Secret
from auditor.storage.files import atomic_replace, open_contained, read_contained, translate_os_errors

if TYPE_CHECKING:
    from obstore.store import ObjectStore as CloudClient

T = TypeVar("T")

OptionValue = str | bool | Secret

MAX_OBJECT_BYTES = 64 << 20
"""Size up to which an object is read into memory."""

MAX_FILE_BYTES = 64 << 30
"""Size up to which an object is written to a file, if the caller has no better limit."""

MAX_KEY_BYTES, MAX_SEGMENT_BYTES = 1024, 255
"""Longest key of S3, and longest name of a file."""

CALL_SECONDS, MIN_BYTES_PER_SECOND = 120.0, 100_000
"""Seconds for one operation with its retries, without the content; and the slowest connection for the content."""

REQUEST_SECONDS, CONNECT_SECONDS, MAX_RETRIES = 30.0, 10.0, 6
"""Seconds for one request of an operation, and how often one is repeated after a failure that may pass."""

_PART_BYTES, _PARTS_IN_FLIGHT = 8 << 20, 3
"""Parts in which a large file is sent and read, and how many of them are in memory while it is sent."""

_TRANSFER_SECONDS = REQUEST_SECONDS + _PARTS_IN_FLIGHT * _PART_BYTES / MIN_BYTES_PER_SECOND
"""Seconds for one request that sends or reads a part, while the other parts share the slowest connection."""

_SMALL_BYTES = 1 << 20
"""Size up to which an object is sent within ``REQUEST_SECONDS``, so that a request without answer is soon repeated."""

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
            raise _missing(self.address, key)
        if len(content) > max_bytes:
            raise _too_large(self.address, key, max_bytes)
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
                raise _too_large(self.address, key, max_bytes)
            shutil.copyfileobj(content, file, _PART_BYTES)

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
                raise _missing(self.address, key) from None
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


class CloudStore:
    """Objects in S3, or a storage with its interface, Google Cloud Storage or Azure, by the library ``obstore``.

    The text of its errors is never used: it may contain signed addresses.
    """

    _CLIENTS: ClassVar[Mapping[str, str]] = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}

    def __init__(
        self, scheme: str, bucket: str, folder: str, options: Mapping[str, OptionValue], limit: TimeLimit
    ) -> None:
        self.address = f"{scheme}://{bucket}/{folder}".rstrip("/")
        self._limit = limit
        self._client = self._connect(scheme, bucket, folder, options, REQUEST_SECONDS)
        self._transfers = self._connect(scheme, bucket, folder, options, _TRANSFER_SECONDS)

    def put(self, key: str, content: bytes) -> None:
        """See ``ObjectStore``."""
        check_key(key)
        self._call(key, "written", lambda: self._send(key, content, len(content)), len(content))

    def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore``. What a killed process has sent of a large file stays hidden in the storage."""
        check_key(key)
        size = path.stat().st_size
        self._call(key, "written", lambda: self._send(key, path, size), size)

    async def _send(self, key: str, content: bytes | Path, size: int) -> None:
        import obstore

        client = self._client if size <= _SMALL_BYTES else self._transfers
        await obstore.put_async(client, key, content, chunk_size=_PART_BYTES, max_concurrency=_PARTS_IN_FLIGHT)

    def get(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """See ``ObjectStore``."""
        import obstore

        check_key(key)

        async def read() -> bytes | None:
            result = await obstore.get_async(self._client, key)
            return None if result.meta["size"] > max_bytes else bytes(await result.bytes_async())

        content = self._call(key, "read", read, max_bytes)
        if content is None:
            raise _too_large(self.address, key, max_bytes)
        return content

    def get_file(self, key: str, path: Path, *, max_bytes: int = MAX_FILE_BYTES) -> None:
        """See ``ObjectStore``."""
        import obstore

        check_key(key)

        async def read() -> bool:
            result = await obstore.get_async(self._transfers, key)
            size = result.meta["size"]
            if size > max_bytes:
                return False
            with path.open("wb") as file:
                if size <= _PART_BYTES:
                    file.write(await result.bytes_async())
                else:  # by parts, each with its own time and retries: a whole file may take hours
                    del result
                    for start in range(0, size, _PART_BYTES):
                        end = min(size, start + _PART_BYTES)
                        file.write(await obstore.get_range_async(self._transfers, key, start=start, end=end))
                if file.tell() != size:
                    raise ConnectionError
            return True

        if not self._call(key, "read", read, None):
            raise _too_large(self.address, key, max_bytes)

    def list(self, folder: str = "") -> list[StoredObject]:
        """See ``ObjectStore``."""
        import obstore

        async def read() -> list[StoredObject]:
            found = await obstore.list(self._client, folder or None, chunk_size=1000).collect_async()
            return [StoredObject(each["path"], each["size"]) for each in found]

        return sorted(self._call(folder, "listed", read), key=lambda each: each.key)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore``."""
        import obstore

        async def delete() -> None:
            for key in keys:  # one by one: not every storage deletes several
                with contextlib.suppress(FileNotFoundError):
                    await obstore.delete_async(self._client, key)

        self._call("", "deleted", delete)

    def _call(self, key: str, verb: str, call: Callable[[], Awaitable[T]], size: int | None = 0) -> T:
        """Return what a call of obstore returns, within the time limits; ``size`` in bytes; None: unknown."""
        seconds = self._limit.remaining()
        if size is not None:
            seconds = min(seconds, CALL_SECONDS + size / MIN_BYTES_PER_SECOND)

        async def bounded() -> T:
            with anyio.fail_after(max(0.0, seconds)):
                return await call()

        failure = f"{self.address}{'/' if key else ''}{key}: cannot be {verb}"
        missing = is_fault = False
        try:
            return run_to_end(bounded)
        except TimeoutError:
            reason = f"no answer within {seconds:,.0f} s"
        except FileNotFoundError as error:
            missing, reason = verb == "read", _describe_failure(error)
        except Exception as error:  # noqa: BLE001  obstore's classes, which it does not raise for every failure
            is_fault = type(error).__name__ == "RustPanic"  # of the library: a retry repeats it
            reason = _describe_failure(error)
        if is_fault:
            raise InvalidObjectError(f"{failure}: {reason}")
        if missing and reason != _CODES["NoSuchBucket"]:
            raise _missing(self.address, key)
        raise ObjectStoreError(f"{failure}: {reason}")

    def _connect(
        self, scheme: str, bucket: str, folder: str, options: Mapping[str, OptionValue], seconds: float
    ) -> "CloudClient":
        """Return a client of obstore; ``seconds``: for one request."""
        try:
            from obstore import store
        except ImportError:
            raise SettingsError(f"{self.address}: needs obstore: pip install 'auditor[publish]'") from None
        client: dict[str, Any] = {
            "timeout": timedelta(seconds=seconds),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "allow_http": str(options.get("endpoint", "")).startswith("http://"),
        }
        if "ca_file" in options:
            with translate_os_errors(f"{options['ca_file']}: cannot be read", SettingsError):
                client["root_certificate"] = Path(str(options["ca_file"])).read_bytes()
        config = {
            OPTIONS[scheme][name]: value.reveal() if isinstance(value, Secret) else value
            for name, value in options.items()
            if OPTIONS[scheme][name]
        }
        retries = {
            "max_retries": MAX_RETRIES,
            "retry_timeout": timedelta(seconds=CALL_SECONDS / 2 + seconds - REQUEST_SECONDS),
            "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2},
        }
        kind = getattr(store, self._CLIENTS[scheme])
        try:
            opened: CloudClient = kind(
                bucket, prefix=folder or None, config=config, client_options=client, retry_config=retries
            )
        except Exception as error:  # noqa: BLE001  its text may have a key
            reason = _describe_failure(error)
        else:
            return opened
        raise SettingsError(f"{self.address}: cannot be used: {reason}; check its options")


_CODES = {
    "NoSuchBucket": "there is no such bucket",
    "ContainerNotFound": "there is no such container",
    "AccessDenied": "access is denied; check the credentials and their permissions",
    "InvalidAccessKeyId": "the access key does not exist; check the credentials",
    "SignatureDoesNotMatch": "the signature is wrong; check the secret of the access key",
    "AuthenticationFailed": "access is denied; check the credentials",
    "ExpiredToken": "the credentials have expired",
    "RequestTimeTooSkewed": "the clock of this machine is wrong",
}

_PHRASES = {
    "InvalidCertificate(": "its certificate is not trusted; check ca_file",
    '"dns error"': "its host name cannot be resolved",
    "169.254.169.254": "no credentials are configured, and this machine has no role",
    "metadata": "no credentials are configured, and this machine has no role",
    "Connection refused": "the connection is refused",
    "timed out": "no answer in time",
    "TimedOut": "no answer in time",
}
"""Parts of obstore's texts, and what they mean."""


def _describe_failure(error: Exception) -> str:
    """Return what is wrong, without the text of an error, which may contain a signed address."""
    text = str(error)
    code = re.search(r"<Code>(\w{1,60})</Code>", text)
    if code is not None and code[1] in _CODES:
        return _CODES[code[1]]
    for phrase, reason in _PHRASES.items():
        if phrase in text:
            return reason
    status = re.search(r"status code: (\d{3})\b", text)
    if status is not None:
        return f"the storage answered {status[1]}{f' ({code[1]})' if code is not None else ''}"
    if "HTTP error" in text or isinstance(error, OSError):
        return "it cannot be reached, or closed the connection"
    return f"an option or the answer is not valid ({type(error).__name__})"


def _missing(address: str, key: str) -> ObjectMissingError:
    return ObjectMissingError(f"{address}: has no {key}")


def _too_large(address: str, key: str, max_bytes: int) -> InvalidObjectError:
    return InvalidObjectError(f"{address}: {key}: cannot be read: has more than {max_bytes:,} bytes")
