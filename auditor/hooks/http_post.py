"""Post a body to a secret address: within a time limit, with retries, and without disclosing the address.

Redirects are not allowed: they would send the body to an address that is not configured. Bodies of responses may be
hostile and are not read.
"""

import errno
import os
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Literal

import aiohttp
import anyio

from auditor.client.connector import Resolver
from auditor.client.responses import retry_after_seconds
from auditor.errors import WebhookError
from auditor.models import Secret
from auditor.resilience.retry import Backoff

BACKOFF = Backoff(max_attempts=4, initial_delay=1.0, max_delay=8.0)
"""Number of attempts, and the pauses between them where the receiver requests none."""

_RETRIED_STATUSES = {408, 429}
"""Statuses below 500 after which a retry may succeed."""


@dataclass(frozen=True, slots=True)
class PostClock:
    """Time, pauses and randomness; replaced in tests."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    random: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True)
class PostLimits:
    """Seconds for all attempts with the pauses between them, and for one attempt."""

    seconds: float
    attempt_seconds: float


@dataclass(frozen=True, slots=True)
class _AttemptFailure:
    """Why an attempt failed, whether a retry may succeed, and the pause in seconds that the receiver requested."""

    reason: str
    retryable: bool = True
    retry_after: float | None = None


async def post_body(
    address: Secret,
    body: bytes,
    build_headers: Callable[[float], dict[str, str]],
    *,
    limits: PostLimits,
    receiver: str,
    method: Literal["POST", "PUT"] = "POST",
    clock: PostClock | None = None,
) -> None:
    """Post a body; retry after failures that may pass: no connection, timeout, 408, 429, 5xx.

    Args:
        address: an HTTP or HTTPS URL.
        body: what to post.
        build_headers: returns the headers of an attempt at a time, in seconds since 1970.
        limits: time limits.
        receiver: how messages of errors call the receiver, such as "the webhook".
        method: of the requests.
        clock: for tests.

    Raises:
        WebhookError: the body was not accepted. The message has the reason, and never the address.
    """
    clock = clock or PostClock()
    deadline = time.monotonic() + limits.seconds
    connector = aiohttp.TCPConnector(resolver=Resolver())
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        for attempt in count(1):
            # A pause may last longer than requested, and 0 would mean no timeout.
            seconds = min(limits.attempt_seconds, max(0.05, deadline - time.monotonic()))
            send = partial(
                session.request,
                method,
                address.reveal(),
                data=body,
                headers=build_headers(clock.now()),
                timeout=aiohttp.ClientTimeout(total=seconds),
                allow_redirects=False,
            )
            failure = await _attempt(send, clock, seconds, receiver)
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
    send: Callable[[], AbstractAsyncContextManager[aiohttp.ClientResponse]],
    clock: PostClock,
    seconds: float,
    receiver: str,
) -> _AttemptFailure | None:
    """Send once; return None if the body was accepted.

    Messages of aiohttp's errors, and of the errors chained to them, contain the address: none leaves this function.
    """
    try:
        with anyio.fail_after(seconds):
            async with send() as response:
                return _check_response(response, clock.now(), receiver)
    except TimeoutError:
        return _AttemptFailure(f"{receiver} did not answer in time")
    except aiohttp.ClientConnectorDNSError:
        return _AttemptFailure(f"the host name of {receiver} cannot be resolved")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return _AttemptFailure(_describe_error(error, receiver))
    except Exception as error:  # noqa: BLE001  the text of any error may contain the address
        return _AttemptFailure(f"{receiver} could not be called ({type(error).__name__})", retryable=False)


def _describe_error(error: Exception, receiver: str) -> str:
    """Describe an error below HTTP without its own text, which may contain host, port and certificate."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return f"the certificate of {receiver} is not trusted"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return f"the TLS handshake with {receiver} failed"
        case aiohttp.ClientConnectorError():
            number = error.os_error.errno
            detail = f": {os.strerror(number)}" if number is not None and number in errno.errorcode else ""
            return f"{receiver} cannot be reached{detail}"
        case aiohttp.ClientOSError() | aiohttp.ServerDisconnectedError() | OSError():
            return f"{receiver} closed the connection"
    return f"{receiver} did not send a valid HTTP response ({type(error).__name__})"


def _check_response(response: aiohttp.ClientResponse, now: float, receiver: str) -> _AttemptFailure | None:
    status = response.status
    reason = f"{receiver} answered {status}"
    if 200 <= status < 300:
        return None
    if status >= 500 or status in _RETRIED_STATUSES:
        return _AttemptFailure(reason, retry_after=retry_after_seconds(response.headers, now))
    if status < 400:
        return _AttemptFailure(f"{reason}: redirects are not allowed", retryable=False)
    return _AttemptFailure(f"{reason}: the request was rejected", retryable=False)
