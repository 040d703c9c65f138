"""What a webhook is told of a run: an object for programs, with one paragraph for people in it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson

from auditor.analysis.drift import DriftCounts, diff_runs
from auditor.analysis.sample_drift import ShareCounts
from auditor.errors import AuditorError
from auditor.policy.evaluate import Judgement
from auditor.query.snapshot import Frozen, freeze
from auditor.query.warnings import label_of, sampled
from auditor.runs.folder import DEVICES, FLEET, MODULES, runs_in
from auditor.runs.manifest import MANIFEST, FailureFacts, read_manifest
from auditor.runs.seal import Sources, count_failures
from auditor.runs.views import define_sealed_views
from auditor.storage.database import READING_MEMORY, READING_THREADS, open_database
from auditor.storage.tables import reading
from auditor.text.formatting import safe

SCHEMA_VERSION = 1


RULES, SENTENCES, LENGTH = 50, 20, 500
"""Rules and sentences that a message has at most, and characters of a sentence: chats refuse what is large."""


NAMED = 3
"""Failures, rules and doubts that the paragraph names."""


@dataclass(frozen=True, slots=True)
class Change:
    """What changed since an earlier run of the same name, which is ``since``; why to doubt that, a sentence each.

    ``shares`` are those of versions, where a run is a sample; None: none is.
    """

    since: str
    counts: DriftCounts
    doubts: tuple[str, ...]
    shares: ShareCounts | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """``body`` is JSON; ``trouble``: the run has an exit code, a violated rule, a doubt, or something else went wrong
    after it.
    """

    body: bytes
    trouble: bool


def message_of(
    folder: Path, *, exit_code: int = 0, judgement: Judgement | None = None, problems: Sequence[str] = ()
) -> Message:
    """What is told of a run; if its rows cannot be read, what its manifest says.

    Args:
        folder: the run folder.
        exit_code: what the audit came to.
        judgement: what judging it came to, if it was to be judged.
        problems: what else went wrong after the run, a sentence each.

    Raises:
        RunFolderError: it is no run.
    """
    run, failures = _read(folder)
    change = _change(run)
    doubts = list(dict.fromkeys((*run.doubts, *(judgement.doubts if judgement is not None else ()))))
    manifest = run.manifest
    told: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": manifest.name,
        "run": folder.name,
        "state": manifest.state,
        "exit_code": exit_code,
        "started_at": manifest.started_at,
        "finished_at": manifest.finished_at,
        "error": manifest.error,
        "devices": _devices(run),
        "carried": run.sources.carried,
        "oldest": run.sources.oldest,
        "requests": asdict(manifest.requests),
        "rate": {"target": manifest.rate.target, "achieved": manifest.rate.achieved},
        "failures": [{"code": failure.code, "devices": failure.devices} for failure in failures],
        "policy": None if judgement is None else _policy(judgement),
        "drift": None if change is None else asdict(change),
        "doubts": doubts[:SENTENCES],
        "problems": list(problems)[:SENTENCES],
    }
    text = for_chat(_paragraph(run, told, judgement, change))
    violated = judgement is not None and bool(judgement.violated or judgement.problem)
    trouble = [doubt for doubt in doubts if doubt != _sampled(run)]  # which was asked for
    return Message(orjson.dumps(_clean(told | {"text": text})), bool(exit_code or trouble or problems or violated))


def for_chat(text: str) -> str:
    """Text as Slack wants it: ``&``, ``<`` and ``>`` written out, so that nothing in it is Slack's markup.

    A space without a width after ``@`` keeps Mattermost, too, from calling people. A chat may still make
    links of addresses.
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "@\u200b")


def _read(folder: Path) -> tuple[Frozen, tuple[FailureFacts, ...]]:
    """The run, counted, and its failures by code; the files of a run that is not sealed are gone by then."""
    try:
        with TemporaryDirectory(prefix="auditor-message-") as temporary:
            run = freeze(folder, Path(temporary, "rows"))
            database = open_database(Path(temporary, "spill"), READING_MEMORY, READING_THREADS)
            try:
                with reading(folder):
                    define_sealed_views(database, run.devices.parent)
                    return run, count_failures(database)
            finally:
                database.close()
    except (AuditorError, OSError) as error:  # somebody wants to hear of just that
        manifest = read_manifest(folder)
        doubts = (str(error), f"figures are those that {MANIFEST} tells, not counted from the files")
        frozen = Frozen(
            folder=folder,
            manifest=manifest,
            counts=manifest.devices,
            fleet=folder / FLEET,
            devices=folder / DEVICES,
            modules=folder / MODULES,
            tampered=False,
            doubts=doubts,
            sources=Sources(manifest.carried, manifest.unsampled, manifest.oldest),
        )
        return frozen, manifest.failures


def _devices(run: Frozen) -> dict[str, int]:
    """Devices by state; those that were not drawn into a sample are none that are pending."""
    counts, unsampled = run.counts, run.sources.unsampled
    drawn = asdict(replace(counts, pending=counts.pending - unsampled))
    return drawn | ({"unsampled": unsampled} if unsampled else {})


def _sampled(run: Frozen) -> str | None:
    """The sentence among the doubts that the run is a sample; None where it is none."""
    unsampled = run.sources.unsampled
    return sampled(run.folder, run.counts, unsampled) if unsampled else None


def _change(run: Frozen) -> Change | None:
    """What changed since the run of the same name before, if there is one that has ended and can be read."""
    try:
        runs, _ = runs_in(run.folder.resolve().parent)
        own = (run.manifest.started_at, run.folder.name)
        before = next(
            folder
            for manifest, folder in runs
            if manifest.name == run.manifest.name
            and manifest.state != "running"
            and (manifest.started_at, folder.name) < own
        )
        with diff_runs(before, run.folder) as drift:
            shares = None if drift.shares is None else drift.shares.counts
            return Change(before.name, drift.counts, tuple(drift.doubts[:SENTENCES]), shares)
    except (AuditorError, OSError, StopIteration):  # the message is about this run, and wanted most on a full disk
        return None


def _policy(judgement: Judgement) -> dict[str, object]:
    """The rules' judgement, violated ones first; ``left_out`` of them are not told."""
    ordered = (*judgement.violated, *(each for each in judgement.results if each.verdict != "violated"))
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
            "excepted": each.excepted,
            "unsampled": each.unsampled,
            "share": each.share,
            "low": each.low,
            "high": each.high,
            "message": each.message,
        }
        for each in ordered[:RULES]
    ]
    problem = judgement.problem
    return {"failed": judgement.failed, "problem": problem, "rules": rules, "left_out": len(ordered) - len(rules)}


def _paragraph(run: Frozen, told: Mapping[str, Any], judgement: Judgement | None, change: Change | None) -> str:
    counts, code, failures = run.counts, told["exit_code"], told["failures"]
    answered = counts.ok + counts.empty + counts.not_found
    unsampled = run.sources.unsampled
    fleet = answered + counts.unanswered
    whom = f"{fleet - unsampled:,} devices drawn from {fleet:,}" if unsampled else f"{fleet:,} devices"
    pending = counts.pending - unsampled
    sums = f"{answered:,} of {whom} answered, {counts.failed:,} failed, {pending:,} pending"
    state = label_of(run.manifest.state, counts, unsampled)
    state = f"a {state}, and its shares are estimates" if unsampled and "sample" in state else state
    parts = [f"{run.manifest.name} is {state}{f' (exit code {code})' if code else ''}: {sums}."]
    if run.sources.carried:
        oldest = f", the oldest of {run.sources.oldest}" if run.sources.oldest else ""
        parts.append(f"Carried: {run.sources.carried:,} of these answers{oldest}.")
    if failures:
        named = (f"{each['devices']:,} with {each['code']}" for each in failures)
        parts.append(f"Failed: {_some(named)}.")
    if run.manifest.error is not None:
        parts.append(f"Stopped: {run.manifest.error}.")
    if judgement is not None:
        parts.append(_of_policy(judgement))
    if change is not None and change.shares is not None:
        shares = change.shares
        parts.append(
            f"Since {change.since}, by samples: {shares.grew:,} of {shares.shares:,} shares of versions grew and "
            f"{shares.shrank:,} shrank by more than chance."
        )
    elif change is not None:
        names = ("upgraded", "downgraded", "changed", "joined", "left")
        found = [f"{getattr(change.counts, name):,} {name}" for name in names if getattr(change.counts, name)]
        parts.append(f"Since {change.since}: {', '.join(found) or 'no change'}.")
    said = f"{run.folder} is {run.manifest.state}: "  # so does the first sentence
    known = (_sampled(run),)
    notes = [each for each in (*told["doubts"], *told["problems"]) if not each.startswith(said) and each not in known]
    if notes:
        parts.append(f"Note: {_some(notes, '; ')}.")
    return safe(" ".join(part[:LENGTH] for part in parts))


def _of_policy(judgement: Judgement) -> str:
    if judgement.problem is not None:
        return f"Policy: could not be judged: {judgement.problem}."
    rules = len(judgement.results)
    if not judgement.violated:
        return f"Policy: none of {rules:,} rules is violated."
    named = _some(
        f"{each.rule.name} ({each.rule.severity}, {each.violated:,} {each.unit})" for each in judgement.violated
    )
    return f"Policy: {len(judgement.violated):,} of {rules:,} rules violated: {named}."


def _some(found: Iterable[str], between: str = ", ") -> str:
    """The first of some texts, and how many more there are."""
    texts = list(found)
    more = [f"{len(texts) - NAMED:,} more"] if len(texts) > NAMED else []
    return between.join([*texts[:NAMED], *more])


def _clean(value: object) -> object:
    """A value that is JSON whatever devices and file names hold: what is not UTF-8 is written out, long text is cut."""
    if isinstance(value, str):
        return value[: 10 * LENGTH].encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {key: _clean(each) for key, each in value.items()}
    return [_clean(each) for each in value] if isinstance(value, list | tuple) else value
