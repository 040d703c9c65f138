"""Decoding of response bodies. Pure.

From the general to the special:

- ``decompress`` undoes what proxies do to a body: one or several compressions, a byte order mark.
- ``decode_json`` decodes JSON. If a string in it is broken, that costs the string and not the body.
- ``clean_message`` makes text of the platform fit for a log line.
- ``response_struct`` builds a type for each list operation that names the members to keep. The decoder skips all other
  members while it parses. So a device's secret and its address never become an object of this process.
- ``decode_documented_page`` decodes a page of module versions that is exactly as documented, straight into the fields
  that matter. Nearly every response of an audit is such a page, and this takes less than half the time of the general
  path in ``auditor.client.responses``. Any other body is left to that.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import orjson

from auditor.errors import TransientError
from auditor.models import ModuleVersion, Page, ReportedModule

MAX_BODY_BYTES = 8 * 1024 * 1024
"""Maximum size of a response body, as received and decompressed; 200 modules take about 40,000 bytes."""

MAX_LAYERS = 3
"""Compressions of one body: the platform's, and those of two proxies."""

MAX_GZIP_MEMBERS = 100
"""Members of one gzip stream (https://www.rfc-editor.org/rfc/rfc1952#section-2.2)."""

MAX_REPAIRED_BYTES = 1024 * 1024
"""Maximum size of a body whose strings are repaired: the loop waits meanwhile, and no page is nearly as large."""

MAX_GENERAL_BYTES, MAX_MEMBERS_BYTES = 256 * 1024, 1024 * 1024
"""Maximum sizes of a body that is decoded with members of any name, and with named members.

A larger one could become millions of objects, which takes seconds. A page of a list has about 20,000 bytes.
"""

ENCODING = "auditor.InvalidEncoding"
"""Code of a body that cannot be decompressed, or is not in UTF-8."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_UTF_8_MARK = b"\xef\xbb\xbf"
_OTHER_UNICODE = {
    re.compile(rb"\xff\xfe\0\0|\0\0\xfe\xff|\s*(?:[\[{<]\0\0\0|\0\0\0[\[{<])"): "UTF-32",
    re.compile(rb"\xff\xfe|\xfe\xff|(?:\s\0)*[\[{<]\0|(?:\0\s)*\0[\[{<]"): "UTF-16",
}
"""The start of text in other encodings than UTF-8, with and without a byte order mark."""

UTF_16_XML = (b"\xff\xfe<\x00", b"\xfe\xff\x00<")
"""First bytes of XML in UTF-16, whose parser reads it (https://www.w3.org/TR/xml/#charencoding)."""

MAX_MESSAGE_LENGTH = 300
"""Characters kept of a message of the platform."""

_MAX_CLEANED_LENGTH = 20 * MAX_MESSAGE_LENGTH
"""Characters of a message that are cleaned: cleaning a whole body would hold up all other requests."""


def decompress(body: bytes, content_encodings: Iterable[str], status: int) -> bytes:
    """Return a body without its compressions and byte order mark.

    A gzip layer is found by its first bytes too, because proxies compress again what is compressed, and name it once.
    An error status is understood without a body. So a body of one that cannot be read becomes empty.

    Args:
        body: the complete body as received.
        content_encodings: the headers ``Content-Encoding``; each may list several, in the order of their application.
        status: HTTP status.

    Raises:
        TransientError: the body is too large or damaged, or in an encoding that was not requested.
    """
    try:
        return _decompress(body, [each.strip().lower() for header in content_encodings for each in header.split(",")])
    except TransientError as error:
        if status // 100 != 2:  # noqa: PLR2004  success
            return b""
        error.http_status = status
        raise


def _decompress(body: bytes, codings: list[str]) -> bytes:
    layers = 0
    while body and (codings or body.startswith(_GZIP)):
        coding = codings.pop() if codings else "gzip"
        if coding in ("", "identity"):
            continue
        layers += 1
        if layers > MAX_LAYERS:
            raise TransientError(ENCODING, f"the body is compressed more than {MAX_LAYERS} times")
        if coding in ("gzip", "x-gzip"):  # https://www.rfc-editor.org/rfc/rfc9110#section-8.4.1.3
            body = _inflate(body, coding, zlib.MAX_WBITS | 16)
        elif coding == "deflate":  # with the header of zlib; some servers omit it
            body = _inflate(body, coding, zlib.MAX_WBITS if int.from_bytes(body[:2]) % 31 == 0 else -zlib.MAX_WBITS)
        else:
            raise _not_requested(coding)
    if body.startswith(_ZSTD):
        raise _not_requested("zstd")
    while body.startswith(_UTF_8_MARK):
        body = body.removeprefix(_UTF_8_MARK)
    name = next((name for first, name in _OTHER_UNICODE.items() if first.match(body)), None)
    if name is not None and not body.startswith(UTF_16_XML):
        raise TransientError(ENCODING, f"the body is text in {name}; the platform sends UTF-8: a proxy has changed it")
    return body


def _inflate(body: bytes, coding: str, wbits: int) -> bytes:
    """Return an inflated body of MAX_BODY_BYTES at most: its size is limited while it is inflated."""
    parts: list[bytes] = []
    room = MAX_BODY_BYTES
    for _ in range(MAX_GZIP_MEMBERS):
        stream = zlib.decompressobj(wbits)
        try:
            parts.append(stream.decompress(body, room + 1))
        except zlib.error:
            stated = f"the header Content-Encoding says that the body is compressed with {coding}"
            raise TransientError(ENCODING, f"{stated}, but it is not, or is damaged") from None
        room -= len(parts[-1])
        if room < 0:
            raise too_large()
        if not stream.eof:
            raise TransientError("auditor.IncompleteBody", f"the body ends within its {coding} compression")
        body = stream.unused_data
        if not body.startswith(_GZIP):
            break
    return b"".join(parts)


def too_large(status: int | None = None, limit: int = MAX_BODY_BYTES) -> TransientError:
    """Return the error of a body that is larger than a limit."""
    sentence = f"the response is larger than {limit:,} bytes"
    return TransientError("auditor.ResponseTooLarge", sentence, http_status=status)


def _not_requested(coding: str) -> TransientError:
    stated = f"the body is compressed with {clean_message(coding)}"
    return TransientError(ENCODING, f"{stated}, but gzip alone was requested: a proxy has changed it")


def decode_json(body: bytes) -> Any:  # noqa: ANN401  JSON has any type
    """Return the value of a JSON text, even if strings in it are broken, see ``repair_strings``.

    Raises:
        ValueError: it is not JSON.
        RecursionError: it is nested too deeply.
    """
    return _decode(body, orjson.loads)


_UNQUOTED = r"|(?<![\w.+-])-?(?P<no_number>(?i:nan|inf(?:inity)?))(?!\w)"
"""What C, Python and JavaScript write for numbers that JSON does not have."""

_STRING = re.compile(rf'"(?:[^"\\]++|\\.)*+"?{_UNQUOTED}', re.DOTALL)

_DOUBLE_BYTE = r"[\udc81-\udcfe][@-~\udc80-\udcfe]"
"""A character in GBK, Big5 or Shift JIS, whose second byte may be a backslash."""

_STRING_OF_DOUBLE_BYTES = re.compile(
    rf'"(?:[^"\\\udc81-\udcfe]++|{_DOUBLE_BYTE}|[\udc81-\udcfe]|\\.)*+"?{_UNQUOTED}', re.DOTALL
)
_DOUBLE_BYTES = re.compile(_DOUBLE_BYTE)
_IN_STRING = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair, which is right
    r"|\\u(?P<half>[dD][89a-fA-F][0-9a-fA-F]{2})|\\(?:[\"\\/bfnrt]|u[0-9a-fA-F]{4})|(?P<lone>\\)|(?P<control>[\x00-\x1f])"
)
_MAY_BE_BROKEN = re.compile(r"[\\\x00-\x1f]")
_NO_UTF_8 = re.compile(r"[\udc80-\udcff]")


def repair_strings(body: bytes, *, double_bytes: bool = False) -> bytes:
    r"""Return a JSON text in which no string is broken. Takes linear time.

    Firmware reports versions, and people give names, that are cut within a character. The broken part is written as
    text, so that it is neither lost nor taken for a character: the byte 0xBF becomes the four characters ``\xbf``, and
    half a surrogate pair becomes ``\ud83d``. A raw control byte becomes the escape sequence that it should be, and a
    backslash that begins no escape sequence is a backslash. ``NaN`` and ``Infinity`` outside strings become null.

    Args:
        body: the JSON text.
        double_bytes: whether bytes that are not UTF-8 are characters of two, so that a backslash may belong to one.

    Raises:
        ValueError: the text has nothing to repair, or is larger than MAX_REPAIRED_BYTES.
    """
    if len(body) > MAX_REPAIRED_BYTES:
        raise ValueError(f"larger than {MAX_REPAIRED_BYTES:,} bytes")
    text = body.decode("utf-8", "surrogateescape")

    def repair(match: re.Match[str]) -> str:
        return "null" if match["no_number"] is not None else _repair_string(match[0], double_bytes=double_bytes)

    repaired = (_STRING_OF_DOUBLE_BYTES if double_bytes else _STRING).sub(repair, text)
    if repaired == text:
        raise ValueError("there is nothing to repair")
    return repaired.encode("utf-8")


def _repair_string(string: str, *, double_bytes: bool) -> str:
    if double_bytes:
        string = _DOUBLE_BYTES.sub(lambda match: match[0].replace("\\", r"\\x5c"), string)
    if not string.isascii():
        string = _NO_UTF_8.sub(lambda match: rf"\\x{ord(match[0]) - 0xDC00:02x}", string)
    if _MAY_BE_BROKEN.search(string) is not None:
        string = _IN_STRING.sub(_repair_part, string)
    return string


def _repair_part(match: re.Match[str]) -> str:
    if (half := match["half"]) is not None:
        return rf"\\u{half}"
    if match["lone"] is not None:
        return r"\\"
    return match[0] if match["control"] is None else f"\\u{ord(match[0]):04x}"


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


MAX_ARRAY_ITEMS = 6_000
"""Maximum length of an array in a response: a page has 200 items, and each of them takes time."""

_MAX_ITEMS = msgspec.Meta(max_length=MAX_ARRAY_ITEMS)

_Scalars = Annotated[list[str | int | float | bool | _IgnoredObject | None], _MAX_ITEMS]

Leaf = str | int | float | bool | _IgnoredObject | _Scalars | None
"""A scalar; an object in its place is ignored."""

Shape = Mapping[str, Any]
"""Members by their camelCase names: None for a leaf, a shape for an object, ``[shape]`` for an array of objects."""


_NESTED_ERROR: Shape = dict.fromkeys(("code", "errorCode", "message", "errorMessage", "errorMsg", "msg"))
"""Code and message of an error, in a response or in its member ``error``."""


def response_struct(shape: Shape, name: str = "Response") -> type[msgspec.Struct]:
    """Return a type for ``msgspec.json.decode`` that keeps the members named by a shape and no others.

    It accepts camelCase (Tuya), PascalCase (Alibaba), and ``ID`` for ``Id`` and ``IoT`` for ``Iot``, as pages of both
    have them. An object may be null, empty, or the bare array that it holds elsewhere. A member of another type is
    dropped. It is never kept as text, which could be JSON with all its members.
    """
    fields = [
        (spelling, _field_type(inner, spelling), None) for key, inner in shape.items() for spelling in _spellings(key)
    ]
    return msgspec.defstruct(name, fields, gc=False)


def decode_members(body: bytes, response_type: type[msgspec.Struct]) -> dict[str, object]:
    """Return the kept members of a response by their lower-case names.

    Of an error response with another shape, only the members of an error are returned.

    Raises:
        ValueError, msgspec.MsgspecError: it is not JSON, not an object, or a success with another shape.
    """
    try:
        members: dict[str, object] = _to_members(_decode(body, msgspec.json.Decoder(response_type).decode))
    except msgspec.ValidationError:
        members = _to_members(_decode(body, msgspec.json.Decoder(ERROR_RESPONSE).decode))
        if "success" in members and members["success"] is not False:
            raise
    return members


_T = TypeVar("_T")

_MAY_BE_DOUBLE_BYTES = re.compile(rb"[\x81-\xfe]\\")


def _decode(body: bytes, decode: Callable[[bytes], _T]) -> _T:
    """Decode a body, after a repair if strings are broken; raise ValueError or MsgspecError if it has no such value."""
    try:
        return decode(body)
    except msgspec.ValidationError:
        raise
    except (ValueError, msgspec.DecodeError):
        try:
            return decode(repair_strings(body))
        except msgspec.ValidationError:
            raise
        except (ValueError, msgspec.DecodeError):
            if _MAY_BE_DOUBLE_BYTES.search(body) is None:
                raise
            return decode(repair_strings(body, double_bytes=True))


def _field_type(inner: Shape | Sequence[Shape] | None, name: str) -> Any:  # noqa: ANN401  a type built at run time
    if inner is None:
        return Leaf
    other = Literal[""] | int | float | bool | None
    if isinstance(inner, Mapping) and inner == _NESTED_ERROR:
        return response_struct(inner, name) | str | int | float | bool | _Scalars | None
    if isinstance(inner, Mapping):
        arrays = [each for each in inner.values() if isinstance(each, list)]
        item = _item_type(arrays[0][0], name) if arrays else other
        return response_struct(inner, name) | other | Annotated[list[item], _MAX_ITEMS]  # type: ignore[valid-type]
    items: Any = list[_item_type(inner[0], name)]  # type: ignore[misc]  # a type built at run time
    return Annotated[items, _MAX_ITEMS] | other | _IgnoredObject


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


_STATUS = {**dict.fromkeys(("success", "requestId")), **_NESTED_ERROR, "error": _NESTED_ERROR}
ERROR_RESPONSE = response_struct(_STATUS)
"""What is kept of an error, and of a body that is too large for the other members."""

_PAGING = dict.fromkeys(("currentPage", "page", "pageSize", "pageCount", "total", "nextToken"))

_PRODUCTS = {"productInfo": [dict.fromkeys(("productKey", "productName", "deviceCount", "nodeType"))]}

PRODUCT_LIST_RESPONSE = response_struct({**_STATUS, **_PAGING, "data": {**_PAGING, "list": _PRODUCTS, **_PRODUCTS}})
"""What is kept of a response of QueryProductList."""

_DEVICE = ("productKey", "deviceName", "iotId", "deviceStatus", "utcCreate", "utcModified", "nickname")

DEVICE_LIST_RESPONSE = response_struct(
    {**_STATUS, **_PAGING, "data": {**_PAGING, "deviceInfo": [dict.fromkeys(_DEVICE)]}}
)
"""What is kept of a response of QueryDevice: never ``deviceSecret``."""

_VERSIONS = [dict.fromkeys(("moduleName", "firmwareVersion"))]

_DEVICE_ROW: Shape = {
    **dict.fromkeys(("productKey", "deviceName", "iotId", "nickname", "status", "gmtCreate", "gmtModified")),
    **dict.fromkeys(("OTAModules", "otaModules"), _VERSIONS),
    "tags": [dict.fromkeys(("tagName", "tagValue"))],
    "groups": [dict.fromkeys(("groupId",))],
}

DEVICE_ROWS_RESPONSE = response_struct({**_STATUS, "totalCount": None, "data": [_DEVICE_ROW]})
"""What is kept of a response of QueryDeviceBySQL."""

_MODULES = [dict.fromkeys(("moduleName", "productKey"))]

PRODUCT_MODULES_RESPONSE = response_struct({**_STATUS, "data": {"otaModuleDTO": _MODULES, "otaModuleDto": _MODULES}})
"""What is kept of a response of ListOTAModuleByProduct."""

_FIRMWARE = (
    "firmwareId", "firmwareName", "firmwareSize", "moduleName", "productKey", "srcVersion", "destVersion", "status",
    "type", "utcCreate", "utcModified",
)  # fmt: skip
_FIRMWARE_LIST = {"simpleFirmwareInfo": [dict.fromkeys(_FIRMWARE)]}

FIRMWARE_LIST_RESPONSE = response_struct(
    {**_STATUS, **_PAGING, "firmwareInfo": _FIRMWARE_LIST, "data": {**_PAGING, **_FIRMWARE_LIST}}
)
"""What is kept of a response of ListOTAFirmware."""

_JOB = (
    "jobId", "firmwareId", "productKey", "jobStatus", "jobType", "selectionType", "targetSelection", "utcCreate",
    "utcStartTime", "utcEndTime",
)  # fmt: skip

JOB_LIST_RESPONSE = response_struct(
    {**_STATUS, **_PAGING, "data": {**_PAGING, "simpleOTAJobInfo": [dict.fromkeys(_JOB)]}}
)
"""What is kept of a response of ListOTAJobByFirmware."""

_TASK = (
    "taskId", "jobId", "firmwareId", "productKey", "deviceName", "iotId", "srcVersion", "destVersion", "taskStatus",
    "taskDesc", "progress", "utcCreate", "utcModified",
)  # fmt: skip

TASK_LIST_RESPONSE = response_struct(
    {**_STATUS, **_PAGING, "data": {**_PAGING, "simpleOTATaskInfo": [dict.fromkeys(_TASK)]}}
)
"""What is kept of a response of ListOTATaskByJob."""

_DEVICE_STATE = ("productKey", "deviceName", "iotId", "status", "timestamp", "lastOnlineTime")
_STATES = {"deviceStatus": [dict.fromkeys(_DEVICE_STATE)]}

DEVICE_STATES_RESPONSE = response_struct(
    {**_STATUS, "deviceStatusList": _STATES, "data": {"deviceStatusList": _STATES, **_STATES}}
)
"""What is kept of a response of BatchGetDeviceState: never ``asAddress``, the address a device connected from."""

_DETAILS = {"data": [dict.fromkeys(("productKey", "deviceName", "iotId", "status", "firmwareVersion"))]}

DEVICE_DETAILS_RESPONSE = response_struct({**_STATUS, "data": _DETAILS})
"""What is kept of a response of BatchQueryDeviceDetail: never ``deviceSecret``."""

_MODULE = ("moduleName", "moduleVersion", "productKey", "deviceName", "iotId")

MODULE_PAGE_RESPONSE = response_struct(
    {**_STATUS, **_PAGING, "data": {"simpleOTAModuleInfo": [dict.fromkeys(_MODULE)]}}
)
"""What is kept of a large response of ListOTAModuleVersionsByDevice."""

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]


def decode_documented_page(body: bytes) -> Page | None:
    """Return the page in a body that is exactly as documented, in Tuya's or Alibaba's spelling; None for any other."""
    decoder = _PASCAL_CASE if b'"Success"' in body else _CAMEL_CASE
    try:
        response = _decode(body, decoder.decode)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return None
    return _to_page(response) if response.success and not response.code and is_plain(response.request_id) else None


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
    data = struct("Data", ("modules", Annotated[list[entry], _MAX_ITEMS]))  # type: ignore[valid-type]  # as above
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
