"""In which order devices are asked: by what it is worth, or at random; tables of an open ``Choosing``.

Both orders are fair to every product at every length, for an audit may end before all were asked: of two products each
has its part by its size.
"""

from dataclasses import dataclass

import duckdb

TWO_TO_64 = "18446744073709551616.0"
"""What a number that is drawn is below."""


_SPREAD = 0.1
"""The part of a sample that all products share alike, so that none is left out for being small."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a budget bears.

    Attributes:
        devices: so many of the account; None: that is not known.
        guaranteed: the part, 0 to 1, of it that each product has by its size.
        most: no more than so many can be asked, and are in the plan; None: all are, asked as long as there is time.
    """

    devices: int | None
    guaranteed: float
    most: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """How many devices are drawn.

    Attributes:
        devices: so many, of all products together; None: all of them, in the order of a sample.
        alike: whether products are asked alike, whatever their size, rather than by it.
    """

    devices: int | None
    alike: bool = False


def rank_by_worth(database: duckdb.DuckDBPyConnection, budget: Budget | None) -> None:
    """Makes the table ``ranked`` (place, row, renamed, why, rank) of ``asking``: devices with a reason to be asked.

    Worth most are devices that were never read, then those that failed, violate a policy, changed often, and were not
    read for the longest time. Of a budget each product has a guaranteed part by its size, in which its oldest come
    first: so none waits for long because others are worth more, night after night.

    Args:
        database: with the tables ``asking`` and ``wanted``.
        budget: what it bears; None: everyone.
    """
    guaranteed, most = "false", ""
    if budget is not None:
        part = "asked" if budget.devices is None else f"{budget.devices} * asked / every"
        guaranteed = f"turn <= ceil({budget.guaranteed!r} * {part})"
        most = "" if budget.most is None else f" LIMIT {budget.most}"
    database.execute(f"""
      CREATE TABLE ranked AS SELECT place, row, renamed, why,
        row_number() OVER (ORDER BY NOT guaranteed, CASE WHEN guaranteed THEN turn / asked
          WHEN why = 'new' THEN 0 WHEN why = 'failed' THEN 1 WHEN violating THEN 2 WHEN changes > 0 THEN 3 ELSE 4 END,
          CASE WHEN NOT guaranteed THEN changes END DESC, touched NULLS FIRST, place) AS rank
      FROM (SELECT *, {guaranteed} AS guaranteed FROM (
        SELECT place, row, renamed, why, violating, changes, coalesce(audited_at, failed_at) AS touched,
          row_number() OVER (PARTITION BY product_key ORDER BY why <> 'new', coalesce(audited_at, failed_at), place)
            AS turn, count(*) OVER (PARTITION BY product_key) AS asked, count(*) OVER () AS every
        FROM asking JOIN (SELECT place, product_key FROM wanted) USING (place) WHERE why IS NOT NULL
      )) ORDER BY rank{most}""")


def rank_sample(database: duckdb.DuckDBPyConnection, sample: Sample, *, draw: str, draw_product: str) -> None:
    """Makes the table ``ranked`` (place, row, renamed, why, rank) of ``wanted``: a random sample stratified by product.

    In each product devices come in a random order, the same in every run of one seed. The j-th of a product's N
    devices has the rank (j + u) / N, with one u from 0 to 1 for each product: so of every beginning of the order each
    product has its part by its size, but for one device. Before that comes what all products share alike.

    Args:
        database: with the view ``wanted``.
        sample: how many.
        draw: the SQL of a device's random number.
        draw_product: that of a product's, of its column ``product``.
    """
    database.execute(
        f"CREATE TABLE drawn AS SELECT place, coalesce(product_key, '') AS product, {draw} AS draw FROM wanted"
    )
    sizes = "SELECT product, count(*) AS size FROM drawn GROUP BY product"
    database.execute(f"CREATE TABLE sizes AS SELECT *, {draw_product} / {TWO_TO_64} AS shift FROM ({sizes})")
    products, every = database.execute("SELECT count(*), coalesce(sum(size), 0)::BIGINT FROM sizes").fetchone() or (
        0,
        0,
    )
    wanted = every if sample.devices is None else min(sample.devices, every)
    alike = 0 if sample.devices is None or not products else int(_SPREAD * wanted / products)
    # Whoever draws a number that high is not among the first of its product: it needs no place in the order.
    enough = f"least(size, greatest({alike}, {2.0 * wanted / max(every, 1)!r} * size + 100))"
    rank = "turn + shift" if sample.alike else "(turn + shift) / size"
    most = "" if sample.devices is None else f" LIMIT {wanted}"
    database.execute(f"""
      CREATE TABLE ranked AS SELECT place, NULL::BIGINT AS row, false AS renamed, 'sample' AS why,
        row_number() OVER (ORDER BY turn >= {alike}, {rank}, place)
        AS rank
      FROM (SELECT place, size, shift, row_number() OVER (PARTITION BY product ORDER BY draw, place) - 1 AS turn
        FROM drawn JOIN sizes USING (product)
        WHERE draw / {TWO_TO_64} <= (2 * {enough} + 100) / size)
      ORDER BY rank{most}""")
    database.execute("DROP TABLE drawn")
