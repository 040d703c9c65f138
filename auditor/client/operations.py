"""The platform's operations as data: names, parameters, page sizes and quotas."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from auditor.client.decoders import (
    DEVICE_DETAILS_RESPONSE,
    DEVICE_LIST_RESPONSE,
    DEVICE_ROWS_RESPONSE,
    DEVICE_STATES_RESPONSE,
    FIRMWARE_LIST_RESPONSE,
    JOB_LIST_RESPONSE,
    PRODUCT_LIST_RESPONSE,
    PRODUCT_MODULES_RESPONSE,
    TASK_LIST_RESPONSE,
    decode_documented_page,
)
from auditor.models import Device, Page

API_VERSION = "2018-01-20"

MAX_NAME_LENGTH = 256
"""Characters of a product key, device name, iot_id or module name; the platform has no longer ones."""

DEEP_LIST_ITEMS = 100_000
"""Items of a list after which some operations have a lower quota (Alibaba's pages)."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the open API.

    Attributes:
        name: value of ``Action``.
        page_size: maximum number of items of a page; 0: the operation has no pages.
        calls_per_second: documented quota of an account and all of its users (Alibaba's pages; Tuya's give none).
        deep_calls_per_second: the same for items after the first ``DEEP_LIST_ITEMS``, where it differs.
        response_type: type that names the members to keep of a response; None keeps all.
        separate_quota: name of the quota, where requests do not count against the operation's own.
        decode_page: decodes a body that is exactly as documented into a page; returns None for any other.
    """

    name: str
    page_size: int
    calls_per_second: float
    deep_calls_per_second: float | None = None
    response_type: type[msgspec.Struct] | None = None
    separate_quota: str | None = None
    decode_page: Callable[[bytes], Page | None] | None = None

    @property
    def quota_name(self) -> str:
        """Name of the quota; operations with one name share a quota."""
        return self.separate_quota or self.name


LIST_OTA_MODULE_VERSIONS_BY_DEVICE = Operation(
    name="ListOTAModuleVersionsByDevice",
    page_size=200,
    calls_per_second=10,
    decode_page=decode_documented_page,
)

QUERY_PRODUCT_LIST = Operation(
    name="QueryProductList",
    page_size=200,
    calls_per_second=50,
    deep_calls_per_second=2,
    response_type=PRODUCT_LIST_RESPONSE,
)

QUERY_DEVICE = Operation(
    name="QueryDevice",
    page_size=50,
    calls_per_second=50,
    deep_calls_per_second=2,
    response_type=DEVICE_LIST_RESPONSE,
)

QUERY_DEVICE_DEEP = replace(QUERY_DEVICE, calls_per_second=2, separate_quota="QueryDevice past 100,000")
"""QueryDevice for a page after the first ``DEEP_LIST_ITEMS`` devices of a product."""

QUERY_DEVICE_BY_SQL = Operation(
    name="QueryDeviceBySQL",
    page_size=50,
    calls_per_second=10,
    response_type=DEVICE_ROWS_RESPONSE,
)

MAX_SQL_LENGTH = 400
"""Characters of a statement of QueryDeviceBySQL (Alibaba's page on it)."""

BATCH_GET_DEVICE_STATE = Operation(
    name="BatchGetDeviceState",
    page_size=50,
    calls_per_second=50,
    response_type=DEVICE_STATES_RESPONSE,
)

BATCH_QUERY_DEVICE_DETAIL = Operation(
    name="BatchQueryDeviceDetail",
    page_size=100,
    calls_per_second=5,
    response_type=DEVICE_DETAILS_RESPONSE,
)

LIST_OTA_MODULE_BY_PRODUCT = Operation(
    name="ListOTAModuleByProduct",
    page_size=0,
    calls_per_second=10,
    response_type=PRODUCT_MODULES_RESPONSE,
)

LIST_OTA_FIRMWARE = Operation(
    name="ListOTAFirmware",
    page_size=100,
    calls_per_second=10,
    response_type=FIRMWARE_LIST_RESPONSE,
)

LIST_OTA_JOB_BY_FIRMWARE = Operation(
    name="ListOTAJobByFirmware",
    page_size=100,
    calls_per_second=10,
    response_type=JOB_LIST_RESPONSE,
)

LIST_OTA_TASK_BY_JOB = Operation(
    name="ListOTATaskByJob",
    page_size=100,
    calls_per_second=10,
    response_type=TASK_LIST_RESPONSE,
)

MAX_LISTED_TASKS = 100_000
"""Tasks of a job, or of one status of it, that can be listed (Alibaba's page on ListOTATaskByJob)."""

TASK_STATUSES = ("CONFIRM", "QUEUED", "NOTIFIED", "IN_PROGRESS", "SUCCEEDED", "FAILED", "CANCELED")
"""States of the update of a device by a job (the same page)."""

RELEASE_OPERATIONS = (LIST_OTA_FIRMWARE, LIST_OTA_JOB_BY_FIRMWARE, LIST_OTA_TASK_BY_JOB)
"""The operations that list released firmware, its update jobs, and their tasks."""

OPTIONAL_OPERATIONS = (
    BATCH_GET_DEVICE_STATE, BATCH_QUERY_DEVICE_DETAIL, LIST_OTA_MODULE_BY_PRODUCT, QUERY_DEVICE_BY_SQL,
    *RELEASE_OPERATIONS,
)  # fmt: skip
"""Operations that an audit can always do without."""

DEVICE_OPERATIONS = (LIST_OTA_MODULE_VERSIONS_BY_DEVICE, BATCH_QUERY_DEVICE_DETAIL)
"""The operations that read versions of devices of the fleet."""

DISCOVERY_OPERATIONS = (QUERY_PRODUCT_LIST, QUERY_DEVICE, QUERY_DEVICE_DEEP, QUERY_DEVICE_BY_SQL)
"""The operations that list a fleet."""


def module_version_params(device: Device, page: int, page_size: int) -> dict[str, str]:
    """Return the parameters for one page of a device's module versions.

    A device with an ``iot_id`` is named by that alone. Alibaba documents that it wins when both are given, Tuya
    documents nothing, so the request must not be ambiguous. Tuya's English page prints ``IoTID``; the name that works,
    in its Chinese original and in the vendor's SDK, is ``IotId``.
    """
    parameters = {"CurrentPage": str(page), "PageSize": str(page_size)}
    if device.iot_id is not None:
        parameters["IotId"] = device.iot_id
    elif device.product_key is not None and device.device_name is not None:
        parameters["ProductKey"] = device.product_key
        parameters["DeviceName"] = device.device_name
    return parameters


def device_state_params(devices: Sequence[Device]) -> dict[str, str]:
    """Return the parameters for the states of at most 50 devices, all with an iot_id or all of one product."""
    if devices[0].iot_id is not None:
        return {f"IotId.{number}": str(device.iot_id) for number, device in enumerate(devices, 1)}
    return device_detail_params(devices)


def device_detail_params(devices: Sequence[Device]) -> dict[str, str]:
    """Return the parameters for the details of at most 100 devices of one product."""
    names = {f"DeviceName.{number}": str(device.device_name) for number, device in enumerate(devices, 1)}
    return {"ProductKey": str(devices[0].product_key)} | names
