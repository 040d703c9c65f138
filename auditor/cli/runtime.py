"""What a command needs of its process: an event loop, an orderly end on signals, and logs on standard error."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import anyio
import structlog

from auditor.cli.console import say
from auditor.engine.worker_pool import Stop
from auditor.errors import AuditorError, StoppedAtOnceError

T = TypeVar("T")


_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _StandardError:
    """Standard error as it is when something is written: a live progress line puts itself in its place."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


def log_to_stderr(level: str) -> None:
    """Logs from ``level`` up: for people on a terminal, as JSON lines elsewhere."""
    stream = _StandardError()
    logging.basicConfig(level=_LEVELS[level], stream=stream, format="%(levelname)s %(name)s: %(message)s", force=True)
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(file=stream),  # type: ignore[arg-type]  # all that it calls is there
        cache_logger_on_first_use=False,
    )


def in_loop(main: Callable[[], Awaitable[T]]) -> T:
    """Runs ``main`` to its end on uvloop."""
    return anyio.run(main, backend_options={"use_uvloop": True})


def until_signal(start: Callable[[Stop], Awaitable[T]]) -> T:
    """Runs ``start`` to its end; SIGINT or SIGTERM wishes it to stop, and a second one ends the process at once.

    Raises:
        AuditorError: what ``start`` raised.
        StoppedAtOnceError: a second signal came. A thread may still be at work: leave by ``os._exit``.
    """

    async def main() -> T:
        ended: list[T] = []
        failure: AuditorError | None = None
        stop = Stop()
        async with anyio.create_task_group() as group:
            listener.begin(stop, group.cancel_scope)
            try:
                ended.append(await start(stop))
            except AuditorError as error:
                failure = error
        if failure is not None:
            raise failure
        if not ended:
            raise StoppedAtOnceError("stopped at once; what was answered is kept")
        return ended[0]

    listener = _Listener()
    try:
        return in_loop(main)
    finally:
        listener.end()


@contextmanager
def unwinding_on_signals() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end what is in here as Ctrl-C does: temporary files go, what is to be told is told.

    Raises:
        KeyboardInterrupt: a signal came.
    """

    def hear(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, hear) for number in _ends()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ends() -> list[signal.Signals]:
    ends = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
        ends.append(signal.SIGHUP)
    return ends


class _Listener:
    """Hears signals until the end of the process, for a second one may come while the first is being obeyed.

    Handlers of the event loop are gone before it is: a signal in between would end the process amid its clean-up.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._heard = 0
        self._over = False

    def begin(self, stop: Stop, scope: anyio.CancelScope) -> None:
        """Listens; the first signal is a wish to stop, the second cancels."""
        loop = asyncio.get_running_loop()

        def hear(number: int, _frame: object) -> None:
            self._heard += 1
            if self._over and self._heard == 2:  # noqa: PLR2004  the audit has ended orderly; so does what follows it
                raise KeyboardInterrupt
            if self._over or loop.is_closed() or self._heard > 2:  # noqa: PLR2004  one more than there are wishes
                os._exit(StoppedAtOnceError.exit_code)
            loop.call_soon_threadsafe(obey, signal.Signals(number).name, self._heard)

        def obey(name: str, times: int) -> None:
            if times > 1:
                scope.cancel()
                return
            stop.wish(f"interrupted by {name}")
            say("stopping: what is in flight is finished and kept; once more stops at once")

        for number in _ends():
            self._before[number] = signal.signal(number, hear)

    def end(self) -> None:
        """Listens no more; if one signal was heard, the next one interrupts, and after that one ends the process."""
        self._over = True
        if not self._heard:
            for number, handler in self._before.items():
                signal.signal(number, handler)
