"""The rate limiters of one account: one for each operation's quota, shared with other processes where configured."""

import hashlib
import math
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self
from urllib.parse import urlsplit

from auditor.client.operations import (
    BATCH_GET_DEVICE_STATE,
    BATCH_QUERY_DEVICE_DETAIL,
    LIST_OTA_FIRMWARE,
    LIST_OTA_JOB_BY_FIRMWARE,
    LIST_OTA_MODULE_BY_PRODUCT,
    LIST_OTA_MODULE_VERSIONS_BY_DEVICE,
    LIST_OTA_TASK_BY_JOB,
    QUERY_DEVICE,
    QUERY_DEVICE_BY_SQL,
    QUERY_DEVICE_DEEP,
    QUERY_PRODUCT_LIST,
    Operation,
)
from auditor.config.settings import Account, Settings, SharedQuotaSettings
from auditor.errors import SettingsError
from auditor.log import log
from auditor.models import Secret
from auditor.resilience.file_backend import FILE_SUFFIX, FileBackend, machine_directories, prepare_directory
from auditor.resilience.quota_backends import LocalBackend, QuotaBackend
from auditor.resilience.rate_limiter import AdaptiveRateLimiter, RateLimiter, UnlimitedRateLimiter
from auditor.resilience.redis_backend import RedisBackend, RedisConnection

_QUOTA_KEYS = {
    QUERY_PRODUCT_LIST.quota_name: "query_product_list",
    QUERY_DEVICE.quota_name: "query_device",
    QUERY_DEVICE_DEEP.quota_name: "query_device_deep",
    QUERY_DEVICE_BY_SQL.quota_name: "query_device_by_sql",
    LIST_OTA_MODULE_BY_PRODUCT.quota_name: "list_ota_module_by_product",
    BATCH_GET_DEVICE_STATE.quota_name: "batch_get_device_state",
    BATCH_QUERY_DEVICE_DETAIL.quota_name: "batch_query_device_detail",
    LIST_OTA_FIRMWARE.quota_name: "list_ota_firmware",
    LIST_OTA_JOB_BY_FIRMWARE.quota_name: "list_ota_job_by_firmware",
    LIST_OTA_TASK_BY_JOB.quota_name: "list_ota_task_by_job",
}
"""Key under ``quotas`` in the settings for the quota of an operation."""


class AccountLimiters:
    """An account's rate limiters, each created when it is first needed. Use as an asynchronous context manager.

    Processes with the same access key at the same endpoint share the quotas; one with ``priority`` takes precedence.
    ``password`` is that of the Redis server through which quotas are shared, if one is configured.
    """

    def __init__(
        self, settings: Settings, account: Account, key_id: str, *, priority: bool, password: Secret | None = None
    ) -> None:
        self._settings, self._account, self._key_id, self._priority = settings, account, key_id, priority
        self._password = password
        self._limiters: dict[str, RateLimiter] = {}
        self._server: RedisConnection | None = None

    async def __aenter__(self) -> Self:
        name = self._quota_name(LIST_OTA_MODULE_VERSIONS_BY_DEVICE)
        self._server = await _open_server(self._settings, self._password, name)
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            for limiter in self._limiters.values():
                await limiter.close()
        finally:
            if self._server is not None:
                await self._server.close()

    def for_operation(self, operation: Operation) -> RateLimiter:
        """Return the rate limiter of an operation's requests; raise SettingsError if its quota cannot be shared."""
        if operation.quota_name not in self._limiters:
            self._limiters[operation.quota_name] = self._create_limiter(operation)
        return self._limiters[operation.quota_name]

    def _create_limiter(self, operation: Operation) -> RateLimiter:
        rate = self._configured_rate(operation)
        if rate is None:
            return UnlimitedRateLimiter()
        return AdaptiveRateLimiter(rate, backend=self._quota_backend(operation, rate), priority=self._priority)

    def _configured_rate(self, operation: Operation) -> float | None:
        """Return our requests a second: None without a quota, infinite where the quota is found by measurement."""
        account = self._account
        if account.calls_per_second == "unlimited":
            return None
        if operation is LIST_OTA_MODULE_VERSIONS_BY_DEVICE:
            return math.inf if account.calls_per_second == "auto" else account.rate
        key = _QUOTA_KEYS.get(operation.quota_name)
        quota: float | None = None if key is None else getattr(account.quotas, key)
        return (operation.calls_per_second if quota is None else quota) * account.quota_share

    def _quota_backend(self, operation: Operation, rate: float) -> QuotaBackend:
        sharing = self._settings.quota_sharing
        if sharing == "none":
            return LocalBackend(rate)
        name = self._quota_name(operation)
        if self._server is not None:
            return RedisBackend(self._server, name, rate)
        if isinstance(sharing, SharedQuotaSettings) and sharing.directory is not None:
            try:
                return FileBackend(Path(sharing.directory, name + FILE_SUFFIX), rate)
            except OSError as error:
                raise SettingsError(f"quota_sharing: {sharing.directory}: cannot be used: {error.strerror}") from error
        return self._machine_backend(name + FILE_SUFFIX, rate)

    def _quota_name(self, operation: Operation) -> str:
        """Return the name of an operation's quota: the same in all processes, and without the access key."""
        identity = (*self._account.host_and_port, self._key_id, operation.quota_name)
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:32]

    def _machine_backend(self, file: str, rate: float) -> QuotaBackend:
        """Return a quota that processes of this user on this machine share, in the first directory that can be used.

        These directories are defaults, not requests, so an audit without sharing is better than none.
        """
        account, reasons = self._account.name, []
        for directory in machine_directories(Path(self._settings.directory)):
            try:
                prepare_directory(directory)
                backend = FileBackend(directory / file, rate)
            except (OSError, SettingsError) as error:
                reasons.append(f"{directory}: {error.strerror}" if isinstance(error, OSError) else str(error))
                continue
            if reasons:
                log.warning(
                    "quota_shared_elsewhere", account=account, directory=str(directory), reason="; ".join(reasons)
                )
            return backend
        log.warning("quota_not_shared", account=account, reason="; ".join(reasons))
        return LocalBackend(rate)


async def check_quota_sharing(settings: Settings, password: Secret | None = None) -> None:
    """Raise SettingsError if the directory or Redis server through which quotas are shared cannot be used."""
    sharing = settings.quota_sharing
    if isinstance(sharing, SharedQuotaSettings) and sharing.directory is not None:
        try:
            TemporaryFile(dir=sharing.directory).close()
        except OSError as error:
            raise SettingsError(f"quota_sharing: {sharing.directory}: cannot be written: {error.strerror}") from error
    if (server := await _open_server(settings, password)) is not None:
        await server.close()
        if password is not None and sends_password_unencrypted(server.address):
            log.warning("redis_password_unencrypted", server=server.address)


def sends_password_unencrypted(address: str) -> bool:
    """Return whether a connection to a Redis server crosses a network without TLS."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    return parts.scheme == "redis" and host not in {"localhost", "::1"} and not host.startswith("127.")


async def _open_server(settings: Settings, password: Secret | None, name: str = "") -> RedisConnection | None:
    """Open the Redis server of the settings, if there is one, and check the quota of a name there."""
    sharing = settings.quota_sharing
    if not isinstance(sharing, SharedQuotaSettings) or sharing.redis is None:
        return None
    server = RedisConnection(sharing.redis, password, username=sharing.username, ca_file=sharing.ca_file)
    await server.open(name)
    return server
