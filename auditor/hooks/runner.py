"""Run the hooks after a run: policy, metrics, their push, report, Excel file, destinations, messages, in this order.

The run is sealed before the first hook starts, and no hook changes it. A hook that fails is reported, and the next one
starts. Only the policy affects the exit code: a run that ended with 0 ends with 4 if a rule of severity ``error`` is
violated, or if the policy could not be evaluated, because then no result allows the run to pass. ``run.json`` has this
exit code and its reason; apart from them no hook changes the run.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from auditor.concurrency import run_to_end
from auditor.config.settings import PublishSettings
from auditor.errors import AuditInterruptedError, AuditorError, PolicyError, SettingsError
from auditor.hooks.prepare import HookConfig
from auditor.log import log
from auditor.runs.folder import INVENTORY_XLSX, REPORT_HTML, StoredRun, clear_pending_hooks, defer_hooks
from auditor.runs.locking import RunLock
from auditor.runs.manifest import SUCCESSFUL_STATES, Manifest, read_manifest, write_manifest
from auditor.runs.selection_info import ExitReason
from auditor.text.formatting import escape_undecodable
from auditor.tracing import span

if TYPE_CHECKING:
    from auditor.policy.evaluate import PolicySummary
    from auditor.policy.model import Policy
    from auditor.publish.publisher import Publication


T = TypeVar("T")


HookName = Literal["policy", "metrics", "pushgateway", "report", "excel", "publish", "notify"]

_FAILURES: dict[HookName, str] = {
    "policy": "the policy could not be evaluated",
    "metrics": "the metrics could not be written",
    "pushgateway": "the metrics could not be pushed",
    "report": "the report could not be written",
    "excel": "the Excel file could not be written",
    "publish": "the run could not be published",
    "notify": "a message was not delivered",
}

MAX_RULE_NAMES = 3
"""Violated rules that the reason of an exit code names."""


@dataclass(frozen=True, slots=True)
class HookOutcome:
    """Outcome of one hook: the file that it wrote, what it published or which place it notified, or its failure."""

    name: HookName
    path: Path | None = None
    error: str | None = None
    published: str | None = None
    notified: str | None = None

    @property
    def problem(self) -> str | None:
        """The failure as a sentence; None if the hook succeeded."""
        return None if self.error is None else f"{_FAILURES[self.name]}: {self.error}"


@dataclass(frozen=True, slots=True)
class HookResults:
    """Outcomes of all hooks that ran.

    Attributes:
        exit_code: the audit's; or 4 if that was 0, and the policy is violated or could not be evaluated.
        outcomes: one for each hook that ran. A place that receives messages only about problems has none if there was
            none.
        policy: the result of the policy; None if none is configured.
        policy_reason: why the policy changed the exit code; None if it did not.
    """

    exit_code: int
    outcomes: tuple[HookOutcome, ...] = ()
    policy: "PolicySummary | None" = None
    policy_reason: ExitReason | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """Failures, a sentence each."""
        return tuple(each.problem for each in self.outcomes if each.problem is not None)

    @property
    def published(self) -> tuple[str, ...]:
        """What was published to each destination, a sentence each."""
        return tuple(each.published for each in self.outcomes if each.published is not None)

    @property
    def notified(self) -> tuple[str, ...]:
        """The names of the places that received a message."""
        return tuple(each.notified for each in self.outcomes if each.notified is not None)

    @property
    def written(self) -> tuple[Path, ...]:
        """The files that were written."""
        return tuple(each.path for each in self.outcomes if each.path is not None)


def run_hooks(run: str | Path, config: HookConfig, *, exit_code: int = 0) -> HookResults:
    """Run the configured hooks, in the order of this module's docstring. An event loop of this thread waits meanwhile.

    All hooks use one point in time, so that exit code, metrics and report agree. Hooks that were known to fail before
    they ran (``HookConfig.notes``) are deferred: a resume with other settings runs them. A policy that could not be
    evaluated defers them, too, so that a resume evaluates corrected rules; it sends no message again.

    Args:
        run: the run folder.
        config: from ``prepare_hooks``.
        exit_code: the audit's exit code.

    Returns:
        The outcomes. Errors of hooks are part of them and are not raised.

    Raises:
        KeyboardInterrupt: the user interrupted a hook; the hooks after it do not run.
    """
    folder = Path(run)
    try:
        return _run_all(folder, config, exit_code, datetime.now(UTC))
    except KeyboardInterrupt:
        message = "interrupted before its policy, report, metrics and messages were done; auditor resume repeats them"
        _record_exit(folder, lambda _: (AuditInterruptedError.exit_code, ExitReason("interrupted", message)))
        raise


def _run_all(folder: Path, config: HookConfig, exit_code: int, now: datetime) -> HookResults:
    outcomes: list[HookOutcome] = []
    policy: PolicySummary | None = None
    reason: ExitReason | None = None
    if config.policy is not None or config.policy_error is not None:
        policy, outcome = _evaluate(folder, config, now)
        outcomes.append(outcome)
        if policy.failed and exit_code == 0:
            exit_code, reason = PolicyError.exit_code, _policy_reason(policy)
    _record_policy(folder, reason)
    outcomes += _write_metrics(folder, config, policy)
    for name, path, write in _file_hooks(folder, config, now):
        _, outcome = _attempt(name, partial(write, folder, path))
        outcomes.append(replace(outcome, path=path if outcome.error is None else None))
    outcomes += [each for table in config.publish if (each := _publish(folder, table)) is not None]
    results = HookResults(exit_code, tuple(outcomes), policy, reason)
    sent = _notify(folder, config, results)
    (defer_hooks if config.notes or (policy and policy.problem) else clear_pending_hooks)(folder)
    return replace(results, outcomes=(*outcomes, *sent))


def _policy_reason(policy: "PolicySummary") -> ExitReason:
    """Return why the policy changed the exit code."""
    if policy.problem is not None:
        return ExitReason("policy_not_evaluated", f"{_FAILURES['policy']}: {policy.problem}")
    names = [each.rule.name for each in policy.violated if each.rule.severity == "error"]
    more = f" and {len(names) - MAX_RULE_NAMES:,} more" if len(names) > MAX_RULE_NAMES else ""
    return ExitReason(PolicyError.reason_code, f"the policy is violated: {', '.join(names[:MAX_RULE_NAMES])}{more}")


def _record_policy(folder: Path, reason: ExitReason | None) -> None:
    """Record in ``run.json`` why the policy changed the exit code of an audit that ended with 0.

    Without a reason, record the success of the audit again if hooks that ran before had changed it.
    """

    def conclude(manifest: Manifest) -> tuple[int, ExitReason] | None:
        if manifest.exit_code and manifest.state not in SUCCESSFUL_STATES:
            return None
        return (0, manifest.describe_success()) if reason is None else (PolicyError.exit_code, reason)

    _record_exit(folder, conclude)


def _record_exit(folder: Path, conclude: Callable[[Manifest], tuple[int, ExitReason] | None]) -> None:
    """Write to ``run.json`` which exit code and reason follow from it, unless there are none, or they are unchanged.

    Nothing is written if another process resumes the run meanwhile.
    """
    with contextlib.suppress(AuditorError), RunLock(folder):
        manifest = read_manifest(folder)
        found = None if manifest.exit_code is None else conclude(manifest)
        if found is not None:
            code, reason = found[0], ExitReason(found[1].code, escape_undecodable(found[1].message))
            if (manifest.exit_code, manifest.exit_reason) != (code, reason):
                write_manifest(folder, replace(manifest, exit_code=code, exit_reason=reason))


def _attempt(name: HookName, hook: Callable[[], T]) -> tuple[T | None, HookOutcome]:
    """Return the result of a hook and its outcome; the result is None if the hook fails."""
    with span("hook", {"auditor.hook.name": name}) as running:
        try:
            return hook(), HookOutcome(name)
        except AuditorError as error:
            reason, kind = str(error), type(error).__name__
        except Exception as error:  # noqa: BLE001  an audit of hours is not lost for any error after it
            from auditor.storage.database import is_interruption

            if is_interruption(error):
                raise KeyboardInterrupt from None
            kind = type(error).__name__
            reason = f"{kind}: {error}"
        running.fail(kind)
        log.info("hook_failed", hook=name, reason=reason)
        return None, HookOutcome(name, error=reason)


def _evaluate(folder: Path, config: HookConfig, now: datetime) -> "tuple[PolicySummary, HookOutcome]":
    from auditor.policy.evaluate import PolicySummary, summarize_policy

    def evaluate() -> PolicySummary:
        if config.policy is None:
            raise SettingsError(config.policy_error or "")
        return summarize_policy(folder, config.policy, now=now)

    summary, outcome = _attempt("policy", evaluate)
    return summary or PolicySummary(failed=True, problem=outcome.error), outcome


def _file_hooks(
    folder: Path, config: HookConfig, now: datetime
) -> Iterator[tuple[HookName, Path, Callable[[Path, Path], None]]]:
    """Yield the configured hooks that write a file: name, path, and the function that writes a run to a path."""
    report = config.report
    if report.html:
        write = partial(_write_report, config.policy, now, report.group_by)
        yield "report", _output_path(folder, report.html, REPORT_HTML), write
    if report.excel:
        yield "excel", _output_path(folder, report.excel, INVENTORY_XLSX), _write_excel


def _publish(folder: Path, table: PublishSettings) -> HookOutcome | None:
    """Publish a run to a destination, and earlier runs that it does not have; None: the run did not verify."""
    from auditor.publish.publisher import is_candidate, publish_run

    def publish() -> "Publication | None":
        return publish_run(folder, table) if is_candidate(StoredRun(read_manifest(folder), folder)) else None

    publication, outcome = _attempt("publish", publish)
    if publication is None:
        return outcome if outcome.error is not None else None
    if publication.error is not None:
        log.info("hook_failed", hook="publish", reason=publication.sentence)
        return replace(outcome, error=publication.sentence)
    return replace(outcome, published=publication.sentence)


def _output_path(folder: Path, setting: str | bool, default_name: str) -> Path:  # noqa: FBT001  a setting's value
    return folder / default_name if setting is True else Path(str(setting))


def _write_metrics(folder: Path, config: HookConfig, policy: "PolicySummary | None") -> Iterator[HookOutcome]:
    """Write and push the metrics, if configured; yield an outcome for the file and one for the Pushgateway."""
    path, gateway = config.report.metrics, config.pushgateway
    if path is None and gateway is None and config.pushgateway_error is None:
        return
    from auditor.hooks.prometheus import render_metrics, write_metrics_file

    render = partial(render_metrics, folder, policy, config.report.group_by, options=config.metrics)
    text, outcome = _attempt("metrics", render)
    if text is None:
        yield outcome
        return
    if path is not None:
        _, outcome = _attempt("metrics", partial(write_metrics_file, text, Path(path)))
        yield replace(outcome, path=Path(path) if outcome.error is None else None)
    if config.pushgateway_error is not None:
        yield HookOutcome("pushgateway", error=config.pushgateway_error)
    if gateway is not None:
        yield _attempt("pushgateway", partial(run_to_end, partial(gateway.push, text)))[1]


def _write_report(policy: "Policy | None", now: datetime, group_by: tuple[str, ...], folder: Path, path: Path) -> None:
    """Write the page with absolute paths in its commands: its readers do not know the audit's working directory."""
    from auditor.report.render import write_report

    absolute = policy and replace(policy, source=str(Path(policy.source).absolute()))
    write_report(folder.absolute(), path, policy=absolute, now=now, group_by=group_by)


def _write_excel(folder: Path, path: Path) -> None:
    from auditor.query.run import Run
    from auditor.runs.folder import refuse_run_file
    from auditor.storage.files import atomic_replace

    refuse_run_file(path)
    with Run(folder) as opened, atomic_replace(path) as new:
        opened.write_inventory(new, "xlsx")


def _notify(folder: Path, config: HookConfig, results: HookResults) -> tuple[HookOutcome, ...]:
    """Send the messages about a run; return an outcome for each place that received one, or should have."""
    if not config.notify:
        return ()
    from auditor.hooks.notifications import deliver
    from auditor.hooks.payload import build_payload

    def send() -> dict[str, str | None]:
        payload = build_payload(folder, exit_code=results.exit_code, policy=results.policy, problems=results.problems)
        with span("notify") as sending:
            problems = deliver(folder, config.notify, payload)
            failed = sum(problem is not None for problem in problems.values())
            sending.set({"auditor.messages.sent": len(problems) - failed, "auditor.messages.failed": failed})
            if failed:
                sending.fail("not_delivered")
            return problems

    problems, outcome = _attempt("notify", send)
    if problems is None:
        return (outcome,)
    for name, problem in problems.items():
        if problem is not None:
            log.info("hook_failed", hook="notify", name=name, reason=problem)
    return tuple(
        replace(outcome, notified=name) if problem is None else replace(outcome, error=f"{name}: {problem}")
        for name, problem in problems.items()
    )
