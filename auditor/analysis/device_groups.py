"""Devices of a run counted by attributes that the operator names: a bounded number of groups, and the rest as one."""

from collections.abc import Sequence
from pathlib import Path

from auditor.query.filters import WHERE_COLUMNS, unknown_name
from auditor.query.snapshot import snapshot_database
from auditor.runs.attributes import attribute_names, attribute_sql
from auditor.runs.views import define_sealed_views
from auditor.storage.database import Database, scalar
from auditor.storage.tables import translate_read_errors


def require_group_names(folder: Path, names: Sequence[str]) -> None:
    """Raise UsageError, with the closest name, if no device of a run has an attribute that is to be grouped by.

    Raises:
        UsageError: no device has it.
        RunFolderError: the run cannot be read.
    """
    if not names:
        return
    with snapshot_database("groups", folder) as (run, database, _), translate_read_errors(folder):
        define_sealed_views(database, run.devices.parent)
        allowed = [*attribute_names(database), *WHERE_COLUMNS]
        for name in names:
            if name not in allowed:
                raise unknown_name(database, "group by", name, allowed)


def define_device_groups(database: Database, names: Sequence[str], limit: int) -> int:
    """Define ``device_groups`` and ``grouped_devices``; return the number of groups that are combined.

    | table | a row |
    |---|---|
    | ``device_groups`` | each group: number (0: the most devices), devices, and a text for each name: ``value_0`` … |
    | ``grouped_devices`` | a device of the view ``devices``: number of its group, its four names, status and source |

    Groups after the first ``limit`` ones are combined in the group ``limit`` of ``grouped_devices``. An attribute that
    no device has gives NULL, as it does for devices without it.
    """
    values = [name if name in WHERE_COLUMNS else attribute_sql(name) for name in names]
    cells = ", ".join(f"{value} AS value_{number}" for number, value in enumerate(values))
    columns = ", ".join(f"value_{number}" for number in range(len(names)))
    database.execute(
        f"CREATE TABLE device_groups AS SELECT row_number() OVER (ORDER BY devices DESC, {columns}) - 1 AS number, * "
        f"FROM (SELECT {cells}, count(*) AS devices FROM devices GROUP BY ALL)"
    )
    same = " AND ".join(f"d.value_{number} IS NOT DISTINCT FROM g.value_{number}" for number in range(len(names)))
    database.execute(
        f"CREATE TABLE grouped_devices AS SELECT least(number, {limit}) AS number, account, product_key, device_name, "
        "iot_id, status, source FROM (SELECT account, product_key, device_name, iot_id, status, source, "
        f"{cells} FROM devices) d JOIN device_groups g ON {same}"
    )
    return scalar(database, f"SELECT count(*) FROM device_groups WHERE number >= {limit}")


def group_values(database: Database, names: Sequence[str], length: int, limit: int) -> list[tuple[str | None, ...]]:
    """Return the texts of each of the first ``limit`` groups, by its number, cut to ``length`` characters."""
    columns = ", ".join(f"left(value_{number}, {length})" for number in range(len(names)))
    return database.execute(f"SELECT {columns} FROM device_groups WHERE number < {limit} ORDER BY number").fetchall()


def unused_texts(database: Database, names: Sequence[str], text: str) -> tuple[str, ...]:
    """Return for each name a text that no group has: ``text``, and as many ``_`` behind it as that needs."""
    longest = ", ".join(
        f"max(length(value_{number})) FILTER (regexp_full_match(value_{number}, '{text}_*'))"
        for number in range(len(names))
    )
    lengths = database.execute(f"SELECT {longest} FROM device_groups").fetchone() or ()
    return tuple(text if length is None else text.ljust(length + 1, "_") for length in lengths)


GROUPED_MODULES = """
  SELECT m.account, m.product_key, m.module_name, m.module_version, d.number FROM modules m JOIN (
    -- Two rows of a fleet that name one device in two ways are one device.
    SELECT account, product_key, device_name, iot_id, min(number) AS number FROM grouped_devices WHERE status = 'ok'
    GROUP BY ALL
  ) d ON m.account = d.account AND m.product_key IS NOT DISTINCT FROM d.product_key
    AND m.device_name IS NOT DISTINCT FROM d.device_name AND m.iot_id IS NOT DISTINCT FROM d.iot_id"""
"""The rows of the view ``modules``, with the number of the device's group."""
