"""The log, which imports its library late, and its events."""

import ast
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import structlog

from auditor.cli.console import LOG_STYLE, print_error, print_exit, print_labelled, print_note
from auditor.cli.runtime import log_to_stderr
from auditor.log import EVENTS, LINE_EVENTS, log

ROOT = Path(__file__).parents[1]


@pytest.fixture
def events_document(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program docs/log_events.py."""
    spec = spec_from_file_location("log_events", ROOT / "docs" / "log_events.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "log_events", module)
    spec.loader.exec_module(module)
    return module


def test_without_a_configuration_messages_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    log.warning("quota_shared", account="eu")
    out, error = capsys.readouterr()
    assert out == ""
    assert EVENTS["quota_shared"] in error
    assert "eu" in error
    assert not structlog.is_configured(), "a program that uses the library may still configure it"


def test_threads_that_write_the_first_messages_wait_for_the_configuration() -> None:
    written = StringIO()

    def configure() -> None:
        time.sleep(0.2)  # the other threads are on their way
        structlog.configure(
            logger_factory=structlog.PrintLoggerFactory(written),
            processors=[structlog.processors.KeyValueRenderer(key_order=["event"])],
        )

    log.configure_by(configure)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: log.error("account_stopped", number=number), range(4)))
    assert sorted(written.getvalue().splitlines()) == [
        f"event='account_stopped' number={number}" for number in range(4)
    ]


def test_a_configuration_is_respected_whenever_it_comes() -> None:
    log.warning("run_skipped")
    written = StringIO()
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(written),
        processors=[structlog.processors.KeyValueRenderer(key_order=["event"])],
    )
    log.error("account_stopped", device="d1")
    assert written.getvalue() == "event='account_stopped' device='d1'\n"
    assert written is not sys.stderr


@pytest.mark.slow
def test_every_message_has_a_documented_event_and_every_event_is_used(events_document: Any) -> None:
    calls = list(events_document.log_calls())
    assert [call.where for call in calls if call.event not in EVENTS] == []
    assert {call.event for call in calls} == set(EVENTS)
    reserved = {"event", "message", "level", "timestamp", "trace_id", "span_id"}
    assert [call.where for call in calls if reserved.intersection(call.values)] == []


@pytest.mark.slow
def test_every_printed_line_has_a_documented_event() -> None:
    found: set[object] = {"result"}  # the default
    for path in (ROOT / "auditor").rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            name = getattr(call.func, "id", "")
            if name == "print_error":
                found.update(ast.literal_eval(each.value) for each in call.keywords if each.arg == "event")
            elif name == "format_json_line" and isinstance(call.args[0], ast.Constant):
                found.add(call.args[0].value)
    assert found == set(LINE_EVENTS)


def test_events_are_named_alike() -> None:
    names = [*EVENTS, *LINE_EVENTS]
    assert [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)] == []
    assert list(EVENTS) == sorted(EVENTS)
    assert not EVENTS.keys() & LINE_EVENTS.keys()
    assert len(set(EVENTS.values())) == len(EVENTS)


@pytest.mark.slow
def test_the_document_is_as_generated(events_document: Any) -> None:
    text = (ROOT / "docs" / "logs.md").read_text()
    assert events_document.generate(text) == text
    for event in (*EVENTS, *LINE_EVENTS):
        assert f"\n| `{event}` | " in text


def test_lines_in_json_have_a_stable_event_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LOG_STYLE, "format", "json")
    log_to_stderr("info", "json")
    log.warning("account_stopped", account="eu\x1b", reason="refused")
    print_error("wrote a file")
    print_note("a part")
    print_labelled("OK", "5 devices")
    print_exit("exit 1 (silent_account): because", 1)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert all(re.fullmatch(r"[0-9T:.-]+Z", line.pop("timestamp")) for line in lines)
    assert lines == [
        {
            "event": "account_stopped", "message": "account stopped", "account": "eu\\x1b", "reason": "refused",
            "level": "warning",
        },
        {"event": "result", "message": "wrote a file", "level": "info"},
        {"event": "note", "message": "a part", "level": "info"},
        {"event": "summary", "message": "5 devices", "label": "OK", "level": "info"},
        {"event": "exit", "message": "exit 1 (silent_account): because", "exit_code": 1, "level": "info"},
    ]  # fmt: skip


def test_people_read_the_sentence_of_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stderr("info")
    log.warning("account_stopped", account="eu")
    print_note("a part")
    first, second = capsys.readouterr().err.splitlines()
    assert "account stopped" in first
    assert "account_stopped" not in first
    assert second == "note: a part"
