"""A plan before the audit: the fleet is read whole, and nobody is asked anything."""

from pathlib import Path
from tempfile import TemporaryDirectory

from auditor.audit.beginning import with_fleet
from auditor.audit.plan import Plan, plan_for
from auditor.config import Settings
from auditor.errors import UsageError
from auditor.fleet.snapshot import write_snapshot
from auditor.inventory.folder import FLEET


def plan_audit(
    settings: Settings,
    *,
    fleet: str | None = None,
    directory: str | Path | None = None,
    limit: int | None = None,
    window: float | None = None,
) -> Plan:
    """How many calls an audit will take, how long, and whether that fits; no key is read and nothing is asked.

    Args:
        settings: see ``load_settings``.
        fleet: a fleet file instead of the one in the settings (one account only); ``-`` is standard input.
        directory: where earlier runs lie, instead of the settings' ``directory``; they tell of calls and latency.
        limit: only the first so many devices.
        window: the seconds that there are.

    Raises:
        UsageError: ``limit`` is below 1, or ``window`` is not above 0.
        FleetError: the fleet cannot be used.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: give a number of devices from 1 up")
    if window is not None and not window > 0:
        raise UsageError(f"window {window:g}: give a number of seconds above 0")
    settings = with_fleet(settings, fleet)
    fleets = [(account.name, account.fleet.file) for account in settings.account if account.fleet is not None]
    with TemporaryDirectory(prefix="auditor-") as temporary:
        snapshot = Path(temporary, FLEET)
        write_snapshot(fleets, snapshot, limit=limit)
        return plan_for(settings, snapshot, Path(directory or settings.directory), window)
