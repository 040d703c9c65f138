"""Going on with a run that was killed, stopped or left with failures: mends its files and finds what is left."""

import contextlib
import shutil
from dataclasses import replace
from pathlib import Path

import orjson
import structlog

from auditor import __about__
from auditor.appending import cut_torn_line
from auditor.audit.beginning import Begun, facts_of, kept_of, target_of
from auditor.audit.disk import RESERVE
from auditor.audit.folder import Hold, door, refuse_overlap
from auditor.audit.journal import utc
from auditor.config import Settings
from auditor.errors import RunFolderError, RunNotWritableError
from auditor.fleet.parts import keep_accounts
from auditor.fleet.rows import devices_to_ask
from auditor.inventory.folder import (
    ANSWERED,
    CARRIED,
    FAILED,
    FLEET,
    PLAN,
    SEALED,
    SHOWN,
    Manifest,
    put_in_place,
    read_manifest,
    replace_file,
    runs_in,
    to_disk,
    write_manifest,
)
from auditor.inventory.pending import WORK, write_pending
from auditor.inventory.seal import file_facts

log = structlog.get_logger()

LEFT = ".left.parquet"
"""The devices that a resumed audit asks, while it does."""

LEFT_OVERS = ("*.settling", ".sealing", ".verifying-*", WORK, LEFT, RESERVE, "*.new")
"""What a process leaves in a run folder that is killed while it begins, asks, seals or verifies."""


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


def _mend(folder: Path) -> None:
    for pattern in LEFT_OVERS:
        for path in folder.glob(pattern):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
    for live in (ANSWERED, FAILED):
        (folder / live).touch()
    cut_torn_line(folder / ANSWERED)
    _drop_unreadable_lines(folder / ANSWERED)


def _drop_choices(folder: Path, manifest: Manifest) -> None:
    """Leaves out what was chosen of an account and not said in the manifest: it chooses anew."""
    known = [] if manifest.choice is None else [account.account for account in manifest.choice.accounts]
    for name in (PLAN, CARRIED):
        if (folder / name).exists():
            keep_accounts(folder / name, known)


def _drop_unreadable_lines(path: Path) -> None:
    """Leaves lines out that a broken disk or a careless hand has spoilt; their devices are asked again."""
    with path.open("rb") as file:
        spoilt = sum(1 for line in file if not _is_answer(line))
    if not spoilt:
        return
    log.warning("lines cannot be read and are dropped; their devices are asked again", file=str(path), lines=spoilt)
    new = path.with_name(path.name + ".new")
    with path.open("rb") as file, new.open("wb") as kept:
        kept.writelines(line for line in file if _is_answer(line))
    put_in_place(new, path)


def _is_answer(line: bytes) -> bool:
    """Whether a line is a conclusive answer that does not contradict itself."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    match record:
        case {"account": str(), "status": "ok" | "empty" | "not_found" as status, "modules": list(), "total": int()}:
            modules = record["modules"]
            return bool(record["total"] == len(modules) and (status == "ok") == bool(modules))
    return False


def _set_aside(failures: Path) -> None:
    """Begins the file of failures anew; the old one stays beside it under a number."""
    if failures.stat().st_size == 0:
        return
    numbered = ((old.name.split(".")[1], old) for old in failures.parent.glob("failures.*.jsonl"))
    before = {int(number): old for number, old in numbered if number.isdecimal()}
    # Never missing, and never lost: for a moment both names are there, and longer if the process is killed then.
    if not any(old.samefile(failures) for old in before.values()):
        aside = failures.with_name(f"failures.{max(before, default=0) + 1}.jsonl")
        try:
            aside.hardlink_to(failures)
        except OSError:  # a file system without links; then the next resume begins a missing file anew
            failures.rename(aside)
    replace_file(failures, b"")
    to_disk(failures.parent)
