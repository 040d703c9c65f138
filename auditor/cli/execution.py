"""Run an audit for a command: progress, signals, summary, hooks, and how to resume."""

import shlex
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from auditor.cli.console import print_error, print_path
from auditor.cli.output import print_warnings
from auditor.errors import FleetError, RunFolderError
from auditor.text.formatting import safe

if TYPE_CHECKING:
    from auditor.concurrency import StopToken
    from auditor.config.settings import Account
    from auditor.engine.progress import AuditResult, ProgressCallback
    from auditor.hooks.prepare import HookConfig
    from auditor.hooks.runner import HookResults
    from auditor.policy.evaluate import PolicySummary
    from auditor.query.freshness import AnswerAges

    Start = Callable[[ProgressCallback, StopToken], Awaitable[AuditResult]]

MAX_RULES = 20
"""Rules that are printed after a run; ``auditor policy`` prints all."""


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


def run_audit_command(start: "Start", hooks: "HookConfig") -> int:
    """Run an audit and its hooks, print the summary and the run folder, and return the exit code."""
    from auditor.cli.runtime import interrupt_on_signals

    with interrupt_on_signals():
        result, seconds = _run_timed(start)
        return _finish(result, seconds, hooks)


def _run_timed(start: "Start") -> "tuple[AuditResult, float]":
    from auditor.cli.progress import show_progress
    from auditor.cli.runtime import run_until_signal

    started = time.monotonic()
    with show_progress() as watch:
        result = run_until_signal(lambda stop: start(watch, stop))
    return result, time.monotonic() - started


def _print_summary(result: "AuditResult", seconds: float) -> None:
    from auditor.cli.render_run import summarize_audit

    for line in summarize_audit(result.manifest, seconds, _read_ages(result)):
        print_error(line)


def _read_ages(result: "AuditResult") -> "AnswerAges | None":
    """Return the ages of a run's results, if some are carried forward."""
    from auditor.query.run import Run

    try:
        if result.manifest.carried:
            with Run(result.folder) as run:
                return run.ages
    except RunFolderError:  # the audit itself succeeded
        pass
    return None


def _finish(result: "AuditResult", seconds: float, hooks: "HookConfig") -> int:
    from auditor.hooks.runner import run_hooks

    manifest = result.manifest
    try:
        _print_summary(result, seconds)
        results = run_hooks(result.folder, hooks, exit_code=result.exit_code)
        _print_hook_results(results)
        reason = manifest.exit_reason if results.exit_code else manifest.describe_success()
        manifest = replace(manifest, exit_code=results.exit_code, exit_reason=results.policy_reason or reason)
    finally:  # the run is sealed, even if the user interrupts its hooks
        if result.exit_code != FleetError.exit_code:  # an empty fleet cannot be resumed
            _print_remaining(result)
        print_path(result.folder)
    if (line := manifest.describe_exit()) is not None:
        print_error(safe(line))
    return results.exit_code


def _print_remaining(result: "AuditResult") -> None:
    """Print what is left to do, and how, if anything is."""
    manifest = result.manifest
    unlisted = any(discovery.state != "complete" for discovery in manifest.discovery)
    remaining = manifest.remaining_devices
    if not remaining and not unlisted and manifest.state != "aborted":
        return
    parts = [f"{remaining:,} devices remain"] if remaining or not unlisted else []
    parts += ["fleets are not completely listed"] if unlisted else []
    advice = f"resume with: auditor resume {safe(shlex.quote(str(result.folder)))}"
    selection = None if unlisted else manifest.selection
    if selection is not None and selection.max_calls is not None and selection.budget_exhausted:
        advice = "the next run queries them first"
    print_error(f"{' and '.join(parts)}; {advice}")


def _print_hook_results(results: "HookResults") -> None:
    """Print unmet rules, written files, and failed hooks."""
    if results.policy is not None and results.policy.problem is None:
        for line in _describe_policy(results.policy):
            print_error(safe(line))
        print_warnings(results.policy.warnings)
    for path in results.written:
        print_error(f"wrote {safe(path)}")
    for problem in results.problems:
        print_error(f"note: {safe(problem)}")
    if results.problems:
        print_error("note: the run itself is fine")


def _describe_policy(policy: "PolicySummary") -> Iterator[str]:
    """Yield a line for each unmet rule, violated ones first, then the counts."""
    undecided = [each for each in policy.results if each.verdict not in {"violated", "compliant"}]
    unmet = [*policy.violated, *undecided]
    for each in unmet[:MAX_RULES]:
        verdict = "violated" if each.verdict == "violated" else "undecided"
        yield f"policy: {each.rule.name} ({each.rule.severity}): {verdict}, {each.message}"
    if len(unmet) > MAX_RULES:
        yield f"policy: and {len(unmet) - MAX_RULES:,} more rules"
    violated, rules = len(policy.violated), len(policy.results)
    compliant = rules - len(unmet)
    yield f"policy: {rules:,} rules, {violated:,} violated, {len(undecided):,} undecided, {compliant:,} compliant"
