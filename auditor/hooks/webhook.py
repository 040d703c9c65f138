"""Post a summary to a webhook: signed, with retries, and without disclosing the webhook's address.

A receiver verifies the sender as with GitHub's and Stripe's webhooks: it computes the HMAC-SHA256 of
``X-Auditor-Timestamp``, a dot and the body's bytes with the shared secret. It compares that in constant time with the
text after ``sha256=`` in ``X-Auditor-Signature``, and rejects timestamps (seconds since 1970) that are minutes old.
All attempts to post one body have the same ``Idempotency-Key``, so that a body that arrives twice counts once.
"""

import errno
import hashlib
import hmac
import os
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from itertools import count

import aiohttp
import anyio

from auditor.__about__ import VERSION
from auditor.client.connector import Resolver
from auditor.client.responses import retry_after_seconds
from auditor.errors import WebhookError
from auditor.models import Secret
from auditor.resilience.retry import Backoff

MAX_SECONDS, MAX_ATTEMPT_SECONDS = 20.0, 10.0
"""Seconds for all attempts with the pauses between them, and for one attempt."""

BACKOFF = Backoff(max_attempts=4, initial_delay=1.0, max_delay=8.0)
"""Number of attempts, and the pauses between them where the receiver requests none."""

_RETRIED_STATUSES = {408, 429}
"""Statuses below 500 after which a retry may succeed."""


@dataclass(frozen=True, slots=True)
class WebhookClock:
    """Time, pauses and randomness; replaced in tests."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    random: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True)
class _AttemptFailure:
    """Why an attempt failed, whether a retry may succeed, and the pause in seconds that the receiver requested."""

    reason: str
    retryable: bool = True
    retry_after: float | None = None


def build_headers(body: bytes, secret: Secret | None, now: float) -> dict[str, str]:
    """Return the headers of one attempt; see this module's docstring."""
    timestamp = str(int(now))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"auditor/{VERSION}",
        "Idempotency-Key": hashlib.sha256(body).hexdigest()[:32],
        "X-Auditor-Timestamp": timestamp,
    }
    if secret is not None:
        signature = hmac.new(secret.reveal().encode(), timestamp.encode() + b"." + body, hashlib.sha256)
        headers["X-Auditor-Signature"] = f"sha256={signature.hexdigest()}"
    return headers


async def post_webhook(
    address: Secret, body: bytes, *, secret: Secret | None = None, clock: WebhookClock | None = None
) -> None:
    """Post JSON; retry after failures that may pass (no connection, timeout, 408, 429, 5xx).

    Redirects are not allowed: they would send the body and its signature to an address that is not configured.

    Args:
        address: an HTTP or HTTPS URL.
        body: JSON.
        secret: signs the body.
        clock: for tests.

    Raises:
        WebhookError: the body was not accepted. The message has the reason, and never the address.
    """
    clock = clock or WebhookClock()
    deadline = time.monotonic() + MAX_SECONDS
    connector = aiohttp.TCPConnector(resolver=Resolver())
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        for attempt in count(1):
            # A pause may last longer than requested, and 0 would mean no timeout.
            seconds = min(MAX_ATTEMPT_SECONDS, max(0.05, deadline - time.monotonic()))
            send = partial(
                session.post,
                address.reveal(),
                data=body,
                headers=build_headers(body, secret, clock.now()),
                timeout=aiohttp.ClientTimeout(total=seconds),
                allow_redirects=False,
            )
            failure = await _attempt(send, clock, seconds)
            if failure is None:
                return
            pause = BACKOFF.delay(attempt, clock.random()) if failure.retry_after is None else failure.retry_after
            if not failure.retryable or attempt == BACKOFF.max_attempts or time.monotonic() + pause >= deadline:
                raise WebhookError(_failure_message(failure, attempt))
            await clock.sleep(pause)


def _failure_message(failure: _AttemptFailure, attempts: int) -> str:
    pause = "" if failure.retry_after is None else f" and requested a retry after {failure.retry_after:,.0f} s"
    return f"{failure.reason}{pause}{f', after {attempts} attempts' if attempts > 1 else ''}"


async def _attempt(
    send: Callable[[], AbstractAsyncContextManager[aiohttp.ClientResponse]], clock: WebhookClock, seconds: float
) -> _AttemptFailure | None:
    """Send once; return None if the body was accepted. The response body may be hostile and is not read.

    Messages of aiohttp's errors, and of the errors chained to them, contain the address: none leaves this function.
    """
    try:
        with anyio.fail_after(seconds):
            async with send() as response:
                return _check_response(response, clock.now())
    except TimeoutError:
        return _AttemptFailure("the webhook did not answer in time")
    except aiohttp.ClientConnectorDNSError:
        return _AttemptFailure("the host name of the webhook cannot be resolved")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return _AttemptFailure(_describe_error(error))
    except Exception as error:  # noqa: BLE001  the text of any error may contain the address
        return _AttemptFailure(f"the webhook could not be called ({type(error).__name__})", retryable=False)


def _describe_error(error: Exception) -> str:
    """Describe an error below HTTP without its own text, which may contain host, port and certificate."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return "the certificate of the webhook is not trusted"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return "the TLS handshake with the webhook failed"
        case aiohttp.ClientConnectorError():
            number = error.os_error.errno
            detail = f": {os.strerror(number)}" if number is not None and number in errno.errorcode else ""
            return f"the webhook cannot be reached{detail}"
        case aiohttp.ClientOSError() | aiohttp.ServerDisconnectedError() | OSError():
            return "the webhook closed the connection"
    return f"the webhook did not send a valid HTTP response ({type(error).__name__})"


def _check_response(response: aiohttp.ClientResponse, now: float) -> _AttemptFailure | None:
    status = response.status
    reason = f"the webhook answered {status}"
    if 200 <= status < 300:
        return None
    if status >= 500 or status in _RETRIED_STATUSES:
        return _AttemptFailure(reason, retry_after=retry_after_seconds(response.headers, now))
    if status < 400:
        return _AttemptFailure(f"{reason}: redirects are not allowed", retryable=False)
    return _AttemptFailure(f"{reason}: the request was rejected", retryable=False)
