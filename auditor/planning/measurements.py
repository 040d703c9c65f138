"""What an earlier run tells of the next one: how many requests its devices took, and how long an answer took.

What earlier runs tell of one that is to carry answers: how much there is to carry, and how many were asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import structlog

from auditor.errors import RunFolderError
from auditor.models import SinceRule
from auditor.runs.folder import DEVICES, find_run, newest_to_carry_from, runs_in
from auditor.runs.manifest import AccountChoice, Manifest, Recheck
from auditor.storage.database import open_database, parquet, reason_of

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


_RULES: tuple[SinceRule, ...] = ("strict", "reconnected")


@dataclass(frozen=True, slots=True)
class SinceTold:
    """What runs that carried answers by one rule tell of the next.

    Attributes:
        run: the name of the newest run folder that tells how many were asked; None: none does.
        asked: the part of an account's devices, 0 to 1, that was asked for a reason, and not only to recheck.
        recheck_run: the name of the newest run folder that tells how often carrying was wrong; None: none does.
        recheck: how often.
    """

    run: str | None = None
    asked: Mapping[str, float] = field(default_factory=dict)
    recheck_run: str | None = None
    recheck: Recheck | None = None


@dataclass(frozen=True, slots=True)
class Carrying:
    """What there is to carry.

    Attributes:
        run: the name of the run folder whose answers are carried; None: there is none.
        answered: devices of each account that it has an answer of; None: that cannot be read.
        told: what runs tell that carried, by rule.
    """

    run: str | None = None
    answered: Mapping[str, int] | None = None
    told: Mapping[SinceRule, SinceTold] = field(default_factory=dict)


def carrying_from(directory: Path, name: str, since: str | None = None) -> Carrying:
    """What there is to carry for the next run of a name. Manifests are read, and the devices of one run are counted.

    Args:
        directory: where earlier runs lie; those that cannot be read are passed over.
        name: the run's.
        since: the run folder whose answers are carried; None, ``last`` or ``none``: the newest that knows enough.

    Raises:
        RunFolderError: the run folder that is named is none.
    """
    try:
        runs, _ = runs_in(directory) if directory.exists() else ([], [])
    except (OSError, RunFolderError):
        runs = []
    named = since not in {None, "last", "none"}
    folder = find_run(Path(since)) if named and since is not None else newest_to_carry_from(runs, name)
    told = {rule: _told([each for each in runs if each[0].name == name], rule) for rule in _RULES}
    return Carrying(None if folder is None else folder.name, None if folder is None else _answered(folder), told)


def _told(runs: Sequence[tuple[Manifest, Path]], rule: SinceRule) -> SinceTold:
    """What the newest runs that ended tell; one that a budget cut short does not tell how many it would have asked."""
    run, asked, recheck_run, recheck = None, {}, None, None
    for manifest, folder in runs:
        choice = manifest.choice
        if choice is None or choice.rule != rule or choice.since is None or manifest.state == "running":
            continue
        if run is None and choice.calls is None:
            parts = {each.account: part for each in choice.accounts if (part := _part_asked(each)) is not None}
            run, asked = (folder.name, parts) if parts else (None, {})
        if recheck is None and choice.recheck is not None and choice.recheck.rate is not None:
            recheck_run, recheck = folder.name, choice.recheck
    return SinceTold(run, asked, recheck_run, recheck)


def _part_asked(choice: AccountChoice) -> float | None:
    devices = choice.carried + sum(choice.asked.values())
    return sum(number for why, number in choice.asked.items() if why != "recheck") / devices if devices else None


def _answered(folder: Path) -> dict[str, int] | None:
    """Devices of each account that a sealed run has an answer of; not those that needed no question."""
    source = f"(FROM {parquet(folder / DEVICES)} UNION ALL BY NAME SELECT NULL::VARCHAR AS source WHERE false)"
    needed = "status <> 'empty' OR attempts > 0 OR source = 'carried'"
    database = open_database()
    try:
        rows = database.execute(
            f"SELECT account, count(*) FROM {source} "
            f"WHERE status NOT IN ('pending', 'failed') AND ({needed}) GROUP BY account"
        ).fetchall()
    except (OSError, duckdb.Error, UnicodeDecodeError) as error:
        log.warning("a run is passed over", reason=f"{folder}: cannot be read: {reason_of(error)}")
        return None
    finally:
        database.close()
    return dict(rows)
