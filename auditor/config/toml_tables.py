"""Read TOML files into typed tables, with a sentence for each fault. Settings and rules share it."""

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, ParamSpec, TypeVar, get_args, get_origin

import msgspec

from auditor.errors import SettingsError
from auditor.storage.files import read_regular_file
from auditor.text.formatting import safe

P = ParamSpec("P")

T = TypeVar("T", bound=msgspec.Struct)

Steps = tuple[str | int, ...]
"""Keys and indices that lead to a value."""

_STEP = re.compile(r"\.(\w+)|\[(\d+)\]|(\[\.\.\.\])")

MAX_FAULTS = 100
"""Faults of one table that are reported, at most."""

MAX_KEY_LENGTH = 80
"""Characters of an unknown key that an error quotes."""


class FaultList:
    """Collects the faults of a file, a sentence each."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Collect what a check raises; the statements after the ``with`` are executed in any case."""
        try:
            yield
        except SettingsError as error:
            self.sentences += error.sentences

    def refuse(self) -> None:
        """Raise SettingsError with all faults, each of them once; return if there is none."""
        if self.sentences:
            raise SettingsError(*dict.fromkeys(self.sentences)) from None


def raises_faults(find: Callable[P, Iterator[str]]) -> Callable[P, None]:
    """Return a check that raises SettingsError with all the sentences that a generator yields."""

    @wraps(find)
    def check(*args: P.args, **kwargs: P.kwargs) -> None:
        if sentences := list(find(*args, **kwargs)):
            raise SettingsError(*sentences)

    return check


def faults_of(check: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> tuple[str, ...]:
    """Return the sentences of what a check raises; none if it raises nothing."""
    try:
        check(*args, **kwargs)
    except SettingsError as error:
        return error.sentences
    return ()


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table in a TOML file.

    Raises:
        SettingsError: the file cannot be read, is no regular file of up to 1 MiB, or is not TOML in UTF-8.
    """
    try:
        return tomllib.loads(read_regular_file(path).decode("utf-8-sig"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, too large a number, too deep a nesting
        hint = "; a text needs quotes" if str(error).startswith("Invalid value") else ""
        raise SettingsError(f"{path}: is not TOML: {error}{hint}") from error


@dataclass(frozen=True, slots=True)
class TableWords:
    """How errors describe a table and the tables in it.

    Attributes:
        struct_at: returns the struct of the table at a path such as ``fleet.include``; ``""`` is the top.
        noun: returns what a key of the table at a path is called, such as ``a setting``.
        expected: advice by path, without indices. Other paths get the types or values that the key has.
    """

    struct_at: Callable[[str], type[msgspec.Struct]]
    noun: Callable[[str], str]
    expected: Mapping[str, str] = field(default_factory=dict)


def convert_table(
    raw: object,
    struct: type[T],
    where: str,
    words: TableWords,
    placeholders: Mapping[str, object] = MappingProxyType({}),
) -> tuple[T, list[str]]:
    """Return a table as a struct, and a sentence for each value that does not fit.

    Such a value is replaced: by a placeholder, or by its default, so that the other values are checked, too. An unknown
    key becomes the nearest one.

    Args:
        raw: the table.
        struct: what it becomes.
        where: place of the table, for errors.
        words: how errors describe it.
        placeholders: values that fit, by path without indices; needed for keys without a default, and for those whose
            default would be refused because of other keys. ``""`` is the table itself, ``key[]`` an item of a list,
            and ``key^`` takes the place of all keys of its table.

    Raises:
        SettingsError: there are more than ``MAX_FAULTS`` faults.
    """
    faults: list[str] = []
    replaced: set[Steps] = set()
    table = raw
    for _ in range(MAX_FAULTS):
        try:
            return msgspec.convert(table, struct), faults
        except msgspec.ValidationError as error:
            if not replaced:
                table = _copy_table(raw)
            steps, key = _locate(error, table, struct)
            if not any(steps[:length] in replaced for length in range(len(steps) + 1)):
                faults.append(f"{where}: {describe_validation_error(error, words, key)}")
            try:
                near = _rename(table, steps, words) if "unknown field" in str(error) else None
                if near is None:
                    table = _replace(table, steps, placeholders, replaced)
            except (LookupError, TypeError, AttributeError):  # the error's text misleads: a key looks like a part of it
                break
            replaced |= {steps, steps if near is None else near}
    raise SettingsError(*faults)


def _copy_table(value: object) -> Any:  # noqa: ANN401  a table of any values
    """Return a table with its own dictionaries and lists."""
    if isinstance(value, Mapping):
        return {key: _copy_table(each) for key, each in value.items()}
    return [_copy_table(each) for each in value] if isinstance(value, list | tuple) else value


def _locate(error: msgspec.ValidationError, table: object, struct: type[T]) -> tuple[Steps, str | None]:
    """Return the keys and indices that lead to the value of an error, and its key in a dictionary."""
    message, path = _split_error(error)
    steps: Steps = ()
    key = None
    for name, index, _ in _STEP.findall(path):
        if not name and not index:
            key = _find_key(error, table, struct, steps)
            return (*steps, key), key
        steps = (*steps, name or int(index))
    named = re.search(r"(?:unknown|missing required) field `(.*)`", message, re.DOTALL)
    return (steps if named is None else (*steps, named[1])), key


def _find_key(error: msgspec.ValidationError, table: object, struct: type[T], steps: Steps) -> str:
    """Return the key of the dictionary's value that an error is about: the error remains without the others."""
    values = _follow(table, steps)
    for key in tuple(values):
        others = {each: values.pop(each) for each in tuple(values) if each != key}
        try:
            msgspec.convert(table, struct)
        except msgspec.ValidationError as same:
            if str(same) == str(error):
                return str(key)
        finally:
            values.update(others)
    return str(next(iter(values)))


def _follow(table: Any, steps: Steps) -> Any:  # noqa: ANN401  likewise
    for step in steps:
        table = table[step]
    return table


def _rename(table: object, steps: Steps, words: TableWords) -> Steps | None:
    """Move the value of an unknown key to the nearest key, if that has none; return where it is then."""
    owner = _follow(table, steps[:-1])
    near = nearest(str(steps[-1]), _keys_of(words.struct_at(_plain(steps[:-1]))))
    if near is None or near in owner:
        return None
    owner[near] = owner.pop(steps[-1])
    return (*steps[:-1], near)


def _plain(steps: Steps) -> str:
    return ".".join(step for step in steps if isinstance(step, str))


def _keys_of(struct: type[msgspec.Struct]) -> list[str]:
    return [each.encode_name for each in msgspec.structs.fields(struct)]


def nearest(key: str, keys: Iterable[str]) -> str | None:
    """Return the key that someone meant who wrote another one."""
    return next(iter(difflib.get_close_matches(key[:MAX_KEY_LENGTH], tuple(keys), n=1)), None)


def _replace(
    table: Any,  # noqa: ANN401  likewise
    steps: Steps,
    placeholders: Mapping[str, object],
    replaced: set[Steps],
) -> Any:  # noqa: ANN401  likewise
    """Return the table with another value at a path: a placeholder, or none."""
    plain, again = _plain(steps), steps in replaced
    if not steps:
        return _copy_table(placeholders.get("", {}))
    owner, last = _follow(table, steps[:-1]), steps[-1]
    if (instead := placeholders.get(f"{plain}^")) is not None and not again:
        owner.clear()
        owner.update(_copy_table(instead))
    elif isinstance(last, int):
        owner[last] = placeholders.get(f"{plain}[]", {} if again else f"placeholder {last}")  # a table, or a text
    elif plain in placeholders and not again:
        owner[last] = _copy_table(placeholders[plain])
    elif last in owner:
        del owner[last]
        if not owner:
            owner.update(_copy_table(placeholders.get(_plain(steps[:-1]), {})))
    else:
        owner[last] = f"placeholder-{len(replaced)}"  # a required text, which may have to be unique
    return table


def _split_error(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return what is wrong, and the path of the value: ``.fleet.file``."""
    message, at, path = str(error).rpartition(" - at `$")
    return (message, path.rstrip("`")) if at else (path, "")


def describe_validation_error(error: msgspec.ValidationError, words: TableWords, key: str | None = None) -> str:
    """Return a sentence for a value that does not fit its struct: the path of the key, then what to do.

    Args:
        error: as ``msgspec.convert`` raised it. Only its text says where the value is.
        words: how errors describe the table.
        key: key of the value in a dictionary, which msgspec's text does not have.
    """
    message, path = _split_error(error)
    path = re.sub(r"\[\.\.\.\]", "", path).removeprefix(".")
    place = re.sub(r"\[(\d+)\]", lambda index: f" {int(index[1]) + 1}", path).replace(".", ": ")
    place = place if key is None else f"{place}: {_shorten(key)}"
    at = f"{place}: " if place else ""
    plain = re.sub(r"\[\d+\]", "", path)
    if (unknown := re.search(r"unknown field `(.*)`", message, re.DOTALL)) is not None:
        keys = _keys_of(words.struct_at(plain))
        near = nearest(unknown[1], keys)
        hint = f"the keys are {', '.join(keys)}" if near is None else f"did you mean {near}?"
        return f"{at}{_shorten(unknown[1])} is not {words.noun(plain)}; {hint}"
    if (missing := re.search(r"missing required field `(.*)`", message, re.DOTALL)) is not None:
        return f"{at}has no {missing[1]}"
    return at + (words.expected.get(plain) or _describe_type(message, _type_at(plain, words)))


_EXPECTED_TYPES = re.compile(r"Expected `([^`]+)`, got `(\w+)`")

_TYPE_NAMES = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "date": "a date",
    "datetime": "a date with a time",
    "time": "a time of day",
}
"""Names of msgspec's types. Its ``null`` is a key that is left out, which TOML cannot write."""


def _describe_type(message: str, expected: object) -> str:
    """Return what to give instead of a value of another type, or of one that its key does not have."""
    values = [f'"{each}"' if isinstance(each, str) else str(each).lower() for each in _literals(expected)]
    if values and message.startswith("Invalid enum value"):
        return f"give {_join(values)}"
    types = _EXPECTED_TYPES.match(message)
    if message.startswith("Invalid RFC3339 encoded date") or (types is not None and "date" in types[1].split(" | ")):
        return "give a date such as 2027-06-30"
    if types is not None:
        names = set(types[1].split(" | ")) - ({"int"} if "float" in types[1] else set())
        texts = {"bool": ["true", "false"], "str": values or ["a text"]}
        given = [text for key, name in _TYPE_NAMES.items() if key in names for text in texts.get(key, [name])]
        found = "a decimal number" if types[2] == "float" else _TYPE_NAMES.get(types[2], types[2])
        return f"give {_join(given)}, not {found}"
    if "out of range" in message:
        return "give a smaller number"
    return message[0].lower() + message[1:]


def _join(words: Sequence[str]) -> str:
    """Return ``a, b or c``."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _type_at(plain: str, words: TableWords) -> object:
    """Return the type of the key at a path without indices; None if its table has no such key."""
    owner, _, key = plain.rpartition(".")
    return next((each.type for each in msgspec.structs.fields(words.struct_at(owner)) if each.encode_name == key), None)


def _literals(expected: object) -> list[object]:
    """Return the values of all literals in a type."""
    if get_origin(expected) is Literal:
        return list(get_args(expected))
    return [value for each in get_args(expected) for value in _literals(each)]


def _shorten(key: str) -> str:
    return safe(key if len(key) <= MAX_KEY_LENGTH else f"{key[:MAX_KEY_LENGTH]}…")
