"""The platform's error codes, and the error class that each calls for. Pure.

The codes and their meaning come from Tuya's and Alibaba's error pages and from the vendor's own clients. Codes differ
in case between pages, so they are compared without case.
"""

import re
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
    (r"iot\.device\.(notexisteddevice|invalidiotid)|iot\.prod\.notexistedproduct", NotFoundError),
    (r"iot\.device\.inactivedevice", NeverActivatedError),
    (
        r"invalidparam[ae]t[ae]r(\..*)?|iot\.common\.invalidpageparams|iot\.(device|prod)\.(invalidformatted|null)\w+",
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
    return TransientError, None
