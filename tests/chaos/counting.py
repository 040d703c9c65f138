"""The simulated platform on a thread of its own, which counts what it answers to whom."""

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
"""A few percent. The platform ends its silences itself, long before the client's timeout: so no whole answer meets a
client that hung up, and a device that is answered twice was answered to two processes."""


class CountingPlatform(Simulator):
    """A simulated platform that knows how many requests it is at work on."""

    in_progress = 0

    async def answered(self) -> Counter[tuple[str, int]]:
        """The answers so far, taken between two requests."""
        return Counter(self.answers)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.in_progress += 1
        try:
            return await super()._handle(request)
        finally:
            self.in_progress -= 1


class Platform:
    """A platform on a loop of its own, in a thread."""

    def __init__(self, portal: BlockingPortal, simulator: CountingPlatform) -> None:
        self._portal, self._simulator = portal, simulator
        self.endpoint = simulator.endpoint

    @property
    def received(self) -> int:
        """Requests so far."""
        return self._simulator.counts.received

    def answers(self) -> Counter[str]:
        """How often each device was answered: its page 1, or that it is not known or not active.

        Counted when the whole answer is handed to the connection. A fault is no answer, but for ``http10``.
        """
        answers = self._portal.call(self._simulator.answered)
        return Counter({device: count for (device, page), count in answers.items() if page == 1})

    def settle(self) -> None:
        """Returns once nothing of a dead client is at work any more."""
        quiet, seen = 0, -1
        until = time.monotonic() + 5
        while quiet < 3:
            assert time.monotonic() < until, f"{self._simulator.in_progress} requests of a dead client go on"
            time.sleep(0.01)
            quiet = quiet + 1 if self._simulator.in_progress == 0 and self.received == seen else 0
            seen = self.received


@contextmanager
def platform_for(world: World, seed: int) -> Iterator[Platform]:
    """A platform that answers about a world, with faults, as fast as it can."""
    simulator = CountingPlatform(world, faults=FAULTS, latency=(0.001, 0.015), seed=seed, record_answers=True)
    with (
        start_blocking_portal("asyncio", {"use_uvloop": True}) as portal,
        portal.wrap_async_context_manager(simulator),
    ):
        yield Platform(portal, simulator)
