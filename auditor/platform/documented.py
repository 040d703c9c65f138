"""A page of module versions that is just as the platform documents it, decoded straight into the fields that count.

Nearly every answer of an audit is such a page. To read it takes less than half the time of reading whatever may come,
which ``auditor.platform.answers`` does; and what is only nearly such a page is left to that.
"""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from auditor.model import ModuleVersion, Page, ReportedModule
from auditor.platform.text import is_plain

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
