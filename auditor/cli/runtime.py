"""Process environment of a command: event loop, signals, and logs on standard error."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from auditor.cli.console import (
    LOG_STYLE,
    LogFormat,
    ProgressStyle,
    format_json_line,
    has_colours,
    print_error,
    remember_line,
)
from auditor.cli.signals import stop_signals
from auditor.concurrency import StopToken
from auditor.errors import AuditInterruptedError
from auditor.log import EVENTS, log, show_sentence
from auditor.text.formatting import escape_lines
from auditor.tracing import trace_ids

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor

T = TypeVar("T")

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _CurrentStderr:
    """Standard error at the time of writing: a live progress display replaces ``sys.stderr``."""

    def write(self, text: str) -> int:
        remember_line(text)
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()


class _JsonFormatter(logging.Formatter):
    """Formats the messages of libraries as lines of a log in JSON."""

    def format(self, record: logging.LogRecord) -> str:
        message, level = super().format(record), record.levelname.lower()
        return format_json_line("library_message", message, level, logger=record.name)


def log_to_stderr(level: str, format_: LogFormat = "text", progress: ProgressStyle = "auto") -> None:
    """Log messages of at least ``level`` to standard error, as text or as JSON lines; show progress in this style.

    All other lines on standard error have the same format from now on, so progress in JSON makes all of them JSON. Text
    has colours on a terminal that has them, unless the environment has NO_COLOR.
    """
    format_ = "json" if progress == "json" else format_
    LOG_STYLE.format, LOG_STYLE.progress = format_, progress
    handler = logging.StreamHandler(_CurrentStderr())
    handler.setFormatter(
        _JsonFormatter() if format_ == "json" else logging.Formatter("%(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=_LEVELS[level], handlers=[handler], force=True)
    log.configure_by(partial(_configure_structlog, _LEVELS[level], format_))


def _configure_structlog(level: int, format_: LogFormat) -> None:
    import structlog  # takes a tenth of a short command

    render: tuple[Processor, ...] = (
        (_add_sentence, structlog.processors.JSONRenderer())
        if format_ == "json"
        else (show_sentence, structlog.dev.ConsoleRenderer(colors=has_colours(sys.stderr), pad_level=False))
    )
    time_format = "iso" if format_ == "json" else "%Y-%m-%dT%H:%M:%SZ"  # people need no microseconds
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt=time_format, utc=True),
            _add_trace_ids,
            _escape_texts,
            *render,
        ],
        logger_factory=structlog.PrintLoggerFactory(file=_CurrentStderr()),  # type: ignore[arg-type]  # has its methods
        cache_logger_on_first_use=False,
    )


def _add_trace_ids(_logger: object, _method: str, event: "EventDict") -> "EventDict":
    """Add the ids of the current span, by which a collector of logs finds its trace."""
    return {**event, **trace_ids()}


def _add_sentence(_logger: object, _method: str, event: "EventDict") -> "EventDict":
    """Add the sentence of an event, as lines that commands print have it."""
    return {"event": event["event"], "message": EVENTS.get(event["event"], event["event"]), **event}


def _escape_texts(_logger: object, _method: str, event: "EventDict") -> "EventDict":
    """Escape what a terminal would act on, for texts come from devices and files."""
    return {key: escape_lines(value) if isinstance(value, str) else value for key, value in event.items()}


def run_until_signal(start: Callable[[StopToken], Awaitable[T]], *, use_uvloop: bool = True) -> T:
    """Run ``start`` and return its result.

    ``use_uvloop``: False for libraries that were not made for this event loop.

    The first of SIGINT, SIGTERM and SIGHUP requests a stop, a second one cancels, and a third one exits.

    Raises:
        AuditInterruptedError: a second signal came. A thread may still run: leave by ``os._exit``.
    """

    async def main() -> T:
        stop = StopToken()
        with anyio.CancelScope() as scope:
            handler.start(stop, scope)
            return await start(stop)
        raise AuditInterruptedError("stopped immediately; results that were received are kept")

    log.configure()
    handler = _SignalHandler()
    try:
        return anyio.run(main, backend_options={"use_uvloop": use_uvloop})
    finally:
        handler.finish()


@contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Make SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, so that temporary files are removed."""

    def handle(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, handle) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _SignalHandler:
    """Handles signals until the process exits, for a second one may come while the first is being handled.

    Handlers of the event loop end before the loop does; a signal in between would kill the process in its clean-up.
    """

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, Any] = {}
        self._received = 0
        self._finished = False

    def start(self, stop: StopToken, scope: anyio.CancelScope) -> None:
        """Handle signals: the first one requests a stop, the second one cancels, the third one exits."""
        loop = asyncio.get_running_loop()

        def receive(number: int, _frame: object) -> None:
            self._received += 1
            if self._finished and self._received == 2:  # noqa: PLR2004  the audit has ended; interrupt its hooks
                raise KeyboardInterrupt
            if self._finished or loop.is_closed() or self._received > 2:  # noqa: PLR2004  neither stop nor cancel helped
                os._exit(AuditInterruptedError.exit_code)
            loop.call_soon_threadsafe(handle, signal.Signals(number).name, self._received)

        def handle(name: str, count: int) -> None:
            if count > 1:
                scope.cancel()
                return
            stop.request(f"interrupted by {name}")
            print_error("stopping after open requests finish (5 s at most); Ctrl-C again stops now", event="stopping")

        for number in stop_signals():
            self._previous[number] = signal.signal(number, receive)

    def finish(self) -> None:
        """End the audit's part.

        If no signal came, signals are handled as before the audit. Otherwise the next one interrupts what still runs,
        and the one after that exits.
        """
        self._finished = True
        if not self._received:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
