"""A collector of traces: it decodes OTLP over HTTP by the published protocol, and keeps the spans."""

import gzip
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from tests.post_server import post_server


@dataclass(frozen=True)
class ReceivedSpan:
    """A span, as its collector decodes it."""

    name: str
    trace: str
    id: str
    parent: str
    is_client: bool
    failed: bool
    began: int
    ended: int
    attributes: dict[str, object]
    texts: int
    """Events, links and messages, which may have texts of errors."""


@dataclass
class Collector:
    """What was received; ``status`` is what the collector answers, after ``pause`` seconds."""

    port: int = 0
    status: int = 200
    pause: float = 0.0
    spans: list[ReceivedSpan] = field(default_factory=list)
    resources: list[dict[str, object]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def named(self, name: str) -> list[ReceivedSpan]:
        return [each for each in self.spans if each.name == name]

    def receive(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        self.bodies.append(body)
        for resource in request.resource_spans:
            self.resources.append({each.key: value_of(each.value) for each in resource.resource.attributes})
            for scope in resource.scope_spans:
                assert scope.scope.name == "auditor"
                self.spans += map(decode, scope.spans)


def value_of(value: AnyValue) -> object:
    return getattr(value, str(value.WhichOneof("value")))


def decode(span: trace_pb2.Span) -> ReceivedSpan:
    return ReceivedSpan(
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.kind == trace_pb2.Span.SPAN_KIND_CLIENT,
        span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        {each.key: value_of(each.value) for each in span.attributes},
        len(span.events) + len(span.links) + len(span.status.message),
    )


@contextmanager
def collector(status: int = 200, pause: float = 0.0) -> Iterator[Collector]:
    """Run a collector of this machine until the block ends."""
    found = Collector(status=status, pause=pause)
    stopped = threading.Event()

    def receive(path: str, headers: Mapping[str, str], body: bytes) -> int | None:
        found.paths.append(path)
        found.headers.append(dict(headers))
        if found.pause:
            stopped.wait(found.pause)
            return None
        if found.status == 200:
            found.receive(gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body)
        return found.status

    with post_server(receive) as found.port:
        try:
            yield found
        finally:
            stopped.set()
