"""Setup of a new run: read the fleet files, choose the strategy, and create the run folder."""

import secrets
from pathlib import Path

import orjson

from auditor import __about__
from auditor.config.serialization import settings_to_dict
from auditor.config.settings import Settings, parse_percentage
from auditor.fleet.snapshot import fleet_files, write_empty_snapshot, write_snapshot
from auditor.planning.capacity import plan_fleet
from auditor.runs.folder import FLEET, find_baseline
from auditor.runs.locking import PreparedRun, create_run_folder
from auditor.runs.manifest import (
    AccountInfo,
    DeviceCounts,
    DiscoveryInfo,
    FleetInfo,
    Manifest,
    Rate,
    SelectionInfo,
    Strategy,
    write_manifest,
)
from auditor.text.formatting import escape_undecodable, format_utc


def create_run(
    settings: Settings,
    directory: Path,
    limit: int | None,
    started: float,
    excluded_accounts: tuple[str, ...] = (),
    *,
    timed: bool = False,
) -> PreparedRun:
    """Read the fleet files and create a run folder with them; discovered devices are added later.

    Only the first ``limit`` devices are used. ``started`` is in seconds since 1970, ``excluded_accounts`` are names of
    configured accounts that are not queried, and ``timed`` is whether the audit has a deadline.

    Raises:
        FleetError: the fleet cannot be used; no folder is left.
        RunFolderError: a run of this name is being written, or the baseline run cannot be used.
        RunNotWritableError: the directory cannot be written.
    """
    manifests: list[Manifest] = []
    selection = choose_strategy(settings, directory, timed=timed)

    def fill(folder: Path) -> None:
        files = fleet_files(settings)
        discovered = [account.name for account in settings.account if account.uses_discovery]
        snapshot = write_snapshot(files, folder / FLEET, limit=limit) if files else write_empty_snapshot(folder / FLEET)
        source = ", ".join((*([snapshot.source] if files else []), *(["platform"] if discovered else [])))
        fleet = FleetInfo(
            escape_undecodable(source), snapshot.devices, snapshot.duplicates, snapshot.sha256, limit, excluded_accounts
        )
        manifest = Manifest(
            auditor_version=__about__.VERSION,
            name=settings.name,
            state="running",
            started_at=format_utc(started),
            accounts=account_infos(settings),
            fleet=fleet,
            devices=DeviceCounts(pending=snapshot.devices),
            rate=Rate(target=target_rate(settings)),
            planned=plan_fleet(settings, folder / FLEET, directory).planned,
            settings=stored_settings(settings),
            discovery=tuple(DiscoveryInfo(name) for name in discovered),
            selection=selection,
        )
        write_manifest(folder, manifest)
        manifests.append(manifest)

    folder, lock = create_run_folder(directory, settings.name, fill, now=started)
    return PreparedRun(folder, lock, manifests[0], folder / FLEET)


def choose_strategy(settings: Settings, directory: Path, *, timed: bool) -> SelectionInfo | None:
    """Return how a run selects the devices to query; None: it queries the complete fleet."""
    seed = secrets.randbits(32) if settings.seed is None else settings.seed
    if settings.is_sample:
        precision = None if settings.precision is None else parse_percentage(settings.precision)
        level = None if precision is None else settings.precision_of
        return SelectionInfo(
            "sample", seed=seed, sample_size=settings.sample_size, precision=precision, precision_of=level
        )
    if settings.since is None and settings.max_calls is None and not timed:
        return None
    strategy: Strategy = "rolling" if settings.since in {None, "none"} else "incremental"
    folder = None if settings.since == "none" else find_baseline(directory, settings.name, settings.since or "last")
    if folder is None and strategy == "rolling" and settings.max_calls is None:
        return None  # a deadline alone needs a baseline; without one the complete fleet is queried
    run = None
    if folder is not None:  # its path, if it is outside of the directory
        path = folder.resolve()
        run = escape_undecodable(path.name if path.parent == directory.resolve() else str(path))
    rule = settings.change_detection if strategy == "incremental" else None
    return SelectionInfo(strategy, baseline_run=run, change_detection=rule, seed=seed, max_calls=settings.max_calls)


def account_infos(settings: Settings) -> tuple[AccountInfo, ...]:
    """Return the accounts as recorded in the manifest."""
    quotas = [None if isinstance(each.calls_per_second, str) else each.calls_per_second for each in settings.account]
    accounts = zip(settings.account, quotas, strict=True)
    return tuple(AccountInfo(each.name, each.endpoint, each.dialect, quota) for each, quota in accounts)


def target_rate(settings: Settings) -> float | None:
    """Return the requests a second that all configured quotas allow together; None if an account has none."""
    rates = [account.rate for account in settings.account]
    return None if None in rates else sum(rate for rate in rates if rate is not None)


def stored_settings(settings: Settings) -> dict[str, object] | None:
    """Return the settings as stored in the manifest; None if a path in them is not UTF-8, which JSON cannot hold."""
    table = settings_to_dict(settings)
    try:
        orjson.dumps(table)
    except TypeError:
        return None
    return table
