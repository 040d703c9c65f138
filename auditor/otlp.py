"""The tracer that sends spans to a collector by OTLP over HTTP, by the SDK of OpenTelemetry.

The environment variables that OpenTelemetry defines configure it; see docs/tracing.md. A collector that cannot be
reached is no error of the command, whose end waits ``MAX_SEND_SECONDS`` for it.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import requests
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from auditor.__about__ import VERSION
from auditor.errors import SettingsError
from auditor.log import log
from auditor.tracing import Attributes, FinishedSpan, Span

MAX_SEND_SECONDS = 5.0
"""Seconds that the end of a command waits for the collector."""


@contextmanager
def open_tracer() -> Iterator["OtlpTracer"]:
    """Open the tracer, and send at the end what it has recorded; log if spans could not be sent."""
    for name in ("opentelemetry", "urllib3"):  # their messages have the address of the collector, which may have a key
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    exporter = _CountingExporter()
    # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES take precedence.
    own = {"service.name": "auditor", "service.version": VERSION}
    resource = Resource.create(own).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    # A program that starts the command gives the span that it belongs to by these variables.
    carrier = {name.lower(): os.environ[name] for name in ("TRACEPARENT", "TRACESTATE") if name in os.environ}
    delivery = _Delivery(provider, exporter)
    tracer = provider.get_tracer("auditor", VERSION)
    try:
        yield OtlpTracer(tracer, TraceContextTextMapPropagator().extract(carrier), delivery.flush)
    finally:
        delivery.close()


class _Delivery:
    """Sends what is recorded, within ``MAX_SEND_SECONDS`` in all, and logs once if that fails."""

    def __init__(self, provider: TracerProvider, exporter: "_CountingExporter") -> None:
        self._provider, self._exporter = provider, exporter
        self._remaining = MAX_SEND_SECONDS
        self._is_checked = self._has_failed = False

    def flush(self) -> None:
        """Send the spans that have ended. A last line of a command can follow: ``close`` logs nothing then."""
        self._check(in_time=self._wait(self._provider.force_flush))

    def close(self) -> None:
        """Send the last spans, unless that has failed before."""
        in_time = not self._has_failed and self._wait(self._provider.shutdown)
        self._exporter.shutdown()
        if not self._is_checked:
            self._check(in_time=in_time)

    def _wait(self, send: Callable[[], object]) -> bool:
        """Return whether spans were sent in time. The library itself may wait for minutes."""
        began = time.monotonic()
        sending = threading.Thread(target=send, daemon=True)
        sending.start()
        sending.join(self._remaining)
        self._remaining = max(0.0, self._remaining - (time.monotonic() - began))
        return not sending.is_alive()

    def _check(self, *, in_time: bool) -> None:
        self._is_checked, self._has_failed = True, not in_time or self._exporter.lost > 0
        if self._has_failed:
            reason = self._exporter.problem or "no answer in time"
            log.warning("spans_not_sent", server=self._exporter.server, reason=reason)


class _ObservedSession(requests.Session):
    """Sends requests, and keeps what was wrong with the last one, without its address."""

    def __init__(self) -> None:
        super().__init__()
        self.problem: str | None = None

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # noqa: ANN401  as there
        """Send one request."""
        try:
            response = super().send(request, **options)
        except requests.RequestException as error:
            self.problem = type(error).__name__
            raise
        self.problem = None if response.ok else f"HTTP status {response.status_code}"
        return response


class _CountingExporter(SpanExporter):
    """Sends spans to the collector, and counts those that it did not accept."""

    def __init__(self) -> None:
        self._session = _ObservedSession()
        self._exporter = OTLPSpanExporter(session=self._session)
        self.server = _read_server()
        self.lost = 0

    @property
    def problem(self) -> str | None:
        """What was wrong with the last request, in a word; None: nothing, or it has no answer yet."""
        return self._session.problem

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans."""
        result = self._exporter.export(spans)
        self.lost += 0 if result is SpanExportResult.SUCCESS else len(spans)
        return result

    def shutdown(self) -> None:
        """End a request that waits to be repeated."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]


def _read_server() -> str:
    """Return the host of the collector; raise SettingsError, without its address, if that cannot be used."""
    names = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    name = next((each for each in names if os.environ.get(each)), None)
    if name is None:
        return "localhost"
    with suppress(ValueError):  # a bracket that is not closed, or a port that is no number
        parts = urlsplit(os.environ[name].strip())
        if parts.scheme in {"http", "https"} and parts.hostname is not None and parts.port != 0:
            return parts.hostname
    raise SettingsError(f"{name}: is not the address of a collector; give one such as http://HOST:4318")


class _OtlpSpan:
    def __init__(self, recorded: trace.Span) -> None:
        self._recorded = recorded

    def set(self, attributes: Attributes) -> None:
        self._recorded.set_attributes(_present(attributes))

    def fail(self, kind: str) -> None:
        self._recorded.set_attribute("error.type", kind)
        self._recorded.set_status(trace.StatusCode.ERROR)


class OtlpTracer:
    """Records spans of the command; the first one is below ``parent``, the span of the program that started it."""

    def __init__(self, tracer: trace.Tracer, parent: Context, flush: Callable[[], None]) -> None:
        self._tracer, self._parent, self._flush = tracer, parent, flush

    def _context(self) -> Context | None:
        """Return the context with the span above the next one; None: the current one."""
        return None if trace.get_current_span().get_span_context().is_valid else self._parent

    @contextmanager
    def span(self, name: str, attributes: Attributes) -> Iterator[Span]:
        """Record a block, which fails if an error leaves it. The message of the error is not recorded."""
        with self._tracer.start_as_current_span(
            name,
            self._context(),
            attributes=_present(attributes),
            record_exception=False,
            set_status_on_exception=False,
        ) as recorded:
            entered = _OtlpSpan(recorded)
            try:
                yield entered
            except BaseException as error:
                entered.fail(type(error).__name__)
                raise

    def record(self, finished: FinishedSpan) -> None:
        """Record work that has ended, below the current span."""
        self._record(finished, self._context())

    def _record(self, finished: FinishedSpan, context: Context | None) -> None:
        recorded = self._tracer.start_span(
            finished.name,
            context,
            kind=trace.SpanKind.CLIENT if finished.is_request else trace.SpanKind.INTERNAL,
            attributes=_present(finished.attributes),
            start_time=finished.began,
        )
        if finished.error is not None:
            _OtlpSpan(recorded).fail(finished.error)
        for part in finished.parts:
            self._record(part, trace.set_span_in_context(recorded))
        recorded.end(finished.ended)

    def flush(self) -> None:
        """Send the spans that have ended, and log if that is not possible."""
        self._flush()

    def ids(self) -> Mapping[str, str]:
        """Return the ids of the current span, by the names that OpenTelemetry defines for logs."""
        found = trace.get_current_span().get_span_context()
        if not found.is_valid:
            return {}
        return {"trace_id": trace.format_trace_id(found.trace_id), "span_id": trace.format_span_id(found.span_id)}


def _present(attributes: Attributes) -> dict[str, str | int | float | bool]:
    return {name: value for name, value in attributes.items() if value is not None}
