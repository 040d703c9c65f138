"""The platform's operations as data: names, parameters, page rules, and where an answer keeps its items."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from auditor.client.decoders import DEFINED_MODULES, DEVICES, PRODUCTS, STATES, documented_page
from auditor.models import Device, Page

API_VERSION = "2018-01-20"


DEEP = 100_000
"""Items of a list past which some operations have a lower quota (Alibaba's pages)."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the open API.

    Attributes:
        name: the value of ``Action``.
        required: parameters that every request has.
        optional: parameters that a request may have.
        page_size: the most items that a page may hold; 0: there are no pages.
        items: the name, in lower case, of the array under ``data`` that holds the items.
        per_second: the documented quota of an account, in calls per second, shared by all of its users (Alibaba's
            pages; Tuya's give none).
        per_second_deep: the same for items past the first ``DEEP``, where that is another one.
        kept: what is kept of its answers; None: everything.
        documented: reads the page of an answer that is just as documented, None of any other.
        counted_as: the name of its quota, where that is not the operation's own.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    page_size: int
    items: str
    per_second: float
    per_second_deep: float | None = None
    kept: type[msgspec.Struct] | None = None
    counted_as: str | None = None
    documented: Callable[[bytes], Page | None] | None = None

    @property
    def quota_name(self) -> str:
        """What its requests are counted as: operations of one name share a quota."""
        return self.counted_as or self.name


LIST_OTA_MODULE_VERSIONS_BY_DEVICE = Operation(
    name="ListOTAModuleVersionsByDevice",
    required=("CurrentPage", "PageSize"),
    optional=("ProductKey", "DeviceName", "IotId"),
    page_size=200,
    items="simpleotamoduleinfo",
    per_second=10,
    documented=documented_page,
)


QUERY_PRODUCT_LIST = Operation(
    name="QueryProductList",
    required=("CurrentPage", "PageSize"),
    optional=(),
    page_size=200,
    items="list.productinfo",
    per_second=50,
    per_second_deep=2,
    kept=PRODUCTS,
)


QUERY_DEVICE = Operation(
    name="QueryDevice",
    required=("ProductKey", "PageSize"),
    optional=("CurrentPage", "NextToken"),
    page_size=50,
    items="deviceinfo",
    per_second=50,
    per_second_deep=2,
    kept=DEVICES,
)


QUERY_DEVICE_DEEP = replace(QUERY_DEVICE, per_second=2, counted_as="QueryDevice past 100,000")
"""QueryDevice for a page past the first ``DEEP`` devices of a product."""


BATCH_GET_DEVICE_STATE = Operation(
    name="BatchGetDeviceState",
    required=(),
    optional=("ProductKey", "DeviceName.N", "IotId.N"),
    page_size=50,
    items="devicestatuslist.devicestatus",
    per_second=50,
    kept=STATES,
)


BATCH_QUERY_DEVICE_DETAIL = Operation(
    name="BatchQueryDeviceDetail",
    required=("ProductKey",),
    optional=("DeviceName.N",),
    page_size=100,
    items="data",
    per_second=5,
)


LIST_OTA_MODULE_BY_PRODUCT = Operation(
    name="ListOTAModuleByProduct",
    required=("ProductKey",),
    optional=(),
    page_size=0,
    items="otamoduledto",
    per_second=10,
    kept=DEFINED_MODULES,
)


QUERY_DEVICE_BY_SQL = Operation(
    name="QueryDeviceBySQL",
    required=("SQL",),
    optional=(),
    page_size=50,
    items="data",
    per_second=10,
)


OTHERS = (
    QUERY_PRODUCT_LIST,
    QUERY_DEVICE,
    BATCH_GET_DEVICE_STATE,
    BATCH_QUERY_DEVICE_DETAIL,
    LIST_OTA_MODULE_BY_PRODUCT,
    QUERY_DEVICE_BY_SQL,
)
"""Operations that help an audit; each has a quota of its own."""


def module_versions_of(device: Device, page: int, page_size: int) -> dict[str, str]:
    """The parameters that ask for one page of a device's module versions.

    A device with an ``iot_id`` is named by that alone: Alibaba documents that it wins when both ways are given,
    Tuya does not say, so the request leaves nothing to decide. Tuya's English page prints ``IoTID``; the name
    that works, in its Chinese original and in the vendor's SDK, is ``IotId``.
    """
    parameters = {"CurrentPage": str(page), "PageSize": str(page_size)}
    if device.iot_id is not None:
        parameters["IotId"] = device.iot_id
    elif device.product_key is not None and device.device_name is not None:
        parameters["ProductKey"] = device.product_key
        parameters["DeviceName"] = device.device_name
    return parameters


def states_of_devices(devices: Sequence[Device]) -> dict[str, str]:
    """The parameters that ask for the states of devices: of 50 at most, all by their iot_id or all of one product."""
    if devices[0].iot_id is not None:
        return {f"IotId.{number}": str(device.iot_id) for number, device in enumerate(devices, 1)}
    names = {f"DeviceName.{number}": str(device.device_name) for number, device in enumerate(devices, 1)}
    return {"ProductKey": str(devices[0].product_key)} | names
