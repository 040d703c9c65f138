"""Build the webhook's JSON payload: an object for programs that contains one paragraph for people."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from auditor.analysis.drift import DriftCounts, diff_runs
from auditor.analysis.sample_drift import ShareCounts
from auditor.errors import AuditorError
from auditor.models import RunWarning
from auditor.policy.evaluate import PolicySummary
from auditor.query.describe import describe_warning, warning_objects
from auditor.query.snapshot import RunSnapshot, open_snapshot
from auditor.query.warnings import is_tolerated, release_warnings, state_label
from auditor.runs.folder import DEVICES, FLEET, MODULES, RunCatalog
from auditor.runs.inventory import SourceCounts, count_failures
from auditor.runs.manifest import MANIFEST, SCHEMA_VERSION, FailureInfo, read_manifest
from auditor.runs.views import define_sealed_views
from auditor.storage.database import temporary_database
from auditor.storage.tables import translate_read_errors
from auditor.text.formatting import safe

MAX_RULES, MAX_SENTENCES, MAX_TEXT_LENGTH = 50, 20, 5_000
"""Rules; warnings, and problems; and characters of any text in a payload. Chats reject large messages."""

MAX_NAMED, MAX_SENTENCE_LENGTH = 3, 500
"""Failures, rules and warnings that the paragraph names, and characters of a sentence in it."""

_CONFIGURED = frozenset({"sample", "modules"})
"""Warnings about what the settings request, which are no problems."""

_STATED = frozenset({"partial", "running", "aborted", "incomplete", "sample"})
"""Warnings that the paragraph's first sentence states."""


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
    """JSON to post; the run has problems if it has an exit code, a violated rule, a warning, or a failed hook."""

    body: bytes
    has_problems: bool


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
    drift = _read_drift(run)
    of_run = (*run.warnings, *release_warnings(folder, run.manifest))
    warnings = list(dict.fromkeys((*of_run, *(policy.warnings if policy is not None else ()))))
    manifest = run.manifest
    content: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
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
    text = escape_chat_markup(_paragraph(run, content, warnings[:MAX_SENTENCES], policy, drift))
    has_problems = bool(exit_code or problems or any(warning.kind not in _CONFIGURED for warning in warnings))
    has_problems |= policy is not None and bool(policy.violated or policy.problem)
    return Payload(orjson.dumps(_clean(content | {"text": text})), has_problems)


def escape_chat_markup(text: str) -> str:
    """Escape ``&``, ``<`` and ``>`` as Slack requires, so that nothing in the text is Slack's markup.

    A zero-width space after ``@`` prevents mentions in Mattermost too. A chat may still turn addresses into links.
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u200b")


def _read_run(folder: Path) -> tuple[RunSnapshot, tuple[FailureInfo, ...]]:
    """Return the run, counted, and its failures by code."""
    try:
        with temporary_database("payload") as (database, work):
            run = open_snapshot(folder, work / "rows")
            with translate_read_errors(folder):
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


def _read_drift(run: RunSnapshot) -> DriftSummary | None:
    """Return the changes since the previous ended run of the same name; None if there is none that can be read."""
    try:
        previous = RunCatalog(run.folder.resolve().parent).previous(run.manifest, run.folder)
        if previous is None:
            return None
        with diff_runs(previous.folder, run.folder) as drift:
            shares = None if drift.shares is None else drift.shares.counts
            return DriftSummary(previous.folder.name, drift.counts, tuple(drift.warnings[:MAX_SENTENCES]), shares)
    except (AuditorError, OSError):  # the payload is about this run, and matters most when the disk is full
        return None


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


def _paragraph(
    run: RunSnapshot,
    content: Mapping[str, Any],
    warnings: Sequence[RunWarning],
    policy: PolicySummary | None,
    drift: DriftSummary | None,
) -> str:
    counts, code, failures = run.counts, content["exit_code"], content["failures"]
    answered = counts.answered
    unsampled = run.sources.unsampled
    fleet = counts.fleet
    scope = f"{fleet - unsampled:,} devices sampled from {fleet:,}" if unsampled else f"{fleet:,} devices"
    pending = counts.pending - unsampled
    figures = f"{answered:,} of {scope} answered, {counts.failed:,} failed, {pending:,} pending"
    state = state_label(run.manifest.state, counts, unsampled, tolerated=is_tolerated(run.manifest))
    if run.manifest.exit_reason is not None and code:
        code = f"{code}, {run.manifest.exit_reason.code}"
    state = f"a {state}, and its shares are estimates" if unsampled and "sample" in state else state
    sentences = [f"{run.manifest.name} is {state}{f' (exit code {code})' if code else ''}: {figures}."]
    if run.sources.carried:
        oldest = f", the oldest from {run.sources.oldest_answer_at}" if run.sources.oldest_answer_at else ""
        sentences.append(f"Carried: {run.sources.carried:,} of these answers{oldest}.")
    if failures:
        by_code = (f"{each['devices']:,} with {each['code']}" for each in failures)
        sentences.append(f"Failed: {_join_first(by_code)}.")
    if run.manifest.error is not None:
        sentences.append(f"Stopped: {run.manifest.error}.")
    if policy is not None:
        sentences.append(_policy_sentence(policy))
    if drift is not None:
        sentences.append(_drift_sentence(drift))
    notes = [describe_warning(each) for each in warnings if each.kind not in _STATED] + content["problems"]
    if notes:
        sentences.append(f"Note: {_join_first(notes, '; ')}.")
    return safe(" ".join(sentence[:MAX_SENTENCE_LENGTH] for sentence in sentences))


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
    names = ("upgraded", "downgraded", "changed", "joined", "left")
    changes = [f"{getattr(drift.counts, name):,} {name}" for name in names if getattr(drift.counts, name)]
    return f"Since {drift.since}: {', '.join(changes) or 'no change'}."


def _join_first(texts: Iterable[str], separator: str = ", ") -> str:
    """Join the first texts, and add how many more there are."""
    found = list(texts)
    more = [f"{len(found) - MAX_NAMED:,} more"] if len(found) > MAX_NAMED else []
    return separator.join([*found[:MAX_NAMED], *more])


def _clean(value: object) -> object:
    """Return a value that is valid JSON: text that is not UTF-8 is escaped, and long text is cut."""
    if isinstance(value, str):
        return value[:MAX_TEXT_LENGTH].encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _clean(each) for key, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list | tuple) else value
