"""Read TOML files into typed tables, with one sentence for each error. Settings and rules share it."""

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec

from auditor.errors import SettingsError
from auditor.storage.files import read_regular_file

MAX_KEY_LENGTH = 80
"""Characters of an unknown key that an error quotes."""


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
        raise SettingsError(f"{path}: is not TOML: {error}") from error


def describe_validation_error(
    error: msgspec.ValidationError,
    struct_at: Callable[[str], type[msgspec.Struct]],
    *,
    noun: Callable[[str], str],
    expected: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return a sentence for a value that does not fit its struct: the path of the key, then what to do.

    Args:
        error: as ``msgspec.convert`` raised it. Only its text says where the value is.
        struct_at: returns the struct of the table at a path such as ``fleet.include``; ``""`` is the top.
        noun: returns what a key of the table at a path is called, such as ``a setting``.
        expected: advice by path, without indices. Other paths get msgspec's own text.
    """
    message, _, path = str(error).partition(" - at `$.")
    path = re.sub(r"\[\.\.\.\]", "", path.rstrip("`"))
    place = re.sub(r"\[(\d+)\]", lambda index: f" {int(index[1]) + 1}", path).replace(".", ": ")
    at = f"{place}: " if place else ""
    plain = re.sub(r"\[\d+\]", "", path)
    if (unknown := re.search(r"unknown field `(.*)`", message)) is not None:
        keys = [field.encode_name for field in msgspec.structs.fields(struct_at(plain))]
        key = unknown[1] if len(unknown[1]) <= MAX_KEY_LENGTH else f"{unknown[1][:MAX_KEY_LENGTH]}…"
        near = difflib.get_close_matches(key, keys, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(keys)}"
        return f"{at}{key} is not {noun(plain)}; {hint}"
    if (missing := re.search(r"missing required field `(.*)`", message)) is not None:
        return f"{at}has no {missing[1]}"
    return at + expected.get(plain, message[0].lower() + message[1:])
