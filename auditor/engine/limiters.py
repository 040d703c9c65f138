"""The rate limiters of one account: one for each operation's quota, shared with other processes where configured."""

import hashlib
import math
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

import structlog

from auditor.client.operations import (
    BATCH_GET_DEVICE_STATE,
    LIST_OTA_MODULE_BY_PRODUCT,
    LIST_OTA_MODULE_VERSIONS_BY_DEVICE,
    QUERY_DEVICE,
    QUERY_DEVICE_DEEP,
    QUERY_PRODUCT_LIST,
    Operation,
)
from auditor.config.settings import Account, Settings, SharedQuotaSettings
from auditor.errors import SettingsError
from auditor.models import Secret
from auditor.resilience.quota_backends import FILE_SUFFIX, FileBackend, LocalBackend, QuotaBackend, machine_directory
from auditor.resilience.rate_limiter import AdaptiveRateLimiter, RateLimiter, UnlimitedRateLimiter
from auditor.resilience.redis_backend import RedisBackend, RedisConnection

log = structlog.get_logger()

_QUOTA_KEYS = {
    QUERY_PRODUCT_LIST.quota_name: "query_product_list",
    QUERY_DEVICE.quota_name: "query_device",
    QUERY_DEVICE_DEEP.quota_name: "query_device_deep",
    LIST_OTA_MODULE_BY_PRODUCT.quota_name: "list_ota_module_by_product",
    BATCH_GET_DEVICE_STATE.quota_name: "batch_get_device_state",
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
        self._server = await _open_server(self._settings, self._password)
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
        # The same name in all processes, and without the access key.
        identity = (*self._account.host_and_port, self._key_id, operation.quota_name)
        name = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
        if self._server is not None:
            return RedisBackend(self._server, name, rate)
        if isinstance(sharing, SharedQuotaSettings) and sharing.directory is not None:
            try:
                return FileBackend(Path(sharing.directory, name + FILE_SUFFIX), rate)
            except OSError as error:
                raise SettingsError(f"quota_sharing: {sharing.directory}: cannot be used: {error.strerror}") from error
        try:
            return FileBackend(machine_directory() / (name + FILE_SUFFIX), rate)
        except (OSError, SettingsError) as error:
            # The directory of this machine is a default, not a request: an audit without sharing is better than none.
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            log.warning("the quota is not shared with other audits", account=self._account.name, reason=reason)
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


async def _open_server(settings: Settings, password: Secret | None) -> RedisConnection | None:
    sharing = settings.quota_sharing
    if not isinstance(sharing, SharedQuotaSettings) or sharing.redis is None:
        return None
    server = RedisConnection(sharing.redis, password)
    await server.open()
    return server
