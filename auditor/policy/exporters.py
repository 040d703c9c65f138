"""A judged run for CI and chat: JUnit XML, SARIF 2.1.0 and Markdown. Bounded; names from devices do no harm.

JUnit as its readers have it (https://github.com/testmoapp/junitxml); SARIF: OASIS, "Static Analysis Results Interchange
Format (SARIF) Version 2.1.0", with paragraphs named below.
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
from auditor.errors import RunNotWritableError
from auditor.policy.evaluate import Judged
from auditor.policy.results import RuleResult
from auditor.text.formatting import safe

JudgedFormat = Literal["junit", "sarif", "markdown"]


EXAMPLES = 20
"""Rows that a test case of JUnit shows."""


SARIF_RESULTS = 1_000
"""Results in SARIF; GitHub takes 5,000 of a file, and nobody reads more."""


SARIF_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


TEXT = 200
"""Characters of a name or version in any of these."""


CHAT_RULES = 50
"""Rules in Markdown; the worst first."""


_NOT_XML = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")
"""Characters that XML 1.0 forbids, however they are written (https://www.w3.org/TR/xml/#charsets)."""


Row = dict[str, Any]


def write_judged(judged: Judged, path: Path, form: JudgedFormat) -> None:
    """Writes what a run comes to by a policy.

    Raises:
        RunNotWritableError: the file cannot be written.
        RunFolderError: the run cannot be read.
    """
    write = {"junit": junit, "sarif": sarif, "markdown": markdown}[form]
    content = write(judged)
    try:
        path.write_bytes(content)
    except OSError as error:
        raise RunNotWritableError(f"{path}: cannot be written: {error.strerror}") from error


def junit(judged: Judged) -> bytes:
    """A test case for each rule: a failure where one of severity error or warning is violated.

    Skipped is what was not judged for good: nothing seen, versions that cannot be ordered, or a note.
    """
    examples = _examples(judged, EXAMPLES)
    results = judged.results
    verdicts = [_outcome(result) for result in results]
    facts = {
        "name": f"auditor policy {judged.run.folder.name}",
        "tests": str(len(results)),
        "failures": str(verdicts.count("failure")),
        "errors": "0",
        "skipped": str(verdicts.count("skipped")),
        "time": "0",
    }
    top = ET.Element("testsuites", _clean(facts))
    suite = ET.SubElement(top, "testsuite", _clean(facts | {"timestamp": judged.run.manifest.started_at[:19]}))
    about = {"run": judged.run.folder.name, "state": judged.run.manifest.state, "policy": judged.rules.source}
    _properties(suite, about | {f"doubt {number}": doubt for number, doubt in enumerate(judged.doubts, 1)})
    for result, outcome, rows in zip(results, verdicts, examples, strict=True):
        case = ET.SubElement(suite, "testcase", _clean({"classname": "policy", "name": result.rule.name, "time": "0"}))
        _properties(
            case,
            {
                "severity": result.rule.severity,
                "verdict": result.verdict,
                "unit": result.unit,
                **{name: str(count) for name, count in _numbers(result).items()},
            },
        )
        text = f"{result.rule.text}\n{result.message}\n" + "\n".join(map(_line, rows))
        if outcome == "passed":
            ET.SubElement(case, "system-out").text = _xml(text)
        else:
            facts = {"message": f"{result.verdict}: {result.message}"}
            if outcome == "failure":
                facts["type"] = result.rule.severity
            ET.SubElement(case, outcome, _clean(facts)).text = _xml(text)
    ET.indent(top)
    return bytes(ET.tostring(top, encoding="utf-8", xml_declaration=True)) + b"\n"


def _outcome(result: RuleResult) -> Literal["passed", "failure", "skipped"]:
    if result.verdict == "compliant":
        return "passed"
    return "failure" if result.verdict == "violated" and result.rule.severity != "note" else "skipped"


def _properties(parent: ET.Element, values: dict[str, str]) -> None:
    inside = ET.SubElement(parent, "properties")
    for name, value in values.items():
        ET.SubElement(inside, "property", _clean({"name": name, "value": value}))


def _numbers(result: RuleResult) -> dict[str, int | float]:
    """Counts; what a sample alone has stands there for a sample alone."""
    names = ("compliant", "violated", "unparseable", "not_seen", "excepted")
    found = {name: getattr(result, name) for name in names}
    if result.unsampled:
        found["unsampled"] = result.unsampled
    shares = {"share": result.share, "low": result.low, "high": result.high}
    return found | {name: share for name, share in shares.items() if share is not None}


def _xml(text: str) -> str:
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _clean(values: dict[str, str]) -> dict[str, str]:
    return {name: _xml(value) for name, value in values.items()}


def _examples(judged: Judged, limit: int) -> list[list[Row]]:
    """Of each rule the first rows that break it, their texts cut: a device may call its version anything."""
    return [
        [dict(zip(table.columns, map(_cut, row), strict=True)) for row in islice(table, limit)]
        if result.violated + result.unparseable
        else []
        for result, table in zip(judged.results, judged.examples, strict=True)
    ]


def _cut(cell: object) -> object:
    return cell[:TEXT] + "…" if isinstance(cell, str) and len(cell) > TEXT else cell


def _place(row: Row) -> str:
    """Where it is: account/product/device, or account/product of a group."""
    device = row["device_name"] or row["iot_id"]
    return "/".join(safe(part) for part in (row["account"], row["product_key"] or "?", device) if part is not None)


def _line(row: Row) -> str:
    ran = " ".join(safe(part) for part in (row["module_name"], row["module_version"]) if part is not None)
    return ": ".join(part for part in (_place(row), ran, safe(row["reason"])) if part)


def sarif(judged: Judged) -> bytes:
    """One SARIF run: a result for each violation, ``SARIF_RESULTS`` at most, and how many more there are.

    A result's place is the device; as code scanning wants a file, it is also the rules'.
    """
    broken = sum(1 for result in judged.results if result.violated + result.unparseable)
    rows = list(chain.from_iterable(_examples(judged, max(1, SARIF_RESULTS // max(1, broken)))))[:SARIF_RESULTS]
    said = [(doubt, "warning") for doubt in judged.doubts]
    if judged.rows > len(rows):
        said.append(
            (f"{judged.rows - len(rows):,} more results are left out: auditor policy --devices has all", "note")
        )
    said += [
        (f'rule "{result.rule.name}": {result.message}', "note")
        for result in judged.results
        if result.verdict == "not_seen"
    ]
    numbers = {result.rule.name: at for at, result in enumerate(judged.results)}
    run = {
        "tool": {"driver": {"name": "auditor", "version": VERSION, "rules": list(map(_descriptor, judged.results))}},
        "invocations": [  # section 3.20: what the tool came to, whatever it found
            {
                "executionSuccessful": True,
                "toolExecutionNotifications": [{"level": level, "message": _message(text)} for text, level in said],
            }
        ],
        "properties": judged.run.coverage | {"doubts": list(judged.doubts)},
        "columnKind": "unicodeCodePoints",
        "results": [_result(row, numbers, _address(judged.rules.source)) for row in rows],
    }
    return orjson.dumps(
        {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]},
        option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE,
    )


def _descriptor(result: RuleResult) -> dict[str, object]:
    return {
        "id": result.rule.name,
        "shortDescription": _message(result.rule.text),
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
    """A message in which nothing is a placeholder (section 3.11.5) or a link (3.11.6)."""
    doubled = safe(text).replace("{", "{{").replace("}", "}}")
    return {"text": re.sub(r"([\\\[\]])", r"\\\1", doubled)}


def _address(path: str) -> str:
    return Path(path).as_uri() if Path(path).is_absolute() else quote(Path(path).as_posix())


def markdown(judged: Judged) -> bytes:
    """A few lines for a chat: the verdict, what is to be doubted, and a table of the rules, the worst first."""
    order = ("violated", "unparseable", "not_seen", "compliant")
    results = sorted(judged.results, key=lambda result: order.index(result.verdict))
    lines = [f"**{'Failed' if judged.failed else 'Passed'}**: {_code(judged.run.folder.name)}, {summary(judged)}", ""]
    lines += [f"- {_code(doubt)}" for doubt in judged.doubts[:CHAT_RULES]]
    lines += [""] if judged.doubts else []
    lines += ["| verdict | severity | rule | asked | found |", "|---|---|---|---|---|"]
    for result in results[:CHAT_RULES]:
        verdict = "compliant" if result.verdict == "compliant" else f"**{result.verdict.replace('_', ' ')}**"
        rule = result.rule
        cells = (verdict, rule.severity, _code(rule.name), _code(rule.text), result.message)
        lines.append(f"| {' | '.join(cells)} |")
    if len(results) > CHAT_RULES:
        lines.append(f"\n{len(results) - CHAT_RULES:,} more rules are left out.")
    return ("\n".join(lines) + "\n").encode()


def summary(judged: Judged) -> str:
    """How many rules came to what, such as ``8 rules: 2 violated, 6 compliant``."""
    verdicts = [result.verdict for result in judged.results]
    told = [
        f"{verdicts.count(verdict):,} {verdict.replace('_', ' ')}"
        for verdict in ("violated", "unparseable", "not_seen", "compliant")
        if verdict in verdicts
    ]
    return f"{len(verdicts):,} rule{'' if len(verdicts) == 1 else 's'}: {', '.join(told)}"


def _code(text: str) -> str:
    """Text as code, in which no mention, link, mark or HTML is read; ``|`` is for the table that it may stand in."""
    shown = safe(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = " " if shown.startswith("`") or shown.endswith("`") or not shown.strip() else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
