"""Post a summary over a real socket: signed, retried while that may help, and without disclosing the address."""

import asyncio
import base64
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import anyio
import pytest
import standardwebhooks
from aiohttp import web

from auditor.errors import SettingsError, WebhookError
from auditor.hooks import webhook
from auditor.hooks.http_post import PostClock, PostLimits
from auditor.hooks.webhook import build_headers, decode_signing_secret, post_webhook
from auditor.models import Secret
from tests.client.wire.sockets import Serve, answering, closing, everything_in, http, resetting, serving

pytestmark = pytest.mark.anyio

BODY = '{"text":"ü & <b>"}'.encode()
SECRET = Secret("whsec_" + base64.b64encode(b"S3CRET-that-signs-0123456").decode())
KEY = decode_signing_secret(SECRET, "secret")
MESSAGE = "msg_1"
TOKEN = "T0KEN-in-the-address"


@dataclass
class Receiver:
    """A webhook that answers with one status after the other, keeps to the last one, and records the requests."""

    statuses: Sequence[int] = (200,)
    headers: dict[str, str] = field(default_factory=dict)
    got: list[tuple[web.BaseRequest, bytes]] = field(default_factory=list)
    url: str = ""

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.got.append((request, await request.read()))
        status = self.statuses[min(len(self.got), len(self.statuses)) - 1]
        return web.Response(status=status, headers=self.headers, text=f"no such thing as {request.url}")

    @property
    def address(self) -> Secret:
        return Secret(f"{self.url}hooks/{TOKEN}?token={TOKEN}")


@asynccontextmanager
async def receiving(*statuses: int, **headers: str) -> AsyncIterator[Receiver]:
    receiver = Receiver(statuses or (200,), {name.replace("_", "-"): value for name, value in headers.items()})
    runner = web.ServerRunner(web.Server(receiver.answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        yield receiver
    finally:
        await runner.cleanup()


@dataclass
class Pauses:
    """A clock whose pauses take no time and are recorded."""

    random: float = 0.5
    seconds: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)

    @property
    def clock(self) -> PostClock:
        return PostClock(now=lambda: 1_795_312_800.7 + len(self.seconds), sleep=self.sleep, random=lambda: self.random)


async def failure_of(address: Secret, pauses: Pauses | None = None) -> WebhookError:
    with pytest.raises(WebhookError) as caught:
        await post_webhook(address, BODY, message_id=MESSAGE, key=KEY, clock=(pauses or Pauses()).clock)
    return caught.value


async def test_signature_of_a_posted_body_can_be_verified_as_documented() -> None:
    async with receiving() as receiver:
        await post_webhook(receiver.address, BODY, message_id=MESSAGE, key=KEY)
    ((request, body),) = receiver.got
    assert (request.method, body, request.headers["Content-Type"]) == ("POST", BODY, "application/json")
    assert request.path_qs == f"/hooks/{TOKEN}?token={TOKEN}"
    judge = standardwebhooks.Webhook(SECRET.reveal())
    assert judge.verify(body, dict(request.headers)) == json.loads(BODY)
    assert request.headers["webhook-id"] == MESSAGE
    for changed in ({"webhook-id": "msg_2"}, {"webhook-timestamp": str(int(time.time()) - 1)}):
        with pytest.raises(standardwebhooks.WebhookVerificationError, match="No matching signature"):
            judge.verify(body, dict(request.headers) | changed)
    with pytest.raises(standardwebhooks.WebhookVerificationError, match="No matching signature"):
        judge.verify(body + b" ", dict(request.headers))
    assert request.headers["User-Agent"].startswith("auditor/")


async def test_body_is_not_signed_without_a_secret() -> None:
    async with receiving() as receiver:
        await post_webhook(receiver.address, BODY, message_id=MESSAGE)
    assert "webhook-signature" not in receiver.got[0][0].headers


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_retries_have_new_signatures_and_the_same_id(status: int) -> None:
    pauses = Pauses()
    async with receiving(status, status, 204) as receiver:
        await post_webhook(receiver.address, BODY, message_id=MESSAGE, key=KEY, clock=pauses.clock)
    assert [body for _, body in receiver.got] == [BODY] * 3
    assert pauses.seconds == [0.5, 1.0]
    heads = [request.headers for request, _ in receiver.got]
    assert {head["webhook-id"] for head in heads} == {MESSAGE}
    assert len({head["webhook-signature"] for head in heads}) == 3


@pytest.mark.parametrize("length", [24, 25, 32, 64])
def test_signing_secrets_are_those_of_the_reference_library(length: int) -> None:
    key = bytes(range(length))
    for text in (base64.b64encode(key).decode(), f"whsec_{base64.b64encode(key).decode().rstrip('=')}"):
        assert decode_signing_secret(Secret(text), "secret") == key
        now = datetime.now(UTC)
        headers = build_headers(BODY, MESSAGE, key, now.timestamp())
        assert headers["webhook-signature"] == standardwebhooks.Webhook(text).sign(MESSAGE, now, BODY.decode())


@pytest.mark.parametrize("text", ["whsec_c2hvcnQtYW5k", "whsec_c2hvcnQ=", f"whsec_{TOKEN * 4}!", "ü" * 40, "A" * 1_000])
def test_other_signing_secrets_are_refused_without_their_text(text: str) -> None:
    with pytest.raises(SettingsError, match="secret: is not whsec_ and base64 of 24 to 64 bytes") as caught:
        decode_signing_secret(Secret(text), "secret")
    assert text not in everything_in(caught.value)


async def test_error_is_raised_after_four_attempts() -> None:
    pauses = Pauses(random=1.0)
    async with receiving(500) as receiver:
        error = await failure_of(receiver.address, pauses)
    assert (len(receiver.got), pauses.seconds) == (4, [1.0, 2.0, 4.0])
    assert str(error) == "the webhook answered 500, after 4 attempts"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 413])
async def test_client_errors_are_not_retried(status: int) -> None:
    async with receiving(status) as receiver:
        error = await failure_of(receiver.address)
    assert len(receiver.got) == 1
    assert str(error) == f"the webhook answered {status}: the request was rejected"


async def test_retry_after_header_is_respected() -> None:
    pauses = Pauses()
    async with receiving(429, 200, Retry_After="3") as receiver:
        await post_webhook(receiver.address, BODY, message_id=MESSAGE, clock=pauses.clock)
    assert (len(receiver.got), pauses.seconds) == (2, [3.0])


async def test_retry_after_over_the_time_limit_is_an_error() -> None:
    pauses = Pauses()
    async with receiving(503, Retry_After="3600") as receiver:
        error = await failure_of(receiver.address, pauses)
    assert (len(receiver.got), pauses.seconds) == (1, [])
    assert str(error) == "the webhook answered 503 and requested a retry after 3,600 s"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_are_not_allowed(status: int) -> None:
    async with receiving() as elsewhere, receiving(status, Location=elsewhere.url) as receiver:
        error = await failure_of(receiver.address)
    assert (len(receiver.got), elsewhere.got) == (1, [])
    assert "redirects are not allowed" in str(error)


async def test_all_attempts_end_within_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "LIMITS", PostLimits(0.5, 0.2))
    began = time.monotonic()
    async with serving(silent) as seen:
        error = await failure_of(Secret(f"{seen.url}{TOKEN}"), Pauses(random=0))
    assert 0.4 < time.monotonic() - began < 2
    assert 2 <= seen.connections <= 4
    assert str(error).startswith("the webhook did not answer in time, after ")


async def silent(_writer: asyncio.StreamWriter, _target: str) -> None:
    await asyncio.Event().wait()


FAULTS: dict[str, Serve] = {
    "reset": resetting,
    "closed": closing(b""),
    "no HTTP": closing(b"SSH-2.0\r\n\r\n"),
    "cut head": closing(b"HTTP/1.1 200 OK\r\nContent-"),
    "silence": silent,
    "refused": answering(http(b"no hook " + TOKEN.encode(), status="404 Not Found")),
    "error": answering(http(TOKEN.encode(), status="500 Internal Server Error")),
    "redirect": answering(http(b"", f"Location: http://127.0.0.1:1/{TOKEN}", status="302 Found")),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_errors_disclose_neither_address_nor_secret(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhook, "LIMITS", PostLimits(20, 0.1))
    caplog.set_level(logging.DEBUG)
    async with serving(FAULTS[fault]) as seen:
        error = await failure_of(Secret(f"{seen.url}hooks/{TOKEN}?{TOKEN}"))
    assert len(seen.heads) in {1, 4}
    assert TOKEN in seen.heads[0]
    output = everything_in(error) + caplog.text
    assert str(error) in output
    assert TOKEN not in output
    assert SECRET.reveal() not in output


@pytest.mark.parametrize(
    "address",
    [
        f"http://127.0.0.1:1/{TOKEN}",
        f"https://127.0.0.1:1/{TOKEN}",
        f"http://no-such-host.invalid/{TOKEN}",
        f"http://[::1/{TOKEN}",
        f"gopher://x/{TOKEN}",
        TOKEN,
    ],
)
async def test_errors_do_not_disclose_an_unreachable_address(address: str) -> None:
    error = await failure_of(Secret(address))
    assert str(error)
    assert TOKEN not in everything_in(error)


async def test_endless_response_is_not_read() -> None:
    sent = 0

    async def endless(writer: asyncio.StreamWriter, _target: str) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not writer.is_closing() and sent < 1_000:
            writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0)
            sent += 1

    async with serving(endless) as seen:
        await post_webhook(Secret(seen.url), BODY, message_id=MESSAGE)
    assert sent < 1_000


def test_stalled_resolver_ends_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    stalled = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: stalled.wait(10))
    monkeypatch.setattr(webhook, "LIMITS", PostLimits(0.4, 10))
    began = time.monotonic()
    with pytest.raises(WebhookError, match="did not answer in time"):
        anyio.run(partial(post_webhook, Secret("http://some.host/x"), BODY, message_id=MESSAGE))
    assert time.monotonic() - began < 5
    stalled.set()


async def test_host_names_are_resolved() -> None:
    async with receiving() as receiver:
        await post_webhook(Secret(receiver.url.replace("127.0.0.1", "localhost")), BODY, message_id=MESSAGE)
    assert len(receiver.got) == 1


async def test_pause_that_lasts_too_long_keeps_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "LIMITS", PostLimits(0.6, 0.2))

    async def oversleep(_seconds: float) -> None:
        await asyncio.sleep(0.8)

    async with serving(silent) as seen:
        with anyio.fail_after(5), pytest.raises(WebhookError, match="after 2 attempts"):
            await post_webhook(
                Secret(seen.url), BODY, message_id=MESSAGE, clock=PostClock(sleep=oversleep, random=lambda: 0)
            )


async def test_unreachable_webhook_is_reported_without_its_address() -> None:
    error = await failure_of(Secret("http://127.0.0.1:1/"))
    assert str(error) == "the webhook cannot be reached: Connection refused, after 4 attempts"
