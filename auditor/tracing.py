"""Traces of a command: a small interface that does nothing until a tracer is used.

``auditor.otlp`` has the tracer; nothing else knows how spans are recorded and sent. Texts that could hold a secret,
such as addresses, queries and the messages of errors, are no attributes. A span has the kind of its error, and the log
has the sentence, with the ids of the trace.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, Self

Attributes = Mapping[str, str | int | float | bool | None]
"""Attributes of a span by name. Those that are None are left out."""


class Span(Protocol):
    """A part of the work, with the time that it takes."""

    def set(self, attributes: Attributes) -> None:
        """Set attributes; they replace those of the same name."""

    def fail(self, kind: str) -> None:
        """Record that the work failed; ``kind`` is a word, such as the class of an error."""


@dataclass(frozen=True, slots=True)
class FinishedSpan:
    """Work that has ended, from ``began`` to ``ended`` in nanoseconds since 1970.

    ``error`` is a word for why it failed; None: it succeeded. ``is_request`` is whether another program did the work.
    """

    name: str
    began: int
    ended: int
    attributes: Attributes
    error: str | None = None
    is_request: bool = False
    parts: Sequence["FinishedSpan"] = ()


class Tracer(Protocol):
    """Records spans below the current one of the task or thread."""

    def span(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """Record a block, which fails if an error leaves it."""

    def record(self, finished: FinishedSpan) -> None:
        """Record work that has ended."""

    def ids(self) -> Mapping[str, str]:
        """Return ``trace_id`` and ``span_id`` of the current span; nothing if there is none."""

    def flush(self) -> None:
        """Send the spans that have ended, and log if that is not possible; wait some seconds at most."""


class _NoSpan:
    """What a block gets without a tracer."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set(self, attributes: Attributes) -> None:
        pass

    def fail(self, kind: str) -> None:
        pass


_NO_SPAN = _NoSpan()
_NO_IDS: Mapping[str, str] = {}
_tracers: list[Tracer] = []
"""The tracer of this process, if it has one."""


@contextmanager
def use_tracer(tracer: Tracer) -> Iterator[None]:
    """Record the spans of this process by a tracer until the block ends."""
    _tracers.append(tracer)
    try:
        yield
    finally:
        _tracers.remove(tracer)


def current_tracer() -> Tracer | None:
    """Return what records the spans of this process; None: they are not recorded."""
    return _tracers[-1] if _tracers else None


def span(name: str, attributes: Attributes = _NO_IDS) -> AbstractContextManager[Span]:
    """Record a block as a span, which fails if an error leaves it; without a tracer, do nothing."""
    return _tracers[-1].span(name, attributes) if _tracers else _NO_SPAN


def flush_spans() -> None:
    """Send the spans that have ended, and log if that is not possible; without a tracer, do nothing."""
    if _tracers:
        _tracers[-1].flush()


def trace_ids() -> Mapping[str, str]:
    """Return the ids that a line of the log has: those of the current span; nothing without a tracer."""
    return _tracers[-1].ids() if _tracers else _NO_IDS
