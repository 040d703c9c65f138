"""Policies on samples: violations are certain, compliance is not, and shares have intervals."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from auditor.models import Device, Outcome
from auditor.policy.evaluate import evaluate_policy
from auditor.policy.exporters import export_policy_report
from auditor.policy.loader import load_policy
from auditor.policy.results import RuleResult
from auditor.stats.intervals import Stratum, share_interval
from auditor.stats.ratio_estimator import combined_share_interval, combined_unseen_share_limit
from tests.runs.run_folders import both, build, by_id, failed, named, ok
from tests.runs.sampled_runs import sampled_run


def evaluate(run: Path, rules: str) -> list[RuleResult]:
    path = run.parent / "rules.toml"
    path.write_text(rules)
    with evaluate_policy(run, load_policy(path)) as found:
        return list(found.results)


def rule(text: str) -> str:
    return f'[[rule]]\nname = "it"\nseverity = "error"\n{text}\n'


def product(key: str, devices: int) -> list[Device]:
    return [named(number, product=key) for number in range(devices)]


def write_sample(folder: Path, *parts: tuple[list[Device], int, int], old: str = "1.0", new: str = "2.0") -> Path:
    """Write a run; a part is the devices of a product, the number that is sampled, and how many have the old version."""
    fleet = [device for devices, _, _ in parts for device in devices]
    sampled = [device for devices, number, _ in parts for device in devices[:number]]
    outcomes: list[Outcome] = [
        ok(device, ("ble", old if at < behind else new))
        for devices, number, behind in parts
        for at, device in enumerate(devices[:number])
    ]
    return sampled_run(folder, fleet, sampled, outcomes).folder


def test_a_violation_in_the_sample_is_certain_and_its_share_is_estimated(tmp_path: Path) -> None:
    run = write_sample(tmp_path / "run", (product("p1", 400), 40, 3), (product("p2", 100), 50, 5))
    (found,) = evaluate(run, rule('minimum = "2.0"\nmodule = "ble"'))
    expected = combined_share_interval([Stratum(400, 40, 40, 3), Stratum(100, 50, 50, 5)])
    assert (found.share, found.low, found.high) == (expected.share, expected.low, expected.high)
    assert (found.verdict, found.violated, found.compliant, found.not_seen, found.unsampled) == (
        "violated", 8, 82, 0, 410,
    )  # fmt: skip
    assert found.message.startswith("8 of 90 sampled devices violate it: 8.0% of the devices in scope (")
    assert found.message.endswith(", 410 are not sampled")


def test_no_violation_in_the_sample_is_not_compliance_and_has_an_upper_limit(tmp_path: Path) -> None:
    fleet = product("p1", 400)
    sampled = fleet[:41]
    outcomes: list[Outcome] = [*(ok(device, ("ble", "2.0")) for device in sampled[:40]), failed(sampled[40])]
    run = sampled_run(tmp_path / "run", fleet, sampled, outcomes).folder
    (found,) = evaluate(run, rule('deny = ["1.0"]'))
    assert found.verdict == "not_seen"
    assert (found.compliant, found.not_seen, found.unsampled) == (40, 1, 359)
    assert (found.share, found.low, found.high) == (0, 0, combined_unseen_share_limit([Stratum(400, 40, 40, 0)]))
    assert "none of 40 sampled devices violates it: at most 8.3% of the devices in scope may (95%)" in found.message


def test_devices_outside_the_scope_are_not_in_the_share(tmp_path: Path) -> None:
    fleet = product("p1", 200)
    sampled = fleet[:60]
    silent: list[Outcome] = [ok(device) for device in sampled[:20]]
    outcomes = [*silent, *(ok(device, ("ble", "1.0" if at < 10 else "2.0")) for at, device in enumerate(sampled[20:]))]
    run = sampled_run(tmp_path / "run", fleet, sampled, outcomes).folder
    exception = '[[rule.exception]]\nuntil = 2999-01-01\nreason = "lab"\ndevice = "device002*"'
    (found,) = evaluate(run, rule('minimum = "2.0"\nmodule = "ble"') + exception)
    expected = combined_share_interval([Stratum(200, 60, 30, 0)])  # device0020 to 29 are those that run 1.0
    assert (found.verdict, found.exempt, found.high) == ("not_seen", 10, expected.high)
    (found,) = evaluate(run, rule('minimum = "2.0"\nmodule = "ble"'))
    assert found.share == 0.25
    assert found.low is not None
    assert found.low < 0.25


@pytest.mark.parametrize(("behind", "verdict"), [(0, "compliant"), (3, "not_seen"), (30, "violated")])
def test_a_rollout_is_decided_by_the_whole_interval(tmp_path: Path, behind: int, verdict: str) -> None:
    run = write_sample(tmp_path / "run", (product("p1", 1000), 200, behind))
    (found,) = evaluate(run, rule('newest = "97%"\nmodule = "ble"'))
    expected = share_interval(1000, 200, 200, 200 - behind)
    assert found.verdict == verdict
    assert (found.share, found.low, found.high) == (expected.share, expected.low, expected.high)
    assert found.message.endswith("run the newest by the sample, required: 97%")


def test_a_rollout_has_the_share_of_the_deciding_module(tmp_path: Path) -> None:
    run = write_sample(tmp_path / "run", (product("p1", 1000), 200, 0), (product("p2", 500), 100, 40))
    (found,) = evaluate(run, rule('newest = "90%"\nmodule = "ble"'))
    assert (found.verdict, found.violated, found.compliant, found.share) == ("violated", 1, 1, 0.6)
    assert "in the module with the fewest" in found.message


def test_versions_in_the_sample_are_in_use_and_others_may_be(tmp_path: Path) -> None:
    run = write_sample(tmp_path / "run", (product("p1", 100), 10, 5), (product("p2", 4), 4, 2))
    most = {limit: evaluate(run, rule(f'max_versions = {limit}\nmodule = "ble"'))[0] for limit in (1, 2)}
    assert (most[1].verdict, most[1].violated) == ("violated", 2)
    assert (most[2].verdict, most[2].not_seen, most[2].compliant) == ("not_seen", 1, 1)
    assert "undecided: devices have no answer or are not sampled" in most[2].message


def test_a_completely_sampled_product_has_certain_verdicts(tmp_path: Path) -> None:
    run = write_sample(tmp_path / "run", (product("p1", 100), 10, 5), (product("p2", 4), 4, 0))
    (found,) = evaluate(run, rule('minimum = "2.0"\nproduct = "p2"'))
    assert (found.verdict, found.compliant, found.unsampled, found.share) == ("compliant", 4, 0, None)


def test_a_product_without_a_sampled_device_is_not_seen_and_unsampled(tmp_path: Path) -> None:
    run = write_sample(tmp_path / "run", (product("p1", 100), 100, 0), (product("p2", 4), 0, 0))
    (found,) = evaluate(run, rule('newest = "50%"'))
    assert (found.verdict, found.compliant, found.not_seen, found.unsampled) == ("not_seen", 1, 0, 1)


def test_devices_of_unknown_products_may_violate_any_rule(tmp_path: Path) -> None:
    fleet = [by_id(number) for number in range(100)]
    sampled = fleet[:30]
    outcomes = [ok(device, ("ble", "2.0"), learnt=both(at)) for at, device in enumerate(sampled)]
    run = sampled_run(tmp_path / "run", fleet, sampled, outcomes).folder
    text = 'severity = "error"\nproduct = "p1"\nmodule = "ble"'
    conditions = ('minimum = "2.0"', "max_versions = 1", 'newest = "99%"')
    rules = "".join(f'[[rule]]\nname = "{at}"\n{text}\n{each}\n' for at, each in enumerate(conditions))
    assert [found.verdict for found in evaluate(run, rules)] == ["not_seen"] * 3


def test_a_device_with_two_spellings_of_a_module_counts_once(tmp_path: Path) -> None:
    fleet = product("p1", 6)
    outcomes = [ok(fleet[0], ("ble", "1.0"), ("BLE", "2.0"))]
    run = sampled_run(tmp_path / "run", fleet, fleet[:1], outcomes).folder
    (found,) = evaluate(run, rule('newest = "99%"'))
    assert found.low is not None
    assert found.low < 0.5


def test_exports_have_the_interval_and_the_unsampled_devices(tmp_path: Path) -> None:
    run = write_sample(tmp_path / "run", (product("p1", 400), 40, 3))
    (tmp_path / "rules.toml").write_text(rule('minimum = "2.0"'))
    with evaluate_policy(run, load_policy(tmp_path / "rules.toml")) as found:
        found.table.write(tmp_path / "p.json", "json")
        export_policy_report(found, tmp_path / "p.xml", "junit")
        export_policy_report(found, tmp_path / "p.sarif", "sarif")
        (result,) = found.results
        assert any("on a sample of 40 of 400 devices" in warning.detail for warning in found.warnings)
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
    found = evaluate(run, rules)
    assert all((each.share, each.low, each.high, each.unsampled) == (None, None, None, 0) for each in found)
    assert [each.verdict for each in found] == ["not_seen", "compliant", "not_seen"]
