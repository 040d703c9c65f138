"""The operation ListOTAModuleVersionsByDevice, answered from a world.

Sources: Tuya's and Alibaba's pages of the operation; names and page rules as the platform's documents give them.
"""

from collections import Counter
from collections.abc import Mapping

from auditor.platform.operations import LIST_OTA_MODULE_VERSIONS_BY_DEVICE
from auditor.simulator.answers import Document, Refused
from auditor.simulator.lies import Lie, bend, page_shown, total_shown
from auditor.simulator.parameters import Parameters, device_named, page_number
from auditor.simulator.registry import Registry
from auditor.simulator.world import SimulatedDevice


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
