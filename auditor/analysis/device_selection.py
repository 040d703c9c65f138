"""The devices of several runs that match one filter, with the values by which their changes or versions are counted.

The conditions are those of ``query.filters``, on one view of all runs: a value is a typing error only if no device of
any of them has it. A device has in each run the attributes of that run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from auditor.errors import UsageError
from auditor.query.filters import (
    DeviceFilter,
    define_product_names,
    define_selected,
    require_module,
    unknown_name,
)
from auditor.runs.attributes import (
    ATTRIBUTES,
    ATTRIBUTES_TYPE,
    attribute_columns,
    attribute_names,
    attribute_sql,
    has_attribute,
)
from auditor.runs.views import parquet_of_run, products_query
from auditor.storage.database import Database, parquet, sql_identifier, temporary_database, write_parquet

MODULE_COLUMNS = ("account", "product_key", "module_name")

CHANGE_COLUMNS = (*MODULE_COLUMNS, "change", "old_version", "new_version")
"""Columns of a change by which changes are counted, besides those of its device."""

OF_DEVICE = ("product_name", "device_status")
"""Columns of a device by which it is counted, besides its attributes."""

NET_CHANGES = ("upgraded", "downgraded", "changed", "appeared", "vanished", "joined", "left", "not_seen")

_EMPTY = {
    **dict.fromkeys(
        ("account", "product_key", "device_name", "iot_id", "status", "source", "device_status"), "VARCHAR"
    ),
    "last_online_at": "TIMESTAMP",
    ATTRIBUTES: ATTRIBUTES_TYPE,
}
"""Columns that conditions are about; NULL where a file does not have them."""


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Files of a run whose devices are selected.

    Attributes:
        number: number of the run; the newest one has the highest.
        devices: Parquet file with a row for each device.
        modules: Parquet file with a row for each module of a device; None: there is none.
        folder: folder with the list of the run's products; None: there is none.
        started_at: start of the run in ISO 8601.
    """

    number: int
    devices: Path
    modules: Path | None = None
    folder: Path | None = None
    started_at: str = ""


@dataclass(frozen=True, slots=True)
class GroupColumn:
    """A column by which changes or versions are counted: ``name`` in results, ``source`` in the rows that are counted.

    ``cell`` is the SQL of its value of a selected device ``s`` whose product has the names ``n``; None: it is a column
    of the rows themselves.
    """

    name: str
    source: str
    cell: str | None = None


def is_narrow(criteria: DeviceFilter, group_by: Sequence[str] = ()) -> bool:
    """Return whether devices must be selected: ``sort`` and ``limit`` select none.

    Raises:
        UsageError: a condition is about a version. A device has several versions over several runs.
    """
    if criteria.missing or not criteria.version is criteria.below is criteria.above is criteria.update is None:
        further = "leave out version, below, above, update and missing"
        raise UsageError(f"several runs have several versions of a device: {further}")
    return bool(group_by) or replace(criteria, sort=None, limit=None) != DeviceFilter()


def define_devices_of_runs(database: Database, runs: Sequence[RunFiles]) -> None:
    """Define ``devices`` and ``modules`` of all runs, with ``run`` (its number) and ``line``, and ``products``."""
    empty = ", ".join(f"NULL::{kind} AS {name}" for name, kind in _EMPTY.items())
    devices = [f"SELECT NULL::BIGINT AS run, NULL::BIGINT AS line, {empty} WHERE false"]
    modules = ["SELECT NULL::VARCHAR AS module_name WHERE false"]
    products = []
    for run in runs:
        parquet_of_run(database, run.devices)
        rows = parquet(run.devices, options="file_row_number=true")
        devices.append(f"SELECT {run.number} AS run, file_row_number AS line, * EXCLUDE (file_row_number) FROM {rows}")
        if run.modules is not None:
            modules.append(f"SELECT {run.number} AS run, * FROM {parquet_of_run(database, run.modules)}")
        if run.folder is not None:
            products.append(products_query(run.folder))
    database.execute(f"CREATE OR REPLACE VIEW devices AS {' UNION ALL BY NAME '.join(devices)}")
    database.execute(f"CREATE OR REPLACE VIEW modules AS {' UNION ALL BY NAME '.join(modules)}")
    database.execute(f"CREATE TABLE products AS {' UNION ALL '.join(f'({each})' for each in products)}")


def group_columns(
    database: Database, group_by: Sequence[str], own: Sequence[str], taken: Sequence[str] = ()
) -> list[GroupColumn]:
    """Return the columns that ``group_by`` names: ``own`` ones of the rows, or columns or attributes of devices.

    ``taken`` are names of other columns of the result. Views are as ``define_devices_of_runs`` defines them.

    Raises:
        UsageError: there is no such column, and no device has such an attribute.
    """
    plain = (*own, *OF_DEVICE)
    requested = list(dict.fromkeys(group_by))
    names = attribute_columns([name for name in requested if name not in plain], [*taken, *plain])
    cells = {"product_name": "n.product_name", "device_status": "s.device_status"}
    columns = []
    for number, name in enumerate(requested):
        if name in own:
            columns.append(GroupColumn(name, name))
        elif name in cells:
            columns.append(GroupColumn(name, f"group_{number}", cells[name]))
        elif has_attribute(database, name):
            columns.append(GroupColumn(names[name], f"group_{number}", attribute_sql(name, "s.")))
        else:
            raise unknown_name(database, "group by", name, [*attribute_names(database), *plain])
    return columns


def select_cells(columns: Sequence[GroupColumn]) -> str:
    """Return the SQL of the values that devices have in columns to count by, each with a comma in front."""
    return "".join(f", {column.cell} AS {column.source}" for column in columns if column.cell is not None)


NAMED = "selected s LEFT JOIN product_names n ON s.account = n.account AND s.product_key = n.product_key"
"""Selected devices with the names of their products, for ``GroupColumn.cell``."""


def write_selected(
    path: Path, runs: Sequence[RunFiles], criteria: DeviceFilter, group_by: Sequence[str]
) -> list[GroupColumn]:
    """Write the devices of runs that match: run, line, the four names of the device, and its values to count by.

    Return the columns that ``group_by`` names. Times of connections are compared with the start of the newest run.

    Raises:
        UsageError: no device of any run has a value, or there is no such column.
        RunFolderError: reading a file could take hours.
    """
    with temporary_database("selection") as (database, _):
        define_devices_of_runs(database, runs)
        if criteria.module is not None:
            require_module(database, criteria.module)
        define_selected(database, criteria, runs[-1].started_at)
        define_product_names(database)
        columns = group_columns(database, group_by, CHANGE_COLUMNS, NET_CHANGES)
        query = "SELECT s.run, s.line, s.account, s.product_key, s.device_name, s.iot_id"
        write_parquet(database, f"{query}{select_cells(columns)} FROM {NAMED}", path)
        return columns


def count_changes(rows: str, columns: Sequence[GroupColumn]) -> str:
    """Return the SQL of the number of each change in ``rows`` by columns, those with the most changes first."""
    cells = ", ".join(f"{column.source} AS {sql_identifier(column.name)}" for column in columns)
    counts = ", ".join(f"count(*) FILTER (change = '{change}') AS {sql_identifier(change)}" for change in NET_CHANGES)
    names = ", ".join(sql_identifier(column.name) for column in columns)
    # A device that is not seen did not change.
    changed = " + ".join(sql_identifier(change) for change in NET_CHANGES if change != "not_seen")
    grouped = ", ".join(column.source for column in columns)
    return f"SELECT * FROM (SELECT {cells}, {counts} FROM ({rows}) GROUP BY {grouped}) ORDER BY {changed} DESC, {names}"
