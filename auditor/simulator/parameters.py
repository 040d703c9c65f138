"""What several operations check of their parameters, and how they refuse them.

Sources: Tuya's and Alibaba's pages of the operations and of error codes. How too many devices in one request are
refused stands on neither; here it is the documented code for a parameter that is not valid.
"""

import re
from collections.abc import Mapping

from auditor.simulator.answers import Refused
from auditor.simulator.registry import Registry
from auditor.simulator.world import SimulatedDevice, World

Parameters = Mapping[str, str]
"""All parameters of a request, decoded."""

_WHOLE_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_DEVICE_NAME = re.compile(r"[A-Za-z0-9\-_@.:]{4,32}")
_PRODUCT_KEY = re.compile(r"[A-Za-z0-9]{1,64}")
_PLACE_IN_LIST = re.compile(r"[1-9]\d{0,8}", re.ASCII)


def page_number(parameters: Parameters, name: str, most: int | None = None) -> int:
    """A number or a size of pages, 1 to ``most``; raises Refused."""
    text = parameters.get(name, "")
    number = int(text) if _WHOLE_NUMBER.fullmatch(text) else 0
    if number < 1 or (most is not None and number > most):
        raise invalid_page(name)
    return number


def invalid_page(name: str) -> Refused:
    """The refusal of a paging parameter."""
    return Refused("iot.common.InvalidPageParams", f"The paging parameter {name} is invalid.")


def product_of(parameters: Parameters, world: World) -> int:
    """The number of the product that a request is about; raises Refused."""
    product_key = parameters.get("ProductKey")
    if not product_key:
        raise Refused("iot.prod.NullProductKey", "The ProductKey is empty.")
    if _PRODUCT_KEY.fullmatch(product_key) is None:
        raise Refused("iot.prod.InvalidFormattedProductkey", "The format of the ProductKey is invalid.")
    product = world.product_number(product_key)
    if product is None:
        raise Refused("iot.prod.NotExistedProduct", "The specified product does not exist.")
    return product


def device_named(parameters: Parameters, registry: Registry) -> SimulatedDevice:
    """The device that ``ProductKey`` and ``DeviceName`` name; raises Refused."""
    product_of(parameters, registry.world)
    name = _well_formed(parameters.get("DeviceName"))
    device = registry.find(parameters["ProductKey"], name)
    if device is None:
        raise Refused("iot.device.NotExistedDevice", "The specified device does not exist.")
    return device


def devices_named(parameters: Parameters, registry: Registry, most: int) -> list[SimulatedDevice]:
    """The devices that ``ProductKey`` and ``DeviceName.N`` name; who does not exist is left out. Raises Refused."""
    product_of(parameters, registry.world)
    names = listed(parameters, "DeviceName", most) or [_well_formed(None)]
    found = [registry.find(parameters["ProductKey"], _well_formed(name)) for name in names]
    return [device for device in found if device is not None]


def listed(parameters: Parameters, name: str, most: int) -> list[str]:
    """The values of ``NAME.1``, ``NAME.2`` and so on in that order, each once; raises Refused if they are too many."""
    numbered: list[tuple[int, str]] = []
    for parameter, value in parameters.items():
        stem, _, number = parameter.rpartition(".")
        if stem == name and _PLACE_IN_LIST.fullmatch(number):
            numbered.append((int(number), value))
    if len(numbered) > most:
        raise Refused("iot.system.IllegalRequest", f"The parameter {name} holds more than {most} values.")
    return list(dict.fromkeys(value for _, value in sorted(numbered)))


def _well_formed(device_name: str | None) -> str:
    if not device_name:
        raise Refused("iot.device.NullDeviceName", "The DeviceName is empty.")
    if _DEVICE_NAME.fullmatch(device_name) is None:
        raise Refused("iot.device.InvalidFormattedDeviceName", "The format of the DeviceName is invalid.")
    return device_name
