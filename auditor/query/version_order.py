"""The order of versions as SQL tables. Each distinct pair is compared once, outside the database."""

from collections.abc import Iterator
from pathlib import Path

from auditor.query.versions import compare_versions
from auditor.storage.database import Database, load_rows, result_rows


def define_version_order(database: Database, pairs: str, path: Path) -> None:
    """Define the table ``version_order``: ``one``, ``other``, and how ``one`` compares to ``other`` (``ordering``).

    ``pairs`` is a query of distinct pairs, with the columns one, other (numbers), version, against (the versions). The
    intermediate file ``path`` holds numbers only, as versions may contain any text.
    """
    result = database.cursor().execute(f"SELECT one, other, version, against FROM ({pairs})")
    lines = (f"{one} {other} {compare_versions(*texts)}\n" for one, other, *texts in result_rows(result))
    columns = "{'one': 'BIGINT', 'other': 'BIGINT', 'ordering': 'VARCHAR'}"
    load_rows(database, "version_order", columns, path, lines)


def define_newest_versions(database: Database, versions: str, work: Path) -> None:
    """Define the tables ``newest_candidates`` and ``version_order`` to the candidates. See ``define_version_order``.

    A group's candidate (``group_id``, ``newest``) is the only one of its versions that can be newer than, or the same
    as, all others. The group has a newest version if ``version_order`` has no ``newer`` or ``unordered`` in it.
    ``versions`` is a query with the columns group_id, version (numbers) and module_version.
    """
    result = database.cursor().execute(
        f"SELECT group_id, version, module_version FROM ({versions}) ORDER BY group_id, version"
    )

    def lines() -> Iterator[str]:
        group: int | None = None
        candidate, newest = 0, ""
        for group_id, version, text in result_rows(result):
            if group != group_id:
                if group is not None:
                    yield f"{group} {candidate}\n"
                group, candidate, newest = group_id, version, text
            # The newest of all, if there is one, is newer than any candidate before it.
            elif compare_versions(text, newest) == "newer":
                candidate, newest = version, text
        if group is not None:
            yield f"{group} {candidate}\n"

    columns = "{'group_id': 'BIGINT', 'newest': 'BIGINT'}"
    load_rows(database, "newest_candidates", columns, work / "newest_candidates", lines())
    pairs = (
        f"SELECT DISTINCT v.version AS one, newest AS other, v.module_version AS version, n.module_version AS against "
        f"FROM ({versions}) v JOIN newest_candidates USING (group_id) "
        f"JOIN (SELECT DISTINCT version, module_version FROM ({versions})) n ON n.version = newest"
    )
    define_version_order(database, pairs, work / "version_order")
