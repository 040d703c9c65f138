"""The operations QueryProductList and ListOTAModuleByProduct: an account's products, and the modules they define.

Sources: Tuya's and Alibaba's pages of the operations.
"""

from auditor.platform.operations import QUERY_PRODUCT_LIST
from auditor.simulator.answers import Document
from auditor.simulator.parameters import Parameters, page_number, product_of
from auditor.simulator.records import utc_text
from auditor.simulator.registry import Registry
from auditor.simulator.world import DAY, FIRST_REGISTERED

_OPENED = FIRST_REGISTERED - 30 * DAY
"""When the products were made, in milliseconds since 1970: before their devices."""


class ProductList:
    """Answers QueryProductList."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def answer(self, parameters: Parameters) -> Document:
        """The page that ``parameters`` ask for, empty past the last; raises Refused."""
        page, size = _asked(parameters)
        total = len(self._registry.world.products)
        first = self.first_item(parameters)
        return {
            "data": {
                "currentPage": page,
                "list": {"productInfo": [self._entry(number) for number in range(total)[first : first + size]]},
                "pageCount": -(-total // size),
                "pageSize": size,
                "total": total,
            }
        }

    def first_item(self, parameters: Parameters) -> int:
        """The place, from 0, of the first product on the page that is asked for; raises Refused."""
        page, size = _asked(parameters)
        return (page - 1) * size

    def _entry(self, number: int) -> Document:
        product = self._registry.world.products[number]
        return {
            "dataFormat": 1,
            "description": "",
            "deviceCount": self._registry.count(number),
            "gmtCreate": _OPENED + number,
            "nodeType": 0,
            "productKey": product.product_key,
            "productName": product.product_name,
        }


def _asked(parameters: Parameters) -> tuple[int, int]:
    page = page_number(parameters, "CurrentPage")
    return page, page_number(parameters, "PageSize", QUERY_PRODUCT_LIST.page_size)


class ProductModules:
    """Answers ListOTAModuleByProduct."""

    def __init__(self, registry: Registry) -> None:
        self._world = registry.world

    def answer(self, parameters: Parameters) -> Document:
        """All modules of the product, ``default`` first; raises Refused."""
        product = self._world.products[product_of(parameters, self._world)]
        return {
            "data": {
                "otaModuleDTO": [
                    {
                        "aliasName": module.versions[0].module_name,
                        "desc": "",
                        "gmtCreate": utc_text(_OPENED),
                        "gmtModified": utc_text(_OPENED),
                        "moduleName": module.versions[0].module_name,
                        "productKey": product.product_key,
                    }
                    for module in product.modules
                ]
            }
        }
