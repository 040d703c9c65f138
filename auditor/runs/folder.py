"""The files of a run folder, and the runs of a directory."""

import contextlib
import os
import re
import time
from collections.abc import Container, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal, NamedTuple

from auditor.errors import RunFolderError, UsageError
from auditor.log import log
from auditor.runs.manifest import MANIFEST, SUCCESSFUL_STATES, Manifest, read_manifest
from auditor.storage.files import create_file, translate_os_errors
from auditor.storage.foreign_access import trusted_owners
from auditor.text.durations import parse_duration
from auditor.text.formatting import format_count, format_utc, parse_manifest_time
from auditor.text.shell import format_command

FLEET = "fleet.parquet"
RESULTS = "devices.jsonl"
COMPRESSED_RESULTS = "devices.jsonl.gz"
FAILURES = "failures.jsonl"
PRODUCTS = "products.jsonl"
SELECTED = "plan.parquet"
CARRIED = "carried.parquet"
CONNECTIONS = "connections.parquet"
DEVICES = "devices.parquet"
MODULES = "modules.parquet"
INVENTORY_CSV = "inventory.csv"
INVENTORY_JSON = "inventory.json"
CHANGES = "changes.parquet"
FIRMWARE = "firmware.parquet"
TASKS = "tasks.parquet"

OPTIONAL = (PRODUCTS, SELECTED, CARRIED, CONNECTIONS, FIRMWARE, TASKS)
"""Files that only some runs have: products, selected devices, carried results, connection states, and releases."""

SEALED = (DEVICES, MODULES, INVENTORY_CSV, INVENTORY_JSON)

REPORT_HTML = "report.html"
INVENTORY_XLSX = "inventory.xlsx"

READ_BY_QUERIES = (FLEET, RESULTS, COMPRESSED_RESULTS, FAILURES, *OPTIONAL, DEVICES, MODULES, CHANGES)
"""Files that DuckDB opens by their names."""

CUT_PLAN, NEWEST_CUT = "plan.json", "newest"
"""Object of a run that was cut, which no run folder has; folder beside such runs, with the names of the newest ones."""

PRESENTATION_FILES = (REPORT_HTML, INVENTORY_XLSX)
"""Files that hooks make of a sealed run for people. They are outside the run's contract; a resume removes them."""

MAX_FOREIGN_MANIFEST_BYTES = 64 << 20
"""Bytes of manifests of other users that are read of a directory; 1,000 runs have about 4 MB. Each takes memory."""

MAX_CLOCK_DIFFERENCE = 3 * 86_400.0
"""Seconds that the start of a run can be in the future, by the clock of another machine. A later one is impossible."""

FOLDER_NAME = re.compile(r"(\d{8}T\d{6}Z)-.+")
"""Name of a run folder: the time at which the run started, and the name of the run."""


ARCHIVE = ".changes"
"""Folder of a directory of runs: ``run.json`` and ``changes.parquet`` of deleted runs, in a folder for each."""

Preference = Literal["newest", "fleet", "successful", "unfinished"]
"""Which run of a directory is meant: the newest one, or the newest one of its name that covers the fleet, or that is
also successful. ``unfinished``, for a resume: the newest one that is no trial, unless only a newer trial is unfinished.
Where no run meets the condition, it is the newest one."""

DEFAULT_DIRECTORY = Path("audits")
"""Directory of runs that is meant where none is given."""

WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

REFERENCES = "last, last~3, today, yesterday, monday, 2026-11-23 or 7d"
"""How the runs of a directory are named, besides by their folders; examples for messages."""

_LAST = re.compile(r"last(?:~(\d{1,6}))?")

PENDING_HOOKS = ".hooks"
"""File in a run folder while the run's hooks, such as its policy and its report, are still to run.

``hooks.notifications`` adds a line to it for each message that was delivered.
"""

DEFERRED_HOOKS = ".hooks-deferred"
"""New name of ``PENDING_HOOKS`` after hooks that could not run, as they need settings that only a user can give."""


def has_pending_hooks(folder: Path, *, deferred: bool = True) -> bool:
    """Return whether hooks of a run have not run: it is in progress, was killed before, or they were ``deferred``."""
    return (folder / PENDING_HOOKS).is_file() or (deferred and (folder / DEFERRED_HOOKS).is_file())


def mark_pending_hooks(folder: Path) -> None:
    """Record that the hooks of a run are to run when it has ended; raise OSError if that cannot be written."""
    if not os.path.lexists(folder / PENDING_HOOKS):
        create_file(folder / PENDING_HOOKS)


def clear_pending_hooks(folder: Path) -> None:
    """Record that the hooks of a run have run, with success or not."""
    with contextlib.suppress(OSError):  # a folder that cannot be written any more: a resume runs them again
        for name in (PENDING_HOOKS, DEFERRED_HOOKS):
            (folder / name).unlink(missing_ok=True)


def defer_hooks(folder: Path) -> None:
    """Record that the hooks of a run have run, except for some that need other settings."""
    with contextlib.suppress(OSError):  # none were pending, or the folder cannot be written any more
        (folder / PENDING_HOOKS).rename(folder / DEFERRED_HOOKS)


def refuse_run_file(path: Path) -> None:
    """Raise UsageError for a file that belongs to a run, which only an audit may change."""
    own = (MANIFEST, FLEET, RESULTS, COMPRESSED_RESULTS, FAILURES, *OPTIONAL, *SEALED, CHANGES)
    target = Path(os.path.realpath(path))
    if target.name in own and (target.parent / MANIFEST).is_file():
        raise UsageError(f"{path}: is a file of a run and cannot be overwritten; give another path")


class StoredRun(NamedTuple):
    """A run folder and its manifest."""

    manifest: Manifest
    folder: Path

    @property
    def ended(self) -> bool:
        """Whether the run is neither in progress nor killed."""
        return self.manifest.state != "running"

    @property
    def sealed(self) -> bool:
        """Whether the run is read from its Parquet files."""
        return is_sealed(self.folder, self.manifest)

    @property
    def is_success(self) -> bool:
        """Whether the run covers the fleet, and has as many answers as required."""
        return self.manifest.is_success

    @property
    def finished(self) -> bool:
        """Whether a resume is not necessary: it did what was required of it, and its hooks have run."""
        return self.manifest.state in SUCCESSFUL_STATES and not has_pending_hooks(self.folder)

    @property
    def seconds(self) -> float | None:
        """Seconds from its start to its end; None: it has not ended, a clock was wrong, or a time cannot be parsed."""
        start, end = map(parse_manifest_time, (self.manifest.started_at, self.manifest.finished_at))
        if start is None or end is None:
            return None
        seconds = (end - start).total_seconds()
        return seconds if seconds >= 0 else None


class RunCatalog:
    """The runs of a directory, as they were when it was read. Hidden folders, links, and other folders are skipped.

    So are, in a directory that all users can write, runs of users other than the caller, root, and its owner: their
    runs are read only if their folders are given.

    With ``missing_ok``, a directory that does not exist is an empty one. One that cannot be read raises RunFolderError.

    Attributes:
        runs: the newest first; those with an impossible time last.
        unreadable: what is wrong with run folders whose manifest cannot be read, or is not trusted.
    """

    def __init__(self, directory: Path, *, missing_ok: bool = False) -> None:
        self.directory = directory
        self.runs: list[StoredRun] = []
        self.unreadable: list[RunFolderError] = []
        self._foreign_bytes, self._latest_start = 0, time.time() + MAX_CLOCK_DIFFERENCE
        self._owners: frozenset[int] | None = None
        with translate_os_errors(f"{directory}: cannot be read", RunFolderError):
            if missing_ok and not directory.exists():
                return
            refuse_cut_run(directory)
            folders = [path for path in directory.iterdir() if not path.name.startswith(".") and not path.is_symlink()]
            self._owners = trusted_owners(directory)
        for folder in folders:
            try:
                if has_manifest(folder):  # another process may delete the folder in between
                    self.runs.append(StoredRun(self._read(folder), folder))
            except RunFolderError as error:
                self.unreadable.append(error)
        self.runs.sort(key=self._order, reverse=True)

    def _read(self, folder: Path) -> Manifest:
        """Read a manifest.

        Raises:
            RunFolderError: it is invalid, or of a user who is not trusted; or those of other users have too many bytes.
        """
        if (owner := self._untrusted_owner(folder)) is not None:
            raise RunFolderError(
                f"{folder}: belongs to another user (uid {owner}) in a directory that all users can write; "
                "give this folder to read it"
            )
        size = _foreign_manifest_bytes(folder)
        self._foreign_bytes += size
        if size and self._foreign_bytes > MAX_FOREIGN_MANIFEST_BYTES:
            raise RunFolderError(f"{folder}: is not read: the manifests of other users here are too large")
        return read_manifest(folder)

    def _untrusted_owner(self, folder: Path) -> int | None:
        """Return the owner of a folder if it is not trusted; None if it is."""
        with contextlib.suppress(OSError):  # deleted meanwhile: reading it reports that
            owners = {folder.lstat().st_uid, (folder / MANIFEST).lstat().st_uid}
            return None if self._owners is None else next(iter(owners - self._owners), None)
        return None

    def is_possible(self, run: StoredRun) -> bool:
        """Return whether a run's start, in its manifest and in its folder's name, is not in the future."""
        stamp = FOLDER_NAME.fullmatch(run.folder.name)
        latest_stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self._latest_start))
        in_time = run.manifest.started_at <= format_utc(self._latest_start)
        return in_time and (stamp is None or stamp[1] <= latest_stamp)

    def _order(self, run: StoredRun) -> tuple[bool, str, str]:
        return self.is_possible(run), run.manifest.started_at, run.folder.name

    def named(self, name: str) -> list[StoredRun]:
        """Return the runs of one name, the newest first."""
        return [run for run in self.runs if run.manifest.name == name]

    def latest(
        self, name: str | None = None, *, ended: bool = False, sealed: bool = False, successful: bool = False
    ) -> StoredRun | None:
        """Return the newest run, of a name or of all, that meets the conditions of ``StoredRun``; None: none does."""
        for run in self.runs if name is None else self.named(name):
            if (run.ended or not ended) and (run.is_success or not successful) and (run.sealed or not sealed):
                return run
        return None

    def previous(self, manifest: Manifest, folder: Path) -> StoredRun | None:
        """Return the newest ended run with answers of the same name that began before a run, or else the newest one.

        None if there is none. One without answers, as of a night without the platform, says nothing of what changed.
        """
        earlier = list(self.earlier(manifest, folder))
        return next((run for run in earlier if run.manifest.devices.answered), earlier[0] if earlier else None)

    def earlier(self, manifest: Manifest, folder: Path) -> Iterator[StoredRun]:
        """Yield the ended runs of the same name that began before a run, the newest first.

        Runs of a part of the fleet are skipped, unless the run is one itself.
        """
        own = self._order(StoredRun(manifest, folder))
        for run in self.named(manifest.name):
            if self._order(run) < own and run.ended and (run.manifest.covers_fleet or not manifest.covers_fleet):
                yield run

    def preferred(self, preference: Preference) -> StoredRun | None:
        """Return the run that is read where a directory is given; None if it has none."""
        newest = self.latest()
        if newest is None or preference == "newest":
            return newest
        own = self.named(newest.manifest.name)
        if preference == "unfinished":
            run = next((run for run in own if not (run.manifest.trial or run.manifest.fleet.cut)), newest)
            return newest if run.finished and not newest.finished else run
        covering = (run for run in own if run.manifest.covers_fleet and (run.is_success or preference == "fleet"))
        return next(covering, newest)

    def refer(self, reference: str, *, archived: bool = False) -> StoredRun:
        """Return the run that a reference means, such as ``last``, ``last~3``, ``monday``, ``2026-11-23`` or ``7d``.

        It is one of the ended runs of the fleet with the name of the newest one; with ``archived``, a deleted run whose
        changes are kept counts too. A day means its last run, or the last one before it; days are in UTC, and a weekday
        is one of the last seven days before today. A duration means the last run that is at least so old.

        Raises:
            RunFolderError: it is no reference, or no run is so old.
        """
        runs = self._referable(archived=archived)
        if not runs:
            raise RunFolderError(f"{self.directory}: contains no ended run of the complete fleet")
        if (last := _LAST.fullmatch(reference)) is not None:
            back = int(last[1] or 0)
            if back < len(runs):
                return runs[back]
            found = format_count(len(runs), "run")
            raise RunFolderError(f"{self.directory}: has no {reference}: it contains {found} of its name")
        until = _reference_time(reference, time.time())
        for run in runs:
            if run.manifest.started_at < until:
                return run
        oldest = f"its oldest run, {runs[-1].folder.name}, is newer"
        raise RunFolderError(f"{self.directory}: has no run of {reference}: {oldest}")

    def _referable(self, *, archived: bool) -> list[StoredRun]:
        """Return the ended runs of the fleet with the name of the newest one, the newest first; or else all ended."""
        ended = [run for run in self.runs if run.ended and self.is_possible(run)]
        ended = [run for run in ended if run.manifest.covers_fleet] or ended
        own = [run for run in ended if run.manifest.name == ended[0].manifest.name]
        if archived and own:
            own += [run for run in self.archived() if run.manifest.name == own[0].manifest.name]
            own.sort(key=self._order, reverse=True)
        return own

    def archived(self) -> list[StoredRun]:
        """Return the deleted runs whose changes are kept, the newest first. What cannot be read is skipped."""
        archive = self.directory / ARCHIVE
        try:
            if archive.is_symlink() or (self._owners is not None and archive.lstat().st_uid not in self._owners):
                return []
            folders = [path for path in archive.iterdir() if not path.is_symlink()]
        except OSError:
            return []
        found = []
        for folder in folders:
            with contextlib.suppress(RunFolderError):
                found.append(StoredRun(read_manifest(folder), folder))
        return sorted(found, key=self._order, reverse=True)

    def change_log(self, run: StoredRun) -> list[StoredRun]:
        """Return a run and those before it whose changes are recorded without a gap, the newest first.

        The run before the last one of them is the first one whose versions are known.
        """
        recorded = {each.folder.name: each for each in (*self.archived(), *self.runs) if each.manifest.changes}
        log_: list[StoredRun] = []
        current: StoredRun | None = run
        while current is not None and (changes := current.manifest.changes) is not None:
            if not (current.folder / CHANGES).is_file():
                break
            log_.append(current)
            current = recorded.pop(changes.previous, None)  # popped, so that a circle in damaged manifests ends
        return log_

    def baseline(self, name: str) -> StoredRun | None:
        """Return the run that ``since = "last"`` refers to; None if there is none.

        It is the newest finished run of the name with no more pending devices than ``max_failed`` allows; without one,
        the newest finished run. Samples and runs of an incomplete fleet (``--limit``, ``--account``) do not qualify.
        Nor do runs without any answer, or without an answer that is believed. The run's files are not read.
        """
        finished = [
            run
            for run in self.named(name)
            if run.manifest.finished_at is not None
            and run.sealed
            and (run.manifest.selection is None or run.manifest.selection.strategy != "sample")
            and not run.manifest.fleet.cut
            and not run.manifest.silent_accounts.issuperset(each.name for each in run.manifest.accounts)
            and run.manifest.devices.answered
        ]
        queried = (run for run in finished if run.is_success or not run.manifest.devices.pending)
        return next(queried, finished[0] if finished else None)

    def log_unreadable(self) -> None:
        """Log a warning for each run that cannot be read, once in a process."""
        for error in self.unreadable:
            log.warning_once("run_skipped", reason=str(error))


def _foreign_manifest_bytes(folder: Path) -> int:
    """Return the size of the manifest of another user's run, at least a block; 0 for the caller's own and root's."""
    try:
        found = (folder / MANIFEST).lstat()
    except OSError:  # deleted meanwhile: reading it reports that
        return 0
    return 0 if found.st_uid in {os.geteuid(), 0} else max(found.st_size, 4096)


def has_manifest(folder: Path) -> bool:
    """Return whether a folder has a manifest of any kind; a folder that cannot be entered is that of another program.

    Raises:
        RunFolderError: the folder has the name of a run, but cannot be read.
    """
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (folder / MANIFEST).lstat()
            return True
    except OSError as error:  # such as lost+found
        if FOLDER_NAME.fullmatch(folder.name):
            raise RunFolderError(f"{folder}: cannot be read: {error.strerror}") from error
    return False


def _reference_time(reference: str, now: float) -> str:
    """Return the time before which the meant run started; raise RunFolderError if the text is no reference."""
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    word = reference.strip().lower()
    day: datetime | None = None
    if word in {"today", "yesterday"}:
        day = today - timedelta(days=word == "yesterday")
    elif weekday := [each for each in WEEKDAYS if each.startswith(word) and len(word) >= 3]:  # noqa: PLR2004  letters
        back = (today.weekday() - WEEKDAYS.index(weekday[0]) - 1) % 7 + 1
        day = today - timedelta(days=back)
    else:
        with contextlib.suppress(ValueError):
            day = datetime.strptime(word, "%Y-%m-%d").replace(tzinfo=UTC)
    if day is not None:
        return format_utc((day + timedelta(days=1)).timestamp())
    try:
        return format_utc(now - parse_duration(word))
    except ValueError:
        raise RunFolderError(f"{reference}: is no run; give its folder, or {REFERENCES}") from None


def find_stored_run(path: Path, preference: Preference = "newest") -> tuple[StoredRun, StoredRun]:
    """Return the run that a path means, and the newest run that it could have meant: the same one, or a newer one.

    A path is a run folder, a directory of runs, or a reference to a run of a directory, such as ``audits/last~1``; see
    ``RunCatalog.refer``. Without a directory, a reference means a run in ``audits``.

    Raises:
        RunFolderError: it is none of them; or no run can be read, with the error of the first.
    """
    refuse_cut_run(path)
    with translate_os_errors(f"{path}: cannot be read", RunFolderError):
        if path.is_dir() and os.path.lexists(path / MANIFEST):
            run = StoredRun(read_manifest(path), path)
            return run, run
        if not path.is_dir():
            directory = DEFAULT_DIRECTORY if path.parent == Path() else path.parent
            if path.exists() or not directory.is_dir() or not _is_reference(path.name):
                advice = f"give a run folder, a directory of runs, or a run of one, such as {DEFAULT_DIRECTORY}/last~1"
                missing = "no such run (auditor runs lists them)" if directory.is_dir() else "no such run or directory"
                problem = "is not a folder" if path.exists() else missing
                raise RunFolderError(f"{path}: {problem}; {advice}")
            catalog = RunCatalog(directory)
            catalog.log_unreadable()
            run = catalog.refer(path.name)
            return run, run
    catalog = RunCatalog(path)
    catalog.log_unreadable()
    newest, preferred = catalog.latest(), catalog.preferred(preference)
    if newest is not None and preferred is not None:
        return preferred, newest
    if catalog.unreadable:
        raise catalog.unreadable[0]
    raise RunFolderError(f"{path}: is not a run folder (it has no {MANIFEST}) and contains no run")


def _is_reference(text: str) -> bool:
    try:
        return _LAST.fullmatch(text) is not None or bool(_reference_time(text, time.time()))
    except RunFolderError:
        return False


def find_run(path: Path, preference: Preference = "newest") -> Path:
    """Return the folder of the run that a path means; see ``find_stored_run``."""
    refuse_cut_run(path)
    with translate_os_errors(f"{path}: cannot be read", RunFolderError):
        if path.is_dir() and os.path.lexists(path / MANIFEST):
            return path  # its manifest may be unreadable, which the caller reports
    return find_stored_run(path, preference)[0].folder


def is_cut_run(address: str) -> bool:
    """Return whether an address is that of a run that was cut, or of a storage of such runs."""
    path, folder = os.path, Path(address) / NEWEST_CUT  # these functions raise nothing, whatever an address is
    is_storage = path.isdir(folder) and not path.islink(folder) and not path.lexists(folder / MANIFEST)
    return "://" in address or path.isfile(Path(address) / CUT_PLAN) or is_storage


def refuse_cut_run(path: Path) -> None:
    """Raise RunFolderError if a path is a run that was cut, a storage of such runs, or was an address with a scheme."""
    scheme = re.match(r"[a-z0-9]+:/(?=[^/])", str(path))  # a path has one slash of two
    address = str(path) if scheme is None or os.path.lexists(path) else f"{scheme[0]}/{str(path)[scheme.end() :]}"
    if is_cut_run(address):
        fetch = format_command("auditor fetch", address, "audits")
        raise RunFolderError(f"{address}: is a run that was cut; {fetch}, then use its folder")


_IDENTITY = ("account", "product_key", "device_name", "iot_id")

TEXT_COLUMNS = {DEVICES: (*_IDENTITY, "status"), MODULES: (*_IDENTITY, "module_name", "module_version")}
"""Columns that are text: a foreign Parquet file may hold dates or bytes under these names."""


def results_name(folder: Path, listed: Container[str] = ()) -> str:
    """Return the name of the file that has a run's results: the compressed one if it is listed, or the only one.

    Where both exist, sealing or a resume was killed, and the other one has the same results, or more.
    """
    plain, compressed = (os.path.lexists(folder / name) for name in (RESULTS, COMPRESSED_RESULTS))
    return COMPRESSED_RESULTS if COMPRESSED_RESULTS in listed or (compressed and not plain) else RESULTS


def sealed_file_names(folder: Path, listed: Container[str] = ()) -> tuple[str, ...]:
    """Return the names of a sealed run's files; ``OPTIONAL`` ones if they exist or are listed, changes if listed."""
    optional = (name for name in OPTIONAL if name in listed or (folder / name).exists())
    changes = (CHANGES,) if CHANGES in listed else ()  # written after the others are sealed
    return (FLEET, results_name(folder, listed), FAILURES, *optional, *SEALED, *changes)


def is_sealed(folder: Path, manifest: Manifest) -> bool:
    """Return whether a run is read from its Parquet files; otherwise it is read from its lines."""
    return manifest.state != "running" and all((folder / name).is_file() for name in TEXT_COLUMNS)
