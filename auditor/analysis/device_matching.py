"""Match the devices of two runs: which device of one is which of the other. All in tables of numbers, out of core.

A device is the same in two runs if its account is equal, and

- its ``iot_id`` is equal, where both runs know it: a name that was given to another device later does not match;
- else its ``product_key`` and ``device_name`` are equal.

A run knows the names in its fleet and those in answers: a device that was queried by its iot_id and reported modules
is known by its names too, and the reverse. A device that is known by its names only in one run, and one that is known
by its iot_id only in the other, may be the same. Where an account has such devices on both sides that match nothing,
they are ``not_seen`` rather than joined or left. So is a device that the other run did not list: its account is not in
that run or its list is incomplete, a gap of its product is known, or the run was limited to the first devices. So is a
device whose carried result in the new run is older than the answer in the old run, and one whose only answer is that of
a silent account.

A device that a run lists twice, in both ways, counts once. Devices with different names whose answers have one
``iot_id`` are several devices: that ``iot_id`` identifies none of them, and they match by their names.

A device that a sample did not contain is ``unsampled``, whatever the other run knows of it.
"""

from collections.abc import Iterable
from pathlib import Path

from auditor.query.snapshot import RunSnapshot
from auditor.runs.manifest import DiscoveryInfo, Manifest
from auditor.runs.views import QUERIED
from auditor.storage.database import Database, device_key_sql, parquet, scalar, sql_literals

SIDES = ("old", "new")

_NO_ANSWER, _PRESENT = "('failed', 'pending')", "('ok', 'empty')"

_HAS_NAMES = "product_key IS NOT NULL AND device_name IS NOT NULL"

ALL_NAMES = " || ".join(
    (*(f"coalesce(length({name}) || '/' || {name}, '-')" for name in ("product_key", "device_name")), device_key_sql())
)
"""The SQL of one text for each combination of names."""

_SHARED_IDS = f"""SELECT account, iot_id FROM {{rows}} WHERE iot_id IS NOT NULL AND {_HAS_NAMES}
  GROUP BY ALL HAVING count(DISTINCT (product_key, device_name)) > 1"""
"""What several devices of a run report as their ``iot_id``."""

_BY_INFORMATION = "array_position(['ok', 'empty', 'not_found', 'failed', 'pending', 'unsampled'], status), line"
"""Order of several rows of one device: the first one counts."""

_CARRIED = """SELECT device FROM matched JOIN old_rows o ON old_line = o.line JOIN new_rows n ON new_line = n.line
  WHERE presence = 'compared' AND n.source = 'carried'
    AND try_cast(n.audited_at AS TIMESTAMP) {} try_cast(o.audited_at AS TIMESTAMP)"""
"""Devices that are present in both runs with a carried result in the new one: older than the old run's answer (``<``),
or that answer itself (``=``)."""


def match_devices(database: Database, old: RunSnapshot, new: RunSnapshot) -> None:
    """Match the devices of two runs, and define tables of them.

    | table | a row |
    |---|---|
    | ``matched`` | a device of either run: device (a number), old_line, new_line, product and presence |
    | ``products`` | a product: its number, account and product_key |
    | ``unsampled_products`` | a product with devices outside a sample, and of which run (in_old, in_new) |
    | ``old_devices``, ``new_devices`` | a device of one run, once, by its line |

    ``old_line`` and ``new_line`` are rows of ``devices.parquet``, NULL if the run does not have the device.
    ``presence`` is ``compared`` (in both), ``joined``, ``left``, ``not_seen``, ``unsampled`` or ``absent``.
    """
    for side, run in zip(SIDES, (old, new), strict=True):
        _define_devices(database, side, run)
    _define_pairs(database)
    for side, run in zip(SIDES, (old, new), strict=True):
        define_listed(database, side, run.manifest)
    _define_unmatched(database)
    database.execute(
        "CREATE TABLE products AS SELECT row_number() OVER (ORDER BY account, product_key) AS product, * "
        "FROM (SELECT DISTINCT account, product_key FROM (SELECT account, product_key FROM pairs "
        "UNION ALL SELECT account, product_key FROM unmatched))"
    )
    _define_matched(database)
    # An unsampled device that is named by its iot_id only may belong to any product of its account.
    unsampled = " UNION ALL ".join(
        f"SELECT '{side}' AS side, account, product_key FROM {side}_devices WHERE status = 'unsampled' GROUP BY ALL"
        for side in SIDES
    )
    database.execute(
        "CREATE TABLE unsampled_products AS SELECT product, bool_or(side = 'old') AS in_old, "
        f"bool_or(side = 'new') AS in_new FROM ({unsampled}) u JOIN products p ON u.account = p.account "
        "AND (u.product_key IS NULL OR u.product_key = p.product_key) GROUP BY product"
    )


def define_shared_ids(database: Database, runs: Iterable[str]) -> None:
    """Define ``shared_ids``: what several devices report as their ``iot_id`` in one of the runs, tables as SQL."""
    shared = " UNION ".join(_SHARED_IDS.format(rows=rows) for rows in runs)
    database.execute(f"CREATE OR REPLACE TABLE shared_ids AS {shared}")


def distinct_key_sql(prefix: str = "") -> str:
    """Return the SQL of ``device_key_sql``, but by the names of a device whose ``iot_id`` is in ``shared_ids``."""
    has_names = " AND ".join(f"{prefix}{name} IS NOT NULL" for name in ("product_key", "device_name"))
    is_shared = f"({prefix}account, {prefix}iot_id) IN (SELECT (account, iot_id) FROM shared_ids)"
    by_names, key = device_key_sql(prefix, by_names=True), device_key_sql(prefix)
    return f"CASE WHEN {has_names} AND {is_shared} THEN {by_names} ELSE {key} END"


def _define_pairs(database: Database) -> None:
    """Define ``pairs``: the devices that are in both runs, by iot_id, or else by their names."""
    columns = (
        "o.line AS old_line, n.line AS new_line, o.status AS old_status, n.status AS new_status, o.account, "
        "coalesce(n.product_key, o.product_key) AS product_key"
    )
    database.execute(
        f"CREATE TABLE pairs AS SELECT {columns} FROM old_devices o JOIN new_devices n "
        "ON o.account = n.account AND o.own_id = n.own_id"
    )
    rest = {side: f"(FROM {side}_devices ANTI JOIN pairs ON line = {side}_line)" for side in SIDES}
    database.execute(
        f"INSERT INTO pairs SELECT {columns} FROM {rest['old']} o JOIN {rest['new']} n "
        "ON o.account = n.account AND o.product_key = n.product_key AND o.device_name = n.device_name "
        "WHERE o.own_id IS NULL OR n.own_id IS NULL"
    )
    for side, other in (SIDES, SIDES[::-1]):
        # One name of several devices of a run: the first of them is matched with the other run's device.
        if scalar(database, f"SELECT count(*) - count(DISTINCT {side}_line) FROM pairs"):
            first = f"SELECT {side}_line, min({other}_line) FROM pairs GROUP BY {side}_line"
            database.execute(f"DELETE FROM pairs WHERE ({side}_line, {other}_line) NOT IN ({first})")


def _define_matched(database: Database) -> None:
    """Define ``matched``: the devices of ``pairs`` and ``unmatched``, with their presence."""
    unmatched_columns = ", ".join(
        f"CASE WHEN side = '{side}' THEN {column} END AS {side}_{column}"
        for column in ("line", "status")
        for side in SIDES
    )
    presence = f"""CASE WHEN 'unsampled' IN (old_status, new_status) THEN 'unsampled'
      WHEN old_status IN {_NO_ANSWER} OR new_status IN {_NO_ANSWER} OR ambiguous THEN 'not_seen'
      WHEN old_status IN {_PRESENT} AND new_status IN {_PRESENT} THEN 'compared'
      WHEN old_status IN {_PRESENT} THEN 'left'
      WHEN new_status IN {_PRESENT} THEN 'joined'
      ELSE 'absent' END"""
    database.execute(
        "CREATE TABLE matched AS SELECT row_number() OVER () AS device, old_line, new_line, product, "
        f"({presence})::ENUM ('compared', 'joined', 'left', 'not_seen', 'unsampled', 'absent') AS presence "
        "FROM (SELECT old_line, new_line, old_status, new_status, account, product_key, false AS ambiguous FROM pairs "
        f"UNION ALL SELECT {unmatched_columns}, account, product_key, ambiguous FROM unmatched) m "
        "JOIN products p ON m.account = p.account AND m.product_key IS NOT DISTINCT FROM p.product_key"
    )
    if scalar(database, "SELECT count(*) FROM new_rows WHERE source = 'carried'"):
        # A carried result that is older than the old run's shows nothing of what happened since.
        database.execute(f"UPDATE matched SET presence = 'not_seen' WHERE device IN ({_CARRIED.format('<')})")


def count_carried(database: Database) -> int:
    """Return the number of compared devices whose answer in the new run is the old run's, carried forward."""
    return scalar(database, f"SELECT count(*) FROM ({_CARRIED.format('=')})")


def define_reported_versions(
    database: Database, old: RunSnapshot, new: RunSnapshot, *, further: tuple[Path, ...] = ()
) -> None:
    """Define the modules and versions that the matched devices report. ``further`` files have more of the old run.

    | table | a row |
    |---|---|
    | ``reported`` | device, module and version, all numbers, and whether the new run has it (in_new) |
    | ``module_names`` | a spelling of a module's name; its number is one regardless of case |
    | ``versions`` | a version; their numbers sort as their texts |
    | ``spellings`` | account, product_key, module_name and module_version of either run |
    """
    files = {"old": parquet(old.modules, *further), "new": parquet(new.modules)}
    spellings = "SELECT DISTINCT account, product_key, module_name, module_version FROM"
    both = " UNION ALL ".join(f"{spellings} {file}" for file in files.values())
    database.execute(f"CREATE TABLE spellings AS {spellings} ({both})")
    database.execute(
        "CREATE TABLE versions AS SELECT (row_number() OVER (ORDER BY module_version))::INTEGER AS version, "
        "module_version FROM (SELECT DISTINCT module_version FROM spellings)"
    )
    database.execute(
        "CREATE TABLE module_names AS SELECT (dense_rank() OVER (ORDER BY lower(module_name)))::INTEGER AS module, "
        "module_name FROM (SELECT DISTINCT module_name FROM spellings)"
    )
    database.execute("CREATE TABLE reported (device BIGINT, module INTEGER, version INTEGER, in_new BOOLEAN)")
    for side, file in files.items():
        shared = scalar(database, f"SELECT count(*) FROM {side}_shared_ids") > 0
        key = ALL_NAMES if shared else device_key_sql()
        database.execute(
            f"INSERT INTO reported SELECT device, module, version, {side == 'new'} "
            f"FROM (SELECT {key} AS key, module_name, module_version FROM {file}) "
            f"JOIN (SELECT {key} AS key, line FROM {side}_devices WHERE status = 'ok') USING (key) "
            f"JOIN matched ON line = {side}_line JOIN module_names USING (module_name) "
            "JOIN versions USING (module_version)"
        )


def _define_devices(database: Database, side: str, run: RunSnapshot) -> None:
    """Define ``{side}_rows``, a run's devices by line, and ``{side}_devices``, the same without duplicates."""
    silent = sql_literals(sorted(run.manifest.silent_accounts)) or "NULL"
    database.execute(
        f"CREATE VIEW {side}_rows AS SELECT file_row_number AS line, account, product_key, device_name, iot_id, "
        "CASE WHEN source = 'unsampled' THEN source "
        f"WHEN source IN ({QUERIED}) AND account IN ({silent}) THEN 'failed' ELSE status END AS status, "
        f"source, audited_at FROM {parquet(run.devices, options='file_row_number=true')}"
    )
    # Hashes that all differ prove that no device is listed twice, and comparing numbers is cheap.
    unique_ids, unique_names = (
        scalar(database, f"SELECT count(*) - count(DISTINCT hash({names})) FROM {side}_rows WHERE {condition}") == 0
        for names, condition in (
            ("account, iot_id", "iot_id IS NOT NULL"),
            ("account, product_key, device_name", _HAS_NAMES),
        )
    )
    shared_ids = f"({_SHARED_IDS.format(rows=f'{side}_rows')}){' LIMIT 0' if unique_ids else ''}"
    database.execute(f"CREATE TABLE {side}_shared_ids AS FROM {shared_ids}")
    devices = f"(SELECT *, iot_id AS own_id FROM {side}_rows)"
    if not (unique_ids and unique_names):
        _define_unique(database, side)
        devices = f"(SELECT r.*, own_id FROM {side}_rows r JOIN {side}_unique USING (line))"
    database.execute(f"CREATE VIEW {side}_devices AS SELECT * FROM {devices}")


def _define_unique(database: Database, side: str) -> None:
    """Define ``{side}_unique``: the first line of each device, and its ``own_id``, the iot_id of no other device."""
    is_shared = f"{_HAS_NAMES} AND (account, iot_id) IN (SELECT (account, iot_id) FROM {side}_shared_ids)"
    first_by_id = f"PARTITION BY account, own_id, CASE WHEN own_id IS NULL THEN line END ORDER BY {_BY_INFORMATION}"
    first_by_names = (
        f"PARTITION BY account, product_key, device_name, CASE WHEN NOT ({_HAS_NAMES}) THEN line END "
        f"ORDER BY own_id IS NULL, {_BY_INFORMATION}"
    )
    database.execute(
        f"CREATE TABLE {side}_unique AS SELECT line, own_id FROM ("
        f"FROM (SELECT *, CASE WHEN NOT ({is_shared}) THEN iot_id END AS own_id FROM {side}_rows) "
        f"QUALIFY row_number() OVER ({first_by_id}) = 1) "
        f"QUALIFY own_id IS NOT NULL OR row_number() OVER ({first_by_names}) = 1"
    )


def define_listed(database: Database, side: str, manifest: Manifest) -> None:
    """Define ``{side}_listed``, accounts that a run lists, and ``{side}_list_gaps``, products listed in part."""
    database.execute(f"CREATE OR REPLACE TABLE {side}_listed (account VARCHAR)")
    database.execute(f"CREATE OR REPLACE TABLE {side}_list_gaps (account VARCHAR, product_key VARCHAR)")
    for account, gaps in find_list_gaps(manifest).items():
        if None not in gaps:
            database.execute(f"INSERT INTO {side}_listed VALUES (?)", [account])
        for product_key in gaps:
            database.execute(f"INSERT INTO {side}_list_gaps VALUES (?, ?)", [account, product_key])


def is_unlisted(rows: str, side: str) -> str:
    """Return the SQL of whether the list of a run may lack a device of ``rows``, after ``define_listed``."""
    return (
        f"({rows}.account NOT IN (FROM {side}_listed) OR EXISTS (FROM {side}_list_gaps l "
        f"WHERE l.account = {rows}.account AND coalesce(l.product_key = {rows}.product_key, true)))"
    )


def find_list_gaps(manifest: Manifest) -> dict[str, list[str | None]]:
    """Return the products that were not listed to their end, for each account that a run lists.

    None means an unknown number of products. A run that was limited to the first devices lists no account.
    """
    if manifest.fleet.limit is not None and manifest.fleet.devices >= manifest.fleet.limit:
        return {}
    discoveries = {each.account: each for each in manifest.discovery}
    return {each.name: _gaps_of(discoveries.get(each.name)) for each in manifest.accounts}


def _gaps_of(discovery: DiscoveryInfo | None) -> list[str | None]:
    """Return the products that were not listed to their end; None means an unknown number of products."""
    if discovery is None or discovery.state == "complete":
        return []
    products = [gap.product_key for gap in discovery.gaps]
    return products if discovery.gap_count == len(products) > 0 else [None]


def _define_unmatched(database: Database) -> None:
    """Define ``unmatched``: devices of one run only. They are ``ambiguous`` if the other run may have them, too.

    It may name them in another way, or did not list them.
    """
    devices = " UNION ALL ".join(
        f"SELECT '{side}' AS side, line, status, account, product_key, "
        f"CASE WHEN own_id IS NULL THEN 'names' WHEN NOT ({_HAS_NAMES}) THEN 'id' ELSE 'both' END AS identity "
        f"FROM {side}_devices ANTI JOIN pairs ON line = {side}_line"
        for side in SIDES
    )
    database.execute(f"CREATE TABLE unmatched_rows AS {devices}")
    database.execute(
        "CREATE TABLE unmatched AS SELECT side, line, status, account, product_key, EXISTS ("
        "FROM (SELECT DISTINCT side, account, identity FROM unmatched_rows) other WHERE other.account = r.account "
        "AND other.side <> r.side AND (r.identity, other.identity) IN (('names', 'id'), ('id', 'names'))"
        f") OR CASE side WHEN 'old' THEN {is_unlisted('r', 'new')} ELSE {is_unlisted('r', 'old')} END AS ambiguous "
        "FROM unmatched_rows r"
    )
