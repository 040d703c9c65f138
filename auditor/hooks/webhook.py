"""Post an event to a webhook, signed as Standard Webhooks 1.0 requires; https://www.standardwebhooks.com.

A receiver verifies it by any library of that scheme: ``webhook-signature`` is the HMAC-SHA256 of ``webhook-id``, a dot,
``webhook-timestamp``, a dot and the body's bytes. It rejects timestamps that are minutes old. All attempts to post one
event have the same id, so that an event that arrives twice counts once.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac

from auditor.__about__ import VERSION
from auditor.errors import SettingsError
from auditor.hooks.http_post import PostClock, PostLimits, post_body
from auditor.models import Secret

LIMITS = PostLimits(seconds=18.0, attempt_seconds=10.0)

MIN_KEY_BYTES, MAX_KEY_BYTES = 24, 64
"""Bytes of a signing key, as the scheme says."""

SECRET_PREFIX = "whsec_"  # noqa: S105  what secrets of the scheme begin with


def decode_signing_secret(secret: Secret, at: str) -> bytes:
    """Return the key that a signing secret contains; raise SettingsError, which never quotes it, if it has none."""
    text = secret.reveal().removeprefix(SECRET_PREFIX)
    key = b""
    with contextlib.suppress(binascii.Error, ValueError):
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
        form = f"{SECRET_PREFIX} and base64 of {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes"
        raise SettingsError(f'{at}: is not {form}; generate one: echo "{SECRET_PREFIX}$(openssl rand -base64 32)"')
    return key


def build_headers(body: bytes, message_id: str, key: bytes | None, now: float) -> dict[str, str]:
    """Return the headers of one attempt; see this module's docstring."""
    timestamp = str(int(now))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"auditor/{VERSION}",
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
    }
    if key is not None:
        signed = f"{message_id}.{timestamp}.".encode() + body
        signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        headers["webhook-signature"] = f"v1,{signature}"
    return headers


async def post_webhook(
    address: Secret, body: bytes, *, message_id: str, key: bytes | None = None, clock: PostClock | None = None
) -> None:
    """Post an event; see ``post_body`` for retries.

    Args:
        address: an HTTP or HTTPS URL.
        body: JSON.
        message_id: id of the event.
        key: signs the event; see ``decode_signing_secret``.
        clock: for tests.

    Raises:
        WebhookError: the event was not accepted. The message has the reason, and never the address.
    """
    await post_body(
        address,
        body,
        lambda now: build_headers(body, message_id, key, now),
        limits=LIMITS,
        receiver="the webhook",
        clock=clock,
    )
