"""Order in which selected devices are queried: by priority, or at random.

Both orders are fair to products at every length, because an audit may end early: each product has its part by its size.
"""

from dataclasses import dataclass

import duckdb

TWO_TO_64 = "18446744073709551616.0"
"""Exclusive upper bound of random numbers, as SQL."""

_EQUAL_FRACTION = 0.1
"""Fraction of a sample that is divided equally among products, so that small products are represented."""


_MAX_RECHECK_FRACTION = 0.1
"""Fraction of the queries that are rechecks, while devices that may have changed are left."""


@dataclass(frozen=True, slots=True)
class SelectionBudget:
    """Number of devices of an account that a run can query (None: unknown), and the limit of the plan.

    ``fair_share`` is the fraction, 0 to 1, that is divided among products by size. Without a limit all devices are in
    the plan, and are queried until the time is up.
    """

    devices: int | None
    fair_share: float
    limit: int | None


@dataclass(frozen=True, slots=True)
class SampleSpec:
    """Number of devices of a sample; None: all of them, in random order.

    ``equal_per_product``: products are sampled equally, whatever their size, rather than by size.
    """

    devices: int | None
    equal_per_product: bool = False


@dataclass(frozen=True, slots=True)
class RecheckOrder:
    """Order of the devices that are queried only for the recheck: by ``draw``, the SQL of a random number of a device.

    ``fraction``, 0 to 1, of the queries are rechecks until no other device is left, but at most a tenth.
    """

    draw: str
    fraction: float


def rank_by_priority(
    database: duckdb.DuckDBPyConnection, budget: SelectionBudget | None, recheck: RecheckOrder | None = None
) -> None:
    """Create the table ``ranked`` of the devices with a selection reason, the highest priority first.

    The priority is: no previous result, failed, violates the policy, changed often, oldest result. Each product has a
    fair share of the budget by its size, for its oldest results. So no device waits long because others have a higher
    priority, run after run. Without a budget every device with a reason is ranked.

    Devices of the recheck come in a random order between the others. So a run that ends early has checked a random part
    of them, not those with the oldest results.

    The database has the tables ``with_reason`` and ``candidates``.
    """
    in_fair_share, limit = "false", ""
    if budget is not None:
        part = "product_devices" if budget.devices is None else f"{budget.devices} * product_devices / all_devices"
        in_fair_share = f"turn <= ceil({budget.fair_share!r} * {part})"
        limit = "" if budget.limit is None else f"LIMIT {budget.limit}"
    database.execute(f"""
      CREATE TABLE ranked AS
      WITH due AS NOT MATERIALIZED (  -- turns within a product: devices without a result first, then the oldest results
        SELECT position, previous_row, renamed, selection_reason, violating, change_count,
          coalesce(audited_at, failed_at) AS last_queried_at,
          row_number() OVER (
            PARTITION BY product_key ORDER BY selection_reason <> 'new', coalesce(audited_at, failed_at), position
          ) AS turn,
          count(*) OVER (PARTITION BY product_key) AS product_devices,
          count(*) OVER () AS all_devices
        FROM with_reason JOIN (SELECT position, product_key FROM candidates) USING (position)
        WHERE selection_reason <> 'recheck'
      ), shared AS NOT MATERIALIZED (
        SELECT *, {in_fair_share} AS in_fair_share FROM due
      )
      SELECT position, previous_row, renamed, selection_reason, row_number() OVER (ORDER BY
        NOT in_fair_share,
        CASE
          WHEN in_fair_share THEN turn / product_devices  -- products take turns, by their size
          WHEN selection_reason = 'new' THEN 0
          WHEN selection_reason = 'failed' THEN 1
          WHEN violating THEN 2
          WHEN change_count > 0 THEN 3
          ELSE 4
        END,
        CASE WHEN NOT in_fair_share THEN change_count END DESC,
        last_queried_at NULLS FIRST,
        position
      ) AS rank
      FROM shared ORDER BY rank {limit}""")
    if recheck is not None and recheck.fraction > 0:
        interval = 1 / min(recheck.fraction, _MAX_RECHECK_FRACTION) - 1
        selected = "FROM with_reason WHERE selection_reason = 'recheck'"
        draws = f"SELECT position, {recheck.draw} AS draw FROM candidates SEMI JOIN ({selected}) USING (position)"
        database.execute(f"""
          CREATE OR REPLACE TABLE ranked AS
          WITH rechecks AS NOT MATERIALIZED (
            SELECT position, previous_row, renamed, selection_reason,
              (row_number() OVER (ORDER BY draw, position) - 0.5) * {interval!r} AS place
            FROM ({selected}) JOIN ({draws}) USING (position)
          )
          SELECT * EXCLUDE (place), row_number() OVER (ORDER BY place, position) AS rank
          FROM (SELECT * RENAME (rank AS place) FROM ranked UNION ALL FROM rechecks) ORDER BY rank {limit}""")


def rank_sample(database: duckdb.DuckDBPyConnection, sample: SampleSpec, *, draw: str, draw_product: str) -> None:
    """Create the table ``ranked`` of a random sample of the view ``candidates``, stratified by product.

    In each product devices come in a random order, which is the same in every run with the same seed. The j-th of a
    product's N devices has the rank (j + u) / N, with one random u from 0 to 1 for each product. So in every prefix of
    the order each product has its part by its size, up to one device. The equal parts of all products come before that.

    ``draw`` is the SQL of a device's random number, ``draw_product`` that of the random number of a row's ``product``.
    """
    draws = f"SELECT position, coalesce(product_key, '') AS product, {draw} AS draw FROM candidates"
    database.execute(f"CREATE TABLE draws AS {draws}")
    sizes = "SELECT product, count(*) AS size FROM draws GROUP BY product"
    database.execute(f"CREATE TABLE sizes AS SELECT *, {draw_product} / {TWO_TO_64} AS shift FROM ({sizes})")
    counted = "SELECT count(*), coalesce(sum(size), 0)::BIGINT FROM sizes"
    products, devices = database.execute(counted).fetchone() or (0, 0)
    wanted = devices if sample.devices is None else min(sample.devices, devices)
    equal = 0 if sample.devices is None or not products else int(_EQUAL_FRACTION * wanted / products)
    # A device with a higher random number cannot be among the first of its product, so it is not sorted.
    first = f"least(size, greatest({equal}, {2.0 * wanted / max(devices, 1)!r} * size + 100))"
    rank = "turn + shift" if sample.equal_per_product else "(turn + shift) / size"
    limit = "" if sample.devices is None else f"LIMIT {wanted}"
    database.execute(f"""
      CREATE TABLE ranked AS
      WITH turns AS NOT MATERIALIZED (
        SELECT position, size, shift, row_number() OVER (PARTITION BY product ORDER BY draw, position) - 1 AS turn
        FROM draws JOIN sizes USING (product)
        WHERE draw / {TWO_TO_64} <= (2 * {first} + 100) / size
      )
      SELECT position, NULL::BIGINT AS previous_row, false AS renamed, 'sample' AS selection_reason,
        row_number() OVER (ORDER BY turn >= {equal}, {rank}, position) AS rank
      FROM turns ORDER BY rank {limit}""")
    database.execute("DROP TABLE draws")
