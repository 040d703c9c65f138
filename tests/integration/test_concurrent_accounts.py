"""Waits and problems of one account do not affect the others."""

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

REDIS_LATENCY = 0.05
"""Seconds that the server where quotas are shared takes for an answer."""


@asynccontextmanager
async def slow_redis(*, fail_from: int = 0) -> AsyncIterator[str]:
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
                await asyncio.sleep(REDIS_LATENCY)
                answers += 1
                seconds, micro = divmod(time.time_ns() // 1000, 1_000_000)
                times = b"".join(b"$%d\r\n%s\r\n" % (len(each), each) for each in (b"%d" % seconds, b"%d" % micro))
                writer.write(b"-ERR no\r\n" if fail_from and answers >= fail_from else b"*2\r\n" + times)
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


def account_tables(platform: Simulator, folder: Path, names: list[str], **changes: object) -> list[dict[str, Any]]:
    return [account_table(platform.endpoint, folder, name=name, access_key_id=name, **changes) for name in names]


@pytest.mark.slow
@pytest.mark.anyio
async def test_accounts_are_opened_concurrently_and_keep_their_order(tmp_path: Path) -> None:
    names = [f"a{number}" for number in range(12)]
    keys = [SimulatedAccount(name, DEFAULT_ACCOUNT.secret) for name in names]
    (tmp_path / "fleet.csv").write_text("iot_id\none\n")
    first: list[auditor.Progress] = []
    async with Simulator(World(1), accounts=keys) as platform, slow_redis() as redis:
        settings = settings_for(
            tmp_path, *account_tables(platform, tmp_path, names, calls_per_second=50), quota_sharing={"redis": redis}
        )
        began = time.monotonic()
        seconds: list[float] = []

        def watch(progress: auditor.Progress) -> None:
            first.append(progress)
            seconds.append(time.monotonic() - began)

        await auditor.run_audit(settings, on_progress=watch)
    assert [each.name for each in first[0].accounts] == names
    # Two that are opened after each other take ten answers; here there are twelve.
    assert seconds[0] < 50 * REDIS_LATENCY


@pytest.mark.anyio
async def test_account_that_cannot_be_opened_is_one_error_and_the_others_are_closed(tmp_path: Path) -> None:
    names = ["eu", "us", "cn"]
    (tmp_path / "fleet.csv").write_text("iot_id\none\n")
    async with Simulator(World(1)) as platform, slow_redis(fail_from=8) as redis:
        settings = settings_for(
            tmp_path, *account_tables(platform, tmp_path, names, calls_per_second=50), quota_sharing={"redis": redis}
        )
        with pytest.raises(SettingsError, match=r"quota_sharing: redis: cannot use "):
            await auditor.run_audit(settings)
    assert platform.counts.received == 0


@pytest.mark.slow
def test_unresponsive_name_servers_delay_neither_other_accounts_nor_the_end(
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
            if account.finished:
                ends.setdefault(account.name, progress.elapsed)

    async def audit() -> auditor.AuditResult:
        world = World(5, large=0, missing=0, silent=0, inactive=0)
        world.write_fleet(tmp_path / "fleet.csv")
        async with Simulator(world) as platform:
            dead = [
                account_table(f"http://{number}.invalid/", tmp_path, name=f"dead-{number}", access_key_id="key")
                for number in range(33)  # more than any loop has threads of its own
            ]
            alive = account_table(platform.endpoint.replace("127.0.0.1", "localhost"), tmp_path, name="alive")
            settings = settings_for(tmp_path, *dead, alive, connect_timeout=0.5, give_up_after=1.5, max_attempts=2)
            return await auditor.run_audit(settings, on_progress=watch)

    began = time.monotonic()
    result = anyio.run(audit, backend_options={"use_uvloop": True})
    assert time.monotonic() - began < 15
    stalled.set()
    assert result.manifest.devices.ok == 5
    assert ends["alive"] < min(end for name, end in ends.items() if name != "alive")
