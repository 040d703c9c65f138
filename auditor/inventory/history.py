"""The runs of one directory as a series: how whole each is, and how many devices ran each version then.

The numbers of a sealed run are those of its ``inventory.json``, which is small, and which ``auditor verify`` proves to
be a query over ``modules.parquet``. Where that file is not the one that was sealed they are counted from the Parquet
files instead, and the run is labelled. A run that is not sealed has its devices by state, and no versions yet.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from auditor.database import READING_MEMORY, READING_THREADS, open_database
from auditor.errors import RunFolderError, UsageError
from auditor.inventory.adoption import Adoption, adoption_of
from auditor.inventory.folder import MANIFEST, SCHEMA_VERSION, Manifest, runs_in
from auditor.inventory.series import RunPoint, read_series
from auditor.inventory.tables import Table, reading

__all__ = ["History", "RunPoint", "read_history"]


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
