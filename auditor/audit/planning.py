"""A plan before the audit: the fleet is read whole, and nobody is asked anything."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from auditor.audit.beginning import fleet_files, with_fleet
from auditor.audit.plan import Plan, devices_in, plan_of
from auditor.config import Settings
from auditor.errors import FleetError, UsageError
from auditor.fleet.snapshot import write_snapshot
from auditor.inventory.experience import newest_experience
from auditor.inventory.folder import FLEET, runs_in


def plan_audit(
    settings: Settings,
    *,
    fleet: str | None = None,
    directory: str | Path | None = None,
    limit: int | None = None,
    window: float | None = None,
) -> Plan:
    """How many calls an audit will take, how long, and whether that fits; no key is read and nothing is asked.

    A fleet that the platform lists is taken to have as many devices as the newest run of the same name found.

    Args:
        settings: see ``load_settings``.
        fleet: a fleet file instead of the one in the settings (one account only); ``-`` is standard input.
        directory: where earlier runs lie, instead of the settings' ``directory``; they tell of calls and latency.
        limit: only the first so many devices.
        window: the seconds that there are.

    Raises:
        UsageError: ``limit`` is below 1, or ``window`` is not above 0.
        FleetError: the fleet cannot be used, or the platform lists it and no run tells how many devices it has.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: give a number of devices from 1 up")
    if window is not None and not window > 0:
        raise UsageError(f"window {window:g}: give a number of seconds above 0")
    settings = with_fleet(settings, fleet)
    runs = Path(directory or settings.directory)
    before, devices = newest_experience(runs, settings.name), _listed_before(settings, runs)
    if files := fleet_files(settings):
        with TemporaryDirectory(prefix="auditor-") as temporary:
            snapshot = Path(temporary, FLEET)
            write_snapshot(files, snapshot, limit=limit)
            devices = devices_in(settings, snapshot) | devices
    return plan_of(settings, devices if limit is None else _first(settings, devices, limit), before, window)


def _listed_before(settings: Settings, directory: Path) -> dict[str, int]:
    """How many devices the newest run found in each fleet that the platform lists; a part of a fleet tells nothing.

    Raises:
        FleetError: no run tells of one of them.
    """
    left = {account.name for account in settings.account if account.listed}
    known: dict[str, int] = {}
    runs, _ = runs_in(directory) if left and directory.exists() else ([], [])
    for manifest, folder in runs:
        tells = left & {each.account for each in manifest.listings if each.state != "pending"}
        if tells and manifest.name == settings.name and not manifest.fleet.cut and (folder / FLEET).is_file():
            found = devices_in(settings, folder / FLEET)
            known |= {name: found.get(name, 0) for name in tells}
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
