"""Warnings about a run: its numbers do not cover the whole fleet, or are not reliable."""

from collections.abc import Iterator
from pathlib import Path

from auditor.errors import RunFolderError
from auditor.models import RunWarning, WarningKind
from auditor.runs.folder import COMPRESSED_RESULTS, FAILURES, FLEET, PRODUCTS, RESULTS, TEXT_COLUMNS, is_sealed
from auditor.runs.locking import current_state
from auditor.runs.manifest import SUCCESSFUL_STATES, DeviceCounts, Manifest, State, file_info
from auditor.runs.selection_info import SelectionInfo
from auditor.storage.files import translate_os_errors

MAX_OUTDATED = 0.01
"""Largest fraction of carried results without a warning, if they are outdated or their devices may have changed.

A point estimate is enough: a small check proves nothing, and 1 outdated answer of 20 is no reason for confidence.
"""

_INCOMPLETE_KINDS: dict[State, WarningKind] = {"running": "running", "partial": "partial", "aborted": "aborted"}
"""Kind of the warning about devices without an answer, by state."""


def completeness_warnings(
    folder: Path, manifest: Manifest, counts: DeviceCounts, unsampled: int | None = None
) -> tuple[RunWarning, ...]:
    """Return why a run's numbers do not cover the whole fleet; nothing if they do.

    ``unsampled`` is the number of devices that were not sampled, as counted; None: as in ``run.json``.
    """
    run = str(folder)
    found: list[RunWarning] = []
    unsampled = manifest.unsampled if unsampled is None else unsampled
    pending = counts.pending - unsampled
    tolerated = manifest.remaining_devices if is_tolerated(manifest) else 0
    gaps = [warning for discovery in manifest.discovery for warning in discovery.warnings(run)]
    if is_tolerated(manifest):
        gaps = []  # max_failed allows them
    if unsampled:
        found.append(_sample_warning(run, counts, unsampled))
    finished = manifest.state in SUCCESSFUL_STATES
    finished = finished or bool(gaps or manifest.silent or manifest.fleet.shared_identities)
    finished = finished or (manifest.state == "partial" and unsampled > 0)
    if counts.failed + pending > tolerated or not finished:
        kind: WarningKind = _INCOMPLETE_KINDS.get(manifest.state, "incomplete")
        unanswered = f"{counts.failed:,} devices failed, {pending:,} pending{' in the sample' if unsampled else ''}"
        found.append(RunWarning(kind, run, f"{current_state(folder, manifest)}: {unanswered}"))
    if manifest.modules is not None:
        detail = f"has only the module {', '.join(manifest.modules)} of each device: no other was read"
        found.append(RunWarning("modules", run, detail))
    if manifest.selection is not None:
        found += recheck_warnings(run, manifest.selection)
    if manifest.fleet.excluded_accounts:
        excluded = ", ".join(manifest.fleet.excluded_accounts)
        found.append(RunWarning("accounts", run, f"excludes the accounts {excluded} (--account)"))
    elif manifest.fleet.cut:
        covered = f"covers only the first {manifest.fleet.devices:,} devices of its fleet (--limit)"
        found.append(RunWarning("limited", run, covered))
    if (aliases := manifest.fleet.describe_aliases()) is not None:
        found.append(RunWarning("aliases", run, aliases))
    found += [RunWarning("shared_identity", run, sentence) for sentence in manifest.describe_shared_names()]
    found += [RunWarning("mismatch", run, str(each)) for each in manifest.mismatched]
    return (*found, *(RunWarning("silent", run, str(each)) for each in manifest.silent), *gaps)


def recheck_warnings(run: str, selection: SelectionInfo) -> Iterator[RunWarning]:
    """Yield warnings if too many carried results seem outdated, or belong to devices that may have changed."""
    recheck, outdated = selection.recheck, selection.outdated
    is_index = selection.strategy == "index"
    is_used = not is_index or any(account.carried for account in selection.accounts)
    if is_used and recheck is not None and recheck.rate is not None and recheck.rate > MAX_OUTDATED:
        found = f"the recheck found {recheck.changed:,} of {recheck.answered:,} answers outdated"
        interval = "" if recheck.low is None or recheck.high is None else f" ({recheck.low:.1%} to {recheck.high:.1%})"
        of = "the results of the search index" if is_index else "the answers of devices without a sign of change"
        yield RunWarning("recheck", run, f"{found}: about {recheck.rate:.1%}{interval} of {of}")
    if outdated is not None and outdated.may_have_changed > MAX_OUTDATED * outdated.carried:
        devices = f"{outdated.may_have_changed:,} of {outdated.carried:,} carried results"
        yield RunWarning("not_reached", run, f"{devices} are of devices that may have changed and were not queried")


def release_warnings(folder: Path, manifest: Manifest) -> tuple[RunWarning, ...]:
    """Return why released firmware is incomplete. It says nothing against the numbers of devices."""
    return tuple(warning for each in manifest.releases for warning in each.warnings(str(folder)))


def _sample_warning(run: str, counts: DeviceCounts, unsampled: int) -> RunWarning:
    """Return the warning that a run is a random sample."""
    fleet = counts.fleet
    meaning = "shares are estimates with 95% intervals, and counts cover the sampled devices only"
    detail = f"random sample: {unsampled:,} of {fleet:,} devices were not sampled; {meaning}"
    return RunWarning("sample", run, detail)


def is_tolerated(manifest: Manifest) -> bool:
    """Return whether devices have no answer, or were not listed, and ``max_failed`` allows that; of a sample, too.

    The state of a sample is ``partial`` whatever it has, for it is not the fleet.
    """
    if manifest.state != "partial" or not manifest.unsampled:
        return manifest.state == "within_tolerance"
    unlisted = any(each.state == "pending" or each.gaps_of_unknown_size for each in manifest.discovery)
    return not (manifest.exceeds_tolerance or manifest.silent or unlisted)


def state_label(state: str, counts: DeviceCounts, unsampled: int, *, tolerated: bool) -> str:
    """Return a run's state for people: ``sample`` if every sampled device has an answer, or enough (``tolerated``)."""
    if not unsampled or state not in ("partial", *SUCCESSFUL_STATES):
        return state.replace("_", " ")
    return "sample" if tolerated or counts.unanswered == unsampled else "partial sample"


def integrity_warnings(folder: Path, manifest: Manifest) -> tuple[RunWarning, ...]:
    """Return a warning for each file that differs from the one that was sealed.

    Only files that are read here are checked; ``auditor verify`` checks all. An unreadable one raises RunFolderError.
    """
    sealed = {each.name: each for each in manifest.files}
    lines = {RESULTS, COMPRESSED_RESULTS, FAILURES} & set(sealed)
    read = (*TEXT_COLUMNS,) if is_sealed(folder, manifest) else (*lines,)
    read += (PRODUCTS,) if PRODUCTS in sealed and (folder / PRODUCTS).is_file() else ()
    with translate_os_errors(f"{folder}: cannot be read", RunFolderError):  # gone since: another process may prune
        changed = [name for name in read if file_info(folder / name) != sealed.get(name)]
        if file_info(folder / FLEET).sha256 != manifest.fleet.sha256:
            changed.append(FLEET)
    missing = [name for name in (*TEXT_COLUMNS, PRODUCTS) if name in sealed and not (folder / name).is_file()]
    if manifest.state == "running":  # resumed, so its files are set aside
        growing = not all(discovery.state == "complete" for discovery in manifest.discovery)
        missing, changed = [], [name for name in changed if name == FLEET and not growing]
    details = [f"{name} was sealed and is missing" for name in missing]
    details += [f"{name} is not the file that was sealed (its digest differs)" for name in changed]
    return tuple(RunWarning("tampered", str(folder), detail) for detail in details)
