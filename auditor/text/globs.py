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
    return any(_matches(name, pattern) for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    """Find the texts between the ``*`` one after another; a regular expression would try all of their combinations."""
    first, *others = _parts(pattern)
    if not others:
        return first.fullmatch(name) is not None
    match = first.match(name)
    for part in others[:-1]:
        match = match and part.search(name, match.end())
    end = len(name) - len(pattern.rpartition("*")[2])
    return match is not None and end >= match.end() and others[-1].fullmatch(name, end) is not None


def _duckdb_regex(pattern: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(c) or _escape(c) for c in re.sub(r"\*+", "*", pattern))


def _escape(character: str) -> str:
    return character if character.isascii() and character.isalnum() else f"\\x{{{ord(character):x}}}"


@lru_cache(maxsize=1024)
def _parts(pattern: str) -> tuple[re.Pattern[str], ...]:
    """Compile the parts of a pattern between its ``*``."""
    texts = re.sub(r"\*+", "*", pattern).split("*")
    return tuple(re.compile("".join("." if c == "?" else re.escape(c) for c in text), re.DOTALL) for text in texts)
