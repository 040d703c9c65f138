"""Devices that a fleet names twice, and devices whose answers name one device.

A fleet file alone does not show that a device is in it by ``iot_id`` in one row, and by product key and device name in
another. The answers do, for every module in them has all three names. These are aliases.

Otherwise no two devices have answers with the same names, or the same ``iot_id``. If they do, a gateway may have
answered for another device. An answer names the device with all names of the request, so only names that the fleet
does not have can be the same.
"""

from dataclasses import dataclass
from pathlib import Path

from auditor.fleet.table import find_duplicate_keys, slices_for
from auditor.runs.folder import DEVICES, FLEET
from auditor.storage.database import Database, borrow_database, parquet, scalar
from auditor.storage.tables import translate_read_errors

_MIXED = """
  SELECT bool_or(device_name IS NULL OR product_key IS NULL) AND bool_or(iot_id IS NULL) FROM {fleet}"""

_ROWS = """
  WITH rows AS (
    SELECT f.account, f.iot_id IS NULL AS by_names, d.iot_id, d.product_key, d.device_name
    FROM {fleet} f JOIN {devices} d USING (ordinal)
    WHERE f.iot_id IS NULL OR f.product_key IS NULL OR f.device_name IS NULL
  ), by_names AS (FROM rows WHERE by_names), by_iot_id AS (FROM rows WHERE NOT by_names)
  SELECT account,
    (SELECT count(*) FROM by_iot_id SEMI JOIN by_names USING (account, iot_id) WHERE account = accounts.account),
    (SELECT count(*) FROM by_iot_id WHERE account = accounts.account AND device_name IS NULL),
    (SELECT count(*) FROM by_names WHERE account = accounts.account AND iot_id IS NULL)
  FROM (SELECT DISTINCT account FROM rows) AS accounts"""


_SHARED = """
  CREATE TEMP TABLE shared_{table} AS SELECT unnest(ordinals) AS ordinal FROM (
    SELECT list(ordinal) AS ordinals, count(*) AS devices, count(DISTINCT d.iot_id) AS ids,
      count(*) FILTER (f.iot_id IS NULL) AS by_names,
      count(*) FILTER (f.iot_id IS NOT NULL AND (f.product_key IS NULL OR f.device_name IS NULL)) AS by_iot_id
    FROM {fleet} f JOIN (FROM {devices} WHERE {key} IN (SELECT key FROM keys_{table})) d USING (ordinal)
    GROUP BY d.account, {names}
  ) WHERE devices > 1 AND NOT (by_names = 1 AND by_iot_id = 1 AND devices = 2 AND ids <= 1)"""
"""Rows whose answers have the same names, and are not two aliases."""


@dataclass(frozen=True, slots=True)
class AliasCounts:
    """Devices of a run with the names of another one.

    Attributes:
        aliases: devices that are in the fleet twice.
        possible_aliases: devices that may be in the fleet twice, which no answer decides.
        shared_identities: devices whose answer has the names, or the ``iot_id``, of another one's, and are no aliases.
    """

    aliases: int = 0
    possible_aliases: int = 0
    shared_identities: int = 0


def count_aliases(folder: Path) -> AliasCounts:
    """Return how many devices of a sealed run have the names of another one.

    Raises:
        RunFolderError: the run's files cannot be read.
    """
    fleet, devices = parquet(folder / FLEET), parquet(folder / DEVICES)
    with borrow_database() as database, translate_read_errors(folder):
        shared = _count_shared_identities(database, fleet, devices)
        mixed = database.execute(_MIXED.format(fleet=fleet)).fetchone()
        if mixed is None or not mixed[0]:
            return AliasCounts(shared_identities=shared)
        rows = database.execute(_ROWS.format(fleet=fleet, devices=devices)).fetchall()
    # If neither answer names its device, two rows may be one device.
    aliases, possible = sum(found for _, found, _, _ in rows), sum(min(ids, names) for _, _, ids, names in rows)
    return AliasCounts(aliases, possible, shared)


def _count_shared_identities(database: Database, fleet: str, devices: str) -> int:
    """Return how many devices have answers with names that another answer has, by either kind of names."""
    slices, tables = slices_for(scalar(database, f"SELECT count(*) FROM {fleet}")), []
    for table, names in (("iot_ids", "iot_id"), ("names", "product_key, device_name")):
        added = " OR ".join(f"{name} IS NULL" for name in names.split(", "))
        if scalar(database, f"SELECT count(*) FROM {fleet} WHERE {added}"):  # else the names are the fleet's own
            key, named = f"hash(account, {names})", added.replace(" OR ", " AND ").replace("IS NULL", "IS NOT NULL")
            find_duplicate_keys(database, f"keys_{table}", f"{key} FROM {devices} WHERE {named}", slices)
            columns = ", ".join(f"d.{name}" for name in names.split(", "))
            database.execute(_SHARED.format(table=table, names=columns, key=key, fleet=fleet, devices=devices))
            tables.append(f"SELECT ordinal FROM shared_{table}")
    return scalar(database, f"SELECT count(*) FROM ({' UNION '.join(tables)})") if tables else 0
