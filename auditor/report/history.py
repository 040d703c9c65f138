"""What was before, for the report: the runs of a directory over time, and what changed since the last one.

What changed between samples, for the report: shares, and no change that may be chance.
"""

from collections.abc import Iterator, Sequence
from functools import cmp_to_key
from heapq import nlargest
from itertools import islice
from pathlib import Path

import duckdb

from auditor.analysis.drift import diff_runs
from auditor.analysis.history import RunPoint, read_history
from auditor.analysis.sample_drift import SHARE_CHANGES, ShareDrift
from auditor.query.snapshot import Frozen
from auditor.query.versions import compare_versions
from auditor.report.model import Adoption, Changes, History, Module, ModuleChange, Past, ShareChange, ShareChanges
from auditor.runs.folder import runs_in
from auditor.runs.manifest import DeviceCounts, Manifest
from auditor.storage.database import quoted_to_read
from auditor.text.formatting import points, within

RUNS, ADOPTED, VERSIONS, MODULE_CHANGE_ROWS = 30, 6, 5, 10
"""Runs in a picture, modules that get one, versions that stand for themselves in one, and rows of changes."""


_LENGTH = 200


def earlier_runs(run: Frozen, directory: Path) -> tuple[list[tuple[Manifest, Path]], int, tuple[str, ...]]:
    """The ended runs of the same name that began before this one, the newest first.

    Returns:
        These; how many runs of the name did not begin before it, itself among them; and which runs of any name cannot
        be read, a sentence each.

    Raises:
        RunFolderError: the directory cannot be read.
    """
    here = run.manifest
    runs, broken = runs_in(directory)
    named = [(told, folder) for told, folder in runs if told.name == here.name]
    before = [each for each in named if each[0].started_at < here.started_at]
    earlier = [each for each in before if each[0].state != "running"]
    return earlier, len(named) - len(before), tuple(f"a run is passed over: {problem}" for problem in broken)


def labels_of(state: str, counts: DeviceCounts, *, tampered: bool, unsampled: int = 0) -> tuple[str, ...]:
    """What is to be known of a run's numbers, in a word each: of whom they are, and whether its files were changed.

    Args:
        state: how far it came.
        counts: devices by state.
        tampered: whether its files were changed.
        unsampled: devices that were not drawn, if it is a sample.
    """
    partial = state != "complete" or counts.unanswered > 0
    how_far = () if not partial else ("incomplete" if state == "complete" else state,)
    if unsampled:  # of which those that were drawn may all have answered
        how_far = () if state in ("complete", "partial") and counts.unanswered == unsampled else how_far
        how_far = ("sample", *how_far)
    return (*how_far, *(("tampered",) if tampered else ()))


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
                found = nlargest(MODULE_CHANGE_ROWS, (*found, change), key=lambda each: (each.moved, each.not_seen))
        told = drift.old.manifest
        unsampled = drift.old.sources.unsampled
        labels = labels_of(told.state, drift.old.counts, tampered=drift.old.tampered, unsampled=unsampled)
        label = ", ".join(labels) or None
        doubts = tuple(doubt for doubt in drift.doubts if doubt not in run.doubts)
        shares = read_share_changes(drift.shares)
        return Changes(
            before.name, told.started_at, label, drift.counts, tuple(found), moved - len(found), doubts, shares
        )


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

    This run is the last of them wherever it lies, and its numbers are those of the page.

    Args:
        database: with the tables ``versions`` and ``largest`` that ``read_shares`` makes.
        run: this one.
        modules: the modules of ``largest``.
        directory: where the runs lie.
        later: how many runs of the name in there did not begin before this one.
        work: a folder to write to meanwhile.

    Raises:
        RunFolderError: the directory cannot be read.
    """
    stored = work / "history.parquet"
    here = run.manifest
    with read_history(directory, name=here.name, limit=RUNS - 1 + later) as history:
        points = [point for point in history.runs if point.started_at < here.started_at][1 - RUNS :]
        if not points:
            return None
        history.table.write(stored, "parquet")
    earlier = [
        _past(point.folder, point.started_at, labels_of(point.state, point.devices, tampered=point.tampered,
              unsampled=point.unsampled), point.devices)
        for point in points
    ]  # fmt: skip
    labels = labels_of(here.state, run.counts, tampered=run.tampered, unsampled=run.sources.unsampled)
    runs = (*earlier, _past(run.folder, here.started_at, labels, run.counts))
    database.execute("CREATE TABLE runs (place BIGINT, run VARCHAR)")
    database.executemany("INSERT INTO runs VALUES (?, ?)", [[place, past.run] for place, past in enumerate(earlier)])
    _define_adoption(database, stored, len(earlier))
    adopted = tuple(
        _adoption(database, place, module, len(runs)) for place, module in enumerate(modules[:ADOPTED], start=1)
    )
    return History(runs, adopted, tuple(_doubts(points)))


def _past(folder: Path, started_at: str, labels: Sequence[str], counts: DeviceCounts) -> Past:
    return Past(folder.name, started_at, counts, ", ".join(labels) or None)


def _doubts(points: Sequence[RunPoint]) -> Iterator[str]:
    """Why numbers of earlier runs are to be doubted; of those that are only not whole one sentence for all."""
    for point in points:
        if point.tampered:
            yield from point.doubts
    partial = [point for point in points if point.doubts and not point.tampered]
    if len(partial) == 1:
        yield from partial[0].doubts
    elif partial:
        states = ", ".join(sorted({point.label for point in partial}))
        yield f"{len(partial):,} of {len(points):,} earlier runs are not of the whole fleet ({states})"


def _define_adoption(database: duckdb.DuckDBPyConnection, stored: Path, current: int) -> None:
    """Defines ``adoption``: of each module with a picture, in each run, what part of its devices ran which version.

    Those of ``runs`` are read from what is stored; this run, whose place is ``current``, from the page's ``versions``.
    """
    columns = "account, product_key, module_name, module_version, devices"
    database.execute(
        f"CREATE TABLE adoption AS WITH told AS (SELECT place AS run, {columns} "
        f"FROM read_parquet({quoted_to_read(stored)}) JOIN runs USING (run) "
        f"UNION ALL SELECT $1, {columns} FROM versions), "
        "wanted AS (SELECT DISTINCT l.place AS module, account, product_key, lower(module_name) AS name FROM largest l "
        f"JOIN versions USING (module) WHERE l.place <= {ADOPTED}), "
        "chosen AS (SELECT t.run, w.module, t.module_version, sum(t.devices) AS devices FROM told t "
        "JOIN wanted w ON t.account = w.account AND lower(t.module_name) = w.name "
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


SHARE_CHANGE_ROWS = 12
"""Rows of shares that the page has."""


def read_share_changes(drift: ShareDrift | None) -> ShareChanges | None:
    """The shares that changed most; None where no run is a sample."""
    if drift is None:
        return None
    first = (dict(zip(drift.table.columns, row, strict=True)) for row in islice(drift.table, SHARE_CHANGE_ROWS))
    rows = tuple(
        ShareChange(
            **{name: row[name] for name in ("level", "account", "product_key", "module_name", "module_version")},
            before=within(row["old_share"], row["old_low"], row["old_high"]),
            after=within(row["new_share"], row["new_low"], row["new_high"]),
            change=points(row["change"], row["change_low"], row["change_high"]),
            verdict=row["verdict"],
        )
        for row in first
        if row["verdict"] in SHARE_CHANGES
    )
    return ShareChanges(drift.counts, rows)
