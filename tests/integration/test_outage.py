"""Whole audits through outages: every device is answered in the end, and none pays for the platform's bad minutes."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

import auditor
from auditor.resilience import circuit_breaker as feedback
from auditor.resilience import retry
from auditor.resilience.retry import Backoff
from auditor.simulator.faults import FaultKind
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.test_audit import account_table, assert_true_to, settings_for

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hasty")]

WORLD = World(400, seed=3, large=0)
PER_SECOND = 300.0
OUTAGE_SECONDS = 2.0


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts are used up in tenths of a second, so that an outage of seconds is one of minutes."""
    monkeypatch.setattr(feedback, "SICK_SECONDS", 0.1)
    monkeypatch.setattr(retry, "PROBING", Backoff(first=0.2, longest=0.4))
    monkeypatch.setattr(Backoff, "delay", lambda _self, _failures, draw: 0.2 * draw)


def prepared(folder: Path, platform: Simulator) -> auditor.Settings:
    WORLD.write_fleet(folder / "fleet.csv")
    table = account_table(platform.endpoint, folder, per_second=PER_SECOND)
    return settings_for(folder, table, attempts=4, timeout=0.5, at_once=32)


def simulator(port: int = 0) -> Simulator:
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, PER_SECOND)
    return Simulator(WORLD, accounts=[account], latency=(0.0, 0.02), port=port)


@asynccontextmanager
async def beside(play: "Play") -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(play.run)
        yield
        group.cancel_scope.cancel()


async def until(happened: Callable[[], bool]) -> None:
    while not happened():  # noqa: ASYNC110  what happens is another program's doing
        await anyio.sleep(0.02)


class Play:
    """An outage that begins when a part of the fleet is answered; counts the requests in it."""

    def __init__(self, platform: Simulator, kind: FaultKind) -> None:
        self._platform, self._kind = platform, kind
        self.requests = -1

    async def run(self) -> None:
        counts = self._platform.counts
        await until(lambda: counts.received >= 100)
        self._platform.outage = self._kind
        await anyio.sleep(1.0)
        before = counts.received
        await anyio.sleep(OUTAGE_SECONDS - 1.0)
        self.requests = counts.received - before
        self._platform.outage = None


@pytest.mark.parametrize("kind", ["unavailable", "silence", "reset", "business"])
async def test_an_outage_fails_no_device_and_is_probed_not_stormed(tmp_path: Path, kind: FaultKind) -> None:
    async with simulator() as platform:
        play = Play(platform, kind)
        async with beside(play):
            result = await auditor.run_audit(prepared(tmp_path, platform))
    assert result.manifest.state == "complete"
    assert_true_to(WORLD, result.folder)
    # A second in which the quota would have allowed 300.
    assert 1 <= play.requests <= 40
    assert platform.counts.throttled == 0


async def test_a_platform_that_cannot_be_reached_for_a_while_fails_no_device(tmp_path: Path) -> None:
    first = simulator()
    async with anyio.create_task_group() as group, first:
        port = first.port
        results: list[auditor.Result] = []

        async def audit() -> None:
            results.append(await auditor.run_audit(prepared(tmp_path, first)))

        group.start_soon(audit)
        await until(lambda: first.counts.received >= 100)
        await first.__aexit__(None, None, None)
        await anyio.sleep(1.0)
        async with simulator(port) as second:
            await until(lambda: bool(results))
            assert second.counts.received > 200
    assert results[0].manifest.state == "complete"
    assert_true_to(WORLD, results[0].folder)


async def test_trouble_is_told_while_it_lasts(tmp_path: Path) -> None:
    told: list[str | None] = []
    async with simulator() as platform:
        play = Play(platform, "unavailable")
        async with beside(play):
            await auditor.run_audit(prepared(tmp_path, platform), watch=lambda progress: told.append(progress.trouble))
    assert told[0] is None
    assert told[-1] is None
    assert any(each is not None and '"eu"' in each and "ServiceUnavailable" in each for each in told)
