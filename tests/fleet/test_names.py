"""Which texts of a fleet file are names, which say that there is none, and which an export has damaged."""

from datetime import datetime

import pytest

from auditor.fleet.names import (
    NULL_WORDS,
    BadRowError,
    clean_name,
    exact_name,
    need_no_cleaning,
    parse_fleet_time,
    show,
    strip_invisible,
)

REAL = (
    "a", "8E15", "1e5", "12E-3", "0x1F", "00123", "865743041234567", "lamp 1", "v1.0.3", "1.5", "a=b", "a'b", "k@host:8",
    "192.168.0.1", "-1", "中文", "café", "x,y", "Nullarbor", "nano", "N-A", "10:30:00", "a/b", "A" * 256, 'say "x"', "#1",
    "T\u2103", "Lamp\u2122", "a\u00b2", "dev\u20261", "\u30ab\u30e1\u30e9\uff08\u5317\uff09", "\u30ab\u30e1\u30e9\u3000\u5317", "\ufb01x",
    "\u2764\ufe0f", "1\ufe0f\u20e3", "\U0001f468\u200d\U0001f469", "\u845b\U000e0100", "\u0645\u06cc\u200c\u062e",
    "\U0001f3f4\U000e0067\U000e007f", "MAR-24", "mar-24", "2024-03-01", "01.03.2024", "Marie-24", "1-Mars", "truely", "True-1",
    "Infinity", "info", "nan-1", "865.743.041", "2x1024", "a-b---c", "-a-", "(a)b", "12 345 a", "1,23", "#a", "A#!", "8x10",
)  # fmt: skip


@pytest.mark.parametrize("text", REAL)
def test_a_name_that_the_platform_may_accept_is_kept(text: str) -> None:
    assert clean_name(text) == text


@pytest.mark.parametrize(
    "around", ["\u200b", "\ufeff", "\u00a0", "\t", "\u200e", "\u2060", "\u00ad", "\u3000", "\x85", "\ufe0f"]
)
def test_invisible_characters_around_a_name_are_removed(around: str) -> None:
    assert clean_name(f"{around}00123{around} ") == "00123"


@pytest.mark.parametrize("word", sorted({*NULL_WORDS, "NULL", "None", "NaN", "N/A", "\\N", "UnDefined", "", " \u200b"}))
def test_a_word_for_no_value_is_no_name(word: str) -> None:
    assert clean_name(f" {word}\u200b") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("8.65743E+14", "a spreadsheet rounded"),
        ("8,65743E+14", "a spreadsheet rounded"),
        ("1.0E5", "a spreadsheet rounded"),
        ("+1e5", "a spreadsheet rounded"),
        ("1E+05", "a spreadsheet rounded"),
        ("-2.5e3", "a spreadsheet rounded"),
        (".5E3", "a spreadsheet rounded"),
        ("+1e+5", "a spreadsheet rounded"),
        ("865743041234567.0", "a formatted number"),
        ("865743041234567,00", "a formatted number"),
        ("865,743,041", "a formatted number"),
        ("+49123", "a formatted number"),
        ("01/03/2024", "a date"),
        ("2024-03-01 00:00:00", "a date"),
        ('="00123"', "a formula"),
        ('=T("x")', "a formula"),
        ("'00123", "apostrophe"),
        ("#N/A", "error value"),
        ("#REF!", "error value"),
        ("#VALUE!", "error value"),
        ("#NAME?", "error value"),
        ("#DIV/0!", "error value"),
        ("#NV", "error value"),
        ("#BEZUG!", "error value"),
        *((text, "error value") for text in ("#\u00a1REF!", "#\u0417\u041d\u0410\u0427!", "#\u041d/\u0414", "#NAZWA?")),
        *((text, "narrow column") for text in ("##", "####", "########")),
        *((text, "a date") for text in ("01-Mar", "Mar-24", "1-Jan-2024", "01-Jan-24", "2024-03-01T00:00:00", "Dec-2024")),
        *((text, "rows of a table") for text in ("---", "-------", ":---:", "-=-=-", "---+---", "-" * 40)),
        *((text, "in parentheses") for text in ("(text)", "(string)", "(dBm / %)", "()")),
        *((text, "a truth value") for text in ("TRUE", "FALSE", "True", "false")),
        *((text, "no number") for text in ("1.#QNAN", "-1.#IND", "1.#INF", "-nan", "+NaN", "-nan(ind)", "inf", "-Infinity")),
        *((text, "a spreadsheet rounded") for text in ("8.65743*10^14", "8,65743\u00d710^14", "8.6 x 10^14", "8\u00b710\u00b9\u2074")),
        *((text, "a formatted number") for text in ("8,65,743", "12,34,56,789", "865'743'041", "865\u2019743", "865 743 041")),
        ("00\u00ad123", "U+00AD SOFT HYPHEN"),
        ("00\u200b123", "U+200B ZERO WIDTH SPACE"),
        ("00\u00a0123", "U+00A0 NO-BREAK SPACE"),
        ("\uff11\uff12\uff13", "U+FF11 FULLWIDTH DIGIT ONE"),
        ("dev\uff081\uff09", "U+FF08 FULLWIDTH LEFT PARENTHESIS"),
        ("a\u3000b", "U+3000 IDEOGRAPHIC SPACE"),
        ("00\ufe0f123", "U+FE0F VARIATION SELECTOR-16"),
        ("a\u200db", "U+200D ZERO WIDTH JOINER"),
        ("\u4e2d\u00a0\u6587", "U+00A0 NO-BREAK SPACE"),
        ("a\u2028b", "U+2028 LINE SEPARATOR"),
        ("a\u3164b", "U+3164 HANGUL FILLER"),
        ("a\nb", "control character U+000A"),
        ("a\x00b", "control character U+0000"),
        ("\ud83dx", "half of a character"),
        ("caf\ufffd", "not UTF-8"),
        ("x" * 257, "more than 256 characters"),
    ],
)  # fmt: skip
def test_a_damaged_name_is_refused_with_what_to_do(text: str, problem: str) -> None:
    with pytest.raises(BadRowError, match=problem.replace("+", r"\+")) as caught:
        clean_name(text)
    assert caught.value.advice.endswith(".")


@pytest.mark.parametrize("word", ["<nil>", "<none>", "(none)", "(blank)", "<NULL>"])
def test_placeholders_say_that_there_is_no_name(word: str) -> None:
    assert clean_name(word) is None


def test_a_text_that_is_not_utf_8_is_to_be_saved_as_utf_8() -> None:
    with pytest.raises(BadRowError) as caught:
        clean_name("caf\ufffd")
    assert caught.value.advice == "Save the file in UTF-8."


def test_names_that_are_checked_together_are_those_that_stay_unchanged_alone() -> None:
    assert need_no_cleaning(["device-00001", "device_00002", "865743041234567"])
    for text in (
        *REAL,
        "8.65743E+14",
        "undefined",
        "device 00001",
        "device\u200b00001",
        "-" * 30,
        "01-Jan-2024",
        "x" * 257,
        "",
        "\uff11" * 12,
        "a\tb" * 9,
    ):
        checked = need_no_cleaning(["device-00001", text])
        assert not checked or clean_name(text) == text
        assert not (checked and (len(text) < 10 or "." in text))
    assert not need_no_cleaning([None, "device-00001"])


@pytest.mark.parametrize(
    "text", ["10.0", "NA", "none", "-", "1.5e3", "=x", "01/03/2024", " a ", "\uff11", "#N/A", "+49"]
)
def test_in_a_file_that_a_discovery_wrote_each_text_is_a_name(text: str) -> None:
    assert exact_name(text) == text
    assert exact_name("") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("8.65743E+14", "rounded"),
        ("a\nb", "control"),
        ("caf\ufffd", "not UTF-8"),
        ("\ud83dx", "half"),
        ("x" * 257, "256"),
    ],
)
def test_a_name_that_no_discovery_wrote_is_refused_with_what_to_do(text: str, problem: str) -> None:
    with pytest.raises(BadRowError, match=problem) as caught:
        exact_name(text)
    assert "List the fleet again" in caught.value.advice


def test_blanks_in_the_middle_of_a_long_text_take_linear_time() -> None:
    text = "a" + " \u200b" * 500_000 + "x"
    assert strip_invisible(text) == text


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2020-01-17T16:19:11.250Z", datetime.fromisoformat("2020-01-17T16:19:11.250")),
        ("2020-01-17T16:19:11+08:00", datetime.fromisoformat("2020-01-17T08:19:11")),
        (" 2020-01-17 16:19:11 ", datetime.fromisoformat("2020-01-17T16:19:11")),
        ("0001-01-01T00:00:00+08:00", None),
        ("yesterday", None),
        ("", None),
    ],
)  # fmt: skip
def test_times_are_read_in_utc_or_not_at_all(text: str, time: datetime | None) -> None:
    assert parse_fleet_time(text) == time


def test_a_value_is_shown_short_and_without_invisible_characters() -> None:
    assert show("a\u200bb\x1b[2J") == '"a\\u200bb\\u001b[2J"'
    assert show("x" * 50) == f'"{"x" * 40}…"'
