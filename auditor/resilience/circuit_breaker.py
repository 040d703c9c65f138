"""What an account's answers teach: whether it works at all, or is sick."""

import time
from collections.abc import Callable
from typing import NoReturn

from auditor.errors import (
    PROXY,
    AccountStoppedError,
    ForbiddenDeviceError,
    PlatformError,
    RefusedAccountError,
    ThrottledError,
    TransientError,
)

PATIENCE = 600.0
"""Seconds without one usable answer after which an account that did work is stopped; the run can be resumed."""


SICK_FAILURES, SICK_SECONDS = 10, 2.0
"""So many failures in a row, and so many seconds without a success, and the platform is sick, not the devices."""


SPENT_SECONDS = 0.5
"""The same seconds once an account has used up what it may repeat: answers on their way may still be good."""


FORBIDDEN_LIMIT = 5
"""Devices denied in a row, with none ever answered, until the account is taken for the one that is denied."""


class Feedback:
    """Listens to every answer of one account, and stops it when going on would only burn its quota.

    Args:
        account: its name, for errors.
        give_up_after: seconds without a usable answer until an account that never gave one is stopped.
        worked_before: whether the account has answered in an earlier stretch of the audit: then it is its devices that
            are doubted first, and not the account.

    Attributes:
        proven: whether the account ever gave a usable answer. Until then one request is sent at a time, so that a
            dead key costs one call and not a crowd.
        sick: whether an account that did work has had nothing but failures for a stretch. The next success ends it.
        last: the last error that brought no usable answer.
    """

    def __init__(
        self,
        account: str,
        *,
        give_up_after: float,
        worked_before: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.proven = self.sick = False
        self._account = account
        self._worked_before = worked_before
        self._patience = PATIENCE if worked_before else give_up_after
        self._clock = clock
        self._failing_since: float | None = None
        self._failures_in_a_row = 0
        self._succeeded_at = 0.0
        self._forbidden = 0
        self._stopped: str | None = None
        self.last: PlatformError | None = None

    def check(self) -> None:
        """Says before a request whether the account may still be asked.

        Raises:
            AccountStoppedError: the account was stopped; those who waited behind the last request learn it here.
        """
        if self._stopped is not None:
            raise AccountStoppedError(self._account, self._stopped)

    def succeeded(self) -> None:
        """The platform accepted a request of this account, whatever it said of the device."""
        self.proven = True
        self.sick = False
        self._succeeded_at = self._clock()
        self._failing_since = None
        self._failures_in_a_row = 0
        self._forbidden = 0

    def failed(self, error: PlatformError) -> None:
        """A request brought no usable answer.

        Raises:
            AccountStoppedError: the account is refused, or has given no usable answer for too long.
        """
        if isinstance(error, RefusedAccountError):
            self._stop(str(error) if error.code == PROXY else f"the platform refuses it: {error}")
        self.last = error
        if isinstance(error, ForbiddenDeviceError):
            # Once others were answered it is about the device, however many of them follow each other in the fleet.
            self._forbidden += not (self.proven or self._worked_before)
            if self._forbidden >= FORBIDDEN_LIMIT:
                self._stop(f"the platform denies it every device: {error}")
            return
        if isinstance(error, TransientError):
            self._failures_in_a_row += 1
            stretch = self._clock() - self._succeeded_at
            self.sick = self.proven and self._failures_in_a_row >= SICK_FAILURES and stretch >= SICK_SECONDS
        self._give_up_in_the_end(error)

    def _stop(self, why: str) -> NoReturn:
        self._stopped = self._stopped or why
        raise AccountStoppedError(self._account, why)

    def spent(self) -> None:
        """The account has used up what it may repeat; if nothing succeeds either, it is sick that much sooner."""
        stretch = self._clock() - self._succeeded_at
        failing = self._failures_in_a_row >= SICK_FAILURES and stretch >= SPENT_SECONDS
        self.sick = self.sick or (self.proven and failing)

    def _give_up_in_the_end(self, error: PlatformError) -> None:
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        patience = PATIENCE if self.proven else self._patience
        if now - self._failing_since >= patience:
            which = "proxy" if error.code == PROXY else "endpoint"
            advice = "" if self.proven or isinstance(error, ThrottledError) else f"; is its {which} right?"
            self._stop(f"no usable answer for {patience:g} s, the last: {error}{advice}")
