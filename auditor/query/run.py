"""Who runs what: a run opened for reading. Every number is a query over the run's files."""

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from types import TracebackType
from typing import Self

from auditor.errors import RunFolderError
from auditor.query.freshness import Ages, read_ages
from auditor.query.warnings import incomplete, tampered
from auditor.runs.estimates import Sample, define_estimates, may_be_sample, sample_of
from auditor.runs.folder import MODULES, find_run, is_sealed
from auditor.runs.manifest import DeviceCounts, Manifest, read_manifest
from auditor.runs.seal import count_devices, count_sources, coverage_of, inventory_head
from auditor.runs.views import define_live_views, define_products, define_sealed_views
from auditor.stats.stratified import Tallies
from auditor.storage.database import AMPLE_MEMORY, MEMORY, open_database
from auditor.storage.tables import Table, TableFormat, reading

_COLUMNS = [
    *((name, "VARCHAR") for name in ("account", "product_key", "module_name", "module_version")),
    ("devices", "BIGINT"),
    ("share", "DOUBLE"),
]
"""The inventory's columns: a Parquet file that somebody else wrote may hold dates or bytes under these names."""


_LIMITS = [("low", "DOUBLE"), ("high", "DOUBLE")]
"""Columns that the inventory of a sample has besides."""


@dataclass(frozen=True, slots=True)
class VersionCount:
    """A version of a product's module: how many devices run it, and their share.

    ``share`` is from 0 to 1, of the product's devices that report the module. ``product_key`` is None only for a
    device that was asked by its iot_id and whose answer did not tell its product. In a run that asked a sample
    ``devices`` are those that were seen to run it, and the product's share is between ``low`` and ``high``, 95 times of
    a hundred; else these are None.
    """

    account: str
    product_key: str | None
    module_name: str
    module_version: str
    devices: int
    share: float
    low: float | None = None
    high: float | None = None


class Run:
    """A run folder, open for reading. Use as a context manager.

    A sealed run is read from its Parquet files; one that is running, or was killed, from its lines as they are now.

    Attributes:
        folder: the run folder.
        manifest: what ``run.json`` says.
        sealed: whether it is read from its Parquet files.
    """

    def __init__(self, path: str | Path) -> None:
        """Opens a run folder, or the newest run in a folder of runs.

        Raises:
            RunFolderError: it is neither.
        """
        self.folder = find_run(Path(path))
        self.manifest: Manifest = read_manifest(self.folder)
        self.sealed = is_sealed(self.folder, self.manifest)
        # DuckDB makes this folder when it must, and removes it.
        spill = Path(gettempdir(), f"auditor-read-{secrets.token_hex(8)}")
        self._database = open_database(spill, MEMORY if self.sealed else AMPLE_MEMORY)
        self._tallies: Tallies | None = None
        try:
            self._define_views()
        except RunFolderError:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    @property
    def devices(self) -> DeviceCounts:
        """Devices by state."""
        with reading(self.folder):
            return count_devices(self._database.cursor())

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why numbers of this run are not of the whole fleet or not to be relied on, a sentence each."""
        with reading(self.folder):
            unsampled = count_sources(self._database.cursor()).unsampled
        lacking = incomplete(self.folder, self.manifest, self.devices, unsampled)
        return (*lacking, *tampered(self.folder, self.manifest))

    @property
    def sample(self) -> Sample | None:
        """What the run tells of the whole fleet where it asked a random sample of it; else None."""
        if self._tallies is None:
            return None
        with reading(self.folder):
            return sample_of(self._database.cursor(), self._tallies)

    @property
    def ages(self) -> Ages:
        """How old the answers are."""
        with reading(self.folder):
            return read_ages(self._database.cursor(), self.manifest.started_at)

    def inventory(self) -> Iterator[VersionCount]:
        """Every version of every module, by account, product and module, the most frequent version first."""
        with reading(self.folder):
            result = self._database.cursor().execute("FROM inventory")
            while batch := result.fetchmany(1_000):
                for row in batch:
                    yield VersionCount(*row)

    def _define_views(self) -> None:
        with reading(self.folder):
            (define_sealed_views if self.sealed else define_live_views)(self._database, self.folder)
            define_products(self._database, self.folder)
            described = self._database.execute("DESCRIBE inventory").fetchall()
        if [(name, kind) for name, kind, *_ in described] != _COLUMNS:
            raise RunFolderError(f"{self.folder}: cannot be read: {MODULES} has not the columns of a run")
        if may_be_sample(self.folder, sealed=self.sealed):
            with reading(self.folder):
                self._tallies = define_estimates(self._database, self.folder)

    def write_inventory(self, path: Path, form: TableFormat) -> None:
        """Writes the inventory to a file.

        CSV is safe to open in a spreadsheet: a name that would be a formula gets a ``'`` in front. JSON is what
        ``inventory.json`` holds, with ``doubts`` besides if the run's files are not those that were sealed; JSON Lines
        and Parquet are its rows, and an Excel file has a sheet that tells of which run and how whole that is.

        Raises:
            RunNotWritableError: the file cannot be written.
            UsageError: Excel files need an extra that is not installed.
        """
        Table(
            self._database, "FROM inventory", name="inventory", head=self._head(form),
            reading=partial(reading, self.folder),
        ).write(path, form)  # fmt: skip

    def _head(self, form: TableFormat) -> dict[str, object]:
        match form:
            case "json":  # how whole it is stands in the counts
                doubts = tampered(self.folder, self.manifest)
                head = inventory_head(self._database.cursor(), self._tallies)
                return head | ({"doubts": list(doubts)} if doubts else {})
            case "xlsx":
                manifest = self.manifest
                about = {"run": self.folder.name, "state": manifest.state, "started_at": manifest.started_at}
                whole = coverage_of(self.devices, count_sources(self._database.cursor()))
                return whole | about | {"doubts": list(self.doubts)}
        return {}
