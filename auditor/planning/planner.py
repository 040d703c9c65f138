"""Plan an audit: the complete fleet is read, and no device is queried."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from auditor.client.operations import LIST_OTA_TASK_BY_JOB
from auditor.config.settings import SelectionSettings, Settings
from auditor.config.validation import validate_selection
from auditor.engine.open_files import reserve_open_files
from auditor.errors import FleetError, UsageError
from auditor.fleet.snapshot import apply_fleet_option, fleet_files, write_snapshot
from auditor.fleet.table import product_sizes
from auditor.planning.bulk_reading import plan_as_configured
from auditor.planning.capacity import plan_devices
from auditor.planning.device_counts import advise_fleet_file
from auditor.planning.measurements import latest_measurements, measure_carry, measure_releases
from auditor.planning.models import Plan
from auditor.planning.strategies import PlanningInputs, account_loads, compare_strategies
from auditor.runs.folder import FLEET, RunCatalog
from auditor.storage.files import private_folder

CountDevices = Callable[[Settings, Collection[str]], Mapping[str, Mapping[int, int]]]
"""Returns the number of products of each named account by their number of devices; see ``count_listed_fleets``."""


def plan_audit(
    settings: Settings,
    *,
    fleet: str | None = None,
    directory: str | Path | None = None,
    limit: int | None = None,
    window: float | None = None,
    max_calls: int | None = None,
    sample_size: int | None = None,
    precision: str | None = None,
    count_devices: CountDevices | None = None,
) -> Plan:
    """Estimate the calls and the duration of an audit, and whether it fits. No key is read and no request is sent.

    The plan is for reading every device as the settings say, one by one or many a call, whatever they select. Its
    ``strategies`` give the cost of the others.
    A fleet that the platform lists is assumed to have as many devices as in the newest run of the same name; of a fleet
    that no run has recorded, ``count_devices`` gets the platform's counts.

    Args:
        settings: see ``load_settings``.
        fleet: fleet file that replaces the one in the settings (one account only); ``-`` is standard input.
        directory: directory of earlier runs, instead of the settings' ``directory``; calls and latency are from these.
        limit: maximum number of devices.
        window: seconds available for a run.
        max_calls: call budget of a run to compare, instead of the setting.
        sample_size: sample to compare, instead of the setting.
        precision: precision of a sample to compare, instead of the setting.
        count_devices: function that counts the devices of accounts that no run has recorded; None: an error.

    Raises:
        UsageError: ``limit`` is below 1, or ``window`` is not above 0.
        SettingsError: ``max_calls``, ``sample_size`` or ``precision`` is invalid, or ``concurrency`` needs more
            open files than the system allows.
        RunFolderError: the settings' ``since`` is not a run folder.
        FleetError: the fleet cannot be used, or the platform lists it and no run has recorded its devices.
        Anything that ``count_devices`` raises.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: give a number of devices from 1 up")
    if window is not None and not window > 0:
        raise UsageError(f"window {window:g}: give a number of seconds above 0")
    settings = _override(apply_fleet_option(settings, fleet), max_calls, sample_size, precision)
    reserve_open_files(settings)
    runs = Path(directory or settings.directory)
    measurements, by_size = latest_measurements(runs, settings.name), _recorded_products(settings, runs)
    uncounted = {each.name for each in settings.account if each.uses_discovery}.difference(by_size)
    if uncounted:
        if count_devices is None:
            raise FleetError(_describe_uncounted(uncounted))
        by_size |= {name: dict(found) for name, found in count_devices(settings, sorted(uncounted)).items()}
    if files := fleet_files(settings):
        with private_folder("plan") as temporary:
            snapshot = temporary / FLEET
            write_snapshot(files, snapshot, limit=limit)
            by_size = _products_by_size(settings, snapshot) | by_size
    devices = {name: sum(size * products for size, products in found.items()) for name, found in by_size.items()}
    devices = devices if limit is None else _limited(settings, devices, limit)
    plan = plan_devices(settings, devices, measurements, window, counted=uncounted)
    inputs = PlanningInputs(devices, by_size, measurements, measure_carry(runs, settings.name, settings.since))
    strategies = tuple(compare_strategies(settings, plan, inputs))
    plan = plan_as_configured(settings, plan, account_loads(settings, inputs))
    if settings.released and limit is None:
        plan = _add_releases(settings, plan, measure_releases(runs, settings.name))
    return replace(plan, strategies=strategies)


def _add_releases(settings: Settings, plan: Plan, measured: Mapping[str, tuple[str, int]]) -> Plan:
    """Return a plan with the requests for released firmware, as an earlier run sent them."""
    accounts = []
    for account, each in zip(settings.account, plan.accounts, strict=True):
        if account.name in measured:
            run, requests = measured[account.name]
            quota = account.quotas.list_ota_task_by_job or LIST_OTA_TASK_BY_JOB.calls_per_second
            seconds = requests / (quota * account.quota_share)
            each = replace(each, release_requests=requests, release_seconds=seconds, release_run=run)  # noqa: PLW2901
        accounts.append(each)
    return replace(plan, accounts=tuple(accounts))


def _override(settings: Settings, max_calls: int | None, sample_size: int | None, precision: str | None) -> Settings:
    """Return the settings with what to compare; a sample excludes a call budget in a run, but not here."""
    given = {"max_calls": max_calls, "sample_size": sample_size, "precision": precision}
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in given.items():
        validate_selection(msgspec.convert({key: value}, SelectionSettings), "plan")
    return msgspec.structs.replace(settings, **given)


def _products_by_size(settings: Settings, fleet: Path) -> dict[str, dict[int, int]]:
    """Return the number of products of each account by their number of devices to query."""
    return product_sizes(fleet, [account.name for account in settings.account if not account.skips_never_activated])


def _recorded_products(settings: Settings, directory: Path) -> dict[str, dict[int, int]]:
    """Return the products by size of each fleet that the platform lists, from the newest run with a complete fleet."""
    missing = {account.name for account in settings.account if account.uses_discovery}
    found: dict[str, dict[int, int]] = {}
    for manifest, folder in RunCatalog(directory, missing_ok=True).named(settings.name) if missing else ():
        recorded = missing & {each.account for each in manifest.discovery if each.state != "pending"}
        if recorded and not manifest.fleet.cut and (folder / FLEET).is_file():
            by_size = _products_by_size(settings, folder / FLEET)
            found |= {name: by_size.get(name, {}) for name in recorded}
            missing -= recorded
    return found


def _describe_uncounted(names: Collection[str]) -> str:
    quoted = ", ".join(f'"{name}"' for name in sorted(names))
    label = f"account {quoted}: the platform lists its fleet" if len(names) == 1 else f"accounts {quoted}: the platform"
    rest = "" if len(names) == 1 else " lists their fleets"
    return (
        f"{label}{rest}, and no earlier run has recorded the devices; count them with: auditor plan CONFIG, "
        f"{advise_fleet_file(names)}"
    )


def _limited(settings: Settings, devices: Mapping[str, int], limit: int) -> dict[str, int]:
    """Return the number of devices of each account within a limit: those of fleet files first."""
    kept: dict[str, int] = {}
    for account in sorted(settings.account, key=lambda each: each.uses_discovery):
        kept[account.name] = min(devices.get(account.name, 0), limit - sum(kept.values()))
    return kept
