"""What a command needs of its process: an event loop, an orderly end on signals, and logs on standard error."""

import contextlib
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import structlog

from auditor.audit.scheduler import Stop
from auditor.errors import AuditorError, StoppedAtOnceError
from auditor.terminal import say

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
            group.start_soon(_listen, stop, group.cancel_scope)
            try:
                ended.append(await start(stop))
            except AuditorError as error:
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if not ended:
            raise StoppedAtOnceError("stopped at once; what was answered is kept")
        return ended[0]

    return in_loop(main)


async def _listen(stop: Stop, scope: anyio.CancelScope) -> None:
    ends = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
        ends.append(signal.SIGHUP)
    with anyio.open_signal_receiver(*ends) as signals:
        before = False
        async for received in signals:
            if before:
                scope.cancel()
                return
            before = True
            stop.wish(f"interrupted by {received.name}")
            say("stopping: what is in flight is finished and kept; once more stops at once")
