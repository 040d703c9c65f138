"""Devices of a run that match a filter, with their modules and versions: as rows, or counted by their columns."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from auditor.config.settings import parse_percentage
from auditor.config.validation import stored_rollouts
from auditor.errors import UsageError
from auditor.query.filters import (
    DeviceFilter,
    define_product_names,
    define_selected,
    parse_sort,
    require_module,
    unknown_name,
)
from auditor.query.run_views import define_device_releases
from auditor.query.snapshot import RunSnapshot, snapshot_database
from auditor.query.version_tables import define_version_order
from auditor.runs.attributes import attribute_cells, attribute_columns, attribute_names, attribute_sql
from auditor.runs.folder import find_run
from auditor.runs.views import (
    MISSING_DEVICE_MODULES,
    define_products,
    define_releases,
    define_sealed_views,
    inventory_query,
)
from auditor.storage.database import Database, scalar, sql_identifier, sql_literal
from auditor.storage.tables import ResultTable, translate_read_errors

_IDENTITY = ("account", "product_key", "device_name", "iot_id")

_MODULE = ("module_name", "module_version")

_OF_DEVICE = ("source", "audited_at", "device_status", "last_online_at", "attributes")

COLUMNS = (*_IDENTITY, "status", *_MODULE, "source", "audited_at", "product_name", "device_status", "last_online_at")
"""Columns of the rows besides attributes."""

RELEASE_COLUMNS = ("released_version", "behind_by", "update_state", "task_status", "task_message")
"""Further columns where the filter has ``update``; see the view ``device_releases``."""

_ORDER = ", ".join((*_IDENTITY, "status", *_MODULE))


@dataclass(frozen=True, slots=True)
class FilteredDevices:
    """Devices that match a filter.

    Attributes:
        table: a row for each device and module, by account and device. A device without modules has one row, unless
            the filter names a module. Columns: account, product_key, device_name, iot_id, status, module_name,
            module_version, source (queried, carried or unsampled), audited_at (when it was answered), product_name,
            device_status and last_online_at (as the platform reported), ``RELEASE_COLUMNS`` if the filter has
            ``update``, and the attributes of the run's devices. If
            they are counted by some columns: those and devices, the most frequent first.
        short_table: the same rows without the attributes that no condition names.
        rows: number of rows, ignoring the limit.
        uncompared: rows left out because their version cannot be ordered against a bound.
    """

    run: RunSnapshot
    table: ResultTable
    short_table: ResultTable
    rows: int
    uncompared: int


@dataclass(frozen=True, slots=True)
class FilteredInventory:
    """Versions of the devices that match a filter.

    Attributes:
        table: a row for each version, with the columns of the inventory, and those by which it is divided in front of
            devices. ``share`` is of the matching devices of the product that report the module.
        uncompared: as in ``FilteredDevices``.
    """

    run: RunSnapshot
    table: ResultTable
    uncompared: int


@contextmanager
def select_devices(
    path: str | Path, device_filter: DeviceFilter | None = None, *, group_by: Sequence[str] = ()
) -> Iterator[FilteredDevices]:
    """Open the devices of a run that match a filter. A run in progress is read as it is now.

    ``path`` is a run folder, or a directory of runs (its newest run). ``group_by`` names columns or attributes, by
    which devices are counted instead of listed.

    Raises:
        UsageError: no device has a value that the filter names, or there is no such column.
        RunFolderError: the path is no run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    criteria = device_filter or DeviceFilter()
    folder = find_run(Path(path))
    reading = partial(translate_read_errors, folder)
    with _open_filtered(folder, criteria) as filtered:
        database, run = filtered.database, filtered.run
        with reading():
            names, own = attribute_names(database), _columns(criteria)
            attributes = attribute_columns(names, own)
            if group_by:
                query = _count_devices(database, criteria, names, group_by)
                order, short = f"devices DESC, {_group_columns(group_by)}", "*"
            else:
                query = f"SELECT {', '.join(own)}{attribute_cells(names, own)} FROM filtered"
                order, short = _ORDER, _group_columns([*own, *(attributes[name] for name in filtered.named)])
            rows = scalar(database, f"SELECT count(*) FROM {f'({query})' if group_by else 'filtered'}")
            if criteria.sort is not None:
                columns = [*group_by, "devices"] if group_by else [*own, *attributes.values()]
                order = f"{parse_sort(database, criteria.sort, columns)}, {order}"
        limit = "" if criteria.limit is None else f" LIMIT {criteria.limit}"
        table, short_table = (
            ResultTable(
                database, f"SELECT {shown} FROM ({query}) ORDER BY {order}{limit}", reading=reading, head=run.coverage
            )
            for shown in ("*", short)
        )
        yield FilteredDevices(run, table, short_table, rows, filtered.uncompared)


@contextmanager
def select_inventory(
    path: str | Path, device_filter: DeviceFilter | None = None, *, group_by: Sequence[str] = ()
) -> Iterator[FilteredInventory]:
    """Open the versions that the matching devices of a run report; arguments and errors as in ``select_devices``."""
    criteria = device_filter or DeviceFilter()
    folder = find_run(Path(path))
    reading = partial(translate_read_errors, folder)
    with _open_filtered(folder, criteria) as filtered:
        database, run = filtered.database, filtered.run
        with reading():
            columns = ", ".join((*_IDENTITY[:2], *_MODULE))
            columns += _group_cells(database, _columns(criteria), attribute_names(database), group_by)
            reported = f"SELECT {columns} FROM filtered WHERE module_name IS NOT NULL"
            divided = [column for column in group_by if column not in (*_IDENTITY[:2], *_MODULE)]
            query = inventory_query(f"({reported})", [sql_identifier(column) for column in divided])
            if criteria.sort is not None:
                described = database.execute(f"DESCRIBE {query}").fetchall()
                order = parse_sort(database, criteria.sort, [str(name) for name, *_ in described])
                query = f"SELECT * FROM ({query}) ORDER BY {order}"
        limit = "" if criteria.limit is None else f" LIMIT {criteria.limit}"
        table = ResultTable(
            database, f"SELECT * FROM ({query}){limit}", reading=reading, name="inventory", head=run.coverage
        )
        yield FilteredInventory(run, table, filtered.uncompared)


def _columns(criteria: DeviceFilter) -> tuple[str, ...]:
    """Return the columns of the rows besides attributes."""
    return COLUMNS if criteria.update is None else (*COLUMNS, *RELEASE_COLUMNS)


def _group_cells(database: Database, own: Sequence[str], names: Sequence[str], group_by: Sequence[str]) -> str:
    """Return the SQL of the columns to group by that are attributes, each with a comma in front.

    Raises:
        UsageError: there is no such column or attribute.
    """
    cells = []
    for name in group_by:
        if name in names and name not in own:
            cells.append(f", {attribute_sql(name)} AS {sql_identifier(name)}")
        elif name in own:
            cells.append(f", {name}" if name not in (*_IDENTITY[:2], *_MODULE) else "")
        else:
            raise unknown_name(database, "group by", name, [*names, *own])
    return "".join(cells)


def _group_columns(group_by: Sequence[str]) -> str:
    return ", ".join(map(sql_identifier, group_by))


def _count_devices(database: Database, criteria: DeviceFilter, names: Sequence[str], group_by: Sequence[str]) -> str:
    """Return the SQL of the number of devices of each group."""
    cells = _group_cells(database, _columns(criteria), names, group_by)
    identity = ", ".join(_IDENTITY)
    rows = f"SELECT {identity}, {', '.join(_MODULE)}{cells} FROM filtered"
    # A device has one row of a module.
    devices = "count(*)" if criteria.module is not None else f"count(DISTINCT ({identity}))"
    columns = _group_columns(group_by)
    return f"SELECT {columns}, {devices} AS devices FROM ({rows}) GROUP BY {columns}"


class _Filtered(NamedTuple):
    """A database with the view ``filtered``; ``named`` are the attributes in the conditions of the filter."""

    database: Database
    run: RunSnapshot
    named: list[str]
    uncompared: int


@contextmanager
def _open_filtered(folder: Path, criteria: DeviceFilter) -> Iterator[_Filtered]:
    with snapshot_database("devices", folder) as (run, database, work):
        with translate_read_errors(folder):
            define_sealed_views(database, run.devices.parent)
            define_products(database, folder)
            if criteria.missing and not scalar(database, "SELECT count(modules) FROM products"):
                raise UsageError(
                    f"{folder}: the run has no list of its products' modules; "
                    "set fetch_product_modules = true in the settings"
                )
            if criteria.module is not None:
                require_module(database, criteria.module)
            named = define_selected(database, criteria, run.manifest.started_at)
            if criteria.update is not None:
                _define_updates(database, run, work)
            uncompared = _define_filtered(database, criteria, work)
        yield _Filtered(database, run, named, uncompared)


def _define_updates(database: Database, run: RunSnapshot, work: Path) -> None:
    """Define ``device_releases``; raise UsageError if the run has no released firmware."""
    define_releases(database, run.files or run.folder)
    selected = parse_percentage(stored_rollouts(run.manifest.settings).selected)
    define_device_releases(database, "device_releases", work, selected=selected)
    if not scalar(database, "SELECT count(*) FROM released_versions WHERE released"):
        raise UsageError(
            f"{run.folder}: the run has no released firmware; set released = true in the settings (docs/released.md)"
        )


def _define_filtered(database: Database, criteria: DeviceFilter, work: Path) -> int:
    """Define the view ``filtered``: rows with ``COLUMNS`` and attributes; return how many could not be compared."""
    database.execute(
        "CREATE TABLE criteria AS SELECT lower($1) AS module_name, $2 AS module_version",
        [criteria.module, criteria.version],
    )
    _define_eligible(database, criteria)
    limits = [(criteria.below, "older"), (criteria.above, "newer")]
    bounds = [(at, bound, ordering) for at, (bound, ordering) in enumerate(limits) if bound is not None]
    if not bounds:
        database.execute("CREATE VIEW filtered AS FROM eligible")
        return 0
    versions = "SELECT DISTINCT r.account, r.product_key, r.module_version FROM modules r, criteria c "
    versions += "WHERE lower(r.module_name) = c.module_name"
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


def _define_eligible(database: Database, criteria: DeviceFilter) -> None:
    """Define ``eligible``: the rows of selected devices with the module and the version of the filter.

    It is a view, or a table where updates must be found first, as it is read twice.
    """
    identity = ", ".join(_IDENTITY)
    define_product_names(database)
    of_device = ", ".join(_OF_DEVICE)
    devices = f"SELECT {identity}, {of_device} FROM selected WHERE status = 'ok'"
    if scalar(database, f"SELECT count(*) - count(DISTINCT hash({identity})) FROM selected WHERE status = 'ok'"):
        # Two rows of a fleet that name one device in two ways are one device.
        values = ", ".join(f"any_value({name}) AS {name}" for name in _OF_DEVICE)
        devices = f"SELECT {identity}, {values} FROM ({devices}) GROUP BY ALL"
    same = " AND ".join(f"m.{name} IS NOT DISTINCT FROM d.{name}" for name in _IDENTITY)
    names = ", ".join(f"m.{name}" for name in _IDENTITY)
    rows = f"SELECT {names}, 'ok' AS status, module_name, module_version, {of_device} "
    rows += f"FROM modules m JOIN ({devices}) d ON {same}"
    if not criteria.names_versions:
        rows += f" UNION ALL SELECT {identity}, status, NULL, NULL, {of_device} FROM selected WHERE status <> 'ok'"
    if criteria.missing:
        rows = f"""
          SELECT {names}, m.status, module_name, module_version, {", ".join(f"d.{name}" for name in _OF_DEVICE)}
          FROM ({MISSING_DEVICE_MODULES}) m JOIN selected d ON {same}"""
    updates, update_columns = "", ""
    if criteria.update is not None:
        of_release = " AND ".join(f"r.{name} IS NOT DISTINCT FROM u.{name}" for name in (*_IDENTITY, *_MODULE))
        state = "<> 'current'" if criteria.update == "behind" else f"= {sql_literal(criteria.update)}"
        updates = f"JOIN (FROM device_releases WHERE update_state {state}) u ON {of_release}"
        update_columns = "".join(f", u.{name}" for name in RELEASE_COLUMNS)
    kind = "VIEW" if criteria.update is None else "TABLE"
    database.execute(
        f"CREATE {kind} eligible AS SELECT {', '.join(f'r.{name}' for name in (*_IDENTITY, 'status', *_MODULE))}, "
        f"r.source, r.audited_at, n.product_name, r.device_status, r.last_online_at, r.attributes{update_columns} "
        f"FROM ({rows}) r LEFT JOIN product_names n ON r.account = n.account AND r.product_key = n.product_key "
        f"{updates}, "
        "criteria c WHERE (c.module_name IS NULL OR lower(r.module_name) = c.module_name) "
        "AND (c.module_version IS NULL OR r.module_version = c.module_version)"
    )
