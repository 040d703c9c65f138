"""A plan before the audit: the fleet is read whole, and nobody is asked anything."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from auditor.config.settings import Settings, WhichDevices
from auditor.config.validation import check_which_devices
from auditor.errors import FleetError, UsageError
from auditor.fleet.snapshot import fleet_files, with_fleet, write_snapshot
from auditor.fleet.table import product_sizes
from auditor.planning.capacity import plan_of
from auditor.planning.measurements import carrying_from, newest_experience
from auditor.planning.models import Plan
from auditor.planning.strategies import Known, compare
from auditor.runs.folder import FLEET, runs_in


def plan_audit(
    settings: Settings,
    *,
    fleet: str | None = None,
    directory: str | Path | None = None,
    limit: int | None = None,
    window: float | None = None,
    calls: int | None = None,
    sample: int | None = None,
    precision: str | None = None,
) -> Plan:
    """How many calls an audit will take, how long, and whether that fits; no key is read and nothing is asked.

    The plan is of asking every device; its ``strategies`` say what asking less takes, whatever the settings do.
    A fleet that the platform lists is taken to have as many devices as the newest run of the same name found.

    Args:
        settings: see ``load_settings``.
        fleet: a fleet file instead of the one in the settings (one account only); ``-`` is standard input.
        directory: where earlier runs lie, instead of the settings' ``directory``; they tell of calls and latency.
        limit: only the first so many devices.
        window: the seconds that there are; of strategies, a night.
        calls: a budget of calls a night to compare with, instead of the settings' ``calls``.
        sample: so many devices to compare with, drawn at random, instead of the settings' ``sample``.
        precision: how well shares are to be known by a sample to compare with, instead of the settings' ``precision``.

    Raises:
        UsageError: ``limit`` is below 1, or ``window`` is not above 0.
        SettingsError: ``calls``, ``sample`` or ``precision`` is none.
        RunFolderError: the settings' ``since`` names no run folder.
        FleetError: the fleet cannot be used, or the platform lists it and no run tells how many devices it has.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: give a number of devices from 1 up")
    if window is not None and not window > 0:
        raise UsageError(f"window {window:g}: give a number of seconds above 0")
    settings = _compared(with_fleet(settings, fleet), calls, sample, precision)
    runs = Path(directory or settings.directory)
    before, sizes = newest_experience(runs, settings.name), _listed_before(settings, runs)
    if files := fleet_files(settings):
        with TemporaryDirectory(prefix="auditor-") as temporary:
            snapshot = Path(temporary, FLEET)
            write_snapshot(files, snapshot, limit=limit)
            sizes = _sizes_in(settings, snapshot) | sizes
    devices = {name: sum(size * number for size, number in found.items()) for name, found in sizes.items()}
    devices = devices if limit is None else _first(settings, devices, limit)
    plan = plan_of(settings, devices, before, window)
    known = Known(devices, sizes, before, carrying_from(runs, settings.name, settings.since))
    return replace(plan, strategies=tuple(compare(settings, plan, known)))


def _compared(settings: Settings, calls: int | None, sample: int | None, precision: str | None) -> Settings:
    """The settings with what to compare with; a sample and a budget exclude each other in a run, but not here."""
    given = {"calls": calls, "sample": sample, "precision": precision}
    given = {key: value for key, value in given.items() if value is not None}
    for key, value in given.items():
        check_which_devices(msgspec.convert({key: value}, WhichDevices), "plan")
    return msgspec.structs.replace(settings, **given)


def _sizes_in(settings: Settings, fleet: Path) -> dict[str, dict[int, int]]:
    """How many products of how many devices each account is to be asked about."""
    return product_sizes(fleet, [account.name for account in settings.account if not account.skips])


def _listed_before(settings: Settings, directory: Path) -> dict[str, dict[int, int]]:
    """Products by size, as the newest run found them in each fleet that is listed; a part of a fleet tells nothing.

    Raises:
        FleetError: no run tells of one of them.
    """
    left = {account.name for account in settings.account if account.listed}
    known: dict[str, dict[int, int]] = {}
    runs, _ = runs_in(directory) if left and directory.exists() else ([], [])
    for manifest, folder in runs:
        tells = left & {each.account for each in manifest.listings if each.state != "pending"}
        if tells and manifest.name == settings.name and not manifest.fleet.cut and (folder / FLEET).is_file():
            found = _sizes_in(settings, folder / FLEET)
            known |= {name: found.get(name, {}) for name in tells}
            left -= tells
    for name in sorted(left):
        raise FleetError(
            f'account "{name}": the platform lists its fleet, and no earlier run tells how many devices it has; '
            "audit it once, or write the fleet with: auditor fleet CONFIG -o fleet.csv, and plan with --fleet"
        )
    return known


def _first(settings: Settings, devices: Mapping[str, int], limit: int) -> dict[str, int]:
    """The first so many devices: those of fleet files, then those that are listed."""
    kept: dict[str, int] = {}
    for account in sorted(settings.account, key=lambda each: each.listed):
        kept[account.name] = min(devices.get(account.name, 0), limit - sum(kept.values()))
    return kept
