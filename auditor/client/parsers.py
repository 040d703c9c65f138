"""Answers of the operations that list a fleet, read into products, devices, modules and states. Pure.

An entry that cannot be used is left out: the list is then shorter than its own total says, which is told as a gap.
"""

from typing import TypeVar, get_args

from auditor.client.responses import Answer, lowered, text_of, whole_of
from auditor.models import DeviceStatus, Listed, ListedDevice, Product, ToldState

T = TypeVar("T")


NAME_LENGTH = 256
"""Characters of a name at most, as in a fleet file."""


TOKEN_LENGTH, TIME_LENGTH = 4_096, 64
"""Characters of a token and of a time at most; what is longer is none."""


MOST = 10**12
"""What a number of items is below; a larger one is none."""


MOST_MILLISECONDS = 253_402_300_800_000
"""What a time in milliseconds since 1970 is below: the year 10000."""


OTHER = "OTHER"
"""What a device's status is called that the documents do not name."""


def products_of(answer: Answer) -> Listed[Product]:
    """A page of QueryProductList: ``data.list.productInfo``, with its numbers in ``data``."""
    data = lowered(answer.fields.get("data"))
    entries = _entries(data.get("list"), "productinfo") or _entries(answer.fields.get("data"), "productinfo")
    products = (_product(lowered(entry)) for entry in entries)
    return _page(answer, data, tuple(each for each in products if each is not None))


def devices_of(answer: Answer, product_key: str) -> Listed[ListedDevice]:
    """A page of QueryDevice: ``data.deviceInfo``, with its numbers beside ``data``; devices of that product alone."""
    data = answer.fields.get("data")
    devices = (_device(lowered(entry), product_key) for entry in _entries(data, "deviceinfo"))
    return _page(answer, lowered(data), tuple(each for each in devices if each is not None))


def modules_of(answer: Answer) -> tuple[str, ...]:
    """The names of the modules in an answer of ListOTAModuleByProduct: ``data.otaModuleDTO``."""
    names = (_name(lowered(entry), "modulename") for entry in _entries(answer.fields.get("data"), "otamoduledto"))
    # Names are unique in a product regardless of case (Alibaba's page on OTA modules).
    return tuple({name.casefold(): name for name in names if name is not None}.values())


def states_of(answer: Answer) -> tuple[ToldState, ...]:
    """The states in an answer of BatchGetDeviceState: ``deviceStatusList.deviceStatus``, beside ``data`` or in it."""
    fields = answer.fields
    data = lowered(fields.get("data"))
    entries = (
        _entries(fields.get("devicestatuslist"), "devicestatus")
        or _entries(data.get("devicestatuslist"), "devicestatus")
        or _entries(fields.get("data"), "devicestatus")
    )
    return tuple(_state(lowered(entry)) for entry in entries)


def _state(entry: dict[str, object]) -> ToldState:
    status = _short(entry.get("status"), TIME_LENGTH)
    changed, online = (_milliseconds(entry.get(key)) for key in ("timestamp", "lastonlinetime"))
    told = None if status is None else status.strip().upper()
    return ToldState(_name(entry, "devicename"), _name(entry, "iotid"), told, changed, online)


def _milliseconds(value: object) -> int | None:
    """A time in milliseconds since 1970; one that is past all calendars is none."""
    number = whole_of(value)
    return number if number is not None and 0 < number < MOST_MILLISECONDS else None


def _page(answer: Answer, data: dict[str, object], items: tuple[T, ...]) -> Listed[T]:
    def told(*names: str) -> object:
        members = (each.get(name) for each in (answer.fields, data) for name in names)
        return next((member for member in members if member is not None), None)

    return Listed(
        items,
        number=_count(told("currentpage", "page")),
        total=_count(told("total")),
        next_token=_short(told("nexttoken"), TOKEN_LENGTH),
    )


def _entries(value: object, name: str) -> list[object]:
    """The array that an object holds under a name, or that stands in its place."""
    inner = lowered(value).get(name) if isinstance(value, dict) else value
    return inner if isinstance(inner, list) else []


def _product(entry: dict[str, object]) -> Product | None:
    if (key := _name(entry, "productkey")) is None:
        return None
    return Product(key, _short(entry.get("productname"), NAME_LENGTH), _count(entry.get("devicecount")))


def _device(entry: dict[str, object], product_key: str) -> ListedDevice | None:
    name = _name(entry, "devicename")
    if name is None or entry.get("productkey", product_key) != product_key:
        return None
    status = text_of(entry.get("devicestatus"))
    if status is not None:
        status = status.upper() if status.upper() in get_args(DeviceStatus) else OTHER
    created, modified = (_short(entry.get(key), TIME_LENGTH) for key in ("utccreate", "utcmodified"))
    return ListedDevice(name, _name(entry, "iotid"), status, created, modified)


def _count(value: object) -> int | None:
    number = whole_of(value)
    return number if number is not None and number < MOST else None


def _short(value: object, most: int) -> str | None:
    text = text_of(value)
    return text if text and len(text) <= most else None


def _name(entry: dict[str, object], key: str) -> str | None:
    """A name that can be asked for: of no control characters, and not longer than any is."""
    name = (text_of(entry.get(key)) or "").strip()
    return name if 0 < len(name) <= NAME_LENGTH and name.isprintable() else None
