"""What the rules say, for the report."""

from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

from auditor.inventory.policy import judge_run
from auditor.inventory.rules import Rules
from auditor.inventory.tables import Table
from auditor.report.data import Policy, Verdict

RULES, EXAMPLES, EACH, READ = 60, 24, 3, 200
"""Rules and violations that the page has, violations of one rule, and rows that are read to find these."""

_ORDER = ("violated", "unparseable", "not_seen", "compliant")
_SEVERITIES = ("error", "warning", "note")


def read_policy(run: Path, rules: Rules, now: datetime) -> Policy:
    """Verdicts of all rules, the violated ones first, and some violations of each.

    Raises:
        RunFolderError: the run cannot be read.
    """
    with judge_run(run, rules, now=now) as judged:
        verdicts = [
            Verdict(
                result.rule.name, result.rule.text, result.rule.severity, result.verdict, result.unit, result.message,
                result.compliant, result.violated, result.unparseable, result.not_seen, result.excepted,
                result.unsampled,
            )
            for result in judged.results
        ]  # fmt: skip
        verdicts.sort(key=lambda each: (_ORDER.index(each.verdict), _SEVERITIES.index(each.severity)))
        examples = [
            (result.rule.name, *_example(row))
            for result, table in zip(judged.results, judged.examples, strict=True)
            if result.verdict == "violated"
            for row in islice(_violations(table), EACH)
        ]
        violated = sum(each.verdict == "violated" for each in verdicts)
        doubts = tuple(doubt for doubt in judged.doubts if doubt not in judged.run.doubts)
        more = max(0, len(verdicts) - RULES)
        return Policy(tuple(verdicts[:RULES]), more, violated, tuple(examples[:EXAMPLES]), doubts)


def _violations(table: Table) -> Iterator[dict[str, object]]:
    """Those of a rule's first rows that violate it; a device may be called like a verdict."""
    for values in islice(table, READ):
        row = dict(zip(table.columns, values, strict=True))
        if row["verdict"] == "violated":
            yield row


def _example(row: dict[str, object]) -> tuple[str, str]:
    """Where a rule is violated, and why."""
    names = [row[name] for name in ("product_key", "device_name") if row[name] is not None]
    ran = [row[name] for name in ("module_name", "module_version") if row[name] is not None]
    return " ".join(("/".join(map(str, names)) or str(row["iot_id"]), *map(str, ran))), str(row["reason"])
