"""Posts a summary to a webhook: signed, tried again while that may help, and its address told to nobody.

A receiver proves who sent a body as it does with GitHub's and Stripe's webhooks: it computes the HMAC-SHA256 of
``X-Auditor-Timestamp``, a dot and the body's bytes with the shared secret, compares that in constant time with what
follows ``sha256=`` in ``X-Auditor-Signature``, and refuses timestamps (seconds since 1970) that are minutes old.
``Idempotency-Key`` is the same each time the same body is tried, so that one that came twice counts once.
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
from auditor.client.responses import wished_delay
from auditor.errors import WebhookError
from auditor.models import Secret
from auditor.resilience.retry import Backoff

SECONDS, SECONDS_EACH = 20.0, 10.0
"""How long all tries together may take, with the pauses between them, and how long one may."""


BACKOFF = Backoff(attempts=4, first=1.0, longest=8.0)
"""How often a body is tried, and the pauses between, where the receiver wishes none."""


_AGAIN = {408, 429}
"""Answers below 500 that may be others later."""


@dataclass(frozen=True, slots=True)
class Clock:
    """What time it is, how to wait, and chance; for tests."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    draw: Callable[[], float] = random.random


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a try failed; whether another may succeed, and after how many seconds the receiver wants it."""

    why: str
    again: bool = True
    wished: float | None = None


def headers_for(body: bytes, secret: Secret | None, now: float) -> dict[str, str]:
    """The headers of a try; see this module's docstring."""
    moment = str(int(now))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"auditor/{VERSION}",
        "Idempotency-Key": hashlib.sha256(body).hexdigest()[:32],
        "X-Auditor-Timestamp": moment,
    }
    if secret is not None:
        signed = hmac.new(secret.reveal().encode(), moment.encode() + b"." + body, hashlib.sha256)
        headers["X-Auditor-Signature"] = f"sha256={signed.hexdigest()}"
    return headers


async def post(address: Secret, body: bytes, *, secret: Secret | None = None, clock: Clock | None = None) -> None:
    """Posts JSON; again after a failure that may pass (no connection, no answer in time, 408, 429, 5xx).

    A redirect is not followed: it would take the body, and the signature, to where nobody asked for them.

    Args:
        address: an HTTP or HTTPS URL.
        body: JSON.
        secret: signs the body.
        clock: for tests.

    Raises:
        WebhookError: it was not accepted, and why; the address is not told.
    """
    clock = clock or Clock()
    until = time.monotonic() + SECONDS
    connector = aiohttp.TCPConnector(resolver=Resolver())
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        for number in count(1):
            left = max(0.05, until - time.monotonic())  # a pause may last longer than it should, and 0 is no limit
            send = partial(
                session.post,
                address.reveal(),
                data=body,
                headers=headers_for(body, secret, clock.now()),
                timeout=aiohttp.ClientTimeout(total=min(SECONDS_EACH, left)),
                allow_redirects=False,
            )
            failure = await _try(send, clock, min(SECONDS_EACH, left))
            if failure is None:
                return
            pause = BACKOFF.delay(number, clock.draw()) if failure.wished is None else failure.wished
            if not failure.again or number == BACKOFF.attempts or time.monotonic() + pause >= until:
                raise WebhookError(_sentence(failure, number))
            await clock.sleep(pause)


def _sentence(failure: _Failure, tries: int) -> str:
    wished = "" if failure.wished is None else f", and wants to be asked again in {failure.wished:,.0f} s"
    return f"{failure.why}{wished}{f', after {tries} tries' if tries > 1 else ''}"


async def _try(
    send: Callable[[], AbstractAsyncContextManager[aiohttp.ClientResponse]], clock: Clock, seconds: float
) -> _Failure | None:
    """Sends once; None if it was accepted. What is answered beside the status is not read: it may be hostile.

    Texts of aiohttp's errors hold the address, and so do errors that they are chained to: none leaves this function.
    """
    try:
        with anyio.fail_after(seconds):
            async with send() as response:
                return _judged(response, clock.now())
    except TimeoutError:
        return _Failure("the webhook did not answer in time")
    except aiohttp.ClientConnectorDNSError:
        return _Failure("the name of the webhook's host cannot be resolved")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return _Failure(_why(error))
    except Exception as error:  # noqa: BLE001  whatever it is, its text may hold the address
        return _Failure(f"the webhook could not be asked ({type(error).__name__})", again=False)


def _why(error: Exception) -> str:
    """What went wrong below HTTP, without a word of the error's own: host, port and certificate may stand there."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return "the webhook is not trusted"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return "no TLS with the webhook"
        case aiohttp.ClientConnectorError():
            number = error.os_error.errno
            known = f": {os.strerror(number)}" if number is not None and number in errno.errorcode else ""
            return f"the webhook cannot be reached{known}"
        case aiohttp.ClientOSError() | aiohttp.ServerDisconnectedError() | OSError():
            return "the webhook closed the connection"
    return f"the webhook sent what is no HTTP answer ({type(error).__name__})"


def _judged(response: aiohttp.ClientResponse, now: float) -> _Failure | None:
    status = response.status
    said = f"the webhook answered {status}"
    if 200 <= status < 300:
        return None
    if status >= 500 or status in _AGAIN:
        return _Failure(said, wished=wished_delay(response.headers, now))
    if status < 400:
        return _Failure(f"{said}, a redirect, which is not followed", again=False)
    return _Failure(f"{said}: it does not accept this", again=False)
