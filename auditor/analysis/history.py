"""The runs of one directory over time: the completeness of each, and its devices by version.

The numbers of a sealed run are read from its ``inventory.json``, a small file that ``auditor verify`` proves to be a
query over ``modules.parquet``. If it differs from the sealed file, the numbers are counted from the Parquet files
instead, and the run is labelled. An unsealed run has its devices by state, and no versions yet.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import duckdb
import msgspec
import orjson

from auditor.analysis.adoption import Adoption, read_adoption
from auditor.analysis.device_selection import (
    MODULE_COLUMNS,
    NAMED,
    GroupColumn,
    RunFiles,
    define_devices_of_runs,
    group_columns,
    is_narrow,
    select_cells,
)
from auditor.errors import RunFolderError, UsageError
from auditor.models import RunWarning, WarningKind
from auditor.query.describe import warning_objects
from auditor.query.filters import DeviceFilter, define_product_names, define_selected, require_module
from auditor.query.run import with_counted_devices
from auditor.query.snapshot import open_snapshot
from auditor.query.warnings import completeness_warnings, is_tolerated, state_label
from auditor.runs.attributes import ATTRIBUTES, ATTRIBUTES_TYPE, attribute_sql
from auditor.runs.folder import DEVICES, INVENTORY_JSON, MODULES, RunCatalog, StoredRun, is_sealed
from auditor.runs.locking import was_killed
from auditor.runs.manifest import MANIFEST, SCHEMA_VERSION, SUCCESSFUL_STATES, DeviceCounts, Manifest
from auditor.runs.views import INVENTORY, inventory_query
from auditor.storage.database import Database, parquet, sql_identifier, sql_read_path, temporary_database, text_lines
from auditor.storage.tables import ResultTable, translate_read_errors


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run of the history.

    Attributes:
        state: state in ``run.json``: ``complete``, ``within_tolerance``, ``partial``, ``aborted`` or ``running``.
        started_at: UTC such as ``2026-11-22T02:00:03.123Z``.
        sealed: whether it has versions; a run in progress, or a killed one, has none yet.
        warnings: why its numbers do not cover the whole fleet, or are not reliable.
        tampered: whether files differ from those that were sealed.
        unsampled: devices outside the sample.
        tolerated: whether no more devices have no answer than ``max_failed`` allows.
        killed: whether it is not in progress either, although its state is ``running``.
    """

    folder: Path
    name: str
    state: str
    started_at: str
    devices: DeviceCounts
    sealed: bool
    warnings: tuple[RunWarning, ...]
    tampered: bool
    unsampled: int = 0
    tolerated: bool = False
    killed: bool = False

    @property
    def label(self) -> str:
        """Its state, as sentences name it."""
        state = "killed" if self.killed else self.state
        return state_label(state, self.devices, self.unsampled, tolerated=self.tolerated)


@dataclass(frozen=True, slots=True)
class History:
    """The runs of one name, the oldest first.

    Attributes:
        runs: all runs, including those without versions.
        table: a row for each run and version of each product's module, by run, account, product and module, the most
            frequent version first. Columns: started_at, run (its folder's name), state, account, product_key,
            module_name, module_version, devices, share. If they are counted by further columns, these are in front of
            devices, and shares are of the devices of the product with the module in the group.
        warnings: why the numbers do not cover whole fleets, or are not reliable.
        stored: the runs with their manifests.
        selects_devices: whether versions are counted of the devices that meet conditions.
    """

    name: str
    runs: tuple[RunSummary, ...]
    table: ResultTable
    warnings: tuple[RunWarning, ...]
    stored: tuple[StoredRun, ...] = field(repr=False)
    selects_devices: bool
    _database: Database = field(repr=False)

    def cursor(self) -> Database:
        """Return a cursor on the database, which has the tables ``runs`` and ``history``."""
        return self._database.cursor()

    def adoption(self, modules: int = 20, versions: int = 5) -> Adoption:
        """Return the shares of the products' modules over time, those with the most devices first.

        At most so many modules have so many versions each; the others are combined in one series.
        """
        has_all = [each.is_success and each.manifest.modules is None for each in self.stored]
        complete = [run.sealed and each for run, each in zip(self.runs, has_all, strict=True)]
        with translate_read_errors(self.runs[-1].folder.parent):
            return read_adoption(self._database.cursor(), complete, modules, versions)


@contextmanager
def read_history(
    directory: str | Path,
    *,
    name: str | None = None,
    criteria: DeviceFilter | None = None,
    group_by: Sequence[str] = (),
    limit: int | None = None,
    until: StoredRun | None = None,
) -> Iterator[History]:
    """Open the history of a directory of runs.

    Memory is bounded; what does not fit goes to the system's temporary folder.

    Args:
        directory: a directory of runs.
        name: name of the runs; None: that of the newest run.
        criteria: which devices are counted, in each run by what that run says of them; its order and limit mean
            nothing here. Conditions on devices other than account and product read all devices of all runs.
        group_by: product_name, device_status, or attributes: count the versions of each group.
        limit: maximum number of runs, the newest ones; None: all.
        until: the newest run; the others are the ended ones of its name before it. None: all runs of the name.

    Raises:
        UsageError: the limit is less than 1, or no device of any run has a value of the filter.
        RunFolderError: the directory cannot be read, or has no such run.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    if limit is not None and limit < 1:
        raise UsageError("limit: give a number of runs from 1 up")
    criteria = criteria or DeviceFilter()
    narrow = is_narrow(criteria, group_by)
    stored, unreadable = _find_runs(Path(directory), name, until)
    reading = partial(translate_read_errors, directory)
    with temporary_database("history") as (database, work):
        with reading():
            stored = stored[:limit][::-1]
            runs = _read_runs(database, stored, work)
            groups = _narrow(database, runs, criteria, group_by) if narrow else []
            _define_history(database, runs, criteria.module)
        skipped = (RunWarning("unreadable", "", f"run skipped: {problem}") for problem in unreadable)
        warnings = (*skipped, *summarize_warnings(runs))
        head = {"schema_version": SCHEMA_VERSION, "name": runs[0].name, "runs": [_run_object(run) for run in runs]}
        head |= {"warnings": warning_objects(warnings)}
        table = ResultTable(
            database, _table_query(groups), reading=reading, head=head, name="groups" if groups else "rows"
        )
        selects_devices = narrow and _selects_devices(criteria, group_by)
        yield History(runs[0].name, runs, table, warnings, tuple(stored), selects_devices, database)


def _find_runs(
    directory: Path, name: str | None, until: StoredRun | None
) -> tuple[list[StoredRun], list[RunFolderError]]:
    """Return the runs of one name, the newest first, and the errors of unreadable runs."""
    if until is not None:
        catalog = RunCatalog(directory, missing_ok=True)
        last = until.manifest.started_at  # the directory may have a copy of the run, which began at the same time
        named = [run for run in catalog.named(until.manifest.name) if run.ended and catalog.is_possible(run)]
        return [until, *(run for run in named if run.manifest.started_at < last)], catalog.unreadable
    if (directory / MANIFEST).is_file():
        raise RunFolderError(f"{directory}: is one run; give the directory that contains it")
    catalog = RunCatalog(directory)
    if not catalog.runs:
        raise catalog.unreadable[0] if catalog.unreadable else RunFolderError(f"{directory}: contains no run")
    name = catalog.runs[0].manifest.name if name is None else name
    runs = catalog.named(name)
    if not runs:
        names = ", ".join(repr(each) for each in sorted({run.manifest.name for run in catalog.runs})[:10])
        raise RunFolderError(f"{directory}: has no run named {name!r}; there are runs named {names}")
    return runs, catalog.unreadable


def _selects_devices(criteria: DeviceFilter, group_by: Sequence[str]) -> bool:
    """Return whether versions must be counted again, as the inventories have no such numbers."""
    by_inventory = DeviceFilter(account=criteria.account, product=criteria.product, module=criteria.module)
    return bool(group_by) or replace(criteria, sort=None, limit=None) != by_inventory


def _narrow(
    database: Database, runs: Sequence[RunSummary], criteria: DeviceFilter, group_by: Sequence[str]
) -> list[GroupColumn]:
    """Let ``counted`` have only devices that match, with the values that they are grouped by."""
    files = [
        RunFiles(at, run.folder / DEVICES, run.folder / MODULES, run.folder)
        for at, run in enumerate(runs)
        if run.sealed
    ]
    if not files:
        return []
    if _selects_devices(criteria, group_by):
        return _recount_selected(database, runs, files, criteria, group_by)
    # The inventories have accounts, products and modules; only names of products are read from the devices of a run.
    define_devices_of_runs(database, files if criteria.product is not None else files[-1:])
    named = "FROM devices" if criteria.product is not None else "FROM devices WHERE false"
    database.execute(
        "CREATE TABLE named_products AS SELECT DISTINCT account, product_key, "
        f"{attribute_sql('product_name')} AS product_name {named}"
    )
    database.execute(
        "CREATE OR REPLACE VIEW devices AS SELECT account, product_key, "
        f"MAP {{'product_name': product_name}}::{ATTRIBUTES_TYPE} AS {ATTRIBUTES} FROM named_products "
        f"UNION ALL SELECT DISTINCT account, product_key, NULL::{ATTRIBUTES_TYPE} FROM counted"
    )
    database.execute("CREATE OR REPLACE VIEW modules AS SELECT DISTINCT module_name FROM counted")
    if criteria.module is not None:
        require_module(database, criteria.module)
    define_selected(database, criteria, runs[-1].started_at)
    database.execute(
        "DELETE FROM counted WHERE (account, coalesce('=' || product_key, '')) NOT IN "
        "(SELECT (account, coalesce('=' || product_key, '')) FROM selected)"
    )
    return []


def _recount_selected(
    database: Database,
    runs: Sequence[RunSummary],
    files: Sequence[RunFiles],
    criteria: DeviceFilter,
    group_by: Sequence[str],
) -> list[GroupColumn]:
    """Count the versions of selected devices again, from the devices of each run."""
    define_devices_of_runs(database, files)
    if criteria.module is not None:
        require_module(database, criteria.module)
    define_selected(database, criteria, runs[-1].started_at)
    if "product_name" in group_by:
        define_product_names(database)
    own = (*MODULE_COLUMNS, "module_version")
    groups = [each for each in group_columns(database, group_by, own, _COLUMN_NAMES) if each.cell is not None]
    identity = ("account", "product_key", "device_name", "iot_id")
    sources = [each.source for each in groups]
    values = "".join(f", any_value({source}) AS {source}" for source in sources)
    same = " AND ".join(f"m.{name} IS NOT DISTINCT FROM d.{name}" for name in identity)
    further = "".join(f", NULL::VARCHAR AS {source}" for source in sources)
    database.execute(f"CREATE OR REPLACE TABLE counted AS SELECT *{further} FROM counted WHERE false")
    for run in files:
        selected = ", ".join(f"s.{name}" for name in identity) + select_cells(groups)
        source = NAMED if "product_name" in group_by else "selected s"
        devices = f"SELECT {selected} FROM {source} WHERE s.run = {run.number} AND s.status = 'ok'"
        # Two rows of a fleet that name one device in two ways are one device.
        devices = f"SELECT {', '.join(identity)}{values} FROM ({devices}) GROUP BY ALL"
        cells = "".join(f", d.{source}" for source in sources)
        reported = f"(SELECT m.*{cells} FROM modules m JOIN ({devices}) d ON {same} WHERE m.run = {run.number})"
        columns = ", ".join((_COLUMNS, *sources))
        query = f"SELECT {run.number} AS run, {columns} FROM ({inventory_query(reported, sources)})"
        database.execute(f"INSERT INTO counted BY NAME {query}")
    return groups


def _define_history(database: Database, runs: Sequence[RunSummary], module_name: str | None) -> None:
    """Define the tables ``runs`` and ``history``; in ``history`` a module has one spelling in all runs."""
    columns = [[run.folder.name, run.state, run.started_at] for run in runs]
    database.execute(
        "CREATE TABLE runs AS SELECT unnest($1) AS run, unnest($2) AS folder, unnest($3) AS state, "
        "unnest($4) AS started_at",
        [list(range(len(runs))), *map(list, zip(*columns, strict=True))],
    )
    database.execute(
        "CREATE TABLE history AS SELECT * REPLACE "
        "(max(module_name) OVER (PARTITION BY account, product_key, lower(module_name)) AS module_name) "
        "FROM counted WHERE ($1 IS NULL OR lower(module_name) = lower($1))",
        [module_name],
    )
    database.execute("DROP TABLE counted")


def summarize_warnings(runs: Sequence[RunSummary], noun: str = "runs") -> Iterator[RunWarning]:
    """Yield the warnings about tampered runs, then one for all runs that are only incomplete, called ``noun``.

    All runs of a name read the same modules: that is said of the last one.
    """
    yield from (each for run in runs[-1:] for each in run.warnings if each.kind == "modules")
    runs = [replace(run, warnings=tuple(each for each in run.warnings if each.kind != "modules")) for run in runs]
    for run in runs:
        if run.tampered:
            yield from run.warnings
    limited = [run for run in runs if run.warnings and not run.tampered]
    if len(limited) == 1:
        yield from limited[0].warnings
        return
    partial_runs = [run for run in limited if any(warning.kind not in _INACCURATE for warning in run.warnings)]
    if partial_runs:
        reasons = ", ".join(sorted({reason for run in partial_runs for reason in _describe_limits(run)}))
        detail = f"{len(partial_runs):,} of {len(runs):,} {noun} do not cover the whole fleet ({reasons})"
        yield RunWarning("partial_runs", "", detail)
    inaccurate = [run for run in limited if any(warning.kind in _INACCURATE for warning in run.warnings)]
    if inaccurate:
        kinds = {warning.kind for run in inaccurate for warning in run.warnings}
        reasons = "; ".join(reason for kind, reason in _INACCURATE.items() if kind in kinds)
        yield RunWarning(
            "inaccurate_runs", "", f"{len(inaccurate):,} of {len(runs):,} {noun} may be inaccurate: {reasons}"
        )


_INACCURATE: dict[WarningKind, str] = {
    "recheck": "carried results are outdated",
    "not_reached": "devices that may have changed were not queried",
    "aliases": "devices are in the fleet twice",
    "shared_identity": "several devices have one name",
    "mismatch": "answers reached the wrong request",
}
"""Warnings that numbers of the whole fleet may be wrong; those of one run are described in full."""

_LIMITS: dict[WarningKind, str] = {
    "accounts": "some accounts only",
    "limited": "the first devices only",
    "silent": "an account reports nothing",
    "discovery_gap": "the device list is incomplete",
    "incomplete": "devices without an answer",
}


def _describe_limits(run: RunSummary) -> Iterator[str]:
    """Yield why a run does not cover its fleet: its state, or the reason if the run is a success nevertheless."""
    if run.state not in SUCCESSFUL_STATES or run.unsampled:
        yield run.label
        return
    for warning in run.warnings:
        if warning.kind not in _INACCURATE:
            yield _LIMITS.get(warning.kind, warning.kind.replace("_", " "))


def _run_object(run: RunSummary) -> dict[str, object]:
    state = "killed" if run.killed else run.state
    found = {"run": run.folder.name, "state": state, "started_at": run.started_at, "sealed": run.sealed}
    found |= {"devices": asdict(run.devices), "warnings": warning_objects(run.warnings)}
    return found | ({"unsampled": run.unsampled} if run.unsampled else {})


def _table_query(groups: Sequence[GroupColumn]) -> str:
    cells = "".join(f"h.{each.source} AS {sql_identifier(each.name)}, " for each in groups)
    order = "".join(f"h.{each.source}, " for each in groups)
    return f"""SELECT r.started_at, r.folder AS run, r.state, h.account, h.product_key, h.module_name, h.module_version,
    {cells}h.devices, h.share
  FROM history h JOIN runs r ON h.run = r.run
  ORDER BY h.run, h.account, h.product_key, h.module_name, {order}h.devices DESC, h.module_version"""


_COLUMN_NAMES = (
    "started_at", "run", "state", "account", "product_key", "module_name", "module_version", "devices", "share",
)  # fmt: skip
"""Columns of the table of a history."""

_BLOCK = 1 << 18
"""Bytes read at a time."""

_MAX_HEAD = 1 << 21
"""Longest first line of an inventory, its head, in bytes; a longer one was not written by auditor."""

_ROW = dict.fromkeys(("account", "product_key", "module_name", "module_version"), "VARCHAR")
_ROW |= {"devices": "BIGINT", "share": "DOUBLE"}

_COLUMNS = ", ".join(_ROW)


@dataclass(frozen=True, slots=True)
class _Head:
    """The devices in the head of an ``inventory.json``, and its number of rows."""

    devices: DeviceCounts
    rows: int


def _read_runs(database: Database, stored: Sequence[StoredRun], work: Path) -> tuple[RunSummary, ...]:
    """Fill the table ``counted`` with the runs' inventories, by the number of the run; return the runs."""
    columns = ", ".join(f"{name} {kind}" for name, kind in _ROW.items())
    database.execute(f"CREATE TABLE counted (run INTEGER, {columns})")
    stored = [with_counted_devices(run) for run in stored]
    heads = [_read_head(folder, manifest) for manifest, folder in stored]
    intact = [at for at, head in enumerate(heads) if head is not None]
    rows = _insert_sealed(database, [(at, stored[at].folder / INVENTORY_JSON) for at in intact])
    runs = []
    for at, ((manifest, folder), head) in enumerate(zip(stored, heads, strict=True)):
        run = RunSummary(
            folder, manifest.name, manifest.state, manifest.started_at, manifest.devices,
            sealed=False, warnings=(), tampered=False, unsampled=manifest.unsampled,
            tolerated=is_tolerated(manifest), killed=was_killed(folder, manifest),
        )  # fmt: skip
        if not is_sealed(folder, manifest):
            runs.append(_unsealed(run, manifest))
        elif head is not None and head.rows == rows.get(at, 0):
            integrity = _quick_integrity_warnings(folder, manifest, head)
            warnings = (*completeness_warnings(folder, manifest, head.devices), *integrity)
            runs.append(replace(run, devices=head.devices, sealed=True, warnings=warnings, tampered=bool(integrity)))
        else:
            database.execute("DELETE FROM counted WHERE run = ?", [at])
            runs.append(_recount(database, at, run, work / str(at)))
    return tuple(runs)


def _unsealed(run: RunSummary, manifest: Manifest) -> RunSummary:
    missing = [file.name for file in manifest.files if not (run.folder / file.name).is_file()]
    if missing and run.state != "running":
        detail = f"sealed, but {', '.join(missing)[:200]} is missing: its versions are unknown"
        return replace(run, warnings=(RunWarning("tampered", str(run.folder), detail),), tampered=True)
    unsealed = f"{run.label} and not sealed: it has no versions yet"
    return replace(run, warnings=(RunWarning("unsealed", str(run.folder), unsealed),))


def _read_head(folder: Path, manifest: Manifest) -> _Head | None:
    """Read the head of a run's inventory; None if there is none, or it is not the file that was sealed."""
    sealed = next((file for file in manifest.files if file.name == INVENTORY_JSON), None)
    if sealed is None or not is_sealed(folder, manifest):
        return None
    digest, lines = hashlib.sha256(), 0
    try:
        with (folder / INVENTORY_JSON).open("rb") as file:
            first_line = file.readline(_MAX_HEAD).rstrip(b"\n")
            file.seek(0)
            while block := file.read(_BLOCK):
                digest.update(block)
                lines += block.count(b"\n")
        if digest.hexdigest() != sealed.sha256:
            return None
        head = orjson.loads(first_line + b"]}")
        return _Head(msgspec.convert(head["devices"], DeviceCounts), lines - 2)
    except (OSError, orjson.JSONDecodeError, msgspec.ValidationError, KeyError, TypeError):
        return None


def _insert_sealed(database: Database, files: Sequence[tuple[int, Path]]) -> dict[int, int]:
    """Read the rows of inventories; return the number of valid rows by run."""
    if not files:
        return {}
    numbers, names = [at for at, _ in files], [str(path.absolute()) for _, path in files]
    database.execute("CREATE TABLE files AS SELECT unnest($1) AS run, unnest($2) AS path", [numbers, names])
    _insert(database, [path for _, path in files])
    # Not in the query that inserts, which would parse the JSON again for each condition.
    valid = "account IS NOT NULL AND module_name IS NOT NULL AND module_version IS NOT NULL AND devices > 0"
    valid = f"{valid} AND share BETWEEN 0 AND 1"
    return dict(database.execute(f"SELECT run, count(*) FILTER ({valid}) FROM counted GROUP BY run").fetchall())


def _insert(database: Database, paths: Sequence[Path]) -> None:
    """Read the rows of inventories, each a line of its file, in one query; one by one if that fails."""
    if not paths:
        return
    files = ", ".join(sql_read_path(path) for path in paths)
    row = f"CASE WHEN json_valid(line) THEN json_transform(line, '{orjson.dumps(_ROW).decode()}') END"
    options = "filename=true, store_rejects=true, rejects_limit=1"
    lines = f"SELECT filename, rtrim(line, ',') AS line FROM ({text_lines(f'[{files}]', options, 'filename')})"
    rows = f"SELECT filename, unnest({row}) FROM ({lines}) WHERE line LIKE '{{\"account\"%'"
    try:
        database.execute(f"INSERT INTO counted SELECT run, {_COLUMNS} FROM ({rows}) JOIN files ON filename = path")
    except (duckdb.InvalidInputException, duckdb.IOException, UnicodeDecodeError):
        for path in paths if len(paths) > 1 else ():
            _insert(database, [path])


def _quick_integrity_warnings(folder: Path, manifest: Manifest, head: _Head) -> tuple[RunWarning, ...]:
    """Return warnings for files whose size differs from the sealed one, and for counts that contradict each other."""
    details = []
    for file in manifest.files:
        if file.name in (DEVICES, MODULES):
            with contextlib.suppress(OSError):
                if (folder / file.name).stat().st_size != file.bytes:
                    details.append(f"{file.name} is not the file that was sealed (its size differs)")
    if head.devices != manifest.devices:
        details.append(f"{MANIFEST} and {INVENTORY_JSON} differ in their devices by state")
    return tuple(RunWarning("tampered", str(folder), detail) for detail in details)


def _recount(database: Database, at: int, run: RunSummary, work: Path) -> RunSummary:
    """Count a run from its Parquet files, as its inventory is not the file that was sealed."""
    folder = str(run.folder)
    found = (run.folder / INVENTORY_JSON).is_file()
    problem = f"{INVENTORY_JSON} is {'not the file that was sealed' if found else 'missing'}"
    try:
        snapshot = open_snapshot(run.folder, work)
        with translate_read_errors(run.folder):
            database.execute(f"CREATE OR REPLACE VIEW modules AS FROM {parquet(snapshot.modules)}")
            database.execute(f"INSERT INTO counted SELECT {at}, {_COLUMNS} FROM ({INVENTORY})")
    except (RunFolderError, OSError) as error:
        unknown = f"{problem}, and its versions are unknown: {str(error).removeprefix(f'{folder}: ')}"
        return replace(run, warnings=(RunWarning("tampered", folder, unknown),), tampered=True)
    recounted = RunWarning("tampered", folder, f"{problem}: its versions are counted from {MODULES}")
    warnings, unsampled = (*snapshot.warnings, recounted), snapshot.sources.unsampled
    return replace(run, devices=snapshot.counts, sealed=True, warnings=warnings, tampered=True, unsampled=unsampled)
