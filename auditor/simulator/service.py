"""All operations for the devices of one world, by the names that requests have for them."""

from collections import Counter
from collections.abc import Callable, Mapping

from auditor.platform.operations import (
    BATCH_GET_DEVICE_STATE,
    BATCH_QUERY_DEVICE_DETAIL,
    LIST_OTA_MODULE_BY_PRODUCT,
    LIST_OTA_MODULE_VERSIONS_BY_DEVICE,
    QUERY_DEVICE,
    QUERY_PRODUCT_LIST,
)
from auditor.simulator.account import DEEP
from auditor.simulator.answers import Document, Refused
from auditor.simulator.lies import Lie
from auditor.simulator.listing import DeviceListing
from auditor.simulator.module_versions import ModuleVersions
from auditor.simulator.parameters import Parameters
from auditor.simulator.products import ProductList, ProductModules
from auditor.simulator.registry import Registry
from auditor.simulator.states import DeviceDetails, DeviceStates

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
