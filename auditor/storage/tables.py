"""Result rows for other programs: CSV that is safe in a spreadsheet, JSON, JSON Lines, Parquet or Excel."""

import copy
import html
import shutil
import unicodedata
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import orjson

from auditor.errors import AuditorError, RunFolderError, RunNotWritableError, UsageError
from auditor.storage.database import Database, error_reason, result_rows, scalar, sql_identifier, write_rows
from auditor.storage.xlsx import write_xlsx
from auditor.text.formats import TableFormat

if TYPE_CHECKING:
    import pyarrow as pa

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

MAX_NOTEBOOK_ROWS = 20
"""Rows that a notebook shows of a table."""


class ResultTable:
    """Lazily evaluated rows of a query over a run, as long as the run is open.

    Iteration yields named tuples, some of them in memory at a time. ``to_dicts`` and ``to_arrow`` return all rows.

    Args:
        database: has the views that the query reads.
        query: one SELECT, which returns the rows.
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
        self._name, self._head, self._source = name, head or {}, query
        with reading(()):
            described = database.execute(f"DESCRIBE {query}").fetchall()
        self.columns: Sequence[str] = [str(column) for column, *_ in described]
        self._cells = ", ".join(_cell(column, str(kind)) for column, kind, *_ in described)
        self._query = f"SELECT {self._cells} FROM ({query})"

    def __repr__(self) -> str:
        return f"<ResultTable {self._name!r}, columns: {', '.join(self.columns)}>"

    def _repr_html_(self) -> str:
        """Return the first rows for a notebook; only the columns if the run is closed or cannot be read."""
        rows: list[tuple[Any, ...]] = []
        with suppress(AuditorError):
            rows = list(islice(self, MAX_NOTEBOOK_ROWS + 1))
        shown = "".join(_html_row("td", row) for row in rows[:MAX_NOTEBOOK_ROWS])
        more = "<p>more rows follow</p>" if len(rows) > MAX_NOTEBOOK_ROWS else ""
        return f"<table>{_html_row('th', self.columns)}{shown}</table>{more}"

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Yield the rows as named tuples in the order of the columns.

        A column whose name is no Python name is ``_2``, for example, after its place from 0.

        Raises:
            UsageError: the run is closed.
            RunFolderError: the run cannot be read.
        """
        database = self._cursor()
        # Names that Python takes for one, such as those with a ligature, are one argument.
        names = [unicodedata.normalize("NFKC", name) for name in self.columns]
        row = namedtuple("Row", names, rename=True)  # type: ignore[misc]  # noqa: PYI024  only known here
        with self._reading(()):
            yield from map(row._make, result_rows(database.execute(self._query)))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return all rows as dictionaries by column; raise UsageError or RunFolderError as iteration does."""
        database = self._cursor()
        with self._reading(()):
            return list(dict_rows(database, self._query))

    def to_arrow(self) -> "pa.Table":
        """Return all rows as an Arrow table, which pandas and Polars take. Values have the types of a Parquet file.

        Raises:
            UsageError: the run is closed, or pyarrow is not installed.
            RunFolderError: the run cannot be read.
        """
        database = self._cursor()
        if find_spec("pyarrow") is None:
            advice = "install it with: pip install pyarrow; or use to_dicts, or write a Parquet file"
            raise UsageError(f"to_arrow needs pyarrow, which is not installed; {advice}")
        with self._reading(()):
            return database.sql(self._query).to_arrow_table()

    def _cursor(self) -> Database:
        try:
            return self._database.cursor()
        except duckdb.ConnectionException:
            raise UsageError(f"{self!r} is closed: read it inside of the with statement that opened it") from None

    def count_rows(self) -> int:
        """Return the number of rows; raise UsageError or RunFolderError as iteration does."""
        database = self._cursor()
        with self._reading(()):
            return scalar(database, f"SELECT count(*) FROM ({self._source})")

    def arranged(
        self, order: Callable[[Database, Sequence[str]], str] | None = None, limit: int | None = None
    ) -> "ResultTable":
        """Return the table in another order, and with at most ``limit`` rows.

        ``order`` returns the SQL of the order, for the database and the names of the columns.
        """
        query = self._source
        if order is not None:
            columns = ", ".join(map(sql_identifier, self.columns))
            query = f"SELECT * FROM ({query}) ORDER BY {order(self._database, self.columns)}, {columns}"
        if limit is not None:
            query = f"SELECT * FROM ({query}) LIMIT {limit}"
        return ResultTable(
            self._database, query, reading=self._reading, staging=self._staging, name=self._name, head=self._head
        )

    def restricted(self, query: str) -> "ResultTable":
        """Return the table of some of the rows, which ``query`` returns in the same columns."""
        table = copy.copy(self)
        table._source, table._query = query, f"SELECT {self._cells} FROM ({query})"  # noqa: SLF001  of its own class
        return table

    def write(self, path: Path, form: TableFormat) -> None:
        """Write the rows to a file.

        CSV is safe to open in a spreadsheet: text that would be a formula gets a ``'`` in front. JSON is one object
        that starts with ``head``, which is a sheet in an Excel file; JSON Lines and Parquet are the rows alone.

        Raises:
            RunNotWritableError: the file cannot be written.
            UsageError: XlsxWriter, an optional dependency, is not installed.
            RunFolderError: the run cannot be read.
        """
        database = self._cursor()
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


def _html_row(cell: str, values: Iterable[object]) -> str:
    texts = ("" if value is None else html.escape(str(value)) for value in values)
    return f"<tr>{''.join(f'<{cell}>{text}</{cell}>' for text in texts)}</tr>"


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
    later = f"CASE WHEN regexp_matches({text}, '{_LATER_FORMULA}') THEN {replaced} ELSE {text} END"
    return f"CASE WHEN regexp_matches({text}, '{_FORMULA}') THEN '''' ELSE '' END || {later}"


def _cell(column: str, kind: str) -> str:
    name = sql_identifier(column)
    if kind in _PLAIN:
        return name
    if kind == "HUGEINT":  # the type of sums; a value over 64 bits is an error
        return f"{name}::BIGINT AS {name}"
    if kind.startswith("DECIMAL"):
        return f"{name}::DOUBLE AS {name}"
    return f"{name}::VARCHAR AS {name}"
