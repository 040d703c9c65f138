"""The one way to open DuckDB: bounded memory, spilling beside the data, reading local files and nothing else."""

import re
from pathlib import Path

import duckdb

MEMORY = "64MB"
"""What DuckDB may hold before it spills to disk."""

ROW_GROUP = 20_480
"""Rows of a Parquet row group: a writer buffers one, so this is memory too."""


LINE_SIZE = 1_000_000
"""Bytes of a line of text that can be read."""

BLOCKS = f"max_line_size={LINE_SIZE}, buffer_size={4 * LINE_SIZE}"
"""Options of ``read_csv``: its own 32 MB a block would be most of an audit's memory."""

_NEVER = "\\x1f"
"""A delimiter that no line has: a line then is one column."""


def open_database(spill: Path | None = None) -> duckdb.DuckDBPyConnection:
    """An empty in-memory database.

    Args:
        spill: a folder for what does not fit into memory; None: nothing spills.

    One thread keeps rows in their order and memory flat, and the platform's quota is slower than it anyway.
    """
    return duckdb.connect(
        config={
            "memory_limit": MEMORY,
            "threads": 1,
            "temp_directory": "" if spill is None else str(spill),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allocator_flush_threshold": "1MB",
        }
    )


def quoted(path: Path) -> str:
    """A path as an SQL literal to write to."""
    return "'" + str(path).replace("'", "''") + "'"


def quoted_to_read(path: Path) -> str:
    """A path as an SQL literal to read from, where DuckDB would take ``*``, ``?`` and ``[`` for a pattern."""
    return "'" + re.sub(r"([\[\]*?])", r"[\1]", str(path)).replace("'", "''") + "'"


def text_lines(source: str, options: str = "") -> str:
    """The SQL that reads a text file's lines, unparsed, as the column ``line``.

    Lines go through the CSV reader as one column, in blocks of a few MB: the JSON reader takes 32 MB at the least.

    Args:
        source: the file, as ``quoted_to_read`` gives it.
        options: more of ``read_csv``, such as what becomes of lines that cannot be read.
    """
    return (
        f"SELECT line FROM read_csv({source}, delim='{_NEVER}', quote='', escape='', header=false, auto_detect=false, "
        f"columns={{'line': 'VARCHAR'}}, {BLOCKS}{options and ', '}{options})"
    )
