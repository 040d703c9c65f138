"""A simulated platform with jitter before its quota, and with another client."""

import time

import pytest

from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.simulator.api_requests import device_params, get, signed_query

pytestmark = pytest.mark.anyio

ACCOUNT = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, 4)


async def test_jitter_delays_a_request_before_its_quota_counts_it(world: World) -> None:
    async with Simulator(world, jitter=(0.1, 0.15), record_arrivals=True) as platform:
        before = time.monotonic()
        await get(platform, signed_query(device_params(world.device(1))))
        assert platform.arrivals is not None
        assert 0.1 <= platform.arrivals[0] - before < 1


async def test_another_client_uses_a_fraction_of_the_quota(world: World) -> None:
    async with Simulator(world, accounts=[ACCOUNT], competitor=(100.0, 0.0, 60.0)) as platform:
        for _ in range(3):
            await get(platform, signed_query(device_params(world.device(1))))
            time.sleep(0.05)  # noqa: ASYNC251  what the other one asks is counted afterwards
        assert platform.counts.answered == 1
        assert platform.counts.throttled == 2
