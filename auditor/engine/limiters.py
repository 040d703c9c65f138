"""The gates of one account: a quota for each operation, and where each is shared with others."""

import hashlib
import math
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
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
from auditor.config.settings import Account, Settings, SharedBudget
from auditor.errors import SettingsError
from auditor.models import Secret
from auditor.resilience.quota_backends import SUFFIX, Alone, Ledger, SharedFile, place_on_this_machine
from auditor.resilience.rate_limiter import Gate, NoQuota, Quota
from auditor.resilience.redis_backend import Server, SharedRedis

log = structlog.get_logger()


_QUOTAS = {
    QUERY_PRODUCT_LIST.quota_name: "query_product_list",
    QUERY_DEVICE.quota_name: "query_device",
    QUERY_DEVICE_DEEP.quota_name: "query_device_deep",
    LIST_OTA_MODULE_BY_PRODUCT.quota_name: "list_ota_module_by_product",
    BATCH_GET_DEVICE_STATE.quota_name: "batch_get_device_state",
}
"""Where the settings tell the quota of an operation."""


class Gates:
    """An account's gates, each made when it is first needed. Use as an asynchronous context manager.

    Args:
        settings: say where quotas are shared.
        account: whose quotas.
        key_id: its access key id; processes with the same one, at the same endpoint, share.
        priority: whether to go before the others that share.
        password: of the Redis server where quotas are shared, if one is named and wants it.
    """

    def __init__(
        self, settings: Settings, account: Account, key_id: str, *, priority: bool, password: Secret | None = None
    ) -> None:
        self._settings, self._account, self._key_id, self._priority = settings, account, key_id, priority
        self._password = password
        self._gates: dict[str, Gate] = {}
        self._server: Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await _reached(self._settings, self._password)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for gate in self._gates.values():
                await gate.close()
        finally:
            if self._server is not None:
                await self._server.close()

    def of(self, operation: Operation) -> Gate:
        """The gate that an operation's requests pass.

        Raises:
            SettingsError: the place where quotas are shared cannot be used.
        """
        if operation.quota_name not in self._gates:
            per_second = self._told(operation)
            self._gates[operation.quota_name] = (
                NoQuota()
                if per_second is None
                else Quota(per_second, ledger=self._ledger(operation, per_second), priority=self._priority)
            )
        return self._gates[operation.quota_name]

    def _told(self, operation: Operation) -> float | None:
        """Requests a second that are ours: None without a quota, infinite where it is to be looked for."""
        account = self._account
        if account.per_second == "unlimited":
            return None
        if operation is LIST_OTA_MODULE_VERSIONS_BY_DEVICE:
            return math.inf if account.per_second == "auto" else account.rate
        key = _QUOTAS.get(operation.quota_name)
        quota: float | None = None if key is None else getattr(account.quotas, key)
        return (operation.per_second if quota is None else quota) * account.share

    def _ledger(self, operation: Operation, per_second: float) -> Ledger:
        budget = self._settings.budget
        if budget == "alone":
            return Alone(per_second)
        name = _name(self._account, self._key_id, operation.quota_name)
        if self._server is not None:
            return SharedRedis(self._server, name, per_second)
        if isinstance(budget, SharedBudget) and budget.directory is not None:
            try:
                return SharedFile(Path(budget.directory, name + SUFFIX), per_second)
            except OSError as error:
                raise SettingsError(f"budget: {budget.directory}: cannot be used: {error.strerror}") from error
        try:
            return SharedFile(place_on_this_machine() / (name + SUFFIX), per_second)
        except (OSError, SettingsError) as error:
            # Better an audit that knows nothing of others than none.
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            log.warning("the quota is not shared with other audits here", account=self._account.name, reason=reason)
            return Alone(per_second)


async def try_budget(settings: Settings, password: Secret | None = None) -> None:
    """Sees whether the place where quotas are shared can be used, if one is named; ``password`` is that of Redis.

    Raises:
        SettingsError: it cannot.
    """
    budget = settings.budget
    if isinstance(budget, SharedBudget) and budget.directory is not None:
        try:
            TemporaryFile(dir=budget.directory).close()
        except OSError as error:
            raise SettingsError(f"budget: {budget.directory}: cannot be written: {error.strerror}") from error
    if (server := await _reached(settings, password)) is not None:
        await server.close()


async def _reached(settings: Settings, password: Secret | None) -> Server | None:
    budget = settings.budget
    if not isinstance(budget, SharedBudget) or budget.redis is None:
        return None
    server = Server(budget.redis, password)
    await server.open()
    return server


def _name(account: Account, key_id: str, operation: str) -> str:
    """A name for the budget of an operation of an account: the same for all who ask it, and telling no key."""
    return hashlib.sha256(repr((*account.asked_at, key_id, operation)).encode()).hexdigest()[:32]
