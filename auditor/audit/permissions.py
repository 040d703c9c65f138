"""The operations that an audit calls besides that for module versions, and whether the access key may use them."""

from collections.abc import AsyncIterator, Iterator, Mapping

from auditor.client.operations import (
    BATCH_GET_DEVICE_STATE,
    LIST_OTA_FIRMWARE,
    LIST_OTA_JOB_BY_FIRMWARE,
    LIST_OTA_MODULE_BY_PRODUCT,
    LIST_OTA_TASK_BY_JOB,
    Operation,
    device_state_params,
)
from auditor.config.settings import Account, Settings
from auditor.engine.account_session import AccountSession
from auditor.errors import NotFoundError, OperationDeniedError, PlatformError
from auditor.models import Device

_FIRST_ITEM = {"CurrentPage": "1", "PageSize": "1"}

_UNUSED_ID = "auditor-permission-check"
"""An id that nothing has: an answer that says so comes only if the operation is permitted."""

Call = tuple[str, Operation, Mapping[str, str]]
"""The setting that needs an operation, the operation, and parameters of a call that costs little."""


def needed_calls(settings: Settings, account: Account, device: Device) -> Iterator[Call]:
    """Yield one call of each operation that the settings need for a device of the account."""
    if settings.since not in {None, "none"}:
        yield "since", BATCH_GET_DEVICE_STATE, device_state_params([device])
    product = {"ProductKey": device.product_key or _UNUSED_ID}
    if account.fetch_product_modules or (account.uses_discovery and account.fetch_product_modules is None):
        setting = "fetch_product_modules" if account.fetch_product_modules else "discovery"
        yield setting, LIST_OTA_MODULE_BY_PRODUCT, product
    if settings.released:
        yield "released", LIST_OTA_FIRMWARE, product | _FIRST_ITEM
        yield "released", LIST_OTA_JOB_BY_FIRMWARE, {"FirmwareId": _UNUSED_ID} | _FIRST_ITEM
        yield "released", LIST_OTA_TASK_BY_JOB, {"JobId": _UNUSED_ID} | _FIRST_ITEM


async def describe_missing_permissions(
    session: AccountSession, settings: Settings, account: Account, device: Device
) -> AsyncIterator[str]:
    """Call each operation that the settings need once; yield a clause for each that is denied.

    Connection states are needed to select devices, so any failure of them counts. Other failures are warnings of a run.
    """
    for setting, operation, parameters in needed_calls(settings, account, device):
        sent = await session.call_optional(operation, parameters)
        error = sent.result
        if isinstance(error, OperationDeniedError):
            yield f"{setting} needs {operation.name}, which is denied: {error}; {error.advice}"
        elif setting == "since" and isinstance(error, PlatformError) and not isinstance(error, NotFoundError):
            yield f"{setting} needs {operation.name}, which fails: {error}"
