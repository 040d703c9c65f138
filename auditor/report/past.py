"""What was before, for the report: the runs of a directory over time, and what changed since the last one."""

from collections.abc import Sequence
from functools import cmp_to_key
from heapq import nlargest
from pathlib import Path

import duckdb

from auditor.database import quoted_to_read
from auditor.inventory.drift import diff_runs
from auditor.inventory.folder import DeviceCounts, Manifest, runs_in
from auditor.inventory.frozen import Frozen
from auditor.inventory.history import read_history
from auditor.inventory.versions import compare_versions
from auditor.report.data import Adoption, Changes, History, Module, ModuleChange, Past

RUNS, ADOPTED, VERSIONS, CHANGED = 30, 6, 5, 10
"""Runs in a picture, modules that get one, versions that stand for themselves in one, and rows of changes."""

_LENGTH = 200


def earlier_runs(run: Frozen, directory: Path) -> tuple[list[tuple[Manifest, Path]], int]:
    """The ended runs of the same name before this one, the newest first; and how many runs of the name are later.

    Raises:
        RunFolderError: the directory cannot be read.
    """
    here = run.manifest
    named = [(told, folder) for told, folder in runs_in(directory)[0] if told.name == here.name]
    earlier = [each for each in named if each[0].started_at < here.started_at and each[0].state != "running"]
    return earlier, sum(told.started_at > here.started_at for told, _ in named)


def labels_of(state: str, counts: DeviceCounts, doubts: Sequence[str]) -> tuple[str, ...]:
    """What is wrong with a run's numbers, in a word each: how far it came, and whether its files were changed.

    One doubt says that a run is not whole; any other is about its files.
    """
    partial = state != "complete" or counts.unanswered > 0
    how_far = () if not partial else ("incomplete" if state == "complete" else state,)
    return (*how_far, *(("tampered",) if len(doubts) > partial else ()))


def read_changes(run: Frozen, before: Path) -> Changes:
    """What changed since an earlier run, and the modules of which most devices changed.

    Raises:
        RunFolderError: the earlier run cannot be read.
    """
    with diff_runs(before, run.folder) as drift:
        at = {name: place for place, name in enumerate(drift.modules.columns)}
        names = list(ModuleChange.__dataclass_fields__)
        found: list[ModuleChange] = []
        moved = 0
        for row in drift.modules:
            change = ModuleChange(*(row[at[name]] for name in names))
            if change.moved:
                moved += 1
                found = nlargest(CHANGED, (*found, change), key=lambda each: (each.moved, each.not_seen))
        told = drift.old.manifest
        label = ", ".join(labels_of(told.state, drift.old.counts, drift.old.doubts)) or None
        doubts = tuple(doubt for doubt in drift.doubts if doubt not in run.doubts)
        return Changes(before.name, told.started_at, label, drift.counts, tuple(found), moved - len(found), doubts)


def read_past(
    database: duckdb.DuckDBPyConnection,
    run: Frozen,
    modules: Sequence[Module],
    directory: Path,
    *,
    later: int,
    work: Path,
) -> History | None:
    """The runs up to this one, and what part of the devices ran which version in each; None without an earlier one.

    Args:
        database: with the tables ``versions`` and ``largest`` that ``read_shares`` makes.
        run: this one.
        modules: the modules of ``largest``.
        directory: where the runs lie.
        later: how many runs of the name began after this one.
        work: a folder to write to meanwhile.

    Raises:
        RunFolderError: the directory cannot be read.
    """
    stored = work / "history.parquet"
    with read_history(directory, name=run.manifest.name, limit=RUNS + later) as history:
        points = [point for point in history.runs if point.started_at <= run.manifest.started_at][-RUNS:]
        if not any(point.folder.name != run.folder.name for point in points):
            return None
        history.table.write(stored, "parquet")
        doubts = history.doubts
    runs = tuple(
        Past(
            point.folder.name, point.started_at, point.devices,
            ", ".join(labels_of(point.state, point.devices, point.doubts)) or None,
        )
        for point in points
    )  # fmt: skip
    database.execute("CREATE TABLE runs (place BIGINT, run VARCHAR)")
    database.executemany("INSERT INTO runs VALUES (?, ?)", [[place, past.run] for place, past in enumerate(runs)])
    _define_adoption(database, stored, run.folder.name)
    adopted = tuple(
        _adoption(database, place, module, len(runs)) for place, module in enumerate(modules[:ADOPTED], start=1)
    )
    return History(runs, adopted, doubts)


def _define_adoption(database: duckdb.DuckDBPyConnection, stored: Path, current: str) -> None:
    """Defines ``adoption``: of each module with a picture, in each run, what part of its devices ran which version.

    This run's own numbers are those of the page, whatever another file of its folder tells.
    """
    columns = "account, product_key, module_name, module_version, devices"
    database.execute(
        f"CREATE TABLE adoption AS WITH told AS (SELECT run, {columns} FROM read_parquet({quoted_to_read(stored)}) "
        f"WHERE run <> $1 UNION ALL SELECT $1, {columns} FROM versions), "
        "wanted AS (SELECT DISTINCT l.place AS module, account, product_key, lower(module_name) AS name FROM largest l "
        f"JOIN versions USING (module) WHERE l.place <= {ADOPTED}), "
        "chosen AS (SELECT r.place AS run, w.module, t.module_version, sum(t.devices) AS devices FROM told t "
        "JOIN runs r USING (run) JOIN wanted w ON t.account = w.account AND lower(t.module_name) = w.name "
        "AND t.product_key IS NOT DISTINCT FROM w.product_key GROUP BY ALL), "
        "parts AS (SELECT *, devices / sum(devices) OVER (PARTITION BY run, module) AS share FROM chosen) "
        "SELECT run, module, module_version, share FROM parts",
        [current],
    )


def _adoption(database: duckdb.DuckDBPyConnection, place: int, module: Module, runs: int) -> Adoption:
    named = [
        text
        for (text,) in database.execute(
            f"SELECT left(module_version, {_LENGTH + 1}) AS text FROM adoption WHERE module = ? GROUP BY text "
            f"ORDER BY text IS NOT DISTINCT FROM ? DESC, sum(share) DESC, text LIMIT {VERSIONS}",
            [place, module.newest],
        ).fetchall()
    ]
    if module.newest is not None:
        named.sort(key=cmp_to_key(_newest_first))
    database.execute("CREATE OR REPLACE TEMP TABLE named (place BIGINT, text VARCHAR)")
    database.executemany("INSERT INTO named VALUES (?, ?)", [[at, text] for at, text in enumerate(named)])
    found: dict[int, list[float]] = {}
    for run, at, share in database.execute(
        f"SELECT run, place, sum(share) FROM adoption LEFT JOIN named ON left(module_version, {_LENGTH + 1}) = text "
        "WHERE module = ? GROUP BY run, place ORDER BY run, place",
        [place],
    ).fetchall():
        found.setdefault(run, [0.0] * (len(named) + 1))[len(named) if at is None else at] = float(share)
    rest = any(parts[-1] for parts in found.values())
    shares = tuple(tuple(found[run] if rest else found[run][:-1]) if run in found else None for run in range(runs))
    return Adoption(module, (*named, *((None,) if rest else ())), shares)


def _newest_first(version: str, other: str) -> int:
    return {"newer": -1, "older": 1}.get(compare_versions(version, other), 0)
