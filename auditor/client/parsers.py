"""Parsing of responses of the list operations into products, devices, modules and states. Pure.

An entry that cannot be used is dropped. The list is then shorter than its own total, which is reported as a gap.
"""

from typing import TypeVar, get_args

from auditor.client.operations import MAX_NAME_LENGTH
from auditor.client.responses import ApiResponse, lowercase_keys, parse_count, parse_text
from auditor.models import ConnectionState, DeviceStatus, ListedDevice, ListPage, Product

T = TypeVar("T")

MAX_TOKEN_LENGTH, MAX_TIME_LENGTH = 4_096, 64
"""Characters of a page token and of a time; a longer value is ignored."""

MAX_COUNT = 10**12
"""Upper limit, exclusive, of a number of items; a larger one is ignored."""

MAX_TIMESTAMP_MS = 253_402_300_800_000
"""Upper limit, exclusive, of a time in milliseconds since 1970: the year 10000."""

OTHER_STATUS = "OTHER"
"""Replaces a device status that is not documented."""


def parse_products(response: ApiResponse) -> ListPage[Product]:
    """Return a page of QueryProductList: ``data.list.productInfo``, with its numbers in ``data``."""
    data = lowercase_keys(response.fields.get("data"))
    entries = _entries(data.get("list"), "productinfo") or _entries(response.fields.get("data"), "productinfo")
    products = (_parse_product(lowercase_keys(entry)) for entry in entries)
    return _parse_page(response, data, tuple(each for each in products if each is not None))


def parse_devices(response: ApiResponse, product_key: str) -> ListPage[ListedDevice]:
    """Return a page of QueryDevice: ``data.deviceInfo``, with its numbers beside ``data``.

    Devices of another product are dropped.
    """
    data = response.fields.get("data")
    devices = (_parse_device(lowercase_keys(entry), product_key) for entry in _entries(data, "deviceinfo"))
    return _parse_page(response, lowercase_keys(data), tuple(each for each in devices if each is not None))


def parse_modules(response: ApiResponse) -> tuple[str, ...]:
    """Return the module names of a response of ListOTAModuleByProduct: ``data.otaModuleDTO``."""
    entries = _entries(response.fields.get("data"), "otamoduledto")
    names = (_parse_name(lowercase_keys(entry), "modulename") for entry in entries)
    # Names are unique in a product regardless of case (Alibaba's page on OTA modules).
    return tuple({name.casefold(): name for name in names if name is not None}.values())


def parse_connection_states(response: ApiResponse) -> tuple[ConnectionState, ...]:
    """Return the states of a response of BatchGetDeviceState: ``deviceStatusList.deviceStatus``, in ``data`` or not."""
    fields = response.fields
    data = lowercase_keys(fields.get("data"))
    entries = (
        _entries(fields.get("devicestatuslist"), "devicestatus")
        or _entries(data.get("devicestatuslist"), "devicestatus")
        or _entries(fields.get("data"), "devicestatus")
    )
    return tuple(_parse_state(lowercase_keys(entry)) for entry in entries)


def _parse_state(entry: dict[str, object]) -> ConnectionState:
    text = _bounded_text(entry.get("status"), MAX_TIME_LENGTH)
    changed, online = (_parse_milliseconds(entry.get(key)) for key in ("timestamp", "lastonlinetime"))
    status = None if text is None else text.strip().upper()
    return ConnectionState(_parse_name(entry, "devicename"), _parse_name(entry, "iotid"), status, changed, online)


def _parse_milliseconds(value: object) -> int | None:
    """Return a time in milliseconds since 1970; None if it is not one or out of range."""
    number = parse_count(value)
    return number if number is not None and 0 < number < MAX_TIMESTAMP_MS else None


def _parse_page(response: ApiResponse, data: dict[str, object], items: tuple[T, ...]) -> ListPage[T]:
    def first_of(*names: str) -> object:
        members = (fields.get(name) for fields in (response.fields, data) for name in names)
        return next((member for member in members if member is not None), None)

    return ListPage(
        items,
        number=_bounded_count(first_of("currentpage", "page")),
        total=_bounded_count(first_of("total")),
        next_token=_bounded_text(first_of("nexttoken"), MAX_TOKEN_LENGTH),
    )


def _entries(value: object, name: str) -> list[object]:
    """Return the array that an object holds under a name, or the value itself if it is an array."""
    inner = lowercase_keys(value).get(name) if isinstance(value, dict) else value
    return inner if isinstance(inner, list) else []


def _parse_product(entry: dict[str, object]) -> Product | None:
    if (key := _parse_name(entry, "productkey")) is None:
        return None
    name = _bounded_text(entry.get("productname"), MAX_NAME_LENGTH)
    return Product(key, name, _bounded_count(entry.get("devicecount")))


def _parse_device(entry: dict[str, object], product_key: str) -> ListedDevice | None:
    name = _parse_name(entry, "devicename")
    if name is None or entry.get("productkey", product_key) != product_key:
        return None
    status = parse_text(entry.get("devicestatus"))
    if status is not None:
        status = status.upper() if status.upper() in get_args(DeviceStatus) else OTHER_STATUS
    created, modified = (_bounded_text(entry.get(key), MAX_TIME_LENGTH) for key in ("utccreate", "utcmodified"))
    return ListedDevice(name, _parse_name(entry, "iotid"), status, created, modified)


def _bounded_count(value: object) -> int | None:
    number = parse_count(value)
    return number if number is not None and number < MAX_COUNT else None


def _bounded_text(value: object, max_length: int) -> str | None:
    text = parse_text(value)
    return text if text and len(text) <= max_length else None


def _parse_name(entry: dict[str, object], key: str) -> str | None:
    """Return a name that a request can use: printable and within ``MAX_NAME_LENGTH``; otherwise None."""
    name = (parse_text(entry.get(key)) or "").strip()
    return name if 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() else None
