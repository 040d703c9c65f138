"""Objects in a cloud's object storage, by the library ``obstore``; see ``object_store``."""

import contextlib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import anyio

from auditor.concurrency import TimeLimit, run_to_end
from auditor.errors import InvalidObjectError, ObjectStoreError, SettingsError
from auditor.models import Secret
from auditor.storage.files import translate_os_errors
from auditor.storage.object_store import (
    MAX_FILE_BYTES,
    MAX_OBJECT_BYTES,
    OPTIONS,
    OptionValue,
    StoredObject,
    check_key,
    missing_object,
    too_large_object,
)
from auditor.text.extras import describe_extra

if TYPE_CHECKING:
    from obstore.store import ObjectStore as CloudClient

T = TypeVar("T")

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
            raise too_large_object(self.address, key, max_bytes)
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
            raise too_large_object(self.address, key, max_bytes)

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
            raise missing_object(self.address, key)
        raise ObjectStoreError(f"{failure}: {reason}")

    def _connect(
        self, scheme: str, bucket: str, folder: str, options: Mapping[str, OptionValue], seconds: float
    ) -> "CloudClient":
        """Return a client of obstore; ``seconds``: for one request."""
        try:
            from obstore import store
        except ImportError:
            raise SettingsError(f"{self.address}: needs obstore: {describe_extra('publish')}") from None
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
