"""Devices of a run that match a filter, with their modules and versions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import get_args

from auditor.errors import UsageError
from auditor.models import DeviceState, Source
from auditor.query.snapshot import RunSnapshot, open_snapshot
from auditor.query.version_order import define_version_order
from auditor.runs.folder import find_run
from auditor.runs.views import MISSING_DEVICE_MODULES, define_products, define_sealed_views
from auditor.storage.database import Database, scalar, temporary_database
from auditor.storage.tables import ResultTable, translate_read_errors

_IDENTITY = "account, product_key, device_name, iot_id"

_COLUMNS = f"{_IDENTITY}, status, module_name, module_version, source, audited_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFilter:
    """Conditions on devices; a device matches if it meets every condition that is not None.

    Attributes:
        module_name: name of a module that the device reports, regardless of case.
        module_version: exact version of the module.
        below, above: the module's version is older, or newer, than this; ``compare_versions`` orders them.
        source: where its result comes from.
        name: its device_name or iot_id.
        limit: maximum number of rows.
        missing: return modules that the product defines and the device never reported, instead of reported ones.
    """

    product_key: str | None = None
    module_name: str | None = None
    module_version: str | None = None
    below: str | None = None
    above: str | None = None
    status: DeviceState | None = None
    source: Source | None = None
    name: str | None = None
    limit: int | None = None
    missing: bool = False

    def __post_init__(self) -> None:
        """Refuse conditions without a meaning; raise UsageError."""
        if self.module_name is None and (self.below is not None or self.above is not None):
            raise UsageError("below and above need a module: versions are ordered within one module")
        for name, value, values in (("status", self.status, DeviceState), ("source", self.source, Source)):
            if value is not None and value not in get_args(values):
                raise UsageError(f"{name}: {value!r} is not one of {', '.join(get_args(values))}")
        if self.missing and not self.module_version is self.below is self.above is None:
            raise UsageError("a missing module has no version: leave out version, below and above")
        if self.limit is not None and self.limit < 1:
            raise UsageError("limit: give a number of rows from 1 up")


@dataclass(frozen=True, slots=True)
class FilteredDevices:
    """Devices that match a filter.

    Attributes:
        table: a row for each device and module, by account and device. A device without modules has one row, unless
            the filter names a module. Columns: account, product_key, device_name, iot_id, status, module_name,
            module_version, source (queried, carried or unsampled), audited_at (when it was answered).
        rows: number of rows, ignoring the limit.
        uncompared: rows left out because their version cannot be ordered against a bound.
    """

    run: RunSnapshot
    table: ResultTable
    rows: int
    uncompared: int


@contextmanager
def select_devices(path: str | Path, device_filter: DeviceFilter | None = None) -> Iterator[FilteredDevices]:
    """Open the devices of a run that match a filter. A run in progress is read as it is now.

    ``path`` is a run folder, or a directory of runs (its newest run).

    Raises:
        RunFolderError: the path is no run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    criteria = device_filter or DeviceFilter()
    folder = find_run(Path(path))
    with temporary_database("devices") as (database, work):
        run = open_snapshot(folder, work)
        with translate_read_errors(folder):
            define_sealed_views(database, run.devices.parent)
            define_products(database, folder)
            if criteria.missing and not scalar(database, "SELECT count(modules) FROM products"):
                raise UsageError(
                    f"{folder}: the run has no list of its products' modules; "
                    "set fetch_product_modules = true in the settings"
                )
            uncompared = _define_filtered(database, criteria, work)
            rows = scalar(database, "SELECT count(*) FROM filtered")
        limit = "" if criteria.limit is None else f" LIMIT {criteria.limit}"
        query = f"SELECT {_COLUMNS} FROM filtered ORDER BY ALL{limit}"
        table = ResultTable(database, query, reading=partial(translate_read_errors, folder), head=run.coverage)
        yield FilteredDevices(run, table, rows, uncompared)


def _define_filtered(database: Database, criteria: DeviceFilter, work: Path) -> int:
    """Define the view ``filtered``; return the number of rows that could not be compared."""
    values = (criteria.product_key, criteria.module_name, criteria.module_version, criteria.status, criteria.name)
    database.execute(
        "CREATE TABLE criteria AS SELECT $1 AS product_key, lower($2) AS module_name, $3 AS module_version, "
        "$4 AS status, $5 AS name, $6 AS source",
        [*values, criteria.source],
    )
    # Two rows of a fleet that name one device in two ways are one device.
    times = f"SELECT {_IDENTITY}, any_value(source) AS source, any_value(audited_at) AS audited_at FROM devices"
    same = " AND ".join(f"m.{name} IS NOT DISTINCT FROM d.{name}" for name in _IDENTITY.split(", "))
    reported = (
        "SELECT m.account, m.product_key, m.device_name, m.iot_id, 'ok' AS status, module_name, module_version, "
        f"source, audited_at FROM modules m LEFT JOIN ({times} WHERE status = 'ok' GROUP BY ALL) d ON {same}"
    )
    bare = f"SELECT {_IDENTITY}, status, NULL, NULL, source, audited_at FROM devices WHERE status <> 'ok'"
    if criteria.module_name is None and criteria.module_version is None:
        reported = f"{reported} UNION ALL {bare}"
    if criteria.missing:
        reported = MISSING_DEVICE_MODULES
    columns = ", ".join(f"r.{column}" for column in _COLUMNS.split(", "))
    of_module = (
        "(c.product_key IS NULL OR r.product_key = c.product_key) "
        "AND (c.module_name IS NULL OR lower(r.module_name) = c.module_name)"
    )
    database.execute(
        f"CREATE VIEW eligible AS SELECT {columns} FROM ({reported}) r, criteria c WHERE {of_module} "
        "AND (c.module_version IS NULL OR r.module_version = c.module_version) "
        "AND (c.status IS NULL OR r.status = c.status) AND (c.source IS NULL OR r.source = c.source) "
        "AND (c.name IS NULL OR r.device_name = c.name OR r.iot_id = c.name)"
    )
    limits = [(criteria.below, "older"), (criteria.above, "newer")]
    bounds = [(at, bound, ordering) for at, (bound, ordering) in enumerate(limits) if bound is not None]
    if not bounds:
        database.execute("CREATE VIEW filtered AS FROM eligible")
        return 0
    versions = (
        f"SELECT DISTINCT r.account, r.product_key, r.module_version FROM modules r, criteria c WHERE {of_module}"
    )
    database.execute(
        "CREATE TABLE versions AS SELECT row_number() OVER () AS id, *, "
        f"dense_rank() OVER (ORDER BY account, product_key) AS group_id FROM ({versions})"
    )
    database.execute("CREATE TABLE bounds (id BIGINT, bound VARCHAR, ordering VARCHAR)")
    database.executemany("INSERT INTO bounds VALUES (?, ?, ?)", bounds)
    pairs = "SELECT group_id, v.id AS one, b.id AS other, module_version AS version, bound AS against "
    define_version_order(database, "FROM versions", f"{pairs} FROM versions v, bounds b", work / "version_order")
    # A version that one bound excludes is excluded, whether or not it can be compared with the other bound.
    database.execute(
        "CREATE TABLE matches AS SELECT account, product_key, module_version, "
        "bool_and(o.ordering = b.ordering) AS fits FROM version_order o JOIN bounds b ON o.other = b.id "
        "JOIN versions v ON o.one = v.id "
        "GROUP BY account, product_key, module_version HAVING bool_and(o.ordering IN (b.ordering, 'unordered'))"
    )
    matching = (
        "eligible r SEMI JOIN (FROM matches WHERE {}) m ON r.account = m.account "
        "AND r.product_key IS NOT DISTINCT FROM m.product_key AND r.module_version = m.module_version"
    )
    database.execute(f"CREATE VIEW filtered AS FROM {matching.format('fits')}")
    return scalar(database, f"SELECT count(*) FROM {matching.format('NOT fits')}")
