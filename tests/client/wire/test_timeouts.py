"""The time that a request may take: each has its own, and what is cut for it is never taken for an answer."""

import asyncio
import time
from typing import Any

import aiohttp
import pytest
from aiohttp.connector import Connection

from auditor.client.fast_transport import FastTransport
from auditor.errors import PlatformError, TransientError
from tests.client.wire.sockets import SUCCESS, Seen, answering, ask, client_of, failure_of, http, serving

pytestmark = pytest.mark.anyio

GOOD = http(SUCCESS)


async def silence(_writer: asyncio.StreamWriter, _target: str) -> None:
    await asyncio.Event().wait()


async def answer_first(count: int, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Answer so many requests, once all of them have arrived, and none after them."""
    if len(seen.lines) > count:
        await asyncio.Event().wait()
    while len(seen.lines) < count:  # noqa: ASYNC110  a server that tells nobody
        await asyncio.sleep(0.01)
    writer.write(GOOD)


@pytest.mark.parametrize("kept", [0, 5])
async def test_each_request_has_its_own_time_however_many_are_in_flight(kept: int) -> None:
    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        await answer_first(kept, seen, writer)

    async with serving(serve) as seen, client_of(seen.url, timeout=0.4) as client:
        await asyncio.gather(*(ask(client) for _ in range(kept)))

        async def seconds_until_given_up() -> float:
            began = time.monotonic()
            assert (await failure_of(client)).code == "auditor.Timeout"
            return time.monotonic() - began

        async def later(pause: float) -> float:
            await asyncio.sleep(pause)
            return await seconds_until_given_up()

        took = await asyncio.wait_for(asyncio.gather(*(later(0.15 * number) for number in range(5))), 20)
    # Not before its time, for it is measured by a clock of milliseconds, and by its own beginning, not by another's.
    assert min(took) > 0.38
    assert max(took) < 5
    assert len(seen.lines) == kept + 5
    assert seen.connections == 5


async def test_what_is_answered_in_time_is_not_cut_later_and_its_connection_is_kept() -> None:
    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        if len(seen.lines) % 2:
            writer.write(GOOD)
        else:
            await asyncio.Event().wait()

    async with serving(serve) as seen, client_of(seen.url, timeout=0.3) as client:
        for number in range(3):
            await ask(client)
            assert (await failure_of(client)).code == "auditor.Timeout"
            await asyncio.sleep(0.05)
            assert len(seen.lines) == 2 * number + 2
        await ask(client)
    # Each silence took the connection that was kept, which is cut then; each answer leaves one.
    assert seen.connections == 4


async def test_the_time_of_a_kept_connection_ends_within_a_body_too() -> None:
    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        writer.write(GOOD if len(seen.lines) % 2 else GOOD[:-5])

    async with serving(serve) as seen, client_of(seen.url, timeout=0.3) as client:
        for number in range(2):
            await ask(client)
            assert (await failure_of(client)).code == "auditor.Timeout"
            assert seen.connections == number + 1


async def test_a_body_that_would_end_with_its_connection_is_no_answer_when_that_is_cut() -> None:
    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + SUCCESS)  # all of it, but who can know
        await asyncio.Event().wait()

    async with serving(serve) as seen, client_of(seen.url, timeout=0.2) as client:
        error = await asyncio.wait_for(failure_of(client), 10)
    assert (type(error), error.code) == (TransientError, "auditor.Timeout")


async def test_the_wait_for_a_connection_counts_too(transport: str) -> None:
    async with serving(silence) as seen, client_of(seen.url, timeout=0.3, connections=1) as client:
        both = await asyncio.wait_for(asyncio.gather(failure_of(client), failure_of(client)), 10)
    assert {error.code for error in both} == {"auditor.Timeout"}
    if transport == "fast":
        assert len(seen.lines) == 1, "a request whose time is up before it has a connection is not sent"
    assert len(set(seen.signatures)) == len(seen.lines)


async def test_a_client_is_closed_while_requests_are_in_flight() -> None:
    async with serving(silence) as seen:
        async with client_of(seen.url, timeout=30) as client:
            asking = [asyncio.ensure_future(ask(client)) for _ in range(3)]
            while len(seen.lines) < 3:  # noqa: ASYNC110  a server that tells nobody
                await asyncio.sleep(0.01)
        ends = await asyncio.wait_for(asyncio.gather(*asking, return_exceptions=True), 10)
    assert all(isinstance(end, PlatformError) for end in ends), ends


async def test_a_closed_client_sends_nothing_and_leaves_no_timer(transport: str) -> None:
    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        await answer_first(1, seen, writer)

    async with serving(serve) as seen:
        client = client_of(seen.url, timeout=0.2)
        async with client:
            await ask(client)
            asking = asyncio.ensure_future(failure_of(client))
            while len(seen.lines) < 2:  # noqa: ASYNC110  a server that tells nobody
                await asyncio.sleep(0.01)
            timer = client._transport._timer if isinstance(client._transport, FastTransport) else None
            assert (timer is not None) == (transport == "fast")
        assert timer is None or timer.cancelled()
        assert (await asking).code == "auditor.Disconnected"
        with pytest.raises(RuntimeError, match="not open"):
            await ask(client)
        assert await client.prewarm(3)
    assert seen.connections == 1


async def test_a_server_that_speaks_first_on_every_connection_is_called_no_longer_than_a_request_may_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving(answering(GOOD)) as seen, client_of(seen.url, timeout=0.4) as client:
        connect = aiohttp.TCPConnector.connect

        async def unexpected_data(self: aiohttp.TCPConnector, *arguments: Any, **options: Any) -> Connection:
            await asyncio.sleep(0.01)
            connection = await connect(self, *arguments, **options)
            assert connection.protocol is not None
            connection.protocol.force_close()
            return connection

        monkeypatch.setattr(aiohttp.TCPConnector, "connect", unexpected_data)
        began = time.monotonic()
        errors = await asyncio.wait_for(asyncio.gather(*(failure_of(client) for _ in range(3))), 10)
        assert time.monotonic() - began < 5
        monkeypatch.undo()
        assert {error.code for error in errors} == {"auditor.Timeout"}
        assert seen.lines == []
        assert (await ask(client)).request_id == "R"


async def test_an_answer_that_comes_before_its_question_is_not_taken() -> None:
    async def serve(writer: asyncio.StreamWriter, _target: str) -> None:
        writer.write(GOOD + http(SUCCESS.replace(b'"R"', b'"forged"')))

    async with serving(serve) as seen, client_of(seen.url) as client:
        for _ in range(3):
            assert (await ask(client)).request_id == "R"
    assert seen.connections == 3


async def test_a_hundred_requests_over_few_connections_are_each_answered_once() -> None:
    async with serving(answering(GOOD)) as seen, client_of(seen.url, connections=4) as client:
        await asyncio.gather(*(ask(client) for _ in range(100)))
    assert (len(seen.lines), len(set(seen.targets))) == (100, 100)
    assert seen.connections <= 4
