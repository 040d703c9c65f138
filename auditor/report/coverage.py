"""Whom a run's numbers are of, and what was slow or failed: queries over the view ``devices``."""

from dataclasses import fields

import duckdb

from auditor.query.freshness import read_ages
from auditor.query.snapshot import Frozen
from auditor.report.model import Account, Coverage, Effort, Failure, Product, Trouble
from auditor.runs.estimates import sample_of
from auditor.runs.manifest import DeviceCounts, Manifest
from auditor.runs.views import number
from auditor.stats.stratified import Tallies

PRODUCTS, FAILURES, ACCOUNTS, EFFORTS = 8, 8, 12, 5
"""Rows that the page has of each."""


_LENGTH = 400
"""Characters of a text that are read: a device, or whoever wrote the file, may have made it longer than memory."""


_STATES = tuple(state.name for state in fields(DeviceCounts))


_UNDRAWN = "count(*) FILTER (source = 'unsampled')"


_BY_STATE = ", ".join(f"count(*) FILTER (status = '{state}') AS {state}" for state in _STATES)


def read_coverage(database: duckdb.DuckDBPyConnection, run: Frozen, tallies: Tallies | None = None) -> Coverage:
    """Devices by state, how old their answers are, and the products of which the greatest part has no answer.

    Args:
        database: with the view ``devices``.
        run: as it was frozen.
        tallies: what a sample showed, if the run is one.
    """
    database.execute(
        f"CREATE TEMP TABLE products AS SELECT account, product_key, count(*) AS devices, {_BY_STATE}, "
        f"{_UNDRAWN} AS unsampled, failed + pending - unsampled AS left_over, count(*) - unsampled AS wanted "
        "FROM devices GROUP BY account, product_key"
    )
    rows = database.execute(
        f"SELECT left(account, {_LENGTH}), left(product_key, {_LENGTH}), {', '.join(_STATES)}, unsampled FROM products "
        "WHERE left_over > 0 "
        "ORDER BY left_over / wanted DESC, (not_found + empty) / wanted DESC, devices DESC, "
        f"account, product_key LIMIT {PRODUCTS}"
    ).fetchall()
    return Coverage(
        counts=run.counts,
        products=tuple(Product(row[0], row[1], DeviceCounts(*row[2:-1]), row[-1]) for row in rows),
        all_products=number(database, "SELECT count(*) FROM products"),
        lacking=number(database, "SELECT count(*) FROM products WHERE left_over > 0"),
        ages=read_ages(database, run.manifest.started_at),
        unsampled=run.sources.unsampled,
        sample=None if tallies is None else sample_of(database, tallies),
    )


def read_trouble(database: duckdb.DuckDBPyConnection, manifest: Manifest) -> Trouble:
    """Failures by code, what each account took, and the products whose devices were asked most often.

    Args:
        database: with the view ``devices`` and the table ``products`` that ``read_coverage`` makes.
        manifest: the run's, for the accounts' quotas.
    """
    failed = "FROM devices WHERE status = 'failed'"
    failures = database.execute(
        f"SELECT left(coalesce(code, ''), {_LENGTH}) AS kind, count(*) AS number, "
        f"min(left(coalesce(product_key || '/' || device_name, iot_id), {_LENGTH})), "
        f"min(left(coalesce(message, ''), {_LENGTH})) {failed} "
        f"GROUP BY kind ORDER BY number DESC, kind LIMIT {FAILURES}"
    ).fetchall()
    quotas = {account.name: account.quota for account in manifest.accounts}
    accounts = database.execute(
        f"SELECT left(account, {_LENGTH}) AS name, count(*) - {_UNDRAWN} AS number, "
        "count(*) FILTER (status NOT IN ('failed', 'pending')), coalesce(sum(attempts), 0)::BIGINT FROM devices "
        f"GROUP BY name ORDER BY number DESC, name LIMIT {ACCOUNTS}"
    ).fetchall()
    efforts = database.execute(
        f"SELECT left(account, {_LENGTH}) AS name, left(product_key, {_LENGTH}) AS product, count(*) AS number, "
        "sum(attempts)::BIGINT AS asked FROM devices WHERE attempts > 0 GROUP BY name, product HAVING asked > number "
        f"ORDER BY asked / number DESC, number DESC, name, product LIMIT {EFFORTS}"
    ).fetchall()
    return Trouble(
        failures=tuple(Failure(*row) for row in failures),
        all_failures=number(database, f"SELECT count(DISTINCT left(coalesce(code, ''), {_LENGTH})) {failed}"),
        accounts=tuple(Account(row[0], quotas.get(row[0]), *row[1:]) for row in accounts),
        all_accounts=number(database, f"SELECT count(DISTINCT left(account, {_LENGTH})) FROM devices"),
        products=tuple(Effort(*row) for row in efforts),
    )
