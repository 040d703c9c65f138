"""Accounts whose answers say nothing: not one device exists, or no device reports a module any more.

A wrong region or instance id gives no error: the platform answers that a product or device does not exist, or that
nothing was reported, for every device. Such answers are not a result, and the next run must not carry them.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Literal

from auditor.errors import RunFolderError
from auditor.models import Device
from auditor.runs.folder import DEVICES, RunCatalog
from auditor.runs.manifest import Manifest, SilentAccount
from auditor.runs.views import QUERIED
from auditor.storage.database import borrow_database, parquet, scalar, sql_literal
from auditor.storage.tables import translate_read_errors

MIN_QUERIED_DEVICES = 20
"""Devices that must show the silence where other results of the account are carried: a few may have been removed."""

MIN_SILENCED_DEVICES = 5
"""Devices that must have lost their modules where no connection state shows that the account has devices.

They count over several runs: all that were answered after the last device of the account that reported a module.
"""

MAX_COMPARED = 10
"""Devices of an earlier run that ``auditor check`` queries again, if the first device reports no module."""

MAX_KNOWN_DEVICES = 5
"""Devices by which an account that has not answered yet is probed. If they all fail, one product is not the reason."""

MAX_EARLIER_RUNS = 10
"""Earlier runs that are searched for the devices of this one, the newest first."""

_ACCOUNTS = f"""
  SELECT account, count(*) FILTER (answered), count(*) FILTER (answered AND status = 'empty'),
    count(*) FILTER (source = 'carried')
  FROM (
    SELECT *, source IN ({QUERIED}) AND status IN ('ok', 'empty', 'not_found') AS answered FROM {{devices}}
  )
  GROUP BY account HAVING count(*) FILTER (answered) > 0 AND count(*) FILTER (answered AND status = 'ok') = 0
  ORDER BY account"""
"""Accounts without any queried device that reported a module."""

_SILENCED = """
  CREATE TABLE silenced AS SELECT row_number() OVER () AS number, product_key, device_name, iot_id FROM {devices} d
  WHERE account = {account} AND status IN ({statuses}) AND source IS DISTINCT FROM 'unsampled'
    AND audited_at > ALL (SELECT audited_at FROM {devices} WHERE account = {account} AND status = 'ok')"""
"""Devices of an account that were answered after the last one that reported a module."""

_HAD_MODULES = """
  INSERT INTO had_modules SELECT number FROM (FROM {earlier} WHERE account = {account} AND status = 'ok') e
  JOIN silenced s ON s.iot_id = e.iot_id OR (s.product_key = e.product_key AND s.device_name = e.device_name)"""

_EARLIER_RESULTS = f"""
  WITH silent AS (FROM {{devices}} WHERE account = {{account}} AND source IN ({QUERIED}) AND status = 'empty')
  SELECT count(*), count(*) FILTER (status = 'ok') FROM {{earlier}} WHERE account = {{account}} AND (
    iot_id IN (SELECT iot_id FROM silent WHERE iot_id IS NOT NULL)
    OR (product_key, device_name) IN (SELECT (product_key, device_name) FROM silent WHERE device_name IS NOT NULL))"""
"""Number of results that an earlier run has of the devices without modules, and how many of these have modules."""


_KNOWN_DEVICES = f"""
  WITH named AS (
    SELECT account::VARCHAR AS account, {{{{'product_key': product_key::VARCHAR, 'device_name': device_name::VARCHAR,
      'iot_id': iot_id::VARCHAR}}}} AS d
    FROM {{devices}} WHERE status = 'ok' AND account IN (SELECT unnest($1::VARCHAR[]))
  ), picked AS (
    SELECT DISTINCT account, unnest([min_by(d, hash(d)), max_by(d, hash(d))]) AS d
    FROM named GROUP BY account, d.product_key
  )
  SELECT account, d.product_key, d.device_name, d.iot_id FROM picked
  QUALIFY row_number() OVER (PARTITION BY account ORDER BY hash(d)) <= {MAX_KNOWN_DEVICES}"""
"""A few devices with modules of each account in a list, of any products."""


def find_silent_accounts(folder: Path, manifest: Manifest) -> tuple[SilentAccount, ...]:
    """Return the silent accounts of a sealed run; raise RunFolderError if its devices cannot be read."""
    with borrow_database() as database, translate_read_errors(folder):
        rows = database.execute(_ACCOUNTS.format(devices=parquet(folder / DEVICES))).fetchall()
    return tuple(_silent_accounts(folder, manifest, rows))


def _silent_accounts(
    folder: Path, manifest: Manifest, rows: list[tuple[str, int, int, int]]
) -> Iterator[SilentAccount]:
    accounts = () if manifest.selection is None else manifest.selection.accounts
    connected = {each.account for each in accounts if each.states_requested > each.states_unknown}
    for account, queried, empty, carried in rows:
        reason: Literal["empty", "not_found"] = "empty" if empty else "not_found"
        if carried:
            if account in connected:  # the account has devices: those that do not exist were removed
                is_silent = _count_lost_devices(folder, manifest, account, ("empty",)) >= MIN_QUERIED_DEVICES
            elif empty or queried < MIN_QUERIED_DEVICES:
                lost = _count_lost_devices(folder, manifest, account, ("empty", "not_found"))
                is_silent = lost >= MIN_SILENCED_DEVICES
            else:
                is_silent = True
        else:
            is_silent = not empty or _count_silenced_devices(folder, manifest, account) > 0
        if is_silent:
            yield SilentAccount(account, reason, queried)


def _count_lost_devices(folder: Path, manifest: Manifest, account: str, statuses: Sequence[str]) -> int:
    """Return how many devices of ``_SILENCED``, with one of these results, had modules in an earlier run."""
    own, name = parquet(folder / DEVICES), sql_literal(account)
    with borrow_database() as database, translate_read_errors(folder):
        database.execute("CREATE TABLE had_modules (number BIGINT)")
        database.execute(_SILENCED.format(devices=own, account=name, statuses=", ".join(map(sql_literal, statuses))))
        for earlier in islice(_earlier_runs(folder, manifest, account), MAX_EARLIER_RUNS):
            with suppress(RunFolderError), translate_read_errors(earlier):
                database.execute(_HAD_MODULES.format(earlier=parquet(earlier / DEVICES), account=name))
        return scalar(database, "SELECT count(DISTINCT number) FROM had_modules")


def _count_silenced_devices(folder: Path, manifest: Manifest, account: str) -> int:
    """Return how many devices of an account without modules had some when the account was last not silent."""
    for earlier in islice(_earlier_runs(folder, manifest, account), MAX_EARLIER_RUNS):
        with suppress(RunFolderError):  # a run that cannot be read must not end this one
            results, with_modules = _earlier_results(folder, earlier, account)
            if results:
                return with_modules
    return 0


def find_believed_run(directory: Path, name: str, account: str) -> Path | None:
    """Return the newest sealed run of a name in which an account is not silent; None: there is none."""
    runs = RunCatalog(directory, missing_ok=True).named(name)
    sealed = (run for run in runs if run.ended and run.sealed and account not in run.manifest.silent_accounts)
    return next((run.folder for run in sealed), None)


def find_known_devices(folder: Path, manifest: Manifest) -> dict[str, tuple[Device, ...]]:
    """Return devices that reported modules in an earlier run, a few of several products, for each account of a run.

    An account whose endpoint has changed is another one.
    """
    found: dict[str, tuple[Device, ...]] = {}
    for run in islice(RunCatalog(folder.resolve().parent).earlier(manifest, folder), MAX_EARLIER_RUNS):
        endpoints = {each.name: each.endpoint for each in run.manifest.accounts}
        names = {each.name for each in manifest.accounts if endpoints.get(each.name) == each.endpoint}
        missing = sorted(names - found.keys() - run.manifest.silent_accounts)
        if missing and run.sealed:
            query = _KNOWN_DEVICES.format(devices=parquet(run.folder / DEVICES))
            with suppress(RunFolderError), borrow_database() as database, translate_read_errors(run.folder):
                for row in database.execute(query, [missing]).fetchall():
                    device = Device(*row)
                    found[device.account] = (*found.get(device.account, ()), device)
    return found


def read_devices_with_modules(run: Path, account: str) -> list[Device]:
    """Return a few devices of an account that reported modules in a run; none if the run cannot be read."""
    columns = "account, product_key, device_name, iot_id"
    query = f"SELECT {columns} FROM {parquet(run / DEVICES)} WHERE account = $1 AND status = 'ok' LIMIT {MAX_COMPARED}"
    with suppress(RunFolderError), borrow_database() as database, translate_read_errors(run):
        return [Device(*row) for row in database.execute(query, [account]).fetchall()]
    return []


def _earlier_runs(folder: Path, manifest: Manifest, account: str) -> Iterator[Path]:
    """Yield the earlier runs in which an account is not silent, the newest first."""
    own = (manifest.started_at, folder.name)
    for run in RunCatalog(folder.resolve().parent).named(manifest.name):
        is_earlier = (run.manifest.started_at, run.folder.name) < own
        if is_earlier and run.ended and run.sealed and account not in run.manifest.silent_accounts:
            yield run.folder


def _earlier_results(folder: Path, earlier: Path, account: str) -> tuple[int, int]:
    files = {"devices": parquet(folder / DEVICES), "earlier": parquet(earlier / DEVICES)}
    with borrow_database() as database, translate_read_errors(earlier):
        return database.execute(_EARLIER_RESULTS.format(account=sql_literal(account), **files)).fetchall()[0]
