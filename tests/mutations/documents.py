"""Documents whose members can be anything: doubled keys, numbers of any size, raw text. Written as JSON or TOML."""

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time
from random import Random
from typing import Any, cast


class Raw(bytes):
    """Text that is written as it is."""


class Table(list[tuple[str, Any]]):
    """The members of an object or table in their order. A key may be there twice."""


Place = tuple[list[Any], int]
"""A list or table, and the index of one of its members."""

HOSTILE_TEXTS = (
    "", " ", "0", "-1", "1e400", "nan", "null", "true", "x" * 10_000, "中文🔥" * 50, "\0", "nul\0inside", "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07", "\x9b2J", "\u202egnp.exe", "\u2028", "\ufeff", "a\nb", "a\rb", "=1+1", "@x", "\t=1", '"', "'", "\\", "`", ",",
    "%s{0}$1%n", "<script>alert(1)</script>", "'; DROP TABLE devices; --", "[bold]x[/bold]", "../../outside/precious", "/dev/zero",
    "/proc/self/environ", "~/outside", "..", ".", "/", "*", "**/*.parquet", "*a" * 2_000, "https://evil.example/", "http://127.0.0.1:1/",
    "redis://127.0.0.1:1/0", "9999-12-31T23:59:59.999Z", "0000-00-00T00:00:00.000Z", "1970-01-01T00:00:00.000Z", "10000-01-01T00:00:00.000Z",
    "9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+14:00", "2026-02-30T25:61:61.000Z", "2026-11-22", "9" * 400, "9.9.9-rc.1", "v" * 300, "1." * 1_000, "infinity", "100%", "1e9%", "99999999999d", "last",
    "all", "unlimited", "auto", "environment", "none", "running", "complete", "aborted", "sample", "ok", "failed", "$HOME", "e\u0301" * 100,
)  # fmt: skip

_NUMBERS = (
    0, 1, -1, 2, 255, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 0.5, -0.5, 1e-320, 1e15, 1e308, -1e308,
)  # fmt: skip

_JSON_TOKENS = (
    "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "-0", "-0.0", "9" * 400, "1" + "0" * 5_000, "[" * 100 + "]" * 100,
    "[" * 20_000 + "]" * 20_000, '{"a":' * 3_000 + "1" + "}" * 3_000, '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\\u001b[2J"', "'x'",
    "undefined", "01", ".5", "1.", "+1", "", '"unterminated', "/* */1", "[1,]",
)  # fmt: skip

_TOML_TOKENS = (
    "nan", "inf", "-inf", "1e400", "-0", "9" * 400, "1" + "0" * 5_000, "0x" + "f" * 40, "1979-05-27T07:32:00Z", "1979-05-27", "07:32:00",
    "[" * 100 + "]" * 100, "[" * 2_000 + "]" * 2_000, "{ a = " * 200 + "1" + " }" * 200, '"\\ud800"', '"\\u0000"', '"""\n\n"""', "'''\n'''", "", "{",
    '"unterminated',
)  # fmt: skip


def parse_json(content: bytes) -> object:
    """Return a document of tables and lists."""
    return json.loads(content, object_pairs_hook=Table)


def parse_toml(content: bytes) -> object:
    """Return a document of tables and lists."""
    return _tabled(tomllib.loads(content.decode()))


def _tabled(value: object) -> object:
    if isinstance(value, dict):
        return Table((key, _tabled(each)) for key, each in value.items())
    return [_tabled(each) for each in value] if isinstance(value, list) else value


def dump_json(value: object) -> bytes:
    """Return the text of a document."""
    match value:
        case Raw():
            return bytes(value)
        case Table():
            return b"{" + b",".join(_json_text(key) + b":" + dump_json(each) for key, each in value) + b"}"
        case list() | tuple():
            return b"[" + b",".join(map(dump_json, value)) + b"]"
        case str():
            return _json_text(value)
    return json.dumps(value).encode()


def _json_text(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=len(text) % 2 == 0).encode("utf-8", "surrogatepass")


def dump_toml(value: object) -> bytes:
    """Return the text of a document, a key a line, with tables inline."""
    assert isinstance(value, Table)
    return b"".join(_toml_key(key) + b" = " + _inline(each) + b"\n" for key, each in value)


def _inline(value: object) -> bytes:  # noqa: PLR0911  a case for each type
    match value:
        case Raw():
            return bytes(value)
        case Table():
            return b"{" + b", ".join(_toml_key(key) + b" = " + _inline(each) for key, each in value) + b"}"
        case list() | tuple():
            return b"[" + b", ".join(map(_inline, value)) + b"]"
        case str():
            return json.dumps(value).encode("utf-8", "surrogatepass").replace(b"\x7f", b"\\u007f")
        case date() | datetime() | time():
            return value.isoformat().encode()
        case None:
            return b'""'
    return json.dumps(value).encode()


def _toml_key(key: str) -> bytes:
    return key.encode() if key.isascii() and key.replace("_", "").isalnum() else _inline(key)


def places(value: object) -> Iterator[Place]:
    """Yield every place of a document, at any depth."""
    if isinstance(value, list):
        for index, each in enumerate(value):
            yield value, index
            yield from places(each[1] if isinstance(value, Table) else each)


def _value_at(place: Place) -> Any:
    into, index = place
    return into[index][1] if isinstance(into, Table) else into[index]


def _replace(place: Place, value: object) -> None:
    into, index = place
    into[index] = (into[index][0], value) if isinstance(into, Table) else value


def hostile_value(random: Random, *, toml: bool) -> object:
    """Return a value of another type or size than a reader expects."""
    match random.randrange(8):
        case 0 | 1:
            return random.choice(HOSTILE_TEXTS)
        case 2:
            return random.choice(_NUMBERS)
        case 3 | 4:
            return Raw(random.choice(_TOML_TOKENS if toml else _JSON_TOKENS).encode())
        case 5:
            return random.choice((True, False)) if toml else random.choice((None, True, False))
        case 6:
            return random.choice((Table(), [], [[]], [Table()], [""] * 1_000, list(range(10_000)), [1, "a", 0.5]))
    return Table([(random.choice(HOSTILE_TEXTS), random.choice(_NUMBERS)) for _ in range(random.choice((1, 2, 500)))])


def mutate_document(document: object, random: Random, *, toml: bool = False) -> str:
    """Change one member of a document in place; return what was done."""
    found = list(places(document))
    if not found:
        return "nothing to change"
    place = random.choice(found)
    into, index = place
    name = f"{into[index][0]}" if isinstance(into, Table) else f"[{index}]"
    action = random.choice(_ACTIONS)
    action(place, random, toml)
    return f"{action.__name__.strip('_')} {name}"


def _set(place: Place, random: Random, toml: bool) -> None:  # noqa: FBT001  one signature for all actions
    value = _value_at(place)
    if isinstance(value, str) and random.randrange(3):
        _replace(place, random.choice(HOSTILE_TEXTS))
    elif isinstance(value, int | float) and not isinstance(value, bool) and random.randrange(3):
        _replace(place, random.choice(_NUMBERS))
    else:
        _replace(place, hostile_value(random, toml=toml))


def _adjust(place: Place, random: Random, toml: bool) -> None:  # noqa: FBT001  as above
    value = _value_at(place)
    match value:
        case bool():
            _replace(place, not value)
        case int() | float():
            _replace(
                place,
                random.choice((value + 1, value - 1, -value, value * 1_000, value * 10**15, value + 0.5, str(value))),
            )
        case str():
            changed = (
                value[:-1],
                value[1:],
                value.upper(),
                value + "\x1b[1m",
                value + "\0",
                value * 2,
                value + " ",
                "./" + value,
                value[::-1],
            )
            _replace(place, random.choice(changed))
        case Table() | list() if value:
            _replace(place, random.choice((value * 2, value[:-1], value[::-1], [value], value[0], value * 300)))
        case _:
            _set(place, random, toml)


def _delete(place: Place, random: Random, toml: bool) -> None:  # noqa: FBT001  as above
    del place[0][place[1]]


def _double(place: Place, random: Random, toml: bool) -> None:  # noqa: FBT001  as above
    into, index = place
    if toml and isinstance(into, Table):  # always refused
        _adjust(place, random, toml)
        return
    value = hostile_value(random, toml=toml) if random.randrange(2) else _value_at(place)
    into.insert(random.randrange(len(into) + 1), (into[index][0], value) if isinstance(into, Table) else value)


def _swap(place: Place, random: Random, toml: bool) -> None:  # noqa: FBT001  as above
    into = place[0]
    other = (into, random.randrange(len(into)))
    first, second = _value_at(place), _value_at(other)
    _replace(place, second)
    _replace(other, first)


def _rename(place: Place, random: Random, toml: bool) -> None:  # noqa: FBT001  as above
    into, index = place
    if not isinstance(into, Table):
        _set(place, random, toml)
        return
    key, value = into[index]
    others = [each for each, _ in cast("Sequence[tuple[str, object]]", into)]
    into[index] = (random.choice((key.upper(), key + "_", key[:-1], random.choice(HOSTILE_TEXTS), *others)), value)


_ACTIONS: tuple[Callable[[Place, Random, bool], None], ...] = (
    _set,
    _set,
    _set,
    _adjust,
    _adjust,
    _delete,
    _double,
    _swap,
    _rename,
)


def mutate_bytes(  # noqa: PLR0911  a case for each mutation
    content: bytes, random: Random, fragments: Sequence[bytes] = (), others: Mapping[str, bytes] | None = None
) -> tuple[bytes, str]:
    """Return changed bytes, and what was done: bits, cuts, holes, insertions, repetitions, or another content."""
    size, at = len(content), random.randrange(len(content) + 1)
    if random.randrange(2):  # footers and headers are short, and decide how the rest is read
        at = max(0, min(size, random.choice((random.randrange(64), size - 1 - random.randrange(600)))))
    length = random.choice((1, 1, 2, 4, 8, 64, 1_000, size))
    match random.randrange(10):
        case 0:
            return content[:at], f"cut at {at} of {size}"
        case 1 | 2 | 3 if size:
            changed = bytearray(content)
            for _ in range(random.choice((1, 1, 1, 2, 8, 100))):
                changed[(at + random.randrange(16)) % size] ^= 1 << random.randrange(8)
            return bytes(changed), f"bits flipped at {at} of {size}"
        case 4:
            return content[:at] + content[at + length :], f"{length} bytes removed at {at} of {size}"
        case 5:
            piece = random.choice(
                (
                    *fragments,
                    b"\0",
                    b"\xff",
                    b"\x1b[31m",
                    b"\r\n",
                    b"\n",
                    b"\xed\xa0\x80",
                    b"9" * 300,
                    random.randbytes(8),
                )
            )
            return content[:at] + piece + content[at:], f"inserted {piece[:20]!r} at {at} of {size}"
        case 6:
            return content[:at] + content[at : at + length] * random.choice((2, 3, 50)) + content[
                at + length :
            ], f"repeated at {at}"
        case 7:
            fill = random.choice((b"\0", b"\xff", b" ", b"\n"))
            return content[:at] + fill * min(length, size - at) + content[
                at + length :
            ], f"filled with {fill!r} at {at}"
        case 8 if others:
            name = random.choice(sorted(others))
            return others[name], f"the content of {name}"
    other = random.choice(
        (
            b"",
            b"\n",
            b"{}",
            b"[]",
            b"null",
            b"\0" * 100,
            b"PAR1",
            b"PAR1PAR1",
            b"PK\x03\x04",
            b"\x1f\x8b",
            b"\xef\xbb\xbf" + content,
            content[::-1],
        )
    )
    return other, f"other content {other[:12]!r}"
