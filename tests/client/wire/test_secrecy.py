"""Whatever goes wrong, no text of the error or of anything chained to it holds the key, the signature or the URL."""

import asyncio
import logging
from dataclasses import replace
from urllib.parse import quote, unquote

import orjson
import pytest

from tests.client.wire.proxying import PASSWORD, QUOTED_PASSWORD, TOKEN, proxying
from tests.client.wire.sockets import (
    SECRET,
    SUCCESS,
    Serve,
    answering,
    ask,
    client_of,
    closing,
    everything_in,
    failure_of,
    http,
    resetting,
    serving,
)

pytestmark = pytest.mark.anyio


async def hanging(_writer: asyncio.StreamWriter, _target: str) -> None:
    await asyncio.Event().wait()


def quoting(status: str, *names: str, success: bool = False) -> Serve:
    """A server that tells the request's own signature and address back, raw and quoted, in every field."""

    async def serve(writer: asyncio.StreamWriter, target: str) -> None:
        quoted = target.rpartition("&Signature=")[2]
        text = f"[{unquote(quoted)}] [{quoted}] [{quoted.lower()}] ?Signature={quoted}"
        writer.write(http(orjson.dumps({**dict.fromkeys(names, text), "success": success}), status=status))

    return serve


REDIRECT = http(b"", "Location: http://127.0.0.1:1/", status="302 Found")
TROUBLES: dict[str, Serve] = {
    "reset": resetting,
    "closed": closing(b""),
    "cut body": closing(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"),
    "no HTTP": closing(b"SSH-2.0\r\n\r\n"),
    "no gzip": answering(http(b"plain", "Content-Encoding: gzip")),
    "HTML": answering(http(b"<html>", status="502 Bad Gateway")),
    "no JSON": answering(http(b"<html>")),
    "redirect": answering(REDIRECT),
    "silence": hanging,
    "quoted by the gateway": quoting("400 Bad Request", "Code", "Message", "RequestId"),
    "quoted by the operation": quoting("200 OK", "code", "errorMessage", "requestId"),
    "quoted when the clocks differ": quoting("400 Bad Request", "Message"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_no_error_holds_what_must_not_be_seen(trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    timeout = 0.2 if trouble == "silence" else 10.0
    async with serving(TROUBLES[trouble]) as seen, client_of(seen.url, timeout=timeout) as client:
        error = await failure_of(client)
    assert not_to_be_seen(seen.targets[0], everything_in(error)) == []
    assert not_to_be_seen(seen.targets[0], caplog.text) == []


def not_to_be_seen(target: str, text: str) -> list[str]:
    quoted = target.rpartition("&Signature=")[2]
    raw = unquote(quoted)
    hidden = [
        SECRET,
        quoted,
        quoted.lower(),
        raw,
        raw.lower(),
        quote(raw),
        target,
        target.removeprefix("/?"),
        "SignatureNonce",
    ]
    return [item for item in hidden if item in text or item in text.lower()]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://platform.invalid/", "https://127.0.0.1:1/"])
async def test_an_endpoint_that_is_not_reached_leaves_no_url_in_the_error(url: str) -> None:
    async with client_of(url) as client:
        error = await failure_of(client)
    text = everything_in(error)
    assert "Signature" not in text
    assert "AccessKeyId" not in text
    assert SECRET not in text


async def test_the_whole_chain_of_an_error_is_its_own() -> None:
    async with serving(closing(b"")) as seen, client_of(seen.url) as client:
        error = await failure_of(client)
    assert (error.__cause__, error.__context__) == (None, None)


async def test_frames_of_the_error_below_the_call_are_gone() -> None:
    async with serving(answering(http(b"", status="500 Odd"))) as seen, client_of(seen.url) as client:
        error = await failure_of(client)
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert frames == ["failure_of", "ask", "call"]


async def test_the_client_shows_no_secret() -> None:
    async with serving(answering(http(SUCCESS))) as seen, client_of(seen.url) as client:
        await ask(client)
        shown = repr(client) + repr(vars(client))
    assert SECRET not in shown


PROXY_TROUBLES: dict[str, tuple[bool, bytes | None, str]] = {
    "another password": (True, http(b"", "Proxy-Authenticate: Basic", status=f"407 {PASSWORD} {TOKEN}"), "http"),
    "another password for a tunnel": (True, http(b"", status=f"407 {PASSWORD} {TOKEN}"), "https"),
    "forbidden": (True, http(b"<html>", status="403 Forbidden"), "http"),
    "no tunnel": (True, http(b"<html>", status=f"502 {TOKEN}"), "https"),
    "quoting": (
        True,
        http(f'{{"Code": "{PASSWORD}", "Message": "x {TOKEN} Basic {TOKEN}"}}'.encode(), status="400 No"),
        "http",
    ),
    "hanging up": (True, None, "http"),
    "hanging up on a tunnel": (True, None, "https"),
    "no HTTP": (True, b"SSH-2.0\r\n\r\n", "http"),
    "no HTTP on a tunnel": (True, b"SSH-2.0\r\n\r\n", "https"),
    "silence": (True, b"HTTP/1.1 200", "http"),
    "silence on a tunnel": (True, b"HTTP/1.1 200", "https"),
    "absence": (False, b"", "http"),
    "absence on a tunnel": (False, b"", "https"),
}


@pytest.mark.parametrize("trouble", PROXY_TROUBLES)
async def test_no_error_of_a_proxy_holds_what_must_not_be_seen(trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    there, answer, scheme = PROXY_TROUBLES[trouble]
    asyncio.get_running_loop().set_debug(True)
    async with proxying(password=True, answer=answer) as by:
        proxy = by.proxy if there else replace(by.proxy, url="http://127.0.0.1:1")
        seconds = 0.2 if "silence" in trouble else 10.0
        async with client_of(f"{scheme}://127.0.0.1:2/", timeout=seconds, proxy=proxy) as client:
            error = await failure_of(client)
            shown = repr([client, vars(client), proxy, client._endpoint])
    for text in (everything_in(error), caplog.text, shown):
        hidden = (SECRET, "Signature", "AccessKeyId", PASSWORD, QUOTED_PASSWORD, TOKEN)
        assert [item for item in hidden if item in text] == []
    assert (error.__cause__, error.__context__, getattr(error, "__notes__", [])) == (None, None, [])
