"""Devices that a fleet names twice: by ``iot_id`` in one row, and by product key and device name in another.

The fleet file alone does not show it. The answers do, for every module in them has all three names.
"""

from pathlib import Path

from auditor.runs.folder import DEVICES, FLEET
from auditor.storage.database import open_database, parquet
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


def count_aliases(folder: Path) -> tuple[int, int]:
    """Return how many devices of a sealed run are in its fleet twice, and of how many that cannot be determined.

    Raises:
        RunFolderError: the run's files cannot be read.
    """
    fleet, devices = parquet(folder / FLEET), parquet(folder / DEVICES)
    with open_database() as database, translate_read_errors(folder):
        mixed = database.execute(_MIXED.format(fleet=fleet)).fetchone()
        if mixed is None or not mixed[0]:
            return 0, 0
        rows = database.execute(_ROWS.format(fleet=fleet, devices=devices)).fetchall()
    # If neither answer names its device, two rows may be one device.
    return sum(found for _, found, _, _ in rows), sum(min(ids, names) for _, _, ids, names in rows)
