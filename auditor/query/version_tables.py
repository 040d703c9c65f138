"""The order of versions as SQL tables. Versions are compared outside the database, each product's module for itself."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from hashlib import blake2b
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

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


def define_target_marks(database: Database, versions: str, path: Path) -> None:
    """Define ``target_marks``: a ``version`` (a number), whether it is ``on_target``, and whether it ``is_target``.

    A group's target is its version that is released, or else the version in use that is newer than, or the same as, all
    others in use. On the target is a version that is newer, too: of released firmware the one that was created later,
    of others by their order. A group without a target has no rows.

    Args:
        database: the database of the query and the table.
        versions: a query of group_id, version (numbers), module_version, in_use, is_released, and created_at (NULL: it
            is no firmware).
        path: an intermediate file.
    """

    def lines() -> Iterator[str]:
        for _, rows in _groups(database, f"SELECT {', '.join(_TARGET_COLUMNS)} FROM ({versions})"):
            members = [_Versioned(*row) for row in rows]
            order = VersionOrder(each.text for each in members)
            target = next((each for each in members if each.is_released), None) or _newest_in_use(order, members)
            if target is not None:
                for each in members:
                    yield f"{each.version} {_is_on_target(order, each, target)} {each is target}\n"

    columns = "{'version': 'BIGINT', 'on_target': 'BOOLEAN', 'is_target': 'BOOLEAN'}"
    load_rows(database, "target_marks", columns, path, lines())


_TARGET_COLUMNS = ("group_id", "version", "module_version", "in_use", "is_released", "created_at")


class _Versioned(NamedTuple):
    """A version of a group; see ``define_target_marks``."""

    version: int
    text: str
    in_use: bool
    is_released: bool
    created_at: datetime | None


def _newest_in_use(order: VersionOrder, versions: Iterable[_Versioned]) -> _Versioned | None:
    used = [each for each in versions if each.in_use]
    newest = next(iter(used), None)
    for each in used:
        # The newest of all, if there is one, is newer than any candidate before it.
        if newest is not None and order.compare(each.text, newest.text) == "newer":
            newest = each
    if newest is None or any(order.compare(each.text, newest.text) in {"newer", "unordered"} for each in used):
        return None
    return newest


def _is_on_target(order: VersionOrder, version: _Versioned, target: _Versioned) -> bool:
    if version is target:
        return True
    if version.created_at is not None and target.created_at is not None:
        return version.created_at > target.created_at
    return order.compare(version.text, target.text) in {"same", "newer"}


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
