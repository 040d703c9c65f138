"""Rules with ``where``: a rule on some devices says of a run what the rule without it says of a run of only those."""

import itertools
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.errors import SettingsError
from auditor.models import Device, Outcome
from auditor.policy.evaluate import evaluate_policy
from auditor.policy.loader import parse_policy
from auditor.policy.model import Condition, Deny, Exact, MaxAge, MaxVersions, Minimum, Newest, Policy, Required, Rule
from tests.runs.run_folders import START, build, failed, named, not_found, ok

NOW = datetime.fromtimestamp(START + 86_400, UTC)

NUMBERS = itertools.count()

CONDITIONS: list[Condition] = [
    Minimum("1.1"), Exact(("1.0", "2.0")), Deny(("1.*",)), Required(), MaxVersions(1), Newest(Fraction(2, 3), "67%"),
    MaxAge(3_600, "1h"),
]  # fmt: skip

DEVICE = st.tuples(
    st.sampled_from(["p1", "p2"]),
    st.sampled_from(["1.0", "1.1", "2.0", "", None, "failed", "not_found"]),
    st.sampled_from([None, "a1", "a2", "b1"]),
)

Given = list[tuple[int, tuple[str, str | None, str | None]]]


def evaluate(folder: Path, devices: Given, rules: list[Rule]) -> list[tuple[object, ...]]:
    """Return what each rule says of a run of such devices."""
    fleet: list[Device] = []
    outcomes: list[Outcome] = []
    details: list[dict[str, object]] = []
    for number, (product, answer, site) in devices:
        device = named(number, product=product)
        fleet.append(device)
        details.append({"attributes": site and {"site": site}})
        match answer:
            case "failed":
                outcomes.append(failed(device))
            case "not_found":
                outcomes.append(not_found(device))
            case None:
                outcomes.append(ok(device))
            case version:
                outcomes.append(ok(device, ("ble", version)))
    build(folder, fleet, outcomes, details=details)
    with evaluate_policy(folder, Policy(tuple(rules), "rules.toml"), now=NOW) as report:
        violations = list(report.violations)
        rows = [[row for row in violations if row[0] == rule.name] for rule in rules]
        return [
            (one.verdict, one.violated, one.compliant, one.unparseable, one.not_seen, one.exempt, one.message, found)
            for one, found in zip(report.results, rows, strict=True)
        ]


def rules_for(**more: Any) -> list[Rule]:
    return [Rule(f"r{at}", "error", each, modules=("ble",), **more) for at, each in enumerate(CONDITIONS)]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(DEVICE, min_size=3, max_size=16), st.sampled_from(["a*", "b1", "a1"]))
@pytest.mark.slow
def test_a_rule_has_only_devices_whose_attributes_match(
    tmp_path: Path, given_devices: list[tuple[str, str | None, str | None]], pattern: str
) -> None:
    numbered = list(enumerate(given_devices))
    inside = [each for each in numbered if each[1][2] and each[1][2].startswith(pattern.rstrip("*"))]
    folder = tmp_path / str(next(NUMBERS))
    found = evaluate(folder / "all", numbered, rules_for(where=(("site", (pattern,)),)))
    if inside:
        assert found == evaluate(folder / "some", inside, rules_for())
    else:
        assert {verdict for verdict, *_ in found} == {"not_seen"}


def test_where_is_a_table_of_patterns() -> None:
    table = {"rule": [{"name": "r", "minimum": "1", "where": {"site": "a*", "ring": ["1", "2"]}}]}
    (rule,) = parse_policy(table, "rules.toml")
    assert rule.where == (("ring", ("1", "2")), ("site", ("a*",)))
    assert rule.description == "every module with ring 1 or 2 with site a* runs 1 or newer"


@pytest.mark.parametrize("where", [{"site": ""}, {"site": []}])
def test_an_empty_pattern_is_refused(where: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="where: site: is empty"):
        parse_policy({"rule": [{"name": "r", "minimum": "1", "where": where}]}, "rules.toml")
