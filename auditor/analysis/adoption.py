"""Adoption of versions: for each product's module, the shares of its main versions over the runs.

If a run that reads all modules of the fleet has no device with a module, there is none. Another run may not have listed
or reached these devices, or not read the module: its number is unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from auditor.storage.database import Database, scalar

CURRENT_VERSIONS = 3
"""Most frequent versions of the newest run that are always main versions; then come those with the highest peak."""


@dataclass(frozen=True, slots=True)
class VersionSeries:
    """A version over the runs. By run, None: unknown, since the run did not read the module.

    Attributes:
        module_version: the version; None: all other versions together.
        versions: number of versions in this series.
        devices: devices with the version, by run.
        shares: their fraction of the product's devices with the module, rounded to six digits, by run.
    """

    module_version: str | None
    versions: int
    devices: tuple[int | None, ...]
    shares: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class ModuleSeries:
    """A product's module over the runs, with its devices by run (None: the run did not read it).

    Its ``versions`` are the main ones, the most frequent of the newest such run first, then the others together.
    """

    account: str
    product_key: str | None
    module_name: str
    devices: tuple[int | None, ...]
    versions: tuple[VersionSeries, ...]


@dataclass(frozen=True, slots=True)
class Adoption:
    """Modules over the runs, and the number of all modules."""

    modules: tuple[ModuleSeries, ...]
    module_count: int


def read_adoption(database: Database, complete: Sequence[bool], modules: int, versions: int) -> Adoption:
    """Read at most so many modules, those with the most devices, from the table ``history``.

    ``complete`` says of each run whether it is sealed, succeeded and reads all modules; ``versions`` is the maximum
    number of main versions of each module.
    """
    last_complete = max((run for run, is_complete in enumerate(complete) if is_complete), default=0)
    database.execute(_MODULES, [last_complete, last_complete, modules])
    database.execute(_VERSIONS.format(main=versions, current=CURRENT_VERSIONS))
    count = scalar(database, "SELECT count(*) FROM (SELECT DISTINCT account, product_key, module_name FROM history)")
    totals: dict[int, dict[int, int]] = {}
    for module, run, devices in database.execute("SELECT module, run, devices FROM totals").fetchall():
        totals.setdefault(module, {})[run] = devices
    has_read = {
        module: [is_complete or run in counts for run, is_complete in enumerate(complete)]
        for module, counts in totals.items()
    }
    series: dict[int, list[VersionSeries]] = {}
    for module, version, number, present, devices, shares in database.execute(_SERIES).fetchall():
        by_run = dict(zip(present, zip(devices, shares, strict=True), strict=True))
        points = [by_run.get(run, (0, 0.0)) if has_read[module][run] else (None, None) for run in range(len(complete))]
        counts, fractions = tuple(each for each, _ in points), tuple(each for _, each in points)
        series.setdefault(module, []).append(VersionSeries(version, number, counts, fractions))
    query = "SELECT module, account, product_key, module_name FROM largest_modules ORDER BY module"
    largest = []
    for module, account, product_key, name in database.execute(query).fetchall():
        devices = tuple(totals[module].get(run, 0) if has_read[module][run] else None for run in range(len(complete)))
        largest.append(ModuleSeries(account, product_key, name, devices, tuple(series[module])))
    return Adoption(tuple(largest), count)


_MODULES = """
  CREATE OR REPLACE TEMP TABLE largest_modules AS
  SELECT row_number() OVER (ORDER BY last DESC, peak DESC, account, product_key, module_name) AS module, *
  FROM (
    SELECT account, product_key, module_name, max(devices) AS peak,
      greatest(max(run), ?) AS newest, if(max(run) >= ?, max_by(devices, run), 0) AS last
    FROM (SELECT run, account, product_key, module_name, sum(devices) AS devices FROM history GROUP BY ALL)
    GROUP BY ALL
  ) ORDER BY module LIMIT ?"""

_VERSIONS = """
  CREATE OR REPLACE TEMP TABLE adoption AS
  SELECT module, newest, run, module_version, h.devices, share
  FROM history h JOIN largest_modules l ON h.account = l.account AND h.product_key IS NOT DISTINCT FROM l.product_key
    AND h.module_name = l.module_name;
  CREATE OR REPLACE TEMP TABLE totals AS
  SELECT module, run, sum(devices)::BIGINT AS devices FROM adoption GROUP BY ALL;
  CREATE OR REPLACE TEMP TABLE main_versions AS
  SELECT module, module_version, row_number() OVER (
      PARTITION BY module ORDER BY current_rank <= {current} AND last > 0 DESC, peak DESC, total DESC, module_version
    ) <= {main} AS main
  FROM (
    SELECT *, row_number() OVER (PARTITION BY module ORDER BY last DESC, peak DESC, module_version) AS current_rank
    FROM (
      SELECT module, module_version, max(share) AS peak, sum(devices) AS total,
        coalesce(max(devices) FILTER (run = newest), 0) AS last
      FROM adoption GROUP BY ALL
    )
  )"""

_SERIES = """
  SELECT module, version, max(versions) AS versions, list(run ORDER BY run), list(devices ORDER BY run),
    list(share ORDER BY run)
  FROM (
    SELECT a.module, CASE WHEN main THEN a.module_version END AS version, a.run, newest,
      sum(a.devices)::BIGINT AS devices, round(sum(a.devices) / any_value(t.devices), 6) AS share,
      any_value(CASE WHEN main THEN 1 ELSE others END) AS versions
    FROM adoption a JOIN main_versions m ON a.module = m.module AND a.module_version = m.module_version
    JOIN totals t ON a.module = t.module AND a.run = t.run
    JOIN (SELECT module, count(*) FILTER (NOT main) AS others FROM main_versions GROUP BY module) o
      ON a.module = o.module
    GROUP BY ALL
  )
  GROUP BY module, version
  ORDER BY module, version IS NULL,
    coalesce(max(devices) FILTER (run = newest), 0) DESC, max(share) DESC, version"""
"""Shares are computed as in the inventory, so that both give the same number."""
