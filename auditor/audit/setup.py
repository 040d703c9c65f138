"""Setup of a new run: read the fleet files, choose the strategy, and create the run folder."""

import os
import secrets
from pathlib import Path

from auditor import __about__
from auditor.audit.run_settings import settings_digest, stored_settings
from auditor.config.settings import ReportSettings, Settings, parse_percentage
from auditor.config.validation import check_reading
from auditor.errors import SettingsError
from auditor.fleet.snapshot import describe_fleet, fleet_files, write_snapshot
from auditor.planning.capacity import plan_fleet
from auditor.runs.folder import FLEET, RunCatalog, find_run, mark_pending_hooks
from auditor.runs.locking import MAX_LOCK_WAIT, PreparedRun, create_run_folder
from auditor.runs.manifest import (
    AccountInfo,
    DeviceCounts,
    DiscoveryInfo,
    Manifest,
    read_manifest,
    write_manifest,
)
from auditor.runs.selection_info import Rate, SelectionInfo, Strategy
from auditor.selection.baseline import find_baseline
from auditor.text.formatting import escape_undecodable, format_utc


def create_run(
    settings: Settings,
    directory: Path,
    limit: int | None,
    started: float,
    excluded_accounts: tuple[str, ...] = (),
    *,
    timed: bool = False,
    settings_file: Path | None = None,
    with_hooks: bool = False,
    trial: bool = False,
    max_wait: float = MAX_LOCK_WAIT,
) -> PreparedRun:
    """Read the fleet files and create a run folder with them; discovered devices are added later.

    Only the first ``limit`` devices are used. ``started`` is in seconds since 1970, ``excluded_accounts`` are names of
    configured accounts that are not queried, ``timed`` is whether the audit has a deadline, ``settings_file`` is where
    the settings come from, ``with_hooks`` is whether the caller runs the configured hooks afterwards, ``trial`` is
    whether these leave out what others read, and ``max_wait`` is how many seconds to wait for processes that use the
    directory.

    Raises:
        FleetError: the fleet cannot be used; no folder is left.
        RunFolderError: a run of this name is being written, or the baseline run cannot be used.
        SettingsError: an earlier run of this name read other modules.
        RunNotWritableError: the directory cannot be written.
    """
    manifests: list[Manifest] = []
    selection = choose_strategy(settings, directory, timed=timed)
    refuse_other_modules(settings, directory)

    def fill(folder: Path) -> None:
        snapshot = write_snapshot(fleet_files(settings), folder / FLEET, limit=limit)
        discovered = [account.name for account in settings.account if account.uses_discovery]
        stored = stored_settings(settings)
        manifest = Manifest(
            auditor_version=__about__.VERSION,
            name=settings.name,
            state="running",
            started_at=format_utc(started),
            accounts=account_infos(settings),
            fleet=describe_fleet(settings, snapshot, limit=limit, excluded_accounts=excluded_accounts),
            devices=DeviceCounts(pending=snapshot.devices),
            rate=Rate(target=target_rate(settings)),
            planned=plan_fleet(settings, folder / FLEET, directory).planned,
            settings=stored,
            settings_sha256=settings_digest(stored),
            settings_file=None if settings_file is None else record_path(settings_file),
            discovery=tuple(DiscoveryInfo(name) for name in discovered),
            selection=selection,
            trial=trial,
            modules=settings.modules,
        )
        write_manifest(folder, manifest)
        if with_hooks and has_hooks(settings):
            mark_pending_hooks(folder)
        manifests.append(manifest)

    readable = settings.group_readable
    folder, lock = create_run_folder(
        directory, settings.name, fill, now=started, group_readable=readable, max_wait=max_wait
    )
    return PreparedRun(folder, lock, manifests[0], folder / FLEET)


def choose_strategy(settings: Settings, directory: Path, *, timed: bool) -> SelectionInfo | None:
    """Return how a run selects the devices to query; None: it queries the complete fleet."""
    check_reading(settings)
    seed = secrets.randbits(32) if settings.seed is None else settings.seed
    if settings.is_sample:
        precision = None if settings.precision is None else parse_percentage(settings.precision)
        level = None if precision is None else settings.precision_of
        return SelectionInfo(
            "sample", seed=seed, sample_size=settings.sample_size, precision=precision, precision_of=level
        )
    if settings.since in {None, "none"} and any(account.read != "device" for account in settings.account):
        return SelectionInfo("index", seed=seed, max_calls=settings.max_calls)
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


def refuse_other_modules(settings: Settings, directory: Path) -> None:
    """Raise SettingsError if an earlier run of the name, or the baseline, read other modules of its devices.

    Runs of one name are compared, and their results carried forward: other modules would seem to come and go.
    """
    earlier: list[Manifest] = []
    if directory.is_dir():  # otherwise it is created, or refused, afterwards
        catalog = RunCatalog(directory)
        runs = (*catalog.named(settings.name), *catalog.archived())
        earlier = [run.manifest for run in runs if run.manifest.name == settings.name]
    if settings.since not in {None, "none", "last"}:
        earlier.append(read_manifest(find_run(Path(settings.since))))
    if any(manifest.modules != settings.modules for manifest in earlier):
        read = "read the module default only" if settings.modules is None else "read all modules"
        raise SettingsError(
            f'modules: runs with the name "{settings.name}" in {directory}, or its baseline, {read}, and runs that '
            "are compared read the same; give this audit another name, and no baseline of the other kind"
        )


def account_infos(settings: Settings) -> tuple[AccountInfo, ...]:
    """Return the accounts as recorded in the manifest."""
    quotas = [None if isinstance(each.calls_per_second, str) else each.calls_per_second for each in settings.account]
    accounts = zip(settings.account, quotas, strict=True)
    return tuple(AccountInfo(each.name, each.endpoint, each.dialect, quota) for each, quota in accounts)


def target_rate(settings: Settings) -> float | None:
    """Return the requests a second that all configured quotas allow together; None if an account has none."""
    rates = [account.rate for account in settings.account]
    return None if None in rates else sum(rate for rate in rates if rate is not None)


def has_hooks(settings: Settings) -> bool:
    """Return whether a policy, a report, metrics or messages follow a run."""
    others = (settings.policy, settings.notify or None, settings.metrics.pushgateway)
    return any(each is not None for each in others) or settings.report != ReportSettings()


def record_path(path: Path) -> str:
    """Return a path as the manifest stores it: absolute, and fit for JSON."""
    return escape_undecodable(os.path.abspath(path))  # noqa: PTH100  Path.resolve would follow a link
