"""Whom a run's numbers are of, and what was slow or failed: queries over the view ``devices``."""

from dataclasses import fields
from datetime import UTC, datetime

import duckdb

from auditor.inventory.folder import DeviceCounts, Manifest
from auditor.inventory.views import number
from auditor.report.data import Account, Coverage, Effort, Failure, Product, Trouble

PRODUCTS, FAILURES, ACCOUNTS, EFFORTS = 8, 8, 12, 5
"""Rows that the page has of each."""

_LENGTH = 400
"""Characters of a text that are read: a device, or whoever wrote the file, may have made it longer than memory."""

_STATES = tuple(state.name for state in fields(DeviceCounts))
_BY_STATE = ", ".join(f"count(*) FILTER (status = '{state}') AS {state}" for state in _STATES)


def read_coverage(database: duckdb.DuckDBPyConnection, counts: DeviceCounts) -> Coverage:
    """Devices by state, and the products of which the greatest part has no answer.

    Args:
        database: with the view ``devices``.
        counts: devices by state, as the run was frozen.
    """
    database.execute(
        f"CREATE TEMP TABLE products AS SELECT account, product_key, count(*) AS devices, {_BY_STATE} "
        "FROM devices GROUP BY account, product_key"
    )
    rows = database.execute(
        f"SELECT left(account, {_LENGTH}), left(product_key, {_LENGTH}), {', '.join(_STATES)} FROM products "
        "WHERE failed + pending > 0 "
        "ORDER BY (failed + pending) / devices DESC, (not_found + empty) / devices DESC, devices DESC, "
        f"account, product_key LIMIT {PRODUCTS}"
    ).fetchall()
    # Somebody else's file may hold anything under that name.
    first, last = database.execute(
        "SELECT min(point), max(point) FROM (SELECT try_cast(audited_at AS TIMESTAMP) AS point FROM devices)"
    ).fetchone() or (None, None)
    return Coverage(
        counts=counts,
        products=tuple(Product(row[0], row[1], DeviceCounts(*row[2:])) for row in rows),
        all_products=number(database, "SELECT count(*) FROM products"),
        lacking=number(database, "SELECT count(*) FROM products WHERE failed + pending > 0"),
        first=_utc(first),
        last=_utc(last),
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
        f"SELECT left(account, {_LENGTH}) AS name, count(*) AS number, "
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


def _utc(point: object) -> datetime | None:
    """A time of the database; None for one before or after all years of a calendar, which it gives as text."""
    return point.replace(tzinfo=UTC) if isinstance(point, datetime) else None
