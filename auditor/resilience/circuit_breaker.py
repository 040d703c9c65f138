"""The circuit breaker of an account: it learns from every response whether the account works at all.

Closed: requests are sent. Open: nothing but failures for some time, so requests pause and no retry is used up.
Half-open: one probe at a time is sent, at increasing intervals. The first success closes the circuit; after
``max_failing_seconds`` the account is stopped. ``RetryingCaller`` does the pausing and probing.
"""

import time
from collections.abc import Callable
from typing import NoReturn

from auditor.errors import (
    PROXY,
    AccountDeniedError,
    AccountStoppedError,
    DeviceDeniedError,
    ExitReasonCode,
    PlatformError,
    ThrottledError,
    TransientError,
)

MAX_FAILING_SECONDS = 600.0
"""Seconds without a usable response after which an account that has worked is stopped; the run can be resumed."""

OPEN_AFTER_FAILURES, OPEN_AFTER_SECONDS = 10, 2.0
"""The circuit opens after so many failures in a row and so many seconds without a success."""

EXHAUSTED_SECONDS = 0.5
"""The same seconds when the retry budget is exhausted: responses in flight may still be successes."""

PRODUCT_FAILURES, PRODUCT_SECONDS = 20, 15.0
"""A product fails after so many failures in a row and so many seconds, while requests for other products succeed.

In these seconds a device uses up most of its attempts.
"""

MAX_DENIED_DEVICES = 5
"""Devices denied in a row, without any success, after which the account itself counts as denied."""


class CircuitBreaker:
    """Records every response of one account, and stops the account when more requests would only use up its quota.

    Args:
        account: its name, for errors.
        give_up_after: seconds without a usable response until an account that has never succeeded is stopped.
        max_failing_seconds: seconds without a usable response until one that has succeeded is stopped.
        worked_before: whether it succeeded in an earlier audit session of this run. A denial is then attributed to the
            device, and not to the account.

    Attributes:
        has_succeeded: whether the account has given a usable response. Until then one request is sent at a time, so an
            invalid key costs one call.
        is_open: whether an account that has worked fails for every request. The next answer closes the circuit.
        last_error: the last error without a usable response.
        denial: the error that stopped the account because it is denied.
    """

    def __init__(
        self,
        account: str,
        *,
        give_up_after: float,
        max_failing_seconds: float = MAX_FAILING_SECONDS,
        worked_before: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.has_succeeded = self.is_open = False
        self.last_error: PlatformError | None = None
        self.denial: AccountDeniedError | None = None
        self._account = account
        self._worked_before = worked_before
        self._give_up_after, self._max_failing_seconds = give_up_after, max_failing_seconds
        self._clock = clock
        self._failing_since: float | None = None
        self._succeeded_at = 0.0
        self._failures_in_a_row = self._denied_devices = 0
        self._opened_at = self._open_seconds = 0.0
        self._stopped: tuple[str, ExitReasonCode] | None = None

    def check(self) -> None:
        """Raise AccountStoppedError if the account is stopped: checked before each request, after it has waited."""
        if self._stopped is not None:
            self._stop(*self._stopped)

    def record_success(self) -> None:
        """Record that the platform accepted a request of the account, whatever it reported of the device."""
        self._close()
        self.has_succeeded = True
        self._succeeded_at = self._clock()
        self._failing_since = None
        self._failures_in_a_row = self._denied_devices = 0

    def record_failure(self, error: PlatformError) -> None:
        """Record that a request brought no usable response.

        Raises:
            AccountStoppedError: the account is denied, or has given no usable response for too long.
        """
        if isinstance(error, AccountDeniedError):
            self.denial = error
            refusal = str(error).rstrip(".")
            self._stop(f"{'' if error.code == PROXY else 'the platform refuses it: '}{refusal}; {error.advice}")
        self.last_error = error
        if isinstance(error, DeviceDeniedError):
            if self.is_open:  # the platform answers, and other requests may succeed
                self._close()
                self._failing_since, self._failures_in_a_row = None, 0
            # After a success it concerns the device, however many of them are adjacent in the fleet.
            self._denied_devices += not (self.has_succeeded or self._worked_before)
            if self._denied_devices >= MAX_DENIED_DEVICES:
                advice = "check the permission of its access key, its instance_id and its region_id"
                refusal = str(error).rstrip(".")
                self._stop(f"the platform denies it every device: {refusal}; {advice}")
            return
        if isinstance(error, TransientError):
            self._failures_in_a_row += 1
            self._open_if_failing(OPEN_AFTER_SECONDS)
        self._stop_after_timeout(error)

    def on_retry_budget_exhausted(self) -> None:
        """Open the circuit sooner, because the account has used up its retry budget, if nothing succeeds either."""
        self._open_if_failing(EXHAUSTED_SECONDS)

    @property
    def closed_seconds(self) -> float:
        """Seconds since an arbitrary moment in which the circuit was closed."""
        return (self._opened_at if self.is_open else self._clock()) - self._open_seconds

    @property
    def failing_seconds(self) -> float:
        """Seconds since the first failure after the last success; 0 if there is none."""
        return 0.0 if self._failing_since is None else self._clock() - self._failing_since

    def _open_if_failing(self, seconds: float) -> None:
        if self.is_open or not self.has_succeeded or self._failures_in_a_row < OPEN_AFTER_FAILURES:
            return
        if self._clock() - self._succeeded_at >= seconds:
            self.open()

    def open(self) -> None:
        """Open the circuit: every request fails."""
        if not self.is_open:
            self.is_open, self._opened_at = True, self._clock()

    def _close(self) -> None:
        if self.is_open:
            self.is_open = False
            self._open_seconds += self._clock() - self._opened_at

    def _stop(self, reason: str, reason_code: ExitReasonCode = "refused_account") -> NoReturn:
        self._stopped = self._stopped or (reason, reason_code)
        raise AccountStoppedError(self._account, reason, reason_code=reason_code)

    def _stop_after_timeout(self, error: PlatformError) -> None:
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        timeout = self._max_failing_seconds if self.has_succeeded else self._give_up_after
        if now - self._failing_since >= timeout:
            setting = "proxy" if error.code == PROXY else "endpoint"
            advice = "" if self.has_succeeded or isinstance(error, ThrottledError) else f"; check its {setting}"
            self._stop(f"no usable answer for {timeout:g} s, the last: {error}{advice}", "unreachable_account")


class FailingProducts:
    """Finds products that fail for every device while the account works: retries for their devices would not help.

    Products are what the account's requests are about, and ``breaker`` is the account's. Its open circuit is no
    evidence against a product.
    """

    def __init__(self, breaker: CircuitBreaker) -> None:
        self._breaker = breaker
        self._failures: dict[str, tuple[int, float]] = {}  # in a row, and when the first one was

    def record_success(self, product: str | None) -> None:
        """Record a usable response."""
        if self._failures and product is not None:
            self._failures.pop(product, None)

    def record_failure(self, product: str | None) -> None:
        """Record a request that failed while the circuit was closed."""
        if product is not None:
            failures, since = self._failures.get(product, (0, self._breaker.closed_seconds))
            self._failures[product] = (failures + 1, since)

    def is_failing(self, product: str | None) -> bool:
        """Return whether a product fails; the next success ends that."""
        if product is None or product not in self._failures:
            return False
        failures, since = self._failures[product]
        return failures >= PRODUCT_FAILURES and self._breaker.closed_seconds - since >= PRODUCT_SECONDS
