"""The client through a real proxy: tunnels for HTTPS, absolute addresses for HTTP, and what is wrong in a sentence."""

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from auditor.client.client import ApiClient
from auditor.client.signing import signature, string_to_sign
from auditor.config.proxy import Proxy
from auditor.errors import AccountDeniedError, PlatformError, TransientError
from auditor.models import Secret
from tests.client.wire.proxying import PASSWORD, TOKEN, SeenByProxy, proxying
from tests.client.wire.sockets import (
    KEY_ID,
    SECRET,
    SUCCESS,
    answering,
    ask,
    client_of,
    closing,
    endpoint_of,
    failure_of,
    http,
    serving,
)
from tests.client.wire.test_client import parameters_of

pytestmark = pytest.mark.anyio

GOOD = http(SUCCESS, "Content-Type: application/json")
AUTHORITY = trustme.CA()


def tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


@pytest.mark.parametrize("password", [False, True])
async def test_https_goes_through_a_tunnel_and_the_platform_is_told_nothing_of_it(ca_file: str, password: bool) -> None:  # noqa: FBT001
    async with (
        serving(answering(GOOD), tls=tls()) as seen,
        proxying(password=password) as by,
        client_of(seen.url, ca_file=ca_file, proxy=by.proxy) as client,
    ):
        for _ in range(3):
            await ask(client)
    assert by.lines == [f"CONNECT {seen.url.split('/')[2]} HTTP/1.1"]
    assert (len(seen.lines), seen.connections, by.connections) == (3, 1, 1)
    assert "proxy" not in "".join(seen.heads).lower()
    assert "Signature" not in "".join(by.heads)


@pytest.mark.parametrize("password", [False, True])
async def test_http_is_sent_with_its_whole_address_and_stays_as_it_was_signed(password: bool) -> None:  # noqa: FBT001
    async with (
        serving(answering(GOOD)) as seen,
        proxying(password=password) as by,
        client_of(seen.url, proxy=by.proxy) as client,
    ):
        for _ in range(3):
            await ask(client)
    assert [line.split(" ")[1] for line in by.lines] == [f"{seen.url}{target[1:]}" for target in seen.targets]
    canonical, _, _sent = seen.targets[0].removeprefix("/?").rpartition("&Signature=")
    assert signature(Secret(SECRET), string_to_sign("POST", canonical)) == parameters_of(seen.targets[0])["Signature"]
    assert by.connections == 1
    assert TOKEN not in "".join(seen.heads)


@pytest.mark.parametrize("secure", [False, True])
async def test_connections_through_a_proxy_are_opened_before_they_are_needed_and_then_used(
    ca_file: str,
    secure: bool,  # noqa: FBT001
) -> None:
    async with (
        serving(answering(GOOD), tls=tls() if secure else None) as seen,
        proxying(password=True) as by,
        client_of(seen.url, ca_file=ca_file, proxy=by.proxy) as client,
    ):
        await ask(client)
        assert await client.prewarm(4)
        assert by.connections == 4
        await client.prewarm(3)
        await asyncio.gather(*(ask(client) for _ in range(4)))
        assert (by.connections, len(seen.lines)) == (4, 5)


async def test_variables_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(answering(GOOD)) as seen, proxying() as by:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{by.place}")
        async with client_of(seen.url) as client:
            await ask(client)
    assert (by.connections, seen.connections) == (0, 1)


STATUS = b"HTTP/1.1 %d No\r\nContent-Length: 6\r\n\r\n<html>"
TROUBLES: dict[str, tuple[bytes | None, str]] = {
    "forbids": (STATUS % 403, "does not connect to 127.0.0.1: status 403"),
    "cannot": (STATUS % 502, "does not connect to 127.0.0.1: status 502"),
    "is slow": (STATUS % 504, "does not connect to 127.0.0.1: status 504"),
    "wants a password": (STATUS % 407, "does not accept the user and password, or requires them"),
}
BROKEN: dict[str, tuple[bytes | None, str]] = {
    "hangs up": (None, "breaks the connection to 127.0.0.1"),
    "is none": (b"SSH-2.0\r\n\r\n", "does not answer with valid HTTP"),
}


async def failure_through(by: SeenByProxy, url: str) -> PlatformError:
    async with client_of(url, proxy=by.proxy) as client:
        return await failure_of(client)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_proxy_that_refuses_is_named(scheme: str, trouble: str) -> None:
    answer, says = TROUBLES[trouble]
    async with proxying(answer=answer) as by:
        error = await failure_through(by, f"{scheme}://127.0.0.1:1/")
    assert (error.code, error.message) == ("auditor.Proxy", f"the proxy {by.place} {says}")
    assert type(error) is (AccountDeniedError if "password" in trouble else TransientError)


@pytest.mark.parametrize("trouble", BROKEN)
async def test_a_proxy_that_breaks_is_named(trouble: str) -> None:
    answer, says = BROKEN[trouble]
    async with proxying(answer=answer) as by:
        error = await failure_through(by, "https://127.0.0.1:1/")
    assert (type(error), error.code) == (TransientError, "auditor.Proxy")
    assert error.message == f"the proxy {by.place} {says}"


async def test_a_proxy_that_says_nothing_is_named() -> None:
    async with proxying(answer=b"HTTP/1.1 200") as by:
        endpoint = endpoint_of("https://127.0.0.1:1/", connect_timeout=0.3, proxy=by.proxy)
        async with ApiClient(endpoint, KEY_ID, Secret(SECRET)) as client:
            error = await failure_of(client)
    assert error.code == "auditor.Proxy"
    assert error.message == f"the proxy {by.place} does not connect to 127.0.0.1 in time"


async def test_a_platform_that_speaks_no_tls_behind_a_proxy_is_told_with_both() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"SSH-2.0\r\n" * 10)
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with proxying() as by:
        error = await failure_through(by, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    server.close()
    assert error.code == "auditor.TLS"
    assert error.message.startswith(f"no TLS with 127.0.0.1 through the proxy {by.place}: ")


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("proxy", "says"),
    [
        ("http://127.0.0.1:1", "the proxy 127.0.0.1:1 cannot be reached: Connection refused"),
        ("http://proxy.invalid:3128", "the name of the proxy proxy.invalid:3128 cannot be resolved"),
    ],
)
async def test_a_proxy_that_is_not_reached_is_named(scheme: str, proxy: str, says: str) -> None:
    async with client_of(f"{scheme}://127.0.0.1:2/", proxy=Proxy(proxy, Secret("u"), Secret(PASSWORD))) as client:
        error = await failure_of(client)
    assert (type(error), error.code, error.message) == (TransientError, "auditor.Proxy", says)


async def test_a_platform_that_is_not_trusted_behind_a_proxy_is_told_with_both() -> None:
    async with serving(answering(GOOD), tls=tls()) as seen, proxying() as by:
        error = await failure_through(by, seen.url)
    assert error.code == "auditor.TLS"
    assert f"127.0.0.1 is not trusted through the proxy {by.place}: " in error.message
    assert seen.lines == []


async def test_the_platforms_own_refusals_stay_the_platforms() -> None:
    refusal = http(b'{"Code": "Forbidden", "Message": "not you"}', status="403 Forbidden")
    async with serving(answering(refusal)) as seen, proxying() as by:
        error = await failure_through(by, seen.url)
    assert (type(error), error.code) == (AccountDeniedError, "Forbidden")


async def test_an_answer_that_is_cut_behind_a_proxy_names_both(ca_file: str) -> None:
    cut = closing(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{")
    async with (
        serving(cut, tls=tls()) as seen,
        proxying() as by,
        client_of(seen.url, ca_file=ca_file, proxy=by.proxy) as client,
    ):
        error = await failure_of(client)
    assert (error.code, error.message) == (
        "auditor.IncompleteBody",
        f"127.0.0.1 closed the connection within a body through the proxy {by.place}",
    )
