"""Whatever goes wrong, no text of the error or of anything chained to it holds the key, the signature or the URL."""

import asyncio
import logging
from dataclasses import replace
from urllib.parse import quote, unquote

import orjson
import pytest

from auditor.client.transport_errors import OMITTED, redact
from auditor.errors import TransientError
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


HIDDEN = "f3/Qx+9zKp0aWb7LmNc4RtYu8I8="
FORMS: dict[str, str] = {
    "cut": "m" * 279 + " " + HIDDEN[:20],
    "cut after seven": "m" * 292 + " " + HIDDEN[:7],
    "cut within an escape": "m" * 280 + " " + quote(HIDDEN, safe="")[:19],
    "escaped twice": quote(quote(HIDDEN, safe=""), safe=""),
    "escaped five times": HIDDEN.replace("/", "%252525252F").replace("=", "%252525253D"),
    "HTML": HIDDEN.replace("=", "&#61;").replace("+", "&#x2b;").replace("/", "&sol;"),
    "HTML of a URL": quote(HIDDEN, safe="").replace("%", "&#37;"),
    "URL of HTML": quote(HIDDEN.replace("+", "&#43;"), safe=""),
    "JSON": HIDDEN.replace("=", "\\u003d").replace("+", "\\x2B").replace("/", "\\/"),
    "each letter escaped": "".join(f"%{ord(each):02x}" for each in HIDDEN),
    "without padding": HIDDEN.rstrip("="),
    "for file names": HIDDEN.replace("+", "-").replace("/", "_"),
    "with blanks for plus signs": HIDDEN.replace("+", " "),
    "in two lines": HIDDEN[:14] + " " + HIDDEN[14:],
    "small letters": HIDDEN.lower().rstrip("="),
    "the middle": HIDDEN[6:18],
    "as it is and in part": f"{HIDDEN} {HIDDEN[:10]}",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_in_another_form_is_not_quoted(form: str) -> None:
    text = f"url Signature={FORMS[form]}" if len(FORMS[form]) < 200 else FORMS[form]
    error = redact(TransientError(text, text, request_id=text), HIDDEN)
    shown = [error.code, error.message, error.request_id, str(error), *error.args]
    for each in shown:
        letters = "".join(filter(str.isalnum, str(each)))
        assert HIDDEN[:2] not in letters
        assert "zKp0aW" not in letters
        assert "9z" not in letters
        assert "%66" not in str(each)
    assert error.message == OMITTED


def test_a_text_without_a_secret_stays_and_one_with_it_keeps_its_other_words() -> None:
    text = "the device f3 of 100% & 9zKp0aW\\u0041 \u8bbe\u5907 was not found %zz"
    error = redact(TransientError("iot.code", text, request_id="R"), HIDDEN, "pw", "", "Sesame Street 1")
    assert (error.code, error.message, error.request_id) == ("iot.code", text, "R")
    quoting_all = f"user pW, {HIDDEN} and {quote(HIDDEN, safe='')}"
    error = redact(TransientError("iot.code", quoting_all), HIDDEN, "pw")
    assert error.message == "user ***, *** and ***"


@pytest.mark.parametrize(
    "text", ["pr0xy%2BSecret+Word", "pr0xy+Secret%20Word", "pr0xy Secret Word", "pr0xy%252BSecret"]
)
def test_a_password_is_found_in_a_form_or_a_url(text: str) -> None:
    assert redact(TransientError("c", f"password={text}"), "pr0xy+Secret Word").message == OMITTED


def test_a_short_password_is_found_as_a_whole() -> None:
    error = redact(TransientError("c", "password p%2Bw, pow p w"), "p+w")
    assert error.message == "password ***, pow p w"
    assert redact(TransientError("c", "a p%252Bw"), "p+w").message == OMITTED
    assert redact(TransientError("c", "a new pw"), "p+w").message == "a new pw"


@pytest.mark.parametrize("form", ["cut", "escaped twice", "HTML", "without padding"])
async def test_no_form_of_a_request_s_own_signature_is_in_its_error(form: str) -> None:
    signatures = []

    async def serve(writer: asyncio.StreamWriter, target: str) -> None:
        raw = unquote(target.rpartition("&Signature=")[2])
        signatures.append(raw)
        text = {
            "cut": "m" * 280 + raw,
            "escaped twice": quote(quote(raw, safe=""), safe=""),
            "HTML": raw.replace("=", "&#61;").replace("+", "&#43;"),
            "without padding": raw.rstrip("="),
        }[form]
        writer.write(http(orjson.dumps({"Code": "c", "Message": text}), status="400 No"))

    async with serving(serve) as seen, client_of(seen.url) as client:
        error = await failure_of(client)
    assert error.message == OMITTED
    assert signatures[0][:6] not in everything_in(error)
