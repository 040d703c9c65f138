"""Answers of both dialects, read into fields and pages, or into the error that says what to do next. Pure.

The codes and what they call for stand in Tuya's and Alibaba's error pages; codes differ in case between pages, so
they are compared without case. Field names differ in case between dialects (``requestId``, ``RequestId``,
``RequestID``), so they are read without case too, whatever the dialect.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import MappingProxyType

import msgspec
import orjson

from auditor.client.decoders import one_line, read
from auditor.client.operations import Operation
from auditor.errors import (
    ClockSkewError,
    ForbiddenDeviceError,
    InconsistentPagesError,
    NeverActivatedError,
    NonceUsedError,
    NotFoundError,
    PlatformError,
    RefusedAccountError,
    RefusedRequestError,
    ThrottledError,
    TransientError,
)
from auditor.models import ModuleVersion, Page, ReportedModule

UNREADABLE = "auditor.UnreadableAnswer"
"""Our code for an answer that is not one: HTML, half a body, JSON of another shape."""


_BY_CODE: dict[str, type[PlatformError]] = {
    "signaturenonceused": NonceUsedError,
    "invalidtimestamp.expired": ClockSkewError,
    "signaturedoesnotmatch": RefusedAccountError,
    "incompletesignature": RefusedAccountError,
    "invalidaccesskeyid.notfound": RefusedAccountError,
    "invalidaccesskeyid.inactive": RefusedAccountError,
    "iot.common.ramactionpermissiondeny": RefusedAccountError,
    "iot.system.uidnotfound": RefusedAccountError,
    "iot.system.billisoverdue": RefusedAccountError,
    "iot.system.instancenotfound": RefusedAccountError,
    "iot.common.authactionpermissiondeny": ForbiddenDeviceError,
    "iot.device.notexisteddevice": NotFoundError,
    "iot.device.invalidiotid": NotFoundError,
    "iot.prod.notexistedproduct": NotFoundError,
    "iot.device.inactivedevice": NeverActivatedError,
}


_BY_PATTERN: tuple[tuple[re.Pattern[str], type[PlatformError]], ...] = (
    (re.compile(r"throttling(\.|$)"), ThrottledError),
    (re.compile(r"forbidden(\.|$)"), RefusedAccountError),
    (re.compile(r"iot\.common\.invalidpageparams$"), RefusedRequestError),
    (re.compile(r"iot\.(device|prod)\.(invalidformatted|null)\w+$"), RefusedRequestError),
)
"""What no pattern knows is transient: retried as often as any fault, then that device fails with code and message."""


_NO_FIELDS: Mapping[str, object] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer's fields, their names in lower case; or its page, which then is all that is kept of it."""

    fields: Mapping[str, object]
    request_id: str | None
    page: Page | None = None


def decipher(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    kept: type[msgspec.Struct] | None = None,
    documented: Callable[[bytes], Page | None] | None = None,
) -> Answer:
    """An answer's fields, or the error that says what to do next.

    Args:
        status: the HTTP status.
        headers: the answer's headers, looked up without case.
        body: the whole body, decompressed.
        now: seconds since 1970, for delays that are told as a date.
        kept: what is read of it, see ``shapes``; None: everything.
        documented: reads the page of an answer that is just as the platform documents it.

    Raises:
        PlatformError: of the kind that the answer calls for.
    """
    if documented is not None and 200 <= status < 300 and (page := documented(body)) is not None:
        return Answer(_NO_FIELDS, page.request_id, page)
    try:
        fields = lowered(orjson.loads(body)) if kept is None else read(body, kept)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        fields = {}
    request_id = one_line(text_of(fields.get("requestid")) or "") or None
    success = fields.get("success")
    if 200 <= status < 300 and (success is True or (isinstance(success, str) and success.lower() == "true")):
        return Answer(fields, request_id)

    code = one_line(text_of(fields.get("code")) or "")
    message = one_line(text_of(fields.get("errormessage") or fields.get("message")) or "")
    kind = kind_of(code)
    if not code:
        code, message, kind = _nameless(status, message)
    if status == 429:
        kind = ThrottledError
    error = kind(code, message, http_status=status, request_id=request_id)
    if isinstance(error, ThrottledError):
        error.retry_after = wished_delay(headers, now)
    elif isinstance(error, ClockSkewError):
        error.server_time = _seconds_of_date(headers.get("Date"))
    raise error


def kind_of(code: str) -> type[PlatformError]:
    """The error that a platform's code calls for."""
    lowered = code.lower()
    if (known := _BY_CODE.get(lowered)) is not None:
        return known
    return next((kind for pattern, kind in _BY_PATTERN if pattern.match(lowered)), TransientError)


def page_of(operation: Operation, answer: Answer) -> Page:
    """The page of module versions in an answer.

    ``data`` may be null, empty, hollow, the object of the example or the bare array that Tuya's table calls it.

    Raises:
        InconsistentPagesError: an entry is not an object with a module name and a version.
    """
    if answer.page is not None:
        return answer.page
    fields = answer.fields
    data = fields.get("data")
    entries = lowered(data).get(operation.items) if isinstance(data, dict) else data
    total, page_count = whole_of(fields.get("total")), whole_of(fields.get("pagecount"))
    return Page(
        number=whole_of(fields.get("currentpage")),
        size=whole_of(fields.get("pagesize")),
        page_count=page_count,
        total=0 if total is None and page_count == 0 else total,
        reported=tuple(_reported(entry) for entry in entries) if isinstance(entries, list) else (),
        request_id=answer.request_id,
    )


def _reported(entry: object) -> ReportedModule:
    fields = lowered(entry)
    name, version = text_of(fields.get("modulename")), text_of(fields.get("moduleversion"))
    if not name or version is None:
        raise InconsistentPagesError("an entry of data has no module name or version")
    return ReportedModule(
        ModuleVersion(name, version),
        product_key=text_of(fields.get("productkey")) or None,
        device_name=text_of(fields.get("devicename")) or None,
        iot_id=text_of(fields.get("iotid")) or None,
    )


def _nameless(status: int, message: str) -> tuple[str, str, type[PlatformError]]:
    """Code, message and kind of an answer without a code: a proxy's page, half a body, a bare status."""
    if 200 <= status < 300:
        return UNREADABLE, message or "the answer is not the JSON that was asked for", TransientError
    return f"HTTP {status}", message or "the answer has no code", TransientError


def lowered(value: object) -> dict[str, object]:
    """An object's members, their names in lower case; of anything else none."""
    if not isinstance(value, dict):
        return {}
    return {name.lower(): item for name, item in value.items()}


def text_of(value: object) -> str | None:
    """A member as text; None where it is no text and no whole number."""
    if value is None or isinstance(value, str):
        return value
    # Not a number with a point: 1.10 would become 1.1, another version.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


def whole_of(value: object) -> int | None:
    """A member as a whole number from 0 up; None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and value >= 0 else None


def wished_delay(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that whoever answered asks to wait: ``x-acs-retry-after`` in ms, or ``Retry-After`` in s or as a date."""
    milliseconds, wish = (headers.get(name, "").strip() for name in ("x-acs-retry-after", "Retry-After"))
    if re.fullmatch(r"[0-9]{1,9}", milliseconds):
        return int(milliseconds) / 1000
    if re.fullmatch(r"[0-9]{1,6}", wish):
        return float(wish)
    date = _seconds_of_date(wish)
    return None if date is None else max(0.0, date - now)


def _seconds_of_date(date: str | None) -> float | None:
    if not date:
        return None
    try:
        moment = parsedate_to_datetime(date)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
