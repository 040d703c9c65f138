"""Build what is sent about a run: an object for programs, and a message for people."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import orjson

from auditor.analysis.drift import DriftCounts, diff_runs
from auditor.analysis.sample_drift import ShareCounts
from auditor.errors import AuditorError
from auditor.hooks.message import MAX_LINE_LENGTH, RunMessage
from auditor.models import RunWarning
from auditor.policy.evaluate import PolicySummary
from auditor.query.describe import describe_next_steps, describe_warning, warning_objects
from auditor.query.snapshot import RunSnapshot, snapshot_database
from auditor.query.warnings import is_tolerated, release_warnings, state_label
from auditor.runs.folder import DEVICES, FLEET, MODULES, RunCatalog, StoredRun
from auditor.runs.inventory import SourceCounts, count_failures
from auditor.runs.manifest import MANIFEST, SCHEMA_VERSION, FailureInfo, Manifest, read_manifest
from auditor.runs.selection_info import ExitReason
from auditor.runs.views import define_sealed_views
from auditor.storage.tables import translate_read_errors
from auditor.text.shell import format_command

MAX_RULES, MAX_SENTENCES, MAX_TEXT_LENGTH = 50, 20, 5_000
"""Rules; warnings, and problems; and characters of any text in a payload. Chats reject large messages."""

MAX_NAMED = 3
"""Failures, rules and warnings that the message names."""

_CONFIGURED = frozenset({"sample", "modules"})
"""Warnings about what the settings request, which are no problems."""

_CHANGES = ("upgraded", "downgraded", "changed", "appeared", "vanished", "joined", "left")
"""Numbers of changes that the message names."""

_STATED = frozenset({"partial", "running", "aborted", "incomplete", "sample"})
"""Warnings that the message's first sentence states."""


@dataclass(frozen=True, slots=True)
class DriftSummary:
    """Changes since the run ``since``, an earlier run of the same name, with warnings about the comparison.

    ``shares`` counts changes of versions' shares if one of the runs is a sample, and is None otherwise.
    """

    since: str
    counts: DriftCounts
    warnings: tuple[RunWarning, ...]
    shares: ShareCounts | None = None


@dataclass(frozen=True, slots=True)
class Payload:
    """What is sent about a run.

    Attributes:
        message_id: id of the message: that of a resume that repeats it is the same.
        timestamp: when the run ended.
        data: the run for programs, valid JSON.
        message: the run for people.
        has_problems: whether the run has an exit code, a violated rule, a warning, or a failed hook.
        has_changes: whether something changed since the previous run, or there is none to compare with.
    """

    message_id: str
    timestamp: str
    data: dict[str, Any]
    message: RunMessage
    has_problems: bool
    has_changes: bool

    def render_event(self, text: str) -> bytes:
        """Return the body for a webhook, with a text for people."""
        return render_event("run.finished", self.message_id, self.timestamp, text, self.data)


def render_event(
    type_: Literal["run.finished", "test"], message_id: str, timestamp: str, text: str, data: dict[str, Any] | None
) -> bytes:
    """Return an event for a webhook as JSON, whose text is escaped for chats."""
    event = {"schema_version": SCHEMA_VERSION, "type": type_, "id": message_id, "timestamp": timestamp}
    return orjson.dumps(event | {"text": escape_chat_markup(text), "data": data})


def build_payload(
    folder: Path, *, exit_code: int = 0, policy: PolicySummary | None = None, problems: Sequence[str] = ()
) -> Payload:
    """Build the payload of a run; if its rows cannot be read, from its manifest.

    Args:
        folder: the run folder.
        exit_code: the exit code of the audit and its policy.
        policy: the result of the policy, if one is configured.
        problems: failures of other hooks, a sentence each.

    Raises:
        RunFolderError: the folder is no run.
    """
    run, failures = _read_run(folder)
    last, previous = _find_earlier(run)
    drift = None if previous is None else _read_drift(run, previous)
    of_run = (*run.warnings, *release_warnings(folder, run.manifest))
    warnings = list(dict.fromkeys((*of_run, *(policy.warnings if policy is not None else ()))))
    manifest = run.manifest
    content: dict[str, Any] = {
        "name": manifest.name,
        "run": folder.name,
        "state": manifest.state,
        "exit_code": exit_code,
        "exit_reason": None if manifest.exit_reason is None else asdict(manifest.exit_reason),
        "started_at": manifest.started_at,
        "finished_at": manifest.finished_at,
        "error": manifest.error,
        "devices": _devices_by_state(run),
        "carried": run.sources.carried,
        "oldest_answer_at": run.sources.oldest_answer_at,
        "requests": asdict(manifest.requests),
        "rate": {"target": manifest.rate.target, "achieved": manifest.rate.achieved},
        "failures": [{"code": failure.code, "devices": failure.devices} for failure in failures],
        "policy": None if policy is None else _policy_object(policy),
        "drift": None if drift is None else asdict(drift) | {"warnings": warning_objects(drift.warnings)},
        "warnings": warning_objects(warnings[:MAX_SENTENCES]),
        "problems": list(problems)[:MAX_SENTENCES],
    }
    has_problems = bool(exit_code or problems or any(warning.kind not in _CONFIGURED for warning in warnings))
    has_problems |= policy is not None and bool(policy.violated or policy.problem)
    message = _describe_run(run, content, warnings[:MAX_SENTENCES], policy, drift)
    if not exit_code:
        message = replace(message, outcome="warning" if has_problems else "success")
        message = message if has_problems else replace(message, action="", commands=())
    has_changes = drift is None or _has_changed(drift) or last is None or _ended_otherwise(last, manifest)
    timestamp = manifest.finished_at or manifest.started_at
    return Payload(_message_id(run, timestamp), timestamp, _clean_table(content), message, has_problems, has_changes)


def _message_id(run: RunSnapshot, timestamp: str) -> str:
    """Return the id of the message about the end of a run, or of its last session."""
    text = f"{run.folder.resolve().name}\n{run.manifest.name}\n{run.manifest.started_at}\n{timestamp}"
    return f"msg_{hashlib.sha256(text.encode(errors='backslashreplace')).hexdigest()[:32]}"


def escape_chat_markup(text: str) -> str:
    """Escape ``&``, ``<`` and ``>`` as Slack requires, so that nothing in the text is Slack's markup.

    A zero-width space after ``@`` prevents mentions in Mattermost too, as do the empty quotes that a command has there.
    A chat may still turn addresses into links.
    """
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub("@(?!''|\u200b)", "@\u200b", escaped)


def _read_run(folder: Path) -> tuple[RunSnapshot, tuple[FailureInfo, ...]]:
    """Return the run, counted, and its failures by code."""
    try:
        with snapshot_database("payload", folder) as (run, database, _), translate_read_errors(folder):
            define_sealed_views(database, run.devices.parent)
            return run, count_failures(database)
    except (AuditorError, OSError) as error:  # exactly what the payload must report
        manifest = read_manifest(folder)
        warnings = (
            RunWarning("unreadable", str(folder), str(error).removeprefix(f"{folder}: ")),
            RunWarning("unreadable", str(folder), f"figures are those of {MANIFEST}, not counted from the files"),
        )
        snapshot = RunSnapshot(
            folder=folder,
            manifest=manifest,
            counts=manifest.devices,
            fleet=folder / FLEET,
            devices=folder / DEVICES,
            modules=folder / MODULES,
            tampered=False,
            warnings=warnings,
            sources=SourceCounts(manifest.carried, manifest.unsampled, manifest.oldest_answer_at),
        )
        return snapshot, manifest.failures


def _devices_by_state(run: RunSnapshot) -> dict[str, int]:
    """Return devices by state; devices that were not sampled are not pending."""
    counts, unsampled = run.counts, run.sources.unsampled
    devices = asdict(replace(counts, pending=counts.pending - unsampled))
    return devices | ({"unsampled": unsampled} if unsampled else {})


def _find_earlier(run: RunSnapshot) -> tuple[StoredRun | None, StoredRun | None]:
    """Return the last run of the same name before a run, and the one to compare with; None: none can be read."""
    try:
        catalog = RunCatalog(run.folder.resolve().parent)
        return next(catalog.earlier(run.manifest, run.folder), None), catalog.previous(run.manifest, run.folder)
    except (AuditorError, OSError):
        return None, None


def _read_drift(run: RunSnapshot, previous: StoredRun) -> DriftSummary | None:
    """Return the changes since a previous run; None if the two cannot be compared."""
    try:
        with diff_runs(previous.folder, run.folder) as drift:
            shares = None if drift.shares is None else drift.shares.counts
            return DriftSummary(previous.folder.name, drift.counts, tuple(drift.warnings[:MAX_SENTENCES]), shares)
    except (AuditorError, OSError):  # the payload is about this run, and matters most when the disk is full
        return None


def _has_changed(drift: DriftSummary) -> bool:
    """Return whether devices changed, or shares of versions if one of the runs is a sample."""
    if drift.shares is not None:
        return bool(drift.shares.grew or drift.shares.shrank)
    return any(getattr(drift.counts, name) for name in _CHANGES)


def _ended_otherwise(previous: StoredRun, manifest: Manifest) -> bool:
    """Return whether a run has another exit reason than the previous one. That of a policy names the rules."""
    before, now = previous.manifest.exit_reason, manifest.exit_reason
    if before is None or now is None or before.code != now.code:
        return before != now
    return now.code == "policy_violated" and before.message != now.message


def _policy_object(policy: PolicySummary) -> dict[str, object]:
    """Return the results of the policy, violated rules first; ``omitted`` counts those that do not fit."""
    ordered = (*policy.violated, *(each for each in policy.results if each.verdict != "violated"))
    rules = [
        {
            "rule": each.rule.name,
            "severity": each.rule.severity,
            "verdict": each.verdict,
            "unit": each.unit,
            "compliant": each.compliant,
            "violated": each.violated,
            "unparseable": each.unparseable,
            "not_seen": each.not_seen,
            "exempt": each.exempt,
            "unsampled": each.unsampled,
            "share": each.share,
            "low": each.low,
            "high": each.high,
            "message": each.message,
        }
        for each in ordered[:MAX_RULES]
    ]
    omitted = len(ordered) - len(rules)
    return {"failed": policy.failed, "problem": policy.problem, "rules": rules, "omitted": omitted}


def _describe_run(
    run: RunSnapshot,
    content: Mapping[str, Any],
    warnings: Sequence[RunWarning],
    policy: PolicySummary | None,
    drift: DriftSummary | None,
) -> RunMessage:
    manifest, code = run.manifest, content["exit_code"]
    reason = manifest.exit_reason if code else None
    sentences = [f"Stopped: {manifest.error}."] if manifest.error is not None else []
    if reason is not None and reason.message not in (manifest.error or ""):
        sentences.insert(0, f"Exit code {code}, {reason.code}: {reason.message}.")
    if content["failures"]:
        by_code = (f"{each['devices']:,} with {each['code']}" for each in content["failures"])
        sentences.append(f"Failed: {_join_first(by_code)}.")
    notes = [describe_warning(each) for each in warnings if each.kind not in _STATED] + content["problems"]
    ended = f"FAILED, exit code {code}" if code else "OK"
    action, commands = _describe_action(manifest, reason, run.folder.resolve())
    return RunMessage(
        outcome="failure",
        title=f"{ended}: {manifest.name}",
        name=manifest.name,
        run=run.folder.name,
        verdict=_describe_state(run),
        reason=" ".join(sentences),
        changes="" if drift is None else _drift_sentence(drift),
        policy="" if policy is None else _policy_sentence(policy),
        action=action,
        commands=commands,
        notes=f"Note: {_join_first(notes, '; ')}." if notes else "",
    )


def _describe_action(manifest: Manifest, reason: ExitReason | None, folder: Path) -> tuple[str, tuple[str, ...]]:
    """Return what to do after an exit with this reason, and its commands, or the one that prints long ones."""
    status = (format_command("auditor status", folder),)
    if reason is None:
        return "See how it ended", status
    sentence, commands = describe_next_steps(manifest, reason.code, folder)
    is_short = len(f"{sentence}: {'; '.join(commands)}") <= MAX_LINE_LENGTH
    return f"{sentence[:1].upper()}{sentence[1:]}", commands if is_short else status


def _describe_state(run: RunSnapshot) -> str:
    """Return the state of a run, and its devices by state, in a sentence or two."""
    counts, unsampled, fleet = run.counts, run.sources.unsampled, run.counts.fleet
    scope = f"{fleet - unsampled:,} devices sampled from {fleet:,}" if unsampled else f"{fleet:,} devices"
    pending = counts.pending - unsampled
    figures = f"{counts.answered:,} of {scope} answered, {counts.failed:,} failed, {pending:,} pending"
    state = state_label(run.manifest.state, counts, unsampled, tolerated=is_tolerated(run.manifest))
    state = f"a {state}, and its shares are estimates" if unsampled and "sample" in state else state
    sentence = f"{run.manifest.name} is {state}: {figures}."
    if not run.sources.carried:
        return sentence
    oldest = f", the oldest from {run.sources.oldest_answer_at}" if run.sources.oldest_answer_at else ""
    return f"{sentence} Carried: {run.sources.carried:,} of these answers{oldest}."


def _policy_sentence(policy: PolicySummary) -> str:
    if policy.problem is not None:
        return f"Policy: could not be evaluated: {policy.problem}."
    rules = len(policy.results)
    if not policy.violated:
        return f"Policy: none of {rules:,} rules is violated."
    violations = _join_first(
        f"{each.rule.name} ({each.rule.severity}, {each.violated:,} {each.unit})" for each in policy.violated
    )
    return f"Policy: {len(policy.violated):,} of {rules:,} rules violated: {violations}."


def _drift_sentence(drift: DriftSummary) -> str:
    if drift.shares is not None:
        shares = drift.shares
        return (
            f"Since {drift.since}, by samples: {shares.grew:,} of {shares.shares:,} shares of versions grew and "
            f"{shares.shrank:,} shrank significantly."
        )
    changes = [f"{getattr(drift.counts, name):,} {name}" for name in _CHANGES if getattr(drift.counts, name)]
    return f"Since {drift.since}: {', '.join(changes) or 'no change'}."


def _join_first(texts: Iterable[str], separator: str = ", ") -> str:
    """Join the first texts, and add how many more there are."""
    found = list(texts)
    more = [f"{len(found) - MAX_NAMED:,} more"] if len(found) > MAX_NAMED else []
    return separator.join([*found[:MAX_NAMED], *more])


def _clean_table(content: Mapping[str, object]) -> dict[str, Any]:
    return {key: _clean(each) for key, each in content.items()}


def _clean(value: object) -> object:
    """Return a value that is valid JSON: text that is not UTF-8 is escaped, and long text is cut."""
    if isinstance(value, str):
        return value[:MAX_TEXT_LENGTH].encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _clean(each) for key, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list | tuple) else value
