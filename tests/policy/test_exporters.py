"""Policy reports for CI and chat: valid, of bounded size, and with foreign text as text only."""

from datetime import date
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree as ET

import orjson
import pytest

from auditor.errors import RunNotWritableError
from auditor.models import Device
from auditor.policy.evaluate import evaluate_policy
from auditor.policy.exporters import MAX_EXAMPLES, MAX_SARIF_RESULTS, export_policy_report, junit_xml, markdown, sarif
from auditor.policy.model import Deny, Exact, MaxVersions, Minimum, Newest, Policy, Rule, RuleException
from tests.runs.run_folders import HOSTILE, build, every_status, named, ok

LAB = RuleException(date(2020, 1, 1), "bench", device="lab")
POLICY = Policy(
    (
        Rule("old ble", "error", Minimum("1.1"), modules=("ble",), exceptions=(LAB,)),
        Rule("denied", "warning", Deny(("9",))),
        Rule("few", "note", MaxVersions(1)),
        Rule("lost", "error", Minimum("1"), products=("p2",), modules=("zigbee",)),
        Rule("rollout", "warning", Newest(Fraction(1, 10), "10%")),
    ),
    "policies/fleet rules.toml",
)
NASTY = [
    "<img src=x onerror=alert(1)>",
    "a|b",
    "`code`",
    "``",
    "@all",
    "[x](http://e.example)",
    "{0}",
    "]]>",
    "\ud7ff\x0b\ufffe",
]


def nasty_run(folder: Path) -> Path:
    devices = [Device("demo", "p|1`", f"{at}{text}", None) for at, text in enumerate([*NASTY, *HOSTILE])]
    outcomes = [ok(device, (f"m{text}", text)) for device, text in zip(devices, [*NASTY, *HOSTILE], strict=True)]
    return build(folder / "`run` | <b>", devices, outcomes).folder


def test_junit_has_a_case_for_each_rule_with_its_counts_and_examples(tmp_path: Path) -> None:
    with evaluate_policy(every_status(tmp_path / "run").folder, POLICY) as report:
        top = ET.fromstring(junit_xml(report))
    (suite,) = top
    for facts in (top, suite):
        assert [facts.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["5", "2", "0", "2"]
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    told = {name: [each.tag for each in case if each.tag != "properties"] for name, case in cases.items()}
    assert told == {
        "old ble": ["failure"], "denied": ["failure"], "few": ["skipped"], "lost": ["skipped"],
        "rollout": ["system-out"],
    }  # fmt: skip
    counts = {each.get("name"): each.get("value") for each in cases["old ble"].iter("property")}
    assert (counts["violated"], counts["compliant"], counts["not_seen"]) == ("2", "2", "4")
    text = cases["old ble"].findtext("failure") or ""
    assert "demo/p1/device0000: ble 1.0: is older than 1.1" in text
    said = [each.get("value") for each in suite.findall("properties/property")]
    assert sum("partial" in (value or "") for value in said) == 2


def test_junit_is_bounded_and_valid_xml_with_hostile_names(tmp_path: Path) -> None:
    with evaluate_policy(nasty_run(tmp_path), Policy((Rule("all", "error", Deny(("*",))),), "r.toml")) as report:
        content = junit_xml(report)
        assert report.violation_count == len(NASTY) + len(HOSTILE) > MAX_EXAMPLES
    text = ET.fromstring(content).findtext("testsuite/testcase/failure") or ""
    assert len(text.splitlines()) == MAX_EXAMPLES + 2
    assert "<img src=x onerror=alert(1)>" in text
    assert b"<img" not in content


def test_sarif_has_rules_results_and_notifications(tmp_path: Path) -> None:
    with evaluate_policy(every_status(tmp_path / "run").folder, POLICY) as report:
        document = orjson.loads(sarif(report))
    assert document["version"] == "2.1.0"
    (run,) = document["runs"]
    described = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in described] == [rule.name for rule in POLICY.rules]
    assert described[0]["properties"]["violated"] == 2
    levels = [(result["ruleId"], result["level"]) for result in run["results"]]
    assert levels == [("old ble", "error"), ("old ble", "error"), ("denied", "warning"), ("few", "note")]
    for result in run["results"]:
        assert described[result["ruleIndex"]]["id"] == result["ruleId"]
        (place,) = result["locations"]
        assert place["physicalLocation"]["artifactLocation"]["uri"] == "policies/fleet%20rules.toml"
    names = [result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] for result in run["results"]]
    assert names == ["demo/p1/device0000", "demo/p1/device0001", "other/p2/device0000", "demo/p1"]
    assert len({result["partialFingerprints"]["auditor/v1"] for result in run["results"]}) == 4
    said = [each["message"]["text"] for each in run["invocations"][0]["toolExecutionNotifications"]]
    assert any("partial: " in text for text in said)
    assert any("expired on 2020-01-01" in text for text in said)
    assert any('rule "lost": no devices to evaluate, 1 have no answer' in text for text in said)
    assert run["properties"]["state"] == "partial"


def test_sarif_divides_its_limit_among_rules_and_counts_omitted_results(tmp_path: Path) -> None:
    devices = [named(number) for number in range(MAX_SARIF_RESULTS + 200)]
    run = build(tmp_path / "run", devices, [ok(device, ("ble", "1")) for device in devices]).folder
    rules = Policy((Rule("a", "error", Deny(("1",))), Rule("b", "error", Minimum("2"))), "/etc/rules.toml")
    with evaluate_policy(run, rules) as report:
        (found,) = orjson.loads(sarif(report))["runs"]
    assert [result["ruleId"] for result in found["results"]] == ["a"] * 500 + ["b"] * 500
    said = found["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"]
    assert said.startswith("1,400 more results are omitted")
    uri = found["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "file:///etc/rules.toml"


def test_messages_of_sarif_have_no_links_and_no_placeholders(tmp_path: Path) -> None:
    with evaluate_policy(nasty_run(tmp_path), Policy((Rule("all", "error", Deny(("*",))),), "r.toml")) as report:
        (run,) = orjson.loads(sarif(report))["runs"]
    texts = [result["message"]["text"] for result in run["results"]]
    assert any(r"\[x\](http://e.example)" in text for text in texts)
    assert any("{{0}}" in text for text in texts)
    assert all(text.isprintable() for text in texts)


def test_markdown_is_a_table_with_the_worst_first_and_foreign_text_is_code(tmp_path: Path) -> None:
    rules = Policy(
        (Rule("fine @all", "note", Deny(("never",))), Rule("bad ``|`` <b>", "error", Deny(("*",)))), "r.toml"
    )  # fmt: skip
    with evaluate_policy(nasty_run(tmp_path), rules) as report:
        lines = markdown(report).decode().splitlines()
    assert lines[0] == r"**Failed**: `` `run` \| <b> ``, 2 rules: 1 violated, 1 compliant"
    assert lines[2:4] == ["| verdict | severity | rule | requirement | result |", "|---|---|---|---|---|"]
    assert lines[4].startswith(
        r"| **violated** | error | ```bad ``\|`` <b>``` | `every module runs nothing like *` | 27 of"
    )
    assert lines[5].startswith("| compliant | note | `fine @all` |")


def test_markdown_has_the_warnings(tmp_path: Path) -> None:
    with evaluate_policy(every_status(tmp_path / "run").folder, POLICY) as report:
        text = markdown(report).decode()
    assert ": partial: 2 devices failed, 2 pending`" in text
    assert text.startswith("**Failed**: `run`, 5 rules: 3 violated, 1 not seen, 1 compliant\n")


def test_an_unwritable_report_fails_with_one_sentence(tmp_path: Path) -> None:
    with evaluate_policy(every_status(tmp_path / "run").folder, POLICY) as report:
        with pytest.raises(RunNotWritableError, match="cannot be written"):
            export_policy_report(report, tmp_path / "none" / "f.xml", "junit")
        export_policy_report(report, tmp_path / "f.md", "markdown")
        assert (tmp_path / "f.md").read_bytes() == markdown(report)


def test_long_texts_are_cut(tmp_path: Path) -> None:
    devices = [named(number) for number in range(30)]
    run = build(
        tmp_path / "run",
        devices,
        [ok(each, ("ble", f"{number}" + "x" * 90_000)) for number, each in enumerate(devices)],
    )
    rules = Policy((Rule("few", "error", Exact(("1",)), modules=("ble",)),), "rules.toml")
    with evaluate_policy(run.folder, rules) as report:
        assert report.violation_count == 30
        assert all(len(write(report)) < 100_000 for write in (junit_xml, sarif, markdown))
