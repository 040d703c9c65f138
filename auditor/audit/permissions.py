"""The operations that an audit calls by its settings, and whether the access key may use them."""

from collections.abc import Iterator, Mapping

from auditor.bulk.statements import count_statement
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
    QUERY_PRODUCT_LIST,
    Operation,
    device_detail_params,
    device_state_params,
    module_version_params,
)
from auditor.config.settings import Account, Settings
from auditor.engine.account_session import AccountSession
from auditor.errors import AccountStoppedError, NotFoundError, OperationDeniedError, PlatformError
from auditor.models import Device

_FIRST_ITEM = {"CurrentPage": "1", "PageSize": "1"}

_UNUSED_ID = "auditor-permission-check"
"""An id that nothing has: an answer that says so comes only if the operation is permitted."""

Call = tuple[str, Operation, Mapping[str, str]]
"""What needs an operation, the operation, and parameters of a call that costs little."""


def needed_calls(settings: Settings, account: Account, device: Device | None) -> Iterator[Call]:
    """Yield one call of each operation that the settings need.

    Without a device, these include the operations for devices and products. An audit that has a device has used them.
    """
    product = {"ProductKey": _UNUSED_ID if device is None or device.product_key is None else device.product_key}
    if device is None:
        device = Device(account.name, _UNUSED_ID, _UNUSED_ID, None)
        if account.uses_discovery:
            yield "discovery", QUERY_PRODUCT_LIST, _FIRST_ITEM
            yield "discovery", QUERY_DEVICE, product | _FIRST_ITEM
        yield "an audit", LIST_OTA_MODULE_VERSIONS_BY_DEVICE, module_version_params(device, 1, 1)
    if account.read != "device":
        yield "read", QUERY_DEVICE_BY_SQL, {"SQL": count_statement(product_key=_UNUSED_ID)}
    if settings.modules is not None:
        yield "modules", BATCH_QUERY_DEVICE_DETAIL, device_detail_params([Device("", _UNUSED_ID, _UNUSED_ID, None)])
    if settings.since not in {None, "none"} and account.read == "device":
        yield "since", BATCH_GET_DEVICE_STATE, device_state_params([device])
    if settings.fetches_modules_of(account):
        setting = "fetch_product_modules" if account.fetch_product_modules else "discovery"
        yield setting, LIST_OTA_MODULE_BY_PRODUCT, product
    if settings.released:
        yield "released", LIST_OTA_FIRMWARE, product | _FIRST_ITEM
        yield "released", LIST_OTA_JOB_BY_FIRMWARE, {"FirmwareId": _UNUSED_ID} | _FIRST_ITEM
        yield "released", LIST_OTA_TASK_BY_JOB, {"JobId": _UNUSED_ID} | _FIRST_ITEM


async def find_missing_permissions(
    session: AccountSession, settings: Settings, account: Account, device: Device | None = None
) -> list[str]:
    """Call each operation that the settings need once; return a clause for each that is denied.

    A platform may lack what discovery fetches by default, or what reads in bulk: then only a missing permission counts.
    Connection states are needed to select devices, so any failure of them counts. Other failures are warnings of a run.
    ``device`` is one that has been queried.
    """
    missing = []
    for feature, operation, parameters in needed_calls(settings, account, device):
        try:
            error = (await session.call_optional(operation, parameters)).result
        except AccountStoppedError:  # whatever the operation is: the account's own problem, which is reported
            break
        if isinstance(error, OperationDeniedError) and (
            error.cause == "permission" or feature not in {"discovery", "read", "modules"}
        ):
            missing.append(f"{feature} needs {operation.name}, which is denied: {error}; {error.advice}")
        elif feature == "since" and isinstance(error, PlatformError) and not isinstance(error, NotFoundError):
            missing.append(f"{feature} needs {operation.name}, which fails: {error}")
    return missing
