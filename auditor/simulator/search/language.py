"""The language of QueryDeviceBySQL: a grammar, the types of the fields, and the documented limits.

Source: Alibaba's page on QueryDeviceBySQL. It does not document the codes of its errors, whether quotes can be escaped,
and the order of rows without ORDER BY. Here a text ends at the first quote.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from lark import Lark, LarkError, Token, Transformer

MAX_LENGTH = 400
"""Characters of a statement."""

MAX_CONDITIONS = 5
"""Conditions of a statement."""

MAX_ROWS, MAX_WINDOW, DEFAULT_ROWS = 50, 10_000, 20
"""Rows of a page, the last row that can be reached, and rows of a page without LIMIT."""

Operator = Literal["=", ">", "<", "LIKE"]

OPERATORS: dict[str, tuple[Operator, ...]] = {"text": ("=", "LIKE"), "date": ("=", ">", "<")}
"""Operators that each type of field supports; LIKE compares the beginning."""

FIELDS = {
    **dict.fromkeys(("product_key", "iot_id", "name", "nickname", "status", "group.group_id"), "text"),
    **dict.fromkeys(("tag.tag_name", "tag.tag_value", "ota_module.name", "ota_module.version"), "text"),
    **dict.fromkeys(("gmt_create", "gmt_modified", "active_time"), "date"),
}
"""Fields of a device, and their types."""

_GRAMMAR = r"""
start: "SELECT"i _fields "FROM"i "DEVICE"i "WHERE"i _any_of order? limit? ";"?
_fields: everything | count | field ("," field)*
everything: "*"
count: _COUNT "(" "*" ")"
field: FIELD
_any_of: all_of ("OR"i all_of)*
all_of: condition ("AND"i condition)*
condition: FIELD OPERATOR TEXT
order: "ORDER"i "BY"i FIELD
limit: "LIMIT"i NUMBER ("," NUMBER)?
_COUNT.2: "COUNT"i
FIELD: /[a-z_]+(\.[a-z_]+)?/
OPERATOR: "=" | ">" | "<" | "LIKE"i
TEXT: /"[^"]*"/
NUMBER: /[0-9]{1,9}/
%ignore /\s+/
"""

_PARSER = Lark(_GRAMMAR, parser="lalr", maybe_placeholders=False)


class StatementRefused(Exception):  # noqa: N818  a response, not an error of the simulator
    """A statement is not in the language, or exceeds a limit."""


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition. ``value`` is a text, or milliseconds since 1970 for the field of a date."""

    field: str
    operator: Operator
    value: str | int


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement that was read.

    Attributes:
        fields: those to return; None: all.
        counts: whether the number of devices is requested instead of devices.
        any_of: a device matches if all conditions of one of these match.
        order: field of a date by which rows are sorted; None: any order.
        first: rows to leave out.
        rows: rows to return at most.
    """

    fields: tuple[str, ...] | None
    counts: bool
    any_of: tuple[tuple[Condition, ...], ...]
    order: str | None
    first: int
    rows: int


def parse_statement(text: str) -> Statement:
    """Return a statement; raise StatementRefused."""
    if len(text) > MAX_LENGTH:
        raise StatementRefused(f"The SQL is longer than {MAX_LENGTH} characters.")
    try:
        parts: dict[str, Any] = _Reader().transform(_PARSER.parse(text))
    except LarkError as error:
        cause = getattr(error, "orig_exc", error)
        if isinstance(cause, StatementRefused):
            raise cause from None
        raise StatementRefused("The SQL is invalid.") from error
    statement = Statement(**parts)
    if sum(map(len, statement.any_of)) > MAX_CONDITIONS:
        raise StatementRefused(f"The SQL has more than {MAX_CONDITIONS} conditions.")
    if not 0 < statement.rows <= MAX_ROWS or statement.first + statement.rows > MAX_WINDOW:
        raise StatementRefused("The LIMIT of the SQL is out of range.")
    return statement


def parse_date(text: str) -> int:
    """Return milliseconds since 1970 of ``2020-04-04 16:38:17.000``, in UTC; raise StatementRefused."""
    try:
        moment = datetime.strptime(f"{text} +0000", "%Y-%m-%d %H:%M:%S.%f %z")
    except ValueError:
        raise StatementRefused(f"The date {text} is not in the format yyyy-MM-dd HH:mm:ss.SSS.") from None
    return round(moment.timestamp() * 1000)


class _Reader(Transformer[Token, Any]):
    """Turns the tree of a statement into the arguments of ``Statement``."""

    def start(self, parts: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = tuple(_unique(value for kind, value in parts if kind == "field"))
        found = {kind: value for kind, value in parts if kind in {"order", "limit", "count"}}
        first, rows = found.get("limit", (0, DEFAULT_ROWS))
        any_of = tuple(value for kind, value in parts if kind == "all_of")
        return {
            "fields": fields or None, "counts": "count" in found, "any_of": any_of, "order": found.get("order"),
            "first": first, "rows": rows,
        }  # fmt: skip

    def everything(self, _: list[Token]) -> tuple[str, None]:
        return "everything", None

    def count(self, _: list[Token]) -> tuple[str, bool]:
        return "count", True

    def field(self, names: list[Token]) -> tuple[str, str]:
        _type_of(names[0])
        return "field", str(names[0])

    def all_of(self, conditions: list[Condition]) -> tuple[str, tuple[Condition, ...]]:
        return "all_of", tuple(conditions)

    def condition(self, parts: list[Token]) -> Condition:
        field, word, text = str(parts[0]), str(parts[1]).upper(), str(parts[2])[1:-1]
        kind = _type_of(field)
        operator = next((each for each in OPERATORS[kind] if each == word), None)
        if operator is None:
            raise StatementRefused(f"The operator {word} does not support the field {field}.")
        if operator == "LIKE":
            if "%" in text[:-1]:
                raise StatementRefused("LIKE supports a prefix only.")
            text = text.removesuffix("%")
        return Condition(field, operator, parse_date(text) if kind == "date" else text)

    def order(self, names: list[Token]) -> tuple[str, str]:
        if _type_of(names[0]) != "date":
            raise StatementRefused(f"The field {names[0]} cannot be sorted by.")
        return "order", str(names[0])

    def limit(self, numbers: list[Token]) -> tuple[str, tuple[int, int]]:
        values = [int(number) for number in numbers]
        return "limit", (values[0], values[1]) if len(values) > 1 else (0, values[0])


def _type_of(field: str) -> str:
    if field not in FIELDS:
        raise StatementRefused(f"The field {field} does not exist.")
    return FIELDS[field]


def _unique(values: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(values))
