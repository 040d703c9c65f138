"""Run an audit for a command: progress, signals, summary, hooks, and how to resume."""

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from auditor.cli.console import RECENT_LINES, print_exit, print_labelled, print_note, print_path
from auditor.errors import AuditInterruptedError, AuditorError, RunLockedError, SettingsError, UsageError
from auditor.text.extras import describe_extra
from auditor.text.formatting import safe
from auditor.tracing import Attributes, Span, flush_spans, span, use_tracer

if TYPE_CHECKING:
    from auditor.cli.render_summary import SummaryLine
    from auditor.concurrency import StopToken
    from auditor.config.settings import Account, SecretSource
    from auditor.engine.progress import AuditResult, Progress, ProgressCallback
    from auditor.hooks.ping import DeadMansSwitch
    from auditor.hooks.prepare import HookConfig

    Start = Callable[[ProgressCallback, StopToken], Awaitable[AuditResult]]


def describe_plain_http(accounts: "Iterable[Account]") -> Iterator[str]:
    """Yield a sentence for each account whose requests are not encrypted on their way through a network."""
    from ipaddress import ip_address
    from urllib.parse import urlsplit

    for account in accounts:
        parts = urlsplit(account.endpoint)
        host = parts.hostname or ""
        try:
            loopback = ip_address(host).is_loopback
        except ValueError:
            loopback = host == "localhost" or host.endswith(".localhost")
        if parts.scheme == "http" and not loopback:
            advice = "others on the network can read and change it; use https://"
            yield f'account "{account.name}": plain http to {host}: {advice}'


TRACED_COMMANDS = frozenset({"fleet", "publish", "resume", "run", "shard"})
"""Commands whose traces are sent: the others end soon, or only read."""

TRACES_PROTOCOL = "http/protobuf"
"""The value of OTEL_EXPORTER_OTLP_PROTOCOL that is supported."""


@contextmanager
def trace_command(command: str) -> Iterator[Span]:
    """Yield the span of a command. It is sent if the environment names a collector of traces."""
    with ExitStack() as stack:
        if command in TRACED_COMMANDS and _are_traces_requested():
            _open_tracer(stack)
        # Names and attributes are those of OpenTelemetry's conventions for command-line programs.
        attributes: Attributes = {"process.executable.name": "auditor", "process.pid": os.getpid()}
        yield stack.enter_context(span(f"auditor {command}", attributes))


def _are_traces_requested() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if exporter := os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower():
        return "otlp" in (each.strip() for each in exporter.split(","))
    return bool(_signal_variable("ENDPOINT"))


def _signal_variable(name: str) -> str:
    """Return a variable of the collector: that of traces, or that of all signals."""
    specific = os.environ.get(f"OTEL_EXPORTER_OTLP_TRACES_{name}", "")
    return (specific or os.environ.get(f"OTEL_EXPORTER_OTLP_{name}", "")).strip()


def _open_tracer(stack: ExitStack) -> None:
    """Send spans until the stack is closed; if that is not possible, print why."""
    protocol = _signal_variable("PROTOCOL") or TRACES_PROTOCOL
    if protocol != TRACES_PROTOCOL:
        print_note(f"no traces are sent: OTEL_EXPORTER_OTLP_PROTOCOL must be {TRACES_PROTOCOL}")
        return
    try:
        from auditor.otlp import open_tracer

        tracer = stack.enter_context(open_tracer())
    except ImportError:
        print_note(f"no traces are sent: {describe_extra('otel')}")
        return
    except SettingsError as error:
        print_note(f"no traces are sent: {error}")
        return
    except Exception as error:  # noqa: BLE001  a wrong variable of a library costs no audit
        print_note(f"no traces are sent: the OTEL_ variables cannot be used ({type(error).__name__})")
        return
    stack.enter_context(use_tracer(tracer))


def run_with_progress(start: "Start") -> "AuditResult":
    """Run an audit with progress and signal handling, and print its summary."""
    result, seconds = _run_timed(start)
    _print_summary(result, seconds)
    return result


class SwitchReporter:
    """Reports the end of a command to its dead man's switch, once, if it has one."""

    def __init__(self) -> None:
        self._switch: DeadMansSwitch | None = None

    def start(self, source: "SecretSource | None", where: str) -> None:
        """Report the start, if the settings, which errors call ``where``, have a switch, and none was started.

        Raises:
            SettingsError: its address cannot be read, or is none.
        """
        if source is None or self._switch is not None:
            return
        from auditor.hooks.ping import DeadMansSwitch

        self._switch = DeadMansSwitch.open(source, where)
        self._switch.start()

    def finish(self, exit_code: int, reason: str) -> None:
        """Report an exit code with its reason."""
        switch, self._switch = self._switch, None
        if switch is not None:
            _print_switch_problem(switch.finish(exit_code, reason, list(RECENT_LINES)))

    def fail(self, error: BaseException) -> None:
        """Report an error that ends the command."""
        switch, self._switch = self._switch, None
        if switch is None:
            return
        from auditor.storage.database import is_interruption

        described = safe(str(error)) if isinstance(error, AuditorError) else ""
        if isinstance(error, KeyboardInterrupt) or is_interruption(error):
            described = "interrupted by a signal"
        _print_switch_problem(switch.fail(described or f"unexpected {type(error).__name__}", list(RECENT_LINES)))


def _print_switch_problem(problem: str | None) -> None:
    if problem is not None:
        print_note(f"the dead man's switch was not reached: {problem}")


@contextmanager
def noting_settings_errors() -> "Iterator[None]":
    """Print a SettingsError of the block as a note: a run is resumed without what it is about."""
    try:
        yield
    except SettingsError as error:
        print_note(safe(str(error)))


class StartRecorder:
    """Remembers the error that ends its block before a run exists, for ``auditor status``.

    A wrong flag is not remembered, nor that another process is writing the run: the settings need no correction then.

    Attributes:
        enabled: whether such an error is remembered: not in a trial, nor after the start.
        directory: directory of the runs; None: unknown so far.
    """

    def __init__(self, settings_file: Path) -> None:
        self.enabled = True
        self.directory: Path | None = None
        self._settings_file = settings_file

    def watch(self, on_progress: "ProgressCallback") -> "ProgressCallback":
        """Wrap a callback to notice that there is a run."""

        def watch_started(progress: "Progress") -> None:
            if self.enabled:
                from auditor.audit.failed_starts import forget_failed_start

                self.enabled = False
                forget_failed_start(self._settings_file)
            on_progress(progress)

        return watch_started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        is_other = isinstance(error, AuditInterruptedError | RunLockedError) or type(error) is UsageError
        if self.enabled and isinstance(error, AuditorError) and not is_other:
            from auditor.audit.failed_starts import record_failed_start

            record_failed_start(self._settings_file, self.directory, error)


@contextmanager
def reporting_to_switch() -> "Iterator[SwitchReporter]":
    """Yield what reports the end of a command to its dead man's switch, whatever ends the block."""
    reporter = SwitchReporter()
    try:
        yield reporter
        reporter.finish(0, "nothing to do")
    except BaseException as error:
        reporter.fail(error)
        raise


def run_audit_command(start: "Start", hooks: "HookConfig", switch: SwitchReporter, *, use_uvloop: bool = True) -> int:
    """Run an audit and its hooks, print the summary and the run folder, and return the exit code.

    ``use_uvloop``: see ``run_until_signal``.
    """
    from auditor.cli.runtime import interrupt_on_signals

    with interrupt_on_signals():
        result, seconds = _run_timed(start, hooks, use_uvloop=use_uvloop)
        return _finish(result, seconds, hooks, switch)


def _run_timed(
    start: "Start", hooks: "HookConfig | None" = None, *, use_uvloop: bool = True
) -> "tuple[AuditResult, float]":
    from auditor.cli.progress import show_progress
    from auditor.cli.runtime import run_until_signal

    started = time.monotonic()
    with _live_metrics(hooks) as observe, show_progress() as show:

        def watch(progress: "Progress") -> None:
            if observe is not None:
                observe(progress)
            show(progress)

        result = run_until_signal(lambda stop: start(watch, stop), use_uvloop=use_uvloop)
    return result, time.monotonic() - started


def _live_metrics(hooks: "HookConfig | None") -> "AbstractContextManager[ProgressCallback | None]":
    """Return what writes metrics while a run is under way; it yields None if none are configured."""
    if hooks is None or (hooks.report.metrics is None and hooks.pushgateway is None):
        return nullcontext()
    from auditor.hooks.live_metrics import live_metrics

    return live_metrics(hooks)


def _print_summary(result: "AuditResult", seconds: float) -> None:
    from auditor.cli.render_summary import summarize_audit

    _print_lines(summarize_audit(result.manifest, result.folder, seconds))


def _print_lines(lines: "Iterable[SummaryLine]") -> None:
    for line in lines:
        print_labelled(line.label, line.text, style=line.style, styles=line.styles)


def _finish(result: "AuditResult", seconds: float, hooks: "HookConfig", switch: SwitchReporter) -> int:
    from auditor.cli.render_summary import summarize_hooks
    from auditor.hooks.runner import run_hooks

    manifest = result.manifest
    try:
        _print_summary(result, seconds)
        if result.exit_code == AuditInterruptedError.exit_code:  # what stops the process may soon kill it
            switch.finish(result.exit_code, safe(manifest.describe_exit() or ""))
        results = run_hooks(result.folder, hooks, exit_code=result.exit_code)
        _print_lines(summarize_hooks(results))
        reason = manifest.exit_reason if results.exit_code else manifest.describe_success()
        manifest = replace(manifest, exit_code=results.exit_code, exit_reason=results.policy_reason or reason)
    finally:  # the run is sealed, even if the user interrupts its hooks
        print_path(result.folder)
    flush_spans()  # a warning about the collector comes before the last line
    line = manifest.describe_exit()
    switch.finish(results.exit_code, safe(line or f"exit {results.exit_code}"))
    if line is not None:
        print_exit(line, results.exit_code)
    return results.exit_code
