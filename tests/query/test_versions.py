"""The order of versions: the rules, and that it is a partial order over any text."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from auditor.query.versions import Order, can_be_ordered, compare_versions, equivalence_key
from tests.runs.run_folders import HOSTILE

TURNED: dict[Order, Order] = {"older": "newer", "newer": "older", "same": "same", "unordered": "unordered"}


@pytest.mark.parametrize(
    ("version", "other"),
    [
        ("1.9", "1.10"),
        ("1.2.3.4", "1.2.3.5"),
        ("V1.0.0.0", "v1.0.0.1"),
        ("V1.0.0.0", "1.0.1"),
        ("1.2", "1.2.1"),
        ("1", "1.0.1"),
        ("R9", "R12"),
        ("FW_1.2", "FW_1.10"),
        ("2.03", "2.10"),
        ("2.03", "2.04"),
        ("2.0", "2.01"),
        ("2024.01.15", "2024.01.16"),
        ("20240115", "20240116"),
        ("1.2", "1.2.20240115"),
        ("2024-01-15", "2024-02-01"),
        ("1_2_9", "1_2_10"),
        ("1.0rc1", "1.0-RC2"),
        ("1.0-alpha", "1.0-alpha1"),
        ("1.0-alpha2", "1.0-beta.1"),
        ("1.0-beta9", "1.0_rc"),
        ("1.0-rc9", "1.0"),
        ("1.0.0-rc9", "1"),
        ("1.0", "1.1-rc1"),
        ("1.4.2-hotfix1", "1.4.2-hotfix2"),
        ("1.4.2-hotfix2", "1.4.3"),
        ("1.4.1", "1.4.2-hotfix2"),
        ("1.4", "1.4.2-hotfix2"),
        ("1.2-9", "1.2-10"),
    ],
)
def test_versions_that_a_rule_orders_are_ordered_both_ways(version: str, other: str) -> None:
    assert compare_versions(version, other) == "older"
    assert compare_versions(other, version) == "newer"


@pytest.mark.parametrize(
    ("version", "other"),
    [
        ("2.03", "2.3"),
        ("2.03", "2.1"),
        ("2.00", "2.0"),
        ("20240115", "1.2.3"),
        ("20240115", "202401151200"),
        ("999999", "1000000"),
        ("1.2.3", "1.2.20240115"),
        ("R12", "12"),
        ("R12", "r13"),
        ("R12", "S13"),
        ("2024-01-15", "2024.01.16"),
        ("1.4.2-hotfix2", "1.4.2"),
        ("1.4.2-hotfix2", "1.4.2.1"),
        ("1.4.2-hotfix2", "1.4.2-patch3"),
        ("1.4.2-hotfix", "1.4.2-hotfix2"),
        ("1.4.2-hotfix2", "1.4.2-rc1"),
        ("1.0-rc01", "1.0-rc1"),
        ("1.2a", "1.2b"),
        ("5GHz", "6GHz"),
        ("1.2-3-g1a2b3c", "1.2-4-g1a2b3c"),
        ("版本1", "版本2"),
        ("正式版", "测试版"),
        ("1.\u0662", "1.\u0663"),
        ("\uff11.2", "\uff12.2"),
        ("1.2\n", "1.3\n"),
        ("", "1"),
        ("1..2", "1..3"),
        ("-1", "-2"),
        ("1.0+build5", "1.0+build6"),
    ],
)
def test_versions_without_a_rule_are_unordered(version: str, other: str) -> None:
    assert compare_versions(version, other) == compare_versions(other, version) == "unordered"


@pytest.mark.parametrize(
    ("version", "other"),
    [("1.2", "1.2.0"), ("v1.2", "1.2"), ("V1.2", "v1.2.0.0"), ("1.0rc1", "1.0.0-RC.1"), ("1.0-beta", "1.0-beta0"),
     ("v1.2-hotfix2", "1.2-hotfix2"), ("0", "0.0")],
)  # fmt: skip
def test_different_texts_of_one_version_are_the_same(version: str, other: str) -> None:
    assert compare_versions(version, other) == compare_versions(other, version) == "same"


def test_numbers_too_long_for_python_are_compared() -> None:
    long = "1" + 9_999 * "0"
    assert compare_versions(f"1.{long}", f"1.{long[:-1]}1") == "older"
    assert compare_versions(f"1.{long}", "1.5") == "unordered"
    assert compare_versions("1.5", "1.5." + 100_000 * "0") == "unordered"


NUMBERS = st.sampled_from(
    [
        "0",
        "00",
        "1",
        "01",
        "2",
        "3",
        "03",
        "10",
        "12",
        "012",
        "100",
        "12345",
        "20240115",
        "20240116",
        "000000",
        "000001",
        "1000000",
    ]
)
SUFFIXES = [
    "rc1",
    "-rc",
    "-RC02",
    "beta",
    "-beta.1",
    "alpha",
    "-hotfix",
    "-hotfix1",
    "-hotfix2",
    "_hotfix1",
    "-2",
    "-12",
    ".b1",
    "-a1",
    "+5",
    "g",
]
SHAPED = st.builds(
    lambda letters, mark, numbers, suffix: letters + mark.join(numbers) + suffix,
    st.sampled_from(["", "", "", "v", "V", "R", "r", "FW_"]),
    st.sampled_from(["." , ".", ".", "-", "_"]),
    st.lists(NUMBERS, min_size=1, max_size=4),
    st.sampled_from(["", "", "", *SUFFIXES]),
)  # fmt: skip
SMALL = st.text("0123.-_vrca", max_size=6)
VERSIONS = SHAPED | SMALL | st.text(max_size=8) | st.sampled_from(HOSTILE)


@given(VERSIONS, VERSIONS)
def test_the_order_is_antisymmetric_and_equal_strings_are_the_same(version: str, other: str) -> None:
    assert compare_versions(version, version) == "same"
    assert compare_versions(other, version) == TURNED[compare_versions(version, other)]


def check_transitive(one: str, two: str, three: str) -> None:
    first, second, whole = (compare_versions(*pair) for pair in ((one, two), (two, three), (one, three)))
    if first == "same":
        assert whole == second
    if second == "same":
        assert whole == first
    if first == second != "unordered":
        assert whole == first


@given(SHAPED, SHAPED, SHAPED)
@example("1.2-hotfix1", "1.2-hotfix2", "1.3")
@example("2.0", "2.03", "2.10")
def test_older_and_same_are_transitive(one: str, two: str, three: str) -> None:
    check_transitive(one, two, three)


@given(st.lists(st.builds("1.{}{}".format, NUMBERS, st.sampled_from(["", ".1", ".01", *SUFFIXES])), max_size=12))
def test_older_and_same_are_transitive_among_similar_versions(crowd: list[str]) -> None:
    for one in crowd:
        for two in crowd:
            for three in crowd:
                check_transitive(one, two, three)


@given(SHAPED, SHAPED)
def test_same_versions_differ_only_where_the_rules_allow(version: str, other: str) -> None:
    if compare_versions(version, other) == "same" and version != other:
        assert plain(version) == plain(other)


def plain(version: str) -> str:
    """A version without a v, without zeros at the end of its numbers, and its stage written one way."""
    text = version.lower().removeprefix("v")
    numbers, stage = text, ""
    for word in ("alpha", "beta", "rc"):
        if word in text:
            numbers, _, number = text.partition(word)
            stage = word + (number.strip("-_.") or "0")
    numbers = numbers.rstrip("-_.") if stage else numbers
    mark = next((each for each in "_-" if each in numbers), ".")
    while numbers.endswith(f"{mark}0"):
        numbers = numbers.removesuffix(f"{mark}0")
    return f"{numbers or '0'} {stage}"


@given(
    st.lists(st.sampled_from(["1.2", "v1.2.0", "1.2-rc1", "1.2RC1", "hot", "2.03", "2.3", "", *HOSTILE]), min_size=2)
)
def test_only_same_versions_share_an_equivalence_key(versions: list[str]) -> None:
    for one in versions:
        for other in versions:
            assert (equivalence_key(one) == equivalence_key(other)) == (compare_versions(one, other) == "same")
    assert can_be_ordered("1.2")
    assert not can_be_ordered("hot")
