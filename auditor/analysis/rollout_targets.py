"""The target version of each product's module, and the devices on it by run, as DuckDB tables.

| table | a row |
|---|---|
| ``rollout_counts`` | a run that counts, a product's module and a version: its devices, and those with the module |
| ``rollout_coverage`` | a run with unanswered devices and a product: its devices, and how many have an answer |
| ``rollout_releases`` | a version that is firmware of a module: when it was created, and whether it is the target |
| ``rollout_versions`` | a module (``module``) and a version (``version``) of it in use in any run, or its target |
| ``target_marks`` | a version (``version``) of it: whether it is on the target, and whether it is the target |
| ``update_counts`` | a module with a released target: its devices behind by the state of their update |
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from auditor.query.run_views import last_task_state, released_versions_query
from auditor.query.version_tables import define_target_marks
from auditor.runs.folder import DEVICES, FIRMWARE, MODULES, TASKS, StoredRun
from auditor.runs.views import (
    FIRMWARE_COLUMNS,
    TASK_COLUMNS,
    no_rows,
    parquet_of_run,
    products_query,
)
from auditor.storage.database import Database, parquet

NumberedRun = tuple[int, StoredRun]
"""A run and its number in the table ``history``."""

_ANSWERED = "status IN ('ok', 'empty', 'not_found')"

_NEVER_ACTIVATED = "reason IS NOT DISTINCT FROM 'never_activated' AND attempts = 0"
"""Devices that were never activated, as the platform lists them; no sample contains them."""


def define_rollout_tables(
    database: Database,
    runs: Sequence[NumberedRun],
    started: float,
    selected: float,
    work: Path,
    *,
    some_devices: bool,
    last_rows: Path | None = None,
) -> None:
    """Define the tables above but ``rollout_coverage`` and ``update_counts``, from the table ``history``.

    Args:
        database: with the table ``history`` of ``read_history``.
        runs: the runs that count, the oldest first.
        started: share that a version of an earlier run must have had to be in use.
        selected: as in ``released_versions_query``.
        work: a folder for an intermediate file.
        some_devices: whether the history is of selected devices only.
        last_rows: Parquet file of the versions of a later run, which does not count, but whose versions are in use;
            None: there is none.
    """
    newest = runs[-1][0]
    numbers = ", ".join(str(number) for number, _ in runs)
    columns = "account, product_key, module_name, module_version, devices"
    counted = f"SELECT run, {columns} FROM history WHERE run IN ({numbers})"
    if last_rows is not None:
        # A module has one spelling in all runs.
        counted = (
            "SELECT * REPLACE "
            "(max(module_name) OVER (PARTITION BY account, product_key, lower(module_name)) AS module_name) "
            f"FROM ({counted} UNION ALL SELECT {newest + 1}, {columns} FROM {parquet(last_rows)})"
        )
    database.execute(f"""
      CREATE OR REPLACE TABLE rollout_counts AS
      SELECT *, sum(devices) OVER (PARTITION BY run, account, product_key, module_name)::BIGINT AS reporting FROM (
        SELECT run, account, product_key, module_name, module_version, sum(devices)::BIGINT AS devices
        FROM ({counted}) GROUP BY ALL)""")
    _define_releases(database, runs, selected, some_devices=some_devices)
    _define_versions(database, newest, started)
    query = "SELECT module AS group_id, version, module_version, in_use, is_released, created_at FROM rollout_versions"
    define_target_marks(database, query, work / "target_marks")


def define_coverage(database: Database, runs: Sequence[NumberedRun]) -> None:
    """Define ``rollout_coverage`` from the devices of the runs.

    A device without an answer that is named by its iot_id only may be of any product of its account. It counts for each
    in proportion to the product's answers.
    """
    columns = {"run": "INTEGER", "account": "VARCHAR", "product_key": "VARCHAR"}
    queries = [no_rows(columns | dict.fromkeys(("devices", "to_answer", "answered"), "BIGINT"))]
    for number, run in runs:
        counts = run.manifest.devices
        if counts.failed + counts.pending:
            queries.append(
                f"SELECT {number} AS run, account, product_key, count(*) AS devices, "
                f"count(*) FILTER (source IS DISTINCT FROM 'unsampled') AS to_answer, "
                f"count(*) FILTER ({_ANSWERED}) AS answered "
                f"FROM {parquet_of_run(database, run.folder / DEVICES)} WHERE NOT ({_NEVER_ACTIVATED}) GROUP BY ALL"
            )
    database.execute(f"CREATE OR REPLACE TABLE coverage_rows AS {' UNION ALL '.join(queries)}")
    unassigned = ", ".join(
        f"c.{name} + coalesce(round(u.{name} * c.answered / nullif(a.answered, 0)), 0)::BIGINT AS {name}"
        for name in ("devices", "to_answer")
    )
    database.execute(f"""
      CREATE OR REPLACE TABLE rollout_coverage AS
      WITH unassigned AS (
        SELECT run, account, sum(devices - answered) AS devices, sum(to_answer - answered) AS to_answer
        FROM coverage_rows WHERE product_key IS NULL GROUP BY ALL
      ), accounts AS (
        SELECT run, account, sum(answered) AS answered FROM coverage_rows WHERE product_key IS NOT NULL GROUP BY ALL
      )
      SELECT c.run, c.account, c.product_key, c.answered, {unassigned}
      FROM coverage_rows c LEFT JOIN unassigned u USING (run, account) LEFT JOIN accounts a USING (run, account)
      WHERE c.product_key IS NOT NULL""")


def _define_releases(database: Database, runs: Sequence[NumberedRun], selected: float, *, some_devices: bool) -> None:
    """Define ``rollout_releases`` from the newest run that read the firmware of a product, and its views.

    Without a product's firmware in the newest run, that of an earlier one counts, unless a later run has read all
    firmware of the account. Whether a version is a beta depends on all devices of the product, whichever are selected.
    """
    complete = {info.account: number for number, run in runs for info in run.manifest.releases if not info.problems}
    stored = [(number, run) for number, run in runs if (run.folder / FIRMWARE).is_file()]
    needed = min((complete.get(account, 0) for account in _accounts(stored)), default=0)
    _define_files(database, "firmware", FIRMWARE, FIRMWARE_COLUMNS, [each for each in stored if each[0] >= needed])
    database.execute(
        "CREATE OR REPLACE TABLE firmware_runs AS SELECT account, product_key, max(run) AS run "
        "FROM firmware_of_runs "
        "LEFT JOIN (SELECT unnest($1::VARCHAR[]) AS account, unnest($2::INTEGER[]) AS complete) USING (account) "
        "WHERE run >= coalesce(complete, 0) GROUP BY ALL",
        [list(complete), list(complete.values())],
    )
    used = {number for (number,) in database.execute("SELECT DISTINCT run FROM firmware_runs").fetchall()}
    _define_files(database, "tasks", TASKS, TASK_COLUMNS, [each for each in stored if each[0] in used])
    for view in ("firmware", "tasks"):
        database.execute(
            f"CREATE OR REPLACE VIEW {view} AS "
            f"FROM {view}_of_runs SEMI JOIN firmware_runs USING (account, product_key, run)"
        )
    counts = (
        "SELECT account, product_key, module_name, module_version, devices FROM rollout_counts "
        f"WHERE run = {runs[-1][0]} AND product_key IS NOT NULL"
    )
    if some_devices:
        counts = (
            "SELECT account, product_key, module_name, module_version, count(*) AS devices "
            f"FROM {parquet_of_run(database, runs[-1][1].folder / MODULES)} WHERE product_key IS NOT NULL GROUP BY ALL"
        )
    database.execute(f"""
      CREATE OR REPLACE TABLE rollout_releases AS
      SELECT *, released AND row_number() OVER (
        PARTITION BY account, product_key, module_key ORDER BY released DESC, created_at DESC NULLS LAST, version
      ) = 1 AS is_target FROM ({released_versions_query(counts, selected)})""")


def _define_files(
    database: Database, view: str, name: str, columns: Mapping[str, str], runs: Sequence[NumberedRun]
) -> None:
    """Define the rows of a file of runs, with the number of the run."""
    queries = [no_rows({"run": "INTEGER", **columns})]
    for number, run in runs:
        if (run.folder / name).is_file():
            queries.append(f"SELECT {number} AS run, * FROM {parquet_of_run(database, run.folder / name)}")
    database.execute(f"CREATE OR REPLACE VIEW {view}_of_runs AS {' UNION ALL BY NAME '.join(queries)}")


def _accounts(runs: Sequence[NumberedRun]) -> set[str]:
    return {info.account for _, run in runs for info in run.manifest.releases}


def _define_versions(database: Database, newest: int, started: float) -> None:
    database.execute(f"""
      CREATE OR REPLACE TABLE rollout_versions AS
      WITH used AS (
        SELECT account, product_key, module_name, module_version,
          bool_or(run >= {newest}) OR max(devices / reporting) >= {started} AS in_use
        FROM rollout_counts GROUP BY ALL
      ), targets AS (
        SELECT DISTINCT u.account, u.product_key, u.module_name, r.version AS module_version, false AS in_use
        FROM used u JOIN rollout_releases r ON u.account = r.account AND u.product_key = r.product_key
          AND lower(u.module_name) = r.module_key WHERE r.is_target
      ), versions AS (
        FROM used UNION ALL
        FROM targets ANTI JOIN used USING (account, product_key, module_name, module_version)
      )
      SELECT row_number() OVER () AS version,
        dense_rank() OVER (ORDER BY v.account, v.product_key, v.module_name) AS module, v.*, r.created_at,
        coalesce(r.is_target, false) AS is_released
      FROM versions v LEFT JOIN rollout_releases r ON v.account = r.account AND v.product_key = r.product_key
        AND lower(v.module_name) = r.module_key AND v.module_version = r.version""")


def define_update_counts(database: Database, newest: NumberedRun | None) -> None:
    """Define ``update_counts``: modules, and ``failed``, ``offered``, ``reverted``, ``never_offered`` devices behind.

    A device counts by its last task of the target version; see ``last_task_state``. Without a run, or tasks in it,
    there are no rows.
    """
    if newest is None or not (newest[1].folder / TASKS).is_file():
        columns = dict.fromkeys(("module", *UPDATE_STATES), "BIGINT")
        database.execute(f"CREATE OR REPLACE TABLE update_counts AS {no_rows(columns)}")
        return
    number, run = newest
    modules, tasks = (parquet_of_run(database, run.folder / name) for name in (MODULES, TASKS))
    # By hashes of names, for memory and time: two devices of a module share one in one of ten million fleets.
    database.execute(f"""
      CREATE OR REPLACE TABLE update_counts AS
      WITH released AS (
        SELECT module, account, product_key, lower(module_name) AS module_key, module_version AS target
        FROM rollout_versions SEMI JOIN (FROM firmware_runs WHERE run = {number}) USING (account, product_key)
        WHERE is_released
      ), behind_versions AS (
        SELECT r.*, v.module_version AS version
        FROM released r JOIN rollout_versions v USING (module) JOIN target_marks m USING (version) WHERE NOT on_target
      ), behind AS (
        SELECT b.module, hash(m.device_name) AS device
        FROM {modules} m JOIN behind_versions b ON m.account = b.account AND m.product_key = b.product_key
          AND lower(m.module_name) = b.module_key AND m.module_version = b.version
      ), last_tasks AS (
        SELECT r.module, hash(t.device_name) AS device, {last_task_state()} AS state
        FROM {tasks} t JOIN released r ON t.account = r.account AND t.product_key = r.product_key
          AND lower(t.module_name) = r.module_key AND t.version = r.target
        SEMI JOIN behind b ON b.module = r.module AND b.device = hash(t.device_name) GROUP BY ALL
      )
      SELECT module, {", ".join(f"count(*) FILTER (state = '{state}') AS {state}" for state in UPDATE_STATES)}
      FROM (
        SELECT module, coalesce(state, 'never_offered') AS state
        FROM behind LEFT JOIN last_tasks USING (module, device)
      ) GROUP BY module""")


UPDATE_STATES = ("failed", "offered", "reverted", "never_offered")
"""States of the update of a device that is behind."""


def rollout_rows_query(database: Database, newest: NumberedRun, answered: float) -> str:
    """Return the SQL of the rollouts: a row for each product's module of the newest run, with lists by run.

    A module that the newest run does not have is a row if few devices of its product have an answer in it. ``answered``
    is the fraction of those to answer that is enough.
    """
    number, run = newest
    database.execute(
        "CREATE OR REPLACE TABLE rollout_products AS SELECT account, product_key, any_value(product_name) "
        f"AS product_name FROM ({products_query(run.folder)}) GROUP BY ALL"
    )
    same = "{0}.account = {1}.account AND {0}.product_key IS NOT DISTINCT FROM {1}.product_key"
    return f"""
      WITH counts AS (
        SELECT v.module, c.run, any_value(c.reporting) AS reporting,
          coalesce(sum(c.devices) FILTER (m.on_target), 0)::BIGINT AS on_target
        FROM rollout_counts c JOIN rollout_versions v ON {same.format("c", "v")}
          AND c.module_name = v.module_name AND c.module_version = v.module_version
        LEFT JOIN target_marks m USING (version) GROUP BY ALL
      ), names AS (
        SELECT DISTINCT module, account, product_key, module_name FROM rollout_versions
      ), by_module AS (
        SELECT n.module, n.account, n.product_key, n.module_name,
          list({{'run': c.run, 'reporting': c.reporting, 'on_target': c.on_target, 'devices': o.devices,
            'to_answer': o.to_answer, 'answered': o.answered}} ORDER BY c.run) AS points,
          bool_or(c.run = {number}) AS is_current
        FROM counts c JOIN names n USING (module)
        LEFT JOIN rollout_coverage o ON c.run = o.run AND {same.format("n", "o")} GROUP BY ALL
      ), targets AS (
        SELECT v.* FROM rollout_versions v JOIN target_marks m USING (version) WHERE m.is_target
      )
      SELECT b.account, b.product_key, p.product_name, b.module_name, t.module_version, t.is_released, t.created_at,
        b.points, {", ".join(f"u.{state}" for state in UPDATE_STATES)}
      FROM by_module b
      LEFT JOIN targets t USING (module)
      LEFT JOIN update_counts u USING (module)
      LEFT JOIN rollout_products p ON {same.format("b", "p")}
      LEFT JOIN rollout_coverage o ON o.run = {number} AND {same.format("b", "o")}
      WHERE is_current OR o.answered < {answered} * o.to_answer OR o.to_answer < o.devices
      ORDER BY b.account, b.product_key, b.module_name"""
