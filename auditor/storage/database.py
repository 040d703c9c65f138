"""DuckDB with bounded memory, which spills beside the data and reads local files alone; the parts of every query."""

import os
import re
import shutil
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import orjson
from duckdb.sqltypes import DuckDBPyType

from auditor.errors import AuditorError, RunNotWritableError
from auditor.storage.descriptors import open_own_folder, writable_path
from auditor.storage.files import PRIVATE_FOLDER, private_folder
from auditor.storage.parquet_pages import bound_text

T = TypeVar("T")

Database = duckdb.DuckDBPyConnection

DEFAULT_MEMORY, LARGE_MEMORY = "96MB", "2GB"
"""What DuckDB may hold before it spills to disk; and where the first cannot be enough."""

SEALING_MEMORY = "64MB", "96MB", "256MB", LARGE_MEMORY
"""Memory to seal, verify and resume a run, tried in this order.

More than the first is needed where a block of very long lines alone does not fit into it.
"""

READING_MEMORY, READING_THREADS = "512MB", 2
"""Memory and threads to query one or two complete runs while nothing else waits."""

ROW_GROUP = 20_480
"""Rows of a Parquet row group. A writer buffers one group, so this bounds memory too."""

PARQUET_OPTIONS = f"FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP}"
"""Options of ``COPY`` for an intermediate file that is read in batches."""

MIN_REPEATED_ROWS, MAX_ROWS_PER_BYTE = 1_000_000, 16
"""Rows that any Parquet file may have, and rows for each byte of a larger one. Equal modules take 3.5 for a byte."""

MIN_TEXT_BYTES, MAX_TEXT_PER_BYTE = 1_000_000_000, 2_000
"""Bytes of text that any Parquet file may have, and bytes for each byte of a larger one.

Equal modules with versions of 200 characters have 900 for a byte.
"""

SLICE_ROWS, MAX_SLICES = 50_000, 16
"""Rows per slice that is searched for duplicates, and maximum number of slices: memory holds one slice."""

MAX_LINE_BYTES = 1_000_000
"""Longest line of text that can be read, in bytes."""

CSV_BLOCK_OPTIONS = f"max_line_size={MAX_LINE_BYTES}, buffer_size={4 * MAX_LINE_BYTES}, hive_partitioning=false"
"""Options of ``read_csv``. Its default blocks of 32 MB would dominate an audit's memory; folders are no columns."""

_UNUSED_DELIMITER = "\\x1f"
"""A delimiter that no line contains, so that a line is one column."""


_IDLE: list[Database] = []
"""Databases that the next blocks of ``borrow_database`` use."""

_MAX_IDLE = 2
"""Idle databases that are kept: a run is verified with one for its live files and one for its sealed ones."""


def open_database(spill_folder: Path | None = None, memory: str = DEFAULT_MEMORY, threads: int = 1) -> Database:
    """Open an empty in-memory database; use it in a ``with`` statement to close it.

    One thread keeps rows in their order and memory flat, and the platform's quota is slower than it anyway. With more
    threads, rows without an ORDER BY come in any order. Without a ``spill_folder`` nothing spills; it is created if it
    does not exist. Raises OSError if it cannot be used.
    """
    descriptor, spill = _open_spill_folder(spill_folder)
    database = _connect(_settings(spill, memory, threads))
    if descriptor is not None:
        weakref.finalize(database, os.close, descriptor)  # cursors need it too, until the last is closed
    return database


@contextmanager
def borrow_database(
    spill_folder: Path | None = None, memory: str = DEFAULT_MEMORY, threads: int = 1
) -> Iterator[Database]:
    """Open a database, as ``open_database``, until the block ends; a later block uses it again, emptied.

    A new database registers 3,000 functions, which would take a third of the time of a small audit. A database is not
    used again if the block fails, if it has spilled, or if its configuration is locked. Functions and macros would
    remain: a block that defines them locks the configuration, or opens a database of its own.
    """
    descriptor, spill = _open_spill_folder(spill_folder)
    try:
        settings = _settings(spill, memory, threads)
        database = _reuse_idle(settings) or _connect(settings)
        try:
            with database.cursor() as borrowed:  # temporary tables end with it
                borrowed.execute(_NO_PROGRESS_BAR)
                yield borrowed
            _empty(database)
        except BaseException:
            database.close()
            raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open_spill_folder(folder: Path | None) -> tuple[int | None, str]:
    """Return a descriptor and a path of a folder to spill into; without a folder, None and the path of none."""
    if folder is None:
        return None, ""
    descriptor, path = open_own_folder(folder.absolute())
    return descriptor, str(path)


def _settings(spill: str, memory: str, threads: int) -> dict[str, str | bool | int]:
    """Return the settings of a database that can be changed while it is open."""
    return {
        "memory_limit": memory,
        "threads": threads,
        "temp_directory": spill,
        "preserve_insertion_order": threads == 1,
    }


_FIXED_SETTINGS: dict[str, str | bool | int] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allocator_flush_threshold": "1MB",
    "async_threads": 0,  # of eight more threads that read files, none would exist in a forked process
    "enable_external_file_cache": False,  # a path such as /proc/self/fd/7 is another file later
}
_NO_PROGRESS_BAR = "SET enable_progress_bar = false"  # DuckDB would print it on standard output, where data goes


def _connect(settings: Mapping[str, str | bool | int]) -> Database:
    config: dict[str, str | bool | int | float | list[str]] = {**_FIXED_SETTINGS, **settings}
    database = duckdb.connect(config=config)
    database.execute(_NO_PROGRESS_BAR)
    return database


def _reuse_idle(settings: Mapping[str, str | bool | int]) -> Database | None:
    """Return an idle database with other settings; None: there is none that can have them."""
    try:
        database = _IDLE.pop()
    except IndexError:
        return None
    try:
        database.execute(";".join(f"SET {name} = {sql_literal(value)}" for name, value in settings.items()))
    except duckdb.Error:
        database.close()
        return None
    return database


def _empty(database: Database) -> None:
    """Remove all tables and views from a database and keep it for the next block, or close it."""
    try:
        for kind, name in database.execute(_CREATED).fetchall():
            database.execute(f"DROP {kind} {sql_identifier(name)}")
        # One thread: a forked process has none of the others. After spilling, DuckDB refuses another folder.
        database.execute("RESET disabled_optimizers; SET threads = 1; SET temp_directory = ''")
    except duckdb.Error:
        database.close()
        return
    if len(_IDLE) < _MAX_IDLE:
        _IDLE.append(database)
    else:
        database.close()


_CREATED = """SELECT 'VIEW', view_name FROM duckdb_views() WHERE NOT internal AND NOT temporary
UNION ALL SELECT 'TABLE', table_name FROM duckdb_tables() WHERE NOT internal AND NOT temporary"""


@contextmanager
def scratch_folder(work: Path) -> Iterator[None]:
    """Create a private folder for intermediate files, and remove it at the end; one that exists is removed first."""
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(PRIVATE_FOLDER, parents=True)
        yield
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def scratch_database(
    work: Path | None = None,
    *,
    memory: str = DEFAULT_MEMORY,
    threads: int = 1,
    failure: str | None = None,
    error: type[AuditorError] = RunNotWritableError,
) -> Iterator[Database]:
    """Borrow a database, as ``borrow_database``, with a scratch folder for spilled and intermediate files.

    With a ``failure``, errors inside the block are translated by ``translate_errors``.
    """
    with (
        nullcontext() if failure is None else translate_errors(failure, error),
        nullcontext() if work is None else scratch_folder(work),
        borrow_database(work, memory, threads) as database,
    ):
        yield database


@contextmanager
def translate_errors(failure: str, error: type[AuditorError] = RunNotWritableError) -> Iterator[None]:
    """Raise an error of class ``error`` for an OSError or DuckDB error inside the block: ``failure`` and its reason.

    ``failure`` says what failed, such as ``fleet.parquet cannot be written``.
    """
    try:
        yield
    except (OSError, duckdb.Error, UnicodeDecodeError) as problem:
        raise error(f"{failure}: {error_reason(problem)}") from problem


@contextmanager
def temporary_database(purpose: str) -> Iterator[tuple[Database, Path]]:
    """Open a database with a folder of the system's temporary files; remove the folder at the end.

    ``purpose`` is a word in the folder's name. Yields the database, and the folder for intermediate files.
    """
    with private_folder(purpose) as work, borrow_database(work / "spill", READING_MEMORY, READING_THREADS) as database:
        yield database, work


def with_enough_memory(work: Callable[[str], T], *, first: str = SEALING_MEMORY[0]) -> T:
    """Call ``work`` with a memory limit; call it again with a larger one if that was too little.

    Lines are read some thousand at a time: those of devices with hundreds of modules may be 100 MB together. ``first``
    is the limit of ``SEALING_MEMORY`` to begin with, where smaller ones would only cost time.
    """
    *smaller, largest = SEALING_MEMORY[SEALING_MEMORY.index(first) :]
    for memory in smaller:
        with suppress(duckdb.OutOfMemoryException):
            return work(memory)
    return work(largest)


def with_growing_memory(database: Database, work: Callable[[], T]) -> T:
    """Return what ``work`` returns; repeat it with a higher memory limit of the database where that is reached.

    It is for a database with ``DEFAULT_MEMORY``, whose limit stays as high as was needed.
    """
    for memory in SEALING_MEMORY[SEALING_MEMORY.index(DEFAULT_MEMORY) + 1 :]:
        with suppress(duckdb.OutOfMemoryException):
            return work()
        database.execute(f"SET memory_limit = '{memory}'")
    return work()


def is_interruption(error: BaseException) -> bool:
    """Return whether an error is what DuckDB raises for a signal during a query, in place of a KeyboardInterrupt.

    It is no ``duckdb.Error``; ``duckdb.InterruptException`` is that of a query which another thread interrupts.
    """
    return isinstance(error, RuntimeError) and str(error) == "Query interrupted"


def error_reason(error: OSError | duckdb.Error | UnicodeDecodeError) -> str:
    """Return what is wrong with a file or a query, in one line."""
    if isinstance(error, UnicodeDecodeError):  # raised for DuckDB's own message, which quotes the file's bytes
        return "a file is not UTF-8 text"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = str(error).partition("\n")[0]
    if "Invalid unicode" in line:
        return "a file is not UTF-8 text"
    inner = re.search(r'"exception_message":("(?:[^"\\]|\\.)*")', line)  # DuckDB reports a thread's error as JSON
    return str(orjson.loads(inner[1])) if inner else line


def scalar(database: Database, query: str, parameters: object = None) -> int:
    """Return the single integer that a query gives."""
    (value,) = database.execute(query, parameters).fetchone() or (0,)
    return int(value)


def result_rows(result: Database) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a result, some of them in memory at a time."""
    while batch := result.fetchmany(1_000):
        yield from batch


def sql_literal(value: object) -> str:
    """Return text as an SQL string literal; for paths there are ``sql_read_path`` and ``sql_write_path``."""
    return "'" + str(value).replace("'", "''") + "'"


def sql_literals(values: Iterable[object]) -> str:
    """Return texts as SQL string literals, separated by commas."""
    return ", ".join(map(sql_literal, values))


def sql_identifier(name: str) -> str:
    """Return the name of a column, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def sql_read_path(path: Path) -> str:
    """Return a path to read as an SQL literal; DuckDB would take ``*``, ``?`` and ``[`` for a pattern."""
    return re.sub(r"([\[\]*?])", r"[\1]", sql_write_path(path))


def sql_write_path(path: Path) -> str:
    """Return a path to write as an SQL literal.

    It is absolute, for DuckDB would expand ``~`` at the start of a relative one, and take ``file:`` and ``s3://`` for
    the scheme of an address.
    """
    return sql_literal(path.absolute())


def device_key_sql(prefix: str = "", *, by_names: bool = False) -> str:
    """Return the SQL of one text per device as the fleet names it: by ``iot_id``, else by its two names.

    Lengths keep apart what a separator alone would not. ``prefix`` is in front of each column's name, such as ``f.``.
    ``by_names``: as if it had no ``iot_id``.
    """
    account, product_key = f"{prefix}account", f"{prefix}product_key"
    names = f"'n' || length({product_key}) || '/' || {product_key} || '/' || {prefix}device_name"
    name = names if by_names else f"coalesce('i' || {prefix}iot_id, {names})"
    return f"length({account}) || '/' || {account} || {name}"


def parquet(*paths: Path, options: str = "") -> str:
    """Return the SQL that reads Parquet files of equal columns: a folder named ``account=eu`` adds no column."""
    files = ", ".join(sql_read_path(path) for path in paths)
    return f"read_parquet([{files}], hive_partitioning=false{options and ', '}{options})"


_accepted: deque[tuple[int, ...]] = deque(maxlen=64)
"""Files without too many repeated rows, as they were when this process examined them."""


def describe_repeated_rows(database: Database, path: Path) -> str | None:
    """Return why a Parquet file is not read if it has far more rows or text than bytes; no audit writes such a file.

    A page of equal values has any number of rows in some bytes, and they share one text of any length. Reading them
    could take hours. A damaged file raises duckdb.Error, OSError or UnicodeDecodeError.
    """
    version = _version_of(path)
    if version is not None and version in _accepted:  # several queries of a command read the same files
        return None
    reason = _describe_repeated_rows(database, path)
    if reason is None and version is not None:
        _accepted.append(version)
    return reason


def _version_of(path: Path) -> tuple[int, ...] | None:
    """Return numbers that change whenever a file is replaced or written; None without such a file."""
    with suppress(OSError):
        status = path.stat()
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return None


def _describe_repeated_rows(database: Database, path: Path) -> str | None:
    first_page = "least(nullif(dictionary_page_offset, 0), data_page_offset)"
    chunks = database.execute(
        "SELECT row_group_id, row_group_num_rows, greatest(row_group_num_rows, num_values), type = 'BYTE_ARRAY', "
        f"coalesce({first_page}, 0) FROM parquet_metadata({sql_read_path(path)})"
    ).fetchall()
    rows, size = sum({group: rows for group, rows, *_ in chunks}.values()), path.stat().st_size
    if rows > MIN_REPEATED_ROWS and rows > size * MAX_ROWS_PER_BYTE:
        return f"has {rows:,} rows in {size:,} bytes; no audit writes such a file"
    allowed = max(MIN_TEXT_BYTES, size * MAX_TEXT_PER_BYTE)
    with path.open("rb") as file:
        bound = bound_text(file, [(offset, values) for *_, values, is_text, offset in chunks if is_text])
    if (bound is None or bound > allowed) and _has_more_text(path, allowed):
        return f"has more than {allowed:,} bytes of text in {size:,} bytes; no audit writes such a file"
    return None


def _has_more_text(path: Path, allowed: int) -> bool:
    """Return whether the texts of a Parquet file have more than ``allowed`` bytes, each counted where it occurs."""
    source = parquet(path)
    with open_database(memory=READING_MEMORY) as database:
        relation = database.sql(f"FROM {source}")
        columns = zip(relation.columns, relation.types, strict=True)
        sizes = [size for name, kind in columns if (size := _text_bytes(sql_identifier(name), kind)) is not None]
        # A running total ends the query where it is too large.
        total = f"SELECT sum({' + '.join(sizes) or 0}) OVER (ROWS UNBOUNDED PRECEDING) AS total FROM {source}"
        with suppress(duckdb.OutOfMemoryException):  # some thousand lists or maps alone have more than the memory
            return scalar(database, f"SELECT count(*) FROM (FROM ({total}) WHERE total > {allowed} LIMIT 1)") > 0
    return True


def _text_bytes(value: str, kind: DuckDBPyType, depth: int = 0) -> str | None:
    """Return the SQL of the bytes of the texts in a value of any type; None if the type has no text."""
    if kind.id in {"varchar", "blob"}:
        return f"coalesce({'strlen' if kind.id == 'varchar' else 'octet_length'}({value}), 0)"
    children = kind.children if kind.id in {"list", "map", "struct"} else []
    sizes = []
    for name, child in children:
        if not isinstance(child, DuckDBPyType):
            continue
        if kind.id == "struct":
            sizes.append(_text_bytes(f"struct_extract({value}, {sql_literal(name)})", child, depth))
            continue
        part = value if kind.id == "list" else f"map_{name}s({value})"
        item = _text_bytes(f"e{depth}", child, depth + 1)
        each = f"list_sum(list_transform({part}, lambda e{depth}: {item}))"
        sizes.append(None if item is None else f"coalesce({each}, 0)")
    return " + ".join(size for size in sizes if size is not None) or None


def write_rows(
    database: Database,
    query: str,
    path: Path,
    options: str = PARQUET_OPTIONS,
    parameters: object = None,
    *,
    by_name: bool = False,
) -> None:
    """Write the rows of a query to a file, which need not exist; ``options`` are those of ``COPY``.

    A link that another user put in its place is not followed. An error leaves a part of the file. With ``by_name`` the
    database opens the path itself: one that may write to a single folder, which no other user can enter.

    Raises:
        OSError: the file cannot be opened, or is a link, a pipe, a device, or has a second name.
        duckdb.Error: the query fails, or the file cannot be written.
    """
    with nullcontext(path) if by_name else writable_path(path) as target:
        # Without a temporary file, which DuckDB would create under another name beside this one.
        to = f"{sql_literal(target.absolute())} ({options}, USE_TMP_FILE false)"
        try:
            database.execute(f"COPY ({query}) TO {to}", parameters)
        except duckdb.IOException as error:
            raise duckdb.IOException(str(error).replace(str(target), str(path))) from error


def write_parquet(database: Database, query: str, path: Path) -> None:
    """Write the rows of a query to a Parquet file, as ``write_rows``, a row group in memory at a time."""
    write_rows(database, query, path, f"{PARQUET_OPTIONS}, COMPRESSION zstd")


def text_lines(source: str, options: str = "", extra_columns: str = "") -> str:
    """Return the SQL that reads a text file's lines, unparsed, as the column ``line``.

    Lines go through the CSV reader as one column, in blocks of a few MB: the JSON reader takes 32 MB or more.

    ``source`` is the file as ``sql_read_path`` gives it, and ``extra_columns`` are those that further ``options`` of
    ``read_csv`` add, such as ``filename``.
    """
    columns = f"line, {extra_columns}" if extra_columns else "line"
    # A folder named `line=3` must not give every line that value.
    form = f"delim='{_UNUSED_DELIMITER}', quote='', escape='', header=false, auto_detect=false"
    return (
        f"SELECT {columns} FROM read_csv({source}, {form}, columns={{'line': 'VARCHAR'}}, "
        f"{CSV_BLOCK_OPTIONS}{options and ', '}{options})"
    )


def load_rows(database: Database, table: str, columns: str, path: Path, lines: Iterable[str]) -> None:
    """Create or replace a table of rows that are computed outside the database.

    ``columns`` are the columns and their types, as a struct of SQL. ``lines`` are the rows, ASCII words separated by a
    space; they go through the file ``path``.
    """
    with path.open("w", encoding="ascii") as file:
        file.writelines(lines)
    database.execute(
        f"CREATE OR REPLACE TABLE {table} AS FROM read_csv({sql_read_path(path)}, delim=' ', header=false, "
        f"auto_detect=false, columns={columns}, {CSV_BLOCK_OPTIONS})"
    )


def find_duplicate_keys(database: Database, table: str, keyed: str, slices: int) -> None:
    """Create a table of the hashes that occur more than once, in its column ``key``; one slice is in memory at a time.

    ``keyed`` is the SQL of the hash and its rows, such as ``hash(name) FROM devices WHERE true``.
    """
    key = keyed.partition(" FROM ")[0]
    database.execute(f"CREATE OR REPLACE TABLE {table} (key UBIGINT)")
    for number in range(slices):
        sliced = f"SELECT {keyed} AND {key} % {slices} = {number} GROUP BY 1 HAVING count(*) > 1"
        database.execute(f"INSERT INTO {table} {sliced}")


def slices_for(rows: int) -> int:
    """Return the number of slices in which rows are searched."""
    return min(MAX_SLICES, rows // SLICE_ROWS + 1)
