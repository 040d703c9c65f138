"""The tables that are published of a sealed run: a contract with the programs that read them.

Every destination has these tables with these columns. ``PublishedRun.query`` yields their rows from a run folder
by the views of ``runs.views``, so their numbers are those of ``auditor inventory``. A change of a column is a new
``TABLES_VERSION``: ``schemas/tables.json`` has the columns of every version.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import orjson

from auditor.errors import RunFolderError
from auditor.query.change_log import CHANGE_COLUMNS
from auditor.query.run_views import run_row
from auditor.query.snapshot import require_text_columns
from auditor.runs.attributes import ATTRIBUTES_TYPE
from auditor.runs.estimates import define_estimates
from auditor.runs.folder import CHANGES, FLEET, MODULES, READ_BY_QUERIES, TEXT_COLUMNS, StoredRun, is_sealed
from auditor.runs.manifest import Manifest, read_manifest
from auditor.runs.views import define_sealed_views, no_rows, parquet_of_run
from auditor.storage.database import READING_MEMORY, Database, borrow_database, sql_literal
from auditor.storage.descriptors import pin_files
from auditor.storage.files import private_folder, translate_os_errors
from auditor.storage.tables import translate_read_errors
from auditor.text.formatting import escape_undecodable, parse_manifest_time

TABLES_VERSION = 1
"""Version of the tables and their columns."""

PublishedTable = Literal["runs", "devices", "modules", "inventory", "rollouts", "changes"]

ColumnType = Literal["text", "integer", "number", "boolean", "date", "timestamp", "attributes"]
"""Type of a column: a 64-bit integer, a 64-bit float, a time in UTC, or a map of names to texts."""

SQL_TYPES: dict[ColumnType, str] = {
    "text": "VARCHAR",
    "integer": "BIGINT",
    "number": "DOUBLE",
    "boolean": "BOOLEAN",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
    "attributes": ATTRIBUTES_TYPE,
}
"""Types of DuckDB, and so of Parquet files."""


@dataclass(frozen=True, slots=True)
class TableColumn:
    """A column of a published table.

    Attributes:
        description: what it means, with its unit, and when it is NULL.
        required: whether it is never NULL.
    """

    name: str
    type: ColumnType
    description: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class TableContract:
    """A published table.

    Attributes:
        description: what a row is.
        key: columns that have each combination of values once.
    """

    name: PublishedTable
    description: str
    key: tuple[str, ...]
    columns: tuple[TableColumn, ...]


_RUN = (
    TableColumn("audit", "text", "name of the audit, from its settings", required=True),
    TableColumn("night", "date", "day on which the run started, in UTC", required=True),
    TableColumn("run", "text", "name of the run folder", required=True),
)
"""The first columns of every table: which run a row is of."""

_ROW = (*_RUN, TableColumn("ordinal", "integer", "number of the row in its run, from 0", required=True))

_ACCOUNT = TableColumn("account", "text", "name of the account in the settings", required=True)
_PRODUCT = TableColumn("product_key", "text", "key of the product; NULL if neither the fleet nor an answer has it")
_DEVICE = (
    _ACCOUNT,
    _PRODUCT,
    TableColumn("device_name", "text", "name of the device; NULL as product_key"),
    TableColumn("iot_id", "text", "identifier of the device; NULL as product_key"),
)
_MODULE = (
    TableColumn("module_name", "text", "name of the module", required=True),
    TableColumn("module_version", "text", "version of the module", required=True),
)
_LIMITS = (
    TableColumn("low", "number", "lower limit of the share, from 0 to 1; NULL if the share is exact"),
    TableColumn("high", "number", "upper limit of the share, from 0 to 1; NULL if the share is exact"),
)

_STATES = tuple(
    TableColumn(state, "integer", f"devices that {meaning}", required=True)
    for state, meaning in {
        "ok": "reported modules",
        "empty": "answered and reported no module",
        "not_found": "the platform does not have",
        "failed": "have no conclusive answer",
        "pending": "were not queried",
    }.items()
)

TABLES: dict[PublishedTable, TableContract] = {
    table.name: table
    for table in (
        TableContract(
            "runs", "a run", ("run",),
            (
                *_RUN,
                TableColumn("state", "text", "complete, within_tolerance or partial", required=True),
                TableColumn("started_at", "timestamp", "start of the run", required=True),
                TableColumn("finished_at", "timestamp", "end of the run"),
                TableColumn("seconds", "number", "time from start to end; NULL if a clock was wrong"),
                TableColumn("devices", "integer", "devices of the fleet: the sum of the five states", required=True),
                *_STATES,
                TableColumn("carried", "integer", "devices with the answer of an earlier run", required=True),
                TableColumn("unsampled", "integer", "pending devices outside the sample", required=True),
                TableColumn("oldest_answer_at", "timestamp", "time of the oldest carried answer; NULL without any"),
                TableColumn("covers_fleet", "boolean", "whether the run is of the whole fleet", required=True),
                TableColumn("exit_code", "integer", "exit code of the command that ran the audit"),
                TableColumn("exit_reason", "text", "why it has this exit code: a code"),
                TableColumn("exit_message", "text", "why it has this exit code: a sentence"),
                TableColumn("previous_run", "text", "run before, which changes are since; NULL without changes"),
                TableColumn("digest", "text", "SHA-256 of the sealed files, which a resume changes", required=True),
                TableColumn("auditor_version", "text", "version of the auditor that wrote the run", required=True),
                TableColumn("tables_version", "integer", "version of these columns", required=True),
            ),
        ),
        TableContract(
            "devices", "a device of the fleet, in the order of the fleet", ("run", "ordinal"),
            (
                *_ROW, *_DEVICE,
                TableColumn("status", "text", "ok, empty, not_found, failed or pending", required=True),
                TableColumn("modules", "integer", "modules that the device reported", required=True),
                TableColumn("audited_at", "timestamp", "time of the answer; NULL without one"),
                TableColumn("source", "text", "queried, details, carried, index or unsampled; NULL if not queried"),
                TableColumn("reason", "text", "why it is empty: never_activated, or NULL"),
                TableColumn("code", "text", "code of the failure"),
                TableColumn("message", "text", "message of the failure"),
                TableColumn("http_status", "integer", "HTTP status of the failure"),
                TableColumn("failed_at", "timestamp", "time of the failure"),
                TableColumn("device_status", "text", "reported status, such as ONLINE; NULL if unknown"),
                TableColumn("created_at", "timestamp", "when the device was registered; NULL if unknown"),
                TableColumn("last_online_at", "timestamp", "when the device was last online; NULL if unknown"),
                TableColumn("attributes", "attributes", "attributes of the device; NULL without any"),
            ),
        ),
        TableContract(
            "modules", "a module that a device reports", ("run", "ordinal"),
            (*_ROW, *_DEVICE, *_MODULE),
        ),
        TableContract(
            "inventory", "a version of a product's module, in the order of the inventory", ("run", "ordinal"),
            (
                *_ROW, _ACCOUNT, _PRODUCT, *_MODULE,
                TableColumn("devices", "integer", "devices that run it; of a sample, sampled devices", required=True),
                TableColumn("share", "number", "fraction of the devices with the module, from 0 to 1", required=True),
                *_LIMITS,
            ),
        ),
        TableContract(
            "rollouts", "a product's module and its target version, the most urgent first", ("run", "ordinal"),
            (
                *_ROW, _ACCOUNT, _PRODUCT,
                TableColumn("product_name", "text", "name of the product; NULL if unknown"),
                _MODULE[0],
                TableColumn("state", "text", "done, moving, stalled, rolled_back, not_started, unknown", required=True),
                TableColumn("reason", "text", "why the state is unknown"),
                TableColumn("target", "text", "version that the devices should run; NULL if there is none"),
                TableColumn("target_source", "text", "released or newest"),
                TableColumn("released_at", "timestamp", "when the target was released; NULL if unknown"),
                TableColumn("devices", "integer", "devices that report the module", required=True),
                TableColumn("on_target", "integer", "devices that run the target or a newer version", required=True),
                TableColumn("behind", "integer", "devices that run another version", required=True),
                TableColumn("failed", "integer", "devices behind whose update failed; NULL without update tasks"),
                TableColumn("offered", "integer", "devices behind that an update waits for; NULL without update tasks"),
                TableColumn("reverted", "integer", "devices behind whose update succeeded; NULL without update tasks"),
                TableColumn("never_offered", "integer", "devices behind without an update; NULL without update tasks"),
                TableColumn("share", "number", "fraction on the target, from 0 to 1; NULL if unknown"),
                *_LIMITS,
                TableColumn("change", "number", "change of the share in a day, as a fraction; NULL if unknown"),
                TableColumn("runs_in_state", "integer", "newest runs in a row with this state", required=True),
                TableColumn("expected_at", "date", "day by which a moving rollout is done; NULL if unknown"),
                TableColumn("no_date", "text", "why a moving rollout has no such day"),
            ),
        ),
        TableContract(
            "changes", "a module of a device that changed since the previous run", ("run", "ordinal"),
            (
                *_ROW, *_DEVICE,
                TableColumn("module_name", "text", "name of the module; NULL for a device without modules"),
                TableColumn(
                    "change", "text",
                    "upgraded, downgraded, changed, appeared, vanished, joined, left, not_seen or seen", required=True,
                ),
                TableColumn("old_version", "text", "version before; NULL without one"),
                TableColumn("new_version", "text", "version since; NULL without one"),
                TableColumn("answered_at", "timestamp", "time of the answer that shows the change"),
            ),
        ),
    )
}  # fmt: skip
"""The tables by name. ``runs`` is the first; a destination that is no database writes it last."""


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """A sealed run, open to be published.

    Attributes:
        name: name of its folder, by which a destination has it once.
        files: folder to read its files from, which do not change while they are read.
        database: has the views of the sealed files, and those that ``query`` defines.
    """

    name: str
    folder: Path
    manifest: Manifest
    night: str
    files: Path
    database: Database
    _defined: set[PublishedTable] = field(default_factory=set)

    @property
    def digest(self) -> str:
        """A digest of the sealed files, by which a destination knows whether it has the run as it is."""
        return run_digest(self.manifest)

    def query(self, table: PublishedTable) -> str:
        """Return the SELECT of a table's rows, in the order of its ordinals, with the columns of the contract.

        The first call for a table defines its view in ``database``. That of rollouts reads them, from the run and the
        ones before it, which takes seconds. Call it in ``translate_read_errors``, for a file may be damaged.
        """
        if table not in self._defined:
            _define_view(self, table)
            self._defined.add(table)
        return f"SELECT * FROM published_{table}"


def run_name(folder: Path) -> str:
    """Return the name under which a run folder is published."""
    return escape_undecodable(Path(os.path.abspath(folder)).name)  # noqa: PTH100  resolve() would follow a link


def run_digest(manifest: Manifest) -> str:
    """Return the SHA-256 of the names and digests of a run's sealed files."""
    lines = sorted(f"{file.sha256}  {file.name}\n" for file in manifest.files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextmanager
def open_published(folder: Path) -> Iterator[PublishedRun]:
    """Open a sealed run, whose rows are read from its files while they are queried, in constant memory.

    Raises:
        RunFolderError: the folder is no sealed run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    manifest = read_manifest(folder)
    if not is_sealed(folder, manifest):
        raise RunFolderError(f"{folder}: is not sealed, so it cannot be published; resume it, or wait for its end")
    started_at = parse_manifest_time(manifest.started_at)
    if started_at is None:
        raise RunFolderError(f"{folder}: cannot be published: its start {manifest.started_at!r} is no time")
    with private_folder("publish") as work:
        with translate_os_errors(f"{folder}: cannot be read", RunFolderError):
            files = pin_files(folder, READ_BY_QUERIES, work)
        with borrow_database(work / "spill", READING_MEMORY) as database:
            with translate_read_errors(folder):
                define_sealed_views(database, files)
                for name, columns in TEXT_COLUMNS.items():
                    require_text_columns(database, folder, files / name, columns)
                parquet_of_run(database, files / FLEET)  # which the estimates of a sample read
                define_estimates(database, files)
            yield PublishedRun(run_name(folder), folder, manifest, started_at.date().isoformat(), files, database)


def _define_view(published: PublishedRun, table: PublishedTable) -> None:
    """Define the view ``published_runs``, ``published_devices`` and so on."""
    files, database = published.files, published.database
    match table:
        case "runs":
            source = _run_query(published)
        case "devices":
            source = "FROM devices"
        case "modules":
            source = f"SELECT *, file_row_number AS ordinal FROM {_numbered(database, files / MODULES)}"
        case "inventory":
            source = "SELECT *, row_number() OVER () - 1 AS ordinal FROM inventory"
        case "rollouts":
            source = _define_rollouts(published)
        case "changes":
            source = _changes_query(database, files, published.manifest)
    database.execute(f"CREATE VIEW published_{table} AS {_select(published, TABLES[table], source)}")


def _select(published: PublishedRun, table: TableContract, source: str) -> str:
    """Return the SQL of a table's columns, converted to the types of the contract: a foreign file may have others."""
    own = {
        "audit": sql_literal(published.manifest.name),
        "night": sql_literal(published.night),
        "run": sql_literal(published.name),
    }
    found = {name for name, *_ in published.database.execute(f"DESCRIBE {source}").fetchall()}
    cells = []
    for column in table.columns:
        missing = column.name not in found and not column.required  # such as limits of what is no sample
        value = own.get(column.name, "NULL" if missing else column.name)
        cells.append(f"{value}::{SQL_TYPES[column.type]} AS {column.name}")
    return f"SELECT {', '.join(cells)} FROM ({source})"


def _numbered(database: Database, path: Path) -> str:
    return parquet_of_run(database, path, "file_row_number=true")


def _run_query(published: PublishedRun) -> str:
    """Return the SQL of the row of ``runs``."""
    manifest = published.manifest
    row = run_row(StoredRun(manifest, published.folder))
    oldest = manifest.oldest_answer_at
    row |= {
        "carried": manifest.carried,
        "unsampled": manifest.unsampled,
        "oldest_answer_at": None if oldest is None else oldest.removesuffix("Z"),
        "covers_fleet": manifest.covers_fleet,
        "previous_run": None if manifest.changes is None else manifest.changes.previous,
        "digest": published.digest,
        "auditor_version": manifest.auditor_version,
        "tables_version": TABLES_VERSION,
    }
    names = {column.name: SQL_TYPES[column.type] for column in TABLES["runs"].columns if column.name in row}
    structure = sql_literal(orjson.dumps(names).decode())
    content = sql_literal(orjson.dumps({name: row[name] for name in names}).decode())
    return f"SELECT unnest(json_transform({content}, {structure}))"


def _define_rollouts(published: PublishedRun) -> str:
    """Define a table of the run's rollouts; return the SQL that reads it. A run of a part of the fleet has none."""
    # Imported while other threads write the large files.
    from auditor.analysis.rollouts import MAX_WRITTEN_ROLLOUTS, define_rollouts, read_rollouts

    found = read_rollouts(published.folder, limit=MAX_WRITTEN_ROLLOUTS)
    define_rollouts(published.database, found.by_urgency, "run_rollouts")
    return "SELECT *, rowid AS ordinal FROM run_rollouts"


def _changes_query(database: Database, files: Path, manifest: Manifest) -> str:
    if manifest.changes is None or not (files / CHANGES).is_file():
        return no_rows({**CHANGE_COLUMNS, "ordinal": "BIGINT"})
    return f"SELECT *, file_row_number AS ordinal FROM {_numbered(database, files / CHANGES)}"
