"""What platforms and networks say, as text that is fit for a line of a log. Pure.

What is kept of an answer, as types to decode it with: a member that no shape names is passed over while it is read.

So a device's secret and its address, which come with lists of devices, never become an object of this process.

A page of module versions that is just as the platform documents it, decoded straight into the fields that count.

Nearly every answer of an audit is such a page. To read it takes less than half the time of reading whatever may come,
which ``auditor.platform.answers`` does; and what is only nearly such a page is left to that.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from auditor.models import ModuleVersion, Page, ReportedModule

MESSAGE_LENGTH = 300
"""Characters kept of a platform's message."""


_READ_LENGTH = 20 * MESSAGE_LENGTH
"""Characters of a platform's message that are cleaned at most: a body's worth of them would hold up every request."""


def one_line(message: str) -> str:
    """A platform's message fit for a log line.

    The gateway's answer to a wrong signature quotes its whole string to sign; that part is dropped.
    """
    if is_plain(message):  # as every request id is, which comes with every answer
        return message
    text = re.sub(r"server string to sign is.*", "", message, flags=re.IGNORECASE | re.DOTALL)[:_READ_LENGTH]
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MESSAGE_LENGTH]


def is_plain(message: str) -> bool:
    """Whether a message is one word that ``one_line`` would leave as it is."""
    return len(message) <= MESSAGE_LENGTH and message.isascii() and message.isprintable() and " " not in message


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


_Whole = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


_Text = Annotated[str, msgspec.Meta(min_length=1)]


def documented_page(body: bytes) -> Page | None:
    """The page in an answer that is just as documented, in Tuya's spelling or in Alibaba's; None in any other."""
    decoder = _PASCAL if b'"Success"' in body else _CAMEL
    try:
        answer = decoder.decode(body)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return None
    return _page(answer) if answer.success and is_plain(answer.request_id) else None


def _page(answer: Any) -> Page:  # noqa: ANN401  of a type that is made below
    return Page(
        number=answer.current_page,
        size=answer.page_size,
        page_count=answer.page_count,
        total=answer.total,
        reported=tuple(
            [
                ReportedModule(
                    ModuleVersion(entry.module_name, entry.module_version),
                    entry.product_key or None,
                    entry.device_name or None,
                    entry.iot_id or None,
                )
                for entry in answer.data.modules
            ]
        ),
        request_id=answer.request_id or None,
    )


def _decoder(spelled: Callable[[str], str]) -> "msgspec.json.Decoder[Any]":
    """A decoder of answers whose names are ``spelled`` so, and that have no others."""

    def struct(name: str, *fields: tuple[str, Any] | tuple[str, Any, Any]) -> type[msgspec.Struct]:
        return msgspec.defstruct(name, fields, rename=spelled, forbid_unknown_fields=True, gc=False)

    def may_have(kind: object, *names: str) -> list[tuple[str, Any, None]]:
        return [(name, kind | None, None) for name in names]  # type: ignore[operator]  # a type, which knows `|`

    named = may_have(str, "product_key", "device_name", "iot_id")
    entry = struct("Entry", ("module_name", _Text), ("module_version", str), *named)
    data = struct("Data", ("modules", list[entry]))  # type: ignore[valid-type]  # as above
    told = may_have(str, "code", "error_message") + may_have(_Whole, "current_page", "page_size", "page_count")
    needed = ("success", bool), ("total", _Whole), ("data", data), ("request_id", str)
    return msgspec.json.Decoder(struct("Answer", *needed, *told))


def _in_camel_case(name: str) -> str:
    first, *more = ["simple", "OTA", "module", "info"] if name == "modules" else name.split("_")
    return first + "".join(each[0].upper() + each[1:] for each in more)


def _in_pascal_case(name: str) -> str:
    camel = _in_camel_case(name)
    return camel[0].upper() + camel[1:]


_CAMEL, _PASCAL = _decoder(_in_camel_case), _decoder(_in_pascal_case)
