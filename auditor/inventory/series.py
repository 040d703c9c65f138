"""The runs of a series and what each counted, read from their small inventories, and how far each is to be trusted."""

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import msgspec
import orjson

from auditor.database import parquet, quoted_to_read, text_lines
from auditor.errors import RunFolderError
from auditor.inventory.folder import DEVICES, INVENTORY_JSON, MODULES, DeviceCounts, Manifest
from auditor.inventory.frozen import freeze, incomplete, is_sealed, label_of
from auditor.inventory.tables import reading
from auditor.inventory.views import INVENTORY

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
