"""The order of versions: the rules, that it is a partial order over any text, and that it never contradicts a calendar."""

import re
from datetime import UTC, datetime
from itertools import combinations, permutations
from random import Random

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from packaging.version import Version

from auditor.query.version_dates import Order
from auditor.query.versions import VersionOrder, can_be_ordered, compare_versions, equivalence_key
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


def test_versions_of_more_than_200_characters_are_unordered_however_many_numbers_they_have() -> None:
    long = "1" + 197 * "0"
    assert compare_versions(f"1.{long}", f"1.{long[:-1]}1") == "older"
    assert compare_versions(f"1.{long}", "1.5") == "unordered"
    assert compare_versions(f"1.{long}0", f"1.{long}1") == "unordered"
    assert compare_versions("1." * 100_000 + "1", "1." * 100_000 + "2") == "unordered"
    assert not can_be_ordered("1." * 100_000 + "1")


DATES = [
    ("27.09.20", "04.10.20", "unordered"),  # 27 September 2020, or 2027-09-20
    ("27.9.20", "4.10.20", "unordered"),
    ("27.10.20", "28.10.20", "older"),  # in every reading
    ("99.12.31", "00.01.01", "unordered"),  # a number, or a year
    ("27.09.2020", "04.10.2020", "older"),
    ("2.10.2020", "15.9.2020", "unordered"),  # 2.10 and 15.9, with a build, are versions as well
    ("01.02.2020", "02.01.2020", "unordered"),  # 1 February, or 2 January
    ("12-01-2023", "01-15-2024", "older"),
    ("1.15.2023", "2.1.2023", "older"),
    ("V1.0.27.09.2020", "V1.0.04.10.2020", "older"),
    ("1_27_09_2020", "1_04_10_2020", "older"),
    ("2023.1.15", "2023.2.1", "older"),
    ("Rev_22122022", "Rev_06012023", "older"),
    ("Rev_22122022", "Rev_12222022", "unordered"),  # no reading fits both
    ("V1.0_15012023", "V1.0_01022023", "older"),
    ("V1.0_20230115", "V1.0_20230201", "older"),
    ("1.0-rc15012023", "1.0-rc01022023", "older"),
    ("200927", "201004", "unordered"),  # 2020-09-27, or 20 September 2027
    ("270920", "041020", "unordered"),
    ("200927", "200928", "older"),
    ("202009271530", "202010040900", "older"),
    ("270920201530", "041020200900", "unordered"),  # 27-09-20 20:15:30 as well
    ("1609459200", "1700000000", "older"),
    ("1609459200000", "1700000000000", "older"),
    ("123456", "123457", "older"),
    ("1000001", "1000002", "older"),
    ("4512309", "1870234", "unordered"),
    ("45123091", "18702344", "unordered"),
    ("g4512309", "g1870234", "unordered"),
    ("1.2-4512309", "1.2-1870234", "unordered"),
    ("abc1234", "abc5678", "unordered"),
    ("b9", "b10", "older"),
    ("0123456", "1234560", "unordered"),
    ("01.02.03", "01.03.02", "unordered"),
    ("10.11.12", "11.10.12", "unordered"),
    ("10.11.12", "10.12.12", "older"),
    ("1.2.10", "1.10.2", "older"),
    ("9.10.11", "10.9.11", "older"),
    ("18.7.0", "16.9.12", "newer"),
    ("1.13.20", "2.1.19", "older"),  # a large second part is no day
    ("1.20.15", "1.19.22", "newer"),
    ("3.14.15", "4.1.10", "older"),
    ("1.25.12", "2.3.10", "older"),
    ("10.15.22", "11.1.10", "older"),
    ("v2.14.20", "v3.2.11", "older"),
    ("04.15.22", "10.14.20", "unordered"),  # but with a leading zero it may be one
    ("13.14.15", "14.13.15", "older"),
]  # fmt: skip


@pytest.mark.parametrize(("version", "other", "order"), DATES)
def test_what_may_be_a_date_or_a_commit_is_ordered_where_all_readings_agree(
    version: str, other: str, order: Order
) -> None:
    assert compare_versions(version, other) == order
    assert compare_versions(other, version) == TURNED[order]


@pytest.mark.parametrize(
    ("version", "other", "among", "order"),
    [
        ("01.02.2020", "02.01.2020", ("27.09.2020",), "newer"),
        ("01.02.2020", "02.01.2020", ("09.27.2020",), "older"),
        ("01.02.2020", "02.01.2020", ("27.09.2020", "09.27.2020"), "unordered"),
        ("01.02.2020", "02.01.2020", ("99.99.9999",), "unordered"),
        ("27.09.20", "04.10.20", ("1.0.0",), "unordered"),
        ("1.0.0", "04.10.20", ("27.09.20",), "unordered"),
        ("10.11.12", "11.10.12", ("9.0.1",), "older"),
        ("01.02.03", "01.03.02", ("01.00.05",), "older"),
        ("18.7.10", "16.9.12", (), "unordered"),
        ("18.7.10", "16.9.12", ("18.7.0",), "newer"),
        ("1.2.2021", "1.3.2020", ("1.2.2150",), "older"),
        ("01022020", "02012020", ("27092020",), "newer"),
        ("01022020", "02012020", ("99999999",), "unordered"),
        ("20240115", "20240116", ("99999999",), "older"),
        ("270920", "041020", ("999999",), "unordered"),
        ("123456", "100120", ("999999",), "newer"),
        ("1000001", "1000002", ("9999999",), "unordered"),
        ("27.09.20", "04.10.20", ("hotfix", "1-2-3", "R5"), "unordered"),
    ],
)
def test_the_other_versions_of_a_module_say_how_to_read_two(
    version: str, other: str, among: tuple[str, ...], order: Order
) -> None:
    assert compare_versions(version, other, among) == order
    assert VersionOrder((version, other)).including("").compare(version, other) == compare_versions(version, other)
    extended = VersionOrder((version, *among)).including(other)
    assert extended.compare(other, version) == TURNED[order]


CLEAR = ("%Y%m%d", "%Y-%m-%d", "%Y.%m.%d", "V1.0_%Y%m%d", "%Y%m%d%H%M", "%Y%m%d%H%M%S", "FW_%Y_%m_%d", "1.2.%Y%m%d")
LAST_YEAR = ("%d.%m.%Y", "%m-%d-%Y", "%d%m%Y", "Rev_%m%d%Y", "1.0.%d.%m.%Y", "V1.0_%d%m%Y", "%d_%m_%Y")
SHORT = ("%d.%m.%y", "%m.%d.%y", "%y.%m.%d", "%y%m%d", "%d%m%y", "R%m%d%y", "1.0.%d%m%y", "%d-%m-%y", "%d%m%y%H%M", "%m%d%Y%H%M",
         "%y%m%d%H%M%S", "%d.%m.%y.1", "%s")  # fmt: skip
BUILD_TIMES = st.integers(int(datetime(2013, 1, 1, tzinfo=UTC).timestamp()), 2_050_000_000).map(
    lambda seconds: datetime.fromtimestamp(seconds, UTC)
)
MOMENTS = st.lists(BUILD_TIMES, min_size=2, max_size=6, unique_by=datetime.date)


def in_form(moment: datetime, form: str) -> str:
    return moment.strftime(form.replace("%s", str(int(moment.timestamp()))))


@given(MOMENTS, st.sampled_from((*CLEAR, *LAST_YEAR, *SHORT)), st.sampled_from(["", "1.0.0", "hot", "20", "1.2.3-rc1"]))
@settings(max_examples=300, deadline=None)
def test_no_reported_order_contradicts_the_calendar(moments: list[datetime], form: str, other: str) -> None:
    versions = [in_form(moment, form) for moment in sorted(moments)]
    # Days and months from 10 to 12 beside a version that is no date: 10.12.14 and 10.11.15 are plain numbers, too.
    is_evident = any(re.search(r"(?<!\d)0\d|^(1[3-9]|[23])", version) for version in versions)
    assume(is_evident or form not in {"%d.%m.%y", "%m.%d.%y", "%d-%m-%y"})
    order = VersionOrder([*versions, other])
    for earlier, later in combinations(versions, 2):
        if earlier != later and form != "%d.%m.%y.1":
            assert order.compare(earlier, later) in {"older", "unordered"}
            if form in CLEAR:
                assert order.compare(earlier, later) == "older"


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        *[("27-Sep-2020", "04-Oct-2020"), ("27-sep-20", "04-oct-20"), ("1.30_March_2021", "1.02_April_2021"), ("27-Sep", "04-Oct")],
        *[("12.2023", "01.2024"), ("11.2019", "3.2020"), ("12-2023", "01-2024"), ("12_2023", "1_2024"), ("R12.2023", "R01.2024")],
        *[("2.0.12.2023", "2.0.1.2024"), ("12.23", "01.24"), ("12-23", "01-24"), ("12.23.4", "01.24.1"), ("1.12.23", "1.01.24")],
        *[("1223", "0124"), ("1119", "1020"), ("1.0.1223", "1.0.0124"), ("1.0-1223", "1.0-0124"), ("112023", "102024")],
        *[("2709", "0410"), ("3101", "0102"), ("R2709", "R0410"), ("27.09", "04.10")],
        *[("27.09.20.1", "04.10.20.1"), ("27.09.20.7", "04.10.20.3"), ("27.09.20-2", "04.10.20-1"), ("27-09-20-1", "04-10-20-1")],
        *[("1.27.09.20", "1.04.10.20"), ("1.2.27.09.20", "1.2.04.10.20"), ("V1.27.9.20", "V1.4.10.20"), ("1_27_09_20", "1_04_10_20")],
        *[("27.0920", "04.1020"), ("2709.20", "0410.20"), ("0210.19", "0109.20"), ("2709.2020", "0410.2020"), ("27_0920", "04_1020")],
        *[("WW52.23", "WW01.24"), ("w5223", "w0124"), ("kw52.2023", "kw1.2024"), ("1.0-w5223", "1.0-w0124"), ("cw522023", "cw012024")],
        *[("Q4.2023", "Q1.2024"), ("q423", "q124"), ("Q42023", "Q12024"), ("H2.2023", "H1.2024"), ("Sep27.2020", "Sep04.2021")],
    ],
)  # fmt: skip
def test_dates_with_the_year_at_the_end_are_never_ordered_backwards(earlier: str, later: str) -> None:
    assert compare_versions(earlier, later) in {"older", "unordered"}
    assert compare_versions(later, earlier) in {"newer", "unordered"}


ORDINARY = [
    "0.9",
    "1.0",
    "1.2.3",
    "1.9",
    "1.10",
    "2.0.1-rc1",
    "2.0.1",
    "2.10.20",
    "3.09.20",
    "10.4",
    "10.11",
    "11.04",
    "11.12.10.15",
]


@pytest.mark.parametrize(
    "versions",
    [
        ORDINARY,
        ["1.9", "1.10", "1.11", "2.10"],
        ["10.4", "10.15", "11.10", "12.3"],
        ["1.10.12", "1.11.10", "2.10.9"],
        ["23.04", "23.10", "24.04", "24.10"],
        ["2023.01.15", "2023.02.14", "2024.01.03"],
        ["2011.12", "2012.11", "2013.01"],
        ["20230115.12.30", "20230115.13.20"],
        ["R998", "R1101", "R2000"],
        ["1.0.1101", "1.0.1850", "1.0.3100"],
        ["W1.2.3", "W1.10.1", "W2.0.1"],
        ["Q4", "Q5", "Q10"],
        ["12.23", "12.24", "13.01"],
    ],
)
def test_versions_that_are_no_dates_together_keep_their_order(versions: list[str]) -> None:
    order = VersionOrder(versions)
    assert {order.compare(*pair) for pair in combinations(versions, 2)} == {"older"}


LAST = ("%d.%m.%y", "%m.%d.%y", "%d.%m.%Y", "%m.%Y", "%-m.%Y", "%m.%y", "%m%y", "%m%Y", "%d.%m%y", "%d%m.%y", "%d%m.%Y", "%d-%b-%Y",
        "%d%m%y", "%d%m%Y", "%-d.%m.%y", "WW%V.%G", "w%V%y", "%d-%m-%y", "%m-%y", "%d_%m_%y")  # fmt: skip


FIRST_MONTH_WITHOUT_ZERO = 10


@pytest.mark.slow
@given(
    MOMENTS,
    st.sampled_from(LAST),
    st.sampled_from(["", "", "v", "R", "1.", "2.0.", "FW_"]),
    st.sampled_from(["", "", "-rc1", "-hotfix2", "_3"]),
    st.lists(st.integers(1, 99), min_size=6, max_size=6) | st.none(),
)
@settings(max_examples=400, deadline=None)
def test_dates_with_a_prefix_a_suffix_or_a_build_number_are_never_ordered_backwards(
    moments: list[datetime], form: str, prefix: str, suffix: str, builds: list[int] | None
) -> None:
    moments, coarse = sorted(moments), re.sub("%[^Ymyb%]", "", form) if "V" not in form else "%Y%V"
    numbers = builds or [0] * len(moments)
    ends = [f".{number}{suffix}" if builds else suffix for number in numbers[: len(moments)]]
    versions = [f"{prefix}{in_form(moment, form)}{end}" for moment, end in zip(moments, ends, strict=True)]
    order = VersionOrder(versions)
    has_day, has_week = "d" in form, "V" in form
    for (one, earlier), (two, later) in combinations(zip(moments, versions, strict=True), 2):
        week = one.isocalendar()[:2] == two.isocalendar()[:2] or one.strftime("%y") != one.strftime("%G")[2:]
        same = week if has_week else not has_day and one.strftime(coarse) == two.strftime(coarse)
        # In a longer version, a month is one only beside months that are written with a zero.
        has_zero = any(moment.month < FIRST_MONTH_WITHOUT_ZERO for moment in moments)
        is_longer = bool(builds) and not has_zero
        may_be_short = form in {"%m.%y", "%m-%y"} and (prefix in {"1.", "2.0."} or is_longer)
        if not same and not may_be_short and not (has_week and prefix):
            assert order.compare(earlier, later) in {"older", "unordered"}


@given(MOMENTS, st.sampled_from(LAST_YEAR))
@settings(deadline=None)
def test_a_day_after_the_twelfth_says_how_all_dates_of_a_module_are_read(moments: list[datetime], form: str) -> None:
    moments = sorted({*moments, datetime(2009, 3, 27, tzinfo=UTC), datetime(2009, 4, 5, tzinfo=UTC)})
    order = VersionOrder(in_form(moment, form) for moment in moments)
    for earlier, later in combinations(moments, 2):
        assert order.compare(in_form(earlier, form), in_form(later, form)) == "older"


@pytest.mark.parametrize("length", [7, 8, 9, 11, 12, 40, 64])
def test_commits_of_digits_alone_are_unordered(length: int) -> None:
    random = Random(length)
    commits = ["".join(random.choices("123456789", k=length)) for _ in range(40)]
    others = ["".join(random.choices("0123456789abcdef", k=length)) for _ in range(40)]
    for versions in (commits, others):
        assert {compare_versions(*pair) for pair in permutations(versions, 2)} == {"unordered"}
        order = VersionOrder(versions)
        assert {order.compare(*pair) for pair in permutations(versions, 2)} == {"unordered"}


PLAIN = st.lists(st.integers(0, 40), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
SEMANTIC = st.builds("{}{}".format, PLAIN, st.sampled_from(["", "", "", "rc1", "-rc.2", "-beta", "-alpha3", "beta10"]))


@given(st.lists(SEMANTIC, min_size=2, max_size=5))
@settings(deadline=None)
def test_versions_that_packaging_can_parse_have_its_order_or_none(versions: list[str]) -> None:
    order = VersionOrder(versions)
    for version, other in combinations(versions, 2):
        one, two = Version(version), Version(other)
        expected: Order = "same" if one == two else "older" if one < two else "newer"
        assert order.compare(version, other) in {expected, "unordered"}


@given(SEMANTIC, SEMANTIC)
def test_plain_versions_are_ordered_unless_both_may_be_dates(version: str, other: str) -> None:
    may_be_date = re.compile(r"(.*\.)?\d+\.\d+\.\d\d(\D.*)?|\d\d\.\d\d(\D.*)?")
    if not (may_be_date.fullmatch(version) and may_be_date.fullmatch(other)):
        assert compare_versions(version, other) != "unordered"


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


DATED = st.builds(
    lambda letters, moment, form, suffix: letters + moment.strftime(form) + suffix,
    st.sampled_from(["", "", "R", "1.0."]),
    BUILD_TIMES,
    st.sampled_from((*CLEAR, *LAST_YEAR, *SHORT[:-1], "%-d.%-m.%Y", "%-d.%-m.%y", "%-m.%-d.%Y")),
    st.sampled_from(["", "", ".1", "-rc1", "-2"]),
)  # fmt: skip
LONG = st.sampled_from(["1000001", "1000002", "1000101", "4512309", "45123091", "20240000", "99999999", "000001", "123456",
                        "1609459200", "b123456", "b123457", "abc1234", "1.2-4512309", "1.2-4512310"])  # fmt: skip
SIMILAR = st.builds("1.{}{}".format, NUMBERS, st.sampled_from(["", ".1", ".01", *SUFFIXES]))
TWO_DIGITS = st.lists(st.sampled_from(["00", "01", "02", "9", "10", "11", "12", "13", "27", "32", "2020"]), min_size=2,
                      max_size=4).map(".".join)  # fmt: skip


@pytest.mark.slow
@given(
    st.lists(SHAPED | DATED, min_size=3, max_size=7)
    | st.lists(SIMILAR, min_size=3, max_size=8)
    | st.lists(DATED | LONG, min_size=3, max_size=8)
    | st.lists(TWO_DIGITS, min_size=3, max_size=8)
)
@example(["1.2-hotfix1", "1.2-hotfix2", "1.3"])
@example(["2.0", "2.03", "2.10"])
@example(["10.12.20", "11.0.0", "12.10.20"])
@settings(max_examples=400, deadline=None)
def test_older_and_same_are_transitive_among_the_versions_of_a_module(versions: list[str]) -> None:
    context = VersionOrder(versions)
    unique = sorted(set(versions))
    order = {(one, other): context.compare(one, other) for one in unique for other in unique}
    for one, two in permutations(unique, 2):
        assert order[two, one] == TURNED[order[one, two]]
    for one, two, three in permutations(unique, 3):
        first, second, whole = order[one, two], order[two, three], order[one, three]
        if first == "same":
            assert whole == second
        if second == "same":
            assert whole == first
        if first == second != "unordered":
            assert whole == first


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
