"""Servers that mean harm or are badly broken: a call ends with a named error, in bounded time and memory."""

import asyncio
import contextlib
import gzip
import os
import socket
import ssl
import time
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path

import orjson
import pytest
import trustme

from auditor.client import connector
from auditor.client.decoders import MAX_BODY_BYTES
from auditor.errors import PlatformError, TransientError
from tests.client.wire.sockets import SUCCESS, Serve, answering, ask, client_of, closing, failure_of, http, serving

pytestmark = pytest.mark.anyio

GOOD = http(SUCCESS)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
MEMORY = 4 * MAX_BODY_BYTES
"""Bytes that one call may take at its height, whatever comes: a body, its parts, and what a library keeps of it."""


def flooding(head: bytes, part: bytes) -> Serve:
    """A server that sends ``part`` as fast as it is taken, for ever."""

    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        writer.write(head)
        while not writer.is_closing():
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)

    return serve


def endless_gzip() -> tuple[bytes, bytes]:
    """The beginning of a compressed body, and a part that can follow it for ever: 1 MB of blanks in about 1 KB."""
    packer = zlib.compressobj(wbits=31)
    first = packer.compress(b" " * 1_000_000) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(b" " * 1_000_000) + packer.flush(zlib.Z_FULL_FLUSH)
    return first, again


GZIP_HEAD = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
FLOODS: dict[str, tuple[Serve, set[str]]] = {
    "body without end": (flooding(b"HTTP/1.1 200 OK\r\n\r\n", b" " * 65_536), {"auditor.ResponseTooLarge"}),
    "chunks without end": (flooding(CHUNKED, b"10000\r\n" + b" " * 65_536 + b"\r\n"), {"auditor.ResponseTooLarge"}),
    "chunks of a byte": (flooding(CHUNKED, b"1\r\n \r\n" * 1000), {"auditor.ResponseTooLarge", "auditor.Timeout"}),
    "gzip without end": (
        flooding(GZIP_HEAD + endless_gzip()[0], endless_gzip()[1]),
        {"auditor.ResponseTooLarge", "auditor.Timeout"},
    ),
    "one header line": (flooding(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65_536), {"auditor.InvalidHTTP"}),
    "many headers": (flooding(b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"b" * 500 + b"\r\n"), {"auditor.InvalidHTTP"}),
    "trailers": (flooding(CHUNKED + b"0\r\n", b"X-A: b\r\n" * 500), {"auditor.InvalidHTTP", "auditor.IncompleteBody"}),
    "chunk extension": (flooding(CHUNKED + b"1;", b"x" * 65_536), {"auditor.IncompleteBody"}),
    "no line at all": (flooding(b"", b"x" * 65_536), {"auditor.InvalidHTTP"}),
    "100 Continue": (flooding(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 20), {"auditor.InvalidHTTP"}),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_ends_in_a_named_error_within_time_and_memory(name: str) -> None:
    serve, codes = FLOODS[name]
    async with serving(serve) as seen, client_of(seen.url, timeout=2.0) as client:
        tracemalloc.start()
        try:
            before = time.monotonic()
            error = await asyncio.wait_for(failure_of(client), 10)
            seconds, (_, height) = time.monotonic() - before, tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert type(error) is TransientError
    assert error.code in codes
    assert seconds < 5
    assert height < MEMORY


BODIES: dict[str, tuple[bytes, set[str]]] = {
    "length too long": (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n" + SUCCESS, {"auditor.IncompleteBody"}),
    "length too short": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + SUCCESS, {"auditor.InvalidHTTP"}),
    "length negative": (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + SUCCESS, {"auditor.InvalidHTTP"}),
    "length no number": (b"HTTP/1.1 200 OK\r\nContent-Length: 0x9\r\n\r\n" + SUCCESS, {"auditor.InvalidHTTP"}),
    "length twice": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\n" + SUCCESS,
        {"auditor.InvalidHTTP"},
    ),
    "length of exabytes": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 9000000000000000000\r\n\r\n{",
        {"auditor.IncompleteBody"},
    ),
    "chunks end early": (CHUNKED + b'5\r\n{"a":\r\n', {"auditor.IncompleteBody"}),
    "chunk cut": (CHUNKED + b"ff\r\n{", {"auditor.IncompleteBody"}),
    "chunk size no number": (CHUNKED + b"zz\r\n{\r\n0\r\n\r\n", {"auditor.IncompleteBody", "auditor.InvalidHTTP"}),
    "chunk longer than told": (CHUNKED + b"1\r\n{}}}}\r\n0\r\n\r\n", {"auditor.IncompleteBody", "auditor.InvalidHTTP"}),
    "gzip cut": (
        http(gzip.compress(SUCCESS)[:-12], "Content-Encoding: gzip"),
        {"auditor.IncompleteBody", "auditor.InvalidJSON", "auditor.InvalidHTTP"},
    ),
    "gzip damaged": (
        http(gzip.compress(SUCCESS)[:12] + b"\xff" * 40, "Content-Encoding: gzip"),
        {"auditor.InvalidEncoding"},
    ),
    "unknown coding": (http(b"\x00\x01\x02", "Content-Encoding: x-odd"), {"auditor.InvalidEncoding"}),
    "UTF-16": (http(SUCCESS.decode().encode("utf-16")), {"auditor.InvalidEncoding"}),
    "byte order mark": (http(b"\xef\xbb\xbf" + SUCCESS[:-1]), {"auditor.InvalidJSON"}),
    "switching protocols": (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        {"HTTP 101", "auditor.Disconnected", "auditor.InvalidHTTP"},
    ),
    "status of four digits": (b"HTTP/1.1 2000 OK\r\n\r\n", {"auditor.InvalidHTTP"}),
    "only noise": (b"HTTP/1.1 100 Continue\r\n\r\n" * 50, {"auditor.Disconnected"}),
}


@pytest.mark.parametrize("name", BODIES)
async def test_a_broken_body_is_transient_and_named(name: str) -> None:
    whole, codes = BODIES[name]
    async with serving(closing(whole)) as seen, client_of(seen.url, timeout=5.0) as client:
        error = await asyncio.wait_for(failure_of(client), 10)
    assert type(error) is TransientError
    assert error.code in codes
    assert len(seen.lines) == 1


async def test_noise_before_an_answer_is_passed_over() -> None:
    noise = b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n"
    async with serving(answering(noise + GOOD)) as seen, client_of(seen.url) as client:
        assert (await ask(client)).request_id == "R"


@pytest.mark.parametrize("extra", [b"\r\n", b"noise", http(orjson.dumps({"success": True, "requestId": "STALE"}))])
@pytest.mark.parametrize("later", [False, True])
async def test_an_answer_to_nothing_is_never_taken_for_the_next_one(extra: bytes, later: bool) -> None:  # noqa: FBT001
    sent = 0

    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        nonlocal sent
        writer.write(GOOD)
        if later:
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.write(extra)
        sent += 1

    async with serving(serve) as seen, client_of(seen.url, timeout=2.0) as client:
        for calls in range(1, 6):
            try:
                assert (await ask(client)).request_id == "R"
            except PlatformError as error:
                assert isinstance(error, TransientError)  # noqa: PT017  either is right, a stale answer is not
            assert len(seen.lines) <= calls
            while sent < len(seen.lines):  # noqa: ASYNC110  a count, not an event
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.02)
    assert sent > 1


EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n"
TOO_LATE = http(b"", status="504 Gateway Timeout")
IN_CHUNKS = CHUNKED + b"9\r\n" + SUCCESS[:9] + b"\r\n%x\r\n" % (len(SUCCESS) - 9) + SUCCESS[9:] + b"\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("packets", "kept"),
    [
        ([TOO_LATE], False),
        ([TOO_LATE[:9], TOO_LATE[9:]], False),
        ([TOO_LATE[:3], TOO_LATE[3:9], TOO_LATE[9:]], False),
        ([EARLY_HINTS, TOO_LATE], False),
        ([EARLY_HINTS + TOO_LATE], False),
        ([EARLY_HINTS, EARLY_HINTS + TOO_LATE[:9], TOO_LATE[9:]], False),
        ([b"\r\n" + TOO_LATE], False),
        ([GOOD], True),
        ([GOOD[:15], GOOD[15:]], True),
        ([http(SUCCESS, status="404 Not Found")], True),
        ([GOOD + b"HTTP/1.1 200 OK\r\nX-Stray: "], False),
        ([GOOD[:-1], GOOD[-1:] + b"HTTP/1.1 200 OK\r\n"], False),
        ([GOOD[:70], GOOD[70:] + b"H"], False),
        ([GOOD.replace(b"Content-Length", b"content-length")], True),
        ([IN_CHUNKS], True),
        ([IN_CHUNKS[:60], IN_CHUNKS[60:-7], IN_CHUNKS[-7:-2], IN_CHUNKS[-2:]], True),
        ([IN_CHUNKS + b"HTTP/1.1 200 OK\r\nX-Stray: "], False),
        ([IN_CHUNKS[:-2], IN_CHUNKS[-2:] + b"HTT"], False),
    ],
)
async def test_a_connection_is_kept_only_if_its_answer_ends_exactly(packets: list[bytes], kept: bool) -> None:  # noqa: FBT001
    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        for packet in packets:
            writer.write(packet)
            await asyncio.sleep(0.02)

    async with serving(serve) as seen, client_of(seen.url, timeout=5.0) as client:
        for _ in range(3):
            with contextlib.suppress(PlatformError):
                await ask(client)
            await asyncio.sleep(0.01)
    assert (len(seen.lines), seen.connections) == (3, 1 if kept else 3)


@pytest.mark.parametrize("whole", [GOOD, IN_CHUNKS], ids=["length", "chunks"])
@pytest.mark.parametrize("at", [1, 12, 17, 26])
async def test_an_answer_that_begins_behind_another_is_not_taken_for_the_next_one(whole: bytes, at: int) -> None:
    stray = http(orjson.dumps({"success": True, "requestId": "STALE"}), "X-Stray: 1")
    begun: set[asyncio.StreamWriter] = set()

    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        if writer in begun:  # as a gateway whose answers have slipped by one
            writer.write(stray)
            return
        begun.add(writer)
        writer.write(whole + stray[:at])

    async with serving(serve) as seen, client_of(seen.url, timeout=5.0) as client:
        for _ in range(5):
            assert (await ask(client)).request_id == "R"
    assert (len(seen.lines), seen.connections) == (5, 5)


@pytest.mark.parametrize("at", [1, 12, 26, None])
async def test_an_answer_on_a_connection_that_no_request_has_used_is_not_taken_for_the_next_one(at: int | None) -> None:
    stray = http(orjson.dumps({"success": True, "requestId": "STALE"}), "X-Stray: 1")
    begun: set[asyncio.StreamWriter] = set()

    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        writer.write(stray[at:] if writer in begun else GOOD)

    async with serving(serve) as seen, client_of(seen.url, timeout=5.0) as client:
        await ask(client)
        assert await client.prewarm(4)
        await asyncio.sleep(0.02)
        assert seen.connections == 4
        for writer in seen.writers:  # at least three of them have had no request
            begun.add(writer)
            writer.write(stray[:at])
        await asyncio.sleep(0.05)
        found = await asyncio.gather(*(ask(client) for _ in range(6)))
        assert {each.request_id for each in found} == {"R"}
        assert len(seen.lines) == 7


# With asyncio's own loop, which runs tasks before it reads.
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])
@pytest.mark.parametrize("at", [1, 12, 26])
async def test_an_answer_that_begins_while_connections_are_opened_in_advance_is_not_taken(at: int) -> None:
    stray = http(orjson.dumps({"success": True, "requestId": "STALE"}), "X-Stray: 1")
    async with serving(answering(GOOD)) as seen, client_of(seen.url, timeout=5.0) as client:
        await ask(client)
        await client.prewarm(2)
        await asyncio.sleep(0.02)
        for writer in seen.writers:
            # Immediately: the client reads it while it holds the connections for a moment.
            os.write(writer.get_extra_info("socket").fileno(), stray[:at])
        await client.prewarm(4)
        for writer in seen.writers:
            with contextlib.suppress(RuntimeError):  # the client has closed it
                writer.write(stray[at:])
        await asyncio.sleep(0.05)
        found = await asyncio.gather(*(ask(client) for _ in range(6)))
        assert {each.request_id for each in found} == {"R"}


def answer_with(*headers: str, status: str = "200 OK") -> Serve:
    return answering(http(SUCCESS, *headers, status=status))


NAMED: dict[str, tuple[Serve, str, str]] = {
    "a redirect": (
        answer_with("Location: https://user:word@elsewhere.example:8/a?Signature=x#y", status="301 Moved"),
        "HTTP 301",
        "redirected to https://elsewhere.example:8/a, which",
    ),
    "a redirect to a page for people": (
        answer_with("Location: /login?x=1", status="302 Found"),
        "HTTP 302",
        "redirected to /login, which is never followed; a proxy or a portal may have answered",
    ),
    "a redirect to another address": (
        answer_with("Location: https://elsewhere.example/", status="307 Moved"), "HTTP 307", "set it as endpoint",
    ),
    "a redirect to nowhere": (answer_with(status="308 Moved"), "HTTP 308", "redirected to an unnamed place"),
    "another protocol": (
        closing(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
        "HTTP 101",
        "changes the protocol to websocket",
    ),
    "two lengths": (closing(http(SUCCESS, "Content-Length: 5")), "auditor.InvalidHTTP", "length of its response"),
    "a length and chunks": (
        closing(http(SUCCESS, "Transfer-Encoding: chunked")), "auditor.InvalidHTTP", "length of its response",
    ),
    "a header that is too large": (
        closing(http(SUCCESS, f"X: {'x' * 70_000}")), "auditor.InvalidHTTP", "headers of its response",
    ),
    "too many headers": (
        closing(http(SUCCESS, *["X: y"] * 2_000)), "auditor.InvalidHTTP", "headers of its response",
    ),
    "interim responses": (
        flooding(b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 50), "auditor.InvalidHTTP", "more than 100 interim responses",
    ),
    "headers of 10 MB": (
        closing(http(SUCCESS, *[f"X: {'x' * 60_000}"] * 170)), "auditor.ResponseTooLarge", "headers are larger",
    ),
    "no HTTP": (closing(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "auditor.InvalidHTTP", "first line of its response"),
    "br": (answer_with("Content-Encoding: br", status="200 OK"), "", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
async def test_what_a_proxy_does_is_named_in_the_error(name: str) -> None:
    serve, code, says = NAMED[name]
    async with serving(serve) as seen, client_of(seen.url, timeout=5.0) as client:
        if not code:  # JSON is read, whatever the header says
            assert (await ask(client)).request_id == "R"
            return
        error = await failure_of(client)
    assert (error.code, len(seen.lines)) == (code, 1)
    assert says in error.message
    assert "Signature" not in str(error)
    assert "word" not in error.message


@pytest.mark.parametrize(
    "headers", [[f"Content-Security-Policy: {'x' * 60_000}"], [f"Set-Cookie: s{n}={'x' * 60}" for n in range(900)]]
)
async def test_headers_of_64_kib_are_read(headers: list[str]) -> None:
    async with serving(answer_with(*headers)) as seen, client_of(seen.url) as client:
        for _ in range(2):
            assert (await ask(client)).request_id == "R"
    assert seen.connections == 1


async def test_a_redirect_to_itself_is_one_request() -> None:
    async def serve(writer: asyncio.StreamWriter, target: str) -> None:
        writer.write(http(b"", f"Location: {target}", status="307 Temporary Redirect"))

    async with serving(serve) as seen, client_of(seen.url) as client:
        error = await failure_of(client)
    assert (type(error), error.code, len(seen.lines)) == (TransientError, "HTTP 307", 1)


async def test_a_server_that_takes_no_connections_is_a_timeout() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        async with client_of(f"http://127.0.0.1:{full.getsockname()[1]}/", timeout=0.3) as client:
            error = await asyncio.wait_for(failure_of(client), 10)
        for one in waiting:
            one.close()
    assert (type(error), error.code) == (TransientError, "auditor.Timeout")


async def test_a_handshake_that_hangs_is_a_timeout() -> None:
    with socket.socket() as listening:  # the kernel takes the connection, nobody ever reads from it
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        async with client_of(f"https://127.0.0.1:{listening.getsockname()[1]}/", timeout=0.3) as client:
            error = await asyncio.wait_for(failure_of(client), 10)
    assert (type(error), error.code) == (TransientError, "auditor.Timeout")


async def test_tls_that_fails_for_a_while_is_transient_and_then_all_is_well(tmp_path: Path) -> None:
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    async with (
        serving(answering(GOOD), tls=tls) as seen,
        client_of(seen.url, ca_file=str(tmp_path / "ca.pem")) as client,
    ):
        errors = [await failure_of(client) for _ in range(3)]
        assert {(type(error), error.code) for error in errors} == {(TransientError, "auditor.TLS")}
        assert seen.lines == []
        authority.issue_cert("127.0.0.1").configure_cert(tls)
        assert (await ask(client)).request_id == "R"


@pytest.mark.slow
@pytest.mark.parametrize("part", [b"X: " + b"x" * 60_000 + b"\r\n", b""])
async def test_large_responses_together_take_bounded_memory(part: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 4 * 1024 * 1024
    monkeypatch.setattr(connector, "MAX_BUFFERED_BYTES", limit)
    unfinished = b"HTTP/1.1 200 OK\r\n" + 16 * part if part else http(b"{" + b" " * 1_000_000)[:-1]
    is_hostile = True

    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        writer.write(unfinished if is_hostile else GOOD)

    async with serving(serve) as seen, client_of(seen.url, timeout=3.0) as client:
        errors = await asyncio.gather(*(failure_of(client) for _ in range(12)))
        codes = Counter(error.code for error in errors)
        assert codes["auditor.Timeout"] <= limit // 900_000
        assert codes.total() - codes["auditor.Timeout"] >= 12 - limit // 900_000
        is_hostile = False  # what was aborted or timed out does not count any more
        assert [each.request_id for each in await asyncio.gather(*(ask(client) for _ in range(12)))] == ["R"] * 12


async def test_many_large_responses_one_after_the_other_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector, "MAX_BUFFERED_BYTES", 2 * 1024 * 1024)
    body = SUCCESS[:-1] + b', "more": "' + b"x" * 1_000_000 + b'"}'
    async with serving(answering(http(body))) as seen, client_of(seen.url) as client:
        for _ in range(8):
            assert (await ask(client)).request_id == "R"
    assert seen.connections == 1


async def test_connections_that_do_not_last_are_not_opened_in_advance_for_ever() -> None:
    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        writer.write(GOOD)
        await writer.drain()
        writer.close()

    async with serving(serve) as seen, client_of(seen.url) as client:
        await ask(client)
        opened = []
        for _ in range(12):
            opened.append(await client.prewarm(4))
            for transport in list(seen.writers):
                transport.close()
            await asyncio.sleep(0.02)
        assert seen.connections <= 12
        assert opened[-1] is False
        assert (await ask(client)).request_id == "R"
