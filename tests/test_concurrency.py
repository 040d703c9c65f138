"""An event loop of its own: signals, whose handlers must never raise inside it."""

import asyncio
import signal
from collections.abc import Iterator
from types import FrameType

import anyio
import pytest

from auditor.concurrency import run_event_loop, run_to_end


@pytest.fixture
def handled() -> Iterator[list[str]]:
    """Where the handler of SIGTERM notes that it was called; it raises, as that of a command does."""
    calls: list[str] = []

    def handle(_number: int, _frame: FrameType | None) -> None:
        calls.append("handler")
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, handle)
    yield calls
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("use_uvloop", [False, True])
def test_a_signal_cancels_the_function_and_its_handler_is_called_when_the_loop_has_ended(
    handled: list[str], *, use_uvloop: bool
) -> None:
    async def work() -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGTERM)  # inside a callback of the loop
        try:
            await anyio.sleep(60)
        finally:
            handled.append("cancelled")

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run_event_loop(work, use_uvloop=use_uvloop)
    assert handled == ["cancelled", "handler"]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_function_is_not_interrupted_where_it_does_not_wait(handled: list[str]) -> None:
    async def work() -> str:
        signal.raise_signal(signal.SIGTERM)
        handled.append("continued")
        return "result"

    with pytest.raises(KeyboardInterrupt):
        run_to_end(work)
    assert handled == ["continued", "handler"]


def test_a_second_signal_interrupts_a_function_that_is_not_cancelled(handled: list[str]) -> None:
    async def work() -> None:
        with anyio.CancelScope(shield=True):
            signal.raise_signal(signal.SIGTERM)
            await anyio.sleep(0.01)
            signal.raise_signal(signal.SIGTERM)
            await anyio.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        run_to_end(work)
    assert handled == ["handler", "handler"]


def test_without_a_signal_the_result_is_returned_and_errors_are_raised(handled: list[str]) -> None:
    async def work(number: int) -> int:
        return 60 // number

    assert run_to_end(lambda: work(5)) == 12
    with pytest.raises(ZeroDivisionError):
        run_to_end(lambda: work(0))
    assert handled == []
