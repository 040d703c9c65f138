"""Starts of audits that failed before there was a run: this user remembers the last one of each settings file.

A run folder records how its run ended. If the settings or the fleet cannot be used there is none, and the newest run is
that of the night before, which may well be a success. ``auditor status`` reads what is remembered here.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import msgspec
import orjson

from auditor.audit.run_settings import state_directory
from auditor.errors import AuditorError, RunNotWritableError, SettingsError
from auditor.log import log
from auditor.runs.manifest import Manifest
from auditor.storage.files import read_contained, replace_file
from auditor.storage.foreign_access import find_foreign_access
from auditor.text.formatting import escape_undecodable, format_utc, parse_manifest_time

MAX_FILES = 1_000
"""Settings files whose last failed start is remembered."""

MAX_SENTENCES = 1_000
"""Characters of the reason that are remembered."""

FOLDER = "failed-starts"
"""Folder of these records in the user's state directory."""

_MAX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class FailedStart:
    """A start of an audit that failed: when, with which exit code, why, and the settings and directory of its runs."""

    at: str
    exit_code: int
    reason: str
    settings_file: str
    directory: str | None

    @property
    def time(self) -> datetime | None:
        """When it failed, in UTC; None if that cannot be parsed."""
        return parse_manifest_time(self.at)


def record_failed_start(settings_file: Path, directory: Path | None, error: AuditorError) -> None:
    """Remember that an audit with these settings could not be started; if that is not possible, log why.

    ``directory`` is that of its runs; None: the settings could not be read so far.
    """
    reason = escape_undecodable("; ".join(error.sentences) if isinstance(error, SettingsError) else str(error))
    reason = reason if len(reason) <= MAX_SENTENCES else f"{reason[: MAX_SENTENCES - 1]}…"
    folder = None if directory is None else escape_undecodable(os.path.realpath(directory))
    name = escape_undecodable(os.path.realpath(settings_file))
    failed = FailedStart(format_utc(time.time()), error.exit_code, reason, name, folder)
    path = _path(settings_file)
    try:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        replace_file(path, orjson.dumps(asdict(failed)))
        newest = sorted(path.parent.glob("*.json"), reverse=True, key=_changed_at)
        for old in newest[MAX_FILES:]:
            old.unlink(missing_ok=True)
    except (OSError, RunNotWritableError) as problem:
        log.warning("failed_start_not_remembered", reason=str(problem))


def forget_failed_start(settings_file: Path) -> None:
    """Forget the failed start of these settings, since an audit has started."""
    with contextlib.suppress(OSError):
        _path(settings_file).unlink(missing_ok=True)


def find_failed_start(directory: Path, newest: Manifest | None) -> FailedStart | None:
    """Return the last start that failed, of those in a directory of runs, unless its ``newest`` run ended later.

    It is one with the settings file of that run, or with settings that name the directory.
    """
    folder = state_directory() / FOLDER
    runs = escape_undecodable(os.path.realpath(directory))
    used = None if newest is None else newest.settings_file
    settings_file = None if used is None else escape_undecodable(os.path.realpath(used))
    found = (each for each in _read_all(folder) if each.directory == runs or each.settings_file == settings_file)
    failed = max(found, key=lambda each: each.at, default=None)
    if failed is None or failed.time is None or newest is None:
        return failed
    ended = parse_manifest_time(newest.finished_at or (newest.resumed_at or (newest.started_at,))[-1])
    return None if ended is not None and ended > failed.time else failed


def _read_all(folder: Path) -> Iterator[FailedStart]:
    if not folder.is_dir() or find_foreign_access(folder) is not None:
        return
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, AuditorError, ValueError, msgspec.ValidationError):
            yield msgspec.json.decode(read_contained(folder, path.name, max_bytes=_MAX_BYTES), type=FailedStart)


def _path(settings_file: Path) -> Path:
    name = hashlib.sha256(os.fsencode(os.path.realpath(settings_file))).hexdigest()
    return state_directory() / FOLDER / f"{name}.json"


def _changed_at(path: Path) -> float:
    with contextlib.suppress(OSError):  # removed meanwhile
        return path.stat().st_mtime
    return 0.0
