"""The order of versions in SQL queries: ``version_below``, ``version_above`` and ``version_rank``.

| function | value |
|---|---|
| ``version_below(one, other)`` | whether ``one`` is older than ``other``; NULL if they cannot be compared |
| ``version_above(one, other)`` | whether ``one`` is newer than ``other``; NULL if they cannot be compared |
| ``version_rank(product_key, module_name, module_version)`` | 1 for the oldest version of the module, and so on; \
NULL if the module has a version that cannot be compared with it |

Versions are compared among those of the modules that report one of them, as everywhere. Each pair is compared once,
however many rows have it.
"""

from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from auditor.query.version_dates import Order
from auditor.query.versions import VersionOrder, compare_versions
from auditor.storage.database import Database, load_rows, result_rows

FUNCTIONS = ("version_below", "version_above", "version_rank")

_MAX_RANKED = 2_000
"""Versions of a module up to which they are ranked; each is compared with each other one."""


def define_version_functions(database: Database, versions: str, sql: str, work: Path) -> None:
    """Define the functions that a query names, over all versions in use.

    Args:
        database: the database of the query.
        versions: a query of account, product_key, module_name and module_version.
        sql: the query that may use the functions; without their names in it, nothing is read.
        work: a folder for an intermediate file.
    """
    if not any(name in sql.lower() for name in FUNCTIONS):
        return
    database.execute(
        "CREATE TABLE ranked_modules AS SELECT row_number() OVER () AS number, * FROM (SELECT DISTINCT account, "
        f"product_key, lower(module_name) AS module_key FROM ({versions}))"
    )
    database.execute(
        "CREATE TABLE ranked_versions AS SELECT row_number() OVER () AS version, number, module_version "
        "FROM (SELECT DISTINCT account, product_key, lower(module_name) AS module_key, module_version "
        f"FROM ({versions}) WHERE module_version IS NOT NULL) v JOIN ranked_modules m ON v.account = m.account "
        "AND v.product_key IS NOT DISTINCT FROM m.product_key AND v.module_key = m.module_key"
    )
    modules: dict[int, dict[str, int]] = defaultdict(dict)
    rows = database.cursor().execute("SELECT number, module_version, version FROM ranked_versions")
    for number, text, version in result_rows(rows):
        modules[number][text] = version
    comparison = _Comparison({number: list(texts) for number, texts in modules.items()})
    database.create_function("auditor_version_order", comparison.compare, ["VARCHAR", "VARCHAR"], "VARCHAR")
    for name, (true, false) in {"version_below": ("older", "newer"), "version_above": ("newer", "older")}.items():
        # The subquery is evaluated once for each pair of its rows.
        compared = "(SELECT auditor_version_order(any_value(a), any_value(b)) FROM (SELECT one AS a, other AS b))"
        database.execute(
            f"CREATE MACRO {name}(one, other) AS (SELECT CASE ordering WHEN '{true}' THEN true "
            f"WHEN '{false}' THEN false WHEN 'same' THEN false END FROM (SELECT {compared} AS ordering))"
        )
    if "version_rank" in sql.lower():
        _define_ranks(database, modules, work)


class _Comparison:
    """Compares two versions among those of every module that has one of them."""

    def __init__(self, modules: dict[int, list[str]]) -> None:
        self._modules = modules
        self._modules_of: dict[str, list[int]] = defaultdict(list)
        for number, texts in modules.items():
            for text in texts:
                self._modules_of[text].append(number)
        self._order = lru_cache(maxsize=1_024)(self._order_of)
        self.compare = lru_cache(maxsize=65_536)(self._compare)

    def _order_of(self, number: int) -> VersionOrder:
        return VersionOrder(self._modules[number])

    def _compare(self, one: str, other: str) -> Order:
        numbers = self._modules_of.get(one) or self._modules_of.get(other)
        if not numbers:
            return compare_versions(one, other)
        orders = {self._order(number).including(one).including(other).compare(one, other) for number in numbers}
        return orders.pop() if len(orders) == 1 else "unordered"


def _define_ranks(database: Database, modules: dict[int, dict[str, int]], work: Path) -> None:
    """Define ``version_rank``: versions that are the same have one rank."""

    def lines() -> Iterator[str]:
        for texts in modules.values():
            order = VersionOrder(texts)
            for text, version in texts.items() if len(texts) <= _MAX_RANKED else ():
                compared = [order.compare(text, other) for other in texts]
                if "unordered" not in compared:
                    older = {short for short, each in zip(texts, compared, strict=True) if each == "newer"}
                    yield f"{version} {1 + _distinct(order, older)}\n"

    load_rows(database, "version_ranks", "{'version': 'BIGINT', 'version_rank': 'BIGINT'}", work / "ranks", lines())
    database.execute(
        "CREATE MACRO version_rank(product, module, text) AS (SELECT any_value(version_rank) FROM version_ranks "
        "JOIN ranked_versions USING (version) JOIN ranked_modules r USING (number) "
        "WHERE r.product_key = product AND r.module_key = lower(module) AND module_version = text)"
    )


def _distinct(order: VersionOrder, texts: set[str]) -> int:
    """Return how many of the versions are not the same as one before them."""
    kept: list[str] = []
    for text in sorted(texts):
        if all(order.compare(text, each) != "same" for each in kept):
            kept.append(text)
    return len(kept)
