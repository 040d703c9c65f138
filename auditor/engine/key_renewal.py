"""Temporary access keys during an audit: renewed before they expire, and when the platform refuses them."""

import random
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NoReturn

import anyio

from auditor.client.client import ApiClient
from auditor.client.operations import Operation
from auditor.client.responses import ApiResponse
from auditor.concurrency import run_in_abandonable_thread
from auditor.config.credentials import read_access_key
from auditor.config.settings import Account
from auditor.errors import (
    AccountDeniedError,
    AccountStoppedError,
    CredentialsError,
    ExitReasonCode,
    InvalidRequestError,
    KeyExpiredError,
    NeverActivatedError,
    NotFoundError,
    PlatformError,
    SettingsError,
)
from auditor.log import log
from auditor.models import AccessKey
from auditor.resilience.retry import Backoff

RENEWAL_FRACTION, MAX_RENEWAL_MARGIN = 0.25, 300.0
"""A key is renewed when this fraction of its time is left, or so many seconds. Jitter adds up to a half, so that
accounts and processes do not renew theirs together."""

MAX_SAFETY_MARGIN = 5.0
"""Seconds before its expiration from which a key signs nothing: a request takes time to arrive."""

RENEWAL_PATIENCE = 60.0
"""Seconds for which the renewal of an expired key is repeated, unless it is refused."""

RENEWAL_BACKOFF = Backoff(initial_delay=1.0, max_delay=15.0)

_CAUSES_OF_KEYS = frozenset(("token", "key", "secret"))
"""Causes of a refusal that another access key may remove."""


class KeyRenewal:
    """Keeps the access key of one account valid. Times are those of the platform's clock.

    No task does it in the background: a request that finds the key due renews it before it is sent.

    Args:
        account: with ``credentials``.
        client: signs with the key.
        key: the first one; None if it could not be obtained yet.
        read: returns a new key, and may block; see ``read_access_key``.
        wall_clock: returns seconds since 1970.
        jitter: random number in [0, 1).
    """

    def __init__(
        self,
        account: Account,
        client: ApiClient,
        key: AccessKey | None,
        *,
        read: Callable[[], AccessKey] | None = None,
        wall_clock: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._account, self._client = account.name, client
        self._read = partial(read_access_key, account) if read is None else read
        self._wall_clock, self._jitter = wall_clock, jitter
        self._lock = anyio.Lock()
        self._key: AccessKey | None = None
        self._renew_at = self._expires_at = 0.0
        self._refusal: AccountDeniedError | None = None
        self._is_last_attempt = self._logged = False
        self._stopped: AccountStoppedError | None = None
        if key is not None:
            self._use(key)

    @property
    def is_usable(self) -> bool:
        """Whether requests may be signed with the key."""
        return self._key is not None and self._refusal is None and self._now() < self._expires_at

    @property
    def is_due(self) -> bool:
        """Whether the next request must renew the key first, or wait until another one has renewed it."""
        return not self.is_usable or (self._now() >= self._renew_at and not self._lock.locked())

    @property
    def is_stopped(self) -> bool:
        """Whether the key can be renewed no more, so that the account is stopped."""
        return self._stopped is not None

    async def renew(self) -> None:
        """Renew the key, unless another request has renewed it meanwhile.

        Raises:
            AccountStoppedError: the key is not usable any more, and its renewal is refused, or fails for too long.
        """
        async with self._lock:
            if self._stopped is not None:
                raise AccountStoppedError(self._account, self._stopped.sentence, reason_code=self._stopped.reason_code)
            began, failures = time.monotonic(), 0
            while not self.is_usable or self._now() >= self._renew_at:
                failure = await self._try_to_renew()
                if failure is None:
                    return
                failures += 1
                if self.is_usable:
                    self._postpone(failure)
                    return
                if getattr(failure, "refused", False) or time.monotonic() - began >= RENEWAL_PATIENCE:
                    self._stop(failure)
                await anyio.sleep(RENEWAL_BACKOFF.delay(failures, 0.5 + 0.5 * self._jitter()))

    async def call(
        self, operation: Operation, parameters: Mapping[str, str], *, fresh_connection: bool = False
    ) -> ApiResponse:
        """Do the same as ``ApiClient.call``; raise KeyExpiredError if the key is refused and a new one may be accepted.

        A renewed key that is refused before it was ever accepted is the last one: this raises AccountDeniedError.
        """
        key = self._key
        try:
            response = await self._client.call(operation, parameters, fresh_connection=fresh_connection)
        except AccountDeniedError as error:
            if error.cause not in _CAUSES_OF_KEYS:
                raise
            refusal = self._record_refusal(key, error)
        except (NotFoundError, NeverActivatedError, InvalidRequestError):
            self._record_acceptance(key)
            raise
        else:
            self._record_acceptance(key)
            return response
        raise refusal

    def _record_acceptance(self, key: AccessKey | None) -> None:
        if key is self._key:
            self._is_last_attempt = False

    def _record_refusal(self, key: AccessKey | None, error: AccountDeniedError) -> PlatformError:
        if key is self._key:  # otherwise it was renewed while the request was sent
            if self._is_last_attempt:
                error.cause = "credentials"
                return error
            self._refusal = self._refusal or error
        return KeyExpiredError(error.code, error.message, http_status=error.http_status, request_id=error.request_id)

    async def _try_to_renew(self) -> CredentialsError | SettingsError | None:
        """Read a key, and use it; return why that is not possible."""
        try:
            key = await run_in_abandonable_thread(self._read)
        except (CredentialsError, SettingsError) as error:
            return error
        if self._refusal is not None and self._key is not None and key.is_same(self._key):
            sentence = (
                f"the platform refuses the access key: {self._refusal.code}, and credentials give the same key again; "
                "replace it where it is stored, then resume"
            )
            return CredentialsError(sentence, refused=True)
        self._is_last_attempt = self._refusal is not None
        self._use(key)
        return None

    def _use(self, key: AccessKey) -> None:
        now = self._now()
        is_same = self._key is not None and key.is_same(self._key)
        self._key, self._refusal, self._logged = key, None, False
        self._client.use_key(key)
        remaining = None if key.expires_at is None else key.expires_at - now
        if key.expires_at is None or remaining is None or remaining <= MAX_SAFETY_MARGIN:
            # Unknown, or the clocks differ: the platform says when it has expired.
            self._renew_at = self._expires_at = float("inf")
            return
        self._expires_at = key.expires_at - min(MAX_SAFETY_MARGIN, remaining / 10)
        margin = min(MAX_RENEWAL_MARGIN, remaining * RENEWAL_FRACTION) * (1 + 0.5 * self._jitter())
        # What issues keys may return the same one until shortly before it expires.
        self._renew_at = now + remaining / 2 if is_same else key.expires_at - margin

    def _postpone(self, failure: Exception) -> None:
        """Use the present key, and try again in half of the time that it has left."""
        now = self._now()
        self._renew_at = now + max(1.0, (self._expires_at - now) / 2)
        if not self._logged:
            self._logged = True
            log.warning("key_not_renewed", account=self._account, reason=str(failure))

    def _stop(self, failure: CredentialsError | SettingsError) -> NoReturn:
        sentence = str(failure).removeprefix(f'account "{self._account}": ')
        refused = isinstance(failure, SettingsError) or failure.refused
        code: ExitReasonCode = "refused_account" if refused else "unreachable_account"
        self._stopped = AccountStoppedError(self._account, sentence, reason_code=code)
        raise self._stopped

    def _now(self) -> float:
        return self._wall_clock() + self._client.clock_offset
