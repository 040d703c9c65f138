"""The operations QueryDevice, QueryProductList and ListOTAModuleByProduct: devices, products and their modules.

Sources: Tuya's and Alibaba's pages of the operations. The meaning of ``NextToken`` is not documented. Here it is a
position in the product's list, which is harder for a client: pages shift when a device is registered or removed.
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b

from auditor.client.operations import QUERY_DEVICE, QUERY_PRODUCT_LIST
from auditor.simulator.forms import ResponseForms, format_local_time, format_utc_field
from auditor.simulator.gateway import Parameters, find_product, invalid_page, read_paging_parameter
from auditor.simulator.registry import Registry, device_record
from auditor.simulator.responses import Document
from auditor.simulator.world import FIRST_REGISTERED, MS_PER_DAY, SimulatedDevice

MAX_WITHOUT_TOKEN = 10_000
"""Devices after which a page requires the token of the previous page."""

MAX_LISTED = 1_000_000
"""Devices of one product that can be listed."""

_PLACE_BYTES = 8


class DeviceListOperation:
    """QueryDevice."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._key = blake2b(f"token {registry.world.seed}".encode()).digest()

    def answer(self, parameters: Parameters) -> Document:
        """Return the requested page without code and request id; raise RequestRejected."""
        first, size = self._requested_range(parameters)
        product = find_product(parameters, self._registry.world)
        total = self._registry.count(product)
        end = min(first + size, MAX_LISTED)
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
        """Return the position, from 0, of the first device of the requested page; raise RequestRejected."""
        return self._requested_range(parameters)[0]

    def _requested_range(self, parameters: Parameters) -> tuple[int, int]:
        """Return the position of the first requested device, from 0, and the page size; raise RequestRejected."""
        size = read_paging_parameter(parameters, "PageSize", QUERY_DEVICE.page_size)
        if token := parameters.get("NextToken"):
            return self._parse_token(token, parameters), size
        page = read_paging_parameter(parameters, "CurrentPage") if "CurrentPage" in parameters else 1
        if page * size > MAX_WITHOUT_TOKEN:
            raise invalid_page("NextToken")
        return (page - 1) * size, size

    def _token(self, parameters: Parameters, place: int) -> str:
        """Return the token of the page that ends before ``place``, valid for one account and one product."""
        position = place.to_bytes(_PLACE_BYTES, "big")
        owner = f"{parameters.get('AccessKeyId', '')}/{parameters.get('ProductKey', '')}/".encode()
        seal = blake2b(owner + position, key=self._key, digest_size=16).digest()
        return urlsafe_b64encode(position + seal).decode()

    def _parse_token(self, token: str, parameters: Parameters) -> int:
        try:
            place = int.from_bytes(urlsafe_b64decode(token.encode())[:_PLACE_BYTES], "big")
        except ValueError:
            raise invalid_page("NextToken") from None
        is_ours = hmac.compare_digest(self._token(parameters, place).encode(), token.encode())
        if not is_ours or place >= MAX_LISTED:
            raise invalid_page("NextToken")
        return place

    def _entry(self, device: SimulatedDevice) -> Document:
        record = device_record(device, self._registry.world.began)
        return {
            "deviceId": device.iot_id[:20],
            "deviceName": device.device_name,
            "deviceSecret": record.secret,
            "deviceStatus": record.status,
            "deviceType": "Simulated",
            "gmtCreate": format_local_time(record.created),
            "gmtModified": format_local_time(record.modified),
            "iotId": device.iot_id,
            "nickname": device.nickname,
            "productKey": device.product_key,
            "utcCreate": format_utc_field(record.created),
            "utcModified": format_utc_field(record.modified),
        }


_CREATED = FIRST_REGISTERED - 30 * MS_PER_DAY
"""When the products were created, in milliseconds since 1970: before their devices."""


def product_list(registry: Registry, parameters: Parameters) -> Document:
    """Answer QueryProductList with the requested page, empty after the last one; raise RequestRejected."""
    page, size = _requested_page(parameters)
    total = len(registry.world.products)
    first = (page - 1) * size
    return {
        "data": {
            "currentPage": page,
            "list": {
                "productInfo": [_product_entry(registry, number) for number in range(total)[first : first + size]]
            },
            "pageCount": -(-total // size),
            "pageSize": size,
            "total": total,
        }
    }


def first_product(parameters: Parameters) -> int:
    """Return the position, from 0, of the first product of the requested page; raise RequestRejected."""
    page, size = _requested_page(parameters)
    return (page - 1) * size


def _requested_page(parameters: Parameters) -> tuple[int, int]:
    page = read_paging_parameter(parameters, "CurrentPage")
    return page, read_paging_parameter(parameters, "PageSize", QUERY_PRODUCT_LIST.page_size)


def _product_entry(registry: Registry, number: int) -> Document:
    product = registry.world.products[number]
    return {
        "authType": "secret",
        "dataFormat": 1,
        "description": "",
        "deviceCount": registry.count(number),
        "gmtCreate": _CREATED + number,
        "nodeType": 0,
        "productKey": product.product_key,
        "productName": product.product_name,
    }


def product_modules(registry: Registry, forms: ResponseForms, parameters: Parameters) -> Document:
    """Answer ListOTAModuleByProduct with all modules, ``default`` first; raise RequestRejected."""
    product = registry.world.products[find_product(parameters, registry.world)]
    created = format_utc_field(_CREATED)
    entries = [
        {
            "aliasName": module.versions[0].module_name,
            "desc": "",
            "gmtCreate": created,
            "gmtModified": created,
            "moduleName": module.versions[0].module_name,
            "productKey": product.product_key,
        }
        for module in product.modules
    ]
    return {"data": {"otaModuleDTO": entries} if forms.arrays == "wrapped" else entries}
