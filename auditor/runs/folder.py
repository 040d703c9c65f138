"""The files of a run folder, and how runs are found."""

import os
from collections.abc import Sequence
from pathlib import Path

import structlog

from auditor.errors import RunFolderError, UsageError
from auditor.runs.manifest import MANIFEST, Manifest, file_facts, read_manifest

log = structlog.get_logger()


FLEET = "fleet.parquet"


ANSWERED = "devices.jsonl"


FAILED = "failures.jsonl"


PRODUCTS = "products.jsonl"


PLAN = "plan.parquet"


CARRIED = "carried.parquet"


DEVICES = "devices.parquet"


MODULES = "modules.parquet"


INVENTORY_CSV = "inventory.csv"


INVENTORY_JSON = "inventory.json"


SEALED = (DEVICES, MODULES, INVENTORY_CSV, INVENTORY_JSON)


REPORT_HTML = "report.html"


INVENTORY_XLSX = "inventory.xlsx"


SHOWN = (REPORT_HTML, INVENTORY_XLSX)
"""What is made of a sealed run for people, if the settings say so; no part of its contract, and gone on resume."""


def refuse_own_file(path: Path) -> None:
    """Refuses to write what is a run's own, which nothing but an audit may change.

    Raises:
        UsageError: the path is a file of a run folder.
    """
    own = (MANIFEST, FLEET, ANSWERED, FAILED, PRODUCTS, PLAN, CARRIED, *SEALED)
    target = Path(os.path.realpath(path))
    if target.name in own and (target.parent / MANIFEST).is_file():
        raise UsageError(f"{path}: is a file of a run, which nothing may change; give another path")


def runs_in(directory: Path) -> tuple[list[tuple[Manifest, Path]], list[RunFolderError]]:
    """The runs in a directory, the newest first, and what is wrong with those whose manifest cannot be read.

    Hidden folders are not looked at, and links are not followed.

    Raises:
        RunFolderError: the directory cannot be read.
    """
    runs, broken = [], []
    try:
        folders = [path for path in directory.iterdir() if not path.name.startswith(".") and not path.is_symlink()]
    except OSError as error:
        raise RunFolderError(f"{directory}: cannot be read: {error.strerror}") from error
    for folder in folders:
        if (folder / MANIFEST).is_file():  # and not gone since: another process may prune
            try:
                runs.append((read_manifest(folder), folder))
            except RunFolderError as error:
                broken.append(error)
    runs.sort(key=lambda run: (run[0].started_at, run[1].name), reverse=True)
    return runs, broken


def find_run(path: Path) -> Path:
    """The run folder that a path means: itself, or the newest run in a folder of runs.

    Raises:
        RunFolderError: neither; or none of the runs in it can be read, and what is wrong with the first.
    """
    try:
        if (path / MANIFEST).is_file():
            return path
        if not path.is_dir():
            raise RunFolderError(f"{path}: is no folder")
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be read: {error.strerror}") from error
    runs, broken = runs_in(path)
    for problem in broken:
        log.warning("a run is passed over", reason=str(problem))
    if runs:
        return runs[0][1]
    if broken:
        raise broken[0]
    raise RunFolderError(f"{path}: is not a run folder: it has no {MANIFEST}, and no run lies in it")


_IDENTITY = ("account", "product_key", "device_name", "iot_id")


_COLUMNS = {DEVICES: (*_IDENTITY, "status"), MODULES: (*_IDENTITY, "module_name", "module_version")}
"""Columns that are text: a Parquet file that somebody else wrote may hold dates or bytes under these names."""


def is_sealed(folder: Path, manifest: Manifest) -> bool:
    """Whether a run is read from its Parquet files; else it is from its lines."""
    return manifest.state != "running" and all((folder / name).is_file() for name in _COLUMNS)


def run_to_carry_from(directory: Path, name: str, since: str) -> Path | None:
    """The run whose answers are carried; None: there is none yet.

    Of the runs of a name the newest that ended is meant in which no device is left to ask; where there is none, the
    newest that ended at all. A sample knows too little, so does a run of a part of a fleet (``--limit``,
    ``--account``), and a run in which nothing was answered knows nothing.

    Args:
        directory: where runs lie.
        name: whose.
        since: ``last``, or a run folder.

    Raises:
        RunFolderError: the one that is named is no run, is not sealed, or was changed since.
    """
    if since != "last":
        folder = find_run(Path(since))
        if not is_sealed(folder, read_manifest(folder)):
            raise RunFolderError(f"{folder}: is not sealed, so its answers cannot be carried; resume it first")
        return _unchanged(folder)
    if not directory.exists():
        return None
    runs, broken = runs_in(directory)
    for error in broken:
        log.warning("a run is passed over", reason=str(error))
    found = newest_to_carry_from(runs, name)
    return None if found is None else _unchanged(found)


def newest_to_carry_from(runs: Sequence[tuple[Manifest, Path]], name: str) -> Path | None:
    """The run folder that ``last`` means among runs, the newest first; its files are not looked into."""
    ended = [
        (manifest, folder)
        for manifest, folder in runs
        if manifest.name == name and manifest.finished_at is not None and is_sealed(folder, manifest)
        if not _sampled(manifest)
        and not manifest.fleet.cut
        and manifest.devices.ok + manifest.devices.empty + manifest.devices.not_found
    ]
    whole = [folder for manifest, folder in ended if not manifest.devices.pending]
    return next(iter((*whole, *(folder for _, folder in ended))), None)


def _sampled(manifest: Manifest) -> bool:
    return manifest.choice is not None and manifest.choice.strategy == "sample"


def _unchanged(folder: Path) -> Path:
    """The run folder, if its answers are those that were sealed: what was changed must not go on from run to run."""
    facts = {each.name: each for each in read_manifest(folder).files}
    for name in (ANSWERED, FAILED, *((CARRIED,) if CARRIED in facts else ())):
        try:
            same = file_facts(folder / name) == facts.get(name)
        except OSError as error:
            raise RunFolderError(f"{folder / name}: cannot be read: {error.strerror}") from error
        if not same:
            raise RunFolderError(f"{folder / name}: is not the file that was sealed, so nothing of it is carried")
    return folder
