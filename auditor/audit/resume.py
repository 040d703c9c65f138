"""Resumes a run that was killed, stopped or left with failures: repair its files and find its remaining devices."""

import contextlib
import shlex
from dataclasses import replace
from pathlib import Path

import msgspec
import structlog

from auditor import __about__
from auditor.audit.setup import account_infos, stored_settings, target_rate
from auditor.config.loader import parse_settings
from auditor.config.serialization import RUN_INDEPENDENT_KEYS, diff_settings, format_setting
from auditor.config.settings import Settings
from auditor.errors import RunFolderError, RunNotWritableError, SettingsError
from auditor.fleet.table import count_devices_to_query
from auditor.runs.folder import CARRIED, FAILURES, FLEET, PLAN, PRESENTATION_FILES, SEALED, RunCatalog
from auditor.runs.locking import PreparedRun, RunLock, directory_lock, refuse_overlap
from auditor.runs.manifest import Manifest, file_info, read_manifest, write_manifest
from auditor.runs.recovery import REMAINING, repair, rotate_failures, write_remaining_devices
from auditor.selection.plan_files import keep_accounts
from auditor.text.formatting import format_utc

log = structlog.get_logger()


def find_unfinished(directory: Path, name: str) -> Path | None:
    """Return the newest run of a name in a directory if it is unfinished; None if it is finished, or there is none.

    A run is unfinished if devices are pending, if a discovery is pending, or if it was not sealed or verified. A sealed
    run without pending devices is finished, even if devices or products failed: ``resume`` retries those on request.
    """
    catalog = RunCatalog(directory, missing_ok=True)
    catalog.log_unreadable()
    if (run := catalog.latest(name)) is None:
        return None
    manifest, folder = run
    pending = manifest.devices.pending > manifest.unsampled
    pending = pending or any(discovery.state == "pending" for discovery in manifest.discovery)
    failed = manifest.devices.failed or any(discovery.state == "partial" for discovery in manifest.discovery)
    verified = manifest.state != "partial" or failed or manifest.unsampled > 0
    finished = manifest.finished_at is not None and not pending and verified
    return None if finished else folder


def reopen(folder: Path, settings: Settings, now: float) -> PreparedRun | None:
    """Lock a run folder, repair its files, and find its remaining devices; None if another process has completed it.

    Results that were written are kept. Apart from damaged lines nothing is changed until the remaining devices are
    written. The caller has checked that the settings fit the run.

    Raises:
        RunFolderError: another process is writing it or a run of its name in the same directory, or it was changed.
        RunNotWritableError: it cannot be written.
    """
    path = folder.resolve()  # "." has no parent of its own
    with directory_lock(path.parent):
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
            return None
        manifest = _with_current_fleet(folder, manifest)
        repair(folder)
        _drop_unrecorded_selections(folder, manifest)
        remaining = write_remaining_devices(folder, folder / REMAINING)
        # A killed process did not record the requests of its last second; most of them can be counted in its results.
        requests = replace(manifest.requests, sent=max(manifest.requests.sent, remaining.requests))
        manifest = replace(manifest, devices=remaining.counts, unsampled=remaining.unsampled, requests=requests)
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
        resumed_at=(*manifest.resumed_at, format_utc(now)),
        settings=stored_settings(settings),
    )
    write_manifest(folder, manifest)
    try:
        for name in (*SEALED, *PRESENTATION_FILES):
            (folder / name).unlink(missing_ok=True)
        rotate_failures(folder / FAILURES)
    except (OSError, RunNotWritableError) as error:
        with contextlib.suppress(RunNotWritableError):
            write_manifest(folder, replace(manifest, state="aborted", error=f"cannot be resumed: {error}"))
        raise
    return manifest


def _drop_unrecorded_selections(folder: Path, manifest: Manifest) -> None:
    """Remove selections that a killed process did not record in the manifest: their accounts select again."""
    recorded = [] if manifest.selection is None else [account.account for account in manifest.selection.accounts]
    for name in (PLAN, CARRIED):
        if (folder / name).exists():
            keep_accounts(folder / name, recorded)


def settings_to_resume(folder: Path, given: Settings | None) -> Settings:
    """Return the settings to resume a run with: its own, or given ones with the same accounts.

    Raises:
        RunFolderError: the run has no settings that can be used, or the given ones have other accounts.
    """
    manifest = read_manifest(folder)
    if given is None:
        return settings_of(folder, manifest)
    if manifest.settings is None:
        recorded = {(account.name, account.endpoint, account.dialect) for account in manifest.accounts}
        same = recorded == {(account.name, account.endpoint, account.dialect) for account in given.account}
        changes = [] if same else ["the run has other accounts"]
        fleets = {account.name: account.fleet for account in given.account}
    else:
        before = settings_of(folder, _without_ca_files(manifest))
        changes = diff_settings(before, given, ignore=RUN_INDEPENDENT_KEYS)
        fleets = {account.name: account.fleet for account in before.account}
    if changes:
        raise RunFolderError(f"{folder}: cannot be resumed with these settings: {'; '.join(changes)}")
    accounts = tuple(msgspec.structs.replace(each, fleet=fleets.get(each.name)) for each in given.account)
    return msgspec.structs.replace(given, account=accounts)


def _without_ca_files(manifest: Manifest) -> Manifest:
    """Return the manifest without ``ca_file`` settings: a file may have moved, and given settings name the new one."""
    table = manifest.settings or {}
    accounts = table.get("account")
    if not isinstance(accounts, list):
        return manifest
    kept = [{key: each[key] for key in each if key != "ca_file"} for each in accounts if isinstance(each, dict)]
    return replace(manifest, settings={**table, "account": kept})


def refuse_changed_settings(folder: Path, settings: Settings, limit: int | None) -> None:
    """Raise RunFolderError if settings differ from those of a run; the places of credentials may differ."""
    manifest = read_manifest(folder)
    before = settings_of(folder, manifest)
    changes = diff_settings(before, settings)
    advice = f"finish it with the new ones: auditor resume {shlex.quote(str(folder))} --settings CONFIG"
    if {each.name: each.fleet for each in before.account} != {each.name: each.fleet for each in settings.account}:
        advice = "restore its fleet settings"
    if manifest.fleet.limit != limit:
        changes.append(f"limit changed from {format_setting(manifest.fleet.limit)} to {format_setting(limit)}")
        advice = "give the same limit"
    if changes:
        raise RunFolderError(
            f"{folder}: settings changed since this run started: {'; '.join(changes)}. "
            f"Drop --resume to start a new run, or {advice}"
        )


def settings_of(folder: Path, manifest: Manifest) -> Settings:
    """Return the settings that a run stores; raise RunFolderError if it has none that can be used."""
    if manifest.settings is None:
        raise RunFolderError(f"{folder}: its run.json has no settings; give them with --settings")
    try:
        return parse_settings(manifest.settings, where=f"{folder}/run.json: settings")
    except SettingsError as error:
        raise RunFolderError(f"{error}; give other settings with --settings") from error
