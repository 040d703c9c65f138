"""Coverage of a run, its problems, and its devices by attributes, for the report: queries over the view ``devices``."""

from collections.abc import Sequence
from dataclasses import fields

import duckdb

from auditor.analysis.device_groups import GROUPED_MODULES, define_device_groups, group_values
from auditor.query.freshness import read_ages
from auditor.query.snapshot import RunSnapshot
from auditor.report.model import (
    AccountEffort,
    CoverageSection,
    DeviceGroup,
    FailureGroup,
    GroupSection,
    ProblemSection,
    ProductCoverage,
    RequestEffort,
)
from auditor.runs.estimates import summarize_sample
from auditor.runs.manifest import SUCCESSFUL_STATES, DeviceCounts, Manifest
from auditor.runs.views import QUERIED
from auditor.stats.stratified import StratifiedCounts
from auditor.storage.database import scalar

MIN_UNANSWERED, MIN_UNANSWERED_SHARE = 3, 0.05
"""Devices without an answer, and their fraction, from which a product needs attention."""

MIN_ACCOUNT_SHARE = 0.5
"""Fraction of an account's devices without an answer from which it is the account that fails, not its products."""

MAX_PRODUCTS, MAX_FAILURES, MAX_ACCOUNTS, MAX_EFFORTS, MAX_GROUPS = 8, 8, 12, 5, 30
"""Rows of the page's tables."""

_MAX_LENGTH = 400
"""Characters of a text that are read; devices, or an edited file, may have text that does not fit into memory."""

_STATES = tuple(state.name for state in fields(DeviceCounts))

_NEEDED_NO_REQUEST = f"source IN ({QUERIED}) AND status = 'empty' AND reason = 'never_activated' AND attempts = 0"

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
    """Read devices by state, ages of answers, and the products that lack the most answers.

    Those that need attention are first. Products of an account that fails do not take the places of the others.

    Defines the table ``product_states``.

    Args:
        database: with the view ``devices`` and the table ``product_names``.
        run: the run.
        sample: counts of the sample, if the run is one.
    """
    database.execute(
        f"CREATE TEMP TABLE product_states AS SELECT account, product_key, count(*) AS devices, {_BY_STATE}, "
        f"{_UNSAMPLED} AS unsampled, failed + pending - unsampled AS unanswered, count(*) - unsampled AS sampled "
        "FROM devices GROUP BY account, product_key"
    )
    place = (
        f"unanswered >= greatest({MIN_UNANSWERED}, {MIN_UNANSWERED_SHARE} * sampled) DESC, unanswered DESC, "
        "(not_found + empty) / sampled DESC, devices DESC, account, product_key"
    )
    by_account = "OVER (PARTITION BY account)"
    fails = f"sum(sampled - unanswered) {by_account} < {1 - MIN_ACCOUNT_SHARE} * sum(sampled) {by_account}"
    rows = database.execute(
        f"SELECT left(account, {_MAX_LENGTH}), left(product_key, {_MAX_LENGTH}), left(product_name, {_MAX_LENGTH}), "
        f"{', '.join(_STATES)}, unsampled FROM (SELECT *, {fails} AS account_fails FROM product_states) "
        "LEFT JOIN product_names USING (account, product_key) WHERE unanswered > 0 "
        f"QUALIFY least(row_number() OVER (ORDER BY {place}), row_number() OVER (ORDER BY account_fails, {place})) "
        f"<= {MAX_PRODUCTS} ORDER BY {place}"
    ).fetchall()
    return CoverageSection(
        counts=run.counts,
        products=tuple(ProductCoverage(row[0], row[1], row[2], DeviceCounts(*row[3:-1]), row[-1]) for row in rows),
        product_count=scalar(database, "SELECT count(*) FROM product_states"),
        incomplete_products=scalar(database, "SELECT count(*) FROM product_states WHERE unanswered > 0"),
        ages=read_ages(database, run.manifest.started_at),
        unsampled=run.sources.unsampled,
        sample=None if sample is None else summarize_sample(database, sample),
        never_activated=scalar(database, f"SELECT count(*) FROM devices WHERE {_NEEDED_NO_REQUEST}"),
    )


def read_problems(database: duckdb.DuckDBPyConnection, manifest: Manifest) -> ProblemSection:
    """Read failures by code, effort by account, and the products with the most attempts per device.

    Args:
        database: with the view ``devices`` and the table ``product_names``.
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
        "count(*) FILTER (status NOT IN ('failed', 'pending')) AS answered, "
        "count(*) FILTER (status = 'failed'), coalesce(sum(attempts), 0)::BIGINT "
        "FROM devices "
        f"GROUP BY name ORDER BY answered < {1 - MIN_ACCOUNT_SHARE} * number DESC, number DESC, name "
        f"LIMIT {MAX_ACCOUNTS}"
    ).fetchall()
    reasons = database.execute(
        f"SELECT left(account, {_MAX_LENGTH}) AS name, left(coalesce(code, ''), {_MAX_LENGTH}) AS kind, "
        f"min(left(coalesce(message, ''), {_MAX_LENGTH})) {failed} GROUP BY name, kind "
        "QUALIFY row_number() OVER (PARTITION BY name ORDER BY count(*) DESC, kind) = 1"
    ).fetchall()
    failure_of = {name: (code, message) for name, code, message in reasons}
    efforts = database.execute(
        f"SELECT left(account, {_MAX_LENGTH}) AS name, left(product_key, {_MAX_LENGTH}) AS product, "
        f"any_value(left(product_name, {_MAX_LENGTH})), count(*) AS number, sum(attempts)::BIGINT AS total "
        "FROM devices LEFT JOIN product_names USING (account, product_key) WHERE attempts > 0 "
        "GROUP BY name, product HAVING total > number "
        f"ORDER BY total / number DESC, number DESC, name, product LIMIT {MAX_EFFORTS}"
    ).fetchall()
    return ProblemSection(
        failures=tuple(FailureGroup(*row) for row in failures),
        failure_count=scalar(database, f"SELECT count(DISTINCT left(coalesce(code, ''), {_MAX_LENGTH})) {failed}"),
        accounts=tuple(
            AccountEffort(row[0], quotas.get(row[0]), *row[1:], *failure_of.get(row[0], ())) for row in accounts
        ),
        account_count=scalar(database, f"SELECT count(DISTINCT left(account, {_MAX_LENGTH})) FROM devices"),
        products=tuple(RequestEffort(*row) for row in efforts),
    )


def read_groups(database: duckdb.DuckDBPyConnection, names: Sequence[str]) -> GroupSection:
    """Read the devices by attributes of these names.

    Args:
        database: with the views ``devices``, ``modules`` and ``aged_versions``; see ``define_version_ages``.
        names: names of attributes.
    """
    combined = define_device_groups(database, names, MAX_GROUPS)
    values = [*group_values(database, names, _MAX_LENGTH, MAX_GROUPS), (None,) * len(names)]
    rows = database.execute(_GROUPS).fetchall()
    groups = [DeviceGroup(values[number], *counts) for number, *counts in rows]
    return GroupSection(tuple(names), tuple(groups[:MAX_GROUPS]), combined, groups[-1] if combined else None)


_GROUPS = f"""
  SELECT number, devices, failed, on_target FROM (
    SELECT number, count(*) AS devices, count(*) FILTER (status = 'failed') AS failed FROM grouped_devices
    GROUP BY number
  ) LEFT JOIN (
    SELECT number, coalesce(sum(m.devices) FILTER (age <= 0), 0) / sum(m.devices) AS on_target FROM (
      SELECT number, account, product_key, lower(module_name) AS module_key, module_version, count(*) AS devices
      FROM ({GROUPED_MODULES}) GROUP BY ALL
    ) m JOIN aged_versions v ON m.account = v.account AND m.product_key IS NOT DISTINCT FROM v.product_key
      AND m.module_key = lower(v.module_name) AND m.module_version = v.module_version
    WHERE age < 4 GROUP BY number
  ) USING (number) ORDER BY number"""
