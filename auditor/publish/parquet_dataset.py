"""Publish runs as a dataset of Parquet files, in a directory or an object storage; see ``publish.dataset``.

The files of an account are written to the system's temporary folder and sent from there, two concurrently. Rows are in
the order of the fleet, in row groups of ``ROW_GROUP_ROWS``, so that query engines skip the products that a query does
not need.
"""

import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import ExitStack, contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import msgspec
import orjson

from auditor.concurrency import TimeLimit
from auditor.config.secrets import read_secret
from auditor.config.settings import SecretSource
from auditor.errors import DestinationError, InvalidObjectError, ObjectStoreError, RunNotWritableError, SettingsError
from auditor.publish.dataset import (
    DATASET_TABLES,
    PARTITIONS,
    RUNS,
    DatasetFile,
    DatasetRun,
    account_folder,
    audit_folder,
    content_version,
    delete_other_files,
    file_key,
    latest_key,
    read_replaceable_run,
    run_key,
    stored_files,
)
from auditor.publish.tables import TABLES, TABLES_VERSION, PublishedRun, PublishedTable, open_published
from auditor.runs.manifest import file_info
from auditor.storage.database import Database, error_reason, scalar, sql_identifier, sql_literal, write_rows
from auditor.storage.files import private_folder
from auditor.storage.object_store import ObjectStore, OptionValue, open_store
from auditor.storage.tables import translate_read_errors
from auditor.text.formatting import safe

ROW_GROUP_ROWS, WRITING_MEMORY, WRITERS = 61_440, "160MB", 2
"""Rows of a row group; memory of DuckDB; and files that are written concurrently. Each holds a row group in memory."""

_LARGEST_FIRST: tuple[PublishedTable, ...] = ("modules", *(name for name in DATASET_TABLES if name != "modules"))
"""The order in which files are started, so that the other writer has time for all smaller ones."""

_OPTIONS = (
    "FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, "
    f"ROW_GROUP_SIZE {ROW_GROUP_ROWS}, DICTIONARY_SIZE_LIMIT 1000"
)
"""Options of the files. Without the limit, dictionaries of unique names would be built and then not used.

The encodings of Parquet's version 2 take a tenth less time, but Velox and Spark before 3.4 do not read all of them.
"""


class FilesSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A directory or an object storage in the settings.

    Attributes:
        to: path of a directory, or an address such as ``s3://BUCKET/FOLDER``, ``gs://…`` or ``az://…``.
        access_key_id, secret_access_key, session_token: of S3; None: from the environment, or the role of the instance.
        region, endpoint: of S3, or of a storage with its interface.
        virtual_hosted_style: whether the bucket is a part of the host name, as Alibaba OSS requires.
        service_account_file: key file of Google Cloud; None: from the environment, or the role of the instance.
        account_name, account_key, sas_token: of Azure; None: from the environment, or the role of the instance.
        ca_file: PEM file with authorities to trust besides the system's.
    """

    to: str
    access_key_id: str | SecretSource | None = None
    secret_access_key: SecretSource | None = None
    session_token: SecretSource | None = None
    region: str | None = None
    endpoint: str | None = None
    virtual_hosted_style: bool | None = None
    service_account_file: str | None = None
    account_name: str | None = None
    account_key: SecretSource | None = None
    sas_token: SecretSource | None = None
    ca_file: str | None = None

    def open(self, limit: TimeLimit) -> ObjectStore:
        """Open the storage, with the secrets as they are stored now; raise SettingsError if that is not possible."""
        options: dict[str, OptionValue] = {}
        for key, value in msgspec.structs.asdict(self).items():
            if isinstance(value, SecretSource):
                options[key] = read_secret(value, account=None, key=key)
            elif value is not None and key != "to":
                options[key] = value
        return open_store(self.to, options, limit=limit)

    def check(self) -> None:
        """Raise SettingsError if the storage cannot be used. Secrets are not read, and so no access key is used."""
        if not self.to.strip():
            raise SettingsError("to: is empty; give a directory, or an address such as s3://BUCKET/FOLDER")
        if re.match(r"[A-Za-z][A-Za-z0-9]+:/(?!/)", self.to):
            raise SettingsError(f"to: {self.to}: is no address; it needs :// as in s3://BUCKET/FOLDER")
        options: dict[str, OptionValue] = {
            key: value
            for key, value in msgspec.structs.asdict(self).items()
            if value is not None and key not in {"to", "access_key_id"} and not isinstance(value, SecretSource)
        }
        open_store(self.to, options)


class DatasetDestination:
    """A dataset of Parquet files that has runs; see ``publish.dataset`` for its layout."""

    settings_type: ClassVar[type[msgspec.Struct]] = FilesSettings

    def __init__(self, settings: FilesSettings) -> None:
        settings.check()
        self._settings = settings

    def __repr__(self) -> str:
        return f"<DatasetDestination {self.describe()}>"

    def describe(self) -> str:
        """See ``Destination``."""
        return self._settings.to

    def open(self, limit: TimeLimit) -> ObjectStore:
        """Open the storage of the dataset."""
        return self._settings.open(limit)

    def published_runs(self, names: Collection[str], limit: TimeLimit) -> dict[str, str]:
        """See ``Destination``. A run is not complete before ``latest`` has it and its earlier files are deleted.

        The sizes of its files are compared, and not their digests.
        """
        documents = []
        with _translated():
            store = self.open(limit)
            stored = {each.key for each in store.list(RUNS)}
            for name in names:
                document = read_replaceable_run(store, run_key(name))[0] if run_key(name) in stored else None
                if document is not None and document.cleaned:
                    documents.append(document)
            files: dict[str, int] = {}
            for audit in {document.audit for document in documents}:
                for table in DATASET_TABLES:
                    files |= {each.key: each.bytes for each in store.list(audit_folder(table, audit))}
        return {document.run: document.digest for document in documents if _is_whole(document, files)}

    def publish(self, folder: Path, limit: TimeLimit) -> None:
        """See ``Destination``."""
        with _translated(), open_published(folder) as run:
            store = self.open(limit)
            publish_to_store(run, store, limit)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise DestinationError for an error of the storage, or of the temporary folder."""
    try:
        yield
    except (ObjectStoreError, RunNotWritableError) as error:
        raise DestinationError(str(error), retryable=not isinstance(error, InvalidObjectError)) from error
    except (OSError, duckdb.IOException) as error:
        raise DestinationError(f"the temporary folder cannot be used: {error_reason(error)}") from error


def publish_to_store(run: PublishedRun, store: ObjectStore, limit: TimeLimit) -> DatasetRun:
    """Write the files of a run to a dataset, then ``runs/RUN.json``; delete what it had before.

    What an attempt began that a kill or a failure ended is continued. A run that is there as a whole is written again:
    its files may be damaged.

    Raises:
        DestinationError: there was not enough time, or the dataset has another run of this name.
    """
    previous, is_damaged = read_replaceable_run(store, run_key(run.name))
    if previous is not None:
        _refuse_other_run(run, previous, store.address)
    version = content_version(run)
    is_same = previous is not None and (previous.digest, previous.tables_version) == (run.digest, TABLES_VERSION)
    if previous is not None and is_same and not previous.cleaned and _has_files(store, previous):
        document = previous
    else:
        if is_same or is_damaged:  # a file that may be named is never written again
            version = secrets.token_hex(len(version) // 2)
        row = _run_row(run)
        document = DatasetRun(
            run.name, run.manifest.name, run.night, row["state"], run.digest, TABLES_VERSION, row["started_at"],
            tuple(_write_files(run, store, version, limit)), cleaned=False,
        )  # fmt: skip
        _put_run(store, run_key(run.name), document, row)
    _put_latest(store, run, document)  # before the files are deleted that it names until now
    delete_other_files(store, document)
    if not document.cleaned:
        _put_run(store, run_key(run.name), msgspec.structs.replace(document, cleaned=True), _run_row(run))
    return document


def _refuse_other_run(run: PublishedRun, published: DatasetRun, address: str) -> None:
    """Raise DestinationError if a dataset has another run of this name, such as one of another machine.

    A resume changes neither the start of a run nor its accounts. It may add accounts to a partial run, whose devices
    were not listed before.
    """
    with translate_read_errors(run.folder):
        rows = run.database.execute(f"SELECT DISTINCT account FROM ({run.query('devices')})").fetchall()
    own = {account_folder(account) for (account,) in rows}
    added, removed = own - published.account_folders, published.account_folders - own
    has_other_accounts = bool(removed) or (published.state != "partial" and bool(added))
    if published.started_at != _run_row(run)["started_at"] or has_other_accounts:
        reason = f"has another run of the name {safe(run.name)}, of another start or of other accounts"
        advice = "give each audit that is published here a name of its own in its settings"
        raise DestinationError(f"{address}: {reason}; {advice}", retryable=False)


def _has_files(store: ObjectStore, document: DatasetRun) -> bool:
    """Return whether a dataset has the files that it names, by their sizes."""
    return _is_whole(document, {each.key: each.bytes for each in stored_files(store, document.audit, document.night)})


def _is_whole(document: DatasetRun, sizes: Mapping[str, int]) -> bool:
    return all(sizes.get(file.key) == file.bytes for file in document.files)


def _write_files(run: PublishedRun, store: ObjectStore, version: str, limit: TimeLimit) -> list[DatasetFile]:
    """Store a file for each table and account that has rows; return them in the order of the tables."""
    run.database.execute(f"SET memory_limit = '{WRITING_MEMORY}'")
    files = []
    with private_folder("dataset") as work:
        for account in _accounts(run):
            files += _write_account(run, account, store, version=version, work=work, limit=limit)
    return sorted(files, key=lambda file: DATASET_TABLES.index(file.table))


def _accounts(run: PublishedRun) -> list[str]:
    """Return the accounts that have rows; those of the inventory and of the rollouts have modules."""
    with translate_read_errors(run.folder):
        tables = [f"SELECT account FROM ({run.query(table)})" for table in ("devices", "modules", "changes")]
        rows = run.database.execute(f"{' UNION '.join(tables)} ORDER BY 1").fetchall()
    return [account for (account,) in rows]


def _write_account(
    run: PublishedRun, account: str, store: ObjectStore, *, version: str, work: Path, limit: TimeLimit
) -> list[DatasetFile]:
    """Store the files of an account, some concurrently; return those that have rows.

    Each file has one thread: two threads for one file use hardly more than one processor, since rows have an order. A
    file is stored while the next one is written, so a slow disk delays neither. Rollouts are read meanwhile.
    """

    def write(table: PublishedTable, query: str, cursor: Database) -> DatasetFile | None:
        if limit.remaining() <= 0:
            raise DestinationError("there was not enough time; give more with timeout")
        path = work / f"{table}.parquet"
        try:
            if not (rows := _write_parquet(cursor, run, query, path)):
                return None
            info, key = file_info(path), file_key(table, run, account, version)
            store.put_file(key, path)
            return DatasetFile(key, table, rows, info.bytes, info.sha256)
        finally:
            path.unlink(missing_ok=True)

    with ExitStack() as stack, ThreadPoolExecutor(WRITERS) as writers:
        cursors = [stack.enter_context(run.database.cursor()) for _ in _LARGEST_FIRST]
        written: list[Future[DatasetFile | None]] = []
        try:
            for table, cursor in zip(_LARGEST_FIRST, cursors, strict=True):
                query = _account_query(run, table, account)
                _raise_errors(written)
                written.append(writers.submit(write, table, query, cursor))
            for each in as_completed(written):
                each.result()
            return [file for each in written if (file := each.result()) is not None]
        except BaseException:  # an error of one writer, or a signal: a large file takes seconds
            for each in written:
                each.cancel()
            while wait(written, timeout=0.05).not_done:
                for cursor in cursors:
                    cursor.interrupt()
            raise


def _raise_errors(written: list[Future[DatasetFile | None]]) -> None:
    """Raise the error of a writer that has failed."""
    for each in filter(Future.done, written):
        each.result()


def _account_query(run: PublishedRun, table: PublishedTable, account: str) -> str:
    """Return the SQL of the rows of a table that are of an account."""
    columns = [column.name for column in TABLES[table].columns if column.name not in PARTITIONS]
    with translate_read_errors(run.folder, duckdb.IOException):
        rows = run.query(table)
    return f"SELECT {', '.join(map(sql_identifier, columns))} FROM ({rows}) WHERE account = {sql_literal(account)}"


def _write_parquet(database: Database, run: PublishedRun, query: str, path: Path) -> int:
    """Write the rows of a query; return their number."""
    with translate_read_errors(run.folder, duckdb.IOException):
        write_rows(database, query, path, _OPTIONS, by_name=True)
        return scalar(database, f"SELECT num_rows FROM parquet_file_metadata({sql_literal(path)})")


def _run_row(run: PublishedRun) -> dict[str, Any]:
    """Return the row of ``runs`` with times as JSON has them: ISO 8601, in UTC."""
    with translate_read_errors(run.folder):
        result = run.database.execute(run.query("runs"))
    names = [column.name for column in TABLES["runs"].columns]
    (row,) = result.fetchall()
    return {name: _json_value(value) for name, value in zip(names, row, strict=True)}


def _json_value(value: object) -> Any:  # noqa: ANN401  a value of JSON
    if isinstance(value, datetime):
        return f"{value.isoformat()}Z"
    return value.isoformat() if isinstance(value, date) else value


def _put_run(store: ObjectStore, key: str, document: DatasetRun, row: dict[str, Any]) -> None:
    """Store the row and the files of a run, as one line of JSON."""
    store.put(key, orjson.dumps(row | msgspec.to_builtins(document)) + b"\n")


def _put_latest(store: ObjectStore, run: PublishedRun, document: DatasetRun) -> None:
    """Store the run as the latest one of its audit, if it is a successful one of the fleet, and none is newer."""
    if not run.manifest.is_success:
        return
    key = latest_key(document.audit)
    latest, _ = read_replaceable_run(store, key)
    current = msgspec.structs.replace(document, cleaned=True)
    if latest is None or (latest.started_at <= current.started_at and latest != current):
        _put_run(store, key, current, _run_row(run))
