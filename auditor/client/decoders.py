"""Decoding of response bodies. Pure.

Three things, from the general to the special:

- ``clean_message`` makes text of the platform fit for a log line.
- ``response_struct`` builds a type for each list operation that names the members to keep. The decoder skips all other
  members while it parses. So a device's secret and its address never become an object of this process.
- ``decode_documented_page`` decodes a page of module versions that is exactly as documented, straight into the fields
  that matter. Nearly every response of an audit is such a page, and this takes less than half the time of the general
  path in ``auditor.client.responses``. Any other body is left to that.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from auditor.models import ModuleVersion, Page, ReportedModule

MAX_MESSAGE_LENGTH = 300
"""Characters kept of a message of the platform."""

_MAX_CLEANED_LENGTH = 20 * MAX_MESSAGE_LENGTH
"""Characters of a message that are cleaned: cleaning a whole body would hold up all other requests."""


def clean_message(message: str) -> str:
    """Return a message of the platform as one printable line.

    The gateway's response to a wrong signature quotes its whole string to sign; that part is dropped.
    """
    if is_plain(message):  # true of all request ids, which come with every response
        return message
    text = re.sub(r"server string to sign is.*", "", message, flags=re.IGNORECASE | re.DOTALL)[:_MAX_CLEANED_LENGTH]
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_MESSAGE_LENGTH]


def is_plain(message: str) -> bool:
    """Return True if ``clean_message`` would return the message unchanged because it is one printable ASCII word."""
    return len(message) <= MAX_MESSAGE_LENGTH and message.isascii() and message.isprintable() and " " not in message


class _IgnoredObject(msgspec.Struct):
    """An object without any member that is kept."""


Leaf = str | int | float | bool | _IgnoredObject | list[str | int | float | bool | _IgnoredObject | None] | None
"""A scalar; an object in its place is ignored."""

Shape = Mapping[str, Any]
"""Members by their camelCase names: None for a leaf, a shape for an object, ``[shape]`` for an array of objects."""


def response_struct(shape: Shape, name: str = "Response") -> type[msgspec.Struct]:
    """Return a type for ``msgspec.json.decode`` that keeps the members named by a shape and no others.

    It accepts camelCase (Tuya), PascalCase (Alibaba), and ``ID`` for ``Id`` and ``IoT`` for ``Iot``, as pages of both
    have them. An object may be null, empty, or the bare array that it holds elsewhere. A member of another type is
    dropped. It is never kept as text, which could be JSON with all its members.
    """
    fields = [
        (spelling, _field_type(inner, spelling), None) for key, inner in shape.items() for spelling in _spellings(key)
    ]
    return msgspec.defstruct(name, fields)


def decode_members(body: bytes, response_type: type[msgspec.Struct]) -> dict[str, object]:
    """Return the kept members of a response by their lower-case names.

    Of an error response with another shape, only the members of an error are returned.

    Raises:
        ValueError, msgspec.MsgspecError: it is not JSON, not an object, or a success with another shape.
    """
    try:
        members: dict[str, object] = _to_members(msgspec.json.decode(body, type=response_type))
    except msgspec.ValidationError:
        members = _to_members(msgspec.json.decode(body, type=_ERROR_RESPONSE))
        if "success" in members and members["success"] is not False:
            raise
    return members


def _field_type(inner: Shape | Sequence[Shape] | None, name: str) -> Any:  # noqa: ANN401  a type built at run time
    if inner is None:
        return Leaf
    other = Literal[""] | int | float | bool | None
    if isinstance(inner, Mapping):
        arrays = [each for each in inner.values() if isinstance(each, list)]
        item = _item_type(arrays[0][0], name) if arrays else other
        return response_struct(inner, name) | other | list[item]  # type: ignore[valid-type]
    return list[_item_type(inner[0], name)] | other | _IgnoredObject  # type: ignore[misc]  # types built at run time


def _item_type(shape: Shape, name: str) -> Any:  # noqa: ANN401  as above
    return response_struct(shape, name) | str | int | float | bool | None


def _spellings(name: str) -> list[str]:
    camel = {name, name.replace("Id", "ID"), name.replace("Id", "ID").replace("iot", "ioT")}
    return sorted(camel | {each[0].upper() + each[1:] for each in camel})


def _to_members(value: object) -> Any:  # noqa: ANN401  JSON has any type
    if isinstance(value, _IgnoredObject):
        return None
    if isinstance(value, msgspec.Struct):
        members = ((name, getattr(value, name)) for name in value.__struct_fields__)
        return {name.lower(): _to_members(member) for name, member in members if member is not None}
    return [_to_members(each) for each in value] if isinstance(value, list) else value


_STATUS = dict.fromkeys(("success", "code", "errorMessage", "message", "requestId"))
_ERROR_RESPONSE = response_struct(_STATUS)
_PAGING = dict.fromkeys(("currentPage", "page", "pageSize", "pageCount", "total", "nextToken"))

_PRODUCTS = {"productInfo": [dict.fromkeys(("productKey", "productName", "deviceCount"))]}

PRODUCT_LIST_RESPONSE = response_struct({**_STATUS, **_PAGING, "data": {**_PAGING, "list": _PRODUCTS, **_PRODUCTS}})
"""What is kept of a response of QueryProductList."""

_DEVICE = ("productKey", "deviceName", "iotId", "deviceStatus", "utcCreate", "utcModified")

DEVICE_LIST_RESPONSE = response_struct(
    {**_STATUS, **_PAGING, "data": {**_PAGING, "deviceInfo": [dict.fromkeys(_DEVICE)]}}
)
"""What is kept of a response of QueryDevice: never ``deviceSecret``."""

_MODULES = [dict.fromkeys(("moduleName", "productKey"))]

PRODUCT_MODULES_RESPONSE = response_struct({**_STATUS, "data": {"otaModuleDTO": _MODULES, "otaModuleDto": _MODULES}})
"""What is kept of a response of ListOTAModuleByProduct."""

_DEVICE_STATE = ("productKey", "deviceName", "iotId", "status", "timestamp", "lastOnlineTime")
_STATES = {"deviceStatus": [dict.fromkeys(_DEVICE_STATE)]}

DEVICE_STATES_RESPONSE = response_struct(
    {**_STATUS, "deviceStatusList": _STATES, "data": {"deviceStatusList": _STATES, **_STATES}}
)
"""What is kept of a response of BatchGetDeviceState: never ``asAddress``, the address a device connected from."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]


def decode_documented_page(body: bytes) -> Page | None:
    """Return the page in a body that is exactly as documented, in Tuya's or Alibaba's spelling; None for any other."""
    decoder = _PASCAL_CASE if b'"Success"' in body else _CAMEL_CASE
    try:
        response = decoder.decode(body)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return None
    return _to_page(response) if response.success and is_plain(response.request_id) else None


def _to_page(response: Any) -> Page:  # noqa: ANN401  of a type built below
    return Page(
        number=response.current_page,
        total=response.total,
        reported=tuple(
            [
                ReportedModule(
                    ModuleVersion(entry.module_name, entry.module_version),
                    entry.product_key or None,
                    entry.device_name or None,
                    entry.iot_id or None,
                )
                for entry in response.data.modules
            ]
        ),
        request_id=response.request_id or None,
    )


def _build_decoder(spelling: Callable[[str], str]) -> "msgspec.json.Decoder[Any]":
    """Build a decoder of pages whose member names have one spelling. It rejects members that are not documented."""

    def struct(name: str, *fields: tuple[str, Any] | tuple[str, Any, Any]) -> type[msgspec.Struct]:
        return msgspec.defstruct(name, fields, rename=spelling, forbid_unknown_fields=True, gc=False)

    def optional(kind: object, *names: str) -> list[tuple[str, Any, None]]:
        return [(name, kind | None, None) for name in names]  # type: ignore[operator]  # a type, which has `|`

    entry = struct(
        "Entry",
        ("module_name", _NonEmpty),
        ("module_version", str),
        *optional(str, "product_key", "device_name", "iot_id"),
    )
    data = struct("Data", ("modules", list[entry]))  # type: ignore[valid-type]  # as above
    required = ("success", bool), ("total", _Count), ("data", data), ("request_id", str)
    numbers = optional(_Count, "current_page", "page_size", "page_count")
    return msgspec.json.Decoder(struct("Response", *required, *optional(str, "code", "error_message"), *numbers))


def _to_camel_case(name: str) -> str:
    first, *more = ["simple", "OTA", "module", "info"] if name == "modules" else name.split("_")
    return first + "".join(each[0].upper() + each[1:] for each in more)


def _to_pascal_case(name: str) -> str:
    camel = _to_camel_case(name)
    return camel[0].upper() + camel[1:]


_CAMEL_CASE, _PASCAL_CASE = _build_decoder(_to_camel_case), _build_decoder(_to_pascal_case)
