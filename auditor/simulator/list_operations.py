"""The operation QueryDevice: a product's devices, page by page, while devices come and go.

Sources: Tuya's and Alibaba's pages of the operation. What ``NextToken`` stands for is not documented. Here it is a
position in the product's list, the kind that is harder for a client: pages slide when a device comes or goes.

The operations QueryProductList and ListOTAModuleByProduct: an account's products, and the modules they define.

Sources: Tuya's and Alibaba's pages of the operations.
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b

from auditor.client.operations import QUERY_DEVICE, QUERY_PRODUCT_LIST
from auditor.simulator.gateway import Parameters, invalid_page, page_number, product_of
from auditor.simulator.registry import Registry, gmt_text, record_of, utc_text
from auditor.simulator.responses import Document
from auditor.simulator.world import DAY, FIRST_REGISTERED, SimulatedDevice

WITHOUT_TOKEN = 10_000
"""Past so many devices, pages are answered to those alone who show the token of the page before."""


LISTED_AT_MOST = 1_000_000
"""Devices of one product that can be listed at all."""


_PLACE_BYTES = 8


class DeviceListing:
    """Answers the operation."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._key = blake2b(f"token {registry.world.seed}".encode()).digest()

    def answer(self, parameters: Parameters) -> Document:
        """The page that ``parameters`` ask for, without code and request id; raises Refused."""
        first, size = self._asked(parameters)
        product = product_of(parameters, self._registry.world)
        total = self._registry.count(product)
        end = min(first + size, LISTED_AT_MOST)
        devices = self._registry.newest(product, first, end - first)
        document: Document = {
            "data": {"deviceInfo": [self._entry(device) for device in devices]},
            "page": first // size + 1,
            "pageCount": -(-total // size),
            "pageSize": size,
            "total": total,
        }
        if end < total:
            document["nextToken"] = self._token(parameters, end)
        return document

    def first_item(self, parameters: Parameters) -> int:
        """The place, from 0, of the first device on the page that is asked for; raises Refused."""
        return self._asked(parameters)[0]

    def _asked(self, parameters: Parameters) -> tuple[int, int]:
        """The place of the first device that is asked for, from 0, and the page's size; raises Refused."""
        size = page_number(parameters, "PageSize", QUERY_DEVICE.page_size)
        if token := parameters.get("NextToken"):
            first = self._place_in(token, parameters)
            if first >= LISTED_AT_MOST:
                raise invalid_page("NextToken")
            return first, size
        page = page_number(parameters, "CurrentPage") if "CurrentPage" in parameters else 1
        if page * size > WITHOUT_TOKEN:
            raise invalid_page("NextToken")
        return (page - 1) * size, size

    def _token(self, parameters: Parameters, place: int) -> str:
        """The token of the page that ends before ``place``, which holds for one account and one product alone."""
        position = place.to_bytes(_PLACE_BYTES, "big")
        whose = f"{parameters.get('AccessKeyId', '')}/{parameters.get('ProductKey', '')}/".encode()
        seal = blake2b(whose + position, key=self._key, digest_size=16).digest()
        return urlsafe_b64encode(position + seal).decode()

    def _place_in(self, token: str, parameters: Parameters) -> int:
        try:
            place = int.from_bytes(urlsafe_b64decode(token.encode())[:_PLACE_BYTES], "big")
        except ValueError:
            raise invalid_page("NextToken") from None
        if not hmac.compare_digest(self._token(parameters, place).encode(), token.encode()):
            raise invalid_page("NextToken")
        return place

    def _entry(self, device: SimulatedDevice) -> Document:
        record = record_of(device, self._registry.world.began)
        return {
            "deviceId": device.iot_id[:20],
            "deviceName": device.device_name,
            "deviceSecret": record.secret,
            "deviceStatus": record.status,
            "deviceType": "Simulated",
            "gmtCreate": gmt_text(record.created),
            "gmtModified": gmt_text(record.modified),
            "iotId": device.iot_id,
            "nickname": "",
            "productKey": device.product_key,
            "utcCreate": utc_text(record.created),
            "utcModified": utc_text(record.modified),
        }


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
