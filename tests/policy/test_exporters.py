"""A judged run for CI and chat: valid, bounded, and nothing in it is taken for more than text."""

from datetime import date
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree as ET

import orjson
import pytest

from auditor.errors import RunNotWritableError
from auditor.models import Device
from auditor.policy.evaluate import judge_run
from auditor.policy.exporters import EXAMPLES, SARIF_RESULTS, junit, markdown, sarif, write_judged
from auditor.policy.model import Deny, Exact, MaxVersions, Minimum, Newest, Rule, RuleException, Rules
from tests.runs.run_folders import HOSTILE, build, every_status, named, ok

LAB = RuleException(date(2020, 1, 1), "bench", device="lab")
POLICY = Rules(
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
    with judge_run(every_status(tmp_path / "run").folder, POLICY) as judged:
        top = ET.fromstring(junit(judged))
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


def test_junit_is_xml_whatever_devices_say_and_bounded(tmp_path: Path) -> None:
    with judge_run(nasty_run(tmp_path), Rules((Rule("all", "error", Deny(("*",))),), "r.toml")) as judged:
        content = junit(judged)
        assert judged.rows == len(NASTY) + len(HOSTILE) > EXAMPLES
    text = ET.fromstring(content).findtext("testsuite/testcase/failure") or ""
    assert len(text.splitlines()) == EXAMPLES + 2
    assert "<img src=x onerror=alert(1)>" in text
    assert b"<img" not in content


def test_sarif_has_rules_results_and_notifications(tmp_path: Path) -> None:
    with judge_run(every_status(tmp_path / "run").folder, POLICY) as judged:
        document = orjson.loads(sarif(judged))
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
    assert any("is partial" in text for text in said)
    assert any("ended with 2020-01-01" in text for text in said)
    assert any('rule "lost": no devices to judge, 1 were not seen' in text for text in said)
    assert run["properties"]["state"] == "partial"


def test_sarif_shares_its_room_and_says_what_is_left_out(tmp_path: Path) -> None:
    devices = [named(number) for number in range(SARIF_RESULTS + 200)]
    run = build(tmp_path / "run", devices, [ok(device, ("ble", "1")) for device in devices]).folder
    rules = Rules((Rule("a", "error", Deny(("1",))), Rule("b", "error", Minimum("2"))), "/etc/rules.toml")
    with judge_run(run, rules) as judged:
        (found,) = orjson.loads(sarif(judged))["runs"]
    assert [result["ruleId"] for result in found["results"]] == ["a"] * 500 + ["b"] * 500
    said = found["invocations"][0]["toolExecutionNotifications"][0]["message"]["text"]
    assert said.startswith("1,400 more results are left out")
    uri = found["results"][0]["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "file:///etc/rules.toml"


def test_messages_of_sarif_have_no_links_and_no_placeholders(tmp_path: Path) -> None:
    with judge_run(nasty_run(tmp_path), Rules((Rule("all", "error", Deny(("*",))),), "r.toml")) as judged:
        (run,) = orjson.loads(sarif(judged))["runs"]
    texts = [result["message"]["text"] for result in run["results"]]
    assert any(r"\[x\](http://e.example)" in text for text in texts)
    assert any("{{0}}" in text for text in texts)
    assert all(text.isprintable() for text in texts)


def test_markdown_is_a_table_with_the_worst_first_and_everything_foreign_is_code(tmp_path: Path) -> None:
    rules = Rules(
        (Rule("fine @all", "note", Deny(("never",))), Rule("bad ``|`` <b>", "error", Deny(("*",)))), "r.toml"
    )  # fmt: skip
    with judge_run(nasty_run(tmp_path), rules) as judged:
        lines = markdown(judged).decode().splitlines()
    assert lines[0] == r"**Failed**: `` `run` \| <b> ``, 2 rules: 1 violated, 1 compliant"
    assert lines[2:4] == ["| verdict | severity | rule | asked | found |", "|---|---|---|---|---|"]
    assert lines[4].startswith(
        r"| **violated** | error | ```bad ``\|`` <b>``` | `every module runs nothing like *` | 27 of"
    )
    assert lines[5].startswith("| compliant | note | `fine @all` |")


def test_markdown_labels_a_run_that_is_not_whole(tmp_path: Path) -> None:
    with judge_run(every_status(tmp_path / "run").folder, POLICY) as judged:
        text = markdown(judged).decode()
    assert "is partial: 2 devices failed and 2 are pending`" in text
    assert text.startswith("**Failed**: `run`, 5 rules: 3 violated, 1 not seen, 1 compliant\n")


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with judge_run(every_status(tmp_path / "run").folder, POLICY) as judged:
        with pytest.raises(RunNotWritableError, match="cannot be written"):
            write_judged(judged, tmp_path / "none" / "f.xml", "junit")
        write_judged(judged, tmp_path / "f.md", "markdown")
        assert (tmp_path / "f.md").read_bytes() == markdown(judged)


def test_long_texts_are_cut(tmp_path: Path) -> None:
    devices = [named(number) for number in range(30)]
    run = build(
        tmp_path / "run",
        devices,
        [ok(each, ("ble", f"{number}" + "x" * 90_000)) for number, each in enumerate(devices)],
    )
    rules = Rules((Rule("few", "error", Exact(("1",)), modules=("ble",)),), "rules.toml")
    with judge_run(run.folder, rules) as judged:
        assert judged.rows == 30
        assert all(len(write(judged)) < 100_000 for write in (junit, sarif, markdown))
