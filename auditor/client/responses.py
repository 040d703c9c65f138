"""Responses of both dialects, parsed into fields and pages, or into the error that says what to do next. Pure.

The codes and their meaning come from Tuya's and Alibaba's error pages. Codes differ in case between pages, so they are
compared without case. Member names differ in case between dialects (``requestId``, ``RequestId``, ``RequestID``), so
they are compared without case too, whatever the dialect.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import MappingProxyType

import msgspec
import orjson

from auditor.client.decoders import clean_message, decode_members
from auditor.errors import (
    AccountDeniedError,
    ClockSkewError,
    DeviceDeniedError,
    InconsistentResponseError,
    InvalidRequestError,
    NeverActivatedError,
    NonceUsedError,
    NotFoundError,
    PlatformError,
    ThrottledError,
    TransientError,
)
from auditor.models import ModuleVersion, Page, ReportedModule

INVALID_JSON = "auditor.InvalidJSON"
"""Our code for a body that is not a response: HTML, half a body, JSON of another shape."""

_BY_CODE: dict[str, type[PlatformError]] = {
    "signaturenonceused": NonceUsedError,
    "invalidtimestamp.expired": ClockSkewError,
    "signaturedoesnotmatch": AccountDeniedError,
    "incompletesignature": AccountDeniedError,
    "invalidaccesskeyid.notfound": AccountDeniedError,
    "invalidaccesskeyid.inactive": AccountDeniedError,
    "iot.common.ramactionpermissiondeny": AccountDeniedError,
    "iot.system.uidnotfound": AccountDeniedError,
    "iot.system.billisoverdue": AccountDeniedError,
    "iot.system.instancenotfound": AccountDeniedError,
    "iot.common.authactionpermissiondeny": DeviceDeniedError,
    "iot.device.notexisteddevice": NotFoundError,
    "iot.device.invalidiotid": NotFoundError,
    "iot.prod.notexistedproduct": NotFoundError,
    "iot.device.inactivedevice": NeverActivatedError,
}

_BY_PATTERN: tuple[tuple[re.Pattern[str], type[PlatformError]], ...] = (
    (re.compile(r"throttling(\.|$)"), ThrottledError),
    (re.compile(r"forbidden(\.|$)"), AccountDeniedError),
    (re.compile(r"iot\.common\.invalidpageparams$"), InvalidRequestError),
    (re.compile(r"iot\.(device|prod)\.(invalidformatted|null)\w+$"), InvalidRequestError),
)
"""A code that no pattern matches is transient: the request is retried, then its device fails with code and message."""

_NO_FIELDS: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ApiResponse:
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
        response_type: see ``Operation.response_type``.
        decode_page: see ``Operation.decode_page``.

    Raises:
        PlatformError: of the class that the response calls for.
    """
    if decode_page is not None and 200 <= status < 300 and (page := decode_page(body)) is not None:
        return ApiResponse(_NO_FIELDS, page.request_id, page)
    try:
        fields = lowercase_keys(orjson.loads(body)) if response_type is None else decode_members(body, response_type)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        fields = {}
    request_id = clean_message(parse_text(fields.get("requestid")) or "") or None
    success = fields.get("success")
    if 200 <= status < 300 and (success is True or (isinstance(success, str) and success.lower() == "true")):
        return ApiResponse(fields, request_id)

    code = clean_message(parse_text(fields.get("code")) or "")
    message = clean_message(parse_text(fields.get("errormessage") or fields.get("message")) or "")
    kind = classify_error(code)
    if not code:  # a proxy's page, half a body, a bare status
        is_success = 200 <= status < 300
        code = INVALID_JSON if is_success else f"HTTP {status}"
        message = message or f"the response {'is not the expected JSON' if is_success else 'has no error code'}"
    if status == 429:
        kind = ThrottledError
    error = kind(code, message, http_status=status, request_id=request_id)
    if isinstance(error, ThrottledError):
        error.retry_after = retry_after_seconds(headers, now)
    elif isinstance(error, ClockSkewError):
        error.server_time = _parse_http_date(headers.get("Date"))
    raise error


def classify_error(code: str) -> type[PlatformError]:
    """Return the error class that a code of the platform calls for."""
    key = code.lower()
    if (kind := _BY_CODE.get(key)) is not None:
        return kind
    return next((kind for pattern, kind in _BY_PATTERN if pattern.match(key)), TransientError)


def parse_module_page(response: ApiResponse) -> Page:
    """Return the page of module versions in a response.

    ``data`` may be null, empty, without an array, the object of the example or the bare array of Tuya's table.

    Raises:
        InconsistentResponseError: an entry is not an object with a module name and a version.
    """
    if response.page is not None:
        return response.page
    fields = response.fields
    data = fields.get("data")
    entries = lowercase_keys(data).get("simpleotamoduleinfo") if isinstance(data, dict) else data
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
    if not name or version is None:
        raise InconsistentResponseError("an entry of data has no module name or version")
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
    """Return the requested delay in seconds: ``x-acs-retry-after`` in ms, or ``Retry-After`` in s or as a date."""
    milliseconds, delay = (headers.get(name, "").strip() for name in ("x-acs-retry-after", "Retry-After"))
    if re.fullmatch(r"[0-9]{1,9}", milliseconds):
        return int(milliseconds) / 1000
    if re.fullmatch(r"[0-9]{1,6}", delay):
        return float(delay)
    date = _parse_http_date(delay)
    return None if date is None else max(0.0, date - now)


def _parse_http_date(date: str | None) -> float | None:
    if not date:
        return None
    try:
        moment = parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
