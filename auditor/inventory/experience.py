"""What an earlier run tells of the next one: how many requests its devices took, and how long an answer took."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb
import structlog

from auditor.database import open_database, parquet, reason_of
from auditor.errors import RunFolderError
from auditor.inventory.folder import DEVICES, Manifest, runs_in

log = structlog.get_logger()

MOST_EACH = 1_000_000
"""Requests a device that are believed at most; a file that tells of more was spoilt."""

MOST_LATENCY = 86_400.0
"""Seconds from a request to its answer that are believed at most: no timeout is longer."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Devices of an account that were answered or failed, and the requests that they took, repeats among them."""

    devices: int
    requests: int


@dataclass(frozen=True, slots=True)
class Experience:
    """What a run tells of the next one.

    Attributes:
        folder: the run folder.
        asked: of each account that asked about a device.
        latency: the mean of the seconds from a request to its answer; None if the run does not tell.
    """

    folder: Path
    asked: Mapping[str, Asked]
    latency: float | None


def newest_experience(directory: Path, name: str) -> Experience | None:
    """What the newest sealed run of a name in a directory tells; None if there is no such run.

    A run in which nothing was asked tells nothing, and one that cannot be read is passed over, which is logged: the
    next older one is taken.
    """
    broken: list[RunFolderError] = []
    found = None
    try:
        runs, broken = runs_in(directory) if directory.exists() else ([], [])
        for manifest, folder in runs:
            if manifest.name == name and manifest.state != "running" and (folder / DEVICES).is_file():
                try:
                    found = _experience(folder, manifest)
                except RunFolderError as error:
                    broken.append(error)
                if found is not None:
                    break
    except (OSError, RunFolderError) as error:
        log.warning("earlier runs are passed over", reason=str(error))
    for problem in broken:
        log.warning("a run is passed over", reason=str(problem))
    return found


def _experience(folder: Path, manifest: Manifest) -> Experience | None:
    """What one sealed run tells; None if nothing was asked in it.

    Raises:
        RunFolderError: it cannot be read.
    """
    try:
        asked = _asked(folder / DEVICES)
    except (OSError, duckdb.Error, UnicodeDecodeError) as error:
        raise RunFolderError(f"{folder}: cannot be read: {reason_of(error)}") from error
    if any(each.requests > MOST_EACH * each.devices for each in asked.values()):
        raise RunFolderError(f"{folder}: cannot be read: its {DEVICES} tells of more requests than can be")
    latency = manifest.rate.latency
    believed = latency is not None and 0 < latency <= MOST_LATENCY
    return Experience(folder, asked, latency if believed else None) if asked else None


def _asked(devices: Path) -> dict[str, Asked]:
    database = open_database()
    try:
        rows = database.execute(
            # A device that failed before it was asked counts as one request: it will take one.
            "SELECT account, count(*), greatest(count(*), sum(attempts)::BIGINT) "
            # One that was never activated took none, and will take none.
            # Nor did one take any whose answer is carried from an earlier run.
            f"FROM (FROM {parquet(devices)} UNION ALL BY NAME SELECT NULL::VARCHAR AS source WHERE false) "
            "WHERE source IS DISTINCT FROM 'carried' AND (status NOT IN ('pending', 'empty') "
            "OR status = 'empty' AND attempts > 0) "
            "GROUP BY account"
        ).fetchall()
    finally:
        database.close()
    return {account: Asked(asked, requests) for account, asked, requests in rows}
