"""The beginning of an audit: the fleet read whole, and the run folder made around it."""

from pathlib import Path

import msgspec

from auditor import __about__
from auditor.audit.folder import new_run_folder
from auditor.audit.journal import utc
from auditor.config import Account, FleetSource, Settings
from auditor.errors import FleetError
from auditor.fleet.snapshot import write_snapshot
from auditor.inventory.folder import (
    FLEET,
    AccountFacts,
    DeviceCounts,
    FleetFacts,
    Manifest,
    Rate,
    write_manifest,
)


def with_fleet(settings: Settings, fleet: str | None) -> Settings:
    """The settings with every account's fleet known.

    Raises:
        FleetError: an account has no fleet, or one fleet was given for several accounts.
    """
    accounts = settings.account
    if fleet is not None:
        if len(accounts) > 1:
            raise FleetError(f"{fleet}: there are {len(accounts)} accounts; give each its fleet in the settings")
        accounts = (msgspec.structs.replace(accounts[0], fleet=FleetSource(file=fleet)),)
    for account in accounts:
        if account.fleet is None:
            raise FleetError(f'account "{account.name}": has no fleet; set fleet = {{ file = "…" }} or give --fleet')
    return msgspec.structs.replace(settings, account=accounts)


def new_run(settings: Settings, directory: Path, limit: int | None, started: float) -> tuple[Manifest, Path]:
    """Reads the fleet and makes the run folder around it."""
    manifests: list[Manifest] = []

    def fill(folder: Path) -> None:
        fleets = [(account.name, account.fleet.file) for account in settings.account if account.fleet is not None]
        snapshot = write_snapshot(fleets, folder / FLEET, limit=limit)
        manifest = Manifest(
            auditor_version=__about__.VERSION,
            name=settings.name,
            state="running",
            started_at=utc(started),
            accounts=tuple(_facts(account) for account in settings.account),
            fleet=FleetFacts(printable(snapshot.source), snapshot.devices, snapshot.duplicates, snapshot.sha256),
            devices=DeviceCounts(pending=snapshot.devices),
            rate=Rate(target=_target(settings)),
        )
        write_manifest(folder, manifest)
        manifests.append(manifest)

    folder = new_run_folder(directory, settings.name, fill, now=started)
    return manifests[0], folder


def printable(path: str) -> str:
    """A path fit for JSON: bytes of a file name that are not UTF-8 are written out."""
    return path.encode(errors="backslashreplace").decode()


def _facts(account: Account) -> AccountFacts:
    quota = None if account.per_second == "unlimited" else account.per_second
    return AccountFacts(account.name, account.endpoint, account.dialect, quota)


def _target(settings: Settings) -> float | None:
    rates = [account.rate for account in settings.account]
    return None if None in rates else sum(rate for rate in rates if rate is not None)
