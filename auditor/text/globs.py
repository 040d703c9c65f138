"""Patterns as people write them: ``*`` is any text and ``?`` one character; all else stands for itself."""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

EVERYTHING = "*"


def regex_of(patterns: Iterable[str]) -> str:
    """A regular expression, as DuckDB reads them, for texts that one of the patterns matches as a whole.

    ``[`` stands for itself too: names of devices and versions may hold it. Matching takes time linear in the text.
    """
    return f"(?s)(?:{'|'.join(map(_regex, patterns))})"


def is_plain(pattern: str) -> bool:
    """Whether a pattern stands for itself alone."""
    return not {"*", "?"} & set(pattern)


def _regex(pattern: str) -> str:
    return "".join({"*": ".*", "?": "."}.get(c) or _literal(c) for c in re.sub(r"\*+", "*", pattern))


def _literal(character: str) -> str:
    return character if character.isascii() and character.isalnum() else f"\\x{{{ord(character):x}}}"


def _fits(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name fits one of some patterns, in its letter case; as DuckDB says of names of devices."""
    return any(_compiled(pattern).fullmatch(name) is not None for pattern in patterns)


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    """A pattern as Python reads it, of the same meaning as ``auditor.patterns.regex_of``."""
    return re.compile("".join({"*": ".*", "?": "."}.get(each) or re.escape(each) for each in pattern), re.DOTALL)
