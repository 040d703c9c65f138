"""Policies: every condition equals an evaluation in plain Python; undecided devices never comply."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.errors import RunFolderError
from auditor.models import Device, Outcome, RunWarning
from auditor.policy.evaluate import evaluate_policy
from auditor.policy.model import (
    Condition,
    Deny,
    Exact,
    MaxAge,
    MaxVersions,
    Minimum,
    Newest,
    Policy,
    Required,
    Rule,
    RuleException,
)
from auditor.policy.results import RuleResult
from auditor.query.versions import compare_versions
from auditor.runs.folder import DEVICES
from auditor.storage.database import open_database
from tests.analysis.test_drift import Seen, a_run, write
from tests.runs.run_folders import (
    HOSTILE,
    START,
    both,
    build,
    by_id,
    every_status,
    failed,
    named,
    not_found,
    ok,
    running,
)

NOW = datetime.fromtimestamp(START, UTC) + timedelta(hours=2)
EVER = date(2099, 12, 31)

Row = tuple[object, ...]


rule = partial(Rule, "r", "error")


def evaluate(run: Path, *rules: Rule) -> tuple[tuple[RuleResult, ...], list[Row], tuple[RunWarning, ...]]:
    with evaluate_policy(run, Policy(rules, "rules.toml"), now=NOW) as report:
        found = list(report.violations)
        assert report.violation_count == len(found)
        assert [row for table in report.examples for row in table] == found
        return report.results, found, report.warnings


def counts_of(run: Path, one: Rule) -> tuple[int, int, int, int, int]:
    """How many are compliant, violated, unparseable, not seen, exempt."""
    (result,), _, _ = evaluate(run, one)
    return result.compliant, result.violated, result.unparseable, result.not_seen, result.exempt


def fleet(tmp_path: Path, *versions: str, module: str = "ble") -> Path:
    """A run of devices with one module, one version each."""
    devices = [named(number) for number in range(len(versions))]
    outcomes = [ok(device, (module, version)) for device, version in zip(devices, versions, strict=True)]
    return build(tmp_path / "run", devices, outcomes).folder


# What the documentation says, in plain Python.


def matches(patterns: tuple[str, ...], text: str) -> bool:
    return any(fnmatchcase(text, pattern.replace("[", "[[]")) for pattern in patterns)


def module_matches(patterns: tuple[str, ...], name: str) -> bool:
    return matches(tuple(pattern.lower() for pattern in patterns), name.lower())


def exempts(each: RuleException, device: Device, module: tuple[str, str] | None) -> bool:
    if each.expired(NOW) or (module is None and not each.whole_devices):
        return False
    names = [name for name in (device.device_name, device.iot_id) if name is not None]
    return (
        (each.device is None or any(matches((each.device,), name) for name in names))
        and (each.product is None or matches((each.product,), device.product_key or ""))
        and (each.module is None or (module is not None and module_matches((each.module,), module[0])))
        and (each.version is None or (module is not None and matches((each.version,), module[1])))
    )


def version_verdict(condition: Condition, version: str) -> str:
    match condition:
        case Minimum(minimum):
            stands = compare_versions(version, minimum)
            return {"older": "violated", "unordered": "unparseable"}.get(stands, "compliant")
        case Exact(versions):
            return "compliant" if version in versions else "violated"
        case Deny(patterns):
            denied = any(matches((each,), version) or compare_versions(version, each) == "same" for each in patterns)
            return "violated" if denied else "compliant"
    raise AssertionError(condition)


Oracle = tuple[Counter[str], Counter[Row]]


def expected(run: list[Seen], one: Rule) -> Oracle:
    scope = [
        (each, each.known if each.state == "ok" else each.asked)
        for each in run
        if matches(one.accounts, each.asked.account)
    ]
    scope = [(each, device) for each, device in scope if matches(one.products, device.product_key or "")]
    return group_verdicts(run, scope, one) if one.unit == "modules" else device_verdicts(scope, one)


def device_verdicts(scope: list[tuple[Seen, Device]], one: Rule) -> Oracle:
    counts: Counter[str] = Counter()
    rows: Counter[Row] = Counter()
    for each, device in scope:
        identity = (device.account, device.product_key, device.device_name, device.iot_id)
        is_exempt = any(exempts(exception, device, None) for exception in one.exceptions)
        if each.state in ("failed", "pending"):
            counts["exempt" if is_exempt else "not_seen"] += 1
            continue
        if each.state == "not_found":
            continue
        chosen = [module for module in each.modules if module_matches(one.modules, module[0])]
        found: list[str] = []
        if isinstance(one.condition, Required | MaxAge):
            if isinstance(one.condition, Required):
                good = bool(chosen)
            else:
                good = NOW.timestamp() - (START + 3.123) <= one.condition.seconds
            found.append("exempt" if is_exempt else "compliant" if good else "violated")
            rows.update([("violated", *identity, None, None)] if found == ["violated"] else [])
        else:
            for module in chosen:
                if any(exempts(exception, device, module) for exception in one.exceptions):
                    found.append("exempt")
                    continue
                found.append(version_verdict(one.condition, module[1]))
                rows.update([(found[-1], *identity, *module)] if found[-1] != "compliant" else [])
        worst = next((v for v in ("violated", "unparseable", "exempt", "compliant") if v in found), None)
        counts.update([worst] if worst else [])
    return counts, rows


def group_verdicts(run: list[Seen], scope: list[tuple[Seen, Device]], one: Rule) -> Oracle:
    counts: Counter[str] = Counter({"not_seen": count_unanswered_products(scope, one)})
    rows: Counter[Row] = Counter()
    groups: dict[tuple[str, str | None, str], list[tuple[Device, tuple[str, str]]]] = {}
    for each, device in scope:
        for module in each.modules:
            if module_matches(one.modules, module[0]):
                group = groups.setdefault((device.account, device.product_key, module[0].lower()), [])
                if not any(exempts(exception, device, module) for exception in one.exceptions):
                    group.append((device, module))
    for key, group in groups.items():
        verdict, behind = group_verdict(one.condition, [version for _, (_, version) in group])
        unseen = sum(
            each.state in ("failed", "pending")
            and (device.account, device.product_key) == key[:2]
            and not any(exempts(exception, device, None) for exception in one.exceptions)
            for each, device in scope
        )
        if verdict == "compliant" and unseen:
            verdict = verdict_at_worst(one.condition, [version for _, (_, version) in group], unseen)
        counts[verdict] += 1
        if verdict == "unparseable" or (verdict == "violated" and isinstance(one.condition, MaxVersions)):
            rows[verdict, *key[:2], None, None, title(run, key), None] += 1
        for device, module in group:
            if module[1] in behind:
                names = (device.account, device.product_key, device.device_name, device.iot_id)
                rows[verdict, *names, *module] += 1
    return counts, rows


def verdict_at_worst(condition: Condition, versions: list[str], unseen: int) -> str:
    """What a group that complies would be if what was not seen were as bad as it can be."""
    others = [f"{9_000_000 + number}!" for number in range(unseen)]
    if isinstance(condition, MaxVersions):
        return "not_seen" if group_verdict(condition, versions + others)[0] == "violated" else "compliant"
    assert isinstance(condition, Newest)
    on_newest = next(
        sum(compare_versions(version, newest) == "same" for version in versions)
        for newest in versions
        if all(compare_versions(other, newest) in ("older", "same") for other in versions)
    )
    return "not_seen" if Fraction(on_newest, len(versions) + unseen) < condition.share else "compliant"


def count_unanswered_products(scope: list[tuple[Seen, Device]], one: Rule) -> int:
    products: dict[tuple[str, str | None], set[bool]] = {}
    for each, device in scope:
        if each.state != "not_found" and not any(exempts(exception, device, None) for exception in one.exceptions):
            products.setdefault((device.account, device.product_key), set()).add(each.state in ("ok", "empty"))
    return sum(seen == {False} for seen in products.values())


def title(run: list[Seen], key: tuple[str, str | None, str]) -> str:
    """The greatest spelling of a product's module."""
    known = [(each, each.known) for each in run if each.state == "ok"]
    return max(
        name
        for each, device in known
        for name, _ in each.modules
        if (device.account, device.product_key, name.lower()) == key
    )


def group_verdict(condition: Condition, versions: list[str]) -> tuple[str, set[str]]:
    if not versions:
        return "exempt", set()
    if isinstance(condition, MaxVersions):
        alive: list[str] = []
        for version in versions:
            if all(compare_versions(version, other) != "same" for other in alive):
                alive.append(version)
        return ("violated" if len(alive) > condition.versions else "compliant"), set()
    assert isinstance(condition, Newest)
    for newest in versions:
        if all(compare_versions(other, newest) in ("older", "same") for other in versions):
            behind = [version for version in versions if compare_versions(version, newest) != "same"]
            if Fraction(len(versions) - len(behind), len(versions)) < condition.share:
                return "violated", set(behind)
            return "compliant", set()
    return "unparseable", set()


PATTERN = {
    "device": st.sampled_from(["*", "*1*", "iot*", "device?", "*2*", "device[1]"]),
    "product": st.sampled_from(["*", "p1", "p?", "p2"]),
    "module": st.sampled_from(["*", "BLE", "ble", "d*", "?l?"]),
    "version": st.sampled_from(["*", "1.*", "v1.1", "?.*", "hot"]),
}


@st.composite
def a_condition(draw: st.DrawFn) -> Condition:
    kind = draw(st.sampled_from([Minimum, Exact, Deny, Required, MaxVersions, Newest, MaxAge]))
    if kind is Minimum:
        return Minimum(draw(st.sampled_from(["1.1", "v1.0", "2.1", "2.03"])))
    if kind is Exact:
        return Exact(tuple(draw(st.lists(st.sampled_from(["1.0", "1.1", "hot", ""]), min_size=1, max_size=3))))
    if kind is Deny:
        patterns = st.sampled_from(["1.1", "1.*", "=*", "h?t", "hot"])
        return Deny(tuple(draw(st.lists(patterns, min_size=1, max_size=2))))
    if kind is MaxVersions:
        return MaxVersions(draw(st.integers(1, 3)))
    if kind is Newest:
        share = draw(st.sampled_from([1, 50, 60, 100]))
        return Newest(Fraction(share, 100), f"{share}%")
    return Required() if kind is Required else MaxAge(draw(st.sampled_from([3_600, 10_800])), "a while")


@st.composite
def a_rule(draw: st.DrawFn) -> Rule:
    condition = draw(a_condition())
    whole = isinstance(condition, Required | MaxAge)
    keys = ["device", "product"] if whole else list(PATTERN)
    exceptions = []
    for _ in range(draw(st.integers(0, 2))):
        given = draw(st.lists(st.sampled_from(keys), min_size=1, max_size=2, unique=True))
        until = draw(st.sampled_from([EVER, EVER, date(2020, 1, 1)]))
        exceptions.append(RuleException(until, "a reason", **{key: draw(PATTERN[key]) for key in given}))
    return rule(
        condition,
        accounts=draw(st.sampled_from([("*",), ("*",), ("demo",), ("oth*", "x")])),
        products=draw(st.sampled_from([("*",), ("*",), ("p1",), ("p?", "x")])),
        modules=("*",) if isinstance(condition, MaxAge) else (draw(PATTERN["module"]),),
        exceptions=tuple(exceptions),
    )


@st.composite
def a_policy(draw: st.DrawFn) -> list[Rule]:
    return [replace(draw(a_rule()), name=f"rule {at}") for at in range(draw(st.integers(12, 18)))]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(run=a_run(), rules=a_policy(), sealed=st.booleans())
@pytest.mark.slow
def test_a_policy_equals_an_evaluation_in_plain_python(*, run: list[Seen], rules: list[Rule], sealed: bool) -> None:
    with TemporaryDirectory() as folder:
        results, found, _ = evaluate(write(Path(folder, "run"), run, sealed=sealed), *rules)
    for one, result in zip(rules, results, strict=True):
        counts, rows = expected(run, one)
        names = ("compliant", "violated", "unparseable", "not_seen", "exempt")
        assert {name: getattr(result, name) for name in names} == {name: counts[name] for name in names}
        worst = next((name for name in ("violated", "unparseable", "not_seen") if counts[name]), "compliant")
        worst = worst if counts.total() else "not_seen"
        assert result.verdict == worst
        assert Counter(row[2:9] for row in found if row[0] == one.name) == rows


# What each condition means, by example.


def test_a_minimum_separates_older_and_unordered_versions(tmp_path: Path) -> None:
    run = fleet(tmp_path, "1.2", "v1.2.0", "1.10", "1.1", "hot")
    results, rows, _ = evaluate(run, rule(Minimum("1.2.0")))
    assert counts_of(run, rule(Minimum("1.2.0"))) == (3, 1, 1, 0, 0)
    assert results[0].message == "1 of 5 devices violate it, 1 has versions that cannot be compared"
    assert [(row[2], row[5], row[8], row[9]) for row in rows] == [
        ("violated", "device0003", "1.1", "is older than 1.2.0"),
        ("unparseable", "device0004", "hot", "cannot be ordered against 1.2.0"),
    ]


def test_exact_and_deny_reject_a_version_that_might_violate_them(tmp_path: Path) -> None:
    run = fleet(tmp_path, "1.2", "v1.2", "1.2.0", "1.3")
    assert counts_of(run, rule(Exact(("1.2", "1.3")))) == (2, 2, 0, 0, 0)
    assert counts_of(run, rule(Deny(("1.2",)))) == (1, 3, 0, 0, 0)
    assert counts_of(run, rule(Deny(("1.2*",)))) == (2, 2, 0, 0, 0)


def test_required_applies_to_devices_that_answered_and_exist(tmp_path: Path) -> None:
    fleet_ = [named(number) for number in range(5)]
    outcomes: list[Outcome] = [
        ok(fleet_[0], ("BLE", "1"), ("x", "1")), ok(fleet_[1], ("x", "1")), ok(fleet_[2]), not_found(fleet_[3]),
    ]  # fmt: skip
    run = build(tmp_path / "run", fleet_, outcomes).folder
    assert counts_of(run, rule(Required(), modules=("ble",))) == (1, 2, 0, 1, 0)
    _, rows, _ = evaluate(run, rule(Required(), modules=("ble",)))
    assert {row[9] for row in rows} == {"reports no module ble"}


def test_versions_that_are_the_same_count_once(tmp_path: Path) -> None:
    run = fleet(tmp_path, "1.2", "v1.2", "1.2.0", "1.3", "hot")
    assert counts_of(run, rule(MaxVersions(3))) == (1, 0, 0, 0, 0)
    _, rows, _ = evaluate(run, rule(MaxVersions(2)))
    assert rows == [
        (
            "r",
            "error",
            "violated",
            "demo",
            "p1",
            None,
            None,
            "ble",
            None,
            "3 versions are in use, at most 2 are allowed",
        )
    ]


@pytest.mark.parametrize(("share", "violated"), [("95", 0), ("95.000001", 1), ("100", 1)])
def test_a_share_is_compared_exactly(tmp_path: Path, share: str, violated: int) -> None:
    run = fleet(tmp_path, *["2.0"] * 10, *["v2"] * 9, "1.9")
    one = rule(Newest(Fraction(share) / 100, f"{share}%"))
    (result,), rows, _ = evaluate(run, one)
    assert result.violated == violated == len(rows)
    if violated:
        assert rows[0][8:] == ("1.9", f"19 of 20 devices run the newest, 2.0; required: {share}%")


def test_without_a_newest_version_a_rollout_is_unparseable(tmp_path: Path) -> None:
    run = fleet(tmp_path, "2.03", "2.1", "1.0")
    _, rows, _ = evaluate(run, rule(Newest(Fraction(1), "100%")))
    assert [(row[2], row[5], row[7], row[9]) for row in rows] == [
        ("unparseable", None, "ble", "none of 3 versions is newer than, or the same as, all others")
    ]


def test_the_age_of_answers_refers_to_the_given_time(tmp_path: Path) -> None:
    run = fleet(tmp_path, "1", "2")
    assert counts_of(run, rule(MaxAge(7_200, "2h"))) == (2, 0, 0, 0, 0)
    (result,), rows, _ = evaluate(run, rule(MaxAge(7_000, "7000s")))
    assert result.violated == 2
    assert rows[0][9] == "was answered more than 7000s ago, at 2026-11-22T02:00:03Z"


@pytest.mark.slow
def test_a_device_that_was_not_seen_neither_complies_nor_violates(tmp_path: Path) -> None:
    run = every_status(tmp_path / "run").folder
    for condition in (Minimum("0.1"), Exact(("1.0",)), Deny(("x",)), Required(), MaxAge(86_400, "1d")):
        (result,), _, _ = evaluate(run, rule(condition, products=("p1",)))
        assert result.not_seen == 3, condition
    (result,), _, _ = evaluate(run, rule(Deny(("x",)), products=("p2",)))
    assert (result.verdict, result.compliant, result.not_seen) == ("not_seen", 1, 1)


def test_a_product_without_any_answer_is_a_group_that_was_not_seen(tmp_path: Path) -> None:
    devices = [named(0), named(1, product="p2"), named(2, product="p2")]
    run = build(tmp_path / "run", devices, [ok(devices[0], ("ble", "1")), failed(devices[1])]).folder
    assert counts_of(run, rule(MaxVersions(1))) == (1, 0, 0, 1, 0)
    lab = RuleException(EVER, "bench", device="device000?", product="p2")
    assert counts_of(run, rule(MaxVersions(1), exceptions=(lab,))) == (1, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("condition", "verdict"),
    [
        (Newest(Fraction(2, 3), "67%"), "compliant"),
        (Newest(Fraction(95, 100), "95%"), "not_seen"),
        (MaxVersions(2), "compliant"),
        (MaxVersions(1), "not_seen"),
    ],
)
def test_devices_without_an_answer_never_make_a_rollout_comply(
    tmp_path: Path, condition: Condition, verdict: str
) -> None:
    devices = [named(0), named(1), named(2)]
    seen: list[Outcome] = [ok(each, ("ble", "2.0")) for each in devices[:2]]
    run = build(tmp_path / "run", devices, [*seen, failed(devices[2])]).folder
    (result,), rows, _ = evaluate(run, rule(condition))
    assert (result.verdict, rows) == (verdict, [])
    lab = RuleException(EVER, "bench", device="device0002")
    assert counts_of(run, rule(condition, exceptions=(lab,))) == (1, 0, 0, 0, 0)


def test_an_unknown_product_matches_only_the_pattern_for_any_text(tmp_path: Path) -> None:
    run = build(tmp_path / "run", [by_id(0)], [failed(by_id(0))]).folder
    assert counts_of(run, rule(Deny(("x",)))) == (0, 0, 0, 1, 0)
    assert counts_of(run, rule(Deny(("x",)), products=("p*",))) == (0, 0, 0, 0, 0)


def test_an_exception_holds_to_the_end_of_its_day_and_then_causes_a_warning(tmp_path: Path) -> None:
    run = fleet(tmp_path, "1", "1")
    today = RuleException(NOW.date(), "bench", device="*1")
    assert counts_of(run, rule(Minimum("2"), exceptions=(today,))) == (0, 1, 0, 0, 1)
    over = msgspec.structs.replace(today, until=NOW.date() - timedelta(days=1))
    results, _, warnings = evaluate(run, rule(Minimum("2"), exceptions=(over,)))
    assert results[0].violated == 2
    expired = 'rule "r": the exception for device *1 expired on 2026-11-21 and exempts nothing (bench)'
    assert warnings == (RunWarning("expired_exception", "", expired),)


def test_a_device_has_the_worst_verdict_of_its_modules(tmp_path: Path) -> None:
    device = named(0)
    run = build(tmp_path / "run", [device], [ok(device, ("a", "1"), ("b", "hot"), ("c", "3"))]).folder
    assert counts_of(run, rule(Minimum("2"))) == (0, 1, 0, 0, 0)
    spare = RuleException(EVER, "known", module="A")
    assert counts_of(run, rule(Minimum("2"), exceptions=(spare,))) == (0, 0, 1, 0, 0)
    assert counts_of(run, rule(Minimum("2"), modules=("a", "c"), exceptions=(spare,))) == (0, 0, 0, 0, 1)


def test_overlapping_exceptions_count_once(tmp_path: Path) -> None:
    run = fleet(tmp_path, "1", "2", "3")
    out = tuple(RuleException(EVER, "twice", device=pattern) for pattern in ("device0000", "*0"))
    assert counts_of(run, rule(MaxVersions(2), exceptions=out)) == (1, 0, 0, 0, 0)
    assert counts_of(run, rule(Newest(Fraction(1), "100%"), exceptions=out)) == (0, 1, 0, 0, 0)


@pytest.mark.parametrize("given", [{"device": "*0"}, {"version": "1"}, {"product": "p1"}, {"module": "B*"}])
def test_exempt_devices_are_not_listed(tmp_path: Path, given: dict[str, str]) -> None:
    run = fleet(tmp_path, "1", "2", "3", module="ble")
    one = RuleException(EVER, "bench", **given)
    left = [] if "product" in given or "module" in given else ["device0001"]
    _, rows, _ = evaluate(run, rule(Minimum("3"), exceptions=(one,)))
    assert [row[5] for row in rows] == left
    _, rows, _ = evaluate(run, rule(Newest(Fraction(1), "100%"), exceptions=(one,)))
    assert [row[5] for row in rows] == left
    assert counts_of(run, rule(MaxVersions(2), exceptions=(one,))) == ((1, 0, 0, 0, 0) if left else (0, 0, 0, 0, 1))


def test_both_rows_of_a_device_listed_twice_are_evaluated(tmp_path: Path) -> None:
    outcomes: list[Outcome] = [
        ok(named(0), ("ble", "1"), learnt=both(0)), ok(by_id(0), ("ble", "1"), learnt=both(0)), ok(named(1), ("x", "1")),
    ]  # fmt: skip
    run = build(tmp_path / "run", [named(0), by_id(0), named(1)], outcomes).folder
    assert counts_of(run, rule(Minimum("2"), modules=("ble",))) == (0, 2, 0, 0, 0)
    assert counts_of(run, rule(Required(), modules=("ble",))) == (2, 1, 0, 0, 0)
    (result,), rows, _ = evaluate(run, rule(Minimum("2"), modules=("ble",)))
    assert len(rows) == result.violated == 2


@pytest.mark.slow
def test_hostile_names_are_evaluated_unchanged(tmp_path: Path) -> None:
    devices = [Device("demo", "p[1]", f"{number}{name}", None) for number, name in enumerate(HOSTILE)]
    outcomes = [ok(device, (f"m{text}", text)) for device, text in zip(devices, HOSTILE, strict=True)]
    run = build(tmp_path / "run", devices, outcomes).folder
    texts = [text for text in HOSTILE if text]
    exact = [Rule(f"exact {at}", "error", Exact((text,))) for at, text in enumerate(texts)]
    deny = [Rule(f"deny {at}", "error", Deny((text,)), products=("p[1]",)) for at, text in enumerate(texts)]
    required = [
        Rule(f"required {at}", "error", Required(), modules=(f"M{text}",), products=("p[?]",))
        for at, text in enumerate(texts)
    ]
    results, _, _ = evaluate(run, *exact, *deny, *required)
    for result in results:
        met = result.violated if result.rule in deny else result.compliant
        assert (met, result.compliant + result.violated) == (1, len(HOSTILE)), result.rule
    assert counts_of(run, rule(Deny(("x",)), products=("p1",))) == (0, 0, 0, 0, 0)
    _, rows, _ = evaluate(run, rule(Exact(("never",))))
    assert {row[8] for row in rows} == set(HOSTILE)


def test_a_rule_that_matches_nothing_causes_a_warning_unless_nothing_answered(tmp_path: Path) -> None:
    run = build(tmp_path / "run", [named(0), named(1, product="p2")], [ok(named(0), ("ble", "1"))]).folder
    detail = 'rule "r" matches nothing of the devices that answered: check its patterns; '
    detail += "or query the devices without an answer"
    assert evaluate(run, rule(Minimum("1"), modules=("bel",)))[2][1:] == (RunWarning("unmatched_rule", "", detail),)
    detail = 'rule "r" matches nothing in this run: check its patterns'
    for other in (rule(Minimum("1"), products=("q*",)), rule(Minimum("1"), modules=("bel",), products=("p1",))):
        assert evaluate(run, other)[2][1:] == (RunWarning("unmatched_rule", "", detail),)
    assert evaluate(run, rule(Minimum("1"), products=("p2",)))[2][1:] == ()
    assert evaluate(run, rule(Minimum("1")))[2][1:] == ()


def test_only_a_violated_error_fails(tmp_path: Path) -> None:
    run = fleet(tmp_path, "1", "hot")
    for one, fails in (
        (rule(Minimum("2")), True),
        (Rule("r", "warning", Minimum("2")), False),
        (rule(Minimum("0.1")), False),
    ):
        with evaluate_policy(run, Policy((one,), "rules.toml")) as report:
            assert report.failed is fails


def test_a_run_in_progress_is_evaluated_as_it_is_now(tmp_path: Path) -> None:
    run = running(tmp_path / "run", [named(0), named(1)], [ok(named(0), ("ble", "1"))]).folder
    results, _, warnings = evaluate(run, rule(Minimum("1")))
    assert (results[0].compliant, results[0].not_seen, results[0].verdict) == (1, 1, "not_seen")
    assert warnings == (RunWarning("running", str(run), "killed: 0 devices failed, 1 pending"),)


def test_a_folder_that_is_no_run_is_refused_and_missing_times_are_unparseable(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no run"):
        evaluate(tmp_path, rule(Required()))
    run = fleet(tmp_path, "1")
    with open_database() as database:
        database.execute(f"CREATE TABLE t AS FROM '{run / DEVICES}'")
        database.execute("UPDATE t SET audited_at = NULL")
        database.execute(f"COPY t TO '{run / DEVICES}' (FORMAT parquet)")
    results, rows, warnings = evaluate(run, rule(MaxAge(60, "60s")))
    assert (results[0].unparseable, rows[0][9]) == (1, "the time of its answer is unknown")
    assert warnings[0].kind == "tampered"
    assert "unmatched_rule" not in {warning.kind for warning in warnings}


@pytest.mark.slow
def test_all_versions_of_a_module_decide_how_its_dates_are_read(tmp_path: Path) -> None:
    # 27 September can only be written with the day first, so 1 February is newer than 2 January.
    dated = fleet(tmp_path / "dated", "01.02.2020", "27.09.2020")
    assert counts_of(dated, rule(Minimum("02.01.2020"))) == (2, 0, 0, 0, 0)
    assert counts_of(dated, rule(Minimum("02.03.2020"))) == (1, 1, 0, 0, 0)
    unclear = fleet(tmp_path / "unclear", "01.02.2020", "03.04.2020")
    assert counts_of(unclear, rule(Minimum("02.01.2020"))) == (1, 0, 1, 0, 0)
    newest = rule(Newest(Fraction(1, 3), "33%"))
    assert counts_of(fleet(tmp_path / "a", "01.02.2020", "02.01.2020", "27.09.2020"), newest) == (1, 0, 0, 0, 0)
    assert counts_of(fleet(tmp_path / "b", "01.02.2020", "02.01.2020", "03.01.2020"), newest) == (0, 0, 1, 0, 0)
    commits = fleet(tmp_path / "commits", "4512309", "1870234")
    assert counts_of(commits, newest) == (0, 0, 1, 0, 0)


def test_versions_of_one_module_say_nothing_about_another_one(tmp_path: Path) -> None:
    devices = [named(number) for number in range(3)]
    modules = [("ble", "01.02.2020"), ("ble", "02.01.2020"), ("mcu", "27.09.2020")]
    run = build(tmp_path / "run", devices, [ok(*each) for each in zip(devices, modules, strict=True)]).folder
    assert counts_of(run, rule(Minimum("02.01.2020"), modules=("ble",))) == (1, 0, 1, 0, 0)
