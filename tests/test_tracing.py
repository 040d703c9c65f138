"""Traces: nothing happens without a tracer, and each span is documented."""

import ast
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from auditor.tracing import Attributes, FinishedSpan, Span, current_tracer, flush_spans, span, trace_ids, use_tracer

ROOT = Path(__file__).parents[1]


class Recorder:
    """A tracer that keeps what it gets."""

    def __init__(self) -> None:
        self.lines: list[object] = []

    @contextmanager
    def span(self, name: str, attributes: Attributes) -> Iterator[Span]:
        self.lines.append(("begin", name, dict(attributes)))
        yield self
        self.lines.append(("end", name))

    def set(self, attributes: Attributes) -> None:
        self.lines.append(("set", dict(attributes)))

    def fail(self, kind: str) -> None:
        self.lines.append(("fail", kind))

    def record(self, finished: FinishedSpan) -> None:
        self.lines.append(finished)

    def flush(self) -> None:
        self.lines.append("flush")

    def ids(self) -> Mapping[str, str]:
        return {"trace_id": "1"}


def test_without_a_tracer_all_spans_are_one_object_that_does_nothing() -> None:
    with span("run", {"a": 1}) as first, span("seal") as second:
        first.set({"a": 2})
        second.fail("x")
    assert first is second
    assert trace_ids() == {}
    flush_spans()
    assert current_tracer() is None
    with pytest.raises(ValueError, match="passes"), span("run"):
        raise ValueError("passes")


def test_a_tracer_records_until_its_block_ends() -> None:
    recorder = Recorder()
    with use_tracer(recorder):
        with span("run", {"a": 1}) as run:
            run.set({"b": 2})
        assert trace_ids() == {"trace_id": "1"}
        flush_spans()
        assert current_tracer() is recorder
    with span("later"):
        pass
    assert recorder.lines == [("begin", "run", {"a": 1}), ("set", {"b": 2}), ("end", "run"), "flush"]
    assert current_tracer() is None


@pytest.mark.slow
def test_every_span_is_documented() -> None:
    found = set()
    for path in (ROOT / "auditor").rglob("*.py"):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            if getattr(call.func, "id", "") in {"span", "FinishedSpan"} and isinstance(call.args[0], ast.Constant):
                found.add(call.args[0].value)
    assert len(found) >= 10
    documented = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "tracing.md").read_text(), re.MULTILINE)
    assert found - set(documented) == set()
