"""The end of an audit session: seal the run folder, verify it, and conclude the state and exit code."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import median

from auditor.audit.aliases import count_aliases
from auditor.audit.silence import find_silent_accounts
from auditor.concurrency import run_in_abandonable_thread
from auditor.config.settings import Settings
from auditor.errors import AuditInterruptedError, AuditorError, RunNotWritableError
from auditor.runs.manifest import Manifest, write_manifest
from auditor.runs.seal import SealedRun, seal_run
from auditor.runs.verify import verify_run
from auditor.text.formatting import escape_undecodable, format_utc

MIN_CORRECTION = 60.0
"""Seconds by which this machine's clock must be wrong before the times of a run are corrected."""


async def seal_and_verify(
    folder: Path, manifest: Manifest, errors: Sequence[AuditorError], reason: str | None
) -> tuple[Manifest, bool]:
    """Seal a run folder, verify it, and write its manifest; return that, and whether the folder has no problems.

    A second signal cancels and abandons the thread: the process ends then, and files are only ever replaced completely.
    ``errors`` stopped the run or some of its accounts; ``reason`` is why it ended early without an error, if it did.

    Raises:
        RunNotWritableError: the folder cannot be written.
    """
    sealed = await run_in_abandonable_thread(seal_run, folder, manifest.selection)
    manifest = sealed_manifest(manifest, sealed, stopped=bool(errors))
    manifest = replace(manifest, silent=await run_in_abandonable_thread(find_silent_accounts, folder, manifest))
    aliases, possible = await run_in_abandonable_thread(count_aliases, folder)
    manifest = replace(manifest, fleet=replace(manifest.fleet, aliases=aliases, possible_aliases=possible))
    incomplete = [*map(str, manifest.silent), *discovery_gaps(manifest)]
    error = describe_errors(errors) if errors else reason or escape_undecodable("; ".join(incomplete))
    manifest = replace(manifest, error=error or None)
    write_manifest(folder, manifest)
    problems = await run_in_abandonable_thread(verify_run, folder, folder)
    if problems:
        error = describe_errors((*errors, RunNotWritableError("; ".join(problems))))
        manifest = replace(manifest, state="aborted", error=error)
    elif not errors:
        manifest = verified_manifest(manifest)
    write_manifest(folder, manifest)
    return manifest, not problems


def correct_times(manifest: Manifest, offsets: Sequence[float], *, now: float, resumed: bool) -> Manifest:
    """Return the manifest of a session that ends now; its times are corrected if the machine's clock is wrong.

    Args:
        manifest: the manifest, with the times of this machine.
        offsets: seconds that the clock of each account's platform is ahead of this machine's.
        now: this machine's time in seconds since 1970.
        resumed: whether an earlier session started the run.
    """
    offset = median(offsets) if offsets else 0.0
    # One platform alone may be wrong; all of them agree only if this machine is.
    wrong = abs(offset) >= MIN_CORRECTION and max(offsets) - min(offsets) < MIN_CORRECTION
    if not wrong:
        return replace(manifest, finished_at=format_utc(now))

    def corrected(text: str) -> str:
        return format_utc(datetime.fromisoformat(text).timestamp() + offset)

    started_at, resumed_at = manifest.started_at, manifest.resumed_at
    if resumed and resumed_at:
        resumed_at = (*resumed_at[:-1], corrected(resumed_at[-1]))
    elif not resumed:
        started_at = corrected(started_at)
    return replace(
        manifest,
        started_at=started_at,
        resumed_at=resumed_at,
        finished_at=format_utc(now + offset),
        clock_offset=round(offset, 1),
    )


def describe_errors(errors: Sequence[AuditorError]) -> str:
    """Return why a run was stopped. Only the first write error is included: later ones follow from it."""
    distinct = list(dict.fromkeys(errors))
    consequences = [error for error in distinct if isinstance(error, RunNotWritableError)][1:]
    return escape_undecodable("; ".join(dict.fromkeys(str(error) for error in distinct if error not in consequences)))


def discovery_gaps(manifest: Manifest) -> list[str]:
    """Return why the fleet may be incomplete, a sentence for each reason."""
    return [
        warning.detail
        for discovery in manifest.discovery
        if discovery.state != "complete"
        for warning in discovery.warnings()
    ]


def sealed_manifest(manifest: Manifest, sealed: SealedRun, *, stopped: bool) -> Manifest:
    """Return the manifest of a run that was sealed, after an error if ``stopped``, and is not verified yet."""
    selection = manifest.selection
    if selection is not None:
        selection = replace(selection, recheck=sealed.recheck, not_reached=sealed.not_reached, outdated=sealed.outdated)
    return replace(
        manifest,
        state="aborted" if stopped else "partial",
        devices=sealed.devices,
        never_activated=sealed.never_activated,
        failures=sealed.failures,
        files=sealed.files,
        selection=selection,
        carried=sealed.carried,
        unsampled=sealed.unsampled,
        oldest_answer_at=sealed.oldest_answer_at,
    )


def verified_manifest(manifest: Manifest) -> Manifest:
    """Return the manifest of a verified run: complete if all devices have an answer that is believed.

    A sample is never complete, even if all its devices have an answer: it is not the fleet.
    """
    if discovery_gaps(manifest) or manifest.remaining_devices or manifest.silent:
        return manifest
    return replace(manifest, state="partial" if manifest.unsampled else "complete", error=None)


def exit_code(manifest: Manifest, settings: Settings, *, verified: bool, interrupted: bool) -> int:
    """Return the exit code of a run without errors: 0 done; 130 interrupted with devices pending; otherwise 1.

    1: more devices failed, are pending or were not discovered than ``max_failed`` allows; the discovery is pending
    or has gaps of unknown size; an account is silent; or the run is unverified or less precise than configured.
    """
    pending = any(discovery.state == "pending" for discovery in manifest.discovery)
    if verified and interrupted and (manifest.devices.pending > manifest.unsampled or pending):
        return AuditInterruptedError.exit_code
    # A device that exists and was not discovered counts as failed. Gaps of unknown size fit no limit.
    missing = sum(discovery.missing for discovery in manifest.discovery)
    countable = not pending and not any(discovery.gaps_of_unknown_size for discovery in manifest.discovery)
    countable = countable and not manifest.silent
    if (selection := manifest.selection) is not None and selection.precision is not None:
        achieved = selection.achieved_precision
        countable = countable and achieved is not None and achieved <= selection.precision
    allowed = settings.max_failures(manifest.fleet.devices - manifest.unsampled + missing)
    return 0 if verified and countable and manifest.remaining_devices + missing <= allowed else 1
