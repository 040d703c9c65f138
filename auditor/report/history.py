"""Earlier runs of the same name, for the report: which there are, and the adoption of versions over time."""

from collections.abc import Sequence
from functools import cmp_to_key, partial
from pathlib import Path

import duckdb

from auditor.analysis.history import read_history, summarize_warnings
from auditor.query.snapshot import RunSnapshot
from auditor.query.versions import VersionOrder
from auditor.report.coverage import run_labels
from auditor.report.model import HistorySection, ModuleAdoption, ModuleShares, PastRun
from auditor.runs.folder import RunCatalog
from auditor.storage.database import sql_read_path

MAX_RUNS, MAX_MODULES, MAX_VERSIONS = 30, 6, 5
"""Runs in a chart, modules with a chart, and versions with a share of their own."""

_MAX_LENGTH = 200
"""Characters of a version that are read."""


def read_history_section(
    database: duckdb.DuckDBPyConnection,
    run: RunSnapshot,
    modules: Sequence[ModuleShares],
    catalog: RunCatalog,
    work: Path,
) -> HistorySection | None:
    """Read the runs up to the reported one and the adoption of its largest modules; None if no run is earlier.

    The reported run is the last one, in whichever directory it is, with the numbers of the report.

    Args:
        database: with the tables ``versions`` and ``largest`` of ``read_versions``.
        run: the reported run.
        modules: the modules of ``largest``.
        catalog: the directory with the earlier runs.
        work: a folder for intermediate files.

    Raises:
        RunFolderError: the directory cannot be read.
    """
    rows = work / "history.parquet"
    manifest = run.manifest
    later = sum(not each.manifest.started_at < manifest.started_at for each in catalog.named(manifest.name))
    with read_history(catalog.directory, name=manifest.name, limit=MAX_RUNS - 1 + later) as history:
        earlier = [each for each in history.runs if each.started_at < manifest.started_at][1 - MAX_RUNS :]
        if not earlier:
            return None
        history.table.write(rows, "parquet")
    labels = [
        *(run_labels(r.state, r.devices, tampered=r.tampered, unsampled=r.unsampled) for r in earlier),
        run_labels(manifest.state, run.counts, tampered=run.tampered, unsampled=run.sources.unsampled),
    ]
    started = [(each.folder.name, each.started_at) for each in earlier] + [(run.folder.name, manifest.started_at)]
    runs = tuple(PastRun(*each, ", ".join(words) or None) for each, words in zip(started, labels, strict=True))
    _define_adoption(database, rows, [each.folder.name for each in earlier])
    adoptions = tuple(
        _read_adoption(database, rank, module, len(runs)) for rank, module in enumerate(modules[:MAX_MODULES], start=1)
    )
    return HistorySection(runs, adoptions, tuple(summarize_warnings(earlier, "earlier runs")))


def _define_adoption(database: duckdb.DuckDBPyConnection, rows: Path, earlier: Sequence[str]) -> None:
    """Define ``adoption``: the share of each version of each module with a chart, by run.

    Args:
        database: as above.
        rows: Parquet file with the rows of the history.
        earlier: folder names of the earlier runs; their positions are their numbers. The next number is the reported
            run's, whose rows are in ``versions``.
    """
    database.execute("CREATE TABLE earlier_runs (number BIGINT, run VARCHAR)")
    database.executemany("INSERT INTO earlier_runs VALUES (?, ?)", [list(each) for each in enumerate(earlier)])
    columns = "account, product_key, module_name, module_version, devices"
    database.execute(
        f"""
      CREATE TABLE adoption AS
      WITH counts AS (
        SELECT number AS run, {columns} FROM read_parquet({sql_read_path(rows)}) JOIN earlier_runs USING (run)
        UNION ALL SELECT $1, {columns} FROM versions
      ),
      charted AS (
        SELECT DISTINCT rank, account, product_key, lower(module_name) AS name
        FROM largest JOIN versions USING (module) WHERE rank <= {MAX_MODULES}
      ),
      by_version AS (
        SELECT c.run, m.rank, c.module_version, sum(c.devices) AS devices
        FROM counts c JOIN charted m ON c.account = m.account AND lower(c.module_name) = m.name
          AND c.product_key IS NOT DISTINCT FROM m.product_key
        GROUP BY ALL
      )
      SELECT run, rank, module_version, devices / sum(devices) OVER (PARTITION BY run, rank) AS share
      FROM by_version""",
        [len(earlier)],
    )


def _read_adoption(
    database: duckdb.DuckDBPyConnection, rank: int, module: ModuleShares, run_count: int
) -> ModuleAdoption:
    """Read the shares of a module's main versions: the newest, and those with the largest shares over all runs."""
    versions = [
        text
        for (text,) in database.execute(
            f"SELECT left(module_version, {_MAX_LENGTH + 1}) AS text FROM adoption WHERE rank = ? GROUP BY text "
            f"ORDER BY text IS NOT DISTINCT FROM ? DESC, sum(share) DESC, text LIMIT {MAX_VERSIONS}",
            [rank, module.newest],
        ).fetchall()
    ]
    if module.newest is not None:
        texts = database.execute("SELECT DISTINCT module_version FROM adoption WHERE rank = ?", [rank]).fetchall()
        order = VersionOrder([*versions, *(text for (text,) in texts)])
        versions.sort(key=cmp_to_key(partial(_compare_newest_first, order)))
    database.execute("CREATE OR REPLACE TEMP TABLE main_versions (position BIGINT, text VARCHAR)")
    database.executemany("INSERT INTO main_versions VALUES (?, ?)", [list(each) for each in enumerate(versions)])
    by_run: dict[int, list[float]] = {}
    for run, position, share in database.execute(
        "SELECT run, position, sum(share) FROM adoption "
        f"LEFT JOIN main_versions ON left(module_version, {_MAX_LENGTH + 1}) = text "
        "WHERE rank = ? GROUP BY run, position ORDER BY run, position",
        [rank],
    ).fetchall():
        shares = by_run.setdefault(run, [0.0] * (len(versions) + 1))
        shares[len(versions) if position is None else position] = float(share)
    has_others = any(shares[-1] for shares in by_run.values())
    length = len(versions) + has_others
    return ModuleAdoption(
        module,
        (*versions, *((None,) if has_others else ())),
        tuple(tuple(by_run[run][:length]) if run in by_run else None for run in range(run_count)),
    )


def _compare_newest_first(order: VersionOrder, version: str, other: str) -> int:
    return {"newer": -1, "older": 1}.get(order.compare(version, other), 0)
