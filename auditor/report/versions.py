"""Versions in use, for the report: the newest of each module, and all of them by run and by age.

No rule orders a version with more than ``MAX_LENGTH`` characters, so not more of a text is read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cmp_to_key, partial
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path

import duckdb

from auditor.analysis.history import RunSummary, read_history, summarize_warnings
from auditor.analysis.rollouts import Rollouts, define_targets, rollouts_of
from auditor.models import RunWarning
from auditor.query.snapshot import RunSnapshot
from auditor.query.version_tables import define_newest_versions
from auditor.query.versions import MAX_LENGTH, VersionOrder
from auditor.report.coverage import run_labels
from auditor.report.model import AGES, PastRun, VersionSection, VersionShare
from auditor.runs.folder import StoredRun
from auditor.runs.locking import current_state
from auditor.runs.manifest import Manifest
from auditor.storage.database import load_rows, result_rows, scalar, sql_literal, sql_read_path

MAX_ROWS = 3_000
"""Rows of the table."""

MAX_RUNS = 30
"""Runs of a report, the reported one included."""

MAX_ORDERED = 30_000
"""Versions that are ordered, those of the modules with the most devices: each takes 40 microseconds."""

NEWER, ON_TARGET, OLDER, UNORDERED = -1, 0, 3, 4
"""Ages, as places in ``AGES``; 1 and 2 are one and two versions behind the target, and -1 is newer than it."""


def read_versions(database: duckdb.DuckDBPyConnection, work: Path) -> VersionSection:
    """Define the tables ``versions`` and ``modules_in_use``, and read the report's part of them.

    ``versions`` is the inventory with ``line`` (the row's number), ``module`` (the number of its account, product and
    module name), and ``version_order`` (newest, older or unordered). ``modules_in_use`` has a row for each module.

    Args:
        database: with the view ``inventory`` and the table ``product_names``.
        work: a folder for intermediate files.

    Raises:
        OSError: the folder cannot be written.
    """
    database.execute(
        "CREATE TABLE numbered AS SELECT row_number() OVER (ORDER BY account, product_key, module_name, devices DESC, "
        "module_version) AS line, dense_rank() OVER (ORDER BY account, product_key, module_name) AS module, * "
        "FROM (FROM inventory UNION ALL BY NAME SELECT NULL::DOUBLE AS low, NULL::DOUBLE AS high WHERE false)"
    )
    _define_versions(database, work)
    database.execute(
        "CREATE TABLE modules_in_use AS SELECT module, any_value(account) AS account, any_value(product_key) AS "
        "product_key, any_value(lower(module_name)) AS module_key, sum(devices)::BIGINT AS devices, "
        "count(*) AS versions, bool_or(version_order = 'newest') AS ordered FROM versions GROUP BY module"
    )
    rows = database.execute(
        f"SELECT {_texts('v.account', 'v.product_key', 'module_name', 'module_version')}, devices, share, low, high, "
        f"version_order, {_texts('product_name')} "
        f"FROM (FROM versions ORDER BY devices DESC, line LIMIT {MAX_ROWS}) v LEFT JOIN product_names n "
        "ON v.account = n.account AND v.product_key = n.product_key ORDER BY devices DESC, line"
    ).fetchall()
    return VersionSection(
        module_count=scalar(database, "SELECT count(*) FROM modules_in_use"),
        unordered_modules=scalar(database, "SELECT count(*) FROM modules_in_use WHERE NOT ordered"),
        rows=tuple(VersionShare(*row) for row in rows),
        row_count=scalar(database, "SELECT count(*) FROM versions"),
    )


def _define_versions(database: duckdb.DuckDBPyConnection, work: Path) -> None:
    """Define ``versions``: the rows of ``numbered``, and how each compares to its module's newest version."""
    # No rule orders longer versions; the line keeps them apart.
    text = (
        f"CASE WHEN length(module_version) <= {MAX_LENGTH} THEN module_version "
        f"ELSE left(module_version, {MAX_LENGTH}) || '…' || line END"
    )
    define_newest_versions(
        database, f"SELECT module AS group_id, line AS version, {text} AS module_version FROM numbered", work
    )
    database.execute("""
      CREATE TABLE versions AS
      WITH compared AS (
        SELECT n.*, o.ordering FROM numbered n JOIN version_order o ON o.one = n.line
      )
      SELECT * EXCLUDE (ordering), CASE
        WHEN NOT bool_and(ordering IN ('same', 'older')) OVER (PARTITION BY module) THEN 'unordered'
        WHEN ordering = 'same' THEN 'newest' ELSE 'older' END AS version_order
      FROM compared""")
    database.execute("DROP TABLE numbered")


def _texts(*columns: str) -> str:
    return ", ".join(f"left({column}, {MAX_LENGTH + 1})" for column in columns)


@dataclass(frozen=True, slots=True)
class EarlierRuns:
    """The runs of a report, the oldest first and the reported one last, and warnings about them.

    Attributes:
        rollouts: those of the reported run; None: it is not sealed, is of the first devices, or has no answers.
    """

    runs: tuple[PastRun, ...]
    rollouts: Rollouts | None = None
    warnings: tuple[RunWarning, ...] = ()


def read_earlier_runs(
    database: duckdb.DuckDBPyConnection, run: RunSnapshot, directory: Path, work: Path
) -> EarlierRuns:
    """Read the earlier runs of the same name and the rollouts of the reported run.

    Defines ``earlier_rows``, the inventories of these runs, each with the ``number`` of its run; and, if any run has
    rollouts, ``marked_versions``: the versions of modules, with the columns of ``define_target_marks``.

    Args:
        database: the database for the tables, with ``versions``.
        run: the reported run, in whichever directory it is.
        directory: the directory with the earlier runs.
        work: a folder for intermediate files.

    Raises:
        RunFolderError: the directory cannot be read.
    """
    rows, marks, versions = (work / f"{name}.parquet" for name in ("history", "marks", "versions"))
    with read_history(directory, limit=MAX_RUNS, until=StoredRun(run.manifest, run.folder)) as history:
        history.table.write(rows, "parquet")
        # Without its own rollouts, those of another run would be returned.
        manifest = history.stored[-1].manifest
        counts = history.runs[-1].sealed and manifest.fleet.limit is None and manifest.devices.answered > 0
        rollouts = rollouts_of(history) if counts else None
        if not counts:
            database.execute(f"COPY versions TO {sql_literal(versions)} (FORMAT parquet)")
        marked = counts or define_targets(history, versions)
        if marked:
            history.cursor().execute(
                "COPY (SELECT account, product_key, module_name, module_version, on_target, is_target, is_released, "
                "CASE WHEN is_released THEN created_at END AS released_at "
                f"FROM rollout_versions JOIN target_marks USING (version)) TO {sql_literal(marks)} (FORMAT parquet)"
            )
        earlier, stored = history.runs[:-1], history.stored[:-1]
    runs = tuple(map(_past_run, earlier, stored))
    database.execute("CREATE TABLE earlier_runs AS SELECT unnest($1) AS number, unnest($2) AS started_at",
                     [list(range(len(runs))), [each.started_at for each in runs]])  # fmt: skip
    database.execute(
        "CREATE TABLE earlier_rows AS SELECT number, account, product_key, module_name, module_version, devices "
        f"FROM read_parquet({sql_read_path(rows)}) JOIN earlier_runs USING (started_at)"
    )
    if marked:
        database.execute(f"CREATE TABLE marked_versions AS FROM read_parquet({sql_read_path(marks)})")
    return EarlierRuns((*runs, reported_run(run)), rollouts, tuple(summarize_warnings(earlier, "earlier runs")))


def _past_run(run: RunSummary, stored: StoredRun) -> PastRun:
    state = "killed" if run.killed else run.state
    labels = run_labels(state, run.devices, tampered=run.tampered, unsampled=run.unsampled)
    label = _label(labels, stored.manifest)
    return PastRun(run.folder.name, run.started_at, label, run.devices, run.unsampled, _changes(stored))


def reported_run(run: RunSnapshot) -> PastRun:
    """Return the reported run as the last one of the runs, with the counts of the report."""
    manifest, unsampled = run.manifest, run.sources.unsampled
    labels = run_labels(current_state(run.folder, manifest), run.counts, tampered=run.tampered, unsampled=unsampled)
    return PastRun(run.folder.name, manifest.started_at, _label(labels, manifest), run.counts, unsampled,
                   _changes(StoredRun(manifest, run.folder)))  # fmt: skip


def _label(labels: Sequence[str], manifest: Manifest) -> str | None:
    return ", ".join((*labels, *(("part of the fleet",) if manifest.fleet.cut else ()))) or None


def define_earlier_rows(database: duckdb.DuckDBPyConnection) -> None:
    """Define ``earlier_rows`` without rows, for a report without earlier runs."""
    database.execute(
        "CREATE TABLE IF NOT EXISTS earlier_rows (number BIGINT, account VARCHAR, product_key VARCHAR, "
        "module_name VARCHAR, module_version VARCHAR, devices BIGINT)"
    )


def define_version_ages(database: duckdb.DuckDBPyConnection, last: int, work: Path) -> None:
    """Define ``version_rows``: the devices of each version by run, with the version's age and its place in the order.

    Its columns are run, module (as in ``versions``), module_version, devices, age (a place in ``AGES``, or -1) and
    place (the newest first). A module's target is that of its rollout; if no run has rollouts, its newest version.
    Defines ``module_targets``, too: the target of each module that has one, and its release; and ``aged_versions``:
    the rows of ``versions`` with their age, the target of their module, and its release.

    Args:
        database: with the tables ``versions``, ``modules_in_use``, ``earlier_rows``, and ``marked_versions`` if any run
            has rollouts.
        last: number of the reported run, which comes after those of ``earlier_rows``.
        work: a folder for intermediate files.
    """
    database.execute(
        f"""
      CREATE TABLE counted_versions AS
      SELECT run, module, {cut_version("text")} AS module_version, sum(devices)::BIGINT AS devices
      FROM (
        SELECT number AS run, module, module_version AS text, e.devices FROM earlier_rows e JOIN modules_in_use m
          ON e.account = m.account AND e.product_key IS NOT DISTINCT FROM m.product_key
          AND lower(e.module_name) = m.module_key
        UNION ALL SELECT $1, module, module_version, devices FROM versions
      ) GROUP BY ALL""",
        [last],
    )
    _define_marks(database)
    database.execute(
        "CREATE TABLE module_targets AS SELECT module, min(module_version) AS target, "
        "bool_or(is_released) AS is_released, max(released_at) AS released_at "
        "FROM module_marks WHERE is_target GROUP BY module"
    )
    database.execute(
        "CREATE TABLE numbered_versions AS SELECT row_number() OVER (ORDER BY m.devices DESC, module, module_version) "
        "AS number, module, module_version FROM (SELECT DISTINCT module, module_version FROM counted_versions) "
        "JOIN modules_in_use m USING (module)"
    )
    columns = "{'number': 'BIGINT', 'age': 'BIGINT', 'place': 'BIGINT'}"
    rows = result_rows(database.cursor().execute(
        "SELECT number, module, module_version, on_target, target FROM numbered_versions "
        "LEFT JOIN module_marks USING (module, module_version) LEFT JOIN module_targets USING (module) ORDER BY number"
    ))  # fmt: skip
    load_rows(database, "version_ages", columns, work / "version_ages", _age_lines(rows))
    database.execute(
        "CREATE TABLE version_rows AS SELECT run, module, module_version, devices, age, place FROM counted_versions "
        "JOIN numbered_versions USING (module, module_version) JOIN version_ages USING (number)"
    )
    database.execute("DROP TABLE counted_versions; DROP TABLE numbered_versions; DROP TABLE version_ages")
    database.execute(
        "CREATE VIEW aged_versions AS SELECT v.*, target, is_released, released_at, age FROM versions v "
        f"JOIN version_rows r ON r.run = {last:d} AND r.module = v.module "
        f"AND r.module_version = {cut_version('v.module_version')} LEFT JOIN module_targets t ON t.module = v.module"
    )


def _define_marks(database: duckdb.DuckDBPyConnection) -> None:
    """Define ``module_marks``: module, module_version, whether it is ``on_target`` and ``is_target``, its release."""
    if database.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'marked_versions'").fetchone() is None:
        # The order of the versions says which others are on the target.
        query = (
            f"SELECT module, max({cut_version('module_version')}) AS module_version, NULL::BOOLEAN AS on_target, "
            "true AS is_target, false AS is_released, NULL::TIMESTAMP AS released_at "
            "FROM versions WHERE version_order = 'newest' GROUP BY module"
        )
    else:
        query = (
            f"SELECT m.module, {cut_version('v.module_version')} AS module_version, bool_and(on_target) AS on_target, "
            "bool_or(is_target) AS is_target, bool_or(is_released) AS is_released, max(released_at) AS released_at "
            "FROM marked_versions v JOIN modules_in_use m ON v.account = m.account "
            "AND v.product_key IS NOT DISTINCT FROM m.product_key AND lower(v.module_name) = m.module_key GROUP BY ALL"
        )
    database.execute(f"CREATE TABLE module_marks AS {query}")


def cut_version(column: str) -> str:
    """Return the SQL of a version as ``version_rows`` has it."""
    return f"CASE WHEN length({column}) > {MAX_LENGTH} THEN left({column}, {MAX_LENGTH}) || '…' ELSE {column} END"


def _age_lines(rows: Iterator[tuple[int, int, str, bool | None, str | None]]) -> Iterator[str]:
    """Yield a line with number, age and place of each version; the versions of a module follow each other."""
    ordered = 0
    for _, group in groupby(rows, key=itemgetter(1)):
        members = list(group)
        versions = {text: number for number, _, text, *_ in members}
        marks = {text: on_target for _, _, text, on_target, _ in members}
        target = members[0][-1]  # the same for all
        ordered += len(versions)
        if target is None:
            ages = dict.fromkeys(versions, UNORDERED)
        elif ordered > MAX_ORDERED:
            ages = {text: ON_TARGET if text == target else OLDER for text in versions}
        else:
            ages = place_versions(list(versions), target)
        ages = {text: _mark_age(age, marks[text]) for text, age in ages.items()}
        places = {text: place for place, text in enumerate(sorted(ages, key=ages.__getitem__))}
        for text, number in versions.items():
            yield f"{number} {ages[text]} {places[text]}\n"


def _mark_age(age: int, on_target: bool | None) -> int:  # noqa: FBT001  a mark of three values
    """Return the age of a version by its mark: firmware may be newer than the target by its date, not by its text."""
    if on_target is None:
        return age
    if on_target:
        return age if age <= ON_TARGET else NEWER
    return age if ON_TARGET < age < UNORDERED else OLDER


def place_versions(versions: Sequence[str], target: str) -> dict[str, int]:
    """Return the age of each version, a place in ``AGES``, the newest version first.

    If two older versions cannot be compared, all of them are older, as it is unknown how many versions are between.
    """
    order = VersionOrder([*versions, target])
    parts: dict[str, list[str]] = {"newer": [], "same": [], "older": [], "unordered": []}
    for text in versions:
        parts["same" if text == target else order.compare(text, target)].append(text)
    older = _sort(order, parts["older"])
    ages = dict.fromkeys(_sort(order, parts["newer"]), NEWER) | dict.fromkeys(parts["same"], ON_TARGET)
    steps = [order.compare(one, other) for one, other in pairwise(older)]
    age = 1
    for text, step in zip(older, ["same", *steps], strict=False):
        age += step != "same"
        ages[text] = OLDER if "unordered" in steps or "older" in steps else min(age, OLDER)
    return ages | dict.fromkeys(parts["unordered"], UNORDERED)


def _sort(order: VersionOrder, versions: list[str]) -> list[str]:
    """Sort versions, the newest first. They are nearly in order before, so that few of them are compared."""
    by_numbers = sorted(versions, key=lambda text: [(len(part), part) for part in text.split(".")], reverse=True)
    return sorted(by_numbers, key=cmp_to_key(partial(_compare, order)))


def _compare(order: VersionOrder, one: str, other: str) -> int:
    return {"newer": -1, "older": 1}.get(order.compare(one, other), 0)


def count_ages(database: duckdb.DuckDBPyConnection, runs: int) -> tuple[tuple[int, ...] | None, ...]:
    """Return for each run the numbers of devices by age, from ``version_rows``; None: the run has no versions."""
    found: dict[int, list[int]] = {}
    query = "SELECT run, greatest(age, 0) AS age, sum(devices)::BIGINT FROM version_rows GROUP BY ALL"
    for run, age, devices in database.execute(query).fetchall():
        found.setdefault(run, [0] * len(AGES))[age] = devices
    return tuple(tuple(found[run]) if run in found else None for run in range(runs))


def _changes(run: StoredRun) -> Mapping[str, int] | None:
    changes = run.manifest.changes
    return None if changes is None else changes.counts
