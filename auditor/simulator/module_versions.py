"""The operation ListOTAModuleVersionsByDevice, answered from a world.

Sources: Tuya's and Alibaba's pages of the operation; names and page rules as the platform's documents give them.
"""

import re
from collections import Counter
from collections.abc import Mapping

from auditor.platform.operations import LIST_OTA_MODULE_VERSIONS_BY_DEVICE
from auditor.simulator.answers import Document, Refused
from auditor.simulator.lies import Lie, bend, page_shown, total_shown
from auditor.simulator.world import SimulatedDevice, World

_WHOLE_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_DEVICE_NAME = re.compile(r"[A-Za-z0-9\-_@.:]{4,32}")
_PRODUCT_KEY = re.compile(r"[A-Za-z0-9]{1,64}")


class ModuleVersions:
    """Answers the operation.

    Args:
        world: the devices.
        lies: says by a device's index which of its answers are wrong, and how.
        answers: counts what is said about a device, pages and refusals, by what it was called and the page; or None.
    """

    def __init__(self, world: World, lies: Mapping[int, Lie], answers: Counter[tuple[str, int]] | None = None) -> None:
        self._world = world
        self._lies = lies
        self._answers = answers

    def answer(self, parameters: Mapping[str, str]) -> Document:
        """The page that ``parameters`` ask for, without code and request id; raises Refused."""
        asked = _page_number(parameters, "CurrentPage")
        size = _page_number(parameters, "PageSize", LIST_OTA_MODULE_VERSIONS_BY_DEVICE.page_size)
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

    def _named(self, parameters: Mapping[str, str]) -> SimulatedDevice:
        """The device that ``parameters`` name; ``IotId`` wins if both ways are given."""
        iot_id = parameters.get("IotId")
        if iot_id:
            device = self._world.find_by_iot_id(iot_id)
            if device is None:
                raise Refused("iot.device.InvalidIoTId", "The specified IotId is invalid.")
        else:
            device = self._by_name(parameters.get("ProductKey"), parameters.get("DeviceName"))
        if not device.activated:
            raise Refused("iot.device.InactiveDevice", "The device is not activated.")
        return device

    def _by_name(self, product_key: str | None, device_name: str | None) -> SimulatedDevice:
        if not product_key:
            raise Refused("iot.prod.NullProductKey", "The ProductKey is empty.")
        if not device_name:
            raise Refused("iot.device.NullDeviceName", "The DeviceName is empty.")
        if _PRODUCT_KEY.fullmatch(product_key) is None:
            raise Refused("iot.prod.InvalidFormattedProductkey", "The format of the ProductKey is invalid.")
        if _DEVICE_NAME.fullmatch(device_name) is None:
            raise Refused("iot.device.InvalidFormattedDeviceName", "The format of the DeviceName is invalid.")
        if not self._world.product_exists(product_key):
            raise Refused("iot.prod.NotExistedProduct", "The specified product does not exist.")
        device = self._world.find(product_key, device_name)
        if device is None:
            raise Refused("iot.device.NotExistedDevice", "The specified device does not exist.")
        return device


def _called(parameters: Mapping[str, str]) -> str:
    """What a request calls its device: the iot_id, or else ``product_key/device_name``."""
    return parameters.get("IotId") or f"{parameters.get('ProductKey', '')}/{parameters.get('DeviceName', '')}"


def _page_number(parameters: Mapping[str, str], name: str, most: int | None = None) -> int:
    text = parameters.get(name, "")
    number = int(text) if _WHOLE_NUMBER.fullmatch(text) else 0
    if number < 1 or (most is not None and number > most):
        raise Refused("iot.common.InvalidPageParams", f"The paging parameter {name} is invalid.")
    return number
