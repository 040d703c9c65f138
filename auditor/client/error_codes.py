"""The platform's error codes, and the error class that each calls for. Pure.

The codes and their meaning come from Tuya's and Alibaba's error pages and from the vendor's own clients. Codes differ
in case between pages, so they are compared without case.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

from auditor.errors import (
    AccountDeniedError,
    ClockSkewError,
    DenialCause,
    DeviceDeniedError,
    InvalidRequestError,
    NeverActivatedError,
    NonceUsedError,
    NotFoundError,
    PlatformError,
    ThrottledError,
    TransientError,
)

_CLASSES: tuple[tuple[str, type[PlatformError]], ...] = (
    ("signaturenonceused", NonceUsedError),
    # One of these names even has a message that says that the parameter is missing.
    (r".*timestamp(\..*)?|requesttimetooskewed|requestexpired|signatureexpired", ClockSkewError),
    (r"(.*\.)?(throttling|throttled|flowlimit|flowcontrol|toomanyrequests)(\..*)?", ThrottledError),
    (r"iot\.common\.authactionpermissiondeny", DeviceDeniedError),
    (
        r"iot\.device\.(notexisteddevice|invalidiotid)|iot\.prod\.notexistedproduct|iot\.ota\.notexisted\w+",
        NotFoundError,
    ),
    (r"iot\.device\.inactivedevice", NeverActivatedError),
    (
        r"invalidparam[ae]t[ae]r(\..*)?|iot\.common\.invalidpageparams|iot\.system\.illegalrequest|iot\.(device|prod)\.(invalidformatted|null)\w+",
        InvalidRequestError,
    ),
)

_DENIALS: tuple[tuple[str, DenialCause], ...] = (
    (r".*(securitytoken|ststoken)(\..*)?", "token"),
    (r".*(accesskey(disabled|inactive|notfound|expired)|accesskeyid(\..*)?)", "key"),
    (
        r"(signature(doesnot|not|mis)match|incompletesignature|.*accesskeysecret|(invalid|missing)signature\w*)(\..*)?",
        "secret",
    ),
    (r"(user)?(no|not|un)(permission|authori[sz])\w*(\..*)?|(access|permission)denied(\..*)?", "permission"),
    (r"forbidden(\..*)?|(.*\.)?\w*permissiondeny\w*", "permission"),
    (r".*instance\w*\.?(notfound|notexist\w*|expired|stopped)|(.*\.)?invalid\w*instance\w*(\..*)?", "instance"),
    (r"(invalid|unsupported|illegal)region(id)?(\..*)?", "region"),
    (r"(invalid|unsupported|illegal)(action|api|version|operation|httpmethod)(\..*)?|(api|action)notfound", "action"),
    (r"(invalid|unsupported|illegal)protocol(\..*)?|(.*\.)?(needssl|needhttps|httpsrequired|sslrequired)", "https"),
    (r"missing\w+(\..*)?", "parameter"),
    (r"iot\.system\.(uidnotfound|billisoverdue)|.*overdue.*|(.*\.)?(servicenotopened|noserviceopened)", "account"),
    (r"(.*\.)?account(disabled|frozen|suspended)", "account"),
)
"""Refusals that no retry changes: the account is stopped."""

_PARAMETERS: tuple[tuple[str, DenialCause], ...] = (
    (r"(?<![\w@:-])securitytoken(?![\w@:-])", "token"),
    (r"(?<![\w@:-])(iot)?instanceid(?![\w@:-])", "instance"),
    (r"(?<![\w@:-])regionid(?![\w@:-])", "region"),
    (r"(?<![\w@:-])accesskeyid(?![\w@:-])", "key"),
)
"""Parameters of every request. The message of a code such as MissingParameter may name one.

It may quote a device name such as ``regionid-1`` too, which says nothing about the account.
"""


def classify_error(code: str) -> type[PlatformError]:
    """Return the error class for a code; TransientError for an unknown one: it is retried, then its device fails."""
    return _classify(code.lower()[:200])[0]


_NO_ERROR = re.compile(r"[\W\d_]*|ok|success(ful|fully)?|succeeded|normal|none|null", re.IGNORECASE)
"""Codes that a success may have. The documented one is the empty text."""


def is_error_code(code: str) -> bool:
    """Return whether a code contradicts a response that says that it is a success."""
    return _NO_ERROR.fullmatch(code) is None


def make_error(code: str, message: str, *, http_status: int, request_id: str | None) -> PlatformError:
    """Return the error for a code and message of the platform."""
    kind, cause = _classify(code.lower()[:200])
    if cause == "parameter" or code.lower().startswith("invalidparam"):
        named = next((other for pattern, other in _PARAMETERS if re.search(pattern, message, re.IGNORECASE)), None)
        kind, cause = (kind, cause) if named is None else (AccountDeniedError, named)
    error = kind(code, message, http_status=http_status, request_id=request_id)
    if isinstance(error, AccountDeniedError) and cause is not None:
        error.cause = cause
    return error


@lru_cache(maxsize=256)
def _classify(code: str) -> tuple[type[PlatformError], DenialCause | None]:
    for pattern, kind in _CLASSES:
        if re.fullmatch(pattern, code):
            return kind, None
    for pattern, cause in _DENIALS:
        if re.fullmatch(pattern, code):
            return AccountDeniedError, cause
    if code in _NUMBERS:
        return _NUMBERS[code]
    return _classify_words(code)


def _classify_words(code: str) -> tuple[type[PlatformError], DenialCause | None]:
    letters = re.sub(r"[^a-z]", "", code)
    words = frozenset(map(_ROOTS.__getitem__, _WORDS.findall(letters)))
    if not words.intersection(_OF_DEVICES):
        for needed, of_words, refused in _WORD_SETS:
            if all(words.intersection(options.split()) for options in needed):
                return of_words, refused
    return TransientError, None


_NUMBERS: Mapping[str, tuple[type[PlatformError], DenialCause | None]] = {
    "1001": (AccountDeniedError, "secret"),
    "1002": (AccountDeniedError, "token"),
    "1004": (AccountDeniedError, "secret"),
    "1005": (AccountDeniedError, "key"),
    "1010": (AccountDeniedError, "token"),
    "1011": (AccountDeniedError, "token"),
    "1012": (AccountDeniedError, "token"),
    "1013": (ClockSkewError, None),
    "1106": (DeviceDeniedError, None),
    "1108": (AccountDeniedError, "action"),
    "28841002": (AccountDeniedError, "account"),
    "28841101": (AccountDeniedError, "permission"),
    "28841105": (AccountDeniedError, "permission"),
}
"""Numbers of Tuya's other APIs (https://developer.tuya.com/en/docs/iot/error-code): 1106 may be about one device."""

_SPELLINGS: Mapping[str, str] = {
    # What it is about.
    "token": "sts", "timestamp": "", "requesttime": "", "request": "requests", "qps": "", "rate": "", "flow": "",
    "call": "calls", "frequency": "", "limit": "limits limited", "user": "", "account": "", "customer": "",
    "service": "", "api": "", "action": "", "operation": "", "interface": "", "endpoint": "", "https": "ssl tls",
    "accesskey": "accesskeyid appkey clientid", "signature": "", "balance": "", "instance": "", "region": "",
    # What is wrong with it.
    "throttling": "throttled throttle", "exceed": "exceeded exceeds", "frequent": "frequently toomany",
    "expired": "expire", "invalid": "malformed illegal mismatch incorrect", "missing": "need require required only",
    "range": "skewed skew tooold future", "deny": "denied denies forbidden unauthorized",
    "nopermission": "notallowed", "disabled": "disable frozen suspended locked", "arrears": "arrear arrearage overdue",
    "owing": "insufficient notenough", "notfound": "notexist notexisted notexists nosuch",
    "unsupported": "notsupport notsupported", "notopen": "notopened notactivated notenabled notsubscribed inactive",
    # What it may be about instead of the account.
    "device": "devices devicename iotid gateway thing", "product": "productkey prod", "page": "next continuation",
    "parameter": "param", "module": "firmware job task group topic tag shadow property", "timeout": "",
}  # fmt: skip
"""Words of codes, and others of one meaning. A code is split by the longest of them that fits, whatever its case."""

_ROOTS = {word: root for root, others in _SPELLINGS.items() for word in (root, *others.split())}

_WORDS = re.compile("|".join(sorted(_ROOTS, key=len, reverse=True)))

_OF_DEVICES = frozenset(("device", "product", "page", "parameter", "module"))
"""Words of codes that are about one request or device, whatever else they say."""

_WORD_SETS: tuple[tuple[tuple[str, ...], type[PlatformError], DenialCause | None], ...] = (
    (("timestamp",), ClockSkewError, None),
    (("requesttime", "expired invalid range"), ClockSkewError, None),
    (("request", "expired"), ClockSkewError, None),
    (("throttling",), ThrottledError, None),
    (("qps rate flow request call frequency", "exceed limit frequent"), ThrottledError, None),
    (("token", "expired invalid missing notfound disabled"), AccountDeniedError, "token"),
    (("accesskey", "expired invalid missing notfound disabled notopen"), AccountDeniedError, "key"),
    (("signature", "expired invalid missing"), AccountDeniedError, "secret"),
    (("disabled", "user account customer operation service"), AccountDeniedError, "account"),
    (("arrears",), AccountDeniedError, "account"),
    (("balance", "owing"), AccountDeniedError, "account"),
    (("user account customer service api", "notopen"), AccountDeniedError, "account"),
    (("user account customer", "notfound invalid expired"), AccountDeniedError, "account"),
    (("instance", "notfound expired notopen disabled"), AccountDeniedError, "instance"),
    (("region", "notfound invalid unsupported"), AccountDeniedError, "region"),
    (("deny nopermission",), AccountDeniedError, "permission"),
    (("https", "missing"), AccountDeniedError, "https"),
    (("api action operation interface endpoint", "notfound unsupported"), AccountDeniedError, "action"),
)
"""Words that a code has, in any order: one of each group. The first row that fits counts."""


def make_status_error(status: int, message: str, *, request_id: str | None) -> PlatformError | None:
    """Return the error of an HTTP status without a code; None if a retry may help.

    A firewall refuses single requests with 403, and a server that is being replaced says 404. Neither is repeated, and
    the other devices show whether it is about the account.
    """
    code = f"HTTP {status}"
    if status in {401, 405}:
        denied = AccountDeniedError(code, message, http_status=status, request_id=request_id)
        denied.cause = "key" if status == 401 else "action"  # noqa: PLR2004  HTTP
        return denied
    if status in {403, 404}:
        return DeviceDeniedError(code, message, http_status=status, request_id=request_id)
    return None
