"""Results of a policy, for the report: a result for each rule, and some violations."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import get_args

from auditor.policy.evaluate import evaluate_policy
from auditor.policy.model import Policy, Severity
from auditor.policy.results import RuleResult
from auditor.report.model import PolicySection
from auditor.storage.tables import ResultTable

MAX_RULES, MAX_EXAMPLES, MAX_EXAMPLES_PER_RULE = 60, 24, 3
"""Rules and violations on the page, and violations of one rule."""

_MAX_ROWS_READ = 200
"""Rows of a rule that are read to find violations."""

_ORDER = ("violated", "unparseable", "not_seen", "compliant")


def read_policy(run: Path, policy: Policy, now: datetime) -> PolicySection:
    """Read the results of all rules, violated rules first, and some violations of each.

    Raises:
        RunFolderError: the run cannot be read.
    """
    with evaluate_policy(run, policy, now=now) as report:
        results = sorted(
            report.results,
            key=lambda result: (_ORDER.index(result.verdict), get_args(Severity).index(result.rule.severity)),
        )
        violations = [
            (result.rule.name, list(_violations(table)))
            for result, table in zip(report.results, report.examples, strict=True)
            if result.verdict == "violated"
        ]
        examples = [
            (name, *_describe_violation(row)) for name, rows in violations for row in rows[:MAX_EXAMPLES_PER_RULE]
        ]
        return PolicySection(
            results=tuple(results[:MAX_RULES]),
            omitted=max(0, len(results) - MAX_RULES),
            violated=sum(result.verdict == "violated" for result in results),
            verdicts=Counter(_key(result) for result in results),
            examples=tuple(examples[:MAX_EXAMPLES]),
            warnings=tuple(warning for warning in report.warnings if warning not in report.run.warnings),
            rules_with_devices=frozenset(
                name for name, rows in violations if any(row["device_name"] or row["iot_id"] for row in rows)
            ),
        )


def _key(result: RuleResult) -> str:
    return result.rule.severity if result.verdict == "violated" else result.verdict


def _violations(table: ResultTable) -> Iterator[dict[str, object]]:
    """Yield the violations among a rule's first rows; a device may be named like a verdict."""
    for values in islice(table, _MAX_ROWS_READ):
        row = dict(zip(table.columns, values, strict=True))
        if row["verdict"] == "violated":
            yield row


def _describe_violation(row: dict[str, object]) -> tuple[str, str]:
    """Return where a rule is violated, and why."""
    names = [row[name] for name in ("product_key", "device_name") if row[name] is not None]
    module = [row[name] for name in ("module_name", "module_version") if row[name] is not None]
    return " ".join(("/".join(map(str, names)) or str(row["iot_id"]), *map(str, module))), str(row["reason"])
