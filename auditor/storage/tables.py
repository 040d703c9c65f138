"""A query's rows for the next program: as CSV that is safe in a spreadsheet, JSON, JSON Lines, Parquet or Excel."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import duckdb
import orjson

from auditor.errors import RunFolderError, RunNotWritableError
from auditor.storage.database import quoted, reason_of
from auditor.storage.xlsx import write_workbook

TableFormat = Literal["csv", "json", "jsonl", "parquet", "xlsx"]


Reading = Callable[[type[duckdb.Error] | tuple[()]], AbstractContextManager[None]]
"""A context that tells what is wrong with what a query reads, errors of the kind that it is given excepted."""


FORMULA = r"^(\pC*[=+@\x{FF1D}\x{FF0B}\x{FF20}\x{FF0D}-]|[\t\r\n])"
"""How a cell begins that a spreadsheet may take for a formula (OWASP, CSV injection): in wide letters too, and after
characters that nobody sees and a spreadsheet may drop, such as NUL and a byte order mark."""


_PLAIN = {"BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
          "FLOAT", "DOUBLE", "VARCHAR"}  # fmt: skip
"""Types that CSV, JSON and Parquet have in common; of any other, a value's text is written."""


class Table:
    """The rows of a query over a run's files. Nothing of them is held in memory.

    Attributes:
        columns: the names of the columns.
    """

    def __init__(
        self,
        database: duckdb.DuckDBPyConnection,
        query: str,
        *,
        reading: Reading,
        staging: Path | None = None,
        name: str = "rows",
        head: Mapping[str, object] | None = None,
    ) -> None:
        """The rows of ``query``.

        Args:
            database: where its views are.
            query: one SELECT.
            reading: says what is wrong when the query fails; see ``reading``.
            staging: the one folder that the database may write to; None: any.
            name: what the rows are called in JSON.
            head: what stands before them there, and in an Excel file on a sheet of its own.

        Raises:
            RunFolderError: the run cannot be read.
        """
        self._database = database
        self._reading = reading
        self._staging = staging
        self._name = name
        self._head = head or {}
        with reading(()):
            described = [
                (str(column), str(kind)) for column, kind, *_ in database.execute(f"DESCRIBE {query}").fetchall()
            ]
        self.columns: Sequence[str] = [column for column, _ in described]
        cells = ", ".join(_cell(column, kind) for column, kind in described)
        self._query = f"SELECT {cells} FROM ({query})"

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """The rows, each a tuple in the order of the columns.

        Raises:
            RunFolderError: the run cannot be read.
        """
        with self._reading(()):
            yield from _batches(self._database.cursor().execute(self._query))

    def write(self, path: Path, form: TableFormat) -> None:
        """Writes the rows to a file.

        CSV is safe to open in a spreadsheet: text that would be a formula gets a ``'`` in front. JSON is one object
        that also says of which run the rows are and how whole that is, as a sheet of an Excel file does; JSON Lines and
        Parquet are the rows alone.

        Raises:
            RunNotWritableError: the file cannot be written.
            UsageError: Excel files need an extra that is not installed.
            RunFolderError: the run cannot be read.
        """
        database = self._database.cursor()
        try:
            with self._reading(duckdb.IOException):
                match form:
                    case "csv" | "parquet":
                        target = path if self._staging is None else self._staging / form
                        if form == "csv":
                            write_csv(database, self._query, target)
                        else:
                            database.execute(f"COPY ({self._query}) TO {quoted(target)} (FORMAT parquet)")
                        if target != path:
                            shutil.copyfile(target, path)
                    case "json":
                        _write_parts(path, json_parts(self._head, self._name, rows(database, self._query)))
                    case "jsonl":
                        lines = (
                            orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows(database, self._query)
                        )
                        _write_parts(path, lines)
                    case "xlsx":
                        found = _batches(database.execute(self._query))
                        write_workbook(path, name=self._name, columns=self.columns, rows=found, head=self._head)
        except (OSError, duckdb.IOException) as error:
            raise RunNotWritableError(f"{path}: cannot be written: {reason_of(error)}") from error


@contextmanager
def reading(source: object, but: type[duckdb.Error] | tuple[()] = ()) -> Iterator[None]:
    """Tells what is wrong with a run's files; errors of the kind ``but`` are about another file.

    Raises:
        RunFolderError: the run cannot be read.
    """
    try:
        yield
    except but:
        raise
    except (duckdb.Error, UnicodeDecodeError) as error:
        raise RunFolderError(f"{source}: cannot be read: {reason_of(error)}") from error


def rows(database: duckdb.DuckDBPyConnection, query: str) -> Iterator[dict[str, object]]:
    """What a query gives, a row at a time, by the names of its columns."""
    result = database.execute(query)
    names = [column[0] for column in result.description or ()]
    while batch := result.fetchmany(1_000):
        for row in batch:
            yield dict(zip(names, row, strict=True))


def _batches(result: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while batch := result.fetchmany(1_000):
        yield from batch


def json_parts(head: Mapping[str, object], name: str, found: Iterable[Mapping[str, object]]) -> Iterator[bytes]:
    """A JSON object in parts: ``head``, then under ``name`` the rows, a line each."""
    yield orjson.dumps(head)[:-1] + b"," + orjson.dumps(name) + b":["
    between = b"\n"
    for row in found:
        yield between + orjson.dumps(row)
        between = b",\n"
    yield b"\n]}\n"


def write_csv(database: duckdb.DuckDBPyConnection, query: str, path: Path) -> None:
    """What a query gives as CSV with a header, safe to open in a spreadsheet.

    Names and versions come from devices. Text that a spreadsheet would take for a formula gets a ``'`` in front, and
    so does the name of a column.
    """
    described = database.execute(f"DESCRIBE {query}").fetchall()
    names = [str(column) for column, *_ in described]
    marked = database.execute(f"SELECT regexp_matches(unnest(?), '{FORMULA}')", [names]).fetchall()
    cells = []
    for (column, kind, *_), (formula,) in zip(described, marked, strict=True):
        name, shown = identifier(column), identifier(f"'{column}" if formula else column)
        safe = f"CASE WHEN regexp_matches({name}, '{FORMULA}') THEN '''' || {name} ELSE {name} END"
        cells.append(f"{safe if kind == 'VARCHAR' else name} AS {shown}")
    database.execute(f"COPY (SELECT {', '.join(cells)} FROM ({query})) TO {quoted(path)} (FORMAT csv, HEADER)")


def _write_parts(path: Path, parts: Iterable[bytes]) -> None:
    """Writes a file part by part."""
    with path.open("wb") as file:
        file.writelines(parts)


def identifier(name: str) -> str:
    """The name of a column, quoted for SQL."""
    return '"' + name.replace('"', '""') + '"'


def _cell(column: str, kind: str) -> str:
    name = identifier(column)
    if kind in _PLAIN:
        return name
    if kind == "HUGEINT":  # as sums are; one that is beyond 64 bits is an error, which says so
        return f"{name}::BIGINT AS {name}"
    if kind.startswith("DECIMAL"):
        return f"{name}::DOUBLE AS {name}"
    return f"{name}::VARCHAR AS {name}"
