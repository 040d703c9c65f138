"""Glob patterns: ``*`` matches any text and ``?`` one character; every other character matches itself."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

MATCH_ALL = "*"


def glob_regex(patterns: Iterable[str]) -> str:
    """Return a regular expression, in DuckDB's syntax, that matches a text if one of the patterns does.

    ``[`` matches itself too, for names of devices and versions may contain it. Matching takes linear time.
    """
    return f"(?s)(?:{'|'.join(map(_duckdb_regex, patterns))})"


def is_literal(pattern: str) -> bool:
    """Return whether a pattern matches only itself."""
    return not {"*", "?"} & set(pattern)


def matches_any(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a name matches one of the patterns. Case counts, as in DuckDB's matching of device names."""
    return any(_python_regex(pattern).fullmatch(name) is not None for pattern in patterns)


def _duckdb_regex(pattern: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(c) or _escape(c) for c in re.sub(r"\*+", "*", pattern))


def _escape(character: str) -> str:
    return character if character.isascii() and character.isalnum() else f"\\x{{{ord(character):x}}}"


@lru_cache(maxsize=1024)
def _python_regex(pattern: str) -> re.Pattern[str]:
    """Compile a pattern for Python, with the same meaning as in ``glob_regex``."""
    return re.compile("".join({"*": ".*", "?": "."}.get(each) or re.escape(each) for each in pattern), re.DOTALL)
