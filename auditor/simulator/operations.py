"""All operations of the simulated platform for one world, and those for versions, states and details of devices.

Sources: Tuya's and Alibaba's pages of the operations. Devices that do not exist are missing in the responses of
BatchGetDeviceState and BatchQueryDeviceDetail.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial

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
)
from auditor.simulator.faults import Corruption, corrupt, corrupted_page, corrupted_total
from auditor.simulator.forms import MODEL_FORMS, ResponseForms, format_local_time, format_utc_field, time_member
from auditor.simulator.gateway import Parameters, find_device, find_devices, numbered_values, read_paging_parameter
from auditor.simulator.list_operations import DeviceListOperation, first_product, product_list, product_modules
from auditor.simulator.quotas import DEEP_SUFFIX
from auditor.simulator.registry import ACTIVATION_MS, Registry, device_record
from auditor.simulator.releases import FirmwareStore, ReleaseOperations
from auditor.simulator.responses import Document, RequestRejected
from auditor.simulator.search.options import IndexOptions
from auditor.simulator.world import SimulatedDevice, World

FIRST_DEEP_ITEM = 100_000
"""Pages that begin with this item, counted from 0, or a later one, have a separate quota."""

OperationHandler = Callable[[Parameters], Document]
"""Answers a request, without code and request id; raises RequestRejected."""


ResponseCounter = Counter[tuple[str, int]]
"""Number of responses about modules, pages and errors, by the name of the device and the page."""


class OperationService:
    """The operations of one world.

    Args:
        registry: its devices.
        corruptions: by a device's index, how the responses about its modules are corrupted.
        responses: counts the responses about modules, if given.
        forms: forms of the members of a response.
        index: how devices are indexed; None: they cannot be searched.

    Attributes:
        operations: by name.
    """

    def __init__(
        self,
        registry: Registry,
        corruptions: Mapping[int, Corruption],
        responses: ResponseCounter | None,
        forms: ResponseForms = MODEL_FORMS,
        index: IndexOptions | None = None,
    ) -> None:
        self.registry = registry
        devices, releases = DeviceListOperation(registry), ReleaseOperations(FirmwareStore(registry.world), forms)
        self.operations: dict[str, OperationHandler] = {
            LIST_OTA_MODULE_VERSIONS_BY_DEVICE.name: partial(module_versions, registry, corruptions, responses),
            QUERY_PRODUCT_LIST.name: partial(product_list, registry),
            QUERY_DEVICE.name: devices.answer,
            BATCH_GET_DEVICE_STATE.name: partial(device_states, registry, forms),
            BATCH_QUERY_DEVICE_DETAIL.name: partial(device_details, registry),
            LIST_OTA_MODULE_BY_PRODUCT.name: partial(product_modules, registry, forms),
            LIST_OTA_FIRMWARE.name: releases.firmware,
            LIST_OTA_JOB_BY_FIRMWARE.name: releases.jobs,
            LIST_OTA_TASK_BY_JOB.name: releases.tasks,
        }
        if index is not None:
            from auditor.simulator.search.device_index import DeviceIndex  # its parser is an optional dependency

            self.operations[QUERY_DEVICE_BY_SQL.name] = DeviceIndex(registry, index).answer
        self._first_item: dict[str, Callable[[Parameters], int]] = {
            QUERY_PRODUCT_LIST.name: first_product,
            QUERY_DEVICE.name: devices.first_item,
        }

    def quota_name(self, parameters: Parameters) -> str:
        """Return the name of the quota of a request, as in ``SimulatedAccount.quotas``.

        All unknown operations share one, so that a client cannot fill the memory with windows.
        """
        action = parameters["Action"]
        if action not in self._first_item:
            return action if action in self.operations else ""
        try:
            return action + DEEP_SUFFIX if self._first_item[action](parameters) >= FIRST_DEEP_ITEM else action
        except RequestRejected:
            return action

    def answer(self, parameters: Parameters, now: float) -> Document:
        """Return the response to a request at ``now`` in seconds; raise RequestRejected."""
        action = parameters["Action"]
        operation = self.operations.get(action)
        if operation is None:
            message = "Specified api is not found, please check your url and method."
            raise RequestRejected("InvalidAction.NotFound", message, 404)
        if action in self._first_item or action == QUERY_DEVICE_BY_SQL.name:
            self.registry.start_churn(now)
        self.registry.advance(now)
        return operation(parameters)


def module_versions(
    registry: Registry,
    corruptions: Mapping[int, Corruption],
    responses: ResponseCounter | None,
    parameters: Parameters,
) -> Document:
    """Answer ListOTAModuleVersionsByDevice; the other arguments are those of ``OperationService``."""
    page = read_paging_parameter(parameters, "CurrentPage")
    size = read_paging_parameter(parameters, "PageSize", LIST_OTA_MODULE_VERSIONS_BY_DEVICE.page_size)
    if responses is not None:
        name = parameters.get("IotId") or f"{parameters.get('ProductKey', '')}/{parameters.get('DeviceName', '')}"
        responses[name, page] += 1
    device = _find_activated(registry, parameters)
    corruption = corruptions.get(device.index) if corruptions else None
    reported = registry.modules(device)
    total = corrupted_total(corruption, len(reported), page)
    first = (corrupted_page(corruption, page) - 1) * size
    entries = [
        {
            "deviceName": device.device_name,
            "iotId": device.iot_id,
            "moduleName": module.module_name,
            "moduleVersion": module.module_version,
            "productKey": device.product_key,
        }
        for module in reported[first : first + size]
    ]
    document: Document = {
        "currentPage": page,
        "data": {"simpleOTAModuleInfo": entries},
        "pageCount": -(-total // size),
        "pageSize": size,
        "total": total,
    }
    if corruption is not None:
        corrupt(corruption, document, entries, page)
    return document


def _find_activated(registry: Registry, parameters: Parameters) -> SimulatedDevice:
    """Return the device of a request, which is activated; ``IotId`` takes precedence."""
    if iot_id := parameters.get("IotId"):
        device = registry.find_by_iot_id(iot_id)
        if device is None:
            raise RequestRejected("iot.device.InvalidIoTId", "The specified IotId is invalid.")
    else:
        device = find_device(parameters, registry)
    if not device.activated:
        raise RequestRejected("iot.device.InactiveDevice", "The device is not activated.")
    return device


def device_states(registry: Registry, forms: ResponseForms, parameters: Parameters) -> Document:
    """Answer BatchGetDeviceState; ``IotId.N`` takes precedence."""
    limit = BATCH_GET_DEVICE_STATE.page_size
    if iot_ids := numbered_values(parameters, "IotId", limit):
        devices = [device for device in map(registry.find_by_iot_id, iot_ids) if device is not None]
    else:
        devices = find_devices(parameters, registry, limit)
    return {"deviceStatusList": {"deviceStatus": [_state_entry(device, registry.world, forms) for device in devices]}}


def _state_entry(device: SimulatedDevice, world: World, forms: ResponseForms) -> Document:
    record = device_record(device, world.began)
    entry: Document = {
        "deviceName": device.device_name,
        "iotId": device.iot_id,
        "status": record.status,
        **time_member("timestamp", record.changed, forms.timestamp, forms.zone, device.index),
    }
    if record.online is not None:
        entry |= {"asAddress": record.address, "deviceId": device.iot_id[:20]}
        entry |= time_member("lastOnlineTime", record.online, forms.last_online, forms.zone, device.index)
    return entry


def device_details(registry: Registry, parameters: Parameters) -> Document:
    """Answer BatchQueryDeviceDetail."""
    devices = find_devices(parameters, registry, BATCH_QUERY_DEVICE_DETAIL.page_size)
    return {"data": {"data": [_detail_entry(device, registry) for device in devices]}}


def _detail_entry(device: SimulatedDevice, registry: Registry) -> Document:
    world = registry.world
    record = device_record(device, world.began)
    default = [module.module_version for module in registry.modules(device) if module.module_name == "default"]
    entry: Document = {
        "deviceName": device.device_name,
        "deviceSecret": record.secret,
        "firmwareVersion": default[0] if default else "",
        "gmtCreate": format_local_time(record.created),
        "iotId": device.iot_id,
        "nickname": device.nickname,
        "nodeType": 0,
        "productKey": device.product_key,
        "productName": world.products[world.layout.position_of(device.index)[0]].product_name,
        "region": "cn-shanghai",
        "status": record.status,
        "utcCreate": format_utc_field(record.created),
    }
    if device.activated:
        activated = record.created + ACTIVATION_MS
        entry |= {"gmtActive": format_local_time(activated), "utcActive": format_utc_field(activated)}
    return entry
