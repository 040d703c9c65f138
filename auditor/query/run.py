"""A run opened for reading: version counts and device states. Every number is a query over the run's files."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, Self, get_args

from auditor.config.settings import parse_percentage
from auditor.config.validation import stored_rollouts
from auditor.errors import AuditorError, RunFolderError, UsageError
from auditor.models import RunWarning
from auditor.query.describe import warning_objects
from auditor.query.freshness import AnswerAges, read_ages
from auditor.query.run_views import define_device_releases
from auditor.query.warnings import completeness_warnings, integrity_warnings
from auditor.runs.estimates import SampleSummary, define_estimates, may_be_sampled, summarize_sample
from auditor.runs.folder import MODULES, READ_BY_QUERIES, StoredRun, find_run, is_sealed, results_name
from auditor.runs.inventory import count_devices, count_sources, coverage_head, inventory_head
from auditor.runs.locking import was_killed
from auditor.runs.manifest import DeviceCounts, Manifest, read_manifest
from auditor.runs.recovery import refuse_lost_results
from auditor.runs.views import define_live_views, define_products, define_releases, define_sealed_views
from auditor.stats.stratified import StratifiedCounts
from auditor.storage.database import DEFAULT_MEMORY, LARGE_MEMORY, borrow_database, result_rows
from auditor.storage.descriptors import pin_files
from auditor.storage.files import private_folder, translate_os_errors
from auditor.storage.tables import ResultTable, translate_read_errors
from auditor.text.formats import TableFormat

_COLUMNS = [
    *((name, "VARCHAR") for name in ("account", "product_key", "module_name", "module_version")),
    ("devices", "BIGINT"),
    ("share", "DOUBLE"),
]
"""The inventory's columns. A Parquet file of another program may hold other types under these names."""


TableName = Literal[
    "inventory", "devices", "modules", "products", "missing_modules", "firmware", "jobs", "tasks", "device_releases"
]


_RELEASES = ("firmware", "jobs", "tasks", "device_releases")


@dataclass(frozen=True, slots=True)
class VersionCount:
    """A version of a product's module, with the number and the share of its devices.

    Attributes:
        product_key: None only for devices that were queried by iot_id and whose answer has no product.
        devices: devices that run the version; of a sample, sampled devices.
        share: fraction, from 0 to 1, of the product's devices that report the module.
        low, high: 95% confidence interval of the share of a sample; None: the run is no sample.
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
    """A run folder, open for reading. Use it as a context manager, or close it at the end.

    A sealed run is read from its Parquet files. The lines of a run in progress, or of a killed one, are read once: its
    numbers are those of the moment at which it was opened.

    Attributes:
        folder: the run folder.
        manifest: its ``run.json``.
        sealed: whether it is read from its Parquet files.
    """

    def __init__(self, path: str | Path) -> None:
        """Open a run folder, or the newest run of a directory; raise RunFolderError for any other path."""
        self.folder = find_run(Path(path))
        results = results_name(self.folder)
        try:
            self._open()
        except RunFolderError:
            if results_name(self.folder) == results:
                raise
            self._open()  # sealing compressed the results meanwhile, or a resume expanded them

    def _open(self) -> None:
        self.manifest: Manifest = read_manifest(self.folder)
        self.sealed = is_sealed(self.folder, self.manifest)
        self._counts: StratifiedCounts | None = None
        self._defined: set[str] = set()
        self._stack = ExitStack()
        try:
            spill = None
            with suppress(OSError):  # a system without a place for temporary files: nothing is spilled
                spill = self._stack.enter_context(private_folder("read"))
            memory = DEFAULT_MEMORY if self.sealed else LARGE_MEMORY
            self._database = self._stack.enter_context(borrow_database(spill, memory))
            with translate_os_errors(f"{self.folder}: cannot be read", RunFolderError):
                self._files = self.folder if spill is None else pin_files(self.folder, READ_BY_QUERIES, spill)
            self._define_views(spill)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"<Run {str(self.folder)!r}: {manifest.state}, started {manifest.started_at}, {manifest.devices}>"

    def close(self) -> None:
        """Close the run, and with it its tables; closing it again does nothing."""
        self._stack.close()

    @property
    def devices(self) -> DeviceCounts:
        """Devices by state."""
        with translate_read_errors(self.folder):
            return count_devices(self._database.cursor())

    @property
    def warnings(self) -> tuple[RunWarning, ...]:
        """Why the run's numbers do not cover the whole fleet, or are not reliable."""
        with translate_read_errors(self.folder):
            unsampled = count_sources(self._database.cursor()).unsampled
        devices = self.devices
        completeness = completeness_warnings(self.folder, self.manifest, devices, unsampled)
        return (*completeness, *integrity_warnings(self.folder, self.manifest))

    @property
    def sample(self) -> SampleSummary | None:
        """Estimates for the whole fleet; None if the run is no random sample."""
        if self._counts is None:
            return None
        with translate_read_errors(self.folder):
            return summarize_sample(self._database.cursor(), self._counts)

    @property
    def ages(self) -> AnswerAges:
        """Devices by the age of their answers."""
        with translate_read_errors(self.folder):
            return read_ages(self._database.cursor(), self.manifest.started_at)

    def inventory(self) -> Iterator[VersionCount]:
        """Yield every version of every module, by account, product and module, the most frequent version first."""
        with translate_read_errors(self.folder):
            for row in result_rows(self._database.cursor().execute("FROM inventory")):
                yield VersionCount(*row)

    def table(self, name: TableName = "inventory") -> ResultTable:
        """Return one of the run's tables, whose columns are those of the SQL view of that name."""
        if name not in get_args(TableName):
            raise UsageError(f"{name!r} is no table of a run; there are {', '.join(get_args(TableName))}")
        if name in _RELEASES and name not in self._defined:  # not before: a damaged file of them costs no other table
            with translate_read_errors(self.folder):
                if not self._defined:
                    define_releases(self._database, self._files)
                self._defined |= {"firmware", "jobs", "tasks", name}
                selected = parse_percentage(stored_rollouts(self.manifest.settings).selected)
                with private_folder("releases") as work:
                    define_device_releases(self._database, name, work, selected=selected)
        return self._table(name)

    def _table(self, name: str, head: Mapping[str, object] | None = None) -> ResultTable:
        reading = partial(translate_read_errors, self.folder)
        return ResultTable(self._database, f"FROM {name}", reading=reading, name=name, head=head)

    def _define_views(self, work: Path | None) -> None:
        with translate_read_errors(self.folder):
            if self.sealed:
                define_sealed_views(self._database, self._files)
            else:
                refuse_lost_results(self._database, self.folder, self.manifest)
                define_live_views(self._database, self._files, work)
            define_products(self._database, self._files)
            described = self._database.execute("DESCRIBE inventory").fetchall()
        if [(name, kind) for name, kind, *_ in described] != _COLUMNS:
            raise RunFolderError(f"{self.folder}: cannot be read: {MODULES} does not have the columns of a run")
        if may_be_sampled(self.folder, sealed=self.sealed):
            with translate_read_errors(self.folder):
                self._counts = define_estimates(self._database, self._files)

    def write_inventory(self, path: Path, form: TableFormat) -> None:
        """Write the inventory to a file.

        CSV is safe to open in a spreadsheet: a name that would be a formula gets a ``'`` in front. JSON equals
        ``inventory.json``, plus ``warnings`` if files differ from those that were sealed. JSON Lines and Parquet hold
        the rows only. An Excel file has a second sheet about the run and its completeness.

        Raises:
            RunNotWritableError: the file cannot be written.
            UsageError: Excel files need an extra that is not installed.
        """
        with translate_read_errors(self.folder):
            head = self._head(form)
        self._table("inventory", head).write(path, form)

    def _head(self, form: TableFormat) -> dict[str, object]:
        match form:
            case "json":  # the counts show how complete the run is
                warnings = integrity_warnings(self.folder, self.manifest)
                head = inventory_head(self._database.cursor(), self._counts, self.manifest.modules)
                return head | ({"warnings": warning_objects(warnings)} if warnings else {})
            case "xlsx":
                manifest = self.manifest
                about = {"run": self.folder.name, "state": manifest.state, "started_at": manifest.started_at}
                coverage = coverage_head(self.devices, count_sources(self._database.cursor()), manifest.modules)
                return coverage | about | {"warnings": warning_objects(self.warnings)}
        return {}


def with_counted_devices(run: StoredRun) -> StoredRun:
    """Return a run whose manifest has its current devices: that of a killed run is older than its files."""
    if was_killed(run.folder, run.manifest):
        with suppress(AuditorError), Run(run.folder) as opened:  # what is wrong with its files is not said here
            return run._replace(manifest=replace(run.manifest, devices=opened.devices))
    return run
