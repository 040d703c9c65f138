"""What a policy says of a sample: what was seen is a fact, what was not is told apart, and shares have intervals."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from auditor.models import Device, Outcome
from auditor.policy.evaluate import judge_run
from auditor.policy.exporters import write_judged
from auditor.policy.loader import load_rules
from auditor.policy.results import RuleResult
from auditor.stats.intervals import Stratum, share_within
from auditor.stats.ratio_estimator import share_over, unseen_over
from tests.runs.run_folders import both, build, by_id, failed, named, ok
from tests.runs.sampled_runs import sample


def judged(run: Path, rules: str) -> list[RuleResult]:
    path = run.parent / "rules.toml"
    path.write_text(rules)
    with judge_run(run, load_rules(path)) as found:
        return list(found.results)


def rule(text: str) -> str:
    return f'[[rule]]\nname = "it"\nseverity = "error"\n{text}\n'


def product(key: str, devices: int) -> list[Device]:
    return [named(number, product=key) for number in range(devices)]


def drawn_of(folder: Path, *parts: tuple[list[Device], int, int], old: str = "1.0", new: str = "2.0") -> Path:
    """A run of products of which so many devices were drawn and answered, so many of them with the old version."""
    fleet = [device for devices, _, _ in parts for device in devices]
    drawn = [device for devices, number, _ in parts for device in devices[:number]]
    outcomes: list[Outcome] = [
        ok(device, ("ble", old if at < behind else new))
        for devices, number, behind in parts
        for at, device in enumerate(devices[:number])
    ]
    return sample(folder, fleet, drawn, outcomes).folder


def test_a_violation_that_was_seen_is_one_and_its_share_is_estimated_over_products(tmp_path: Path) -> None:
    run = drawn_of(tmp_path / "run", (product("p1", 400), 40, 3), (product("p2", 100), 50, 5))
    (found,) = judged(run, rule('minimum = "2.0"\nmodule = "ble"'))
    expected = share_over([Stratum(400, 40, 40, 3), Stratum(100, 50, 50, 5)])
    assert (found.share, found.low, found.high) == (expected.share, expected.low, expected.high)
    assert (found.verdict, found.violated, found.compliant, found.not_seen, found.unsampled) == (
        "violated", 8, 82, 0, 410,
    )  # fmt: skip
    assert found.message.startswith("8 of 90 sampled devices violate it: 8.0% of those that it is about (")
    assert found.message.endswith(", 410 were not drawn")


def test_that_no_drawn_device_violates_proves_nothing_and_how_many_may_is_told(tmp_path: Path) -> None:
    fleet = product("p1", 400)
    drawn = fleet[:41]
    outcomes: list[Outcome] = [*(ok(device, ("ble", "2.0")) for device in drawn[:40]), failed(drawn[40])]
    run = sample(tmp_path / "run", fleet, drawn, outcomes).folder
    (found,) = judged(run, rule('deny = ["1.0"]'))
    assert found.verdict == "not_seen"
    assert (found.compliant, found.not_seen, found.unsampled) == (40, 1, 359)
    assert (found.share, found.low, found.high) == (0, 0, unseen_over([Stratum(400, 40, 40, 0)]))
    assert "none of 40 sampled devices violates it: at most 8.3% of those that it is about may (95%)" in found.message


def test_devices_that_a_rule_is_not_about_are_no_part_of_its_share(tmp_path: Path) -> None:
    fleet = product("p1", 200)
    drawn = fleet[:60]
    silent: list[Outcome] = [ok(device) for device in drawn[:20]]
    outcomes = [*silent, *(ok(device, ("ble", "1.0" if at < 10 else "2.0")) for at, device in enumerate(drawn[20:]))]
    run = sample(tmp_path / "run", fleet, drawn, outcomes).folder
    excepted = '[[rule.exception]]\nuntil = 2999-01-01\nreason = "lab"\ndevice = "device002*"'
    (found,) = judged(run, rule('minimum = "2.0"\nmodule = "ble"') + excepted)
    expected = share_over([Stratum(200, 60, 30, 0)])  # device0020 to 29 are those that run 1.0
    assert (found.verdict, found.excepted, found.high) == ("not_seen", 10, expected.high)
    (found,) = judged(run, rule('minimum = "2.0"\nmodule = "ble"'))
    assert found.share == 0.25
    assert found.low is not None
    assert found.low < 0.25


@pytest.mark.parametrize(("behind", "verdict"), [(0, "compliant"), (3, "not_seen"), (30, "violated")])
def test_a_rollout_is_judged_by_the_whole_interval_of_its_share(tmp_path: Path, behind: int, verdict: str) -> None:
    run = drawn_of(tmp_path / "run", (product("p1", 1000), 200, behind))
    (found,) = judged(run, rule('newest = "97%"\nmodule = "ble"'))
    expected = share_within(1000, 200, 200, 200 - behind)
    assert found.verdict == verdict
    assert (found.share, found.low, found.high) == (expected.share, expected.low, expected.high)
    assert found.message.endswith("run the newest by the sample, asked for: 97%")


def test_the_module_that_decides_gives_a_rollout_its_share(tmp_path: Path) -> None:
    run = drawn_of(tmp_path / "run", (product("p1", 1000), 200, 0), (product("p2", 500), 100, 40))
    (found,) = judged(run, rule('newest = "90%"\nmodule = "ble"'))
    assert (found.verdict, found.violated, found.compliant, found.share) == ("violated", 1, 1, 0.6)
    assert "where that is least" in found.message


def test_versions_that_were_seen_are_alive_and_more_may_be(tmp_path: Path) -> None:
    run = drawn_of(tmp_path / "run", (product("p1", 100), 10, 5), (product("p2", 4), 4, 2))
    most = {limit: judged(run, rule(f'max_versions = {limit}\nmodule = "ble"'))[0] for limit in (1, 2)}
    assert (most[1].verdict, most[1].violated) == ("violated", 2)
    assert (most[2].verdict, most[2].not_seen, most[2].compliant) == ("not_seen", 1, 1)
    assert "not drawn" in most[2].message


def test_a_product_that_was_drawn_whole_is_judged_as_one(tmp_path: Path) -> None:
    run = drawn_of(tmp_path / "run", (product("p1", 100), 10, 5), (product("p2", 4), 4, 0))
    (found,) = judged(run, rule('minimum = "2.0"\nproduct = "p2"'))
    assert (found.verdict, found.compliant, found.unsampled, found.share) == ("compliant", 4, 0, None)


def test_a_product_without_a_drawn_device_is_not_seen_and_counted_as_not_drawn(tmp_path: Path) -> None:
    run = drawn_of(tmp_path / "run", (product("p1", 100), 100, 0), (product("p2", 4), 0, 0))
    (found,) = judged(run, rule('newest = "50%"'))
    assert (found.verdict, found.compliant, found.not_seen, found.unsampled) == ("not_seen", 1, 0, 1)


def test_devices_whose_product_is_not_known_may_break_a_rule_about_any(tmp_path: Path) -> None:
    fleet = [by_id(number) for number in range(100)]
    drawn = fleet[:30]
    outcomes = [ok(device, ("ble", "2.0"), learnt=both(at)) for at, device in enumerate(drawn)]
    run = sample(tmp_path / "run", fleet, drawn, outcomes).folder
    text = 'severity = "error"\nproduct = "p1"\nmodule = "ble"'
    conditions = ('minimum = "2.0"', "max_versions = 1", 'newest = "99%"')
    rules = "".join(f'[[rule]]\nname = "{at}"\n{text}\n{each}\n' for at, each in enumerate(conditions))
    assert [found.verdict for found in judged(run, rules)] == ["not_seen"] * 3


def test_a_device_that_spells_a_module_in_two_ways_is_one_of_its_product(tmp_path: Path) -> None:
    fleet = product("p1", 6)
    outcomes = [ok(fleet[0], ("ble", "1.0"), ("BLE", "2.0"))]
    run = sample(tmp_path / "run", fleet, fleet[:1], outcomes).folder
    (found,) = judged(run, rule('newest = "99%"'))
    assert found.low is not None
    assert found.low < 0.5


def test_programs_find_the_interval_and_what_was_not_drawn(tmp_path: Path) -> None:
    run = drawn_of(tmp_path / "run", (product("p1", 400), 40, 3))
    (tmp_path / "rules.toml").write_text(rule('minimum = "2.0"'))
    with judge_run(run, load_rules(tmp_path / "rules.toml")) as found:
        found.table.write(tmp_path / "p.json", "json")
        write_judged(found, tmp_path / "p.xml", "junit")
        write_judged(found, tmp_path / "p.sarif", "sarif")
        (result,) = found.results
        assert any("by a sample of 40 of 400 devices" in doubt for doubt in found.doubts)
    (row,) = json.loads((tmp_path / "p.json").read_bytes())["results"]
    told = {"unsampled": 360, "share": 0.075, "low": result.low, "high": result.high}
    assert {name: row[name] for name in told} == told
    properties = {
        each.get("name"): each.get("value") for each in ET.parse(tmp_path / "p.xml").iterfind(".//testcase//property")
    }
    assert {name: properties[name] for name in told} == {name: str(value) for name, value in told.items()}
    (descriptor,) = json.loads((tmp_path / "p.sarif").read_bytes())["runs"][0]["tool"]["driver"]["rules"]
    assert {name: descriptor["properties"][name] for name in told} == told


def test_a_run_of_a_whole_fleet_has_no_interval(tmp_path: Path) -> None:
    fleet = product("p1", 20)
    run = build(tmp_path / "run", fleet, [ok(device, ("ble", "2.0")) for device in fleet[:19]]).folder
    rules = "".join(
        f'[[rule]]\nname = "{at}"\nseverity = "note"\n{each}\n'
        for at, each in enumerate(('minimum = "2.0"', 'newest = "90%"', "max_versions = 1"))
    )
    found = judged(run, rules)
    assert all((each.share, each.low, each.high, each.unsampled) == (None, None, None, 0) for each in found)
    assert [each.verdict for each in found] == ["not_seen", "compliant", "not_seen"]
