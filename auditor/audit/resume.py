"""Resumes a run that was killed, stopped or left with failures: finds it, and reopens it with what remains.

Which devices remain is decided in ``auditor.runs.recovery``.
"""

import contextlib
import os
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from auditor import __about__
from auditor.audit.run_settings import (
    describe_objections,
    settings_digest,
    settings_of,
    stored_settings,
)
from auditor.audit.setup import account_infos, has_hooks, record_path, target_rate
from auditor.bulk.detail_reader import DETAILS_FOLDER
from auditor.bulk.index_results import INDEX_FOLDER
from auditor.client.operations import DEVICE_OPERATIONS
from auditor.config.serialization import RATE_KEYS, diff_settings
from auditor.config.settings import Settings
from auditor.engine.sent_requests import SENT_REQUESTS, count_sent, requests_before
from auditor.errors import AuditorError, RunFolderError, RunNotWritableError
from auditor.fleet.table import count_devices_to_query
from auditor.log import log
from auditor.releases.list_journal import RELEASES_FOLDER
from auditor.releases.release_tables import WORK as RELEASES_WORK
from auditor.runs.folder import (
    CARRIED,
    COMPRESSED_RESULTS,
    CONNECTIONS,
    FAILURES,
    FLEET,
    PRESENTATION_FILES,
    SEALED,
    SELECTED,
    RunCatalog,
    has_pending_hooks,
    mark_pending_hooks,
)
from auditor.runs.locking import (
    MAX_LOCK_WAIT,
    PreparedRun,
    RunLock,
    directory_lock,
    refuse_overlap,
    warn_if_replaceable,
)
from auditor.runs.manifest import SUCCESSFUL_STATES, Manifest, file_info, read_manifest, write_manifest
from auditor.runs.recovery import REMAINING, repair, rotate_failures, write_remaining_devices
from auditor.runs.selection_info import ExitReason
from auditor.selection.coordinator import WORK as SELECTION_WORK
from auditor.selection.selection_files import keep_accounts
from auditor.storage.descriptors import keeps_modes
from auditor.storage.foreign_access import find_foreign_access
from auditor.text.formatting import escape_undecodable, format_utc, parse_manifest_time
from auditor.text.shell import format_command


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of a fleet that flags select: the first ``limit`` devices, and no device of ``excluded_accounts``."""

    limit: int | None = None
    excluded_accounts: tuple[str, ...] = ()

    def contains(self, manifest: Manifest, settings: Settings) -> bool:
        """Return whether a run is one of this scope, and of a sample only if the settings require one."""
        fleet, sampled = manifest.fleet, manifest.selection is not None and manifest.selection.strategy == "sample"
        same = fleet.limit == self.limit and set(fleet.excluded_accounts) == set(self.excluded_accounts)
        return same and sampled == settings.is_sample


MAX_EMPTY_AGE = 12 * 3_600.0
"""Seconds after which a run without an answer is not continued: the answers of today would get its date."""


def find_unfinished(
    directory: Path, settings: Settings, scope: Scope | None = None, *, with_hooks: bool = False
) -> Path | None:
    """Return the newest run of the settings' name in a directory, if it is unfinished and these settings continue it.

    A run is unfinished if more devices are pending than ``max_failed`` allows, if a discovery is pending, if it was not
    sealed or verified, or if its hooks did not run and the caller runs them (``with_hooks``). Deferred hooks do not
    count. A sealed run without pending devices is finished, even if devices or products failed: ``resume`` retries
    those on request. So does a run without an answer that is older than ``MAX_EMPTY_AGE``: it has nothing to continue.
    Runs of another scope, such as a trial with ``--limit``, are ignored. So are those of other
    users, and those that they can write. Settings that change more than rates, keys, timeouts or hooks do not continue
    a run; that is logged with its advice.
    """
    catalog = RunCatalog(directory, missing_ok=True)
    catalog.log_unreadable()
    for manifest, folder in catalog.named(settings.name):
        if not (scope or Scope()).contains(manifest, settings):
            continue
        hooks_pending = with_hooks and has_pending_hooks(folder, deferred=False)
        unfinished = hooks_pending or is_unfinished(manifest)
        if not (objections := list(describe_objections(folder, parent=False))):
            return folder if unfinished and _continues(folder, manifest, settings) else None
        if unfinished:
            _report_not_resumed(folder, objections)
        elif folder.stat().st_uid == os.geteuid():  # where all files have one mode, older runs are not the newest
            return None
    return None


def _continues(folder: Path, manifest: Manifest, settings: Settings) -> bool:
    """Return whether settings continue a run, and log how they differ from those that it started with."""
    try:
        before = settings_of(folder, manifest)
    except RunFolderError as error:
        log.warning("run_not_resumed", folder=str(folder), reason=str(error))
        return False
    advice = f"finish it with: {format_command('auditor resume', folder)} --settings CONFIG"
    if changes := diff_settings(before, settings, ignore=RATE_KEYS):
        reason = f"settings changed since it started: {'; '.join(changes)}"
        log.warning("run_not_resumed", folder=str(folder), reason=reason, advice=advice)
        return False
    if changes := diff_settings(before, settings):
        log.warning("run_resumed_with_changes", folder=str(folder), changes="; ".join(changes))
    return True


def _report_not_resumed(folder: Path, objections: list[str]) -> None:
    """Log why a run is not resumed, and what to do where its file system shows every file as writable by others."""
    reason, advice = " and ".join(objections), {}
    with contextlib.suppress(OSError):
        if folder.stat().st_uid == os.geteuid() and not keeps_modes(folder):
            reason = "its file system shows every file as writable by other users"
            resume = f"{format_command('auditor resume', folder)} --settings CONFIG"
            advice = {"advice": f"mount it with umask=077, or continue the run with: {resume}"}
    log.warning("unfinished_run_not_resumed", folder=str(folder), reason=reason, **advice)


def is_unfinished(manifest: Manifest) -> bool:
    """Return whether a run has devices to query, or was not verified; see ``find_unfinished``."""
    if manifest.state in SUCCESSFUL_STATES or _is_empty_and_old(manifest):
        return False
    pending = manifest.devices.pending > manifest.unsampled
    pending = pending or any(discovery.state == "pending" for discovery in manifest.discovery)
    failed = manifest.devices.failed or any(discovery.state == "partial" for discovery in manifest.discovery)
    otherwise_partial = failed or manifest.unsampled > 0 or bool(manifest.silent or manifest.fleet.shared_identities)
    # A partial run with neither is one that was not verified.
    unverified = manifest.state == "partial" and not otherwise_partial
    return manifest.finished_at is None or pending or unverified


def _is_empty_and_old(manifest: Manifest) -> bool:
    """Return whether a run ended long ago without an answer, and without a device that the platform listed."""
    started = parse_manifest_time(manifest.started_at)
    if started is None or manifest.finished_at is None or time.time() - started.timestamp() < MAX_EMPTY_AGE:
        return False
    is_listed = bool(manifest.discovery) and manifest.fleet.devices > 0
    return not (manifest.devices.answered or manifest.devices.failed or is_listed)


def remove_working_files(folder: Path) -> None:
    """Remove what only a resume needs of a complete run; a process may have been killed before it did that.

    It does nothing while another process uses the folder, or if other users could change it.
    """
    names = (SENT_REQUESTS, SELECTION_WORK, INDEX_FOLDER, DETAILS_FOLDER, RELEASES_FOLDER, RELEASES_WORK)
    found = [path for name in names if os.path.lexists(path := folder / name)]
    if not found or find_foreign_access(folder) is not None:
        return
    with contextlib.suppress(AuditorError, OSError):
        lock = RunLock(folder, max_wait=0)
        try:
            for path in found:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        finally:
            lock.release()


def reopen(
    folder: Path,
    settings: Settings,
    now: float,
    *,
    settings_file: Path | None = None,
    with_hooks: bool = False,
    max_wait: float = MAX_LOCK_WAIT,
) -> PreparedRun | None:
    """Lock a run folder, repair its files, and find its remaining devices; None if another process has completed it.

    Results that were written are kept. Apart from damaged lines nothing is changed until the remaining devices are
    written. The caller has checked that the settings, from ``settings_file`` if that is known, fit the run, and with
    ``with_hooks`` runs their hooks afterwards.

    Raises:
        RunFolderError: another process is writing it or a run of its name in the same directory, or it was changed.
        RunNotWritableError: it cannot be written.
    """
    path = folder.resolve()  # "." has no parent of its own
    warn_if_replaceable(path.parent)
    with directory_lock(path.parent, max_wait):
        lock = RunLock(folder)
        try:
            refuse_overlap(path.parent, read_manifest(folder).name, except_folder=path)
        except BaseException:
            lock.release()
            raise
    try:
        manifest = read_manifest(folder)
        if manifest.state == "complete":
            lock.release()
            remove_working_files(folder)
            return None
        manifest = _with_current_fleet(folder, manifest)
        repair(folder, manifest.devices)
        _drop_unrecorded_selections(folder, manifest)
        remaining = write_remaining_devices(folder, folder / REMAINING)
        # A killed process did not write the requests of its last second to the manifest. After a power cut its file of
        # requests may be missing; most of them can be counted in its results.
        sent = count_sent(requests_before(folder, manifest), DEVICE_OPERATIONS)
        requests = replace(manifest.requests, sent=max(sent, remaining.requests))
        manifest = replace(manifest, devices=remaining.counts, unsampled=remaining.unsampled, requests=requests)
        if settings_file is not None:
            manifest = replace(manifest, settings_file=record_path(settings_file))
        if with_hooks and has_hooks(settings):
            mark_pending_hooks(folder)
        manifest = _mark_running(folder, manifest, settings, now)
        return PreparedRun(folder, lock, manifest, folder / REMAINING, remaining.successful_devices, resumed=True)
    except BaseException as error:
        with contextlib.suppress(OSError):
            (folder / REMAINING).unlink(missing_ok=True)
        lock.release()
        if isinstance(error, OSError):
            raise RunNotWritableError(f"{folder}: cannot be resumed: {error.strerror}") from error
        raise


def _with_current_fleet(folder: Path, manifest: Manifest) -> Manifest:
    """Return the manifest with the current fleet, to which devices may have been added after it was written."""
    growing = any(discovery.state != "complete" for discovery in manifest.discovery)
    sha256 = file_info(folder / FLEET).sha256 if (folder / FLEET).is_file() else ""
    if not sha256 or (sha256 != manifest.fleet.sha256 and not growing):
        raise RunFolderError(f"{folder}: its {FLEET} is missing or was changed, so the remaining devices are not known")
    if not growing:
        return manifest
    devices = count_devices_to_query(folder / FLEET, [account.name for account in manifest.accounts])
    return replace(manifest, fleet=replace(manifest.fleet, devices=sum(devices.values()), sha256=sha256))


def _mark_running(folder: Path, manifest: Manifest, settings: Settings, now: float) -> Manifest:
    """Write that the run is running before sealed files are removed, so that readers use its journals from now on."""
    manifest = replace(
        manifest,
        auditor_version=__about__.VERSION,
        state="running",
        accounts=account_infos(settings),
        finished_at=None,
        rate=replace(manifest.rate, target=target_rate(settings), learned=None),
        failures=(),
        error=None,
        files=(),
        exit_code=None,
        exit_reason=None,
        problems=(),
        resumed_at=(*manifest.resumed_at, format_utc(now)),
        settings=stored_settings(settings),
        settings_sha256=settings_digest(stored_settings(settings)),
    )
    write_manifest(folder, manifest)
    try:
        for name in (*SEALED, COMPRESSED_RESULTS, *PRESENTATION_FILES):
            (folder / name).unlink(missing_ok=True)
        rotate_failures(folder / FAILURES)
    except (OSError, RunNotWritableError) as error:
        with contextlib.suppress(RunNotWritableError):
            reason = f"cannot be resumed: {error}"
            why = ExitReason("cannot_write", escape_undecodable(reason))
            code = RunNotWritableError.exit_code
            aborted = replace(manifest, state="aborted", error=why.message, exit_code=code, exit_reason=why)
            write_manifest(folder, aborted)
        raise
    return manifest


def _drop_unrecorded_selections(folder: Path, manifest: Manifest) -> None:
    """Remove selections that a killed process did not record in the manifest: their accounts select again."""
    recorded = [] if manifest.selection is None else [account.account for account in manifest.selection.accounts]
    for name in (SELECTED, CARRIED, CONNECTIONS):
        if (folder / name).exists():
            keep_accounts(folder / name, recorded)
