"""All tests of the wire run on both transports."""

import math

import pytest

from tests.client.wire import sockets


@pytest.fixture(autouse=True, params=["session", "fast"])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Select the transport of all clients of a test, by their account's rate."""
    name: str = request.param
    monkeypatch.setattr(sockets, "calls_per_second", math.inf if name == "fast" else 10.0)
    return name
