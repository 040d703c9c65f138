"""Read a dataset of published runs: fetch a run into a directory, or query all of them with SQL."""

import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import duckdb
import orjson

from auditor.errors import ObjectMissingError, ObjectStoreError, RunFolderError, UsageError
from auditor.publish.dataset import (
    DATASET_TABLES,
    LATEST,
    MAX_DOCUMENT_BYTES,
    PARTITIONS,
    RUNS,
    DatasetRun,
    delete_other_files,
    latest_key,
    parse_dataset_run,
    read_dataset_runs,
    read_replaceable_run,
    run_key,
)
from auditor.publish.tables import SQL_TYPES, TABLES, TABLES_VERSION, PublishedTable
from auditor.query.sql import open_result, parse_select, translate_query_errors
from auditor.query.sql_functions import define_version_functions
from auditor.runs.manifest import SCHEMA_VERSION, file_info
from auditor.runs.views import no_rows
from auditor.storage.database import Database, sql_literal, sql_read_path, temporary_database, text_lines
from auditor.storage.files import private_folder, translate_os_errors
from auditor.storage.object_store import DirectoryStore, ObjectStore
from auditor.storage.tables import ResultTable, translate_read_errors

MAX_READS = 3
"""How often a run is read that is being published again meanwhile."""


def fetch_run(store: ObjectStore, directory: Path, name: str | None = None) -> DatasetRun:
    """Copy a run of a dataset into a directory, which is a dataset, too; digests are checked.

    The directory is created if the folder above it exists. It has the run after all of its files are there.

    Args:
        store: the dataset.
        directory: where the run is stored.
        name: name of the run, also as it is written in ``runs/``; None: the latest successful run, where the dataset
            has runs of one audit.

    Raises:
        UsageError: the dataset does not have the run, or has several audits.
        ObjectStoreError: the dataset cannot be read, the directory cannot be written, or a digest is wrong.
    """
    key = _latest_key(store) if name is None else _find_key(store, name)
    target = DirectoryStore(directory)
    for attempt in range(1, MAX_READS + 1):
        content = _read_document(store, key, name)
        document = parse_dataset_run(content, key, store.address)
        try:
            _copy_files(store, target, document)
        except ObjectMissingError:  # published again meanwhile
            if attempt == MAX_READS:
                raise
        else:
            break
    target.put(run_key(document.run), content)
    _copy_latest(store, target, document, content)
    delete_other_files(target, document)
    return document


def _copy_latest(store: ObjectStore, target: ObjectStore, document: DatasetRun, content: bytes) -> None:
    """Store a run as the latest one of its audit if it is that of the source, and the target has none that is newer."""
    key = latest_key(document.audit)
    of_source, of_target = read_replaceable_run(store, key)[0], read_replaceable_run(target, key)[0]
    is_latest = of_source is not None and of_source.run == document.run
    if of_target is None:
        is_copied = is_latest
    else:  # the same run may be there with files that it has no more
        is_copied = of_target.run == document.run or (is_latest and of_target.started_at <= document.started_at)
    if is_copied:
        target.put(key, content)


def _read_document(store: ObjectStore, key: str, name: str | None) -> bytes:
    try:
        return store.get(key, max_bytes=MAX_DOCUMENT_BYTES)
    except ObjectMissingError:
        names = [_name_in(each.key) for each in store.list(RUNS)]
    has = f"it has {len(names):,}, the last one is {names[-1]}" if names else "it has none"
    raise UsageError(f"{store.address}: has no run {name or 'that is successful'}; {has}")


def _name_in(key: str) -> str:
    """Return the name of the run, or of the audit, that a key belongs to."""
    return unquote(PurePosixPath(key).stem)


def _find_key(store: ObjectStore, name: str) -> str:
    """Return the key of a run by its name, which may be escaped as the key has it."""
    key, escaped = run_key(name), run_key(unquote(name))
    is_escaped = key != escaped and {each.key for each in store.list(RUNS)}.isdisjoint({key})
    return escaped if is_escaped else key


def _latest_key(store: ObjectStore) -> str:
    audits = [each.key for each in store.list(LATEST)]
    if len(audits) > 1:
        names = ", ".join(map(_name_in, audits))
        raise UsageError(f"{store.address}: has runs of several audits ({names}); name the run with --run")
    return audits[0] if audits else f"{LATEST}/none.json"


def _copy_files(store: ObjectStore, target: ObjectStore, document: DatasetRun) -> None:
    with private_folder("fetch") as work:
        for file in document.files:
            path = work / "file.parquet"
            store.get_file(file.key, path)
            info = file_info(path)
            if (info.bytes, info.sha256) != (file.bytes, file.sha256):
                raise ObjectStoreError(
                    f"{store.address}/{file.key}: is not the file that was published: its digest differs"
                )
            target.put_file(file.key, path)


@dataclass(frozen=True, slots=True)
class DatasetQueryResult:
    """The rows of a query over a dataset, and the names of its runs."""

    table: ResultTable
    runs: tuple[str, ...]


@contextmanager
def query_dataset(
    directory: Path, sql: str, *, prepare: Callable[[], None] = lambda: None
) -> Iterator[DatasetQueryResult]:
    """Run one SELECT over the tables of a dataset in a directory; see ``query_run`` for what it cannot do.

    Only files that ``runs/`` names are read, so that a run that is being published is not there, or as a whole.

    Raises:
        UsageError: the directory is no dataset; or the query is not one SELECT, fails, or reads anything but the views.
        RunFolderError: a file of the dataset is missing, or cannot be read.
    """
    parse_select(sql)
    if re.match(r"[a-z0-9]{2,}:/", str(directory)):
        raise UsageError(f"{directory}: is not a directory; fetch runs with auditor fetch, and query the directory")
    with ExitStack() as opened:
        yield _open_query(opened, directory, sql, prepare)


def _open_query(opened: ExitStack, directory: Path, sql: str, prepare: Callable[[], None]) -> DatasetQueryResult:
    """Return the result of a query; read the runs again if one is published again meanwhile."""
    before: Sequence[_ReadRun] = ()
    for _ in range(MAX_READS):
        with ExitStack() as attempt:
            runs = _read_runs(directory)
            try:
                result = attempt.enter_context(_query_runs(directory, runs, sql, prepare))
            except _MissingFileError as error:
                if runs == before:  # no run is being published
                    raise RunFolderError(f"{error.path}: cannot be read: {os.strerror(errno.ENOENT)}") from error
                before = runs
            else:
                opened.push(attempt.pop_all())
                return result
    raise RunFolderError(_published_again(directory))


def _published_again(directory: Path) -> str:
    return f"{directory}: a run of it is being published again; repeat the query"


class _MissingFileError(RunFolderError):
    """A file is missing that a run named when it was read."""

    def __init__(self, directory: Path, path: Path) -> None:
        super().__init__(_published_again(directory))
        self.path = path


@dataclass(frozen=True, slots=True)
class _ReadRun:
    """A run of a dataset, and its row of ``runs`` as JSON, from one reading of ``runs/RUN.json``."""

    document: DatasetRun
    row: bytes


def _read_runs(directory: Path) -> tuple[_ReadRun, ...]:
    names = [column.name for column in TABLES["runs"].columns]
    try:
        runs = []
        for document, content in read_dataset_runs(DirectoryStore(directory)):
            row = orjson.loads(content)
            runs.append(_ReadRun(document, orjson.dumps({name: row.get(name) for name in names})))
    except ObjectStoreError as error:
        raise RunFolderError(str(error)) from error
    except orjson.JSONDecodeError as error:
        raise RunFolderError(f"{directory}: {run_key(document.run)}: is no published run: {error}") from None
    if not runs:
        raise UsageError(f"{directory}: is no dataset of published runs: it has no {RUNS}/*.json")
    return tuple(runs)


@contextmanager
def _query_runs(
    directory: Path, runs: Sequence[_ReadRun], sql: str, prepare: Callable[[], None]
) -> Iterator[DatasetQueryResult]:
    """Query runs as they were read; raise _MissingFileError if one of their files is missing."""
    statement = parse_select(sql)
    documents = [each.document for each in runs]
    with temporary_database("sql") as (database, work):
        out = work / "out"
        out.mkdir()
        files: list[Path] = []

        @contextmanager
        def find_missing() -> Iterator[None]:
            try:
                yield
            except duckdb.Error as error:
                missing = next((path for path in files if not path.exists()), None)
                if missing is None:
                    raise
                raise _MissingFileError(directory, missing) from error

        @contextmanager
        def translate(except_: type[duckdb.Error] | tuple[()] = ()) -> Iterator[None]:
            with translate_query_errors(except_), find_missing():
                yield

        with translate_read_errors(directory), find_missing():
            _define_runs(database, runs, work)
            _define_tables(database, directory, documents, files)
            versions = "SELECT DISTINCT account, product_key, module_name, module_version FROM inventory"
            define_version_functions(database, versions, statement, work)
        head = {"schema_version": SCHEMA_VERSION, "runs": [each.run for each in documents]}
        table = open_result(database, statement, files=files, out=out, prepare=prepare, head=head, reading=translate)
        yield DatasetQueryResult(table, tuple(each.run for each in documents))


def _define_tables(database: Database, directory: Path, documents: Sequence[DatasetRun], files: list[Path]) -> None:
    """Define a view of each table over the files that the runs name; add the files to ``files``."""
    for name in DATASET_TABLES:
        paths = [_file_path(directory, file.key) for each in documents for file in each.files if file.table == name]
        files += paths
        columns = {column.name: SQL_TYPES[column.type] for column in TABLES[name].columns}
        query = no_rows(columns)
        if paths:
            query = f"SELECT {', '.join(columns)} FROM {_read_parquet(name, paths, documents)}"
        database.execute(f"CREATE VIEW {name} AS {query}")


def _read_parquet(table: PublishedTable, paths: Sequence[Path], documents: Sequence[DatasetRun]) -> str:
    """Return the SQL that reads files of a dataset with the columns that are in their paths."""
    read = ", ".join(map(sql_read_path, paths))
    types = {column.name: SQL_TYPES[column.type] for column in TABLES[table].columns if column.name in PARTITIONS}
    hive = ", ".join(f"'{name}': {kind}" for name, kind in types.items())
    by_name = any(each.tables_version != TABLES_VERSION for each in documents)
    return (
        f"read_parquet([{read}], hive_partitioning=true, hive_types={{{hive}}}, union_by_name={str(by_name).lower()})"
    )


def _file_path(directory: Path, key: str) -> Path:
    """Return the path of a file; raise RunFolderError if a link leads elsewhere, _MissingFileError if it is missing."""
    path = directory.absolute() / key
    if not os.path.lexists(path):
        raise _MissingFileError(directory, path)
    with translate_os_errors(f"{path}: cannot be read", RunFolderError):
        path.stat()
        if os.path.realpath(path) != os.path.join(os.path.realpath(directory), key):  # noqa: PTH118  no link is followed
            raise RunFolderError(f"{path}: is reached by a link; replace it by the file itself")
    return path


def _define_runs(database: Database, runs: Sequence[_ReadRun], work: Path) -> None:
    """Define the table ``runs`` from the rows in ``runs/*.json``."""
    columns = {column.name: SQL_TYPES[column.type] for column in TABLES["runs"].columns}
    lines = work / "runs.jsonl"
    lines.write_bytes(b"".join(each.row + b"\n" for each in runs))
    structure = sql_literal(orjson.dumps(columns).decode())
    rows = f"SELECT unnest(json_transform(line, {structure})) FROM ({text_lines(sql_read_path(lines))})"
    database.execute(f"CREATE TABLE runs AS FROM ({rows}) ORDER BY started_at DESC, run DESC")
