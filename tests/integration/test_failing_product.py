"""One product of an account fails for every request: the audit of the others is as fast as without it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import auditor
from auditor.resilience import circuit_breaker
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.integration.audits import plain_world
from tests.integration.test_audit import account_table, read_lines, settings_for

pytestmark = pytest.mark.anyio


class FailingProductSimulator(Simulator):
    """Answers 503 to every request for one product, and counts these requests."""

    def __init__(self, world: World, failing: str) -> None:
        super().__init__(world, latency=(0.005, 0.01))
        self.failing, self.failed = failing, 0

    def _count(self, account: Any, parameters: Mapping[str, str], now: float) -> None:
        super()._count(account, parameters, now)
        fails = parameters.get("ProductKey") == self.failing
        self.failed += fails
        self.outage = "unavailable" if fails else None


def prepare(folder: Path, world: World, platform: Simulator, **changes: object) -> auditor.Settings:
    world.write_fleet(folder / "fleet.csv", columns=("product_key", "device_name"))
    return settings_for(folder, account_table(platform.endpoint, folder, calls_per_second=300.0), **changes)


@pytest.mark.slow
async def test_its_devices_have_one_attempt_and_retries_stay_within_their_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_breaker, "PRODUCT_SECONDS", 0.5)
    world = plain_world(1200)
    failing = next(iter(world)).product_key
    sick = sum(device.product_key == failing for device in world)
    async with FailingProductSimulator(world, failing) as platform:
        result = await auditor.run_audit(prepare(tmp_path, world, platform, max_attempts=5))
    devices, requests = result.manifest.devices, result.manifest.requests
    assert (devices.ok, devices.failed, result.exit_code) == (len(world) - sick, sick, 1)
    assert requests.sent == platform.counts.received
    assert requests.retried <= 0.1 * requests.sent + 20
    attempts = [line["attempts"] for line in read_lines(result.folder / "failures.jsonl")]
    assert attempts.count(1) > sick / 2


@pytest.mark.slow
async def test_a_call_budget_covers_retries_and_failing_devices_hold_no_worker(tmp_path: Path) -> None:
    world = plain_world(400)
    failing = next(iter(world)).product_key
    async with FailingProductSimulator(world, failing) as platform:
        settings = prepare(tmp_path, world, platform, max_calls=250, concurrency=4, retry_budget=0.5)
        result = await auditor.run_audit(settings)
        assert platform.counts.received <= 250
    assert result.manifest.requests.sent == platform.counts.received
    # With four workers that wait for retries of half a second and more, a few dozen would have been queried.
    assert result.manifest.devices.ok > 100
    assert result.manifest.devices.pending > 0
