"""The Parquet files of a run folder: what each column means. Those of the published tables have their descriptions."""

from dataclasses import dataclass

from auditor.fleet.table import FLEET_COLUMNS
from auditor.publish.tables import SQL_TYPES, TABLES, PublishedTable
from auditor.query.change_log import CHANGE_COLUMNS
from auditor.runs.folder import CHANGES, DEVICES, FIRMWARE, FLEET, MODULES, TASKS
from auditor.runs.views import FIRMWARE_COLUMNS, TASK_COLUMNS


@dataclass(frozen=True)
class FileColumn:
    """A column of a Parquet file, with its type in DuckDB."""

    name: str
    type: str
    description: str


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file of a run folder."""

    name: str
    description: str
    columns: tuple[FileColumn, ...]


_TABLE_TYPES = {
    (table, column.name): SQL_TYPES[column.type] for table, each in TABLES.items() for column in each.columns
}

_NAMES: dict[str, str] = {column.name: column.description for column in TABLES["changes"].columns}

_OF_DEVICES = {
    **{column.name: column.description for column in TABLES["devices"].columns},
    "ordinal": "number of the device in the fleet, from 0",
    "pages": "pages of modules that were read; 0: none",
    "attempts": "requests for the device; 0: none",
    "request_id": "the platform's identifier of the last request; NULL if unknown",
    "utc_create": "when the device was registered; NULL if unknown",
    "utc_modified": "when the platform changed its record of the device; NULL if unknown",
}

_DEVICE_COLUMNS = (
    "ordinal", "account", "product_key", "device_name", "iot_id", "status", "modules", "pages", "attempts",
    "request_id", "audited_at", "code", "message", "http_status", "failed_at", "reason", "source", "device_status",
    "created_at", "last_online_at", "attributes",
)  # fmt: skip

_OF_FIRMWARE = _NAMES | {
    "version": "version that the package installs",
    "source_version": "version that the package can be installed on; NULL: any",
    "firmware_id": "identifier of the firmware",
    "firmware_name": "name of the firmware",
    "verification": "verified, unverified, verifying, failed or not_needed",
    "package_type": "full or difference",
    "package_bytes": "size of the package, in bytes",
    "created_at": "when it was created",
    "modified_at": "when it was changed",
    "jobs": "jobs that install it; NULL: unknown",
}

_OF_TASKS = _NAMES | {
    "version": "version that the job installs",
    "source_version": "version that the device ran before",
    "task_status": "status of the update, as the platform reports it",
    "task_message": "what the device reported",
    "progress": "progress of the update, in percent",
    "created_at": "when the task was created",
    "modified_at": "when the task was changed",
    "firmware_id": "identifier of the firmware",
    "job_id": "identifier of the job",
    "task_id": "identifier of the task",
}


def _published(table: PublishedTable, names: tuple[str, ...]) -> tuple[FileColumn, ...]:
    described = {column.name: column.description for column in TABLES[table].columns}
    return tuple(FileColumn(name, _TABLE_TYPES[table, name], described[name]) for name in names)


def _typed(columns: dict[str, str], descriptions: dict[str, str]) -> tuple[FileColumn, ...]:
    return tuple(FileColumn(name, kind, descriptions[name]) for name, kind in columns.items())


PARQUET_FILES = (
    ParquetFile(
        FLEET, "a device as the fleet names it", _typed({"ordinal": "BIGINT", **FLEET_COLUMNS}, _OF_DEVICES)
    ),
    ParquetFile(
        DEVICES,
        "a device of the fleet and its result",
        _typed({name: _TABLE_TYPES.get(("devices", name), "BIGINT") for name in _DEVICE_COLUMNS}
               | {"request_id": "VARCHAR"}, _OF_DEVICES),
    ),
    ParquetFile(
        MODULES,
        "a module that a device reports",
        _published("modules", ("account", "product_key", "device_name", "iot_id", "module_name", "module_version")),
    ),
    ParquetFile(CHANGES, "a module of a device that changed since the previous run", _typed(CHANGE_COLUMNS, _NAMES)),
    ParquetFile(FIRMWARE, "an upgrade package of a product", _typed(FIRMWARE_COLUMNS, _OF_FIRMWARE)),
    ParquetFile(TASKS, "the update of a device by a job", _typed(TASK_COLUMNS, _OF_TASKS)),
)  # fmt: skip
