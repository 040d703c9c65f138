"""Rules files: their values, and one sentence for each error."""

import os
from datetime import date
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.errors import SettingsError
from auditor.policy.loader import load_policy, parse_policy
from auditor.policy.model import Deny, Exact, MaxAge, MaxVersions, Minimum, Newest, Released, Required, RuleException
from auditor.storage.database import open_database
from auditor.text.globs import glob_regex, is_literal
from tests.runs.run_folders import HOSTILE

CONFIG = Path(__file__).parents[2] / "configs" / "rules.toml"
GOOD = {"name": "r", "minimum": "1"}
SPARE = {"device": "lab-*", "until": date(2027, 1, 1), "reason": "bench"}


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_policy(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}: ")
    return sentence.removeprefix(f"{path}: ")


def test_the_example_has_every_condition_and_describes_it() -> None:
    rules = load_policy(CONFIG).rules
    assert [rule.condition for rule in rules] == [
        Minimum("1.2.0"),
        Deny(("1.0.3", "2.0-beta*")),
        Exact(("3.1.0", "3.1.2")),
        Required(),
        MaxVersions(5),
        Newest(Fraction(19, 20), "95%"),
        Released(Fraction(19, 20), "95%", 14 * 86_400, "14d"),
        MaxAge(36 * 3_600, "36h"),
    ]
    assert rules[0].exceptions == (RuleException(date(2027, 6, 30), "test bench", device="lab-*"),)
    assert [rule.severity for rule in rules[:3]] == ["error", "error", "warning"]
    assert [rule.description for rule in rules] == [
        "module ble of product k1* runs 1.2.0 or newer",
        "every module runs nothing like 1.0.3 or 2.0-beta*",
        "module zigbee runs exactly 3.1.0 or 3.1.2",
        "every device reports module ble",
        "every module has at most 5 versions in use in a product",
        "module ble runs its newest version on 95% of a product's devices or more",
        "every module runs its released version on 95% of a product's devices or more, 14d after its release",
        "every device was answered within 36h",
    ]


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("minimun = '1'", 'rule 1 ("r"): minimun is not a key of a rule; did you mean minimum?'),
        ("", 'rule 1 ("r"): has no condition; give exactly one of minimum, exact, deny, required, max_versions, '),
        ("minimum = '1'\ndeny = '2'", 'rule 1 ("r"): has minimum and deny; give exactly one of'),
        ("minimum = 1.2", 'rule 1 ("r"): minimum: give a text, not a decimal number'),
        ("minimum = 'hot'", "minimum: 'hot' has no order; give a version such as 1.2.0"),
        ("exact = []", "exact: is empty"),
        ("deny = ['']", "deny: is empty"),
        ("required = false", "required: give true, or leave the rule out"),
        ("max_versions = 0", "max_versions: give a whole number from 1 up"),
        ("newest = '0%'", "newest: '0%' is not a share; give one such as \"95%\""),
        ("newest = '101%'", "newest: '101%' is not a share"),
        ("newest = '> 95%'", "newest: '> 95%' is not a share"),
        ("max_age = '3 days'", "max_age: '3 days' is not a duration"),
        ("max_age = '7w'", "max_age: '7w' is not a duration; give one such as "),
        ("max_age = '1h'\nmodule = 'ble'", "module: max_age applies to whole devices"),
        ("severity = 'fatal'\nminimum = '1'", 'severity: give "error", "warning" or "note"'),
        ("product = []\nminimum = '1'", "product: is empty"),
        ("product = ''\nminimum = '1'", "product: is empty"),
        ("product = ['a', 1]\nminimum = '1'", "product 2: give a text, not a whole number"),
        (f"deny = '{'x' * 10_001}'", "deny: give at most 1,000 texts, 10,000 characters in total"),
    ],
)
def test_an_invalid_rule_is_refused_with_its_key(tmp_path: Path, rule: str, sentence: str) -> None:
    assert sentence in refused(tmp_path, f"[[rule]]\nname = 'r'\n{rule}\n")


@pytest.mark.parametrize(
    ("exception", "sentence"),
    [
        ("device = 'x'\nreason = 'y'", "exception 1: has no until"),
        ("device = 'x'\nuntil = 2027-01-01", "exception 1: has no reason"),
        ("device = 'x'\nuntil = 2027-01-01\nreason = ' '", "exception 1: reason: is empty"),
        ("until = 2027-01-01\nreason = 'y'", "exception 1: matches everything; give device"),
        ("device = ''\nuntil = 2027-01-01\nreason = 'y'", "exception 1: device: is empty"),
        ("device = 'x'\nuntil = 'soon'\nreason = 'y'", "exception 1: until: "),
        ("devices = 'x'\nuntil = 2027-01-01\nreason = 'y'", "did you mean device?"),
    ],
)
def test_an_invalid_exception_is_refused(tmp_path: Path, exception: str, sentence: str) -> None:
    text = f"[[rule]]\nname = 'r'\nminimum = '1'\n[[rule.exception]]\n{exception}\n"
    assert sentence in refused(tmp_path, text)


def test_rules_about_devices_refuse_exceptions_for_versions() -> None:
    table = {"rule": [{"name": "r", "required": True, "exception": [SPARE | {"version": "1"}]}]}
    with pytest.raises(SettingsError, match="exception 1: the rule applies to whole devices"):
        parse_policy(table, "rules")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({}, "rules: has no \\[\\[rule\\]\\]"),
        ({"rule": {}}, "rules: has no \\[\\[rule\\]\\]"),
        ({"rules": [GOOD]}, "'rules' is not a key of a rules file"),
        ({"rule": [GOOD, GOOD]}, 'rule 2 \\("r"\\): name: another rule has this name'),
        ({"rule": [{"minimum": "1"}]}, "rule 1: has no name"),
        ({"rule": [GOOD | {"name": "a\nb"}]}, "rule 1: name: give 1 to 100 printable characters"),
        ({"rule": ["text"]}, "rule 1: give a table, not a text"),
    ],
)
def test_an_invalid_file_is_refused(table: dict[str, object], sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        parse_policy(table, "rules")


RULE_FAULTS: dict[str, tuple[object, str]] = {
    "severity": ("fatal", 'severity: give "error", "warning" or "note"'),
    "account": (5, "account: give a text or a list, not a whole number"),
    "product": ([], "product: is empty"),
    "where": ({"site": ""}, "where: site: is empty"),
    "newest": ("0%", "newest: '0%' is not a share"),
    "minimum": (1.2, "minimum: give a text, not a decimal number"),
    "released_within": ("14d", "released_within: is for rules with released"),
    "exception": ([{"until": "soon"}], "exception 1: until: give a date such as 2027-06-30"),
    "sevirity": (5, "sevirity is not a key of a rule; did you mean severity?"),
}
"""A fault of each key, and words of its sentence."""


@given(st.lists(st.sets(st.sampled_from(sorted(RULE_FAULTS))), min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_no_fault_of_rules_hides_another(of_rules: list[set[str]]) -> None:
    table = [{"name": "r", **{key: RULE_FAULTS[key][0] for key in faults}} for faults in of_rules]
    expected = [("name: another rule has this name", n) for n in range(2, len(table) + 1)]
    for n, faults in enumerate(of_rules, 1):
        expected += [(RULE_FAULTS[key][1], n) for key in faults]
        expected += [
            (text, n) for text in ("exception 1: has no reason", "matches everything") if "exception" in faults
        ]
        if len({"newest", "minimum"} & faults) != 1:
            expected.append(("give exactly one of minimum", n))
    if not expected:
        return
    with pytest.raises(SettingsError) as caught:
        parse_policy({"rule": table}, "rules")
    sentences = caught.value.sentences
    for text, n in expected:
        assert any(each.startswith(f'rules: rule {n} ("r"): ') and text in each for each in sentences), (
            text,
            sentences,
        )
    assert len(sentences) == len(expected)


@pytest.mark.parametrize("content", [b"[[rule]", b"\xff\xfe", b"a = " + b"[" * 10_000])
def test_invalid_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="is not TOML"):
        load_policy(path)
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        load_policy(tmp_path / "none")


@pytest.mark.parametrize(("name", "says"), [("pipe", "is a pipe"), ("/dev/zero", "is a device")])
def test_rules_from_a_pipe_or_a_device_are_refused(tmp_path: Path, name: str, says: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingsError, match=f"cannot be read: {says}"):
        load_policy(tmp_path / name)


def test_the_database_accepts_the_longest_list_of_patterns() -> None:
    longest = ["?*" * 5 for _ in range(999)] + ["?" * 10]
    parse_policy({"rule": [{"name": "r", "deny": longest}]}, "rules")
    with open_database() as database:
        found = database.execute("SELECT regexp_full_match('x', $1)", [glob_regex(longest)]).fetchone()
    assert found == (False,)


@pytest.mark.parametrize("text", [text for text in HOSTILE if text] + ["[a-z]", "a{2}", "(?i)x", "\\Q.*", ".*", "^$"])
def test_all_but_two_characters_of_a_pattern_are_literal(text: str) -> None:
    with open_database() as database:

        def fits(pattern: str, name: str) -> bool:
            return database.execute("SELECT regexp_full_match($1, $2)", [name, glob_regex([pattern])]).fetchall() == [
                (True,)
            ]

        assert fits(text, text)
        assert fits(f"{text}*", f"{text}\n\0x")
        assert fits("?" * len(text), text)
        if is_literal(text):
            assert not fits(text, f"{text}x")
            assert not any(fits(text, other) for other in ["aa", "X", "b", "", "a"] if other != text)
