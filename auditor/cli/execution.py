"""Run an audit for a command: progress, signals, summary, hooks, and how to resume."""

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from auditor.cli.console import print_exit, print_labelled, print_path

if TYPE_CHECKING:
    from auditor.cli.render_summary import SummaryLine
    from auditor.concurrency import StopToken
    from auditor.config.settings import Account
    from auditor.engine.progress import AuditResult, ProgressCallback
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


def run_with_progress(start: "Start") -> "AuditResult":
    """Run an audit with progress and signal handling, and print its summary."""
    result, seconds = _run_timed(start)
    _print_summary(result, seconds)
    return result


def run_audit_command(start: "Start", hooks: "HookConfig", *, use_uvloop: bool = True) -> int:
    """Run an audit and its hooks, print the summary and the run folder, and return the exit code.

    ``use_uvloop``: see ``run_until_signal``.
    """
    from auditor.cli.runtime import interrupt_on_signals

    with interrupt_on_signals():
        result, seconds = _run_timed(start, use_uvloop=use_uvloop)
        return _finish(result, seconds, hooks)


def _run_timed(start: "Start", *, use_uvloop: bool = True) -> "tuple[AuditResult, float]":
    from auditor.cli.progress import show_progress
    from auditor.cli.runtime import run_until_signal

    started = time.monotonic()
    with show_progress() as watch:
        result = run_until_signal(lambda stop: start(watch, stop), use_uvloop=use_uvloop)
    return result, time.monotonic() - started


def _print_summary(result: "AuditResult", seconds: float) -> None:
    from auditor.cli.render_summary import summarize_audit

    _print_lines(summarize_audit(result.manifest, result.folder, seconds))


def _print_lines(lines: "Iterable[SummaryLine]") -> None:
    for line in lines:
        print_labelled(line.label, line.text, style=line.style, styles=line.styles)


def _finish(result: "AuditResult", seconds: float, hooks: "HookConfig") -> int:
    from auditor.cli.render_summary import summarize_hooks
    from auditor.hooks.runner import run_hooks

    manifest = result.manifest
    try:
        _print_summary(result, seconds)
        results = run_hooks(result.folder, hooks, exit_code=result.exit_code)
        _print_lines(summarize_hooks(results))
        reason = manifest.exit_reason if results.exit_code else manifest.describe_success()
        manifest = replace(manifest, exit_code=results.exit_code, exit_reason=results.policy_reason or reason)
    finally:  # the run is sealed, even if the user interrupts its hooks
        print_path(result.folder)
    if (line := manifest.describe_exit()) is not None:
        print_exit(line, results.exit_code)
    return results.exit_code
