"""A small world and its platform."""

from collections.abc import AsyncIterator

import pytest

from auditor.simulator.server import Simulator
from auditor.simulator.world import World


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def world() -> World:
    return World(200, missing=0, silent=0, inactive=0, large=0, module_counts={0: 450, 1: 3, 2: 0, 3: 200, 4: 201})


@pytest.fixture
async def platform(world: World) -> AsyncIterator[Simulator]:
    async with Simulator(world) as running:
        yield running
