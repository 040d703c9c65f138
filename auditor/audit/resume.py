"""Going on with a run that was killed, stopped or left with failures: mends its files and finds what is left."""

import contextlib
import shlex
from dataclasses import replace
from pathlib import Path

import msgspec
import structlog

from auditor import __about__
from auditor.audit.setup import facts_of, kept_of, target_of
from auditor.config.loader import settings_from
from auditor.config.serialization import HOW, _told, differences
from auditor.config.settings import Settings
from auditor.errors import RunFolderError, RunNotWritableError, SettingsError
from auditor.fleet.table import devices_to_ask
from auditor.runs.folder import CARRIED, FAILED, FLEET, PLAN, SEALED, SHOWN, runs_in
from auditor.runs.locking import Begun, Hold, door, refuse_overlap
from auditor.runs.manifest import Manifest, file_facts, read_manifest, write_manifest
from auditor.runs.recovery import LEFT, _mend, _set_aside, write_pending
from auditor.selection.plan_files import keep_accounts
from auditor.text.formatting import utc

log = structlog.get_logger()


def unfinished(directory: Path, name: str) -> Path | None:
    """The newest run of a name in a directory, if there is one and something is left to do in it.

    A run with devices pending is unfinished, or with a fleet that was not listed, and so is one that was not sealed or
    proven. One that was sealed and whose every device was asked is done, even if some failed, or some products could
    not be listed: to ask those again is a wish of its own, for ``resume``.

    Raises:
        RunFolderError: the directory cannot be read.
    """
    if not directory.exists():
        return None
    runs, broken = runs_in(directory)
    for error in broken:
        log.warning("a run is passed over", reason=str(error))
    for manifest, folder in runs:
        if manifest.name == name:
            counts = manifest.devices
            to_ask = counts.pending - manifest.unsampled
            in_part = counts.failed or any(listing.state == "partial" for listing in manifest.listings)
            proven = manifest.state != "partial" or in_part or manifest.unsampled > 0
            pending = to_ask or any(listing.state == "pending" for listing in manifest.listings)
            done = manifest.finished_at is not None and not pending and proven
            return None if done else folder
    return None


def go_on(folder: Path, settings: Settings, now: float) -> Begun | None:
    """Takes a run folder, mends it, and finds what is left; answers that were written stay as they are.

    Nothing of it is changed but what is torn or spoilt until it is known what is left, and that there is room for that.

    Args:
        folder: the run folder.
        settings: to go on with; that they fit the run was looked at before.
        now: seconds since 1970.

    Returns:
        The run folder ready; None if another process has completed it by now.

    Raises:
        RunFolderError: another process is writing it, or a run of its name beside it, or it is not what it was.
        RunNotWritableError: it cannot be written.
    """
    place = folder.resolve()  # "." has no parent of its own
    with door(place.parent):
        hold = Hold(folder)
        try:
            refuse_overlap(place.parent, read_manifest(folder).name, but=place)
        except BaseException:
            hold.release()
            raise
    try:
        manifest = read_manifest(folder)
        if manifest.state == "complete":
            hold.release()
            return None
        manifest = _with_its_fleet(folder, manifest)
        _mend(folder)
        _drop_choices(folder, manifest)
        left = write_pending(folder, folder / LEFT)
        # A killed process did not write down the requests of its last second; its answers tell of most.
        requests = replace(manifest.requests, sent=max(manifest.requests.sent, left.requests))
        manifest = replace(manifest, devices=left.counts, unsampled=left.unsampled, requests=requests)
        return Begun(folder, hold, _reopened(folder, manifest, settings, now), folder / LEFT, left.known, resumed=True)
    except BaseException as error:
        with contextlib.suppress(OSError):
            (folder / LEFT).unlink(missing_ok=True)
        hold.release()
        if isinstance(error, OSError):
            raise RunNotWritableError(f"{folder}: cannot be resumed: {error.strerror}") from error
        raise


def _with_its_fleet(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest, of the fleet that is there: one that was growing may have grown since the manifest was written.

    Raises:
        RunFolderError: the fleet is missing, or is another one.
    """
    growing = any(listing.state != "complete" for listing in manifest.listings)
    sha256 = file_facts(folder / FLEET).sha256 if (folder / FLEET).is_file() else ""
    if not sha256 or (sha256 != manifest.fleet.sha256 and not growing):
        raise RunFolderError(f"{folder}: its {FLEET} is missing or was changed, so nothing tells what is left")
    if not growing:
        return manifest
    devices = devices_to_ask(folder / FLEET, [account.name for account in manifest.accounts])
    return replace(manifest, fleet=replace(manifest.fleet, devices=sum(devices.values()), sha256=sha256))


def _reopened(folder: Path, manifest: Manifest, settings: Settings, now: float) -> Manifest:
    """Says that the run is at work again, before a sealed file is gone: whoever reads it now reads its lines."""
    manifest = replace(
        manifest,
        auditor_version=__about__.VERSION,
        state="running",
        accounts=facts_of(settings),
        finished_at=None,
        rate=replace(manifest.rate, target=target_of(settings), allowed=None),
        failures=(),
        error=None,
        files=(),
        resumed_at=(*manifest.resumed_at, utc(now)),
        settings=kept_of(settings),
    )
    write_manifest(folder, manifest)
    try:
        for name in (*SEALED, *SHOWN):
            (folder / name).unlink(missing_ok=True)
        _set_aside(folder / FAILED)
    except (OSError, RunNotWritableError) as error:
        with contextlib.suppress(RunNotWritableError):
            write_manifest(folder, replace(manifest, state="aborted", error=f"cannot be resumed: {error}"))
        raise
    return manifest


def _drop_choices(folder: Path, manifest: Manifest) -> None:
    """Leaves out what was chosen of an account and not said in the manifest: it chooses anew."""
    known = [] if manifest.choice is None else [account.account for account in manifest.choice.accounts]
    for name in (PLAN, CARRIED):
        if (folder / name).exists():
            keep_accounts(folder / name, known)


def settings_to_resume(folder: Path, given: Settings | None) -> Settings:
    """The settings for a run's next stretch: its own, or given ones that ask the same accounts.

    Raises:
        RunFolderError: the run keeps none that can be used, or those that were given ask another platform.
    """
    manifest = read_manifest(folder)
    if given is None:
        return settings_of(folder, manifest)
    if manifest.settings is None:
        known = {(account.name, account.endpoint, account.dialect) for account in manifest.accounts}
        other = ["its accounts are others"] if known != {(a.name, a.endpoint, a.dialect) for a in given.account} else []
        fleets = {account.name: account.fleet for account in given.account}
    else:
        before = settings_of(folder, _without_ca_files(manifest))
        other = differences(before, given, besides=HOW)
        fleets = {account.name: account.fleet for account in before.account}
    if other:
        raise RunFolderError(f"{folder}: cannot be resumed with these settings: {'; '.join(other)}")
    accounts = tuple(msgspec.structs.replace(each, fleet=fleets.get(each.name)) for each in given.account)
    return msgspec.structs.replace(given, account=accounts)


def _without_ca_files(manifest: Manifest) -> Manifest:
    """A manifest whose settings can be read though an authority's file has moved: other settings name another one."""
    table = manifest.settings or {}
    accounts = table.get("account")
    if not isinstance(accounts, list):
        return manifest
    kept = [{key: each[key] for key in each if key != "ca_file"} for each in accounts if isinstance(each, dict)]
    return replace(manifest, settings={**table, "account": kept})


def refuse_other_settings(folder: Path, settings: Settings, limit: int | None) -> None:
    """Refuses settings that are not those that a run was asked with last; where keys lie may differ.

    Raises:
        RunFolderError: they differ, and in what.
    """
    manifest = read_manifest(folder)
    before = settings_of(folder, manifest)
    other = differences(before, settings)
    advice = f"or take them for what is left: auditor resume {shlex.quote(str(folder))} --settings CONFIG"
    if {each.name: each.fleet for each in before.account} != {each.name: each.fleet for each in settings.account}:
        advice = "for a run keeps its fleet"
    if manifest.fleet.limit != limit:
        other.append(f"limit was {_told(manifest.fleet.limit)} and is {_told(limit)}")
        advice = "or give the same limit"
    if other:
        raise RunFolderError(
            f"{folder}: was asked with other settings: {'; '.join(other)}. Leave out --resume to begin anew, {advice}"
        )


def settings_of(folder: Path, manifest: Manifest) -> Settings:
    """The settings that a run was begun with.

    Raises:
        RunFolderError: the run has none, or none that can be used.
    """
    if manifest.settings is None:
        raise RunFolderError(f"{folder}: its run.json keeps no settings; give them with --settings")
    try:
        return settings_from(manifest.settings, where=f"{folder}/run.json: settings")
    except SettingsError as error:
        raise RunFolderError(f"{error}; give other settings with --settings") from error
