"""Responses of both dialects, parsed into fields and pages, or into the error that says what to do next. Pure.

Member names differ in case between dialects (``requestId``, ``RequestId``, ``RequestID``), so they are compared without
case, whatever the dialect. The gateway answers in XML if it did not understand a request, so errors are read from XML
as well. Throttling is recognized as the vendor's newest clients do (``alibabacloud_tea_openapi`` 0.4): by the header
``x-acs-retry-after``, whatever the code is.
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from xml.parsers import expat

import msgspec

from auditor.client.decoders import (
    ERROR_RESPONSE,
    MAX_GENERAL_BYTES,
    MAX_MEMBERS_BYTES,
    MODULE_PAGE_RESPONSE,
    UTF_16_XML,
    clean_message,
    decode_json,
    decode_members,
    too_large,
)
from auditor.client.error_codes import is_error_code, make_error, make_status_error
from auditor.errors import InconsistentResponseError, PlatformError, ThrottledError, TransientError
from auditor.models import ModuleVersion, Page, ReportedModule

INVALID_JSON = "auditor.InvalidJSON"
"""Our code for a body that is not a response: HTML, half a body, JSON of another shape."""

MAX_XML_BYTES = 65_536
"""Size of an XML error up to which it is read; the gateway's have a few hundred bytes."""

_XML_MEMBERS = frozenset({"code", "message", "errormessage", "requestid"})

_NO_FIELDS: Mapping[str, object] = MappingProxyType({})


class ApiResponse(msgspec.Struct, frozen=True, gc=False):
    """The fields of a successful response by their lower-case names; or only its page, if that was decoded directly."""

    fields: Mapping[str, object]
    request_id: str | None
    page: Page | None = None


def parse_response(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    response_type: type[msgspec.Struct] | None = None,
    decode_page: Callable[[bytes], Page | None] | None = None,
) -> ApiResponse:
    """Return a response's fields or page, or raise the error that says what to do next.

    Args:
        status: HTTP status.
        headers: response headers, read without case.
        body: complete body, decompressed.
        now: seconds since 1970, for a delay that is given as a date.
        response_type: see ``Operation.response_type``. Without it, only the members of a page of module versions are
            kept of a body of more than MAX_GENERAL_BYTES. Of one of more than MAX_MEMBERS_BYTES, an error is read.
        decode_page: see ``Operation.decode_page``.

    Raises:
        PlatformError: of the class that the response calls for. A success with the code of an error is that error.
    """
    if decode_page is not None and 200 <= status < 300 and (page := decode_page(body)) is not None:
        return ApiResponse(_NO_FIELDS, page.request_id, page)
    if len(body) > MAX_MEMBERS_BYTES:
        response_type = ERROR_RESPONSE
    elif response_type is None and len(body) > MAX_GENERAL_BYTES:
        response_type = MODULE_PAGE_RESPONSE
    try:
        fields = lowercase_keys(decode_json(body)) if response_type is None else decode_members(body, response_type)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        fields = parse_xml_error(body)
    request_id = clean_message(parse_text(fields.get("requestid")) or "") or None
    success = fields.get("success")
    is_success = success is True or (isinstance(success, str) and success.lower() == "true")
    code = clean_message(_first_text(fields, _CODES, nested=not is_success))
    if 200 <= status < 300 and is_success and not is_error_code(code):
        if response_type is ERROR_RESPONSE:
            raise too_large(status, MAX_MEMBERS_BYTES)
        return ApiResponse(fields, request_id)

    error = _to_error(status, headers, fields, code, request_id)
    if isinstance(error, ThrottledError):
        error.retry_after = retry_after_seconds(headers, now)
    raise error


def _to_error(
    status: int, headers: Mapping[str, str], fields: Mapping[str, object], code: str, request_id: str | None
) -> PlatformError:
    """Return the error of a response that is no success."""
    message = clean_message(_first_text(fields, _MESSAGES))
    has_code = bool(code)
    if not has_code:  # a proxy's page, half a body, a bare status
        is_invalid = 200 <= status < 300
        code = INVALID_JSON if is_invalid else f"HTTP {status}"
        message = message or f"the response {'is not the expected JSON' if is_invalid else 'has no error code'}"
    error = make_error(code, message, http_status=status, request_id=request_id)
    if not isinstance(error, ThrottledError) and _is_throttled(error, status, headers):
        error = ThrottledError(code, message, http_status=status, request_id=request_id)
    elif not has_code:
        error = make_status_error(status, message, request_id=request_id) or error
    return error


_CODES = ("code", "errorcode")
_MESSAGES = ("errormessage", "message", "errormsg", "msg")
"""Names of an error's message, as the platform, gateways and Tuya's other APIs have them."""


def _first_text(fields: Mapping[str, object], names: Sequence[str], *, nested: bool = True) -> str:
    """Return the first of the named members that has a text, in a response or, if ``nested``, in its ``error``."""
    inner = fields.get("error") if nested else None
    texts = (parse_text(each.get(name)) for each in (fields, lowercase_keys(inner)) for name in names)
    return next(filter(None, texts), parse_text(inner) or "")


def _is_throttled(error: PlatformError, status: int, headers: Mapping[str, str]) -> bool:
    """Return whether a response that has another code, or none, is throttling: a delay decides, whatever its value."""
    if status == 429 or headers.get("x-acs-retry-after") is not None:
        return True
    return type(error) is TransientError and 400 <= status < 600 and headers.get("Retry-After") is not None


def parse_xml_error(body: bytes) -> dict[str, object]:
    """Return the code, message and request id of an XML error by lower-case names; nothing for any other body.

    Namespaces are ignored. Of a broken document, the part before its error is read. A document that declares entities
    is not read, so that it cannot expand to any size.
    """
    document = body.lstrip() if len(body) <= MAX_XML_BYTES else b""
    if not document.startswith((b"<", *UTF_16_XML)):
        return {}
    found, is_complete = _read_xml(document)
    if not is_complete:
        declared = _XML_ENCODING.match(document)
        with contextlib.suppress(LookupError, ValueError):
            text = _decode_xml(document, declared[2].decode("ascii") if declared else "utf-8")
            repaired, _ = _read_xml(_AMPERSAND.sub("&amp;", _XML_DECLARATION.sub("", text, count=1)).encode("utf-8"))
            return repaired or found
    return found


_XML_DECLARATION = re.compile(r"<\?xml[^>]*\?>")
_XML_ENCODING = re.compile(rb"<\?xml[^>]*\sencoding\s*=\s*(['\"])([A-Za-z][\w.-]{0,39})\1")
_AMPERSAND = re.compile(r"&(?!#?\w{1,31};)")
"""An ampersand that should be escaped."""


def _decode_xml(document: bytes, encoding: str) -> str:
    """Return the text of an XML document whose encoding its parser does not have, or which is in another one."""
    text = document.decode(encoding, "replace")
    return document.decode("latin-1") if "\ufffd" in text and encoding.lower().startswith("utf") else text


def _read_xml(document: bytes) -> tuple[dict[str, object], bool]:
    """Return the members of an error in XML before the place where it is broken, and whether it is not broken.

    Of a document that declares entities, return nothing.
    """
    found: dict[str, object] = {}
    path: list[str] = []
    texts: list[str] = []

    def add(name: str, text: str) -> None:
        if name in _XML_MEMBERS and text and path and path[0] != "html":
            found.setdefault(name, text)

    def start(name: str, attributes: Mapping[str, str]) -> None:
        path.append(name.rpartition(":")[2].lower())
        texts.clear()
        for attribute, value in attributes.items():
            add(attribute.rpartition(":")[2].lower(), value.strip())

    def end(_: str) -> None:
        name = path.pop()
        add(name, "".join(texts).strip())
        texts.clear()

    def refuse(*_: object) -> None:
        found.clear()
        raise ValueError("an XML document that declares entities")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = texts.append
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(document, True)
    except (ValueError, LookupError, expat.ExpatError):
        return found, False
    return found, True


def parse_module_page(response: ApiResponse) -> Page:
    """Return the page of module versions in a response.

    ``data`` may be null, empty, without an array, the object of the example or the bare array of Tuya's table.

    Raises:
        InconsistentResponseError: there is something else in its place, or an entry is not an object with a module
            name and a version.
    """
    if response.page is not None:
        return response.page
    fields = response.fields
    data = fields.get("data")
    entries = lowercase_keys(data).get("simpleotamoduleinfo") if isinstance(data, dict) else data
    if entries and not isinstance(entries, list):
        raise InconsistentResponseError("data has no array of modules")
    total, page_count = parse_count(fields.get("total")), parse_count(fields.get("pagecount"))
    return Page(
        number=parse_count(fields.get("currentpage")),
        total=0 if total is None and page_count == 0 else total,
        reported=tuple(_parse_reported_module(entry) for entry in entries) if isinstance(entries, list) else (),
        request_id=response.request_id,
    )


def _parse_reported_module(entry: object) -> ReportedModule:
    fields = lowercase_keys(entry)
    name, version = parse_text(fields.get("modulename")), parse_text(fields.get("moduleversion"))
    if not name:
        raise InconsistentResponseError("an entry of data has no module name")
    if version is None:
        value = fields.get("moduleversion")
        reason = "no version" if value is None else f"the version {value!r:.60}, which is no text"
        if isinstance(value, float):
            reason = f"the number {value!r} as version, whose digits are not exact"
        raise InconsistentResponseError(
            f"module {name:.64} has {reason}, so the answer about its device is not complete"
        )
    return ReportedModule(
        ModuleVersion(name, version),
        product_key=parse_text(fields.get("productkey")) or None,
        device_name=parse_text(fields.get("devicename")) or None,
        iot_id=parse_text(fields.get("iotid")) or None,
    )


def lowercase_keys(value: object) -> dict[str, object]:
    """Return an object's members by their lower-case names; nothing for any other value."""
    return {name.lower(): item for name, item in value.items()} if isinstance(value, dict) else {}


def parse_text(value: object) -> str | None:
    """Return a member as text; None if it is neither text nor an integer."""
    if value is None or isinstance(value, str):
        return value
    # Not a float: 1.10 would become 1.1, another version.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def parse_count(value: object) -> int | None:
    """Return a member as an integer of at least 0; None if it is not one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and value >= 0 else None


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """Return the requested delay in seconds: ``x-acs-retry-after`` in ms, or ``Retry-After`` in s or as a date.

    Between the two, ``TimeLeft`` in ms of the headers ``x-ratelimit-user-api`` and ``x-ratelimit-user`` counts.
    """
    if (seconds := _requested_delay(headers)) is not None:
        return seconds
    limits = (headers.get(name, "") for name in ("x-ratelimit-user-api", "x-ratelimit-user"))
    if left := [int(found[1]) for text in limits if (found := _TIME_LEFT.search(text)) is not None]:
        return max(left) / 1000
    delay = headers.get("Retry-After", "")
    if (seconds := _bounded_delay(delay, 1)) is not None:
        return seconds
    date = parse_http_date(delay.strip())
    return None if date is None else min(max(0.0, date - now), MAX_DELAY)


MAX_DELAY = 24 * 3600.0
"""Maximum of a requested delay, in seconds: a longer one is a mistake, or never over."""

_DELAY = re.compile(r"[+-]?[0-9]{1,15}(?:\.[0-9]{0,9})?")


def _bounded_delay(text: str, units: int) -> float | None:
    """Return a delay in seconds; None if it is no number above 0. A second has ``units`` of the text's units."""
    if (match := _DELAY.fullmatch(text.strip())) is None:
        return None
    seconds = float(match[0]) / units
    return min(seconds, MAX_DELAY) if seconds > 0 else None


_TIME_LEFT = re.compile(r"(?:^|,)\s*TimeLeft:([0-9]{1,9})(?:,|$)", re.IGNORECASE)


def _requested_delay(headers: Mapping[str, str]) -> float | None:
    """Return ``x-acs-retry-after`` in seconds; None if it is not a number of ms above 0."""
    return _bounded_delay(headers.get("x-acs-retry-after", ""), 1000)


def parse_http_date(date: str | None) -> float | None:
    """Return an HTTP date in seconds since 1970; None if it is none."""
    if not date:
        return None
    try:
        moment = parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
