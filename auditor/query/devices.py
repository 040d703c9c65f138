"""Which devices: those of a run that a few conditions pick, with what they run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import duckdb

from auditor.errors import UsageError
from auditor.models import DeviceState, Source
from auditor.query.snapshot import Frozen, freeze
from auditor.query.version_order import define_standings
from auditor.runs.folder import find_run
from auditor.runs.views import LACKING, define_products, define_sealed_views, number
from auditor.storage.database import READING_MEMORY, READING_THREADS, open_database
from auditor.storage.tables import Table, reading

_IDENTITY = "account, product_key, device_name, iot_id"


_COLUMNS = f"{_IDENTITY}, status, module_name, module_version, source, audited_at"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which devices of a run are meant: those that meet every condition that is not None.

    Attributes:
        product_key: of this product.
        module_name: that report this module, regardless of case.
        module_version: that run this version, spelled so.
        below: that run an older version of the module; as ``compare_versions`` orders them.
        above: that run a newer version of the module.
        status: in this state.
        source: of which what is known comes from there.
        name: with this device_name or iot_id.
        limit: so many rows at most.
        missing: with the modules that their product defines and they never reported, instead of those that they did.
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
        """Refuses what has no meaning; raises UsageError."""
        if self.module_name is None and (self.below is not None or self.above is not None):
            raise UsageError("versions are ordered within one module: below and above need a module")
        if self.status is not None and self.status not in get_args(DeviceState):
            raise UsageError(f"{self.status!r} is no state of a device: {', '.join(get_args(DeviceState))}")
        if self.source is not None and self.source not in get_args(Source):
            raise UsageError(f"{self.source!r} is no source of an answer: {', '.join(get_args(Source))}")
        if self.missing and not self.module_version is self.below is self.above is None:
            raise UsageError("a module that was never reported has no version: leave out version, below and above")
        if self.limit is not None and self.limit < 1:
            raise UsageError("a limit is a number of rows from 1 up")


@dataclass(frozen=True, slots=True)
class Selected:
    """The devices that were picked.

    Attributes:
        run: the run that they are of.
        table: a row for each device and module, by account and device; a device without modules, unless one is asked
            for, has a row without. Columns: account, product_key, device_name, iot_id, status, module_name,
            module_version, source (asked, carried from an earlier run, or unsampled, that is not drawn), audited_at
            (when it was answered).
        rows: how many there are, without a limit.
        uncompared: devices that are not among them because their version cannot be ordered against a bound.
    """

    run: Frozen
    table: Table
    rows: int
    uncompared: int


@contextmanager
def select_devices(path: str | Path, selection: Selection | None = None) -> Iterator[Selected]:
    """The devices of a run that a selection picks; of a run that is still running, as it is now.

    Args:
        path: a run folder, or a folder of runs, whose newest is meant.
        selection: which devices; None: all.

    Raises:
        RunFolderError: it is no run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    wanted = selection or Selection()
    folder = find_run(Path(path))
    with TemporaryDirectory(prefix="auditor-devices-") as temporary:
        work = Path(temporary)
        run = freeze(folder, work)
        database = open_database(work / "spill", READING_MEMORY, READING_THREADS)
        try:
            with reading(folder):
                define_sealed_views(database, run.devices.parent)
                define_products(database, folder)
                if wanted.missing and not number(database, "SELECT count(modules) FROM products"):
                    raise UsageError(
                        f"{folder}: which modules its products define is not known; the settings' expected_modules "
                        "has it asked"
                    )
                uncompared = _define_picked(database, wanted, work)
                found = number(database, "SELECT count(*) FROM picked")
            limit = "" if wanted.limit is None else f" LIMIT {wanted.limit}"
            query = f"SELECT {_COLUMNS} FROM picked ORDER BY ALL{limit}"
            table = Table(database, query, reading=partial(reading, folder), head=run.coverage)
            yield Selected(run, table, found, uncompared)
        finally:
            database.close()


def _define_picked(database: duckdb.DuckDBPyConnection, wanted: Selection, work: Path) -> int:
    """Defines the view ``picked``; gives the number of devices that could not be compared."""
    database.execute(
        "CREATE TABLE wanted AS SELECT $1 AS product_key, lower($2) AS module_name, $3 AS module_version, "
        "$4 AS status, $5 AS name, $6 AS source",
        [wanted.product_key, wanted.module_name, wanted.module_version, wanted.status, wanted.name, wanted.source],
    )
    # Two rows of a fleet that names a device in both ways are one device.
    times = f"SELECT {_IDENTITY}, any_value(source) AS source, any_value(audited_at) AS audited_at FROM devices"
    same = " AND ".join(f"m.{name} IS NOT DISTINCT FROM d.{name}" for name in _IDENTITY.split(", "))
    reported = (
        "SELECT m.account, m.product_key, m.device_name, m.iot_id, 'ok' AS status, module_name, module_version, "
        f"source, audited_at FROM modules m LEFT JOIN ({times} WHERE status = 'ok' GROUP BY ALL) d ON {same}"
    )
    bare = f"SELECT {_IDENTITY}, status, NULL, NULL, source, audited_at FROM devices WHERE status <> 'ok'"
    if wanted.module_name is None and wanted.module_version is None:
        reported = f"{reported} UNION ALL {bare}"
    if wanted.missing:
        reported = LACKING
    columns = ", ".join(f"r.{column}" for column in _COLUMNS.split(", "))
    database.execute(
        f"CREATE VIEW eligible AS SELECT {columns} FROM ({reported}) r, wanted w "
        "WHERE (w.product_key IS NULL OR r.product_key = w.product_key) "
        "AND (w.module_name IS NULL OR lower(r.module_name) = w.module_name) "
        "AND (w.module_version IS NULL OR r.module_version = w.module_version) "
        "AND (w.status IS NULL OR r.status = w.status) AND (w.source IS NULL OR r.source = w.source) "
        "AND (w.name IS NULL OR r.device_name = w.name OR r.iot_id = w.name)"
    )
    bounds = [(wanted.below, "older"), (wanted.above, "newer")]
    given = [(at, bound, standing) for at, (bound, standing) in enumerate(bounds) if bound is not None]
    if not given:
        database.execute("CREATE VIEW picked AS FROM eligible")
        return 0
    database.execute(
        "CREATE TABLE versions AS SELECT row_number() OVER () AS id, module_version "
        "FROM (SELECT DISTINCT module_version FROM eligible)"
    )
    database.execute("CREATE TABLE bounds (id BIGINT, bound VARCHAR, standing VARCHAR)")
    database.executemany("INSERT INTO bounds VALUES (?, ?, ?)", given)
    pairs = "SELECT v.id AS one, b.id AS other, module_version AS version, bound AS against FROM versions v, bounds b"
    define_standings(database, pairs, work / "standings")
    # A version that one bound rules out is out, whether or not it can be compared with the other.
    database.execute(
        "CREATE TABLE verdicts AS SELECT module_version, bool_and(s.standing = b.standing) AS fits "
        "FROM standings s JOIN bounds b ON s.other = b.id JOIN versions v ON s.one = v.id "
        "GROUP BY module_version HAVING bool_and(s.standing IN (b.standing, 'unordered'))"
    )
    judged = "eligible SEMI JOIN (FROM verdicts WHERE {}) USING (module_version)"
    database.execute(f"CREATE VIEW picked AS FROM {judged.format('fits')}")
    return number(database, f"SELECT count(*) FROM {judged.format('NOT fits')}")
