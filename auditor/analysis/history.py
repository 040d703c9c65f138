"""The runs of one directory as a series: how whole each is, and how many devices ran each version then.

The numbers of a sealed run are those of its ``inventory.json``, which is small, and which ``auditor verify`` proves to
be a query over ``modules.parquet``. Where that file is not the one that was sealed they are counted from the Parquet
files instead, and the run is labelled. A run that is not sealed has its devices by state, and no versions yet.

The runs of a series and what each counted, read from their small inventories, and how far each is to be trusted.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import msgspec
import orjson

from auditor.analysis.adoption import Adoption, adoption_of
from auditor.errors import RunFolderError, UsageError
from auditor.query.snapshot import freeze
from auditor.query.warnings import incomplete, label_of
from auditor.runs.folder import DEVICES, INVENTORY_JSON, MODULES, is_sealed, runs_in
from auditor.runs.manifest import MANIFEST, SCHEMA_VERSION, DeviceCounts, Manifest
from auditor.runs.views import INVENTORY
from auditor.storage.database import READING_MEMORY, READING_THREADS, open_database, parquet, quoted_to_read, text_lines
from auditor.storage.tables import Table, reading

__all__ = ["History", "RunPoint", "read_history"]


@dataclass(frozen=True, slots=True)
class RunPoint:
    """A run of the series.

    Attributes:
        folder: the run folder.
        name: what the runs of the series are called.
        state: what ``run.json`` says: ``complete``, ``partial``, ``aborted``, or ``running``.
        started_at: UTC such as ``2026-11-22T02:00:03.123Z``.
        devices: devices by state.
        sealed: whether it has versions; one that is at work, or was killed, has none yet.
        doubts: why its numbers are not of the whole fleet or not to be relied on, a sentence each.
        tampered: whether that is more than that some devices did not answer.
        unsampled: devices that were not drawn, where only a random sample was asked.
    """

    folder: Path
    name: str
    state: str
    started_at: str
    devices: DeviceCounts
    sealed: bool
    doubts: tuple[str, ...]
    tampered: bool
    unsampled: int = 0

    @property
    def label(self) -> str:
        """How far it came, in a word: what it is called in sentences."""
        return label_of(self.state, self.devices, self.unsampled)


@dataclass(frozen=True, slots=True)
class History:
    """The runs of one name, the oldest first.

    Attributes:
        name: that name.
        runs: every run of the series, those without versions too.
        table: a row for each run and version of each product's module, by run, account, product and module, the most
            frequent version first. Columns: started_at, run (its folder's name), state, account, product_key,
            module_name, module_version, devices, share.
        doubts: why numbers are not of whole fleets or not to be relied on, a sentence each.
    """

    name: str
    runs: tuple[RunPoint, ...]
    table: Table
    doubts: tuple[str, ...]
    _database: duckdb.DuckDBPyConnection = field(repr=False)

    def adoption(self, modules: int = 20, versions: int = 5) -> Adoption:
        """The shares of the products' modules over time, those of most devices first.

        Args:
            modules: so many modules of products at most.
            versions: so many versions of each; the others are one line together.

        Raises:
            RunFolderError: a run cannot be read.
        """
        with reading(self.runs[-1].folder.parent):
            return adoption_of(self._database.cursor(), len(self.runs), modules, versions)


@contextmanager
def read_history(
    directory: str | Path,
    *,
    name: str | None = None,
    product_key: str | None = None,
    module_name: str | None = None,
    limit: int | None = None,
) -> Iterator[History]:
    """The runs of a directory as a series.

    Memory is bounded; what does not fit goes to the system's temporary folder.

    Args:
        directory: a folder of runs.
        name: of the runs of this name; None: of the newest run's.
        product_key: versions of this product's modules alone.
        module_name: versions of this module alone, regardless of case.
        limit: the newest so many runs; None: all.

    Raises:
        UsageError: the limit is no number of runs.
        RunFolderError: the directory cannot be read, or has no such run.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    if limit is not None and limit < 1:
        raise UsageError("a limit is a number of runs from 1 up")
    found, broken = _series(Path(directory), name)
    with TemporaryDirectory(prefix="auditor-history-") as temporary:
        work = Path(temporary)
        database = open_database(work / "spill", READING_MEMORY, READING_THREADS)
        source = partial(reading, directory)
        try:
            with source():
                runs = read_series(database, found[:limit][::-1], work)
                _define_history(database, runs, product_key, module_name)
            doubts = (*(f"a run is passed over: {problem}" for problem in broken), *_doubts(runs))
            head = {
                "schema_version": SCHEMA_VERSION,
                "name": runs[0].name,
                "runs": [_told(run) for run in runs],
                "doubts": list(doubts),
            }
            table = Table(database, _TABLE, reading=source, head=head)
            yield History(runs[0].name, runs, table, doubts, database)
        finally:
            database.close()


def _series(directory: Path, name: str | None) -> tuple[list[tuple[Manifest, Path]], list[RunFolderError]]:
    """The runs of one name, the newest first."""
    if (directory / MANIFEST).is_file():
        raise RunFolderError(f"{directory}: is one run; name the folder that it lies in")
    runs, broken = runs_in(directory)
    if not runs:
        raise broken[0] if broken else RunFolderError(f"{directory}: no run lies in it")
    wanted = runs[0][0].name if name is None else name
    series = [(manifest, folder) for manifest, folder in runs if manifest.name == wanted]
    if not series:
        names = ", ".join(repr(each) for each in sorted({manifest.name for manifest, _ in runs})[:10])
        raise RunFolderError(f"{directory}: has no run named {wanted!r}; there are runs named {names}")
    return series, broken


def _define_history(
    database: duckdb.DuckDBPyConnection, runs: Sequence[RunPoint], product_key: str | None, module_name: str | None
) -> None:
    """Defines the tables ``runs`` and ``history``, in which a module has one spelling in all of them."""
    facts = [[run.folder.name, run.state, run.started_at, run.sealed] for run in runs]
    database.execute(
        "CREATE TABLE runs AS SELECT unnest($1) AS run, unnest($2) AS folder, unnest($3) AS state, "
        "unnest($4) AS started_at, unnest($5) AS sealed",
        [list(range(len(runs))), *map(list, zip(*facts, strict=True))],
    )
    database.execute(
        "CREATE TABLE history AS SELECT run, account, product_key, "
        "max(module_name) OVER (PARTITION BY account, product_key, lower(module_name)) AS module_name, "
        "module_version, devices, share FROM counted "
        "WHERE ($1 IS NULL OR product_key = $1) AND ($2 IS NULL OR lower(module_name) = lower($2))",
        [product_key, module_name],
    )
    database.execute("DROP TABLE counted")


def _doubts(runs: Sequence[RunPoint]) -> Iterator[str]:
    """Sentences of single runs where more is wrong than that they are not whole; those are told together."""
    for run in runs:
        if run.tampered:
            yield from run.doubts
    partial_runs = [run for run in runs if run.doubts and not run.tampered]
    if len(partial_runs) == 1:
        yield from partial_runs[0].doubts
    elif partial_runs:
        states = ", ".join(sorted({run.label for run in partial_runs}))
        yield f"{len(partial_runs):,} of {len(runs):,} runs are not of the whole fleet ({states})"


def _told(run: RunPoint) -> dict[str, object]:
    told = {
        "run": run.folder.name,
        "state": run.state,
        "started_at": run.started_at,
        "sealed": run.sealed,
        "devices": asdict(run.devices),
        "doubts": list(run.doubts),
    }
    return told | ({"unsampled": run.unsampled} if run.unsampled else {})


_TABLE = """SELECT r.started_at, r.folder AS run, r.state, h.account, h.product_key, h.module_name, h.module_version,
    h.devices, h.share
  FROM history h JOIN runs r ON h.run = r.run
  ORDER BY h.run, h.account, h.product_key, h.module_name, h.devices DESC, h.module_version"""


_BLOCK = 1 << 18
"""Bytes of a file that are read at a time."""


_HEAD = 1 << 21
"""Bytes that the first line of an inventory, its head, has at most; what is longer was written by somebody else."""


_ROW = orjson.dumps(
    {
        "account": "VARCHAR", "product_key": "VARCHAR", "module_name": "VARCHAR", "module_version": "VARCHAR",
        "devices": "BIGINT", "share": "DOUBLE",
    }
).decode()  # fmt: skip


_COLUMNS = "account, product_key, module_name, module_version, devices, share"


@dataclass(frozen=True, slots=True)
class _Head:
    """What ``inventory.json`` says of its run, and how many rows follow."""

    devices: DeviceCounts
    rows: int


def read_series(
    database: duckdb.DuckDBPyConnection, found: Sequence[tuple[Manifest, Path]], work: Path
) -> tuple[RunPoint, ...]:
    """Fills the table ``counted`` with the runs' inventories, by the number of the run; gives the runs."""
    database.execute(
        "CREATE TABLE counted (run INTEGER, account VARCHAR, product_key VARCHAR, module_name VARCHAR, "
        "module_version VARCHAR, devices BIGINT, share DOUBLE)"
    )
    heads = [_head(folder, manifest) for manifest, folder in found]
    whole = [at for at, head in enumerate(heads) if head is not None]
    read = _insert_sealed(database, [(at, found[at][1] / INVENTORY_JSON) for at in whole])
    runs = []
    for at, ((manifest, folder), head) in enumerate(zip(found, heads, strict=True)):
        facts = (manifest.name, manifest.state, manifest.started_at, manifest.devices)
        point = RunPoint(folder, *facts, False, (), False, manifest.unsampled)
        if not is_sealed(folder, manifest):
            runs.append(_unsealed(point, manifest))
        elif head is not None and head.rows == read.get(at, 0):
            doubts = (*incomplete(folder, manifest, head.devices), *(strange := _strange(folder, manifest, head)))
            runs.append(replace(point, devices=head.devices, sealed=True, doubts=doubts, tampered=bool(strange)))
        else:
            database.execute("DELETE FROM counted WHERE run = ?", [at])
            runs.append(_recount(database, at, point, work / str(at)))
    return tuple(runs)


def _unsealed(point: RunPoint, manifest: Manifest) -> RunPoint:
    gone = [facts.name for facts in manifest.files if not (point.folder / facts.name).is_file()]
    if gone and point.state != "running":
        doubt = f"{point.folder} was sealed, but {', '.join(gone)[:200]} is missing: its versions are not known"
        return replace(point, doubts=(doubt,), tampered=True)
    return replace(point, doubts=(f"{point.folder} is {point.state} and not sealed: it has no versions yet",))


def _head(folder: Path, manifest: Manifest) -> _Head | None:
    """What a run's inventory says of itself; None where it is not the file that was sealed, or there is none."""
    facts = next((facts for facts in manifest.files if facts.name == INVENTORY_JSON), None)
    if facts is None or not is_sealed(folder, manifest):
        return None
    digest, lines = hashlib.sha256(), 0
    try:
        with (folder / INVENTORY_JSON).open("rb") as file:
            begin = file.readline(_HEAD).rstrip(b"\n")
            file.seek(0)
            while block := file.read(_BLOCK):
                digest.update(block)
                lines += block.count(b"\n")
        if digest.hexdigest() != facts.sha256:
            return None
        said = orjson.loads(begin + b"]}")
        return _Head(msgspec.convert(said["devices"], DeviceCounts), lines - 2)
    except (OSError, orjson.JSONDecodeError, msgspec.ValidationError, KeyError, TypeError):
        return None


def _insert_sealed(database: duckdb.DuckDBPyConnection, files: Sequence[tuple[int, Path]]) -> dict[int, int]:
    """Reads the rows of inventories; gives how many each run has that make sense."""
    if not files:
        return {}
    numbers, names = [at for at, _ in files], [str(path) for _, path in files]
    database.execute("CREATE TABLE files AS SELECT unnest($1) AS run, unnest($2) AS path", [numbers, names])
    _insert(database, [path for _, path in files])
    # Not in the query that inserts, which would read the JSON anew for each of them.
    whole = "account IS NOT NULL AND module_name IS NOT NULL AND module_version IS NOT NULL AND devices > 0"
    whole = f"{whole} AND share BETWEEN 0 AND 1"
    return dict(database.execute(f"SELECT run, count(*) FILTER ({whole}) FROM counted GROUP BY run").fetchall())


def _insert(database: duckdb.DuckDBPyConnection, paths: Sequence[Path]) -> None:
    """Reads the rows of inventories, each a line of its file, by one query; one by one if one of them spoils it."""
    if not paths:
        return
    listed = ", ".join(quoted_to_read(path) for path in paths)
    row = f"CASE WHEN json_valid(line) THEN json_transform(line, '{_ROW}') END"
    options = "filename=true, store_rejects=true, rejects_limit=1"
    lines = f"SELECT filename, rtrim(line, ',') AS line FROM ({text_lines(f'[{listed}]', options, 'filename')})"
    rows = f"SELECT filename, unnest({row}) FROM ({lines}) WHERE line LIKE '{{\"account\"%'"
    try:
        database.execute(f"INSERT INTO counted SELECT run, {_COLUMNS} FROM ({rows}) JOIN files ON filename = path")
    except (duckdb.InvalidInputException, duckdb.IOException, UnicodeDecodeError):
        for path in paths if len(paths) > 1 else ():
            _insert(database, [path])


def _strange(folder: Path, manifest: Manifest, head: _Head) -> tuple[str, ...]:
    """What shows, without reading them, that a run's other files are not those that were sealed."""
    found = []
    for facts in manifest.files:
        if facts.name in (DEVICES, MODULES):
            with contextlib.suppress(OSError):
                if (folder / facts.name).stat().st_size != facts.bytes:
                    found.append(f"{folder / facts.name} is not the file that was sealed (its size differs)")
    if head.devices != manifest.devices:
        found.append(f"{folder}: its run.json and its {INVENTORY_JSON} differ on the devices by state")
    return tuple(found)


def _recount(database: duckdb.DuckDBPyConnection, at: int, point: RunPoint, work: Path) -> RunPoint:
    """A run whose inventory is not the file that was sealed, counted from its Parquet files."""
    path = point.folder / INVENTORY_JSON
    doubt = f"{path} is not the inventory that was sealed" if path.is_file() else f"{path} is missing"
    try:
        frozen = freeze(point.folder, work)
        with reading(point.folder):
            database.execute(f"CREATE OR REPLACE VIEW modules AS FROM {parquet(frozen.modules)}")
            database.execute(f"INSERT INTO counted SELECT {at}, {_COLUMNS} FROM ({INVENTORY})")
    except (RunFolderError, OSError) as error:
        return replace(point, doubts=(f"{doubt}, and its versions are not known: {error}",), tampered=True)
    doubts = (*frozen.doubts, f"{doubt}: its versions are counted from {MODULES}")
    counted = replace(point, devices=frozen.counts, unsampled=frozen.sources.unsampled)
    return replace(counted, sealed=True, doubts=doubts, tampered=True)
