"""Complete audits through outages: all devices are answered in the end, without failures because of the outage."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

import auditor
from auditor.resilience import circuit_breaker, retry
from auditor.resilience.retry import Backoff
from auditor.simulator.faults import FaultKind
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.test_audit import account_table, assert_matches, settings_for

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_delays")]

WORLD = World(400, seed=3, large=0)
CALLS_PER_SECOND = 300.0
OUTAGE_SECONDS = 2.0


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts are used up in tenths of a second, so that an outage of seconds is one of minutes."""
    monkeypatch.setattr(circuit_breaker, "OPEN_AFTER_SECONDS", 0.1)
    monkeypatch.setattr(retry, "PROBE_BACKOFF", Backoff(initial_delay=0.2, max_delay=0.4))
    monkeypatch.setattr(Backoff, "delay", lambda _self, _failures, draw: 0.2 * draw)


def prepare_settings(folder: Path, platform: Simulator) -> auditor.Settings:
    WORLD.write_fleet(folder / "fleet.csv")
    table = account_table(platform.endpoint, folder, calls_per_second=CALLS_PER_SECOND)
    return settings_for(folder, table, max_attempts=4, timeout=0.5, concurrency=32)


def simulator(port: int = 0) -> Simulator:
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, CALLS_PER_SECOND)
    return Simulator(WORLD, accounts=[account], latency=(0.0, 0.02), port=port)


@asynccontextmanager
async def run_beside(record: "OutageRecord") -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(record.run)
        yield
        group.cancel_scope.cancel()


async def wait_for(happened: Callable[[], bool]) -> None:
    while not happened():  # noqa: ASYNC110  what happens is another program's doing
        await anyio.sleep(0.02)


class OutageRecord:
    """An outage that begins when a part of the fleet is answered; counts the requests in it."""

    def __init__(self, platform: Simulator, kind: FaultKind) -> None:
        self._platform, self._kind = platform, kind
        self.requests = -1

    async def run(self) -> None:
        counts = self._platform.counts
        await wait_for(lambda: counts.received >= 100)
        self._platform.outage = self._kind
        await anyio.sleep(1.0)
        before = counts.received
        await anyio.sleep(OUTAGE_SECONDS - 1.0)
        self.requests = counts.received - before
        self._platform.outage = None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unavailable", "silence", "reset", "business"])
async def test_outage_fails_no_device_and_is_probed_slowly(tmp_path: Path, kind: FaultKind) -> None:
    async with simulator() as platform:
        record = OutageRecord(platform, kind)
        async with run_beside(record):
            result = await auditor.run_audit(prepare_settings(tmp_path, platform))
    assert result.manifest.state == "complete"
    assert_matches(WORLD, result.folder)
    # A second in which the quota would have allowed 300.
    assert 1 <= record.requests <= 40
    assert platform.counts.throttled == 0


async def test_temporarily_unreachable_platform_fails_no_device(tmp_path: Path) -> None:
    first = simulator()
    async with anyio.create_task_group() as group, first:
        port = first.port
        results: list[auditor.AuditResult] = []

        async def audit() -> None:
            results.append(await auditor.run_audit(prepare_settings(tmp_path, first)))

        group.start_soon(audit)
        await wait_for(lambda: first.counts.received >= 100)
        await first.__aexit__(None, None, None)
        await anyio.sleep(1.0)
        async with simulator(port) as second:
            await wait_for(lambda: bool(results))
            assert second.counts.received > 200
    assert results[0].manifest.state == "complete"
    assert_matches(WORLD, results[0].folder)


@pytest.mark.parametrize("fleet", ["listed", "filed"])
async def test_a_platform_that_cannot_be_reached_at_first_fails_no_listing_and_no_device(
    tmp_path: Path, fleet: str
) -> None:
    WORLD.write_fleet(tmp_path / "fleet.csv")
    source = {"fleet": {"products": "all"}} if fleet == "listed" else {}
    async with simulator() as first:
        port, table = first.port, account_table(first.endpoint, tmp_path, calls_per_second=CALLS_PER_SECOND, **source)
    settings = settings_for(tmp_path, table, max_attempts=2, concurrency=32)
    results: list[auditor.AuditResult] = []
    async with anyio.create_task_group() as group:

        async def audit() -> None:
            results.append(await auditor.run_audit(settings))

        group.start_soon(audit)
        await anyio.sleep(1.5)  # a request would have used up its attempts
        assert not results
        async with simulator(port):
            await wait_for(lambda: bool(results))
    assert (results[0].manifest.state, results[0].manifest.discovery[0].gaps if source else ()) == ("complete", ())
    assert_matches([device for device in WORLD if device.exists or not source], results[0].folder)


@pytest.mark.slow
async def test_problem_is_reported_while_it_lasts(tmp_path: Path) -> None:
    problems: list[str | None] = []
    async with simulator() as platform:
        record = OutageRecord(platform, "unavailable")
        async with run_beside(record):
            await auditor.run_audit(
                prepare_settings(tmp_path, platform), on_progress=lambda progress: problems.append(progress.problem)
            )
    assert problems[0] is None
    assert problems[-1] is None
    assert any(each is not None and '"eu"' in each and "ServiceUnavailable" in each for each in problems)
