"""The beginning of an audit: the fleet read whole, and the run folder made around it."""

import secrets
from pathlib import Path

import orjson

from auditor import __about__
from auditor.config.serialization import table_of
from auditor.config.settings import Account, Settings, part_of
from auditor.fleet.snapshot import fleet_files, no_snapshot, write_snapshot
from auditor.planning.capacity import plan_for
from auditor.runs.folder import FLEET, run_to_carry_from
from auditor.runs.locking import Begun, new_run_folder
from auditor.runs.manifest import (
    AccountFacts,
    Choice,
    DeviceCounts,
    FleetFacts,
    ListingFacts,
    Manifest,
    Rate,
    Strategy,
    write_manifest,
)
from auditor.text.formatting import printable, utc


def new_run(
    settings: Settings,
    directory: Path,
    limit: int | None,
    started: float,
    left_out: tuple[str, ...] = (),
    *,
    timed: bool = False,
) -> Begun:
    """Reads the fleet files and makes the run folder around them; fleets that the platform lists come later.

    Args:
        settings: of the audit.
        directory: where to make the folder.
        limit: only the first so many devices.
        started: seconds since 1970.
        left_out: accounts that are not wanted.
        timed: whether there is a point in time when it has to be done.

    Raises:
        FleetError: the fleet cannot be used; no folder is left.
        RunFolderError: a run of this name is being written, or the one whose answers are to be carried cannot be used.
        RunNotWritableError: the directory cannot be written.
    """
    manifests: list[Manifest] = []
    choice = choice_of(settings, directory, timed=timed)

    def fill(folder: Path) -> None:
        files, listed = fleet_files(settings), [account.name for account in settings.account if account.listed]
        snapshot = write_snapshot(files, folder / FLEET, limit=limit) if files else no_snapshot(folder / FLEET)
        source = ", ".join((*([snapshot.source] if files else []), *(["platform"] if listed else [])))
        manifest = Manifest(
            auditor_version=__about__.VERSION,
            name=settings.name,
            state="running",
            started_at=utc(started),
            accounts=facts_of(settings),
            fleet=FleetFacts(
                printable(source), snapshot.devices, snapshot.duplicates, snapshot.sha256, limit, left_out
            ),
            devices=DeviceCounts(pending=snapshot.devices),
            rate=Rate(target=target_of(settings)),
            planned=plan_for(settings, folder / FLEET, directory).planned,
            settings=kept_of(settings),
            listings=tuple(ListingFacts(name) for name in listed),
            choice=choice,
        )
        write_manifest(folder, manifest)
        manifests.append(manifest)

    folder, hold = new_run_folder(directory, settings.name, fill, now=started)
    return Begun(folder, hold, manifests[0], folder / FLEET)


def choice_of(settings: Settings, directory: Path, *, timed: bool) -> Choice | None:
    """How a run is to choose whom it asks; None: it asks the whole fleet.

    Args:
        settings: of the audit.
        directory: where runs lie.
        timed: whether there is a point in time when it has to be done.

    Raises:
        RunFolderError: the run whose answers are to be carried cannot be used.
    """
    seed = secrets.randbits(32) if settings.seed is None else settings.seed
    if settings.samples:
        precise = None if settings.precision is None else part_of(settings.precision)
        level = None if precise is None else settings.precision_of
        return Choice("sample", seed=seed, sample=settings.sample, precision=precise, precision_of=level)
    if settings.since is None and settings.calls is None and not timed:
        return None
    strategy: Strategy = "rolling" if settings.since in {None, "none"} else "since"
    folder = None
    if settings.since != "none":
        folder = run_to_carry_from(directory, settings.name, settings.since or "last")
    if folder is None and strategy == "rolling" and settings.calls is None:
        return None  # whoever has time for a part of a fleet of which nothing is known asks as always
    since = None if folder is None else printable(_seen_from(directory, folder))
    rule = settings.since_rule if strategy == "since" else None
    return Choice(strategy, since=since, rule=rule, seed=seed, calls=settings.calls)


def _seen_from(directory: Path, folder: Path) -> str:
    """A run folder's name, or its path where it does not lie in the directory."""
    place = folder.resolve()
    return place.name if place.parent == directory.resolve() else str(place)


def facts_of(settings: Settings) -> tuple[AccountFacts, ...]:
    """The accounts as the manifest tells them."""
    return tuple(_facts(account) for account in settings.account)


def target_of(settings: Settings) -> float | None:
    """Calls a second that all quotas allow together; None where one account has none, or none that is known."""
    rates = [account.rate for account in settings.account]
    return None if None in rates else sum(rate for rate in rates if rate is not None)


def kept_of(settings: Settings) -> dict[str, object] | None:
    """The settings as the manifest keeps them; None when a path in them is not UTF-8, which JSON cannot hold."""
    table = table_of(settings)
    try:
        orjson.dumps(table)
    except TypeError:
        return None
    return table


def _facts(account: Account) -> AccountFacts:
    quota = None if isinstance(account.per_second, str) else account.per_second
    return AccountFacts(account.name, account.endpoint, account.dialect, quota)
