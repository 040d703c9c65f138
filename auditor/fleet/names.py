"""Names of devices as files write them: what is cleaned, what counts as no name, and what cannot be a name.

Alibaba documents 4 to 32 letters, digits, ``-``, ``_``, ``@``, ``.`` and ``:`` for a device name. Shorter names and
other letters occur, so only text that an export has damaged is refused. In a file that ``auditor fleet`` wrote, every
text is a name as the platform lists it.
"""

import re
import unicodedata
from collections.abc import Collection
from datetime import UTC, datetime
from typing import cast

from auditor.client.operations import MAX_NAME_LENGTH

MAX_SHOWN = 40
"""Characters of a value that an error quotes."""

NULL_WORDS = frozenset(
    "null (null) <null> [null] \\n none (none) <none> nil <nil> nan na <na> n/a n.a. nat - -- (blank) undefined".split()  # noqa: SIM905
)
"""What databases, pandas, R and JavaScript write where there is no value, in lower case."""

_MAX_NULL_WORD = max(map(len, (*NULL_WORDS, "01-Jan-2024")))
"""Length of the longest text of letters, digits and ``-`` that is refused, or is no name."""

_INVISIBLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164"
    "\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e001f\U000e0080-\U000e00ff\U000e01f0-\U000e0fff"
)
"""Characters without a glyph, as a class of a regular expression: Unicode's default-ignorable ones, and fillers."""

_SELECTORS = "\ufe00-\ufe0f\U000e0020-\U000e007f\U000e0100-\U000e01ef"
"""Characters that select a form of the one before, as in an emoji; they belong to it, unless it is ASCII."""

_START = re.compile(rf"[\s{_INVISIBLE}{_SELECTORS}]*")

_END = re.compile(rf"(?:[\s{_INVISIBLE}]|[{_SELECTORS}](?=[\0-\x7f]))*")
"""The end of a text, backwards: a search for it forwards would take quadratic time."""

_HIDDEN = re.compile(rf"[{_INVISIBLE}]|(?<=[ -~])[{_SELECTORS}](?!\u20e3)")

_IN_EMOJI = re.compile(rf"[\u200c\u200d{_SELECTORS}]").match

_JOINED = re.compile("(?<=[^\0-\x7f])[\u200c\u200d](?=[^\0-\x7f])")
"""Joiners between letters of many scripts, and between the parts of an emoji."""

_FULL_WIDTH = re.compile("[\u3000\uff01-\uff5e]")
"""Blank and ASCII characters in the width of Chinese ones. An input method leaves them in names of ASCII."""

_PLAIN = re.compile(r"[A-Za-z0-9_@:-]+").fullmatch

_SHORTENED = re.compile(r"[+-]?(\d+[.,]\d*|[.,]\d+)e[+-]?\d+|[+-]?\d+e\+\d+|\+\d+e-?\d+", re.IGNORECASE | re.ASCII)
"""Numbers with an exponent. ``8E15`` and ``12E-3`` are not among them: they can be names."""

_POWER = re.compile(
    r"[+-]?\d+([.,]\d+)? ?([*\u00d7\u00b7] ?10 ?\^?|x ?10 ?\^) ?[+-]?[\d\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+"
)
"""Numbers with a power of ten, as office programs and tables of PDF files have them."""

_DECIMAL = re.compile(
    r"[+-]?\d+[.,]0+|\+\d+([.,]\d+)?|\d{1,3}(,\d{2,3})*,\d{3}|\d{1,3}(['\u2019]\d{3})+|\d{1,3}( \d{3})+", re.ASCII
)
"""Whole numbers as floats, with a sign, or with separators of thousands. With dots, it may be an address."""

_MONTH = "(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"

_DATE = re.compile(
    r"\d{1,4}/\d{1,2}/\d{2,4}( .*)?|\d{4}-\d\d-\d\d[ T]\d\d:\d\d.*"
    rf"|\d{{1,2}}-{_MONTH}(-\d{{2}}(\d{{2}})?)?|{_MONTH}-\d{{2}}(\d{{2}})?", re.ASCII
)  # fmt: skip
"""Dates with a time, and those that a spreadsheet shows for texts such as ``1-3``. Months are in its letter case."""

_NO_NUMBER = re.compile(r"[+-](nan|inf|infinity)(\(.*\))?|inf|[+-]?\d+\.#(qnan|snan|ind|inf)\w*", re.IGNORECASE)
"""What C, pandas and others write for a float that is no number, beside ``nan``."""

_RULE = re.compile(r"[-=+:|]{3,}")
"""A line between the header and the rows of a table, as Markdown and databases draw it."""

_FURTHER = re.compile(
    rf"(?i:true|false)|{_RULE.pattern}|{_NO_NUMBER.pattern}|{_DATE.pattern}", re.ASCII | re.IGNORECASE
)
"""Plain texts that may be damaged; they are checked again."""

_ERROR_VALUE = re.compile(r"#([\u00a1\u00bf]?\w[\w/]*[!?]|\w{1,2}/\w|N[DV]|GETTING_DATA)", re.IGNORECASE)
"""Error values of Excel and LibreOffice, some of them translated."""

_IN_PARENTHESES = re.compile(r"\([^()]*\)")

_NOT_UTF_8 = "is not UTF-8"

_AS_UTF_8 = "Save the file in UTF-8."

_AS_TEXT = "Give the column the format Text in the spreadsheet, enter the values again, and export it."

_AS_VALUES = "Export values, not formulas."

_RETYPE = "Type the name again in plain characters."

_LIST_AGAIN = "List the fleet again, and do not save its file in another program."

_ROUNDED = "is a number that a spreadsheet rounded"

_TOO_LONG = f"has more than {MAX_NAME_LENGTH} characters"


class BadRowError(ValueError):
    """What is wrong with a row or a value, in words that follow its place; ``advice`` is a sentence: what to do."""

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(problem)
        self.advice = advice


def strip_invisible(text: str) -> str:
    """Return a text without blanks and invisible characters around it."""
    text = text.strip()
    if text.isascii():
        return text
    text = _START.sub("", text, count=1)
    return _END.sub("", text[::-1], count=1)[::-1]


def is_blank(text: str) -> bool:
    """Return whether a text has nothing but blanks and invisible characters."""
    return not text or not strip_invisible(text)


def clean_name(text: str) -> str | None:
    """Return a name without blanks and invisible characters around it; None if the text says that there is none.

    Raises:
        BadRowError: an export or a conversion damaged the name.
    """
    name = strip_invisible(text)
    if not name or name.lower() in NULL_WORDS:
        return None
    if len(name) > MAX_NAME_LENGTH:
        raise BadRowError(_TOO_LONG, "Check the delimiter and the quotes.")
    if not _PLAIN(name) or _FURTHER.fullmatch(name):
        _refuse_damaged(name)
    return name


def exact_name(text: str) -> str | None:
    """Return a name as ``auditor fleet`` wrote it; None without one.

    Raises:
        BadRowError: a name cannot be so, so the file was changed.
    """
    if not text:
        return None
    if len(text) > MAX_NAME_LENGTH:
        raise BadRowError(_TOO_LONG, _LIST_AGAIN)
    if not _PLAIN(text):
        if (reason := _describe_broken(text)) is not None:
            raise BadRowError(reason, _LIST_AGAIN)
        if _SHORTENED.fullmatch(text) and "+" in text:
            raise BadRowError(_ROUNDED, _LIST_AGAIN)
    return text


def need_no_cleaning(texts: Collection[str | None]) -> bool:
    """Return whether all texts are longer than the null words, and of ASCII letters, digits, ``-`` and ``_``.

    ``clean_name`` returns such texts unchanged.
    """
    try:
        lengths, joined = set(map(len, cast("Collection[str]", texts))), "-".join(cast("Collection[str]", texts))
    except TypeError:  # some have no value
        return False
    return (
        min(lengths) > _MAX_NULL_WORD
        and max(lengths) <= MAX_NAME_LENGTH
        and joined.isascii()
        and "---" not in joined
        and joined.replace("-", "").replace("_", "").isalnum()
    )


def is_error_value(text: str) -> bool:
    """Return whether a text is an error value of a spreadsheet, such as ``#N/A``."""
    return _ERROR_VALUE.fullmatch(text) is not None


def _refuse_damaged(name: str) -> None:
    """Raise BadRowError if a name has signs of damage."""
    if (reason := _describe_broken(name) or _describe_hidden(name)) is not None:
        raise BadRowError(reason, _AS_UTF_8 if reason == _NOT_UTF_8 else _RETYPE)
    if _SHORTENED.fullmatch(name) or _POWER.fullmatch(name):
        raise BadRowError(_ROUNDED, _AS_TEXT)
    if _DECIMAL.fullmatch(name):
        raise BadRowError("is a formatted number, not a name", "Export the column as text.")
    if _DATE.fullmatch(name):
        raise BadRowError("is a date or time, not a name", _AS_TEXT)
    if name[0] == "=":
        raise BadRowError("is a formula", _AS_VALUES)
    if name[0] == "'":
        raise BadRowError("starts with the apostrophe that marks text in spreadsheets", "Remove the apostrophe.")
    if is_error_value(name):
        raise BadRowError("is an error value of a spreadsheet", "Correct the cell.")
    if (reason := _describe_other(name)) is not None:
        raise BadRowError(reason, "Remove the line, or export the column as text.")


def _describe_other(name: str) -> str | None:
    """Return what is wrong with a text that programs write in place of a value; None if it may be a name."""
    if not name.strip("#") and len(name) > 1:
        return "is what a spreadsheet shows for a number in a narrow column"
    if name.lower() in {"true", "false"}:
        return "is a truth value, not a name"
    if _NO_NUMBER.fullmatch(name):
        return "is a float that is no number, not a name"
    if _RULE.fullmatch(name):
        return "is a line between the rows of a table, not a name"
    if _IN_PARENTHESES.fullmatch(name):
        return "is in parentheses, as a unit or a type below a header is"
    return None


def _describe_broken(name: str) -> str | None:
    """Return what is wrong with a name that has characters that no name has; None if it has none."""
    for character in name:
        if not " " <= character <= "~":
            match unicodedata.category(character):
                case "Cc":
                    return f"has the control character U+{ord(character):04X}"
                case "Cs":
                    return "has half of a character"
            if character == "\ufffd":
                return _NOT_UTF_8
    return None


def _describe_hidden(name: str) -> str | None:
    """Return what is wrong with a name that has invisible characters, or a part that imitates ASCII; else None."""
    hidden = _HIDDEN.search(_JOINED.sub("", name))
    if hidden is None and _FULL_WIDTH.sub("", name).isascii():
        hidden = _FULL_WIDTH.search(name)
    found = hidden[0] if hidden is not None else next((each for each in name if _is_odd_blank(each)), None)
    return None if found is None else f"has the character U+{ord(found):04X} {unicodedata.name(found, '')}".rstrip()


def _is_odd_blank(character: str) -> bool:
    """Return whether a character is a blank of a typesetter, or formats text: neither is typed into a name."""
    if " " <= character <= "~" or character == "\u3000" or _IN_EMOJI(character):
        return False
    return unicodedata.category(character) in {"Cf", "Zs", "Zl", "Zp"}


def show(value: str) -> str:
    """Return a value for an error: quoted, shortened, with escapes for characters that cannot be printed."""
    shortened = value if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]}…"
    return '"' + "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in shortened) + '"'


def parse_fleet_time(text: str) -> datetime | None:
    """Return the time in UTC that a text has in ISO 8601; None if it cannot be read. Without a zone it is UTC."""
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    try:
        return time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)
    except (OverflowError, ValueError):
        return None
