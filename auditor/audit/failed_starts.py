"""Starts of audits that failed before there was a run: this user remembers the last one of each settings file.

A run folder records how its run ended. If the settings or the fleet cannot be used there is none, and the newest run is
that of the night before, which may well be a success. ``auditor status`` reads what is remembered here.
"""

import hashlib
import os
import time
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import orjson

from auditor.audit.run_settings import state_directory
from auditor.errors import AuditorError, RunNotWritableError, SettingsError
from auditor.log import log
from auditor.runs.folder import StoredRun
from auditor.storage.files import read_contained, replace_file
from auditor.storage.foreign_access import find_foreign_access
from auditor.text.formatting import escape_undecodable, format_utc, parse_manifest_time

MAX_FILES = 1_000
"""Settings files whose last failed start is remembered."""

MAX_SENTENCES = 1_000
"""Characters of the reason that are remembered."""

_MAX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class FailedStart:
    """A start of an audit that failed: when, with which exit code, and why."""

    at: str
    exit_code: int
    reason: str

    @property
    def time(self) -> datetime | None:
        """When it failed, in UTC; None if that cannot be parsed."""
        return parse_manifest_time(self.at)


def record_failed_start(settings_file: Path, error: AuditorError) -> None:
    """Remember that an audit with these settings could not be started; if that is not possible, log why."""
    reason = "; ".join(error.sentences) if isinstance(error, SettingsError) else str(error)
    failed = FailedStart(format_utc(time.time()), error.exit_code, escape_undecodable(reason)[:MAX_SENTENCES])
    path = _path(settings_file)
    try:
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        replace_file(path, orjson.dumps(asdict(failed)))
        newest = sorted(path.parent.glob("*.json"), key=lambda each: each.stat().st_mtime, reverse=True)
        for old in newest[MAX_FILES:]:
            old.unlink(missing_ok=True)
    except (OSError, RunNotWritableError) as problem:
        log.info("failed_start_not_remembered", reason=str(problem))


def find_failed_start(run: StoredRun) -> FailedStart | None:
    """Return the last start with the settings file of a run, if it failed after the run had ended."""
    manifest = run.manifest
    ended = parse_manifest_time(manifest.finished_at or (manifest.resumed_at or (manifest.started_at,))[-1])
    if manifest.settings_file is None or ended is None:
        return None
    path = _path(Path(manifest.settings_file))
    try:
        if find_foreign_access(path.parent) is not None:
            return None
        record = orjson.loads(read_contained(path.parent, path.name, max_bytes=_MAX_BYTES))
        failed = FailedStart(str(record["at"]), int(record["exit_code"]), str(record["reason"]))
    except (OSError, AuditorError, KeyError, TypeError, ValueError):
        return None
    return failed if failed.time is not None and failed.time > ended else None


def _path(settings_file: Path) -> Path:
    # The path is that of the manifest: Path.resolve would follow a link.
    name = hashlib.sha256(os.fsencode(os.path.abspath(settings_file))).hexdigest()  # noqa: PTH100
    return state_directory() / "failed-starts" / f"{name}.json"
