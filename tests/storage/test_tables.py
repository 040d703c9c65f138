"""Result tables in Python: named rows, dictionaries, Arrow, and what a console and a notebook show of them."""

import importlib.util
from collections.abc import Iterator
from functools import partial

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import UsageError
from auditor.storage.database import sql_identifier, sql_literal
from auditor.storage.tables import MAX_NOTEBOOK_ROWS, ResultTable, translate_read_errors

ROWS = "SELECT i AS number, 'v' || i AS version, NULL::VARCHAR AS \"two words\" FROM range(3) t(i)"


@pytest.fixture
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as database:
        yield database


def table(database: duckdb.DuckDBPyConnection, query: str) -> ResultTable:
    return ResultTable(database, query, reading=partial(translate_read_errors, "test"), name="numbers")


def test_rows_are_tuples_with_names(database: duckdb.DuckDBPyConnection) -> None:
    rows = list(table(database, ROWS))
    assert rows == [(0, "v0", None), (1, "v1", None), (2, "v2", None)]
    assert [(row.number, row.version, row._2) for row in rows] == rows  # type: ignore[attr-defined]
    assert repr(rows[1]) == "Row(number=1, version='v1', _2=None)"


@pytest.mark.slow
@settings(deadline=None, max_examples=50)  # as slow as a shared machine
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_column_names_give_rows_and_dictionaries(names: list[str]) -> None:
    unique = list({name.lower(): name for name in names}.values())
    cells = ", ".join(f"{at} AS {sql_identifier(name)}" for at, name in enumerate(unique))
    with duckdb.connect() as database:
        found = table(database, f"SELECT {cells}")
        assert list(found) == [tuple(range(len(found.columns)))]
        assert [list(row) for row in found.to_dicts()] == [list(found.columns)]


@pytest.mark.parametrize(
    "names", [("ﬁ", "fi"), ("class", "None"), ("count", "index"), ("_x", "__class__"), ("a b", "ª", "a")]
)
def test_names_that_python_has_a_use_for_are_no_error(
    database: duckdb.DuckDBPyConnection, names: tuple[str, ...]
) -> None:
    cells = ", ".join(f"{sql_literal(name)} AS {sql_identifier(name)}" for name in names)
    assert list(table(database, f"SELECT {cells}")) == [names]


def test_all_rows_as_dictionaries(database: duckdb.DuckDBPyConnection) -> None:
    found = table(database, ROWS)
    expected = [{"number": number, "version": f"v{number}", "two words": None} for number in range(3)]
    assert found.to_dicts() == expected
    assert found.to_dicts() == expected  # a table is read as often as one likes


def test_without_pyarrow_to_arrow_says_what_to_do(
    database: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auditor.storage.tables.find_spec", lambda _name: None)
    with pytest.raises(
        UsageError, match=r"needs pyarrow, which is not installed; install it with: pip install pyarrow"
    ):
        table(database, ROWS).to_arrow()


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_all_rows_as_an_arrow_table(database: duckdb.DuckDBPyConnection) -> None:
    found = table(database, ROWS)
    arrow = found.to_arrow()
    assert arrow.to_pylist() == found.to_dicts()
    assert [str(kind) for kind in arrow.schema.types] == ["int64", "string", "string"]


def test_a_console_shows_the_columns_and_reads_nothing(database: duckdb.DuckDBPyConnection) -> None:
    assert repr(table(database, ROWS)) == "<ResultTable 'numbers', columns: number, version, two words>"
    assert "boom" in repr(table(database, "SELECT error('never evaluated') AS boom"))


def test_a_notebook_shows_the_first_rows_inert(database: duckdb.DuckDBPyConnection) -> None:
    shown = table(database, "SELECT '<script>' AS \"<b>\", i FROM range(100) t(i)")._repr_html_()
    assert shown.startswith("<table><tr><th>&lt;b&gt;</th><th>i</th></tr><tr><td>&lt;script&gt;</td><td>0</td></tr>")
    assert shown.count("<tr>") == MAX_NOTEBOOK_ROWS + 1
    assert shown.endswith("<p>more rows follow</p>")
    assert "more rows" not in table(database, ROWS)._repr_html_()


def test_a_closed_table_says_where_to_read_it() -> None:
    with duckdb.connect() as database:
        found = table(database, ROWS)
    for read in (lambda: list(found), found.to_dicts, found.to_arrow):
        with pytest.raises(UsageError, match="is closed: read it inside of the with statement that opened it"):
            read()
    assert found._repr_html_() == "<table><tr><th>number</th><th>version</th><th>two words</th></tr></table>"
