"""The simulated platform in a thread of its own, which counts its responses by device."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web
from anyio.from_thread import BlockingPortal, start_blocking_portal

from auditor.simulator.faults import Faults
from auditor.simulator.server import Simulator
from auditor.simulator.world import World

FAULTS = Faults(
    reset=0.004, cut=0.004, unavailable=0.004, internal=0.004, html=0.004, garbage=0.004, business=0.004, http10=0.004,
    nonce=0.003, throttle=0.0001, silence=0.0005, drip=0.0005, silence_seconds=0.5,
)  # fmt: skip
"""A few percent. The platform ends its silences long before the client's timeout.

So no complete response is sent to a client that has disconnected, and a device with two responses was queried by two
processes.
"""


class ObservedSimulator(Simulator):
    """A simulated platform that counts its requests in progress."""

    in_progress = 0

    async def recorded_responses(self) -> Counter[tuple[str, int]]:
        """The responses so far, read between two requests."""
        return Counter(self.responses)

    async def recorded_arrivals(self) -> Counter[str]:
        """The requests so far by operation."""
        return Counter({operation: len(times) for operation, times in self.arrivals_by_operation.items()})

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.in_progress += 1
        try:
            return await super()._handle(request)
        finally:
            self.in_progress -= 1


class PlatformThread:
    """A platform on its own loop, in a thread."""

    def __init__(self, portal: BlockingPortal, simulator: ObservedSimulator) -> None:
        self._portal, self._simulator = portal, simulator
        self.endpoint = simulator.endpoint

    @property
    def received(self) -> int:
        """Requests so far."""
        return self._simulator.counts.received

    def response_counts(self) -> Counter[str]:
        """Responses by device: its page 1, or that it is unknown or not active.

        Counted when the complete response is passed to the connection. Of the faults only ``http10`` is a response.
        """
        responses = self._portal.call(self._simulator.recorded_responses)
        return Counter({device: count for (device, page), count in responses.items() if page == 1})

    def arrival_counts(self) -> Counter[str]:
        """Requests by operation."""
        return self._portal.call(self._simulator.recorded_arrivals)

    def wait_until_idle(self) -> None:
        """Wait until no request of a killed client is in progress."""
        idle, seen = 0, -1
        until = time.monotonic() + 5
        while idle < 3:
            assert time.monotonic() < until, (
                f"{self._simulator.in_progress} requests of a killed client are in progress"
            )
            time.sleep(0.01)
            idle = idle + 1 if self._simulator.in_progress == 0 and self.received == seen else 0
            seen = self.received


@contextmanager
def run_platform(world: World, seed: int, latency: tuple[float, float] = (0.001, 0.015)) -> Iterator[PlatformThread]:
    """Run a platform with a world and faults, as fast as possible."""
    simulator = ObservedSimulator(
        world, faults=FAULTS, latency=latency, seed=seed, record_responses=True, record_arrivals=True
    )
    with (
        start_blocking_portal("asyncio", {"use_uvloop": True}) as portal,
        portal.wrap_async_context_manager(simulator),
    ):
        yield PlatformThread(portal, simulator)
