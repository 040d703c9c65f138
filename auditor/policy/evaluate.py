"""Evaluate a policy on a run: a verdict for each rule, and all devices and modules that violate one.

Rules about versions (minimum, exact, deny) apply to devices that report a matching module; the worst of a device's
modules decides. ``required`` and ``max_age`` apply to devices that answered. A device that failed or is pending is
``not_seen``; one that the platform does not know has no verdict. Rules about groups (max_versions, newest, released)
apply to the modules of products. A module is ``not_seen`` if it complies, but devices without an answer might change
that. So is a product without any answer. For ``newest``, a module is ``unparseable`` if no version is newer than, or
the same as, all others.

- ``exact`` compares texts: ``1.2`` differs from ``1.2.0``. ``deny`` compares texts and versions: ``1.2`` denies
  ``v1.2``. Both reject a version that might violate them.
- An exception exempts what it matches, whatever its verdict would be, from rules about groups too. A device that is
  exempt in part is ``exempt`` if the rest of it complies.
- Unsampled devices (see ``sampled``) are counted apart from ``not_seen`` ones. The verdict is ``not_seen`` if no
  sampled device violates the rule, as that proves nothing. ``newest`` and ``released`` are decided by the
  interval of the share.
- A rule with ``where`` has only the devices in its scope whose attributes match.
- A rule is ``violated`` if any verdict is, else ``unparseable``, else ``not_seen``, else ``compliant``. A rule that
  matches nothing in the run, probably by a typing error, is ``not_seen``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from auditor.models import RunWarning
from auditor.policy.device_rules import evaluate_rules
from auditor.policy.model import Deny, Exact, MaxAge, Minimum, Policy, Required, Rule, join_texts
from auditor.policy.released import define_released_versions
from auditor.policy.results import RuleResult, collect_results
from auditor.policy.sampled import define_strata, has_unsampled, sample_warnings
from auditor.policy.scope import (
    UNPARSEABLE,
    VIOLATED,
    check_modules,
    define_run_tables,
    define_scopes,
    restrict_scopes,
)
from auditor.query.describe import warning_objects
from auditor.query.snapshot import RunSnapshot, snapshot_database
from auditor.runs.folder import find_run
from auditor.storage.database import Database, scalar
from auditor.storage.tables import ResultTable, translate_read_errors

MAX_EXAMPLES = 1_000
"""Rows in the examples of a rule."""


@dataclass(frozen=True, slots=True)
class PolicyReport:
    """The results of a policy on a run.

    Attributes:
        results: the result of each rule, in the order of the rules.
        table: the results as rows: verdict, severity, rule, unit, violated, unparseable, not_seen, exempt, compliant,
            requirement, message, unsampled, share, low, high.
        violations: a row for each rule and module of a device that is violated or unparseable. A rule about groups has
            rows for devices with older versions than the newest, or else one for the group. Columns: rule, severity,
            verdict, account, product_key, device_name, iot_id, module_name, module_version, reason.
        examples: the first rows of ``violations`` for each rule.
        warnings: why numbers do not cover the whole fleet or are not reliable, which exceptions have expired, and
            which rules match nothing in the run.
    """

    run: RunSnapshot
    policy: Policy
    results: tuple[RuleResult, ...]
    table: ResultTable
    violations: ResultTable
    violation_count: int
    examples: tuple[ResultTable, ...]
    warnings: tuple[RunWarning, ...]

    @property
    def failed(self) -> bool:
        """Whether a rule of severity ``error`` is violated."""
        return any(result.verdict == "violated" and result.rule.severity == "error" for result in self.results)


@contextmanager
def evaluate_policy(run: str | Path, policy: Policy, *, now: datetime | None = None) -> Iterator[PolicyReport]:
    """Evaluate a policy on a run. A run in progress is read as it is now.

    Memory is bounded; what does not fit goes to the system's temporary folder. ``run`` is a run folder, or a directory
    of runs (its newest run). Ages and exceptions refer to the time ``now``, with its offset; None: the current time.

    Raises:
        RunFolderError: the path is no run, or cannot be read.
        SettingsError: a rule is about modules that the run did not read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    now = datetime.now(UTC) if now is None else now.astimezone(UTC)
    folder = find_run(Path(run))
    reading = partial(translate_read_errors, folder)
    with snapshot_database("policy", folder) as (snapshot, database, work):
        check_modules(policy, snapshot.manifest.modules)
        with reading():
            define_run_tables(database, snapshot)
            define_scopes(database, policy.rules, now)
            restrict_scopes(database, policy.rules)
            define_released_versions(database, policy.rules, snapshot.files or folder, snapshot.manifest)
            sampled = has_unsampled(database)
            if sampled:
                define_strata(database, snapshot.fleet)
            evaluate_rules(database, policy.rules, now, work, sampled=sampled)
            results, unmatched = collect_results(database, policy.rules, sampled=sampled)
            by_sample = sample_warnings(database) if sampled else ()
            _define_results(database, results)
            _define_violations(database)
            count = scalar(database, "SELECT count(*) FROM violations")
            count += scalar(database, f"SELECT count(*) FROM group_verdicts WHERE has_row AND {_IS_LISTED}")
        # Without an answer every rule matches nothing, whatever its patterns are.
        unmatched = unmatched if snapshot.counts.answered else ()
        warnings = (*snapshot.warnings, *by_sample, *_expired_exceptions(policy.rules, now), *unmatched)
        head = snapshot.coverage | {"warnings": warning_objects(warnings)}

        def table(query: str, name: str = "violations") -> ResultTable:
            return ResultTable(database, query, reading=reading, name=name, head=head)

        by_rule = (f"{_VIOLATIONS} WHERE v.number = {at} {_ORDER} LIMIT {MAX_EXAMPLES}" for at in range(len(results)))
        verdicts = table("SELECT * EXCLUDE (number) FROM results ORDER BY number", "results")
        violations = table(f"{_VIOLATIONS} {_ORDER}")
        examples = tuple(map(violations.restricted, by_rule))
        yield PolicyReport(snapshot, policy, results, verdicts, violations, count, examples, warnings)


def _expired_exceptions(rules: tuple[Rule, ...], now: datetime) -> tuple[RunWarning, ...]:
    expired = [(f'rule "{rule.name}"', each) for rule in rules for each in rule.exceptions if each.expired(now)]
    details = (
        f"{rule}: the exception for {each.description} expired on {each.until} and exempts nothing ({each.reason})"
        for rule, each in expired
    )
    return tuple(RunWarning("expired_exception", "", detail) for detail in details)


def _define_violations(database: Database) -> None:
    """Define the view ``violations``: a rule, a device, and the module_version_id or the time that violates it."""
    database.execute(
        # A device that a run lists twice has the modules of both rows: each counts once.
        "CREATE VIEW violations AS "
        "SELECT DISTINCT v.rule, v.rank, line, module_version_id, NULL::TIMESTAMP AS answered_at "
        f"FROM reported r JOIN (FROM version_verdicts WHERE {_IS_LISTED}) v USING (module_version_id) "
        "ANTI JOIN exempt_rows e ON e.rule = v.rule AND e.line = r.line AND e.row = r.row "
        "ANTI JOIN outside_devices o ON o.rule = v.rule AND o.line = r.line "
        "UNION ALL SELECT rule, rank, line, NULL, answered_at FROM device_verdicts"
    )


def _define_results(database: Database, results: tuple[RuleResult, ...]) -> None:
    """Define ``results``, and ``reasons``: the text for a device that a rule finds, by its rank."""
    database.execute(
        "CREATE TABLE results (number INTEGER, verdict VARCHAR, severity VARCHAR, rule VARCHAR, unit VARCHAR, "
        "violated BIGINT, unparseable BIGINT, not_seen BIGINT, exempt BIGINT, compliant BIGINT, requirement VARCHAR, "
        "message VARCHAR, unsampled BIGINT, share DOUBLE, low DOUBLE, high DOUBLE)"
    )
    database.execute("CREATE TABLE reasons (number INTEGER, rank TINYINT, verdict VARCHAR, reason VARCHAR)")
    for at, result in enumerate(results):
        rule = result.rule
        database.execute(
            f"INSERT INTO results VALUES ({', '.join('?' * 16)})",
            [at, result.verdict, rule.severity, rule.name, result.unit, result.violated, result.unparseable,
             result.not_seen, result.exempt, result.compliant, rule.description, result.message,
             result.unsampled, result.share, result.low, result.high],
        )  # fmt: skip
        violated, unparseable = _reasons(rule)
        database.executemany(
            "INSERT INTO reasons VALUES (?, ?, ?, ?)",
            [(at, VIOLATED, "violated", violated), (at, UNPARSEABLE, "unparseable", unparseable)],
        )


def _reasons(rule: Rule) -> tuple[str, str]:
    """Return the texts for what violates a rule, and for what it cannot evaluate."""
    match rule.condition:
        case Minimum(version):
            return f"is older than {version}", f"cannot be ordered against {version}"
        case Exact(versions):
            return f"is not exactly {join_texts(versions)}", ""
        case Deny(patterns):
            return f"is denied by {join_texts(patterns)}", ""
        case Required():
            return f"reports no module {join_texts(rule.modules)}", ""
        case MaxAge(_, age):
            return f"was answered more than {age} ago, at ", "the time of its answer is unknown"
        case _:  # rules about groups write their own reasons
            return "", ""


_IS_LISTED = f"rank IN ({UNPARSEABLE}, {VIOLATED})"

_VIOLATIONS = f"""SELECT r.rule, r.severity, w.verdict, v.account, v.product_key, v.device_name, v.iot_id,
    v.module_name, v.module_version, coalesce(v.reason, w.reason || coalesce(v.answered_at, '')) AS reason
  FROM (
    SELECT b.rule AS number, b.rank, d.account, d.product_key, d.device_name, d.iot_id, m.module_name,
      m.module_version, strftime(b.answered_at, '%Y-%m-%dT%H:%M:%SZ') AS answered_at, g.reason
    FROM violations b JOIN device_rows d USING (line) LEFT JOIN module_versions m USING (module_version_id)
    LEFT JOIN group_verdicts g ON g.rule = b.rule AND g.product = m.product AND g.module = m.module
    UNION ALL
    SELECT g.rule, g.rank, account, product_key, NULL, NULL, title, NULL, NULL, g.reason
    FROM group_verdicts g JOIN products USING (product)
    JOIN (SELECT product, module, max(module_name) AS title FROM module_versions GROUP BY ALL) USING (product, module)
    WHERE g.has_row AND g.{_IS_LISTED}
  ) v JOIN results r USING (number) JOIN reasons w ON w.number = v.number AND w.rank = v.rank"""
"""What violates a rule. The names of the devices are read from the run's files only here."""

_ORDER = """ORDER BY r.number, w.verdict DESC, v.account, v.product_key, v.device_name, v.iot_id, v.module_name,
  v.module_version"""


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """The results of a policy, without its rows.

    Attributes:
        results: the result of each rule; none if the policy could not be evaluated.
        failed: whether a rule of severity ``error`` is violated.
        warnings: see ``PolicyReport``.
        problem: why the policy could not be evaluated; None if it was.
    """

    results: tuple[RuleResult, ...] = ()
    failed: bool = False
    warnings: tuple[RunWarning, ...] = ()
    problem: str | None = None

    @property
    def violated(self) -> tuple[RuleResult, ...]:
        """The violated rules, the most severe ones first."""
        violated = (result for result in self.results if result.verdict == "violated")
        return tuple(sorted(violated, key=lambda result: ("error", "warning", "note").index(result.rule.severity)))


def summarize_policy(run: str | Path, policy: Policy, *, now: datetime | None = None) -> PolicySummary:
    """Evaluate a policy and return its results without their rows; see ``evaluate_policy``."""
    with evaluate_policy(run, policy, now=now) as report:
        return PolicySummary(report.results, report.failed, report.warnings)
