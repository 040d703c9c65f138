"""What one account waits for, or is in trouble with, is no matter of the others."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import auditor
from auditor.errors import SettingsError
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.test_audit import account_table, settings_for

SLOW = 0.05
"""Seconds that the server where quotas are shared takes for an answer."""


@asynccontextmanager
async def slow_redis(*, refuses: int = 0) -> AsyncIterator[str]:
    """As much of a Redis server as an audit needs, far away; from its answer ``refuses`` on it refuses, if that is set.
    Gives its address.
    """
    writers: set[asyncio.StreamWriter] = set()
    answers = 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answers
        writers.add(writer)
        try:
            while line := await reader.readline():
                words = []
                for _ in range(int(line[1:])):
                    size = int((await reader.readline())[1:])
                    words.append((await reader.readexactly(size + 2))[:-2])
                if words[0] != b"EVAL":
                    writer.write(b"+OK\r\n")
                    continue
                await asyncio.sleep(SLOW)
                answers += 1
                seconds, micro = divmod(time.time_ns() // 1000, 1_000_000)
                times = b"".join(b"$%d\r\n%s\r\n" % (len(each), each) for each in (b"%d" % seconds, b"%d" % micro))
                writer.write(b"-ERR no\r\n" if refuses and answers >= refuses else b"*2\r\n" + times)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0.01)


def tables(platform: Simulator, folder: Path, names: list[str], **changes: object) -> list[dict[str, Any]]:
    return [account_table(platform.endpoint, folder, name=name, access_key_id=name, **changes) for name in names]


@pytest.mark.anyio
async def test_accounts_are_opened_side_by_side_and_keep_their_order(tmp_path: Path) -> None:
    names = [f"a{number}" for number in range(12)]
    keys = [SimulatedAccount(name, DEFAULT_ACCOUNT.secret) for name in names]
    (tmp_path / "fleet.csv").write_text("iot_id\none\n")
    first: list[auditor.Progress] = []
    async with Simulator(World(1), accounts=keys) as platform, slow_redis() as redis:
        settings = settings_for(tmp_path, *tables(platform, tmp_path, names, per_second=50), budget={"redis": redis})
        began = time.monotonic()
        seconds: list[float] = []

        def watch(progress: auditor.Progress) -> None:
            first.append(progress)
            seconds.append(time.monotonic() - began)

        await auditor.run_audit(settings, watch=watch)
    assert [each.name for each in first[0].accounts] == names
    # Two that are opened after each other take ten answers; here there are twelve.
    assert seconds[0] < 50 * SLOW


@pytest.mark.anyio
async def test_an_account_that_cannot_be_opened_is_one_sentence_and_the_others_are_closed(tmp_path: Path) -> None:
    names = ["eu", "us", "cn"]
    (tmp_path / "fleet.csv").write_text("iot_id\none\n")
    async with Simulator(World(1)) as platform, slow_redis(refuses=8) as redis:
        settings = settings_for(tmp_path, *tables(platform, tmp_path, names, per_second=50), budget={"redis": redis})
        with pytest.raises(SettingsError, match=r"budget: redis: .* cannot be used: "):
            await auditor.run_audit(settings)
    assert platform.counts.received == 0


def test_name_servers_that_are_silent_for_some_accounts_delay_neither_the_others_nor_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stalled, resolve = threading.Event(), socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any, **named: Any) -> Any:
        if host.endswith(".invalid"):
            stalled.wait(20)
        return resolve(host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    ends: dict[str, float] = {}

    def watch(progress: auditor.Progress) -> None:
        for account in progress.accounts:
            if account.ended:
                ends.setdefault(account.name, progress.elapsed)

    async def audit() -> auditor.Result:
        world = World(5, large=0, missing=0, silent=0, inactive=0)
        world.write_fleet(tmp_path / "fleet.csv")
        async with Simulator(world) as platform:
            dead = [
                account_table(f"http://{number}.invalid/", tmp_path, name=f"dead-{number}", access_key_id="key")
                for number in range(33)  # more than any loop has threads of its own
            ]
            alive = account_table(platform.endpoint.replace("127.0.0.1", "localhost"), tmp_path, name="alive")
            settings = settings_for(tmp_path, *dead, alive, connect_timeout=0.5, give_up_after=1.5, attempts=2)
            return await auditor.run_audit(settings, watch=watch)

    began = time.monotonic()
    result = anyio.run(audit, backend_options={"use_uvloop": True})
    assert time.monotonic() - began < 15
    stalled.set()
    assert result.manifest.devices.ok == 5
    assert ends["alive"] < min(end for name, end in ends.items() if name != "alive")
