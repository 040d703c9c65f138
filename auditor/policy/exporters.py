"""Policy reports for CI and chat: JUnit XML, SARIF 2.1.0 and Markdown. Of bounded size; names from devices are escaped.

JUnit as its readers expect it (https://github.com/testmoapp/junitxml); SARIF: OASIS, "Static Analysis Results
Interchange Format (SARIF) Version 2.1.0", with the sections named below.
"""

import re
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote
from xml.etree import ElementTree as ET

import orjson

from auditor.__about__ import VERSION
from auditor.policy.evaluate import PolicyReport
from auditor.policy.results import RuleResult, Verdict
from auditor.query.describe import describe_warning, warning_objects
from auditor.storage.files import translate_os_errors
from auditor.text.formats import PolicyReportFormat
from auditor.text.formatting import format_count, safe

MAX_EXAMPLES = 20
"""Rows in a test case of JUnit."""

MAX_SARIF_RESULTS = 1_000
"""Results in SARIF; GitHub accepts 5,000 in a file."""

SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"

MAX_TEXT = 200
"""Characters of a name or version in a report."""

MAX_CHAT_RULES = 50
"""Rules in Markdown, the worst first."""

_ORDER: tuple[Verdict, ...] = ("violated", "unparseable", "not_seen", "compliant")

_NOT_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")
"""Characters that XML 1.0 forbids, even escaped (https://www.w3.org/TR/xml/#charsets)."""

Row = dict[str, Any]


def export_policy_report(report: PolicyReport, path: Path, form: PolicyReportFormat) -> None:
    """Write a policy report to a file.

    Raises:
        RunNotWritableError: the file cannot be written.
        RunFolderError: the run cannot be read.
    """
    content = {"junit": junit_xml, "sarif": sarif, "markdown": markdown}[form](report)
    with translate_os_errors(f"{path}: cannot be written"):
        path.write_bytes(content)


def junit_xml(report: PolicyReport) -> bytes:
    """Return JUnit XML with a test case for each rule; a violated rule of severity error or warning is a failure.

    A test case is skipped if its rule is undecided, or is a violated note.
    """
    examples = _examples(report, MAX_EXAMPLES)
    results = report.results
    verdicts = [_outcome(result) for result in results]
    attributes = {
        "name": f"auditor policy {report.run.folder.name}",
        "tests": str(len(results)),
        "failures": str(verdicts.count("failure")),
        "errors": "0",
        "skipped": str(verdicts.count("skipped")),
        "time": "0",
    }
    top = ET.Element("testsuites", _clean(attributes))
    suite = ET.SubElement(top, "testsuite", _clean(attributes | {"timestamp": report.run.manifest.started_at[:19]}))
    about = {"run": report.run.folder.name, "state": report.run.manifest.state, "policy": report.policy.source}
    about |= {f"warning {at}": describe_warning(warning) for at, warning in enumerate(report.warnings, 1)}
    _properties(suite, about)
    for result, outcome, rows in zip(results, verdicts, examples, strict=True):
        case = ET.SubElement(suite, "testcase", _clean({"classname": "policy", "name": result.rule.name, "time": "0"}))
        properties = {"severity": result.rule.severity, "verdict": result.verdict, "unit": result.unit}
        _properties(case, properties | {name: str(count) for name, count in _numbers(result).items()})
        text = f"{result.rule.description}\n{result.message}\n" + "\n".join(map(_line, rows))
        if outcome == "passed":
            ET.SubElement(case, "system-out").text = _xml(text)
        else:
            attributes = {"message": f"{result.verdict}: {result.message}"}
            if outcome == "failure":
                attributes["type"] = result.rule.severity
            ET.SubElement(case, outcome, _clean(attributes)).text = _xml(text)
    ET.indent(top)
    return bytes(ET.tostring(top, encoding="utf-8", xml_declaration=True)) + b"\n"


def _outcome(result: RuleResult) -> Literal["passed", "failure", "skipped"]:
    if result.verdict == "compliant":
        return "passed"
    return "failure" if result.verdict == "violated" and result.rule.severity != "note" else "skipped"


def _properties(parent: ET.Element, values: dict[str, str]) -> None:
    properties = ET.SubElement(parent, "properties")
    for name, value in values.items():
        ET.SubElement(properties, "property", _clean({"name": name, "value": value}))


def _numbers(result: RuleResult) -> dict[str, int | float]:
    """Return the counts of a result, and the numbers of a sample if it has any."""
    names = ("compliant", "violated", "unparseable", "not_seen", "exempt")
    numbers = {name: getattr(result, name) for name in names}
    if result.unsampled:
        numbers["unsampled"] = result.unsampled
    shares = {"share": result.share, "low": result.low, "high": result.high}
    return numbers | {name: share for name, share in shares.items() if share is not None}


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _clean(values: dict[str, str]) -> dict[str, str]:
    return {name: _xml(value) for name, value in values.items()}


def _examples(report: PolicyReport, limit: int) -> list[list[Row]]:
    """Return the first violations of each rule, with texts cut: a device may report any text as its version."""
    return [
        [dict(zip(table.columns, map(_cut, row), strict=True)) for row in islice(table, limit)]
        if result.violated + result.unparseable
        else []
        for result, table in zip(report.results, report.examples, strict=True)
    ]


def _cut(cell: object) -> object:
    return cell[:MAX_TEXT] + "…" if isinstance(cell, str) and len(cell) > MAX_TEXT else cell


def _place(row: Row) -> str:
    """Return account/product/device of a violation, or account/product of a group's."""
    device = row["device_name"] or row["iot_id"]
    return "/".join(safe(part) for part in (row["account"], row["product_key"] or "?", device) if part is not None)


def _line(row: Row) -> str:
    version = " ".join(safe(part) for part in (row["module_name"], row["module_version"]) if part is not None)
    return ": ".join(part for part in (_place(row), version, safe(row["reason"])) if part)


def sarif(report: PolicyReport) -> bytes:
    """Return one SARIF run: a result for each violation, up to a limit, and the number of omitted ones.

    The location of a result is the device, and the rules file, as code scanning requires a file.
    """
    rules_with_rows = sum(1 for result in report.results if result.violated + result.unparseable)
    limit = max(1, MAX_SARIF_RESULTS // max(1, rules_with_rows))
    rows = list(chain.from_iterable(_examples(report, limit)))[:MAX_SARIF_RESULTS]
    notifications = [(describe_warning(warning), "warning") for warning in report.warnings]
    if (omitted := report.violation_count - len(rows)) > 0:
        notifications.append((f"{omitted:,} more results are omitted: auditor policy --devices has all", "note"))
    not_seen = (result for result in report.results if result.verdict == "not_seen")
    notifications += [(f'rule "{result.rule.name}": {result.message}', "note") for result in not_seen]
    numbers = {result.rule.name: at for at, result in enumerate(report.results)}
    messages = [{"level": level, "message": _message(text)} for text, level in notifications]
    run = {
        "tool": {"driver": {"name": "auditor", "version": VERSION, "rules": list(map(_descriptor, report.results))}},
        # section 3.20: whether the tool worked, whatever it found
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": messages}],
        "properties": report.run.coverage | {"warnings": warning_objects(report.warnings)},
        "columnKind": "unicodeCodePoints",
        "results": [_result(row, numbers, _address(report.policy.source)) for row in rows],
    }
    document = {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _descriptor(result: RuleResult) -> dict[str, object]:
    return {
        "id": result.rule.name,
        "shortDescription": _message(result.rule.description),
        "defaultConfiguration": {"level": result.rule.severity},
        "properties": {"verdict": result.verdict, "unit": result.unit, "message": result.message} | _numbers(result),
    }


def _result(row: Row, numbers: dict[str, int], rules: str) -> dict[str, object]:
    identity = [row[name] for name in ("rule", "account", "product_key", "device_name", "iot_id", "module_name")]
    return {
        "ruleId": row["rule"],
        "ruleIndex": numbers[row["rule"]],
        "level": row["severity"] if row["verdict"] == "violated" else "note",
        "message": _message(_line(row)),
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": rules}, "region": {"startLine": 1}},
                "logicalLocations": [{"fullyQualifiedName": _place(row), "kind": "resource"}],
            }
        ],
        "partialFingerprints": {"auditor/v1": sha256(orjson.dumps(identity)).hexdigest()},
        "properties": {name: row[name] for name in ("verdict", "module_name", "module_version")},
    }


def _message(text: str) -> dict[str, str]:
    """Return a message without placeholders (section 3.11.5) and links (3.11.6)."""
    doubled = safe(text).replace("{", "{{").replace("}", "}}")
    return {"text": re.sub(r"([\\\[\]])", r"\\\1", doubled)}


def _address(path: str) -> str:
    return Path(path).as_uri() if Path(path).is_absolute() else quote(Path(path).as_posix())


def markdown(report: PolicyReport) -> bytes:
    """Return Markdown for a chat: the verdict, warnings, and a table of the rules, the worst first."""
    results = sorted(report.results, key=lambda result: _ORDER.index(result.verdict))
    verdict = "Failed" if report.failed else "Passed"
    lines = [f"**{verdict}**: {_code(report.run.folder.name)}, {summarize_verdicts(report)}", ""]
    lines += [f"- {_code(describe_warning(warning))}" for warning in report.warnings[:MAX_CHAT_RULES]]
    lines += [""] if report.warnings else []
    lines += ["| verdict | severity | rule | requirement | result |", "|---|---|---|---|---|"]
    for result in results[:MAX_CHAT_RULES]:
        verdict = "compliant" if result.verdict == "compliant" else f"**{result.verdict.replace('_', ' ')}**"
        rule = result.rule
        cells = (verdict, rule.severity, _code(rule.name), _code(rule.description), result.message)
        lines.append(f"| {' | '.join(cells)} |")
    if len(results) > MAX_CHAT_RULES:
        lines.append(f"\n{len(results) - MAX_CHAT_RULES:,} more rules are omitted.")
    return ("\n".join(lines) + "\n").encode()


def summarize_verdicts(report: PolicyReport) -> str:
    """Return the number of rules by verdict, such as ``8 rules: 2 violated, 6 compliant``."""
    verdicts = [result.verdict for result in report.results]
    found = [verdict for verdict in _ORDER if verdict in verdicts]
    counts = [f"{verdicts.count(verdict):,} {verdict.replace('_', ' ')}" for verdict in found]
    return f"{format_count(len(verdicts), 'rule')}: {', '.join(counts)}"


def _code(text: str) -> str:
    """Return text as inline code, without mentions, links, marks or HTML; ``|`` is escaped for a table."""
    shown = safe(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
