"""The one way to open DuckDB: bounded memory, spilling beside the data, reading local files and nothing else."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import duckdb
import orjson

MEMORY, AMPLE_MEMORY = "96MB", "2GB"
"""What DuckDB may hold before it spills to disk; and where that cannot be enough."""


SEALING_MEMORY = "64MB", "96MB", "256MB", AMPLE_MEMORY
"""What a run is sealed, proven and resumed with: the first that is enough. More than the first is needed where a block
of very long lines alone does not fit into it.
"""


READING_MEMORY, READING_THREADS = "512MB", 2
"""Memory and threads for a question over one or two whole runs, which nothing else waits for."""


T = TypeVar("T")


ROW_GROUP = 20_480
"""Rows of a Parquet row group: a writer buffers one, so this is memory too."""


AS_PARQUET = f"(FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP})"
"""How a file is written that is read again by batches."""


LINE_SIZE = 1_000_000
"""Bytes of a line of text that can be read."""


BLOCKS = f"max_line_size={LINE_SIZE}, buffer_size={4 * LINE_SIZE}, hive_partitioning=false"
"""Options of ``read_csv``: its own blocks of 32 MB are most of an audit's memory; folders are no columns."""


_NEVER = "\\x1f"
"""A delimiter that no line has: a line then is one column."""


def write_parquet(database: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """Writes what a query gives to a Parquet file, a few rows in memory at a time."""
    options = f"FORMAT parquet, ROW_GROUP_SIZE {ROW_GROUP}, COMPRESSION zstd"
    database.execute(f"COPY ({query}) TO {quoted(path)} ({options})")


def with_enough_memory(work: Callable[[str], T]) -> T:
    """What ``work`` gives, called with the memory that it may take; again with more if that was too little.

    Lines are read some thousand at a time: those of devices with hundreds of modules may be 100 MB together.

    Raises:
        duckdb.OutOfMemoryException: the most was too little as well.
    """
    *less, most = SEALING_MEMORY
    for memory in less:
        try:
            return work(memory)
        except duckdb.OutOfMemoryException:
            continue
    return work(most)


def open_database(spill: Path | None = None, memory: str = MEMORY, threads: int = 1) -> duckdb.DuckDBPyConnection:
    """An empty in-memory database.

    Args:
        spill: a folder for what does not fit into memory; None: nothing spills.
        memory: what it may hold before it spills.
        threads: how many compute; with more than one, rows without an ORDER BY may come in any order.

    One thread keeps rows in their order and memory flat, and the platform's quota is slower than it anyway.
    """
    database = duckdb.connect(
        config={
            "memory_limit": memory,
            "threads": threads,
            "temp_directory": "" if spill is None else str(spill),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "preserve_insertion_order": threads == 1,
            "allocator_flush_threshold": "1MB",
        }
    )
    database.execute("SET enable_progress_bar = false")  # which it draws on standard output, where data goes
    return database


def reason_of(error: OSError | duckdb.Error | UnicodeDecodeError) -> str:
    """What went wrong with a file or a query, in one line."""
    if isinstance(error, UnicodeDecodeError):  # of DuckDB's own sentence, which quotes the file's bytes
        return "a file is not UTF-8 text"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = str(error).partition("\n")[0]
    inner = re.search(r'"exception_message":("(?:[^"\\]|\\.)*")', line)  # of a thread of DuckDB's, told as JSON
    return str(orjson.loads(inner[1])) if inner else line


def quoted(path: Path) -> str:
    """A path as an SQL literal to write to."""
    return "'" + str(path).replace("'", "''") + "'"


def quoted_to_read(path: Path) -> str:
    """A path as an SQL literal to read from, where DuckDB would take ``*``, ``?`` and ``[`` for a pattern."""
    return "'" + re.sub(r"([\[\]*?])", r"[\1]", str(path)).replace("'", "''") + "'"


def parquet(*paths: Path, options: str = "") -> str:
    """The SQL that reads Parquet files as they are: that a folder is called ``account=eu`` makes no column.

    Args:
        paths: the files, which have the same columns.
        options: more of ``read_parquet``.
    """
    files = ", ".join(quoted_to_read(path) for path in paths)
    return f"read_parquet([{files}], hive_partitioning=false{options and ', '}{options})"


def text_lines(source: str, options: str = "", also: str = "") -> str:
    """The SQL that reads a text file's lines, unparsed, as the column ``line``.

    Lines go through the CSV reader as one column, in blocks of a few MB: the JSON reader takes 32 MB at the least.

    Args:
        source: the file, as ``quoted_to_read`` gives it.
        options: more of ``read_csv``, such as what becomes of lines that cannot be read.
        also: more columns that those give, such as ``filename``.
    """
    columns = f"line, {also}" if also else "line"
    # A folder named `line=3` must not give every line that value.
    form = f"delim='{_NEVER}', quote='', escape='', header=false, auto_detect=false"
    return (
        f"SELECT {columns} FROM read_csv({source}, {form}, columns={{'line': 'VARCHAR'}}, "
        f"{BLOCKS}{options and ', '}{options})"
    )


def define_read(
    database: duckdb.DuckDBPyConnection, table: str, columns: str, path: Path, lines: Iterable[str]
) -> None:
    """Defines a table of what is computed outside of the database.

    Args:
        database: where to define it; a table of that name is replaced.
        table: its name.
        columns: its columns and their types, as a struct of SQL.
        path: a file to write meanwhile.
        lines: its rows: words of ASCII with a space between.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("w", encoding="ascii") as file:
        file.writelines(lines)
    database.execute(
        f"CREATE OR REPLACE TABLE {table} AS FROM read_csv({quoted_to_read(path)}, delim=' ', header=false, "
        f"auto_detect=false, columns={columns}, {BLOCKS})"
    )
