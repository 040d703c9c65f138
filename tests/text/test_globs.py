"""Glob patterns: Python and DuckDB match as the standard library does, in time that grows with the length."""

import time
from fnmatch import fnmatchcase

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.text.globs import glob_regex, matches_any

PATTERNS = st.text("ab*?[]!\n\\", max_size=8)
NAMES = st.text("ab[]!\n\\*", max_size=10)


@given(NAMES, PATTERNS)
def test_a_pattern_matches_as_in_the_standard_library(name: str, pattern: str) -> None:
    assert matches_any(name, (pattern,)) == fnmatchcase(name, pattern.replace("[", "[[]"))


@pytest.mark.parametrize("pattern", ["a*" * 40 + "b", "*a?" * 30 + "*b", "*" * 500 + "b", "*?" * 200 + "b"])
def test_many_stars_take_no_more_time_than_few(pattern: str) -> None:
    name = "a" * 20_000
    started = time.process_time()
    assert not matches_any(name, (pattern,))
    assert matches_any(f"{name}b", (pattern,))
    with duckdb.connect() as database:
        query = "SELECT regexp_full_match($1, $3), regexp_full_match($2, $3)"
        found = database.execute(query, [name, f"{name}b", glob_regex((pattern,))]).fetchone()
    assert found == (False, True)
    assert time.process_time() - started < 3
