"""Sealing: the live files of a run are converted to Parquet and the inventory, in bounded memory."""

from dataclasses import dataclass, replace
from pathlib import Path

from auditor.models import ReadModules
from auditor.runs.estimates import count_not_reached, define_estimates, estimate_outdated, read_recheck
from auditor.runs.folder import (
    COMPRESSED_RESULTS,
    DEVICES,
    INVENTORY_CSV,
    INVENTORY_JSON,
    MODULES,
    RESULTS,
    SEALED,
    sealed_file_names,
)
from auditor.runs.inventory import count_devices, count_failures, count_never_activated, count_sources, inventory_json
from auditor.runs.journal import compress_results
from auditor.runs.manifest import DeviceCounts, FailureInfo, FileInfo, file_info
from auditor.runs.selection_info import OutdatedResults, Recheck, SelectionInfo
from auditor.runs.views import define_live_views, define_products, define_sealed_views
from auditor.storage.database import (
    Database,
    borrow_database,
    scratch_folder,
    translate_errors,
    with_enough_memory,
    write_parquet,
)
from auditor.storage.files import create_own_file, put_in_place
from auditor.storage.tables import write_csv


@dataclass(frozen=True, slots=True)
class SealedRun:
    """Numbers of a sealed run; they have the names and meanings that they have in the manifest.

    ``compressed`` is a new file with the results, which is not in its place yet; None: they stay as they are.
    """

    devices: DeviceCounts
    never_activated: int
    failures: tuple[FailureInfo, ...]
    files: tuple[FileInfo, ...]
    carried: int = 0
    unsampled: int = 0
    oldest_answer_at: str | None = None
    recheck: Recheck | None = None
    not_reached: int = 0
    outdated: OutdatedResults | None = None
    compressed: Path | None = None


def seal_run(folder: Path, selection: SelectionInfo | None = None, modules: ReadModules | None = None) -> SealedRun:
    """Write the sealed files of a run folder from its live files. Sealing again gives the same bytes.

    ``modules`` is that of the run's manifest. If the results were ``compressed``, the caller puts them in their place
    (``replace_results``); ``files`` lists them.
    """
    with translate_errors(f"{folder}: cannot be sealed"):
        sealed = with_enough_memory(lambda memory: _seal(folder, memory, selection, modules))
    compressed = compress_results(folder)
    files = [file_info(folder / name) for name in sealed_file_names(folder)]
    if compressed is not None:
        info = replace(file_info(compressed), name=COMPRESSED_RESULTS)
        files = [info if each.name == RESULTS else each for each in files]
    return replace(sealed, files=tuple(files), compressed=compressed)


def _seal(folder: Path, memory: str, selection: SelectionInfo | None, modules: ReadModules | None) -> SealedRun:
    work = folder / ".sealing"
    with scratch_folder(work):
        with borrow_database(work, memory) as live:
            define_live_views(live, folder, work)
            for name, view in ((DEVICES, "devices"), (MODULES, "modules")):
                write_parquet(live, f"FROM {view}", work / name)
            recheck, not_reached = read_recheck(live, selection), count_not_reached(live)
            outdated = estimate_outdated(live, selection, recheck)
        with borrow_database(work, memory) as database:
            define_sealed_views(database, work)
            define_products(database, folder)
            write_inventories(database, folder, work, modules)
            devices, failures = count_devices(database), count_failures(database)
            answers = (*count_sources(database), recheck, not_reached, outdated)
            sealed = SealedRun(devices, count_never_activated(database), failures, (), *answers)
        for name in SEALED:
            put_in_place(work / name, folder / name)
    return sealed


def write_inventories(database: Database, folder: Path, work: Path, modules: ReadModules | None = None) -> None:
    """Write ``inventory.csv`` and ``inventory.json`` to ``work``, from the sealed views of a run and its products.

    ``modules`` is that of its manifest.
    """
    counts = define_estimates(database, folder)
    write_csv(database, "FROM inventory", work / INVENTORY_CSV)
    with create_own_file(work / INVENTORY_JSON) as file:
        file.writelines(inventory_json(database, counts, modules))
