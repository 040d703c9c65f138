"""Render the runs of a directory for people: their list, and the state of the last one. Names are escaped."""

import contextlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, tzinfo
from itertools import pairwise
from pathlib import Path

from rich.text import Text

from auditor.analysis.net_changes import NetChanges
from auditor.audit.failed_starts import FailedStart, find_failed_start
from auditor.cli.output import MIN_SENTENCE_WIDTH, Column, print_columns, table_zone
from auditor.cli.render_history import describe_rollouts
from auditor.cli.render_run import describe_coverage, describe_discovery, describe_releases
from auditor.cli.render_summary import describe_changes
from auditor.engine.sent_requests import SENT_REQUESTS
from auditor.errors import RunFolderError, find_code, refer_to_code
from auditor.query.describe import describe_next_steps, describe_recheck, describe_selection
from auditor.query.freshness import MIN_INTERVAL, overdue_interval
from auditor.query.run import with_counted_devices
from auditor.query.warnings import completeness_warnings, is_tolerated, state_label
from auditor.runs.folder import RunCatalog, StoredRun, find_stored_run
from auditor.runs.locking import LOCK, is_locked, was_killed
from auditor.runs.manifest import MANIFEST, Manifest
from auditor.text.formatting import (
    format_count,
    format_duration,
    format_elapsed,
    format_rough_duration,
    parse_manifest_time,
    safe,
)
from auditor.text.shell import format_command
from auditor.text.time_zones import show_times

MAX_CODES = 5
"""Error codes that are listed."""

MAX_STARTS, MIN_INTERVALS = 30, 2
"""Runs whose starts show how often one usually starts, and intervals between them that are needed for that."""

MAX_ACCOUNTS = 20
"""Accounts whose lists and releases are described."""

MIN_SILENCE = 60.0
"""Seconds without a new record after which an audit in progress is said to have none."""

_WRITTEN_WITHOUT_ANSWERS = frozenset({MANIFEST, SENT_REQUESTS, LOCK})

_STATE_STYLES = {"complete": "green", "within tolerance": "green", "sample": "cyan", "running": "cyan"}


def print_runs(runs: Sequence[StoredRun], zone: tzinfo | None) -> None:
    """Print runs as a table, the newest first. Their names have the start in UTC; in another zone it is a column."""
    columns = [Column("run", [])]
    columns += [] if zone is UTC else [Column("started", [], drop=4)]
    columns += [Column("state", [], min_sentence=9)]
    for name, drop in (("devices", 3), ("failed", 5), ("pending", 2), ("duration", 1), ("exit", None)):
        columns.append(Column(name, [], "right", drop))
    columns.append(Column("reason", [], min_sentence=MIN_SENTENCE_WIDTH))
    for run in runs:
        manifest = run.manifest
        label = state_label(manifest.state, manifest.devices, manifest.unsampled, tolerated=is_tolerated(manifest))
        why = "" if manifest.exit_reason is None else _shorten_reason(manifest)
        if was_killed(run.folder, manifest):
            label, why = "killed", "killed before its end"
        elif manifest.state != "running" and not run.sealed:
            label = "deleted" if manifest.changes is not None else f"{label}, not sealed"
        if manifest.fleet.cut:
            label = f"{label}, not the whole fleet"
        cells = (
            safe(run.folder.name),
            *(() if zone is UTC else (show_times(_format_minute(manifest.started_at), zone),)),
            Text(safe(label), style=_STATE_STYLES.get(label, "yellow")),
            f"{manifest.fleet.devices:,}",
            f"{manifest.devices.failed:,}",
            f"{manifest.devices.pending - manifest.unsampled:,}",
            "" if run.seconds is None else f"{format_duration(run.seconds)}{_describe_pauses(manifest)}",
            "" if manifest.exit_code is None else str(manifest.exit_code),
            why,
        )
        for column, cell in zip(columns, cells, strict=True):
            column.cells.append(cell)
    print_columns(columns)


def _shorten_reason(manifest: Manifest) -> str:
    reason = manifest.exit_reason
    if reason is None or reason.code == "success":
        return ""
    return f"{reason.code}: {safe(reason.message)}"


def describe_status(path: Path, name: str | None = None, *, local_time: bool = False) -> Iterator[str]:
    """Yield lines about the last run of a directory, or about a run: its end, the reason, changes, and next steps.

    Times are in the zone of ``table_zone``.

    Raises:
        RunFolderError: there is no run of this name.
    """
    run = _find_described(path, name)
    if isinstance(run, FailedStart):
        yield from _describe_failed_start(run, None if local_time else UTC)
        return
    run = with_counted_devices(run)
    manifest = run.manifest
    yield f"run: {safe(run.folder)}"
    yield show_times(
        f"started: {_format_minute(manifest.started_at)}{_describe_age(manifest.started_at)}{_describe_end(run)}",
        table_zone(manifest, local_time=local_time),
    )
    yield f"result: {safe(manifest.describe_exit() or _describe_unfinished(run))}"
    problem = "problem before it was killed" if was_killed(run.folder, manifest) else "problem"
    yield from (f"{problem}: {safe(each)}" for each in manifest.problems[:MAX_ACCOUNTS])
    label = "killed" if was_killed(run.folder, manifest) else None
    yield f"devices: {describe_coverage(manifest, manifest.devices, label=label)}"
    reason = manifest.exit_reason
    referred = None if reason is None else find_code(reason.message, reason.code)
    for failure in manifest.failures[:MAX_CODES]:
        line = f"failed: {failure.devices:,} with {safe(failure.code)}, such as {safe(failure.example)}"
        yield line if failure.code == referred else refer_to_code(line, failure.code)
    if (more := len(manifest.failures) - MAX_CODES) > 0:
        yield f"failed: {format_count(more, 'more code')}"
    yield from _describe_parts(manifest, in_progress=_is_in_progress(run))
    for warning in completeness_warnings(run.folder, manifest, manifest.devices):
        if warning.kind in {"limited", "accounts"}:
            yield f"part: {safe(warning.detail)}"
    if manifest.changes is not None and manifest.state != "running" and manifest.devices.answered:
        changes = describe_changes(manifest.changes.counts)
        yield f"changes: since {safe(manifest.changes.previous)}: {', '.join(text for text, _ in changes) or 'none'}"
    yield from _describe_success(run)
    if run.sealed and manifest.fleet.limit is None:
        yield from describe_rollouts(run.folder)
    yield from _describe_overdue(run)
    yield from _describe_next(run, table_zone(manifest, local_time=local_time))


def _find_described(path: Path, name: str | None) -> StoredRun | FailedStart:
    """Return the run that a path and a name mean; if there is none, the failed start of the first one."""
    if name is not None:
        if (found := RunCatalog(path).latest(name)) is None:
            raise RunFolderError(f"{path}: contains no run named {name!r}")
        return found
    try:
        return find_stored_run(path)[1]
    except RunFolderError:
        if (failed := find_failed_start(path, None)) is None:
            raise
        return failed


def _describe_next(run: StoredRun, zone: tzinfo | None) -> Iterator[str]:
    """Yield lines about what to do next: first about a start that failed after a run, if there is one."""
    is_last = _is_newest(run) and not _is_in_progress(run)
    failed = find_failed_start(run.folder.parent, run.manifest) if is_last else None
    if failed is not None:
        yield from _describe_failed_start(failed, zone)
        if run.is_success:
            return
    sentence, commands = _next_steps(run)
    yield f"{'next' if failed is None else 'then'}: {sentence}"
    yield from (f"  {command}" for command in commands)


def _describe_failed_start(failed: FailedStart, zone: tzinfo | None) -> Iterator[str]:
    """Yield lines about a start that left no run, and the next step."""
    at = show_times(_format_minute(failed.at), zone)
    yield f"failed start: {at}{_describe_age(failed.at)}, exit {failed.exit_code}: {safe(failed.reason)}"
    yield "next: no run has started since; correct what is wrong, and check the settings"
    yield f"  {format_command('auditor check', failed.settings_file)}"


def _is_in_progress(run: StoredRun) -> bool:
    return run.manifest.state == "running" and is_locked(run.folder)


def _describe_parts(manifest: Manifest, *, in_progress: bool) -> Iterator[str]:
    """Yield lines about the device lists, the selection and the released firmware of a run, if it has them."""
    for discovery in manifest.discovery[:MAX_ACCOUNTS]:
        yield f"lists: {describe_discovery(discovery, in_progress=in_progress)}"
    if manifest.selection is not None:
        yield from (f"selection: {line}" for line in describe_selection(manifest.selection))
        if manifest.selection.recheck is not None:
            yield f"selection: {describe_recheck(manifest.selection.recheck)}"
    for releases in manifest.releases[:MAX_ACCOUNTS]:
        yield f"releases: {describe_releases(releases)}"


def _format_minute(at: str) -> str:
    return f"{safe(at[:16].replace('T', ' '))} UTC"


def _describe_age(at: str) -> str:
    """Return how long ago a run started: a night in which none did is seen by it."""
    started = parse_manifest_time(at)
    seconds = -1.0 if started is None else (datetime.now(UTC) - started).total_seconds()
    return f" ({format_elapsed(seconds)} ago)" if seconds >= 0 else ""


def _describe_end(run: StoredRun) -> str:
    if run.manifest.finished_at is None:
        return ""
    took = "" if run.seconds is None else f" ({format_duration(run.seconds)}{_describe_pauses(run.manifest)})"
    return f", ended: {_format_minute(run.manifest.finished_at)}{took}"


def _describe_pauses(manifest: Manifest) -> str:
    """Return what to add to a run's duration: a resumed one has the time before its resume in it."""
    return " with pauses" if manifest.resumed_at else ""


def _describe_unfinished(run: StoredRun) -> str:
    manifest = run.manifest
    answered = manifest.fleet.devices - manifest.devices.unanswered
    have = "has" if manifest.fleet.devices == 1 else "have"
    progress = f"{answered:,} of {format_count(manifest.fleet.devices, 'device')} {have} an answer"
    if manifest.state != "running":
        return f"{manifest.state}{'' if manifest.error is None else f': {manifest.error}'}; {progress}"
    if not _is_in_progress(run):
        return f"killed before its end; {progress}"
    return f"in progress; {progress}{_describe_silence(run)}"


def _describe_silence(run: StoredRun) -> str:
    """Return for how long an audit in progress has recorded nothing, such as during an outage; empty: a short time."""
    recorded_at = []
    for place, _, names in os.walk(run.folder):  # what is gone since is left out
        for name in {*names} - _WRITTEN_WITHOUT_ANSWERS:
            with contextlib.suppress(OSError):
                recorded_at.append(Path(place, name).lstat().st_mtime)
    seconds = time.time() - max(recorded_at, default=math.inf)
    if seconds < MIN_SILENCE:
        return ""
    return f"; nothing recorded for {format_elapsed(seconds)}{'' if run.manifest.problems else ': see its log'}"


def _describe_success(run: StoredRun) -> Iterator[str]:
    """Yield a line about the last success, if the run itself is none."""
    if run.is_success or _is_in_progress(run):
        return
    catalog = RunCatalog(run.folder.parent)
    last = next((each for each in catalog.earlier(run.manifest, run.folder) if each.is_success), None)
    if last is None:
        yield "last success: none in this directory"
    else:
        yield f"last success: {safe(last.folder.name)}{_describe_age(last.manifest.started_at)}"


def _describe_overdue(run: StoredRun) -> Iterator[str]:
    """Yield a line if the newest run is so old that another one should have started."""
    if _is_in_progress(run):
        return
    catalog = RunCatalog(run.folder.parent, missing_ok=True)
    named = [each for each in catalog.named(run.manifest.name) if catalog.is_possible(each)]
    runs = [each for each in named if each.manifest.covers_fleet][:MAX_STARTS]
    starts = [start for each in reversed(runs) if (start := parse_manifest_time(each.manifest.started_at)) is not None]
    intervals = sum(later - earlier >= MIN_INTERVAL for earlier, later in pairwise(starts))
    if intervals < MIN_INTERVALS or named[0].manifest.started_at != run.manifest.started_at:
        return
    if (usual := overdue_interval(starts, datetime.now(UTC))) is not None:
        often = format_rough_duration(usual.total_seconds())
        yield f"overdue: usually a run starts every {often}; look at what starts it, and at its log"


def _next_steps(run: StoredRun) -> tuple[str, tuple[str, ...]]:
    """Return what to do after a run, and the commands."""
    from auditor.audit.resume import is_unfinished

    manifest = run.manifest
    resume = format_command("auditor resume", run.folder)
    if manifest.exit_reason is not None:
        sentence, commands = describe_next_steps(manifest, manifest.exit_reason.code, run.folder)
    elif _is_in_progress(run):
        return "wait for its end", ()
    elif manifest.is_success:
        return "nothing is to be done", ()
    else:
        sentence, commands = "continue the run", (resume,)
    continued = resume in commands and is_unfinished(manifest) and _is_newest(run)
    return f"{sentence}{'; the next run with --resume does, too' if continued else ''}", commands


def _is_newest(run: StoredRun) -> bool:
    """Return whether a run is the one that the next one with --resume finds: the newest of its name and whole fleet."""
    named = RunCatalog(run.folder.parent, missing_ok=True).named(run.manifest.name)
    newest = next((each for each in named if each.manifest.covers_fleet), None)
    return newest is not None and newest.folder.name == run.folder.name


def describe_net_changes(changes: NetChanges) -> Iterator[str]:
    """Yield lines about what changed between two runs of a directory."""
    runs = f"{safe(changes.old.folder.name)} to {safe(changes.new.folder.name)}"
    counts = ", ".join(f"{count:,} {change.replace('_', ' ')}" for change, count in changes.counts.items() if count)
    read = f", from the changes of {format_count(changes.recorded, 'run')}" if changes.recorded else ""
    yield f"{runs}: {counts or 'nothing changed'}{read}"
