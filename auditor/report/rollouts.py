"""Rollouts for the report: the state of each, the versions of its module over the runs, and what is unknown."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import duckdb

from auditor.analysis.rollout_states import RolloutState, UnknownReason
from auditor.analysis.rollouts import MAX_ROLLOUTS, Rollout, Rollouts, StateCount
from auditor.report.model import AGES, ModuleVersions, PastRun, RolloutDetail, RolloutSection, UnknownModule
from auditor.report.versions import (
    ON_TARGET,
    UNORDERED,
    EarlierRuns,
    count_ages,
    define_version_ages,
)
from auditor.storage.database import load_rows

MAX_DETAILED, MAX_VERSIONS, MAX_UNKNOWN = 400, 6, 50
"""Rollouts whose versions are shown over the runs, their versions, and unknown modules."""

_MAX_MODULES = 10 * MAX_ROLLOUTS
"""Modules that are read, those with the most devices: a damaged run may have a product for each device."""

_MAX_PRODUCTS = 200
"""Products whose devices are counted, those with the largest modules; the map has fewer."""

_MAX_LENGTH = 400
"""Characters of a text that are read."""


def read_rollout_section(
    database: duckdb.DuckDBPyConnection, earlier: EarlierRuns, previous: str | None, work: Path
) -> RolloutSection:
    """Read the section.

    Args:
        database: with ``versions``, ``modules_in_use``, ``earlier_rows``, ``product_states`` and ``product_names``.
        earlier: the runs and their rollouts.
        previous: folder name of the run that the reported one is compared with; None: there is none.
        work: a folder for intermediate files.
    """
    runs = earlier.runs
    rows = database.execute(
        "SELECT module, account, product_key, module_key, versions FROM modules_in_use ORDER BY devices DESC, module "
        f"LIMIT {_MAX_MODULES}"
    ).fetchall()
    numbers = {(account, product, name): number for number, account, product, name, _ in rows}
    counts = {number: versions for number, *_, versions in rows}
    define_version_ages(database, len(runs) - 1, work)
    found = earlier.rollouts or _read_without_states(database, len(runs))
    by_number = {number: each for each in found.by_urgency if (number := numbers.get(_key(each))) is not None}
    shown = list(by_number)
    versions = _read_versions(database, shown[:MAX_DETAILED], len(runs), work)
    before = next((at for at, run in enumerate(runs[:-1]) if run.run == previous), None)
    ages = count_ages(database, len(runs))
    current = ages[-1] or (0,) * len(AGES)
    return RolloutSection(
        runs=runs,
        rollouts=tuple(RolloutDetail(by_number[number], versions.get(number, ()), counts[number]) for number in shown),
        by_state=found.by_state if found.count > len(found.rollouts) else _count_states(by_number.values()),
        on_target=current[ON_TARGET],
        devices=sum(current[:UNORDERED]),
        previous=before,
        change=None if before is None else _change(database, before, len(runs) - 1),
        done_by_run=_done_by_run(by_number.values(), len(runs), found.thresholds.done),
        ages=ages,
        thresholds=found.thresholds,
        unknown=_read_unknown(database, runs),
        unknown_by_account=dict(
            database.execute(
                f"SELECT left(account, {_MAX_LENGTH}), count(*) FROM unknown_modules GROUP BY ALL ORDER BY ALL"
            ).fetchall()
        ),
        warnings=earlier.warnings,
        moved_targets=0 if before is None else _count_moved_targets(database, runs, before),
        devices_by_product={
            (account, product): devices
            for account, product, devices in database.execute(
                f"SELECT left(account, {_MAX_LENGTH}), left(product_key, {_MAX_LENGTH}), any_value(sampled) "
                "FROM modules_in_use m JOIN product_states p USING (account, product_key) "
                "GROUP BY account, product_key "
                f"ORDER BY max(m.devices) DESC, account, product_key LIMIT {_MAX_PRODUCTS}"
            ).fetchall()
        },
    )


def _read_without_states(database: duckdb.DuckDBPyConnection, runs: int) -> Rollouts:
    """Return the modules of a run whose rollouts have no state, as one in progress, by the ages of their versions."""
    rows = database.execute(
        f"SELECT left(v.account, {_MAX_LENGTH}), left(v.product_key, {_MAX_LENGTH}), "
        f"any_value(left(product_name, {_MAX_LENGTH})), max(left(module_name, {_MAX_LENGTH})), sum(devices)::BIGINT, "
        "any_value(left(target, 200)), coalesce(sum(devices) FILTER (age <= 0), 0)::BIGINT, "
        "max(low) FILTER (age = 0), max(high) FILTER (age = 0), bool_or(is_released), any_value(released_at) "
        "FROM aged_versions v LEFT JOIN product_names n ON v.account = n.account AND v.product_key = n.product_key "
        f"GROUP BY v.account, v.product_key, module ORDER BY sum(devices) DESC, module LIMIT {MAX_ROLLOUTS}"
    ).fetchall()
    rollouts = tuple(_without_state(row, runs) for row in rows)
    total = database.execute(
        "SELECT count(DISTINCT module), sum(devices)::BIGINT, "
        "coalesce(sum(devices) FILTER (age > 0 AND target IS NOT NULL), 0)::BIGINT FROM aged_versions"
    ).fetchall()
    return Rollouts(rollouts, {"unknown": StateCount(*total[0])} if rollouts else {})


def _without_state(row: Sequence[Any], runs: int) -> Rollout:
    """Return the rollout of a row of the query above."""
    account, product_key, product_name, module_name, devices, target, on_target, low, high, released, released_at = row
    share = None if target is None else on_target / devices
    reason: UnknownReason = "no_order" if target is None else "short_history" if runs == 1 else "few_answers"
    source: Literal["released", "newest"] | None = None if target is None else "released" if released else "newest"
    return Rollout(
        account, product_key, product_name, module_name, devices, target, source, released_at=released_at,
        on_target=on_target, behind=0 if target is None else devices - on_target, share=share,
        low=share if share is None or low is None else min(low, share),
        high=share if share is None or high is None else max(high, share), change=None, state="unknown",
        reason=reason, runs_in_state=1, expected_at=None, no_date=None, shares=(*[None] * (runs - 1), share),
    )  # fmt: skip


def _count_states(rollouts: Iterable[Rollout]) -> dict[RolloutState, StateCount]:
    """Return the numbers of rollouts by state, of modules that the run has."""
    counts: dict[RolloutState, StateCount] = {}
    for each in rollouts:
        before = counts.get(each.state, StateCount())
        counts[each.state] = StateCount(before.rollouts + 1, before.devices + each.devices, before.behind + each.behind)
    return counts


def _done_by_run(rollouts: Iterable[Rollout], runs: int, done: float) -> tuple[float | None, ...]:
    """Return the number of rollouts by run whose share was as large as it is when they are done."""
    counts: list[float | None] = [None] * runs
    for rollout in rollouts:
        for run, share in enumerate(rollout.shares[-runs:], start=runs - len(rollout.shares[-runs:])):
            if share is not None:
                counts[run] = (counts[run] or 0) + (share >= done)
    return tuple(counts)


def _key(rollout: Rollout) -> tuple[str, str | None, str]:
    return rollout.account, rollout.product_key, rollout.module_name.lower()


def _change(database: duckdb.DuckDBPyConnection, previous: int, last: int) -> float | None:
    """Return the change of the share on the target since the previous run, of the modules that both runs have."""
    row = database.execute(
        """
      WITH by_module AS (
        SELECT module, run, sum(devices) AS devices, coalesce(sum(devices) FILTER (age <= 0), 0) AS on_target
        FROM version_rows WHERE run IN ($1, $2) GROUP BY module, run
        HAVING bool_or(age < 4) QUALIFY count(*) OVER (PARTITION BY module) = 2
      )
      SELECT sum(on_target) FILTER (run = $2) / sum(devices) FILTER (run = $2)
        - sum(on_target) FILTER (run = $1) / sum(devices) FILTER (run = $1) FROM by_module""",
        [previous, last],
    ).fetchone()
    return None if row is None else row[0]


def _count_moved_targets(database: duckdb.DuckDBPyConnection, runs: Sequence[PastRun], previous: int) -> int:
    """Return how many modules of the previous run have a newer target since: released, or first seen, after it."""
    row = database.execute(
        """
      SELECT count(*) FROM (
        SELECT module, min(run) FILTER (age = 0) AS first_run FROM version_rows
        GROUP BY module HAVING bool_or(run = $1) AND bool_or(run = $2)
      ) JOIN module_targets USING (module)
      WHERE CASE WHEN is_released AND released_at IS NOT NULL THEN released_at > try_cast($3 AS TIMESTAMP)
        ELSE first_run = $2 END""",
        [previous, len(runs) - 1, runs[previous].started_at],
    ).fetchone()
    return 0 if row is None else row[0]


def _read_versions(
    database: duckdb.DuckDBPyConnection, modules: Sequence[int], runs: int, work: Path
) -> dict[int, tuple[ModuleVersions, ...]]:
    """Return the main versions of modules over the runs, and the others together."""
    load_rows(database, "detailed", "{'module': 'BIGINT'}", work / "detailed", (f"{module}\n" for module in modules))
    database.execute(f"""
      CREATE TABLE main_versions AS
      SELECT *, row_number() OVER (PARTITION BY module ORDER BY age = 0 DESC, peak DESC, module_version)
        <= {MAX_VERSIONS} AS main
      FROM (
        SELECT module, module_version, age, place, max(devices) AS peak
        FROM version_rows SEMI JOIN detailed USING (module) GROUP BY ALL
      )""")
    found: dict[int, dict[str | None, tuple[int | None, list[int | None]]]] = {}
    present: dict[int, set[int]] = {}
    for module, version, run, age, devices in database.execute(f"""
      SELECT module, version, run, CASE WHEN version IS NOT NULL THEN min(age) END, sum(devices)::BIGINT
      FROM (
        SELECT v.module, run, devices, m.age, CASE WHEN main THEN m.place END AS place,
          CASE WHEN main THEN left(module_version, {_MAX_LENGTH}) END AS version
        FROM version_rows v JOIN main_versions m USING (module, module_version)
      ) GROUP BY module, version, place, run ORDER BY module, place NULLS LAST, version, run""").fetchall():
        counts = found.setdefault(module, {}).setdefault(version, (age, [None] * runs))[1]
        counts[run] = devices
        present.setdefault(module, set()).add(run)
    return {
        module: tuple(
            ModuleVersions(
                version, age,
                tuple((count or 0) if run in present[module] else None for run, count in enumerate(counts)),
            )
            for version, (age, counts) in versions.items()
        )
        for module, versions in found.items()
    }  # fmt: skip


def _read_unknown(database: duckdb.DuckDBPyConnection, runs: Sequence[PastRun]) -> tuple[UnknownModule, ...]:
    """Return modules of earlier runs that no device reports in this one, because all of its devices have no answer.

    Its last run had not more devices with it than devices of its product have no answer now.
    """
    database.execute("""
      CREATE TABLE unknown_modules AS
      SELECT e.account, e.product_key, max(module_name) AS module_name, max(number) AS number,
        arg_max(in_run, number)::BIGINT AS devices
      FROM (
        SELECT account, product_key, module_name, number, sum(devices) AS in_run FROM earlier_rows GROUP BY ALL
      ) e JOIN product_states p ON e.account = p.account AND e.product_key = p.product_key AND p.unanswered > 0
      ANTI JOIN modules_in_use m ON e.account = m.account AND e.product_key = m.product_key
        AND lower(e.module_name) = m.module_key
      GROUP BY e.account, e.product_key, lower(module_name) HAVING devices <= any_value(p.unanswered)""")
    rows = database.execute(
        f"SELECT left(u.account, {_MAX_LENGTH}), left(u.product_key, {_MAX_LENGTH}), "
        f"left(product_name, {_MAX_LENGTH}), left(module_name, {_MAX_LENGTH}), devices, number FROM unknown_modules u "
        "LEFT JOIN product_names n ON u.account = n.account AND u.product_key = n.product_key "
        f"ORDER BY devices DESC, ALL LIMIT {MAX_UNKNOWN}".replace(", ALL", ", u.account, u.product_key, module_name")
    ).fetchall()
    return tuple(UnknownModule(row[0], row[1], row[2], row[3], row[4], runs[row[5]].run) for row in rows)
