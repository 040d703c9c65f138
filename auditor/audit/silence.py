"""Accounts whose answers say nothing: not one device exists, or no device reports a module any more.

A wrong region or instance id gives no error: the platform answers that a product or device does not exist, or that
nothing was reported, for every device. Such answers are not a result, and the next run must not carry them.
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from auditor.errors import RunFolderError
from auditor.runs.folder import DEVICES, RunCatalog
from auditor.runs.manifest import Manifest, SilentAccount
from auditor.storage.database import open_database, parquet, sql_literal
from auditor.storage.tables import translate_read_errors

MIN_QUERIED_DEVICES = 20
"""Devices that must show the silence where other results of the account are carried: a few may have been removed."""

MAX_EARLIER_RUNS = 10
"""Earlier runs that are searched for the devices of this one, the newest first."""

_ACCOUNTS = """
  SELECT account, count(*) FILTER (answered), count(*) FILTER (answered AND status = 'empty'),
    count(*) FILTER (source = 'carried')
  FROM (SELECT *, source = 'queried' AND status IN ('ok', 'empty', 'not_found') AS answered FROM {devices})
  GROUP BY account HAVING count(*) FILTER (answered) > 0 AND count(*) FILTER (answered AND status = 'ok') = 0
  ORDER BY account"""
"""Accounts without any queried device that reported a module."""

_EARLIER_RESULTS = """
  WITH silent AS (FROM {devices} WHERE account = {account} AND source = 'queried' AND status = 'empty')
  SELECT count(*), count(*) FILTER (status = 'ok') FROM {earlier} WHERE account = {account} AND (
    iot_id IN (SELECT iot_id FROM silent WHERE iot_id IS NOT NULL)
    OR (product_key, device_name) IN (SELECT (product_key, device_name) FROM silent WHERE device_name IS NOT NULL))"""
"""Number of results that an earlier run has of the devices without modules, and how many of these have modules."""


def find_silent_accounts(folder: Path, manifest: Manifest) -> tuple[SilentAccount, ...]:
    """Return the silent accounts of a sealed run; raise RunFolderError if its devices cannot be read."""
    with open_database() as database, translate_read_errors(folder):
        rows = database.execute(_ACCOUNTS.format(devices=parquet(folder / DEVICES))).fetchall()
    return tuple(_silent_accounts(folder, manifest, rows))


def _silent_accounts(
    folder: Path, manifest: Manifest, rows: list[tuple[str, int, int, int]]
) -> Iterator[SilentAccount]:
    accounts = () if manifest.selection is None else manifest.selection.accounts
    connected = {each.account for each in accounts if each.states_requested > each.states_unknown}
    for account, queried, empty, carried in rows:
        needed = MIN_QUERIED_DEVICES if carried else 1
        if not empty:
            if queried >= needed and not (carried and account in connected):
                yield SilentAccount(account, "not_found", queried)
        elif empty >= needed and _count_silenced_devices(folder, manifest, account) >= needed:
            yield SilentAccount(account, "empty", queried)


def _count_silenced_devices(folder: Path, manifest: Manifest, account: str) -> int:
    """Return how many devices of an account without modules had some when the account was last not silent."""
    own = (manifest.started_at, folder.name)
    earlier_runs = (
        run.folder
        for run in RunCatalog(folder.resolve().parent).named(manifest.name)
        if (run.manifest.started_at, run.folder.name) < own
        and run.ended
        and run.sealed
        and account not in run.manifest.silent_accounts
    )
    for earlier in islice(earlier_runs, MAX_EARLIER_RUNS):
        with suppress(RunFolderError):  # a run that cannot be read must not end this one
            results, with_modules = _earlier_results(folder, earlier, account)
            if results:
                return with_modules
    return 0


def _earlier_results(folder: Path, earlier: Path, account: str) -> tuple[int, int]:
    files = {"devices": parquet(folder / DEVICES), "earlier": parquet(earlier / DEVICES)}
    with open_database() as database, translate_read_errors(earlier):
        return database.execute(_EARLIER_RESULTS.format(account=sql_literal(account), **files)).fetchall()[0]
