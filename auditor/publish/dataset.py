"""The dataset of published runs in a directory or an object storage: its names, and ``runs/RUN.json``.

::

    devices/audit=NAME/night=2026-11-28/account=NAME/RUN-VERSION.parquet
    modules/…  inventory/…  rollouts/…  changes/…      likewise
    runs/RUN.json                                      the row of the run, and its files with their digests
    latest/NAME.json                                   the same of the newest successful run of an audit

``runs/RUN.json`` is written after all files that it names, and a file that it names is never written again. So a reader
that first reads ``runs/``, and then the files that are named there, sees a run as a whole or not at all. A run that was
resumed gets files of another VERSION; the old ones are deleted after ``runs/RUN.json`` and ``latest/NAME.json`` were
replaced.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import quote

import msgspec

from auditor.errors import InvalidObjectError, ObjectMissingError
from auditor.log import log
from auditor.publish.tables import TABLES, TABLES_VERSION, PublishedRun, PublishedTable
from auditor.storage.object_store import ObjectStore, StoredObject, check_key

RUNS, LATEST = "runs", "latest"
"""Folders of the dataset besides those of its tables."""

PARTITIONS = ("audit", "night", "account")
"""Columns that are in the paths and not in the files, as is usual for such datasets."""

DATASET_TABLES: tuple[PublishedTable, ...] = tuple(name for name in TABLES if name != RUNS)

MAX_DOCUMENT_BYTES = 16 << 20
"""Size up to which ``runs/RUN.json`` is read."""

_VERSION_DIGITS = 12


class DatasetFile(msgspec.Struct, frozen=True):
    """A file of a published run.

    Attributes:
        key: its path in the dataset.
        table: the table that it has rows of.
        rows: number of rows.
        bytes, sha256: its size and its digest.
    """

    key: str
    table: str
    rows: int
    bytes: int
    sha256: str


class DatasetRun(msgspec.Struct, frozen=True):
    """``runs/RUN.json``, without the columns of ``runs`` that only readers need.

    Attributes:
        run, audit, night, state, digest, tables_version, started_at: see the table ``runs``.
        files: the files that have its rows.
        cleaned: whether ``latest`` has the run, if it is the newest, and files that it had before were deleted.
    """

    run: str
    audit: str
    night: str
    state: str
    digest: str
    tables_version: int
    started_at: str
    files: tuple[DatasetFile, ...]
    cleaned: bool = True

    @property
    def account_folders(self) -> frozenset[str]:
        """Names of the folders of accounts that have files of devices."""
        return frozenset(file.key.split("/")[-2] for file in self.files if file.table == "devices")


def escape_segment(text: str) -> str:
    """Return a text as a part of a path, as Hive escapes partitions: ``%`` and two digits for unusual characters."""
    return "".join(
        character if character.isprintable() and not character.isascii() else quote(character, safe="@")
        for character in text.encode("utf-8", "replace").decode()
    )


def audit_folder(table: str, audit: str) -> str:
    """Return the folder of an audit in a table."""
    return f"{table}/audit={escape_segment(audit)}"


def partition(table: str, audit: str, night: str) -> str:
    """Return the folder of an audit and a night in a table."""
    return f"{audit_folder(table, audit)}/night={night}"


def file_key(table: str, run: PublishedRun, account: str, version: str) -> str:
    """Return the key of the file of a run's account."""
    name = f"{escape_segment(run.name)}-{version}.parquet"
    return f"{partition(table, run.manifest.name, run.night)}/{account_folder(account)}/{name}"


def account_folder(account: str) -> str:
    """Return the name of the folder of an account in a night."""
    return f"account={escape_segment(account)}"


def content_version(run: PublishedRun) -> str:
    """Return the part of a file's name that changes with the content of the run, or with the columns."""
    return hashlib.sha256(f"{run.digest}:{TABLES_VERSION}".encode()).hexdigest()[:_VERSION_DIGITS]


def is_file_of(key: str, run: str) -> bool:
    """Return whether a key is that of a file of a run, of any version."""
    name = rf"{re.escape(escape_segment(run))}-[0-9a-f]{{{_VERSION_DIGITS}}}\.parquet"
    return re.fullmatch(name, key.rpartition("/")[2]) is not None


def stored_files(store: ObjectStore, audit: str, night: str) -> Iterator[StoredObject]:
    """Yield the files of an audit and a night."""
    for table in DATASET_TABLES:
        yield from store.list(partition(table, audit, night))


def delete_other_files(store: ObjectStore, document: DatasetRun) -> None:
    """Delete files of a run that it does not have any more, or that were written and never named."""
    named = {file.key for file in document.files}
    stored = [each.key for each in stored_files(store, document.audit, document.night)]
    store.delete([key for key in stored if is_file_of(key, document.run) and key not in named])


def run_key(run: str) -> str:
    """Return the key of ``runs/RUN.json``."""
    return f"{RUNS}/{escape_segment(run)}.json"


def latest_key(audit: str) -> str:
    """Return the key of ``latest/NAME.json``."""
    return f"{LATEST}/{escape_segment(audit)}.json"


def read_dataset_run(store: ObjectStore, key: str) -> DatasetRun | None:
    """Return a run of a dataset; None if it has none of this key.

    Raises:
        InvalidObjectError: the object is none that ``auditor publish`` writes.
        ObjectStoreError: the storage fails.
    """
    try:
        content = store.get(key, max_bytes=MAX_DOCUMENT_BYTES)
    except ObjectMissingError:
        return None
    return parse_dataset_run(content, key, store.address)


def read_replaceable_run(store: ObjectStore, key: str) -> tuple[DatasetRun | None, bool]:
    """Return a run that may be replaced, None if it is missing or damaged; and whether it is damaged, which is logged.

    Raises:
        ObjectStoreError: the storage fails.
    """
    try:
        return read_dataset_run(store, key), False
    except InvalidObjectError as error:
        log.warning("dataset_document_damaged", reason=str(error))
        return None, True


def parse_dataset_run(content: bytes, key: str, address: str) -> DatasetRun:
    """Return the run in ``runs/RUN.json`` or ``latest/NAME.json`` of a dataset.

    Raises:
        InvalidObjectError: it is none that ``auditor publish`` writes, or is that of another key: a copy would be read
            as a second run.
    """
    try:
        document = msgspec.json.decode(content, type=DatasetRun)
        _check_run(document, key)
    except (msgspec.DecodeError, InvalidObjectError, ValueError, RecursionError) as error:
        raise InvalidObjectError(f"{address}/{key}: is no published run: {error}") from None
    return document


def _check_run(document: DatasetRun, key: str) -> None:
    """Raise ValueError unless a run has this key, and its files are where its files are."""
    expected = latest_key(document.audit) if key.startswith(f"{LATEST}/") else run_key(document.run)
    if key != expected:
        raise ValueError(f"it is {expected}")
    if not document.run or not document.audit or not re.fullmatch(r"\d{4}-\d\d-\d\d", document.night, re.ASCII):
        raise ValueError("it has no run, audit or night")
    for name in (run_key(document.run), latest_key(document.audit), *(file.key for file in document.files)):
        check_key(name)
    for file in document.files:
        folder = partition(file.table, document.audit, document.night)
        is_there = file.table in DATASET_TABLES and file.key.startswith(f"{folder}/")
        if not is_there or not is_file_of(file.key, document.run):
            raise ValueError(f"{file.key} is no file of {file.table}")


def read_dataset_runs(store: ObjectStore) -> Iterator[tuple[DatasetRun, bytes]]:
    """Yield all runs of a dataset in the order of their names, each with the content of ``runs/RUN.json``."""
    for found in store.list(RUNS):
        if found.key.endswith(".json"):
            with suppress(ObjectMissingError):  # deleted meanwhile
                content = store.get(found.key, max_bytes=MAX_DOCUMENT_BYTES)
                yield parse_dataset_run(content, found.key, store.address), content
