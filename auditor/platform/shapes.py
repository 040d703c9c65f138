"""What is kept of an answer, as types to decode it with: a member that no shape names is passed over while it is read.

So a device's secret and its address, which come with lists of devices, never become an object of this process.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec


class _Nothing(msgspec.Struct):
    """An object of which nothing is kept."""


Leaf = str | int | float | bool | _Nothing | list[str | int | float | bool | _Nothing | None] | None
"""A value; an object in the place of one is passed over."""

Shape = Mapping[str, Any]
"""Members by their names in camelCase: None for a leaf, a shape for an object, ``[shape]`` for an array of them."""


def keeping(shape: Shape, name: str = "Answer") -> type[msgspec.Struct]:
    """A type that ``msgspec.json.decode`` reads an object into, with the members that a shape names and no other.

    A member is found in camelCase (Tuya), in PascalCase (Alibaba), and with ``ID`` for ``Id`` and ``IoT`` for ``Iot``,
    as pages of both have it. An object may be null, empty, or the bare array that it holds elsewhere. What has another
    type than it should is left out, and never text: that could be JSON itself, with all in it.
    """
    fields = [(spelled, _kind(inner, spelled), None) for known, inner in shape.items() for spelled in _spellings(known)]
    return msgspec.defstruct(name, fields)


def read(body: bytes, kept: type[msgspec.Struct]) -> dict[str, object]:
    """An answer's members that are kept, their names in lower case; of one of another shape, whether it is a refusal.

    Raises:
        ValueError, msgspec.MsgspecError: it is not JSON, or no object, or a success of another shape.
    """
    try:
        members: dict[str, object] = _members(msgspec.json.decode(body, type=kept))
    except msgspec.ValidationError:
        members = _members(msgspec.json.decode(body, type=_REFUSAL))
        if "success" in members and members["success"] is not False:
            raise
    return members


def _kind(inner: Shape | Sequence[Shape] | None, name: str) -> Any:  # noqa: ANN401  a type, which has no better name
    if inner is None:
        return Leaf
    odd = Literal[""] | int | float | bool | None
    if isinstance(inner, Mapping):
        arrays = [each for each in inner.values() if isinstance(each, list)]
        return keeping(inner, name) | odd | list[_entry(arrays[0][0], name) if arrays else odd]  # type: ignore[misc]
    return list[_entry(inner[0], name)] | odd | _Nothing  # type: ignore[misc]  # types that are made here


def _entry(shape: Shape, name: str) -> Any:  # noqa: ANN401  as above
    return keeping(shape, name) | str | int | float | bool | None


def _spellings(name: str) -> list[str]:
    known = {name, name.replace("Id", "ID"), name.replace("Id", "ID").replace("iot", "ioT")}
    return sorted(known | {each[0].upper() + each[1:] for each in known})


def _members(value: object) -> Any:  # noqa: ANN401  JSON has any type
    if isinstance(value, _Nothing):
        return None
    if isinstance(value, msgspec.Struct):
        told = ((name, getattr(value, name)) for name in value.__struct_fields__)
        return {name.lower(): _members(member) for name, member in told if member is not None}
    return [_members(each) for each in value] if isinstance(value, list) else value


_TOLD = dict.fromkeys(("success", "code", "errorMessage", "message", "requestId"))
_REFUSAL = keeping(_TOLD)
_PAGED = dict.fromkeys(("currentPage", "page", "pageSize", "pageCount", "total", "nextToken"))

PRODUCTS = keeping(
    {
        **_TOLD,
        **_PAGED,
        "data": {
            **_PAGED,
            "list": {"productInfo": [dict.fromkeys(("productKey", "productName", "deviceCount"))]},
            "productInfo": [dict.fromkeys(("productKey", "productName", "deviceCount"))],
        },
    }
)
"""Of an answer of QueryProductList."""

DEVICES = keeping(
    {
        **_TOLD,
        **_PAGED,
        "data": {
            **_PAGED,
            "deviceInfo": [
                dict.fromkeys(("productKey", "deviceName", "iotId", "deviceStatus", "utcCreate", "utcModified"))
            ],
        },
    }
)
"""Of an answer of QueryDevice: never ``deviceSecret``."""

DEFINED_MODULES = keeping(
    {
        **_TOLD,
        "data": {name: [dict.fromkeys(("moduleName", "productKey"))] for name in ("otaModuleDTO", "otaModuleDto")},
    }
)
"""Of an answer of ListOTAModuleByProduct."""

_STATE = ("productKey", "deviceName", "iotId", "status", "timestamp", "lastOnlineTime")

STATES = keeping(
    {
        **_TOLD,
        "deviceStatusList": {"deviceStatus": [dict.fromkeys(_STATE)]},
        "data": {
            "deviceStatusList": {"deviceStatus": [dict.fromkeys(_STATE)]},
            "deviceStatus": [dict.fromkeys(_STATE)],
        },
    }
)
"""Of an answer of BatchGetDeviceState: never ``asAddress``, where a device was online from."""
