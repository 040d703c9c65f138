"""Commands that publish runs and fetch them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from auditor.cli.console import print_error, print_path
from auditor.cli.options import Flag, LogFormatOption, LogLevel
from auditor.errors import UsageError
from auditor.text.formatting import safe

if TYPE_CHECKING:
    from auditor.config.settings import PublishSettings, Settings
    from auditor.storage.object_store import ObjectStore


def publish(
    run: Path = Path("audits"),
    /,
    *,
    to: Annotated[list[str] | None, Parameter(negative=())] = None,
    missing: Flag = False,
    settings: Path | None = None,
    log_level: LogLevel = "warning",
    log_format: LogFormatOption = "text",
) -> int:
    """Publish a run to the destinations of its settings.

    A run that a destination has is replaced. Only runs that ended and verified are published. A trial is published only
    if you give its own folder, and an interrupted run only after a resume.

    Parameters
    ----------
    run:
        Run folder, or directory of runs (uses its newest run that is no trial and was not interrupted).
    to:
        Publish only to the destination of this name; repeatable.
    missing:
        Publish all runs of the directory that a destination does not have.
    settings:
        Use the destinations of this settings file instead of those that you started the run with.
    """
    from auditor.audit.run_settings import resume_settings
    from auditor.cli.runtime import log_to_stderr
    from auditor.config.loader import load_settings
    from auditor.errors import DestinationError
    from auditor.publish.publisher import find_publishable, publish_missing, publish_run
    from auditor.runs.manifest import read_manifest

    log_to_stderr(log_level, log_format)
    folder = find_publishable(run)
    if read_manifest(folder).trial:
        print_error(f"{safe(folder.name)} is a trial: those who read the destination see it as any other run")
    own = resume_settings(folder, quiet=True) if settings is None else load_settings(settings)
    failed = 0
    for table in _destinations(own, to):
        if missing:
            publication = publish_missing(run if run != folder else folder.absolute().parent, table)
        else:
            publication = publish_run(folder, table, catch_up=False)
        print_error(safe(publication.sentence), "info" if publication.error is None else "error")
        failed += publication.error is not None
    return DestinationError.exit_code if failed else 0


def _destinations(settings: "Settings", names: list[str] | None) -> "list[PublishSettings]":
    """Return the destinations that have these names, or all; raise UsageError if there is none."""
    configured = {table.name: table for table in settings.publish}
    if not configured:
        raise UsageError(
            "the settings of the run have no [[publish]]; give those that have one now with --settings FILE"
        )
    for name in names or ():
        if name not in configured:
            raise UsageError(f"--to {name}: is no destination; the settings have {', '.join(configured)}")
    return [table for name, table in configured.items() if not names or name in names]


def fetch(
    source: str,
    directory: Path = Path("audits"),
    /,
    *,
    run: str | None = None,
    settings: Path | None = None,
) -> int:
    """Copy a published run, or one of several machines, into a directory, and check its digests.

    A run of a dataset is copied with its files, so the directory is then a dataset, too, which auditor sql --dataset
    reads. A run that auditor cut has made becomes a run folder in the directory.

    Parameters
    ----------
    source:
        Directory or address of a dataset, such as s3://lake/auditor; with --settings, the name of a destination; or
        what auditor cut printed. Credentials of an address come from the environment, or from the instance's role.
    directory:
        Directory to copy the run into. It may have other runs.
    run:
        Name of the run of a dataset; default: the latest successful one.
    settings:
        Settings file that has the destination.
    """
    from auditor.cli.commands.cluster import fetch_cut_run
    from auditor.publish.dataset import RUNS
    from auditor.publish.dataset_reader import fetch_run

    store = _open_dataset(source, settings)
    if run is None and settings is None and not store.list(RUNS):
        folder = fetch_cut_run(source, directory)
        if folder is None:
            raise UsageError(f"{source}: has neither published runs nor a run that was cut")
        print_path(folder)
        return 0
    document = fetch_run(store, directory, run)
    rows = sum(file.rows for file in document.files if file.table == "devices")
    print_error(f"{safe(document.run)}: {rows:,} devices fetched, digests verified")
    print_path(directory)
    return 0


def _open_dataset(dataset: str, settings: Path | None) -> "ObjectStore":
    """Return the storage of a dataset, which a destination of the settings or an address names."""
    from auditor.concurrency import TimeLimit
    from auditor.storage.object_store import open_store

    if settings is None:
        return open_store(dataset)
    from auditor.config.loader import load_settings
    from auditor.publish.destinations import open_destination
    from auditor.publish.parquet_dataset import DatasetDestination

    (table,) = _destinations(load_settings(settings), [dataset])
    destination = open_destination(table, str(settings))
    if not isinstance(destination, DatasetDestination):
        raise UsageError(f'{dataset}: is of the type "{table.type}"; only files can be fetched')
    return destination.open(TimeLimit())
