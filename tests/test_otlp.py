"""Spans as a collector receives them, and collectors that do not accept them."""

import json
import logging
import sys
import time
from collections.abc import Iterator

import pytest
import structlog

from auditor import otlp
from auditor.cli.console import LogFormat, print_error
from auditor.cli.execution import trace_command
from auditor.cli.runtime import log_to_stderr
from auditor.errors import AccountStoppedError
from auditor.log import log
from auditor.tracing import FinishedSpan, current_tracer, flush_spans, span, trace_ids
from tests.collector import Collector, collector

PASSWORD, KEY = "canary-password", "canary-key"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of those who run the tests, and the handlers of logs as before."""
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED", "TRACEPARENT"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    handlers = root.handlers[:]
    yield
    root.handlers[:] = handlers


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.endpoint)
        yield found


def test_spans_have_their_place_time_and_attributes(received: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    before = time.time_ns()
    with trace_command("run") as command:
        assert current_tracer() is not None
        with span("seal", {"a": 1, "b": None}) as sealing:
            ids = trace_ids()
            sealing.set({"a": 2.5, "c": True})
        part = FinishedSpan("POST", 7, 8, {"d": "x"}, "Busy", is_request=True)
        tracer = current_tracer()
        assert tracer is not None
        tracer.record(FinishedSpan("device", 5, 9, {}, parts=[part]))
        command.set({"process.exit.code": 0})
    assert current_tracer() is None
    (root,), (seal,), (device,), (request,) = map(received.named, ("auditor run", "seal", "device", "POST"))
    assert (ids["trace_id"], ids["span_id"]) == (seal.trace, seal.id)
    assert {each.trace for each in received.spans} == {seal.trace}
    assert [each.parent for each in (root, seal, device, request)] == ["", root.id, root.id, device.id]
    assert before <= root.began <= seal.began <= seal.ended <= root.ended <= time.time_ns()
    assert (device.began, device.ended, request.began, request.ended) == (5, 9, 7, 8)
    assert seal.attributes == {"a": 2.5, "c": True}
    assert (request.attributes, request.is_client, request.failed) == ({"d": "x", "error.type": "Busy"}, True, True)
    assert [each.name for each in received.spans if each.failed or each.is_client] == ["POST"]
    assert root.attributes["process.exit.code"] == 0
    (resource,) = received.resources
    assert resource["service.name"] == "auditor"
    assert resource["deployment.environment.name"] == "test"
    assert set(received.paths) == {"/v1/traces"}


def test_a_span_has_the_kind_of_an_error_and_not_its_text(received: Collector) -> None:
    with pytest.raises(AccountStoppedError), trace_command("run"), span("account"):
        raise AccountStoppedError("eu", f"https://user:{PASSWORD}@host/?Signature={KEY}")
    assert [(each.name, each.failed, each.attributes["error.type"]) for each in received.spans] == [
        ("account", True, "AccountStoppedError"),
        ("auditor run", True, "AccountStoppedError"),
    ]
    assert sum(each.texts for each in received.spans) == 0
    assert not [body for body in received.bodies if PASSWORD.encode() in body or KEY.encode() in body]


def test_a_program_that_starts_a_command_gives_the_span_above(
    received: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "nightly")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20abc")
    with trace_command("shard"):
        pass
    (root,) = received.spans
    assert (root.trace, root.parent) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert received.resources[0]["service.name"] == "nightly"
    assert {name.lower(): value for name, value in received.headers[0].items()}["authorization"] == "Bearer abc"


@pytest.mark.parametrize(
    ("variables", "sends"),
    [
        ({}, False),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "TRUE"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"}, False),
    ],
)
def test_the_standard_variables_decide_whether_spans_are_sent(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    sends: bool,  # noqa: FBT001
) -> None:
    monkeypatch.setattr(otlp, "MAX_SEND_SECONDS", 0.0)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with structlog.testing.capture_logs(), trace_command("run"):
        assert (current_tracer() is not None) == sends
    noted = "OTEL_EXPORTER_OTLP_PROTOCOL" in variables or "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT" in variables
    assert ("no traces are sent" in capsys.readouterr().err) == noted


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_lines_of_the_log_name_the_span_that_wrote_them(
    received: Collector, capsys: pytest.CaptureFixture[str], log_format: LogFormat
) -> None:
    log_to_stderr("warning", log_format)
    with trace_command("run"), span("seal"):
        log.warning("account_stopped", account="eu")
        print_error("a line")
        ids = trace_ids()
    log.warning("account_stopped", account="eu")
    message, line, later = capsys.readouterr().err.splitlines()
    (seal,) = received.named("seal")
    assert ids == {"trace_id": seal.trace, "span_id": seal.id}
    if log_format == "json":
        assert [{name: json.loads(each).get(name) for name in ids} for each in (message, line)] == [ids, ids]
    else:
        assert f"trace_id={seal.trace}" in message
        assert line == "a line"
    assert "trace_id" not in later


def test_without_the_packages_a_note_says_what_to_install(
    received: Collector, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "auditor.otlp", None)  # its import fails
    with trace_command("run"):
        assert current_tracer() is None
    printed = capsys.readouterr().err
    assert printed.startswith("note: no traces are sent: pip install ")
    assert len(printed.splitlines()) == 1
    assert received.spans == []


def test_commands_that_only_read_are_not_traced(received: Collector) -> None:
    with trace_command("status"):
        assert current_tracer() is None
    assert received.spans == []


@pytest.mark.parametrize(
    ("status", "pause", "reason"), [(401, 0.0, "HTTP status 401"), (200, 60.0, "no answer in time")]
)
def test_a_collector_that_does_not_accept_spans_is_one_line_without_its_address(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], status: int, pause: float, reason: str
) -> None:
    monkeypatch.setattr(otlp, "MAX_SEND_SECONDS", 5.0 if not pause else 0.3)
    log_to_stderr("debug")
    with collector(status, pause) as found:
        address = f"http://user:{PASSWORD}@127.0.0.1:{found.port}/v1/traces?key={KEY}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", address)
        began = time.monotonic()
        with trace_command("run"):
            pass
        assert time.monotonic() - began < 3
    printed = capfd.readouterr().err
    (line,) = printed.splitlines()
    assert "spans could not be sent" in line
    assert f"reason='{reason}'" in line or f"reason={reason}" in line
    assert "127.0.0.1" in line
    assert PASSWORD not in printed
    assert KEY not in printed


def test_a_warning_about_the_collector_comes_before_the_last_line_of_a_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log_to_stderr("warning")
    with collector(status=404) as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.endpoint)
        with trace_command("run"):
            with span("seal"):
                pass
            flush_spans()
            print_error("the last line")
        assert len(found.paths) == 1, "nothing more is sent after a failure"
    warning, last = capfd.readouterr().err.splitlines()
    assert "HTTP status 404" in warning
    assert last == "the last line"


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])
@pytest.mark.parametrize(
    "address", ["http://[::1:4318", "http://host:port", "http://h:70000", "localhost:4318", "http://", "x"]
)
def test_an_address_that_cannot_be_called_is_a_note_and_the_command_ends_as_without_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str, address: str
) -> None:
    monkeypatch.setenv(name, address)
    with trace_command("run"):
        assert current_tracer() is None
        flush_spans()
    (line,) = capfd.readouterr().err.splitlines()
    assert (
        line
        == f"note: no traces are sent: {name}: is not the address of a collector; give one such as http://HOST:4318"
    )


def test_a_collector_that_is_not_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(otlp, "MAX_SEND_SECONDS", 0.5)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://user:{PASSWORD}@127.0.0.1:9")
    log_to_stderr("debug")
    with trace_command("run"):
        pass
    (line,) = capfd.readouterr().err.splitlines()
    assert "reason=ConnectionError" in line
    assert PASSWORD not in line
