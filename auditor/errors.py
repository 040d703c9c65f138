"""What went wrong, grouped by what to do next.

::

    AuditorError
        UsageError               mend what was given, then run again            exit 2
            SettingsError        the settings file
            FleetError           the fleet file
            RunFolderError       the run folder that was named
        StoppedError             the audit cannot go on                         exit 3
            AccountStoppedError  one account: refused, or never reached
            RunNotWritableError  the run folder cannot be written
        DriftError               drift that was to fail                         exit 4
        PolicyError              a rule of severity "error" is violated         exit 4
        StoppedAtOnceError       ended before it asked, or by a second signal   exit 130
        PlatformError            one request's answer
            TransientError       send it again, later, newly signed
                NonceUsedError
                ClockSkewError   after learning the platform's time
            ThrottledError       slow the whole account down, then again
            NotFoundError        an answer: no such device
            NeverActivatedError  an answer: nothing was ever reported
            InconsistentPagesError  read the device again from its first page
            RefusedRequestError  this device failed, do not repeat
            ForbiddenDeviceError this device failed, or the account is refused
            RefusedAccountError  stop the account
        WebhookError             a summary was not posted; the run is not touched
"""

import errno
import os
from typing import ClassVar

from auditor.text.formatting import safe


class AuditorError(Exception):
    """The root of everything that auditor raises on purpose. Its text is one sentence for people."""

    exit_code: ClassVar[int] = 1


class UsageError(AuditorError):
    """What the caller gave is wrong; nothing was asked and nothing was lost."""

    exit_code = 2


class SettingsError(UsageError):
    """The settings cannot be used: says which file and which key, and what would do."""


class FleetError(UsageError):
    """The fleet cannot be used: says which file and lines, and what is wrong with each."""


class RunFolderError(UsageError):
    """The folder that was named is not a run, or another process holds it."""


class StoppedError(AuditorError):
    """The audit cannot go on; what was written stays valid."""

    exit_code = 3


class AccountStoppedError(StoppedError):
    """One account cannot be asked any more: its key is refused, or its endpoint was never reached."""

    def __init__(self, account: str, sentence: str) -> None:
        super().__init__(f'account "{account}": {sentence}')
        self.account, self.sentence = account, sentence


class RunNotWritableError(StoppedError):
    """The run folder cannot be written: permission, a full disk, an I/O error. Of a full disk it says what to do."""

    def __init__(self, sentence: str) -> None:
        full = any(os.strerror(number) in sentence for number in (errno.ENOSPC, errno.EDQUOT))
        super().__init__(f"{sentence}; free some space" if full else sentence)


class DriftError(AuditorError):
    """What changed between two runs is among what was asked to fail."""

    exit_code = 4


class PolicyError(AuditorError):
    """A run violates rules of severity ``error``."""

    exit_code = 4


class StoppedAtOnceError(AuditorError):
    """The end was wished before anything was asked, or a second signal came: what was written is kept."""

    exit_code = 130


PROXY = "auditor.Proxy"
"""The code of a PlatformError that is a proxy's doing: it cannot be reached, refuses, or breaks."""


class PlatformError(AuditorError):
    """One request was not answered with a page.

    Attributes:
        code: the platform's code as it was sent, or a name of ours such as ``auditor.Timeout``.
        message: the platform's message, without line breaks, at most 300 characters.
        http_status: None when no HTTP answer came.
        request_id: the platform's id of the request, if it told one.
    """

    exit_code = 3

    def __init__(
        self,
        code: str,
        message: str = "",
        *,
        http_status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.http_status = http_status
        self.request_id = request_id


class TransientError(PlatformError):
    """Send the request again after a backoff, newly signed. Unknown codes are of this kind too."""


class NonceUsedError(TransientError):
    """A nonce came twice."""


class ClockSkewError(TransientError):
    """The request's timestamp was too far from the platform's clock (more than 15 minutes).

    ``server_time`` is the answer's ``Date`` in seconds since 1970, if it had one.
    """

    server_time: float | None = None


class ThrottledError(PlatformError):
    """The account is over its quota. ``retry_after`` is the platform's wish in seconds, if it told one."""

    retry_after: float | None = None


class NotFoundError(PlatformError):
    """The platform knows no such device or product: a conclusive answer."""


class NeverActivatedError(PlatformError):
    """The device was never activated, so it has reported nothing: a conclusive answer."""


class InconsistentPagesError(PlatformError):
    """A device's pages contradict each other, themselves or the request; the sentence says how."""

    def __init__(self, sentence: str) -> None:
        # It quotes names out of the answer, which may hold anything.
        super().__init__("auditor.InconsistentPages", safe(sentence[:300])[:300])


class RefusedRequestError(PlatformError):
    """The platform will never accept this request; the device failed and is not asked again."""


class ForbiddenDeviceError(PlatformError):
    """Permission for this device was denied; whether the account is dead shows in the other devices."""


class RefusedAccountError(PlatformError):
    """Credentials, permission or the account itself: every further request would be refused too."""


class WebhookError(AuditorError):
    """A summary could not be posted. Its text tells why, and never the address, which may hold a token."""
