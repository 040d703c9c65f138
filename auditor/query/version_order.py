"""The order of versions as SQL tables. Versions are compared outside the database, each product's module for itself."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from auditor.query.versions import VersionOrder, equivalence_key
from auditor.storage.database import Database, load_rows, result_rows

_COLUMNS = "{'group_id': 'BIGINT', 'one': 'BIGINT', 'other': 'BIGINT', 'ordering': 'VARCHAR'}"


def define_version_order(database: Database, versions: str, pairs: str, path: Path) -> None:
    """Define the table ``version_order``: ``group_id``, ``one``, ``other``, and how ``one`` compares (``ordering``).

    Args:
        database: the database of the queries and the table.
        versions: a query of ``group_id`` (the number of a product's module) and ``module_version``, with all versions
            that a group has in use. They decide how dates are read.
        pairs: a query of distinct pairs, with the columns group_id, one, other (numbers), version, against (texts).
        path: an intermediate file. It holds numbers only, as versions may contain any text.
    """

    def lines() -> Iterator[str]:
        contexts = _groups(database, f"SELECT group_id, module_version FROM ({versions})")
        compared = _groups(database, f"SELECT group_id, against, one, other, version FROM ({pairs})")
        for group, rows, context in _with_contexts(compared, contexts):
            order = VersionOrder(text for (text,) in context)
            for against, by_bound in groupby(sorted(rows), key=itemgetter(0)):
                extended = order.including(against)
                for _, one, other, version in by_bound:
                    yield f"{group} {one} {other} {extended.compare(version, against)}\n"

    load_rows(database, "version_order", _COLUMNS, path, lines())


def define_newest_versions(database: Database, versions: str, work: Path, context: str | None = None) -> None:
    """Define the table ``version_order`` of each group's versions to its candidate for the newest one, ``other``.

    A group's candidate is the only one of its versions that can be newer than, or the same as, all others. The group
    has a newest version if its ``ordering`` is never ``newer`` or ``unordered``. ``versions`` is a query with the
    columns group_id, version (numbers) and module_version; ``context`` is ``versions`` of ``define_version_order``, if
    it has more versions than these.
    """

    def lines() -> Iterator[str]:
        compared = _groups(database, f"SELECT group_id, version, module_version FROM ({versions})")
        if context is None:
            groups: Iterable[tuple[int, list[Any], list[Any]]] = ((group, rows, []) for group, rows in compared)
        else:
            groups = _with_contexts(compared, _groups(database, f"SELECT group_id, module_version FROM ({context})"))
        for group, rows, others in groups:
            order = VersionOrder([*(text for _, text in rows), *(text for (text,) in others)])
            candidate, newest = rows[0]
            for version, text in rows:
                # The newest of all, if there is one, is newer than any candidate before it.
                if order.compare(text, newest) == "newer":
                    candidate, newest = version, text
            for version, text in rows:
                yield f"{group} {version} {candidate} {order.compare(text, newest)}\n"

    load_rows(database, "version_order", _COLUMNS, work / "version_order", lines())


def define_equivalence_keys(database: Database, versions: str, path: Path) -> None:
    """Define ``equivalence_keys``: a key for each version, equal for versions that are the same.

    ``versions`` is a query with the columns version (a number) and module_version, and ``path`` an intermediate file.
    """
    result = database.cursor().execute(f"SELECT version, module_version FROM ({versions})")
    lines = (f"{version} {short_key(text)}\n" for version, text in result_rows(result))
    load_rows(database, "equivalence_keys", "{'version': 'INTEGER', 'key': 'VARCHAR'}", path, lines)


def short_key(version: str) -> str:
    """Return the key of a version in ``equivalence_keys``."""
    return blake2b(equivalence_key(version).encode(), digest_size=16).hexdigest()


def _groups(database: Database, query: str) -> Iterator[tuple[int, list[tuple[Any, ...]]]]:
    """Yield the rows of a query by its first column, in ascending order, without that column."""
    rows = result_rows(database.cursor().execute(f"FROM ({query}) ORDER BY ALL"))
    for group, members in groupby(rows, key=itemgetter(0)):
        yield group, [row[1:] for row in members]


def _with_contexts(
    groups: Iterator[tuple[int, list[tuple[Any, ...]]]], contexts: Iterator[tuple[int, list[tuple[Any, ...]]]]
) -> Iterator[tuple[int, list[tuple[Any, ...]], list[tuple[Any, ...]]]]:
    """Yield each group with its rows of ``contexts``, which has all of the groups."""
    for group, rows in groups:
        yield group, rows, next(context for number, context in contexts if number == group)
