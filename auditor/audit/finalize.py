"""The end of an audit session: seal the run folder, verify it, and conclude the state and exit code."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

from auditor.analysis.recorded_changes import record_changes
from auditor.audit.silence import find_silent_accounts
from auditor.concurrency import run_in_abandonable_thread
from auditor.errors import AuditInterruptedError, AuditorError, ExitReasonCode, RunNotWritableError
from auditor.runs.inventory import read_aliases
from auditor.runs.journal import replace_results
from auditor.runs.manifest import Manifest, State, write_manifest
from auditor.runs.seal import SealedRun, seal_run
from auditor.runs.selection_info import ExitReason
from auditor.runs.verify import verify_run
from auditor.text.formatting import escape_undecodable, format_count, format_utc, parse_manifest_time
from auditor.tracing import span

INCOMPLETE = NOT_VERIFIED = 1
"""Exit code of a run without an error whose numbers are incomplete, or do not follow from its files."""

MIN_CORRECTION = 60.0
"""Seconds by which this machine's clock must be wrong before the times of a run are corrected."""


async def seal_and_verify(
    folder: Path, manifest: Manifest, errors: Sequence[AuditorError], reason: str | None, *, interrupted: bool
) -> Manifest:
    """Seal a run folder, verify it, and return its manifest, with state and exit code, after writing it.

    A second signal cancels and abandons the thread: the process ends then, and files are only ever replaced completely.
    ``errors`` stopped the run or some of its accounts; ``reason`` is why it ended early without an error, if it did;
    ``interrupted`` is whether that was a signal.

    Raises:
        RunNotWritableError: the folder cannot be written.
    """
    with span("seal"):
        manifest = await _seal(folder, manifest, stopped=bool(errors))
    incomplete = [*map(str, manifest.silent), *discovery_gaps(manifest)]
    error = describe_errors(errors) if errors else reason or escape_undecodable("; ".join(incomplete))
    manifest = replace(manifest, error=error or None)
    write_manifest(folder, manifest)
    with span("verify") as verifying:
        problems = await run_in_abandonable_thread(verify_run, folder, folder)
        if problems:
            verifying.fail("not_verified")
    if problems:
        error = describe_errors((*errors, RunNotWritableError("; ".join(problems))))
        manifest = replace(manifest, state="aborted", error=error)
        code, why = NOT_VERIFIED, ExitReason("not_verified", escape_undecodable("; ".join(problems)))
    if errors:
        code, why = errors[0].exit_code, ExitReason(errors[0].reason_code, manifest.error or "")
    elif not problems:
        manifest, code, why = conclude(manifest, reason, interrupted=interrupted)
    manifest = replace(manifest, exit_code=code, exit_reason=why)
    write_manifest(folder, manifest)
    return manifest


async def _seal(folder: Path, manifest: Manifest, *, stopped: bool) -> Manifest:
    """Write the files that follow from the results; return the manifest with them, and with what they show."""
    sealed = await run_in_abandonable_thread(seal_run, folder, manifest.selection, manifest.modules)
    if sealed.compressed is not None:
        replace_results(folder, sealed.compressed)
    manifest = sealed_manifest(manifest, sealed, stopped=stopped)
    manifest = replace(manifest, silent=await run_in_abandonable_thread(find_silent_accounts, folder, manifest))
    aliases = asdict(await run_in_abandonable_thread(read_aliases, folder))
    manifest = replace(manifest, fleet=replace(manifest.fleet, **aliases))
    return await run_in_abandonable_thread(record_changes, folder, manifest)


def correct_times(manifest: Manifest, offsets: Sequence[float], *, now: float, resumed: bool) -> Manifest:
    """Return the manifest of an audit session that ends now; its times are corrected if the machine's clock is wrong.

    Args:
        manifest: the manifest, with the times of this machine.
        offsets: seconds that the clock of each account's platform is ahead of this machine's.
        now: this machine's time in seconds since 1970.
        resumed: whether an earlier audit session started the run.
    """
    offset = median(offsets) if offsets else 0.0
    # One platform alone may be wrong; all of them agree only if this machine is.
    wrong = abs(offset) >= MIN_CORRECTION and max(offsets) - min(offsets) < MIN_CORRECTION
    if not wrong:
        return replace(manifest, finished_at=format_utc(now))

    def corrected(text: str) -> str:
        time = parse_manifest_time(text)
        return text if time is None else format_utc(time.timestamp() + offset)

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


def conclude_unsealed(
    manifest: Manifest, errors: Sequence[AuditorError], reason: str | None, *, interrupted: bool
) -> Manifest:
    """Return the manifest of a shard whose session ends, with its exit code: 0, if every device was queried.

    The arguments are those of ``seal_and_verify``. Whether too many devices failed is concluded when the run is sealed.
    """
    manifest = replace(manifest, state="partial", error=reason)
    pending = manifest.devices.pending or any(each.state == "pending" for each in manifest.discovery)
    if errors:
        error = describe_errors(errors)
        code, why = errors[0].exit_code, ExitReason(errors[0].reason_code, error)
        return replace(manifest, state="aborted", error=error, exit_code=code, exit_reason=why)
    if pending and interrupted:
        why = ExitReason("interrupted", f"{reason}; {_describe_rest(manifest)}")
        return replace(manifest, exit_code=AuditInterruptedError.exit_code, exit_reason=why)
    if pending:
        why = ExitReason("too_many_pending", f"{_describe_rest(manifest)}: {reason}")
        return replace(manifest, exit_code=INCOMPLETE, exit_reason=why)
    return replace(manifest, error=None, exit_code=0, exit_reason=ExitReason("success", "every device was queried"))


def conclude(manifest: Manifest, reason: str | None, *, interrupted: bool) -> tuple[Manifest, int, ExitReason]:
    """Return the manifest of a verified run that no error stopped, with its final state, its exit code, and why.

    It is complete if all devices have an answer that is believed, and within tolerance if enough have one. A sample is
    neither, even if all its devices have an answer: it is not the fleet.
    ``reason`` and ``interrupted`` are those of ``seal_and_verify``.
    """
    code, why = _conclude_exit(manifest, reason, interrupted=interrupted)
    if code == 0:
        state: State = "complete" if why.code == "success" else "within_tolerance"
        error = reason if manifest.remaining_devices else None
        manifest = replace(manifest, state=manifest.state if manifest.unsampled else state, error=error)
    return manifest, code, why


def _conclude_exit(manifest: Manifest, reason: str | None, *, interrupted: bool) -> tuple[int, ExitReason]:
    """Return the exit code of a verified run without errors, and why: 0 done, 130 interrupted too early, or 1."""
    pending = [each.account for each in manifest.discovery if each.state == "pending"]
    if interrupted and (manifest.devices.pending > manifest.unsampled or pending):
        return AuditInterruptedError.exit_code, ExitReason("interrupted", f"{reason}; {_describe_rest(manifest)}")
    if manifest.silent:
        return INCOMPLETE, ExitReason("silent_account", "; ".join(map(str, manifest.silent)))
    # A device that exists and was not discovered counts as failed. Gaps of unknown size fit no limit.
    if pending or any(each.gaps_of_unknown_size for each in manifest.discovery):
        gaps = "; ".join(discovery_gaps(manifest))
        return INCOMPLETE, ExitReason("unlisted_product", gaps if reason is None else f"{gaps}: {reason}")
    if manifest.exceeds_tolerance:
        return INCOMPLETE, _describe_excess(manifest, reason)
    if (selection := manifest.selection) is not None and (required := selection.precision) is not None:
        achieved = selection.achieved_precision
        if achieved is None or achieved > required:
            found = "unknown" if achieved is None else f"{100 * achieved:.3g}%"
            return INCOMPLETE, ExitReason("imprecise", f"the precision is {found}, {100 * required:.3g}% is required")
    return 0, manifest.describe_success()


def _describe_rest(manifest: Manifest) -> str:
    remaining = format_count(manifest.remaining_devices, "device")
    return f"{remaining} {'remains' if manifest.remaining_devices == 1 else 'remain'}"


def _describe_excess(manifest: Manifest, reason: str | None) -> ExitReason:
    """Return the reason of a run with too many devices without an answer: the word is that of the largest part."""
    parts: dict[ExitReasonCode, int] = {
        "too_many_failed": manifest.devices.failed,
        "too_many_pending": manifest.devices.pending - manifest.unsampled,
        "unlisted_product": manifest.missing_devices,
        "shared_identity": manifest.fleet.shared_identities,
    }
    word = max(parts, key=lambda each: parts[each])
    message = manifest.describe_unanswered()
    if word == "too_many_failed" and manifest.failures:
        message = f"{message}, most of them with {manifest.failures[0].code}"
    return ExitReason(word, message if reason is None else f"{message}: {reason}")
