"""All operations for the devices of one world, by the names that requests have for them.

The operation ListOTAModuleVersionsByDevice, answered from a world.

Sources: Tuya's and Alibaba's pages of the operation; names and page rules as the platform's documents give them.

The operations BatchGetDeviceState and BatchQueryDeviceDetail: what many devices are doing, in one answer.

Sources: Tuya's and Alibaba's pages of the operations. Devices that do not exist are left out of both answers.
"""

from collections import Counter
from collections.abc import Callable, Mapping

from auditor.client.operations import (
    BATCH_GET_DEVICE_STATE,
    BATCH_QUERY_DEVICE_DETAIL,
    LIST_OTA_MODULE_BY_PRODUCT,
    LIST_OTA_MODULE_VERSIONS_BY_DEVICE,
    QUERY_DEVICE,
    QUERY_PRODUCT_LIST,
)
from auditor.simulator.faults import Lie, bend, page_shown, total_shown
from auditor.simulator.gateway import Parameters, device_named, devices_named, listed, page_number
from auditor.simulator.list_operations import DeviceListing, ProductList, ProductModules
from auditor.simulator.quotas import DEEP
from auditor.simulator.registry import Registry, gmt_text, record_of, utc_text
from auditor.simulator.responses import Document, Refused
from auditor.simulator.world import SimulatedDevice

DEEP_FROM = 100_000
"""Pages that begin with this item, counted from 0, or with a later one have a quota of their own."""


Answer = Callable[[Parameters], Document]
"""What an operation makes of a request, without code and request id; raises Refused."""


class Service:
    """Answers for one world.

    Args:
        registry: its devices.
        lies: by a device's index, what is wrong with the answers about its modules.
        answers: counts what is said about a device's modules; see ``ModuleVersions``.

    Attributes:
        operations: what answers each of them.
    """

    def __init__(
        self, registry: Registry, lies: Mapping[int, Lie], answers: Counter[tuple[str, int]] | None = None
    ) -> None:
        self.registry = registry
        products, devices = ProductList(registry), DeviceListing(registry)
        self.operations: dict[str, Answer] = {
            LIST_OTA_MODULE_VERSIONS_BY_DEVICE.name: ModuleVersions(registry, lies, answers).answer,
            QUERY_PRODUCT_LIST.name: products.answer,
            QUERY_DEVICE.name: devices.answer,
            BATCH_GET_DEVICE_STATE.name: DeviceStates(registry).answer,
            BATCH_QUERY_DEVICE_DETAIL.name: DeviceDetails(registry).answer,
            LIST_OTA_MODULE_BY_PRODUCT.name: ProductModules(registry).answer,
        }
        self._first_item: dict[str, Callable[[Parameters], int]] = {
            QUERY_PRODUCT_LIST.name: products.first_item,
            QUERY_DEVICE.name: devices.first_item,
        }

    def quota_name(self, parameters: Parameters) -> str:
        """What the quota is called that a request counts against, as in ``SimulatedAccount.quotas``.

        All unknown operations share one, or a client could fill the memory with windows.
        """
        action = parameters["Action"]
        if action not in self._first_item:
            return action if action in self.operations else ""
        try:
            return action + DEEP if self._first_item[action](parameters) >= DEEP_FROM else action
        except Refused:
            return action

    def answer(self, parameters: Parameters, now: float) -> Document:
        """The answer to a request at ``now`` in seconds, without code and request id; raises Refused."""
        action = parameters["Action"]
        operation = self.operations.get(action)
        if operation is None:
            message = "Specified api is not found, please check your url and method."
            raise Refused("InvalidAction.NotFound", message, 404)
        if action in self._first_item:
            self.registry.begin(now)
        self.registry.catch_up(now)
        return operation(parameters)


class ModuleVersions:
    """Answers the operation.

    Args:
        registry: the devices.
        lies: says by a device's index which of its answers are wrong, and how.
        answers: counts what is said about a device, pages and refusals, by what it was called and the page; or None.
    """

    def __init__(
        self, registry: Registry, lies: Mapping[int, Lie], answers: Counter[tuple[str, int]] | None = None
    ) -> None:
        self._registry = registry
        self._lies = lies
        self._answers = answers

    def answer(self, parameters: Parameters) -> Document:
        """The page that ``parameters`` ask for, without code and request id; raises Refused."""
        asked = page_number(parameters, "CurrentPage")
        size = page_number(parameters, "PageSize", LIST_OTA_MODULE_VERSIONS_BY_DEVICE.page_size)
        if self._answers is not None:
            self._answers[_called(parameters), asked] += 1
        device = self._named(parameters)
        lie = self._lies.get(device.index) if self._lies else None
        total = total_shown(lie, len(device.modules), asked)
        first = (page_shown(lie, asked) - 1) * size
        entries = [
            {
                "deviceName": device.device_name,
                "iotId": device.iot_id,
                "moduleName": module.module_name,
                "moduleVersion": module.module_version,
                "productKey": device.product_key,
            }
            for module in device.modules[first : first + size]
        ]
        document: Document = {
            "currentPage": asked,
            "data": {"simpleOTAModuleInfo": entries},
            "pageCount": -(-total // size),
            "pageSize": size,
            "total": total,
        }
        if lie is not None:
            bend(lie, document, entries, asked)
        return document

    def _named(self, parameters: Parameters) -> SimulatedDevice:
        """The device that ``parameters`` name; ``IotId`` wins if both ways are given."""
        iot_id = parameters.get("IotId")
        if iot_id:
            device = self._registry.find_by_iot_id(iot_id)
            if device is None:
                raise Refused("iot.device.InvalidIoTId", "The specified IotId is invalid.")
        else:
            device = device_named(parameters, self._registry)
        if not device.activated:
            raise Refused("iot.device.InactiveDevice", "The device is not activated.")
        return device


def _called(parameters: Parameters) -> str:
    """What a request calls its device: the iot_id, or else ``product_key/device_name``."""
    return parameters.get("IotId") or f"{parameters.get('ProductKey', '')}/{parameters.get('DeviceName', '')}"


class DeviceStates:
    """Answers BatchGetDeviceState."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def answer(self, parameters: Parameters) -> Document:
        """The states of the devices that ``parameters`` name; raises Refused."""
        return {"deviceStatusList": {"deviceStatus": [self._entry(device) for device in self._named(parameters)]}}

    def _named(self, parameters: Parameters) -> list[SimulatedDevice]:
        """``IotId.N`` wins if both ways are given."""
        most = BATCH_GET_DEVICE_STATE.page_size
        if iot_ids := listed(parameters, "IotId", most):
            found = map(self._registry.find_by_iot_id, iot_ids)
            return [device for device in found if device is not None]
        return devices_named(parameters, self._registry, most)

    def _entry(self, device: SimulatedDevice) -> Document:
        record = record_of(device, self._registry.world.began)
        entry: Document = {
            "deviceName": device.device_name,
            "iotId": device.iot_id,
            "status": record.status,
            "timestamp": record.changed,
        }
        if record.online is not None:
            entry |= {"asAddress": record.address, "lastOnlineTime": record.online}
        return entry


class DeviceDetails:
    """Answers BatchQueryDeviceDetail."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def answer(self, parameters: Parameters) -> Document:
        """The details of the devices that ``parameters`` name; raises Refused."""
        devices = devices_named(parameters, self._registry, BATCH_QUERY_DEVICE_DETAIL.page_size)
        return {"data": {"data": [self._entry(device) for device in devices]}}

    def _entry(self, device: SimulatedDevice) -> Document:
        record = record_of(device, self._registry.world.began)
        product = self._registry.world.products[self._registry.world.layout.place_of(device.index)[0]]
        default = [module.module_version for module in device.modules if module.module_name == "default"]
        return {
            "deviceName": device.device_name,
            "deviceSecret": record.secret,
            "firmwareVersion": default[0] if default else "",
            "gmtCreate": gmt_text(record.created),
            "iotId": device.iot_id,
            "nickname": "",
            "nodeType": 0,
            "productKey": device.product_key,
            "productName": product.product_name,
            "region": "cn-shanghai",
            "status": record.status,
            "utcCreate": utc_text(record.created),
        }
