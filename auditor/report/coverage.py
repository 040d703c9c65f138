"""Coverage of a run and its problems, for the report: queries over the view ``devices``."""

from dataclasses import fields

import duckdb

from auditor.query.freshness import read_ages
from auditor.query.snapshot import RunSnapshot
from auditor.report.model import (
    AccountEffort,
    CoverageSection,
    FailureGroup,
    ProblemSection,
    ProductCoverage,
    RequestEffort,
)
from auditor.runs.estimates import summarize_sample
from auditor.runs.manifest import SUCCESSFUL_STATES, DeviceCounts, Manifest
from auditor.stats.stratified import StratifiedCounts
from auditor.storage.database import scalar

MAX_PRODUCTS, MAX_FAILURES, MAX_ACCOUNTS, MAX_EFFORTS = 8, 8, 12, 5
"""Rows of the page's tables."""

_MAX_LENGTH = 400
"""Characters of a text that are read; devices, or an edited file, may have text that does not fit into memory."""

_STATES = tuple(state.name for state in fields(DeviceCounts))

_UNSAMPLED = "count(*) FILTER (source = 'unsampled')"

_BY_STATE = ", ".join(f"count(*) FILTER (status = '{state}') AS {state}" for state in _STATES)


def run_labels(state: str, counts: DeviceCounts, *, tampered: bool, unsampled: int = 0) -> tuple[str, ...]:
    """Return what limits a run's numbers, in a word each.

    Args:
        state: the run's state.
        counts: devices by state.
        tampered: whether its files were changed.
        unsampled: devices that were not sampled.
    """
    partial = state not in SUCCESSFUL_STATES or (state == "complete" and counts.unanswered > 0)
    completeness = () if not partial else ("incomplete" if state == "complete" else state,)
    if unsampled:
        # All sampled devices.
        answered = state in ("partial", *SUCCESSFUL_STATES) and counts.unanswered == unsampled
        completeness = ("sample", *(() if answered else completeness))
    return (*completeness, *(("tampered",) if tampered else ()))


def read_coverage(
    database: duckdb.DuckDBPyConnection, run: RunSnapshot, sample: StratifiedCounts | None = None
) -> CoverageSection:
    """Read devices by state, ages of answers, and the products with the largest fraction of unanswered devices.

    Defines the table ``product_states``.

    Args:
        database: with the view ``devices``.
        run: the run.
        sample: counts of the sample, if the run is one.
    """
    database.execute(
        f"CREATE TEMP TABLE product_states AS SELECT account, product_key, count(*) AS devices, {_BY_STATE}, "
        f"{_UNSAMPLED} AS unsampled, failed + pending - unsampled AS unanswered, count(*) - unsampled AS sampled "
        "FROM devices GROUP BY account, product_key"
    )
    rows = database.execute(
        f"SELECT left(account, {_MAX_LENGTH}), left(product_key, {_MAX_LENGTH}), {', '.join(_STATES)}, unsampled "
        "FROM product_states WHERE unanswered > 0 "
        "ORDER BY unanswered / sampled DESC, (not_found + empty) / sampled DESC, devices DESC, "
        f"account, product_key LIMIT {MAX_PRODUCTS}"
    ).fetchall()
    return CoverageSection(
        counts=run.counts,
        products=tuple(ProductCoverage(row[0], row[1], DeviceCounts(*row[2:-1]), row[-1]) for row in rows),
        product_count=scalar(database, "SELECT count(*) FROM product_states"),
        incomplete_products=scalar(database, "SELECT count(*) FROM product_states WHERE unanswered > 0"),
        ages=read_ages(database, run.manifest.started_at),
        unsampled=run.sources.unsampled,
        sample=None if sample is None else summarize_sample(database, sample),
    )


def read_problems(database: duckdb.DuckDBPyConnection, manifest: Manifest) -> ProblemSection:
    """Read failures by code, effort by account, and the products with the most attempts per device.

    Args:
        database: with the view ``devices``.
        manifest: the run's manifest, for the accounts' quotas.
    """
    failed = "FROM devices WHERE status = 'failed'"
    failures = database.execute(
        f"SELECT left(coalesce(code, ''), {_MAX_LENGTH}) AS kind, count(*) AS number, "
        f"min(left(coalesce(product_key || '/' || device_name, iot_id), {_MAX_LENGTH})), "
        f"min(left(coalesce(message, ''), {_MAX_LENGTH})) {failed} "
        f"GROUP BY kind ORDER BY number DESC, kind LIMIT {MAX_FAILURES}"
    ).fetchall()
    quotas = {account.name: account.quota for account in manifest.accounts}
    accounts = database.execute(
        f"SELECT left(account, {_MAX_LENGTH}) AS name, count(*) - {_UNSAMPLED} AS number, "
        "count(*) FILTER (status NOT IN ('failed', 'pending')), coalesce(sum(attempts), 0)::BIGINT FROM devices "
        f"GROUP BY name ORDER BY number DESC, name LIMIT {MAX_ACCOUNTS}"
    ).fetchall()
    efforts = database.execute(
        f"SELECT left(account, {_MAX_LENGTH}) AS name, left(product_key, {_MAX_LENGTH}) AS product, "
        "count(*) AS number, sum(attempts)::BIGINT AS total FROM devices WHERE attempts > 0 "
        "GROUP BY name, product HAVING total > number "
        f"ORDER BY total / number DESC, number DESC, name, product LIMIT {MAX_EFFORTS}"
    ).fetchall()
    return ProblemSection(
        failures=tuple(FailureGroup(*row) for row in failures),
        failure_count=scalar(database, f"SELECT count(DISTINCT left(coalesce(code, ''), {_MAX_LENGTH})) {failed}"),
        accounts=tuple(AccountEffort(row[0], quotas.get(row[0]), *row[1:]) for row in accounts),
        account_count=scalar(database, f"SELECT count(DISTINCT left(account, {_MAX_LENGTH})) FROM devices"),
        products=tuple(RequestEffort(*row) for row in efforts),
    )
