"""A look before the audit: settings, keys, fleet, and one signed call per account."""

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import msgspec

from auditor.audit.account import open_account, read_keys
from auditor.audit.beginning import with_fleet
from auditor.config import Settings
from auditor.errors import AccountStoppedError
from auditor.fleet.snapshot import read_snapshot, write_snapshot
from auditor.inventory.folder import FLEET
from auditor.model import Answered

PATIENCE = 10.0
"""Seconds until an account that gives no usable answer is given up; somebody is waiting."""


@dataclass(frozen=True, slots=True)
class AccountCheck:
    """What came of an account: how many devices it has, what one call said of the first, in how many seconds.

    ``problem`` is None when the account works; ``clock_offset`` is in seconds that the platform's clock is ahead.
    """

    account: str
    endpoint: str
    devices: int
    duplicates: int
    said: str
    seconds: float
    clock_offset: float
    problem: str | None


async def check(settings: Settings, *, fleet: str | None = None) -> list[AccountCheck]:
    """Reads every account's fleet whole and asks about one device of each.

    Raises:
        SettingsError, FleetError: what is wrong with them, in one sentence.
    """
    settings = with_fleet(settings, fleet)
    settings = msgspec.structs.replace(settings, give_up_after=min(PATIENCE, settings.give_up_after))
    keys = await anyio.to_thread.run_sync(read_keys, settings, abandon_on_cancel=True)
    checks: list[AccountCheck] = []
    with TemporaryDirectory(prefix="auditor-") as temporary:
        for account, own_keys in zip(settings.account, keys, strict=True):
            path = Path(temporary, FLEET)
            source = account.fleet.file if account.fleet is not None else ""
            snapshot = await anyio.to_thread.run_sync(write_snapshot, [(account.name, source)], path)
            device = next(read_snapshot(path, account.name))
            said, problem = "", None
            began = time.monotonic()
            async with open_account(settings, account, own_keys, 1) as asked:
                try:
                    outcome = await asked.fetch(device)
                except AccountStoppedError as error:
                    problem = str(error)
                else:
                    said = outcome.status if isinstance(outcome, Answered) else f"failed: {outcome.code}"
                    problem = None if asked.never_reached is None else str(asked.never_reached)
                checks.append(
                    AccountCheck(
                        account.name,
                        account.endpoint,
                        snapshot.devices,
                        snapshot.duplicates,
                        said,
                        time.monotonic() - began,
                        asked.client.clock_offset,
                        problem,
                    )
                )
    return checks
