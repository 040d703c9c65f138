"""Errors, grouped by what to do next.

::

    AuditorError
        UsageError               correct the input, then run again              exit 2
            SettingsError        the settings file
            FleetError           the fleet file
            RunFolderError       the run folder
        AuditStoppedError        the audit cannot continue                      exit 3
            AccountStoppedError  one account: access denied, or never reached
            CredentialsError     an access key cannot be obtained now
            RunNotWritableError  the run folder cannot be written
            ObjectStoreError     a directory or object storage cannot be used now
                ObjectMissingError  it has no such object
                InvalidObjectError  a key or a content is not valid; do not retry
        SupersededError          another process has taken over; do not retry   exit 75
        DriftError               drift that --fail-on names                     exit 4
        PolicyError              a rule of severity "error" is violated         exit 4
        AuditInterruptedError    interrupted before the first request, or by a
                                 second signal                                  exit 130
        PlatformError            one request failed
            TransientError       retry later, newly signed
                NonceUsedError
                KeyExpiredError  after the access key is renewed
                ClockSkewError   until several answers agree on its time
            ThrottledError       slow the whole account down, then retry
            NotFoundError        conclusive: no such device
            NeverActivatedError  conclusive: nothing was ever reported
            InconsistentResponseError  read the device again from its first page
            InvalidRequestError  this device failed, do not retry
                OperationDeniedError  the account may not use this operation
                OperationUnavailableError  it fails now, and may work later
            DeviceDeniedError    this device failed, or the account is denied
            AccountDeniedError   stop the account
        WebhookError             a message was not posted; the run is unaffected
        DestinationError         a run was not published; the run is unaffected
"""

import errno
import os
import re
import sys
from collections.abc import Mapping
from functools import cache
from typing import ClassVar, Literal

from auditor.text.formatting import safe

ExitReasonCode = Literal[
    "success", "within_tolerance",
    "too_many_failed", "too_many_pending", "unlisted_product", "silent_account", "shared_identity", "imprecise",
    "not_verified",
    "unexpected_error",
    "unusable_fleet",
    "refused_account", "unreachable_account", "unreadable_run", "cannot_write",
    "policy_violated", "policy_not_evaluated",
    "interrupted",
]  # fmt: skip
"""Why an audit ended with its exit code.

| code | exit code | meaning |
|---|---|---|
| ``success`` | 0 | every device has a conclusive answer |
| ``within_tolerance`` | 0 | no more devices failed, are pending or were not listed than ``max_failed`` allows |
| ``too_many_failed``, ``too_many_pending`` | 1 | more did, and most of them for this reason |
| ``unlisted_product`` | 1 | most of them were not listed, or a product or an account has an unknown number of devices |
| ``shared_identity`` | 1 | the answers of several devices have the same names, or the same ``iot_id`` |
| ``silent_account`` | 1 | no device of an account exists, or reports a module any more |
| ``imprecise`` | 1 | a sample is less precise than configured |
| ``not_verified`` | 1 | the numbers of the run do not follow from its files |
| ``unexpected_error`` | 1 | an error that auditor does not expect |
| ``unusable_fleet`` | 2 | no device matches the settings |
| ``refused_account`` | 3 | the platform refuses an account |
| ``unreachable_account`` | 3 | an account gave no usable answer for too long |
| ``unreadable_run``, ``cannot_write`` | 3 | the run folder cannot be read, or written |
| ``policy_violated``, ``policy_not_evaluated`` | 4 | an ``error`` rule is violated, or no rule could be evaluated |
| ``interrupted`` | 130 | by a signal, with devices or hooks left to do |
"""


class AuditorError(Exception):
    """Base class of all errors of auditor. Its text is one sentence for people.

    ``reason_code`` is the reason of an audit that this error ends.
    """

    exit_code: ClassVar[int] = 1
    reason_code: ExitReasonCode = "unexpected_error"


class UsageError(AuditorError):
    """The input is wrong. No request was sent and nothing was lost."""

    exit_code = 2


class SettingsError(UsageError):
    """The settings cannot be used. The text says which file and key, and what is valid, for every fault.

    Attributes:
        sentences: the faults, a sentence each. The text has them in one line.
    """

    def __init__(self, *sentences: str) -> None:
        super().__init__(*sentences)
        self.sentences = sentences

    def __str__(self) -> str:
        return "; ".join(self.sentences)


class FleetError(UsageError):
    """The fleet cannot be used. The text says which file and lines, and what is wrong with each."""

    reason_code = "unusable_fleet"


class RunFolderError(UsageError):
    """A run cannot be found, read or resumed: it is no run, damaged, locked, or does not have what was requested."""

    reason_code = "unreadable_run"


class RunLockedError(RunFolderError):
    """Another process is writing the run, or its directory."""


class AuditStoppedError(AuditorError):
    """The audit cannot continue. What was written stays valid."""

    exit_code = 3


class AccountStoppedError(AuditStoppedError):
    """One account cannot be queried any more: its key is denied, or its endpoint was never reached."""

    def __init__(self, account: str, sentence: str, *, reason_code: ExitReasonCode = "refused_account") -> None:
        super().__init__(f'account "{account}": {sentence}')
        self.account, self.sentence, self.reason_code = account, sentence, reason_code


class CredentialsError(AuditStoppedError):
    """An access key cannot be obtained now. ``refused``: another attempt would not help.

    The text is a clause that never quotes an answer, since that may contain a key or a token.
    """

    def __init__(self, sentence: str, *, refused: bool) -> None:
        super().__init__(sentence)
        self.refused = refused


class RunNotWritableError(AuditStoppedError):
    """The run folder cannot be written: permission, a full disk or an I/O error."""

    reason_code = "cannot_write"

    def __init__(self, sentence: str) -> None:
        disk_full = any(os.strerror(number) in sentence for number in (errno.ENOSPC, errno.EDQUOT))
        super().__init__(f"{sentence}; free some space" if disk_full else sentence)


class ObjectStoreError(AuditStoppedError):
    """A directory or an object storage cannot be read or written now. The text has no secret and no signed address."""

    reason_code = "cannot_write"


class ObjectMissingError(ObjectStoreError):
    """An object storage has no object of this key."""


class InvalidObjectError(ObjectStoreError):
    """No storage can have an object of this key, or an object is not what the auditor writes. A retry does not help."""


class SupersededError(AuditorError):
    """Another process has taken over the shard of this one. To retry this one would supersede the other."""

    exit_code = 75


class DriftError(AuditorError):
    """Two runs, or a fleet file and the platform, differ in a way that the caller declared a failure."""

    exit_code = 4


class PolicyError(AuditorError):
    """A run violates rules of severity ``error``."""

    exit_code = 4
    reason_code = "policy_violated"


class AuditInterruptedError(AuditorError):
    """The audit was interrupted before its first request, or by a second signal. What was written is kept."""

    exit_code = 130
    reason_code = "interrupted"


PROXY = "auditor.Proxy"
"""Code of a PlatformError that a proxy caused: it cannot be reached, denies access, or breaks."""


class PlatformError(AuditorError):
    """One request failed.

    Attributes:
        code: the platform's code as received, or one of ours such as ``auditor.Timeout``.
        message: the platform's message, without line breaks, at most 300 characters.
        http_status: None without an HTTP response.
        request_id: the platform's id of the request, if it sent one.
    """

    exit_code = 3

    def __init__(
        self, code: str, message: str = "", *, http_status: int | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.http_status = http_status
        self.request_id = request_id


class TransientError(PlatformError):
    """Retry the request after a backoff, newly signed. Unknown codes are of this class too."""


class NonceUsedError(TransientError):
    """The platform has seen this nonce before."""


class KeyExpiredError(TransientError):
    """The access key is refused, most likely because it has expired, and is renewed before the next request."""


class ClockSkewError(TransientError):
    """The request's timestamp was too far from the platform's clock (more than 15 minutes)."""


class ThrottledError(PlatformError):
    """The account is over its quota. ``retry_after`` is the requested delay in seconds, if there is one."""

    retry_after: float | None = None


class NotFoundError(PlatformError):
    """There is no such device or product. This is conclusive."""


class NeverActivatedError(PlatformError):
    """The device was never activated, so it has reported nothing. This is conclusive."""


class InconsistentResponseError(PlatformError):
    """A device's pages contradict each other, themselves or the request. The sentence says how."""

    def __init__(self, sentence: str) -> None:
        # It quotes names of the response, which may contain anything.
        super().__init__("auditor.InconsistentPages", safe(sentence[:300])[:300])


class InvalidRequestError(PlatformError):
    """The platform never accepts this request. The device failed and is not retried."""


class DeviceDeniedError(PlatformError):
    """Access to this device was denied. The other devices show whether the whole account is denied."""


OWN_CODES = (
    "auditor.DNS", "auditor.Disconnected", "auditor.IncompleteBody", "auditor.InconsistentPages",
    "auditor.InvalidEncoding", "auditor.InvalidHTTP", "auditor.InvalidJSON", PROXY, "auditor.ResponseTooLarge",
    "auditor.TLS", "auditor.Timeout", "auditor.Unreachable",
)  # fmt: skip
"""Codes of this project, for requests without a usable response."""

NO_CONNECTION_CODES = frozenset({"auditor.DNS", PROXY, "auditor.TLS", "auditor.Unreachable"})
"""Codes of failed connections: to a name without an address, through a proxy, by TLS, or to a port."""

UNKNOWN_PRODUCT = "iot.prod.NotExistedProduct"
"""Code of a product that the platform does not have."""

DESCRIBED_CODES = (
    *OWN_CODES,
    "iot.device.NotExistedDevice", "iot.device.InvalidIotId", UNKNOWN_PRODUCT, "iot.device.InactiveDevice",
    "iot.device.NullDeviceName", "InvalidParameter", "iot.common.AuthActionPermissionDeny", "NoPermission",
    "Forbidden.RAM", "InvalidAccessKeyId.NotFound", "InvalidAccessKeyId.Inactive", "SignatureDoesNotMatch",
    "InvalidSecurityToken.Expired", "InvalidTimeStamp.Expired", "SignatureNonceUsed", "Throttling.User", "Throttling",
    "iot.system.QpsLimit", "InvalidRegionId", "InvalidAction.NotFound", "MissingParameter", "UnsupportedProtocol",
    "iot.system.BillIsOverdue", "ServiceUnavailable", "InternalError", "iot.system.SystemException",
)  # fmt: skip
"""Codes that docs/errors.md describes."""

_WITH_CODE = frozenset[ExitReasonCode](
    {"too_many_failed", "too_many_pending", "unlisted_product", "refused_account", "unreachable_account"}
)
"""Exit reasons whose sentences have error codes."""


def refer_to_code(text: str, code: str | None) -> str:
    """Return a sentence with where the documents describe an error code, if there is one and they do."""
    return f"{text}; see {find_documents()}/errors.md#{code}" if code in DESCRIBED_CODES else text


@cache
def find_documents() -> str:
    """Return the folder of the documents: the one that a wheel has installed, or else that of a checkout."""
    installed = os.path.join(sys.prefix, "share", "doc", "auditor", "docs")  # noqa: PTH118  pathlib takes time to load
    return installed if os.path.isdir(installed) else "docs"  # noqa: PTH112  likewise


def find_code(sentence: str, reason: ExitReasonCode = "refused_account") -> str | None:
    """Return the first described error code of a sentence of this project, of an exit with this reason.

    Sentences have a code after a colon, or as that of most failures. A name is in quotes, or elsewhere, and is no code.
    """
    found = _code_in_place().search(_QUOTED.sub('""', sentence)) if reason in _WITH_CODE else None
    return None if found is None else found[1]


_QUOTED = re.compile(r'"[^"]*"')


@cache
def _code_in_place() -> re.Pattern[str]:
    codes = "|".join(map(re.escape, DESCRIBED_CODES))
    return re.compile(rf"(?:: |most of them with )({codes})(?=: |; |$)")


DenialCause = Literal[
    "permission", "key", "secret", "token", "instance", "region", "action", "https", "parameter", "account", "clock",
    "platform_clock", "proxy", "credentials",
]  # fmt: skip
"""What the platform refuses about an account."""

_ADVICE: Mapping[DenialCause, str] = {
    "permission": "give the user or role of the access key the permission for this operation",
    "key": "check access_key_id, and that the key is active",
    "secret": "check access_key_secret",
    "token": "the access key is a temporary one, which needs a valid security token: give credentials, which renew it",
    "instance": "check instance_id and region_id",
    "region": "check region_id",
    "action": "the service at this address does not have this operation: use the address of the IoT service",
    "https": "use an address that starts with https://",
    "parameter": "the service at this address expects other parameters: use the address of the IoT service",
    "account": "check the state of the account in the platform's console",
    "platform_clock": "the platform refuses the time of its own answers: resume later, or report it to the platform",
    "clock": "set the clock of this machine, for example by NTP",
    "proxy": "check proxy",
    "credentials": "the renewed access key is refused, too: check credentials",
}


class AccountDeniedError(PlatformError):
    """The platform refuses the account or all of its requests, so every further request would fail too.

    Attributes:
        cause: what is refused.
        operation: name of the operation that was called; "": it makes no difference.
    """

    cause: DenialCause = "account"
    operation: str = ""

    @property
    def advice(self) -> str:
        """What to do, as a clause that follows the error."""
        if self.cause == "permission" and self.operation:
            return _ADVICE["permission"].replace(
                "this operation", f"{self.operation}: iot:{self.operation} in a policy"
            )
        return _ADVICE[self.cause]


class OperationDeniedError(InvalidRequestError):
    """The access key may not use an operation, or the platform does not have it.

    Attributes:
        cause: what is refused: the permission, the operation or its parameters.
        advice: what to do, as a clause that follows the error.
    """

    def __init__(self, denied: AccountDeniedError) -> None:
        super().__init__(denied.code, denied.message, http_status=denied.http_status, request_id=denied.request_id)
        self.cause, self.advice = denied.cause, denied.advice


class OperationUnavailableError(InvalidRequestError):
    """An operation that an audit can do without gave no usable answer for too long. It may work later."""


class WebhookError(AuditorError):
    """A message was not posted. The text says why and omits the URL, which may contain a token."""


class DestinationError(AuditorError):
    """A run was not published. The run is as it was, and the destination has what it had, or all of the run.

    Attributes:
        retryable: whether a retry may succeed; it does not if a password is wrong, for example.
    """

    exit_code = 3

    def __init__(self, sentence: str, *, retryable: bool = True) -> None:
        super().__init__(sentence)
        self.retryable = retryable
