"""How versions spread from run to run: for each product's module the shares of its chief versions over time."""

from dataclasses import dataclass

import duckdb

CHIEF_NOW = 3
"""Versions of the newest run that are always among a module's chief ones; besides them those with the highest peak."""


@dataclass(frozen=True, slots=True)
class VersionLine:
    """A version over time.

    Attributes:
        module_version: None: the others together.
        versions: how many versions it stands for.
        devices: of each run, how many devices run it; None where the run has no versions.
        shares: their part of the product's devices that report the module, from 0 to 1, rounded to six digits; None
            where the run has no versions.
    """

    module_version: str | None
    versions: int
    devices: tuple[int | None, ...]
    shares: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class ModuleLine:
    """A product's module over time.

    Attributes:
        devices: of each run, how many devices report it; None where the run has no versions.
        lines: its chief versions, the most frequent of the newest run first, then the others together.
    """

    account: str
    product_key: str | None
    module_name: str
    devices: tuple[int | None, ...]
    lines: tuple[VersionLine, ...]


@dataclass(frozen=True, slots=True)
class Adoption:
    """Modules over time, and how many modules there are in all."""

    modules: tuple[ModuleLine, ...]
    found: int


def adoption_of(database: duckdb.DuckDBPyConnection, runs: int, modules: int, versions: int) -> Adoption:
    """The modules of most devices, from the tables ``runs`` and ``history``.

    Args:
        database: where the tables are.
        runs: how many runs there are.
        modules: so many modules at most.
        versions: so many chief versions of each at most.
    """
    database.execute(_MODULES, [modules])
    database.execute(_VERSIONS.format(chief=versions, now=CHIEF_NOW))
    (found,) = database.execute(
        "SELECT count(*) FROM (SELECT DISTINCT account, product_key, module_name FROM history)"
    ).fetchone() or (0,)
    sealed = [bool(each) for (each,) in database.execute("SELECT sealed FROM runs ORDER BY run").fetchall()]
    titles = database.execute(
        "SELECT module, account, product_key, module_name FROM adopted ORDER BY module"
    ).fetchall()
    totals: dict[int, dict[int, int]] = {}
    for module, run, devices in database.execute("SELECT module, run, devices FROM totals").fetchall():
        totals.setdefault(module, {})[run] = devices
    lines: dict[int, list[VersionLine]] = {}
    for module, version, count, at, devices, shares in database.execute(_LINES).fetchall():
        by_run = dict(zip(at, zip(devices, shares, strict=True), strict=True))
        points = [by_run.get(run, (0, 0.0)) if sealed[run] else (None, None) for run in range(runs)]
        lines.setdefault(module, []).append(
            VersionLine(version, count, tuple(each for each, _ in points), tuple(each for _, each in points))
        )
    return Adoption(
        tuple(
            ModuleLine(
                account, product_key, module_name,
                tuple(totals[module].get(run, 0) if sealed[run] else None for run in range(runs)),
                tuple(lines[module]),
            )
            for module, account, product_key, module_name in titles
        ),
        int(found),
    )  # fmt: skip


_MODULES = """
  CREATE OR REPLACE TEMP TABLE adopted AS
  SELECT row_number() OVER (ORDER BY last DESC, peak DESC, account, product_key, module_name) AS module, *
  FROM (
    SELECT account, product_key, module_name, max(devices) AS peak,
      coalesce(max(devices) FILTER (run = (SELECT max(run) FROM runs WHERE sealed)), 0) AS last
    FROM (SELECT run, account, product_key, module_name, sum(devices) AS devices FROM history GROUP BY ALL)
    GROUP BY ALL
  ) ORDER BY module LIMIT ?"""


_VERSIONS = """
  CREATE OR REPLACE TEMP TABLE spread AS
  SELECT module, run, module_version, h.devices, share
  FROM history h JOIN adopted a ON h.account = a.account AND h.product_key IS NOT DISTINCT FROM a.product_key
    AND h.module_name = a.module_name;
  CREATE OR REPLACE TEMP TABLE totals AS
  SELECT module, run, sum(devices)::BIGINT AS devices FROM spread GROUP BY ALL;
  CREATE OR REPLACE TEMP TABLE chief AS
  SELECT module, module_version, row_number() OVER (
      PARTITION BY module ORDER BY now <= {now} AND last > 0 DESC, peak DESC, total DESC, module_version
    ) <= {chief} AS chief
  FROM (
    SELECT *, row_number() OVER (PARTITION BY module ORDER BY last DESC, peak DESC, module_version) AS now
    FROM (
      SELECT module, module_version, max(share) AS peak, sum(devices) AS total,
        coalesce(max(devices) FILTER (run = (SELECT max(run) FROM runs WHERE sealed)), 0) AS last
      FROM spread GROUP BY ALL
    )
  )"""


_LINES = """
  SELECT module, version, max(versions) AS versions, list(run ORDER BY run), list(devices ORDER BY run),
    list(share ORDER BY run)
  FROM (
    SELECT s.module, CASE WHEN chief THEN s.module_version END AS version, s.run, sum(s.devices)::BIGINT AS devices,
      round(sum(s.devices) / any_value(t.devices), 6) AS share,
      any_value(CASE WHEN chief THEN 1 ELSE others END) AS versions
    FROM spread s JOIN chief c ON s.module = c.module AND s.module_version = c.module_version
    JOIN totals t ON s.module = t.module AND s.run = t.run
    JOIN (SELECT module, count(*) FILTER (NOT chief) AS others FROM chief GROUP BY module) o ON s.module = o.module
    GROUP BY ALL
  )
  GROUP BY module, version
  ORDER BY module, version IS NULL,
    coalesce(max(devices) FILTER (run = (SELECT max(run) FROM runs WHERE sealed)), 0) DESC, max(share) DESC, version"""
"""Shares are computed as the inventory computes them, so that both give the same number."""
