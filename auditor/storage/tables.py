"""Result rows for other programs: CSV that is safe in a spreadsheet, JSON, JSON Lines, Parquet or Excel."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import duckdb
import orjson

from auditor.errors import RunFolderError, RunNotWritableError
from auditor.storage.database import Database, error_reason, result_rows, sql_identifier, write_rows
from auditor.storage.xlsx import write_xlsx

TableFormat = Literal["csv", "json", "jsonl", "parquet", "xlsx"]

ErrorTranslation = Callable[[type[duckdb.Error] | tuple[()]], AbstractContextManager[None]]
"""A context that translates errors of what a query reads, except errors of the given kind."""

_SIGN = r"[^\PC\t\r\n]*[=+@\x{FF1D}\x{FF0B}\x{FF20}\x{FF0D}-]"
"""Start of a formula. Full-width letters count, as do invisible characters that a spreadsheet may drop, such as NUL."""

_FORMULA = rf"^({_SIGN}|[\t\r\n])"
"""Start of a cell that a spreadsheet may take for a formula (OWASP, CSV injection)."""

_LATER_FORMULA = rf"([;|\t\r\n])({_SIGN})"
"""A formula after a character that separates cells where the spreadsheet expects no comma, as in many countries."""

_PLAIN = {"BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT",
          "FLOAT", "DOUBLE", "VARCHAR"}  # fmt: skip
"""Types that CSV, JSON and Parquet have in common; values of other types are written as text."""


class ResultTable:
    """Lazily evaluated rows of a query over a run. Rows are streamed, never held in memory.

    Args:
        database, query: one SELECT, and the database with its views.
        reading: translates errors of the query; see ``translate_read_errors``.
        staging: the only folder that the database may write to; None: any.
        name: key of the rows in JSON.
        head: what precedes the rows in JSON, and has its own sheet in an Excel file.

    Attributes:
        columns: names of the columns.
    """

    def __init__(
        self,
        database: Database,
        query: str,
        *,
        reading: ErrorTranslation,
        staging: Path | None = None,
        name: str = "rows",
        head: Mapping[str, object] | None = None,
    ) -> None:
        self._database, self._reading, self._staging = database, reading, staging
        self._name, self._head = name, head or {}
        with reading(()):
            described = database.execute(f"DESCRIBE {query}").fetchall()
        self.columns: Sequence[str] = [str(column) for column, *_ in described]
        cells = ", ".join(_cell(column, str(kind)) for column, kind, *_ in described)
        self._query = f"SELECT {cells} FROM ({query})"

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yield the rows as tuples in the order of the columns; raise RunFolderError if the run cannot be read."""
        with self._reading(()):
            yield from result_rows(self._database.cursor().execute(self._query))

    def write(self, path: Path, form: TableFormat) -> None:
        """Write the rows to a file.

        CSV is safe to open in a spreadsheet: text that would be a formula gets a ``'`` in front. JSON is one object
        that starts with ``head``, which is a sheet in an Excel file; JSON Lines and Parquet are the rows alone.

        Raises:
            RunNotWritableError: the file cannot be written.
            UsageError: XlsxWriter, an optional dependency, is not installed.
            RunFolderError: the run cannot be read.
        """
        database = self._database.cursor()
        try:
            with self._reading(duckdb.IOException):
                match form:
                    case "csv" | "parquet":
                        staged = self._staging is not None
                        target = path if self._staging is None else self._staging / form
                        if form == "csv":
                            write_csv(database, self._query, target, by_name=staged)
                        else:
                            write_rows(database, self._query, target, "FORMAT parquet", by_name=staged)
                        if target != path:
                            shutil.copyfile(target, path)
                    case "json" | "jsonl":
                        rows = dict_rows(database, self._query)
                        lines = (orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
                        with path.open("wb") as file:
                            file.writelines(json_parts(self._head, self._name, rows) if form == "json" else lines)
                    case "xlsx":
                        excel_rows = result_rows(database.execute(self._query))
                        write_xlsx(path, name=self._name, columns=self.columns, rows=excel_rows, head=self._head)
        except (OSError, duckdb.IOException) as error:
            raise RunNotWritableError(f"{path}: cannot be written: {error_reason(error)}") from error


@contextmanager
def translate_read_errors(source: object, except_: type[duckdb.Error] | tuple[()] = ()) -> Iterator[None]:
    """Raise RunFolderError for errors of a run's files; those of class ``except_`` are of another file and pass."""
    try:
        yield
    except except_:
        raise
    except (duckdb.Error, UnicodeDecodeError) as error:
        raise RunFolderError(f"{source}: cannot be read: {error_reason(error)}") from error


def dict_rows(database: Database, query: str) -> Iterator[dict[str, object]]:
    """Yield the rows of a query as dictionaries by column name."""
    result = database.execute(query)
    names = [column[0] for column in result.description or ()]
    for row in result_rows(result):
        yield dict(zip(names, row, strict=True))


def json_parts(head: Mapping[str, object], name: str, table_rows: Iterable[Mapping[str, object]]) -> Iterator[bytes]:
    """Yield a JSON object in pieces: ``head``, then the rows under ``name``, a line each."""
    yield orjson.dumps(head)[:-1] + b"," + orjson.dumps(name) + b":["
    separator = b"\n"
    for row in table_rows:
        yield separator + orjson.dumps(row)
        separator = b",\n"
    yield b"\n]}\n"


def write_csv(database: Database, query: str, path: Path, *, by_name: bool = False) -> None:
    """Write the rows of a query as CSV with a header, safe to open in a spreadsheet.

    Names and versions come from devices. Text and column names that a spreadsheet would take for a formula get a ``'``
    in front of it, also behind a character within the text that some spreadsheets take for the end of a cell.
    ``by_name``: see ``write_rows``.
    """
    described = database.execute(f"DESCRIBE {query}").fetchall()
    names = [str(column) for column, *_ in described]
    shown = database.execute(f"SELECT {_inert('name')} FROM (SELECT unnest(?) AS name)", [names]).fetchall()
    cells = []
    for (column, kind, *_), (heading,) in zip(described, shown, strict=True):
        name = sql_identifier(column)
        cells.append(f"{_inert(name) if kind == 'VARCHAR' else name} AS {sql_identifier(heading)}")
    write_rows(database, f"SELECT {', '.join(cells)} FROM ({query})", path, "FORMAT csv, HEADER", by_name=by_name)


def _inert(text: str) -> str:
    """Return the SQL of a text that no spreadsheet takes for a formula."""
    replaced = rf"regexp_replace({text}, '{_LATER_FORMULA}', '\1''\2', 'g')"
    inner = f"CASE WHEN regexp_matches({text}, '{_LATER_FORMULA}') THEN {replaced} ELSE {text} END"
    return f"CASE WHEN regexp_matches({text}, '{_FORMULA}') THEN '''' || {inner} ELSE {inner} END"


def _cell(column: str, kind: str) -> str:
    name = sql_identifier(column)
    if kind in _PLAIN:
        return name
    if kind == "HUGEINT":  # the type of sums; a value over 64 bits is an error
        return f"{name}::BIGINT AS {name}"
    if kind.startswith("DECIMAL"):
        return f"{name}::DOUBLE AS {name}"
    return f"{name}::VARCHAR AS {name}"
